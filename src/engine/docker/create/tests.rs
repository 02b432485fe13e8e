//! The request bodies as the engine gets them.

use super::*;
use crate::model::ids::{EngineName, ImageRef};
use crate::model::spec::{DeviceSpec, IpamPool, Logging, NetworkSpec};
use serde_json::json;

fn spec() -> ContainerSpec {
    ContainerSpec::new(EngineName::new("web-1").unwrap(), ImageRef::new("sha256:ab").unwrap())
}

fn mount_of(kind: MountKind, source: Option<&str>) -> EngineMount {
    EngineMount { source: source.map(str::to_owned), read_only: true, ..EngineMount::new(kind, "/x".into()) }
}

fn attach(network: &str, alias: &str) -> NetworkAttachment {
    NetworkAttachment { network: network.into(), aliases: vec![alias.into()], ..NetworkAttachment::default() }
}

#[test]
fn a_plain_container_asks_for_nothing_special() {
    let body = serde_json::to_value(container(&spec(), (1, 41)).unwrap()).unwrap();
    assert_eq!(
        body,
        json!({
            "Image": "sha256:ab", "Env": [], "Labels": {}, "OpenStdin": false, "Tty": false,
            "HostConfig": {
                "Mounts": [], "PortBindings": {}, "RestartPolicy": {"Name": "no"}, "Privileged": false, "Devices": [], "Ulimits": [], "ReadonlyRootfs": false
            }
        })
    );
}

#[test]
fn system_paths_are_left_open_by_the_lists_an_engine_knows() {
    let host = |options: &[&str]| {
        let security_opt = options.iter().map(|o| (*o).to_owned()).collect();
        serde_json::to_value(container(&ContainerSpec { security_opt, ..spec() }, (1, 41)).unwrap()).unwrap()["HostConfig"].clone()
    };
    let open = host(&["systempaths=unconfined", "no-new-privileges"]);
    assert_eq!((&open["MaskedPaths"], &open["ReadonlyPaths"]), (&json!([]), &json!([])));
    assert_eq!(open["SecurityOpt"], json!(["no-new-privileges"]), "an engine refuses the option itself");
    assert_eq!(host(&["no-new-privileges"]).get("MaskedPaths"), None);
}

#[test]
fn every_setting_reaches_the_engine() {
    let mut s = spec();
    s.command = Some(vec!["run".into()]);
    s.healthcheck =
        Some(Healthcheck { test: vec!["CMD".into(), "t".into()], interval_ms: Some(1500), retries: Some(3), ..Healthcheck::default() });
    s.ports = vec![
        PortBinding { host_ip: "127.0.0.1".into(), host_port: Some("8080".into()), container_port: 80, protocol: "tcp".into() },
        PortBinding { host_ip: String::new(), host_port: None, container_port: 80, protocol: "tcp".into() },
    ];
    s.mounts = vec![
        EngineMount { propagation: Some("rslave".into()), ..mount_of(MountKind::Bind, Some("/srv")) },
        EngineMount { nocopy: true, ..mount_of(MountKind::Volume, Some("data")) },
        mount_of(MountKind::Volume, None),
        EngineMount { tmpfs_size: Some(64), tmpfs_mode: Some(0o1777), ..mount_of(MountKind::Tmpfs, None) },
    ];
    s.restart = Restart::OnFailure(3);
    s.memory = Some(1 << 30);
    s.nano_cpus = Some(500_000_000);
    s.ulimits = [("nofile".to_owned(), (1, 2))].into();
    s.devices = vec![DeviceSpec { source: "/dev/a".into(), target: "/dev/b".into(), permissions: "rw".into() }];
    s.logging = Some(Logging { driver: String::new(), options: [("max-size".to_owned(), "10m".to_owned())].into() });
    s.init = Some(true);
    s.cgroupns_mode = Some("private".into());
    s.dns_opt = vec!["ndots:1".into()];
    s.stop_timeout_s = Some(5);
    let body = serde_json::to_value(container(&s, (1, 41)).unwrap()).unwrap();
    assert_eq!(body["Healthcheck"], json!({"Test": ["CMD", "t"], "Interval": 1_500_000_000u64, "Retries": 3}));
    assert_eq!(body["ExposedPorts"], json!({"80/tcp": {}}));
    assert_eq!(body["StopTimeout"], json!(5));
    assert_eq!(
        body["HostConfig"],
        json!({
            "Mounts": [
                {"Target": "/x", "Source": "/srv", "Type": "bind", "ReadOnly": true, "BindOptions": {"Propagation": "rslave"}},
                {"Target": "/x", "Source": "data", "Type": "volume", "ReadOnly": true, "VolumeOptions": {"NoCopy": true}},
                {"Target": "/x", "Type": "volume", "ReadOnly": true},
                {"Target": "/x", "Type": "tmpfs", "ReadOnly": true, "TmpfsOptions": {"SizeBytes": 64, "Mode": 0o1777}},
            ],
            "PortBindings": {"80/tcp": [{"HostIp": "127.0.0.1", "HostPort": "8080"}, {"HostIp": "", "HostPort": ""}]},
            "RestartPolicy": {"Name": "on-failure", "MaximumRetryCount": 3},
            "Memory": 1 << 30, "NanoCpus": 500_000_000, "Privileged": false, "ReadonlyRootfs": false, "Init": true, "CgroupnsMode": "private",
            "Ulimits": [{"Name": "nofile", "Soft": 1, "Hard": 2}],
            "Devices": [{"PathOnHost": "/dev/a", "PathInContainer": "/dev/b", "CgroupPermissions": "rw"}],
            "LogConfig": {"Config": {"max-size": "10m"}}, "DnsOptions": ["ndots:1"],
        })
    );
}

#[test]
fn old_engines_get_one_endpoint_new_ones_all() {
    let mut s = spec();
    s.networks = vec![attach("a", "web"), NetworkAttachment { ipv4_address: Some("10.0.0.9".into()), ..attach("b", "api") }];
    let endpoints = |api| container(&s, api).unwrap().networking_config.unwrap().endpoints_config.unwrap();
    assert_eq!(serde_json::to_value(endpoints((1, 41))).unwrap(), json!({"a": {"Aliases": ["web"]}}));
    assert_eq!(
        serde_json::to_value(endpoints((1, 44))).unwrap(),
        json!({"a": {"Aliases": ["web"]}, "b": {"Aliases": ["api"], "IPAMConfig": {"IPv4Address": "10.0.0.9"}}})
    );
    assert_eq!(container(&s, (1, 41)).unwrap().host_config.unwrap().network_mode.as_deref(), Some("a"));
}

#[test]
fn what_an_engine_would_ignore_is_refused() {
    let mut s = spec();
    s.mounts = vec![EngineMount { subpath: Some("sub".into()), ..mount_of(MountKind::Volume, Some("data")) }];
    let refused = container(&s, (1, 41)).unwrap_err().to_string();
    assert_eq!(refused, "the engine refused it: the sub-path of /x needs an engine with API 1.45, this one has 1.41");
    assert!(container(&s, (1, 45)).is_ok());
    let mut s = spec();
    s.networks = vec![NetworkAttachment { mac_address: Some("02:42:ac:11:00:02".into()), ..attach("a", "web") }];
    assert_eq!(
        container(&s, (1, 41)).unwrap_err().to_string(),
        "the engine refused it: mac_address needs an engine with API 1.44, this one has 1.41"
    );
    let mut s = spec();
    s.cgroupns_mode = Some("mine".into());
    assert_eq!(container(&s, (1, 41)).unwrap_err().to_string(), "the engine refused it: cgroup: \"mine\" is no value the engine knows");
}

#[test]
fn networks_carry_pools_and_labels() {
    let pool = IpamPool { subnet: Some("10.9.0.0/24".into()), gateway: Some("10.9.0.1".into()), ..IpamPool::default() };
    let spec = NetworkSpec { internal: true, ipam: vec![pool], ..NetworkSpec::default() };
    let create = NetworkCreate { name: EngineName::new("n").unwrap(), spec, labels: [("k".to_owned(), "v".to_owned())].into() };
    assert_eq!(
        serde_json::to_value(network(&create)).unwrap(),
        json!({
            "Name": "n", "Driver": "bridge", "Internal": true, "Attachable": false, "EnableIPv6": false, "Labels": {"k": "v"},
            "IPAM": {"Driver": "default", "Config": [{"Subnet": "10.9.0.0/24", "Gateway": "10.9.0.1"}]}
        })
    );
}

#[test]
fn injected_files_cannot_leave_the_container() {
    let file = |path: &str| InjectedFile { path: path.into(), content: b"x".to_vec(), mode: 0o400, uid: 7, gid: 8 };
    for bad in ["relative", "/", "/a/../b", "/a//b", "/a/"] {
        assert!(matches!(files_tar(&[file(bad)], &[]), Err(EngineError::Refused(_))), "{bad}");
    }
    let bytes = files_tar(&[file("/run/secrets/key")], &[]).unwrap();
    assert_eq!(
        parents(&[file("/run/secrets/key"), file("/top"), file("/run/x")]).into_iter().collect::<Vec<_>>(),
        ["/run", "/run/secrets"]
    );
    let mut archive = tar::Archive::new(bytes.as_slice());
    let entry = archive.entries().unwrap().next().unwrap().unwrap();
    let h = entry.header();
    assert_eq!(
        (entry.path().unwrap().display().to_string(), h.mode().unwrap(), h.uid().unwrap(), h.gid().unwrap()),
        ("run/secrets/key".into(), 0o400, 7, 8)
    );
}
