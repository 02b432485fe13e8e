//! Agent files: what loads, and what each mistake is told as.

use super::*;
use crate::gate::call::tests::{catalogue, shipped};
use proptest::prelude::*;

fn problems(text: &str) -> Vec<String> {
    let found = parse("agents/tester.md", text, &catalogue(), &Policy::default()).err().unwrap_or_default();
    found.into_iter().map(|p| format!("{}: {}", p.line.unwrap_or(0), p.problem)).collect()
}

/// A file with one rule line to go wrong.
fn with_rule(rule: &str) -> String {
    format!(
        "---\nname: tester\ndescription: d\ntools: deploy, logs\ndockwarden:\n  tier: tier_3_write_elevated\n  rules:\n    - {{id: first, effect: allow, tools: [logs], because: x}}\n    - {{{rule}}}\n---\nYou test.\n"
    )
}

#[test]
fn the_design_example_loads_as_written() {
    let text = r#"---
name: tester
description: Deploys and rolls back web stacks. Use for any change to a web-* stack.
tools: plan, deploy, rollback, status, mcp__dockwarden__health, logs, operation
model: inherit
dockwarden:
  tier: tier_3_write_elevated        # default grants per tier; the file narrows, a label never widens
  rules:
    - {id: web-staging, effect: allow, tools: [deploy, rollback], stacks: ["web-*"], environments: [staging],
       max_per_hour: 5, because: "the web team owns web-*",
       match: [{tool: deploy, stack: web-shop, environment: staging}],
       not_match: [{tool: deploy, stack: billing, environment: staging}]}
    - {id: web-prod, effect: approval, tools: [deploy], stacks: ["web-*"], environments: [production], approvals: 1, ttl: 30m,
       because: "production changes are reviewed"}
  limits: {calls_per_minute: 30, usd_per_month: 20}
---
You deploy ...
"#;
    let agent = parse("agents/tester.md", text, &catalogue(), &Policy::default()).unwrap_or_else(|p| panic!("{p:#?}"));
    assert_eq!(agent.tools, ["plan", "deploy", "rollback", "status", "health", "logs", "operation"]);
    assert_eq!((agent.tier, agent.rules.len(), agent.prompt.as_str()), (Tier::Tier3WriteElevated, 2, "You deploy ..."));
    assert_eq!(agent.limits, Limits { calls_per_minute: Some(30), usd_per_month: Some(20.0), ..Limits::default() });
}

#[test]
fn a_file_that_is_no_manifest_is_told_where() {
    assert_eq!(problems(""), ["1: the file does not begin with a line `---`"]);
    assert_eq!(problems("---\nname: x\n"), ["1: the front matter has no closing line `---`"]);
    let unknown = problems("---\nname: tester\ndescription: d\ncolour: red\ndockwarden: {tier: tier_1_read}\n---\n");
    assert!(unknown.len() == 1 && unknown[0].contains("unknown field `colour`"), "{unknown:?}");
    let nested = problems(&with_rule("id: b, effect: allow, tools: [deploy], stack: shop, because: x"));
    assert!(nested.len() == 1 && nested[0].starts_with("9: ") && nested[0].contains("unknown field `stack`"), "{nested:?}");
    let no_key = problems("---\nname: tester\ndescription: d\n---\n");
    assert!(no_key.len() == 1 && no_key[0].contains("missing field `dockwarden`"), "{no_key:?}");
    let bad_tier = problems("---\nname: tester\ndescription: d\ndockwarden: {tier: root}\n---\n");
    assert!(bad_tier.len() == 1 && bad_tier[0].contains("unknown variant `root`"), "{bad_tier:?}");
    assert_eq!(
        problems("---\nname: other\ndescription: d\ndockwarden: {tier: tier_1_read}\n---\n"),
        ["2: the file is called \"tester\" and the agent \"other\""]
    );
}

#[test]
fn an_agent_without_tools_has_none() {
    let agent =
        parse("tester.md", "---\nname: tester\ndescription: d\ndockwarden: {tier: tier_1_read}\n---\n", &catalogue(), &Policy::default())
            .unwrap();
    assert_eq!(agent.tools, Vec::<String>::new());
}

#[test]
fn rules_that_can_never_match_or_contradict_themselves_are_errors() {
    let cases = [
        ("id: first, effect: allow, tools: [deploy], because: x", "9: rule id \"first\" is used twice"),
        ("id: b, effect: allow, tools: [], because: x", "9: rule \"b\" names no tool: it can never match"),
        (
            "id: b, effect: allow, tools: [stop], because: x",
            "9: rule \"b\" names the tool \"stop\", which is not in the agent's tools: it can never match",
        ),
        ("id: b, effect: allow, tools: [deplyo], because: x", "9: rule \"b\" names the tool \"deplyo\", which does not exist"),
        (
            "id: b, effect: allow, tools: [deploy], environments: [prod], because: x",
            "9: rule \"b\": environment \"prod\" does not exist: it can never match",
        ),
        ("id: b, effect: warn, tools: [deploy], because: x", "9: rule \"b\" has effect warn"),
        ("id: b, effect: allow, tools: [deploy], because: ' '", "9: rule \"b\" has an empty because"),
        (
            "id: b, effect: allow, tools: [deploy], ttl: 5m, because: x",
            "9: rule \"b\" has approvals, ttl or channels without effect: approval",
        ),
        ("id: b, effect: approval, tools: [deploy], approvals: 0, because: x", "9: rule \"b\" asks for 0 approvals"),
        ("id: b, effect: approval, tools: [deploy], ttl: soon, because: x", "9: rule \"b\": ttl \"soon\" is not a time"),
        ("id: b, effect: approval, tools: [deploy], channels: [mail], because: x", "9: rule \"b\": channel \"mail\" does not exist"),
        ("id: b, effect: allow, tools: [deploy], max_per_hour: 0, because: x", "9: rule \"b\" has max_per_hour 0"),
        (
            "id: b, effect: allow, tools: [deploy], stacks: [\"web/*\"], because: x",
            "9: rule \"b\": \"web/*\" can never match: names hold letters, digits, '_', '-' and '.' only; '*' and '?' are the wildcards",
        ),
        (
            "id: b, effect: allow, tools: [deploy], stacks: [web], because: x, match: [{tool: deploy, stack: shop}]",
            "9: rule \"b\" does not match its match example {tool: deploy, stack: shop}",
        ),
        (
            "id: b, effect: allow, tools: [deploy], because: x, not_match: [{tool: deploy, stack: shop}]",
            "9: rule \"b\" matches its not_match example {tool: deploy, stack: shop}",
        ),
        (
            "id: b, effect: allow, tools: [deploy], because: x, not_match: [{tool: deplyo}]",
            "9: rule \"b\": the not_match example of tool \"deplyo\" names a tool or environment that does not exist",
        ),
    ];
    for (rule, expected) in cases {
        assert_eq!(problems(&with_rule(rule)), [expected], "{rule}");
    }
}

#[test]
fn a_grant_its_tier_takes_back_everywhere_is_an_error() {
    let text = |tier: &str, rest: &str| {
        with_rule(&format!("id: b, effect: allow, tools: [deploy], {rest}because: x")).replace("tier_3_write_elevated", tier)
    };
    assert_eq!(
        problems(&text("tier_1_read", "")),
        ["9: rule \"b\" grants \"deploy\", which tier_1_read never executes there: it can never match"]
    );
    assert_eq!(
        problems(&text("tier_2_write_limited", "environments: [production], ")),
        ["9: rule \"b\" grants \"deploy\", which tier_2_write_limited never executes there: it can never match"]
    );
    assert_eq!(problems(&text("tier_2_write_limited", "environments: [staging, production], ")), Vec::<String>::new());
}

#[test]
fn a_book_with_one_bad_file_is_no_book() {
    use crate::gate::Rulebook;
    let good = "---\nname: a\ndescription: d\ndockwarden: {tier: tier_1_read}\n---\n";
    let files =
        vec![("a.md".to_owned(), good.to_owned()), ("b.md".to_owned(), "nonsense".to_owned()), ("x/a.md".to_owned(), good.to_owned())];
    let found: Vec<String> = Rulebook::build(files, "[peers]\n1000 = [\"a\", \"ghost\"]\n[rules]\nnope = \"off\"", &catalogue())
        .unwrap_err()
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(
        found,
        [
            "policy.toml:4: rules names the rule \"nope\", which does not exist (`dockwarden policy explain` lists the rules)",
            "b.md:1: the file does not begin with a line `---` (an agent file is `---`, YAML front matter, `---`, and the agent's prompt)",
            "x/a.md: agent \"a\" is already defined by a.md (keep one file per agent)",
        ]
    );
    let found = Rulebook::build(vec![("a.md".into(), good.into())], "[peers]\n1000 = [\"a\", \"ghost\"]", &catalogue()).unwrap_err();
    assert_eq!(found[0].problem, "peers.1000 names the agent \"ghost\", which does not exist");
}

#[test]
fn the_shipped_prompts_of_agents_name_tools_they_have() {
    for agent in shipped().agents.values() {
        assert!(!agent.prompt.is_empty() && !agent.description.is_empty(), "{}", agent.name);
    }
}

proptest! {
    #[test]
    fn no_text_makes_the_parser_panic(front in ".{0,200}", body in ".{0,50}", rule in "[a-z:{}\\[\\], \"'&*!|>#-]{0,80}") {
        let _ = parse("a.md", &front, &catalogue(), &Policy::default());
        let _ = parse("a.md", &format!("---\n{front}\n---\n{body}"), &catalogue(), &Policy::default());
        let _ = parse("tester.md", &with_rule(&rule), &catalogue(), &Policy::default());
        let _ = crate::gate::policy::parse("policy.toml", &front);
        let _ = crate::gate::policy::parse("policy.toml", &rule);
        let _ = crate::gate::prompt::parse_prompt("a.md", &format!("---\n{front}\n---\n{body}"));
    }
}

#[test]
fn ids_that_could_be_taken_for_something_else_and_rules_that_decide_nothing_are_errors() {
    let cases = [
        (
            "id: tier_1_read, effect: allow, tools: [deploy], because: x",
            "9: rule id \"tier_1_read\" could be taken for a tier in replies and the audit log",
        ),
        (
            "id: b, effect: deny, tools: [logs], because: x",
            "8: rule \"first\" never decides anything: \"b\" speaks of every such call and is stricter",
        ),
        (
            "id: b, effect: deny, tools: [deploy], max_per_hour: 2, because: x",
            "9: rule \"b\" has max_per_hour with effect: deny: nothing is ever counted",
        ),
        ("id: b, effect: allow, tools: [deploy], max_per_hour_per_stack: 0, because: x", "9: rule \"b\" has max_per_hour_per_stack 0"),
    ];
    for (rule, expected) in cases {
        assert_eq!(problems(&with_rule(rule)), [expected], "{rule}");
    }
}
