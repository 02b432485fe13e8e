//! What operators approved: for one digest, once, and what it means for later plans.

use super::*;

#[tokio::test]
async fn an_approval_is_bound_to_the_digest_and_used_once() {
    let b = bench().await;
    let input = json!({"stack": "shop", "compose": COMPOSE, "environment": "production"});
    let first = b.call("deploy", input.clone()).await.expect("pending").value;
    assert_eq!(first["state"], "pending_approval", "{first}");
    let again = b.call("deploy", input.clone()).await.expect("pending").value;
    assert_eq!(again["approval"]["approval_id"], first["approval"]["approval_id"], "asking twice is one approval");
    let id = ApprovalId::new(first["approval"]["approval_id"].as_str().expect("an id")).expect("valid");
    let early = approval::run_approved(&b.house, &id).await.expect_err("not approved yet");
    assert_eq!(early.code, ErrorCode::Conflict);
    b.house.store.decide_approval(&id, "olga", true, chrono::Utc::now()).await.expect("stored").expect("was pending");
    // Another content under the same approval is another question.
    let other = json!({"stack": "shop", "compose": COMPOSE.replace("hello", "hullo"), "environment": "production"});
    assert_ne!(b.call("deploy", other).await.map(|r| r.value["approval"]["approval_id"].clone()).ok(), Some(json!(id)));
    let used = b.house.store.use_approval(&id, &CallId::new("call-1").expect("valid"), chrono::Utc::now()).await.expect("stored");
    assert!(used, "the approval was not touched by the other call");
    assert_eq!(approval::run_approved(&b.house, &id).await.expect_err("used").code, ErrorCode::Conflict);
    assert_eq!(b.engine.running(), Vec::<String>::new(), "nothing ran without a word");
}

#[tokio::test]
async fn where_approver_and_requester_must_differ_one_operator_is_not_enough() {
    let b = bench().await;
    let policy = "allowed_registries = [\"local\", \"docker.io/library\"]\n[environments.development]\n[environments.production]\ndistinct_approver = true\n";
    b.house
        .rulebook
        .store(Arc::new(Rulebook::build(vec![("keeper.md".into(), KEEPER.into())], policy, &tools::gate_facts()).expect("a rulebook")));
    let deploy = async |compose: String, environment: &str| {
        let reply = b
            .call("deploy", json!({"stack": format!("in-{environment}"), "compose": compose, "environment": environment}))
            .await
            .expect("asked")
            .value;
        ApprovalId::new(reply["approval"]["approval_id"].as_str().unwrap_or_else(|| panic!("{reply}"))).expect("valid")
    };
    let asked = deploy(COMPOSE.into(), "production").await;
    let say = async |id: &ApprovalId, who: &str| {
        b.house.store.decide_approval(id, who, true, chrono::Utc::now()).await.expect("stored").expect("was pending").state
    };
    assert_eq!(say(&asked, "olga").await, ApprovalState::Pending);
    assert_eq!(approval::run_approved(&b.house, &asked).await.expect_err("one is not enough").code, ErrorCode::Conflict);
    assert_eq!(say(&asked, "olga").await, ApprovalState::Pending, "nor is the same one twice");
    assert_eq!(say(&asked, "rita").await, ApprovalState::Approved);
    // Where no rule asks but the plan does, it is the same there, and one is enough elsewhere.
    let risky = COMPOSE.replace("    image:", "    cap_add: [NET_ADMIN]\n    image:");
    let needed = async |id: ApprovalId| b.house.store.approval(&id, chrono::Utc::now()).await.expect("readable").expect("there").needed;
    assert_eq!(needed(deploy(risky.clone(), "production").await).await, 2);
    assert_eq!(needed(deploy(risky, "development").await).await, 1);
}

#[tokio::test]
async fn asking_again_for_an_approval_and_a_plan_that_was_denied_count_against_nothing() {
    let b = limited(1).await;
    let privileged = COMPOSE.replace("    mem_limit", "    privileged: true\n    mem_limit");
    for _ in 0..3 {
        let denied = b.call("deploy", json!({"stack": "shop", "compose": privileged})).await.expect_err("denied");
        assert_eq!(denied.code, ErrorCode::Denied, "{denied}");
    }
    let input = json!({"stack": "bank", "compose": COMPOSE, "environment": "production"});
    let (one, two) = tokio::join!(b.call("deploy", input.clone()), b.call("deploy", input.clone()));
    let (one, two) = (one.expect("asked").value, two.expect("asked").value);
    assert_eq!(
        (one["state"].clone(), one["approval"]["approval_id"].clone()),
        (json!("pending_approval"), two["approval"]["approval_id"].clone())
    );
    let why = json!({"stack": "bank", "compose": COMPOSE, "environment": "production", "reason": "another reason is the same question"});
    assert_eq!(b.call("deploy", why).await.expect("asked").value["approval"]["approval_id"], one["approval"]["approval_id"]);
    let other = json!({"stack": "till", "compose": COMPOSE, "environment": "production"});
    assert_eq!(b.call("deploy", other).await.expect_err("another question counts").code, ErrorCode::RateLimited);
}

fn with_caps(caps: &str, greeting: &str) -> Value {
    let compose = COMPOSE.replace("good-morning", greeting).replace("    mem_limit", &format!("    cap_add: [{caps}]\n    mem_limit"));
    json!({"stack": "shop", "compose": compose})
}

#[tokio::test]
async fn a_finding_an_operator_approved_does_not_ask_again_while_it_is_the_same() {
    let b = bench_of(
        &KEEPER.replace("tools: [deploy, restart]", "tools: [deploy, restart, rollback]").replace("tools: plan,", "tools: rollback, plan,"),
    )
    .await;
    b.house.store.put_operator("olga", "hash", chrono::Utc::now()).await.expect("registered");
    let first = b.call("deploy", with_caps("NET_ADMIN", "one")).await.expect("asks").value;
    approve(&b, &first).await;

    // Another release with the same finding: it is told, and does not ask.
    let plan = b.call("plan", with_caps("NET_ADMIN", "two")).await.expect("planned").value;
    let found = plan["findings"].as_array().expect("a list").iter().find(|f| f["rule"] == "cap.review").expect("still told").clone();
    assert_eq!(found["verdict"], "warn", "{found}");
    assert!(found["because"].as_str().is_some_and(|b| b.ends_with("approved with release 1")), "{found}");
    assert_eq!(b.call("deploy", with_caps("NET_ADMIN", "two")).await.expect("deployed").value["state"], "monitoring");
    // And so on: the first approval is what counts, not the release before.
    let third = b.call("plan", with_caps("NET_ADMIN", "three")).await.expect("planned").value;
    assert!(third.to_string().contains("approved with release 1"), "{third}");

    // A new one asks, and only that one.
    let more = b.call("deploy", with_caps("NET_ADMIN, NET_RAW", "two")).await.expect("asks").value;
    assert_eq!(more["state"], "pending_approval", "{more}");
    let asked: Vec<&str> = more["approval"]["findings"].as_array().expect("a list").iter().filter_map(|f| f["path"].as_str()).collect();
    assert_eq!(asked, ["services.web.cap_add[1]"]);

    // What was taken out and comes back asks; going back to what was approved does not.
    assert_eq!(b.call("deploy", json!({"stack": "shop", "compose": COMPOSE})).await.expect("deployed").value["state"], "monitoring");
    let again = b.call("deploy", with_caps("NET_ADMIN", "two")).await.expect("asks").value;
    assert_eq!(again["state"], "pending_approval", "{again}");
    let back = b.call("rollback", json!({"stack": "shop", "to_release": 2})).await.expect("rolled back").value;
    assert_eq!(back["state"], "monitoring", "{back}");
}

#[tokio::test]
async fn what_no_operator_approved_asks_each_time_and_reviewed_changes_are_reviewed_each_time() {
    let b = bench().await;
    let first = b.call("deploy", with_caps("NET_ADMIN", "one")).await.expect("asks").value;
    // Approved under a name that is no registered operator's, as a client's own answer would be.
    approve(&b, &first).await;
    assert_eq!(b.call("deploy", with_caps("NET_ADMIN", "two")).await.expect("asks").value["state"], "pending_approval");

    b.house.store.put_operator("olga", "hash", chrono::Utc::now()).await.expect("registered");
    let production = |greeting| json!({"stack": "bank", "compose": healthy(greeting), "environment": "production"});
    let first = b.call("deploy", production("one")).await.expect("asks").value;
    approve(&b, &first).await;
    let second = b.call("deploy", production("two")).await.expect("asks").value;
    assert_eq!(second["state"], "pending_approval", "a rule of the agent is asked each time: {second}");
}

#[tokio::test]
async fn an_approval_of_a_prune_is_for_what_it_showed() {
    let b = bench_of(&KEEPER.replace("max_per_hour: 1", "max_per_hour: 9")).await;
    b.engine.add_image("dockwarden/front:old", Behaviour::healthy());
    let input = json!({"what": "images", "dry_run": false});
    let asked = b.call("prune", input.clone()).await.expect("asked").value;
    let id = ApprovalId::new(asked["approval"]["approval_id"].as_str().expect("an id")).expect("valid");
    let shown = approval::resolved_for(&b.house.store, &id).await.expect("readable").expect("kept");
    assert_eq!(shown, json!({"items": ["dockwarden/front:old"]}));
    b.engine.add_image("dockwarden/front:older", Behaviour::healthy());
    b.house.store.decide_approval(&id, "olga", true, chrono::Utc::now()).await.expect("stored").expect("was pending");
    let stale = approval::run_approved(&b.house, &id).await.expect_err("more would go than was shown");
    assert_eq!(stale.code, ErrorCode::StalePlan, "{stale}");
    assert_eq!(approval::resolved_for(&b.house.store, &id).await.expect("readable"), None, "it goes with the input");
    let again = b.call("prune", input).await.expect("asked").value;
    assert_ne!(again["approval"]["approval_id"], asked["approval"]["approval_id"]);
    // One whose time ran out is forgotten, too.
    let id = ApprovalId::new(again["approval"]["approval_id"].as_str().expect("an id")).expect("valid");
    assert!(approval::resolved_for(&b.house.store, &id).await.expect("readable").is_some());
    let late = chrono::Utc::now() + chrono::TimeDelta::days(1);
    assert_eq!(b.house.store.approval(&id, late).await.expect("read").expect("there").state, ApprovalState::Expired);
    assert_eq!(approval::resolved_for(&b.house.store, &id).await.expect("readable"), None);
}

#[tokio::test]
async fn an_agent_asks_for_no_more_than_people_read() {
    let b = bench().await;
    let ask = |n: usize| json!({"stack": "bank", "compose": COMPOSE, "environment": "production", "variables": {"X": "x"}, "images": {"web": format!("hello:{n}")}});
    for n in 0..25 {
        b.engine.add_image(&format!("hello:{n}"), Behaviour::healthy());
    }
    let mut asked = vec![];
    for n in 0..20 {
        asked.push(b.call("deploy", ask(n)).await.expect("asked").value["approval"]["approval_id"].clone());
    }
    let more = b.call("deploy", ask(20)).await.expect_err("too many wait");
    assert!(more.code == ErrorCode::RateLimited && more.message.contains("20 approvals"), "{more}");
    assert_eq!(b.call("deploy", ask(3)).await.expect("the same question").value["approval"]["approval_id"], asked[3]);
    // What is settled is not kept, and lists carry no input.
    let id = ApprovalId::new(asked[0].as_str().expect("an id")).expect("valid");
    let store = &b.house.store;
    let input = async || store.approval(&id, chrono::Utc::now()).await.expect("readable").expect("there").input;
    assert!(store.approvals(true, chrono::Utc::now()).await.expect("listed").iter().all(|a| a.input.is_null()));
    assert_eq!(input().await["stack"], "bank");
    store.decide_approval(&id, "olga", false, chrono::Utc::now()).await.expect("stored").expect("was pending");
    assert!(input().await.is_null());
    b.call("deploy", ask(20)).await.expect("one less waits");
}
