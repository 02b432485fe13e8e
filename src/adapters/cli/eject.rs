//! `eject`: gives a stack back to plain Compose, and says how to go on.

use super::{CliError, CliResult, Ended, Global, adopt, output, reach, terminal};
use crate::adapters::socket::wire::Admin;
use clap::Args;

/// Give a stack back to plain Compose: nothing is restarted, its records here are forgotten, the audit log keeps them.
#[derive(Debug, Args)]
pub struct EjectArgs {
    /// Stack.
    stack: String,
    /// Only show what would be done and the command to go on with.
    #[arg(long)]
    dry_run: bool,
    /// Operator; asked for when absent.
    #[arg(long)]
    operator: Option<String>,
}

/// Runs `eject`.
pub async fn eject(global: &Global, args: EjectArgs) -> CliResult {
    let request = |dry_run, credential| Admin::Eject { stack: args.stack.clone(), dry_run, credential };
    let (mut value, mut text) = reach::admin(global, request(true, None)).await?;
    if !args.dry_run {
        eprintln!("{text}\n");
        if adopt::no_operator(global).await? {
            return Err(CliError::Failed(
                "no operator exists yet: a stack is given back in a person's name".into(),
                "make one with `dockwarden operators add NAME`, then run this again".into(),
            ));
        }
        let credential = terminal::credential(args.operator.clone())?;
        (value, text) = reach::admin(global, request(false, Some(credential))).await?;
    }
    output::reply(global.json, "eject", &value, &text);
    Ok(Ended::Done)
}
