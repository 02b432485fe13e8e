//! Delegation: who may hand work to whom, and that a chain of hands never may more than any one of them.

use super::*;
use crate::gate::call::decide;
use crate::gate::call::tests::{READS, WRITES, catalogue, shipped};
use crate::gate::explain::{call_of, explain};
use crate::model::ids::StackName;
use proptest::prelude::*;

const LEAD: &str = "tools: deploy, restart, logs
dockwarden:
  tier: tier_3_write_elevated
  can_delegate_to: [worker, clerk]
  rules:
    - {id: web, effect: allow, tools: [deploy], stacks: [\"web-*\"], max_per_hour: 5, because: the web stacks are ours}
    - {id: bank, effect: approval, tools: [deploy], stacks: [bank], approvals: 2, ttl: 10m, because: two look at the bank}
    - {id: again, effect: allow, tools: [restart], because: r}";
const WORKER: &str = "tools: deploy, restart, stop
dockwarden:
  tier: tier_3_write_elevated
  can_delegate_to: [clerk]
  rules:
    - {id: all, effect: allow, tools: [deploy, stop], max_per_hour: 9, because: w}
    - {id: bank, effect: approval, tools: [deploy], stacks: [bank], ttl: 1h, channels: [operator, client], because: w}
  limits: {calls_per_minute: 30}";
const CLERK: &str = "tools: restart
dockwarden:
  tier: tier_3_write_elevated
  conflicts_with: [rival]
  rules: [{id: again, effect: allow, tools: [restart], because: c}]";
const RIVAL: &str = "tools: restart
dockwarden:
  tier: tier_3_write_elevated
  can_delegate_to: [worker]
  rules: [{id: again, effect: allow, tools: [restart], because: c}]";

fn text(name: &str, front: &str) -> (String, String) {
    (format!("agents/{name}.md"), format!("---\nname: {name}\ndescription: d\n{front}\n---\n"))
}

fn book() -> Rulebook {
    let files = vec![text("lead", LEAD), text("worker", WORKER), text("clerk", CLERK), text("rival", RIVAL)];
    Rulebook::build(files, "", &catalogue()).unwrap_or_else(|p| panic!("{p:#?}"))
}

fn call(agent: &str, on_behalf: &[&str], tool: &str, stack: &str) -> CallFacts {
    let facts = call_of(agent, tool, WRITES.contains(&tool), StackName::new(stack).ok(), Some("staging".into()), None);
    CallFacts { on_behalf: on_behalf.iter().map(|n| (*n).to_owned()).collect(), ..facts }
}

fn rules(d: &Decision) -> Vec<(&str, Verdict)> {
    d.findings.iter().map(|f| (f.rule.as_str(), f.verdict)).collect()
}

#[test]
fn work_is_handed_only_where_the_manifest_says_so() {
    let book = book();
    let of = |from, to| may_delegate(&book, from, to).map_err(|f| (f.rule, f.verdict)).err();
    let denied = |rule: &str| Some((rule.to_owned(), Verdict::Deny));
    assert_eq!([of("lead", "worker"), of("lead", "clerk"), of("lead", "lead")], [None, None, None]);
    assert_eq!(of("worker", "lead"), denied("delegation.not_granted"));
    assert_eq!(of("rival", "clerk"), denied("delegation.conflict"));
    assert_eq!(of("clerk", "rival"), denied("delegation.conflict"));
    assert_eq!([of("lead", "ghost"), of("ghost", "lead")], [denied("delegation.unknown"), denied("delegation.unknown")]);
    assert_eq!(may_delegate(&shipped(), "stack-keeper", "warden").map_err(|f| f.rule), Err("delegation.not_granted".into()));
    let because = may_delegate(&book, "clerk", "lead").unwrap_err().because;
    assert_eq!(because, "clerk may hand work to nobody; an operator adds lead to can_delegate_to in agents/clerk.md");
}

#[test]
fn a_call_on_behalf_of_somebody_needs_the_right_of_both() {
    let book = book();
    let alone = decide(&book, &call("worker", &[], "stop", "web-1"));
    assert_eq!(alone.verdict, Verdict::Allow);
    let d = decide(&book, &call("worker", &["lead"], "stop", "web-1"));
    assert_eq!((d.verdict, rules(&d)), (Verdict::Deny, vec![("worker/all", Verdict::Allow), ("tool.not_granted", Verdict::Deny)]));
    assert!(
        d.findings[1].because.ends_with("(on behalf of lead)") && d.hint.as_deref().is_some_and(|h| h.contains("lead, who needs")),
        "{d:?}"
    );

    let d = decide(&book, &call("worker", &["lead"], "deploy", "web-1"));
    assert_eq!((d.verdict, rules(&d)), (Verdict::Allow, vec![("worker/all", Verdict::Allow), ("lead/web", Verdict::Allow)]));
    let keys: Vec<(&str, u32)> = d.limits.iter().map(|l| (l.key.as_str(), l.max)).collect();
    assert_eq!(keys, [("worker/*", 30), ("worker/all", 9), ("lead/web", 5)], "nobody has more an hour by handing work on");

    let d = decide(&book, &call("worker", &["lead"], "deploy", "shop"));
    assert_eq!((d.verdict, d.limits.len(), d.approval), (Verdict::Deny, 1, None), "a denial counts against no rule");
}

#[test]
fn an_approval_of_a_chain_has_the_strictest_terms_of_all() {
    let d = decide(&book(), &call("worker", &["lead"], "deploy", "bank"));
    assert_eq!(d.verdict, Verdict::Approval);
    assert_eq!(d.approval, Some(ApprovalTerms { count: 2, ttl_s: 600, channels: vec!["operator".into()] }));
}

#[test]
fn every_link_of_a_chain_must_hold_and_nobody_in_it_may_conflict() {
    let book = book();
    let of = |agent, chain: &[&str]| {
        let d = decide(&book, &call(agent, chain, "restart", "web-1"));
        (d.verdict, d.findings.last().map(|f| f.rule.clone()).unwrap_or_default())
    };
    assert_eq!(of("clerk", &["lead"]).0, Verdict::Allow);
    assert_eq!(of("clerk", &["lead", "worker"]), (Verdict::Deny, "default.deny".into()), "the worker may not restart");
    assert_eq!(of("clerk", &["rival", "worker"]), (Verdict::Deny, "delegation.conflict".into()), "through a third one neither");
    assert_eq!(of("lead", &["worker"]), (Verdict::Deny, "delegation.not_granted".into()));
    assert_eq!(of("clerk", &["ghost"]), (Verdict::Deny, "delegation.unknown".into()));
    let long: Vec<&str> = std::iter::repeat_n("clerk", MOST_HANDS + 1).collect();
    assert_eq!(of("clerk", &long), (Verdict::Deny, "delegation.too_long".into()));
    assert_eq!(of("clerk", &long[1..]).0, Verdict::Allow, "work for oneself loses nothing");
}

#[test]
fn what_the_lists_say_of_one_another_is_checked_with_its_line() {
    let of = |worker: &str, clerk: &str| -> Vec<String> {
        let plain = |name: &str, more: &str| text(name, &format!("tools: logs\ndockwarden:\n  tier: tier_1_read{more}"));
        let files = vec![plain("worker", worker), plain("clerk", clerk), plain("warden", "")];
        let found = Rulebook::build(files, "", &catalogue()).err().unwrap_or_default();
        found.into_iter().map(|p| format!("{}:{} {}", p.file, p.line.unwrap_or(0), p.problem)).collect()
    };
    let list = |key: &str, names: &str| format!("\n  {key}: [{names}]");
    assert_eq!(of(&list("can_delegate_to", "clerk"), &list("conflicts_with", "warden")), Vec::<String>::new());
    assert_eq!(of(&list("can_delegate_to", "ghost"), ""), ["agents/worker.md:7 can_delegate_to: \"ghost\" does not exist"]);
    assert_eq!(of(&list("can_delegate_to", "worker"), ""), ["agents/worker.md:7 can_delegate_to: \"worker\" is the agent itself"]);
    assert_eq!(of(&list("can_delegate_to", "clerk, clerk"), ""), ["agents/worker.md:7 can_delegate_to: \"clerk\" names it twice"]);
    assert_eq!(
        of(&list("can_delegate_to", "warden"), ""),
        ["agents/worker.md:7 can_delegate_to: \"warden\" is the supervisor's own agent"]
    );
    assert_eq!(
        of(&list("can_delegate_to", "clerk"), &list("conflicts_with", "worker")),
        ["agents/worker.md:7 can_delegate_to: \"clerk\" names worker in its conflicts_with: the grant can never hold"]
    );
    let both = format!("{}{}", list("can_delegate_to", "clerk"), list("conflicts_with", "clerk"));
    assert_eq!(of(&both, ""), ["agents/worker.md:7 can_delegate_to: \"clerk\" stands in conflicts_with too"]);
}

#[test]
fn an_explanation_tells_what_each_of_the_chain_may() {
    let book = book();
    let e = explain(&book, &call("worker", &["lead"], "deploy", "shop"));
    assert_eq!(e.verdict, Verdict::Deny);
    let told: Vec<(&str, Verdict, usize)> = e.on_behalf.iter().map(|o| (o.agent.as_str(), o.verdict, o.rules.len())).collect();
    assert_eq!(told, [("lead", Verdict::Deny, 3)]);
    assert_eq!(e.on_behalf[0].rules[0].not_because.as_deref(), Some("it is for stacks web-*"));
}

#[test]
fn what_decides_about_anyone_in_the_chain_makes_its_approvals_stale() {
    let name = |n: &str| crate::model::ids::AgentName::new(n).unwrap();
    let of = |book: &Rulebook, chain: &[&str]| book.version_for_chain("worker", &chain.iter().map(|n| name(n)).collect::<Vec<_>>());
    let (before, after) = (book(), {
        let files = vec![
            text("lead", &LEAD.replace("max_per_hour: 5", "max_per_hour: 6")),
            text("worker", WORKER),
            text("clerk", CLERK),
            text("rival", RIVAL),
        ];
        Rulebook::build(files, "", &catalogue()).unwrap()
    });
    assert_eq!(of(&before, &[]), of(&after, &[]));
    assert_eq!(of(&before, &[]), before.version_for("worker"));
    assert_ne!(of(&before, &["lead"]), of(&after, &["lead"]));
    assert_ne!(of(&before, &["lead"]), of(&before, &[]));
    assert_eq!(of(&before, &["ghost"]), None);
}

proptest! {
    /// The heart of it: whatever the call, a chain is never let further than any one of its members alone.
    #[test]
    fn a_chain_never_may_more_than_any_of_its_hands(
        agent in 0..4usize, chain in proptest::collection::vec(0..4usize, 0..4), tool in 0..40usize, stack in 0..4usize,
    ) {
        let book = book();
        let names = ["lead", "worker", "clerk", "rival"];
        let tools: Vec<&str> = READS.iter().chain(WRITES).copied().collect();
        let (tool, stack) = (tools[tool % tools.len()], ["web-1", "bank", "shop", "any"][stack]);
        let chain: Vec<&str> = chain.into_iter().map(|i| names[i]).collect();
        let together = decide(&book, &call(names[agent], &chain, tool, stack));
        for one in chain.iter().chain([&names[agent]]) {
            let alone = decide(&book, &call(one, &[], tool, stack));
            prop_assert!(together.verdict >= alone.verdict, "{one} of {chain:?}: {together:?} {alone:?}");
            if together.verdict == Verdict::Approval && let (Some(a), Some(b)) = (&together.approval, &alone.approval) {
                prop_assert!(a.count >= b.count && a.ttl_s <= b.ttl_s);
            }
        }
    }
}
