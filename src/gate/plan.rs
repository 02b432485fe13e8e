//! The plan gate: what would really be sent to the engine, judged rule by rule over every service, those behind inactive profiles
//! included. Pure: what must be looked up (links resolved, owners of volumes) comes in as facts. Deliberately absent: findings about a
//! file that did not load (the loader's errors carry the rule ids `yaml.*`, `include.remote`, `path.traversal`), and the rule table.

pub mod above;
pub mod build;
pub mod images;
pub mod lifecycle;
pub mod mounts;
pub mod namespaces;
pub mod networks;
pub mod outside;
pub mod ownership;
pub mod paths;
pub mod ports;
pub mod privileges;
pub mod probes;
pub mod resources;
pub mod secrets;
pub mod subject;
pub mod volumes;

use super::rules;
use crate::model::ids::StackName;
use crate::model::plan::Carried;
use crate::model::policy::{Exception, Policy};
use crate::model::spec::{ServiceSpec, StackSpec};
use crate::model::verdict::{Finding, Verdict};
use chrono::NaiveDate;
use std::collections::{BTreeMap, BTreeSet};

/// What the world says about a plan; gathered by the caller, trusted by the gate.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct PlanFacts {
    /// Stack the call may deploy; a file with another name is refused. `None` = whatever the file says.
    pub stack: Option<StackName>,
    /// Registered project directory, as written.
    pub project_dir: Option<String>,
    /// Environment the plan is for.
    pub environment: String,
    /// Every host path the plan or the policy names ([`paths::named`]) -> what it is after links are followed. A bind source that is missing here counts as outside.
    pub resolved: BTreeMap<String, BindFact>,
    /// Paths of the supervisor itself (home, configuration): no service mounts them, not even below an allowed root.
    pub protected_paths: Vec<String>,
    /// Further sockets of container engines on this host, e.g. from `DOCKER_HOST`.
    pub engine_sockets: Vec<String>,
    /// Names of the supervisor's own containers.
    pub supervisor_containers: BTreeSet<String>,
    /// Volumes and networks of the supervisor.
    pub supervisor_objects: BTreeSet<String>,
    /// The supervisor could not find out which are its own: what belongs to nobody known may be.
    pub supervisor_unknown: bool,
    /// Places of volumes that containers of a service have beside its own mounts.
    pub carried: Carried,
    /// What belongs to other stacks, by stack.
    pub other_stacks: BTreeMap<String, OtherStack>,
    /// Volumes and networks our registry knows as this stack's own.
    pub own_objects: BTreeSet<String>,
    /// Volumes and networks on the engine whose owner nobody knows.
    pub unowned_objects: BTreeSet<String>,
    /// References that exist on this engine and came from no registry.
    pub local_images: BTreeSet<String>,
    /// Services whose image brings its own health check.
    pub image_healthchecks: BTreeSet<String>,
    /// Variables declared for the stack (`.env`, environment files, call).
    pub declared_vars: BTreeSet<String>,
    /// Names (never values) in the supervisor's own environment.
    pub supervisor_env: BTreeSet<String>,
    /// Variables the file refers to: (name, path in the file).
    pub referenced_vars: Vec<(String, String)>,
    /// Environment entries (service, key) whose value came from an environment file or a declared variable -> the part of it that stands in
    /// the text of the compose file all the same.
    pub env_from_files: BTreeMap<(String, String), String>,
}

/// What belongs to another stack.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct OtherStack {
    /// Volumes on the engine.
    pub volumes: BTreeSet<String>,
    /// Networks on the engine.
    pub networks: BTreeSet<String>,
    /// Container names.
    pub containers: BTreeSet<String>,
    /// Names its services answer to, by network on the engine.
    pub names: BTreeMap<String, BTreeSet<String>>,
    /// Host names it is reached by through a reverse proxy.
    pub hostnames: BTreeSet<String>,
    /// Host paths its containers have, as far as they were judged.
    pub followed: Vec<above::Followed>,
}

/// What a path on the host is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PathKind {
    /// Regular file.
    File,
    /// Directory.
    Directory,
    /// Unix socket.
    Socket,
    /// Block or character device.
    Device,
    /// Pipe or something else.
    Other,
}

/// A host path after links are followed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BindFact {
    /// Absolute path without links; for a path that does not exist: the real parent plus the rest.
    pub real: String,
    /// Whether it exists.
    pub exists: bool,
    /// What it is; `None` when it does not exist.
    pub kind: Option<PathKind>,
}

/// A finding with the value that was judged: what an operator who approves the finding approves.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Weighed {
    /// The finding.
    pub finding: Finding,
    /// The judged value, e.g. a host path; never a secret.
    pub value: String,
}

/// Judges a plan. Findings are sorted and without doubles; the plan's verdict is their strictest.
pub fn judge(spec: &StackSpec, facts: &PlanFacts, policy: &Policy, now: NaiveDate) -> Vec<Finding> {
    let mut findings: Vec<Finding> = weigh(spec, facts, policy, now).into_iter().map(|w| w.finding).collect();
    findings.dedup();
    findings
}

/// Judges a plan and tells with each finding which value was judged. Sorted and without doubles.
pub fn weigh(spec: &StackSpec, facts: &PlanFacts, policy: &Policy, now: NaiveDate) -> Vec<Weighed> {
    let mut j = Judge { spec, facts, policy, now, findings: Vec::new() };
    ownership::stack(&mut j);
    volumes::stack(&mut j);
    above::stack(&mut j);
    networks::stack(&mut j);
    secrets::stack(&mut j);
    resources::stack(&mut j);
    probes::stack(&mut j);
    for (name, service) in &spec.services {
        let at = At { name: name.as_str(), service };
        privileges::service(&mut j, at);
        namespaces::service(&mut j, at);
        mounts::service(&mut j, at);
        images::service(&mut j, at);
        ports::service(&mut j, at);
        networks::service(&mut j, at);
        resources::service(&mut j, at);
        secrets::service(&mut j, at);
        ownership::service(&mut j, at);
        build::service(&mut j, at);
        lifecycle::service(&mut j, at);
        probes::service(&mut j, at);
    }
    j.findings.sort();
    j.findings.dedup();
    j.findings
}

/// Strictest verdict of findings.
pub fn strictest(findings: &[Finding]) -> Verdict {
    findings.iter().map(|f| f.verdict).max().unwrap_or(Verdict::Allow)
}

/// What findings of one stack in one environment are weighed by.
#[derive(Debug, Clone, Copy)]
pub struct Scales<'a> {
    /// The policy.
    pub policy: &'a Policy,
    /// Environment.
    pub environment: &'a str,
    /// Stack.
    pub stack: &'a str,
    /// Today.
    pub now: NaiveDate,
}

impl<'a> Scales<'a> {
    /// The exception of exactly this rule, stack, service and value that holds today.
    pub fn excepted(&self, rule: &str, service: Option<&str>, value: &str) -> Option<&'a Exception> {
        let mine = |e: &&Exception| {
            e.rule == rule && e.stack == self.stack && e.service.as_deref() == service && e.value == value && self.now <= e.expires
        };
        self.policy.exceptions.iter().find(mine).filter(|_| !rule.starts_with("yaml."))
    }

    /// A rule broken by `value` (never a secret: exceptions name it), as strict as the policy has it; `None` where it is switched off. An exception of the
    /// value makes it a warning that names the exception.
    pub fn weigh(&self, rule: &str, service: Option<&str>, path: Option<String>, value: &str, because: String) -> Option<Weighed> {
        let info = rules::find(rule).expect("rules are named by literals that a test checks against the table");
        let verdict = rules::level(self.policy, self.environment, info)?;
        let (verdict, because) = match self.excepted(rule, service, value) {
            Some(e) => (verdict.min(Verdict::Warn), format!("{because}; excepted by an operator until {}: {}", e.expires, e.because)),
            None if info.host_root && !value.is_empty() => (verdict, format!("{because} (value: {})", shorten(value))),
            None => (verdict, because),
        };
        let finding = Finding { rule: rule.into(), verdict, service: service.map(str::to_owned), path, because };
        Some(Weighed { finding, value: value.to_owned() })
    }

    /// The same of a finding that was made before anybody asked how strict its rule is.
    pub fn again(&self, found: Weighed) -> Option<Weighed> {
        let Finding { rule, verdict: _, service, path, because } = found.finding;
        self.weigh(&rule, service.as_deref(), path, &found.value, because)
    }
}

impl Weighed {
    /// One that only says something; how strict its rule is, [`Scales::again`] knows.
    pub fn said(rule: &str, service: Option<String>, path: Option<String>, value: impl Into<String>, because: String) -> Self {
        Self { finding: Finding { rule: rule.into(), verdict: Verdict::Warn, service, path, because }, value: value.into() }
    }
}

/// A service under judgement.
#[derive(Clone, Copy)]
struct At<'a> {
    name: &'a str,
    service: &'a ServiceSpec,
}

impl At<'_> {
    fn path(&self, rest: &str) -> String {
        format!("services.{}.{rest}", self.name)
    }
}

/// The judgement under way.
struct Judge<'a> {
    spec: &'a StackSpec,
    facts: &'a PlanFacts,
    policy: &'a Policy,
    now: NaiveDate,
    findings: Vec<Weighed>,
}

impl<'a> Judge<'a> {
    /// Records that a rule is broken by `value` (never a secret: exceptions name it). The level comes from the policy; an exception of
    /// exactly this rule, stack, service and value makes it a warning that names the exception.
    fn hit(&mut self, rule: &str, service: Option<&str>, path: impl Into<String>, value: &str, because: impl Into<String>) {
        let scales = Scales { policy: self.policy, environment: &self.facts.environment, stack: self.spec.name.as_str(), now: self.now };
        self.findings.extend(scales.weigh(rule, service, Some(path.into()), value, because.into()));
    }

    /// `hit` for a service.
    fn at(&mut self, rule: &str, at: At<'_>, path: &str, value: &str, because: impl Into<String>) {
        self.hit(rule, Some(at.name), at.path(path), value, because);
    }

    /// What the caller found out about a host path.
    fn resolved(&self, path: &str) -> Option<&'a BindFact> {
        self.facts.resolved.get(path).or_else(|| self.facts.resolved.get(&normalise(path)))
    }

    /// A path without links where that is known, else without dots.
    fn real(&self, path: &str) -> String {
        self.resolved(path).map_or_else(|| normalise(path), |f| normalise(&f.real))
    }

    /// Whether a real path is the project directory or below it.
    fn in_project(&self, real: &str) -> bool {
        self.facts.project_dir.as_deref().is_some_and(|d| self.below(real, d))
    }

    fn below(&self, real: &str, root: &str) -> bool {
        let root = self.real(root);
        never_a_root(&root).is_none() && is_below(real, &root)
    }

    /// Whether a name is one of this stack's own containers.
    fn own_container(&self, name: &str) -> bool {
        let taken =
            self.facts.supervisor_containers.contains(name) || self.facts.other_stacks.values().any(|s| s.containers.contains(name));
        let numbered = |service: &str| {
            ["-", "_"].iter().any(|sep| {
                let rest = name.strip_prefix(&format!("{}{sep}{service}{sep}", self.spec.name));
                rest.is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()))
            })
        };
        !taken && self.spec.services.iter().any(|(s, spec)| spec.container_name.as_deref() == Some(name) || numbered(s.as_str()))
    }

    fn has_service(&self, name: &str) -> bool {
        self.spec.services.keys().any(|s| s.as_str() == name)
    }

    fn production(&self) -> bool {
        rules::production_like(self.policy, &self.facts.environment)
    }
}

/// An absolute path without `.`, `..`, doubled or closing slashes. A relative path stays relative. Knows nothing of links.
pub fn normalise(path: &str) -> String {
    let absolute = path.starts_with('/');
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." if absolute || parts.last().is_some_and(|p| *p != "..") => {
                parts.pop();
            }
            _ => parts.push(part),
        }
    }
    let joined = parts.join("/");
    if absolute { format!("/{joined}") } else { joined }
}

/// Whether `path` is `root` or below it, component by component. Both normalised.
pub fn is_below(path: &str, root: &str) -> bool {
    path.strip_prefix(root).is_some_and(|rest| rest.is_empty() || rest.starts_with('/') || root == "/")
}

/// Why a directory cannot be an allowed root, or `None` when it can.
pub fn never_a_root(root: &str) -> Option<&'static str> {
    let systems = ["/boot", "/dev", "/etc", "/proc", "/run", "/sys", "/var/run", "/var/lib/docker", "/var/lib/containerd"];
    match root {
        "/" => Some("holds the whole host"),
        "/usr" | "/var" | "/var/lib" | "/bin" | "/sbin" | "/lib" | "/lib64" | "/root" => Some("holds the operating system or its engine"),
        _ if systems.contains(&root) => Some("gives the host or its engine away"),
        _ if !root.starts_with('/') => Some("is not absolute"),
        _ => None,
    }
}

/// Untrusted text in a reason is quoted no longer than this.
fn shorten(value: &str) -> String {
    let clean = crate::redact::line(value, 120);
    if clean.len() < value.len() { format!("{clean}...") } else { clean }
}

#[cfg(test)]
mod tests;
