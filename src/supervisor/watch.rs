//! The engine's event stream, resumed where it broke, as wake-ups. The events themselves decide nothing.

use crate::call::House;
use crate::model::ids::{EngineName, StackName};
use crate::model::labels;
use crate::model::observed::EngineEvent;
use crate::model::trigger::{EventKind, Happened};
use chrono::Utc;
use futures_util::StreamExt;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc::Sender;
use tokio_util::sync::CancellationToken;

/// Why to look at a stack.
#[derive(Debug, Clone, PartialEq)]
pub enum Wake {
    /// Something of it changed state.
    Look(StackName),
    /// Somebody stopped a container with the engine's own tools: it is left alone until it is started again.
    StoppedByHand(StackName, EngineName),
    /// It runs again.
    Started(StackName, EngineName),
}

/// Pause before the stream is opened again.
const REOPEN: Duration = Duration::from_secs(1);
/// A stop by hand reads `kill`, `die`, `stop` (engines of API 1.45: `kill`, `stop`, `die`); a kill ends with `die`. After a `die` that follows a `kill`
/// we wait so long for the `stop`.
const STOP_FOLLOWS: Duration = Duration::from_millis(500);

/// Follows events of our own containers until `shutdown`.
pub async fn run(house: Arc<House>, wake: Sender<Wake>, shutdown: CancellationToken) {
    let filter = [labels::filter(labels::INSTANCE, house.store.instance())];
    let mut since = Utc::now();
    let mut killed = BTreeSet::new();
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
                        let by_hand = killed.contains(&event.container);
                        let delay = patience(&mut killed, &event);
                        if let Some(news) = news(&house, &event, by_hand) {
                            house.desk.happened(news);
                        }
                        let Some(message) = translate(&house, &event) else { continue };
                        if delay.is_zero() {
                            if wake.send(message).await.is_err() {
                                return;
                            }
                        } else {
                            later(wake.clone(), message, delay);
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

/// How long a look at what an event speaks of has to wait.
fn patience(killed: &mut BTreeSet<EngineName>, event: &EngineEvent) -> Duration {
    match event.action.as_str() {
        "kill" => {
            killed.insert(event.container.clone());
        }
        "die" if killed.remove(&event.container) => return STOP_FOLLOWS,
        "start" | "destroy" => {
            killed.remove(&event.container);
        }
        _ => {}
    }
    Duration::ZERO
}

/// Sends a wake-up after a while; at shutdown nobody reads it any more.
fn later(wake: Sender<Wake>, message: Wake, delay: Duration) {
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

fn translate(house: &House, event: &EngineEvent) -> Option<Wake> {
    let stack = StackName::new(event.labels.get(labels::STACK)?.as_str()).ok()?;
    let ours = house.executor.holding(&stack).is_some();
    match event.action.as_str() {
        // `stop` comes from the stop call alone: never from a crash, nor from `kill`.
        "stop" if !ours => Some(Wake::StoppedByHand(stack, event.container.clone())),
        "start" => Some(Wake::Started(stack, event.container.clone())),
        action if action == "die" || action == "oom" || action.starts_with("health_status") => Some(Wake::Look(stack)),
        _ => None,
    }
}
