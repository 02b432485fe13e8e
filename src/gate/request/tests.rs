//! The second judgement finds what the lists do not hold.

use super::*;
use crate::engine::{EngineMount, NetworkAttachment};
use crate::model::ids::{EngineName, ImageRef};
use crate::model::spec::{DeviceSpec, NetworkSpec};

/// A container as the executor would send it for a plain service.
fn container() -> ContainerSpec {
    serde_json::from_str(r#"{
        "name": "shop-web-1", "image": "sha256:abc", "command": null, "entrypoint": null, "env": [], "labels": {}, "user": null, "working_dir": null,
        "hostname": null, "domainname": null, "healthcheck": null, "exposed": [], "ports": [], "mounts": [], "networks": [], "network_mode": null,
        "restart": "no", "nano_cpus": null, "memory": null, "memory_reservation": null, "memswap": null, "pids": null, "cpu_shares": null, "cpuset": null,
        "cpu_quota": null, "cpu_period": null, "privileged": false, "cap_add": [], "cap_drop": [], "security_opt": [], "devices": [],
        "device_cgroup_rules": [], "pid_mode": null, "ipc_mode": null, "uts_mode": null, "userns_mode": null, "cgroupns_mode": null, "cgroup_parent": null,
        "sysctls": {}, "ulimits": {}, "shm_size": null, "extra_hosts": [], "dns": [], "dns_search": [], "dns_opt": [], "group_add": [], "init": null,
        "read_only": false, "stdin_open": false, "tty": false, "stop_signal": null, "stop_timeout_s": null, "logging": null, "oom_score_adj": null,
        "runtime": null, "files": []
    }"#)
    .expect("the spec's own wire form")
}

fn mount(kind: MountKind, source: &str) -> EngineMount {
    let source = Some(source.to_owned());
    EngineMount { source, ..EngineMount::new(kind, "/x".into()) }
}

/// The lists of a plan that says nothing but the image.
fn plain() -> Plain {
    RequestFacts::own("sha256:abc", None).plain
}

fn nothing() -> RequestFacts {
    RequestFacts { plain: plain(), ..RequestFacts::default() }
}

fn rules_of(change: impl FnOnce(&mut ContainerSpec), allowed: &RequestFacts) -> Vec<String> {
    let mut spec = container();
    change(&mut spec);
    assert_container(&spec, allowed).into_iter().map(|f| f.rule).collect()
}

#[test]
fn a_plain_container_passes_with_empty_lists() {
    assert_eq!(assert_container(&container(), &nothing()), vec![]);
}

#[test]
fn what_no_plan_contained_is_denied() {
    type Change = Box<dyn FnOnce(&mut ContainerSpec)>;
    let cases: Vec<(Change, &[&str])> = vec![
        (Box::new(|c| c.privileged = true), &["privileged"]),
        (Box::new(|c| c.pid_mode = Some("host".into())), &["ns.pid.host"]),
        (Box::new(|c| c.ipc_mode = Some("container:billing-db-1".into())), &["ns.foreign"]),
        (Box::new(|c| c.network_mode = Some("host".into())), &["ns.net.host"]),
        (Box::new(|c| c.network_mode = Some("billing_backend".into())), &["ns.net.host"]),
        (Box::new(|c| c.userns_mode = Some("host".into())), &["ns.user.host"]),
        (Box::new(|c| c.cgroupns_mode = Some("host".into())), &["ns.cgroup.host"]),
        (Box::new(|c| c.uts_mode = Some("host".into())), &["ns.uts.host"]),
        (Box::new(|c| c.mounts = vec![mount(MountKind::Bind, "/etc")]), &["bind.outside"]),
        (Box::new(|c| c.mounts = vec![mount(MountKind::Bind, "/var/run/docker.sock")]), &["bind.outside", "socket.engine"]),
        (Box::new(|c| c.mounts = vec![mount(MountKind::Volume, "billing_pgdata")]), &["vol.foreign"]),
        (Box::new(|c| c.cap_add = vec!["cap_sys_admin".into()]), &["cap.dangerous"]),
        (Box::new(|c| c.cap_add = vec!["NET_ADMIN".into()]), &["cap.review"]),
        (Box::new(|c| c.security_opt = vec!["seccomp=unconfined".into()]), &["secopt.unconfined"]),
        (Box::new(|c| c.sysctls = BTreeMap::from([("kernel.core_pattern".into(), "|/x".into())])), &["sysctl.host"]),
        (Box::new(|c| c.runtime = Some("kata".into())), &["runtime.unlisted"]),
        (Box::new(|c| c.cgroup_parent = Some("/".into())), &["cgroup.parent"]),
        (Box::new(|c| c.oom_score_adj = Some(-1000)), &["oom.protect"]),
        (Box::new(|c| c.networks = vec![NetworkAttachment { network: "billing_backend".into(), ..Default::default() }]), &["net.foreign"]),
        (
            Box::new(|c| c.devices = vec![DeviceSpec { source: "/dev/dri".into(), target: "/dev/dri".into(), permissions: "rwm".into() }]),
            &["device.raw"],
        ),
    ];
    for (change, expected) in cases {
        assert_eq!(rules_of(change, &nothing()), expected);
    }
}

#[test]
fn what_the_plan_contained_passes_and_a_socket_never_does() {
    let allowed = RequestFacts {
        bind_sources: ["/srv/shop/data".to_owned(), "/run/docker.sock".to_owned()].into(),
        volumes: ["shop_pg".to_owned()].into(),
        networks: ["shop_default".to_owned()].into(),
        containers: ["shop-web-1".to_owned()].into(),
        caps: ["NET_ADMIN".to_owned()].into(),
        plain: plain(),
        ..RequestFacts::default()
    };
    let change = |c: &mut ContainerSpec| {
        c.mounts =
            vec![mount(MountKind::Bind, "/srv/shop/data"), mount(MountKind::Volume, "shop_pg"), mount(MountKind::Volume, &"a".repeat(64))];
        c.networks = vec![NetworkAttachment { network: "shop_default".into(), ..Default::default() }];
        c.pid_mode = Some("container:shop-web-1".into());
        c.cap_add = vec!["CAP_NET_ADMIN".into()];
    };
    assert_eq!(rules_of(change, &allowed), Vec::<String>::new());
    assert_eq!(rules_of(|c| c.mounts = vec![mount(MountKind::Bind, "/run/docker.sock")], &allowed), ["socket.engine"]);
}

#[test]
fn volumes_and_networks_must_be_the_judged_ones() {
    let judged = VolumeSpec { name: "shop_pg".into(), ..VolumeSpec::default() };
    let allowed = RequestFacts {
        volume_specs: BTreeMap::from([("shop_pg".into(), judged)]),
        network_specs: BTreeMap::from([("shop_default".into(), NetworkSpec::default())]),
        ..RequestFacts::default()
    };
    let volume = |name: &str, opts: &[(&str, &str)]| VolumeCreate {
        name: EngineName::new(name).unwrap(),
        driver: None,
        driver_opts: opts.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
        labels: BTreeMap::new(),
    };
    let rules = |f: Vec<Finding>| f.into_iter().map(|f| f.rule).collect::<Vec<_>>();
    assert_eq!(rules(assert_volume(&volume("shop_pg", &[]), &allowed)), Vec::<String>::new());
    assert_eq!(rules(assert_volume(&volume("shop_pg", &[("o", "bind"), ("device", "/")]), &allowed)), ["vol.driver_opts_bind"]);
    assert_eq!(rules(assert_volume(&volume("billing_pg", &[]), &allowed)), ["vol.foreign"]);
    let network = |name: &str, driver: Option<&str>| NetworkCreate {
        name: EngineName::new(name).unwrap(),
        spec: NetworkSpec { driver: driver.map(str::to_owned), ..NetworkSpec::default() },
        labels: BTreeMap::new(),
    };
    assert_eq!(rules(assert_network(&network("shop_default", None), &allowed)), Vec::<String>::new());
    assert_eq!(rules(assert_network(&network("shop_default", Some("macvlan")), &allowed)), ["net.l2"]);
    assert_eq!(rules(assert_network(&network("edge", None), &allowed)), ["net.foreign"]);
    let mut bridge = network("shop_default", None);
    bridge.spec.driver_opts.insert("com.docker.network.bridge.name".into(), "docker0".into());
    assert_eq!(rules(assert_network(&bridge, &allowed)), ["net.l2"], "a bridge of the host");
    let mut open = network("shop_default", None);
    open.spec.internal = true;
    assert_eq!(rules(assert_network(&open, &allowed)), ["net.l2"]);
}

#[test]
fn the_lists_come_from_the_judged_plan_with_links_followed() {
    use crate::gate::plan::BindFact;
    use crate::model::ids::{ServiceName, StackName};
    use crate::model::spec::MountSpec;
    let service = ServiceSpec {
        mounts: vec![MountSpec { source: Some("/srv/shop/link".into()), read_only: true, ..MountSpec::new(MountKind::Bind, "/x", "") }],
        image: Some(ImageRef::new("nginx:1").unwrap()),
        ..ServiceSpec::default()
    };
    let spec = StackSpec {
        services: BTreeMap::from([(ServiceName::new("web").unwrap(), service)]),
        ..StackSpec::new(StackName::new("shop").unwrap())
    };
    let fact = BindFact { real: "/srv/shop/data".into(), exists: true, kind: None };
    let facts = PlanFacts { resolved: BTreeMap::from([("/srv/shop/link".into(), fact)]), ..PlanFacts::default() };
    let now = chrono::NaiveDate::from_ymd_opt(2026, 1, 1).unwrap();
    let expected = RequestFacts {
        bind_sources: ["/srv/shop/data".to_owned()].into(),
        real_paths: [("/srv/shop/link".to_owned(), "/srv/shop/data".to_owned())].into(),
        plain: Plain::of(&spec, "web", spec.services.values().next().unwrap()),
        rare: Rare { linked: ["web".to_owned()].into(), ..Rare::default() },
        ..RequestFacts::default()
    };
    assert_eq!(RequestFacts::of(&spec, "web", &facts, &Policy::default(), now, BTreeSet::new()), expected);
}

#[test]
fn a_path_that_leads_elsewhere_by_now_is_denied_whatever_is_excepted() {
    let allowed = RequestFacts {
        bind_sources: ["/srv/data".to_owned()].into(),
        devices: ["/dev/dri".to_owned()].into(),
        excepted: [("bind.outside", "/srv/data"), ("device.raw", "/dev/dri")].map(|(r, v)| (r.to_owned(), v.to_owned())).into(),
        plain: plain(),
        ..RequestFacts::default()
    };
    let mounts = |c: &mut ContainerSpec| {
        c.mounts.push(mount(MountKind::Bind, "/srv/data"));
        c.devices.push(DeviceSpec { source: "/dev/dri".into(), target: "/dev/dri".into(), permissions: "rwm".into() });
    };
    assert_eq!(rules_of(mounts, &allowed), Vec::<String>::new());
    let moved = RequestFacts { moved: ["/srv/data".to_owned(), "/dev/dri".to_owned()].into(), ..allowed };
    assert_eq!(rules_of(mounts, &moved), ["bind.outside", "device.raw"]);
}

#[test]
fn a_file_that_was_judged_as_copied_is_no_source_of_a_mount() {
    use crate::model::ids::{ServiceName, StackName};
    let web = || ServiceName::new("web").unwrap();
    let service: ServiceSpec = serde_json::from_value(serde_json::json!({"active": true, "image": "a:1", "replicas": 1, "restart": "no",
        "configs": [{"source": "c", "target": "/etc/app/x"}]}))
    .unwrap();
    let mut spec = StackSpec {
        services: BTreeMap::from([(web(), service), (ServiceName::new("other").unwrap(), ServiceSpec::default())]),
        ..StackSpec::new(StackName::new("shop").unwrap())
    };
    let object = serde_json::json!({"c": {"name": "c", "external": false, "file": "/srv/shop/c", "content": "text", "labels": {}}});
    spec.configs = serde_json::from_value(object).unwrap();
    let now = chrono::NaiveDate::from_ymd_opt(2026, 1, 1).unwrap();
    let of = |spec: &StackSpec, service: &str, carried: &[&str]| {
        let places: BTreeSet<String> = carried.iter().map(|p| (*p).to_owned()).collect();
        let facts = PlanFacts { carried: BTreeMap::from([(web(), places)]), ..PlanFacts::default() };
        RequestFacts::of(spec, service, &facts, &Policy::default(), now, BTreeSet::new())
    };
    let bind = |c: &mut ContainerSpec| c.mounts = vec![mount(MountKind::Bind, "/srv/shop/c")];
    let denied = |allowed: RequestFacts| rules_of(bind, &RequestFacts { plain: plain(), ..allowed });
    assert_eq!(denied(of(&spec, "web", &[])), ["bind.outside"], "it is copied");
    assert_eq!(denied(of(&spec, "web", &["/etc/application"])), ["bind.outside"]);
    assert_eq!(denied(of(&spec, "web", &["/etc/app"])), Vec::<String>::new(), "beneath a volume of the image it is mounted");
    assert_eq!(denied(of(&spec, "other", &["/etc/app"])), ["bind.outside"], "and for nobody else");
    spec.services.get_mut(&web()).unwrap().read_only = true;
    assert_eq!(denied(of(&spec, "web", &[])), Vec::<String>::new());
}
