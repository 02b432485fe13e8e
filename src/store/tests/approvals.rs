//! Approvals as rows: asked, given by enough operators, used once, void after their time.

use super::*;

#[tokio::test]
async fn an_approval_is_given_by_enough_operators_and_used_once() {
    let (_dir, store) = fresh().await;
    let asked = approval("ap-1", "d", 2);
    assert_eq!(store.request_approval(asked.clone()).await.unwrap(), asked);
    assert_eq!(store.request_approval(approval("ap-2", "d", 2)).await.unwrap(), asked, "the same question is asked once");
    assert_eq!(store.approval(&asked.id, at(1)).await.unwrap(), Some(asked.clone()));
    let call = CallId::new("call-1").unwrap();
    assert!(!store.use_approval(&asked.id, &call, at(1)).await.unwrap(), "not approved yet");

    let one = Approval { approved_by: vec!["ann".into()], ..asked.clone() };
    assert_eq!(store.decide_approval(&asked.id, "ann", true, at(1)).await.unwrap(), Some(one.clone()));
    assert_eq!(store.decide_approval(&asked.id, "ann", true, at(1)).await.unwrap(), Some(one), "twice the same is once");
    let two = Approval { state: ApprovalState::Approved, approved_by: vec!["ann".into(), "bob".into()], ..asked.clone() };
    assert_eq!(store.decide_approval(&asked.id, "bob", true, at(1)).await.unwrap(), Some(two.clone()));
    assert_eq!(store.decide_approval(&asked.id, "eve", false, at(1)).await.unwrap(), None, "decided");
    assert_eq!(store.approvals(true, at(1)).await.unwrap(), []);
    let listed = Approval { input: serde_json::Value::Null, ..two.clone() };
    assert_eq!(store.approvals(false, at(1)).await.unwrap(), [listed], "lists carry no input");

    let other = CallId::new("call-2").unwrap();
    let (a, b) = tokio::join!(store.use_approval(&asked.id, &call, at(2)), store.use_approval(&asked.id, &other, at(2)));
    let first = a.unwrap();
    assert!(first ^ b.unwrap(), "used exactly once");
    assert_eq!(store.approved_call(&asked.id).await.unwrap(), Some(if first { call } else { other }), "the call that was let through");
    let of = Operation { approval: Some(asked.id.clone()), ..operation("op-1", at(2)) };
    store.begin_operation(of, "a").await.unwrap().unwrap();
    let operation = OperationId::new("op-1").ok();
    assert_eq!(store.operation_of_approval(&asked.id).await.unwrap(), operation, "what it started stands with it at once");
    let used = Approval { state: ApprovalState::Used, input: serde_json::Value::Null, operation, ..two };
    assert_eq!(store.approval(&asked.id, at(9_999)).await.unwrap(), Some(used), "a used one does not expire");
    let again = approval("ap-3", "d", 2);
    assert_eq!(store.request_approval(again.clone()).await.unwrap(), again, "used up: asked anew");
    let denied = store.decide_approval(&again.id, "bob", false, at(2)).await.unwrap();
    assert_eq!(denied, Some(Approval { state: ApprovalState::Denied, denied_by: Some("bob".into()), ..again }));
}

#[tokio::test]
async fn a_question_asked_twice_is_decided_by_the_stricter_terms_of_both() {
    let (_dir, store) = fresh().await;
    let terms = |at_terminal, by_client| Approval { at_terminal, by_client, ..approval("ap-1", "d", 1) };
    store.request_approval(terms(false, true)).await.unwrap();
    let asked = async |one| {
        let found = store.request_approval(one).await.unwrap();
        assert_eq!(store.approval(&found.id, at(1)).await.unwrap(), Some(found.clone()), "as it is stored");
        (found.at_terminal, found.by_client)
    };
    assert_eq!(asked(terms(false, true)).await, (false, true));
    assert_eq!(asked(terms(true, true)).await, (true, true));
    assert_eq!(asked(terms(false, false)).await, (true, false));
    assert_eq!(asked(terms(false, true)).await, (true, false), "nothing lets go of it again");
}

#[tokio::test]
async fn an_approval_is_void_after_its_time_given_or_not() {
    let (_dir, store) = fresh().await;
    let (open, given) = (approval("ap-1", "d1", 1), approval("ap-2", "d2", 1));
    store.request_approval(open.clone()).await.unwrap();
    store.request_approval(given.clone()).await.unwrap();
    store.decide_approval(&given.id, "ann", true, at(5)).await.unwrap();
    assert!(!store.use_approval(&given.id, &CallId::new("call-1").unwrap(), at(1800)).await.unwrap());
    assert_eq!(store.decide_approval(&open.id, "ann", true, at(1800)).await.unwrap(), None);
    let expired = Approval { state: ApprovalState::Expired, input: serde_json::Value::Null, ..open };
    assert_eq!(store.approval(&expired.id, at(0)).await.unwrap(), Some(expired), "stored as expired");

    let late = Approval { created_at: at(2000), expires_at: at(2100), ..approval("ap-3", "d1", 1) };
    assert_eq!(store.request_approval(late.clone()).await.unwrap(), late, "an expired one does not answer for a new one");
    let listed = Approval { input: serde_json::Value::Null, ..late.clone() };
    assert_eq!(store.approvals(true, at(2050)).await.unwrap(), [listed]);
    assert_eq!(store.approvals(true, at(2100)).await.unwrap(), []);
    assert_eq!(store.approval(&late.id, at(0)).await.unwrap().unwrap().state, ApprovalState::Expired);
    let nobody = ApprovalId::new("ap-9").unwrap();
    assert_eq!(store.approval(&nobody, at(0)).await.unwrap(), None);
    assert!(matches!(store.set_approval_state(&nobody, ApprovalState::Stale).await, Err(StoreError::Missing { .. })));
}
