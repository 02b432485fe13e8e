//! Notifications: which addresses and lists a change concerns, told to legacy sessions that subscribed and to `subscriptions/listen` streams.
//! A notification carries an address only; reading it is a call like any other. Deliberately absent: where changes come from (`adapters::changes`).

use super::resources::SCHEME;
use super::sessions::Sessions;
use crate::adapters::Doors;
use crate::adapters::changes::{Change, Changes};
use rmcp::model::{ResourceUpdatedNotificationParam, SubscriptionFilter};
use rmcp::service::SubscriptionContext;
use rmcp::{ErrorData, Peer, RoleServer};
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use tokio_util::sync::{CancellationToken, DropGuard};

/// Addresses one session or stream may follow: more than a person looks at, few enough to compare with each change.
const MOST: usize = 256;

/// Whether a change concerns an address.
fn concerns(uri: &str, change: &Change) -> bool {
    let Some(path) = uri.strip_prefix(SCHEME) else { return false };
    match change {
        Change::Stack(stack) => {
            path == "stacks"
                || path
                    .strip_prefix("stacks/")
                    .and_then(|p| p.strip_prefix(stack.as_str()))
                    .is_some_and(|r| r.is_empty() || r.starts_with('/'))
        }
        Change::Stacks => path == "stacks",
        Change::Rules => path == "agents" || path.starts_with("agents/"),
        Change::Missed => true,
    }
}

/// Whether changes of an address are told at all: those of the audit log and of memories are not, since every call makes some.
pub fn tells(uri: &str) -> bool {
    let path = uri.strip_prefix(SCHEME).unwrap_or_default();
    ["stacks", "agents"].iter().any(|root| path.strip_prefix(root).is_some_and(|rest| rest.is_empty() || rest.starts_with('/')))
}

/// Lists a change concerns: tools, prompts, resources.
fn lists(change: &Change) -> (bool, bool, bool) {
    match change {
        Change::Stack(_) => (false, false, false),
        Change::Stacks => (false, false, true),
        Change::Rules | Change::Missed => (true, true, true),
    }
}

/// The subscriptions of one legacy session; ends with it.
#[derive(Debug)]
pub struct Session {
    uris: Arc<Mutex<BTreeSet<String>>>,
    begun: AtomicBool,
    end: CancellationToken,
    _ends: DropGuard,
}

impl Default for Session {
    fn default() -> Self {
        let end = CancellationToken::new();
        Self { uris: Arc::default(), begun: AtomicBool::new(false), _ends: end.clone().drop_guard(), end }
    }
}

impl Session {
    /// Follows an address.
    ///
    /// # Errors
    /// Beyond the most one session may follow.
    pub fn add(&self, uri: &str) -> Result<(), ErrorData> {
        if !tells(uri) && !cfg!(feature = "conformance") {
            let message = "changes of this resource are not told; read it again when you need it. Stacks and agents can be followed";
            return Err(ErrorData::invalid_request(message, None));
        }
        let mut uris = self.uris.lock().expect("no panic while held");
        if uris.len() >= MOST && !uris.contains(uri) {
            return Err(ErrorData::invalid_request(format!("a session follows at most {MOST} resources; unsubscribe from some"), None));
        }
        uris.insert(uri.to_owned());
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
        self.uris.lock().expect("no panic while held").extend(kept.into_iter().filter(|u| tells(u)).take(MOST));
    }

    /// Tells the session's client of changes until the session ends; once, however often the client says that it is ready.
    pub fn begin(&self, doors: &Arc<Doors>, peer: Peer<RoleServer>) {
        if self.begun.swap(true, Ordering::Relaxed) {
            return;
        }
        let (uris, end, ending) = (Arc::clone(&self.uris), self.end.clone(), doors.shutdown.clone());
        let mut changes = Changes::listen(doors);
        tokio::spawn(async move {
            loop {
                let change = tokio::select! {
                    () = end.cancelled() => return,
                    () = ending.cancelled() => return,
                    change = changes.next() => match change {
                        Some(change) => change,
                        None => return,
                    },
                };
                let wanted: Vec<String> =
                    uris.lock().expect("no panic while held").iter().filter(|u| concerns(u, &change)).cloned().collect();
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
pub async fn listen(doors: &Arc<Doors>, context: SubscriptionContext) -> Result<(), ErrorData> {
    let mut changes = Changes::listen(doors);
    let (sink, wish) = (context.sink().clone(), context.accepted().clone());
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
            for uri in wish.resource_subscriptions.iter().flatten().filter(|u| concerns(u, &change)) {
                sink.notify_resource_updated(uri.clone()).await?;
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

    #[test]
    fn a_change_concerns_the_stack_and_what_is_under_it() {
        let change = Change::Stack("shop".into());
        for uri in ["stacks", "stacks/shop", "stacks/shop/health", "stacks/shop/releases/3"] {
            assert!(concerns(&format!("{SCHEME}{uri}"), &change), "{uri}");
        }
        for uri in ["stacks/shop2", "stacks/sho", "agents", "audit"] {
            assert!(!concerns(&format!("{SCHEME}{uri}"), &change), "{uri}");
        }
        assert!(!concerns("other://stacks", &change));
        assert!(concerns("dockwarden://agents/observer", &Change::Rules));
    }

    #[test]
    fn what_never_tells_of_a_change_is_not_followed() {
        let may = ["stacks", "stacks/shop", "stacks/shop/operations/op-1", "agents", "agents/observer"];
        let never = ["audit", "audit?stack=shop", "memory/observer/context", "stacksx", ""];
        let mut filter = SubscriptionFilter::default();
        filter.resource_subscriptions = Some(may.iter().chain(&never).map(|path| format!("{SCHEME}{path}")).collect());
        let session = Session::default();
        for path in never {
            assert!(session.add(&format!("{SCHEME}{path}")).is_err() || cfg!(feature = "conformance"), "{path}");
        }
        for path in may {
            assert!(session.add(&format!("{SCHEME}{path}")).is_ok(), "{path}");
        }
        let kept = accepted(&filter).resource_subscriptions.expect("addresses");
        assert!(kept.len() == may.len() || cfg!(feature = "conformance"), "{kept:?}");
    }

    #[tokio::test]
    async fn what_a_session_follows_is_followed_again_when_it_is_found_again() {
        let home = tempfile::tempdir().expect("directory");
        let sessions = Sessions::open(home.path());
        let session = Session::default();
        for uri in ["dockwarden://stacks/a", "dockwarden://stacks/b"] {
            session.add(uri).expect("room");
        }
        session.keep(&sessions, "s-1").await;
        session.remove("dockwarden://stacks/a");
        session.keep(&sessions, "s-1").await;
        let found = Session::default();
        found.resume(&Sessions::open(home.path()), "s-1").await;
        assert_eq!(*found.uris.lock().expect("open"), BTreeSet::from(["dockwarden://stacks/b".to_owned()]));
    }

    #[test]
    fn a_session_follows_a_bounded_number_of_resources() {
        let session = Session::default();
        for n in 0..MOST {
            session.add(&format!("{SCHEME}stacks/{n}")).expect("within the bound");
        }
        session.add("dockwarden://stacks/0").expect("followed already");
        assert!(session.add("dockwarden://stacks/more").is_err());
        session.remove("dockwarden://stacks/0");
        session.add("dockwarden://stacks/more").expect("there is room again");
    }
}
