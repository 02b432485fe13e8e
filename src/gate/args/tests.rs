//! Conditions over arguments: what holds, and which mistakes are told when a file is read.

use super::*;
use crate::gate::call::tests::catalogue;
use crate::gate::call::{Asked, decide, rule_matches};
use crate::gate::explain::{call_of, explain, matrix};
use crate::gate::{CallFacts, Rulebook};
use crate::model::ids::StackName;
use crate::model::verdict::Verdict;
use proptest::prelude::*;
use serde_json::json;
use std::sync::Arc;

fn condition(yaml: &str) -> ArgCondition {
    yaml_serde::from_str(yaml).expect("a condition")
}

#[test]
fn what_each_condition_holds_for() {
    let cases = [
        ("{equals: 3}", json!(3), true),
        ("{equals: 3}", json!(3.0), true),
        ("{equals: 3}", json!("3"), false),
        ("{equals: true}", json!(false), false),
        ("{one_of: [a, 2]}", json!(2), true),
        ("{one_of: [a, 2]}", json!("b"), false),
        ("{glob: \"ghcr.io/acme/*\"}", json!("ghcr.io/acme/web:1"), true),
        ("{glob: \"ghcr.io/acme/*\"}", json!("docker.io/ghcr.io/acme/web"), false),
        ("{glob: \"*\"}", json!(1), false),
        ("{min: 1, max: 3}", json!(3), true),
        ("{min: 1, max: 3}", json!(3.5), false),
        ("{min: 1}", json!("2"), false),
        ("{max: 3}", json!(-1), true),
        ("{absent: true}", json!(null), true),
        ("{absent: true}", json!(0), false),
        ("{absent: false}", json!(0), true),
        ("{equals: 3}", json!(null), false),
        ("{glob: \"*\"}", json!(["a"]), false),
    ];
    for (c, value, expected) in cases {
        assert_eq!(holds(&condition(c), at(&json!({"x": value}), "x")), expected, "{c} {value}");
    }
    let deep = json!({"images": {"web.1": "a/b", "a/b": 1}});
    assert_eq!(at(&deep, "/images/web.1"), Some(&json!("a/b")));
    assert_eq!(at(&deep, "/images/a~1b"), Some(&json!(1)));
    assert_eq!((at(&deep, "images.none"), at(&deep, "images.web.1")), (None, None));
}

fn problems(tools: &str, args: &str) -> Vec<String> {
    let text = format!(
        "---\nname: x\ndescription: d\ntools: scale, deploy, prune\ndockwarden:\n  tier: tier_3_write_elevated\n  rules:\n    - {{id: r, effect: allow, tools: [{tools}], because: b, {args}}}\n---\n"
    );
    let found = Rulebook::build(vec![("x.md".into(), text)], "", &catalogue()).err().unwrap_or_default();
    found.into_iter().map(|p| format!("{}: {} ({})", p.line.unwrap_or(0), p.problem, p.hint)).collect()
}

#[test]
fn conditions_that_cannot_hold_or_contradict_themselves_are_errors() {
    let closed = "one of equals, one_of, glob, min and max, absent";
    let cases = [
        (
            "args: {replcas: {max: 3}}",
            "8: rule \"r\": args.replcas can never match: scale has no such argument (did you mean replicas?)".to_owned(),
        ),
        (
            "args: {images.web.tag: {glob: x}}",
            "8: rule \"r\": args.images.web.tag can never match: scale has no such argument (it takes no arguments)".into(),
        ),
        ("args: {replicas: {}}", format!("8: rule \"r\": args.replicas asks for nothing ({closed})")),
        ("args: {replicas: {min: 1, equals: 2}}", format!("8: rule \"r\": args.replicas asks for several things at once (keep {closed})")),
        (
            "args: {replicas: {min: 4, max: 3}}",
            "8: rule \"r\": args.replicas can never match: at least 4 and at most 3 (swap the two)".into(),
        ),
        ("args: {replicas: {min: .nan}}", "8: rule \"r\": args.replicas has a bound that is no number (write a number)".into()),
        ("args: {replicas: {one_of: []}}", "8: rule \"r\": args.replicas can never match: one of nothing (list the values)".into()),
        (
            "args: {replicas: {equals: many}}",
            "8: rule \"r\": args.replicas can never match: scale does not take \"many\" there (write a value of its type)".into(),
        ),
        (
            "args: {replicas: {equals: 1.5}}",
            "8: rule \"r\": args.replicas can never match: scale does not take 1.5 there (write a value of its type)".into(),
        ),
        (
            "args: {what: {one_of: [images, disks]}}",
            "8: rule \"r\": args.what can never match: scale does not take \"disks\" there (its values are [\"images\",\"networks\"])"
                .into(),
        ),
        (
            "args: {what: {glob: \"d*\"}}",
            "8: rule \"r\": args.what can never match: scale takes no such text there (equals, one_of, min or max)".into(),
        ),
        (
            "args: {wait: {glob: \"t*\"}}",
            "8: rule \"r\": args.wait can never match: scale takes no such text there (equals, one_of, min or max)".into(),
        ),
        ("args: {wait: {min: 1}}", "8: rule \"r\": args.wait can never match: scale takes no number there (equals, one_of or glob)".into()),
        (
            "args: {profiles: {equals: a}}",
            "8: rule \"r\": args.profiles can never match: scale does not take \"a\" there (write a value of its type)".into(),
        ),
        (
            "args: {stack: {equals: a}}",
            "8: rule \"r\": args names \"stack\", which has the key stacks (write `stacks:` instead; it holds however a call names it)"
                .into(),
        ),
        (
            "args: {wait: {equals: true}, /wait: {equals: false}}",
            "8: rule \"r\": args names \"wait\" twice (keep one spelling, with dots or as a JSON pointer)".into(),
        ),
        (
            "args: {replicas: {max: 3}}, match: [{tool: scale, args: {replicas: 4}}]",
            "8: rule \"r\" does not match its match example {tool: scale, args: {\"replicas\":4}} (correct the rule or the example)".into(),
        ),
        (
            "args: {replicas: {max: 3}}, match: [{tool: scale, args: {replcas: 2}}]",
            "8: rule \"r\": the match example gives scale an argument \"replcas\" that it does not have (did you mean replicas?)".into(),
        ),
    ];
    for (args, expected) in cases {
        assert_eq!(problems("scale", args), [expected], "{args}");
    }
    let unknown = problems("scale", "args: {replicas: {above: 3}}");
    assert!(unknown.len() == 1 && unknown[0].contains("unknown field `above`"), "{unknown:?}");
    let fine = "args: {replicas: {min: 1, max: 3}, images.web: {glob: \"ghcr.io/*\"}, reason: {absent: false}, what: {equals: images}}";
    assert_eq!(problems("scale", fine), Vec::<String>::new());
}

/// At most three copies freely, more with a person; never without a reason.
fn book() -> Rulebook {
    let text = "---
name: x
description: d
tools: scale
dockwarden:
  tier: tier_3_write_elevated
  rules:
    - id: few
      effect: allow
      tools: [scale]
      args: {replicas: {max: 3}}
      because: b
      match: [{tool: scale, stack: s, args: {replicas: 3}}]
      not_match: [{tool: scale, stack: s, args: {replicas: 4}}, {tool: scale, stack: s}]
    - {id: many, effect: approval, tools: [scale], args: {replicas: {min: 4}}, because: b}
    - {id: why, effect: deny, tools: [scale], args: {reason: {absent: true}}, because: b}
---
";
    Rulebook::build(vec![("x.md".into(), text.into())], "", &catalogue()).unwrap_or_else(|p| panic!("{p:#?}"))
}

fn scale(arguments: Value) -> CallFacts {
    let facts = call_of("x", "scale", true, StackName::new("s").ok(), Some("staging".into()), None);
    CallFacts { arguments: Arc::new(arguments), ..facts }
}

#[test]
fn a_rule_decides_by_the_arguments_of_the_call() {
    let book = book();
    let of = |arguments| decide(&book, &scale(arguments)).verdict;
    assert_eq!(of(json!({"replicas": 3, "reason": "r"})), Verdict::Allow);
    assert_eq!(of(json!({"replicas": 4, "reason": "r"})), Verdict::Approval);
    assert_eq!(of(json!({"replicas": 2})), Verdict::Deny);
    assert_eq!(of(json!({"replicas": 2, "reason": null})), Verdict::Deny);
    assert_eq!(of(json!({"reason": "r"})), Verdict::Deny, "no rule speaks of a call without a number");
    let e = explain(&book, &scale(json!({"replicas": 4, "reason": "r"})));
    let told: Vec<Option<&str>> = e.rules.iter().map(|r| r.not_because.as_deref()).collect();
    assert_eq!(told, [Some("it is for calls with replicas at most 3"), None, Some("it is for calls with reason left out")]);
    let row = matrix(&book, &catalogue()).into_iter().find(|r| r.tool == "scale").expect("there");
    assert_eq!(row.by_arguments, ["few", "many", "why"]);
    assert_eq!(crate::gate::explain::examples(&book).iter().filter(|e| e.passed).count(), 3);
    assert!(crate::gate::reach::may_ever(&book, &book.agents["x"], "scale", true), "a denial of some calls hides no tool");
}

#[test]
fn the_real_tools_have_the_arguments_conditions_name() {
    let facts = crate::tools::gate_facts();
    let rule = |tool: &str, args: &str| -> Rule {
        yaml_serde::from_str(&format!("{{id: r, effect: allow, because: b, tools: [{tool}], args: {args}}}")).expect("a rule")
    };
    for (tool, args) in [
        ("scale", "{replicas: {max: 3}}"),
        ("deploy", "{images.web: {glob: \"ghcr.io/*\"}, compose: {absent: true}, wait: {equals: true}}"),
        ("prune", "{what: {one_of: [images]}, dry_run: {equals: false}}"),
        ("logs", "{service: {equals: a}}"),
    ] {
        let found = check(&rule(tool, args), &facts);
        assert_eq!(found.len(), usize::from(tool == "logs"), "{tool}: {found:?}");
    }
    let wrong = check(&rule("prune", "{what: {equals: everything}}"), &facts);
    assert!(wrong.len() == 1 && wrong[0].0.contains("does not take \"everything\""), "{wrong:?}");
}

proptest! {
    #[test]
    fn no_path_and_no_arguments_make_it_panic(path in "[a-z/.~01*]{0,12}", key in "[a-z./~]{0,6}", value in ".{0,8}", min in any::<f64>()) {
        let rule = Rule { args: [(path.clone(), ArgCondition { min: Some(min), ..ArgCondition::default() })].into(), ..book().agents["x"].rules[0].clone() };
        let arguments = json!({key: {"a": value, "b": min}, "n": min});
        let asked = Asked { tool: "scale", stack: None, environment: None, service: None, arguments: &arguments };
        let matched = rule_matches(&rule, &asked);
        prop_assert_eq!(matched, unmet(&rule, &arguments).is_none());
        check(&rule, &catalogue());
    }
}
