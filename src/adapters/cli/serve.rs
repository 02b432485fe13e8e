//! `serve` and `mcp`: the supervisor, and the bridge to it.

use super::{CliError, CliResult, Ended, Global};
use crate::adapters::mcp::bridge::{Bridge, run};
use crate::app::{self, ServeOptions};
use crate::config;
use clap::Args;
use std::time::Duration;

/// Stack of a thread, bytes: the futures of an operation are large in a build that is not optimised. Only pages that are touched exist.
const STACK: usize = 8 << 20;

/// Run the supervisor until SIGTERM or Ctrl-C.
#[derive(Debug, Args)]
pub struct ServeArgs {
    /// Address of the HTTP door, or `off`; by default `listen` of dockwarden.toml, else 127.0.0.1:7420.
    #[arg(long, env = "DOCKWARDEN_LISTEN", value_name = "ADDRESS")]
    listen: Option<String>,
    /// A TLS proxy or a private container network stands in front: allows an address beyond loopback.
    #[arg(long)]
    behind_proxy: bool,
    /// Host name clients use beside loopback; may be given more than once.
    #[arg(long = "allowed-host", env = "DOCKWARDEN_ALLOWED_HOSTS", value_delimiter = ',', value_name = "NAME")]
    allowed_hosts: Vec<String>,
    /// End after so many seconds without client, stack or operation.
    #[arg(long, value_name = "SECONDS")]
    idle_exit: Option<u64>,
    /// Leave the terminal's session; used by clients that start a supervisor.
    #[arg(long, hide = true)]
    detach: bool,
}

/// Serve MCP on stdin and stdout. Starts a supervisor when none runs; it ends by itself when it has nothing to look after.
#[derive(Debug, Args)]
pub struct McpArgs {
    /// Offer and allow only tools that read; wins over everything else.
    #[arg(long)]
    read_only: bool,
    /// Tools to list: default, all, or names of groups (observe, change, data, memory, tasks, govern) and tools, separated by commas.
    #[arg(long, env = "DOCKWARDEN_TOOLSETS", value_name = "NAMES")]
    toolsets: Option<String>,
}

/// Runs `serve`.
pub fn serve(global: &Global, args: ServeArgs) -> CliResult {
    if args.detach {
        // Fails only for a process that leads its group already: then it has no session to leave.
        if let Err(e) = rustix::process::setsid() {
            eprintln!("dockwarden: stays in its session: {e}");
        }
    }
    // Whatever is made in the home is its owner's alone, whoever may pass through it to the socket.
    rustix::process::umask(rustix::fs::Mode::RWXG | rustix::fs::Mode::RWXO);
    log();
    let options = ServeOptions {
        places: config::places(global.home.as_deref(), global.config.as_deref()),
        listen: args.listen.filter(|l| !l.is_empty()),
        behind_proxy: args.behind_proxy,
        allowed_hosts: args.allowed_hosts.into_iter().filter(|h| !h.is_empty()).collect(),
        idle_exit: args.idle_exit.map(Duration::from_secs),
    };
    // Two workers: calls are short and the engine does the work; each thread costs memory while idle.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .max_blocking_threads(16)
        .thread_stack_size(STACK)
        .enable_all()
        .build();
    let runtime = runtime.map_err(|e| CliError::Failed(format!("no runtime: {e}"), "check the limits of this user (ulimit -a)".into()))?;
    runtime.block_on(app::serve(options))?;
    runtime.shutdown_timeout(Duration::from_secs(2));
    Ok(Ended::Done)
}

/// Standard error behind the same filter as every reply. A line of the log comes in one piece.
struct Masked(std::io::Stderr);

impl std::io::Write for Masked {
    fn write(&mut self, line: &[u8]) -> std::io::Result<usize> {
        self.0.write_all(crate::redact::mask(&String::from_utf8_lossy(line)).as_bytes())?;
        Ok(line.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        self.0.flush()
    }
}

/// Log to stderr: stdout belongs to protocols. `$MCP_LOG_LEVEL`, default `info`; JSON when stderr is not a terminal.
pub(super) fn log() {
    log_without(&[]);
}

/// As [`log`], without what these crates say.
pub(super) fn log_without(silent: &[&str]) {
    use std::io::IsTerminal;
    let level = std::env::var("MCP_LOG_LEVEL").ok().filter(|l| !l.is_empty()).unwrap_or_else(|| "info".into());
    // A level that does not parse is refused by `config::load` a moment later.
    let filter = level.parse().unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    // That crate logs what a provider answers as it came; what is worth a line is logged here, cleaned.
    let silent = silent.iter().chain(&["genai"]).map(|name| format!("{name}=off").parse().expect("a directive"));
    let filter = silent.fold(filter, tracing_subscriber::EnvFilter::add_directive);
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(|| Masked(std::io::stderr()));
    let set = if std::io::stderr().is_terminal() { builder.try_init() } else { builder.json().try_init() };
    if let Err(e) = set {
        eprintln!("dockwarden: no log: {e}");
    }
}

/// Runs `mcp`. Reads nothing but the socket's path: a client waits for it.
pub async fn mcp(global: &Global, args: McpArgs) -> CliResult {
    let agent = global.agent.clone().unwrap_or_else(|| super::reach::DEFAULT_AGENT.into());
    let home = config::home_dir(global.home.as_deref());
    let toolsets = args.toolsets.filter(|t| !t.is_empty());
    let bridge = Bridge { home, config: global.config.clone(), agent, read_only: args.read_only, toolsets };
    run(&bridge).await?;
    Ok(Ended::Done)
}
