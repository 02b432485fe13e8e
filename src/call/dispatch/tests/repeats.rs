//! A call that is made again, and calls that are made at once, are one operation.

use super::*;

fn keyed(key: &str, greeting: &str) -> Value {
    json!({"stack": "shop", "compose": COMPOSE.replace("good-morning", greeting), "idempotency_key": key})
}

#[tokio::test]
async fn a_repeated_call_is_the_same_operation_and_counts_once() {
    let b = limited(1).await;
    let first = b.call("deploy", keyed("k1", "one")).await.expect("deployed").value;
    assert_eq!(first["state"], "monitoring", "{first}");
    for _ in 0..3 {
        let again = b.call("deploy", keyed("k1", "one")).await.expect("a replay counts against nothing").value;
        assert_eq!(again["operation_id"], first["operation_id"]);
    }
    let reused = b.call("deploy", keyed("k1", "two")).await.expect_err("other arguments");
    assert!(matches!(reused.code, ErrorCode::Conflict | ErrorCode::RateLimited), "{reused}");
    assert_eq!(b.call("deploy", keyed("k2", "two")).await.expect_err("the hour's one was used").code, ErrorCode::RateLimited);
}

#[tokio::test]
async fn identical_calls_at_once_make_one_operation_and_count_once() {
    for input in [keyed("k1", "one"), json!({"stack": "shop", "compose": COMPOSE})] {
        let b = limited(1).await;
        let calls: Vec<_> = (0..4).map(|_| b.call("deploy", input.clone())).collect();
        let replies: Vec<_> = futures_util::stream::iter(calls).buffer_unordered(4).map(|r| r.expect("deployed").value).collect().await;
        let ids: std::collections::BTreeSet<String> = replies.iter().map(|r| r["operation_id"].to_string()).collect();
        assert_eq!(ids.len(), 1, "{replies:?}");
        assert!(!ids.contains("null"), "{replies:?}");
        assert_eq!(b.house.store.operations(None, 10).await.expect("listed").len(), 1);
    }
}

#[tokio::test]
async fn a_plan_deployed_twice_at_once_is_one_operation() {
    let b = limited(1).await;
    let plan = b.call("plan", json!({"stack": "shop", "compose": COMPOSE})).await.expect("planned").value;
    let input = json!({"plan_id": plan["plan_id"], "digest": plan["digest"]});
    let (one, two) = tokio::join!(b.call("deploy", input.clone()), b.call("deploy", input.clone()));
    let (one, two) = (one.expect("deployed").value, two.expect("joined").value);
    assert_eq!((one["operation_id"].clone(), one["state"].clone()), (two["operation_id"].clone(), json!("monitoring")));
    assert_eq!(b.call("deploy", input).await.expect("a replay").value["operation_id"], one["operation_id"]);
}
