//! Agents and their tokens.

pub mod import;

use super::{CliError, CliResult, Ended, Global, output, policy, reach, terminal};
use crate::adapters::socket::wire::Admin;
use crate::model::spend::{self, Spent};
use chrono::{NaiveDate, Utc};
use clap::{Args, Subcommand};
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// Agents and their tokens.
#[derive(Debug, Args)]
pub struct AgentsArgs {
    /// What to do; lists agents when absent.
    #[command(subcommand)]
    command: Option<AgentsCommand>,
}

/// What to do with agents.
#[derive(Debug, Subcommand)]
enum AgentsCommand {
    /// List agents, or one with its tools and rules.
    List {
        /// Agent.
        name: Option<String>,
    },
    /// Make a bearer token for an agent; printed once, only its SHA-256 is kept.
    Token {
        /// Agent.
        name: String,
        /// End all earlier tokens of the agent. Without it one earlier token with the same label stays valid, so that clients can move over.
        #[arg(long)]
        revoke: bool,
        /// What it is for, e.g. the machine it goes to.
        #[arg(long, default_value = "")]
        label: String,
        /// Days it is valid; without end when absent.
        #[arg(long)]
        days: Option<u32>,
        /// Operator; asked for when there is one.
        #[arg(long)]
        operator: Option<String>,
    },
    /// List tokens by id: label, made, last used, expiry; never the token.
    Tokens,
    /// End a token; what is connected with it is cut off.
    Revoke {
        /// Id, e.g. tk-0a1b2c3d4e5f.
        token: String,
        /// Operator; asked for when there is one.
        #[arg(long)]
        operator: Option<String>,
    },
    /// Make an agent file from an OSSA manifest, and say what was not understood.
    Import(import::ImportArgs),
    /// Check agents, policy and prompts without loading them.
    Check,
    /// What agents spent on their models: answers, tokens, US dollars, and the budget of the month.
    Cost {
        /// Month as 2026-11 (UTC), or `all`; this month when absent.
        #[arg(long)]
        month: Option<String>,
    },
}

/// Runs `agents`.
pub async fn agents(global: &Global, args: AgentsArgs) -> CliResult {
    match args.command.unwrap_or(AgentsCommand::List { name: None }) {
        AgentsCommand::List { name: None } => reach::show(global, "agents", json!({})).await,
        AgentsCommand::List { name: Some(name) } => {
            // Its rules are no table.
            let (value, text) = reach::value(global, "agents", json!({"agent": name})).await?;
            if global.json {
                output::json(&value)
            } else {
                output::line(&text)
            }
            Ok(Ended::Done)
        }
        AgentsCommand::Import(args) => import::import(global, &args),
        AgentsCommand::Check => Ok(policy::check(global)),
        AgentsCommand::Cost { month } => cost(global, month).await,
        AgentsCommand::Tokens => {
            let (value, text) = reach::admin(global, Admin::Tokens).await?;
            output::reply(global.json, "agents tokens", &value, &text);
            Ok(Ended::Done)
        }
        AgentsCommand::Revoke { token, operator } => {
            let credential = terminal::credential_if_any(global, operator).await?;
            let (value, text) = reach::admin(global, Admin::TokenRevoke { token, credential }).await?;
            output::reply(global.json, "agents revoke", &value, &text);
            Ok(Ended::Done)
        }
        AgentsCommand::Token { name, revoke, label, days, operator } => {
            let credential = terminal::credential_if_any(global, operator).await?;
            let (value, token) = reach::admin(global, Admin::Token { agent: name, revoke, label, days, credential }).await?;
            if global.json {
                output::json(&value);
            } else {
                output::line(token);
                eprintln!("This token is shown once. Whoever has it acts as this agent.");
                if let Some(note) = value["note"].as_str().filter(|n| !n.is_empty()) {
                    eprintln!("{note}");
                }
            }
            Ok(Ended::Done)
        }
    }
}

/// The money of a month.
async fn cost(global: &Global, month: Option<String>) -> CliResult {
    let month = month.unwrap_or_else(|| spend::month(Utc::now()));
    let month = (month != "all").then_some(month);
    if let Some(bad) = month.as_ref().filter(|m| m.len() != 7 || NaiveDate::parse_from_str(&format!("{m}-01"), "%Y-%m-%d").is_err()) {
        return Err(CliError::Usage(format!("{bad:?} is no month"), "write e.g. 2026-11, or all".into()));
    }
    let (value, _) = reach::admin(global, Admin::Spent { month }).await?;
    let hint = "use the dockwarden binary of the same version as the supervisor";
    let rows: Vec<Spent> = serde_json::from_value(value["spent"].clone()).map_err(|e| CliError::Failed(e.to_string(), hint.into()))?;
    output::reply(global.json, "agents cost", &value, &table(&rows, &value));
    Ok(Ended::Done)
}

/// One line an agent and model, then what is left of each budget of this month.
fn table(rows: &[Spent], value: &Value) -> String {
    if rows.is_empty() {
        return "no model was asked".into();
    }
    let mut out = String::new();
    let mut totals: BTreeMap<&str, u64> = BTreeMap::new();
    for r in rows {
        let lost = if r.lost > 0 { format!(", {} lost (counted at the most they can have cost)", r.lost) } else { String::new() };
        let errors = if r.errors > 0 { format!(", {} refused", r.errors) } else { String::new() };
        out.push_str(&format!(
            "{} {} {}: {} USD, {} answers{errors}{lost}, tokens {} in ({} cached), {} out\n",
            r.month,
            r.agent,
            r.model,
            spend::dollars(r.micro_usd),
            r.answers,
            r.tokens_in,
            r.tokens_cached,
            r.tokens_out
        ));
        if value["this_month"] == r.month.as_str() {
            *totals.entry(r.agent.as_str()).or_default() += r.micro_usd;
        }
    }
    for (agent, spent) in totals {
        if let Some(cap) = value["caps"][agent].as_f64().map(crate::runner::micro) {
            let percent = if cap == 0 { 100 } else { u128::from(spent) * 100 / u128::from(cap) };
            out.push_str(&format!("{agent}: {percent} % of this month's {} USD\n", spend::dollars(cap)));
        }
    }
    out.trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_money_is_told_by_agent_and_model_with_what_is_left() {
        let row = |month: &str, micro_usd, lost| Spent {
            month: month.into(),
            agent: "helper".into(),
            model: "big".into(),
            answers: 3,
            errors: 1,
            lost,
            tokens_in: 3_000,
            tokens_cached: 1_200,
            tokens_out: 150,
            micro_usd,
            millis: 10,
        };
        let rows = [row("2026-10", 5, 0), row("2026-11", 8_010, 1)];
        let value = json!({"caps": {"helper": 0.02}, "this_month": "2026-11"});
        let want = "2026-10 helper big: 0.000005 USD, 3 answers, 1 refused, tokens 3000 in (1200 cached), 150 out\n\
                    2026-11 helper big: 0.00801 USD, 3 answers, 1 refused, 1 lost (counted at the most they can have cost), tokens 3000 in (1200 cached), 150 out\n\
                    helper: 40 % of this month's 0.02 USD";
        assert_eq!(table(&rows, &value), want);
        assert_eq!(table(&[], &value), "no model was asked");
    }
}
