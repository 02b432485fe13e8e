//! Commands over data: backup, backups, restore, prune.

use super::stack::{How, input};
use super::{CliError, CliResult, Ended, Global, output, reach, terminal};
use crate::adapters::socket::wire::Admin;
use clap::{Args, Subcommand};
use serde_json::{Value, json};

/// What `prune` removes: the kinds of the tool.
const PRUNED: [&str; 5] = ["images", "containers", "networks", "build_cache", "snapshots"];

/// Back up the volumes of a stack, or one volume.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct BackupArgs {
    /// Stack; without stack and volume the supervisor's own databases and memories.
    #[arg(conflicts_with = "volume")]
    stack: Option<String>,
    /// Volume.
    #[arg(long)]
    volume: Option<String>,
    /// Only what this service of the stack writes.
    #[arg(long, requires = "stack")]
    service: Option<String>,
    /// Mark the snapshots `keep`: no schedule removes them.
    #[arg(long)]
    keep: bool,
    /// Instead: bring this copy of the repository up to date.
    #[arg(long, conflicts_with_all = ["stack", "volume"])]
    copy: Option<String>,
    /// How it runs.
    #[command(flatten)]
    how: How,
    /// More.
    #[command(subcommand)]
    more: Option<BackupCommand>,
}

/// More about backups.
#[derive(Debug, Subcommand)]
enum BackupCommand {
    /// Write snapshots as .tar.zst files with their SHA-256, for which no tool of ours is needed.
    Export {
        /// Snapshot, from `backups`.
        #[arg(required_unless_present = "stack", conflicts_with = "stack")]
        snapshot_id: Option<String>,
        /// Instead: the newest whole snapshot of each source of a stack.
        #[arg(long)]
        stack: Option<String>,
        /// How it runs.
        #[command(flatten)]
        how: How,
    },
    /// Show where the repository is and how any restic opens it.
    Repo {
        /// Print shell lines that set RESTIC_REPOSITORY, RESTIC_PASSWORD_FILE and, on another host, where its credentials are.
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
    /// Page: the cursor of the page before.
    #[arg(long)]
    cursor: Option<String>,
}

/// Restore a snapshot beside the live data; it is verified and never overwrites what runs.
#[derive(Debug, Args)]
pub struct RestoreArgs {
    /// Snapshot.
    #[arg(required_unless_present_any = ["volume", "bootstrap", "confirm"], conflicts_with_all = ["volume", "bootstrap"])]
    snapshot_id: Option<String>,
    /// Bring a whole instance back into an empty home, out of its repository; no supervisor runs meanwhile.
    #[arg(long, requires_all = ["repository", "key"], conflicts_with_all = ["volume", "at", "into", "swap", "path", "to_stack"])]
    bootstrap: bool,
    /// With --bootstrap: the repository, or the copy of it that is left: a directory, s3:https://host/bucket/prefix, sftp://user@host/dir, or the name of a
    /// copy in dockwarden.toml.
    #[arg(long)]
    repository: Option<String>,
    /// With --bootstrap: the key of the repository that you keep elsewhere.
    #[arg(long)]
    key: Option<std::path::PathBuf>,
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
    /// Only this path of the snapshot, e.g. sub/dir.
    #[arg(long, conflicts_with = "swap")]
    path: Option<String>,
    /// Another stack to make the volume for; the rules judge both.
    #[arg(long, conflicts_with_all = ["into", "swap"])]
    to_stack: Option<String>,
    /// Let go of data that a restore took the place of: a volume or directory that `backups` lists as kept, once a snapshot holds all of it.
    #[arg(long, value_name = "PLACE", conflicts_with_all = ["snapshot_id", "bootstrap", "volume", "at", "into", "swap", "path", "to_stack"])]
    confirm: Option<String>,
    /// How it runs.
    #[command(flatten)]
    how: How,
}

/// Remove what is no longer used. Shows what it would do unless --yes is given. Never volumes.
#[derive(Debug, Args)]
pub struct PruneArgs {
    /// What.
    #[arg(value_parser = PRUNED)]
    what: String,
    /// Do it.
    #[arg(long)]
    yes: bool,
    /// Page: the cursor of the page before.
    #[arg(long, conflicts_with = "yes")]
    cursor: Option<String>,
}

/// Runs `backup`.
pub async fn backup(global: &Global, args: BackupArgs) -> CliResult {
    match args.more {
        Some(BackupCommand::Repo { env, operator }) => repository(global, env, operator).await,
        Some(BackupCommand::Export { snapshot_id, stack, how }) => {
            how.operate(global, "export", json!({"snapshot_id": snapshot_id, "stack": stack})).await
        }
        None => {
            let value = json!({"stack": args.stack, "volume": args.volume, "service": args.service, "copy": args.copy, "keep": args.keep});
            args.how.operate(global, "backup", value).await
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
        for (name, v) in value["env"].as_object().into_iter().flatten() {
            output::line(format!("export {name}={}", quoted(v.as_str().unwrap_or_default().to_owned())));
        }
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
    reach::show(global, "backups", input(json!({"stack": args.stack, "volume": args.volume, "cursor": args.cursor}))).await
}

/// Runs `restore`.
pub async fn restore(global: &Global, args: RestoreArgs) -> CliResult {
    if let (true, Some(repository), Some(key)) = (args.bootstrap, &args.repository, &args.key) {
        return whole(global, repository, key).await;
    }
    let value = json!({"snapshot_id": args.snapshot_id, "volume": args.volume, "at": args.at, "into": args.into, "swap": args.swap,
                       "path": args.path, "to_stack": args.to_stack, "confirm": args.confirm});
    args.how.operate(global, "restore", value).await
}

async fn whole(global: &Global, repository: &str, key: &std::path::Path) -> CliResult {
    let failed = |e: String| CliError::Failed(e, "nothing was taken into use; run it again when this is cured".into());
    let exe = std::env::current_exe().map_err(|e| failed(e.to_string()))?;
    let config = crate::config::load(&crate::config::places(global.home.as_deref(), global.config.as_deref()))?;
    let done = crate::app::bootstrap::bootstrap(&config, exe, repository, key).await.map_err(|e| failed(e.to_string()))?;
    let text = format!(
        "instance {} is back as of {}, with {} snapshots; start the supervisor: it matches what runs with what it knows before it changes anything",
        done.instance,
        done.at.format("%Y-%m-%dT%H:%M:%SZ"),
        done.snapshots
    );
    output::reply(global.json, "", &json!({"instance": done.instance, "at": done.at, "snapshots": done.snapshots}), &text);
    Ok(Ended::Done)
}

/// Runs `prune`.
pub async fn prune(global: &Global, args: PruneArgs) -> CliResult {
    let mut value = input(json!({"what": args.what, "cursor": args.cursor}));
    value["dry_run"] = Value::Bool(!args.yes);
    reach::operate(global, "prune", value, true).await
}

#[cfg(test)]
mod tests {
    use super::PRUNED;

    #[test]
    fn the_command_prunes_what_the_tool_prunes() {
        let tool = crate::tools::catalogue().iter().find(|t| t.name == "prune").unwrap();
        let schema = (tool.input_schema)();
        let of = &schema["properties"]["what"];
        let listed = of["enum"].as_array().cloned().unwrap_or_default();
        let described = of["oneOf"].as_array().cloned().unwrap_or_default();
        let kinds: Vec<&str> = listed.iter().chain(described.iter().map(|one| &one["const"])).filter_map(|v| v.as_str()).collect();
        assert_eq!(kinds, PRUNED);
    }
}
