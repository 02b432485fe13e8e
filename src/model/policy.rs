//! `policy.toml` as loaded: environments, what plans may contain, who sits behind which uid. Closed: an unknown key is an error.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The whole policy.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Policy {
    /// Environments by name. `default` names the one a stack gets when nothing says otherwise.
    pub environments: BTreeMap<String, Environment>,
    /// Name of the default environment.
    pub default_environment: String,
    /// Registries images may come from (`docker.io/library`, `ghcr.io/acme`, `local` for images without a registry that are only here).
    pub allowed_registries: Vec<String>,
    /// Host paths a bind may lie under beside the project's own directory.
    pub bind_roots_allow: Vec<String>,
    /// Host paths a bind may lie under with approval.
    pub bind_roots_approval: Vec<String>,
    /// Runtimes.
    pub runtimes_allow: Vec<String>,
    /// Runtimes with approval.
    pub runtimes_approval: Vec<String>,
    /// Whether `build` is allowed.
    pub allow_build: bool,
    /// External networks stacks may join.
    pub networks_granted: Vec<String>,
    /// Quotas.
    pub quotas: Quotas,
    /// Levels of single rules: rule id -> `off`, `warn`, `approval`, `deny` (never weaker than `deny` for host-root rules).
    pub rules: BTreeMap<String, RuleLevel>,
    /// Exceptions written by an operator.
    pub exceptions: Vec<Exception>,
    /// Agents a local user may act as: uid -> agent names (`*` = all but the house's own). The owner of the home has `*`.
    pub peers: BTreeMap<String, Vec<String>>,
    /// Environment keys whose values may be shown as text.
    pub literal_keys: Vec<String>,
    /// Operations of one agent on one stack that may fail in a row before its changes there are stopped until an operator lifts it; 0 = never.
    pub breaker_failures: u32,
    /// What comes of a change that uses words its agent first saw in untrusted output.
    pub taint: Taint,
    /// When the data of a service is snapshotted before the service is replaced, where its file does not say: `every`, `image`, `small` or `asked`.
    pub pre_update: PreUpdate,
}

/// When the data of a service is snapshotted before the service is replaced. What the file of a stack says (`pre_update: true` or `false`) goes before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub enum PreUpdate {
    /// Before each replacement.
    Every,
    /// When its image changes, however much data that is.
    #[default]
    Image,
    /// When its image changes and its data is known to be at most 1 GiB; otherwise there is a warning.
    Small,
    /// Only where the file asks for it.
    Asked,
}

/// One environment.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Environment {
    /// Levels of single rules in this environment, over the global ones.
    pub rules: BTreeMap<String, RuleLevel>,
    /// Overrides `tier_3`'s approval for mutations here: `allow` or `approval`.
    pub mutations: Option<RuleLevel>,
    /// Changes of one stack here in an hour, all agents together; backups, `cancel` and the supervisor's own healing are not counted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub changes_per_hour: Option<u32>,
    /// Approver and requester must be different people. Whose wish an agent carries out is not known, so one operator's word is never enough:
    /// of two different ones at most one had it ask.
    pub distinct_approver: bool,
}

impl Policy {
    /// Different operators whose word an approval in an environment needs at least.
    pub fn least_approvals(&self, environment: Option<&str>) -> u32 {
        let distinct = environment.and_then(|e| self.environments.get(e)).is_some_and(|e| e.distinct_approver);
        if distinct { 2 } else { 1 }
    }
}

/// Level of a rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RuleLevel {
    /// Not judged.
    Off,
    /// Judged, always allowed.
    Allow,
    /// Recorded and returned.
    Warn,
    /// A human approves.
    Approval,
    /// Never.
    Deny,
}

/// What comes of a change that uses words its agent first saw in untrusted output.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Taint {
    /// `off` or `approval`.
    pub level: TaintLevel,
    /// How long such a word counts as tainted, in seconds.
    pub window_s: u32,
}

/// Level of taint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum TaintLevel {
    /// Not judged.
    Off,
    /// An operator approves.
    Approval,
}

impl Default for Taint {
    fn default() -> Self {
        Self { level: TaintLevel::Approval, window_s: 1800 }
    }
}

/// Quotas of a plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Quotas {
    /// Replicas of one service.
    pub max_replicas: u32,
    /// Published ports of a stack.
    pub max_published_ports: u32,
    /// Bytes of a compose file.
    pub max_file_bytes: u64,
    /// Nodes after alias expansion.
    pub max_alias_expansion_nodes: u64,
    /// Depth of a file.
    pub max_depth: u32,
}

impl Default for Quotas {
    fn default() -> Self {
        Self { max_replicas: 10, max_published_ports: 20, max_file_bytes: 262_144, max_alias_expansion_nodes: 10_000, max_depth: 64 }
    }
}

/// An exception from a rule of the plan gate.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Exception {
    /// Rule id.
    pub rule: String,
    /// Stack.
    pub stack: String,
    /// Service.
    #[serde(default)]
    pub service: Option<String>,
    /// The exact value it excepts, e.g. a host path.
    pub value: String,
    /// Why.
    pub because: String,
    /// Date after which it is void, `YYYY-MM-DD`.
    pub expires: chrono::NaiveDate,
}

impl Default for Policy {
    fn default() -> Self {
        let env = |m| Environment { mutations: m, ..Environment::default() };
        Self {
            environments: BTreeMap::from([
                ("development".into(), env(None)),
                ("staging".into(), env(None)),
                ("production".into(), env(Some(RuleLevel::Approval))),
            ]),
            default_environment: "development".into(),
            allowed_registries: vec!["docker.io/library".into(), "local".into()],
            bind_roots_allow: vec![],
            bind_roots_approval: vec![],
            runtimes_allow: vec!["runc".into()],
            runtimes_approval: vec![],
            allow_build: false,
            networks_granted: vec![],
            quotas: Quotas::default(),
            rules: BTreeMap::new(),
            exceptions: vec![],
            peers: BTreeMap::new(),
            literal_keys: vec![],
            breaker_failures: 5,
            taint: Taint::default(),
            pre_update: PreUpdate::default(),
        }
    }
}
