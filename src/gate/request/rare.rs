//! The second judgement of what few services have: devices asked for by what they can, volumes of other containers, links, real-time budgets,
//! annotations, limits of block devices, SELinux labels. Each must be the judged plan's, word for word.

use super::Assert;
use crate::engine::ContainerSpec;
use crate::model::spec::written::{Blkio, DeviceRequest};
use crate::model::spec::{ServiceSpec, StackSpec};
use std::collections::{BTreeMap, BTreeSet};

/// What a plan says of it.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Rare {
    /// Devices asked for by what they can: drivers, identities and capabilities that the plan names.
    pub(super) device_words: BTreeSet<String>,
    /// Most devices of one request, -1 = all.
    pub(super) device_counts: BTreeSet<i64>,
    /// Whether it shares volumes of other containers, and whether any of them for writing.
    pub(super) volumes_from: Option<bool>,
    /// Names that may be linked: services of the stack and what the plan links from outside.
    pub(super) linked: BTreeSet<String>,
    /// Real-time period and budget.
    pub(super) real_time: (Option<i64>, Option<i64>),
    /// The OOM killer leaves it alone.
    pub(super) oom_kill_disable: bool,
    pub(super) annotations: BTreeMap<String, String>,
    pub(super) blkio: Option<Blkio>,
    pub(super) storage_opt: BTreeMap<String, String>,
    /// Paths inside whose mounts get an SELinux label.
    pub(super) labelled: BTreeSet<String>,
}

fn words(d: &DeviceRequest) -> Vec<&String> {
    d.driver.iter().chain(&d.device_ids).chain(&d.capabilities).chain(d.options.values()).chain(d.options.keys()).collect()
}

impl Rare {
    pub(super) fn of(stack: &StackSpec, s: &ServiceSpec) -> Self {
        let w = &s.written;
        let reserved = w.deploy.iter().filter_map(|d| d.resources.reservations.as_ref()).flat_map(|r| &r.devices);
        let asked: Vec<&DeviceRequest> = reserved.chain(&w.gpus).collect();
        let mut device_words: BTreeSet<String> = asked.iter().flat_map(|d| words(d)).cloned().collect();
        device_words.extend((!w.gpus.is_empty()).then(|| "gpu".to_owned()));
        let outside = s.external_links.iter().map(|l| l.split(':').next().unwrap_or_default().to_owned());
        Self {
            device_words,
            device_counts: asked.iter().map(|d| d.count.unwrap_or(0)).collect(),
            volumes_from: (!s.volumes_from.is_empty()).then(|| s.volumes_from.iter().any(|v| !v.ends_with(":ro"))),
            linked: stack.services.keys().map(|n| n.to_string()).chain(outside).collect(),
            real_time: (w.cpu_rt_period, w.cpu_rt_runtime),
            oom_kill_disable: s.oom_kill_disable,
            annotations: s.annotations.clone(),
            blkio: w.blkio_config.clone(),
            storage_opt: s.storage_opt.clone(),
            labelled: s.mounts.iter().filter(|m| m.selinux.is_some()).map(|m| m.target.clone()).collect(),
        }
    }
}

pub(super) fn judge(a: &mut Assert<'_>, spec: &ContainerSpec) {
    let (x, allowed) = (&spec.extras, &a.allowed.rare);
    for d in &x.device_requests {
        let strange = words(d).into_iter().find(|w| !allowed.device_words.contains(*w)).cloned();
        let strange =
            strange.or_else(|| (!allowed.device_counts.contains(&d.count.unwrap_or(0))).then(|| format!("{:?} devices", d.count)));
        if let Some(value) = strange {
            a.deny("device.review", "device_requests", &value, "a device asked for by what it can");
        }
    }
    for from in &x.volumes_from {
        let (container, mode) = from.split_once(':').unwrap_or((from, ""));
        let writes = mode != "ro";
        if !a.allowed.containers.contains(container) || allowed.volumes_from.is_none_or(|may_write| writes && !may_write) {
            a.deny("vol.from_foreign", "volumes_from", from, "the volumes of another container");
        }
    }
    for link in spec.networks.iter().flat_map(|n| &n.links) {
        if !allowed.linked.contains(link.split(':').next().unwrap_or_default()) {
            a.deny("links.foreign", "networks", link, "a link");
        }
    }
    let real_time = (x.cpu_rt_period, x.cpu_rt_runtime);
    if real_time != (None, None) && real_time != allowed.real_time {
        a.deny("rt.cpu", "cpu_rt_runtime", &format!("{:?}", x.cpu_rt_runtime), "a real-time budget");
    }
    if x.oom_kill_disable && !allowed.oom_kill_disable {
        a.deny("oom.protect", "oom_kill_disable", "true", "the OOM killer switched off");
    }
    if !x.annotations.is_empty() && x.annotations != allowed.annotations {
        a.deny("label.reserved", "annotations", "", "annotations");
    }
    if x.blkio.is_some() && x.blkio != allowed.blkio {
        a.deny("device.review", "blkio_config", "", "limits of block devices");
    }
    if !x.storage_opt.is_empty() && x.storage_opt != allowed.storage_opt {
        a.deny("secopt.custom", "storage_opt", "", "options of the storage driver");
    }
    for m in spec.mounts.iter().filter(|m| m.selinux.is_some() && !allowed.labelled.contains(&m.target)).collect::<Vec<_>>() {
        a.deny("secopt.custom", "mounts", &m.target, "an SELinux label");
    }
}

#[cfg(test)]
mod tests {
    use super::super::{RequestFacts, assert_container};
    use super::*;
    use crate::engine::{EngineMount, NetworkAttachment};
    use crate::model::ids::{EngineName, ImageRef};
    use crate::model::spec::MountKind;

    fn rules(allowed: &RequestFacts, change: impl FnOnce(&mut ContainerSpec)) -> Vec<String> {
        let mut spec = ContainerSpec::new(EngineName::new("web-1").unwrap(), ImageRef::new("sha256:ab").unwrap());
        change(&mut spec);
        assert_container(&spec, allowed).into_iter().map(|f| f.rule).collect()
    }

    fn gpu(count: i64) -> DeviceRequest {
        DeviceRequest { capabilities: vec!["gpu".into()], count: Some(count), ..DeviceRequest::default() }
    }

    fn label(target: &str) -> EngineMount {
        EngineMount { source: Some(String::new()), selinux: Some("z".into()), ..EngineMount::new(MountKind::Volume, target.into()) }
    }

    type Change = fn(&mut ContainerSpec);
    const CASES: &[(Change, &str)] = &[
        (|c| c.extras.device_requests = vec![gpu(1)], "device.review"),
        (|c| c.extras.volumes_from = vec!["db1:ro".into()], "vol.from_foreign"),
        (
            |c| c.networks = vec![NetworkAttachment { network: "n".into(), links: vec!["db:x".into()], ..Default::default() }],
            "links.foreign",
        ),
        (|c| c.extras.cpu_rt_runtime = Some(5), "rt.cpu"),
        (|c| c.extras.oom_kill_disable = true, "oom.protect"),
        (|c| c.extras.annotations = BTreeMap::from([("a".into(), "b".into())]), "label.reserved"),
        (|c| c.extras.blkio = Some(Blkio { weight: Some(10), ..Blkio::default() }), "device.review"),
        (|c| c.extras.storage_opt = BTreeMap::from([("size".into(), "1g".into())]), "secopt.custom"),
        (|c| c.mounts = vec![label("/x")], "secopt.custom"),
    ];

    #[test]
    fn what_the_plan_does_not_say_is_denied_and_what_it_says_passes() {
        let none = RequestFacts { networks: ["n".to_owned()].into(), ..RequestFacts::own("sha256:ab", None) };
        let rare = Rare {
            device_words: ["gpu".to_owned()].into(),
            device_counts: [1].into(),
            volumes_from: Some(false),
            linked: ["db".to_owned()].into(),
            real_time: (None, Some(5)),
            oom_kill_disable: true,
            annotations: BTreeMap::from([("a".into(), "b".into())]),
            blkio: Some(Blkio { weight: Some(10), ..Blkio::default() }),
            storage_opt: BTreeMap::from([("size".into(), "1g".into())]),
            labelled: ["/x".to_owned()].into(),
        };
        let all = RequestFacts { rare, containers: ["db1".to_owned()].into(), ..none.clone() };
        for (change, rule) in CASES {
            assert_eq!(rules(&none, change), [*rule]);
            assert_eq!(rules(&all, change), Vec::<String>::new(), "{rule}");
        }
        assert_eq!(rules(&all, |c| c.extras.device_requests = vec![gpu(-1)]), ["device.review"], "more devices than the plan says");
        assert_eq!(rules(&all, |c| c.extras.volumes_from = vec!["db1".into()]), ["vol.from_foreign"], "for writing where the plan reads");
        assert_eq!(rules(&all, |c| c.extras.volumes_from = vec!["billing-db:ro".into()]), ["vol.from_foreign"]);
    }
}
