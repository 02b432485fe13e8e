//! Agents, their tokens, and the check of the files that define them.

use super::{CliError, CliResult, Ended, Global, output, reach, terminal};
use crate::adapters::socket::wire::Admin;
use crate::app::rules;
use crate::gate::rules::{RULES, RuleInfo, find};
use clap::{Args, Subcommand};
use serde_json::{Value, json};

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
    /// List agents and what they may do.
    List,
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
    /// Check agents, policy and prompts without loading them.
    Check,
}

/// Check what is in the configuration directory.
#[derive(Debug, Args)]
pub struct PolicyArgs {
    /// What to do.
    #[command(subcommand)]
    command: PolicyCommand,
}

/// What to do with the policy.
#[derive(Debug, Subcommand)]
enum PolicyCommand {
    /// Check agents, policy and prompts without loading them.
    Check,
    /// List the rules over plans, or explain one.
    Explain {
        /// Rule, e.g. bind.outside.
        rule: Option<String>,
    },
}

/// Runs `agents`.
pub async fn agents(global: &Global, args: AgentsArgs) -> CliResult {
    match args.command.unwrap_or(AgentsCommand::List) {
        AgentsCommand::List => reach::show(global, "agents", json!({})).await,
        AgentsCommand::Check => Ok(check(global)),
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

/// Runs `policy`.
pub fn policy(global: &Global, args: &PolicyArgs) -> CliResult {
    match &args.command {
        PolicyCommand::Check => Ok(check(global)),
        PolicyCommand::Explain { rule: None } => {
            let rows: Vec<Value> = RULES.iter().map(explained).collect();
            output::reply(global.json, "policy explain", &json!({"rules": rows}), "");
            Ok(Ended::Done)
        }
        PolicyCommand::Explain { rule: Some(id) } => {
            let known = || CliError::Usage(format!("there is no rule {id:?}"), "`dockwarden policy explain` lists them".into());
            let row = explained(find(id).ok_or_else(known)?);
            let text = format!(
                "{}: {}\nverdict {}, in production {}\nfrom {}\n{}",
                row["rule"], row["about"], row["verdict"], row["production"], row["from"], row["level"]
            );
            output::reply(global.json, "", &row, &text.replace('"', ""));
            Ok(Ended::Done)
        }
    }
}

/// A rule as people and scripts read it.
fn explained(rule: &RuleInfo) -> Value {
    let level =
        if rule.host_root { "only an exception for one exact value lifts it" } else { "policy.toml may set another level under [rules]" };
    json!({"rule": rule.id, "verdict": rule.default, "production": rule.production, "about": rule.title, "from": rule.refs.join(", "), "level": level})
}

fn check(global: &Global) -> Ended {
    let dir = crate::config::config_dir(global.config.as_deref());
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
            output::reply(global.json, "policy check", &value, &text);
            Ended::Done
        }
        Err(problems) => {
            output::reply(
                global.json,
                "policy check",
                &json!({"ok": false, "config": dir, "problems": problems}),
                &rules::in_words(&problems),
            );
            Ended::Failed
        }
    }
}
