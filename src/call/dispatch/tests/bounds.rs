//! Replies that a model can read at once, whatever the stack: clients refuse replies of 25,000 tokens, and a reply carries most of it twice.

use super::*;

/// Characters of a reply as a client counts it: text and value. About four are a token.
fn size(reply: &Reply) -> usize {
    reply.text.len() + reply.value.to_string().len()
}

/// So many services, each with variables and labels of a kind.
fn services(n: usize, kind: &str) -> String {
    let mut out = "services:\n".to_owned();
    for s in 0..n {
        out.push_str(&format!("  service-number-{s}:\n    image: hello:1\n    environment:\n"));
        (0..25).for_each(|v| out.push_str(&format!("      VARIABLE_OF_SOME_LENGTH_{v}: {kind}-{v}\n")));
        out.push_str("    labels:\n");
        (0..10).for_each(|v| out.push_str(&format!("      com.example.label-of-some-length-{v}: \"a value that says {kind} {v}\"\n")));
    }
    out
}

#[tokio::test]
async fn a_plan_of_35_services_stays_below_20000_tokens_and_tells_how_to_see_the_rest() {
    let b = bench().await;
    b.call("deploy", json!({"stack": "large", "compose": services(35, "before")})).await.expect("deployed");
    let compose = services(35, "after");
    let plan = b.call("plan", json!({"stack": "large", "compose": compose})).await.expect("planned");
    assert!(size(&plan) < 80_000, "{} characters", size(&plan));
    assert_eq!(plan.value["changes"].as_array().map(Vec::len), Some(35), "what happens to each is told");
    let left = &plan.value["left_out"];
    assert!(left["diff_lines"].as_object().is_some_and(|d| !d.is_empty()), "{left}");
    assert!(plan.text.contains("left out: ") && plan.text.contains("call plan again with service"), "{}", plan.text);

    let name = left["diff_lines"].as_object().and_then(|d| d.keys().find(|k| !k.is_empty())).expect("a service").clone();
    let one = b.call("plan", json!({"stack": "large", "compose": compose, "service": name})).await.expect("planned");
    assert_eq!(one.value["changes"].as_array().map(Vec::len), Some(1), "{}", one.value);
    assert!(one.value["changes"][0]["diff"].as_array().is_some_and(|d| d.len() > 25), "all of it: {}", one.value);
    assert!(one.value.get("left_out").is_none(), "{}", one.value["left_out"]);
    assert_eq!(one.value["digest"], plan.value["digest"], "the plan is of all");
    let none =
        b.call("plan", json!({"stack": "large", "compose": compose, "service": "service-number"})).await.expect_err("no such service");
    assert!(none.hint.contains("did you mean"), "{none}");
}

#[tokio::test]
async fn a_plan_that_fits_is_told_whole() {
    let b = bench().await;
    let plan = b.call("plan", json!({"stack": "shop", "compose": COMPOSE})).await.expect("planned");
    assert!(plan.value.get("left_out").is_none() && !plan.text.contains("left out"), "{}", plan.text);
}

#[tokio::test]
async fn past_calls_and_tasks_are_read_page_by_page() {
    let b = bench_of(&KEEPER.replace("tools: plan,", "tools: memory_read, plan,")).await;
    for _ in 0..130 {
        b.call("status", json!({})).await.expect("read");
    }
    b.house.store.project_history().await.expect("projected");
    let page = b.call("memory_read", json!({"history": true})).await.expect("read").value;
    let seqs =
        |page: &Value| page["entries"].as_array().expect("a list").iter().map(|e| e["seq"].as_i64().expect("a number")).collect::<Vec<_>>();
    let (first, mut seen) = (seqs(&page), seqs(&page));
    assert!(first.len() <= 100 && first.windows(2).all(|w| w[0] > w[1]), "newest first: {first:?}");
    let mut cursor = page["next_cursor"].clone();
    while cursor.is_string() {
        let page = b.call("memory_read", json!({"history": true, "cursor": cursor})).await.expect("read").value;
        seen.extend(seqs(&page));
        cursor = page["next_cursor"].clone();
    }
    assert!(seen.len() >= 130 && seen.windows(2).all(|w| w[0] > w[1]), "{} entries", seen.len());
    let wrong = b.call("memory_read", json!({"cursor": "7"})).await.expect_err("of notes there are no pages");
    assert_eq!(wrong.field.as_deref(), Some("cursor"));
}
