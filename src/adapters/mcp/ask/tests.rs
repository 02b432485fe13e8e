//! States that clients bring back, and what answers mean.

use super::*;
use crate::call::Door;
use crate::call::dispatch::tests::{Bench, COMPOSE, KEEPER, bench_of};
use crate::model::ids::AgentName;
use crate::store::approval::ApprovalState;
use tokio_util::sync::CancellationToken;

fn who(agent: &str, door: Door) -> Principal {
    Principal { agent: AgentName::new(agent).expect("valid"), door, client: None, read_only: false, on_behalf: vec![] }
}

fn asker<'a>(doors: &'a Arc<Doors>, who: &'a Principal, tool: &'a str, input: &'a Value) -> Asker<'a> {
    Asker { doors, who, session: "s", tool, input, begun: Instant::now() }
}

async fn house() -> (Bench, Arc<Doors>) {
    let b =
        bench_of(&KEEPER.replace("environments: [production], because", "environments: [production], channels: [client], because")).await;
    let doors = Doors::new(b.house.clone(), CancellationToken::new());
    (b, doors)
}

async fn asked(b: &Bench, input: &Value) -> ApprovalId {
    let reply = b.call("deploy", input.clone()).await.expect("asked").value;
    ApprovalId::new(reply["approval"]["approval_id"].as_str().expect("an id")).expect("valid")
}

fn yes() -> InputResponses {
    [(KEY.to_owned(), json!({"action": "accept", "content": {FIELD: true}}))].into()
}

#[test]
fn only_a_yes_that_was_filled_in_is_a_yes() {
    for (action, content, means) in [
        (json!("accept"), json!({"approve": true}), Answer::Yes),
        (json!("accept"), json!({"approve": false}), Answer::No),
        (json!("accept"), json!({"approve": "true"}), Answer::Nothing),
        (json!("accept"), json!({}), Answer::Nothing),
        (json!("accept"), Value::Null, Answer::Nothing),
        (json!("decline"), Value::Null, Answer::No),
        (json!("decline"), json!({"approve": true}), Answer::No),
        (json!("cancel"), json!({"approve": true}), Answer::Nothing),
        (Value::Null, json!({"approve": true}), Answer::Nothing),
        (json!(["accept"]), json!([true]), Answer::Nothing),
    ] {
        assert_eq!(answer(&action, &content), means, "{action} {content}");
    }
}

#[tokio::test]
async fn a_state_comes_back_from_the_same_agent_by_the_same_door_for_the_same_call_in_its_time() {
    let (_b, doors) = house().await;
    let (keeper, input) = (who("keeper", Door::McpStdio), json!({"stack": "shop", "environment": "production"}));
    let ours = asker(&doors, &keeper, "deploy", &input);
    let until = Utc::now() + chrono::TimeDelta::seconds(60);
    let state = ours.sealed(&State { approval: ApprovalId::new("ap-1").expect("valid"), until });
    let turned = json!({"environment": "production", "stack": "shop"});
    assert_eq!(asker(&doors, &keeper, "deploy", &turned).opened(&state, Utc::now()).expect("the same call").approval.as_str(), "ap-1");

    let (other, elsewhere) = (who("other", Door::McpStdio), who("keeper", Door::McpHttp(None)));
    let another = json!({"stack": "bank", "environment": "production"});
    for (what, asker) in [
        ("another agent", asker(&doors, &other, "deploy", &input)),
        ("another door", asker(&doors, &elsewhere, "deploy", &input)),
        ("another tool", asker(&doors, &keeper, "stop", &input)),
        ("another stack", asker(&doors, &keeper, "deploy", &another)),
    ] {
        let refused = asker.opened(&state, Utc::now()).expect_err(what);
        assert!(refused.code == ErrorCode::Denied && refused.message.contains("was not given"), "{what}: {refused}");
    }
    let late = ours.opened(&state, until).expect_err("late");
    assert!(late.message.contains("time of this question is over"), "{late}");

    let (payload, tag) = state.split_once('.').expect("two parts");
    let forged = BASE64_URL_SAFE_NO_PAD.encode(json!({"approval": "ap-2", "until": until}).to_string());
    for bad in [
        format!("{forged}.{tag}"),
        format!("{payload}."),
        payload.to_owned(),
        String::new(),
        format!("{payload}.{}", "0".repeat(64)),
        ".".into(),
    ] {
        assert!(ours.opened(&bad, Utc::now()).is_err(), "{bad}");
    }
}

#[tokio::test]
async fn a_forged_state_decides_nothing_and_leaves_a_row() {
    let (b, doors) = house().await;
    let (keeper, input) = (who("keeper", Door::McpStdio), json!({"stack": "shop", "compose": COMPOSE, "environment": "production"}));
    let id = asked(&b, &input).await;
    let until = Utc::now() + chrono::TimeDelta::seconds(60);
    let payload = BASE64_URL_SAFE_NO_PAD.encode(json!({"approval": id, "until": until}).to_string());
    let forged = format!("{payload}.{}", b.house.store.keyed_digest(payload.as_bytes()));
    let back = asker(&doors, &keeper, "deploy", &input).brought(Some(&forged), Some(&yes())).await;
    let Back::Reply(reply) = back else { panic!("{back:?}") };
    assert_eq!(reply.expect_err("refused").code, ErrorCode::Denied);
    assert_eq!(approval::find(&b.house.store, &id).await.expect("there").state, ApprovalState::Pending);
    let row = b.house.store.audit_after(0, None, 100).await.expect("rows").pop().expect("a row");
    assert_eq!((row.agent.as_str(), row.tool.as_str(), row.outcome.as_deref()), ("keeper", "deploy", Some("denied")));
}

#[tokio::test]
async fn an_answer_brought_back_decides_and_one_that_says_nothing_asks_nobody_again() {
    let (b, doors) = house().await;
    let (keeper, input) = (who("keeper", Door::McpStdio), json!({"stack": "shop", "compose": COMPOSE, "environment": "production"}));
    let id = asked(&b, &input).await;
    let ours = asker(&doors, &keeper, "deploy", &input);
    let state = ours.sealed(&State { approval: id.clone(), until: Utc::now() + chrono::TimeDelta::seconds(60) });
    assert!(matches!(ours.brought(None, Some(&yes())).await, Back::Ask), "an answer without a state is none");
    assert!(matches!(ours.brought(Some(&state), None).await, Back::Ask), "no answer: asked again");
    let closed: InputResponses = [(KEY.to_owned(), json!({"action": "cancel"}))].into();
    assert!(matches!(ours.brought(Some(&state), Some(&closed)).await, Back::Quiet));
    assert_eq!(approval::find(&b.house.store, &id).await.expect("there").state, ApprovalState::Pending);
    let back = ours.brought(Some(&state), Some(&yes())).await;
    let Back::Reply(reply) = back else { panic!("{back:?}") };
    assert!(reply.expect("ran").value["operation_id"].is_string());
    let back = ours.brought(Some(&state), Some(&yes())).await;
    let Back::Reply(reply) = back else { panic!("{back:?}") };
    assert_eq!(reply.expect_err("once").code, ErrorCode::Conflict);
}

#[tokio::test]
async fn an_answer_that_decides_nothing_any_more_is_recorded_each_time() {
    let (b, doors) = house().await;
    let input = json!({"stack": "shop", "compose": COMPOSE, "environment": "production"});
    let id = asked(&b, &input).await;
    let who = who("keeper", Door::McpStdio);
    let asker = asker(&doors, &who, "deploy", &input);
    let state = asker.sealed(&State { approval: id, until: Utc::now() + chrono::TimeDelta::minutes(5) });
    let rows = async || b.house.store.audit_after(0, None, 200).await.expect("rows").iter().filter(|r| r.tool == "deploy").count();
    let Back::Reply(first) = asker.brought(Some(&state), Some(&yes())).await else { panic!("answered") };
    first.expect("it ran");
    for _ in 0..2 {
        let before = rows().await;
        let Back::Reply(again) = asker.brought(Some(&state), Some(&yes())).await else { panic!("answered") };
        assert_eq!(again.expect_err("used").code, ErrorCode::Conflict);
        assert_eq!(rows().await, before + 1);
    }
}
