//! Which engine: the order in which the Docker client looks (`DOCKER_HOST`, context, default socket), for the endpoints we speak.
//! Deliberately absent: TLS and ssh endpoints; they are refused with the way on, never tried without.

use crate::engine::{EngineError, EngineResult};
use sha2::{Digest, Sha256};
use std::fmt;
use std::path::PathBuf;

/// Where the Docker client looks when nothing else is said.
const DEFAULT_SOCKET: &str = "/var/run/docker.sock";

/// An endpoint we can speak to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Endpoint {
    /// Path of a socket.
    Unix(String),
    /// `host:port`.
    Tcp(String),
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix://{path}"),
            Self::Tcp(address) => write!(f, "tcp://{address}"),
        }
    }
}

/// What of the process' environment decides.
#[derive(Debug, Clone, Default)]
pub(super) struct Environment {
    /// `DOCKER_HOST`.
    pub host: Option<String>,
    /// `DOCKER_CONTEXT`.
    pub context: Option<String>,
    /// Whether `DOCKER_TLS_VERIFY` is set.
    pub tls: bool,
    /// `DOCKER_CONFIG`, else `~/.docker`.
    pub config_dir: Option<PathBuf>,
}

impl Environment {
    /// Reads it.
    pub fn read() -> Self {
        let var = |name: &str| std::env::var(name).ok().filter(|v| !v.is_empty());
        Self {
            host: var("DOCKER_HOST"),
            context: var("DOCKER_CONTEXT"),
            tls: var("DOCKER_TLS_VERIFY").is_some(),
            config_dir: var("DOCKER_CONFIG").map(PathBuf::from).or_else(|| Some(PathBuf::from(var("HOME")?).join(".docker"))),
        }
    }
}

/// The endpoint in force.
pub(super) fn resolve(given: Option<&str>, environment: &Environment) -> EngineResult<Endpoint> {
    if let Some(text) = given {
        return parse(text, environment.tls, "the configuration");
    }
    if let Some(text) = &environment.host {
        return parse(text, environment.tls, "DOCKER_HOST");
    }
    match context_host(environment)? {
        Some((name, host)) => parse(&host, false, &format!("the Docker context {name:?}")),
        None => Ok(Endpoint::Unix(DEFAULT_SOCKET.into())),
    }
}

fn parse(text: &str, tls: bool, from: &str) -> EngineResult<Endpoint> {
    let refuse = |why: &str| Err(EngineError::Refused(format!("engine endpoint {text:?} of {from}: {why}")));
    if let Some(path) = text.strip_prefix("unix://") {
        return if path.starts_with('/') {
            Ok(Endpoint::Unix(path.into()))
        } else {
            refuse("the socket's path must be absolute: unix:///path")
        };
    }
    match text.strip_prefix("tcp://").or_else(|| text.strip_prefix("http://")) {
        Some(_) if tls => refuse("TLS is not supported; use a unix socket, or unset DOCKER_TLS_VERIFY for a trusted network"),
        Some(address) if !address.is_empty() && !address.contains('@') => Ok(Endpoint::Tcp(address.trim_end_matches('/').into())),
        _ => refuse("only unix://, tcp:// and http:// are supported; for ssh, forward the engine's socket and name it as unix:///path"),
    }
}

/// Name and host of the client's current context; `None` for the default one.
fn context_host(environment: &Environment) -> EngineResult<Option<(String, String)>> {
    let Some(dir) = &environment.config_dir else { return Ok(None) };
    let current = || {
        let text = std::fs::read_to_string(dir.join("config.json")).ok()?;
        let config: serde_json::Value = serde_json::from_str(&text).ok()?;
        Some(config.get("currentContext")?.as_str()?.to_owned())
    };
    let Some(name) = environment.context.clone().or_else(current).filter(|n| n != "default" && !n.is_empty()) else { return Ok(None) };
    // The client files a context under the hash of its name, so that any name is a file name.
    let id: String = Sha256::digest(name.as_bytes()).iter().map(|b| format!("{b:02x}")).collect();
    let path = dir.join("contexts/meta").join(id).join("meta.json");
    let unusable = |why: String| {
        EngineError::Refused(format!("the Docker context {name:?} ({}): {why}; set DOCKER_HOST or choose another context", path.display()))
    };
    let text = std::fs::read_to_string(&path).map_err(|e| unusable(e.to_string()))?;
    let meta: serde_json::Value = serde_json::from_str(&text).map_err(|e| unusable(e.to_string()))?;
    let host = meta.pointer("/Endpoints/docker/Host").and_then(|h| h.as_str()).filter(|h| !h.is_empty());
    let host = host.ok_or_else(|| unusable("it names no docker endpoint".into()))?.to_owned();
    Ok(Some((name, host)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_order_is_given_then_host_then_context_then_default() {
        let dir = tempfile::tempdir().unwrap();
        let mut e = Environment { config_dir: Some(dir.path().to_owned()), ..Environment::default() };
        assert_eq!(resolve(None, &e).unwrap(), Endpoint::Unix("/var/run/docker.sock".into()));
        std::fs::write(dir.path().join("config.json"), r#"{"currentContext":"rootless"}"#).unwrap();
        assert!(resolve(None, &e).unwrap_err().to_string().contains("rootless"), "a context without file is an error, not the default");
        let id: String = Sha256::digest(b"rootless").iter().map(|b| format!("{b:02x}")).collect();
        let meta = dir.path().join("contexts/meta").join(id);
        std::fs::create_dir_all(&meta).unwrap();
        std::fs::write(
            meta.join("meta.json"),
            r#"{"Name":"rootless","Endpoints":{"docker":{"Host":"unix:///run/user/1000/docker.sock"}}}"#,
        )
        .unwrap();
        assert_eq!(resolve(None, &e).unwrap(), Endpoint::Unix("/run/user/1000/docker.sock".into()));
        e.host = Some("tcp://10.0.0.1:2375".into());
        assert_eq!(resolve(None, &e).unwrap(), Endpoint::Tcp("10.0.0.1:2375".into()));
        assert_eq!(resolve(Some("unix:///x.sock"), &e).unwrap().to_string(), "unix:///x.sock");
    }

    #[test]
    fn endpoints_we_do_not_speak_are_refused() {
        let e = Environment::default();
        for bad in ["ssh://host", "unix://relative", "https://h:1", "npipe:////./pipe/x", "", "tcp://", "tcp://u:p@h:1"] {
            assert!(matches!(resolve(Some(bad), &e), Err(EngineError::Refused(_))), "{bad:?}");
        }
        let tls = Environment { tls: true, ..Environment::default() };
        assert!(matches!(resolve(Some("tcp://h:2376"), &tls), Err(EngineError::Refused(_))));
    }
}
