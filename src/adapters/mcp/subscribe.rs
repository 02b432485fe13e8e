//! Notifications: which addresses and lists a change concerns, told to legacy sessions that subscribed and to `subscriptions/listen` streams.
//! A notification carries an address only; reading it is a call like any other. Following is judged as that call would be, and again before each word.
//! Deliberately absent: where changes come from (`adapters::changes`), and what an address is about (`topics`).

use super::sessions::Sessions;
use super::topics::topic;
use super::{Caller, resources};
use crate::adapters::Doors;
use crate::adapters::changes::{Change, Changes};
use crate::call::dispatch::{follow, may_hear};
use crate::call::{Door, Principal};
use rmcp::model::{ResourceUpdatedNotificationParam, SubscriptionFilter};
use rmcp::service::SubscriptionContext;
use rmcp::{ErrorData, Peer, RoleServer};
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use tokio_util::sync::{CancellationToken, DropGuard};

/// Addresses one session or stream may follow: more than a person looks at, few enough to compare with each change.
const MOST: usize = 256;

/// Whether changes of an address are told at all.
pub fn tells(uri: &str) -> bool {
    topic(uri).is_some()
}

/// Judges whether a caller may follow an address, as a read of it is judged.
///
/// # Errors
/// There is no such resource, or what the gate said.
pub async fn judged(doors: &Doors, who: &Principal, caller: &Caller, uri: &str) -> Result<(), ErrorData> {
    #[cfg(feature = "conformance")]
    if super::fixture::read(uri).is_some() {
        return Ok(());
    }
    let read = resources::parse(uri, caller).ok_or_else(|| resources::nowhere(uri))?;
    follow(&doors.house, who, read.wish()).await.map_err(|e| resources::refused(uri, &e))
}

/// Which of the addresses a change concerns and may be told of by now: rules may have changed since they were followed.
async fn news(doors: &Doors, who: &Principal, caller: &Caller, uris: impl IntoIterator<Item = String>, change: &Change) -> Vec<String> {
    let mut told = vec![];
    for uri in uris.into_iter().filter(|uri| topic(uri).is_some_and(|t| t.concerned_by(change))) {
        if let Some(read) = resources::parse(&uri, caller)
            && may_hear(&doors.house, who, read.wish()).await
        {
            told.push(uri);
        }
    }
    told
}

/// Lists a change concerns: tools, prompts, resources.
fn lists(change: &Change) -> (bool, bool, bool) {
    match change {
        Change::Stack(_) | Change::Log(_) | Change::Memory(..) => (false, false, false),
        Change::Stacks => (false, false, true),
        Change::Rules | Change::Missed => (true, true, true),
    }
}

/// The subscriptions of one legacy session; ends with it.
#[derive(Debug)]
pub struct Session {
    uris: Arc<Mutex<BTreeSet<String>>>,
    /// Whose it is, once it follows something.
    caller: Arc<Mutex<Option<Caller>>>,
    begun: AtomicBool,
    end: CancellationToken,
    _ends: DropGuard,
}

impl Default for Session {
    fn default() -> Self {
        let end = CancellationToken::new();
        Self { uris: Arc::default(), caller: Arc::default(), begun: AtomicBool::new(false), _ends: end.clone().drop_guard(), end }
    }
}

impl Session {
    /// Whether an address can be followed, and there is room for it.
    ///
    /// # Errors
    /// Beyond the most one session may follow, and for an address that tells of no change.
    pub fn room(&self, uri: &str) -> Result<(), ErrorData> {
        if !tells(uri) && !cfg!(feature = "conformance") {
            let message = "no change of this address is ever told: it leads nowhere, names what is past (cursor, until) or looks at the log itself; \
                           read it when you need it, or follow it without these";
            return Err(ErrorData::invalid_request(message, None));
        }
        let uris = self.uris.lock().expect("no panic while held");
        if uris.len() >= MOST && !uris.contains(uri) {
            return Err(ErrorData::invalid_request(format!("a session follows at most {MOST} resources; unsubscribe from some"), None));
        }
        Ok(())
    }

    /// Follows an address for its caller.
    ///
    /// # Errors
    /// As [`Session::room`].
    pub fn add(&self, uri: &str, caller: &Caller) -> Result<(), ErrorData> {
        self.room(uri)?;
        *self.caller.lock().expect("no panic while held") = Some(caller.clone());
        self.uris.lock().expect("no panic while held").insert(uri.to_owned());
        Ok(())
    }

    /// Follows it no more.
    pub fn remove(&self, uri: &str) {
        self.uris.lock().expect("no panic while held").remove(uri);
    }

    /// Keeps what is followed beside the session, so that it is followed again after a restart.
    pub async fn keep(&self, sessions: &Sessions, id: &str) {
        // Looked at when it is its turn: of two that keep at once, the later set stands.
        let uris = Arc::clone(&self.uris);
        sessions.follow(id, move || uris.lock().expect("no panic while held").clone()).await;
    }

    /// Follows again what a session followed that is found again.
    pub async fn resume(&self, sessions: &Sessions, id: &str) {
        let kept = sessions.followed(id).await;
        // It reads only: what else a request of its may do does not matter here.
        let caller = sessions.owner(id).await.map(|agent| Caller { agent, read_only: true, toolsets: Default::default() });
        *self.caller.lock().expect("no panic while held") = caller;
        self.uris.lock().expect("no panic while held").extend(kept.into_iter().filter(|u| tells(u)).take(MOST));
    }

    /// Tells the session's client of changes until the session ends; once, however often the client says that it is ready.
    pub fn begin(&self, doors: &Arc<Doors>, door: Door, peer: Peer<RoleServer>) {
        if self.begun.swap(true, Ordering::Relaxed) {
            return;
        }
        let (uris, caller) = (Arc::clone(&self.uris), Arc::clone(&self.caller));
        let (doors, end) = (Arc::clone(doors), self.end.clone());
        let mut changes = Changes::listen(&doors);
        tokio::spawn(async move {
            loop {
                let change = tokio::select! {
                    () = end.cancelled() => return,
                    () = doors.shutdown.cancelled() => return,
                    change = changes.next() => match change {
                        Some(change) => change,
                        None => return,
                    },
                };
                let followed = uris.lock().expect("no panic while held").clone();
                let caller = caller.lock().expect("no panic while held").clone();
                let wanted = match caller {
                    Some(caller) => {
                        let (agent, read_only) = (caller.agent.clone(), caller.read_only);
                        let who = Principal { agent, door, client: None, read_only, on_behalf: vec![] };
                        news(&doors, &who, &caller, followed, &change).await
                    }
                    None => vec![],
                };
                if tell(&peer, wanted, &change).await.is_err() {
                    return;
                }
            }
        });
    }
}

async fn tell(peer: &Peer<RoleServer>, uris: Vec<String>, change: &Change) -> Result<(), rmcp::ServiceError> {
    for uri in uris {
        peer.notify_resource_updated(ResourceUpdatedNotificationParam::new(uri)).await?;
    }
    let (tools, prompts, resources) = lists(change);
    if tools {
        peer.notify_tool_list_changed().await?;
    }
    if prompts {
        peer.notify_prompt_list_changed().await?;
    }
    if resources {
        peer.notify_resource_list_changed().await?;
    }
    Ok(())
}

/// What of a wish is accepted: lists, and as many of our addresses as a stream may follow.
pub fn accepted(requested: &SubscriptionFilter) -> SubscriptionFilter {
    let mut filter = requested.clone();
    if let Some(uris) = &mut filter.resource_subscriptions {
        uris.retain(|u| tells(u) || cfg!(feature = "conformance"));
        uris.truncate(MOST);
    }
    filter
}

/// Runs one `subscriptions/listen` stream until it is cancelled or the supervisor ends.
///
/// # Errors
/// When one of the addresses may not be followed: none is then.
pub async fn listen(doors: &Arc<Doors>, who: &Principal, caller: &Caller, context: SubscriptionContext) -> Result<(), ErrorData> {
    let mut changes = Changes::listen(doors);
    let (sink, wish) = (context.sink().clone(), context.accepted().clone());
    for uri in wish.resource_subscriptions.iter().flatten() {
        judged(doors, who, caller, uri).await?;
    }
    loop {
        let change = tokio::select! {
            () = context.cancelled() => return Ok(()),
            () = doors.shutdown.cancelled() => return Ok(()),
            change = changes.next() => match change {
                Some(change) => change,
                None => return Ok(()),
            },
        };
        let told = async {
            for uri in news(doors, who, caller, wish.resource_subscriptions.iter().flatten().cloned(), &change).await {
                sink.notify_resource_updated(uri).await?;
            }
            let (tools, prompts, resources) = lists(&change);
            if tools && wish.tools_list_changed == Some(true) {
                sink.notify_tool_list_changed().await?;
            }
            if prompts && wish.prompts_list_changed == Some(true) {
                sink.notify_prompt_list_changed().await?;
            }
            if resources && wish.resources_list_changed == Some(true) {
                sink.notify_resource_list_changed().await?;
            }
            Ok::<_, rmcp::service::SubscriptionSendError>(())
        };
        if let Err(e) = told.await {
            tracing::debug!(error = %e, "a listener has gone");
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ids::AgentName;

    fn caller() -> Caller {
        Caller { agent: AgentName::new("observer").expect("valid"), read_only: false, toolsets: Default::default() }
    }

    #[tokio::test]
    async fn what_a_session_follows_is_followed_again_when_it_is_found_again() {
        let home = tempfile::tempdir().expect("directory");
        let sessions = Sessions::open(home.path());
        let session = Session::default();
        for uri in ["dockwarden://stacks/a", "dockwarden://stacks/b"] {
            session.add(uri, &caller()).expect("room");
        }
        session.keep(&sessions, "s-1").await;
        sessions.belongs("s-1", &caller().agent).await;
        session.remove("dockwarden://stacks/a");
        session.keep(&sessions, "s-1").await;
        let found = Session::default();
        found.resume(&Sessions::open(home.path()), "s-1").await;
        assert_eq!(*found.uris.lock().expect("open"), BTreeSet::from(["dockwarden://stacks/b".to_owned()]));
        assert_eq!(
            found.caller.lock().expect("open").as_ref().map(|c| &c.agent),
            Some(&caller().agent),
            "whoever nobody knows is told nothing"
        );
    }

    #[test]
    fn a_session_follows_a_bounded_number_of_resources() {
        let session = Session::default();
        for n in 0..MOST {
            session.add(&format!("dockwarden://stacks/{n}"), &caller()).expect("within the bound");
        }
        session.add("dockwarden://stacks/0", &caller()).expect("followed already");
        assert!(session.add("dockwarden://stacks/more", &caller()).is_err());
        session.remove("dockwarden://stacks/0");
        session.add("dockwarden://stacks/more", &caller()).expect("there is room again");
    }
}
