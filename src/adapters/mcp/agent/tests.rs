//! A run whose hands and journal are at the other end of a real connection, which is cut and comes back.

use super::link::{Link, LinkError, TokenSource};
use super::remote::Remote;
use crate::adapters::Doors;
use crate::model::ids::AgentName;
use crate::model::spend::Usage;
use crate::model::task::{TaskEnd, TaskState, TaskWork};
use crate::runner::ask::Patience;
use crate::runner::models::Key;
use crate::runner::outside::{About, Ask, Lent, VERSION, Welcome};
use crate::runner::provider::{Asked, EndReason, Event, Events, Message, Provider, Request};
use crate::runner::work::{Desk, work};
use crate::supervisor::tasks::tests::{Bench, COMPOSE};
use chrono::Utc;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{AbortHandle, JoinSet};
use tokio_util::sync::CancellationToken;

const MODELS: &str = "[models]\ndefault = \"m\"\n[models.m]\nprovider = \"anthropic\"\nmodel = \"m-1\"\n";
const SOON: Duration = Duration::from_secs(20);

/// A connection that can be cut: everything to `to`.
struct Wire {
    at: SocketAddr,
    to: SocketAddr,
    relay: Mutex<AbortHandle>,
}

impl Wire {
    async fn open(to: SocketAddr) -> Arc<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let at = listener.local_addr().expect("bound");
        Arc::new(Self { at, to, relay: Mutex::new(tokio::spawn(relay(listener, to)).abort_handle()) })
    }

    /// Nobody answers, and what was open is closed.
    fn cut(&self) {
        self.relay.lock().expect("whole").abort();
    }

    async fn mend(&self) {
        let listener = loop {
            match TcpListener::bind(self.at).await {
                Ok(listener) => break listener,
                // The old one closes a moment after it was told to.
                Err(_) => tokio::task::yield_now().await,
            }
        };
        *self.relay.lock().expect("whole") = tokio::spawn(relay(listener, self.to)).abort_handle();
    }
}

async fn relay(listener: TcpListener, to: SocketAddr) {
    // Dropped with the relay, and every connection with it.
    let mut open = JoinSet::new();
    while let Ok((mut from, _)) = listener.accept().await {
        open.spawn(async move {
            if let Ok(mut door) = TcpStream::connect(to).await {
                tokio::io::copy_bidirectional(&mut from, &mut door).await.ok();
            }
        });
    }
}

/// A house with its MCP door, and a connection to it.
struct World {
    bench: Bench,
    wire: Arc<Wire>,
    _door: JoinSet<()>,
}

impl World {
    async fn new() -> Self {
        let bench = Bench::with(|s| {
            s.models = crate::config::parse(MODELS, "t").expect("valid").models;
            s.tasks.outside = vec![agent()];
        })
        .await;
        let hash: [u8; 32] = Sha256::digest(b"a-token-of-a0").into();
        bench.house.store.put_token("a0", "", &hash, None, Utc::now()).await.expect("kept");
        let doors = Doors::new(bench.house.clone(), CancellationToken::new());
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let wire = Wire::open(listener.local_addr().expect("bound")).await;
        let router = crate::adapters::mcp::http::router(&doors);
        let mut door = JoinSet::new();
        door.spawn(async move { axum::serve(listener, router).await.expect("it serves") });
        Self { bench, wire, _door: door }
    }

    fn link(&self, token: &str) -> Arc<Link> {
        let token = TokenSource::Given(Key::new(token).expect("a token"));
        Arc::new(Link::new(&format!("http://{}/mcp", self.wire.at), agent(), token).expect("a client"))
    }
}

fn agent() -> AgentName {
    AgentName::new("a0").expect("valid")
}

/// A model that deploys and reports; before each answer it does something.
struct Deployer<F>(F);

impl<F: Fn(usize) + Send + Sync> Provider for Deployer<F> {
    fn ask(&self, request: Request) -> Events {
        let said = request.messages.iter().filter(|m| matches!(m, Message::Model { .. })).count();
        (self.0)(said);
        let input = json!({"stack": "shop", "compose": COMPOSE, "environment": "development"});
        let what = match said {
            0 => Event::Call(Asked { id: "c0".into(), tool: "deploy".into(), input }),
            1 => Event::Call(Asked { id: "c1".into(), tool: "status".into(), input: json!({}) }),
            _ => Event::Text("The shop is deployed.".into()),
        };
        let usage = Usage { input: 5_000, cached: 0, cache_written: 0, output: 200 };
        Box::pin(futures_util::stream::iter([Ok(what), Ok(Event::Usage(usage)), Ok(Event::End(EndReason::Done))]))
    }
}

#[tokio::test]
async fn a_run_goes_on_over_a_connection_that_is_cut_and_comes_back() {
    let world = World::new().await;
    let b = &world.bench;
    let given = b.give("a0", TaskWork::Prompt("Deploy the shop.".into()), Value::Null, None).await;
    let link = world.link("a-token-of-a0");
    let welcome: Welcome = link.ask(&Ask::Hello { agent: agent(), version: VERSION }, SOON).await.expect("welcome");
    let fetch = Ask::Fetch { claim: welcome.claim, wait_s: 5 };
    let lent = link.ask::<Option<Lent>>(&fetch, SOON).await.expect("an answer").expect("a task");
    assert!(lent.brief.task.contains("Deploy the shop.") && lent.brief.system.contains("the agent a0 of dockwarden"), "{lent:?}");
    let stop = CancellationToken::new();
    let remote = Remote::new(link.clone(), welcome.claim, lent.task.id.clone(), stop.clone());
    let wire = world.wire.clone();
    // Between the answer and its entry in the journal, each time.
    let provider = Deployer(move |_| {
        wire.cut();
        let wire = wire.clone();
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_millis(150)).await;
            wire.mend().await;
        });
    });
    let model = lent.model.with(None, Some("http://127.0.0.1:1"));
    let desk = Desk {
        journal: &remote,
        hands: &remote,
        provider: &provider,
        model: &model,
        system: lent.brief.system.clone(),
        task: lent.brief.task.clone(),
        turns: lent.brief.turns,
        patience: Patience::default(),
    };
    let end = work(&desk, &lent.task, &stop).await;
    assert_eq!(end, TaskEnd::Succeeded("The shop is deployed.".into()), "{}", remote.why());
    let state: Option<TaskState> = remote.until(About::End { end }, SOON, SOON).await.expect("told");
    assert_eq!(state, Some(TaskState::Succeeded));
    let done = b.end(&given).await;
    assert_eq!((done.result.as_deref(), done.attempt), (Some("The shop is deployed."), 1));
    let operations = b.house.store.operations(None, 10).await.expect("read");
    let short = given.id.as_str().trim_start_matches("task-");
    assert_eq!(operations.len(), 1);
    assert_eq!(operations[0].call.as_str(), format!("call-{short}-1-1"), "named as it was written down");
    assert_eq!(operations[0].idempotency_key.as_deref(), Some(format!("{}-1-1", given.id).as_str()));
    let calls = b.called().await;
    assert!(
        calls.iter().filter(|(tool, _)| tool == "deploy" || tool == "status").all(|(_, door)| door.starts_with("mcp-http")),
        "{calls:?}"
    );
    let ledger = b.house.store.spent(None).await.expect("read");
    assert_eq!((ledger[0].answers, ledger[0].tokens_in), (3, 15_000));
    link.close().await;
}

#[tokio::test]
async fn a_wrong_token_is_refused_for_good_and_a_door_nobody_opens_is_not() {
    let world = World::new().await;
    let hello = Ask::Hello { agent: agent(), version: VERSION };
    let refused = world.link("not-the-token").ask::<Welcome>(&hello, SOON).await.expect_err("no such token");
    assert!(matches!(&refused, LinkError::Refused { code, .. } if code == "unauthorized"), "{refused:?}");
    let other = Ask::Hello { agent: AgentName::new("a1").expect("valid"), version: VERSION };
    let refused = world.link("a-token-of-a0").ask::<Welcome>(&other, SOON).await.expect_err("another's");
    assert!(matches!(&refused, LinkError::Refused { code, hint, .. } if code == "denied" && hint.contains("agents token")), "{refused:?}");
    world.wire.cut();
    let away = world.link("a-token-of-a0").ask::<Welcome>(&hello, SOON).await.expect_err("nobody there");
    assert!(matches!(away, LinkError::Away(_)), "{away:?}");
}
