//! What changed since a client looked: stacks, by the engine's event stream and by their operations, the rules, by their replacement, the audit log and memories, by
//! what the store appends. One feeder per supervisor, started by the first listener. Deliberately absent: what is done about it (`supervisor`), and protocols.

use super::Doors;
use crate::model::ids::AgentName;
use crate::model::labels;
use crate::store::appended::{Appended, Part, Row};
use chrono::{DateTime, Utc};
use futures_util::StreamExt;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::broadcast;

/// Changes told of at once: a deploy makes dozens of events, a client wants one word.
const GATHER: Duration = Duration::from_millis(250);
/// The same for the log and memories, which grow with every call.
const GATHER_RECORDS: Duration = Duration::from_secs(1);
/// Kinds of rows told of in one change; more are told at once.
const MOST_ROWS: usize = 256;
/// Pause before a broken event stream is opened again.
const REOPEN: Duration = Duration::from_secs(2);
/// A listener that is further behind is told to look at everything.
const BACKLOG: usize = 256;

/// One change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// Something of this stack.
    Stack(String),
    /// There is another stack, or one less.
    Stacks,
    /// Agents, policy or prompts.
    Rules,
    /// Rows of the audit log, each kind once.
    Log(Arc<BTreeSet<Row>>),
    /// An agent's memory.
    Memory(AgentName, Part),
    /// Some were missed.
    Missed,
}

/// Where changes are told.
#[derive(Debug)]
pub struct Changes {
    sender: broadcast::Sender<Change>,
    feeding: AtomicBool,
}

impl Default for Changes {
    fn default() -> Self {
        Self { sender: broadcast::channel(BACKLOG).0, feeding: AtomicBool::new(false) }
    }
}

/// One who listens.
#[derive(Debug)]
pub struct Listener(broadcast::Receiver<Change>);

impl Listener {
    /// The next change; `None` when the supervisor ends.
    pub async fn next(&mut self) -> Option<Change> {
        match self.0.recv().await {
            Ok(change) => Some(change),
            Err(broadcast::error::RecvError::Lagged(_)) => Some(Change::Missed),
            Err(broadcast::error::RecvError::Closed) => None,
        }
    }
}

impl Changes {
    /// Listens from now on.
    pub fn listen(doors: &Arc<Doors>) -> Listener {
        let receiver = doors.changes.sender.subscribe();
        if !doors.changes.feeding.swap(true, Ordering::AcqRel) {
            tokio::spawn(feed(Arc::clone(doors)));
        }
        Listener(receiver)
    }

    /// Tells everyone; nobody listening is fine.
    pub fn tell(&self, change: Change) {
        let _nobody_listens = self.sender.send(change);
    }
}

async fn names(doors: &Doors) -> Option<BTreeSet<String>> {
    match doors.house.store.stacks().await {
        Ok(stacks) => Some(stacks.into_iter().map(|s| s.name.to_string()).collect()),
        Err(e) => {
            tracing::warn!(error = %e, "stacks could not be read for those who listen");
            None
        }
    }
}

async fn feed(doors: Arc<Doors>) {
    let (events, mut seen) = tokio::sync::mpsc::channel::<String>(BACKLOG);
    let follower = tokio::spawn(follow(Arc::clone(&doors), events));
    let house = Arc::clone(&doors.house);
    let mut moved = house.store.moved();
    let (mut rules, mut prompts) = (house.rulebook.load_full(), house.prompts.load_full());
    let mut known = names(&doors).await.unwrap_or_default();
    let mut changed = BTreeSet::new();
    let mut records = Records::default();
    let mut appended = house.store.appended();
    let mut tick = tokio::time::interval(GATHER);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut tell_records = tokio::time::interval(GATHER_RECORDS);
    tell_records.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = doors.shutdown.cancelled() => break,
            Some(stack) = seen.recv() => { changed.insert(stack); }
            stack = moved.recv() => match stack {
                Ok(stack) => { changed.insert(stack.to_string()); }
                Err(broadcast::error::RecvError::Lagged(_)) => doors.changes.tell(Change::Missed),
                Err(broadcast::error::RecvError::Closed) => break,
            },
            record = appended.recv() => match record {
                Ok(record) => if records.add(record) { records.tell(&doors.changes) },
                Err(broadcast::error::RecvError::Lagged(_)) => doors.changes.tell(Change::Missed),
                Err(broadcast::error::RecvError::Closed) => break,
            },
            _ = tell_records.tick() => records.tell(&doors.changes),
            _ = tick.tick() => {
                if !changed.is_empty() && let Some(now) = names(&doors).await && now != known {
                    known = now;
                    doors.changes.tell(Change::Stacks);
                }
                for stack in std::mem::take(&mut changed) {
                    doors.changes.tell(Change::Stack(stack));
                }
                let (r, p) = (house.rulebook.load_full(), house.prompts.load_full());
                if !Arc::ptr_eq(&r, &rules) || !Arc::ptr_eq(&p, &prompts) {
                    (rules, prompts) = (r, p);
                    doors.changes.tell(Change::Rules);
                }
            }
        }
    }
    follower.abort();
}

/// What was appended and is not told yet.
#[derive(Default)]
struct Records {
    rows: BTreeSet<Row>,
    memories: BTreeSet<(AgentName, Part)>,
}

impl Records {
    /// Adds one; whether there are so many that they are to be told.
    fn add(&mut self, record: Appended) -> bool {
        match record {
            Appended::Row(row) => drop(self.rows.insert(row)),
            Appended::Memory(agent, part) => drop(self.memories.insert((agent, part))),
        }
        self.rows.len() >= MOST_ROWS
    }

    fn tell(&mut self, to: &Changes) {
        if !self.rows.is_empty() {
            to.tell(Change::Log(Arc::new(std::mem::take(&mut self.rows))));
        }
        for (agent, part) in std::mem::take(&mut self.memories) {
            to.tell(Change::Memory(agent, part));
        }
    }
}

/// Passes on which stack an event of the engine concerns, resumed where the stream broke.
async fn follow(doors: Arc<Doors>, events: tokio::sync::mpsc::Sender<String>) {
    let filter = [labels::filter(labels::INSTANCE, doors.house.store.instance())];
    let mut since: DateTime<Utc> = Utc::now();
    loop {
        match doors.house.engine.events(&filter, Some(since)).await {
            Ok(mut stream) => {
                while let Some(Ok(event)) = stream.next().await {
                    since = event.at;
                    let Some(stack) = event.labels.get(labels::STACK) else { continue };
                    if events.send(stack.clone()).await.is_err() {
                        return;
                    }
                }
            }
            Err(e) => tracing::debug!(error = %e, "no event stream for those who listen"),
        }
        tokio::time::sleep(REOPEN).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn rows_of_one_kind_are_told_once_and_many_kinds_at_once() {
        let changes = Changes::default();
        let mut listener = Listener(changes.sender.subscribe());
        let (mut records, agent) = (Records::default(), AgentName::new("observer").expect("valid"));
        let row = |tool: String| Row { agent: "observer".into(), tool, stack: None, verdict: Default::default(), outcome: None };
        for _ in 0..1000 {
            assert!(!records.add(Appended::Row(row("status".into()))));
            assert!(!records.add(Appended::Memory(agent.clone(), Part::History)));
        }
        records.tell(&changes);
        records.tell(&changes);
        assert_eq!(listener.next().await, Some(Change::Log(Arc::new([row("status".into())].into()))));
        assert_eq!(listener.next().await, Some(Change::Memory(agent, Part::History)));
        let full = (0..MOST_ROWS).filter(|n| records.add(Appended::Row(row(n.to_string())))).collect::<Vec<_>>();
        assert_eq!(full, [MOST_ROWS - 1]);
        assert_eq!(listener.0.len(), 0, "nothing was told twice");
    }

    #[tokio::test]
    async fn a_listener_that_is_behind_is_told_so_and_goes_on() {
        let changes = Changes::default();
        let mut listener = Listener(changes.sender.subscribe());
        for n in 0..=BACKLOG {
            changes.tell(Change::Stack(n.to_string()));
        }
        assert_eq!(listener.next().await, Some(Change::Missed));
        assert_eq!(listener.next().await, Some(Change::Stack("1".into())));
    }
}
