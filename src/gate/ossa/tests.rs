//! Manifests of both dialects, what each mistake is told as, and that no text makes the import panic or write what does not load.

use super::*;
use crate::gate::call::tests::catalogue;
use proptest::prelude::*;

const NEW: &str = r#"
apiVersion: ossa/v0.4.1
kind: Agent
metadata:
  name: web-operator
  version: 1.2.0
  description: Runs the web stacks.
  labels: {team: web}
spec:
  role: |
    You run the web stacks.
    ---
    Always plan first.
  llm: {provider: anthropic, model: x}
  access:
    tier: tier_3_write_elevated
    audit_level: detailed
  separation:
    conflicts_with: [observer, auditor]
    can_delegate_to: [backup-keeper, warden, web-operator]
    prohibited_actions: [prune, Stop, merge_to_main]
  constraints:
    cost: {maxCostPerDay: 2.5, currency: USD, maxTokensPerDay: 1000}
    resources: {cpu: 500m, memory: 512Mi}
    performance: {maxLatencySeconds: 3}
  monitoring:
    health_check: {path: /health}
"#;

const OLD: &str = "apiVersion: ossa/v0.3.2\nkind: Agent\nmetadata: {name: reviewer}\nspec:\n  role: You review.\n  access_tier: tier_1_read\n  deployment:\n    scaling: {min_replicas: 2, max_replicas: 9}\n    resources: {cpu: '1', memory: 1Gi}\n";

fn of(text: &str) -> Result<Imported, Vec<String>> {
    let agents = ["observer", "backup-keeper", "warden"].map(str::to_owned).into();
    import("x/agent.yaml", text, &catalogue(), &Policy::default(), &agents).map_err(|p| p.into_iter().map(|p| p.problem).collect())
}

#[test]
fn a_manifest_of_today_becomes_one_of_ours() {
    let got = of(NEW).expect("imported");
    insta::assert_snapshot!(got.text);
    assert_eq!(
        got.not_understood,
        [
            "spec.separation.can_delegate_to: warden (the supervisor's own agent takes no work)",
            "spec.separation.conflicts_with: auditor (no agent of this home; add it to the file when there is one)",
            "spec.separation.prohibited_actions: merge_to_main (no tool here)",
            "spec.constraints.cost.maxTokensPerDay",
            "metadata.version",
            "metadata.labels",
            "spec.llm",
            "spec.access.audit_level",
            "spec.constraints.performance",
        ]
    );
    assert_eq!(got.noted.len(), 3, "{:#?}", got.noted);
    assert_eq!(got.noted[0], "spec.constraints.cost.maxCostPerDay 2.5 became usd_per_month 75: there is no limit a day");
    let agent = parse("agents/web-operator.md", &got.text, &catalogue(), &Policy::default()).expect("loads");
    assert_eq!(agent.prompt, "You run the web stacks.\n---\nAlways plan first.");
    assert_eq!((agent.can_delegate_to, agent.conflicts_with), (vec!["backup-keeper".to_owned()], vec!["observer".to_owned()]));
    assert_eq!(agent.limits.usd_per_month, Some(75.0));
}

#[test]
fn a_manifest_of_the_older_dialect_too() {
    let got = of(OLD).expect("imported");
    assert_eq!(got.not_understood, ["spec.deployment.scaling.max_replicas"]);
    assert!(got.text.contains("# spec.deployment.scaling.min_replicas: 2\n# spec.deployment.resources.cpu: \"1\"\n"), "{}", got.text);
    let agent = parse("agents/reviewer.md", &got.text, &catalogue(), &Policy::default()).expect("loads");
    assert_eq!((agent.tier, agent.rules.len(), agent.description.as_str()), (Tier::Tier1Read, 0, "You review."));
    assert!(
        !agent.tools.is_empty() && agent.tools.iter().all(|t| catalogue().iter().any(|f| f.name == *t && !f.mutates)),
        "{:?}",
        agent.tools
    );
}

#[test]
fn what_is_no_agent_is_told_and_nothing_is_made_of_it() {
    let tier = "one of";
    let cases = [
        ("", "apiVersion is \"\""),
        ("apiVersion: v1", "apiVersion is \"v1\""),
        ("apiVersion: ossa/v1\nkind: Workflow", "kind is \"Workflow\""),
        ("apiVersion: ossa/v1\nmetadata: {name: Big Name}", "metadata.name: invalid agent \"Big Name\""),
        ("apiVersion: ossa/v1\nmetadata: {name: warden}", "metadata.name: warden is the supervisor's own agent"),
        ("apiVersion: ossa/v1\nmetadata: {name: a}\nspec: {access_tier: tier_1_read}", "spec.role is missing or no text"),
        ("apiVersion: ossa/v1\nmetadata: {name: a}\nspec: {role: r}", "spec.access.tier is missing"),
        ("apiVersion: ossa/v1\nmetadata: {name: a}\nspec: {role: r, access_tier: root}", "the tier \"root\" does not exist"),
        (
            "apiVersion: ossa/v1\nmetadata: {name: a}\nspec: {role: r, access_tier: tier_1_read, access: {tier: tier_2_write_limited}}",
            "spec.access.tier is \"tier_2_write_limited\" and spec.access_tier is \"tier_1_read\"",
        ),
    ];
    for (text, expected) in cases {
        let told = of(text).expect_err(text);
        assert!(told.len() == 1 && told[0].starts_with(expected), "{text}: {told:?} {tier}");
    }
}

#[test]
fn every_tier_gets_its_defaults_and_nothing_more() {
    let grants = |tier: &str| -> Vec<String> {
        let got = of(&OLD.replace("tier_1_read", tier)).expect("imported");
        let agent = parse("agents/reviewer.md", &got.text, &catalogue(), &Policy::default()).expect("loads");
        agent.rules.iter().map(|r| format!("{} {} {}", r.id, r.effect.as_str(), r.environments.join(","))).collect()
    };
    assert_eq!(grants("tier_1_read"), Vec::<String>::new());
    assert_eq!(grants("tier_2_write_limited"), ["backups allow ", "try-out allow development,staging"]);
    assert_eq!(grants("tier_3_write_elevated"), ["backups allow ", "try-out allow development,staging", "production approval production"]);
    assert_eq!(grants("tier_4_policy"), Vec::<String>::new());
}

proptest! {
    #[test]
    fn whatever_is_imported_loads(role in ".{1,60}", description in ".{0,60}", action in "[a-z_ -]{0,12}", extra in "[a-z:{}\\[\\] \n-]{0,40}", tier in 0..4usize) {
        let tier = ["tier_1_read", "tier_2_write_limited", "tier_3_write_elevated", "tier_4_policy"][tier];
        let value = json!({"apiVersion": "ossa/v1", "metadata": {"name": "a", "description": description},
            "spec": {"role": role, "access": {"tier": tier}, "separation": {"prohibited_actions": [action, "prune"], "can_delegate_to": [description]}}});
        match of(&value.to_string()) {
            Ok(got) => prop_assert!(parse("agents/a.md", &got.text, &catalogue(), &Policy::default()).is_ok()),
            Err(told) => prop_assert!(told.iter().all(|t| t.starts_with("spec.role") || t.contains("control characters")), "{told:?}"),
        }
        of(&format!("apiVersion: ossa/v1\n{extra}")).ok();
    }
}
