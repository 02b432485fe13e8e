//! The engine's event stream, resumed where it broke, as wake-ups. The events themselves decide nothing.

use crate::call::House;
use crate::call::hands::Place;
use crate::model::ids::{EngineName, ServiceName, StackName};
use crate::model::labels;
use crate::model::observed::EngineEvent;
use crate::model::trigger::{EventKind, Happened};
use chrono::Utc;
use futures_util::StreamExt;
use std::collections::BTreeSet;
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
    /// Somebody stopped a container with the engine's own tools: it is left alone until it is started again.
    StoppedByHand(EngineName, Option<Place>),
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

/// What was seen of signals sent through the engine.
#[derive(Debug, Default)]
struct Signals {
    /// Sent, and the container has not ended yet.
    sent: BTreeSet<EngineName>,
    /// Ended after one, and neither started again nor removed yet.
    ended: BTreeSet<EngineName>,
}

/// Follows events of our own containers until `shutdown`.
pub async fn run(house: Arc<House>, wake: Sender<Wake>, shutdown: CancellationToken) {
    let filter = [labels::filter(labels::INSTANCE, house.store.instance())];
    let mut since = Utc::now();
    let mut signals = Signals::default();
    loop {
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
                        let by_hand = signals.sent.contains(&event.container);
                        let signalled = by_hand || signals.ended.contains(&event.container);
                        let delay = signals.patience(&event);
                        if let Some(news) = news(&house, &event, by_hand) {
                            house.desk.happened(news);
                        }
                        let Some(message) = translate(&house, &event, signalled) else { continue };
                        let now = if delay.is_zero() {
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
                        break;
                    }
                    None => break,
                }
            },
            Err(e) => tracing::warn!(error = %e, "the event stream could not be opened"),
        }
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(REOPEN) => {}
        }
    }
}

impl Signals {
    /// Notes an event; how long a look at what it speaks of has to wait.
    fn patience(&mut self, event: &EngineEvent) -> Duration {
        let id = &event.container;
        match event.action.as_str() {
            "kill" => {
                self.sent.insert(id.clone());
            }
            // One that was waiting to be restarted is stopped without a signal.
            "stop" => {
                self.ended.insert(id.clone());
            }
            "die" if self.sent.remove(id) => {
                self.ended.insert(id.clone());
                return STOP_FOLLOWS;
            }
            "start" | "destroy" => {
                self.sent.remove(id);
                self.ended.remove(id);
            }
            _ => {}
        }
        Duration::ZERO
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

fn translate(house: &House, event: &EngineEvent, signalled: bool) -> Option<Wake> {
    let stack = StackName::new(event.labels.get(labels::STACK)?.as_str()).ok()?;
    let place = || Some(Place { stack: stack.clone(), service: ServiceName::new(event.labels.get(labels::SERVICE)?.as_str()).ok()? });
    let role = event.labels.get(labels::ROLE).map(String::as_str);
    let ours = house.executor.holding(&stack).is_some();
    match event.action.as_str() {
        // `stop` comes from the stop call alone: never from a crash, nor from `kill`.
        "stop" if !ours => Some(Wake::StoppedByHand(event.container.clone(), place())),
        // Also while an operation is at work: what it removes is in its journal.
        "destroy" if signalled && matches!(role, Some(labels::ROLE_SERVING | labels::ROLE_FRONT)) => {
            Some(Wake::Removed(event.container.clone(), place()?))
        }
        "start" => Some(Wake::Started(stack, event.container.clone())),
        action if action == "die" || action == "oom" || action.starts_with("health_status") => Some(Wake::Look(stack)),
        _ => None,
    }
}
