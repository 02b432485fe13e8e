//! Legacy sessions over a restart of the supervisor: what a client said in `initialize` is kept in a file of the home, so that its next request
//! finds its session again. Deliberately absent: who the client is; each request brings its token, and is judged by it alone.

use async_trait::async_trait;
use rmcp::transport::streamable_http_server::session::{SessionState, SessionStore, SessionStoreError};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// A session nobody used for so long is forgotten.
const KEEP: Duration = Duration::from_secs(24 * 3600);
/// Most sessions remembered; the oldest go first.
const MOST: usize = 1_000;

/// Most bytes of a session.
const MAX_STATE: usize = 64 * 1024;

/// One file per session.
#[derive(Debug, Clone)]
pub struct Sessions {
    dir: PathBuf,
}

impl Sessions {
    /// Opens the directory under a home, forgetting what is too old.
    pub fn open(home: &Path) -> Self {
        let sessions = Self { dir: home.join("run/sessions") };
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

    fn forget(&self, now: SystemTime) {
        let Ok(entries) = std::fs::read_dir(&self.dir) else { return };
        let mut found: Vec<(SystemTime, PathBuf)> =
            entries.flatten().filter_map(|e| Some((e.metadata().ok()?.modified().ok()?, e.path()))).collect();
        found.sort();
        let surplus = found.len().saturating_sub(MOST);
        for (n, (at, path)) in found.into_iter().enumerate() {
            let old = now.duration_since(at).is_ok_and(|age| age > KEEP);
            if n < surplus || old {
                removed(&path);
            }
        }
    }
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
            Ok(bytes) => Ok(Some(serde_json::from_slice(&bytes)?)),
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
        tokio::task::spawn_blocking(move || {
            use std::io::Write as _;
            let beside = path.with_extension("new");
            let mut file = std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&beside)?;
            file.write_all(&bytes)?;
            std::fs::rename(&beside, &path)?;
            all.forget(SystemTime::now());
            Ok::<_, std::io::Error>(())
        })
        .await??;
        Ok(())
    }

    async fn delete(&self, id: &str) -> Result<(), SessionStoreError> {
        if let Some(path) = self.path(id) {
            removed(&path);
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
    async fn what_is_too_old_is_forgotten() {
        let home = tempfile::tempdir().expect("directory");
        let sessions = Sessions::open(home.path());
        sessions.store("old", &SessionState::new(InitializeRequestParams::default())).await.expect("kept");
        sessions.forget(SystemTime::now() + KEEP / 2);
        assert!(sessions.load("old").await.expect("read").is_some());
        sessions.forget(SystemTime::now() + KEEP * 2);
        assert!(sessions.load("old").await.expect("read").is_none());
    }
}
