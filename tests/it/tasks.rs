//! Tasks over the real doors: the command line, REST, signed requests, a killed supervisor, and the queue at its bounds.

use crate::support::eventually;
use crate::support::home::Home;
use crate::support::mcp::Client;
use crate::support::serve::Serve;
use hmac::{Hmac, KeyInit, Mac};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use sha2::Sha256;
use std::sync::Arc;
use std::time::{Duration, Instant};

const WITHIN: Duration = Duration::from_secs(60);

/// One request; status and body.
async fn ask(serve: &Serve, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> (u16, Value) {
    let stream = tokio::net::TcpStream::connect(&serve.listen).await.expect("open");
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.expect("http");
    tokio::spawn(connection);
    let mut request =
        hyper::Request::builder().method(method).uri(path).header("host", &serve.listen).header("content-type", "application/json");
    for (key, value) in headers {
        request = request.header(*key, *value);
    }
    let answer =
        sender.send_request(request.body(Full::<bytes::Bytes>::from(body.to_owned())).expect("a request")).await.expect("an answer");
    let status = answer.status().as_u16();
    let bytes = answer.into_body().collect().await.expect("read").to_bytes();
    (status, serde_json::from_slice(&bytes).unwrap_or(Value::Null))
}

const LOOK: &str = "---\nname: look\ntitle: Look\ndescription: Looks.\narguments:\n  - {name: who, description: Who asks}\nsteps:\n  - {id: backups, tool: backups}\n---\n# Looked for {{who}}\n\n{{steps.backups}}\n";

#[tokio::test]
async fn a_task_is_given_by_hand_by_program_and_over_mcp_and_its_result_is_read() {
    let home = Home::new();
    home.configure("prompts/look.md", LOOK);
    let serve = Serve::start(&home).await;
    let (code, out, err) = home.run(&["task", "submit", "stack-keeper", "--skill", "look", "--input", "who=ann", "--wait"]).await;
    assert_eq!(code, 0, "{out}{err}");
    assert!(out.contains("succeeded") && out.contains("# Looked for ann"), "{out}");
    let (code, _, err) = home.run(&["task", "submit", "stack-keeper", "--skill", "lok"]).await;
    assert!(code != 0 && err.contains("look"), "the nearest name: {err}");

    let bearer = format!("Bearer {}", home.token("stack-keeper").await);
    let wish = json!({"agent": "stack-keeper", "skill": "look", "input": {"who": "a program"}}).to_string();
    assert_eq!(ask(&serve, "POST", "/api/tasks", &[], &wish).await.0, 401);
    let (status, given) = ask(&serve, "POST", "/api/tasks", &[("authorization", &bearer)], &wish).await;
    assert_eq!(status, 202, "{given}");
    let path = format!("/api/tasks/{}", given["task_id"].as_str().expect("an id"));
    let done = eventually("the task ends", WITHIN, || async {
        let (status, task) = ask(&serve, "GET", &path, &[("authorization", &bearer)], "").await;
        assert_eq!(status, 200, "{task}");
        (task["state"] == "succeeded").then_some(task)
    })
    .await;
    assert!(done["result"]["untrusted"] == true && done["steps"][0]["step"] == "backups", "{done:#}");
    let (status, refused) = ask(&serve, "POST", "/api/tasks", &[("authorization", &bearer)], r#"{"agent": "x", "skil": "look"}"#).await;
    assert!(status == 400 && refused["error"]["hint"].as_str().is_some_and(|h| h.contains("skill or prompt")), "{status} {refused}");
    assert_eq!(ask(&serve, "GET", "/api/tasks/task-0", &[("authorization", &bearer)], "").await.0, 404);

    let observer = format!("Bearer {}", home.token("observer").await);
    let (status, denied) = ask(&serve, "POST", "/api/tasks", &[("authorization", &observer)], &wish).await;
    assert!(status == 403 && denied["error"]["code"] == "denied", "{status} {denied}");

    let client = Client::http(&serve.mcp_url(), bearer.trim_start_matches("Bearer ")).await;
    let first = client.ok("task_submit", json!({"agent": "stack-keeper", "skill": "look", "idempotency_key": "k"})).await;
    let again = client.ok("task_submit", json!({"agent": "stack-keeper", "skill": "look", "idempotency_key": "k"})).await;
    assert_eq!(first["task_id"], again["task_id"], "one task per key");
    let seen = client.ok("tasks", json!({"task_id": first["task_id"], "wait_s": 30})).await;
    assert_eq!(seen["tasks"][0]["state"], "succeeded", "{seen:#}");
    client.refused("cancel", json!({"task_id": first["task_id"]})).await;
    serve.stop().await;
}

#[tokio::test]
async fn a_signed_request_is_taken_once_and_an_unsigned_one_never() {
    let home = Home::new();
    home.configure("prompts/look.md", LOOK);
    let secret = home.path("config/push.key");
    std::fs::write(&secret, "a secret of some length\n").expect("written");
    home.configure(
        "dockwarden.toml",
        &format!(
            "[[triggers]]\nname = \"push\"\nagent = \"stack-keeper\"\nskill = \"look\"\ninput = {{who = \"push to {{{{body.ref}}}}\"}}\n\
             on = {{webhook = \"github\", secret_file = {secret:?}, events = [\"push\"]}}\n"
        ),
    );
    let serve = Serve::start(&home).await;
    let sign = |body: &str| {
        let mut mac = <Hmac<Sha256> as KeyInit>::new_from_slice(b"a secret of some length").expect("any key");
        mac.update(body.as_bytes());
        let bytes = mac.finalize().into_bytes();
        format!("sha256={}", bytes.iter().map(|b| format!("{b:02x}")).collect::<String>())
    };
    let push = r#"{"ref": "refs/heads/main"}"#;
    let of = |event: &'static str, body: &'static str, signature: String| {
        let serve = &serve;
        async move { ask(serve, "POST", "/hooks/push", &[("x-github-event", event), ("x-hub-signature-256", &signature)], body).await }
    };
    assert_eq!(ask(&serve, "POST", "/hooks/push", &[("x-github-event", "push")], push).await.0, 401);
    assert_eq!(of("push", push, sign("{}")).await.0, 401);
    assert_eq!(ask(&serve, "POST", "/hooks/other", &[], push).await.0, 404);
    let (status, ignored) = of("ping", push, sign(push)).await;
    assert!(status == 200 && ignored["state"] == "ignored", "{ignored}");
    let (status, taken) = of("push", push, sign(push)).await;
    assert_eq!(status, 202, "{taken}");
    let (status, twice) = of("push", push, sign(push)).await;
    assert!(status == 200 && twice["state"] == "duplicate", "{twice}");
    let id = taken["tasks"][0].as_str().expect("a task").to_owned();
    let (code, out, err) = home.run(&["task", "show", &id, "--wait"]).await;
    assert!(code == 0 && out.contains("# Looked for push to refs/heads/main"), "{out}{err}");
    let (_, listed, _) = home.run(&["task", "list", "--json"]).await;
    let listed: Value = serde_json::from_str(&listed).expect("json");
    assert!(listed["tasks"].as_array().is_some_and(|t| t.len() == 1 && t[0]["origin"] == "webhook"), "{listed}");
    serve.stop().await;
}

/// Agents that give themselves tasks, without a limit of calls.
fn workers(home: &Home, n: usize) {
    for n in 0..n {
        let text = format!(
            "---\nname: w{n}\ndescription: Works.\ntools: backups, task_submit, tasks\nmodel: inherit\ndockwarden:\n  tier: tier_3_write_elevated\n  rules:\n    - {{id: give, effect: allow, tools: [task_submit], because: \"it works for itself\"}}\n---\nx\n"
        );
        home.configure(&format!("agents/w{n}.md"), &text);
    }
    home.configure("prompts/look.md", LOOK);
}

#[tokio::test]
async fn tasks_survive_a_kill_and_each_ends_once() {
    let home = Home::new();
    workers(&home, 3);
    let serve = Serve::start(&home).await;
    let mut ids = vec![];
    for n in 0..3 {
        let client = Client::http(&serve.mcp_url(), &home.token(&format!("w{n}")).await).await;
        for _ in 0..15 {
            let given = client.ok("task_submit", json!({"agent": format!("w{n}"), "skill": "look"})).await;
            ids.push(given["task_id"].as_str().expect("an id").to_owned());
        }
    }
    serve.kill9().await;
    let serve = Serve::start(&home).await;
    let client = Client::http(&serve.mcp_url(), &home.token("w0").await).await;
    for id in &ids {
        let seen = client.ok("tasks", json!({"task_id": id, "wait_s": 50})).await;
        assert_eq!(seen["tasks"][0]["state"], "succeeded", "{seen:#}");
        assert_eq!(seen["steps"].as_array().map(Vec::len), Some(1), "{seen:#}");
    }
    let (code, out, err) = home.run(&["audit", "verify"]).await;
    assert_eq!(code, 0, "{out}{err}");
    serve.stop().await;
}

/// p50 and p99.
fn percentiles(mut ms: Vec<i64>) -> (i64, i64) {
    ms.sort_unstable();
    (ms[ms.len() / 2], ms[ms.len() * 99 / 100])
}

/// 40 agents, 100 tasks a second for 10 s, or for `DOCKWARDEN_SCALE_S` seconds, with gate and audit on. Prints what it took.
#[tokio::test]
async fn forty_agents_do_a_hundred_tasks_a_second() {
    const AGENTS: usize = 40;
    let seconds: u64 = std::env::var("DOCKWARDEN_SCALE_S").ok().and_then(|s| s.parse().ok()).unwrap_or(10);
    let home = Arc::new(Home::new());
    workers(&home, AGENTS);
    let serve = Serve::start(&home).await;
    let mut clients = vec![];
    for n in 0..AGENTS {
        clients.push(Client::http(&serve.mcp_url(), &home.token(&format!("w{n}")).await).await);
    }
    let begun = Instant::now();
    let each = seconds * 100 / AGENTS as u64;
    let givers = clients.into_iter().enumerate().map(|(n, client)| {
        tokio::spawn(async move {
            let mut pace = tokio::time::interval(Duration::from_millis(1000 * AGENTS as u64 / 100));
            // Spread over the interval, as forty agents would be.
            tokio::time::sleep(Duration::from_millis(10 * n as u64)).await;
            let (mut calls, mut slowed) = (vec![], 0_u32);
            for _ in 0..each {
                pace.tick().await;
                let at = Instant::now();
                loop {
                    let wish = json!({"agent": format!("w{n}"), "skill": "look"});
                    let answer = client.call("task_submit", wish).await.expect("an answer");
                    if answer.is_error != Some(true) {
                        break;
                    }
                    let error = answer.structured_content.unwrap_or_default();
                    assert_eq!(error["error"]["code"], json!("rate_limited"), "{error:#}");
                    slowed += 1;
                    tokio::time::sleep(Duration::from_millis(200)).await;
                }
                calls.push(i64::try_from(at.elapsed().as_millis()).expect("short"));
            }
            (client, calls, slowed)
        })
    });
    let (mut clients, mut calls, mut slowed) = (vec![], vec![], 0);
    for giver in givers.collect::<Vec<_>>() {
        let (client, took, slow) = giver.await.expect("gave");
        clients.push(client);
        calls.extend(took);
        slowed += slow;
    }
    let given = begun.elapsed();
    let (mut queued, mut whole, mut ended) = (vec![], vec![], 0);
    let (mut first, mut last) = (chrono::DateTime::<chrono::Utc>::MAX_UTC, chrono::DateTime::<chrono::Utc>::MIN_UTC);
    for (n, client) in clients.iter().enumerate() {
        let all = eventually("all tasks of an agent end", Duration::from_secs(120), || async {
            let listed = client.ok("tasks", json!({"agent": format!("w{n}"), "limit": 200})).await;
            let done = listed["tasks"].as_array().expect("a list").iter().filter(|t| t["state"] == "succeeded").count() as u64;
            (done == each.min(200)).then_some(listed)
        })
        .await;
        for task in all["tasks"].as_array().expect("a list") {
            let at = |key: &str| task[key].as_str().and_then(|t| t.parse::<chrono::DateTime<chrono::Utc>>().ok()).expect("a time");
            queued.push((at("started_at") - at("created_at")).num_milliseconds());
            (first, last) = (first.min(at("created_at")), last.max(at("ended_at")));
            whole.push((at("ended_at") - at("created_at")).num_milliseconds());
            ended += 1;
        }
    }
    let rss = serve.rss_kib().await;
    println!(
        "{AGENTS} agents, {ended} tasks given in {:.1} s ({:.0}/s, {slowed} told to wait), done at {:.0}/s: call of task_submit p50/p99 {:?} ms, queued {:?} ms, given to done {:?} ms, RSS {} MiB",
        given.as_secs_f64(),
        f64::from(ended) / given.as_secs_f64(),
        f64::from(ended) * 1000.0 / ((last - first).num_milliseconds().max(1) as f64),
        percentiles(calls),
        percentiles(queued),
        percentiles(whole),
        rss / 1024
    );
    assert!(rss < 512 * 1024, "{rss} KiB");
    let (code, out, err) = home.run(&["audit", "verify"]).await;
    assert_eq!(code, 0, "{out}{err}");
    serve.stop().await;
}
