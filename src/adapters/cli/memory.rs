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
    /// Set the keys of a context.json, or add the entries of a history.json, in an agent's memory; their reader is told that they were imported.
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

/// Longest part of a history that is sent at once, bytes: a message of the socket has an end.
const PART: usize = 1 << 20;

/// A history in parts, oldest first; anything else as it is.
fn in_parts(text: String) -> Result<Vec<String>, serde_json::Error> {
    if text.len() <= PART || !text.trim_start().starts_with('[') {
        return Ok(vec![text]);
    }
    let (mut parts, mut open) = (vec![], String::new());
    for entry in serde_json::from_str::<Vec<serde_json::Value>>(&text)? {
        let entry = entry.to_string();
        if !open.is_empty() && open.len() + entry.len() > PART {
            parts.push(format!("[{open}]"));
            open.clear();
        }
        if !open.is_empty() {
            open.push(',');
        }
        open.push_str(&entry);
    }
    parts.push(format!("[{open}]"));
    Ok(parts)
}

/// Runs `memory`.
pub async fn memory(global: &Global, args: MemoryArgs) -> CliResult {
    let verifies = matches!(args.command, MemoryCommand::Verify { .. });
    let mut sent = 0;
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
            let context = std::fs::read_to_string(&file).map_err(|e| {
                CliError::Usage(format!("{}: {e}", file.display()), "name a context.json or history.json that export wrote".into())
            })?;
            let credential = terminal::credential_if_any(global, operator).await?;
            let mut parts = in_parts(context)
                .map_err(|e| CliError::Usage(format!("{}: {e}", file.display()), "name a file that export wrote".into()))?;
            let last = parts.pop().unwrap_or_default();
            for context in parts {
                let part = Admin::MemoryImport { agent: agent.clone(), context, of: of.clone(), credential: credential.clone() };
                sent += reach::admin(global, part).await?.0["keys"].as_u64().unwrap_or_default();
            }
            Admin::MemoryImport { agent, context: last, of, credential }
        }
        MemoryCommand::Verify { agent } => Admin::MemoryVerify { agent },
    };
    let (mut value, mut text) = reach::admin(global, admin).await?;
    if sent > 0 {
        let all = sent + value["keys"].as_u64().unwrap_or_default();
        (value["keys"], text) = (all.into(), format!("{all} entries imported"));
    }
    output::reply(global.json, "memory", &value, &text);
    let intact = value["problems"].as_array().is_none_or(Vec::is_empty);
    Ok(if verifies && !intact { Ended::Failed } else { Ended::Done })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn a_long_history_goes_in_parts_that_are_whole_and_in_order() {
        let all: Vec<Value> = (0..40).map(|n| json!({"seq": n, "value": "x".repeat(100_000)})).collect();
        let parts = in_parts(json!(all).to_string()).unwrap();
        assert!(parts.len() > 3 && parts.iter().all(|p| p.len() < 2 * PART), "{}", parts.len());
        let back: Vec<Value> = parts.iter().flat_map(|p| serde_json::from_str::<Vec<Value>>(p).unwrap()).collect();
        assert_eq!(back, all);
        let notes = json!({"k": "x".repeat(2 * PART)}).to_string();
        assert_eq!(in_parts(notes.clone()).unwrap(), [notes]);
    }
}
