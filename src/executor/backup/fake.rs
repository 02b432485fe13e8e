//! Backup repositories in memory, for tests: they hold what they are given, and go wrong where they are told to. Regular files alone. Deliberately absent: keys,
//! places on other hosts, plain exports.

use super::{BackupError, BackupStore, CheckReport, CopyReport, Failure, Progress, ProgressSink, RestoreReport};
use super::{SnapshotInfo, SnapshotReport, SnapshotState};
use crate::executor::worker::{Job, Output, Request, Source};
use crate::model::ids::SnapshotId;
use async_trait::async_trait;
use chrono::Utc;
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

/// What goes wrong with one piece of work.
#[derive(Debug, Clone)]
pub(crate) enum Fault {
    /// It says that it could not, and has done nothing.
    Says(Failure),
    /// It says something else than what was asked.
    Answers(Output),
    /// It ends without a word before it has done anything.
    Dies,
    /// It ends without a word when it has done everything.
    DiesAfter,
    /// It uses more memory than it may.
    TooLarge,
    /// It never ends.
    Hangs,
    /// Of what it reads something cannot be read.
    Partial,
    /// What it reads out of the repository has a byte that was not put in.
    Differs,
}

/// Something that happens right before a piece of work is done.
type Before = Box<dyn FnOnce(&FakeStore) + Send>;

/// A file of a snapshot, by its path.
type Tree = BTreeMap<PathBuf, Vec<u8>>;

#[derive(Default)]
pub(crate) struct FakeStore {
    world: Mutex<World>,
}

#[derive(Default)]
struct World {
    places: BTreeMap<PathBuf, Vec<Held>>,
    /// In the order in which they were told, each for one piece of work.
    faults: Vec<(&'static str, Fault)>,
    before: Vec<(&'static str, Before)>,
    asked: Vec<String>,
    made: u64,
}

#[derive(Clone)]
struct Held {
    info: SnapshotInfo,
    definition: Option<String>,
    tree: Tree,
}

impl std::fmt::Debug for FakeStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FakeStore").finish_non_exhaustive()
    }
}

impl FakeStore {
    /// The next work of that kind (`backup`, `list`, ... as the protocol calls it) goes wrong.
    pub(crate) fn fail_next(&self, work: &'static str, fault: Fault) {
        self.world.lock().unwrap().faults.push((work, fault));
    }

    /// Something happens right before the next work of that kind.
    pub(crate) fn before_next(&self, work: &'static str, happens: impl FnOnce(&Self) + Send + 'static) {
        self.world.lock().unwrap().before.push((work, Box::new(happens)));
    }

    /// What was asked, in order.
    pub(crate) fn asked(&self) -> Vec<String> {
        self.world.lock().unwrap().asked.clone()
    }

    /// Snapshots at a place, newest first.
    pub(crate) fn ids(&self, place: &Path) -> Vec<String> {
        let world = self.world.lock().unwrap();
        world.places.get(place).into_iter().flatten().rev().map(|h| h.info.snapshot_id.to_string()).collect()
    }

    /// A snapshot vanishes, as when somebody else's restic removes it.
    pub(crate) fn vanish(&self, place: &Path, id: &str) {
        self.world.lock().unwrap().place(place).unwrap().retain(|h| h.info.snapshot_id.as_str() != id);
        mark(place, id, false);
    }
}

#[async_trait]
impl BackupStore for FakeStore {
    async fn ask(&self, request: &Request, _: Option<u64>, progress: ProgressSink) -> Result<Output, BackupError> {
        let job = serde_json::to_value(&request.job).unwrap();
        let word = job["do"].as_str().unwrap();
        let (before, fault) = {
            let mut world = self.world.lock().unwrap();
            world.asked.push(word.to_owned());
            let before = world.before.iter().position(|(w, _)| *w == word).map(|n| world.before.remove(n).1);
            let fault = world.faults.iter().position(|(w, _)| *w == word).map(|n| world.faults.remove(n).1);
            (before, fault)
        };
        if let Some(before) = before {
            before(self);
        }
        let lost = || BackupError::WorkerLost { what: "ended without an answer", detail: "signal: 9 (SIGKILL)".to_owned() };
        match &fault {
            Some(Fault::Says(failure)) => return Err(failure.clone().into()),
            Some(Fault::Answers(output)) => return Ok(output.clone()),
            Some(Fault::Dies) => return Err(lost()),
            Some(Fault::TooLarge) => return Err(BackupError::OutOfMemory { mib: 256 }),
            Some(Fault::Hangs) => std::future::pending().await,
            Some(Fault::DiesAfter | Fault::Partial | Fault::Differs) | None => {}
        }
        progress(Progress { bytes: 0, files: 0 });
        let done = self.world.lock().unwrap().act(request, fault.as_ref())?;
        if matches!(fault, Some(Fault::DiesAfter)) { Err(lost()) } else { Ok(done) }
    }
}

impl World {
    fn place(&mut self, place: &Path) -> Result<&mut Vec<Held>, Failure> {
        self.places.get_mut(place).ok_or_else(|| Failure::NoRepository { repo: place.display().to_string() })
    }

    fn held(&mut self, place: &Path, id: &SnapshotId) -> Result<Held, Failure> {
        let found = self.place(place)?.iter().find(|h| h.info.snapshot_id == *id).cloned();
        found.ok_or_else(|| Failure::UnknownSnapshot { snapshot: id.to_string(), detail: "it is not there".to_owned() })
    }

    /// An id that no other snapshot has.
    fn next_id(&mut self) -> SnapshotId {
        self.made += 1;
        let text: String = Sha256::digest(self.made.to_le_bytes()).iter().map(|b| format!("{b:02x}")).collect();
        SnapshotId::new(text).unwrap()
    }

    fn act(&mut self, request: &Request, fault: Option<&Fault>) -> Result<Output, Failure> {
        let repo = request.repo.as_path();
        let differs = matches!(fault, Some(Fault::Differs));
        Ok(match &request.job {
            Job::Init => {
                if !request.expected.is_empty() && !self.places.contains_key(repo) {
                    return Err(Failure::NotThere { repo: request.place(), known: String::new() });
                }
                self.places.entry(repo.to_owned()).or_default();
                let id = Sha256::digest(repo.to_str().unwrap()).iter().map(|b| format!("{b:02x}")).collect();
                Output::Opened { id }
            }
            Job::Probe => self.place(repo).map(|_| Output::Ready)?,
            Job::Backup { source, volume, stack, instance, tags, definition } => {
                let partial = matches!(fault, Some(Fault::Partial));
                let state = if partial { SnapshotState::Partial } else { SnapshotState::Complete };
                let (tree, snapshot_id) = (read(source)?, self.next_id());
                let (files, bytes) = size(&tree);
                let info = SnapshotInfo {
                    snapshot_id: snapshot_id.clone(),
                    at: Utc::now(),
                    volume: Some(volume.clone()),
                    stack: stack.clone(),
                    state,
                    host: format!("dockwarden-{instance}"),
                    tags: tags.clone(),
                    bytes,
                    files,
                    original: snapshot_id.clone(),
                };
                self.place(repo)?.push(Held { info, definition: definition.clone(), tree });
                mark(repo, snapshot_id.as_str(), true);
                let unreadable = partial.then(|| "locked: Permission denied".to_owned()).into_iter().collect();
                Output::Snapshot(SnapshotReport { snapshot_id, bytes, added: bytes, files, state, unreadable })
            }
            Job::List => Output::Snapshots(self.place(repo)?.iter().rev().map(|h| h.info.clone()).collect()),
            Job::Check { .. } => {
                self.place(repo)?;
                let wrong = differs.then(|| "pack 00 is damaged".to_owned()).into_iter().collect();
                Output::Checked(CheckReport { wrong, strange: vec![] })
            }
            Job::Copy { snapshots, to, .. } => {
                let mut report = CopyReport { snapshots: 0, bytes: 0 };
                for id in snapshots {
                    let mut held = self.held(repo, id)?;
                    if self.place(to)?.iter().any(|h| h.info.original == held.info.original) {
                        continue;
                    }
                    held.info.snapshot_id = self.next_id();
                    (report.snapshots, report.bytes) = (report.snapshots + 1, report.bytes + held.info.bytes);
                    mark(to, held.info.snapshot_id.as_str(), true);
                    self.place(to)?.push(held);
                }
                Output::Copied(report)
            }
            Job::Restore { snapshot, into, path } => {
                let tree = damaged(part(self.held(repo, snapshot)?.tree, path.as_deref()), differs);
                for (name, content) in &tree {
                    let file = into.join(name);
                    std::fs::create_dir_all(file.parent().unwrap()).and_then(|()| std::fs::write(&file, content)).map_err(failed(&file))?;
                }
                let (files, bytes) = size(&tree);
                Output::Restored(RestoreReport { files, bytes })
            }
            Job::Export { snapshot, tar, top, path } => {
                let tree = damaged(part(self.held(repo, snapshot)?.tree, path.as_deref()), differs);
                pack(tar, top, &tree).map_err(failed(tar))?;
                let (files, bytes) = size(&tree);
                Output::Restored(RestoreReport { files, bytes })
            }
            Job::Verify { snapshot, against, path } => {
                Output::Findings(differences(&part(self.held(repo, snapshot)?.tree, path.as_deref()), &damaged(read(against)?, differs)))
            }
            Job::Prove { snapshot, against } => {
                Output::Findings(differences(&self.held(repo, snapshot)?.tree, &damaged(read(against)?, differs)))
            }
            Job::Definition { snapshot } => Output::Definition(self.held(repo, snapshot)?.definition),
            Job::Find { snapshot, path } => {
                if part(self.held(repo, snapshot)?.tree, Some(path)).is_empty() {
                    let (snapshot, path) = (snapshot.to_string(), path.display().to_string());
                    return Err(Failure::NoSuchPath { snapshot, path, near: vec![] });
                }
                Output::Ready
            }
            Job::Forget { snapshots } => {
                let place = self.place(repo)?;
                let before = place.len();
                place.retain(|h| !snapshots.contains(&h.info.snapshot_id));
                snapshots.iter().for_each(|id| mark(repo, id.as_str(), false));
                Output::Forgotten((before - place.len()) as u64)
            }
            Job::Fetch { .. } | Job::Plain { .. } => return Err(Failure::NotBuilt),
        })
    }
}

/// A repository has a file for each of its snapshots, which tells the supervisor whether there are any that it does not know.
fn mark(repo: &Path, id: &str, there: bool) {
    let directory = repo.join("snapshots");
    std::fs::create_dir_all(&directory).unwrap();
    let file = directory.join(id);
    if there {
        std::fs::write(file, "").unwrap();
    } else if file.exists() {
        std::fs::remove_file(file).unwrap();
    }
}

fn size(tree: &Tree) -> (u64, u64) {
    (tree.len() as u64, tree.values().map(|c| c.len() as u64).sum())
}

fn part(mut tree: Tree, path: Option<&Path>) -> Tree {
    tree.retain(|name, _| path.is_none_or(|p| name.starts_with(p)));
    tree
}

fn damaged(mut tree: Tree, damaged: bool) -> Tree {
    if let Some(content) = tree.values_mut().next().filter(|_| damaged) {
        content.push(0);
    }
    tree
}

fn differences(stored: &Tree, found: &Tree) -> Vec<String> {
    let names = stored.keys().chain(found.keys().filter(|n| !stored.contains_key(*n)));
    names.filter(|n| stored.get(*n) != found.get(*n)).map(|n| format!("{}: differs", n.display())).collect()
}

fn failed(path: &Path) -> impl Fn(std::io::Error) -> Failure {
    let path = path.display().to_string();
    move |e| Failure::Io { path: path.clone(), detail: e.to_string() }
}

fn read(source: &Source) -> Result<Tree, Failure> {
    let mut tree = Tree::new();
    match source {
        Source::Dir(dir) => {
            let mut open = VecDeque::from([dir.clone()]);
            while let Some(next) = open.pop_front() {
                for entry in std::fs::read_dir(&next).map_err(failed(&next))? {
                    let path = entry.map_err(failed(&next))?.path();
                    if path.is_dir() {
                        open.push_back(path);
                    } else {
                        let content = std::fs::read(&path).map_err(failed(&path))?;
                        tree.insert(path.strip_prefix(dir).unwrap().to_owned(), content);
                    }
                }
            }
        }
        Source::Tar(file) => {
            let mut archive = tar::Archive::new(File::open(file).map_err(failed(file))?);
            for entry in archive.entries().map_err(failed(file))? {
                let mut entry = entry.map_err(failed(file))?;
                if !entry.header().entry_type().is_file() {
                    continue;
                }
                let path: PathBuf = entry.path().map_err(failed(file))?.components().skip(1).collect();
                let mut content = vec![];
                entry.read_to_end(&mut content).map_err(failed(file))?;
                tree.insert(path, content);
            }
        }
    }
    Ok(tree)
}

fn pack(file: &Path, top: &str, tree: &Tree) -> std::io::Result<()> {
    let mut archive = tar::Builder::new(File::options().write(true).create(true).truncate(true).open(file)?);
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::Directory);
    header.set_mode(0o755);
    header.set_size(0);
    archive.append_data(&mut header, format!("{top}/"), std::io::empty())?;
    for (name, content) in tree {
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o644);
        header.set_size(content.len() as u64);
        archive.append_data(&mut header, Path::new(top).join(name), content.as_slice())?;
    }
    archive.finish()
}
