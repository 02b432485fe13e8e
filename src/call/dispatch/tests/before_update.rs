//! Snapshots before an update: the operator's word goes before the file's, and commands that may not run are told in the plan.

use super::*;
use crate::executor::backup::BackupHouse;

const AGENT: &str = "tools: plan, deploy, rollback, status";

fn keeper(hooks: &str) -> String {
    let all = KEEPER.replace("tools: plan, deploy, status", AGENT).replace("tools: [deploy, restart]", "tools: [deploy, rollback]");
    all.replace("tier: tier_3_write_elevated", &format!("tier: tier_3_write_elevated\n  hooks: {hooks}"))
}

/// A service with data; `backup` is what its file says of it.
fn db(image: &str, backup: &str) -> String {
    format!(
        "services:\n  db:\n    image: {image}\n    mem_limit: 64m\n    cpus: 0.5\n    volumes: [\"data:/data\"]\n    x-dockwarden: \
         {{backup: {{{backup}}}}}\nvolumes: {{data: {{}}}}\n"
    )
}

/// A bench with a repository, whose rules can be changed.
async fn rig() -> Bench {
    let mut b = bench_of(&keeper("allow")).await;
    let home = b._dir.path().join("home");
    let backups = BackupHouse::of(&home, home.join("none"), std::time::Duration::from_secs(60));
    Arc::get_mut(&mut b.house).expect("nobody else has it").backups = Some(Arc::new(backups));
    b.engine.add_image("hello:2", Behaviour::healthy());
    b
}

fn rules(b: &Bench, hooks: &str, policy: &str) {
    let policy = format!("allowed_registries = [\"local\", \"docker.io/library\"]\n{policy}");
    let book = Rulebook::build(vec![("keeper.md".into(), keeper(hooks))], &policy, &tools::gate_facts()).expect("a rulebook");
    b.house.rulebook.store(Arc::new(book));
}

/// Verdicts and words of the findings of one rule.
fn told(plan: &Value, rule: &str) -> Vec<(String, String)> {
    let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
    let of = plan["findings"].as_array().expect("a list").iter().filter(|f| f["rule"] == rule);
    of.map(|f| (text(&f["verdict"]), text(&f["because"]))).collect()
}

#[tokio::test]
async fn a_file_may_ask_for_more_than_the_policy_and_never_for_less() {
    let b = rig().await;
    rules(&b, "allow", "pre_update = \"asked\"\n");
    b.call("deploy", json!({"stack": "shop", "compose": db("hello:1", "")})).await.expect("deployed");
    let plan =
        async |backup: &str| b.call("plan", json!({"stack": "shop", "compose": db("hello:2", backup)})).await.expect("planned").value;
    let first = |plan: &Value| {
        told(plan, "backup.pre_update").iter().any(|(v, why)| v == "allow" && why.contains("shop_data is snapshotted first"))
    };
    assert!(!first(&plan("").await) && !first(&plan("pre_update: false").await));
    assert!(first(&plan("pre_update: true").await), "more may be asked for");
    let made = plan("pre_update: true").await;
    let said = made["preflight"].as_array().expect("a list").iter().find(|c| c["id"] == "backup.made").expect("there").clone();
    assert_eq!((said["ok"].as_str(), said["message"].as_str()), (Some("yes"), Some("db: this plan snapshots its data first")));
    // The policy takes one: the file says it does not want it, and that is told.
    for policy in ["every", "image"] {
        rules(&b, "allow", &format!("pre_update = \"{policy}\"\n"));
        let less = plan("pre_update: false").await;
        assert!(first(&less), "{policy}: {less}");
        let warned: Vec<_> = told(&less, "backup.pre_update").into_iter().filter(|(v, _)| v == "warn").collect();
        assert!(warned.len() == 1 && warned[0].1.contains("the file says pre_update: false of shop_data"), "{warned:?}");
        assert_eq!(told(&plan("").await, "backup.pre_update").len(), 1, "nothing is said where the file says nothing");
    }
    // An operator raises it, or lets one volume go.
    rules(&b, "allow", "[rules]\n\"backup.pre_update\" = \"deny\"\n");
    assert_eq!(plan("pre_update: false").await["verdict"], "deny");
    assert_ne!(plan("").await["verdict"], "deny", "what is done is not held against it");
    let exception = "[[exceptions]]\nrule = \"backup.pre_update\"\nstack = \"shop\"\nservice = \"db\"\nvalue = \"shop_data\"\nbecause = \"a cache\"\nexpires = \"2999-01-01\"\n";
    rules(&b, "allow", exception);
    let let_go = plan("pre_update: false").await;
    assert!(!first(&let_go) && told(&let_go, "backup.pre_update")[0].1.contains("excepted by an operator"), "{let_go}");
    assert!(first(&plan("").await), "only where the file does not want it");
}

#[tokio::test]
async fn what_plans_say_of_backups_texts_and_images_is_as_strict_as_the_policy_has_it() {
    let b = rig().await;
    let of = async |policy: &str, rule: &str, compose: &str| {
        rules(&b, "allow", policy);
        let plan = b.call("plan", json!({"stack": "shop", "compose": compose})).await.expect("planned").value;
        let mut levels: Vec<String> = told(&plan, rule).into_iter().map(|(v, _)| v).collect();
        levels.dedup();
        (levels, plan["verdict"].as_str().unwrap_or_default().to_owned())
    };
    let uncovered = db("hello:1", "schedule: \"off\"");
    let two = format!(
        "{}  other:\n    image: hello:1\n    volumes: [\"data:/d\"]\n",
        db("hello:1", "").split("volumes: {").next().expect("text")
    );
    let two = format!("{two}volumes: {{data: {{}}}}\n");
    let unsupported = COMPOSE.replace("    mem_limit", "    deploy: {update_config: {parallelism: 2}}\n    mem_limit");
    let unknown = COMPOSE.replace("hello:1", "hello:nowhere");
    for (rule, compose) in
        [("backup.none", &uncovered), ("backup.writers", &two), ("compose.unsupported", &unsupported), ("image.unresolved", &unknown)]
    {
        assert_eq!(of("", rule, compose).await.0, ["warn"], "{rule}");
        let level = |level: &str| format!("[rules]\n\"{rule}\" = \"{level}\"\n");
        assert_eq!(of(&level("off"), rule, compose).await.0, Vec::<String>::new(), "{rule}");
        for strict in ["approval", "deny"] {
            assert_eq!(of(&level(strict), rule, compose).await, (vec![strict.to_owned()], strict.to_owned()), "{rule}");
        }
    }
}

#[tokio::test]
async fn a_way_back_whose_snapshot_may_not_run_its_commands_is_refused_in_the_plan() {
    let b = rig().await;
    rules(&b, "allow", "pre_update = \"asked\"\n");
    for image in ["hello:1", "hello:2"] {
        let input = json!({"stack": "shop", "compose": db(image, "stdout: [dump]")});
        let done = b.call("deploy", input).await.expect("deployed").value;
        assert_eq!(done["state"], "monitoring", "{done}");
    }
    rules(&b, "deny", "pre_update = \"image\"\n");
    let back = async || b.call("rollback", json!({"stack": "shop", "to_release": 1, "data": "code_only"})).await;
    let denied = back().await.expect_err("refused before anything is begun");
    let why = denied.findings.iter().find(|f| f.rule == "hook.command" && f.verdict == Verdict::Deny).map(|f| f.because.as_str());
    assert_eq!(denied.code, ErrorCode::Denied, "{denied:?}");
    assert!(why.is_some_and(|w| w.contains("runs the commands of its backup") && w.contains("agent keeper")), "{denied:?}");
    // Without a snapshot nothing of the sort is run.
    rules(&b, "deny", "pre_update = \"asked\"\n");
    back().await.expect("it goes back");
}
