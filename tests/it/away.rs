//! A real engine that goes away in the middle of an update: stopped and started again with all that ran on it, and hanging with its socket open. The
//! operation ends by itself, one release serves, the data is whole. (Every moment runs on the in-memory engine, in `executor::tests::away`.)

use crate::front::free_port;
use crate::matrix::compose;
use crate::support::data::ended;
use crate::support::engine::{engine, nth_event};
use crate::support::home::Home;
use crate::support::mcp::Client;
use crate::support::own_engine::OwnEngine;
use crate::support::serve::Serve;
use crate::support::{BIN, eventually};
use serde_json::json;
use std::collections::BTreeSet;
use std::time::Duration;

/// What becomes of the engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// Stopped in order, with what runs on it, and started.
    Restarted,
    /// It answers nothing for so many seconds. Longer than the longest look (15 s) it counts as away.
    Hangs(u64),
}

/// Moments, in events of the stack's containers since the update began, and what happens then. The last is short: names are looked up in the engine, and
/// the one-shot waits for two seconds.
const MOMENTS: [(usize, Fate); 4] = [(1, Fate::Restarted), (3, Fate::Hangs(17)), (8, Fate::Restarted), (10, Fate::Hangs(1))];

/// Adds a visit and counts them.
async fn visits(engine: &OwnEngine, port: u16, context: &str) -> u64 {
    let url = format!("http://127.0.0.1:{port}/");
    eventually(&format!("{context}: the stack answers"), Duration::from_secs(60), || async {
        let asked = engine.inside(BIN, &["demo-app", "check", &url]);
        let text = String::from_utf8_lossy(&asked.stdout).into_owned();
        let count = text.split_whitespace().skip_while(|w| *w != "visits").nth(1).and_then(|n| n.parse().ok());
        asked.status.success().then_some(count).flatten()
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_update_survives_an_engine_that_is_restarted_or_hangs_in_the_middle() {
    let slot = engine().await;
    let mut engine = OwnEngine::start().await;
    engine.load(&slot.image);
    let home = Home::new().on_engine(engine.host());
    home.unlimited("stack-keeper");
    home.unbroken();
    let (stack, port) = (home.stack("away"), free_port());
    let serve = Serve::start(&home).await;
    let client = Client::stdio(&home, "stack-keeper").await;
    let input = |version: &str| json!({"stack": stack, "compose": compose(&slot.image, port, version, "none", 1), "timeout_s": 5});
    let first = client.ok("deploy", input("v0")).await;
    assert_eq!(ended(&client, &first["operation_id"]).await["state"], json!("done"));
    let mut count = visits(&engine, port, "the first release").await;
    let expected: BTreeSet<String> = ["store-1", "api-1", "api-front", "worker-1"].map(str::to_owned).into();

    for (moment, fate) in MOMENTS {
        let context = format!("{fate:?} at event {moment}");
        let came = nth_event(Some(&engine.host()), &stack, moment);
        let version = format!("v{moment}");
        let (answered, came) = tokio::join!(client.call("deploy", input(&version)), async {
            let came = tokio::time::timeout(Duration::from_secs(60), came).await;
            match fate {
                Fate::Restarted => {
                    engine.halt().await;
                    engine.boot().await;
                }
                Fate::Hangs(seconds) => engine.hang(Duration::from_secs(seconds)).await,
            }
            came
        });
        assert!(came.is_ok(), "{context}: the moment came");
        let answered = answered.unwrap_or_else(|e| panic!("{context}: {e}")).structured_content.unwrap_or_default();
        let over = ended(&client, &answered["operation_id"]).await;
        // What the engine ended with itself fails the release; once its one-shot has changed the data, a person decides, and the next deploy settles it.
        let fine: &[&str] = if fate == Fate::Restarted { &["done", "rolled_back", "needs_attention"] } else { &["done"] };
        assert!(fine.iter().any(|s| over["state"] == json!(s)), "{context}: {over:#}");
        let seen = eventually(&format!("{context}: one release runs and is healthy"), Duration::from_secs(180), || async {
            let label = format!("label=dockwarden.stack={stack}");
            let listed = engine.docker(&["ps", "-a", "--filter", &label, "--format", "{{.Names}} {{.State}}"]);
            let short = |n: &str| n.trim_start_matches(&format!("{stack}-")).to_owned();
            let seen: Vec<(String, String)> =
                listed.lines().filter_map(|l| l.split_once(' ')).map(|(n, s)| (short(n), s.to_owned())).collect();
            let running: BTreeSet<String> = seen.iter().filter(|(_, s)| s == "running").map(|(n, _)| n.clone()).collect();
            let free = client.ok("status", json!({"stack": stack})).await["stacks"][0]["operation_id"].is_null();
            let healthy = client.ok("health", json!({"stack": stack})).await["healthy"] == json!(true);
            (running == expected && free && healthy).then_some(seen)
        })
        .await;
        let others: Vec<_> = seen.iter().filter(|(n, _)| !expected.contains(n) && n != "once-1" && !n.contains("-claim-")).collect();
        assert!(others.is_empty() || over["state"] == json!("needs_attention"), "{context}: nothing is forgotten: {others:?}");
        let now = visits(&engine, port, &context).await;
        assert!(now > count, "{context}: {now} visits after {count}");
        count = now;
        eprintln!("{context}: {}", over["state"]);
    }
    client.close().await;
    serve.stop().await;
    engine.halt().await;
}
