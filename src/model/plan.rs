//! A plan: what would be done, as data, with a digest. Shown, judged, approved, then applied unchanged.

use super::ids::{EngineName, PlanId, ServiceName, StackName};
use super::observed::ImageIdentity;
use super::spec::{Quiesce, StackSpec};
use super::verdict::{Finding, Verdict};
use chrono::{DateTime, Utc};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

/// What the plan is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub enum PlanKind {
    /// A new release of the stack.
    Deploy,
    /// An older release again.
    Rollback,
    /// Restart of services in place.
    Restart,
    /// Stop of the stack (and removal of its containers and networks).
    Stop,
    /// Another number of containers of a service.
    Scale,
}

/// What happens to one service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub enum Action {
    /// First containers.
    Create,
    /// Replaced by new containers.
    Update,
    /// More or fewer containers of the same kind.
    Scale,
    /// Restarted or started in place.
    Restart,
    /// Stopped in place.
    Stop,
    /// Containers removed: the service is no longer in the file.
    Remove,
    /// Nothing.
    Unchanged,
}

/// How a service is replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub enum Strategy {
    /// Nothing runs yet: created, started, probed.
    Start,
    /// A canary proves the new version beside the old one, then a pre-created container takes over: about 0.2 s.
    Handover,
    /// New containers start beside the old ones, then the service's front passes new connections on to them: nothing is lost.
    Front,
    /// Never two copies: the service's front lets connections wait while the old one stops and the new one starts: nothing is lost.
    Hold,
    /// Old stopped, new started and probed, old started again on failure: planned downtime.
    Recreate,
    /// Runs once to its end and must exit 0.
    RunOnce,
    /// New containers start beside the old ones; the service's front gives them growing shares of new connections while they are watched.
    Canary,
    /// All services of this strategy start anew on a network of their own, then their fronts pass new connections on to them.
    BlueGreen,
    /// A canary proves the new version, then new containers answer to the service's name beside the old ones before those stop.
    Alias,
    /// Restarted in place once what it depends on was replaced.
    Follow,
    /// Nothing is replaced.
    InPlace,
}

/// One line of a diff. Environment values are never text: `set`, `changed`, `unset` with a keyed hash.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(inline)]
pub struct DiffLine {
    /// Path within the service, e.g. `image`, `environment.TOKEN`, `ports[0]`.
    pub path: String,
    /// Before; absent when it was not there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// After; absent when it is gone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<String>,
}

/// What happens to a service, how, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(inline)]
pub struct Change {
    /// Service.
    pub service: ServiceName,
    /// Action.
    pub action: Action,
    /// Strategy.
    pub strategy: Strategy,
    /// What clients of the service lose while it happens, in words.
    pub expected_loss: String,
    /// Why.
    pub diff: Vec<DiffLine>,
}

/// A whole plan. `desired` is what the new release will be; it carries secret values and is stored encrypted.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// Id.
    pub id: PlanId,
    /// Kind.
    pub kind: PlanKind,
    /// Stack.
    pub stack: StackName,
    /// Environment, e.g. `production`.
    pub environment: String,
    /// Arguments of the call that asked for it, which say what is deployed: deploying it by its id is judged by them. `None` for what no call describes,
    /// and for plans of releases that did not keep them.
    #[serde(default)]
    pub given: Option<serde_json::Map<String, serde_json::Value>>,
    /// Release that runs now.
    pub from_release: Option<u32>,
    /// Release number this makes (or, for a rollback, a new number with the old content; see `content_of`).
    pub to_release: u32,
    /// For a rollback: the release whose content runs again.
    pub content_of: Option<u32>,
    /// The stack as it shall be.
    pub desired: StackSpec,
    /// Identity of every image at planning time.
    pub images: BTreeMap<ServiceName, ImageIdentity>,
    /// Services in levels: a level starts when the ones before are ready.
    pub levels: Vec<Vec<ServiceName>>,
    /// What happens.
    pub changes: Vec<Change>,
    /// Services whose new containers change data the release before may not read, with the reason: nothing automatic goes back over them.
    #[serde(default)]
    pub migrates: BTreeMap<ServiceName, String>,
    /// The one service it is about, where it leaves the others alone.
    #[serde(default)]
    pub only: Option<ServiceName>,
    /// Services no longer in the file that end before these start, which take over their data, host port or fixed address.
    #[serde(default)]
    pub makes_way: BTreeMap<ServiceName, Vec<ServiceName>>,
    /// What changes beside the services: networks, volumes, configs, secrets, settings of the stack.
    #[serde(default)]
    pub stack_diff: Vec<DiffLine>,
    /// No container changes, but what the file says about the stack does (`x-dockwarden`, dependencies): recorded as a release.
    #[serde(default)]
    pub text_only: bool,
    /// Replica counts or services for scale and restart; stop with removal.
    #[serde(default)]
    pub remove: bool,
    /// What is done with data before anything is switched.
    #[serde(default)]
    pub data: DataPlan,
    /// Findings of the plan gate and the planner.
    pub findings: Vec<Finding>,
    /// Strictest of the findings.
    pub verdict: Verdict,
    /// Findings that ask for an approval, or did before one was given.
    #[serde(default)]
    pub asked: Vec<Asked>,
    /// Findings of at least `approval`, as they were weighed before what was approved earlier is taken into account: part of the digest.
    #[serde(default)]
    pub weighed: BTreeSet<Weight>,
    /// Host paths of the plan as written -> where each led when it was judged: part of the digest. Whatever leads elsewhere later is refused.
    #[serde(default)]
    pub real_paths: BTreeMap<String, String>,
    /// Places of volumes that containers of a service have beside its own mounts, for services with configs or secrets: what its image declares, and what
    /// is taken over from the container before. Files beneath them are mounted, and were judged so.
    #[serde(default)]
    pub carried: Carried,
    /// Containers of its services that a restart passes over: a person stopped them, and it is the loop that restarts what stands beside them.
    #[serde(default)]
    pub left: BTreeSet<EngineName>,
    /// Project directory, where one is registered.
    pub project_dir: Option<String>,
    /// Git commit of the directory and whether it had uncommitted changes.
    pub git: Option<GitState>,
    /// Hash over what the plan was made against (release, spec hashes, replica counts, image ids, volume and network names).
    pub fingerprint: String,
    /// Keyed hash over agent-independent content: kind, stack, environment, desired, images, fingerprint, policy version, real paths, what was weighed.
    pub digest: String,
    /// When it was made.
    pub created_at: DateTime<Utc>,
}

/// Places of volumes beside a service's own mounts, by service.
pub type Carried = BTreeMap<ServiceName, BTreeSet<String>>;

/// What a finding is about, without its words: rule, place and judged value.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Weight {
    /// Rule.
    pub rule: String,
    /// Its level before any approval.
    pub verdict: Verdict,
    /// Service; `None` = the stack.
    pub service: Option<String>,
    /// Path in the file.
    pub path: Option<String>,
    /// The judged value; never a secret.
    pub value: String,
}

/// A finding that an operator's approval answers, by keyed hash over rule, place and exact value.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Asked {
    /// The finding.
    pub finding: String,
    /// Release it was approved with; `None` when this plan asks.
    pub release: Option<u32>,
}

/// What a plan does with data before anything is switched.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct DataPlan {
    /// Volumes read into the backup repository first.
    pub snapshot: Vec<EngineName>,
    /// Directories of the host read into it first.
    pub directories: Vec<PlannedDirectory>,
    /// Services all of whose data is among them.
    pub services: BTreeSet<ServiceName>,
    /// How the writers of all of them are held meanwhile: this stack's, and those of `also_held`.
    pub quiesce: Quiesce,
    /// Other stacks whose writers are held, too. Writers that are nobody's here go on.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub also_held: Vec<StackName>,
    /// Services of the release that runs whose backup commands (`pre`, `stdout`, `post`) are run around it.
    pub commands: Vec<ServiceName>,
    /// Snapshots brought back, each into a volume of its own that the new release uses instead of the live one.
    pub restore: Vec<PlannedRestore>,
    /// Directories of the host that change places with what snapshots of them hold.
    pub exchange: Vec<PlannedExchange>,
}

/// A directory of the host that a plan has read first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlannedDirectory {
    /// As the engine's host names it.
    pub host: String,
    /// The same as this process sees it.
    pub here: PathBuf,
    /// Where it is without the operator's links, as it was judged; `None` where that is `host`.
    #[serde(default)]
    pub real: Option<String>,
}

/// A snapshot that a plan brings back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlannedRestore {
    /// Snapshot.
    pub snapshot_id: String,
    /// Volume it was taken of.
    pub source: String,
    /// Key of the volume in the file; empty for one without a name.
    pub key: String,
    /// Service that has a volume without a name, made anew with the restored one in its place.
    #[serde(default)]
    pub service: Option<ServiceName>,
    /// Volume in use now; kept.
    pub live: String,
    /// Volume that is made and filled.
    pub into: EngineName,
}

/// A directory of the host that a plan exchanges for what a snapshot of it holds: its path is in the file, so no release can name another one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlannedExchange {
    /// Snapshot.
    pub snapshot_id: String,
    /// The directory as the engine's host names it; what it holds now is kept beside it.
    pub host: String,
    /// The same as this process sees it.
    pub here: PathBuf,
    /// Where it is without the operator's links, as it was judged; `None` where that is `host`.
    #[serde(default)]
    pub real: Option<String>,
    /// Services that mount it, made anew.
    pub services: BTreeSet<ServiceName>,
}

/// Git state of a project directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(inline)]
pub struct GitState {
    /// Commit hash.
    pub commit: String,
    /// Uncommitted changes.
    pub dirty: bool,
}

impl Plan {
    /// Whether anything would be done.
    pub fn is_noop(&self) -> bool {
        !self.text_only && self.changes.iter().all(|c| c.action == Action::Unchanged)
    }
}
