//! A drill: a snapshot restored into a scratch volume, compared with what was backed up, and on request used by a container of the service's own image without
//! any network. What was made for it is removed; the result is recorded, a failed one above all. Deliberately absent: anything that touches live data.

use super::acts::{Doer, remove_made};
use super::{BackupError, CheckReport, Failure, HELPER_LABEL, Trouble, command, copies, helper};
use crate::engine::{ContainerSpec, Engine, EngineMount};
use crate::executor::{probe, restore};
use crate::gate::Permit;
use crate::gate::request::{RequestFacts, assert_own};
use crate::model::ids::{EngineName, ImageRef, OperationId, ServiceName};
use crate::model::labels;
use crate::model::release::Release;
use crate::model::spec::MountKind;
use crate::redact;
use crate::store::backup::{BackupRecord, CheckRecord, DrillRecord};
use chrono::{DateTime, Utc};
use std::collections::BTreeMap;

/// Differences and causes kept of a failed drill.
const SHOWN: usize = 10;
/// Most of what a container said that is kept, bytes.
const EVIDENCE: usize = 2_000;

/// The service of a release that uses a volume, and where it has it.
pub fn user_of(release: &Release, volume: &str) -> Option<(ServiceName, String)> {
    let key = release.spec.volumes.iter().find(|(_, v)| v.name == volume || v.declared() == volume).map(|(k, _)| k.as_str())?;
    release.spec.services.iter().filter(|(_, s)| s.active && s.image.is_some()).find_map(|(name, s)| {
        let mount = s.mounts.iter().find(|m| m.kind == MountKind::Volume && m.source.as_deref() == Some(key) && !m.read_only)?;
        Some((name.clone(), mount.target.clone()))
    })
}

/// Runs a drill and records what came of it. A snapshot that does not come back is a result, not an error.
pub(super) async fn run(
    doer: &Doer<'_>,
    record: &BackupRecord,
    scratch: &EngineName,
    service: Option<&ServiceName>,
    copy: Option<&str>,
) -> Result<DrillRecord, BackupError> {
    let begun = Utc::now();
    let (hands, stored) = match copy {
        Some(copy) => copies::instead(doer, copy, record).await?,
        None => (doer.hands.clone(), record.clone()),
    };
    let engine = doer.hands.engine.as_ref();
    // Left by an earlier try of this very step.
    remove(engine, &doer.hands.instance, doer.permit, doer.operation, scratch).await?;
    let mut result = DrillRecord {
        snapshot_id: record.snapshot_id.clone(),
        stack: record.stack.clone(),
        volume: record.volume.clone(),
        at: begun,
        passed: false,
        files: 0,
        bytes: 0,
        duration_ms: 0,
        probed: None,
        detail: String::new(),
        evidence: None,
        operation: doer.operation.to_string(),
        copy: copy.map(str::to_owned),
    };
    match restore::restore_into(&hands, doer.permit, &stored, scratch, Some(marks(doer)), None).await {
        Ok(outcome) if outcome.verified => {
            (result.files, result.bytes, result.passed) = (outcome.files, outcome.bytes, true);
            if !outcome.by_sums {
                result.detail = format!("restored whole, {}", restore::BY_PIECES);
            }
            if let Some(service) = service {
                result.probed = Some(service.to_string());
                if let Err(Unfit { cause, said }) = used(doer, record, scratch, service).await? {
                    (result.passed, result.detail) = (false, format!("restored whole, but service {service} does not run on it: {cause}"));
                    let source = format!("service {service} on the restored data");
                    result.evidence = (!said.trim().is_empty()).then(|| redact::envelope(source, &said, EVIDENCE));
                }
            }
        }
        Ok(outcome) => {
            let differences: Vec<String> = outcome.differences.into_iter().take(SHOWN).collect();
            result.detail = "what came back differs from the snapshot".to_owned();
            // Names that a container may have chosen.
            result.evidence = Some(redact::envelope(format!("files of {}", record.volume), &differences.join("\n"), EVIDENCE));
        }
        Err(e) if of_the_snapshot(&e) => result.detail = e.to_string(),
        Err(e) => return Err(e),
    }
    remove(engine, &doer.hands.instance, doer.permit, doer.operation, scratch).await?;
    result.duration_ms = u64::try_from((Utc::now() - begun).num_milliseconds()).unwrap_or_default();
    if !result.passed {
        tracing::error!(snapshot = %result.snapshot_id, volume = %result.volume, detail = %result.detail, "a drill failed");
    }
    doer.store.put_drill(&result).await.map_err(|e| BackupError::Io { path: "state.db".to_owned(), detail: e.to_string() })?;
    Ok(result)
}

/// Whether an error says that the snapshot does not come back, and not that somebody else was at work, went away or had no room or memory.
fn of_the_snapshot(error: &BackupError) -> bool {
    use Failure::{Archive, Internal, Key, NoSuchPath, Remote, Repository, UnknownSnapshot, WrongKey};
    match error {
        BackupError::Worker(Remote { trouble, .. }) => *trouble == Trouble::Gone,
        BackupError::Worker(failure) => matches!(
            failure,
            Archive { .. }
                | Internal { .. }
                | Key { .. }
                | NoSuchPath { .. }
                | Repository { .. }
                | UnknownSnapshot { .. }
                | WrongKey { .. }
        ),
        _ => false,
    }
}

/// Whether the repository lists what was just taken, with the counts that were recorded; recorded itself.
pub(super) async fn count(doer: &Doer<'_>, taken: &[BackupRecord]) -> Result<CheckRecord, BackupError> {
    let begun = Utc::now();
    let listed = doer.hands.house.list().await?;
    let mut wrong = vec![];
    for record in taken {
        let there = listed.iter().find(|s| s.snapshot_id.as_str() == record.snapshot_id);
        let same = there.is_some_and(|s| (s.files, s.bytes, s.state.as_str()) == (record.files, record.bytes, record.state.as_str()));
        if !same {
            wrong.push(format!("{} of {} is not in the repository as it was recorded", record.snapshot_id, record.volume));
        }
    }
    checked(doer, 1, None, begun, CheckReport { wrong, strange: vec![] }, None).await
}

/// Checks the repository and reads a part of its data; recorded.
pub(super) async fn check(doer: &Doer<'_>, part: (u32, u32), copy: Option<&str>) -> Result<CheckRecord, BackupError> {
    let begun = Utc::now();
    let house = match copy {
        Some(copy) => &doer.hands.house.second(copy)?.house,
        None => &doer.hands.house,
    };
    house.ensure().await?;
    // Most houses forget nothing for weeks, and what a killed backup left would stay and be found strange every day.
    if let Err(e) = house.tidy().await {
        tracing::warn!(place = house.place(), error = %e, "what interrupted backups left was not removed");
    }
    let found = house.check_part(part).await?;
    checked(doer, 2, Some(format!("{}/{}", part.0, part.1)), begun, found, copy).await
}

async fn checked(
    doer: &Doer<'_>,
    level: u32,
    part: Option<String>,
    at: DateTime<Utc>,
    found: CheckReport,
    copy: Option<&str>,
) -> Result<CheckRecord, BackupError> {
    let (passed, operation) = (found.wrong.is_empty(), doer.operation.to_string());
    // What is strange is told where nothing is wrong.
    let told = if passed { found.strange } else { found.wrong };
    let detail = told.into_iter().take(SHOWN).collect::<Vec<_>>().join("; ");
    let duration_ms = u64::try_from((Utc::now() - at).num_milliseconds()).unwrap_or_default();
    let record = CheckRecord { level, at, passed, part, duration_ms, detail, operation, copy: copy.map(str::to_owned) };
    if !passed {
        tracing::error!(level, detail = %record.detail, "a check of the backup repository failed");
    }
    doer.store.put_check(&record).await.map_err(|e| BackupError::Io { path: "state.db".to_owned(), detail: e.to_string() })?;
    Ok(record)
}

/// Labels of what a drill makes; a start after a crash removes whatever carries them.
fn marks(doer: &Doer<'_>) -> BTreeMap<String, String> {
    BTreeMap::from([
        (labels::INSTANCE.to_owned(), doer.hands.instance.clone()),
        (labels::OPERATION.to_owned(), doer.operation.to_string()),
        (HELPER_LABEL.to_owned(), "drill".to_owned()),
    ])
}

/// Why a service does not run on what came back.
#[derive(Debug)]
pub(super) struct Unfit {
    /// In words, without text of the container.
    pub(super) cause: String,
    /// What the container said: anything.
    pub(super) said: String,
}

impl From<String> for Unfit {
    fn from(cause: String) -> Self {
        Self { cause, said: String::new() }
    }
}

/// Runs the service on the scratch volume: its image, command, environment and health check, no network, no other mount, no privilege. `Err` inside = why not.
async fn used(
    doer: &Doer<'_>,
    record: &BackupRecord,
    scratch: &EngineName,
    service: &ServiceName,
) -> Result<Result<(), Unfit>, BackupError> {
    let missing = |what: &str| Ok(Err(format!("{what} is not known any more").into()));
    let Some(stack) = &doer.stack else { return missing("its stack") };
    let failed = |e: crate::store::StoreError| BackupError::Io { path: "state.db".to_owned(), detail: e.to_string() };
    let current = match doer.store.stack(stack).await.map_err(failed)?.and_then(|r| r.current) {
        Some(number) => doer.store.release(stack, number).await.map_err(failed)?,
        None => None,
    };
    let Some(release) = current else { return missing("its release") };
    let (Some(spec), Some((_, target))) = (release.spec.services.get(service), user_of(&release, &record.volume)) else {
        return missing("the service");
    };
    let image_id = release.images.get(service).and_then(|i| i.id.as_deref()).unwrap_or_default();
    let Ok(image) = ImageRef::new(image_id) else { return missing("its image") };
    let mount = EngineMount { source: Some(scratch.to_string()), nocopy: true, ..EngineMount::new(MountKind::Volume, target) };
    let request = ContainerSpec {
        command: spec.command.clone(),
        entrypoint: spec.entrypoint.clone(),
        env: spec.environment.iter().filter_map(|(k, v)| v.as_ref().map(|v| format!("{k}={v}"))).collect(),
        labels: marks(doer),
        user: spec.user.clone(),
        working_dir: spec.working_dir.clone(),
        healthcheck: spec.healthcheck.clone(),
        mounts: vec![mount],
        network_mode: Some("none".to_owned()),
        nano_cpus: spec.resources.nano_cpus,
        memory: spec.resources.memory,
        pids: spec.resources.pids,
        cap_drop: spec.cap_drop.clone(),
        security_opt: vec!["no-new-privileges".to_owned()],
        init: spec.init,
        read_only: spec.read_only,
        stop_signal: spec.stop_signal.clone(),
        ..ContainerSpec::new(scratch.clone(), image)
    };
    let engine = doer.hands.engine.as_ref();
    let mut allowed = RequestFacts::own(image_id, spec.user.clone());
    allowed.volumes.insert(scratch.to_string());
    helper::judged(assert_own(&request, &allowed))?;
    let id = engine.create_container(doer.permit, &request).await?;
    engine.start(doer.permit, &id).await?;
    match probe::healthy(engine, doer.permit, &id, spec, false).await {
        Ok(()) => match spec.settings.backup.as_ref().and_then(|b| b.verify.as_ref()) {
            Some(verify) => command::verified(engine, doer.permit, &doer.judge, (service, &release.environment), &id, &verify.0).await,
            None => Ok(Ok(())),
        },
        Err(probe::ProbeError::Engine(e)) => Err(e.into()),
        Err(e) => {
            let kept = probe::evidence(engine, &id, service.as_str(), &e).await;
            let logs: Vec<String> = kept.logs.into_iter().rev().take(SHOWN).rev().collect();
            Ok(Err(Unfit { cause: e.to_string(), said: logs.join("\n") }))
        }
    }
}

/// Removes what a drill made.
pub(super) async fn remove(
    engine: &dyn Engine,
    instance: &str,
    permit: &Permit,
    operation: &OperationId,
    scratch: &EngineName,
) -> Result<(), BackupError> {
    if let Some(container) = engine.container(scratch).await?
        && container.labels.get(labels::OPERATION).is_some_and(|o| o == operation.as_str())
    {
        engine.remove_container(permit, &container.id, false).await?;
    }
    remove_made(engine, instance, permit, operation, scratch).await
}
