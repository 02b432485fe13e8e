//! What a plan means for data: volumes a stack took into use by a restore stay in use in later releases; services about to be replaced get their data
//! snapshotted first; a rollback keeps the data, or brings a snapshot back beside it. Reads only; data is never changed without being asked for.

use super::error::ErrorCode;
use super::{Call, CallError, facts, sources};
use crate::executor::backup::{Around, Directory, Writer, writers};
use crate::executor::places;
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
/// Rule of the findings about snapshots before an update.
pub const RULE: &str = "backup.pre_update";
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

/// Writes into the plan which volumes are snapshotted first and what that costs, and what a restore changes. Returns what there is to say.
///
/// # Errors
/// The store's and the engine's.
pub async fn make_safe(call: &Call, plan: &mut Plan, observed: &Observed, current: Option<&Release>) -> Result<Vec<Finding>, CallError> {
    bring::tell(plan);
    let Some(current) = current.filter(|_| matches!(plan.kind, PlanKind::Deploy | PlanKind::Rollback)) else { return Ok(vec![]) };
    let mut findings = vec![];
    let mut hold = Quiesce::None;
    let kept: BTreeSet<String> = plan.data.restore.iter().map(|r| r.live.clone()).collect();
    // A directory that is exchanged is snapshotted right before that.
    let exchanged: BTreeSet<String> = plan.data.exchange.iter().map(|e| e.host.clone()).collect();
    let (stack_wide, stack) = (sources::of_stack(&call.house.config, &plan.desired), plan.stack.clone());
    let policy = call.house.rulebook.load().policy.pre_update;
    let judged = places::judged(&call.house.store, current).await?;
    let updates: Vec<ServiceName> = plan.changes.iter().filter(|c| c.action == Action::Update).map(|c| c.service.clone()).collect();
    for service in updates {
        let running = planner::serving(observed, &service);
        let written = running.iter().flat_map(|c| &c.mounts).filter(|m| m.kind == "volume" && m.writable).filter_map(|m| m.name.clone());
        // A volume that a restore takes the place of stays as it is: it is its own snapshot.
        let said: BTreeMap<&str, bool> =
            plan.desired.volumes.values().filter_map(|v| Some((v.name.as_str(), v.backup().pre_update?))).collect();
        let volumes: BTreeSet<String> = written.filter(|v| !kept.contains(v) && said.get(v.as_str()) != Some(&false)).collect();
        // What runs now has written them; the new release may name others.
        let directories = current.spec.services.get(&service).map_or_else(Vec::new, |spec| {
            let all = sources::directories(&call.house, current.project_dir.as_deref(), &judged, spec);
            all.into_iter().filter(|d| !exchanged.contains(&d.host)).collect()
        });
        if volumes.is_empty() && directories.is_empty() {
            continue;
        }
        let own = plan.desired.services.get(&service).and_then(|s| s.settings.backup.clone()).unwrap_or_default();
        let asked =
            volumes.iter().any(|v| said.get(v.as_str()) == Some(&true)).then_some(true).or(own.pre_update).or(stack_wide.pre_update);
        let image = plan.images.get(&service).and_then(|i| i.id.as_deref());
        let another = running.iter().any(|c| Some(c.image_id.as_str()) != image);
        let say =
            |verdict, because: String| Finding { rule: RULE.into(), verdict, service: Some(service.to_string()), path: None, because };
        if !wanted(asked, policy, another) {
            continue;
        }
        if call.house.backups.is_none() {
            if asked == Some(true) {
                let because = "a snapshot before the update is asked for, and this supervisor was built without backups";
                findings.push(say(Verdict::Deny, because.into()));
            }
            continue;
        }
        let (seen, unseen) = apart(directories);
        let verdict = if asked == Some(true) { Verdict::Deny } else { Verdict::Warn };
        findings.extend(not_seen(&unseen).map(|because| say(verdict, because)));
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
        let names = crate::redact::line(&names.join(", "), NAMED);
        if asked.is_none() && policy == PreUpdate::Small && whole.is_none_or(|bytes| bytes > PRE_UPDATE_LIMIT) {
            let why = if whole.is_some() { "it is larger than 1 GiB" } else { "its size is not known before its first backup" };
            let because = format!(
                "the image changes and {names} is not snapshotted first, since {why} (`pre_update` of the policy); call `backup` with stack {stack} before, or \
                 set x-dockwarden.backup.pre_update: true (or false to say that this is meant)"
            );
            findings.push(say(Verdict::Warn, because));
            continue;
        }
        let of_volumes = plan.desired.volumes.values().filter(|v| volumes.contains(&v.name)).filter_map(|v| v.backup().quiesce);
        let quiesce = of_volumes.fold(quiesce(&own, &stack_wide), strictest);
        hold = strictest(hold, quiesce);
        let (held, cost) = (in_words(quiesce), whole.map_or("an unknown time".to_owned(), takes));
        let runs = current.spec.services.get(&service).and_then(|s| s.settings.backup.as_ref());
        let commands = runs.is_some_and(sources::has_commands);
        if commands {
            plan.data.commands.push(service.clone());
        }
        let with = if commands { ", with the commands of its backup" } else { "" };
        findings.push(say(Verdict::Allow, format!("{names} is snapshotted first{with}")));
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
    }
    plan.data.quiesce = hold;
    if hold != Quiesce::None {
        findings.extend(beside(call, plan).await?);
    }
    Ok(findings)
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
        (!of.is_empty()).then(|| Finding { rule: RULE.into(), verdict: Verdict::Warn, service: None, path: None, because })
    };
    let how = if data.quiesce == Quiesce::Stop { "stopped" } else { "paused" };
    let held = say(&held, &format!("may write what is snapshotted first, and is {how} as long as that takes"));
    let free = say(
        &free,
        "may write what is snapshotted first, and is not held meanwhile: what it writes then may not fit together in the snapshot; stop it first where that matters",
    );
    held.into_iter().chain(free).collect()
}

/// Whether the data of a service is snapshotted before it is replaced: as its file says, else as the policy does. `another`: by another image.
fn wanted(asked: Option<bool>, policy: PreUpdate, another: bool) -> bool {
    asked.unwrap_or(match policy {
        PreUpdate::Every => true,
        PreUpdate::Image | PreUpdate::Small => another,
        PreUpdate::Asked => false,
    })
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
             enough), or set x-dockwarden.backup.pre_update: false to say that this is meant",
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
