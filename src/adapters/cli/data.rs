//! Commands over data: backup, backups, restore, prune.

use super::stack::input;
use super::{CliError, CliResult, Ended, Global, output, reach, terminal};
use crate::adapters::socket::wire::Admin;
use clap::{Args, Subcommand};
use serde_json::{Value, json};

/// Back up the volumes of a stack, or one volume.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct BackupArgs {
    /// Stack.
    #[arg(required_unless_present = "volume", conflicts_with = "volume")]
    stack: Option<String>,
    /// Volume.
    #[arg(long)]
    volume: Option<String>,
    /// Why, for the record.
    #[arg(long)]
    reason: Option<String>,
    /// More.
    #[command(subcommand)]
    more: Option<BackupCommand>,
}

/// More about backups.
#[derive(Debug, Subcommand)]
enum BackupCommand {
    /// Show where the repository is and how any restic opens it.
    Repo {
        /// Print shell lines that set RESTIC_REPOSITORY and RESTIC_PASSWORD_FILE.
        #[arg(long)]
        env: bool,
        /// Operator.
        #[arg(long)]
        operator: Option<String>,
    },
}

/// List snapshots, newest first.
#[derive(Debug, Args)]
pub struct BackupsArgs {
    /// Stack.
    stack: Option<String>,
    /// Volume.
    #[arg(long, conflicts_with = "stack")]
    volume: Option<String>,
}

/// Restore a snapshot beside the live data; it is verified and never overwrites what runs.
#[derive(Debug, Args)]
pub struct RestoreArgs {
    /// Snapshot.
    #[arg(required_unless_present = "volume", conflicts_with = "volume")]
    snapshot_id: Option<String>,
    /// Volume, with --at.
    #[arg(long, requires = "at")]
    volume: Option<String>,
    /// Moment: the newest snapshot of the volume not after it.
    #[arg(long)]
    at: Option<String>,
    /// Name of the volume to restore into.
    #[arg(long)]
    into: Option<String>,
    /// Take the restored volume into use, as a release of its own; the live one is kept.
    #[arg(long, conflicts_with = "into")]
    swap: bool,
}

/// Remove what is no longer used. Shows what it would do unless --yes is given. Never volumes.
#[derive(Debug, Args)]
pub struct PruneArgs {
    /// What: images, containers, networks or build_cache.
    what: String,
    /// Do it.
    #[arg(long)]
    yes: bool,
}

/// Runs `backup`.
pub async fn backup(global: &Global, args: BackupArgs) -> CliResult {
    match args.more {
        Some(BackupCommand::Repo { env, operator }) => repository(global, env, operator).await,
        None => {
            reach::operate(global, "backup", input(json!({"stack": args.stack, "volume": args.volume, "reason": args.reason})), true).await
        }
    }
}

async fn repository(global: &Global, env: bool, operator: Option<String>) -> CliResult {
    let credential = terminal::credential_if_any(global, operator).await?;
    let (value, note) = reach::admin(global, Admin::BackupRepository { credential }).await?;
    let text = |key: &str| value[key].as_str().unwrap_or_default().to_owned();
    if global.json {
        output::json(&value);
    } else if env {
        let quoted = |v: String| format!("'{}'", v.replace('\'', r"'\''"));
        output::line(format!(
            "export RESTIC_REPOSITORY={}\nexport RESTIC_PASSWORD_FILE={}",
            quoted(text("repository")),
            quoted(text("password_file"))
        ));
    } else {
        output::line(format!("repository     {}\npassword file  {}", text("repository"), text("password_file")));
    }
    if !note.is_empty() {
        eprintln!("{note}");
    }
    Ok(Ended::Done)
}

/// Runs `backups`.
pub async fn backups(global: &Global, args: BackupsArgs) -> CliResult {
    reach::show(global, "backups", input(json!({"stack": args.stack, "volume": args.volume}))).await
}

/// Runs `restore`.
pub async fn restore(global: &Global, args: RestoreArgs) -> CliResult {
    let value = json!({"snapshot_id": args.snapshot_id, "volume": args.volume, "at": args.at, "into": args.into, "swap": args.swap});
    reach::operate(global, "restore", input(value), true).await
}

/// Runs `prune`.
pub async fn prune(global: &Global, args: PruneArgs) -> CliResult {
    const KINDS: [&str; 4] = ["images", "containers", "networks", "build_cache"];
    if !KINDS.contains(&args.what.as_str()) {
        return Err(CliError::Usage(format!("prune knows no {:?}", args.what), format!("one of {}", KINDS.join(", "))));
    }
    reach::operate(global, "prune", json!({"what": args.what, "dry_run": Value::Bool(!args.yes)}), true).await
}
