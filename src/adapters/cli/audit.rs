//! Query and verification of the audit log.

use super::stack::input;
use super::{CliResult, Ended, Global, output, reach};
use crate::adapters::socket::wire::Admin;
use clap::{Args, Subcommand};
use serde_json::json;

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
    /// Not before (RFC 3339).
    #[arg(long)]
    since: Option<String>,
    /// Before (RFC 3339).
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
    Verify,
}

/// Runs `audit`.
pub async fn audit(global: &Global, args: AuditArgs) -> CliResult {
    if matches!(args.more, Some(AuditCommand::Verify)) {
        let (value, text) = reach::admin(global, Admin::AuditVerify).await?;
        output::reply(global.json, "audit verify", &value, &text);
        let intact = value["problems"].as_array().is_some_and(Vec::is_empty);
        return Ok(if intact { Ended::Done } else { Ended::Failed });
    }
    let filter = json!({"agent": args.of, "tool": args.tool, "stack": args.stack, "verdict": args.verdict, "outcome": args.outcome,
                        "since": args.since, "until": args.until, "cursor": args.cursor, "limit": args.limit,
                        "response_format": if global.json { "detailed" } else { "concise" }});
    reach::show(global, "audit", input(filter)).await
}
