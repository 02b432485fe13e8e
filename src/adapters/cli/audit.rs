//! Query and verification of the audit log; `report` has its export, tail and report.

use super::stack::input;
use super::{CliError, CliResult, Ended, Global, output, reach, report};
use crate::adapters::socket::wire::Admin;
use clap::{Args, Subcommand};
use serde_json::json;
use std::path::{Path, PathBuf};

/// Most bytes of kept checkpoints: some thousand, well within one message.
const MOST_KEPT: u64 = 512 * 1024;

/// Query the audit log, newest first, or verify it.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct AuditArgs {
    /// Who asked.
    #[arg(long = "of", value_name = "AGENT")]
    of: Option<String>,
    /// Tool.
    #[arg(long)]
    tool: Option<String>,
    /// Stack.
    #[arg(long)]
    stack: Option<String>,
    /// allow, warn, approval or deny.
    #[arg(long)]
    verdict: Option<String>,
    /// ok, error, denied, pending_approval or unknown.
    #[arg(long)]
    outcome: Option<String>,
    /// Not before: RFC 3339, or an age like 7d.
    #[arg(long)]
    since: Option<String>,
    /// Before: RFC 3339, or an age like 7d.
    #[arg(long)]
    until: Option<String>,
    /// Page: the cursor of the page before.
    #[arg(long)]
    cursor: Option<String>,
    /// Rows.
    #[arg(long)]
    limit: Option<u32>,
    /// More.
    #[command(subcommand)]
    more: Option<AuditCommand>,
}

/// More about the log.
#[derive(Debug, Subcommand)]
enum AuditCommand {
    /// Check chain, numbers and checkpoints; 1 when something was changed.
    Verify {
        /// A file of checkpoints that `audit checkpoint` printed, kept where this host cannot write: rows cut off with all that knew of them are found.
        #[arg(long, value_name = "FILE")]
        kept: Option<PathBuf>,
    },
    /// Print a signed checkpoint of the log as it is now, to be kept on another machine; with --json also the key that signs.
    Checkpoint,
    /// Write the log to stdout, oldest first, with the attribute names of OpenTelemetry.
    Export {
        /// Format.
        #[arg(long, value_enum, default_value_t = Format::Jsonl)]
        format: Format,
        /// Not before: RFC 3339, or an age like 7d.
        #[arg(long)]
        since: Option<String>,
    },
    /// Show the last rows, and with -f those that come.
    Tail {
        /// Go on until interrupted.
        #[arg(short, long)]
        follow: bool,
        /// Rows to begin with.
        #[arg(short = 'n', long, default_value_t = 10)]
        lines: u32,
    },
    /// Write a report in Markdown: is the log intact, who did what, what was approved by whom, what is new.
    Report {
        /// Not before: RFC 3339, or an age like 7d.
        #[arg(long, default_value = "7d")]
        since: String,
    },
}

/// Formats of an export.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// One JSON object a line.
    Jsonl,
}

fn read(file: &Path) -> Result<String, CliError> {
    let hint = "it is the text that `dockwarden audit checkpoint` printed";
    let failed = |why: String| CliError::Failed(format!("{}: {why}", file.display()), hint.into());
    let size = std::fs::metadata(file).map_err(|e| failed(e.to_string()))?.len();
    if size > MOST_KEPT {
        return Err(failed(format!("{size} bytes; at most {MOST_KEPT} are read")));
    }
    std::fs::read_to_string(file).map_err(|e| failed(e.to_string()))
}

/// Runs `audit`.
pub async fn audit(global: &Global, args: AuditArgs) -> CliResult {
    match args.more {
        None => {}
        Some(AuditCommand::Checkpoint) => {
            let (value, text) = reach::admin(global, Admin::AuditCheckpoint).await?;
            // With the empty line that ends it: what is appended to a file stays a file of checkpoints.
            output::reply(global.json, "audit checkpoint", &value, &format!("{text}\n"));
            return Ok(Ended::Done);
        }
        Some(AuditCommand::Verify { kept }) => {
            let kept = kept.map(|file| read(&file)).transpose()?.unwrap_or_default();
            let (value, text) = reach::admin(global, Admin::AuditVerify { kept }).await?;
            output::reply(global.json, "audit verify", &value, &text);
            let intact = value["problems"].as_array().is_some_and(Vec::is_empty);
            return Ok(if intact { Ended::Done } else { Ended::Failed });
        }
        Some(AuditCommand::Export { format: Format::Jsonl, since }) => return report::export(global, since.as_deref()).await,
        Some(AuditCommand::Tail { follow, lines }) => return report::tail(global, follow, lines).await,
        Some(AuditCommand::Report { since }) => return report::report(global, &since).await,
    }
    let filter = json!({"agent": args.of, "tool": args.tool, "stack": args.stack, "verdict": args.verdict, "outcome": args.outcome,
                        "since": args.since, "until": args.until, "cursor": args.cursor, "limit": args.limit,
                        "response_format": if global.json { "detailed" } else { "concise" }});
    reach::show(global, "audit", input(filter)).await
}
