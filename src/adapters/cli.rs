//! The command line: one file per family of commands, the doc comment of an argument struct is its help. Tools are reached over the
//! supervisor's socket, the same line as MCP. Deliberately absent: anything a tool does.

pub mod adopt;
pub mod agent;
pub mod agents;
pub mod approvals;
pub mod audit;
pub mod data;
pub mod doctor;
pub mod eject;
pub mod front;
pub mod init;
pub mod memory;
pub mod observe;
pub mod output;
pub mod policy;
pub mod reach;
pub mod report;
pub mod serve;
pub mod service;
pub mod stack;
pub mod task;
pub mod terminal;

pub use reach::DEFAULT_AGENT;

use crate::adapters::socket::client::ClientError;
use clap::{CommandFactory, Parser, Subcommand};
use std::path::PathBuf;
use std::process::ExitCode;

/// Lets AI agents run Docker compose stacks under a policy: every call gated, journaled, reversible, audited.
#[derive(Debug, Parser)]
#[command(name = "dockwarden", version, arg_required_else_help = true, max_term_width = 120)]
pub struct Cli {
    /// Options of every command.
    #[command(flatten)]
    pub global: Global,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Options of every command.
#[derive(Debug, Clone, clap::Args)]
pub struct Global {
    /// State directory.
    #[arg(long, global = true, env = "DOCKWARDEN_HOME", value_name = "DIR", hide_env_values = true)]
    pub home: Option<PathBuf>,
    /// Configuration directory.
    #[arg(long, global = true, env = "DOCKWARDEN_CONFIG", value_name = "DIR", hide_env_values = true)]
    pub config: Option<PathBuf>,
    /// Agent to act as; by default $DOCKWARDEN_AGENT, `cli_agent` of dockwarden.toml (except for `mcp`), else stack-keeper; for `init --client` observer.
    #[arg(long, global = true, env = "DOCKWARDEN_AGENT", value_name = "NAME")]
    pub agent: Option<String>,
    /// Print the structured value as JSON.
    #[arg(long, global = true)]
    pub json: bool,
}

/// Commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the supervisor.
    Serve(serve::ServeArgs),
    /// Serve MCP on stdin and stdout for an agent (what an MCP client starts).
    Mcp(serve::McpArgs),
    /// Call any tool.
    Call(stack::CallArgs),
    /// Show stacks and what runs.
    Status(observe::StatusArgs),
    /// Show the health of stacks, or of the supervisor itself.
    Health(observe::HealthArgs),
    /// Show log lines of a stack.
    Logs(observe::LogsArgs),
    /// Show why a stack is not well, and its incidents.
    Diagnose(observe::DiagnoseArgs),
    /// Show CPU and memory of a stack's containers.
    Stats(observe::StatusArgs),
    /// Show the releases of a stack.
    History(stack::HistoryArgs),
    /// Show what a deploy would change, and whether policy lets it.
    Plan(stack::PlanArgs),
    /// Deploy a stack.
    Deploy(stack::DeployArgs),
    /// Go back to an earlier release.
    Rollback(stack::RollbackArgs),
    /// Restart a stack or one service; starts a stopped stack.
    Restart(stack::RestartArgs),
    /// Set the number of replicas of a service.
    Scale(stack::ScaleArgs),
    /// Stop a stack; volumes stay.
    Stop(stack::StopArgs),
    /// Cancel a running operation.
    Cancel(stack::CancelArgs),
    /// Show an operation, or wait for it; list the newest.
    Operation(stack::OperationArgs),
    /// Back up the volumes of a stack or one volume, or show how to open the repository.
    Backup(data::BackupArgs),
    /// List snapshots.
    Backups(data::BackupsArgs),
    /// Restore a snapshot beside the live data.
    Restore(data::RestoreArgs),
    /// Remove what is no longer used (never volumes).
    Prune(data::PruneArgs),
    /// Take over a stack that Compose deployed.
    Adopt(adopt::AdoptArgs),
    /// Give a stack back to plain Compose.
    Eject(eject::EjectArgs),
    /// Give an agent something to do, and see what came of it.
    Task(task::TaskArgs),
    /// See and decide what waits for a person.
    Approvals(approvals::ApprovalsArgs),
    /// The people who may approve.
    Operators(approvals::OperatorsArgs),
    /// Stop all changes until `unfreeze`.
    Freeze(approvals::FreezeArgs),
    /// Stand in for approvals of one agent on one stack for at most an hour.
    BreakGlass(approvals::BreakGlassArgs),
    /// Let changes happen again.
    Unfreeze(approvals::UnfreezeArgs),
    /// Query or verify the audit log.
    Audit(audit::AuditArgs),
    /// Run one agent as a process of its own, a client of a supervisor.
    Agent(agent::AgentArgs),
    /// Agents and their tokens.
    Agents(agents::AgentsArgs),
    /// Restore, export, import and check agents' memory.
    Memory(memory::MemoryArgs),
    /// Check the policy, explain it, and see who may do what.
    Policy(policy::PolicyArgs),
    /// Explain what is wrong with this set-up and how to mend it.
    Doctor(doctor::DoctorArgs),
    /// Read this host and propose a configuration.
    Init(init::InitArgs),
    /// Run the supervisor as a systemd service.
    Service(service::ServiceArgs),
    /// Print a completion script for a shell.
    Completions {
        /// Shell.
        shell: clap_complete::Shell,
    },
    /// The backup worker; started by the supervisor.
    #[command(hide = true)]
    Worker,
    /// The TCP front of a service; started by the supervisor in a container of its own.
    #[command(hide = true)]
    Front(front::FrontArgs),
    /// The application of examples/hello.
    #[command(hide = true)]
    DemoApp(crate::demo::DemoArgs),
}

/// How a command ended, when it did not fail to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// 0.
    Done,
    /// 1.
    Failed,
    /// 4.
    PendingApproval,
}

/// Why a command failed.
#[derive(Debug, thiserror::Error, miette::Diagnostic)]
pub enum CliError {
    /// The supervisor, or what it answered.
    #[error(transparent)]
    #[diagnostic(transparent)]
    Client(#[from] ClientError),
    /// The supervisor did not start.
    #[error(transparent)]
    #[diagnostic(transparent)]
    App(#[from] crate::app::AppError),
    /// Configuration.
    #[error(transparent)]
    #[diagnostic(transparent)]
    Config(#[from] crate::config::ConfigError),
    /// Wrong arguments that clap cannot see.
    #[error("{0}")]
    #[diagnostic(help("{1}"))]
    Usage(String, String),
    /// Anything else, with its cure.
    #[error("{0}")]
    #[diagnostic(help("{1}"))]
    Failed(String, String),
}

impl CliError {
    /// The documented exit code: 1 failed, 2 usage, 3 denied.
    pub fn code(&self) -> u8 {
        match self {
            Self::Usage(..) => 2,
            Self::App(crate::app::AppError::AlreadyRunning { .. }) => crate::app::ALREADY_RUNNING,
            Self::Client(ClientError::Refused { code, .. }) => match code.as_str() {
                "denied" | "rate_limited" | "unauthorized" => 3,
                "invalid_argument" | "unknown_tool" => 2,
                _ => 1,
            },
            Self::Client(_) | Self::App(_) | Self::Config(_) | Self::Failed(..) => 1,
        }
    }
}

impl CliError {
    /// As scripts read it, in the form of the supervisor's own errors.
    fn value(&self) -> serde_json::Value {
        let code = match self {
            Self::Usage(..) => "usage",
            Self::Config(_) => "config",
            Self::Client(ClientError::NotRunning { .. }) => "not_running",
            Self::App(crate::app::AppError::AlreadyRunning { .. }) => "already_running",
            Self::Client(_) | Self::App(_) | Self::Failed(..) => "failed",
        };
        let hint = miette::Diagnostic::help(self).map(|h| h.to_string()).unwrap_or_default();
        serde_json::json!({"code": code, "message": self.to_string(), "hint": hint})
    }
}

/// What a command gives back.
pub type CliResult = Result<Ended, CliError>;

/// Parses, runs, and turns the end into an exit code.
pub fn main() -> ExitCode {
    // Hints hold lines to copy: the terminal wraps them, not we. Set once here, before anything could set another.
    if let Err(e) = miette::set_hook(Box::new(|_| Box::new(miette::MietteHandlerOpts::new().wrap_lines(false).build()))) {
        eprintln!("dockwarden: errors keep their own line width: {e}");
    }
    let cli = Cli::parse();
    let json = cli.global.json;
    match run(cli) {
        Ok(Ended::Done) => ExitCode::SUCCESS,
        Ok(Ended::Failed) => ExitCode::from(1),
        Ok(Ended::PendingApproval) => ExitCode::from(4),
        Err(error) => {
            let code = error.code();
            match &error {
                CliError::Client(ClientError::Refused { whole, .. }) if json => output::json(&serde_json::json!({ "error": whole })),
                CliError::Client(ClientError::Refused { whole, .. }) => output::refusal(whole),
                other if json => output::json(&serde_json::json!({ "error": other.value() })),
                _ => eprintln!("{:?}", miette::Report::new(error)),
            }
            ExitCode::from(code)
        }
    }
}

fn run(cli: Cli) -> CliResult {
    let global = &cli.global;
    match cli.command {
        Command::Serve(args) => serve::serve(global, args),
        Command::Worker => Ok(if crate::executor::worker::worker_main() == ExitCode::SUCCESS { Ended::Done } else { Ended::Failed }),
        Command::Front(args) => front::front(args),
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "dockwarden", &mut std::io::stdout());
            Ok(Ended::Done)
        }
        command => one_thread()?.block_on(async {
            match command {
                Command::Mcp(args) => serve::mcp(global, args).await,
                Command::Call(args) => stack::call(global, args).await,
                Command::Status(args) => observe::status(global, args).await,
                Command::Stats(args) => observe::stats(global, args).await,
                Command::Health(args) => observe::health(global, args).await,
                Command::Diagnose(args) => observe::diagnose(global, args).await,
                Command::Logs(args) => observe::logs(global, args).await,
                Command::History(args) => stack::history(global, args).await,
                Command::Plan(args) => stack::plan(global, args).await,
                Command::Deploy(args) => stack::deploy(global, args).await,
                Command::Rollback(args) => stack::rollback(global, args).await,
                Command::Restart(args) => stack::restart(global, args).await,
                Command::Scale(args) => stack::scale(global, args).await,
                Command::Stop(args) => stack::stop(global, args).await,
                Command::Cancel(args) => stack::cancel(global, args).await,
                Command::Operation(args) => stack::operation(global, args).await,
                Command::Backup(args) => data::backup(global, args).await,
                Command::Backups(args) => data::backups(global, args).await,
                Command::Restore(args) => data::restore(global, args).await,
                Command::Prune(args) => data::prune(global, args).await,
                Command::Adopt(args) => adopt::adopt(global, args).await,
                Command::Eject(args) => eject::eject(global, args).await,
                Command::Task(args) => task::task(global, args).await,
                Command::Approvals(args) => approvals::approvals(global, args).await,
                Command::Operators(args) => approvals::operators(global, args).await,
                Command::Freeze(args) => approvals::freeze(global, args).await,
                Command::BreakGlass(args) => approvals::break_glass(global, args).await,
                Command::Unfreeze(args) => approvals::unfreeze(global, args).await,
                Command::Audit(args) => audit::audit(global, args).await,
                Command::Agent(args) => agent::agent(args).await,
                Command::Agents(args) => agents::agents(global, args).await,
                Command::Memory(args) => memory::memory(global, args).await,
                Command::Policy(args) => policy::policy(global, args).await,
                Command::Doctor(_) => doctor::doctor(global).await,
                Command::Init(args) => init::init(global, args).await,
                Command::Service(args) => service::service(global, args),
                Command::DemoApp(args) => Ok(if crate::demo::run(args).await == ExitCode::SUCCESS { Ended::Done } else { Ended::Failed }),
                Command::Serve(_) | Command::Worker | Command::Front(_) | Command::Completions { .. } => Ok(Ended::Done),
            }
        }),
    }
}

/// Clients wait for one answer: one thread, made in well under a millisecond.
fn one_thread() -> Result<tokio::runtime::Runtime, CliError> {
    let built = tokio::runtime::Builder::new_current_thread().enable_all().build();
    built.map_err(|e| CliError::Failed(format!("no runtime: {e}"), "check the limits of this user (ulimit -a)".into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_definition_of_the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn what_a_tool_takes_about_how_it_runs_its_command_takes_too() {
        let command = Cli::command();
        let find = |path: &[&str]| path.iter().try_fold(&command, |at, name| at.find_subcommand(name)).expect("a command").clone();
        let places: [(&str, &[&str]); 9] = [
            ("deploy", &["deploy"]),
            ("rollback", &["rollback"]),
            ("restart", &["restart"]),
            ("scale", &["scale"]),
            ("stop", &["stop"]),
            ("backup", &["backup"]),
            ("export", &["backup", "export"]),
            ("restore", &["restore"]),
            ("task_submit", &["task", "submit"]),
        ];
        for tool in crate::tools::catalogue() {
            let schema = (tool.input_schema)();
            // Drills have no command of their own.
            if schema["properties"]["idempotency_key"].is_null() || tool.name == "verify_backup" {
                continue;
            }
            let (_, path) = places.iter().find(|(name, _)| *name == tool.name).expect("its command stands above");
            let has = find(path);
            for (argument, flag) in [("wait", "no-wait"), ("idempotency_key", "idempotency-key"), ("reason", "reason")] {
                let there = has.get_arguments().any(|a| a.get_long() == Some(flag));
                assert!(there || schema["properties"][argument].is_null(), "{path:?} has no --{flag}");
            }
        }
    }

    #[test]
    fn a_person_approves_or_rejects_and_the_old_word_is_still_understood() {
        for word in ["approve", "reject", "deny", "revoke"] {
            assert!(Cli::try_parse_from(["dockwarden", "approvals", word, "ap-1"]).is_ok(), "{word}");
        }
        let mut approvals = Cli::command().find_subcommand("approvals").expect("a command").clone();
        let help = approvals.render_long_help().to_string();
        assert!(help.contains("reject") && !help.contains("deny"), "{help}");
    }

    #[test]
    fn errors_have_the_documented_exit_codes() {
        let refused = |code: &str| {
            CliError::Client(ClientError::Refused {
                code: code.into(),
                message: String::new(),
                hint: String::new(),
                whole: serde_json::Value::Null,
            })
            .code()
        };
        assert_eq!(
            [refused("denied"), refused("rate_limited"), refused("invalid_argument"), refused("unknown_tool"), refused("not_found")],
            [3, 3, 2, 2, 1]
        );
        assert_eq!(CliError::Usage(String::new(), String::new()).code(), 2);
    }

    #[test]
    fn every_error_is_a_value_with_code_cause_and_hint() {
        let usage = CliError::Usage("no such file".into(), "name one".into());
        assert_eq!(usage.value(), serde_json::json!({"code": "usage", "message": "no such file", "hint": "name one"}));
        let none = CliError::Client(ClientError::NotRunning { home: "/h".into() });
        assert_eq!(none.value()["code"], "not_running");
        assert!(none.value()["hint"].as_str().is_some_and(|h| h.contains("dockwarden serve")), "{}", none.value());
    }
}
