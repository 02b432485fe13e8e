//! What a model is told of an approval.

use super::*;
use crate::call::Door;
use crate::call::dispatch::tests::{COMPOSE, bench};
use crate::model::ids::AgentName;

#[tokio::test]
async fn an_approval_whose_call_failed_is_told_as_failed() {
    let b = bench().await;
    let who =
        Principal { agent: AgentName::new("keeper").expect("valid"), door: Door::Task, client: None, read_only: false, on_behalf: vec![] };
    let hands = HouseHands { house: b.house.clone(), who };
    let input = json!({"stack": "shop", "compose": COMPOSE, "environment": "production"});
    let asked = hands.call(None, "deploy", input).await.expect("an answer");
    let id = ApprovalId::new(asked["approval"]["approval_id"].as_str().expect("an id")).expect("valid");
    assert_eq!(hands.approval(&id).await.expect("an answer"), Decided::Waits);
    b.house.executor.close(Duration::from_secs(5)).await;
    b.house.store.decide_approval(&id, "olga", true, Utc::now()).await.expect("stored").expect("was pending");
    approval::run_approved(&b.house, &id).await.expect_err("it takes nothing any more");
    let Decided::Done(told) = hands.approval(&id).await.expect("an answer") else { panic!("it is over") };
    assert_eq!((told["state"].as_str(), told["outcome"].as_str()), (Some("used"), Some("error")), "{told}");
    assert_eq!(told["message"], "the supervisor is shutting down");
}
