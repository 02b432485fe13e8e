//! The second judgement of what nearly every service has: image, ports, names on networks, labels, files put into it, user, and what confines it. None of it
//! may be more than the judged plan says, and what confines may not be less. Deliberately absent: what is the service's own business inside its container
//! (command, environment, limits of memory).

use super::{Assert, RequestFacts};
use crate::engine::ContainerSpec;
use crate::model::ids::ServiceName;
use crate::model::labels;
use crate::model::spec::{FileMount, FileObject, MountKind, MountSpec, PortSpec, ServiceSpec, StackSpec};
use std::collections::{BTreeMap, BTreeSet};

/// Options of logging that bound a log, which we may set by ourselves.
const LOG_BOUNDS: [&str; 2] = ["max-size", "max-file"];
/// Labels that the supervisor itself gives.
const OWN_LABELS: [&str; 2] = ["dockwarden.", "com.docker.compose."];
/// Beginning of the names our own containers and networks have while an operation works on them.
const WORKING: &str = "dw-";

/// Characters of a service's name that its numbered names keep.
const LONGEST: usize = 100;

/// What a plan says of it.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Plain {
    /// Images by id: the plan's, or what was pulled for it.
    pub images: BTreeSet<String>,
    /// Users it may run as; `None` = the image's.
    pub users: BTreeSet<Option<String>>,
    /// Stack whose labels it may carry.
    pub stack: Option<String>,
    pub(super) ports: Vec<PortSpec>,
    pub(super) extra_hosts: BTreeSet<String>,
    pub(super) groups: BTreeSet<String>,
    pub(super) tmpfs: Vec<MountSpec>,
    pub(super) log_options: BTreeMap<String, String>,
    /// Files put into it: path and content.
    pub(super) files: BTreeSet<(String, Vec<u8>)>,
    pub(super) labels: BTreeMap<String, String>,
    /// Names it may answer to.
    pub(super) names: BTreeSet<String>,
    /// Beginning of its numbered names.
    pub(super) numbered: String,
    pub(super) cap_drop: BTreeSet<String>,
    pub(super) no_new_privileges: bool,
    pub(super) read_only: bool,
}

fn no_new_privileges(options: &[String]) -> bool {
    options.iter().any(|o| o.trim().starts_with("no-new-privileges") && super::privileges::security_opt_rule(o).is_none())
}

fn capability(written: &str) -> String {
    super::privileges::capability(written)
}

impl Plain {
    pub(super) fn of(stack: &StackSpec, service: &str, s: &ServiceSpec) -> Self {
        let content = |objects: &BTreeMap<String, FileObject>, wanted: &[FileMount]| -> Vec<(String, Vec<u8>)> {
            let pair = |m: &FileMount| Some((m.target.clone(), objects.get(&m.source)?.content.clone()?.into_bytes()));
            wanted.iter().filter_map(pair).collect()
        };
        let aliases = s.networks.values().flat_map(|n| n.aliases.iter().cloned());
        Self {
            images: BTreeSet::new(),
            users: [s.user.clone()].into(),
            stack: Some(stack.name.to_string()),
            ports: s.ports.clone(),
            extra_hosts: s.extra_hosts.iter().cloned().collect(),
            groups: s.group_add.iter().cloned().collect(),
            tmpfs: s.mounts.iter().filter(|m| m.kind == MountKind::Tmpfs).cloned().collect(),
            log_options: s.logging.as_ref().map(|l| l.options.clone()).unwrap_or_default(),
            files: content(&stack.configs, &s.configs).into_iter().chain(content(&stack.secrets, &s.secrets)).collect(),
            labels: s.labels.clone(),
            names: aliases.chain(s.container_name.clone()).chain([service.to_owned()]).collect(),
            // A long name is cut in its numbered names.
            numbered: format!("{}-{}", stack.name, service.get(..LONGEST).map_or_else(|| format!("{service}-"), str::to_owned)),
            cap_drop: s.cap_drop.iter().map(|c| capability(c)).collect(),
            no_new_privileges: no_new_privileges(&s.security_opt),
            read_only: s.read_only,
        }
    }
}

impl RequestFacts {
    /// Of a container of our own that no plan names (a stack's claim, a helper, a drill's): this image, this user, and nothing else.
    pub fn own(image: &str, user: Option<String>) -> Self {
        let plain = Plain { images: [image.to_owned()].into(), users: [user].into(), ..Plain::default() };
        Self { plain, ..Self::default() }
    }

    /// A front stands before a service: made of our own image and user, under the service's names and ports.
    pub fn fronting(mut self, image: &str, user: String) -> Self {
        (self.plain.images, self.plain.users) = ([image.to_owned()].into(), [Some(user)].into());
        self
    }

    /// Adds the image of a service that the plan knows by name only, as it was pulled.
    pub fn pulled(mut self, image: &str) -> Self {
        self.plain.images.insert(image.to_owned());
        self
    }

    /// With the image the plan names for a service.
    pub fn planned(mut self, images: &BTreeMap<ServiceName, crate::model::observed::ImageIdentity>, service: &ServiceName) -> Self {
        self.plain.images.extend(images.get(service).and_then(|i| i.id.clone()));
        self
    }
}

fn published(wanted: &PortSpec, host_port: Option<&str>) -> bool {
    match (wanted.published.as_deref(), host_port) {
        (None, None) => true,
        (Some(range), Some(port)) if range == port => true,
        (Some(range), Some(port)) => {
            let within = |(first, last): (&str, &str)| {
                Some((first.trim().parse::<u32>().ok()?..=last.trim().parse::<u32>().ok()?).contains(&port.parse::<u32>().ok()?))
            };
            range.split_once('-').and_then(within).unwrap_or(false)
        }
        (None, Some(_)) | (Some(_), None) => false,
    }
}

pub(super) fn judge(a: &mut Assert<'_>, spec: &ContainerSpec) {
    let allowed = &a.allowed.plain;
    if !allowed.images.contains(spec.image.as_str()) {
        a.deny("image.unlisted", "image", spec.image.as_str(), "an image");
    }
    if !allowed.users.contains(&spec.user) {
        a.deny("user.root", "user", spec.user.as_deref().unwrap_or_default(), "a user");
    }
    for port in &spec.ports {
        let same = |p: &&PortSpec| {
            let protocol = |p: &str| if p.is_empty() { "tcp".to_owned() } else { p.to_ascii_lowercase() };
            p.target == port.container_port
                && protocol(&p.protocol) == protocol(&port.protocol)
                && p.host_ip.as_deref().unwrap_or_default() == port.host_ip
                && published(p, port.host_port.as_deref())
        };
        if !allowed.ports.iter().any(|p| same(&p)) {
            let engine = [Some("2375"), Some("2376")].contains(&port.host_port.as_deref()) || matches!(port.container_port, 2375 | 2376);
            let rule = if engine { "port.engine_api" } else { "port.all_ifaces" };
            a.deny(rule, "ports", &format!("{}:{}", port.host_port.as_deref().unwrap_or("*"), port.container_port), "a published port");
        }
    }
    for host in spec.extra_hosts.iter().filter(|h| !allowed.extra_hosts.contains(*h)) {
        a.deny("hosts.gateway", "extra_hosts", host, "an extra host");
    }
    for group in spec.group_add.iter().filter(|g| !allowed.groups.contains(*g)) {
        a.deny("user.root", "group_add", group, "a group");
    }
    for mount in spec.mounts.iter().filter(|m| m.kind == MountKind::Tmpfs) {
        let same = |m: &MountSpec| {
            (&m.target, m.tmpfs_size, m.tmpfs_mode, &m.tmpfs_options)
                == (&mount.target, mount.tmpfs_size, mount.tmpfs_mode, &mount.tmpfs_options)
        };
        if !allowed.tmpfs.iter().any(same) {
            a.deny("secopt.custom", "mounts", &mount.target, "a tmpfs, or options of one");
        }
    }
    for (key, value) in spec.logging.iter().flat_map(|l| &l.options) {
        if allowed.log_options.get(key) != Some(value) && !LOG_BOUNDS.contains(&key.as_str()) {
            a.deny("log.remote", "logging", key, "an option of logging");
        }
    }
    for file in spec.files.iter().filter(|f| !allowed.files.contains(&(f.path.clone(), f.content.clone()))) {
        a.deny("path.traversal", "files", &file.path, "a file put into the container");
    }
    named(a, spec);
    confined(a, spec);
}

fn named(a: &mut Assert<'_>, spec: &ContainerSpec) {
    let allowed = &a.allowed.plain;
    for (key, value) in &spec.labels {
        let stack = matches!(key.as_str(), labels::STACK | labels::COMPOSE_PROJECT);
        let own = OWN_LABELS.iter().any(|p| key.starts_with(p)) && (!stack || allowed.stack.as_ref() == Some(value));
        if !own && allowed.labels.get(key) != Some(value) {
            a.deny("label.reserved", "labels", key, "a label");
        }
    }
    for alias in spec.networks.iter().flat_map(|n| &n.aliases) {
        let numbered = !allowed.numbered.is_empty() && alias.starts_with(&allowed.numbered);
        if !numbered && !allowed.names.contains(alias) && !alias.starts_with(WORKING) {
            a.deny("name.taken", "networks", alias, "a name on a network");
        }
    }
}

fn confined(a: &mut Assert<'_>, spec: &ContainerSpec) {
    let allowed = &a.allowed.plain;
    let dropped: BTreeSet<String> = spec.cap_drop.iter().map(|c| capability(c)).collect();
    for cap in allowed.cap_drop.iter().filter(|c| !dropped.contains("ALL") && !dropped.contains(*c)) {
        a.deny("cap.review", "cap_drop", cap, "a capability that was to be dropped");
    }
    if allowed.no_new_privileges && !no_new_privileges(&spec.security_opt) {
        a.deny("secopt.nnp_off", "security_opt", "no-new-privileges", "new privileges, which were ruled out");
    }
    if allowed.read_only && !spec.read_only {
        a.deny("secopt.custom", "read_only", "false", "a root file system that can be written");
    }
}

/// Judges a container of our own that no plan names: as [`super::assert_container`], and it is on no network.
pub fn assert_own(spec: &ContainerSpec, allowed: &RequestFacts) -> Vec<crate::model::verdict::Finding> {
    let mut found = super::assert_container(spec, allowed);
    let mut a = Assert { allowed, findings: vec![] };
    if spec.network_mode.as_deref() != Some("none") || !spec.networks.is_empty() {
        a.deny("net.default_bridge", "network_mode", spec.network_mode.as_deref().unwrap_or_default(), "a network");
    }
    found.append(&mut a.findings);
    found
}

#[cfg(test)]
mod tests {
    use super::super::assert_container;
    use super::*;
    use crate::engine::{EngineMount, InjectedFile, NetworkAttachment, PortBinding};
    use crate::model::ids::{EngineName, ImageRef, StackName};
    use crate::model::spec::{Logging, ServiceNetwork};

    fn stack() -> (StackSpec, ServiceSpec) {
        let service = ServiceSpec {
            user: Some("1000".into()),
            ports: serde_json::from_value(serde_json::json!([
                {"target": 80, "published": "8080-8082", "host_ip": "127.0.0.1", "protocol": "tcp", "mode": "ingress"}
            ]))
            .unwrap(),
            extra_hosts: vec!["db:10.0.0.2".into()],
            group_add: vec!["video".into()],
            mounts: vec![MountSpec { tmpfs_options: vec!["noexec".into()], ..MountSpec::new(MountKind::Tmpfs, "/tmp", "") }],
            logging: Some(Logging { driver: "json-file".into(), options: [("tag".to_owned(), "x".to_owned())].into() }),
            configs: serde_json::from_value(serde_json::json!([{"source": "c", "target": "/c"}])).unwrap(),
            labels: [("team".to_owned(), "a".to_owned())].into(),
            networks: [("default".to_owned(), ServiceNetwork { aliases: vec!["www".into()], ..ServiceNetwork::default() })].into(),
            cap_drop: vec!["CAP_NET_RAW".into()],
            security_opt: vec!["no-new-privileges:true".into()],
            read_only: true,
            ..ServiceSpec::default()
        };
        let name = ServiceName::new("web").unwrap();
        let stack = StackSpec {
            services: [(name, service.clone())].into(),
            configs: serde_json::from_value(serde_json::json!({"c": {"name": "c", "external": false, "content": "text", "labels": {}}}))
                .unwrap(),
            ..StackSpec::new(StackName::new("shop").unwrap())
        };
        (stack, service)
    }

    fn allowed() -> RequestFacts {
        let (stack, service) = stack();
        let plain = Plain { images: ["sha256:ab".to_owned()].into(), ..Plain::of(&stack, "web", &service) };
        RequestFacts { plain, networks: ["n".to_owned()].into(), ..RequestFacts::default() }
    }

    /// A request as the plan says it.
    fn request() -> ContainerSpec {
        let port = PortBinding { host_ip: "127.0.0.1".into(), host_port: Some("8081".into()), container_port: 80, protocol: "tcp".into() };
        ContainerSpec {
            user: Some("1000".into()),
            ports: vec![port],
            extra_hosts: vec!["db:10.0.0.2".into()],
            group_add: vec!["video".into()],
            mounts: vec![tmpfs("noexec")],
            logging: Some(Logging { driver: "json-file".into(), options: map(&[("tag", "x"), ("max-size", "10m")]) }),
            files: vec![file("/c", "text")],
            labels: map(&[("team", "a"), ("dockwarden.stack", "shop"), ("com.docker.compose.project", "shop"), ("dockwarden.number", "1")]),
            networks: vec![on(&["www", "web", "shop-web-1", "dw-0123-web-1"])],
            cap_drop: vec!["net_raw".into()],
            security_opt: vec!["no-new-privileges:true".into()],
            read_only: true,
            ..ContainerSpec::new(EngineName::new("web-1").unwrap(), ImageRef::new("sha256:ab").unwrap())
        }
    }

    fn map(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    fn on(aliases: &[&str]) -> NetworkAttachment {
        NetworkAttachment {
            network: "n".into(),
            aliases: aliases.iter().map(|a| (*a).to_owned()).collect(),
            ..NetworkAttachment::default()
        }
    }

    fn file(path: &str, text: &str) -> InjectedFile {
        InjectedFile { path: path.into(), content: text.as_bytes().to_vec(), mode: 0o444, uid: 0, gid: 0 }
    }

    fn tmpfs(option: &str) -> EngineMount {
        EngineMount { tmpfs_options: vec![option.into()], ..EngineMount::new(MountKind::Tmpfs, "/tmp".into()) }
    }

    type Change = fn(&mut ContainerSpec);
    const MORE: &[(Change, &str)] = &[
        (|c| c.image = ImageRef::new("sha256:cd").unwrap(), "image.unlisted"),
        (|c| c.user = None, "user.root"),
        (|c| c.user = Some("0".into()), "user.root"),
        (|c| c.ports[0].host_port = Some("8083".into()), "port.all_ifaces"),
        (|c| c.ports[0].host_port = None, "port.all_ifaces"),
        (|c| c.ports[0].host_ip = String::new(), "port.all_ifaces"),
        (|c| c.ports[0].protocol = "udp".into(), "port.all_ifaces"),
        (|c| c.ports[0].container_port = 2375, "port.engine_api"),
        (|c| c.extra_hosts = vec!["db:169.254.169.254".into()], "hosts.gateway"),
        (|c| c.group_add = vec!["docker".into()], "user.root"),
        (|c| c.mounts = vec![tmpfs("exec")], "secopt.custom"),
        (|c| c.logging.as_mut().unwrap().options = map(&[("syslog-address", "udp://evil")]), "log.remote"),
        (|c| c.files = vec![file("/c", "other")], "path.traversal"),
        (|c| c.files = vec![file("/etc/passwd", "text")], "path.traversal"),
        (|c| c.labels = map(&[("traefik.enable", "true")]), "label.reserved"),
        (|c| c.labels = map(&[("dockwarden.stack", "billing")]), "label.reserved"),
        (|c| c.labels = map(&[("com.docker.compose.project", "billing")]), "label.reserved"),
        (|c| c.networks = vec![on(&["billing"])], "name.taken"),
        (|c| c.cap_drop = vec![], "cap.review"),
        (|c| c.security_opt = vec![], "secopt.nnp_off"),
        (|c| c.read_only = false, "secopt.custom"),
    ];

    #[test]
    fn what_the_plan_says_passes_and_each_thing_more_of_it_is_denied() {
        let rules = |spec: &ContainerSpec| assert_container(spec, &allowed()).into_iter().map(|f| f.rule).collect::<Vec<_>>();
        assert_eq!(rules(&request()), Vec::<String>::new());
        let all = ContainerSpec { cap_drop: vec!["ALL".into()], ..request() };
        assert_eq!(rules(&all), Vec::<String>::new(), "more is dropped");
        for (n, (change, rule)) in MORE.iter().enumerate() {
            let mut spec = request();
            change(&mut spec);
            assert_eq!(rules(&spec), [*rule], "{n}");
        }
    }

    #[test]
    fn a_container_of_our_own_is_its_image_without_a_network() {
        let own = |change: fn(&mut ContainerSpec)| {
            let mut spec = ContainerSpec {
                network_mode: Some("none".into()),
                ..ContainerSpec::new(EngineName::new("helper").unwrap(), ImageRef::new("dockwarden/empty:1").unwrap())
            };
            change(&mut spec);
            assert_own(&spec, &RequestFacts::own("dockwarden/empty:1", None)).into_iter().map(|f| f.rule).collect::<Vec<_>>()
        };
        assert_eq!(own(|_| {}), Vec::<String>::new());
        assert_eq!(own(|c| c.network_mode = None), ["net.default_bridge"]);
        assert_eq!(own(|c| c.privileged = true), ["privileged"]);
        assert_eq!(own(|c| c.image = ImageRef::new("alpine").unwrap()), ["image.unlisted"]);
        assert_eq!(
            own(|c| c.mounts = vec![EngineMount { kind: MountKind::Bind, source: Some("/etc".into()), ..tmpfs("") }]),
            ["bind.outside"]
        );
    }
}
