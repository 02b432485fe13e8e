//! A stack with a real PostgreSQL on a real engine: an update, an update that does not start, a migration that fails, and the supervisor aborted at
//! moments of each; every row that was acknowledged is there afterwards.

use crate::matrix::{Bench, Case, Data, run, told};
use crate::support::engine::{database, docker, engine};
use crate::support::home::Home;
use crate::support::mcp::Client;
use crate::support::serve::Serve;
use serde_json::{Value, json};

/// The database, the one-shot that migrates it, and an application that waits for both.
fn compose(image: &str, version: &str, setting: &str, migration: &str) -> String {
    format!(
        "x-dockwarden: {{monitor_s: 1}}\nservices:\n  db:\n    image: {image}\n    command: [-c, '{setting}', -c, 'cluster_name={version}']\n    \
         restart: unless-stopped\n    mem_limit: 256m\n    stop_grace_period: 20s\n    volumes: ['rows:/data']\n    \
         healthcheck: {{test: ['CMD', 'pg_isready', '-h', '127.0.0.1'], interval: 1s, start_period: 10s}}\n    \
         x-dockwarden: {{migrates: false, start_timeout_s: 15}}\n  \
         migrate:\n    image: {image}\n    restart: 'no'\n    mem_limit: 128m\n    tmpfs: [/data]\n    \
         entrypoint: [psql, -h, db, -v, ON_ERROR_STOP=1, --single-transaction, -c, \"{migration}\"]\n    \
         environment: {{VERSION: '{version}'}}\n    depends_on: {{db: {{condition: service_healthy}}}}\n  \
         app:\n    image: {image}\n    restart: unless-stopped\n    mem_limit: 64m\n    tmpfs: [/data]\n    \
         entrypoint: [/bin/sh, -c, \"trap 'exit 0' TERM; while :; do sleep 0.2; done\"]\n    environment: {{VERSION: '{version}'}}\n    \
         depends_on: {{migrate: {{condition: service_completed_successfully}}}}\nvolumes: {{rows: {{}}}}\n"
    )
}

fn migration(version: &str) -> String {
    format!(
        "create table if not exists beat (id bigserial primary key); create table if not exists done (version text primary key); \
         insert into done values ('{version}')"
    )
}

/// The migrations the database says it has seen.
fn migrated(stack: &str) -> Vec<String> {
    let rows = docker(&["exec", &format!("{stack}-db-1"), "psql", "-qtA", "-c", "select version from done order by version"]);
    rows.lines().map(str::to_owned).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_real_database_keeps_every_row_whatever_becomes_of_a_release() {
    let _slot = engine().await;
    let image = database("postgres").await;
    let home = Home::new();
    home.unlimited("stack-keeper");
    home.unbroken();
    let stack = home.stack("pg");
    let deploy = |version: String, setting: &str, migration: String| -> (&'static str, Value) {
        ("deploy", json!({"stack": stack, "compose": compose(&image, &version, setting, &migration)}))
    };
    let good = |version: String| deploy(version.clone(), "work_mem=4MB", migration(&version));
    let bench = Bench { home, stack: stack.clone(), writer: "db", fixed: &["db-1", "app-1"], data: Data::Rows };

    let update = Case {
        name: "PostgreSQL updated",
        before: &|round| vec![good(format!("u{round}a"))],
        act: &|round| good(format!("u{round}b")),
        workers: &[0],
        ends: &["done"],
        may_vanish: false,
    };
    let update = ("PostgreSQL updated", run(&bench, &update).await);
    let seen = migrated(&stack);
    assert!(seen.contains(&"u1a".to_owned()) && seen.contains(&"u1b".to_owned()), "migrations ran and stayed: {seen:?}");

    let broken = Case {
        name: "PostgreSQL does not start",
        before: &|_| vec![good("steady".into())],
        act: &|round| deploy(format!("b{round}"), "shared_buffers=nonsense", migration(&format!("b{round}"))),
        workers: &[0],
        ends: &["rolled_back"],
        may_vanish: false,
    };
    let broken = ("PostgreSQL does not start", run(&bench, &broken).await);
    assert!(!migrated(&stack).iter().any(|v| v.starts_with('b')), "nothing was migrated for a database that never started");

    let failing = Case {
        name: "a migration fails",
        before: &|_| vec![good("steady".into())],
        act: &|round| deploy(format!("m{round}"), "work_mem=4MB", format!("{}; select 1/0", migration(&format!("m{round}")))),
        workers: &[0],
        ends: &["rolled_back"],
        may_vanish: false,
    };
    let failing = ("a migration fails", run(&bench, &failing).await);
    assert!(!migrated(&stack).iter().any(|v| v.starts_with('m')), "a migration that failed left nothing");

    // Rows of the first round are still there, and the database says so itself after a check of its own files.
    let serve = Serve::start(&bench.home).await;
    let client = Client::stdio(&bench.home, "stack-keeper").await;
    let health = client.ok("health", json!({"stack": stack, "deep": true})).await;
    assert_eq!(health["healthy"], json!(true), "{health:#}");
    let gaps = docker(&["exec", &format!("{stack}-db-1"), "psql", "-qtA", "-c", "select count(*) from beat where id is null"]);
    assert_eq!(gaps, "0");
    client.close().await;
    serve.stop().await;
    told(&[update, broken, failing]);
}
