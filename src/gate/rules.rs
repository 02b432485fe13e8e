//! The rules of the plan gate as one table: id, default verdict, what it is about, where it comes from. The code that finds each of
//! them is in `gate/plan/`; how strict it is here and now follows from this table and `policy.toml`. Deliberately absent: any judging.

use crate::model::policy::{Policy, RuleLevel};
use crate::model::verdict::Verdict;

/// One rule of the plan gate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RuleInfo {
    /// Id, e.g. `bind.outside`.
    pub id: &'static str,
    /// Verdict when the policy says nothing.
    pub default: Verdict,
    /// Verdict in a production-like environment when the policy says nothing.
    pub production: Verdict,
    /// Whether breaking it gives the host, another stack or the supervisor away: then no level in the policy weakens it below
    /// `deny`, only an exception for one exact value does.
    pub host_root: bool,
    /// What it is about.
    pub title: &'static str,
    /// Where it comes from: CIS Docker Benchmark 1.6, Kubernetes Pod Security Standards, OWASP Docker Cheat Sheet.
    pub refs: &'static [&'static str],
}

const fn rule(id: &'static str, default: Verdict, title: &'static str, refs: &'static [&'static str]) -> RuleInfo {
    RuleInfo { id, default, production: default, host_root: false, title, refs }
}

const fn root(id: &'static str, default: Verdict, title: &'static str, refs: &'static [&'static str]) -> RuleInfo {
    RuleInfo { id, default, production: default, host_root: true, title, refs }
}

/// A rule that warns while one tries things out and denies where users are.
const fn production(id: &'static str, title: &'static str, refs: &'static [&'static str]) -> RuleInfo {
    RuleInfo { id, default: Verdict::Warn, production: Verdict::Deny, host_root: false, title, refs }
}

/// Every rule.
#[rustfmt::skip] // one rule a line: the table is read as a table
pub const RULES: &[RuleInfo] = &[
    root("privileged", Verdict::Deny, "privileged container", &["CIS 5.5", "PSS baseline:Privileged Containers", "OWASP #3"]),
    root("cap.dangerous", Verdict::Deny, "capability that is (nearly) root on the host: ALL, SYS_ADMIN, SYS_MODULE, SYS_PTRACE, SYS_RAWIO, SYS_BOOT, SYS_TIME, DAC_READ_SEARCH, BPF, PERFMON, MAC_ADMIN, MAC_OVERRIDE, SYSLOG, CHECKPOINT_RESTORE, MKNOD-with-devices", &["CIS 5.4", "PSS baseline:Capabilities", "OWASP #3"]),
    rule("cap.review", Verdict::Approval, "capability outside PSS baseline list but not directly host root (NET_ADMIN, NET_RAW, IPC_LOCK, SYS_NICE, SYS_RESOURCE, ...)", &["CIS 5.4", "PSS baseline:Capabilities", "OWASP #3"]),
    root("ns.net.host", Verdict::Deny, "host network namespace", &["CIS 5.10", "PSS baseline:Host Namespaces", "OWASP #5"]),
    root("ns.pid.host", Verdict::Deny, "host PID namespace", &["CIS 5.16", "PSS baseline:Host Namespaces"]),
    root("ns.ipc.host", Verdict::Deny, "host IPC namespace", &["CIS 5.17", "PSS baseline:Host Namespaces"]),
    root("ns.uts.host", Verdict::Deny, "host UTS namespace", &["CIS 5.21"]),
    root("ns.user.host", Verdict::Deny, "host user namespace", &["CIS 5.31"]),
    root("ns.cgroup.host", Verdict::Deny, "host cgroup namespace", &["CIS 5.25"]),
    root("ns.foreign", Verdict::Deny, "joins a namespace of a container outside this stack", &["CIS 5.10", "CIS 5.16", "CIS 5.17", "PSS baseline:Host Namespaces"]),
    rule("ns.pid.shared", Verdict::Warn, "PID namespace shared between services of the stack", &["CIS 5.16"]),
    rule("cgroup.parent", Verdict::Approval, "custom cgroup parent", &["CIS 5.25"]),
    root("socket.engine", Verdict::Deny, "container engine socket (or a directory holding it) reachable in the container", &["CIS 5.32", "PSS baseline:HostPath Volumes", "OWASP #1"]),
    root("bind.outside", Verdict::Deny, "bind mount outside the allowed roots (after ~, .., // and symlink resolution)", &["CIS 5.6", "PSS baseline:HostPath Volumes", "OWASP #8"]),
    rule("bind.approval", Verdict::Approval, "bind mount under an approvable host root", &["CIS 5.6", "PSS baseline:HostPath Volumes", "OWASP #8"]),
    rule("bind.above", Verdict::Approval, "bind mount (or mounted file) below a directory that a container may write: a link put there is followed when the engine restarts", &["CIS 5.6", "OWASP #8"]),
    root("bind.propagation", Verdict::Deny, "shared mount propagation", &["CIS 5.20"]),
    root("vol.driver_opts_bind", Verdict::Deny, "local volume driver options that reach a host path outside the allowed roots, an overlay or a block device", &["CIS 5.6", "PSS baseline:HostPath Volumes", "wollomatic/socket-proxy allowbindmountfrom", "verified on Docker 20.10: bind and overlay both expose host /etc"]),
    rule("vol.remote_fs", Verdict::Approval, "volume backed by a network file system or a non-local driver", &["CIS 5.6"]),
    root("vol.foreign", Verdict::Deny, "volume that belongs to another stack", &["OWASP #5"]),
    rule("vol.external_unknown", Verdict::Approval, "external volume with unknown owner", &[]),
    root("vol.from_foreign", Verdict::Deny, "volumes_from a container outside the stack", &["CIS 5.6"]),
    root("device.raw", Verdict::Deny, "raw host device (disk, memory, kmsg, port, loop control ...) or wildcard device rule", &["CIS 5.18", "PSS baseline:HostPath Volumes"]),
    rule("device.review", Verdict::Approval, "host device or GPU", &["CIS 5.18"]),
    root("secopt.unconfined", Verdict::Deny, "seccomp/apparmor/SELinux/systempaths confinement switched off", &["CIS 5.2", "CIS 5.3", "CIS 5.22", "PSS baseline:Seccomp", "PSS baseline:AppArmor", "PSS baseline:SELinux", "PSS baseline:/proc Mount Type", "OWASP #6"]),
    rule("secopt.custom", Verdict::Approval, "custom seccomp/apparmor/SELinux profile", &["CIS 5.2", "CIS 5.22", "PSS baseline:Seccomp", "OWASP #6"]),
    rule("secopt.nnp_off", Verdict::Deny, "no-new-privileges explicitly switched off", &["CIS 5.26", "PSS restricted:Privilege Escalation", "OWASP #4"]),
    rule("sysctl.review", Verdict::Approval, "namespaced sysctl outside the PSS safe list", &["PSS baseline:Sysctls"]),
    root("sysctl.host", Verdict::Deny, "sysctl that is not namespaced (host-wide)", &["PSS baseline:Sysctls"]),
    rule("runtime.unlisted", Verdict::Deny, "OCI runtime not on the allow-list", &[]),
    rule("runtime.review", Verdict::Approval, "OCI runtime that needs approval", &[]),
    rule("oom.protect", Verdict::Deny, "OOM killer disabled or strongly negative oom_score_adj", &["CIS 5.11", "OWASP #7"]),
    rule("rt.cpu", Verdict::Approval, "real-time CPU scheduling budget", &["CIS 5.12", "OWASP #7"]),
    rule("mem.missing", Verdict::Warn, "no effective memory limit", &["CIS 5.11", "OWASP #7"]),
    rule("pids.unlimited", Verdict::Warn, "pids limit explicitly unlimited", &["CIS 5.29", "OWASP #7"]),
    rule("replicas.quota", Verdict::Approval, "more replicas than the quota", &["OWASP #7"]),
    rule("user.root", Verdict::Warn, "explicit root user", &["CIS 4.1", "PSS restricted:Running as Non-root user", "OWASP #2"]),
    rule("image.unlisted", Verdict::Deny, "registry or namespace not on the allow-list", &["CIS 4.2", "OWASP #13"]),
    rule("image.malformed", Verdict::Deny, "not a valid image reference", &["CIS 4.2"]),
    rule("image.latest", Verdict::Warn, "mutable tag: latest or no tag, no digest", &["CIS 4.5", "CIS 5.28", "OWASP #13"]),
    rule("image.nodigest_prod", Verdict::Approval, "no digest in env=prod", &["CIS 4.5", "OWASP #13"]),
    rule("port.all_ifaces", Verdict::Warn, "published on all interfaces", &["CIS 5.14", "CIS 5.9", "PSS baseline:Host Ports", "OWASP #5a"]),
    rule("port.privileged", Verdict::Approval, "privileged host port (<1024) on all interfaces", &["CIS 5.8", "CIS 5.14", "PSS baseline:Host Ports"]),
    rule("port.datastore", Verdict::Approval, "well-known admin/datastore port published on all interfaces", &["CIS 5.9", "CIS 5.14", "PSS baseline:Host Ports", "OWASP #5a"]),
    root("port.engine_api", Verdict::Deny, "publishes a container-engine API port (2375/2376)", &["OWASP #1"]),
    rule("port.quota", Verdict::Approval, "more published ports than the quota", &["CIS 5.9"]),
    rule("env.provider_secret", Verdict::Deny, "recognisable provider credential or private key in plain text", &["CIS 4.10", "OWASP #12"]),
    rule("env.plain_secret", Verdict::Warn, "secret-looking variable with a literal value", &["CIS 4.10", "OWASP #12"]),
    root("env.passthrough", Verdict::Deny, "variable passed through or interpolated from the supervisor's own environment", &["OWASP #12"]),
    root("path.traversal", Verdict::Deny, "file reference (env_file, label_file, configs, secrets, extends, include, seccomp, dockerfile ...) outside the project dir", &["OWASP #12", "compose-go paths/resolve.go lists the path-bearing keys"]),
    rule("include.remote", Verdict::Deny, "remote include (git, OCI, https)", &["OWASP #13"]),
    root("build.outside", Verdict::Deny, "build context, extra context or Dockerfile outside the project dir", &[]),
    rule("build.remote", Verdict::Deny, "remote build context that is not allow-listed", &["CIS 4.2", "OWASP #13"]),
    root("build.privileged", Verdict::Deny, "privileged build, insecure entitlement or host-network build", &["CIS 5.5"]),
    rule("build.ssh", Verdict::Approval, "build forwards an SSH agent/key", &[]),
    rule("build.arg_secret", Verdict::Warn, "secret in build args", &["CIS 4.10", "OWASP #12"]),
    rule("name.taken", Verdict::Approval, "answers under a name that another stack's service has on a network they share", &[]),
    root("name.supervisor", Verdict::Deny, "takes a name of the supervisor or of another stack's container", &[]),
    root("label.reserved", Verdict::Deny, "sets labels in a reserved namespace (spoofs ownership)", &[]),
    rule("label.route_hijack", Verdict::Approval, "reverse-proxy label claims a hostname of another stack", &[]),
    rule("label.injection", Verdict::Warn, "label/description text that addresses an LLM; must be passed on as untrusted data", &["OWASP ASI01", "OWASP LLM01"]),
    root("project.name", Verdict::Deny, "top-level name differs from the project the agent may deploy", &[]),
    root("net.host_external", Verdict::Deny, "attaches to the predefined host network via networks:", &["CIS 5.10", "PSS baseline:Host Namespaces"]),
    rule("net.l2", Verdict::Approval, "macvlan/ipvlan network puts the container on the host's LAN", &["OWASP #5"]),
    root("net.foreign", Verdict::Deny, "attaches to a network that belongs to another stack", &["OWASP #5"]),
    rule("net.external_unknown", Verdict::Approval, "external network without a grant", &["OWASP #5"]),
    rule("net.default_bridge", Verdict::Warn, "uses the default bridge", &["CIS 5.30", "OWASP #5"]),
    rule("links.foreign", Verdict::Approval, "external_links to a container outside the stack", &["OWASP #5"]),
    rule("hosts.gateway", Verdict::Warn, "extra_hosts reaches the host through host-gateway", &["OWASP #5"]),
    rule("hosts.metadata", Verdict::Approval, "extra_hosts points at a link-local/metadata address", &[]),
    rule("log.off", Verdict::Warn, "logging driver none: the supervisor loses the evidence", &["OWASP #10"]),
    rule("log.remote", Verdict::Approval, "logging driver ships output to a remote address", &[]),
    rule("restart.unbounded", Verdict::Warn, "restart: always without any resource limit", &["CIS 5.15", "OWASP #7"]),
    rule("health.disabled", Verdict::Warn, "healthcheck disabled", &["CIS 4.6", "CIS 5.27"]),
    root("hook.privileged", Verdict::Deny, "post_start/pre_stop hook runs privileged", &["CIS 5.23", "PSS baseline:Privileged Containers"]),
    rule("hook.root", Verdict::Warn, "lifecycle hook runs as root", &["CIS 5.24"]),
    root("compose.provider", Verdict::Deny, "provider: executes an external program on the host", &[]),
    root("compose.api_socket", Verdict::Deny, "use_api_socket mounts the engine socket and registry credentials", &["CIS 5.32", "OWASP #1"]),
    root("yaml.bomb", Verdict::Deny, "alias expansion / depth / size limit exceeded", &[]),
    root("yaml.ambiguous", Verdict::Deny, "duplicate keys or more than one document: two readers could see two files", &[]),
    root("yaml.invalid", Verdict::Deny, "does not parse or does not fit the compose schema; fail closed", &[]),
    rule("build.disabled", Verdict::Deny, "service without an image while the policy has allow_build = false", &[]),
    rule("hook.command", Verdict::Warn, "x-dockwarden hook: a command in a container of the service around a deploy", &["CIS 5.23"]),
    rule("probe.outside", Verdict::Warn, "probe of an address outside of the stack, asked by the supervisor itself", &["OWASP #5"]),
    rule("probe.insecure", Verdict::Warn, "https probe that takes any certificate", &["OWASP #5"]),
    root("probe.metadata", Verdict::Deny, "probe of a link-local or metadata address", &["OWASP #5"]),
    rule("backup.pre_update", Verdict::Warn, "data that a new version may change is not snapshotted before an update, or its file asks for less than the policy", &[]),
    rule("backup.none", Verdict::Warn, "data that no scheduled backup covers", &[]),
    rule("backup.writers", Verdict::Warn, "volume that several containers write: a database bears only one", &[]),
    rule("compose.unsupported", Verdict::Warn, "key of the file that is read and not carried out", &[]),
    rule("image.unresolved", Verdict::Warn, "image of which neither the engine nor a registry told what it is: known only after the pull", &["CIS 4.5"]),
    production("health.missing", "no health check: nobody notices when it stops working", &["CIS 4.6", "CIS 5.27"]),
    production("limits.missing", "no CPU or memory limit", &["CIS 5.11", "CIS 5.12", "OWASP #7"]),
];

/// The rule of that id.
pub fn find(id: &str) -> Option<&'static RuleInfo> {
    RULES.iter().find(|r| r.id == id)
}

/// Whether an environment is treated as production: by its name, because its mutations need approval or are refused, or because the
/// policy does not know it (an unknown environment is never the lenient one).
pub fn production_like(policy: &Policy, environment: &str) -> bool {
    let strict = |level: Option<RuleLevel>| matches!(level, Some(RuleLevel::Approval | RuleLevel::Deny));
    matches!(environment, "production" | "prod") || policy.environments.get(environment).is_none_or(|e| strict(e.mutations))
}

/// How strict a rule is in an environment; `None` = switched off. The environment's level goes before the global one, the table's
/// default comes last, and a host-root rule is never below `deny`.
pub fn level(policy: &Policy, environment: &str, rule: &RuleInfo) -> Option<Verdict> {
    let written = policy.environments.get(environment).and_then(|e| e.rules.get(rule.id)).or_else(|| policy.rules.get(rule.id));
    let level = match written {
        Some(RuleLevel::Off) => None,
        Some(RuleLevel::Allow) => Some(Verdict::Allow),
        Some(RuleLevel::Warn) => Some(Verdict::Warn),
        Some(RuleLevel::Approval) => Some(Verdict::Approval),
        Some(RuleLevel::Deny) => Some(Verdict::Deny),
        None if production_like(policy, environment) => Some(rule.production),
        None => Some(rule.default),
    };
    if rule.host_root { Some(Verdict::Deny) } else { level }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_unique_and_host_root_rules_deny() {
        let ids: std::collections::BTreeSet<_> = RULES.iter().map(|r| r.id).collect();
        assert_eq!(ids.len(), RULES.len());
        assert_eq!(RULES.len(), 93);
        assert_eq!(
            RULES.iter().filter(|r| r.host_root && r.default != Verdict::Deny).map(|r| r.id).collect::<Vec<_>>(),
            Vec::<&str>::new()
        );
    }

    #[test]
    fn the_documents_list_every_rule_as_it_is() {
        let documented: Vec<&str> =
            include_str!("../../docs/policy.md").lines().skip_while(|l| *l != "## Rules").filter(|l| l.starts_with("| `")).collect();
        let row = |r: &RuleInfo| {
            let verdict = |v: Verdict| serde_json::to_value(v).unwrap().as_str().unwrap().to_owned();
            let mark = if r.host_root { "*" } else { "" };
            format!("| `{}`{mark} | {} | {} | {} |", r.id, verdict(r.default), verdict(r.production), r.title)
        };
        assert_eq!(documented, RULES.iter().map(row).collect::<Vec<_>>());
    }

    /// Every `"..."` of a Rust source outside its test module, with what stands before it on the line (or at the end of the line before).
    fn literals(source: &str) -> Vec<(String, String)> {
        let code = source.split("\nmod tests {").next().unwrap_or_default();
        let mut out = Vec::new();
        let mut before = String::new();
        for line in code.lines().filter(|l| !l.trim_start().starts_with("//")) {
            for (i, part) in line.split('"').enumerate() {
                if i % 2 == 1 {
                    out.push((before.trim().to_owned(), part.to_owned()));
                    before.clear();
                } else {
                    before.push_str(part);
                }
            }
        }
        out
    }

    fn sources(dir: &std::path::Path, into: &mut Vec<String>) {
        for entry in std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()) {
            if entry.is_dir() {
                sources(&entry, into);
            } else if entry.extension().is_some_and(|e| e == "rs") && entry.file_name().is_some_and(|n| n != "tests.rs") {
                into.push(std::fs::read_to_string(&entry).unwrap());
            }
        }
    }

    /// The gate takes its rules by name and a name that is not in the table would be a panic; a rule that nothing finds would be a promise.
    #[test]
    fn every_rule_that_is_named_exists_and_every_rule_is_found_somewhere() {
        let src = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
        let mut texts = Vec::new();
        sources(&src.join("gate/plan"), &mut texts);
        sources(&src.join("compose"), &mut texts);
        for file in ["gate/plan.rs", "compose.rs"] {
            texts.push(std::fs::read_to_string(src.join(file)).unwrap());
        }
        let all: Vec<(String, String)> = texts.iter().flat_map(|t| literals(t)).collect();
        let dotted = |l: &str| {
            l.contains('.')
                && !l.ends_with('.')
                && l != "compose.yaml"
                && l.bytes().all(|b| b.is_ascii_lowercase() || b == b'.' || b == b'_')
        };
        // What the gate is told outright, and everything else that looks like one of its ids; keys of files and sysctls look like some.
        let told = |before: &str| ["j.hit(", "j.at(", "hit(j,", "problem("].iter().any(|t| before.ends_with(t));
        let families: std::collections::BTreeSet<&str> = RULES.iter().filter_map(|r| r.id.split_once('.')).map(|(f, _)| f).collect();
        let looks = |l: &str| dotted(l) && l.split('.').next().is_some_and(|f| families.contains(f) && !matches!(f, "build" | "net"));
        let named: Vec<&str> = all.iter().filter(|(before, l)| told(before) || looks(l)).map(|(_, l)| l.as_str()).collect();
        assert!(named.len() > 80, "only {} were found: the code is written in another way now", named.len());
        assert_eq!(named.iter().filter(|l| find(l).is_none()).collect::<Vec<_>>(), Vec::<&&str>::new());
        let never: Vec<&str> = RULES.iter().map(|r| r.id).filter(|id| !all.iter().any(|(_, l)| l == id)).collect();
        assert_eq!(never, Vec::<&str>::new());
    }

    #[test]
    fn a_level_never_weakens_a_host_root_rule() {
        let mut policy = Policy::default();
        policy.rules.insert("privileged".into(), RuleLevel::Off);
        policy.rules.insert("mem.missing".into(), RuleLevel::Off);
        assert_eq!(level(&policy, "development", find("privileged").unwrap()), Some(Verdict::Deny));
        assert_eq!(level(&policy, "development", find("mem.missing").unwrap()), None);
    }

    #[test]
    fn an_environments_level_goes_before_the_global_one() {
        let mut policy = Policy::default();
        policy.rules.insert("image.latest".into(), RuleLevel::Approval);
        policy.environments.get_mut("staging").unwrap().rules.insert("image.latest".into(), RuleLevel::Off);
        let rule = find("image.latest").unwrap();
        let of = |e| level(&policy, e, rule);
        assert_eq!([of("development"), of("staging")], [Some(Verdict::Approval), None]);
    }

    #[test]
    fn missing_health_checks_deny_in_production_and_in_environments_nobody_knows() {
        let policy = Policy::default();
        let of = |e| level(&policy, e, find("health.missing").unwrap());
        assert_eq!(
            [of("development"), of("staging"), of("production"), of("prdo")],
            [Some(Verdict::Warn), Some(Verdict::Warn), Some(Verdict::Deny), Some(Verdict::Deny)]
        );
    }
}
