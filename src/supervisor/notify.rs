//! Tells a person outside what needs one: approvals that wait or run out, operations that were rolled back or are stuck, healing that gave
//! up, a host that fails, drift, backups and tasks that failed. What there is to tell is read from the store, and kept there from the decision to the delivery: a restart
//! in between tells it again under the same id, and nothing twice that was delivered. Deliberately absent:
//! reasons, arguments and texts of agents or containers (they may carry secrets or instructions), and any part in what happens.

mod deliver;

use crate::call::House;
use crate::executor::backup::{STILL_HELD, partial};
use crate::model::config::{NotifyEvent, NotifySettings};
use crate::model::ids::ApprovalId;
use crate::model::operation::{Operation, OperationState};
use crate::store::approval::{Approval, ApprovalState};
use crate::store::audit::AuditRow;
use crate::store::notice::Notice;
use crate::store::{Store, StoreResult};
use chrono::{DateTime, TimeDelta, Utc};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

pub use deliver::Outcome;

/// Pause between looks.
const LOOK_EVERY: Duration = Duration::from_secs(3);
/// Where it is kept what was told.
const TOLD: &str = "notify";
/// An approval is about to expire when less than this, or a quarter of its life, is left.
const EXPIRING: TimeDelta = TimeDelta::minutes(5);
/// Messages of one look; what is more becomes one line that counts them.
const AT_ONCE: usize = 5;
/// Ordinary messages in `WINDOW`, the last of which says that there is more; the rest waits for a person to look.
const MOST: usize = 30;
/// Messages in `WINDOW` about what waits for a person now, in places of their own: a storm of others must not hide them. The last place says how many more there are.
const URGENT: usize = 10;
const WINDOW: TimeDelta = TimeDelta::minutes(10);
/// Ids of told events that are kept: a store full of approvals and operations has fewer in the week they are looked at.
const KEPT: usize = 2_000;
/// Messages of each kind waiting to be delivered; the oldest beyond that are dropped.
const QUEUE: usize = 64;

/// One thing to tell.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Names it for ever: told once.
    pub id: String,
    /// Kind.
    pub kind: NotifyEvent,
    /// In one line.
    pub title: String,
    /// Path of the page about it, when there is one.
    pub path: Option<String>,
    /// When.
    pub at: DateTime<Utc>,
}

/// What was told so far; kept in the store.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
struct Told {
    /// Nothing from before is told: the home's first look must not tell its history.
    since: Option<DateTime<Utc>>,
    /// Last row of the audit log that was looked at.
    seq: i64,
    /// Ids, oldest first.
    ids: Vec<String>,
    /// Times of the last ordinary messages.
    sent: Vec<DateTime<Utc>>,
    /// Times of the last urgent ones.
    #[serde(default)]
    urgent: Vec<DateTime<Utc>>,
}

/// Runs until `shutdown`. `count` learns what became of each message.
pub async fn run(house: Arc<House>, shutdown: CancellationToken, count: impl Fn(Outcome) + Send + Sync + 'static) {
    let Some(settings) = house.config.settings.notify.clone() else { return };
    let courier = match deliver::Courier::new(&settings) {
        Ok(courier) => Arc::new(courier),
        Err(e) => return tracing::error!(error = %e, "nobody will be notified"),
    };
    let count: Arc<dyn Fn(Outcome) + Send + Sync> = Arc::new(count);
    // What waits for a person waits for no receiver of the rest.
    let lanes = [true, false].map(|urgent| {
        let (waiting, lane) = (Arc::new(Notify::new()), Lane { urgent, house: house.clone(), settings: settings.clone() });
        let (courier, stop, count, news) = (courier.clone(), shutdown.clone(), count.clone(), waiting.clone());
        (waiting, tokio::spawn(async move { lane.run(&courier, &news, &stop, &*count).await }))
    });
    while tokio::time::timeout(LOOK_EVERY, shutdown.cancelled()).await.is_err() {
        match look(&house, &settings, Utc::now()).await {
            Ok(dropped) => (0..dropped).for_each(|_| count(Outcome::Dropped)),
            Err(e) => tracing::error!(error = %e, "what there is to notify could not be read"),
        }
        lanes.iter().for_each(|(waiting, _)| waiting.notify_one());
    }
    for (_, lane) in lanes {
        if let Err(e) = lane.await {
            tracing::error!(error = %e, "delivery of notifications ended badly");
        }
    }
}

/// What is delivered one after the other.
struct Lane {
    urgent: bool,
    house: Arc<House>,
    settings: NotifySettings,
}

impl Lane {
    /// Delivers what waits, until `stop`. What was under way then, or in a kill, is told by the next supervisor.
    async fn run(&self, courier: &deliver::Courier, news: &Notify, stop: &CancellationToken, count: &(dyn Fn(Outcome) + Send + Sync)) {
        loop {
            tokio::select! {
                () = self.deliver(courier, count) => {}
                () = stop.cancelled() => return,
            }
            tokio::select! {
                () = news.notified() => {}
                () = stop.cancelled() => return,
            }
        }
    }

    /// Delivers all there is now.
    async fn deliver(&self, courier: &deliver::Courier, count: &(dyn Fn(Outcome) + Send + Sync)) {
        let store = &self.house.store;
        loop {
            let next = match store.notices(self.urgent, false).await {
                Ok(waiting) => waiting.into_iter().next(),
                Err(e) => return tracing::error!(error = %e, "what waits to be notified could not be read"),
            };
            let Some(next) = next else { return };
            match serde_json::from_value::<Event>(next.body) {
                Ok(event) if moot(store, &event).await => tracing::info!(event = event.id, "not notified: it was decided meanwhile"),
                Ok(event) => {
                    let delivered = courier.deliver(&message(&event, &self.settings, &self.house.config.host_name)).await;
                    count(if delivered { Outcome::Delivered } else { Outcome::Failed });
                }
                Err(e) => tracing::error!(event = next.id, error = %e, "a notification cannot be read and is given up"),
            }
            // Until that is noted nothing else is told: each would be told for ever.
            while let Err(e) = store.notice_over(&next.id).await {
                tracing::error!(event = next.id, error = %e, "that somebody was notified could not be noted; it is tried again");
                tokio::time::sleep(LOOK_EVERY).await;
            }
        }
    }
}

/// Whether an approval an event asks for is not waited for any more.
async fn moot(store: &Store, event: &Event) -> bool {
    let asks = matches!(event.kind, NotifyEvent::ApprovalPending | NotifyEvent::ApprovalExpiring);
    let id = event.id.split_once(':').filter(|_| asks).and_then(|(_, id)| ApprovalId::new(id).ok());
    let Some(id) = id else { return false };
    match store.approval(&id, Utc::now()).await {
        Ok(found) => found.is_none_or(|a| a.state != ApprovalState::Pending),
        Err(e) => {
            tracing::warn!(approval = %id, error = %e, "whether it still waits could not be read; it is told");
            false
        }
    }
}

/// One look: what is new is noted as told and kept for delivery, in one transaction. How many messages were dropped for it.
async fn look(house: &House, settings: &NotifySettings, now: DateTime<Utc>) -> StoreResult<usize> {
    let store = &house.store;
    let before = store.value(TOLD).await?;
    let mut told: Told = before.as_ref().and_then(|v| serde_json::from_value(v.clone()).ok()).unwrap_or_default();
    if told.since.is_none() {
        told = Told { since: Some(now), seq: store.audit_head().await?, ..Told::default() };
        return store.set_value(TOLD, &json!(told)).await.map(|()| 0);
    }
    let was = told.clone();
    let mut events = collect(store, &mut told, now).await?;
    events.retain(|e| settings.events.is_empty() || settings.events.contains(&e.kind));
    let (mut held, mut gone) = (vec![], vec![]);
    for notice in store.notices(true, true).await? {
        match serde_json::from_value::<Event>(notice.body) {
            Ok(event) if !moot(store, &event).await => held.push(event),
            Ok(_) | Err(_) => gone.push(notice.id),
        }
    }
    let decided = within_bounds(&mut told, events, held, now);
    gone.extend(decided.covered);
    if told == was && gone.is_empty() {
        return Ok(0);
    }
    let keep = |held: bool| move |e: Event| Notice { id: e.id.clone(), urgent: urgent(e.kind), held, body: json!(e) };
    let new = decided.now.into_iter().map(keep(false)).chain(decided.held.into_iter().map(keep(true))).collect();
    store.decide_notices((TOLD, &json!(told)), new, gone, QUEUE).await
}

/// Everything that was not told yet; notes it as told.
async fn collect(store: &Store, told: &mut Told, now: DateTime<Utc>) -> StoreResult<Vec<Event>> {
    // A clock set back must not keep silent what happens until it is as late again.
    let since = told.since.unwrap_or(now).min(now);
    told.since = Some(since);
    let mut events = vec![];
    for approval in store.approvals(true, now).await? {
        events.extend(waiting(&approval, now));
    }
    // Also by when they ended: one that took hours has many younger ones before it.
    let ended = store.operations_settled(since, 100).await?;
    for operation in store.operations(None, 100).await?.iter().chain(&ended) {
        events.extend(settled(operation).filter(|e| e.at >= since));
    }
    for row in store.audit_after(told.seq, None, 500).await? {
        told.seq = row.seq;
        events.extend(recorded(&row));
    }
    let known: BTreeSet<&String> = told.ids.iter().collect();
    events.retain(|e| !known.contains(&e.id));
    events.sort_by(|a, b| a.at.cmp(&b.at).then(a.id.cmp(&b.id)));
    events.dedup_by(|a, b| a.id == b.id);
    told.ids.extend(events.iter().map(|e| e.id.clone()));
    let surplus = told.ids.len().saturating_sub(KEPT);
    told.ids.drain(..surplus);
    Ok(events)
}

fn place(stack: Option<&str>, environment: Option<&str>) -> String {
    let stack = stack.unwrap_or("the host");
    environment.map_or_else(|| stack.to_owned(), |e| format!("{stack} ({e})"))
}

/// An approval that waits, and that it is about to run out.
fn waiting(a: &Approval, now: DateTime<Utc>) -> Vec<Event> {
    let place = place(a.stack.as_ref().map(|s| s.as_str()), a.environment.as_deref());
    let path = Some(format!("/approvals/{}", a.id));
    let left = a.expires_at - now;
    let given = if a.needed > 1 { format!(", {} of {} given", a.approved_by.len(), a.needed) } else { String::new() };
    let asks = Event {
        id: format!("pending:{}", a.id),
        kind: NotifyEvent::ApprovalPending,
        title: format!("{} wants {} on {place}: {} min to decide{given}", a.agent, a.tool, left.num_minutes().max(1)),
        path: path.clone(),
        at: a.created_at,
    };
    let soon = left < EXPIRING.min((a.expires_at - a.created_at) / 4);
    let expiring = Event {
        id: format!("expiring:{}", a.id),
        kind: NotifyEvent::ApprovalExpiring,
        title: format!("{} s left to decide: {} wants {} on {place}{given}", left.num_seconds().max(0), a.agent, a.tool),
        path,
        at: now,
    };
    [Some(asks), soon.then_some(expiring)].into_iter().flatten().collect()
}

/// An operation that ended badly.
fn settled(o: &Operation) -> Option<Event> {
    let backup = matches!(o.verb.as_str(), "backup" | "verify_backup" | "export");
    let (kind, words) = match o.state {
        OperationState::RolledBack => (NotifyEvent::RolledBack, "was rolled back: what ran before runs"),
        OperationState::NeedsAttention => (NotifyEvent::NeedsAttention, "needs a person: it went neither forward nor back"),
        OperationState::Failed if backup => (NotifyEvent::BackupFailed, "failed"),
        OperationState::Done if partial(o) => (NotifyEvent::BackupFailed, "is PARTIAL: some files could not be read"),
        OperationState::Failed
        | OperationState::Queued
        | OperationState::Running
        | OperationState::Monitoring
        | OperationState::Done
        | OperationState::Cancelled
        | OperationState::PendingApproval => return None,
    };
    let release = o.release.map(|r| format!(" release {r}")).unwrap_or_default();
    let title = format!("{} of {}{release} by {} {words} ({})", o.verb, place(o.stack.as_ref().map(|s| s.as_str()), None), o.agent, o.id);
    let id = if backup { format!("backup:{}", o.call) } else { format!("{}:{}", o.state.as_str(), o.id) };
    Some(Event { id, kind, title, path: None, at: o.settled_at.unwrap_or(o.created_at) })
}

/// What the audit log alone tells: healing that gave up, quarantine, a failing host, drift, a brake that was pulled, a backup or task that failed.
fn recorded(row: &AuditRow) -> Option<Event> {
    let place = place(row.stack.as_deref(), row.environment.as_deref());
    let event = |kind, id: String, title: String| Some(Event { id, kind, title, path: None, at: row.at });
    if row.kind == "outcome"
        && row.outcome.as_deref() == Some("error")
        && matches!(row.tool.as_str(), "backup" | "verify_backup" | "export")
    {
        return event(
            NotifyEvent::BackupFailed,
            format!("backup:{}", row.call),
            format!("{} of {place} by {} failed", row.tool, row.agent),
        );
    }
    if row.kind != "event" {
        return None;
    }
    let id = format!("row:{}", row.seq);
    match row.tool.as_str() {
        "healing_gave_up" => {
            let service = row.detail["service"].as_str().unwrap_or("a service");
            event(NotifyEvent::GaveUp, id, format!("healing of {service} of {place} gave up: a person must look"))
        }
        what if what.contains("quarantine") => event(NotifyEvent::GaveUp, id, format!("{place} was quarantined: a person must look")),
        "host_failing" => {
            let count = |key: &str| row.detail[key].as_u64().unwrap_or(0);
            let (sick, all) = (count("services_down"), count("services"));
            event(
                NotifyEvent::HostFailing,
                id,
                format!("{sick} of {all} services are down at once: this is the host or the engine, nothing is restarted"),
            )
        }
        "drift_found" => {
            let mends = if row.detail["mends"] == true { "it is mended" } else { "nothing was changed: `deploy` makes it so again" };
            event(NotifyEvent::DriftFound, id, format!("what runs of {place} is not what was deployed; {mends}"))
        }
        "task_failed" => {
            let task = crate::redact::line(row.detail["task"].as_str().unwrap_or("a task"), 64);
            event(NotifyEvent::TaskFailed, id, format!("{task} of {} failed for good: `dockwarden task show {task}`", row.agent))
        }
        "breaker_opened" => {
            event(NotifyEvent::NeedsAttention, id, format!("too many failures: changes of {place} are stopped until an operator lifts it"))
        }
        "budget_share" => {
            let text = |key: &str| row.detail[key].as_str().unwrap_or("?").to_owned();
            let percent = row.detail["percent"].as_u64().unwrap_or(0);
            let title = format!(
                "{} has spent {percent} % of its budget of {} ({} of {} USD)",
                text("agent"),
                text("month"),
                text("spent_usd"),
                text("cap_usd")
            );
            event(NotifyEvent::Budget, id, title)
        }
        "budget_refused" => {
            let text = |key: &str| row.detail[key].as_str().unwrap_or("?").to_owned();
            let title = format!(
                "{} may ask its model nothing more: a question of up to {} USD would pass its budget of {} ({} of {} USD spent)",
                text("agent"),
                text("worst_usd"),
                text("month"),
                text("spent_usd"),
                text("cap_usd")
            );
            event(NotifyEvent::Budget, id, title)
        }
        "stack_does_not_answer" => event(
            NotifyEvent::NeedsAttention,
            id,
            format!("the engine says nothing of something of {place}: it is not healed until it does"),
        ),
        STILL_HELD => {
            let operation = crate::redact::line(row.detail["operation"].as_str().unwrap_or("?"), 64);
            let title =
                format!("containers of {place} cannot be set going again after {operation}: their service is down, it is tried again");
            event(NotifyEvent::NeedsAttention, id, title)
        }
        what @ (super::disk::HIGH | super::disk::CRITICAL) => {
            let (percent, free) = (row.detail["percent"].as_u64().unwrap_or(0), row.detail["free_mib"].as_u64().unwrap_or(0));
            let urgent = if what == super::disk::CRITICAL { ": soon nothing can be recorded, and so nothing done" } else { "" };
            event(NotifyEvent::Disk, id, format!("the disk of the supervisor's home is {percent} % full, {free} MiB are free{urgent}"))
        }
        "break_glass_opened" => {
            event(NotifyEvent::BreakGlass, id, format!("{} broke the glass: denials by rule are lifted for a while", row.agent))
        }
        _ => None,
    }
}

/// Somebody waits for a person, or a brake is off: told in any storm of others.
fn urgent(kind: NotifyEvent) -> bool {
    use NotifyEvent as N;
    match kind {
        N::ApprovalPending | N::ApprovalExpiring | N::NeedsAttention | N::GaveUp | N::BreakGlass => true,
        N::RolledBack | N::HostFailing | N::DriftFound | N::TaskFailed | N::BackupFailed | N::Budget | N::Disk => false,
    }
}

/// What becomes of events.
#[derive(Debug, Default, PartialEq)]
struct Decided {
    /// Told now.
    now: Vec<Event>,
    /// Urgent ones that wait for room.
    held: Vec<Event>,
    /// Ids of those that were held and of which a line tells that there are so many.
    covered: Vec<String>,
}

/// What is urgent, the first few others of a look, one line for the rest of each; never more than `URGENT` and `MOST` in `WINDOW`. `held` are urgent ones of earlier
/// looks that found no room: nothing urgent is left out, it is told later, or counted in a line.
fn within_bounds(told: &mut Told, events: Vec<Event>, held: Vec<Event>, now: DateTime<Utc>) -> Decided {
    for times in [&mut told.sent, &mut told.urgent] {
        times.iter_mut().for_each(|t| *t = (*t).min(now));
        times.retain(|t| now - *t < WINDOW);
    }
    let (new, mut others): (Vec<Event>, Vec<Event>) = events.into_iter().partition(|e| urgent(e.kind));
    let waited: BTreeSet<String> = held.iter().map(|e| e.id.clone()).collect();
    let mut waiting: Vec<Event> = held.into_iter().chain(new).collect();
    let room = URGENT.saturating_sub(told.urgent.len());
    let mut decided = Decided::default();
    if room == 0 {
        if waiting.iter().any(|e| !waited.contains(&e.id)) {
            tracing::warn!(events = waiting.len(), "not notified yet: too many that wait for a person in the last ten minutes");
        }
        decided.held = waiting.into_iter().filter(|e| !waited.contains(&e.id)).collect();
    } else {
        // The last place is for the line that says how many more there are.
        let rest = if waiting.len() > room { waiting.split_off(room - 1) } else { vec![] };
        if let Some(last) = rest.last() {
            let title = format!("and {} more that wait for a person: `dockwarden approvals` and `dockwarden audit` show them", rest.len());
            waiting.push(Event { id: format!("more:{}", last.id), title, path: Some("/approvals".into()), ..last.clone() });
            decided.covered = rest.into_iter().map(|e| e.id).filter(|id| waited.contains(id)).collect();
        }
        told.urgent.extend(waiting.iter().map(|_| now));
        decided.now = waiting;
    }
    // The same of the others.
    let room = (MOST - 1).saturating_sub(told.sent.len());
    let rest = others.split_off(others.len().min(AT_ONCE).min(room));
    let silent = told.sent.len() + others.len() >= MOST;
    match rest.last() {
        None => {}
        Some(_) if silent => tracing::warn!(events = rest.len(), "not notified: too many in the last ten minutes"),
        Some(last) => {
            let title = format!("and {} more events: `dockwarden audit` and `dockwarden approvals` show them", rest.len());
            others.push(Event { title, path: Some("/approvals".into()), ..last.clone() });
        }
    }
    told.sent.extend(others.iter().map(|_| now));
    decided.now.extend(others);
    decided
}

/// The body of one message: `text` is what Slack shows, `content` Discord, `message`, `title`, `click` and `topic` ntfy; all of it for others.
fn message(event: &Event, settings: &NotifySettings, host: &str) -> Value {
    let base = settings.public_url.as_deref().map(|u| u.trim_end_matches('/'));
    let link = base.zip(event.path.as_deref()).map(|(base, path)| format!("{base}{path}"));
    let how = match (&link, event.kind) {
        (Some(link), _) => format!("\n{link}"),
        (None, NotifyEvent::ApprovalPending | NotifyEvent::ApprovalExpiring) => "\ndockwarden approvals".into(),
        (None, _) => String::new(),
    };
    let title = format!("dockwarden on {host}");
    let text = format!("[{host}] {}{how}", event.title);
    let mut body = json!({
        "event": event.kind, "event_id": event.id, "host": host, "at": event.at, "title": title, "message": format!("{}{how}", event.title), "text": text, "content": text,
    });
    if let Some(link) = link {
        body["link"] = json!(link);
        body["click"] = json!(link);
    }
    if let Some(topic) = &settings.topic {
        body["topic"] = json!(topic);
    }
    body
}

#[cfg(test)]
mod tests;
