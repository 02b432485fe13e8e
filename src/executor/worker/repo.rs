//! Opening and creating the repository: key derivation, the advisory lock, and the backend that holds a snapshot back until its state is
//! known. Deliberately absent: what is read or written.

pub(super) use super::counter::Counter;
use super::{Failure, Job, ProgressSink, Remote, Request};
use crate::executor::backup::room::leaves_a_tenth;
use base64::Engine as _;
use hmac::{Hmac, KeyInit, Mac};
use rustic_backend::BackendOptions;
use rustic_core::repofile::{KeyId, MasterKey};
use rustic_core::{
    BytesList, ConfigOptions, Credentials, ErrorKind, FileType, Id, KeyOptions, OpenStatus, ReadBackend, Repository, RepositoryBackends,
    RepositoryOptions, RusticError, RusticResult, WriteBackend,
};
use sha2::Sha256;
use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Size of a data pack: small, since the library holds several at once while it writes, prunes or checks.
const DATA_PACK: &str = "8 MiB";
/// Size of a tree pack: the smallest that restic itself writes.
const TREE_PACK: &str = "4 MiB";
/// zstd level: restic's own default.
const COMPRESSION: i32 = 3;
/// Between two tries for the lock.
const LOCK_PAUSE: Duration = Duration::from_millis(100);

/// A library error as one line with its causes.
pub(super) fn repository_failure(error: Box<RusticError>) -> Failure {
    #[cfg(feature = "backup-remote")]
    if let Some(failure) = super::remote::Fault::of(&error) {
        return failure;
    }
    if let Some(LastTenth { repo }) = cause(&error) {
        return Failure::NoRoom { repo: repo.clone() };
    }
    Failure::Repository { detail: error_text(&error) }
}

/// The cause of one kind among all those of an error.
pub(super) fn cause<E: std::error::Error + 'static>(error: &RusticError) -> Option<&E> {
    let mut cause = std::error::Error::source(error);
    while let Some(e) = cause {
        if let Some(found) = e.downcast_ref::<E>() {
            return Some(found);
        }
        cause = e.source();
    }
    None
}

/// The library's concise text of an error, causes included.
pub(super) fn error_text(error: &RusticError) -> String {
    one_line(error.display_log().trim_start_matches("Error: "))
}

/// Text of several lines on one.
pub(super) fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// An open repository, its gate for snapshot files, and the lock that lasts as long.
pub(super) struct Opened {
    pub(super) repo: Repository<OpenStatus>,
    pub(super) gate: Arc<SnapshotGate>,
    pub(super) counter: Counter,
    pub(super) lock: File,
}

/// Creates the repository, or opens the one that is there; its id. Where one is expected none is made, and nothing is written before it was found.
pub(super) fn init(request: &Request, sink: ProgressSink) -> Result<String, Failure> {
    let secret = read_key(&request.key_file)?;
    if !request.expected.is_empty() {
        let away = match &request.remote {
            None => !request.repo.join("config").exists(),
            Some(remote) => remote_backend(remote, false)?.list(FileType::Config).map_err(repository_failure)?.is_empty(),
        };
        if away {
            return Err(Failure::NotThere { repo: request.place(), known: request.known() });
        }
    } else if request.remote.is_none() {
        std::fs::create_dir_all(&request.repo).map_err(|e| io(&request.repo, &e))?;
    }
    {
        // As long as somebody reads, only the first start may wait for them.
        let _held = lock(request, Lock::Shared)?;
        let (repo, _gate, _) = unopened(request, sink.clone())?;
        if repo.config_id().map_err(repository_failure)?.is_some() {
            let repo = open_by(repo, request, &secret)?;
            if has_key(&repo)? {
                return expected(&repo, request);
            }
        }
    }
    let _held = lock(request, Lock::Alone)?;
    let (repo, _gate, _) = unopened(request, sink)?;
    let repo = if repo.config_id().map_err(repository_failure)?.is_some() {
        open_by(repo, request, &secret)?
    } else {
        if !request.expected.is_empty() {
            return Err(Failure::NotThere { repo: request.place(), known: request.known() });
        }
        let mut config = ConfigOptions::default().set_compression(COMPRESSION).set_datapack_growfactor(0u32).set_treepack_growfactor(0u32);
        config.set_datapack_size = DATA_PACK.parse().ok();
        config.set_treepack_size = TREE_PACK.parse().ok();
        repo.init(&Credentials::Masterkey(master_key(&secret)), &KeyOptions::default(), &config).map_err(repository_failure)?
    };
    let id = expected(&repo, request)?;
    // A crash between the two leaves a repository that we can open and restic cannot; the next start adds its key.
    if !has_key(&repo)? {
        let options = KeyOptions::default().hostname("dockwarden".to_owned()).username("dockwarden".to_owned()).with_created(true);
        repo.add_key(&secret, &options).map_err(repository_failure)?;
    }
    Ok(id)
}

/// Its id, when it is one of those that may be there.
fn expected(repo: &Repository<OpenStatus>, request: &Request) -> Result<String, Failure> {
    let id = repo.config().id.to_hex().as_str().to_owned();
    if request.expected.is_empty() || request.expected.contains(&id) {
        return Ok(id);
    }
    Err(Failure::OtherRepository { repo: request.place(), id, known: request.known() })
}

fn has_key(repo: &Repository<OpenStatus>) -> Result<bool, Failure> {
    Ok(repo.list::<KeyId>().map_err(repository_failure)?.next().is_some())
}

/// Opens the repository for everything but `init`.
pub(super) fn open(request: &Request, sink: ProgressSink) -> Result<Opened, Failure> {
    open_with(request, sink, Lock::Shared)
}

/// Opens it to add what another repository has; two that did so at once would add it twice.
pub(super) fn open_to_add(request: &Request, sink: ProgressSink) -> Result<Opened, Failure> {
    open_with(request, sink, Lock::Alone)
}

/// Opens it when no other worker is at work, and says `InUse` otherwise: what removes must not meet what reads or adds.
pub(super) fn open_alone(request: &Request, sink: ProgressSink) -> Result<Opened, Failure> {
    open_with(request, sink, Lock::AloneNow)
}

fn open_with(request: &Request, sink: ProgressSink, how: Lock) -> Result<Opened, Failure> {
    let secret = read_key(&request.key_file)?;
    let no_repository = || Failure::NoRepository { repo: request.place() };
    if request.remote.is_none() && !request.repo.is_dir() {
        return Err(no_repository());
    }
    let lock = lock(request, how)?;
    let (repo, gate, counter) = unopened(request, sink)?;
    if repo.config_id().map_err(repository_failure)?.is_none() {
        return Err(no_repository());
    }
    let repo = open_by(repo, request, &secret)?;
    Ok(Opened { repo, gate, counter, lock })
}

/// The master key derived from our key opens the repository without the scrypt step, which costs 135 MB and a third of a second on every
/// run. A repository that restic made with this key as its password is opened the slow way.
fn open_by(repo: Repository<()>, request: &Request, secret: &str) -> Result<Repository<OpenStatus>, Failure> {
    match repo.clone().open(&Credentials::Masterkey(master_key(secret))) {
        Ok(open) => Ok(open),
        Err(fast) => match repo.open(&Credentials::password(secret)) {
            Ok(open) => Ok(open),
            Err(slow) if slow.is_incorrect_password() || fast.is_code("C001") => {
                Err(Failure::WrongKey { repo: request.place(), key_file: request.key_file.display().to_string() })
            }
            Err(slow) => Err(repository_failure(slow)),
        },
    }
}

fn unopened(request: &Request, sink: ProgressSink) -> Result<(Repository<()>, Arc<SnapshotGate>, Counter), Failure> {
    let inner = backend(request)?;
    // What removes must write a little first, and leaves more room than it found.
    let adds = matches!(request.job, Job::Init | Job::Backup { .. });
    let disk = (adds && request.remote.is_none()).then(|| Disk { repo: request.repo.clone(), left: Mutex::new(0) });
    let gate = Arc::new(SnapshotGate { inner, hold: AtomicBool::new(false), written: Mutex::default(), disk, ahead: Mutex::default() });
    let counter = Counter::new(sink);
    let options = RepositoryOptions::default().no_cache(true);
    let backends = RepositoryBackends::new(gate.clone(), None);
    let repo = Repository::new_with_progress(&options, &backends, counter.clone()).map_err(repository_failure)?;
    Ok((repo, gate, counter))
}

/// The files of the repository. Who writes where others may, too, has said so there before.
pub(super) fn backend(request: &Request) -> Result<Arc<dyn WriteBackend>, Failure> {
    if let Some(remote) = &request.remote {
        return remote_backend(remote, request.job.writes());
    }
    if let Some(claim) = request.claim.as_ref().filter(|_| request.job.writes()) {
        super::mark::claim(&request.repo, claim)?;
    }
    let path = request.repo.to_str().ok_or_else(|| Failure::Io {
        path: request.repo.display().to_string(),
        detail: "the path of the repository must be UTF-8".to_owned(),
    })?;
    Ok(BackendOptions::default().repository(path).to_backends().map_err(repository_failure)?.repository())
}

#[cfg(feature = "backup-remote")]
fn remote_backend(remote: &Remote, writes: bool) -> Result<Arc<dyn WriteBackend>, Failure> {
    let backend = super::remote::Backend::new(remote)?;
    if writes {
        backend.claim(remote)?;
    }
    Ok(Arc::new(backend))
}

#[cfg(not(feature = "backup-remote"))]
fn remote_backend(_: &Remote, _: bool) -> Result<Arc<dyn WriteBackend>, Failure> {
    Err(Failure::RemoteNotBuilt)
}

/// Whether there is a repository at all.
pub(super) fn probe(request: &Request) -> Result<(), Failure> {
    if backend(request)?.list(FileType::Config).map_err(repository_failure)?.is_empty() {
        return Err(Failure::NoRepository { repo: request.place() });
    }
    Ok(())
}

/// Reads and checks the key file.
fn read_key(path: &Path) -> Result<String, Failure> {
    let bad = |detail: String| Failure::Key { key_file: path.display().to_string(), detail };
    let text = std::fs::read_to_string(path).map_err(|e| bad(e.to_string()))?;
    let text = text.trim_end();
    if text.len() == 64 && text.bytes().all(|b| b.is_ascii_hexdigit()) {
        Ok(text.to_owned())
    } else {
        Err(bad("it must hold 64 hexadecimal digits".to_owned()))
    }
}

/// The repository's master key, derived from our key so that no second secret has to be kept: HMAC-SHA256 with one label per part.
fn master_key(secret: &str) -> MasterKey {
    let part = |label: &str, len: usize| {
        let mut mac = Hmac::<Sha256>::new_from_slice(secret.as_bytes()).expect("HMAC takes keys of any length");
        mac.update(label.as_bytes());
        mac.finalize().into_bytes()[..len].to_vec()
    };
    let mut r = part("dockwarden backup master key: mac.r", 16);
    // Poly1305's clamp; restic stores r masked and expects it so.
    for i in [3, 7, 11, 15] {
        r[i] &= 0x0f;
    }
    for i in [4, 8, 12] {
        r[i] &= 0xfc;
    }
    let b64 = |bytes: &[u8]| base64::engine::general_purpose::STANDARD.encode(bytes);
    serde_json::from_value(serde_json::json!({
        "mac": {"k": b64(&part("dockwarden backup master key: mac.k", 16)), "r": b64(&r)},
        "encrypt": b64(&part("dockwarden backup master key: encrypt", 32)),
    }))
    .expect("the three parts have the lengths of a master key")
}

/// How the repository is locked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lock {
    /// Beside others that read or add.
    Shared,
    /// Alone, however long the others take.
    Alone,
    /// Alone, or not at all.
    AloneNow,
}

/// Takes the advisory lock beside the repository: exclusive to create and to remove, shared for everything else. Ends with the process.
// A process of its own: there is no runtime whose thread this would block.
#[allow(clippy::disallowed_methods)]
fn lock(request: &Request, how: Lock) -> Result<File, Failure> {
    let mut name = request.repo.as_os_str().to_owned();
    name.push(".lock");
    let path = Path::new(&name);
    if let (Some(_), Some(directory)) = (&request.remote, path.parent()) {
        std::fs::create_dir_all(directory).map_err(|e| io(directory, &e))?;
    }
    let file = File::options().create(true).truncate(false).write(true).open(path).map_err(|e| io(path, &e))?;
    let repo = || request.place();
    let begun = Instant::now();
    loop {
        match if how == Lock::Shared { file.try_lock_shared() } else { file.try_lock() } {
            Ok(()) => return Ok(file),
            Err(TryLockError::Error(e)) => return Err(io(path, &e)),
            Err(TryLockError::WouldBlock) if how == Lock::AloneNow => return Err(Failure::InUse { repo: repo() }),
            Err(TryLockError::WouldBlock) => match request.lock_within_s {
                Some(within) if begun.elapsed().as_secs() >= within => return Err(Failure::Locked { repo: repo(), waited_s: within }),
                _ => std::thread::sleep(LOCK_PAUSE),
            },
        }
    }
}

pub(super) fn io(path: &Path, error: &std::io::Error) -> Failure {
    Failure::Io { path: path.display().to_string(), detail: error.to_string() }
}

/// The disk of a repository that grows.
#[derive(Debug)]
struct Disk {
    repo: PathBuf,
    /// Bytes that may be written before it is looked at again.
    left: Mutex<u64>,
}

/// Nothing more is written: what is left of the disk is for others.
#[derive(Debug, thiserror::Error)]
#[error("the disk of {repo} has come to its last tenth")]
struct LastTenth {
    repo: String,
}

impl Disk {
    /// Bytes written between two looks at the disk.
    const LOOK: u64 = 16 << 20;

    fn room_for(&self, bytes: u64) -> RusticResult<()> {
        let mut left = self.left.lock().unwrap_or_else(PoisonError::into_inner);
        if *left < bytes {
            let failed = |e| RusticError::with_source(ErrorKind::Backend, "the disk of the repository cannot be asked", e);
            let disk = rustix::fs::statvfs(&self.repo).map_err(|e| failed(std::io::Error::from(e)))?;
            let of = |blocks: u64| blocks.saturating_mul(disk.f_frsize);
            let room = |needed| leaves_a_tenth(of(disk.f_bavail), of(disk.f_blocks), needed);
            if !room(bytes) {
                let cause = LastTenth { repo: self.repo.display().to_string() };
                return Err(RusticError::with_source(ErrorKind::Backend, "the last tenth of the disk is left alone", cause));
            }
            // Near the end each pack is looked at.
            *left = Some(Self::LOOK).filter(|look| *look > bytes && room(*look)).unwrap_or(bytes);
        }
        *left -= bytes;
        Ok(())
    }
}

/// A backend that can hold snapshot files back. The library writes the snapshot as its last step, before anyone can know whether all of the
/// data was read; held back, it is written once, by us, with its state in its tags. It also leaves the last tenth of the disk alone, and reads a stretch of a
/// pack at once for somebody who asks for its blobs one by one.
#[derive(Debug)]
pub(super) struct SnapshotGate {
    inner: Arc<dyn WriteBackend>,
    hold: AtomicBool,
    written: Mutex<Vec<Id>>,
    disk: Option<Disk>,
    /// Stretches that were read ahead: pack, offset, bytes.
    ahead: Mutex<Vec<(Id, u32, bytes::Bytes)>>,
}

/// A stretch of a pack that is there until this is dropped.
pub(super) struct Ahead<'a> {
    gate: &'a SnapshotGate,
    what: (Id, u32),
}

impl Drop for Ahead<'_> {
    fn drop(&mut self) {
        let mut ahead = self.gate.ahead.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(n) = ahead.iter().position(|(pack, offset, _)| (*pack, *offset) == self.what) {
            ahead.swap_remove(n);
        }
    }
}

impl SnapshotGate {
    /// Reads a stretch of a pack at once; what lies in it is not asked for again.
    pub(super) fn ahead(&self, pack: Id, offset: u32, length: u32) -> RusticResult<Ahead<'_>> {
        let bytes = self.inner.read_partial(FileType::Pack, &pack, false, offset, length)?;
        self.ahead.lock().unwrap_or_else(PoisonError::into_inner).push((pack, offset, bytes));
        Ok(Ahead { gate: self, what: (pack, offset) })
    }
    fn read_ahead(&self, pack: &Id, offset: u32, length: u32) -> Option<bytes::Bytes> {
        let ahead = self.ahead.lock().unwrap_or_else(PoisonError::into_inner);
        ahead.iter().filter(|(id, ..)| id == pack).find_map(|(_, begin, bytes)| {
            let from = offset.checked_sub(*begin)? as usize;
            let to = from + length as usize;
            (to <= bytes.len()).then(|| bytes.slice(from..to))
        })
    }
    /// From now on snapshot files are dropped (`true`) or written and remembered.
    pub(super) fn hold(&self, hold: bool) {
        self.hold.store(hold, Ordering::SeqCst);
    }
    /// How many snapshots were written.
    pub(super) fn count_written(&self) -> u64 {
        self.written.lock().unwrap_or_else(PoisonError::into_inner).len() as u64
    }
    /// Id of the last snapshot written.
    pub(super) fn last_written(&self) -> Option<Id> {
        self.written.lock().unwrap_or_else(PoisonError::into_inner).last().copied()
    }
}

impl ReadBackend for SnapshotGate {
    fn location(&self) -> String {
        self.inner.location()
    }
    fn list_with_size(&self, tpe: FileType) -> RusticResult<Vec<(Id, u32)>> {
        self.inner.list_with_size(tpe)
    }
    fn list(&self, tpe: FileType) -> RusticResult<Vec<Id>> {
        self.inner.list(tpe)
    }
    fn read_full(&self, tpe: FileType, id: &Id) -> RusticResult<bytes::Bytes> {
        self.inner.read_full(tpe, id)
    }
    fn read_partial(&self, tpe: FileType, id: &Id, cacheable: bool, offset: u32, length: u32) -> RusticResult<bytes::Bytes> {
        match self.read_ahead(id, offset, length).filter(|_| tpe == FileType::Pack) {
            Some(bytes) => Ok(bytes),
            None => self.inner.read_partial(tpe, id, cacheable, offset, length),
        }
    }
    fn warmup_path(&self, tpe: FileType, id: &Id) -> String {
        self.inner.warmup_path(tpe, id)
    }
}

impl WriteBackend for SnapshotGate {
    fn create(&self) -> RusticResult<()> {
        self.inner.create()
    }
    fn write_bytes(&self, tpe: FileType, id: &Id, cacheable: bool, content: BytesList) -> RusticResult<()> {
        if tpe == FileType::Snapshot {
            if self.hold.load(Ordering::SeqCst) {
                return Ok(());
            }
            self.inner.write_bytes(tpe, id, cacheable, content)?;
            self.written.lock().unwrap_or_else(PoisonError::into_inner).push(*id);
            return Ok(());
        }
        if let Some(disk) = self.disk.as_ref().filter(|_| tpe == FileType::Pack) {
            disk.room_for(content.size() as u64)?;
        }
        self.inner.write_bytes(tpe, id, cacheable, content)
    }
    fn remove(&self, tpe: FileType, id: &Id, cacheable: bool) -> RusticResult<()> {
        self.inner.remove(tpe, id, cacheable)
    }
}
