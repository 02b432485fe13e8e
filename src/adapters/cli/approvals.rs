//! What waits for a person, who may decide, and the brake. The passphrase is typed at the terminal and checked by the supervisor.

use super::{CliError, CliResult, Ended, Global, output, reach, terminal};
use crate::adapters::socket::wire::Admin;
use clap::{Args, Subcommand};
use serde_json::Value;

/// See and decide what waits for a person.
#[derive(Debug, Args)]
pub struct ApprovalsArgs {
    /// What to do; lists what waits when absent.
    #[command(subcommand)]
    command: Option<ApprovalsCommand>,
}

/// What to do with approvals.
#[derive(Debug, Subcommand)]
enum ApprovalsCommand {
    /// List what waits.
    List {
        /// Also what is settled.
        #[arg(long)]
        all: bool,
    },
    /// Show one with the changes it stands for.
    Show {
        /// Approval.
        approval: String,
    },
    /// Approve: the operation starts as the agent that asked.
    Approve {
        /// Approval.
        approval: String,
        /// Operator; asked for when absent.
        #[arg(long)]
        operator: Option<String>,
    },
    /// Reject: the call does not run.
    #[command(alias = "deny")]
    Reject {
        /// Approval.
        approval: String,
        /// Operator; asked for when absent.
        #[arg(long)]
        operator: Option<String>,
    },
    /// Take an approval back while nothing has started.
    Revoke {
        /// Approval.
        approval: String,
        /// Operator; asked for when absent.
        #[arg(long)]
        operator: Option<String>,
    },
}

/// The people who may approve.
#[derive(Debug, Args)]
pub struct OperatorsArgs {
    /// What to do; lists operators when absent.
    #[command(subcommand)]
    command: Option<OperatorsCommand>,
}

/// What to do with operators.
#[derive(Debug, Subcommand)]
enum OperatorsCommand {
    /// List operators.
    List,
    /// Add an operator, or set a new passphrase. The first needs only the home's owner, every other one an operator.
    Add {
        /// Name.
        name: String,
        /// Operator who vouches; asked for when there is one.
        #[arg(long)]
        by: Option<String>,
    },
    /// Remove an operator: the passphrase, tokens and web sessions are void at once. The last one stays.
    Remove {
        /// Name.
        name: String,
        /// Operator who says so; asked for when absent.
        #[arg(long)]
        by: Option<String>,
    },
    /// Make a bearer token for JSON REST: it reads, and it decides as the operator. Printed once, only its SHA-256 is kept.
    Token {
        /// What it is for, e.g. the machine it goes to.
        #[arg(long, default_value = "")]
        label: String,
        /// Days it is valid, at most 30.
        #[arg(long, default_value_t = 7)]
        days: u32,
        /// Operator; asked for when absent.
        #[arg(long)]
        operator: Option<String>,
    },
    /// List operators' tokens by id: label, made, last used, expiry; never the token.
    Tokens,
    /// End an operator's token.
    Revoke {
        /// Id, e.g. tk-0a1b2c3d4e5f.
        token: String,
        /// Operator; asked for when absent.
        #[arg(long)]
        operator: Option<String>,
    },
}

/// Stop all changes: every agent is refused, also the supervisor's own healing, until `unfreeze`. Reads go on.
#[derive(Debug, Args)]
pub struct FreezeArgs {
    /// Why; every refused agent is told.
    #[arg(long, default_value = "")]
    reason: String,
    /// Operator; asked for when absent.
    #[arg(long)]
    operator: Option<String>,
}

/// Stand in for approvals: for at most an hour, what one agent does on one stack and needs approval counts as approved by you. For the night
/// when the others cannot be reached. What is denied stays denied; everything is recorded, and told to whoever is notified.
#[derive(Debug, Args)]
pub struct BreakGlassArgs {
    /// Agent it holds for.
    #[arg(long = "for", value_name = "AGENT", required_unless_present = "end")]
    agent: Option<String>,
    /// Stack it holds for.
    #[arg(long, required_unless_present = "end")]
    stack: Option<String>,
    /// What happened, and why it cannot wait.
    #[arg(long, required_unless_present = "end")]
    reason: Option<String>,
    /// How long, at most 60.
    #[arg(long, default_value_t = 30)]
    minutes: u32,
    /// End all of it now.
    #[arg(long)]
    end: bool,
    /// Operator; asked for when absent.
    #[arg(long)]
    operator: Option<String>,
}

/// Let changes happen again.
#[derive(Debug, Args)]
pub struct UnfreezeArgs {
    /// Only lift what too many failures stopped, e.g. deployer/shop.
    #[arg(long, value_name = "AGENT/STACK")]
    pair: Option<String>,
    /// Operator; asked for when absent.
    #[arg(long)]
    operator: Option<String>,
}

/// Runs `freeze`.
pub async fn freeze(global: &Global, args: FreezeArgs) -> CliResult {
    let request = Admin::Freeze { reason: args.reason, credential: terminal::credential(args.operator)? };
    let (value, text) = reach::admin(global, request).await?;
    output::reply(global.json, "freeze", &value, &text);
    Ok(Ended::Done)
}

/// Runs `break-glass`.
pub async fn break_glass(global: &Global, args: BreakGlassArgs) -> CliResult {
    let BreakGlassArgs { agent, stack, reason, minutes, end, operator } = args;
    let credential = terminal::credential(operator)?;
    let request = match (end, agent, stack, reason) {
        (false, Some(agent), Some(stack), Some(reason)) => Admin::BreakGlass { agent, stack, minutes, reason, credential },
        _ => Admin::MendGlass { credential },
    };
    let (value, text) = reach::admin(global, request).await?;
    output::reply(global.json, "break-glass", &value, &text);
    Ok(Ended::Done)
}

/// Runs `unfreeze`.
pub async fn unfreeze(global: &Global, args: UnfreezeArgs) -> CliResult {
    let pair = args.pair.as_deref().map(|p| {
        let wrong = || CliError::Usage(format!("{p:?} is no pair"), "write AGENT/STACK, e.g. deployer/shop".into());
        p.split_once('/').ok_or_else(wrong)
    });
    let pair = pair.transpose()?;
    let credential = terminal::credential(args.operator)?;
    let request = match pair {
        Some((agent, stack)) => Admin::BreakerLift { agent: agent.to_owned(), stack: stack.to_owned(), credential },
        None => Admin::Unfreeze { credential },
    };
    let (value, text) = reach::admin(global, request).await?;
    output::reply(global.json, "unfreeze", &value, &text);
    Ok(Ended::Done)
}

/// Runs `approvals`.
pub async fn approvals(global: &Global, args: ApprovalsArgs) -> CliResult {
    let request = match args.command.unwrap_or(ApprovalsCommand::List { all: false }) {
        ApprovalsCommand::List { all } => Admin::Approvals { all },
        ApprovalsCommand::Show { approval } => Admin::ApprovalShow { approval },
        ApprovalsCommand::Approve { approval, operator } => {
            let (shown, text) = reach::admin(global, Admin::ApprovalShow { approval: approval.clone() }).await?;
            eprintln!("{text}");
            let confirm = match shown["confirm"].as_str() {
                None => None,
                Some(name) => Some(confirmed(name)?.ok_or_else(|| {
                    CliError::Usage(format!("that is not {name}; nothing was decided"), "type the name of what it is about".into())
                })?),
            };
            Admin::Approve { approval, confirm, credential: terminal::credential(operator)? }
        }
        ApprovalsCommand::Revoke { approval, operator } => Admin::Revoke { approval, credential: terminal::credential(operator)? },
        ApprovalsCommand::Reject { approval, operator } => Admin::Reject { approval, credential: terminal::credential(operator)? },
    };
    let showing = matches!(request, Admin::ApprovalShow { .. });
    let (value, text) = reach::admin(global, request).await?;
    if showing && !global.json {
        output::line(&text);
        output::json(&value);
    } else {
        output::reply(global.json, "approvals", &value, &text);
    }
    Ok(Ended::Done)
}

/// Asks for the name of what may be the operator's own call to change; `None` when another or nothing was typed.
fn confirmed(name: &str) -> Result<Option<String>, CliError> {
    let typed = terminal::ask(&format!("Asked for at the command line, so it may be your own call. Type {name} to approve it:"))?;
    Ok(Some(typed.trim().to_owned()).filter(|t| t == name))
}

/// A call made at this terminal that waits for an approval: an operator who sits there confirms it at once. Gives what it started; `None` where nobody is there
/// to ask, where it takes another person, and where it is left waiting.
///
/// # Errors
/// A wrong passphrase, and what the started call answers.
pub async fn own(global: &Global, waiting: &Value) -> Result<Option<(Value, String)>, CliError> {
    use std::io::IsTerminal as _;
    let somebody = !global.json && std::io::stdin().is_terminal() && std::io::stderr().is_terminal();
    let Some(approval) = waiting["approval"]["approval_id"].as_str().filter(|_| somebody).map(str::to_owned) else { return Ok(None) };
    let (operators, _) = reach::admin(global, Admin::Operators).await?;
    let (shown, text) = reach::admin(global, Admin::ApprovalShow { approval: approval.clone() }).await?;
    let any = operators["operators"].as_array().is_some_and(|o| !o.is_empty());
    let Some(name) = shown["confirm"].as_str().filter(|_| any) else { return Ok(None) };
    eprintln!("{text}");
    let Some(confirm) = confirmed(name)? else {
        eprintln!("Left waiting: `dockwarden approvals approve {approval}` decides it.");
        return Ok(None);
    };
    let request = Admin::Approve { approval, confirm: Some(confirm), credential: terminal::credential(None)? };
    let (value, text) = reach::admin(global, request).await?;
    Ok(Some((value["result"].clone(), text)))
}

/// Runs `operators`.
pub async fn operators(global: &Global, args: OperatorsArgs) -> CliResult {
    let request = match args.command.unwrap_or(OperatorsCommand::List) {
        OperatorsCommand::List => Admin::Operators,
        OperatorsCommand::Add { name, by } => {
            let credential = terminal::credential_if_any(global, by).await?;
            let passphrase = terminal::secret(&format!("New passphrase of {name} (12 characters or more):"))?;
            if terminal::secret("Again:")? != passphrase {
                return Err(CliError::Usage("the two passphrases differ".into(), "type the same one twice".into()));
            }
            Admin::OperatorAdd { name, passphrase, credential }
        }
        OperatorsCommand::Remove { name, by } => Admin::OperatorRemove { name, credential: terminal::credential(by)? },
        OperatorsCommand::Token { label, days, operator } => {
            let (value, token) =
                reach::admin(global, Admin::OperatorToken { label, days, credential: terminal::credential(operator)? }).await?;
            if global.json {
                output::json(&value);
            } else {
                output::line(token);
                eprintln!("This token is shown once. Whoever has it decides as this operator: keep it where no agent can read it.");
            }
            return Ok(Ended::Done);
        }
        OperatorsCommand::Tokens => Admin::OperatorTokens,
        OperatorsCommand::Revoke { token, operator } => Admin::OperatorTokenRevoke { token, credential: terminal::credential(operator)? },
    };
    let table = if matches!(request, Admin::OperatorTokens) { "operators tokens" } else { "operators" };
    let (value, text) = reach::admin(global, request).await?;
    output::reply(global.json, table, &value, &text);
    Ok(Ended::Done)
}
