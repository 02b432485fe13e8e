//! Tags that move: what a plan says of them, what an approval binds, and what is left alone.

use super::*;
use crate::engine::{Engine, EngineError};
use crate::model::ids::{EngineName, ImageRef};

const APP: &str = "x-dockwarden: {monitor_s: 0}\nservices:\n  web:\n    image: app:1\n    mem_limit: 64m\n    cpus: 0.5\n    healthcheck: {test: [CMD, \"true\"]}\n";

fn version(n: u32) -> Behaviour {
    let mut behaviour = Behaviour::healthy();
    behaviour.labels.insert("version".into(), n.to_string());
    behaviour
}

fn of(environment: &str, refresh: bool) -> Value {
    json!({"stack": "shop", "compose": APP, "environment": environment, "refresh": refresh})
}

/// The digest of what the web container was made of.
async fn runs(b: &Bench) -> String {
    let id = EngineName::new("shop-web-1").expect("a name");
    let container = b.engine.container(&id).await.expect("answers").expect("it runs");
    let image = b.engine.image(&ImageRef::new(container.image_id).expect("an id")).await.expect("answers").expect("there");
    image.repo_digests[0].split_once('@').expect("a digest").1.to_owned()
}

fn digest_line(plan: &Value) -> Option<(Value, Value)> {
    let line = plan["changes"][0]["diff"].as_array()?.iter().find(|l| l["path"] == "image.digest")?;
    Some((line["from"].clone(), line["to"].clone()))
}

async fn settled(b: &Bench, operation: &Value) -> Operation {
    let id = OperationId::new(operation.as_str().expect("an id")).expect("valid");
    b.house.executor.wait(&id, std::time::Duration::from_secs(10), crate::executor::Until::Settled).await.expect("known")
}

async fn approved(b: &Bench, pending: &Value) -> Result<Reply, CallError> {
    assert_eq!(pending["state"], "pending_approval", "{pending}");
    let id = ApprovalId::new(pending["approval"]["approval_id"].as_str().expect("an id")).expect("valid");
    b.house.store.decide_approval(&id, "olga", true, chrono::Utc::now()).await.expect("stored").expect("was pending");
    approval::run_approved(&b.house, &id).await
}

#[tokio::test]
async fn a_refresh_replaces_what_moved_and_nothing_else() {
    let b = bench().await;
    let first = b.engine.add_remote_image("app:1", version(1));
    let plan = b.call("plan", of("development", false)).await.expect("planned").value;
    assert_eq!(digest_line(&plan), Some((Value::Null, json!(first))), "{plan}");
    b.call("deploy", of("development", false)).await.expect("deployed");
    assert_eq!(runs(&b).await, first);
    assert!(b.engine.calls().contains(&format!("pull app@{first}")), "{:?}", b.engine.calls());

    b.engine.clear_calls();
    let same = b.call("plan", of("development", true)).await.expect("planned").value;
    assert_eq!(same["changes"][0]["action"], "unchanged", "{same}");
    b.call("deploy", of("development", true)).await.expect("nothing to do");
    assert_eq!(b.engine.calls(), Vec::<String>::new(), "an unchanged tag replaces nothing");

    let second = b.engine.add_remote_image("app:1", version(2));
    let moved = b.call("plan", of("development", true)).await.expect("planned").value;
    assert_eq!(moved["changes"][0]["action"], "update", "{moved}");
    assert_eq!(digest_line(&moved), Some((json!(first), json!(second))), "{moved}");
    assert_eq!(b.call("plan", of("development", false)).await.expect("planned").value["changes"][0]["action"], "unchanged");
    b.call("deploy", of("development", true)).await.expect("deployed");
    assert_eq!(runs(&b).await, second);
    // The reference names what was pulled: a deploy without refresh does not go back.
    assert_eq!(b.call("plan", of("development", false)).await.expect("planned").value["changes"][0]["action"], "unchanged");
}

#[tokio::test]
async fn what_was_planned_is_what_runs_although_the_tag_moved() {
    let b = bench().await;
    let first = b.engine.add_remote_image("app:1", version(1));
    let plan = b.call("plan", of("development", false)).await.expect("planned").value;
    b.engine.add_remote_image("app:1", version(2));
    b.call("deploy", json!({"plan_id": plan["plan_id"], "digest": plan["digest"]})).await.expect("deployed");
    assert_eq!(runs(&b).await, first);
}

#[tokio::test]
async fn an_approval_is_of_the_content_and_not_of_the_tag() {
    let b = bench().await;
    let first = b.engine.add_remote_image("app:1", version(1));
    let pending = b.call("deploy", of("production", false)).await.expect("asks").value;
    b.engine.add_remote_image("app:1", version(2));
    let stale = approved(&b, &pending).await.expect_err("the tag names other content now");
    assert_eq!(stale.code, ErrorCode::StalePlan, "{stale}");
    assert!(!b.engine.calls().iter().any(|c| c.starts_with("pull")), "{:?}", b.engine.calls());
    b.engine.add_remote_image("app:1", version(1));
    let again = b.call("deploy", of("production", false)).await.expect("asks").value;
    let started = approved(&b, &again).await.expect("started").value;
    settled(&b, &started["operation_id"]).await;
    assert_eq!(runs(&b).await, first);
}

#[tokio::test]
async fn where_the_registry_is_silent_the_plan_says_so_and_nothing_approved_so_runs() {
    let b = bench().await;
    let first = b.engine.add_remote_image("app:1", version(1));
    let silent = |times: usize| {
        for _ in 0..times {
            let away = EngineError::Timeout { what: "the look-up in the registry", after: std::time::Duration::from_secs(5) };
            b.engine.fail_next("registry_digest", away);
        }
    };
    // Once for the plan, once for its preflight.
    silent(2);
    let plan = b.call("plan", of("production", false)).await.expect("planned").value;
    assert_eq!(digest_line(&plan), Some((Value::Null, json!(crate::planner::UNKNOWN_DIGEST))), "{plan}");
    let told = plan["findings"].as_array().expect("a list").iter().find(|f| f["rule"] == "image.unresolved").expect("told").clone();
    assert!(told["because"].as_str().is_some_and(|t| t.contains("app:1") && t.contains("look-up in the registry")), "{told}");

    silent(1);
    let pending = b.call("deploy", of("production", false)).await.expect("asks").value;
    silent(2);
    let started = approved(&b, &pending).await.expect("started").value;
    let ended = settled(&b, &started["operation_id"]).await;
    assert!(ended.message.as_deref().is_some_and(|m| m.contains("stale_plan") && m.contains("app:1")), "{ended:?}");
    assert!(!b.engine.calls().iter().any(|c| c.starts_with("create_container shop-web")), "{:?}", b.engine.calls());
    // It is here now, and the next plan names it.
    let again = b.call("plan", of("production", false)).await.expect("planned").value;
    assert_eq!(digest_line(&again), Some((Value::Null, json!(first))), "{again}");
}

#[tokio::test]
async fn a_registry_that_the_policy_does_not_allow_is_not_asked() {
    let b = bench().await;
    b.engine.fail_next("registry_digest", EngineError::Protocol("asked".into()));
    let foreign = APP.replace("app:1", "169.254.169.254/latest:1");
    let plan = b.call("plan", json!({"stack": "shop", "compose": foreign})).await.expect("planned").value;
    assert_eq!(plan["verdict"], "deny", "{plan}");
    assert!(plan.to_string().contains("was not asked"), "{plan}");
    // The failure is still there for whoever asks first.
    b.engine.add_remote_image("app:1", version(1));
    let asked = b.call("plan", of("development", false)).await.expect("planned").value;
    assert!(asked.to_string().contains("unexpected answer of the engine: asked"), "{asked}");
}

#[tokio::test]
async fn a_tag_accepted_in_production_asks_again_for_other_content() {
    let keeper = KEEPER.replace("effect: approval, tools: [deploy], environments", "effect: allow, tools: [deploy], environments");
    let b = bench_of(&keeper).await;
    b.house.store.put_operator("olga", "hash", chrono::Utc::now()).await.expect("registered");
    b.engine.add_remote_image("app:1", version(1));
    let pending = b.call("deploy", of("production", false)).await.expect("asks for the tag without digest").value;
    let started = approved(&b, &pending).await.expect("started").value;
    settled(&b, &started["operation_id"]).await;
    let more = |refresh: bool| {
        let mut input = of("production", refresh);
        input["compose"] = json!(APP.replace("64m", "65m"));
        input
    };
    let verdict = |plan: &Value| {
        let found = plan["findings"].as_array().expect("a list").iter().find(|f| f["rule"] == "image.nodigest_prod").expect("told").clone();
        found["verdict"].clone()
    };
    assert_eq!(verdict(&b.call("plan", more(true)).await.expect("planned").value), "warn", "the same content is accepted");
    b.engine.add_remote_image("app:1", version(2));
    assert_eq!(verdict(&b.call("plan", more(false)).await.expect("planned").value), "warn", "what is here has not moved");
    assert_eq!(verdict(&b.call("plan", more(true)).await.expect("planned").value), "approval", "other content under the tag");
}
