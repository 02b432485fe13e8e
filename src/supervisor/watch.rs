//! The engine's event stream, resumed where it broke, as wake-ups. The events themselves decide nothing.

use crate::call::House;
use crate::call::hands::Place;
use crate::model::ids::{EngineName, ServiceName, StackName};
use crate::model::labels;
use crate::model::observed::EngineEvent;
use crate::model::trigger::{EventKind, Happened};
use chrono::{DateTime, Utc};
use futures_util::StreamExt;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc::Sender;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Why to look at a stack.
#[derive(Debug, Clone, PartialEq)]
pub enum Wake {
    /// Something of it changed state.
    Look(StackName),
    /// A container was stopped through the engine, and when; the journal tells whether by us. If not, it is left alone until it is started again.
    Stopped(EngineName, Place, DateTime<Utc>),
    /// The engine was lost after it had stopped these: it stops all that runs when it ends, and says so like any other stop.
    Withdrawn(BTreeSet<EngineName>),
    /// A container ended by a signal through the engine, seen then: whether it was a stop by hand is told by what follows within [`STOP_FOLLOWS`].
    Ending(EngineName, Instant),
    /// A container was removed after a stop or kill through the engine; the journal tells whether by us.
    Removed(EngineName, Place),
    /// It runs again.
    Started(StackName, EngineName),
}

/// Pause before the stream is opened again.
const REOPEN: Duration = Duration::from_secs(1);
/// A stop by hand reads `kill`, `die`, `stop` (engines of API 1.45: `kill`, `stop`, `die`); a kill ends with `die`. After a `die` that follows a `kill`
/// we wait so long for the `stop`.
pub(super) const STOP_FOLLOWS: Duration = Duration::from_millis(500);
/// A stop stands once the engine has been there for so long after it: an engine that ends waits for the longest grace of what runs, then goes.
pub(super) const STANDS: Duration = Duration::from_secs(120);
/// An engine that ends sends its signals to all that runs at once; what was signalled so long before the last one was stopped by somebody else.
const AT_ONCE: Duration = Duration::from_secs(5);

/// What was seen of signals sent through the engine.
#[derive(Debug, Default)]
struct Signals {
    /// The first and the last sent to a container that has not been stopped yet. A stop may send two, and others send none that ends.
    sent: BTreeMap<EngineName, (Instant, Instant)>,
    /// Sent, and the container has not ended yet.
    awaited: BTreeSet<EngineName>,
    /// Ended after one, and neither started again nor removed yet.
    ended: BTreeSet<EngineName>,
    /// Stopped, and when the signals were sent.
    stopped: BTreeMap<EngineName, (Instant, Instant)>,
}

/// Follows events of our own containers until `shutdown`.
pub async fn run(house: Arc<House>, wake: Sender<Wake>, shutdown: CancellationToken) {
    let filter = [labels::filter(labels::INSTANCE, house.store.instance())];
    let mut since = Utc::now();
    let mut signals = Signals::default();
    loop {
        let mut lost = false;
        let stream = tokio::select! {
            () = shutdown.cancelled() => return,
            stream = house.engine.events(&filter, Some(since)) => stream,
        };
        match stream {
            Ok(mut events) => loop {
                let next = tokio::select! {
                    () = shutdown.cancelled() => return,
                    next = events.next() => next,
                };
                match next {
                    Some(Ok(event)) => {
                        since = event.at;
                        let by_hand = signals.awaited.contains(&event.container);
                        let signalled = by_hand || signals.ended.contains(&event.container);
                        let delay = signals.patience(&event, Instant::now());
                        if let Some(news) = news(&house, &event, by_hand) {
                            house.desk.happened(news);
                        }
                        let Some(message) = translate(&event, signalled) else { continue };
                        let now = if delay.is_zero() {
                            if let Wake::Look(stack) = &message {
                                house.executor.reactions().noticed(stack, std::time::Instant::now());
                            }
                            message
                        } else {
                            let seen = Instant::now();
                            later(wake.clone(), message, delay);
                            Wake::Ending(event.container, seen)
                        };
                        if wake.send(now).await.is_err() {
                            return;
                        }
                    }
                    Some(Err(e)) => {
                        tracing::warn!(error = %e, "the event stream broke");
                        lost = true;
                        break;
                    }
                    // Also when another stack is adopted; an engine that is gone does not open the next one.
                    None => break,
                }
            },
            Err(e) => {
                tracing::warn!(error = %e, "the event stream could not be opened");
                lost = true;
            }
        }
        if lost {
            let last = signals.lost(Instant::now());
            if !last.is_empty() && wake.send(Wake::Withdrawn(last)).await.is_err() {
                return;
            }
        }
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(REOPEN) => {}
        }
    }
}

impl Signals {
    /// Notes an event; how long a look at what it speaks of has to wait.
    fn patience(&mut self, event: &EngineEvent, now: Instant) -> Duration {
        let id = &event.container;
        match event.action.as_str() {
            "kill" => {
                let first = self.sent.get(id).map(|(first, _)| *first).filter(|first| now - *first < STANDS);
                self.sent.insert(id.clone(), (first.unwrap_or(now), now));
                self.awaited.insert(id.clone());
            }
            // One that was waiting to be restarted is stopped without a signal.
            "stop" => {
                let signalled = self.sent.remove(id).filter(|(_, last)| now - *last < STANDS);
                self.stopped.insert(id.clone(), signalled.unwrap_or((now, now)));
                self.ended.insert(id.clone());
            }
            "die" if self.awaited.remove(id) => {
                self.ended.insert(id.clone());
                return STOP_FOLLOWS;
            }
            "start" | "destroy" => {
                self.sent.remove(id);
                self.awaited.remove(id);
                self.ended.remove(id);
                self.stopped.remove(id);
            }
            _ => {}
        }
        Duration::ZERO
    }

    /// The engine is gone: whom it may have stopped itself, which are those of its last signals, when they are not long ago.
    fn lost(&mut self, now: Instant) -> BTreeSet<EngineName> {
        let (stopped, sent) = (std::mem::take(&mut self.stopped), std::mem::take(&mut self.sent));
        let Some(began) = stopped.values().chain(sent.values()).map(|(first, _)| *first).max() else { return BTreeSet::new() };
        let doubtful = |signalled: &(Instant, Instant)| now - signalled.1 < STANDS && signalled.1 + AT_ONCE >= began;
        stopped.into_iter().filter(|(_, signalled)| doubtful(signalled)).map(|(id, _)| id).collect()
    }
}

/// Sends a wake-up after a while; at shutdown nobody reads it any more.
pub(super) fn later(wake: Sender<Wake>, message: Wake, delay: Duration) {
    tokio::spawn(async move {
        tokio::time::sleep(delay).await;
        if let Err(e) = wake.send(message).await {
            tracing::debug!(wake = ?e.0, "the loop has ended");
        }
    });
}

/// What an event of the engine says to triggers: nothing while an operation holds the stack, or when somebody ended the container.
fn news(house: &House, event: &EngineEvent, by_hand: bool) -> Option<Happened> {
    let kind = match event.action.as_str() {
        "health_status: unhealthy" => EventKind::ContainerUnhealthy,
        "die" if !by_hand => EventKind::ContainerDied,
        _ => return None,
    };
    let stack = StackName::new(event.labels.get(labels::STACK)?.as_str()).ok()?;
    if house.executor.holding(&stack).is_some() || event.labels.get(labels::ROLE).map(String::as_str) != Some(labels::ROLE_SERVING) {
        return None;
    }
    let id = format!("{}:{}:{}", kind.as_str(), event.container.short(), event.at.timestamp_millis());
    let service = event.labels.get(labels::SERVICE).map(|s| crate::redact::line(s, 80));
    Some(Happened { id, kind, stack: Some(stack), service, facts: serde_json::Map::new() })
}

fn translate(event: &EngineEvent, signalled: bool) -> Option<Wake> {
    let stack = StackName::new(event.labels.get(labels::STACK)?.as_str()).ok()?;
    let place = || Some(Place { stack: stack.clone(), service: ServiceName::new(event.labels.get(labels::SERVICE)?.as_str()).ok()? });
    let serves = matches!(event.labels.get(labels::ROLE).map(String::as_str), Some(labels::ROLE_SERVING | labels::ROLE_FRONT));
    match event.action.as_str() {
        // `stop` comes from the stop call, and from an engine that ends: never from a crash, nor from `kill`.
        "stop" if serves => Some(Wake::Stopped(event.container.clone(), place()?, event.at)),
        // Also while an operation is at work: what it removes is in its journal.
        "destroy" if signalled && serves => Some(Wake::Removed(event.container.clone(), place()?)),
        "start" => Some(Wake::Started(stack, event.container.clone())),
        action if action == "die" || action == "oom" || action.starts_with("health_status") => Some(Wake::Look(stack)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(action: &str, id: &str) -> EngineEvent {
        let container = EngineName::new(id).expect("valid");
        EngineEvent { action: action.into(), container, labels: BTreeMap::new(), at: Utc::now() }
    }

    /// Who is doubted when the engine is lost, after events so many seconds before that.
    fn doubted(events: &[(u64, &str, &str)]) -> Vec<String> {
        let mut signals = Signals::default();
        let lost = Instant::now() + Duration::from_secs(3600);
        for (before, action, id) in events {
            signals.patience(&event(action, id), lost - Duration::from_secs(*before));
        }
        let doubted = signals.lost(lost).iter().map(ToString::to_string).collect();
        assert!(signals.lost(lost).is_empty(), "told once");
        doubted
    }

    #[test]
    fn only_what_was_stopped_with_the_last_signals_before_the_engine_was_lost_is_doubted() {
        let stop = |at: u64, id: &'static str| [(at, "kill", id), (at, "die", id), (at, "stop", id)];
        let none: Vec<String> = vec![];
        assert_eq!(doubted(&[]), none);
        assert_eq!(doubted(&stop(1, "a")), ["a"]);
        assert_eq!(doubted(&stop(600, "a")), none, "the engine has outlived it");
        assert_eq!(doubted(&[stop(60, "hand"), stop(2, "engine")].concat()), ["engine"]);
        assert_eq!(doubted(&[stop(1, "a").to_vec(), vec![(0, "start", "a")]].concat()), none);
        // Signals go to all at once; one does not end by its first and gets a second after its grace, one began with a reload.
        let grace = [
            (80, "kill", "reloaded"),
            (60, "kill", "slow"),
            (60, "kill", "reloaded"),
            (60, "kill", "fast"),
            (60, "die", "fast"),
            (60, "stop", "fast"),
            (59, "stop", "reloaded"),
            (1, "kill", "slow"),
            (1, "stop", "slow"),
        ];
        assert_eq!(doubted(&grace), ["fast", "reloaded", "slow"]);
        // The order of newer engines.
        assert_eq!(doubted(&[(1, "kill", "a"), (1, "stop", "a"), (1, "die", "a")]), ["a"]);
    }
}
