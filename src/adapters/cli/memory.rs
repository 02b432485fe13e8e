//! Agents' memory for the people who run them: back to a moment, out to files, in from files, checked.

use super::{CliError, CliResult, Ended, Global, output, reach, terminal};
use crate::adapters::socket::wire::Admin;
use chrono::{DateTime, Utc};
use clap::{Args, Subcommand};
use std::path::PathBuf;

/// Restore, export, import and check agents' memory.
#[derive(Debug, Args)]
pub struct MemoryArgs {
    /// What to do.
    #[command(subcommand)]
    command: MemoryCommand,
}

/// What to do with a memory.
#[derive(Debug, Subcommand)]
enum MemoryCommand {
    /// Make an agent's notes what they were at a moment; later events stay in its log, so one can go forward again.
    Restore {
        /// Agent.
        agent: String,
        /// Moment (RFC 3339).
        #[arg(long)]
        at: DateTime<Utc>,
        /// Operator; asked for when there is one.
        #[arg(long)]
        operator: Option<String>,
    },
    /// Write context.json and history.json of an agent into a directory.
    Export {
        /// Agent.
        agent: String,
        /// Directory, made when it is missing.
        dir: PathBuf,
    },
    /// Set the keys of a context.json in an agent's memory; their reader is told that they were imported.
    Import {
        /// Agent.
        agent: String,
        /// File.
        file: PathBuf,
        /// Agent whose notes they are.
        #[arg(long)]
        of: Option<String>,
        /// Operator; asked for when there is one.
        #[arg(long)]
        operator: Option<String>,
    },
    /// Check the event log of an agent's memory; 1 when something was changed.
    Verify {
        /// Agent.
        agent: String,
    },
}

/// Runs `memory`.
pub async fn memory(global: &Global, args: MemoryArgs) -> CliResult {
    let verifies = matches!(args.command, MemoryCommand::Verify { .. });
    let admin = match args.command {
        MemoryCommand::Restore { agent, at, operator } => {
            Admin::MemoryRestore { agent, at, credential: terminal::credential_if_any(global, operator).await? }
        }
        MemoryCommand::Export { agent, dir } => {
            let dir =
                std::path::absolute(&dir).map_err(|e| CliError::Usage(format!("{}: {e}", dir.display()), "name a directory".into()))?;
            Admin::MemoryExport { agent, dir }
        }
        MemoryCommand::Import { agent, file, of, operator } => {
            let context = std::fs::read_to_string(&file)
                .map_err(|e| CliError::Usage(format!("{}: {e}", file.display()), "name a context.json that export wrote".into()))?;
            Admin::MemoryImport { agent, context, of, credential: terminal::credential_if_any(global, operator).await? }
        }
        MemoryCommand::Verify { agent } => Admin::MemoryVerify { agent },
    };
    let (value, text) = reach::admin(global, admin).await?;
    output::reply(global.json, "memory", &value, &text);
    let intact = value["problems"].as_array().is_none_or(Vec::is_empty);
    Ok(if verifies && !intact { Ended::Failed } else { Ended::Done })
}
