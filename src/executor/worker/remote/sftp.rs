//! A directory of another host by SFTP, over the host's own `ssh`: its configuration, agents and jump hosts hold for us, too. It runs without a terminal, asks
//! nothing, believes no host that is not known, and ends with us: its input is our pipe. Deliberately absent: tries and time limits.

use super::super::Trouble;
use super::Fault;
use crate::model::target::Target;
use bytes::{Bytes, BytesMut};
use futures_util::{StreamExt, TryStreamExt, stream};
use openssh_sftp_client::error::{Error, SftpErrorKind};
use openssh_sftp_client::{Sftp, SftpOptions};
use std::io::SeekFrom;
use std::ops::Range;
use std::process::Stdio;
use std::sync::{Arc, Mutex as StdMutex, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncSeekExt};
use tokio::process::{Child, Command};
use tokio::sync::Mutex;

/// Directories listed at once.
const AT_ONCE: usize = 16;
/// End of ssh's error output that is kept.
const TAIL: usize = 2000;
/// Longest wait for what ssh says about its end.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// The way to a directory; connected at the first request, and again after a connection was lost.
#[derive(Debug)]
pub(super) struct Link {
    arguments: Vec<String>,
    root: String,
    session: Mutex<Option<Arc<Session>>>,
}

/// One running ssh.
#[derive(Debug)]
struct Session {
    sftp: Sftp,
    // Killed when it is dropped.
    _ssh: Child,
    said: Arc<StdMutex<Vec<u8>>>,
}

impl Link {
    pub(super) fn new(target: &Target, user: Option<&str>, host: &str, port: Option<u16>, path: &str) -> Self {
        let mut arguments: Vec<String> = vec![];
        let mut option = |text: String| arguments.extend(["-o".to_owned(), text]);
        option("BatchMode=yes".to_owned());
        option("StrictHostKeyChecking=yes".to_owned());
        option("ConnectTimeout=15".to_owned());
        option("ServerAliveInterval=15".to_owned());
        option("ClearAllForwardings=yes".to_owned());
        // A master would outlive us.
        option("ControlMaster=no".to_owned());
        option("ControlPath=none".to_owned());
        if let Some(file) = &target.known_hosts {
            option(format!("UserKnownHostsFile={}", file.display()));
        }
        if let Some(file) = &target.identity_file {
            option("IdentitiesOnly=yes".to_owned());
            arguments.extend(["-i".to_owned(), file.display().to_string()]);
        }
        if let Some(port) = port {
            arguments.extend(["-p".to_owned(), port.to_string()]);
        }
        if let Some(user) = user {
            arguments.extend(["-l".to_owned(), user.to_owned()]);
        }
        arguments.extend(["-s".to_owned(), "--".to_owned(), host.to_owned(), "sftp".to_owned()]);
        Self { arguments, root: path.to_owned(), session: Mutex::new(None) }
    }

    async fn session(&self) -> Result<Arc<Session>, Fault> {
        let mut session = self.session.lock().await;
        if let Some(open) = session.as_ref() {
            return Ok(Arc::clone(open));
        }
        let opened = Arc::new(connect(&self.arguments).await?);
        *session = Some(Arc::clone(&opened));
        Ok(opened)
    }

    /// The fault of an error; a connection that is lost is not used again.
    async fn fault(&self, used: &Arc<Session>, e: Error) -> Fault {
        let trouble = match &e {
            Error::SftpError(SftpErrorKind::NoSuchFile, _) => Trouble::Gone,
            Error::SftpError(SftpErrorKind::PermDenied, _) => Trouble::Denied,
            Error::SftpError(..) => Trouble::Other,
            _ => {
                let mut session = self.session.lock().await;
                if session.as_ref().is_some_and(|s| Arc::ptr_eq(s, used)) {
                    *session = None;
                }
                let said = text(&used.said);
                return Fault::new(Trouble::Unreachable, true, format_args!("{e} {said}"));
            }
        };
        Fault::new(trouble, false, e)
    }

    fn place(&self, path: &str) -> String {
        format!("{}/{path}", self.root)
    }

    pub(super) async fn list(&self, dir: &str) -> Result<Vec<(String, u64)>, Fault> {
        let session = self.session().await?;
        let mut found = vec![];
        let mut level = vec![dir.trim_end_matches('/').to_owned()];
        while !level.is_empty() {
            let entries: Vec<_> = stream::iter(level)
                .map(|dir| {
                    let session = Arc::clone(&session);
                    async move { self.entries(&session, dir).await }
                })
                .buffer_unordered(AT_ONCE)
                .try_collect()
                .await?;
            level = vec![];
            for (path, size) in entries.into_iter().flatten() {
                match size {
                    Some(size) => found.push((path, size)),
                    None => level.push(path),
                }
            }
        }
        Ok(found)
    }

    /// What one directory holds: files with their size, directories without. One that is not there holds nothing.
    async fn entries(&self, session: &Arc<Session>, dir: String) -> Result<Vec<(String, Option<u64>)>, Fault> {
        let opened = match session.sftp.fs().open_dir(self.place(&dir)).await {
            Err(Error::SftpError(SftpErrorKind::NoSuchFile, _)) => return Ok(vec![]),
            Err(e) => return Err(self.fault(session, e).await),
            Ok(opened) => opened,
        };
        let mut reading = std::pin::pin!(opened.read_dir());
        let mut entries = vec![];
        while let Some(entry) = reading.next().await {
            let entry = match entry {
                Ok(entry) => entry,
                Err(e) => return Err(self.fault(session, e).await),
            };
            let Some(name) = entry.filename().to_str().filter(|n| !matches!(*n, "." | "..")) else { continue };
            let is_dir = entry.file_type().is_some_and(|t| t.is_dir());
            entries.push((format!("{dir}/{name}"), (!is_dir).then(|| entry.metadata().len().unwrap_or_default())));
        }
        Ok(entries)
    }

    pub(super) async fn size(&self, path: &str) -> Result<Option<u64>, Fault> {
        let session = self.session().await?;
        match session.sftp.fs().metadata(self.place(path)).await {
            Ok(meta) => Ok(Some(meta.len().unwrap_or_default())),
            Err(Error::SftpError(SftpErrorKind::NoSuchFile, _)) => Ok(None),
            Err(e) => Err(self.fault(&session, e).await),
        }
    }

    pub(super) async fn read(&self, path: &str, range: Option<Range<u64>>) -> Result<Bytes, Fault> {
        let session = self.session().await?;
        let done = async {
            let mut file = session.sftp.open(self.place(path)).await?;
            let (from, length) = match range {
                Some(range) => (range.start, range.end - range.start),
                None => (0, file.metadata().await?.len().unwrap_or_default()),
            };
            file.seek(SeekFrom::Start(from)).await?;
            let length = usize::try_from(length)?;
            let bytes = file.read_all(length, BytesMut::with_capacity(length)).await?;
            file.close().await?;
            Ok(bytes.freeze())
        };
        match done.await {
            Ok(bytes) => Ok(bytes),
            Err(e) => Err(self.fault(&session, e).await),
        }
    }

    /// Aside first: a file under its own name is whole, whenever the connection ends.
    pub(super) async fn write(&self, path: &str, content: Vec<Bytes>) -> Result<(), Fault> {
        let session = self.session().await?;
        let aside = format!("{}{ASIDE}{}", self.place(path), ulid::Ulid::generate());
        let done = async {
            let mut file = match session.sftp.create(&aside).await {
                Err(Error::SftpError(SftpErrorKind::NoSuchFile, _)) => {
                    self.directories(&session, path).await?;
                    session.sftp.create(&aside).await?
                }
                other => other?,
            };
            for part in &content {
                file.write_all(part).await?;
            }
            if session.sftp.support_fsync() {
                file.sync_all().await?;
            }
            file.close().await?;
            session.sftp.fs().rename(&aside, self.place(path)).await
        };
        match done.await {
            Ok(()) => Ok(()),
            Err(e) => {
                // What is left is no part of the repository by its name, and goes a day later.
                let _ = session.sftp.fs().remove_file(&aside).await;
                Err(self.fault(&session, e).await)
            }
        }
    }

    /// Makes the directories above a file, from the root of the other host on.
    async fn directories(&self, session: &Session, path: &str) -> Result<(), Error> {
        let whole = self.place(path);
        let mut fs = session.sftp.fs();
        for (at, _) in whole.match_indices('/').skip(1) {
            let made = fs.create_dir(&whole[..at]).await;
            // "Failure" is all that is said of one that is there.
            if let Err(e) = made
                && fs.metadata(&whole[..at]).await.is_err()
            {
                return Err(e);
            }
        }
        Ok(())
    }

    pub(super) async fn remove(&self, path: &str) -> Result<(), Fault> {
        let session = self.session().await?;
        match session.sftp.fs().remove_file(self.place(path)).await {
            Ok(()) | Err(Error::SftpError(SftpErrorKind::NoSuchFile, _)) => Ok(()),
            Err(e) => Err(self.fault(&session, e).await),
        }
    }
}

/// Between the name of a file and that of the try to write it, which begins with its time.
const ASIDE: &str = ".part-";
/// A try that began so long ago is at work no more.
const LEFT: chrono::TimeDelta = chrono::TimeDelta::days(1);

/// Whether a file lies aside and is written by nobody any more. Pure.
pub(super) fn is_left(path: &str, now: chrono::DateTime<chrono::Utc>) -> bool {
    let begun = path.rsplit_once(ASIDE).and_then(|(_, id)| ulid::Ulid::from_string(id).ok());
    let begun = begun.and_then(|id| chrono::DateTime::from_timestamp_millis(i64::try_from(id.timestamp_ms()).ok()?));
    begun.is_some_and(|begun| now - begun >= LEFT)
}

async fn connect(arguments: &[String]) -> Result<Session, Fault> {
    let spawned =
        Command::new("ssh").args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true).spawn();
    let mut ssh = spawned.map_err(|e| Fault::new(Trouble::NoSsh, false, format_args!("ssh: {e}")))?;
    let (stdin, stdout) = (ssh.stdin.take().expect("was piped"), ssh.stdout.take().expect("was piped"));
    let mut stderr = ssh.stderr.take().expect("was piped");
    let said: Arc<StdMutex<Vec<u8>>> = Arc::default();
    let heard = Arc::clone(&said);
    let listening = tokio::spawn(async move {
        let mut chunk = [0u8; 512];
        while let Ok(n @ 1..) = stderr.read(&mut chunk).await {
            let mut kept = heard.lock().unwrap_or_else(PoisonError::into_inner);
            kept.extend_from_slice(&chunk[..n]);
            let surplus = kept.len().saturating_sub(TAIL);
            kept.drain(..surplus);
        }
    });
    match Sftp::new(stdin, stdout, SftpOptions::new()).await {
        Ok(sftp) => Ok(Session { sftp, _ssh: ssh, said }),
        Err(e) => {
            // Its pipe is closed: it ends, and has said why. A few words less are no fault of their own.
            let _ = tokio::time::timeout(LAST_WORDS, listening).await;
            let said = text(&said);
            Err(of_ssh(&said, &e))
        }
    }
}

fn text(said: &StdMutex<Vec<u8>>) -> String {
    String::from_utf8_lossy(&said.lock().unwrap_or_else(PoisonError::into_inner)).trim().to_owned()
}

/// What ssh itself says when there is no connection.
fn of_ssh(said: &str, e: &Error) -> Fault {
    let has = |words: &[&str]| words.iter().any(|w| said.contains(w));
    let trouble = if has(&["Host key verification failed", "host key", "REMOTE HOST IDENTIFICATION"]) {
        Trouble::HostKey
    } else if has(&["Permission denied", "Too many authentication failures", "UNPROTECTED PRIVATE KEY"]) {
        Trouble::Denied
    } else if has(&["subsystem request failed"]) {
        Trouble::Other
    } else {
        Trouble::Unreachable
    };
    let again = trouble == Trouble::Unreachable;
    if said.is_empty() { Fault::new(trouble, again, e) } else { Fault::new(trouble, again, said) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lies_aside_is_left_a_day_after_its_name_says() {
        let id = ulid::Ulid::generate();
        let begun = chrono::DateTime::from_timestamp_millis(i64::try_from(id.timestamp_ms()).unwrap()).unwrap();
        let path = format!("data/aa/aabb.part-{id}");
        assert!(!is_left(&path, begun + chrono::TimeDelta::hours(23)) && is_left(&path, begun + chrono::TimeDelta::hours(24)));
        for other in ["data/aa/aabb", "data/aa/aabb.part-", "data/aa/aabb.part-x"] {
            assert!(!is_left(other, begun + chrono::TimeDelta::days(9)), "{other}");
        }
    }

    #[test]
    fn what_ssh_says_tells_the_trouble() {
        let e = || Error::HandleTooLong;
        for (said, trouble) in [
            ("ssh: connect to host h port 22: Connection refused", Trouble::Unreachable),
            ("ssh: Could not resolve hostname h: Name or service not known", Trouble::Unreachable),
            ("me@h: Permission denied (publickey).", Trouble::Denied),
            (
                "No ED25519 host key is known for h and you have requested strict checking.\r\nHost key verification failed.",
                Trouble::HostKey,
            ),
            ("subsystem request failed on channel 0", Trouble::Other),
            ("", Trouble::Unreachable),
        ] {
            let fault = of_ssh(said, &e());
            assert_eq!((fault.trouble, fault.again), (trouble, trouble == Trouble::Unreachable), "{said}");
        }
    }
}
