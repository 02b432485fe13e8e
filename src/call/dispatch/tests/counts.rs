//! What counts against the limits of a rule, and what is refused before any work.

use super::*;

#[tokio::test]
async fn calls_at_once_on_one_stack_never_pass_its_limit_together() {
    let b = bench().await;
    let policy = "allowed_registries = [\"local\"]\n[environments.development]\nchanges_per_hour = 3\n[environments.production]\n";
    let second = KEEPER.replace("name: keeper", "name: second");
    let files = vec![("keeper.md".into(), KEEPER.into()), ("second.md".into(), second)];
    b.house.rulebook.store(Arc::new(Rulebook::build(files, policy, &tools::gate_facts()).expect("a rulebook")));
    let calls = (0..12).map(|i| {
        let agent = AgentName::new(if i % 2 == 0 { "keeper" } else { "second" }).expect("valid");
        let who = Principal { agent, door: Door::Cli, client: None, read_only: false, on_behalf: vec![] };
        let (house, input) = (b.house.clone(), json!({"stack": "shop", "service": format!("s{i}")}));
        async move { dispatch(&house, &who, "restart", input, None).await.expect_err("there is no such stack").code }
    });
    let codes: Vec<ErrorCode> = futures_util::stream::iter(calls).buffer_unordered(12).collect().await;
    assert_eq!(codes.iter().filter(|c| **c == ErrorCode::NotFound).count(), 3, "{codes:?}");
    assert_eq!(codes.iter().filter(|c| **c == ErrorCode::RateLimited).count(), 9, "{codes:?}");
    let e = b.call("restart", json!({"stack": "bank"})).await.expect_err("not there");
    assert_eq!(e.code, ErrorCode::NotFound, "another stack has its own count");
}

#[tokio::test]
async fn what_is_denied_or_unreadable_counts_and_reads_are_refused_before_the_work() {
    let b = bench_of(&KEEPER.replace("  tier: tier_3", "  limits: {calls_per_minute: 3}\n  tier: tier_3")).await;
    assert_eq!(b.call("stop", json!({"stack": "shop"})).await.expect_err("denied").code, ErrorCode::Denied);
    assert_eq!(b.call("statsu", json!({})).await.expect_err("unknown").code, ErrorCode::UnknownTool);
    b.call("status", json!({})).await.expect("the third");
    for (tool, input) in
        [("status", json!({})), ("statsu", json!({})), ("stop", json!({"stack": "shop"})), ("deploy", json!({"stack": "shop"}))]
    {
        let refused = b.call(tool, input).await.expect_err("too many");
        assert_eq!((refused.code, refused.message.as_str()), (ErrorCode::RateLimited, "limit keeper/* reached: 3 calls in 60 s"), "{tool}");
    }
    let rows = b.rows().await;
    assert_eq!(rows.len(), 4, "one row for all that were too many: {rows:?}");
    assert_eq!(rows[3], row("read", "status", "deny", Some("denied")));
}

#[tokio::test]
async fn a_read_beyond_a_rules_hour_is_not_done() {
    let b = bench_of(
        &KEEPER
            .replace("  rules:", "  rules:\n    - {id: look, effect: allow, tools: [plan], max_per_hour: 1, because: \"planning costs\"}"),
    )
    .await;
    let input = json!({"stack": "shop", "compose": COMPOSE});
    let first = b.call("plan", input.clone()).await.expect("the first").value;
    assert_eq!(b.call("plan", input).await.expect_err("the second").code, ErrorCode::RateLimited);
    let kept = b.house.store.value("plans:keeper").await.expect("readable").expect("noted");
    assert_eq!(kept, json!([first["plan_id"]]), "no second plan was made");
}

#[tokio::test]
async fn of_an_agents_plans_the_newest_are_kept() {
    let b = bench().await;
    let plan = async || b.call("plan", json!({"stack": "shop", "compose": COMPOSE})).await.expect("planned").value["plan_id"].clone();
    let first = crate::model::ids::PlanId::new(plan().await.as_str().expect("an id")).expect("valid");
    let second = crate::model::ids::PlanId::new(plan().await.as_str().expect("an id")).expect("valid");
    b.house.store.keep_plans("keeper", &second, 1).await.expect("kept");
    assert!(b.house.store.plan(&first).await.expect("readable").is_none());
    assert!(b.house.store.plan(&second).await.expect("readable").is_some());
}

#[tokio::test]
async fn the_reserve_of_the_disk_is_for_what_is_done() {
    let b = bench().await;
    let input = json!({"stack": "shop"});
    let who = Principal {
        agent: AgentName::new("keeper").expect("valid"),
        door: Door::McpStdio,
        client: None,
        read_only: false,
        on_behalf: vec![],
    };
    let call = Call::new(&b.house, &who, None, None);
    let facts = crate::gate::explain::call_of("keeper", "stop", true, StackName::new("shop").ok(), None, None);
    let decision = |verdict| Decision { verdict, findings: vec![], limits: vec![], approval: None, hint: None };
    assert!(record::intent(&call, &facts, &decision(Verdict::Allow), &input).essential);
    assert!(!record::intent(&call, &facts, &decision(Verdict::Deny), &input).essential);
}
