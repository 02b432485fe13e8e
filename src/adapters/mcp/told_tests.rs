//! What clients are told of records they follow, over a connection in memory, in both eras.

use super::{Caller, Server};
use crate::adapters::Doors;
use crate::call::Door;
use crate::call::dispatch::tests::{Bench, KEEPER, bench_of};
use crate::gate::Rulebook;
use crate::model::ids::AgentName;
use crate::store::audit::AuditQuery;
use rmcp::model::*;
use rmcp::service::{NotificationContext, RunningService};
use rmcp::{ClientHandler, ClientLifecycleMode, ClientServiceExt, RoleClient, ServiceError, ServiceExt};
use serde_json::json;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio_util::sync::CancellationToken;

const SOON: Duration = Duration::from_secs(20);

/// Remembers what it was told.
#[derive(Clone, Default)]
struct Ears {
    updated: Arc<Mutex<Vec<String>>>,
}

impl ClientHandler for Ears {
    async fn on_resource_updated(&self, params: ResourceUpdatedNotificationParam, _: NotificationContext<RoleClient>) {
        self.updated.lock().expect("whole").push(params.uri);
    }
}

impl Ears {
    async fn hears(&self, what: &str) {
        let heard = async {
            while !self.updated.lock().expect("whole").iter().any(|u| u == what) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        assert!(tokio::time::timeout(SOON, heard).await.is_ok(), "{what}: {:?}", self.updated.lock().expect("whole"));
    }
}

const RECORDS: &str = "audit, memory_read, memory_write, ";

async fn world() -> (Bench, Arc<Doors>) {
    let b = bench_of(&KEEPER.replacen("tools: ", &format!("tools: {RECORDS}"), 1)).await;
    let doors = Doors::new(b.house.clone(), CancellationToken::new());
    (b, doors)
}

/// A client of `keeper` in an era.
async fn client(doors: &Arc<Doors>, newer: bool) -> (RunningService<RoleClient, Ears>, Ears) {
    let (near, far) = tokio::io::duplex(1 << 20);
    let caller = Caller { agent: AgentName::new("keeper").expect("valid"), read_only: false, toolsets: Default::default() };
    let server = Server::for_caller(Arc::clone(doors), Door::McpStdio, caller);
    tokio::spawn(async move {
        if let Ok(service) = server.serve(near).await {
            service.waiting().await.ok();
        }
    });
    let ears = Ears::default();
    let service = if newer {
        let mode = ClientLifecycleMode::Discover { preferred_versions: vec![ProtocolVersion::V_2026_07_28] };
        ears.clone().serve_with_lifecycle(far, mode).await.expect("discovered")
    } else {
        ears.clone().serve(far).await.expect("initialized")
    };
    (service, ears)
}

fn uri(path: &str) -> String {
    format!("dockwarden://{path}")
}

async fn write_note(b: &Bench) {
    b.call("memory_write", json!({"key": "n", "value": "x"})).await.expect("written");
}

#[expect(deprecated, reason = "the earlier era's way, which most clients still use")]
async fn subscribe(service: &RunningService<RoleClient, Ears>, path: &str) -> Result<(), ServiceError> {
    service.subscribe(SubscribeRequestParams::new(uri(path))).await
}

#[tokio::test]
async fn records_are_followed_in_the_earlier_era_and_judged_like_a_read() {
    let (b, doors) = world().await;
    let (service, ears) = client(&doors, false).await;
    for path in ["audit?tool=memory_write", "audit?agent=nobody", "memory/keeper/context", "memory/keeper/history"] {
        subscribe(&service, path).await.unwrap_or_else(|e| panic!("{path}: {e}"));
    }
    // Another's memory is nowhere, a page of the past never changes, and what the agent may not call it may not follow.
    for path in ["memory/other/context", "audit?cursor=9", "agents"] {
        assert!(subscribe(&service, path).await.is_err(), "{path}");
    }
    let of_agents = AuditQuery { tool: Some("agents".into()), limit: 1, ..Default::default() };
    let denied = b.house.store.audit_rows(&of_agents).await.expect("rows");
    assert_eq!(denied[0].outcome.as_deref(), Some("denied"));
    write_note(&b).await;
    for path in ["audit?tool=memory_write", "memory/keeper/context", "memory/keeper/history"] {
        ears.hears(&uri(path)).await;
    }
    assert!(!ears.updated.lock().expect("whole").contains(&uri("audit?agent=nobody")));
    // What is told is judged by the rules of then.
    let without = KEEPER.replacen("tools: ", "tools: memory_read, memory_write, ", 1);
    let policy = "allowed_registries = [\"local\", \"docker.io/library\"]\n";
    let book = Rulebook::build(vec![("keeper.md".into(), without)], policy, &crate::tools::gate_facts()).expect("a rulebook");
    b.house.rulebook.store(Arc::new(book));
    ears.updated.lock().expect("whole").clear();
    write_note(&b).await;
    ears.hears(&uri("memory/keeper/history")).await;
    write_note(&b).await;
    ears.hears(&uri("memory/keeper/context")).await;
    assert!(!ears.updated.lock().expect("whole").contains(&uri("audit?tool=memory_write")), "it may not read that any more");
}

#[tokio::test]
async fn records_are_followed_in_the_newer_era_and_judged_like_a_read() {
    let (b, doors) = world().await;
    let (service, _ears) = client(&doors, true).await;
    let paths = ["audit?tool=memory_write", "memory/keeper/context", "memory/keeper/history"];
    let filter =
        |paths: &[&str]| SubscriptionFilter::builder().resource_subscriptions(paths.iter().map(|p| uri(p)).collect::<Vec<_>>()).build();
    let mut heard = service.listen(filter(&paths)).await.expect("listens");
    write_note(&b).await;
    let mut missing: Vec<String> = paths.iter().map(|p| uri(p)).collect();
    while !missing.is_empty() {
        let news = tokio::time::timeout(SOON, heard.next()).await.unwrap_or_else(|_| panic!("{missing:?}")).expect("open");
        let Some(ServerNotification::ResourceUpdatedNotification(news)) = news else { panic!("{news:?}") };
        missing.retain(|uri| *uri != news.params.uri);
    }
    for path in ["memory/other/context", "agents"] {
        let refused = match service.listen(filter(&["memory/keeper/context", path])).await {
            Err(e) => Err(e),
            Ok(mut stream) => tokio::time::timeout(SOON, stream.next()).await.expect("it ends"),
        };
        assert!(refused.is_err(), "{path}: {refused:?}");
    }
}
