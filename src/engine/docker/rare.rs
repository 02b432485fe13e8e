//! The parts of a container's request that few services have: device requests, limits of block devices, and the two kinds of mounts that the
//! engine's structured form cannot express. Pure.

use super::{ANNOTATIONS, ApiVersion};
use crate::engine::{EngineError, EngineMount, EngineResult, Extras};
use crate::model::spec::MountKind;
use crate::model::spec::written::{DeviceRequest, ThrottleDevice};
use bollard::models::{HostConfig, ResourcesBlkioWeightDevice};
use std::collections::HashMap;

/// Whether a mount goes by its old form: SELinux labels and options of a tmpfs have no other.
pub(super) fn is(m: &EngineMount) -> bool {
    m.selinux.is_some() || (m.kind == MountKind::Tmpfs && !m.tmpfs_options.is_empty())
}

/// Mounts with an SELinux label. The engine makes a missing host path of this form; that it is there is checked before.
pub(super) fn binds(mounts: &[EngineMount]) -> EngineResult<Option<Vec<String>>> {
    let mut out = vec![];
    for m in mounts {
        let Some(label) = &m.selinux else { continue };
        let refuse = |why: &str| EngineError::Refused(format!("the mount at {} cannot have an SELinux label: {why}", m.target));
        let source = m.source.as_deref().filter(|_| matches!(m.kind, MountKind::Bind | MountKind::Volume));
        let source = source.ok_or_else(|| refuse("only host paths and named volumes have one"))?;
        if m.subpath.is_some() {
            return Err(refuse("it has a sub-path"));
        }
        if source.contains(':') || m.target.contains(':') {
            return Err(refuse("a path with a colon cannot be written in this form"));
        }
        let mut options = vec![label.as_str()];
        options.extend(m.read_only.then_some("ro"));
        options.extend(m.nocopy.then_some("nocopy"));
        options.extend(m.propagation.as_deref());
        out.push(format!("{source}:{}:{}", m.target, options.join(",")));
    }
    Ok((!out.is_empty()).then_some(out))
}

/// Memory file systems with options beyond size and mode.
pub(super) fn tmpfs(mounts: &[EngineMount]) -> Option<HashMap<String, String>> {
    let options = |m: &EngineMount| {
        let mut all = m.tmpfs_options.clone();
        all.extend(m.read_only.then(|| "ro".to_owned()));
        all.extend(m.tmpfs_size.map(|size| format!("size={size}")));
        all.extend(m.tmpfs_mode.map(|mode| format!("mode={mode:o}")));
        (m.target.clone(), all.join(","))
    };
    let map: HashMap<_, _> = mounts.iter().filter(|m| m.kind == MountKind::Tmpfs && is(m)).map(options).collect();
    (!map.is_empty()).then_some(map)
}

/// What of a host configuration few services have; everything else is left to the engine.
pub(super) fn host_config(extras: &Extras, api: ApiVersion) -> EngineResult<HostConfig> {
    let blkio = extras.blkio.clone().unwrap_or_default();
    let rates = |list: &[ThrottleDevice]| {
        let one = |d: &ThrottleDevice| bollard::models::ThrottleDevice { path: Some(d.path.clone()), rate: Some(d.rate.0) };
        (!list.is_empty()).then(|| list.iter().map(one).collect::<Vec<_>>())
    };
    let weight = |w: i64| u16::try_from(w).map_err(|_| EngineError::Refused(format!("blkio_config: {w} is no weight; 10 to 1000 are")));
    let mut weights = vec![];
    for d in &blkio.weight_device {
        weights.push(ResourcesBlkioWeightDevice { path: Some(d.path.clone()), weight: Some(weight(d.weight.unwrap_or(0))?.into()) });
    }
    let map = |m: &std::collections::BTreeMap<String, String>| (!m.is_empty()).then(|| super::create::map(m));
    Ok(HostConfig {
        // Told by the preflight where the engine has none.
        annotations: map(&extras.annotations).filter(|_| api >= ANNOTATIONS),
        blkio_weight: blkio.weight.map(weight).transpose()?,
        blkio_weight_device: (!weights.is_empty()).then_some(weights),
        blkio_device_read_bps: rates(&blkio.device_read_bps),
        blkio_device_write_bps: rates(&blkio.device_write_bps),
        blkio_device_read_iops: rates(&blkio.device_read_iops),
        blkio_device_write_iops: rates(&blkio.device_write_iops),
        cpu_realtime_period: extras.cpu_rt_period,
        cpu_realtime_runtime: extras.cpu_rt_runtime,
        device_requests: (!extras.device_requests.is_empty()).then(|| extras.device_requests.iter().map(device).collect()),
        memory_swappiness: extras.swappiness,
        oom_kill_disable: extras.oom_kill_disable.then_some(true),
        storage_opt: map(&extras.storage_opt),
        volumes_from: (!extras.volumes_from.is_empty()).then(|| extras.volumes_from.clone()),
        ..HostConfig::default()
    })
}

/// One group of devices; the engine wants all of the capabilities of a group at once.
fn device(d: &DeviceRequest) -> bollard::models::DeviceRequest {
    bollard::models::DeviceRequest {
        driver: d.driver.clone(),
        count: d.count,
        device_ids: (!d.device_ids.is_empty()).then(|| d.device_ids.clone()),
        capabilities: (!d.capabilities.is_empty()).then(|| vec![d.capabilities.clone()]),
        options: (!d.options.is_empty()).then(|| super::create::map(&d.options)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::docker::create;
    use crate::engine::{ContainerSpec, NetworkAttachment};
    use crate::model::ids::{EngineName, ImageRef};
    use crate::model::spec::written::{Blkio, Bytes};
    use serde_json::{Value, json};

    fn body(change: impl FnOnce(&mut ContainerSpec), api: ApiVersion) -> EngineResult<Value> {
        let mut spec = ContainerSpec::new(EngineName::new("web-1").unwrap(), ImageRef::new("sha256:ab").unwrap());
        change(&mut spec);
        create::container(&spec, api).map(|b| serde_json::to_value(b).unwrap())
    }

    fn mount(kind: MountKind, source: Option<&str>) -> EngineMount {
        EngineMount { source: source.map(str::to_owned), read_only: true, ..EngineMount::new(kind, "/x".into()) }
    }

    #[test]
    fn rare_settings_reach_the_engine_under_its_names() {
        let body = body(
            |c| {
                c.extras = Extras {
                    annotations: [("a".to_owned(), "b".to_owned())].into(),
                    blkio: Some(Blkio {
                        weight: Some(300),
                        device_read_bps: vec![ThrottleDevice { path: "/dev/sda".into(), rate: Bytes(1024) }],
                        ..Blkio::default()
                    }),
                    cpu_rt_period: Some(2),
                    cpu_rt_runtime: Some(1),
                    device_requests: vec![DeviceRequest {
                        capabilities: vec!["gpu".into(), "utility".into()],
                        count: Some(-1),
                        ..DeviceRequest::default()
                    }],
                    swappiness: Some(0),
                    oom_kill_disable: true,
                    storage_opt: [("size".to_owned(), "1g".to_owned())].into(),
                    volumes_from: vec!["ab:ro".into()],
                    platform: None,
                };
                c.networks =
                    vec![NetworkAttachment { network: "n".into(), links: vec!["db:database".into()], ..NetworkAttachment::default() }];
            },
            (1, 43),
        )
        .unwrap();
        let host = &body["HostConfig"];
        assert_eq!(host["Annotations"], json!({"a": "b"}));
        assert_eq!((&host["BlkioWeight"], &host["BlkioDeviceReadBps"]), (&json!(300), &json!([{"Path": "/dev/sda", "Rate": 1024}])));
        assert_eq!((&host["CpuRealtimePeriod"], &host["CpuRealtimeRuntime"]), (&json!(2), &json!(1)));
        assert_eq!(host["DeviceRequests"], json!([{"Count": -1, "Capabilities": [["gpu", "utility"]]}]));
        assert_eq!((&host["MemorySwappiness"], &host["OomKillDisable"]), (&json!(0), &json!(true)));
        assert_eq!((&host["StorageOpt"], &host["VolumesFrom"]), (&json!({"size": "1g"}), &json!(["ab:ro"])));
        assert_eq!(body["NetworkingConfig"]["EndpointsConfig"]["n"]["Links"], json!(["db:database"]));
    }

    #[test]
    fn annotations_are_left_out_where_the_engine_has_none() {
        let with = |api| {
            body(|c| c.extras.annotations = [("a".to_owned(), "b".to_owned())].into(), api).unwrap()["HostConfig"]["Annotations"].clone()
        };
        assert_eq!((with((1, 42)), with((1, 43))), (Value::Null, json!({"a": "b"})));
    }

    #[test]
    fn labelled_mounts_and_options_of_memory_go_by_their_old_form() {
        let body = body(
            |c| {
                c.mounts = vec![
                    EngineMount { selinux: Some("Z".into()), propagation: Some("rslave".into()), ..mount(MountKind::Bind, Some("/srv")) },
                    EngineMount { selinux: Some("z".into()), read_only: false, nocopy: true, ..mount(MountKind::Volume, Some("data")) },
                    EngineMount {
                        tmpfs_options: vec!["exec".into(), "uid=7".into()],
                        tmpfs_size: Some(64),
                        tmpfs_mode: Some(0o1777),
                        target: "/run".into(),
                        ..mount(MountKind::Tmpfs, None)
                    },
                    mount(MountKind::Tmpfs, None),
                ]
            },
            (1, 41),
        )
        .unwrap();
        assert_eq!(body["HostConfig"]["Binds"], json!(["/srv:/x:Z,ro,rslave", "data:/x:z,nocopy"]));
        assert_eq!(body["HostConfig"]["Tmpfs"], json!({"/run": "exec,uid=7,ro,size=64,mode=1777"}));
        assert_eq!(body["HostConfig"]["Mounts"].as_array().unwrap().len(), 1, "the plain one stays in the structured form");
    }

    #[test]
    fn what_the_old_form_cannot_say_is_refused() {
        let refused = |m: EngineMount| body(|c| c.mounts = vec![m], (1, 45)).unwrap_err().to_string();
        let z = |m: EngineMount| EngineMount { selinux: Some("z".into()), ..m };
        assert!(refused(z(mount(MountKind::Bind, Some("/a:b")))).contains("colon"));
        assert!(refused(z(mount(MountKind::Volume, None))).contains("named volumes"));
        assert!(refused(EngineMount { subpath: Some("s".into()), ..z(mount(MountKind::Volume, Some("v"))) }).contains("sub-path"));
        let heavy = |c: &mut ContainerSpec| c.extras.blkio = Some(Blkio { weight: Some(-1), ..Blkio::default() });
        assert!(body(heavy, (1, 41)).unwrap_err().to_string().contains("10 to 1000"));
    }
}
