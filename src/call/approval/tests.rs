//! What came of a call that an approval let through.

use super::*;
use crate::call::dispatch::tests::{Bench, COMPOSE, bench};
use crate::model::ids::CallId;
use crate::store::audit::{Intent, Outcome};

async fn asked(b: &Bench) -> ApprovalId {
    let input = json!({"stack": "shop", "compose": COMPOSE, "environment": "production"});
    let pending = b.call("deploy", input).await.expect("asked").value;
    let id = ApprovalId::new(pending["approval"]["approval_id"].as_str().expect("an id")).expect("valid");
    b.house.store.decide_approval(&id, "olga", true, Utc::now()).await.expect("stored").expect("was pending");
    id
}

async fn came(b: &Bench, id: &ApprovalId) -> Came {
    let approval = find(&b.house.store, id).await.expect("there");
    assert_eq!(approval.state, ApprovalState::Used);
    came_of(&b.house.store, &approval).await.expect("read")
}

/// Uses an approval up by a call of this id, as far as its intent.
async fn lets_through(b: &Bench, id: &ApprovalId, call: &str) -> CallId {
    let call = CallId::new(call).expect("valid");
    assert!(b.house.store.use_approval(id, &call, Utc::now()).await.expect("stored"));
    let intent = Intent { verdict: Verdict::Approval, ..Intent::sample(call.as_str(), "keeper", Utc::now()) };
    b.house.store.audit_intent(&intent, &[]).await.expect("written");
    call
}

async fn ends(b: &Bench, call: CallId, outcome: &str, detail: Value) {
    let (outcome, verdict, at) = (outcome.to_owned(), Verdict::Approval, Utc::now());
    let row = Outcome { call, outcome, code: None, verdict, findings: vec![], detail, duration_ms: 1, at };
    b.house.store.audit_outcome(&row, &[]).await.expect("written");
}

#[tokio::test]
async fn used_is_told_apart_from_done() {
    let b = bench().await;
    for (n, (outcome, detail, expected)) in [
        ("ok", json!({}), Came::Done),
        ("error", json!({"message": "the stack is busy"}), Came::Failed("the stack is busy".into())),
        ("denied", json!({"message": "denied by x"}), Came::Failed("denied by x".into())),
    ]
    .into_iter()
    .enumerate()
    {
        let id = asked(&b).await;
        let call = lets_through(&b, &id, &format!("call-{n}")).await;
        assert_eq!(came(&b, &id).await, Came::AtWork, "its row is not there yet");
        ends(&b, call, outcome, detail).await;
        assert_eq!(came(&b, &id).await, expected);
    }
    let id = asked(&b).await;
    lets_through(&b, &id, "call-lost").await;
    b.house.store.audit_close_orphans(&[], Utc::now()).await.expect("closed");
    assert_eq!(came(&b, &id).await, Came::Unknown, "the supervisor was killed inside the call");

    let id = asked(&b).await;
    let started = run_approved(&b.house, &id).await.expect("started").value;
    let Came::Operation(operation) = came(&b, &id).await else { panic!("it began one") };
    assert_eq!(Some(operation.id.as_str()), started["operation_id"].as_str());
}
