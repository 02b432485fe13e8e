//! `front`: the TCP front in its container, and the commands its supervisor runs beside it. Prints one line of JSON per command.

use super::{CliError, CliResult, Ended};
use crate::front::{self, Listen};
use crate::model::front::{Command, DIR, ROUTES_FILE, Reply, Routes, SETTLE, SOCKET};
use crate::model::ids::EngineName;
use clap::Args;
use std::path::PathBuf;
use std::time::Duration;

/// Relaying is copying: two threads move more than one network card does.
const WORKERS: usize = 2;

/// Pass connections on to the backends of a routes file.
#[derive(Debug, Args)]
pub struct FrontArgs {
    /// Routes file; the control socket lies beside it.
    #[arg(long, value_name = "FILE", default_value_os_t = PathBuf::from(DIR).join(ROUTES_FILE))]
    routes: PathBuf,
    /// `PORT`, `ADDRESS:PORT` or either with `=PORT` of the backends; may be given more than once.
    #[arg(long, value_name = "LISTEN")]
    listen: Vec<Listen>,
    /// Put routes, as JSON, in force in the running front.
    #[arg(long, value_name = "JSON", conflicts_with_all = ["listen", "status", "drained"])]
    apply: Option<String>,
    /// Print the state of the running front.
    #[arg(long, conflicts_with_all = ["listen", "drained"])]
    status: bool,
    /// Wait until these backends have no session left (all that leave, when `-`), then print the state.
    #[arg(long, value_name = "NAMES", value_delimiter = ',', conflicts_with = "listen")]
    drained: Vec<String>,
    /// Longest wait of `--drained`, ms.
    #[arg(long, default_value_t = 10_000, value_name = "MS")]
    within_ms: u64,
}

/// Runs the front, or one command.
pub fn front(args: FrontArgs) -> CliResult {
    let failed = |why: String| CliError::Failed(why, "see the log of the front's container".into());
    if let Some(command) = command(&args)? {
        let settle = std::env::var(SETTLE).ok().and_then(|ms| ms.parse().ok()).map(Duration::from_millis);
        let socket = args.routes.with_file_name(SOCKET);
        let asking = front::ask(&socket, &command, settle, None);
        let reply = super::one_thread()?.block_on(asking).map_err(failed)?;
        println!("{}", serde_json::to_string(&reply).expect("a reply is plain data"));
        return Ok(if matches!(reply, Reply::Ok(_)) { Ended::Done } else { Ended::Failed });
    }
    if args.listen.is_empty() {
        return Err(CliError::Usage("nothing to do".into(), "give --listen, or a command for the running front".into()));
    }
    super::serve::log();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(WORKERS).enable_all().build();
    let runtime = runtime.map_err(|e| failed(format!("no runtime: {e}")))?;
    runtime.block_on(front::run(&args.listen, args.routes)).map_err(|e| failed(e.to_string()))?;
    // A name look-up that hangs keeps its thread.
    runtime.shutdown_timeout(Duration::from_millis(200));
    Ok(Ended::Done)
}

fn command(args: &FrontArgs) -> Result<Option<Command>, CliError> {
    let usage = |why: String| CliError::Usage(why, "see docs/fronts.md".into());
    if let Some(text) = &args.apply {
        return Ok(Some(Command::Apply(Routes::parse(text).map_err(usage)?)));
    }
    if args.status {
        return Ok(Some(Command::Status));
    }
    if args.drained.is_empty() {
        return Ok(None);
    }
    let names = args.drained.iter().filter(|n| *n != "-").map(|n| EngineName::new(n.as_str()));
    let backends = names.collect::<Result<_, _>>().map_err(|e| usage(e.to_string()))?;
    Ok(Some(Command::Drained { backends, within_ms: args.within_ms }))
}
