//! Calls that are made again because their answer was lost: with a key each is the operation it began, and every reply fits its schema.

use super::*;

/// The keeper that may do all of it in development.
async fn keeper() -> Bench {
    let all = "[deploy, rollback, restart, scale, stop, cancel]";
    let text = KEEPER
        .replace("tools: [deploy, restart]", &format!("tools: {all}"))
        .replace("tools: plan,", "tools: rollback, scale, cancel, plan,");
    bench_of(&text).await
}

/// Releases 1 to 3 of `shop`, each with another greeting.
async fn deployed(b: &Bench) {
    for greeting in ["one", "two", "three"] {
        let compose = format!("x-dockwarden: {{monitor_s: 1}}\n{}", COMPOSE.replace("good-morning", greeting));
        let done = b.call("deploy", json!({"stack": "shop", "compose": compose})).await.expect("deployed");
        let id = OperationId::new(done.value["operation_id"].as_str().expect("an id")).expect("valid");
        b.house.executor.wait(&id, std::time::Duration::from_secs(60), crate::executor::Until::Ended).await.expect("ended");
    }
}

#[tokio::test]
async fn a_rollback_that_is_made_again_with_its_key_goes_back_once() {
    let b = keeper().await;
    deployed(&b).await;
    let input = json!({"stack": "shop", "idempotency_key": "back", "reason": "users suffer"});
    let first = b.call("rollback", input.clone()).await.expect("rolled back").value;
    let id = OperationId::new(first["operation_id"].as_str().expect("an id")).expect("valid");
    b.house.executor.wait(&id, std::time::Duration::from_secs(60), crate::executor::Until::Ended).await.expect("ended");
    let again = b.call("rollback", input).await.expect("a replay").value;
    assert_eq!((&again["operation_id"], &again["release"]), (&first["operation_id"], &json!(4)));
    let releases = b.call("history", json!({"stack": "shop"})).await.expect("listed").value;
    assert_eq!(releases["current"], 4, "{releases}");
    let other =
        b.call("rollback", json!({"stack": "shop", "to_release": 1, "idempotency_key": "back"})).await.expect_err("other arguments");
    assert_eq!(other.code, ErrorCode::Conflict, "{other}");
}

#[tokio::test]
async fn what_changes_a_stack_in_place_is_done_once_under_a_key() {
    let b = keeper().await;
    deployed(&b).await;
    for (tool, input) in [
        ("restart", json!({"stack": "shop", "idempotency_key": "k"})),
        ("scale", json!({"stack": "shop", "service": "web", "replicas": 2, "idempotency_key": "k2"})),
        ("stop", json!({"stack": "shop", "idempotency_key": "k3"})),
    ] {
        let first = b.call(tool, input.clone()).await.unwrap_or_else(|e| panic!("{tool}: {e}")).value;
        let before = b.engine.calls().len();
        let again = b.call(tool, input).await.unwrap_or_else(|e| panic!("{tool}: {e}")).value;
        assert!(first["operation_id"].is_string(), "{tool}: {first}");
        assert_eq!(again["operation_id"], first["operation_id"], "{tool}");
        assert_eq!(b.engine.calls().len(), before, "{tool}: nothing was done a second time");
    }
}

#[tokio::test]
async fn an_operation_that_was_approved_names_its_approval_beside_the_question() {
    let b = bench().await;
    let input = json!({"stack": "shop", "compose": COMPOSE, "environment": "production", "idempotency_key": "k"});
    let asked = b.call("deploy", input.clone()).await.expect("asked").value;
    assert!(asked["approval"].is_object(), "{asked}");
    let id = ApprovalId::new(asked["approval"]["approval_id"].as_str().expect("an id")).expect("valid");
    b.house.store.decide_approval(&id, "olga", true, chrono::Utc::now()).await.expect("stored").expect("was pending");
    approval::run_approved(&b.house, &id).await.expect("approved");
    // `assert_fits` has looked at each of these: clients refuse a reply whose `approval` is not an object.
    let again = b.call("deploy", input).await.expect("a replay").value;
    assert_eq!((&again["approval_id"], again.get("approval")), (&json!(id), None), "{again}");
    let followed = b.call("operation", json!({"operation_id": again["operation_id"]})).await.expect("there").value;
    assert_eq!(followed["approval_id"], json!(id));
}

#[tokio::test]
async fn a_session_that_only_reads_is_told_how_to_change() {
    let b = bench().await;
    let who = Principal {
        agent: AgentName::new("keeper").expect("valid"),
        door: Door::McpStdio,
        client: None,
        read_only: true,
        on_behalf: vec![],
    };
    let denied = dispatch(&b.house, &who, "restart", json!({"stack": "shop"}), None).await.expect_err("denied");
    assert!(denied.message.contains("session.read_only") && denied.hint.contains("without --read-only"), "{denied}");
}
