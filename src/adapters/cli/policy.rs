//! The policy as people look at it: is it sound, what would happen to a call and why, who may do what where, and its schema for editors.
//! Reads the files of the configuration directory; only the look at running stacks asks the supervisor. Deliberately absent: deciding.

use super::{CliError, CliResult, Ended, Global, output, reach};
use crate::adapters::socket::wire::Admin;
use crate::app::rules;
use crate::config;
use crate::gate::explain::{self, Explanation, MatrixRow, RuleTrace};
use crate::gate::rules::{RULES, RuleInfo, find};
use crate::gate::{CallFacts, Rulebook, manifest};
use crate::model::ids::{ServiceName, StackName};
use crate::model::policy::Policy;
use crate::model::spec::{ServiceSettings, StackSettings};
use crate::tools;
use clap::{Args, Subcommand, ValueEnum};
use schemars::{JsonSchema, SchemaGenerator};
use serde_json::{Value, json};
use std::sync::Arc;

/// Check the policy, explain it, and see who may do what.
#[derive(Debug, Args)]
pub struct PolicyArgs {
    /// What to do.
    #[command(subcommand)]
    command: PolicyCommand,
}

/// What to do with the policy.
#[derive(Debug, Subcommand)]
enum PolicyCommand {
    /// Check agents, policy and prompts without loading them, and judge the stacks that run when a supervisor does.
    Check,
    /// Explain a rule over plans, or what would happen to a call (--tool, with the global --agent). Without arguments: list the rules.
    Explain(ExplainArgs),
    /// Run all examples of all agents.
    Test,
    /// Show who may do what where: agents, tools, environments.
    Matrix {
        /// Only this agent; all when absent.
        #[arg(long = "of", value_name = "AGENT")]
        of: Option<String>,
    },
    /// Print the JSON Schema of a file, for editors.
    Schema {
        /// Which file.
        file: SchemaOf,
    },
}

/// A call to explain, or a rule.
#[derive(Debug, Args)]
struct ExplainArgs {
    /// Rule over plans, e.g. bind.outside.
    #[arg(conflicts_with = "tool")]
    rule: Option<String>,
    /// Tool of the call.
    #[arg(long)]
    tool: Option<String>,
    /// Stack of the call.
    #[arg(long, requires = "tool")]
    stack: Option<String>,
    /// Environment; the stack's own when absent.
    #[arg(long, requires = "tool")]
    environment: Option<String>,
    /// Service of the call.
    #[arg(long, requires = "tool")]
    service: Option<String>,
    /// Arguments of the call as a JSON object, e.g. '{"replicas": 3}'.
    #[arg(long, requires = "tool", value_name = "JSON")]
    args: Option<String>,
    /// Those who gave the agent the work, outermost first, e.g. stack-keeper,deployer.
    #[arg(long, requires = "tool", value_delimiter = ',')]
    on_behalf: Vec<String>,
}

/// Files with a schema.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum SchemaOf {
    /// Front matter of agents/*.md.
    Agent,
    /// policy.toml.
    Policy,
    /// x-dockwarden at the top of a compose file.
    Stack,
    /// x-dockwarden under a service.
    Service,
}

/// Runs `policy`.
pub async fn policy(global: &Global, args: PolicyArgs) -> CliResult {
    match args.command {
        PolicyCommand::Check => {
            let (mut value, text) = checked(global);
            let runs = running(global).await?;
            let well = value["ok"] == true && !runs.as_ref().is_some_and(|(r, _)| denies(r));
            if global.json {
                value["running"] = runs.map_or(Value::Null, |(r, _)| r);
                output::json(&value);
            } else {
                output::line(text);
                runs.iter().for_each(|(_, text)| output::line(text));
            }
            Ok(if well { Ended::Done } else { Ended::Failed })
        }
        PolicyCommand::Explain(ExplainArgs { rule: None, tool: None, .. }) => {
            let rows: Vec<Value> = RULES.iter().map(explained).collect();
            output::reply(global.json, "policy explain", &json!({"rules": rows}), "");
            Ok(Ended::Done)
        }
        PolicyCommand::Explain(ExplainArgs { rule: Some(id), .. }) => rule(global, &id),
        PolicyCommand::Explain(args) => call(global, args),
        PolicyCommand::Test => test(global),
        PolicyCommand::Matrix { of } => matrix(global, of.as_deref()),
        PolicyCommand::Schema { file } => {
            output::json(&schema(file));
            Ok(Ended::Done)
        }
    }
}

fn rule(global: &Global, id: &str) -> CliResult {
    let known = || CliError::Usage(format!("there is no rule {id:?}"), "`dockwarden policy explain` lists them".into());
    let row = explained(find(id).ok_or_else(known)?);
    let text = format!(
        "{}: {}\nverdict {}, in production {}\nfrom {}\n{}",
        row["rule"], row["about"], row["verdict"], row["production"], row["from"], row["level"]
    );
    output::reply(global.json, "", &row, &text.replace('"', ""));
    Ok(Ended::Done)
}

/// A rule as people and scripts read it.
fn explained(rule: &RuleInfo) -> Value {
    let level =
        if rule.host_root { "only an exception for one exact value lifts it" } else { "policy.toml may set another level under [rules]" };
    json!({"rule": rule.id, "verdict": rule.default, "production": rule.production, "about": rule.title, "from": rule.refs.join(", "), "level": level})
}

/// Checks the files of the configuration directory.
pub fn check(global: &Global) -> Ended {
    let (value, text) = checked(global);
    output::reply(global.json, "policy check", &value, &text);
    if value["ok"] == true { Ended::Done } else { Ended::Failed }
}

/// What the files come to, as a value and in words.
fn checked(global: &Global) -> (Value, String) {
    let dir = config::config_dir(global.config.as_deref());
    match rules::load(&dir) {
        Ok((rulebook, prompts)) => {
            let names: Vec<&String> = rulebook.agents.keys().collect();
            let value = json!({"ok": true, "config": dir, "agents": names, "prompts": prompts.len(), "version": rulebook.version});
            let text = format!(
                "ok: {} agents, {} prompts, policy version {}",
                names.len(),
                prompts.len(),
                &rulebook.version[..12.min(rulebook.version.len())]
            );
            (value, text)
        }
        Err(problems) => {
            let text = rules::in_words(&problems);
            (json!({"ok": false, "config": dir, "problems": problems}), text)
        }
    }
}

/// Judges what runs by the rules in force. Without a supervisor there is nothing to ask.
async fn running(global: &Global) -> Result<Option<(Value, String)>, CliError> {
    let mut session = match reach::people(global, false).await {
        Ok(session) => session,
        Err(e) if reach::not_running(&e) => {
            eprintln!("no supervisor runs, so no running stack was judged");
            return Ok(None);
        }
        Err(e) => return Err(e),
    };
    Ok(Some(session.admin(Admin::PolicyCheck).await?))
}

/// Whether a stack that runs would be refused by the rules in force.
fn denies(running: &Value) -> bool {
    running["stacks"].as_array().is_some_and(|s| s.iter().any(|s| s["verdict"] == "deny"))
}

fn load(global: &Global) -> Result<Rulebook, CliError> {
    let dir = config::config_dir(global.config.as_deref());
    let faulty =
        |p: Vec<_>| CliError::Failed(rules::in_words(&p), "mend the lines above; `dockwarden policy check` reads them again".into());
    rules::load(&dir).map(|(rulebook, _)| rulebook).map_err(faulty)
}

fn call(global: &Global, args: ExplainArgs) -> CliResult {
    let book = load(global)?;
    let usage = |e: String, hint: &str| CliError::Usage(e, hint.into());
    let agent = reach::agent(global)?;
    let tool = args.tool.unwrap_or_default();
    let facts = tools::gate_facts();
    let known = facts.iter().find(|t| t.name == tool);
    let known = known.ok_or_else(|| usage(format!("there is no tool {tool:?}"), "`dockwarden policy matrix` lists the tools"))?;
    let stack = args.stack.map(StackName::new).transpose().map_err(|e| usage(e.to_string(), "name a stack"))?;
    let service = args.service.map(ServiceName::new).transpose().map_err(|e| usage(e.to_string(), "name a service of the stack"))?;
    let arguments = match args.args.as_deref().map(serde_json::from_str::<serde_json::Map<String, Value>>) {
        None => Arc::default(),
        Some(Ok(map)) => Arc::new(Value::Object(map)),
        Some(Err(e)) => return Err(usage(format!("--args is no JSON object: {e}"), "e.g. --args '{\"replicas\": 3}'")),
    };
    if tool == "deploy" && arguments.get("plan_id").is_some() {
        let hint = "say --args with what `plan` was called with (compose, files, variables, images, refresh)";
        return Err(usage("a deploy by plan_id is judged by the arguments its plan was made with".into(), hint));
    }
    let environment = match (&stack, args.environment) {
        (_, Some(given)) => Some(given),
        (Some(stack), None) => {
            let places = config::places(global.home.as_deref(), global.config.as_deref());
            let settings = config::load(&places)?.settings;
            let own = settings.stacks.get(stack).and_then(|s| s.environment.clone());
            Some(own.unwrap_or_else(|| book.policy.default_environment.clone()))
        }
        (None, None) => None,
    };
    let asked = explain::call_of(&agent, &tool, known.mutates, stack, environment, service);
    let asked = CallFacts { on_behalf: args.on_behalf, arguments, ..asked };
    let told = explain::explain(&book, &asked);
    output::reply(global.json, "", &json!(told), &in_words(&agent, &tool, &told));
    Ok(Ended::Done)
}

/// An explanation as a person reads it.
fn in_words(agent: &str, tool: &str, e: &Explanation) -> String {
    let place = e.environment.as_deref().map_or_else(String::new, |p| format!(" in {p}"));
    let mut out = format!("{}: {tool} by {agent}{place}", e.verdict.as_str());
    for f in &e.findings {
        out.push_str(&format!("\n  {} {}: {}", f.verdict.as_str(), f.rule, f.because));
    }
    if let Some(tier) = &e.tier {
        let forbids = e.tier_forbids.as_deref().map_or_else(|| "leaves it to the rules".to_owned(), |w| format!("forbids it: {w}"));
        out.push_str(&format!("\ntier {tier} {forbids}"));
    }
    if e.environment.is_some() {
        out.push_str(if e.production_like {
            "\nthe environment is treated as production"
        } else {
            "\nthe environment is not treated as production"
        });
    }
    let rule = |r: &RuleTrace| {
        let why = r.not_because.as_deref().map_or_else(|| format!("matches ({})", r.because), |w| format!("does not match: {w}"));
        format!("rule {} [{}] {why}", r.rule, r.effect.as_str())
    };
    e.rules.iter().for_each(|r| out.push_str(&format!("\n{}", rule(r))));
    for o in &e.on_behalf {
        out.push_str(&format!("\non behalf of {}, who alone may: {}", o.agent, o.verdict.as_str()));
        o.rules.iter().for_each(|r| out.push_str(&format!("\n  {}", rule(r))));
    }
    for limit in &e.limits {
        out.push_str(&format!("\nlimit {limit}"));
    }
    for (name, text) in [("approval", &e.approval), ("hint", &e.hint)] {
        if let Some(text) = text {
            out.push_str(&format!("\n{name}: {text}"));
        }
    }
    if e.verdict != crate::model::verdict::Verdict::Deny {
        out.push_str("\nthe plan gate judges what would be sent to the engine on top of this; `plan` shows it");
    }
    out
}

fn test(global: &Global) -> CliResult {
    let book = load(global)?;
    let runs = explain::examples(&book);
    let failed: Vec<_> = runs.iter().filter(|r| !r.passed).collect();
    let without: Vec<String> = book
        .agents
        .values()
        .flat_map(|a| a.rules.iter().filter(|r| r.matches.is_empty() && r.not_match.is_empty()).map(|r| format!("{}/{}", a.name, r.id)))
        .collect();
    let rules: usize = book.agents.values().map(|a| a.rules.len()).sum();
    let value =
        json!({"agents": book.agents.len(), "rules": rules, "examples": runs.len(), "failed": failed, "rules_without_example": without});
    let mut text = format!("{} agents, {rules} rules, {} examples, {} failed", book.agents.len(), runs.len(), failed.len());
    for f in &failed {
        text.push_str(&format!("\nFAILED {}/{} {}: {}", f.agent, f.rule, f.kind, f.call));
    }
    if !without.is_empty() {
        text.push_str(&format!("\nwithout example: {}", without.join(", ")));
    }
    output::reply(global.json, "", &value, &text);
    Ok(if failed.is_empty() { Ended::Done } else { Ended::Failed })
}

fn matrix(global: &Global, of: Option<&str>) -> CliResult {
    let book = load(global)?;
    if let Some(name) = of.filter(|n| !book.agents.contains_key(*n)) {
        let names = book.agents.keys().cloned().collect::<Vec<_>>().join(", ");
        return Err(CliError::Usage(format!("there is no agent {name:?}"), format!("the agents are: {names}")));
    }
    let mut rows = explain::matrix(&book, &tools::gate_facts());
    rows.retain(|r| of.is_none_or(|o| o == r.agent));
    output::reply(global.json, "", &json!({"rows": rows.iter().map(row).collect::<Vec<_>>()}), &table(&rows));
    Ok(Ended::Done)
}

fn row(r: &MatrixRow) -> Value {
    let verdicts: serde_json::Map<String, Value> = r.verdicts.iter().map(|(e, v)| (e.clone(), json!(v))).collect();
    json!({"agent": r.agent, "tool": r.tool, "verdicts": verdicts, "by_arguments": r.by_arguments})
}

/// The table as text: one block an agent, fixed widths, so that a change of the policy is one changed line.
fn table(rows: &[MatrixRow]) -> String {
    let mut out = String::new();
    let mut agent = "";
    for r in rows {
        if r.agent != agent {
            agent = &r.agent;
            out.push_str(&format!("{}{agent}\n  {:<14}", if out.is_empty() { "" } else { "\n" }, ""));
            r.verdicts.iter().for_each(|(e, _)| out.push_str(&format!(" {:>12}", if e == "-" { "(no stack)" } else { e })));
            out.push('\n');
        }
        out.push_str(&format!("  {:<14}", r.tool));
        r.verdicts.iter().for_each(|(_, v)| out.push_str(&format!(" {:>12}", v.as_str())));
        if !r.by_arguments.is_empty() {
            out.push_str(&format!("  by arguments: {}", r.by_arguments.join(", ")));
        }
        out.push('\n');
    }
    out
}

/// The JSON Schema of a file.
pub fn schema(file: SchemaOf) -> Value {
    fn of<T: JsonSchema>(title: &str) -> Value {
        let mut schema = SchemaGenerator::default().into_root_schema_for::<T>();
        schema.insert("title".into(), json!(title));
        schema.to_value()
    }
    match file {
        SchemaOf::Agent => {
            let mut schema = manifest::schema();
            schema["title"] = json!("front matter of agents/*.md");
            schema
        }
        SchemaOf::Policy => of::<Policy>("policy.toml"),
        SchemaOf::Stack => of::<StackSettings>("x-dockwarden of a compose file"),
        SchemaOf::Service => of::<ServiceSettings>("x-dockwarden of a service"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shipped() -> Rulebook {
        let dir = tempfile::tempdir().expect("directory");
        rules::load(dir.path()).expect("the shipped files load").0
    }

    /// Reviewed by a person whenever it changes: this is what the shipped agents may do.
    #[test]
    fn matrix_of_what_is_shipped() {
        insta::assert_snapshot!(table(&explain::matrix(&shipped(), &tools::gate_facts())));
    }

    #[test]
    fn an_explanation_names_verdict_rules_tier_environment_and_limits() {
        let facts = explain::call_of("deployer", "deploy", true, StackName::new("shop").ok(), Some("production".into()), None);
        insta::assert_snapshot!(in_words("deployer", "deploy", &explain::explain(&shipped(), &facts)));
    }

    #[test]
    fn every_schema_is_closed_and_names_the_keys_of_its_file() {
        for (file, key) in [
            (SchemaOf::Agent, "dockwarden"),
            (SchemaOf::Policy, "environments"),
            (SchemaOf::Stack, "monitor_s"),
            (SchemaOf::Service, "strategy"),
        ] {
            let schema = schema(file);
            assert!(schema["properties"].get(key).is_some(), "{file:?}: {schema:#}");
            assert_eq!(schema["additionalProperties"], json!(false), "{file:?}");
        }
    }

    #[test]
    fn every_key_of_the_shipped_policy_is_in_its_schema() {
        let schema = schema(SchemaOf::Policy);
        let shipped: toml::Table = rules::POLICY.parse().expect("TOML");
        for key in shipped.keys() {
            assert!(schema["properties"].get(key).is_some(), "{key}");
        }
    }
}
