//! Legacy sessions over a restart of the supervisor: what a client said in `initialize`, and what it follows, are kept in files of the home, so that
//! its next request finds its session again, and whose it is. Deliberately absent: what a session may do; each request brings its token, and is judged by it.

use crate::model::ids::AgentName;
use async_trait::async_trait;
use rmcp::transport::streamable_http_server::session::{SessionState, SessionStore, SessionStoreError};
use std::collections::BTreeSet;
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// A session nobody used for so long is forgotten.
const KEEP: Duration = Duration::from_secs(24 * 3600);
/// Most sessions remembered; the oldest go first.
const MOST: usize = 1_000;

/// Extension of the file beside a session's that holds what it follows.
const FOLLOWS: &str = "follows";
/// Most bytes of a session.
const MAX_STATE: usize = 64 * 1024;

/// Extension of the file that holds whose a session is.
const OWNER: &str = "agent";

/// A few files per session.
#[derive(Debug, Clone)]
pub struct Sessions {
    dir: PathBuf,
    /// One writes at a time: of two writes of one file the later must stand.
    writing: Arc<tokio::sync::Mutex<()>>,
}

impl Sessions {
    /// Opens the directory under a home, forgetting what is too old.
    pub fn open(home: &Path) -> Self {
        let sessions = Self { dir: home.join("run/sessions"), writing: Arc::default() };
        if let Err(e) = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&sessions.dir) {
            tracing::warn!(dir = %sessions.dir.display(), error = %e, "sessions will not outlive this supervisor");
        }
        sessions.forget(SystemTime::now());
        sessions
    }

    /// The file of a session; an id comes from the client, so only the form we give out is one.
    fn path(&self, id: &str) -> Option<PathBuf> {
        let ours = (1..=64).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
        ours.then(|| self.dir.join(format!("{id}.json")))
    }

    /// Does file work off the threads that serve, one piece after the other.
    async fn alone<T: Send + 'static>(&self, work: impl FnOnce() -> std::io::Result<T> + Send + 'static) -> std::io::Result<T> {
        let _one = self.writing.lock().await;
        tokio::task::spawn_blocking(work).await?
    }

    /// Keeps what a session follows by the time it is its turn.
    pub async fn follow(&self, id: &str, uris: impl FnOnce() -> BTreeSet<String> + Send + 'static) {
        let Some(path) = self.path(id).map(|p| p.with_extension(FOLLOWS)) else { return };
        let kept = self.alone(move || {
            let bytes = serde_json::to_vec(&uris()).unwrap_or_default();
            if bytes.len() > MAX_STATE {
                return Err(std::io::Error::other(format!("more than {MAX_STATE} bytes")));
            }
            written(&path, &bytes)
        });
        if let Err(e) = kept.await {
            tracing::warn!(error = %e, "what a session follows will be forgotten when the supervisor restarts");
        }
    }

    /// Keeps whose a session is.
    pub async fn belongs(&self, id: &str, agent: &AgentName) {
        let Some(path) = self.path(id).map(|p| p.with_extension(OWNER)) else { return };
        let agent = agent.to_string();
        if let Err(e) = self.alone(move || written(&path, agent.as_bytes())).await {
            tracing::warn!(error = %e, "whose a session is will be forgotten when the supervisor restarts: then its client makes a new one");
        }
    }

    /// Whose a session is, when that is known.
    pub async fn owner(&self, id: &str) -> Option<AgentName> {
        let path = self.path(id)?.with_extension(OWNER);
        match tokio::fs::read_to_string(&path).await {
            Ok(name) => AgentName::new(name).ok(),
            Err(e) => {
                if e.kind() != std::io::ErrorKind::NotFound {
                    tracing::warn!(path = %path.display(), error = %e, "whose a session is could not be read");
                }
                None
            }
        }
    }

    /// Whether a session is kept.
    pub async fn has(&self, id: &str) -> bool {
        match self.path(id) {
            // What cannot be looked at may be there.
            Some(path) => tokio::fs::try_exists(&path).await.unwrap_or(true),
            None => false,
        }
    }

    /// What a session followed; nothing when nothing was kept.
    pub async fn followed(&self, id: &str) -> BTreeSet<String> {
        let Some(path) = self.path(id).map(|p| p.with_extension(FOLLOWS)) else { return BTreeSet::new() };
        match tokio::fs::read(&path).await {
            Ok(bytes) => serde_json::from_slice(&bytes).unwrap_or_else(|e| {
                tracing::warn!(path = %path.display(), error = %e, "what a session followed could not be read");
                BTreeSet::new()
            }),
            Err(e) => {
                if e.kind() != std::io::ErrorKind::NotFound {
                    tracing::warn!(path = %path.display(), error = %e, "what a session followed could not be read");
                }
                BTreeSet::new()
            }
        }
    }

    /// A session was used: it is kept from now on, not from its beginning.
    pub async fn used(&self, id: &str) {
        let Some(path) = self.path(id) else { return };
        let shown = path.display().to_string();
        let touched = self.alone(move || std::fs::File::open(&path).and_then(|file| file.set_modified(SystemTime::now())));
        match touched.await {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                tracing::warn!(path = shown, error = %e, "a session may be forgotten while it is used")
            }
            _ => {}
        }
    }

    fn forget(&self, now: SystemTime) {
        let Ok(entries) = std::fs::read_dir(&self.dir) else { return };
        let (mut found, mut beside) = (vec![], vec![]);
        for entry in entries.flatten() {
            let (Ok(at), path) = (entry.metadata().and_then(|m| m.modified()), entry.path()) else { continue };
            match path.extension().is_some_and(|x| x == "json") {
                true => found.push((at, path)),
                false => beside.push((at, path)),
            }
        }
        found.sort();
        let old = |at: &SystemTime| now.duration_since(*at).is_ok_and(|age| age > KEEP);
        let surplus = found.len().saturating_sub(MOST);
        for (n, (at, path)) in found.into_iter().enumerate() {
            if n < surplus || old(&at) {
                of(&path).iter().for_each(|path| removed(path));
            }
        }
        // What is left of a write or of a session that is gone; one that is being made has its file in a moment.
        for (_, path) in beside.iter().filter(|(at, path)| old(at) && !path.with_extension("json").exists()) {
            removed(path);
        }
    }
}

/// All files of a session, by its first.
fn of(path: &Path) -> [PathBuf; 3] {
    [path.to_owned(), path.with_extension(FOLLOWS), path.with_extension(OWNER)]
}

/// Writes beside and renames: a reader never sees half a file.
fn written(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    let beside = PathBuf::from(name);
    let mut file = std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&beside)?;
    file.write_all(bytes)?;
    std::fs::rename(&beside, path)
}

fn removed(path: &Path) {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            tracing::warn!(path = %path.display(), error = %e, "a session was not forgotten")
        }
        _ => {}
    }
}

#[async_trait]
impl SessionStore for Sessions {
    async fn load(&self, id: &str) -> Result<Option<SessionState>, SessionStoreError> {
        let Some(path) = self.path(id) else { return Ok(None) };
        match tokio::fs::read(&path).await {
            Ok(bytes) => {
                let state = serde_json::from_slice(&bytes)?;
                self.used(id).await;
                Ok(Some(state))
            }
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e.into()),
        }
    }

    async fn store(&self, id: &str, state: &SessionState) -> Result<(), SessionStoreError> {
        let Some(path) = self.path(id) else { return Err("not a session id of ours".into()) };
        let bytes = serde_json::to_vec(state)?;
        if bytes.len() > MAX_STATE {
            return Err(format!("a session of {} bytes is not kept, at most {MAX_STATE} are", bytes.len()).into());
        }
        let all = self.clone();
        self.alone(move || {
            written(&path, &bytes)?;
            all.forget(SystemTime::now());
            Ok(())
        })
        .await?;
        Ok(())
    }

    async fn delete(&self, id: &str) -> Result<(), SessionStoreError> {
        if let Some(path) = self.path(id) {
            self.alone(move || {
                of(&path).iter().for_each(|path| removed(path));
                Ok(())
            })
            .await?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rmcp::model::InitializeRequestParams;

    #[tokio::test]
    async fn a_session_is_found_again_until_it_is_ended() {
        let home = tempfile::tempdir().expect("directory");
        let state = SessionState::new(InitializeRequestParams::default());
        Sessions::open(home.path()).store("a-1", &state).await.expect("kept");
        let next = Sessions::open(home.path());
        let found = next.load("a-1").await.expect("read").expect("there");
        assert_eq!(found.initialize_params, state.initialize_params);
        next.delete("a-1").await.expect("ended");
        assert!(next.load("a-1").await.expect("read").is_none());
    }

    #[tokio::test]
    async fn sessions_are_bounded_in_number_and_size() {
        let home = tempfile::tempdir().expect("directory");
        let sessions = Sessions::open(home.path());
        for n in 0..MOST {
            std::fs::write(home.path().join(format!("run/sessions/old-{n}.json")), "{}").expect("written");
        }
        sessions.store("new", &SessionState::new(InitializeRequestParams::default())).await.expect("kept");
        assert_eq!(std::fs::read_dir(home.path().join("run/sessions")).expect("there").count(), MOST);
        assert!(sessions.load("new").await.expect("read").is_some(), "the oldest went");
        let mut long = InitializeRequestParams::default();
        long.client_info.name = "x".repeat(MAX_STATE);
        assert!(sessions.store("long", &SessionState::new(long)).await.is_err());
    }

    #[tokio::test]
    async fn an_id_that_is_a_path_finds_nothing() {
        let home = tempfile::tempdir().expect("directory");
        let sessions = Sessions::open(home.path());
        std::fs::write(home.path().join("run/x.json"), "{}").expect("written");
        for id in ["../x", "", "a/b", &"a".repeat(65)] {
            assert!(sessions.load(id).await.expect("no error").is_none(), "{id}");
            assert!(sessions.store(id, &SessionState::new(InitializeRequestParams::default())).await.is_err());
        }
    }

    #[tokio::test]
    async fn a_session_in_use_is_kept_and_what_it_follows_goes_with_it() {
        let home = tempfile::tempdir().expect("directory");
        let sessions = Sessions::open(home.path());
        let of = |id: &str| home.path().join(format!("run/sessions/{id}.json"));
        for id in ["used", "left"] {
            sessions.store(id, &SessionState::new(InitializeRequestParams::default())).await.expect("kept");
            sessions.follow(id, || BTreeSet::from(["dockwarden://stacks".to_owned()])).await;
        }
        let long_ago = SystemTime::now() - KEEP * 2;
        for id in ["used", "left"] {
            std::fs::File::open(of(id)).and_then(|f| f.set_modified(long_ago)).expect("touched");
        }
        sessions.used("used").await;
        sessions.forget(SystemTime::now());
        assert!(of("used").exists() && !of("left").exists());
        assert_eq!((sessions.followed("used").await.len(), sessions.followed("left").await.len()), (1, 0));
        sessions.delete("used").await.expect("ended");
        assert_eq!(sessions.followed("used").await.len(), 0);
        sessions.used("never").await;
    }

    #[tokio::test]
    async fn what_is_too_old_is_forgotten() {
        let home = tempfile::tempdir().expect("directory");
        let sessions = Sessions::open(home.path());
        sessions.store("old", &SessionState::new(InitializeRequestParams::default())).await.expect("kept");
        sessions.forget(SystemTime::now() + KEEP / 2);
        assert!(sessions.load("old").await.expect("read").is_some());
        sessions.forget(SystemTime::now() + KEEP * 2);
        assert!(sessions.load("old").await.expect("read").is_none());
    }

    #[tokio::test]
    async fn what_is_beside_a_session_goes_with_it_and_what_is_beside_none_goes_by_its_age() {
        let home = tempfile::tempdir().expect("directory");
        let sessions = Sessions::open(home.path());
        let agent = AgentName::new("observer").expect("valid");
        sessions.store("a", &SessionState::new(InitializeRequestParams::default())).await.expect("kept");
        sessions.belongs("a", &agent).await;
        assert_eq!((sessions.owner("a").await, sessions.has("a").await), (Some(agent), true));
        assert_eq!((sessions.owner("b").await, sessions.has("b").await), (None, false));
        sessions.delete("a").await.expect("ended");
        for name in ["b.follows", "b.follows.new", "b.agent"] {
            std::fs::write(home.path().join("run/sessions").join(name), "").expect("written");
        }
        let left = || std::fs::read_dir(home.path().join("run/sessions")).expect("there").count();
        sessions.forget(SystemTime::now());
        assert_eq!(left(), 3, "they may be a session's that is being made");
        sessions.forget(SystemTime::now() + KEEP * 2);
        assert_eq!(left(), 0);
    }
}
