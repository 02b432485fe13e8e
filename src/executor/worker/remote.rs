//! A repository on another host: the backend that the library asks for files, over S3 or SFTP, and the mark that says whose it is. Every request has a time limit
//! and is tried again when that can help; a list that is not whole is an error, since what is missing from it would be pruned. Deliberately absent: how either
//! of the two speaks (`s3`, `sftp`), and what is in the files.

mod s3;
mod sftp;

use super::mark::{Mark, OWNER};
use super::{Failure, Remote, Trouble};
use crate::model::target::Location;
use bytes::Bytes;
use rustic_core::{BytesList, ErrorKind, FileType, Id, ReadBackend, RusticError, RusticResult, WriteBackend};
use std::future::Future;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::Runtime;

/// Pauses before a request is tried again.
const AGAIN: [Duration; 3] = [Duration::from_millis(250), Duration::from_secs(1), Duration::from_secs(3)];

/// Why one request failed.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{detail}")]
pub(super) struct Fault {
    /// Where, for the person who reads it.
    at: String,
    trouble: Trouble,
    detail: String,
    /// It may work a moment later.
    again: bool,
}

impl Fault {
    fn new(trouble: Trouble, again: bool, detail: impl std::fmt::Display) -> Self {
        Self { at: String::new(), trouble, detail: super::repo::one_line(&detail.to_string()), again }
    }

    fn failure(self) -> Failure {
        Failure::Remote { at: self.at, trouble: self.trouble, detail: self.detail }
    }

    /// The one among the causes of an error of the library.
    pub(super) fn of(error: &RusticError) -> Option<Failure> {
        super::repo::cause::<Self>(error).map(|fault| fault.clone().failure())
    }
}

/// Either way to files.
#[derive(Debug)]
enum Files {
    S3(s3::Bucket),
    Sftp(sftp::Link),
}

impl Files {
    /// Path and size of every file below a directory.
    async fn list(&self, dir: &str) -> Result<Vec<(String, u64)>, Fault> {
        match self {
            Self::S3(bucket) => bucket.list(dir).await,
            Self::Sftp(link) => link.list(dir).await,
        }
    }
    /// Size of a file; `None` when it is not there.
    async fn size(&self, path: &str) -> Result<Option<u64>, Fault> {
        match self {
            Self::S3(bucket) => bucket.size(path).await,
            Self::Sftp(link) => link.size(path).await,
        }
    }
    async fn read(&self, path: &str, range: Option<Range<u64>>) -> Result<Bytes, Fault> {
        match self {
            Self::S3(bucket) => bucket.read(path, range).await,
            Self::Sftp(link) => link.read(path, range).await,
        }
    }
    /// Whole or not at all.
    async fn write(&self, path: &str, content: Vec<Bytes>) -> Result<(), Fault> {
        match self {
            Self::S3(bucket) => bucket.write(path, content).await,
            Self::Sftp(link) => link.write(path, content).await,
        }
    }
    async fn remove(&self, path: &str) -> Result<(), Fault> {
        match self {
            Self::S3(bucket) => bucket.remove(path).await,
            Self::Sftp(link) => link.remove(path).await,
        }
    }
}

/// The backend of a repository on another host.
pub(super) struct Backend {
    files: Arc<Files>,
    at: String,
    limit: Duration,
    /// `Some` until it is dropped.
    runtime: Option<Runtime>,
}

impl std::fmt::Debug for Backend {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Backend").field("at", &self.at).finish_non_exhaustive()
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        // Not waited for: whoever drops it may be inside of a runtime itself.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Backend {
    /// Reaches nothing yet.
    pub(super) fn new(remote: &Remote) -> Result<Self, Failure> {
        let at = remote.target.at.to_string();
        let files = match &remote.target.at {
            Location::S3 { endpoint, bucket, prefix } => Files::S3(s3::Bucket::new(&remote.target, endpoint, bucket, prefix)?),
            Location::Sftp { user, host, port, path } => Files::Sftp(sftp::Link::new(&remote.target, user.as_deref(), host, *port, path)),
            Location::Directory(path) => {
                return Err(Failure::Internal { detail: format!("{} is a directory of this host", path.display()) });
            }
        };
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        let runtime = runtime.map_err(|e| Failure::Internal { detail: format!("no runtime: {e}") })?;
        Ok(Self { files: Arc::new(files), at, limit: Duration::from_secs(remote.target.timeout_s), runtime: Some(runtime) })
    }

    /// Waits for a request of any thread, those of the library included; tried again when that can help.
    fn ask<T, F>(&self, what: impl Fn(Arc<Files>) -> F) -> Result<T, Fault>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, Fault>> + Send + 'static,
    {
        let runtime = self.runtime.as_ref().expect("there until it is dropped");
        let mut pauses = AGAIN.iter();
        loop {
            let (tell, told) = std::sync::mpsc::channel();
            let (request, limit) = (what(Arc::clone(&self.files)), self.limit);
            runtime.spawn(async move {
                let slow = || Fault::new(Trouble::Slow, true, format_args!("no answer within {} s", limit.as_secs()));
                let answer = tokio::time::timeout(limit, request).await.unwrap_or_else(|_| Err(slow()));
                // Whoever asked waits below.
                let _ = tell.send(answer);
            });
            let lost = || Fault::new(Trouble::Other, false, "the request ended without an answer");
            match (told.recv().unwrap_or_else(|_| Err(lost())), pauses.next()) {
                (Ok(answer), _) => return Ok(answer),
                (Err(fault), Some(pause)) if fault.again => pause_for(*pause),
                (Err(fault), _) => return Err(Fault { at: self.at.clone(), ..fault }),
            }
        }
    }

    fn told<T>(answer: Result<T, Fault>, guidance: &'static str) -> RusticResult<T> {
        answer.map_err(|fault| RusticError::with_source(ErrorKind::Backend, guidance, fault))
    }

    fn size(&self, path: &str) -> Result<Option<u64>, Fault> {
        let path = path.to_owned();
        self.ask(move |files| {
            let path = path.clone();
            async move { files.size(&path).await }
        })
    }

    fn read(&self, path: String, range: Option<Range<u64>>) -> Result<Bytes, Fault> {
        self.ask(move |files| {
            let (path, range) = (path.clone(), range.clone());
            async move { files.read(&path, range).await }
        })
    }

    fn write(&self, path: String, content: Vec<Bytes>) -> Result<(), Fault> {
        self.ask(move |files| {
            let (path, content) = (path.clone(), content.clone());
            async move { files.write(&path, content).await }
        })
    }

    /// Notes that an instance writes here, and refuses when another one does: the lock is a file of each host, and keeps no other host from pruning what
    /// this one is about to refer to.
    pub(super) fn claim(&self, remote: &Remote) -> Result<(), Failure> {
        let Some(instance) = &remote.owner else { return Ok(()) };
        match self.owner()? {
            Some(owner) if owner.instance == *instance => return Ok(()),
            Some(owner) if remote.target.replaces.as_deref() != Some(owner.instance.as_str()) => {
                return Err(owner.foreign(&self.at));
            }
            Some(_) | None => {}
        }
        let text = serde_json::to_vec(&Mark::of(instance)).map_err(|e| Failure::Internal { detail: e.to_string() })?;
        self.write(OWNER.to_owned(), vec![text.into()]).map_err(Fault::failure)?;
        // Of two that come at once, one finds the other's.
        match self.owner()? {
            Some(owner) if owner.instance == *instance => Ok(()),
            Some(owner) => Err(owner.foreign(&self.at)),
            None => Err(Fault { at: self.at.clone(), ..Fault::new(Trouble::Other, false, "what was written cannot be read") }.failure()),
        }
    }

    /// Removes what lies aside since a connection ended in the middle of a file, once it has lain there for a day.
    pub(super) fn tidy(&self) -> Result<(), Failure> {
        if !matches!(&*self.files, Files::Sftp(_)) {
            return Ok(());
        }
        for dir in ["data/", "index/", "snapshots/", "keys/"] {
            let listed = self.ask(move |files| async move { files.list(dir).await }).map_err(Fault::failure)?;
            for (path, _) in listed.into_iter().filter(|(path, _)| sftp::is_left(path, chrono::Utc::now())) {
                let gone = self.ask(move |files| {
                    let path = path.clone();
                    async move { files.remove(&path).await }
                });
                gone.map_err(Fault::failure)?;
            }
        }
        Ok(())
    }

    fn owner(&self) -> Result<Option<Mark>, Failure> {
        if self.size(OWNER).map_err(Fault::failure)?.is_none() {
            return Ok(None);
        }
        let text = self.read(OWNER.to_owned(), None).map_err(Fault::failure)?;
        let unreadable = |e: serde_json::Error| Failure::Remote {
            at: self.at.clone(),
            trouble: Trouble::Other,
            detail: format!("its file {OWNER} is damaged ({e})"),
        };
        serde_json::from_slice(&text).map(Some).map_err(unreadable)
    }
}

// A process of its own: there is no runtime whose thread this would block.
#[allow(clippy::disallowed_methods)]
fn pause_for(pause: Duration) {
    std::thread::sleep(pause);
}

fn path_of(tpe: FileType, id: &Id) -> String {
    let hex = id.to_hex();
    let hex = hex.as_str();
    match tpe {
        FileType::Config => "config".to_owned(),
        FileType::Pack => format!("data/{}/{hex}", &hex[..2]),
        FileType::Index | FileType::Key | FileType::Snapshot => format!("{}/{hex}", tpe.dirname()),
    }
}

impl ReadBackend for Backend {
    fn location(&self) -> String {
        self.at.clone()
    }

    fn list_with_size(&self, tpe: FileType) -> RusticResult<Vec<(Id, u32)>> {
        let small = |size: u64| u32::try_from(size).unwrap_or(u32::MAX);
        if tpe == FileType::Config {
            let size = Self::told(self.size("config"), "the configuration of the repository cannot be asked for")?;
            return Ok(size.map(|size| (Id::default(), small(size))).into_iter().collect());
        }
        let dir = format!("{}/", tpe.dirname());
        let listed = self.ask(move |files| {
            let dir = dir.clone();
            async move { files.list(&dir).await }
        });
        let named = |(path, size): (String, u64)| Some((Id::parse_some(path.rsplit('/').next()?, tpe)?, small(size)));
        Ok(Self::told(listed, "the files of the repository cannot be listed")?.into_iter().filter_map(named).collect())
    }

    fn read_full(&self, tpe: FileType, id: &Id) -> RusticResult<Bytes> {
        Self::told(self.read(path_of(tpe, id), None), "a file of the repository cannot be read")
    }

    fn read_partial(&self, tpe: FileType, id: &Id, _cacheable: bool, offset: u32, length: u32) -> RusticResult<Bytes> {
        let range = u64::from(offset)..u64::from(offset) + u64::from(length);
        Self::told(self.read(path_of(tpe, id), Some(range)), "a part of a file of the repository cannot be read")
    }

    fn warmup_path(&self, tpe: FileType, id: &Id) -> String {
        path_of(tpe, id)
    }
}

impl WriteBackend for Backend {
    fn write_bytes(&self, tpe: FileType, id: &Id, _cacheable: bool, content: BytesList) -> RusticResult<()> {
        Self::told(self.write(path_of(tpe, id), content.into_vec()), "a file of the repository cannot be written")
    }

    fn remove(&self, tpe: FileType, id: &Id, _cacheable: bool) -> RusticResult<()> {
        let path = path_of(tpe, id);
        let removed = self.ask(move |files| {
            let path = path.clone();
            async move { files.remove(&path).await }
        });
        Self::told(removed, "a file of the repository cannot be removed")
    }
}

#[cfg(test)]
pub(crate) mod tests;
