//! The application of `examples/hello`: one tiny HTTP server in three roles (web, api, store), so that the demo and the tests need
//! no download and no other image. It is not part of the supervisor: no state, no policy, nothing of the other modules is used.
//!
//! `web` asks `api`, `api` asks `store`, `store` counts visits in a file of its volume. `FAIL=start` and `FAIL=health` make the broken
//! releases that a deploy has to survive; `VERSION` is shown in every answer so that a client sees which release served it. With `FAULTS=on` faults can be
//! ordered while it runs.

mod faults;

pub use faults::Fault;

use bytes::Bytes;
use clap::{Args, Subcommand, ValueEnum};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use std::io::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// One hop inside the stack, connect and answer together. Longer than a hand-over, shorter than a health check's usual time-out.
const HOP: Duration = Duration::from_secs(2);
/// Time for open requests after SIGTERM; below the engine's default grace of 10 s.
const DRAIN: Duration = Duration::from_secs(5);
/// Largest answer read from the next role, bytes.
const MAX_ANSWER: usize = 64 * 1024;

/// Serve one role of the demo, or check one.
#[derive(Debug, Args)]
pub struct DemoArgs {
    /// What to do; serves when absent.
    #[command(subcommand)]
    pub command: Option<DemoCommand>,
    /// Role in the stack.
    #[arg(long, env = "ROLE", value_enum, default_value_t = Role::Web)]
    pub role: Role,
    /// Address to listen on.
    #[arg(long, env = "LISTEN", default_value = "0.0.0.0:8080")]
    pub listen: SocketAddr,
    /// `host:port` of the next role (web: api, api: store); not used by store.
    #[arg(long, env = "UPSTREAM")]
    pub upstream: Option<String>,
    /// Directory the store role keeps its counter in.
    #[arg(long, env = "DATA", default_value = "/data")]
    pub data: PathBuf,
    /// Shown in every answer.
    #[arg(long, env = "VERSION", default_value = "1")]
    pub release: String,
    /// Break on purpose.
    #[arg(long, env = "FAIL", value_enum, default_value_t = Failure::None)]
    pub fail: Failure,
    /// Whether faults may be ordered while it runs (`demo-app fault`).
    #[arg(long, env = "FAULTS", value_enum, default_value_t = Faults::Off)]
    pub faults: Faults,
}

/// Whether faults may be ordered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Faults {
    /// By whoever reaches it.
    On,
    /// By nobody.
    #[value(alias = "")]
    Off,
}

/// What else the demo can do.
#[derive(Debug, Subcommand)]
pub enum DemoCommand {
    /// Exit 0 when a GET of URL answers 2xx: a HEALTHCHECK for images without a shell.
    Check {
        /// `http://host:port/path`.
        url: String,
    },
    /// Order a fault of a running role.
    Fault {
        /// Fault.
        #[arg(value_enum)]
        kind: Fault,
        /// `host:port` of the role.
        #[arg(default_value = "127.0.0.1:8080")]
        role: String,
    },
}

/// Role of one container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Role {
    /// Published; asks api.
    Web,
    /// Internal; asks store.
    Api,
    /// Keeps the counter on its volume.
    Store,
}

/// A failure to order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Failure {
    /// Works.
    #[value(alias = "")]
    None,
    /// Exits at once.
    Start,
    /// Serves, but answers 500 on `/health`.
    Health,
}

/// Why the demo could not do it.
#[derive(Debug, thiserror::Error)]
pub enum DemoError {
    /// Neither host and port nor `http://`.
    #[error("{0:?} is not http://host:port/path")]
    Url(String),
    /// The next role does not answer.
    #[error("{0} does not answer: {1}")]
    Hop(String, String),
    /// It answered, but not 2xx.
    #[error("{0} answered {1}")]
    Status(String, StatusCode),
    /// The counter cannot be read or written.
    #[error("{0}: {1}")]
    Data(PathBuf, std::io::Error),
    /// The counter's file does not hold a number.
    #[error("{0} does not hold a number: {1:?}")]
    Damaged(PathBuf, String),
    /// This role has no next role.
    #[error("UPSTREAM is not set")]
    NoUpstream,
}

/// Runs the demo until SIGTERM or SIGINT, or the check once.
pub async fn run(args: DemoArgs) -> ExitCode {
    if let Some(command) = &args.command {
        let done = match command {
            DemoCommand::Check { url } => check(url).await,
            DemoCommand::Fault { kind, role } => hop(Method::POST, role, kind.path()).await,
        };
        return match done {
            Ok(text) => {
                print!("{text}");
                ExitCode::SUCCESS
            }
            Err(e) => {
                eprintln!("{e}");
                ExitCode::FAILURE
            }
        };
    }
    if args.fail == Failure::Start {
        eprintln!("FAIL=start: this release exits on purpose");
        return ExitCode::FAILURE;
    }
    match serve(args).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("{e}");
            ExitCode::FAILURE
        }
    }
}

async fn check(url: &str) -> Result<String, DemoError> {
    let rest = url.strip_prefix("http://").ok_or_else(|| DemoError::Url(url.into()))?;
    let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
    hop(Method::GET, authority, &format!("/{path}")).await
}

async fn serve(args: DemoArgs) -> std::io::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    // Handlers first: as PID 1 a signal without one is ignored, and a stop would take the whole grace time.
    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let listener = TcpListener::bind(args.listen).await?;
    eprintln!("{:?} of release {} listens on {}", args.role, args.release, listener.local_addr()?);
    let app = Arc::new(App { counting: tokio::sync::Mutex::new(()), ill: AtomicBool::new(false), args });
    let (stopping, connections) = (CancellationToken::new(), TaskTracker::new());
    loop {
        let stream = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(e) => { eprintln!("accept: {e}"); continue; }
            },
            _ = term.recv() => break,
            _ = int.recv() => break,
        };
        let (app, stopping) = (Arc::clone(&app), stopping.clone());
        connections.spawn(async move {
            let service = service_fn(|req| {
                let app = Arc::clone(&app);
                async move { Ok::<_, std::convert::Infallible>(app.answer(req).await) }
            });
            let mut connection = std::pin::pin!(hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service));
            let ended = tokio::select! {
                ended = connection.as_mut() => ended,
                () = stopping.cancelled() => { connection.as_mut().graceful_shutdown(); connection.await }
            };
            if let Err(e) = ended {
                eprintln!("connection: {e}");
            }
        });
    }
    drop(listener);
    stopping.cancel();
    connections.close();
    if tokio::time::timeout(DRAIN, connections.wait()).await.is_err() {
        eprintln!("requests still open after {DRAIN:?} are cut");
    }
    Ok(())
}

struct App {
    args: DemoArgs,
    /// Read-add-write of the counter is one step.
    counting: tokio::sync::Mutex<()>,
    /// Ordered to be.
    ill: AtomicBool,
}

impl App {
    async fn answer(&self, req: Request<Incoming>) -> Response<Full<Bytes>> {
        let (method, path) = (req.method().clone(), req.uri().path().to_owned());
        if let (Some(fault), &Method::POST, Faults::On) = (Fault::of(&path), &method, self.args.faults) {
            fault.happen(&self.ill);
            return self.reply(StatusCode::ACCEPTED, format!("{fault:?}, as ordered\n"));
        }
        let result = match (self.args.role, &method, path.as_str()) {
            (_, &Method::GET, "/health") => return self.health(),
            (Role::Web, &Method::GET, "/") => self.upstream(Method::POST, "/visits").await,
            (Role::Web | Role::Api, &Method::GET, "/visits") => self.upstream(Method::GET, "/visits").await,
            (Role::Api, &Method::POST, "/visits") => self.upstream(Method::POST, "/visits").await,
            (Role::Store, &Method::GET, "/visits") => self.count(0).await.map(|n| format!("visits {n}\n")),
            (Role::Store, &Method::POST, "/visits") => self.count(1).await.map(|n| format!("visits {n}\n")),
            _ => return self.reply(StatusCode::NOT_FOUND, format!("no {method} {path} here\n")),
        };
        match result {
            Ok(text) if self.args.role == Role::Store => self.reply(StatusCode::OK, text),
            Ok(text) => self.reply(StatusCode::OK, format!("{:?} release {}\n{text}", self.args.role, self.args.release)),
            Err(e) => {
                eprintln!("{method} {path}: {e}");
                self.reply(StatusCode::BAD_GATEWAY, format!("{e}\n"))
            }
        }
    }

    /// Its own health only: a role that reported the next one's failure would have the supervisor restart the wrong service.
    fn health(&self) -> Response<Full<Bytes>> {
        match self.args.fail {
            _ if self.ill.load(Ordering::SeqCst) => self.reply(StatusCode::INTERNAL_SERVER_ERROR, "ill, as ordered\n".into()),
            Failure::Health => {
                self.reply(StatusCode::INTERNAL_SERVER_ERROR, format!("release {} is broken on purpose (FAIL=health)\n", self.args.release))
            }
            Failure::None | Failure::Start => self.reply(StatusCode::OK, format!("ok release {}\n", self.args.release)),
        }
    }

    fn reply(&self, status: StatusCode, text: String) -> Response<Full<Bytes>> {
        let mut response = Response::new(Full::new(Bytes::from(text)));
        *response.status_mut() = status;
        response.headers_mut().insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static("text/plain; charset=utf-8"));
        response
    }

    async fn upstream(&self, method: Method, path: &str) -> Result<String, DemoError> {
        hop(method, self.args.upstream.as_deref().ok_or(DemoError::NoUpstream)?, path).await
    }

    async fn count(&self, add: u64) -> Result<u64, DemoError> {
        let _one = self.counting.lock().await;
        let data = self.args.data.clone();
        tokio::task::spawn_blocking(move || raise(&data, add)).await.expect("raise does not panic")
    }
}

/// Adds to the counter and makes it durable before it is told: a backup or a kill between two visits loses none that was shown.
fn raise(data: &Path, add: u64) -> Result<u64, DemoError> {
    let (file, draft) = (data.join("visits"), data.join("visits.new"));
    let now = match std::fs::read_to_string(&file) {
        Ok(text) => text.trim().parse::<u64>().map_err(|_| DemoError::Damaged(file.clone(), text.chars().take(80).collect()))?,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => 0,
        Err(e) => return Err(DemoError::Data(file, e)),
    };
    if add == 0 {
        return Ok(now);
    }
    let next = now.saturating_add(add);
    let write = || {
        let mut out = std::fs::File::create(&draft)?;
        writeln!(out, "{next}")?;
        out.sync_all()?;
        std::fs::rename(&draft, &file)?;
        std::fs::File::open(data)?.sync_all()
    };
    write().map_err(|e| DemoError::Data(file.clone(), e))?;
    Ok(next)
}

/// One request to another role on a connection of its own: after a switch of releases the name is looked up anew each time.
async fn hop(method: Method, authority: &str, path: &str) -> Result<String, DemoError> {
    let fail = |e: String| DemoError::Hop(format!("http://{authority}{path}"), e);
    let exchange = async {
        let stream = TcpStream::connect(authority).await.map_err(|e| fail(e.to_string()))?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|e| fail(e.to_string()))?;
        // Its error is the request's error too, which is reported below.
        tokio::spawn(async move { drop(connection.await) });
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(http::header::HOST, authority)
            .body(Full::<Bytes>::default())
            .map_err(|e| fail(e.to_string()))?;
        let response = sender.send_request(request).await.map_err(|e| fail(e.to_string()))?;
        let status = response.status();
        let body = Limited::new(response.into_body(), MAX_ANSWER).collect().await.map_err(|e| fail(e.to_string()))?.to_bytes();
        if !status.is_success() {
            return Err(DemoError::Status(format!("http://{authority}{path}"), status));
        }
        Ok(String::from_utf8_lossy(&body).into_owned())
    };
    tokio::time::timeout(HOP, exchange).await.map_err(|_| fail(format!("no answer within {HOP:?}")))?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_counter_survives_and_refuses_a_damaged_file() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!((raise(dir.path(), 0).unwrap(), raise(dir.path(), 1).unwrap(), raise(dir.path(), 1).unwrap()), (0, 1, 2));
        assert_eq!(std::fs::read_to_string(dir.path().join("visits")).unwrap(), "2\n");
        std::fs::write(dir.path().join("visits"), "damaged").unwrap();
        assert!(matches!(raise(dir.path(), 1), Err(DemoError::Damaged(_, text)) if text == "damaged"));
    }

    #[tokio::test]
    async fn a_check_needs_an_http_url_and_a_listener() {
        assert!(matches!(check("ftp://x").await, Err(DemoError::Url(_))));
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        assert!(matches!(check(&format!("http://{free}/health")).await, Err(DemoError::Hop(..))));
    }
}
