//! What a plan means for data: volumes a stack took into use by a restore stay in use in later releases; services about to be replaced get their data
//! snapshotted first; a rollback keeps the data, or brings a snapshot back beside it. Reads only; data is never changed without being asked for.

use super::error::ErrorCode;
use super::{Call, CallError, facts, sources};
use crate::executor::backup::{Around, Directory, Writer, writers};
use crate::executor::places;
use crate::gate;
use crate::gate::plan::outside::PRE_UPDATE;
use crate::gate::plan::{Scales, Weighed};
use crate::model::ids::{EngineName, ServiceName, SnapshotId, StackName};
use crate::model::plan::{Action, DataPlan, Plan, PlanKind, PlannedDirectory};
use crate::model::policy::PreUpdate;
use crate::model::release::{Release, ReleaseState};
use crate::model::spec::{BackupSettings, MountKind, Quiesce, ServiceSpec, StackSpec};
use crate::model::verdict::{Finding, Verdict};
use crate::planner::{self, Observed};
use crate::store::backup::BackupRecord;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

pub mod bring;

/// Most data that is snapshotted before an update under the policy's `small`: about ten seconds of reading.
pub const PRE_UPDATE_LIMIT: u64 = 1 << 30;
/// Bytes a second of a first snapshot on a small machine, for the time told in a plan.
const BYTES_PER_SECOND: u64 = 80 << 20;
/// Entries of a volume looked at to learn its size; more of them count as too large.
const MOST_ENTRIES: usize = 100_000;
/// Most characters of names in a finding.
const NAMED: usize = 200;
/// Releases looked through.
const LOOKED_THROUGH: usize = 100;

/// What a rollback does with data.
#[derive(Debug, Clone, PartialEq)]
pub enum DataChoice {
    /// Volumes as they are; refused where the newer release may have changed what the older one cannot read.
    Keep,
    /// Volumes as they are, whatever the newer release did to them.
    CodeOnly,
    /// These snapshots instead of the live data of their volumes.
    Snapshots(Vec<BackupRecord>),
}

impl DataChoice {
    /// Of the words of a call: `keep`, `code_only`, or snapshot ids separated by commas.
    ///
    /// # Errors
    /// `NotFound` for an unknown snapshot, `InvalidArgument` for one of another stack or of a volume named twice.
    pub async fn of(call: &Call, stack: &StackName, words: Option<&str>) -> Result<Self, CallError> {
        let ids = match words.map(str::trim) {
            None | Some("" | "keep") => return Ok(Self::Keep),
            Some("code_only") => return Ok(Self::CodeOnly),
            Some(ids) => ids,
        };
        let hint = format!("pass keep, code_only, or a snapshot_id that `backups` with stack {stack} lists");
        let wrong = |code, message: String| CallError::new(code, message, hint.clone()).field("data");
        let mut found: Vec<BackupRecord> = vec![];
        for id in ids.split(',').map(str::trim) {
            let shown = crate::redact::line(id, 64);
            let unknown = || wrong(ErrorCode::NotFound, format!("there is no snapshot {shown:?}"));
            let id = SnapshotId::new(id).map_err(|_| unknown())?;
            let record = call.house.store.backup(&id).await?.ok_or_else(unknown)?;
            if record.stack.as_deref() != Some(stack.as_str()) {
                let whose = record.stack.as_deref().unwrap_or("no stack");
                return Err(wrong(ErrorCode::InvalidArgument, format!("snapshot {shown} is of {whose}, not of stack {stack}")));
            }
            if found.iter().any(|f| f.volume == record.volume) {
                return Err(wrong(ErrorCode::InvalidArgument, format!("two snapshots of volume {}", record.volume)));
            }
            found.push(record);
        }
        Ok(Self::Snapshots(found))
    }

    /// Release a rollback goes to when none is named: the one that wrote the data brought back.
    pub fn release(&self) -> Option<u32> {
        match self {
            Self::Snapshots(records) => records.iter().find_map(|r| r.release),
            Self::Keep | Self::CodeOnly => None,
        }
    }
}

/// Volumes that a stack took into use instead of the file's stay in use: in a later deploy, after a removal, and when an older release comes back.
///
/// # Errors
/// The store's.
pub async fn carry(call: &Call, stack: &StackName, current: Option<&Release>, desired: &mut StackSpec) -> Result<(), CallError> {
    let in_use = match current {
        Some(release) => Some(release.spec.clone()),
        None => {
            let releases = call.house.store.releases(stack, LOOKED_THROUGH).await?;
            releases.into_iter().find(|r| r.state == ReleaseState::Good).map(|r| r.spec)
        }
    };
    carried(in_use.as_ref(), desired);
    Ok(())
}

/// The pure part of [`carry`].
fn carried(in_use: Option<&StackSpec>, desired: &mut StackSpec) {
    for (key, volume) in desired.volumes.iter_mut().filter(|(_, v)| !v.external) {
        let declared = volume.declared().to_owned();
        let swapped = in_use.and_then(|s| s.volumes.get(key)).filter(|v| v.declared() == declared).filter(|v| v.swapped_from.is_some());
        match swapped {
            Some(used) => (volume.name, volume.swapped_from) = (used.name.clone(), Some(declared)),
            None => (volume.name, volume.swapped_from) = (declared, None),
        }
    }
}

/// Refuses to go back with the data kept where the older release may not read it.
///
/// # Errors
/// `Conflict` that names the services and the ways on.
pub async fn readable(call: &Call, current: Option<&Release>, target: &Release) -> Result<(), CallError> {
    let Some(current) = current else { return Ok(()) };
    let migrated = migrates(current, target);
    if migrated.is_empty() {
        return Ok(());
    }
    let taken = call.house.store.backups(Some(&target.stack), None, LOOKED_THROUGH).await?;
    let newest = taken.iter().find(|b| b.release.is_some_and(|r| r <= target.number) && b.state == "complete");
    let way = match newest {
        Some(b) => format!("data: {} brings {} back as of {}", b.snapshot_id, b.volume, b.at.format("%Y-%m-%dT%H:%M:%SZ")),
        None => "no snapshot of that release's data is recorded".to_owned(),
    };
    let message = format!(
        "release {} may have changed data that release {} cannot read: {}; say what shall happen to the data",
        current.number,
        target.number,
        migrated.join("; ")
    );
    let hint = format!("data: code_only goes back with the data as it is; {way} (what was written since stays beside)");
    Err(CallError::new(ErrorCode::Conflict, message, hint).field("data"))
}

/// Why data that the newer release wrote may be unreadable to the older one. Pure.
fn migrates(newer: &Release, older: &Release) -> Vec<String> {
    let mut why = vec![];
    for (name, spec) in newer.spec.services.iter().filter(|(_, s)| s.active) {
        let images = (newer.images.get(name), older.images.get(name));
        let changed = match images {
            (Some(new), Some(old)) => new.reference != old.reference && new.id != old.id,
            _ => true,
        };
        let once = planner::one_shot(&newer.spec, name);
        let touches =
            writes_volumes(spec) || (once && spec.depends_on.keys().any(|d| newer.spec.services.get(d).is_some_and(writes_volumes)));
        let declared = spec.settings.migrates.or(newer.spec.settings.migrates);
        let differs = changed || older.spec.services.get(name) != Some(spec);
        match (declared, images) {
            (Some(false), _) => {}
            (Some(true), _) if differs => why.push(format!("service {name} says that it migrates")),
            (None, (Some(new), Some(old))) if touches && changed => {
                why.push(format!("service {name} went from {} to {}", old.reference, new.reference));
            }
            (None, (Some(_), None)) if once && touches => why.push(format!("{name} ran once over its data")),
            (Some(true) | None, _) => {}
        }
    }
    why
}

fn writes_volumes(spec: &ServiceSpec) -> bool {
    spec.mounts.iter().any(|m| !m.read_only && matches!(m.kind, MountKind::Volume | MountKind::Cluster))
}

/// What there is to say of a plan's data.
#[derive(Debug, Default)]
pub struct AboutData {
    /// What is done first, and what cannot be done.
    pub findings: Vec<Finding>,
    /// What the policy weighs like everything else it has a rule for.
    pub said: Vec<Weighed>,
}

/// What findings of a plan are weighed by.
pub fn scales<'a>(call: &'a Call, plan: &'a Plan) -> Scales<'a> {
    Scales { policy: &call.rulebook.policy, environment: &plan.environment, stack: plan.stack.as_str(), now: call.now.date_naive() }
}

/// Writes into the plan which volumes are snapshotted first and what that costs, and what a restore changes. Returns what there is to say.
///
/// # Errors
/// The store's and the engine's.
pub async fn make_safe(call: &Call, plan: &mut Plan, observed: &Observed, current: Option<&Release>) -> Result<AboutData, CallError> {
    bring::tell(plan);
    let mut about = AboutData::default();
    let Some(current) = current.filter(|_| matches!(plan.kind, PlanKind::Deploy | PlanKind::Rollback)) else { return Ok(about) };
    let mut hold = Quiesce::None;
    let kept: BTreeSet<String> = plan.data.restore.iter().map(|r| r.live.clone()).collect();
    // A directory that is exchanged is snapshotted right before that.
    let exchanged: BTreeSet<String> = plan.data.exchange.iter().map(|e| e.host.clone()).collect();
    let (stack_wide, stack) = (sources::of_stack(&call.house.config, &plan.desired), plan.stack.clone());
    let (policy, environment) = (&call.rulebook.policy, plan.environment.clone());
    let scales = Scales { policy, environment: &environment, stack: stack.as_str(), now: call.now.date_naive() };
    // The operator's word on this stack goes before what the policy says of all.
    let registered = call.house.config.settings.stacks.get(&stack).and_then(|s| s.backup.as_ref()?.pre_update);
    let judged = places::judged(&call.house.store, current).await?;
    let updates: Vec<ServiceName> = plan.changes.iter().filter(|c| c.action == Action::Update).map(|c| c.service.clone()).collect();
    for service in updates {
        let running = planner::serving(observed, &service);
        let written = running.iter().flat_map(|c| &c.mounts).filter(|m| m.kind == "volume" && m.writable).filter_map(|m| m.name.clone());
        // A volume that a restore takes the place of stays as it is: it is its own snapshot.
        let mut volumes: BTreeSet<String> = written.filter(|v| !kept.contains(v)).collect();
        // What runs now has written them; the new release may name others.
        let mut directories = current.spec.services.get(&service).map_or_else(Vec::new, |spec| {
            let all = sources::directories(&call.house, current.project_dir.as_deref(), &judged, spec);
            all.into_iter().filter(|d| !exchanged.contains(&d.host)).collect()
        });
        let own = plan.desired.services.get(&service).and_then(|s| s.settings.backup.clone()).unwrap_or_default();
        let image = plan.images.get(&service).and_then(|i| i.id.as_deref());
        let another = running.iter().any(|c| Some(c.image_id.as_str()) != image);
        let operator = registered.unwrap_or_else(|| by_policy(policy.pre_update, another));
        let file = FileSays::read(&plan.desired, &own, &volumes);
        let must = file.all == Some(true) || registered == Some(true);
        // Less than the operator's word is not the file's to say, but where an exception lets it.
        let excepted = |source: &str| scales.excepted(PRE_UPDATE, Some(service.as_str()), source).is_some();
        let taken = |source: &str| file.of(source) == Some(true) || operator && !(file.of(source) == Some(false) && excepted(source));
        let less: Vec<String> =
            volumes.iter().chain(directories.iter().map(|d| &d.host)).filter(|s| file.of(s) == Some(false)).cloned().collect();
        volumes.retain(|v| taken(v));
        directories.retain(|d| taken(&d.host));
        let say = |verdict, because: String| Finding {
            rule: PRE_UPDATE.into(),
            verdict,
            service: Some(service.to_string()),
            path: None,
            because,
        };
        let note = |value: &str, because: String| Weighed::said(PRE_UPDATE, Some(service.to_string()), None, value, because);
        let less = less.iter().filter(|_| operator).map(|source| {
            let shown = crate::redact::line(source, NAMED);
            let end =
                if excepted(source) { "it is not snapshotted" } else { "the operator's word goes before it, and it is snapshotted first" };
            note(source, format!("the file says pre_update: false of {shown}; {end}"))
        });
        if volumes.is_empty() && directories.is_empty() {
            about.said.extend(less);
            continue;
        }
        if call.house.backups.is_none() {
            if must {
                let because = "a snapshot before the update is asked for, and this supervisor was built without backups";
                about.findings.push(say(Verdict::Deny, because.into()));
            }
            continue;
        }
        let (seen, unseen) = apart(directories);
        match not_seen(&unseen) {
            Some(because) if must => about.findings.push(say(Verdict::Deny, because)),
            Some(because) => about.said.push(note(&unseen.join(", "), because)),
            None => {}
        }
        if volumes.is_empty() && seen.is_empty() {
            continue;
        }
        let mut sizes = vec![];
        for volume in &volumes {
            sizes.push(size(call, volume).await?);
        }
        for directory in &seen {
            sizes.push(size_of(call, &directory.host, Some(directory.here.clone())).await?);
        }
        let whole = sizes.into_iter().sum::<Option<u64>>();
        let names: Vec<&str> = volumes.iter().map(String::as_str).chain(seen.iter().map(|d| d.host.as_str())).collect();
        let (value, names) = (names.join(", "), crate::redact::line(&names.join(", "), NAMED));
        if !must && registered.is_none() && policy.pre_update == PreUpdate::Small && whole.is_none_or(|bytes| bytes > PRE_UPDATE_LIMIT) {
            let why = if whole.is_some() { "it is larger than 1 GiB" } else { "its size is not known before its first backup" };
            let because = format!(
                "the image changes and {names} is not snapshotted first, since {why} (`pre_update` of the policy); call `backup` with stack {stack} before, or \
                 set x-dockwarden.backup.pre_update: true"
            );
            about.said.push(note(&value, because));
            continue;
        }
        about.said.extend(less);
        let of_volumes = plan.desired.volumes.values().filter(|v| volumes.contains(&v.name)).filter_map(|v| v.backup().quiesce);
        let quiesce = of_volumes.fold(quiesce(&own, &stack_wide), strictest);
        hold = strictest(hold, quiesce);
        let (held, cost) = (in_words(quiesce), whole.map_or("an unknown time".to_owned(), takes));
        let runs = current.spec.services.get(&service).and_then(|s| s.settings.backup.as_ref());
        let commands = runs.is_some_and(sources::has_commands);
        if commands {
            plan.data.commands.push(service.clone());
            about.findings.extend(may_not_run(call, &current.environment, &service));
        }
        let with = if commands { ", with the commands of its backup" } else { "" };
        about.findings.push(say(Verdict::Allow, format!("{names} is snapshotted first{with}")));
        if let Some(change) = plan.changes.iter_mut().find(|c| c.service == service) {
            change.expected_loss.push_str(&format!("; before that its data is snapshotted, {cost}{held}"));
        }
        for volume in volumes.iter().filter_map(|v| EngineName::new(v.as_str()).ok()) {
            if !plan.data.snapshot.contains(&volume) {
                plan.data.snapshot.push(volume);
            }
        }
        for directory in seen {
            if !plan.data.directories.contains(&directory) {
                plan.data.directories.push(directory);
            }
        }
        if unseen.is_empty() {
            plan.data.services.insert(service);
        }
    }
    plan.data.quiesce = hold;
    if hold != Quiesce::None {
        about.findings.extend(beside(call, plan).await?);
    }
    Ok(about)
}

/// Who else writes what is snapshotted: the writers of a stack that the caller may have backed up are held like this one's, nobody else's are.
async fn beside(call: &Call, plan: &mut Plan) -> Result<Vec<Finding>, CallError> {
    let house = &call.house;
    let around = Around { engine: house.engine.as_ref(), instance: house.store.instance(), own: &house.config.own_container };
    let bound = |d: &PlannedDirectory| d.real.clone().unwrap_or_else(|| d.host.clone());
    let directories: Vec<String> = plan.data.directories.iter().map(bound).collect();
    let found = writers(around, &plan.data.snapshot, &directories).await?;
    let others: BTreeSet<StackName> = found.iter().filter_map(|w| w.stack.clone()).filter(|s| *s != plan.stack).collect();
    for other in others {
        if facts::may_hold(call, &other).await? {
            plan.data.also_held.push(other);
        }
    }
    Ok(told(&found, &plan.stack, &plan.data))
}

/// What there is to say of them. Pure.
fn told(found: &[Writer], stack: &StackName, data: &DataPlan) -> Vec<Finding> {
    let others = found.iter().filter(|w| w.stack.as_ref() != Some(stack));
    let (held, free): (Vec<&Writer>, Vec<&Writer>) = others.partition(|w| w.stack.as_ref().is_some_and(|s| data.also_held.contains(s)));
    let say = |of: &[&Writer], because: &str| {
        let names: Vec<&str> = of.iter().map(|w| w.name.as_str()).collect();
        let because = format!("{} of others {because}", crate::redact::line(&names.join(", "), NAMED));
        (!of.is_empty()).then(|| Finding { rule: PRE_UPDATE.into(), verdict: Verdict::Warn, service: None, path: None, because })
    };
    let how = if data.quiesce == Quiesce::Stop { "stopped" } else { "paused" };
    let held = say(&held, &format!("may write what is snapshotted first, and is {how} as long as that takes"));
    let free = say(
        &free,
        "may write what is snapshotted first, and is not held meanwhile: what it writes then may not fit together in the snapshot; stop it first where that matters",
    );
    held.into_iter().chain(free).collect()
}

/// What the file says of snapshots before an update of one service.
struct FileSays {
    /// Of volumes, each for itself.
    volumes: BTreeMap<String, bool>,
    /// Of all others.
    all: Option<bool>,
}

impl FileSays {
    fn read(desired: &StackSpec, own: &BackupSettings, written: &BTreeSet<String>) -> Self {
        let said = desired.volumes.values().filter(|v| written.contains(&v.name));
        let volumes: BTreeMap<String, bool> = said.filter_map(|v| Some((v.name.clone(), v.backup().pre_update?))).collect();
        let any = volumes.values().any(|asked| *asked).then_some(true);
        let all = any.or(own.pre_update).or_else(|| desired.settings.backup.as_ref()?.pre_update);
        Self { volumes, all }
    }

    /// Of a volume or directory.
    fn of(&self, source: &str) -> Option<bool> {
        self.volumes.get(source).copied().or(self.all)
    }
}

/// Whether the policy has the data of a service snapshotted before it is replaced. `another`: by another image.
fn by_policy(policy: PreUpdate, another: bool) -> bool {
    match policy {
        PreUpdate::Every => true,
        PreUpdate::Image | PreUpdate::Small => another,
        PreUpdate::Asked => false,
    }
}

/// What the snapshot runs in a container is refused when it would run: said now, not in the middle.
fn may_not_run(call: &Call, environment: &str, service: &ServiceName) -> Option<Finding> {
    let of_policy = gate::request::assert_backup_command(&call.rulebook.policy, environment, &[]).into_iter().next();
    let who = &call.who;
    // Who only looks has nothing run at its word.
    if who.read_only {
        return None;
    }
    let refused = of_policy.or_else(|| {
        gate::hooks::may_run(&call.rulebook, who.agent.as_str(), who.on_behalf.iter().map(crate::model::ids::AgentName::as_str))
    })?;
    let because = format!(
        "the snapshot of {service} runs the commands of its backup, and they are refused ({}); have it done by who may run them, or an operator sets \
         pre_update = false for this stack in dockwarden.toml",
        refused.because
    );
    Some(Finding { service: Some(service.to_string()), path: Some("x-dockwarden.backup".into()), because, ..refused })
}

/// Directories that this process can read, and the names of those it cannot.
fn apart(directories: Vec<Directory>) -> (Vec<PlannedDirectory>, Vec<String>) {
    let (mut seen, mut unseen) = (vec![], vec![]);
    for Directory { host, here, real } in directories {
        match here {
            Some(here) => seen.push(PlannedDirectory { host, here, real }),
            None => unseen.push(host),
        }
    }
    (seen, unseen)
}

fn not_seen(directories: &[String]) -> Option<String> {
    (!directories.is_empty()).then(|| {
        format!(
            "{} of the host is not snapshotted before the update: the supervisor does not see it; mount it into its container at the same path (read-only is \
             enough)",
            crate::redact::line(&directories.join(", "), NAMED)
        )
    })
}

/// How writers are held during a snapshot before an update: as the file says, else paused, since files read at different moments need not fit together.
fn quiesce(own: &BackupSettings, stack: &BackupSettings) -> Quiesce {
    own.quiesce.or(stack.quiesce).unwrap_or(Quiesce::Pause)
}

fn strictest(a: Quiesce, b: Quiesce) -> Quiesce {
    let rank = |q: Quiesce| match q {
        Quiesce::None => 0,
        Quiesce::Pause => 1,
        Quiesce::Stop => 2,
    };
    if rank(a) >= rank(b) { a } else { b }
}

/// How long so many bytes take. A look at files ends past the limit: then it is the least of it.
fn takes(bytes: u64) -> String {
    format!("about {} s{}", bytes / BYTES_PER_SECOND + 1, if bytes > PRE_UPDATE_LIMIT { " or more" } else { "" })
}

fn in_words(quiesce: Quiesce) -> &'static str {
    match quiesce {
        Quiesce::None => "",
        Quiesce::Pause => " in which it is paused and its clients wait",
        Quiesce::Stop => " in which it is stopped",
    }
}

/// Bytes a volume holds, by its newest snapshot, else by a bounded look at its files; `None` when neither is to be had.
async fn size(call: &Call, volume: &str) -> Result<Option<u64>, CallError> {
    let Ok(name) = EngineName::new(volume) else { return Ok(None) };
    let Some(info) = call.house.engine.volume(&name).await? else { return Ok(None) };
    if info.driver != "local" || !info.options.is_empty() {
        return size_of(call, volume, None).await;
    }
    size_of(call, volume, Some(PathBuf::from(info.mountpoint))).await
}

/// The same of any source, whose files are at a path.
async fn size_of(call: &Call, source: &str, root: Option<PathBuf>) -> Result<Option<u64>, CallError> {
    if let Some(record) = call.house.store.backups(None, Some(source), 1).await?.first() {
        return Ok(Some(record.bytes));
    }
    let Some(root) = root else { return Ok(None) };
    // Walks a disk that may be slow.
    Ok(tokio::task::spawn_blocking(move || bytes_below(&root, PRE_UPDATE_LIMIT)).await.unwrap_or_default())
}

/// Bytes of the files below a directory, ending early past the limit (or past 100,000 entries) with one more; `None` when it cannot be read.
pub fn bytes_below(root: &Path, most: u64) -> Option<u64> {
    let (mut bytes, mut seen, mut open) = (0u64, 0usize, vec![root.to_owned()]);
    while let Some(dir) = open.pop() {
        for entry in std::fs::read_dir(&dir).ok()? {
            let entry = entry.ok()?;
            let meta = entry.metadata().ok()?;
            if meta.is_dir() {
                open.push(entry.path());
            } else {
                bytes = bytes.saturating_add(meta.len());
            }
            seen += 1;
            if bytes > most || seen > MOST_ENTRIES {
                return Some(most.saturating_add(1));
            }
        }
    }
    Some(bytes)
}

#[cfg(test)]
mod tests;
