//! Commands of hooks and backups in what is deployed: the manifest of who brings them decides, beside the policy.

use super::*;

fn compose(settings: &str) -> String {
    format!("services:\n  web:\n    image: hello:1\n    mem_limit: 64m\n    cpus: 0.5\n    x-dockwarden: {settings}\n")
}

#[tokio::test]
async fn a_manifest_lets_commands_in_or_not_whatever_else_it_allows() {
    const HOOK: &str = "{hooks: {pre: [{run: [migrate]}]}}";
    const BACKUP: &str = "{backup: {stdout: [dump]}}";
    let of = async |hooks: &str, settings: &str| {
        let tier = "tier: tier_3_write_elevated";
        let b = bench_of(&KEEPER.replace(tier, &format!("{tier}{hooks}"))).await;
        b.call("deploy", json!({"stack": "shop", "compose": compose(settings), "wait": false})).await.map(|r| r.value)
    };
    for settings in [HOOK, BACKUP] {
        let denied = of("\n  hooks: deny", settings).await.expect_err("it may bring none");
        let why = denied.findings.iter().find(|f| f.rule == "hook.command" && f.verdict == Verdict::Deny);
        assert!(denied.code == ErrorCode::Denied && why.is_some_and(|f| f.because.contains("`hooks` of its manifest")), "{denied:?}");
        let pending = of("\n  hooks: approval", settings).await.expect("asked");
        assert_eq!(pending["state"], "pending_approval", "{pending}");
        for allowed in ["", "\n  hooks: allow"] {
            let begun = of(allowed, settings).await.expect("begun");
            assert!(begun["operation_id"].is_string() && begun["state"] != "pending_approval", "{begun}");
        }
    }
    let b = bench_of(&KEEPER.replace("tier: tier_3_write_elevated", "tier: tier_3_write_elevated\n  hooks: deny")).await;
    b.call("deploy", json!({"stack": "shop", "compose": COMPOSE, "wait": false})).await.expect("it brings none");
}
