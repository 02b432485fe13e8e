//! Work that nobody asked for: schedules and events of this host become tasks, as the operator wrote in dockwarden.toml. One that is still at work, or was
//! just given, is not given again: a flapping service must not flood the queue. Deliberately absent: signed requests (`call::hooks`).

use super::schedule;
use crate::call::House;
use crate::call::error::ErrorCode;
use crate::call::hooks::{LEAST_SECRET, wish};
use crate::call::tasks::submit;
use crate::executor::backup::partial;
use crate::model::ids::{StackName, TaskId};
use crate::model::operation::OperationState;
use crate::model::trigger::{EventKind, Happened, On, Trigger};
use crate::store::StoreResult;
use crate::store::audit::AuditQuery;
use chrono::{DateTime, TimeDelta, Utc};
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// Pause between looks at the store and the clock.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// Events about one thing within this time are one, unless the trigger says otherwise.
const COOLDOWN_S: u32 = 300;
/// What happened longer ago is no news, after however long a pause.
const NEWS: TimeDelta = TimeDelta::hours(6);
/// The entry of a task that was given, and how many of them are read at the start.
const FIRED: &str = "trigger_fired";
const REMEMBERED: usize = 500;
/// Signals that wait for another try.
const MOST_LATE: usize = 512;
/// Since when this home looks: its history sets nothing off.
const SINCE: &str = "triggers:since";
/// Incidents and operations that were acted on, or dropped as too soon after another: a start must not take them up again.
const HANDLED: &str = "triggers:handled";
/// Who does the shipped maintenance.
const KEEPER: &str = "stack-keeper";
/// Shipped maintenance: name of trigger and skill, and when: off the full hour, the small hours of Monday and of the second of the month, and the first
/// Tuesday of a month when people are there who can approve.
const MAINTENANCE: [(&str, &str); 3] =
    [("weekly-review", "41 4 * * 1"), ("monthly-check", "23 2 2 * *"), ("monthly-refresh", "23 9 * * 2#1")];

/// What was given last about one thing.
struct Given {
    task: TaskId,
    at: DateTime<Utc>,
}

/// Triggers and what they did since the start.
pub(super) struct Triggers {
    house: Arc<House>,
    all: Vec<Trigger>,
    handled: BTreeSet<String>,
    /// What of it is on disk; `None` before that was read.
    noted: Option<BTreeSet<String>>,
    given: BTreeMap<(String, String), Given>,
    /// What was given before the start was read.
    remembers: bool,
    /// Signals whose task could not be given: nobody sends them again.
    late: Vec<Happened>,
}

/// Runs until `shutdown`.
pub async fn run(house: Arc<House>, shutdown: CancellationToken) {
    let mut triggers = Triggers::new(house.clone());
    triggers.check_secrets().await;
    let mut look = tokio::time::interval(LOOK_EVERY);
    look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = house.desk.news() => {}
            _ = look.tick() => {}
        }
        triggers.round(Utc::now()).await;
    }
}

/// The shipped maintenance, where the agent and the skills it needs are there.
fn maintenance(house: &House) -> Vec<Trigger> {
    if !house.config.settings.tasks.maintenance {
        return vec![];
    }
    let (book, prompts) = (house.rulebook.load(), house.prompts.load());
    let Some(keeper) = book.agents.get(KEEPER) else { return vec![] };
    let own = |name: &str| house.config.settings.triggers.iter().any(|t| t.name == name);
    let shipped = MAINTENANCE.iter().filter(|(name, _)| !own(name) && prompts.iter().any(|p| p.name == *name));
    let trigger = |(name, cron): &(&str, &str)| Trigger {
        name: (*name).to_owned(),
        on: On { cron: Some((*cron).to_owned()), ..On::default() },
        agent: keeper.name.clone(),
        skill: Some((*name).to_owned()),
        prompt: None,
        input: Map::new(),
        stack: None,
        cooldown_s: None,
    };
    shipped.map(trigger).collect()
}

/// Errors of how a trigger is written: another try mends nothing.
fn wrong(code: ErrorCode) -> bool {
    match code {
        ErrorCode::InvalidArgument | ErrorCode::NotFound | ErrorCode::Denied | ErrorCode::Conflict => true,
        ErrorCode::RateLimited
        | ErrorCode::Busy
        | ErrorCode::StorageFull
        | ErrorCode::Internal
        | ErrorCode::EngineUnavailable
        | ErrorCode::UnknownTool
        | ErrorCode::StalePlan
        | ErrorCode::Preflight
        | ErrorCode::Failed
        | ErrorCode::RegistryUnauthorized => false,
    }
}

/// What is handled once.
fn once(trigger: &Trigger, event: &Happened) -> String {
    format!("{}:{}", trigger.name, event.id)
}

impl Triggers {
    pub(super) fn new(house: Arc<House>) -> Self {
        let mut all = house.config.settings.triggers.clone();
        all.extend(maintenance(&house));
        Self { house, all, handled: BTreeSet::new(), noted: None, given: BTreeMap::new(), remembers: false, late: vec![] }
    }

    /// A secret that cannot be used is said at the start, not when the first request is refused.
    async fn check_secrets(&self) {
        for trigger in &self.all {
            let Some(file) = &trigger.on.secret_file else { continue };
            match tokio::fs::read(file).await {
                Ok(secret) if secret.trim_ascii().len() >= LEAST_SECRET => {}
                Ok(_) => {
                    tracing::error!(trigger = trigger.name, "its secret is shorter than {LEAST_SECRET} bytes: its requests are refused")
                }
                Err(e) => tracing::error!(trigger = trigger.name, error = %e, "its secret cannot be read: its requests are refused"),
            }
        }
    }

    /// One round; each trigger reports its own failure.
    pub(super) async fn round(&mut self, now: DateTime<Utc>) {
        if let Err(e) = self.remember().await {
            return tracing::error!(error = %e, "what was given before could not be read; nothing is given until it can");
        }
        for trigger in self.all.clone().iter().filter(|t| t.on.cron.is_some()) {
            if let Err(e) = self.clock(trigger, now).await {
                tracing::error!(trigger = trigger.name, error = %e, "a scheduled task could not be given");
            }
        }
        let listens = self.all.iter().any(|t| t.on.event.is_some());
        let signals = self.house.desk.take_news();
        if !listens {
            return;
        }
        let recorded = match self.read_handled().await {
            Ok(()) => self.recorded(now).await,
            Err(e) => Err(e),
        };
        let recorded = recorded.unwrap_or_else(|e| {
            tracing::error!(error = %e, "what happened could not be read; it is looked for again");
            vec![]
        });
        for event in std::mem::take(&mut self.late).into_iter().chain(signals) {
            if !self.happened(&event, now).await {
                self.late.push(event);
            }
        }
        // As at the desk: what is too much is dropped, oldest first.
        self.late.drain(..self.late.len().saturating_sub(MOST_LATE));
        for event in &recorded {
            self.happened(event, now).await;
        }
        if let Err(e) = self.note_handled(&recorded).await {
            tracing::error!(error = %e, "what was acted on could not be noted; a restart may act on it again");
        }
    }

    /// What was given before the start: it may be at work still, or was given just now.
    async fn remember(&mut self) -> StoreResult<()> {
        if self.remembers || self.all.is_empty() {
            return Ok(());
        }
        let query = AuditQuery { tool: Some(FIRED.to_owned()), limit: REMEMBERED, ..AuditQuery::default() };
        for row in self.house.store.audit_rows(&query).await? {
            let text = |key: &str| row.detail[key].as_str().map(str::to_owned);
            let task = text("task").and_then(|id| TaskId::new(id).ok());
            let (Some(trigger), Some(about), Some(task)) = (text("trigger"), text("about"), task) else { continue };
            // Newest first.
            self.given.entry((trigger, about)).or_insert(Given { task, at: row.at });
        }
        self.remembers = true;
        Ok(())
    }

    /// What was handled before the start.
    async fn read_handled(&mut self) -> StoreResult<()> {
        if self.noted.is_some() {
            return Ok(());
        }
        let noted = self.house.store.value(HANDLED).await?.unwrap_or_default();
        let noted: BTreeSet<String> = noted.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect();
        self.handled.extend(noted.iter().cloned());
        self.noted = Some(noted);
        Ok(())
    }

    /// Notes what was handled of what the store still tells of: no more than that is looked at again.
    async fn note_handled(&mut self, recorded: &[Happened]) -> StoreResult<()> {
        let keys = recorded.iter().flat_map(|e| self.all.iter().filter(|t| t.fits(e)).map(|t| once(t, e)));
        let now: BTreeSet<String> = keys.filter(|k| self.handled.contains(k)).collect();
        if recorded.is_empty() || self.noted.as_ref() == Some(&now) {
            return Ok(());
        }
        self.house.store.set_value(HANDLED, &json!(now)).await?;
        self.noted = Some(now);
        Ok(())
    }

    async fn clock(&mut self, trigger: &Trigger, now: DateTime<Utc>) -> Result<(), String> {
        let schedule = trigger.on.cron.as_deref().unwrap_or_default();
        let key = format!("cron:{}", trigger.name);
        let store = &self.house.store;
        let last = store.value(&key).await.map_err(|e| e.to_string())?;
        let Some(last) = schedule::noted(last.as_ref(), now) else {
            // The first look: a schedule that is new does not catch up.
            return store.set_value(&key, &json!({"at": now})).await.map_err(|e| e.to_string());
        };
        if !schedule::due(schedule, last, now)? {
            return Ok(());
        }
        // Given before it is noted: killed in between it is given again under the same key, which leads to the same task.
        let facts = Map::from_iter([("event".to_owned(), json!({"due_after": last}))]);
        self.give(trigger, &facts, None, "cron", format!("{}", last.timestamp_millis()), "", now).await?;
        self.house.store.set_value(&key, &json!({"at": now})).await.map_err(|e| e.to_string())
    }

    /// Gives what an event sets off; `false` when something of it could not be given now.
    async fn happened(&mut self, event: &Happened, now: DateTime<Utc>) -> bool {
        let mut all = true;
        for trigger in self.all.clone().iter().filter(|t| t.fits(event)) {
            let once = once(trigger, event);
            if self.handled.contains(&once) {
                continue;
            }
            let mut facts = event.facts.clone();
            facts.insert("kind".into(), json!(event.kind));
            facts.insert("stack".into(), json!(event.stack));
            facts.insert("service".into(), json!(event.service));
            facts.insert("id".into(), json!(event.id));
            let facts = Map::from_iter([("event".to_owned(), Value::Object(facts))]);
            let about =
                format!("{}/{}", event.stack.as_ref().map(StackName::as_str).unwrap_or("-"), event.service.as_deref().unwrap_or("-"));
            match self.give(trigger, &facts, event.stack.clone(), "event", event.id.clone(), &about, now).await {
                Ok(()) => drop(self.handled.insert(once)),
                Err(e) => {
                    all = false;
                    tracing::error!(trigger = trigger.name, event = event.id, error = %e, "the task of an event could not be given; it is tried again");
                }
            }
        }
        all
    }

    /// Gives a task, unless one about the same thing is open or was given just now.
    #[allow(clippy::too_many_arguments, reason = "each is one fact of what happened")]
    async fn give(
        &mut self,
        trigger: &Trigger,
        facts: &Map<String, Value>,
        stack: Option<StackName>,
        origin: &'static str,
        key: String,
        about: &str,
        now: DateTime<Utc>,
    ) -> Result<(), String> {
        let place = (trigger.name.clone(), about.to_owned());
        if let Some(last) = self.given.get(&place) {
            let open = self.house.store.task(&last.task).await.map_err(|e| e.to_string())?.is_some_and(|t| !t.state.is_terminal());
            let cooling = origin == "event" && now - last.at < TimeDelta::seconds(trigger.cooldown_s.unwrap_or(COOLDOWN_S).into());
            if open || cooling {
                tracing::debug!(trigger = trigger.name, about, task = %last.task, "not given again");
                return Ok(());
            }
        }
        let wish = match wish(trigger, facts, stack, origin, key) {
            Ok(wish) => wish,
            // Written wrongly: said once, another try mends nothing.
            Err(e) => {
                tracing::error!(trigger = trigger.name, error = %e, "a trigger cannot be used");
                return Ok(());
            }
        };
        match submit(&self.house, wish, false, now).await {
            Ok((task, before)) => {
                if !before {
                    tracing::info!(trigger = trigger.name, task = %task.id, agent = %task.agent, about, "a task was given");
                    let detail = json!({"trigger": trigger.name, "task": task.id, "agent": task.agent, "about": about});
                    let stack = task.stack.as_ref().map(StackName::as_str);
                    let told = self.house.store.audit_event("supervisor", FIRED, stack, &detail, now).await;
                    told.map_err(|e| e.to_string())?;
                }
                self.given.insert(place, Given { task: task.id, at: now });
                Ok(())
            }
            Err(e) if wrong(e.code) => {
                tracing::error!(trigger = trigger.name, error = %e, "a trigger cannot be used");
                Ok(())
            }
            Err(e) => Err(e.message),
        }
    }

    /// News in the store: incidents and operations since the first look of this home, none older than a few hours.
    async fn recorded(&mut self, now: DateTime<Utc>) -> StoreResult<Vec<Happened>> {
        let store = &self.house.store;
        let Some(since) = schedule::noted(store.value(SINCE).await?.as_ref(), now) else {
            store.set_value(SINCE, &json!({"at": now})).await?;
            return Ok(vec![]);
        };
        let fresh = |at: DateTime<Utc>| at >= since && now - at < NEWS;
        let mut out = vec![];
        // Also those that are open for long: one may be given up today.
        let mut incidents = store.incidents(None, None, 50).await?;
        for (stack, service) in store.services_with_incidents().await? {
            let open = store.open_incident(&stack, &service).await?;
            incidents.extend(open.filter(|o| !incidents.iter().any(|i| i.id == o.id)));
        }
        for i in incidents {
            let facts = |what: &str| {
                let facts = json!({"what": what, "incident": i.id, "cause": i.cause, "release": i.release});
                facts.as_object().cloned().unwrap_or_default()
            };
            let happened = |kind: EventKind| Happened {
                id: format!("{}:{}", kind.as_str(), i.id),
                kind,
                stack: Some(i.stack.clone()),
                service: Some(i.service.to_string()),
                facts: facts(kind.as_str()),
            };
            if fresh(i.opened_at) {
                out.push(happened(EventKind::IncidentOpened));
            }
            let given_up = i.actions.iter().rev().find(|a| a.act == "quarantine").map_or(i.opened_at, |a| a.at);
            if i.quarantined && fresh(given_up) {
                out.push(happened(EventKind::IncidentQuarantined));
            }
        }
        // Also by when they ended: one that took hours has many younger ones before it.
        let mut operations = store.operations(None, 100).await?;
        let ended = store.operations_settled(since.max(now - NEWS), 100).await?;
        operations.extend(ended.into_iter().filter(|e| !operations.iter().any(|o| o.id == e.id)).collect::<Vec<_>>());
        for o in operations.into_iter().filter(|o| fresh(o.settled_at.unwrap_or(o.created_at))) {
            let data = matches!(o.verb.as_str(), "backup" | "verify_backup");
            let kind = match o.state {
                // Done, and some of the data is nowhere.
                OperationState::Done if partial(&o) => EventKind::BackupFailed,
                OperationState::RolledBack => EventKind::OperationRolledBack,
                OperationState::Failed if data => EventKind::BackupFailed,
                OperationState::Failed | OperationState::NeedsAttention => EventKind::OperationFailed,
                OperationState::Queued
                | OperationState::Running
                | OperationState::Monitoring
                | OperationState::Done
                | OperationState::Cancelled
                | OperationState::PendingApproval => continue,
            };
            let facts = json!({"operation": o.id, "verb": o.verb, "release": o.release, "agent": o.agent, "state": o.state});
            let facts = facts.as_object().cloned().unwrap_or_default();
            out.push(Happened { id: format!("{}:{}", kind.as_str(), o.id), kind, stack: o.stack, service: None, facts });
        }
        if self.handled.len() > 20_000 {
            // Old ones are no news any more, and the task's key holds for the rest.
            self.handled.clear();
        }
        Ok(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::task::TaskState;
    use crate::supervisor::tasks::tests::Bench;

    fn triggers(list: Value) -> Vec<Trigger> {
        serde_json::from_value(list).expect("valid")
    }

    async fn bench(list: Value) -> (Bench, Triggers) {
        let b = Bench::with(|settings| settings.triggers = triggers(list)).await;
        let t = Triggers::new(b.house.clone());
        (b, t)
    }

    async fn given(b: &Bench) -> Vec<(String, Option<String>)> {
        let mut all = b.house.store.tasks(None, None, 100).await.expect("read");
        all.reverse();
        all.into_iter().map(|t| (t.origin, t.stack.map(|s| s.to_string()))).collect()
    }

    fn sick(n: u32, stack: &str) -> Happened {
        Happened {
            id: format!("unhealthy:{n}"),
            kind: EventKind::ContainerUnhealthy,
            stack: StackName::new(stack).ok(),
            service: Some("web".into()),
            facts: Map::new(),
        }
    }

    #[tokio::test]
    async fn a_schedule_gives_its_task_once_and_catches_up_once() {
        let (b, mut t) = bench(json!([{"name": "hourly", "agent": "a0", "skill": "look", "on": {"cron": "0 * * * *"}}])).await;
        let at = |text: &str| text.parse::<DateTime<Utc>>().expect("valid");
        t.round(at("2027-01-01T10:05:00Z")).await;
        t.round(at("2027-01-01T10:59:59Z")).await;
        assert_eq!(given(&b).await, []);
        t.round(at("2027-01-01T14:01:00Z")).await;
        t.round(at("2027-01-01T14:01:02Z")).await;
        assert_eq!(given(&b).await, [("cron".to_owned(), None)], "missed times are caught up once");
        t.round(at("2027-01-01T15:01:00Z")).await;
        assert_eq!(given(&b).await.len(), 1, "the last one is still in the queue");
    }

    #[tokio::test]
    async fn a_flapping_service_gives_one_task_and_another_stack_its_own() {
        let list = json!([{"name": "sick", "agent": "a0", "skill": "look", "on": {"event": "container_unhealthy", "stack": "web-*"}, "cooldown_s": 60}]);
        let (b, mut t) = bench(list).await;
        let now = Utc::now();
        let one = |s: &str| ("event".to_owned(), Some(s.to_owned()));
        for n in 100..150 {
            b.house.desk.happened(sick(n, "web-shop"));
        }
        b.house.desk.happened(sick(190, "web-blog"));
        b.house.desk.happened(sick(191, "billing"));
        t.round(now).await;
        assert_eq!(given(&b).await, [one("web-shop"), one("web-blog")]);
        for task in b.house.store.task_claim(Utc::now(), 1, None).await.expect("claimed") {
            let end = crate::store::task::TaskChange::End(TaskState::Succeeded, "ok".into());
            b.house.store.task_change(&task.id, end, now).await.expect("ended");
        }
        b.house.desk.happened(sick(200, "web-shop"));
        t.round(now + TimeDelta::seconds(59)).await;
        assert_eq!(given(&b).await.len(), 2, "too soon");
        b.house.desk.happened(sick(201, "web-shop"));
        t.round(now + TimeDelta::seconds(61)).await;
        assert_eq!(given(&b).await.len(), 3);
        // A supervisor that was restarted knows what is at work, and what was given just now.
        while let Some(task) = b.house.store.task_claim(now + TimeDelta::seconds(62), 1, None).await.expect("claimed").pop() {
            let end = crate::store::task::TaskChange::End(TaskState::Succeeded, "ok".into());
            b.house.store.task_change(&task.id, end, now).await.expect("ended");
        }
        for (n, seconds) in [(300, 90), (301, 1000)] {
            let mut restarted = Triggers::new(b.house.clone());
            b.house.desk.happened(sick(n, "web-shop"));
            restarted.round(now + TimeDelta::seconds(seconds)).await;
            assert_eq!(given(&b).await.len(), 3 + usize::from(seconds == 1000), "{seconds} s");
        }
    }

    #[tokio::test]
    async fn the_shipped_maintenance_is_there_unless_it_is_switched_off_or_written_anew() {
        let b = Bench::shipped(|_| {}).await;
        let names = |b: &Bench| Triggers::new(b.house.clone()).all.iter().map(|t| t.name.clone()).collect::<Vec<_>>();
        assert_eq!(names(&b), ["weekly-review", "monthly-check", "monthly-refresh"]);
        for trigger in Triggers::new(b.house.clone()).all {
            trigger.check(|s| s.parse::<croner::Cron>().is_ok()).expect("sound");
            let wish = wish(&trigger, &Map::new(), None, "cron", "k".into()).expect("a wish");
            submit(&b.house, wish, false, Utc::now()).await.expect("its agent and its skill are there");
        }
        assert!(names(&Bench::shipped(|s| s.tasks.maintenance = false).await).is_empty());
        let own = json!([{"name": "weekly-review", "agent": "observer", "skill": "weekly-review", "on": {"cron": "0 0 * * *"}}]);
        assert_eq!(names(&Bench::shipped(|s| s.triggers = triggers(own)).await), ["weekly-review", "monthly-check", "monthly-refresh"]);
    }

    #[tokio::test]
    async fn a_schedule_goes_on_after_the_clock_was_set_back() {
        let (b, mut t) = bench(json!([
            {"name": "hourly", "agent": "a0", "skill": "look", "on": {"cron": "0 * * * *"}},
            {"name": "failed", "agent": "a0", "skill": "look", "on": {"event": "backup_failed"}}]))
        .await;
        let at = |text: &str| text.parse::<DateTime<Utc>>().expect("valid");
        let since = async || b.house.store.value(SINCE).await.expect("read");
        t.round(at("2030-01-01T10:05:00Z")).await;
        assert_eq!(since().await, Some(json!({"at": at("2030-01-01T10:05:00Z")})));
        t.round(at("2027-01-01T10:05:00Z")).await;
        assert_eq!(since().await, Some(json!({"at": at("2027-01-01T10:05:00Z")})), "later than now is no moment that was");
        assert_eq!(given(&b).await, []);
        t.round(at("2027-01-01T11:01:00Z")).await;
        assert_eq!(given(&b).await, [("cron".to_owned(), None)]);
    }

    #[tokio::test]
    async fn a_signal_whose_task_finds_no_room_is_tried_again() {
        let list = triggers(json!([{"name": "sick", "agent": "a0", "skill": "look", "on": {"event": "container_unhealthy"}}]));
        let b = Bench::with(|s| (s.triggers, s.tasks.max_queued) = (list, 1)).await;
        let mut t = Triggers::new(b.house.clone());
        let other = Trigger { name: "other".into(), ..t.all[0].clone() };
        let first = wish(&other, &Map::new(), None, "cron", "k".into()).expect("a wish");
        submit(&b.house, first, false, Utc::now()).await.expect("the queue is full now");
        b.house.desk.happened(sick(1, "shop"));
        t.round(Utc::now()).await;
        assert_eq!(given(&b).await.len(), 1);
        b.house.store.task_claim(Utc::now(), 1, None).await.expect("there is room");
        t.round(Utc::now()).await;
        assert_eq!(given(&b).await.len(), 2);
        t.round(Utc::now()).await;
        assert_eq!((given(&b).await.len(), t.late.len()), (2, 0), "given once");
    }

    #[tokio::test]
    async fn a_store_that_fails_is_no_mistake_of_a_trigger() {
        let list = json!([{"name": "sick", "agent": "a0", "skill": "look", "on": {"event": "container_unhealthy"}}]);
        let (b, mut t) = bench(list).await;
        b.house.store.close().await;
        assert!(!t.happened(&sick(1, "shop"), Utc::now()).await && t.handled.is_empty());
        // Written wrongly: another try mends nothing.
        t.all[0].agent = crate::model::ids::AgentName::new("nobody").expect("valid");
        assert!(t.happened(&sick(1, "shop"), Utc::now()).await);
    }

    fn operation(id: &str, message: &str, now: DateTime<Utc>) -> crate::model::operation::Operation {
        crate::model::operation::Operation {
            id: crate::model::ids::OperationId::new(id).expect("valid"),
            verb: "backup".into(),
            stack: StackName::new("shop").ok(),
            plan: None,
            agent: "warden".into(),
            call: crate::model::ids::CallId::new(format!("call-{id}")).expect("valid"),
            idempotency_key: None,
            state: OperationState::Done,
            phase: crate::model::operation::Phase::Finished,
            epoch: 0,
            release: None,
            reason: None,
            message: Some(message.into()),
            evidence: vec![],
            approval: None,
            cancel_requested: false,
            created_at: now,
            settled_at: Some(now),
        }
    }

    #[tokio::test]
    async fn what_began_long_ago_and_ends_badly_now_sets_off_its_task() {
        let list = json!([
            {"name": "failed", "agent": "a0", "skill": "look", "on": {"event": "backup_failed"}},
            {"name": "given-up", "agent": "a0", "skill": "look", "on": {"event": "incident_quarantined"}}]);
        let (b, mut t) = bench(list).await;
        let (now, store) = (Utc::now(), &b.house.store);
        t.round(now - TimeDelta::hours(9)).await;
        // A backup of three hours, and many operations since it began; an incident of yesterday that is given up now.
        let started = |id: &str, hours: i64| crate::model::operation::Operation {
            created_at: now - TimeDelta::hours(hours),
            settled_at: Some(now),
            ..operation(id, if hours > 0 { "PARTIAL: x" } else { "all is well" }, now)
        };
        let all = std::iter::once(started("op-long", 3)).chain((0..120).map(|n| started(&format!("op-{n}"), 0)));
        for (n, o) in all.enumerate() {
            let settled = now - TimeDelta::seconds(200 - n as i64) + TimeDelta::seconds(if n == 0 { 199 } else { 0 });
            let begun = store.begin_aside(o, "h").await.expect("begun").expect("new");
            store.save_operation(&crate::model::operation::Operation { settled_at: Some(settled), ..begun }).await.expect("saved");
        }
        let mut incident: crate::model::incident::Incident = serde_json::from_value(json!({
            "id": "inc-old", "stack": "shop", "service": "web", "release": 1, "opened_at": now - TimeDelta::days(1), "closed_at": null,
            "recovered_at": null, "cause": "crashed", "reason": "it ended", "evidence": [], "changes": [], "actions": [], "quarantined": false}))
        .expect("an incident");
        store.put_incident(&incident).await.expect("kept");
        t.round(now).await;
        assert_eq!(given(&b).await.len(), 1, "the backup; the incident is old news");
        incident.quarantined = true;
        incident.actions = vec![crate::model::incident::Taken { at: now, act: "quarantine".into(), outcome: None }];
        store.put_incident(&incident).await.expect("kept");
        t.round(now + TimeDelta::seconds(3)).await;
        assert_eq!(given(&b).await.len(), 2, "until it is given up");
    }

    #[tokio::test]
    async fn a_partial_backup_sets_off_what_a_failed_one_does_and_a_restart_does_not_again() {
        let list = json!([{"name": "failed", "agent": "a0", "skill": "look", "on": {"event": "backup_failed"}, "cooldown_s": 600}]);
        let (b, mut t) = bench(list).await;
        let now = Utc::now();
        t.round(now - TimeDelta::seconds(5)).await;
        for (id, message) in [("op-1", "PARTIAL: x"), ("op-2", "PARTIAL: y"), ("op-3", "all is well")] {
            let begun = b.house.store.begin_aside(operation(id, message, now), "h").await.expect("begun");
            b.house.store.save_operation(&begun.expect("new")).await.expect("saved");
        }
        t.round(now).await;
        assert_eq!(given(&b).await.len(), 1, "two within the cooldown are one");
        for task in b.house.store.task_claim(Utc::now(), 1, None).await.expect("claimed") {
            let end = crate::store::task::TaskChange::End(TaskState::Succeeded, "ok".into());
            b.house.store.task_change(&task.id, end, now).await.expect("ended");
        }
        let mut restarted = Triggers::new(b.house.clone());
        restarted.round(now + TimeDelta::seconds(1_000)).await;
        assert_eq!(given(&b).await.len(), 1, "the one that was dropped stays dropped");
    }
}
