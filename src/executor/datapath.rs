//! The data path of a release that migrates: once its new containers were well on the data, nothing automatic starts an older version on it.
//! A failure after that leaves the operation in need of attention, with the ways on and what each loses.

use super::acts::Act;
use super::run::{Halt, Run};
use crate::model::ids::ServiceName;
use crate::model::operation::{Phase, StepRecord};
use crate::model::spec::Restart;
use std::collections::BTreeSet;

/// Begins the keys of the markers.
const MARK: &str = "data:";

/// Whether a journal holds a marker: a takeover then goes on instead of back.
pub(super) fn taken(steps: &[StepRecord]) -> bool {
    steps.iter().any(|s| s.key.starts_with(MARK))
}

/// The service a step is about, by its key.
fn service_of(key: &str) -> Option<&str> {
    key.split(':').nth(1)
}

/// What a failure after the data path was taken leaves, and what can be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Stopped {
    /// In words, for the operation.
    pub message: String,
    /// Services whose new containers stay, although the release does not serve: their old ones must not see the data again.
    pub keep: BTreeSet<String>,
    /// The new release serves already: nothing at all is taken back.
    pub switched: bool,
}

impl Run {
    /// Marks that the new version of a service was well on the data, if the plan says that it migrates.
    pub(super) async fn data_path(&self, service: &ServiceName) -> Result<(), Halt> {
        let Some(why) = self.plan.migrates.get(service) else { return Ok(()) };
        let act = Act::DataPath { service: service.clone(), why: why.clone() };
        self.step(Phase::StartNew, format!("{MARK}{service}"), act).await?;
        Ok(())
    }

    /// How far a failure may be undone; `None` = all the way.
    pub(super) fn stops_before_data(&self) -> Option<Stopped> {
        let journal = self.journal.lock().expect("no panic while held");
        let migrated: Vec<&str> = journal.keys().filter_map(|k| k.strip_prefix(MARK)).collect();
        if migrated.is_empty() {
            return None;
        }
        let switched = journal.contains_key("switch");
        let stopped_old = |s: &str| journal.keys().any(|k| k.starts_with(&format!("stop:{s}:")));
        // Under its name before, where it succeeds a service that is no longer in the file.
        let before = |s: &str| -> Vec<&str> {
            let gone = self.plan.makes_way.iter().filter(|(_, heirs)| heirs.iter().any(|h| h.as_str() == s));
            gone.map(|(gone, _)| gone.as_str()).filter(|gone| stopped_old(gone)).collect()
        };
        let kept: Vec<&str> = migrated.iter().copied().filter(|s| stopped_old(s) || !before(s).is_empty()).collect();
        let keep: BTreeSet<String> = kept.iter().flat_map(|s| before(s).into_iter().chain([*s])).map(str::to_owned).collect();
        let why: Vec<String> = migrated
            .iter()
            .map(|s| {
                let why = ServiceName::new(*s).ok().and_then(|n| self.plan.migrates.get(&n).cloned()).unwrap_or_default();
                format!("{s} ({why})")
            })
            .collect();
        let now = match () {
            () if switched => format!("release {} keeps serving", self.plan.to_release),
            () if keep.is_empty() => "what ran before serves, on the changed data".to_owned(),
            () => format!("what ran before serves, with the new {}", kept.join(", ")),
        };
        let back = self.plan.from_release.map_or_else(|| "an older release".into(), |r| format!("release {r}"));
        let message = format!(
            "the data was changed by {}, so nothing older was started on it: {now}. Ways on: `deploy` a corrected version (loses nothing); \
             `rollback` to {back} (old code on changed data: it may fail or damage it); `rollback` to {back} with a snapshot as data (loses what was \
             written since the snapshot)",
            why.join(", ")
        );
        Some(Stopped { message, keep, switched })
    }

    /// Whether undoing leaves a step as it is: those of kept services, and what they stand on.
    pub(super) fn kept(&self, keep: &BTreeSet<String>, step: &StepRecord) -> bool {
        let stands_on = || step.phase == Phase::Prepare || self.brought_for(&step.key, keep);
        !keep.is_empty() && (stands_on() || service_of(&step.key).is_some_and(|s| keep.contains(s)))
    }

    /// Kept containers get the file's restart policy: they serve until someone decides.
    pub(super) async fn keep_serving(&self, keep: &BTreeSet<String>) -> Result<(), Halt> {
        for name in keep {
            let Ok(service) = ServiceName::new(name.as_str()) else { continue };
            let Some(spec) = self.plan.desired.services.get(&service).filter(|s| s.restart != Restart::No) else { continue };
            for number in 1..=spec.replicas {
                if let Some(id) = self.created(&format!("create:{service}:{number}")) {
                    let act = Act::SetRestart { id, from: Restart::No, to: spec.restart, up: false };
                    self.step(Phase::Switch, format!("keep:{service}:{number}"), act).await?;
                }
            }
        }
        Ok(())
    }
}
