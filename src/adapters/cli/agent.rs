//! `agent run`: an agent as a process of its own. Deliberately absent: what it does (`adapters::mcp::agent`).

use super::{CliError, CliResult, Ended};
use crate::adapters::mcp::agent::link::{LinkError, TokenSource};
use crate::adapters::mcp::agent::{Settings, run};
use crate::adapters::socket::client::ClientError;
use crate::model::ids::AgentName;
use crate::runner::ask::Patience;
use crate::runner::models::Key;
use clap::{Args, Subcommand};
use serde_json::json;
use std::path::PathBuf;
use tokio_util::sync::CancellationToken;

/// Run one agent as a process of its own.
#[derive(Debug, Args)]
pub struct AgentArgs {
    /// What to do.
    #[command(subcommand)]
    command: AgentCommand,
}

/// What to do with an agent.
#[derive(Debug, Subcommand)]
enum AgentCommand {
    /// Fetch the agent's tasks from a supervisor and do them with its model, until SIGTERM.
    ///
    /// The supervisor lends tasks only of agents named in `outside` under [tasks] of its dockwarden.toml. It needs no engine, no
    /// configuration and no disk. Exit codes: 0 told to end, 1 failed, 2 usage, 3 refused (token, agent or model).
    Run(RunArgs),
}

/// Arguments of `agent run`.
#[derive(Debug, Args)]
struct RunArgs {
    /// Agent.
    name: String,
    /// The supervisor's MCP door.
    #[arg(long, env = "DOCKWARDEN_URL", value_name = "URL", default_value = "http://127.0.0.1:7420/mcp")]
    url: String,
    /// File with the agent's token (`dockwarden agents token NAME`); read anew for each connection. $DOCKWARDEN_TOKEN holds it else.
    #[arg(long, env = "DOCKWARDEN_TOKEN_FILE", value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// File with the model's key; read anew for each task. Else it is in the variable that key_env of the model names.
    #[arg(long, env = "DOCKWARDEN_MODEL_KEY_FILE", value_name = "FILE")]
    key_file: Option<PathBuf>,
    /// Address of the model's provider as this process reaches it; the supervisor's base_url when absent.
    #[arg(long, env = "DOCKWARDEN_MODEL_URL", value_name = "URL")]
    model_url: Option<String>,
}

/// Runs `agent`.
pub async fn agent(args: AgentArgs) -> CliResult {
    let AgentCommand::Run(args) = args.command;
    let settings = settings(args, std::env::var("DOCKWARDEN_TOKEN").ok())?;
    // What it says of a broken connection is said here in one line.
    super::serve::log_without(&["rmcp"]);
    let stop = CancellationToken::new();
    let signals = tokio::spawn(signalled(stop.clone()));
    let done = run(&settings, &stop).await;
    signals.abort();
    match done {
        Ok(()) => Ok(Ended::Done),
        Err(LinkError::Away(why)) => Err(CliError::Client(ClientError::Broken(why))),
        Err(LinkError::Refused { code, message, hint }) => {
            let whole = json!({"code": code, "message": message, "hint": hint});
            Err(CliError::Client(ClientError::Refused { code, message, hint, whole }))
        }
    }
}

fn settings(args: RunArgs, token: Option<String>) -> Result<Settings, CliError> {
    let usage = |message: String, hint: &str| CliError::Usage(message, hint.into());
    let agent = AgentName::new(args.name).map_err(|e| usage(e.to_string(), "write the name as its file in agents/ has it"))?;
    // An empty variable is how a compose file says none.
    let model_url = args.model_url.filter(|u| !u.is_empty());
    for url in [Some(&args.url), model_url.as_ref()].into_iter().flatten() {
        let good = url.parse::<http::Uri>().is_ok_and(|u| matches!(u.scheme_str(), Some("http" | "https")) && u.host().is_some());
        if !good {
            return Err(usage(format!("{url:?} is no address"), "write e.g. http://dockwarden:7420/mcp"));
        }
    }
    let given = token.filter(|t| !t.is_empty());
    let token = match (args.token_file.filter(|f| !f.as_os_str().is_empty()), given) {
        (Some(file), _) => TokenSource::File(file),
        (None, Some(text)) => {
            TokenSource::Given(Key::new(&text).map_err(|e| usage(format!("$DOCKWARDEN_TOKEN: {e}"), "give --token-file"))?)
        }
        (None, None) => {
            let hint = "give --token-file FILE; an operator makes a token with `dockwarden agents token NAME`";
            return Err(usage("an agent needs its token".into(), hint));
        }
    };
    let file = args.key_file.filter(|f| !f.as_os_str().is_empty());
    Ok(Settings { agent, url: args.url, token, key_file: file, model_url, patience: Patience::default() })
}

/// SIGTERM and Ctrl-C end it.
async fn signalled(stop: CancellationToken) {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut term), Ok(mut int)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt())) else {
        return tracing::error!("signals cannot be received");
    };
    tokio::select! {
        _ = term.recv() => tracing::info!("SIGTERM: ending"),
        _ = int.recv() => tracing::info!("SIGINT: ending"),
    }
    stop.cancel();
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(name: &str, url: &str, file: Option<&str>) -> RunArgs {
        RunArgs { name: name.into(), url: url.into(), token_file: file.map(PathBuf::from), key_file: None, model_url: None }
    }

    #[test]
    fn an_agent_is_started_with_a_name_an_address_and_a_token() {
        let url = "http://dockwarden:7420/mcp";
        assert!(matches!(settings(args("keeper", url, Some("/t")), None).expect("enough").token, TokenSource::File(_)));
        assert!(matches!(settings(args("keeper", url, None), Some("dw-0123456789".into())).expect("enough").token, TokenSource::Given(_)));
        for (bad, token) in [
            (args("keeper", url, None), None),
            (args("keeper", url, None), Some("a b".to_owned())),
            (args("../keeper", url, Some("/t")), None),
            (args("keeper", "dockwarden:7420", Some("/t")), None),
            (args("keeper", "ftp://dockwarden/mcp", Some("/t")), None),
        ] {
            let error = settings(bad, token).expect_err("refused");
            assert_eq!(error.code(), 2, "{error}");
        }
    }
}
