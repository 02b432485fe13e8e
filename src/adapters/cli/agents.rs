//! Agents and their tokens.

pub mod import;

use super::{CliResult, Ended, Global, output, policy, reach, terminal};
use crate::adapters::socket::wire::Admin;
use clap::{Args, Subcommand};
use serde_json::json;

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
    /// Make an agent file from an OSSA manifest, and say what was not understood.
    Import(import::ImportArgs),
    /// Check agents, policy and prompts without loading them.
    Check,
}

/// Runs `agents`.
pub async fn agents(global: &Global, args: AgentsArgs) -> CliResult {
    match args.command.unwrap_or(AgentsCommand::List) {
        AgentsCommand::List => reach::show(global, "agents", json!({})).await,
        AgentsCommand::Import(args) => import::import(global, &args),
        AgentsCommand::Check => Ok(policy::check(global)),
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
