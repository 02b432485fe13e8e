//! `adopt`: shows what a stack that Compose deployed would be here, asks for an operator's passphrase, takes it over.

use super::{CliError, CliResult, Ended, Global, output, reach, terminal};
use crate::adapters::socket::handover;
use crate::adapters::socket::wire::Admin;
use clap::Args;

/// Take over a stack that Compose deployed: nothing is restarted.
#[derive(Debug, Args)]
pub struct AdoptArgs {
    /// Compose project.
    #[arg(required_unless_present = "all", conflicts_with = "all")]
    stack: Option<String>,
    /// Every project on the engine that is not managed yet.
    #[arg(long)]
    all: bool,
    /// Only show what it would be: files, differences, findings, the policy lines to write.
    #[arg(long)]
    dry_run: bool,
    /// Go on where the files differ from what runs: the next deploy makes it as the files say.
    #[arg(long)]
    accept_drift: bool,
    /// Environment of policy.toml it belongs to; the policy's default when absent.
    #[arg(long)]
    environment: Option<String>,
    /// Operator; asked for when absent.
    #[arg(long)]
    operator: Option<String>,
}

/// Runs `adopt`.
pub async fn adopt(global: &Global, args: AdoptArgs) -> CliResult {
    let request = |dry_run, credential| Admin::Adopt {
        stack: args.stack.clone(),
        dry_run,
        accept_drift: args.accept_drift,
        environment: args.environment.clone(),
        credential,
    };
    let (mut value, mut text) = reach::admin(global, request(true, None)).await?;
    let nothing = value["stacks"].as_array().is_none_or(|s| s.iter().all(|s| s["state"] != "would_adopt"));
    if !args.dry_run && !nothing {
        eprintln!("{text}\n");
        if no_operator(global).await? {
            return Err(CliError::Failed(
                "no operator exists yet: a stack is taken over in a person's name".into(),
                "make one with `dockwarden operators add NAME`, then run this again".into(),
            ));
        }
        let credential = terminal::credential(args.operator.clone())?;
        (value, text) = reach::admin(global, request(false, Some(credential))).await?;
    }
    output::reply(global.json, "adopt", &value, &text);
    Ok(if handover::any_refused(&value) { Ended::Failed } else { Ended::Done })
}

/// Whether nobody could decide.
///
/// # Errors
/// No supervisor.
pub async fn no_operator(global: &Global) -> Result<bool, CliError> {
    let (value, _) = reach::admin(global, Admin::Operators).await?;
    Ok(value["operators"].as_array().is_none_or(Vec::is_empty))
}
