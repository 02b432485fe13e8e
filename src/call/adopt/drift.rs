//! Where what runs differs from what its files say: the request we would send for a service beside the container that runs. Pure. Values of the
//! environment are shown as hashes.

mod settings;

use crate::engine::ContainerSpec;
use crate::model::ids::ServiceName;
use crate::model::observed::{ContainerDetail, ImageInfo, MadeWith, RunState};
use crate::model::spec::{MountKind, Restart, ServiceSpec};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};

/// One difference.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Drift {
    /// Service.
    pub service: String,
    /// What: `image`, `environment.TOKEN`, `ports`, ...
    pub what: String,
    /// As the files say.
    pub file: String,
    /// As it runs.
    pub runs: String,
    /// Whether the container would have to be replaced to be as the files say.
    #[serde(skip)]
    pub content: bool,
}

/// One container beside its service.
pub struct Pair<'a> {
    /// Service.
    pub service: &'a ServiceName,
    /// As the files have it.
    pub spec: &'a ServiceSpec,
    /// What we would ask the engine for, with the image that runs.
    pub wanted: &'a ContainerSpec,
    /// Image id that the file's reference means now, of a build without a name the one Compose gives it; `None` when it is not on the engine.
    pub resolved: Option<&'a str>,
    /// The image that runs.
    pub image: Option<&'a ImageInfo>,
    /// The container.
    pub seen: &'a ContainerDetail,
    /// What it was made with.
    pub made: &'a MadeWith,
    /// The engine's log driver for containers that name none.
    pub log_driver: &'a str,
    /// A one-shot: it may have ended.
    pub once: bool,
    /// Keyed hash of a value.
    pub hash: &'a dyn Fn(&str) -> String,
}

/// All differences, in order.
pub fn compare(pair: &Pair<'_>) -> Vec<Drift> {
    let mut found = Found { service: pair.service.to_string(), list: vec![] };
    image(pair, &mut found);
    environment(pair, &mut found);
    process(pair, &mut found);
    limits(pair, &mut found);
    settings::compare(pair, &mut found);
    ports(pair, &mut found);
    networks(pair, &mut found);
    mounts(pair, &mut found);
    state(pair, &mut found);
    found.list.sort();
    found.list
}

struct Found {
    service: String,
    list: Vec<Drift>,
}

impl Found {
    fn push(&mut self, what: &str, file: impl Into<String>, runs: impl Into<String>, content: bool) {
        self.list.push(Drift { service: self.service.clone(), what: what.into(), file: file.into(), runs: runs.into(), content });
    }
    fn unless<T: PartialEq + std::fmt::Debug>(&mut self, what: &str, file: &T, runs: &T) {
        if file != runs {
            self.push(what, format!("{file:?}"), format!("{runs:?}"), true);
        }
    }
}

fn short(id: &str) -> String {
    id.trim_start_matches("sha256:").chars().take(12).collect()
}

fn image(p: &Pair<'_>, found: &mut Found) {
    match (&p.spec.image, p.resolved) {
        (None, resolved) => {
            // Compose names it; a release of ours needs to say which image it is.
            let same = resolved == Some(p.seen.image_id.as_str());
            let file = format!("build, without a name: write `image: {}` beside it", built(p.wanted, p.service));
            found.push("image", file, format!("{}{}", p.seen.image, if same { "" } else { ", which is not what was built last" }), !same);
        }
        (Some(reference), None) => found.push("image", format!("{reference} (not on the engine)"), &p.seen.image, true),
        (Some(reference), Some(id)) if id != p.seen.image_id => {
            found.push("image", format!("{reference} ({})", short(id)), format!("{} ({})", p.seen.image, short(&p.seen.image_id)), true);
        }
        (Some(_), Some(_)) => {}
    }
}

/// The name Compose gives an image that it builds for a service.
fn built(wanted: &ContainerSpec, service: &ServiceName) -> String {
    let project = wanted.labels.get(crate::model::labels::COMPOSE_PROJECT).map_or("", String::as_str);
    format!("{project}-{service}")
}

fn environment(p: &Pair<'_>, found: &mut Found) {
    let map = |lines: &mut dyn Iterator<Item = &String>| -> BTreeMap<String, String> {
        lines.filter_map(|l| l.split_once('=')).map(|(k, v)| (k.to_owned(), v.to_owned())).collect()
    };
    let mut wanted = map(&mut p.image.iter().flat_map(|i| &i.env));
    wanted.extend(map(&mut p.wanted.env.iter()));
    let mut runs = map(&mut p.made.env.iter());
    // The engine gives every container a PATH.
    if !wanted.contains_key("PATH") {
        runs.remove("PATH");
    }
    let keys: BTreeSet<&String> = wanted.keys().chain(runs.keys()).collect();
    let show = |v: Option<&String>| v.map_or_else(|| "unset".to_owned(), |v| format!("set ({})", (p.hash)(v)));
    for key in keys.into_iter().filter(|k| wanted.get(*k) != runs.get(*k)) {
        found.push(&format!("environment.{key}"), show(wanted.get(key)), show(runs.get(key)), true);
    }
}

fn process(p: &Pair<'_>, found: &mut Found) {
    let (w, m) = (p.wanted, p.made);
    // Without `entrypoint` and `command` the image's are among what runs and are not known here.
    if let Some(entrypoint) = &w.entrypoint {
        found.unless("entrypoint", entrypoint, &m.entrypoint);
    }
    if let Some(command) = &w.command {
        found.unless("command", command, &m.command);
    }
    if let Some(user) = &w.user {
        found.unless("user", user, &m.user);
    }
    if let Some(dir) = &w.working_dir {
        found.unless("working_dir", dir, &m.working_dir);
    }
    let test = w.healthcheck.as_ref().map(|h| h.test.clone()).filter(|t| !t.is_empty());
    let of_image = p.image.and_then(|i| i.health_test.clone());
    let test = test.or(of_image).filter(|t| t.first().is_some_and(|word| word != "NONE"));
    found.unless("healthcheck.test", &test, &p.seen.health_test);
    for (key, value) in &p.spec.labels {
        let runs = p.seen.labels.get(key);
        if runs != Some(value) {
            found.push(&format!("labels.{key}"), value, runs.map_or("unset", String::as_str), true);
        }
    }
    let restart = match p.spec.restart {
        Restart::No => "no",
        Restart::Always => "always",
        Restart::OnFailure(_) => "on-failure",
        Restart::UnlessStopped => "unless-stopped",
    };
    found.unless("restart", &restart.to_owned(), &p.seen.restart_policy);
}

fn limits(p: &Pair<'_>, found: &mut Found) {
    let (w, m) = (p.wanted, p.made);
    let caps =
        |list: &[String]| -> BTreeSet<String> { list.iter().map(|c| c.to_uppercase().trim_start_matches("CAP_").to_owned()).collect() };
    found.unless("privileged", &w.privileged, &m.privileged);
    found.unless("read_only", &w.read_only, &m.read_only);
    found.unless("cap_add", &caps(&w.cap_add), &caps(&m.cap_add));
    found.unless("cap_drop", &caps(&w.cap_drop), &caps(&m.cap_drop));
    found.unless("mem_limit", &w.memory.unwrap_or(0), &m.memory);
    found.unless("cpus", &w.nano_cpus.unwrap_or(0), &m.nano_cpus);
    found.unless("pids_limit", &w.pids.unwrap_or(0).max(0), &m.pids.max(0));
}

fn ports(p: &Pair<'_>, found: &mut Found) {
    let any = |ip: &str| if matches!(ip, "" | "0.0.0.0" | "::" | "[::]") { "*".to_owned() } else { ip.to_owned() };
    // A port the engine chose has a number that no file says; so has one of a range.
    let chosen: BTreeSet<(String, u16)> = p
        .wanted
        .ports
        .iter()
        .filter(|b| b.host_port.as_deref().is_none_or(|h| h == "0" || h.parse::<u16>().is_err()))
        .map(|b| (any(&b.host_ip), b.container_port))
        .collect();
    let line = |ip: String, host: String, port: u16, protocol: &str| format!("{ip}:{host}->{port}/{protocol}");
    let number = |ip: &String, host: Option<String>, port: u16| match host {
        Some(h) if !chosen.contains(&(ip.clone(), port)) => h,
        _ => "any".to_owned(),
    };
    let wanted: BTreeSet<String> = p
        .wanted
        .ports
        .iter()
        .map(|b| {
            let ip = any(&b.host_ip);
            let host = number(&ip, b.host_port.clone(), b.container_port);
            line(ip, host, b.container_port, &b.protocol)
        })
        .collect();
    let runs: BTreeSet<String> = p
        .seen
        .ports
        .iter()
        .map(|b| {
            let ip = any(&b.host_ip);
            let host = number(&ip, Some(b.host_port.to_string()), b.container_port);
            line(ip, host, b.container_port, &b.protocol)
        })
        .collect();
    found.unless("ports", &wanted, &runs);
}

fn networks(p: &Pair<'_>, found: &mut Found) {
    if let Some(mode) = &p.wanted.network_mode {
        return found.unless("network_mode", mode, &p.made.network_mode);
    }
    let wanted: BTreeSet<&str> = p.wanted.networks.iter().map(|n| n.network.as_str()).collect();
    let runs: BTreeSet<&str> = p.seen.networks.keys().map(String::as_str).collect();
    found.unless("networks", &wanted, &runs);
    for (key, network) in &p.spec.networks {
        for n in p.wanted.networks.iter().filter(|n| network.aliases.iter().any(|a| n.aliases.contains(a))) {
            let has = p.seen.networks.get(&n.network).cloned().unwrap_or_default();
            let missing: Vec<&str> = network.aliases.iter().filter(|a| !has.contains(a)).map(String::as_str).collect();
            if !missing.is_empty() && wanted.contains(n.network.as_str()) && runs.contains(n.network.as_str()) {
                found.push(&format!("networks.{key}.aliases"), missing.join(", "), "missing", true);
            }
        }
    }
}

fn mounts(p: &Pair<'_>, found: &mut Found) {
    let files: BTreeSet<&str> = p.spec.configs.iter().chain(&p.spec.secrets).map(|f| f.target.as_str()).collect();
    let of_image: BTreeSet<&str> = p.image.iter().flat_map(|i| &i.volumes).map(String::as_str).collect();
    let plain = |path: &str| if path.len() > 1 { path.trim_end_matches('/').to_owned() } else { path.to_owned() };
    let mut wanted: BTreeMap<String, String> = BTreeMap::new();
    for m in p.wanted.mounts.iter().filter(|m| matches!(m.kind, MountKind::Bind | MountKind::Volume) && !files.contains(m.target.as_str()))
    {
        let source = m.source.as_deref().map_or_else(|| "anonymous volume".to_owned(), plain);
        wanted.insert(plain(&m.target), format!("{source}{}", if m.read_only { ":ro" } else { "" }));
    }
    let mut runs: BTreeMap<String, String> = BTreeMap::new();
    for m in p.seen.mounts.iter().filter(|m| matches!(m.kind.as_str(), "bind" | "volume") && !files.contains(m.target.as_str())) {
        let target = plain(&m.target);
        let nameless = wanted.get(&target).is_some_and(|w| w.starts_with("anonymous volume"))
            || (!wanted.contains_key(&target) && of_image.contains(m.target.as_str()));
        let source = match &m.name {
            _ if nameless && m.kind == "volume" => "anonymous volume".to_owned(),
            Some(name) => name.clone(),
            None => plain(&m.source),
        };
        if !wanted.contains_key(&target) && nameless {
            continue;
        }
        runs.insert(target, format!("{source}{}", if m.writable { "" } else { ":ro" }));
    }
    let targets: BTreeSet<&String> = wanted.keys().chain(runs.keys()).collect();
    for target in targets.into_iter().filter(|t| wanted.get(*t) != runs.get(*t)) {
        let show = |v: Option<&String>| v.map_or_else(|| "nothing".to_owned(), Clone::clone);
        found.push(&format!("mounts.{target}"), show(wanted.get(target)), show(runs.get(target)), true);
    }
}

fn state(p: &Pair<'_>, found: &mut Found) {
    let finished = p.once || matches!(p.spec.restart, Restart::No | Restart::OnFailure(_));
    let well = p.seen.state == RunState::Running || (finished && p.seen.state == RunState::Exited && p.seen.exit_code == 0);
    if !well {
        found.push("state", "running", format!("{:?}", p.seen.state).to_lowercase(), false);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::{EngineMount, NetworkAttachment, PortBinding};
    use crate::model::ids::{EngineName, ImageRef};
    use crate::model::observed::{HealthState, MountInfo, PublishedPort};
    use crate::model::spec::ServiceNetwork;

    struct Case {
        service: ServiceName,
        spec: ServiceSpec,
        wanted: ContainerSpec,
        image: ImageInfo,
        seen: ContainerDetail,
        made: MadeWith,
    }

    fn mount(kind: MountKind, source: Option<&str>, target: &str) -> EngineMount {
        EngineMount { source: source.map(str::to_owned), ..EngineMount::new(kind, target.into()) }
    }

    fn has(kind: &str, name: Option<&str>, source: &str, target: &str) -> MountInfo {
        MountInfo { kind: kind.into(), name: name.map(str::to_owned), source: source.into(), target: target.into(), writable: true }
    }

    /// A container that is exactly as its file says, as Compose would have made it.
    fn same() -> Case {
        let mut wanted = ContainerSpec::new(EngineName::new("w").unwrap(), ImageRef::new("sha256:1").unwrap());
        wanted.env = vec!["A=1".into(), "LANG=de".into()];
        wanted.ports = vec![
            PortBinding { host_ip: String::new(), host_port: Some("8080".into()), container_port: 80, protocol: "tcp".into() },
            PortBinding { host_ip: "127.0.0.1".into(), host_port: None, container_port: 81, protocol: "tcp".into() },
        ];
        wanted.mounts = vec![mount(MountKind::Volume, Some("shop_data"), "/data"), mount(MountKind::Bind, Some("/srv/x"), "/x/")];
        wanted.networks =
            vec![NetworkAttachment { network: "shop_default".into(), aliases: vec!["db".into(), "web".into()], ..Default::default() }];
        wanted.cap_drop = vec!["ALL".into()];
        wanted.cap_add = vec!["NET_ADMIN".into()];
        wanted.memory = Some(64);
        let port =
            |ip: &str, host_port, container_port| PublishedPort { host_ip: ip.into(), host_port, container_port, protocol: "tcp".into() };
        let seen = ContainerDetail {
            health: HealthState::Healthy,
            labels: BTreeMap::from([("team".into(), "web".into()), ("com.docker.compose.project".into(), "shop".into())]),
            restart_policy: "unless-stopped".into(),
            networks: BTreeMap::from([("shop_default".into(), vec!["shop-web-1".into(), "web".into(), "db".into()])]),
            mounts: vec![
                has("volume", Some("shop_data"), "/var/lib/docker/volumes/shop_data/_data", "/data"),
                has("bind", None, "/srv/x/", "/x"),
                has("volume", Some("0a1b"), "/var/lib/docker/volumes/0a1b/_data", "/cache"),
                has("bind", None, "/srv/secret", "/run/secrets/key"),
            ],
            ports: vec![port("0.0.0.0", 8080, 80), port("::", 8080, 80), port("127.0.0.1", 32770, 81)],
            health_test: Some(vec!["CMD".into(), "/check".into()]),
            ..ContainerDetail::running("c1", "shop-web-1", "web:1")
        };
        let network = ServiceNetwork { aliases: vec!["db".into()], ..Default::default() };
        let secret = crate::model::spec::FileMount {
            source: "key".into(),
            target: "/run/secrets/key".into(),
            uid: None,
            gid: None,
            mode: None,
            written_target: None,
        };
        Case {
            service: ServiceName::new("web").unwrap(),
            spec: ServiceSpec {
                image: Some(ImageRef::new("web:1").unwrap()),
                restart: Restart::UnlessStopped,
                labels: BTreeMap::from([("team".into(), "web".into())]),
                networks: BTreeMap::from([("default".into(), network)]),
                secrets: vec![secret],
                ..Default::default()
            },
            wanted,
            image: ImageInfo {
                id: "sha256:1".into(),
                tags: vec![],
                repo_digests: vec![],
                arch: "amd64".into(),
                size: 1,
                created: None,
                user: String::new(),
                health_test: Some(vec!["CMD".into(), "/check".into()]),
                volumes: vec!["/cache".into()],
                labels: BTreeMap::new(),
                env: vec!["LANG=en".into(), "HOME=/".into()],
            },
            seen,
            made: MadeWith {
                settings: BTreeMap::from([("logging.driver".into(), "json-file".into()), ("runtime".into(), "runc".into())]),
                env: ["A=1", "LANG=de", "HOME=/", "PATH=/bin"].map(str::to_owned).into(),
                command: vec!["serve".into()],
                network_mode: "shop_default".into(),
                cap_add: vec!["CAP_NET_ADMIN".into()],
                cap_drop: vec!["ALL".into()],
                memory: 64,
                ..Default::default()
            },
        }
    }

    fn differences(case: &Case, resolved: Option<&str>) -> Vec<String> {
        let hash = |v: &str| format!("h{}", v.len());
        let pair = Pair {
            service: &case.service,
            spec: &case.spec,
            wanted: &case.wanted,
            resolved,
            image: Some(&case.image),
            seen: &case.seen,
            made: &case.made,
            log_driver: "json-file",
            once: false,
            hash: &hash,
        };
        compare(&pair).into_iter().map(|d| format!("{}: {} / {}", d.what, d.file, d.runs)).collect()
    }

    fn changed(change: impl FnOnce(&mut Case)) -> Vec<String> {
        let mut case = same();
        change(&mut case);
        differences(&case, Some("sha256:1"))
    }

    #[test]
    fn what_compose_made_of_the_file_does_not_differ() {
        assert_eq!(changed(|_| {}), Vec::<String>::new());
    }

    #[test]
    fn each_thing_that_differs_is_named_and_values_are_not_shown() {
        let one = |change: fn(&mut Case), expected: &str| assert_eq!(changed(change), [expected]);
        one(|c| c.wanted.env[0] = "A=secret".into(), "environment.A: set (h6) / set (h1)");
        one(|c| c.made.env.push("B=x".into()), "environment.B: unset / set (h1)");
        one(|c| c.wanted.command = Some(vec!["other".into()]), "command: [\"other\"] / [\"serve\"]");
        one(|c| c.spec.labels.insert("team".into(), "ops".into()).map_or((), drop), "labels.team: ops / web");
        one(|c| c.spec.restart = Restart::Always, "restart: \"always\" / \"unless-stopped\"");
        one(|c| c.wanted.memory = None, "mem_limit: 0 / 64");
        one(|c| c.made.privileged = true, "privileged: false / true");
        one(|c| c.made.cap_add.clear(), "cap_add: {\"NET_ADMIN\"} / {}");
        one(|c| c.seen.mounts[0].name = Some("other".into()), "mounts./data: shop_data / other");
        one(|c| c.seen.mounts[1].writable = false, "mounts./x: /srv/x / /srv/x:ro");
        one(|c| c.seen.mounts.push(has("bind", None, "/etc", "/etc")), "mounts./etc: nothing / /etc");
        one(|c| c.seen.networks.values_mut().for_each(|a| a.retain(|a| a != "db")), "networks.default.aliases: db / missing");
        one(|c| c.seen.networks.clear(), "networks: {\"shop_default\"} / {}");
        one(|c| c.seen.health_test = None, "healthcheck.test: Some([\"CMD\", \"/check\"]) / None");
        one(|c| c.seen.state = RunState::Exited, "state: running / exited");
        one(|c| c.seen.ports.remove(2).host_port = 0, "ports: {\"*:8080->80/tcp\", \"127.0.0.1:any->81/tcp\"} / {\"*:8080->80/tcp\"}");
    }

    #[test]
    fn a_tag_that_moved_on_differs_and_so_does_one_that_is_gone() {
        assert_eq!(differences(&same(), Some("sha256:2")), ["image: web:1 (2) / web:1 (1)"]);
        assert_eq!(differences(&same(), None), ["image: web:1 (not on the engine) / web:1"]);
    }

    #[test]
    fn settings_of_host_and_process_are_compared_both_ways() {
        let one = |change: fn(&mut Case), expected: &str| assert_eq!(changed(change), [expected]);
        let runs = |c: &mut Case, key: &str, value: &str| drop(c.made.settings.insert(key.into(), value.into()));
        one(|c| c.wanted.extra_hosts.push("db:10.0.0.2".into()), "extra_hosts: db:10.0.0.2 / unset");
        one(|c| drop(c.made.settings.insert("extra_hosts".into(), "db:10.0.0.2".into())), "extra_hosts: unset / db:10.0.0.2");
        one(|c| c.wanted.ulimits = BTreeMap::from([("nofile".into(), (1, 2))]), "ulimits.nofile: 1:2 / unset");
        one(|c| drop(c.made.settings.insert("pid".into(), "host".into())), "pid: unset / host");
        one(
            |c| drop(c.made.settings.insert("security_opt".into(), "seccomp=unconfined".into())),
            "security_opt: unset / seccomp=unconfined",
        );
        one(|c| drop(c.made.settings.insert("devices".into(), "/dev/a:/dev/a:rwm".into())), "devices: unset / /dev/a:/dev/a:rwm");
        one(|c| drop(c.made.settings.insert("logging.driver".into(), "syslog".into())), "logging.driver: json-file / syslog");
        one(|c| c.wanted.runtime = Some("runsc".into()), "runtime: runsc / runc");
        let logging = |options: &[(&str, &str)]| crate::model::spec::Logging {
            driver: "json-file".into(),
            options: options.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
        };
        let options = changed(|c| {
            c.spec.logging = Some(logging(&[("tag", "x"), ("max-size", "10m")]));
            runs(c, "logging.options.max-size", "10m");
            runs(c, "logging.options.labels", "of the engine");
        });
        assert_eq!(options, ["logging.options.tag: set (h1) / unset"]);
        let rounded = changed(|c| {
            (c.spec.stop_grace_period_ms, c.wanted.stop_timeout_s) = (Some(1500), Some(2));
            runs(c, "stop_grace_period", "1");
        });
        assert_eq!(rounded, Vec::<String>::new());
    }

    #[test]
    fn a_build_without_a_name_is_told_which_name_to_write() {
        let named = |c: &mut Case| {
            c.spec.image = None;
            c.wanted.labels.insert("com.docker.compose.project".into(), "shop".into());
        };
        let hint = "image: build, without a name: write `image: shop-web` beside it / web:1";
        assert_eq!(changed(named), [hint]);
        let mut case = same();
        named(&mut case);
        assert_eq!(differences(&case, Some("sha256:2")), [format!("{hint}, which is not what was built last")]);
    }
}
