//! A mistake of the translation is found before it is sent, and what is translated as it should be passes.

use super::*;
use crate::engine::docker::create;
use crate::engine::{Extras, PortBinding};
use crate::model::ids::{EngineName, ImageRef};
use crate::model::spec::written::{Blkio, DeviceRequest};
use crate::model::spec::{DeviceSpec, Healthcheck, IpamPool, Logging, NetworkSpec};
use serde_json::json;
use std::time::Duration;

fn words(list: &[&str]) -> Vec<String> {
    list.iter().map(|w| (*w).to_owned()).collect()
}

fn pairs(list: &[(&str, &str)]) -> BTreeMap<String, String> {
    list.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
}

fn mount(kind: MountKind, source: Option<&str>, target: &str) -> EngineMount {
    EngineMount { source: source.map(str::to_owned), read_only: true, ..EngineMount::new(kind, target.into()) }
}

/// A container with a value for everything the translation knows.
fn full() -> ContainerSpec {
    let tmpfs = |options: &[&str], target| EngineMount {
        tmpfs_size: Some(64),
        tmpfs_mode: Some(0o1777),
        tmpfs_options: words(options),
        ..mount(MountKind::Tmpfs, None, target)
    };
    ContainerSpec {
        command: Some(words(&["serve", "--all"])),
        entrypoint: Some(words(&["/run"])),
        env: words(&["A=b", "C"]),
        labels: pairs(&[("team", "a")]),
        user: Some("1000".into()),
        working_dir: Some("/srv".into()),
        hostname: Some("web".into()),
        domainname: Some("local".into()),
        healthcheck: Some(Healthcheck { test: words(&["CMD", "/check"]), interval_ms: Some(1500), ..Healthcheck::default() }),
        exposed: words(&["9000/udp"]),
        ports: vec![
            PortBinding { host_ip: "127.0.0.1".into(), host_port: Some("8080".into()), container_port: 80, protocol: "tcp".into() },
            PortBinding { host_ip: String::new(), host_port: None, container_port: 81, protocol: "udp".into() },
        ],
        mounts: vec![
            EngineMount { propagation: Some("rslave".into()), ..mount(MountKind::Bind, Some("/srv/data"), "/data") },
            EngineMount { nocopy: true, subpath: Some("part".into()), ..mount(MountKind::Volume, Some("files"), "/files") },
            EngineMount { read_only: false, ..mount(MountKind::Volume, None, "/anonymous") },
            EngineMount { selinux: Some("Z".into()), ..mount(MountKind::Bind, Some("/srv/label"), "/label") },
            tmpfs(&[], "/tmp"),
            tmpfs(&["noexec", "uid=7,gid=7"], "/run"),
            mount(MountKind::Image, Some("tools:1"), "/tools"),
        ],
        networks: vec![
            NetworkAttachment { network: "front".into(), aliases: words(&["web"]), ..NetworkAttachment::default() },
            NetworkAttachment {
                network: "back".into(),
                ipv4_address: Some("10.0.0.9".into()),
                link_local_ips: words(&["169.254.0.9"]),
                mac_address: Some("02:42:ac:11:00:02".into()),
                driver_opts: pairs(&[("k", "v")]),
                links: words(&["db:database"]),
                ..NetworkAttachment::default()
            },
        ],
        restart: Restart::OnFailure(3),
        nano_cpus: Some(500_000_000),
        memory: Some(u64::MAX),
        memory_reservation: Some(1 << 20),
        memswap: Some(-1),
        pids: Some(100),
        cpu_shares: Some(512),
        cpuset: Some("0-1".into()),
        cpu_quota: Some(1000),
        cpu_period: Some(2000),
        cap_add: words(&["NET_BIND_SERVICE"]),
        cap_drop: words(&["ALL"]),
        security_opt: words(&["no-new-privileges:true"]),
        devices: vec![DeviceSpec { source: "/dev/fuse".into(), target: "/dev/fuse".into(), permissions: "rw".into() }],
        device_cgroup_rules: words(&["c 10:229 rw"]),
        pid_mode: Some("container:ab".into()),
        ipc_mode: Some("private".into()),
        uts_mode: Some(String::new()),
        userns_mode: Some("private".into()),
        cgroupns_mode: Some("private".into()),
        cgroup_parent: Some("limited".into()),
        sysctls: pairs(&[("net.core.somaxconn", "10")]),
        ulimits: [("nofile".to_owned(), (1, 2))].into(),
        shm_size: Some(1 << 20),
        extra_hosts: words(&["db:10.0.0.2"]),
        dns: words(&["10.0.0.1"]),
        dns_search: words(&["local"]),
        dns_opt: words(&["ndots:1"]),
        group_add: words(&["video"]),
        init: Some(true),
        read_only: true,
        stdin_open: true,
        tty: true,
        stop_signal: Some("SIGINT".into()),
        stop_timeout_s: Some(5),
        logging: Some(Logging { driver: "json-file".into(), options: pairs(&[("max-size", "10m")]) }),
        oom_score_adj: Some(10),
        runtime: Some("runsc".into()),
        extras: Extras {
            annotations: pairs(&[("a", "b")]),
            blkio: Some(Blkio { weight: Some(300), ..Blkio::default() }),
            cpu_rt_period: Some(2),
            cpu_rt_runtime: Some(1),
            device_requests: vec![DeviceRequest {
                capabilities: words(&["gpu", "utility"]),
                driver: Some("nvidia".into()),
                count: Some(-1),
                device_ids: words(&["0"]),
                options: pairs(&[("k", "v")]),
            }],
            swappiness: Some(0),
            oom_kill_disable: true,
            storage_opt: pairs(&[("size", "1g")]),
            volumes_from: words(&["ab:ro"]),
            platform: None,
        },
        ..ContainerSpec::new(EngineName::new("web-1").unwrap(), ImageRef::new("sha256:ab").unwrap())
    }
}

#[test]
fn what_is_translated_as_it_should_be_passes() {
    for api in [(1, 48), (1, 53)] {
        let spec = full();
        container(&create::container(&spec, api).unwrap(), &spec).unwrap_or_else(|e| panic!("{api:?}: {e}"));
    }
    let mut open = full();
    open.security_opt.push("systempaths=unconfined".into());
    container(&create::container(&open, (1, 48)).unwrap(), &open).expect("two lists without a path");
    let closed = ContainerSpec { security_opt: full().security_opt, ..open };
    assert!(
        container(
            &create::container(&ContainerSpec { security_opt: words(&["systempaths=unconfined"]), ..closed.clone() }, (1, 48)).unwrap(),
            &closed
        )
        .is_err()
    );
    let plain = ContainerSpec::new(EngineName::new("web-1").unwrap(), ImageRef::new("sha256:ab").unwrap());
    container(&create::container(&plain, (1, 41)).unwrap(), &plain).unwrap();
    let mut host = plain;
    (host.network_mode, host.pid_mode, host.privileged) = (Some("host".into()), Some("host".into()), true);
    host.mounts = vec![mount(MountKind::Bind, Some("/var/run/docker.sock"), "/var/run/docker.sock")];
    container(&create::container(&host, (1, 41)).unwrap(), &host).expect("whether it may be was judged before");
}

#[test]
fn what_nobody_judged_is_not_sent() {
    let spec = full();
    let right = serde_json::to_value(create::container(&spec, (1, 48)).unwrap()).unwrap();
    let socket = json!({"Type": "bind", "Source": "/var/run/docker.sock", "Target": "/data", "ReadOnly": true});
    let mounted = |key: &str, value: Value| {
        let mut mount = right["HostConfig"]["Mounts"][1].clone();
        mount[key] = value;
        json!([mount])
    };
    let forged = [
        ("HostConfig.Privileged", json!(true)),
        ("HostConfig.PidMode", json!("host")),
        ("HostConfig.IpcMode", json!("host")),
        ("HostConfig.UTSMode", json!("host")),
        ("HostConfig.UsernsMode", json!("host")),
        ("HostConfig.CgroupnsMode", json!("host")),
        ("HostConfig.NetworkMode", json!("host")),
        ("HostConfig.Cgroup", json!("container:x")),
        ("HostConfig.CgroupParent", json!("/")),
        ("HostConfig.Runtime", json!("other")),
        ("HostConfig.CapAdd", json!(["SYS_ADMIN"])),
        ("HostConfig.CapAdd", json!(["NET_BIND_SERVICE", "SYS_ADMIN"])),
        ("HostConfig.CapDrop", json!([])),
        ("HostConfig.CapDrop", Value::Null),
        ("HostConfig.SecurityOpt", json!(["seccomp=unconfined"])),
        ("HostConfig.SecurityOpt", Value::Null),
        ("HostConfig.MaskedPaths", json!([])),
        ("HostConfig.ReadonlyPaths", json!([])),
        ("HostConfig.ReadonlyRootfs", json!(false)),
        ("HostConfig.Devices", json!([{"PathOnHost": "/dev/sda", "PathInContainer": "/dev/fuse", "CgroupPermissions": "rw"}])),
        ("HostConfig.Devices", json!([{"PathOnHost": "/dev/fuse", "PathInContainer": "/dev/fuse", "CgroupPermissions": "rwm"}])),
        ("HostConfig.DeviceCgroupRules", json!(["a *:* rwm"])),
        ("HostConfig.DeviceRequests", json!([{"Count": -1, "Capabilities": [["gpu"]]}])),
        ("HostConfig.Mounts", json!([socket])),
        ("HostConfig.Mounts", json!([{"Type": "bind", "Source": "/", "Target": "/data", "ReadOnly": true}])),
        ("HostConfig.Mounts", mounted("ReadOnly", json!(false))),
        ("HostConfig.Mounts", mounted("Type", json!("bind"))),
        ("HostConfig.Mounts", mounted("VolumeOptions", json!({"DriverConfig": {"Name": "local", "Options": {"device": "/"}}}))),
        ("HostConfig.Mounts", mounted("BindOptions", json!({"CreateMountpoint": true}))),
        ("HostConfig.Binds", json!(["/:/label:Z,ro"])),
        ("HostConfig.Binds", json!(["/srv/label:/label:Z"])),
        ("HostConfig.Binds", json!(["/srv/label:/label:Z,ro,rshared"])),
        ("HostConfig.Binds", json!(["/srv/data:/data"])),
        ("HostConfig.Tmpfs", json!({"/run": "exec,uid=7,gid=7,ro,size=64,mode=1777"})),
        ("HostConfig.Tmpfs", json!({"/etc": "ro"})),
        ("HostConfig.VolumesFrom", json!(["ab"])),
        ("HostConfig.Sysctls", json!({"kernel.core_pattern": "|/evil"})),
        ("HostConfig.OomScoreAdj", json!(-1000)),
        ("HostConfig.PidsLimit", Value::Null),
        ("HostConfig.PidsLimit", json!(-1)),
        ("HostConfig.Memory", Value::Null),
        ("HostConfig.Memory", json!(0)),
        ("HostConfig.Ulimits", json!([{"Name": "nofile", "Soft": 1, "Hard": 1_000_000}])),
        ("HostConfig.GroupAdd", json!(["docker"])),
        ("HostConfig.ExtraHosts", json!(["db:169.254.169.254"])),
        ("HostConfig.Dns", json!(["6.6.6.6"])),
        ("HostConfig.PortBindings", json!({"80/tcp": [{"HostIp": "", "HostPort": "8080"}]})),
        ("HostConfig.PortBindings", json!({"22/tcp": [{"HostIp": "127.0.0.1", "HostPort": "8080"}]})),
        ("HostConfig.PublishAllPorts", json!(true)),
        ("HostConfig.LogConfig", json!({"Type": "syslog", "Config": {"max-size": "10m"}})),
        ("HostConfig.LogConfig", json!({"Type": "json-file", "Config": {"syslog-address": "udp://evil"}})),
        ("HostConfig.RestartPolicy", json!({"Name": "always"})),
        ("HostConfig.AutoRemove", json!(true)),
        ("HostConfig.SomethingNew", json!(1)),
        ("HostConfig", Value::Null),
        ("Image", json!("evil/miner")),
        ("Image", Value::Null),
        ("User", json!("0")),
        ("User", Value::Null),
        ("Cmd", json!(["sh"])),
        ("Entrypoint", json!(["sh"])),
        ("Env", json!(["A=b", "C", "LD_PRELOAD=/x"])),
        ("Labels", json!({"team": "a", "dockwarden.stack": "billing"})),
        ("Healthcheck", json!({"Test": ["CMD", "sh"]})),
        ("Volumes", json!({"/x": {}})),
        ("MacAddress", json!("02:42:ac:11:00:02")),
        ("NetworkingConfig.EndpointsConfig", json!({"other": {}})),
    ];
    let named = |key: &str, value: Value| {
        let (mut body, mut path) = (right.clone(), key.split('.').collect::<Vec<_>>());
        let last = path.pop().unwrap();
        let at = path.into_iter().fold(&mut body, |at, part| &mut at[part]).as_object_mut().unwrap();
        match value {
            Value::Null => assert!(at.remove(last).is_some(), "{key}"),
            value => drop(at.insert(last.into(), value)),
        }
        let refused = container(&body, &spec);
        assert!(
            matches!(&refused, Err(EngineError::Withheld(why)) if why.starts_with(&format!("container web-1: {key} "))),
            "{key}: {refused:?}"
        );
    };
    forged.into_iter().for_each(|(key, value)| named(key, value));
    // A name on a network that is not its own.
    let mut body = right.clone();
    body["NetworkingConfig"]["EndpointsConfig"]["front"]["Aliases"] = json!(["billing"]);
    assert!(container(&body, &spec).unwrap_err().to_string().contains("EndpointsConfig.front.Aliases"));
    // What asks for nothing of it gets nothing of it.
    let plain = ContainerSpec::new(EngineName::new("web-1").unwrap(), ImageRef::new("sha256:ab").unwrap());
    let refused = container(&right, &plain).unwrap_err().to_string();
    for key in
        ["Cmd", "User", "HostConfig.CapAdd", "HostConfig.Mounts", "HostConfig.Devices", "HostConfig.NetworkMode", "HostConfig.Sysctls"]
    {
        assert!(refused.contains(key), "{key}: {refused}");
    }
}

#[test]
fn networks_volumes_commands_and_endpoints_are_looked_at_as_well() {
    let pool = IpamPool { subnet: Some("10.9.0.0/24".into()), aux_addresses: pairs(&[("a", "10.9.0.2")]), ..IpamPool::default() };
    let spec = NetworkSpec { internal: true, ipam: vec![pool], driver_opts: pairs(&[("mtu", "1400")]), ..NetworkSpec::default() };
    let create = NetworkCreate { name: EngineName::new("n").unwrap(), spec, labels: pairs(&[("k", "v")]) };
    let right = serde_json::to_value(create::network(&create)).unwrap();
    network(&right, &create).unwrap();
    let changed = |key: &str, value: Value| {
        let mut body = right.clone();
        body[key] = value;
        network(&body, &create).unwrap_err().to_string()
    };
    for (key, value) in [
        ("Internal", json!(false)),
        ("Driver", json!("host")),
        ("Options", json!({"com.docker.network.bridge.name": "docker0"})),
        ("IPAM", json!({"Driver": "default", "Config": [{"Subnet": "10.0.0.0/8"}]})),
        ("Ingress", json!(true)),
    ] {
        assert!(changed(key, value).contains(&format!("network n: {key} ")), "{key}");
    }

    let made = VolumeCreate { name: EngineName::new("v").unwrap(), driver: None, driver_opts: BTreeMap::new(), labels: BTreeMap::new() };
    volume(&json!({"Name": "v", "Driver": "local", "DriverOpts": {}, "Labels": {}}), &made).unwrap();
    for forged in [json!({"DriverOpts": {"type": "none", "o": "bind", "device": "/"}}), json!({"Driver": "x"}), json!({"Name": "w"})] {
        assert!(matches!(volume(&forged, &made), Err(EngineError::Withheld(_))), "{forged}");
    }

    let run = ExecSpec { command: words(&["dump"]), user: Some("7".into()), env: vec![], timeout: Duration::from_secs(1), max_output: 1 };
    exec(&json!({"Cmd": ["dump"], "User": "7", "Env": [], "AttachStdout": true}), &run).unwrap();
    for forged in [json!({"Cmd": ["dump", "x"], "User": "7"}), json!({"Cmd": ["dump"]}), json!({"User": "7", "Privileged": true})] {
        assert!(matches!(exec(&forged, &run), Err(EngineError::Withheld(_))), "{forged}");
    }

    let on = NetworkAttachment { network: "n".into(), aliases: words(&["web"]), ..NetworkAttachment::default() };
    endpoint(&create::endpoint(&on), &on).unwrap();
    assert!(endpoint(&json!({"Aliases": ["web", "billing"]}), &on).is_err());
}

#[test]
fn nothing_that_makes_or_runs_something_is_sent_without_the_look() {
    let port = include_str!("../port.rs");
    for (sends, looks) in [
        ("self.docker.create_container(", "body::container(&"),
        ("self.docker.create_network(", "body::network(&"),
        ("self.docker.create_volume(", "body::volume(&"),
        ("self.docker.create_exec(", "body::exec(&"),
        ("self.docker.connect_network(", "body::endpoint(&"),
    ] {
        let before: Vec<&str> = port.split(sends).collect();
        assert!(before.len() > 1, "{sends}");
        for text in &before[..before.len() - 1] {
            let function = text.rfind("async fn ").map_or(*text, |at| &text[at..]);
            assert!(function.contains(looks), "{sends} without {looks}");
        }
    }
}
