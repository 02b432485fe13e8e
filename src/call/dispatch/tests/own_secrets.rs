//! What a call declares a secret is hidden from everybody as long as it is its own, and hides nothing of anybody else's.

use super::*;
use crate::adapters::people;
use crate::redact;

const LABELLED: &str =
    "services:\n  web:\n    image: hello:1\n    command: [serve, \"--key=${A_TOKEN}\"]\n    mem_limit: 64m\n    cpus: 0.5\n";

#[tokio::test]
async fn a_value_of_a_call_leaves_nowhere_and_blinds_nobody() {
    let b = bench().await;
    let secret = "0wn-v4lue-of-a-plan";
    let words = json!({"A_TOKEN": secret, "B_TOKEN": "pending_approval", "C_TOKEN": "somebody-elses-W0rd"});
    let reason = format!("because {secret}");
    let plan = b.call("plan", json!({"stack": "shop", "compose": LABELLED, "variables": words})).await.expect("planned");
    let shown = format!("{} {}", plan.value, plan.text);
    assert!(!shown.contains(secret) && shown.contains("--key=[redacted]"), "{shown}");
    let held = json!({"stack": "prod", "compose": LABELLED, "environment": "production", "variables": words, "reason": reason});
    let held = b.call("deploy", held).await.expect("held");
    assert_eq!(held.value["state"], "pending_approval", "a word of the house stays readable");
    // Nobody else's words go while nothing was accepted.
    for text in [secret, "pending_approval", "somebody-elses-W0rd"] {
        assert_eq!(redact::mask(text), text);
    }
    let id = held.known.approval.expect("it waits");
    let page = people::show(&b.house, id.as_str()).await.expect("shown");
    let page = format!("{} {}", page.value, page.text);
    assert!(!page.contains(secret) && page.contains("--key=[redacted]"), "{page}");
    let rows = b.house.store.audit_after(0, None, 100).await.expect("rows");
    let rows = serde_json::to_string(&rows).expect("JSON");
    assert!(!rows.contains(secret) && rows.contains("because [redacted]"), "{rows}");
    let waiting = b.house.store.approval(&id, chrono::Utc::now()).await.expect("read").expect("there");
    assert_eq!(waiting.reason.as_deref(), Some("because [redacted]"));
    // Once it runs, what others read of it has it no more.
    let input = json!({"stack": "shop", "compose": LABELLED, "variables": words});
    let done = b.call("deploy", input).await.expect("deployed");
    assert!(done.known.operation.is_some() && !done.text.contains(secret), "{}", done.text);
    assert_eq!(redact::mask(&format!("serve --key={secret}")), "serve --key=[redacted]");
    assert_eq!(
        redact::mask("pending_approval somebody-elses-W0rd"),
        "pending_approval somebody-elses-W0rd",
        "what it does not use it does not declare"
    );
    // And after a restart, when its variables are long gone.
    let release = b.house.store.release(&StackName::new("shop").expect("valid"), 1).await.expect("read").expect("there");
    assert_eq!(release.spec.declared.iter().collect::<Vec<_>>(), [secret]);
}

#[tokio::test]
async fn the_image_of_a_call_is_read_whatever_it_declares() {
    let b = bench().await;
    let image = "local/miner:9";
    b.engine.add_image(image, Behaviour::healthy());
    let variables = json!({"E_TOKEN": image, "F_TOKEN": "local/mi"});
    let input = json!({"stack": "prod", "compose": COMPOSE, "environment": "production", "images": {"web": image}, "variables": variables});
    let held = b.call("deploy", input).await.expect("asked");
    let rows = b.house.store.audit_after(0, None, 100).await.expect("rows");
    assert!(rows.iter().any(|r| r.detail["arguments"]["images"]["web"] == image), "{rows:?}");
    let id = held.known.approval.expect("it waits");
    let page = people::show(&b.house, id.as_str()).await.expect("shown");
    assert!(page.text.contains(&format!("+ image: {image}\n")), "{}", page.text);
    assert!(page.value["changes"].to_string().contains(image), "{}", page.value);
}

#[tokio::test]
async fn variables_beyond_what_a_call_may_bring_are_refused() {
    let b = bench().await;
    let many: serde_json::Map<String, Value> = (0..201).map(|n| (format!("V{n}_TOKEN"), json!(format!("value-{n}-X")))).collect();
    let large = json!({"V_TOKEN": "x".repeat(64 * 1024)});
    for (variables, says) in [(json!(many), "201 variables"), (large, "at most 200 with 65536 bytes")] {
        for tool in ["plan", "deploy"] {
            let e = b.call(tool, json!({"stack": "shop", "compose": COMPOSE, "variables": variables})).await.expect_err("refused");
            assert_eq!((e.code, e.field.as_deref()), (ErrorCode::InvalidArgument, Some("variables")), "{tool}: {e}");
            assert!(e.message.contains(says), "{e}");
        }
    }
    let secrets: String = (0..600).map(|n| format!("      K{n}_TOKEN: value-{n}-of-many\n")).collect();
    let compose = COMPOSE.replace("      GREETING: good-morning-s3cret\n", &secrets);
    let e = b.call("plan", json!({"stack": "shop", "compose": compose})).await.expect_err("refused");
    assert!(e.message.contains("more secret values than"), "{e}");
}
