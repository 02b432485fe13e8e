//! What passed its probe and has ended since. It is looked for directly before the switch, and told apart by why it ended: what ended by itself fails the
//! release; what ended with its engine, or with the host, is started again and proved anew, since nothing else starts it: a new container has no restart
//! policy before the switch. A one-shot is never started again.

use super::acts::Act;
use super::front::ANSWER;
use super::probe::{self, ProbeError};
use super::run::{Halt, Run};
use crate::model::ids::{EngineName, ServiceName};
use crate::model::labels;
use crate::model::observed::{ContainerDetail, RunState};
use crate::model::operation::Phase;
use crate::model::plan::{Action, Strategy};
use crate::planner::{self, Observed};
use chrono::{DateTime, Utc};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

/// How often one container is started again within an operation: on an engine that restarts more often nothing is deployed.
const MOST: u32 = 3;
/// Tags of keys that stand for no number of a copy.
const CANARY: &str = "canary";
const FRONT: &str = "front";

/// What a run knows of restarts of its engine.
#[derive(Debug, Default)]
pub(super) struct Seen {
    /// Last record of the journal when the engine was away, or when the run before this one ended: what was started by then may have ended with it.
    until: AtomicU64,
    /// As `until`, of this run alone.
    away: AtomicU64,
    /// What ran at the first look of this run, with the start of its life.
    first: Mutex<Option<BTreeMap<EngineName, Option<DateTime<Utc>>>>>,
    /// Held by whoever starts again: services of a level are probed side by side.
    one: tokio::sync::Mutex<()>,
}

impl Seen {
    /// For a run that goes on with a journal.
    pub(super) fn after(last: u64) -> Self {
        Self { until: AtomicU64::new(last), ..Self::default() }
    }

    /// Remembers the first look.
    pub(super) fn look(&self, observed: &Observed) {
        let mut first = self.first.lock().expect("no panic while held");
        first.get_or_insert_with(|| observed.containers.iter().filter(|c| up(c)).map(|c| (c.id.clone(), c.started_at)).collect());
    }
}

/// A container whose start the journal has.
struct Begun {
    service: ServiceName,
    tag: String,
    id: EngineName,
    /// Record of its latest start.
    seq: u64,
    /// Which start that was.
    times: u32,
    /// Started as a part of the release, not only again after its engine.
    own: bool,
}

fn up(c: &ContainerDetail) -> bool {
    matches!(c.state, RunState::Running | RunState::Restarting | RunState::Paused)
}

fn ended(c: &ContainerDetail) -> bool {
    matches!(c.state, RunState::Exited | RunState::Dead) && !c.oom_killed
}

impl Run {
    /// Notes that the engine was away: what was started so far may have ended with it.
    pub(super) fn note_away(&self) {
        let last = self.journal.lock().expect("no panic while held").values().map(|s| s.seq).max().unwrap_or(0);
        self.seen.until.fetch_max(last, Ordering::SeqCst);
        self.seen.away.fetch_max(last.max(1), Ordering::SeqCst);
    }

    /// Before the switch: what passed its probe must still be up. Returns what was seen.
    pub(super) async fn still_well(&self) -> Result<Observed, Halt> {
        loop {
            let observed = self.observe().await?;
            if self.start_again(&observed).await? {
                continue;
            }
            for begun in self.begun().into_iter().filter(|b| b.own) {
                let seen = observed.containers.iter().find(|c| c.id == begun.id);
                if let Err(reason) = self.well(&begun, seen) {
                    let reason = format!("after its probe had passed: {reason}");
                    return Err(self.probe_halt(&begun.id, &begun.service, ProbeError::Failed { reason, output: None }).await);
                }
            }
            return Ok(observed);
        }
    }

    fn well(&self, begun: &Begun, seen: Option<&ContainerDetail>) -> Result<(), String> {
        let seen = seen.ok_or_else(|| "it is gone".to_owned())?;
        if self.is_finished(&begun.service, seen) {
            return Ok(());
        }
        // What was there before has a life of its own behind it.
        let restarts = if self.made_by_me(&seen.labels) { 0 } else { u64::MAX };
        probe::alive_since(seen, restarts)
    }

    pub(super) fn is_finished(&self, service: &ServiceName, seen: &ContainerDetail) -> bool {
        let spec = self.plan.desired.services.get(service);
        planner::job(&self.plan.desired, service) && spec.is_some_and(|spec| probe::finished(seen, spec))
    }

    /// Starts again what ended with the engine, and proves it; whether there was anything.
    pub(super) async fn revive(&self) -> Result<bool, Halt> {
        let _one = self.seen.one.lock().await;
        let observed = self.observe().await?;
        self.start_again(&observed).await
    }

    async fn start_again(&self, observed: &Observed) -> Result<bool, Halt> {
        let phase = self.operation().phase;
        let mut any = false;
        // What others may need comes first: what serves still, then level after level.
        for (service, c) in self.old_that_ended(phase, observed) {
            let short = c.id.short().to_owned();
            let times = self.begun().iter().find(|b| b.id == c.id).map_or(1, |b| b.times);
            if times <= MOST {
                tracing::warn!(operation = %self.operation_id(), %service, "ended with the engine: started again");
                self.step(phase, format!("start:{service}:{short}:{}", times + 1), Act::Start { id: c.id.clone() }).await?;
                any = true;
            }
        }
        let gone: Vec<Begun> = self
            .begun()
            .into_iter()
            .filter(|b| b.own && b.times <= MOST && !(phase >= Phase::Switch && b.tag == CANARY))
            .filter(|b| observed.containers.iter().any(|c| c.id == b.id && self.ended_with_engine(b, c, observed)))
            .collect();
        for service in self.plan.levels.iter().flatten() {
            for b in gone.iter().filter(|b| b.service == *service) {
                tracing::warn!(operation = %self.operation_id(), %service, "ended with the engine: started again");
                self.say(format!("starting {service} again, which ended with the engine"));
                self.step(phase, format!("start:{service}:{}:{}", b.tag, b.times + 1), Act::Start { id: b.id.clone() }).await?;
                any = true;
                if b.tag == FRONT {
                    self.front_answers(&b.id, service, ANSWER).await?;
                } else {
                    Box::pin(self.prove(&b.id, service, self.spec(service)?, 0, 0)).await?;
                }
            }
        }
        Ok(any)
    }

    /// Containers whose start is recorded, fronts before those behind them.
    fn begun(&self) -> Vec<Begun> {
        let journal = self.journal.lock().expect("no panic while held");
        let mut found: BTreeMap<(String, String), Begun> = BTreeMap::new();
        for step in journal.values().filter(|s| s.done.is_some() && s.key.starts_with("start:")) {
            let Ok(Act::Start { id }) = serde_json::from_value::<Act>(step.intent.clone()) else { continue };
            let parts: Vec<&str> = step.key.split(':').collect();
            let (service, tag, times) = match parts[..] {
                [_, service, tag] => (service, tag, 1),
                [_, service, tag, times] => (service, tag, times.parse().unwrap_or(1)),
                _ => continue,
            };
            let Ok(name) = ServiceName::new(service) else { continue };
            let entry = found.entry((service.to_owned(), tag.to_owned()));
            let begun = entry.or_insert_with(|| Begun { service: name, tag: tag.to_owned(), id, seq: 0, times: 0, own: false });
            begun.seq = begun.seq.max(step.seq);
            begun.times = begun.times.max(times);
            begun.own |= parts.len() == 3;
        }
        let mut all: Vec<Begun> = found.into_values().collect();
        all.sort_by_key(|b| b.tag != FRONT);
        all
    }

    /// Whether a container that was started and has ended since did so because its engine ended.
    fn ended_with_engine(&self, begun: &Begun, c: &ContainerDetail, observed: &Observed) -> bool {
        ended(c)
            && !self.is_finished(&begun.service, c)
            && (self.seen.until.load(Ordering::SeqCst) >= begun.seq || self.others_began_anew(c, observed))
    }

    /// Whether all that ran at the first look and that this operation left alone has another life since this one began. An engine that restarts behind a
    /// socket which systemd holds is never seen to be away.
    fn others_began_anew(&self, c: &ContainerDetail, observed: &Observed) -> bool {
        let touched = self.touched();
        let first = self.seen.first.lock().expect("no panic while held").clone().unwrap_or_default();
        let since = |at: Option<DateTime<Utc>>| at.is_some() && at >= c.started_at;
        let anew = |(id, began): &(&EngineName, &Option<DateTime<Utc>>)| {
            let now = observed.containers.iter().find(|o| o.id == **id);
            now.is_some_and(|o| if up(o) { o.started_at != **began && since(o.started_at) } else { since(o.finished_at) })
        };
        let mut others = first.iter().filter(|(id, _)| **id != c.id && !touched.contains(*id)).peekable();
        others.peek().is_some() && others.all(|o| anew(&o))
    }

    /// What an act of this operation starts or ends.
    fn touched(&self) -> BTreeSet<EngineName> {
        let journal = self.journal.lock().expect("no panic while held");
        let acts = journal.values().filter_map(|s| serde_json::from_value::<Act>(s.intent.clone()).ok());
        acts.filter_map(|act| match act {
            Act::Start { id } | Act::Stop { id, .. } | Act::Restart { id, .. } | Act::Remove { id, .. } | Act::RunOnce { id, .. } => {
                Some(id)
            }
            _ => None,
        })
        .collect()
    }

    /// Before the switch: what serves still, has no restart policy by its file, and ended with the engine. Only of services whose containers this
    /// operation does not end before the switch: those must not come up beside their successors.
    fn old_that_ended(&self, phase: Phase, observed: &Observed) -> Vec<(ServiceName, ContainerDetail)> {
        let first = self.seen.first.lock().expect("no panic while held").clone().unwrap_or_default();
        let Some(current) = self.current.as_ref().filter(|_| phase < Phase::Switch) else { return vec![] };
        let beside = |service: &ServiceName| {
            let change = self.plan.changes.iter().find(|c| c.service == *service);
            let stays = change.is_some_and(|c| match c.action {
                Action::Unchanged => true,
                Action::Update => {
                    matches!(c.strategy, Strategy::Front | Strategy::Canary | Strategy::BlueGreen | Strategy::Handover | Strategy::Alias)
                }
                Action::Create | Action::Restart | Action::Scale | Action::Remove | Action::Stop => false,
            });
            let own = current.spec.services.get(service);
            let alone = own.is_some_and(|s| !current.spec.services.keys().any(|other| s.shares(other)));
            stays && alone && !self.plan.makes_way.contains_key(service) && !planner::job(&current.spec, service)
        };
        let touched: BTreeSet<EngineName> = {
            let begun: Vec<EngineName> = self.begun().into_iter().map(|b| b.id).collect();
            self.touched().into_iter().filter(|id| !begun.contains(id)).collect()
        };
        let away = self.seen.away.load(Ordering::SeqCst) > 0;
        let of = |c: &ContainerDetail| c.labels.get(labels::SERVICE).and_then(|s| ServiceName::new(s.as_str()).ok());
        let mut found = vec![];
        for c in observed.containers.iter().filter(|c| ended(c) && c.restart_policy == "no" && first.contains_key(&c.id)) {
            let serving = c.labels.get(labels::ROLE).map(String::as_str) == Some(labels::ROLE_SERVING);
            let Some(service) = of(c).filter(|s| serving && !self.made_by_me(&c.labels) && beside(s)) else { continue };
            if !planner::one_shot(&current.spec, &service) && !touched.contains(&c.id) && (away || self.others_began_anew(c, observed)) {
                found.push((service, c.clone()));
            }
        }
        found
    }
}
