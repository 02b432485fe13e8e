//! What a client's answer may decide, and what it leaves in the record.

use super::*;
use crate::call::Door;
use crate::call::dispatch::dispatch;
use crate::call::dispatch::tests::{Bench, COMPOSE, KEEPER, bench, bench_of};
use crate::model::ids::AgentName;
use serde_json::{Value, json};

const SESSION: &str = "mcp-stdio con-1";

fn who(agent: &str, door: Door) -> Principal {
    let client = Some("some-client 1.0".to_owned());
    Principal { agent: AgentName::new(agent).expect("valid"), door, client, read_only: false, on_behalf: vec![] }
}

fn keeper() -> Principal {
    who("keeper", Door::McpStdio)
}

/// A house whose rule for production says `channels: [client]`.
async fn lenient() -> Bench {
    bench_of(&KEEPER.replace("environments: [production], because", "environments: [production], channels: [client], because")).await
}

fn production(compose: &str) -> Value {
    json!({"stack": "shop", "compose": compose, "environment": "production", "reason": "because I was told so"})
}

/// The reply of a call that waits, and its approval.
async fn asked(b: &Bench, input: Value) -> (Reply, ApprovalId) {
    let reply = b.call("deploy", input).await.expect("asked");
    let id = reply.value["approval"]["approval_id"].as_str().unwrap_or_else(|| panic!("{}", reply.value)).to_owned();
    (reply, ApprovalId::new(id).expect("valid"))
}

async fn state(b: &Bench, id: &ApprovalId) -> ApprovalState {
    approval::find(&b.house.store, id).await.expect("there").state
}

/// Nobody at the client is asked, and an answer all the same decides nothing.
async fn does_not_count(b: &Bench, reply: &Reply, id: &ApprovalId, why: &str) {
    assert_eq!(question(&b.house, &keeper(), reply).await.expect("read"), None, "{why}");
    for answer in [Answer::Yes, Answer::No] {
        let refused = answered(&b.house, &keeper(), SESSION, id, answer).await.expect_err(why);
        assert_eq!((refused.code, state(b, id).await), (ErrorCode::Denied, ApprovalState::Pending), "{why}: {refused}");
    }
    assert_eq!(b.engine.running(), Vec::<String>::new(), "{why}");
}

#[tokio::test]
async fn the_person_at_the_client_sees_the_change_and_their_yes_runs_it_once() {
    let b = lenient().await;
    let (reply, id) = asked(&b, production(COMPOSE)).await;
    let q = question(&b.house, &keeper(), &reply).await.expect("read").expect("a question");
    assert_eq!(q.approval, id);
    for part in [
        "dockwarden on host",
        "deploy on shop in production",
        "Asked by: agent keeper",
        "Approvals: 0 of 1",
        "Expires: ",
        "Releases: nothing to release 1",
        "It says, unchecked: because I was told so",
        "web: create by start",
        "  + image: hello:1",
    ] {
        assert!(q.text.contains(part), "{part} is not in:\n{}", q.text);
    }
    assert!(!q.text.contains("s3cret"), "{}", q.text);
    assert_eq!(answered(&b.house, &keeper(), SESSION, &id, Answer::Nothing).await, Ok(None));
    assert_eq!(state(&b, &id).await, ApprovalState::Pending);

    let started = answered(&b.house, &keeper(), SESSION, &id, Answer::Yes).await.expect("ran").expect("a reply").value;
    let after = approval::find(&b.house.store, &id).await.expect("there");
    assert_eq!((after.state, after.approved_by), (ApprovalState::Used, vec!["client:keeper".to_owned()]));
    assert_eq!(started["operation_id"].as_str(), after.operation.as_ref().map(|o| o.as_str()), "{started}");
    assert_eq!(answered(&b.house, &keeper(), SESSION, &id, Answer::Yes).await.expect_err("once").code, ErrorCode::Conflict);

    let rows = b.house.store.audit_after(0, None, 100).await.expect("rows");
    let given: Vec<_> = rows.iter().filter(|r| r.tool.starts_with("approval_")).collect();
    assert_eq!(given.len(), 1, "{given:?}");
    let (row, detail) = (given[0], &given[0].detail);
    assert_eq!((row.agent.as_str(), row.tool.as_str()), ("client:keeper", "approval_given"));
    for (key, value) in
        [("channel", "client"), ("session", SESSION), ("client", "some-client 1.0"), ("door", "mcp-stdio"), ("approval", id.as_str())]
    {
        assert_eq!(detail[key], value, "{key} of {detail}");
    }
}

#[tokio::test]
async fn a_no_at_the_client_is_a_no() {
    let b = lenient().await;
    let (_, id) = asked(&b, production(COMPOSE)).await;
    let refused = answered(&b.house, &keeper(), SESSION, &id, Answer::No).await.expect_err("denied");
    let after = approval::find(&b.house.store, &id).await.expect("there");
    assert_eq!((refused.code, after.state, after.denied_by.as_deref()), (ErrorCode::Denied, ApprovalState::Denied, Some("client:keeper")));
    assert_eq!(b.engine.running(), Vec::<String>::new());
}

#[tokio::test]
async fn a_client_decides_nothing_that_no_rule_gives_it() {
    let b = bench().await;
    let (reply, id) = asked(&b, production(COMPOSE)).await;
    does_not_count(&b, &reply, &id, "the rule names no channel").await;

    let b = lenient().await;
    let (reply, id) = asked(&b, production(&COMPOSE.replace("    image:", "    cap_add: [NET_ADMIN]\n    image:"))).await;
    does_not_count(&b, &reply, &id, "the plan asks for an operator, too").await;

    let (reply, id) = asked(&b, production(COMPOSE)).await;
    let other = who("other", Door::McpStdio);
    assert_eq!(question(&b.house, &other, &reply).await.expect("read"), None);
    assert_eq!(answered(&b.house, &other, SESSION, &id, Answer::Yes).await.expect_err("not its own").code, ErrorCode::Denied);
    // The same question from the command line: now it may be an operator's own, and is confirmed as such.
    dispatch(&b.house, &who("keeper", Door::Cli), "deploy", production(COMPOSE), None).await.expect("asked again");
    does_not_count(&b, &reply, &id, "asked for at the command line").await;
}

#[tokio::test]
async fn what_is_too_long_to_be_read_in_a_dialog_is_not_asked_there() {
    let b = lenient().await;
    let many: String = (0..400).map(|n| format!("      SETTING_NUMBER_{n}: value\n")).collect();
    let (reply, id) = asked(&b, production(&COMPOSE.replace("    mem_limit", &format!("{many}    mem_limit")))).await;
    assert_eq!(question(&b.house, &keeper(), &reply).await.expect("read"), None);
    assert_eq!(state(&b, &id).await, ApprovalState::Pending);
}

#[tokio::test]
async fn a_yes_while_the_house_is_frozen_says_who_can_start_it() {
    let b = lenient().await;
    let (_, id) = asked(&b, production(COMPOSE)).await;
    approval::freeze(&b.house.store, "ann", "", Utc::now()).await.expect("frozen");
    let failed = answered(&b.house, &keeper(), SESSION, &id, Answer::Yes).await.expect_err("frozen");
    assert!(failed.hint.contains("an operator approves it again"), "{failed}");
    assert_eq!(state(&b, &id).await, ApprovalState::Approved);
}

#[tokio::test]
async fn a_word_of_a_client_that_counts_no_more_when_it_is_written_decides_nothing() {
    let b = lenient().await;
    let (_, id) = asked(&b, production(COMPOSE)).await;
    let store = &b.house.store;
    // The same question by a way that a client may not answer, after the look and before the word is written.
    let same = approval::find(store, &id).await.expect("there");
    store.request_approval(crate::store::approval::Approval { by_client: false, ..same }).await.expect("the same");
    assert_eq!(store.decide_at_client(&id, "client:keeper", true, Utc::now()).await.expect("written"), None);
    assert_eq!(state(&b, &id).await, ApprovalState::Pending);
    assert!(store.decide_approval(&id, "ann", true, Utc::now()).await.expect("written").is_some(), "an operator's counts");
}
