//! The probes of `x-dockwarden`, made one at a time. `http` and `tcp` go from the supervisor to the container's own address where the engine's networks
//! are reachable from here, else by a command in the container; what was asked and by which way is part of every outcome. A probe that cannot be
//! made has not passed. https is in `checks::tls`.

mod tls;

use super::patience::away;
use super::run::Run;
use super::{probe, probe::ProbeError};
use crate::engine::{EngineError, ExecSpec};
use crate::model::ids::EngineName;
use crate::model::observed::ContainerDetail;
use crate::model::spec::{HttpProbe, Probe, ProbeCheck, ServiceSpec};
use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::TokioIo;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};
use tokio::net::TcpStream;

/// Pause between two attempts.
const PAUSE: Duration = Duration::from_millis(250);
/// Most of an answer's body that is read.
const BODY: usize = 64 * 1024;
/// Most of an answer or output that is kept.
const KEPT: usize = 4096;

/// What came of one attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Outcome {
    /// Passed; how it was asked.
    Passed(String),
    /// Did not pass; another attempt may.
    Failed {
        /// Why, and how it was asked.
        reason: String,
        /// What it answered.
        output: Option<String>,
    },
    /// Cannot be made: no further attempt will pass.
    Impossible(String),
}

/// How a port of a container is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// From the supervisor.
    Direct(SocketAddr),
    /// By a command in the container.
    Inside,
}

/// The way to a port: the container's own address on a bridge network, or the host's loopback for the host network, where the supervisor runs on the engine's
/// host; else from inside.
pub(super) fn way(seen: &ContainerDetail, spec: &ServiceSpec, local: bool, port: u16) -> Way {
    let direct = |ip: IpAddr| Way::Direct(SocketAddr::new(ip, port));
    match spec.network_mode.as_deref() {
        _ if !local => Way::Inside,
        Some("host") => direct(IpAddr::V4(Ipv4Addr::LOCALHOST)),
        Some("none") => Way::Inside,
        Some(_) | None => seen.addresses.values().find_map(|a| a.parse().ok()).map_or(Way::Inside, direct),
    }
}

/// Asks for a TCP connection from inside: `$1` port, `$2` seconds.
const TCP_INSIDE: &str = "if command -v nc >/dev/null 2>&1; then exec nc -z -w \"$2\" 127.0.0.1 \"$1\" </dev/null; fi\n\
    if command -v bash >/dev/null 2>&1; then exec bash -c 'exec 3<>/dev/tcp/127.0.0.1/\"$0\"' \"$1\"; fi\nexit 127";
/// Asks for a page from inside: `$1` port, `$2` path, `$3` seconds, `$4` whether the exact status is needed, `$5` where, `$6` and `$7` what
/// curl and wget are told about certificates. The last line is the status.
const HTTP_INSIDE: &str = "u=\"$5:$1$2\"\n\
    if command -v curl >/dev/null 2>&1; then exec curl -sS $6 -m \"$3\" -w '\\n%{http_code}' \"$u\"; fi\n\
    if [ \"$4\" = no ] && command -v wget >/dev/null 2>&1; then wget -q $7 -O - -T \"$3\" \"$u\" && printf '\\n200'; exit $?; fi\nexit 127";

impl Run {
    /// Makes one attempt of a probe of a container.
    pub(super) async fn attempt(&self, id: &EngineName, spec: &ServiceSpec, p: &Probe) -> Result<Outcome, EngineError> {
        let limit = Duration::from_secs(p.timeout_s);
        match &p.check {
            ProbeCheck::Url(url) => Ok(timed(limit, &format!("url {url} from the supervisor"), ask_url(url, p.insecure)).await),
            ProbeCheck::Exec(command) => self.inside(id, command.clone(), limit, &p.check.to_string()).await,
            ProbeCheck::Tcp(port) => match self.way_to(id, spec, *port).await? {
                Way::Direct(to) => {
                    let how = format!("{} from the supervisor to {to}", p.check);
                    match timed(limit, &how, reach(to, &how)).await {
                        Outcome::Impossible(_) => self.tcp_inside(id, *port, limit, &p.check.to_string()).await,
                        other => Ok(other),
                    }
                }
                Way::Inside => self.tcp_inside(id, *port, limit, &p.check.to_string()).await,
            },
            ProbeCheck::Http(http) => match self.way_to(id, spec, http.port).await? {
                Way::Direct(to) => {
                    let how = format!("{} from the supervisor to {to}", p.check);
                    match timed(limit, &how, page(to, http, p.insecure, &how)).await {
                        Outcome::Impossible(_) => self.http_inside(id, http, p.insecure, limit, &p.check.to_string()).await,
                        other => Ok(other),
                    }
                }
                Way::Inside => self.http_inside(id, http, p.insecure, limit, &p.check.to_string()).await,
            },
        }
    }

    async fn way_to(&self, id: &EngineName, spec: &ServiceSpec, port: u16) -> Result<Way, EngineError> {
        let seen = self.exec.engine.container(id).await?;
        Ok(seen.map_or(Way::Inside, |seen| way(&seen, spec, self.exec.is_local(), port)))
    }

    async fn tcp_inside(&self, id: &EngineName, port: u16, limit: Duration, what: &str) -> Result<Outcome, EngineError> {
        let command = shell(TCP_INSIDE, &[port.to_string(), limit.as_secs().to_string()]);
        let outcome = self.inside(id, command, limit + Duration::from_secs(1), what).await?;
        Ok(tools_named(outcome, "nc or bash"))
    }

    async fn http_inside(
        &self,
        id: &EngineName,
        http: &HttpProbe,
        insecure: bool,
        limit: Duration,
        what: &str,
    ) -> Result<Outcome, EngineError> {
        let exact = if http.status.is_some() { "yes" } else { "no" };
        let (origin, curl, wget) = match (http.tls, insecure) {
            (true, true) => ("https://localhost", "-k", "--no-check-certificate"),
            (true, false) => ("https://localhost", "", ""),
            (false, _) => ("http://127.0.0.1", "", ""),
        };
        let words = [&http.port.to_string(), &http.path, &limit.as_secs().to_string(), exact, origin, curl, wget].map(str::to_owned);
        let command = shell(HTTP_INSIDE, &words);
        let run = ExecSpec { command, user: None, env: vec![], timeout: limit + Duration::from_secs(1), max_output: BODY };
        let how = format!("{what} by a command in the container");
        Ok(match self.exec.engine.exec(&self.permit, id, &run).await {
            Ok(done) if done.exit_code == Some(0) => {
                let (body, status) = done.output.rsplit_once('\n').unwrap_or(("", done.output.as_str()));
                judged(http, status.trim().parse().unwrap_or(0), body, &how)
            }
            Ok(done) => tools_named(exited(done.exit_code, done.output, &how, limit), "curl (or wget, without `status`)"),
            Err(EngineError::Conflict(text) | EngineError::Refused(text)) => Outcome::Failed { reason: how, output: Some(text) },
            Err(e) => return Err(e),
        })
    }

    async fn inside(&self, id: &EngineName, command: Vec<String>, limit: Duration, what: &str) -> Result<Outcome, EngineError> {
        let how = if what.starts_with("exec") { what.to_owned() } else { format!("{what} by a command in the container") };
        let run = ExecSpec { command, user: None, env: vec![], timeout: limit, max_output: KEPT };
        match self.exec.engine.exec(&self.permit, id, &run).await {
            Ok(done) => Ok(exited(done.exit_code, done.output, &how, limit)),
            // It ended between two looks: the next look says how.
            Err(EngineError::Conflict(text) | EngineError::Refused(text)) => Ok(Outcome::Failed { reason: how, output: Some(text) }),
            Err(e) => Err(e),
        }
    }

    /// Repeats the service's own probes until each has passed once, in order, or one cannot any more.
    ///
    /// # Errors
    /// `Failed` with the last reason at the time limit, when the container ended, or when a probe cannot be made.
    pub(super) async fn own_probes(&self, id: &EngineName, spec: &ServiceSpec) -> Result<(), ProbeError> {
        let start = Instant::now();
        let limit = spec.settings.start_timeout_s.map_or(probe::START_TIMEOUT, Duration::from_secs);
        for p in &spec.settings.probes {
            loop {
                match self.attempt(id, spec, p).await? {
                    Outcome::Passed(how) => {
                        tracing::debug!(operation = %self.operation_id(), probe = %how, "passed");
                        break;
                    }
                    Outcome::Impossible(reason) => return Err(ProbeError::Failed { reason, output: None }),
                    Outcome::Failed { reason, output } if start.elapsed() >= limit => {
                        let reason = format!("a probe did not pass within {} s: {reason}", limit.as_secs());
                        return Err(ProbeError::Failed { reason, output });
                    }
                    Outcome::Failed { output, .. } => {
                        let seen = self.exec.engine.container(id).await?;
                        let alive = seen.as_ref().map_or_else(|| Err("the container is gone".to_owned()), probe::alive);
                        alive.map_err(|reason| ProbeError::Failed { reason, output })?;
                    }
                }
                tokio::time::sleep(PAUSE).await;
            }
        }
        Ok(())
    }
}

impl ProbeError {
    /// Whether it says only that the engine was away.
    pub(super) fn is_away(&self) -> bool {
        matches!(self, Self::Engine(e) if away(e))
    }
}

fn shell(script: &str, arguments: &[String]) -> Vec<String> {
    let mut command = vec!["/bin/sh".to_owned(), "-c".into(), script.into(), "probe".into()];
    command.extend_from_slice(arguments);
    command
}

fn exited(code: Option<i64>, output: String, how: &str, limit: Duration) -> Outcome {
    let output = Some(output.chars().take(KEPT).collect::<String>()).filter(|o| !o.is_empty());
    match code {
        Some(0) => Outcome::Passed(how.to_owned()),
        Some(code @ (126 | 127)) => Outcome::Impossible(format!("{how} cannot run (exit code {code})")),
        Some(code) => Outcome::Failed { reason: format!("{how}: exit code {code}"), output },
        None => Outcome::Failed { reason: format!("{how}: did not end within {} s", limit.as_secs()), output },
    }
}

fn tools_named(outcome: Outcome, tools: &str) -> Outcome {
    match outcome {
        Outcome::Impossible(reason) => Outcome::Impossible(format!(
            "{reason}: the supervisor cannot reach the container's address and the image has no {tools}; use an `exec` probe with what the image has"
        )),
        other => other,
    }
}

async fn timed(limit: Duration, how: &str, work: impl Future<Output = Outcome>) -> Outcome {
    let late = || Outcome::Failed { reason: format!("{how}: no answer within {} s", limit.as_secs()), output: None };
    tokio::time::timeout(limit, work).await.unwrap_or_else(|_| late())
}

/// Connects; an address this host has no way to is not the container's fault.
async fn connect(to: SocketAddr, how: &str) -> Result<TcpStream, Outcome> {
    TcpStream::connect(to).await.map_err(|e| match e.kind() {
        std::io::ErrorKind::NetworkUnreachable | std::io::ErrorKind::HostUnreachable => Outcome::Impossible(format!("{how}: {e}")),
        _ => Outcome::Failed { reason: format!("{how}: {e}"), output: None },
    })
}

async fn reach(to: SocketAddr, how: &str) -> Outcome {
    connect(to, how).await.map_or_else(|e| e, |_| Outcome::Passed(how.to_owned()))
}

async fn page(to: SocketAddr, http: &HttpProbe, insecure: bool, how: &str) -> Outcome {
    if http.tls {
        return tls::get(to, &format!("https://localhost:{}{}", http.port, http.path), insecure, Some(http), how).await;
    }
    get(to, "localhost", &http.path, Some(http), how).await
}

async fn get(to: SocketAddr, host: &str, path: &str, wanted: Option<&HttpProbe>, how: &str) -> Outcome {
    let stream = match connect(to, how).await {
        Ok(stream) => stream,
        Err(outcome) => return outcome,
    };
    match exchange(stream, host, path).await {
        Ok((status, body)) => match wanted {
            Some(http) => judged(http, status, &body, how),
            // The body of an address outside of the stack is nobody's evidence.
            None if (200..400).contains(&status) => Outcome::Passed(how.to_owned()),
            None => Outcome::Failed { reason: format!("{how}: status {status}"), output: None },
        },
        Err(why) => Outcome::Failed { reason: format!("{how}: {why}"), output: None },
    }
}

fn judged(http: &HttpProbe, status: u16, body: &str, how: &str) -> Outcome {
    let good = http.status.map_or((200..400).contains(&status), |s| s == status);
    let output = Some(body.chars().take(KEPT).collect::<String>()).filter(|o| !o.is_empty());
    match &http.contains {
        _ if !good => Outcome::Failed { reason: format!("{how}: status {status}"), output },
        Some(text) if !body.contains(text) => {
            Outcome::Failed { reason: format!("{how}: status {status}, without the text asked for"), output }
        }
        Some(_) | None => Outcome::Passed(how.to_owned()),
    }
}

async fn exchange(stream: TcpStream, host: &str, path: &str) -> Result<(u16, String), String> {
    let text = |e: &dyn std::fmt::Display| e.to_string();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|e| text(&e))?;
    let request = hyper::Request::get(path)
        .header("host", host)
        .header("user-agent", concat!("dockwarden/", env!("CARGO_PKG_VERSION")))
        .header("connection", "close")
        .body(Empty::<Bytes>::new())
        .map_err(|e| text(&e))?;
    let asked = async {
        let mut response = sender.send_request(request).await.map_err(|e| text(&e))?;
        let mut body = Vec::new();
        while body.len() < BODY
            && let Some(frame) = response.body_mut().frame().await
        {
            if let Ok(data) = frame.map_err(|e| text(&e))?.into_data() {
                body.extend_from_slice(&data[..data.len().min(BODY - body.len())]);
            }
        }
        Ok((response.status().as_u16(), String::from_utf8_lossy(&body).into_owned()))
    };
    tokio::pin!(asked);
    let mut connection = std::pin::pin!(connection);
    tokio::select! {
        answer = &mut asked => answer,
        // The peer may close right after its answer: what was read by then still counts.
        _ = &mut connection => asked.await,
    }
}

async fn ask_url(url: &str, insecure: bool) -> Outcome {
    let how = format!("url {url} from the supervisor");
    let Ok(uri) = url.parse::<http::Uri>() else { return Outcome::Impossible(format!("{how}: not an address")) };
    let Some(host) = uri.host() else { return Outcome::Impossible(format!("{how}: it names no host")) };
    let secure = uri.scheme_str() == Some("https");
    let plain = host.trim_start_matches('[').trim_end_matches(']');
    let addresses = match tokio::net::lookup_host((plain, uri.port_u16().unwrap_or(if secure { 443 } else { 80 }))).await {
        Ok(found) => found.collect::<Vec<_>>(),
        Err(e) => return Outcome::Failed { reason: format!("{how}: {e}"), output: None },
    };
    // Looked up here and used as found: a name that leads elsewhere a moment later leads nowhere.
    if let Some(bad) = addresses.iter().find(|a| crate::gate::plan::probes::forbidden(a.ip())) {
        return Outcome::Impossible(format!("{how}: {} is a link-local or metadata address, which no probe asks", bad.ip()));
    }
    let Some(to) = addresses.first() else { return Outcome::Failed { reason: format!("{how}: no address"), output: None } };
    if secure {
        return tls::get(*to, url, insecure, None, &how).await;
    }
    let path = uri.path_and_query().map_or("/", |p| p.as_str());
    get(*to, uri.authority().map_or(host, |a| a.as_str()), path, None, &how).await
}

#[cfg(test)]
mod tests;
