//! `agents`: who there is and what each is for, so that a caller knows whom to ask; of one also what it may. Prompts are not shown.

use super::{Effect, ToolSpec, Verb, schema};
use crate::call::doing::{self, Doing};
use crate::call::error::ErrorCode;
use crate::call::facts::Scope;
use crate::call::{Call, CallError};
use crate::gate::{Permit, args};
use crate::model::agent::{Agent, Rule, Tier};
use crate::model::plan::Plan;
use crate::redact;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Input {
    /// One, with tools and rules; all in short by default.
    agent: Option<String>,
}

/// Characters of what an agent is for, in the list.
const PURPOSE: usize = 100;
/// Problems of the files told in a reply; `dockwarden policy check` tells all.
const PROBLEMS: usize = 20;

#[derive(Debug, Serialize, JsonSchema)]
#[schemars(inline)]
struct Row {
    name: String,
    description: String,
    tier: Tier,
    /// With the rules, of one that was asked for.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tools: Vec<String>,
    /// One line per rule.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    may: Vec<String>,
    /// This is who calls.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    you: bool,
    /// Task at work.
    #[serde(skip_serializing_if = "Option::is_none")]
    doing: Option<String>,
    /// Tasks that wait for their turn.
    #[serde(skip_serializing_if = "is_zero")]
    queued: u64,
    /// Tasks that wait for a person.
    #[serde(skip_serializing_if = "is_zero")]
    waiting: u64,
    /// Its models cost so much this month, US dollars.
    #[serde(skip_serializing_if = "Option::is_none")]
    usd: Option<String>,
    /// Only of an agent that was named.
    #[serde(skip_serializing_if = "Option::is_none")]
    now: Option<Doing>,
}

fn is_zero(n: &u64) -> bool {
    *n == 0
}

#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Output {
    agents: Vec<Row>,
    /// The files were changed and not taken; what is listed here is in force.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    problems: Vec<String>,
}

pub(super) struct Agents;

impl Verb for Agents {
    const SPEC: &'static ToolSpec = &ToolSpec {
        name: "agents",
        title: "Agents and grants",
        description: "The agents of this host: what each is for and what it does now; with agent also its tools, and on which stacks and environments its rules let it act.",
        effect: Effect::Read,
        idempotent: true,
        input_schema: schema::input::<Input>,
        output_schema: schema::output::<Output>,
    };
    type Input = Input;
    type Output = Output;

    async fn scope(_: &Call, _: &Input) -> Result<Scope, CallError> {
        Ok(Scope::default())
    }

    async fn run(call: &Call, input: Input, _: Option<Plan>, _: Permit) -> Result<Output, CallError> {
        let load = call.house.store.workload().await?;
        let has = |a: &Agent| load.get(&a.name).cloned().unwrap_or_default();
        let whole = input.agent.is_some();
        let spent = doing::spent(call).await?;
        let row = |a: &Agent| Row {
            usd: doing::usd(&spent, a),
            now: None,
            doing: has(a).running.map(|t| t.to_string()),
            queued: has(a).queued,
            waiting: has(a).waiting,
            name: a.name.to_string(),
            description: if whole { a.description.clone() } else { purpose(&a.description) },
            tier: a.tier,
            tools: if whole { a.tools.clone() } else { vec![] },
            may: if whole { a.rules.iter().map(may).chain(hands(a)).collect() } else { vec![] },
            you: a.name == call.who.agent,
        };
        let refused = call.house.refused_rules.load();
        let problems = refused.iter().take(PROBLEMS).map(|p| redact::line(&p.to_string(), 300)).collect();
        let all = &call.rulebook.agents;
        let mut agents: Vec<Row> =
            all.values().filter(|a| input.agent.as_ref().is_none_or(|n| *n == *a.name.as_str())).map(|a| row(a)).collect();
        if let (Some(agent), [row]) = (input.agent.as_ref().and_then(|name| all.get(name)), agents.as_mut_slice()) {
            row.now = Some(doing::of(call, &spent, agent).await?);
        }
        if let Some(name) = input.agent.filter(|_| agents.is_empty()) {
            let near = super::nearest(&name, all.keys().map(String::as_str));
            let names = if near.is_empty() { all.keys().map(String::as_str).collect() } else { near };
            let message = format!("there is no agent {:?}", crate::redact::line(&name, 64));
            return Err(CallError::new(ErrorCode::NotFound, message, format!("name one of {}", names.join(", "))).field("agent"));
        }
        Ok(Output { agents, problems })
    }

    fn text(o: &Output) -> Option<String> {
        let line = |a: &Row| {
            let mut now = a.doing.as_ref().map(|t| format!("\n  now: {t}")).unwrap_or_default();
            if a.queued + a.waiting > 0 {
                now.push_str(&format!("\n  waiting: {} in the queue, {} for a person", a.queued, a.waiting));
            }
            if let Some(usd) = &a.usd {
                let cap = a.now.as_ref().and_then(|n| n.cap_usd.as_ref()).map(|c| format!(" of {c}")).unwrap_or_default();
                now.push_str(&format!("\n  spent this month: {usd}{cap} USD"));
            }
            for line in a.now.iter().flat_map(|n| n.models.iter().chain(&n.calls)) {
                now.push_str(&format!("\n    {line}"));
            }
            let tools = if a.tools.is_empty() { String::new() } else { format!("\n  tools: {}", a.tools.join(", ")) };
            let may: String = a.may.iter().map(|m| format!("\n  {m}")).collect();
            format!("{}{}: {}{now}{tools}{may}", a.name, if a.you { " (you)" } else { "" }, a.description)
        };
        let mut out = o.agents.iter().map(line).collect::<Vec<_>>().join("\n");
        if o.agents.iter().all(|a| a.tools.is_empty()) {
            out.push_str("\n(tools and rules of one: agent NAME)");
        }
        if !o.problems.is_empty() {
            out.push_str(&format!("\na change of the files was not taken, the rules above stay in force:\n  {}", o.problems.join("\n  ")));
        }
        Some(out)
    }
}

/// The first sentence of a description, or as much of it as a line holds.
fn purpose(description: &str) -> String {
    let first = description.split_once(". ").map_or(description, |(first, _)| first).trim_end_matches('.');
    if first.chars().count() <= PURPOSE {
        return first.to_owned();
    }
    let cut: String = first.chars().take(PURPOSE).collect();
    format!("{}...", cut.rsplit_once(' ').map_or(cut.as_str(), |(words, _)| words))
}

/// Whom it may give work, and whom it never meets.
fn hands(a: &Agent) -> Vec<String> {
    let line = |what: &str, names: &[String]| (!names.is_empty()).then(|| format!("{what} {}", names.join(",")));
    [line("hands work to", &a.can_delegate_to), line("never works with", &a.conflicts_with)].into_iter().flatten().collect()
}

fn may(rule: &Rule) -> String {
    let list = |what: &str, names: &[String]| if names.is_empty() { String::new() } else { format!(" {what} {}", names.join(",")) };
    let mut limit = rule.max_per_hour.map(|m| format!(" max {m}/h")).unwrap_or_default();
    limit.extend(rule.max_per_hour_per_stack.map(|m| format!(" max {m}/h a stack")));
    let with: String = rule.args.iter().map(|(path, c)| format!(" with {path} {}", args::in_words(c))).collect();
    format!(
        "{}: {} {}{}{}{}{}{limit} ({})",
        rule.id,
        rule.effect.as_str(),
        rule.tools.join(","),
        list("on", &rule.stacks),
        list("in", &rule.environments),
        list("services", &rule.services),
        with,
        rule.because
    )
}

#[cfg(test)]
mod tests {
    use super::purpose;
    use crate::call::dispatch::tests::{KEEPER, bench_of};
    use crate::model::ids::{AgentName, TaskId};
    use crate::model::spend::month;
    use crate::store::audit::Intent;
    use crate::store::ledger::{Question, Word};
    use serde_json::json;

    #[test]
    fn a_purpose_is_the_first_sentence_and_never_a_page() {
        assert_eq!(purpose("Deploys web stacks. Use it for web-*."), "Deploys web stacks");
        assert_eq!(purpose("Deploys web stacks."), "Deploys web stacks");
        let long = purpose(&"word ".repeat(50));
        assert!(long.ends_with("word...") && long.len() <= 103, "{long}");
        assert_eq!(purpose(&"\u{e9}".repeat(200)).chars().count(), 103);
    }

    #[tokio::test]
    async fn an_agent_shows_what_it_cost_this_month_and_what_it_does_now() {
        let keeper = KEEPER.replace("prune\nmodel", "prune, agents\nmodel").replace("  rules:", "  limits: {usd_per_month: 20}\n  rules:");
        let bench = bench_of(&keeper).await;
        let store = &bench.house.store;
        let free = bench.call("agents", json!({})).await.unwrap();
        assert!(free.value["agents"][0].get("usd").is_none(), "{free:?}");
        let now = chrono::Utc::now();
        for (model, cost) in [("big", 1_234_560), ("small", 40)] {
            let question = Question {
                month: month(now),
                agent: AgentName::new("keeper").unwrap(),
                model: model.into(),
                task: TaskId::new("task-1").unwrap(),
                worst: cost,
                cap: None,
            };
            let Word::Ask(id) = store.ledger_ask(question).await.unwrap() else { panic!("no cap") };
            store.ledger_lost(id).await.unwrap();
        }
        let at_work = Intent::sample("call-x", "keeper", now);
        store.audit_intent(&at_work, &[]).await.unwrap();
        let listed = bench.call("agents", json!({})).await.unwrap();
        assert_eq!((&listed.value["agents"][0]["usd"], listed.value["agents"][0].get("now")), (&json!("1.2346"), None));
        let one = bench.call("agents", json!({"agent": "keeper"})).await.unwrap();
        let shown = &one.value["agents"][0]["now"];
        assert_eq!((&shown["cap_usd"], &shown["month"]), (&json!("20.00"), &json!(month(now))), "{shown:#}");
        assert_eq!(shown["models"], json!(["big: 1.23456 USD, 0 answers, 1 lost", "small: 0.00004 USD, 0 answers, 1 lost"]));
        let call = shown["calls"][0].as_str().unwrap_or_default();
        assert!(call.starts_with("deploy shop since ") && shown["calls"].as_array().map(Vec::len) == Some(1), "{shown:#}");
        assert!(one.text.contains("spent this month: 1.2346 of 20.00 USD") && one.text.contains("deploy shop since"), "{}", one.text);
    }
}
