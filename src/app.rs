//! Wiring: builds the house from configuration, store, engine and rules, opens the doors, runs until told to end, and ends in order.
//! Deliberately absent: every decision. What a call may do is the gate's, what a door speaks is the adapter's.

mod background;
pub mod bootstrap;
pub mod facts;
pub mod rules;

use crate::adapters::http::guard::{BindRefused, Guard, may_bind};
use crate::adapters::http::tls::{Tls, TlsError};
use crate::adapters::{Doors, http, socket};
use crate::call::House;
use crate::config::{self, ConfigError, Places, container};
use crate::engine::Engine;
use crate::executor::backup::BackupHouse;
use crate::executor::{CommandsOf, Executor, FactsOf, FrontDoor, Options, RealOf};
use crate::front;
use crate::model::config::Config;
use crate::store::{Store, StoreError};
use arc_swap::ArcSwap;
use chrono::Utc;
use rustix::fs::{FlockOperation, flock};
use std::fs::File;
use std::io::Write as _;
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Exit code of a `serve` that found another supervisor at work: a client that lost the race to start one goes on connecting.
pub const ALREADY_RUNNING: u8 = 75;
/// Releases of a stack that can be gone back to.
const RESTORABLE: usize = 10;
/// Time for running operations to reach their next journal record at the end.
const CLOSE_WITHIN: Duration = Duration::from_secs(10);
/// Time for replies that are ready to be written to their connections before these are cut.
const REPLIES_LEAVE: Duration = Duration::from_millis(100);
/// Longest run of one backup or restore job.
const BACKUP_WITHIN: Duration = Duration::from_secs(6 * 3600);
/// Pause between attempts to recover while the engine is away.
const RECOVER_RETRY: Duration = Duration::from_secs(5);

/// What `serve` was asked for.
#[derive(Debug, Clone)]
pub struct ServeOptions {
    /// Directories.
    pub places: Places,
    /// Address, over the file's; `off` for none.
    pub listen: Option<String>,
    /// A proxy or a private network stands in front.
    pub behind_proxy: bool,
    /// Host names, beside the file's.
    pub allowed_hosts: Vec<String>,
    /// End after so long without client, stack or operation.
    pub idle_exit: Option<Duration>,
}

/// Why the supervisor did not start.
#[derive(Debug, thiserror::Error, miette::Diagnostic)]
pub enum AppError {
    /// Configuration.
    #[error(transparent)]
    #[diagnostic(transparent)]
    Config(#[from] ConfigError),
    /// Agents, policy or prompts.
    #[error("agents, policy or prompts cannot be used:\n{0}")]
    #[diagnostic(help("mend the lines above; `dockwarden policy check` reads them again"))]
    Rules(String),
    /// Another supervisor.
    #[error("another supervisor (pid {pid}) runs for {}", .home.display())]
    #[diagnostic(help("use it (every client finds it by the socket), or give this one another --home"))]
    AlreadyRunning {
        /// Its process.
        pid: String,
        /// Home.
        home: PathBuf,
    },
    /// State.
    #[error(transparent)]
    #[diagnostic(help("see `dockwarden doctor`; nothing was changed"))]
    Store(#[from] StoreError),
    /// The engine's address.
    #[error("the engine cannot be used: {0}")]
    #[diagnostic(help("set `engine` in dockwarden.toml or DOCKER_HOST, and check with `dockwarden doctor`"))]
    Engine(String),
    /// Address refused.
    #[error(transparent)]
    #[diagnostic(transparent)]
    Bind(#[from] BindRefused),
    /// Certificate or key.
    #[error(transparent)]
    #[diagnostic(transparent)]
    Tls(#[from] TlsError),
    /// File system or network.
    #[error("{what}: {cause}")]
    #[diagnostic(help("{hint}"))]
    Io {
        /// What was tried.
        what: String,
        /// Cause.
        cause: std::io::Error,
        /// What to do.
        hint: &'static str,
    },
}

fn io(what: impl Into<String>, hint: &'static str) -> impl FnOnce(std::io::Error) -> AppError {
    let what = what.into();
    move |cause| AppError::Io { what, cause, hint }
}

/// The file that names the address of the HTTP door while it is open; `https://` before it says that the door speaks TLS.
pub fn address_file(home: &Path) -> PathBuf {
    home.join("run/http.addr")
}

/// Runs a supervisor until SIGTERM, SIGINT or its idle time.
///
/// # Errors
/// Whatever kept it from starting; once it runs it ends without error.
pub async fn serve(options: ServeOptions) -> Result<(), AppError> {
    serve_with(options, Options::default()).await
}

/// As [`serve`], with an executor that differs from the ordinary one: tests that stop a supervisor at a given record run this in a process of theirs.
/// What the house itself knows (the repository of backups, whose host's ports are ours) is set here.
///
/// # Errors
/// As [`serve`].
pub async fn serve_with(options: ServeOptions, executor: Options) -> Result<(), AppError> {
    let mut config = config::load(&options.places)?;
    let (rulebook, prompts) = rules::load(&config.config_dir).map_err(|p| AppError::Rules(rules::in_words(&p)))?;
    let address = address(&options, &mut config)?;
    let tls = tls(&config.settings.http)?;
    let _lock = lock(&config.home)?;
    let http_listener = bind_http(address, options.idle_exit.is_some()).await?;
    let store = Store::open(&config.home, &config.memory).await?;
    let (engine, endpoint) = engine(&config)?;
    let engine: Arc<dyn Engine> = crate::engine::adopted::Adopted::over(engine, store.registry());
    let place = match container::place(engine.as_ref(), &endpoint).await {
        Ok(place) => place,
        Err(e) => {
            tracing::error!(error = %e, "the engine did not tell this container's mounts; bind mounts are refused until the supervisor starts again");
            container::Place::unanswered()
        }
    };
    (config.path_map, config.own_container) = (place.map, place.own);
    if config.own_container == crate::model::config::OwnContainer::Unknown {
        tracing::warn!(
            "the supervisor runs in a container that it cannot find on the engine: volumes and networks of unknown owners may be its own and are denied"
        );
    }
    // Nothing is at work yet: whatever lies in the spool was left by a supervisor that was killed.
    if let Some(left) = backups(&config, store.instance(), executor.front_binary.clone()).and_then(|b| b.sweep_spool().err()) {
        tracing::warn!(error = %left, "archives of interrupted backups are left behind");
    }
    // The executor is part of the house it asks: until the house stands it gets empty lists, which permit nothing.
    let late = Arc::new(OnceLock::<Weak<House>>::new());
    let lookup = Arc::clone(&late);
    let facts: FactsOf = Arc::new(move |plan, service| {
        lookup.get().and_then(Weak::upgrade).map(|house| facts::of(&house, plan, service)).unwrap_or_default()
    });
    let judge = Arc::clone(&late);
    let commands: CommandsOf = Arc::new(move |agent, on_behalf| {
        let (house, agent, on_behalf) = (judge.get().and_then(Weak::upgrade), agent.to_owned(), on_behalf.to_vec());
        Arc::new(move |environment, run| match &house {
            Some(house) => {
                let book = house.rulebook.load();
                let mut found = crate::gate::request::assert_backup_command(&book.policy, environment, run);
                found.extend(crate::gate::hooks::may_run(&book, &agent, on_behalf.iter().map(String::as_str)));
                found
            }
            None => crate::gate::request::assert_command(run, &crate::gate::request::RequestFacts::default()),
        })
    });
    // Ports of the engine's host can be tried from here only when this is that host.
    let host_ports = config.path_map.is_none();
    let backups = backups(&config, store.instance(), executor.front_binary.clone());
    let places = config.clone();
    let real: RealOf = Arc::new(move |path| facts::real(&places, path));
    let front_door: FrontDoor =
        Arc::new(|socket, command, settle, owner| Box::pin(async move { front::ask(&socket, &command, Some(settle), Some(owner)).await }));
    let executor = Options {
        real: Some(real),
        commands: Some(commands),
        host_ports,
        backups: backups.as_deref().cloned(),
        own: config.own_container.clone(),
        front_door: Some(front_door),
        ..executor
    };
    let executor = Executor::new(Arc::clone(&engine), store.clone(), facts, executor);
    let house = Arc::new(House {
        store: store.clone(),
        engine,
        rulebook: ArcSwap::from_pointee(rulebook),
        refused_rules: ArcSwap::default(),
        executor: Arc::clone(&executor),
        config,
        prompts: ArcSwap::from_pointee(prompts),
        calls: TaskTracker::new(),
        backups,
        turns: Default::default(),
        desk: Default::default(),
        taints: crate::call::taint::Taints::open(&store).await?,
    });
    late.get_or_init(|| Arc::downgrade(&house));
    let home = house.config.home.clone();
    let shutdown = CancellationToken::new();
    let doors = Doors::new(Arc::clone(&house), shutdown.clone());
    let closed = store.audit_close_orphans(&[], Utc::now()).await?;
    if closed > 0 {
        tracing::warn!(calls = closed, "calls of the last run had no outcome; they are recorded as unknown");
    }
    crate::call::tasks::restore(&house, Utc::now()).await?;
    learn_secrets(&house).await?;
    let tasks = TaskTracker::new();
    recover(&house, &shutdown, &tasks).await;
    tasks.spawn(background::snapshots_unknown(Arc::clone(&house), shutdown.clone()));
    let socket_path = config::socket_path(&home);
    let listener =
        socket::bind(&socket_path).map_err(io(socket_path.display().to_string(), "check the home's permissions and free space"))?;
    rules::let_pass(&house).map_err(io(socket_path.display().to_string(), "check the home's permissions"))?;
    let owner = std::fs::metadata(&home).map_err(io(home.display().to_string(), "check the home's permissions"))?.uid();
    tasks.spawn(socket::serve(Arc::clone(&doors), listener, owner));
    if let Some((listener, bound)) = http_listener {
        let scheme = if tls.is_some() { "https://" } else { "" };
        std::fs::write(address_file(&home), format!("{scheme}{bound}"))
            .map_err(io("run/http.addr", "check the home's permissions and free space"))?;
        let guard = Guard {
            hosts: house.config.settings.allowed_hosts.clone(),
            origins: house.config.settings.allowed_origins.clone(),
            beyond_loopback: options.behind_proxy || !bound.ip().is_loopback(),
            tls: tls.is_some(),
        };
        tracing::info!(%bound, tls = tls.is_some(), "HTTP door open");
        if let Some(tls) = &tls {
            tasks.spawn(Arc::clone(tls).watch(store.clone(), shutdown.clone()));
        }
        tasks.spawn(http::listen::serve(listener, tls, http::router(&doors, guard), shutdown.clone(), doors.hangup.clone()));
    }
    background::begin(&house, &shutdown, &tasks);
    let counting = Arc::clone(&doors);
    tasks.spawn(crate::supervisor::notify::run(Arc::clone(&house), shutdown.clone(), move |o| counting.metrics.notification(o.as_str())));
    tracing::info!(home = %home.display(), version = env!("CARGO_PKG_VERSION"), "supervisor ready");
    until_end(&doors, options.idle_exit).await;
    shutdown.cancel();
    // Operations stop at their next journal record, which lets the calls that wait for them answer; then the connections may go.
    house.calls.close();
    let (_, answered) = tokio::join!(executor.close(CLOSE_WITHIN), tokio::time::timeout(CLOSE_WITHIN, house.calls.wait()));
    if answered.is_err() {
        tracing::warn!(left = house.calls.len(), "calls had no answer in time; operations they began are taken over at the next start");
    }
    tokio::time::sleep(REPLIES_LEAVE).await;
    doors.hangup.cancel();
    tasks.close();
    if tokio::time::timeout(CLOSE_WITHIN, tasks.wait()).await.is_err() {
        tracing::warn!(left = tasks.len(), "tasks did not end in time");
    }
    store.close().await;
    for path in [socket_path, address_file(&home)] {
        if let Err(e) = std::fs::remove_file(&path)
            && e.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!(path = %path.display(), error = %e, "could not be removed");
        }
    }
    tracing::info!("supervisor ended");
    Ok(())
}

/// What the releases of this home hold is masked from the first line on, also of those that can be gone back to.
async fn learn_secrets(house: &House) -> Result<(), AppError> {
    let store = &house.store;
    let mut specs = vec![];
    for record in store.stacks().await? {
        // The newest last: they stay where there are too many.
        specs.extend(store.releases(&record.name, RESTORABLE).await?.into_iter().rev().map(|r| (r.spec, r.environment)));
    }
    let book = house.rulebook.load_full();
    let agents: Vec<String> = book.agents.keys().cloned().collect();
    crate::redact::declared::free_environments(rules::free_environments(&book.policy));
    let learned = tokio::task::spawn_blocking(move || {
        crate::redact::declared::names(agents.iter().map(String::as_str));
        specs.iter().for_each(|(spec, environment)| crate::redact::declared::release(spec, environment));
    });
    if let Err(e) = learned.await {
        tracing::error!(error = %e, "the secrets of the releases could not be taken into the filter of what leaves");
    }
    Ok(())
}

/// Makes the home 0700 and takes its lock; the lock file names the process for people and scripts.
fn lock(home: &Path) -> Result<File, AppError> {
    let hint = "the user dockwarden runs as must own its home";
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(home).map_err(io(home.display().to_string(), hint))?;
    let path = home.join("supervisor.lock");
    let mut options = std::fs::OpenOptions::new();
    let mut file = options
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .map_err(io(path.display().to_string(), hint))?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(rustix::io::Errno::WOULDBLOCK) => {
            let pid = std::fs::read_to_string(&path).unwrap_or_default().trim().to_owned();
            return Err(AppError::AlreadyRunning { pid, home: home.to_path_buf() });
        }
        Err(e) => return Err(io(path.display().to_string(), "the home must lie on a local file system that knows locks")(e.into())),
    }
    let permissions = std::fs::Permissions::from_mode(0o700);
    std::fs::set_permissions(home, permissions).map_err(io(home.display().to_string(), hint))?;
    file.set_len(0)
        .and_then(|()| writeln!(file, "{}", std::process::id()))
        .map_err(io(path.display().to_string(), "free some disk space"))?;
    Ok(file)
}

/// The address to bind, checked; flags win over the file. Extra host names go into the settings, where the guard reads them.
fn address(options: &ServeOptions, config: &mut crate::model::config::Config) -> Result<Option<SocketAddr>, AppError> {
    config::check_hosts(&options.allowed_hosts).map_err(|message| ConfigError {
        file: "--allowed-host ($ALLOWED_HOST of .env)".into(),
        line: None,
        message,
        hint: "write bare names or name:port, without scheme or wildcard".into(),
    })?;
    config.settings.allowed_hosts.extend(options.allowed_hosts.iter().cloned());
    let text = options.listen.as_deref().or(config.settings.listen.as_deref()).unwrap_or(config::DEFAULT_LISTEN);
    if text == "off" {
        return Ok(None);
    }
    let address: SocketAddr = text.parse().map_err(|_| ConfigError {
        file: "--listen".into(),
        line: None,
        message: format!("{text:?} is not an address and port"),
        hint: "write e.g. 127.0.0.1:7420, or off".into(),
    })?;
    may_bind(address, config.settings.http.tls_cert.is_some(), options.behind_proxy, &config.settings.allowed_hosts)?;
    Ok(Some(address))
}

/// Certificate and key of the HTTP door, where the file names them.
fn tls(settings: &crate::model::config::HttpSettings) -> Result<Option<Arc<Tls>>, TlsError> {
    match (&settings.tls_cert, &settings.tls_key) {
        (Some(cert), Some(key)) => Ok(Some(Arc::new(Tls::load(cert, key)?))),
        // `config` refuses one without the other.
        _ => Ok(None),
    }
}

/// Binds the HTTP door. A supervisor a client started on demand does without it when another one has the port.
async fn bind_http(address: Option<SocketAddr>, on_demand: bool) -> Result<Option<(TcpListener, SocketAddr)>, AppError> {
    let Some(address) = address else { return Ok(None) };
    let bound = match TcpListener::bind(address).await {
        Ok(listener) => listener.local_addr().map(|bound| (listener, bound)),
        Err(e) => Err(e),
    };
    match bound {
        Ok(bound) => Ok(Some(bound)),
        Err(e) if on_demand => {
            tracing::warn!(%address, error = %e, "no HTTP door: the address is not free");
            Ok(None)
        }
        Err(e) => Err(io(format!("listen on {address}"), "end what holds the port, or set `listen` in dockwarden.toml (or --listen)")(e)),
    }
}

/// The engine and where it is.
fn engine(config: &crate::model::config::Config) -> Result<(Arc<dyn Engine>, String), AppError> {
    let engine =
        crate::engine::docker::DockerEngine::connect(config.settings.engine.as_deref()).map_err(|e| AppError::Engine(e.to_string()))?;
    let endpoint = engine.endpoint().to_owned();
    if container::dedicated() {
        container::check_socket(&endpoint)?;
    }
    Ok((Arc::new(engine), endpoint))
}

/// The backup repository: made at its first use, by a child process of this binary.
fn backups(config: &Config, instance: &str, binary: Option<PathBuf>) -> Option<Arc<BackupHouse>> {
    if !cfg!(feature = "backup") {
        return None;
    }
    match binary.map_or_else(std::env::current_exe, Ok) {
        Ok(exe) => {
            let house = BackupHouse::of(&config.home, exe, BACKUP_WITHIN);
            Some(Arc::new(house.configured(&config.settings.backup, instance)))
        }
        Err(e) => {
            tracing::error!(error = %e, "no backups: this binary's path is unknown");
            None
        }
    }
}

/// Takes over interrupted operations before any door opens. With the engine away that waits in the background: reads must be served.
async fn recover(house: &Arc<House>, shutdown: &CancellationToken, tasks: &TaskTracker) {
    match house.executor.recover().await {
        Ok(taken) if taken.is_empty() => {}
        Ok(taken) => tracing::warn!(operations = ?taken, "interrupted operations were taken over"),
        Err(e) => {
            tracing::error!(error = %e, "recovery waits for the engine");
            let (house, shutdown) = (Arc::clone(house), shutdown.clone());
            tasks.spawn(async move {
                while tokio::time::timeout(RECOVER_RETRY, shutdown.cancelled()).await.is_err() {
                    match house.executor.recover().await {
                        Ok(taken) => return tracing::warn!(operations = ?taken, "recovery is done"),
                        Err(e) => tracing::debug!(error = %e, "recovery still waits"),
                    }
                }
            });
        }
    }
}

/// Waits for a signal, or for the idle time of a supervisor that was started on demand.
async fn until_end(doors: &Arc<Doors>, idle_exit: Option<Duration>) {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut term), Ok(mut int)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt())) else {
        tracing::error!("signals cannot be received");
        return;
    };
    let idle = async {
        let Some(limit) = idle_exit else { return std::future::pending().await };
        let mut tick = tokio::time::interval(limit.min(Duration::from_secs(1)).max(Duration::from_millis(50)));
        loop {
            tick.tick().await;
            let idle = doors.presence.empty_for() >= limit && doors.house.executor.active() == 0;
            if idle && stackless(doors).await && taskless(doors).await {
                return;
            }
        }
    };
    tokio::select! {
        _ = term.recv() => tracing::info!("SIGTERM: ending"),
        _ = int.recv() => tracing::info!("SIGINT: ending"),
        () = idle => tracing::info!("nothing to look after: ending"),
    }
}

/// No stack has a release that is meant to run. Unreadable state counts as a stack: better to stay.
async fn stackless(doors: &Doors) -> bool {
    match doors.house.store.stacks().await {
        Ok(stacks) => stacks.iter().all(|s| s.current.is_none()),
        Err(e) => {
            tracing::error!(error = %e, "stacks could not be read");
            false
        }
    }
}

/// No agent has anything to do. An unreadable queue counts as work.
async fn taskless(doors: &Doors) -> bool {
    match doors.house.store.workload().await {
        Ok(load) => load.is_empty(),
        Err(e) => {
            tracing::error!(error = %e, "the queue of tasks could not be read");
            false
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_home_has_one_supervisor_and_the_second_names_the_first() {
        let dir = tempfile::tempdir().expect("directory");
        let home = dir.path().join("home");
        let first = lock(&home).expect("free");
        let second = lock(&home).expect_err("held");
        assert!(second.to_string().contains(&format!("pid {}", std::process::id())), "{second}");
        assert_eq!(std::fs::metadata(&home).expect("exists").permissions().mode() & 0o777, 0o700);
        drop(first);
        assert!(lock(&home).is_ok());
    }
}
