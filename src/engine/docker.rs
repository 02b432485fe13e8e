//! The Docker engine over its HTTP API (1.41 and later), by bollard: the only place besides `engine::swarm` that knows it. Every call
//! has a time limit and every error the engine's own text. Deliberately absent: retries, decisions, TLS and ssh endpoints.

mod body;
mod create;
mod credentials;
mod endpoint;
mod error;
mod made;
mod port;
mod pull;
mod rare;
mod request;
mod show;
mod stream;

use super::{EngineError, EngineResult};
use crate::model::observed::EngineInfo;
use bollard::Docker;
use error::translate;
use std::future::Future;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{Mutex, OnceCell};

/// Limit of calls that only look. An engine that needs longer is not well.
const READ: Duration = Duration::from_secs(15);
/// How long what the engine says of itself is shown again without asking: it takes 20 ms to say its version, and changes it by a restart.
const ABOUT_KEPT: Duration = Duration::from_secs(60);
/// Limit of calls that change something small.
const CHANGE: Duration = Duration::from_secs(60);
/// Limit of a start: image layers on slow disks and network drivers take their time.
const START: Duration = Duration::from_secs(120);
/// Limit of removals and prunes: the engine deletes files meanwhile.
const REMOVE: Duration = Duration::from_secs(300);
/// Limit of archives and imports.
const TRANSFER: Duration = Duration::from_secs(4 * 3600);
/// Limit of a look-up in a registry, credential helper included: a plan waits for it.
const REGISTRY: Duration = Duration::from_secs(5);
/// Longest silence within a stream that should flow.
const SILENCE: Duration = Duration::from_secs(120);
/// bollard's own limit, up to the answer's head; ours above are the ones that count.
const CLIENT_S: u64 = 4 * 3600 + 60;

/// A Docker API version, `1.41` as (1, 41).
type ApiVersion = (u32, u32);
/// Oldest API we speak: Docker 20.10.
const OLDEST: ApiVersion = (1, 41);
/// From here on containers have annotations.
const ANNOTATIONS: ApiVersion = (1, 43);
/// From here on a container can be created with several endpoints and MAC addresses per endpoint.
const MULTI_ENDPOINT: ApiVersion = (1, 44);
/// From here on volumes have sub-paths.
const SUBPATH: ApiVersion = (1, 45);
/// From here on images can be mounted.
const IMAGE_MOUNT: ApiVersion = (1, 48);

/// A connection to a Docker engine. Cheap to clone; connects per request, so it outlives restarts of the engine.
#[derive(Debug, Clone)]
pub struct DockerEngine {
    docker: Docker,
    endpoint: String,
    config_dir: Option<PathBuf>,
    api: Arc<OnceCell<ApiVersion>>,
    about: Arc<Mutex<Option<(Instant, EngineInfo)>>>,
}

impl DockerEngine {
    /// Finds the engine: `endpoint` if given, else `DOCKER_HOST`, else the current context of the Docker client, else
    /// `/var/run/docker.sock`. Accepts `unix://`, `tcp://` and `http://`. Asks the engine nothing yet: `info` does.
    ///
    /// # Errors
    /// `Refused` for an endpoint of another kind, `Unreachable` when its socket does not exist.
    pub fn connect(endpoint: Option<&str>) -> EngineResult<Self> {
        let environment = endpoint::Environment::read();
        let endpoint = endpoint::resolve(endpoint, &environment)?;
        let connected = match &endpoint {
            endpoint::Endpoint::Unix(path) => Docker::connect_with_unix(path, CLIENT_S, bollard::API_DEFAULT_VERSION),
            endpoint::Endpoint::Tcp(address) => Docker::connect_with_http(address, CLIENT_S, bollard::API_DEFAULT_VERSION),
        };
        let text = endpoint.to_string();
        let docker = connected.map_err(|e| translate("connection", &text, e))?.with_request_modifier(request::mend);
        Ok(Self { docker, endpoint: text, config_dir: environment.config_dir, api: Arc::default(), about: Arc::default() })
    }

    /// The endpoint in use, `unix:///var/run/docker.sock`.
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// A call with its limit and its errors translated; `what` is the kind of object a 404 speaks of.
    async fn call<T>(
        &self,
        what: &'static str,
        limit: Duration,
        call: impl Future<Output = Result<T, bollard::errors::Error>>,
    ) -> EngineResult<T> {
        match tokio::time::timeout(limit, call).await {
            Ok(result) => result.map_err(|e| translate(what, &self.endpoint, e)),
            Err(_) => Err(EngineError::Timeout { what: asked(what), after: limit }),
        }
    }

    /// The highest API version the engine speaks, asked for once.
    async fn api(&self) -> EngineResult<ApiVersion> {
        self.api
            .get_or_try_init(|| async { check_version(self.call("version", READ, self.docker.version()).await?.api_version.as_deref()) })
            .await
            .copied()
    }
}

/// How a time-out names a call about a kind of object.
fn asked(what: &'static str) -> &'static str {
    match what {
        "container" => "a call about a container",
        "image" => "a call about an image",
        "network" => "a call about a network",
        "volume" => "a call about a volume",
        "path" => "moving an archive",
        other => other,
    }
}

/// Parses the engine's version and refuses one that is too old.
fn check_version(text: Option<&str>) -> EngineResult<ApiVersion> {
    let text = text.ok_or_else(|| EngineError::Protocol("the engine does not tell its API version".into()))?;
    let parsed = text.split_once('.').and_then(|(major, minor)| Some((major.parse().ok()?, minor.parse().ok()?)));
    let version: ApiVersion = parsed.ok_or_else(|| EngineError::Protocol(format!("API version {text:?}")))?;
    if version < OLDEST {
        return Err(EngineError::Refused(format!(
            "the engine speaks API {text}; dockwarden needs {}.{} (Docker 20.10) or later: update the engine",
            OLDEST.0, OLDEST.1
        )));
    }
    Ok(version)
}

/// The present form of a result where "there is none" is an answer.
fn absent_is_none<T>(result: EngineResult<T>) -> EngineResult<Option<T>> {
    match result {
        Ok(v) => Ok(Some(v)),
        Err(EngineError::NotFound { .. }) => Ok(None),
        Err(e) => Err(e),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::Engine;

    #[tokio::test(start_paused = true)]
    async fn those_who_ask_an_engine_that_hangs_side_by_side_wait_side_by_side() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("engine.sock");
        // Nobody ever accepts.
        let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        let engine = DockerEngine::connect(Some(&format!("unix://{}", socket.display()))).unwrap();
        engine.api.set(OLDEST).unwrap();
        let begun = tokio::time::Instant::now();
        let (a, b, c) = tokio::join!(engine.about(), engine.about(), engine.about());
        assert!([a, b, c].iter().all(Result::is_err));
        assert!(begun.elapsed() < READ * 2, "{:?}", begun.elapsed());
    }

    #[test]
    fn versions_are_ordered_as_numbers_and_old_ones_refused_with_the_way_on() {
        assert_eq!(check_version(Some("1.41")).unwrap(), (1, 41));
        assert!(check_version(Some("1.100")).unwrap() > MULTI_ENDPOINT);
        let error = check_version(Some("1.40")).unwrap_err().to_string();
        let expected =
            "the engine refused it: the engine speaks API 1.40; dockwarden needs 1.41 (Docker 20.10) or later: update the engine";
        assert_eq!(error, expected);
        assert!(matches!(check_version(None), Err(EngineError::Protocol(_))));
        assert!(matches!(check_version(Some("one")), Err(EngineError::Protocol(_))));
    }
}
