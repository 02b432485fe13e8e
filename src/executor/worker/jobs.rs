//! The jobs themselves, one function each, on an opened repository. Deliberately absent: the protocol and the process around them.

use super::compare::Against;
use super::repo::{Opened, init, io, one_line, open, open_alone, probe, repository_failure};
use super::restore::Restore;
use super::source::{Places, ReadLog, Watched, root_node};
use super::sums::{Listed, Sums};
use super::tarball::{TarIndex, TarSource, TarWriter};
use super::walk::Walk;
use super::{
    CheckReport, Failure, Job, Output, PlainReport, ProgressSink, Request, RestoreReport, SnapshotInfo, SnapshotReport, SnapshotState,
    Source, compare, copy, left, part,
};
use crate::executor::straight;
use crate::model::ids::SnapshotId;
use chrono::DateTime;
use rustic_core::repofile::{Node, SnapshotFile};
use rustic_core::{
    BackupOptions, CheckOptions, CheckResults, IndexedFull, LsOptions, PruneOptions, ReadSource, ReadSubsetOption, Repository,
    SnapshotOptions,
};
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Path under which volumes appear in snapshots: the same whatever the host path, so that a snapshot finds its predecessor.
const VOLUMES: &str = "/volumes";
/// Path above that of a directory of the host.
const DIRECTORIES: &str = "/directories";
/// zstd level of a plain export: its own default.
const PLAIN_LEVEL: i32 = 3;
/// Tag of a snapshot that lacks something.
const PARTIAL: &str = "partial";

pub(super) fn run(request: &Request, sink: ProgressSink) -> Result<Output, Failure> {
    match &request.job {
        Job::Init => init(request, sink).map(|id| Output::Opened { id }),
        Job::Probe => probe(request).map(|()| Output::Ready),
        Job::Copy { snapshots, to, remote, claim, key_file } => {
            let (lock_within_s, job) = (request.lock_within_s, Job::Init);
            let (repo, remote, key_file, claim) = (to.clone(), remote.clone(), key_file.clone(), claim.clone());
            let to = Request { repo, remote, key_file, lock_within_s, expected: vec![], known: None, claim, apart: vec![], job };
            copy::copy(request, &to, snapshots, sink).map(Output::Copied)
        }
        Job::Fetch { into } => copy::fetch(request, into, sink).map(Output::Fetched),
        Job::Backup { source, volume, stack, instance, tags, definition } => {
            let opened = match source {
                Source::Dir(path) => {
                    let dir = directory(path)?;
                    // A copy of which nothing is there yet, or whose disk is away, lies on nothing.
                    let own = request.remote.is_none().then_some(&request.repo);
                    for repo in own.into_iter().chain(request.apart.iter().filter(|copy| copy.is_dir())) {
                        refuse_own_repository(repo, path, &dir)?;
                    }
                    Some(dir)
                }
                Source::Tar(_) => None,
            };
            let mut options = SnapshotOptions::default().host(format!("dockwarden-{instance}")).command("dockwarden backup".to_owned());
            let own = [Some(format!("volume={volume}")), stack.as_ref().map(|s| format!("stack={s}"))];
            for tag in own.into_iter().flatten().chain(tags.iter().cloned()) {
                options = options.add_tags(&tag).map_err(repository_failure)?;
            }
            // restic keeps no such field and passes over it.
            options.description.clone_from(definition);
            backup(open(request, sink)?, source, opened, volume, &options).map(Output::Snapshot)
        }
        Job::List => list(&open(request, sink)?).map(Output::Snapshots),
        Job::Check { read_data, part } => check(&open(request, sink)?, *read_data, *part).map(Output::Checked),
        Job::Plain { snapshot, file, top } => plain(|| open(request, sink.clone()), snapshot, file, top).map(Output::Plain),
        Job::Restore { snapshot, into, path } => restore(open(request, sink)?, snapshot, into, path.as_deref()).map(Output::Restored),
        Job::Export { snapshot, tar, top, path } => export(open(request, sink)?, snapshot, tar, top, path.as_deref()).map(Output::Restored),
        Job::Definition { snapshot } => Ok(Output::Definition(find(&open(request, sink)?, snapshot)?.description)),
        Job::Find { snapshot, path } => {
            let opened = open(request, sink)?;
            let found = find(&opened, snapshot)?;
            let (opened, root) = root_of(opened, &found)?;
            let repo = opened.repo.to_indexed().map_err(repository_failure)?;
            part::holds(&repo, snapshot, &root, path).map(|()| Output::Ready)
        }
        Job::Forget { snapshots } => forget(&open_alone(request, sink)?, request, snapshots).map(Output::Forgotten),
        Job::Verify { snapshot, against, path } => {
            let opened = open(request, sink)?;
            let found = find(&opened, snapshot)?;
            let (opened, root) = root_of(opened, &found)?;
            compare::verify(opened, &found, &root, against, Against { only: path.as_deref(), read: false }).map(compared)
        }
        Job::Prove { snapshot, against } => {
            let opened = open(request, sink)?;
            let found = find(&opened, snapshot)?;
            let (opened, root) = root_of(opened, &found)?;
            compare::verify(opened, &found, &root, against, Against { only: None, read: true }).map(compared)
        }
    }
}

fn compared((found, listed): (Vec<String>, bool)) -> Output {
    if listed { Output::Findings(found) } else { Output::FoundByPieces(found) }
}

/// Opens a directory that is read or written: no link on the way to it is followed.
pub(super) fn directory(path: &Path) -> Result<File, Failure> {
    straight::open(path).map_err(|e| io(path, &e.into()))
}

/// A repository on the data it backs up would grow by its own content with every run. Compared by identity as well as by path: a bind
/// mount shows the same directory under another name.
fn refuse_own_repository(repo: &Path, source: &Path, dir: &File) -> Result<(), Failure> {
    let refuse = || Failure::RepositoryOnSource { repo: repo.display().to_string(), source_path: source.display().to_string() };
    let real_repo = repo.canonicalize().map_err(|e| io(repo, &e))?;
    let real_source = straight::through(dir).canonicalize().map_err(|e| io(source, &e))?;
    let identity = |path: &Path| std::fs::metadata(path).map(|m| (m.dev(), m.ino())).map_err(|e| io(path, &e));
    let source_identity = dir.metadata().map(|m| (m.dev(), m.ino())).map_err(|e| io(source, &e))?;
    for above in real_repo.ancestors() {
        if above == real_source || identity(above)? == source_identity {
            return Err(refuse());
        }
    }
    if real_source.starts_with(&real_repo) { Err(refuse()) } else { Ok(()) }
}

/// Path of a source in its snapshots: a volume by its name, a directory of the host by its path.
fn stored_as(source: &str) -> PathBuf {
    match source.strip_prefix('/') {
        Some(below) => Path::new(DIRECTORIES).join(below),
        None => Path::new(VOLUMES).join(source),
    }
}

fn backup(opened: Opened, source: &Source, dir: Option<File>, volume: &str, options: &SnapshotOptions) -> Result<SnapshotReport, Failure> {
    let log = Arc::new(ReadLog::default());
    let stored = stored_as(volume);
    let name = stored.file_name().and_then(|n| n.to_str()).unwrap_or(volume);
    match source {
        Source::Dir(path) => {
            let dir = Arc::new(dir.map_or_else(|| directory(path), Ok)?);
            let root = root_node(&dir, path, name)?;
            let walk = Walk { root: path.clone(), dir, log: log.clone() };
            archive(opened, walk, Places { root: path.clone(), stored }, root, log, options, false)
        }
        Source::Tar(path) => {
            let index = TarIndex::read(path)?;
            let root = index.root_node(name);
            let base = PathBuf::from("/archive");
            // An archive says neither inode nor change time, and the engine's times are whole seconds: size and time alone do not show that a file is the same.
            archive(opened, TarSource { index, root: base.clone() }, Places { root: base, stored }, root, log, options, true)
        }
    }
}

fn archive<R>(
    opened: Opened,
    source: R,
    places: Places,
    root: Node,
    log: Arc<ReadLog>,
    options: &SnapshotOptions,
    reread: bool,
) -> Result<SnapshotReport, Failure>
where
    R: ReadSource + 'static,
    R::Open: Send,
    R::Iter: Send,
{
    let Opened { repo, gate, counter, lock: _held } = opened;
    let repo = repo.to_indexed().map_err(repository_failure)?;
    let mut backup_options = BackupOptions::default().no_scan(true);
    // The root of the tree and what lies above the source's path are the library's own directories.
    let above = places.stored.components().count() as u64 - 1;
    let snapshot = options.to_snapshot().map_err(repository_failure)?;
    let before = if reread { None } else { parent(&repo, &snapshot, &places.stored)? };
    // What is taken over unread must have a sum to take over: otherwise all is read once, and what is there already is not stored again.
    backup_options.parent_opts.force = before.is_none();
    backup_options.parent_opts.parents = before.iter().map(|(id, _)| id.clone()).collect();
    let sums = Sums::new(places.stored.file_name().unwrap_or_default(), before.map(|(_, listed)| listed));
    let watched = Watched::new(source, places.clone(), root, log.clone(), counter, sums.clone());
    gate.hold(true);
    let mut snapshot =
        repo.archive(&backup_options, &watched, snapshot, std::slice::from_ref(&places.stored)).map_err(repository_failure)?;
    gate.hold(false);
    log.root(&places.root);
    let mut summary = snapshot.summary.take().unwrap_or_default();
    // The list is no file of the source.
    summary.total_files_processed = summary.total_files_processed.saturating_sub(1);
    summary.total_bytes_processed = summary.total_bytes_processed.saturating_sub(sums.size());
    snapshot.summary = Some(summary.clone());
    let (state, unreadable) = log.verdict(summary.total_files_processed, summary.total_dirs_processed.saturating_sub(above));
    if state == SnapshotState::Partial {
        snapshot.tags.add(PARTIAL.to_owned());
    }
    repo.save_snapshots(vec![snapshot]).map_err(repository_failure)?;
    let id = gate.last_written().ok_or_else(|| Failure::Internal { detail: "the snapshot was not written".to_owned() })?;
    Ok(SnapshotReport {
        snapshot_id: snapshot_id(id.to_hex().as_str())?,
        bytes: summary.total_bytes_processed,
        added: summary.data_added_packed,
        files: summary.total_files_processed,
        state,
        unreadable,
    })
}

/// The snapshot before of the same source, when it has a list of sums: its id, and the list.
fn parent<S: IndexedFull>(repo: &Repository<S>, snapshot: &SnapshotFile, stored: &Path) -> Result<Option<(String, Listed)>, Failure> {
    let all = repo.get_all_snapshots().map_err(repository_failure)?;
    // What the library itself holds for the same source.
    let same = |s: &&SnapshotFile| {
        (&s.hostname, &s.label) == (&snapshot.hostname, &snapshot.label) && s.paths.iter().map(Path::new).eq(std::iter::once(stored))
    };
    let Some(latest) = all.iter().filter(same).max_by_key(|s| s.time.timestamp()) else { return Ok(None) };
    match Listed::of(repo, latest) {
        Ok(found) => Ok(found.map(|listed| (latest.id.to_hex().as_str().to_owned(), listed))),
        // Without it all is read, as after a snapshot that has none: damage to what came before keeps no data from being backed up.
        Err(e) => {
            eprintln!("the SHA-256 list of snapshot {} cannot be read, so all is read again: {e}", latest.id.to_hex().as_str());
            Ok(None)
        }
    }
}

fn snapshot_id(hex: &str) -> Result<SnapshotId, Failure> {
    SnapshotId::new(hex).map_err(|e| Failure::Internal { detail: e.to_string() })
}

fn list(opened: &Opened) -> Result<Vec<SnapshotInfo>, Failure> {
    let mut snapshots = opened.repo.get_all_snapshots().map_err(repository_failure)?;
    snapshots.sort_by(|a, b| b.time.timestamp().cmp(&a.time.timestamp()).then_with(|| a.id.cmp(&b.id)));
    snapshots.iter().map(info).collect()
}

fn info(snapshot: &SnapshotFile) -> Result<SnapshotInfo, Failure> {
    let tags: Vec<String> = snapshot.tags.iter().cloned().collect();
    let tagged = |key: &str| tags.iter().find_map(|t| t.strip_prefix(key)).map(str::to_owned);
    let at = snapshot.time.timestamp();
    let summary = snapshot.summary.clone().unwrap_or_default();
    Ok(SnapshotInfo {
        snapshot_id: snapshot_id(snapshot.id.to_hex().as_str())?,
        at: DateTime::from_timestamp(at.as_second(), u32::try_from(at.subsec_nanosecond()).unwrap_or(0)).unwrap_or_default(),
        volume: tagged("volume="),
        stack: tagged("stack="),
        state: if tags.iter().any(|t| t == PARTIAL) { SnapshotState::Partial } else { SnapshotState::Complete },
        host: snapshot.hostname.clone(),
        bytes: summary.total_bytes_processed,
        files: summary.total_files_processed,
        original: snapshot_id(snapshot.original.unwrap_or(snapshot.id).to_hex().as_str())?,
        tags,
    })
}

/// Errors, and apart from them what is strange and harms nothing: packs that no index names yet are of a backup at work or of one that was killed.
fn check(opened: &Opened, read_data: bool, part: Option<(u32, u32)>) -> Result<CheckReport, Failure> {
    let mut options = CheckOptions::default().read_data(read_data || part.is_some());
    if let Some(part) = part {
        options.read_data_subset = ReadSubsetOption::IdSubSet(part);
    }
    let results = opened.repo.check(options).map_err(repository_failure)?;
    let mut report = CheckReport::default();
    for one in results.0 {
        // The library does not export its two levels; it does tell whether a list of results holds an error.
        let one = CheckResults(vec![one]);
        let wrong = one.is_ok().is_err();
        for text in one.0.iter().map(|(_, error)| one_line(&error.to_string())) {
            if wrong {
                report.wrong.push(text);
            } else {
                // What it advises would make a part of the repository out of what is to go.
                report.strange.push(text.split(" To repair:").next().unwrap_or(&text).to_owned());
            }
        }
    }
    Ok(report)
}

/// Removes snapshots and prunes, when nobody else is at work: it does not wait, since whoever waits for the repository may hold containers still. Pruning has two phases a day apart: what nothing refers to any more is marked now and removed by a later run, so that a restic
/// that writes beside us loses nothing.
fn forget(opened: &Opened, request: &Request, ids: &[SnapshotId]) -> Result<u64, Failure> {
    let wanted: std::collections::BTreeSet<&str> = ids.iter().map(SnapshotId::as_str).collect();
    let there = opened.repo.get_all_snapshots().map_err(repository_failure)?;
    let gone: Vec<_> = there.iter().filter(|s| wanted.contains(s.id.to_hex().as_str())).map(|s| s.id).collect();
    if !gone.is_empty() {
        opened.repo.delete_snapshots(&gone).map_err(repository_failure)?;
    }
    let options = PruneOptions::default();
    let plan = opened.repo.prune_plan(&options).map_err(repository_failure)?;
    opened.repo.prune(&options, plan).map_err(repository_failure)?;
    left::see_to(opened, request)?;
    #[cfg(feature = "backup-remote")]
    if let Some(remote) = &request.remote {
        // The snapshots are gone by then: what lies aside is looked for the next time.
        if let Err(e) = super::remote::Backend::new(remote).and_then(|far| far.tidy()) {
            eprintln!("what interrupted transfers left at the repository was not removed: {e}");
        }
    }
    Ok(gone.len() as u64)
}

pub(super) fn find(opened: &Opened, id: &SnapshotId) -> Result<SnapshotFile, Failure> {
    let unknown = |detail: String| Failure::UnknownSnapshot { snapshot: id.to_string(), detail };
    if !id.as_str().bytes().all(|b| b.is_ascii_hexdigit()) {
        return Err(unknown("an id is hexadecimal".to_owned()));
    }
    let mut found = opened.repo.get_snapshots(&[id.as_str()]).map_err(|e| unknown(one_line(&e.display_log())))?;
    found.pop().ok_or_else(|| unknown("the repository does not hold it".to_owned()))
}

/// The directory that is the root of a volume in a snapshot.
fn root_of(opened: Opened, snapshot: &SnapshotFile) -> Result<(Opened, Node), Failure> {
    let path = snapshot.paths.iter().next().cloned().unwrap_or_default();
    let Opened { repo, gate, counter, lock } = opened;
    let repo = repo.to_indexed().map_err(repository_failure)?;
    let root = repo.node_from_snapshot_and_path(snapshot, &path).map_err(repository_failure)?;
    Ok((Opened { repo: repo.drop_index(), gate, counter, lock }, root))
}

fn restore(opened: Opened, id: &SnapshotId, into: &Path, path: Option<&Path>) -> Result<RestoreReport, Failure> {
    let dir = directory(into)?;
    let mut there = vec![];
    straight::names(&dir, &mut there).map_err(|e| io(into, &e.into()))?;
    if !there.is_empty() {
        return Err(Failure::TargetNotEmpty { path: into.display().to_string() });
    }
    let snapshot = find(&opened, id)?;
    let (opened, root) = root_of(opened, &snapshot)?;
    let repo = opened.repo.to_indexed().map_err(repository_failure)?;
    if let Some(path) = path {
        part::holds(&repo, id, &root, path)?;
    }
    // The directory that was opened, whatever its name leads to by now.
    let base = straight::through(&dir);
    Restore { repo: &repo, gate: &opened.gate, counter: &opened.counter, base, into, only: path }.run(&root)
}

fn export(opened: Opened, id: &SnapshotId, tar: &Path, top: &str, path: Option<&Path>) -> Result<RestoreReport, Failure> {
    let snapshot = find(&opened, id)?;
    let (opened, root) = root_of(opened, &snapshot)?;
    let Opened { repo, counter, lock: _held, .. } = opened;
    let repo = repo.to_indexed().map_err(repository_failure)?;
    if let Some(path) = path {
        part::holds(&repo, id, &root, path)?;
    }
    let file = File::options().write(true).create_new(true).open(tar).map_err(|e| io(tar, &e))?;
    let mut writer = TarWriter::new(file, top);
    let mut report = RestoreReport { files: 0, bytes: 0 };
    let nodes = repo.ls(&root, &LsOptions::default()).map_err(repository_failure)?;
    for item in std::iter::once(Ok((PathBuf::new(), root.clone()))).chain(nodes) {
        let (name, node) = item.map_err(repository_failure)?;
        if !part::belongs(path, &name) {
            continue;
        }
        let mut size = 0;
        for chunk in node.content.iter().flatten() {
            size += u64::from(repo.get_index_entry(chunk).map_err(repository_failure)?.data_length());
        }
        let dump =
            |mut out: &mut dyn std::io::Write| repo.dump(&node, &mut out).map_err(|e| std::io::Error::other(one_line(&e.display_log())));
        writer.add(&name, &node, size, dump).map_err(|e| io(tar, &e))?;
        if !node.is_dir() {
            report.files += 1;
            report.bytes += size;
            counter.add(size, 1);
        }
    }
    writer.finish().map_err(|e| io(tar, &e))?;
    Ok(report)
}

/// The snapshot as a tar file, compared with the snapshot, then compressed: what is named at the end is whole or not there.
fn plain(open: impl Fn() -> Result<Opened, Failure>, id: &SnapshotId, file: &Path, top: &str) -> Result<PlainReport, Failure> {
    let tar = file.with_extension("part");
    let (packed, digest) = (file.with_extension("new"), file.with_extension("zst.sha256"));
    let whole = (|| {
        let report = export(open()?, id, &tar, top, None)?;
        let opened = open()?;
        let snapshot = find(&opened, id)?;
        let (opened, root) = root_of(opened, &snapshot)?;
        let differences = compare::verify(opened, &snapshot, &root, &Source::Tar(tar.clone()), Against { only: None, read: false })?;
        if let Some(first) = differences.0.first() {
            return Err(Failure::Archive { path: file.display().to_string(), detail: format!("it differs from the snapshot: {first}") });
        }
        let (size, sha256) = compress(&tar, &packed).map_err(|e| io(&packed, &e))?;
        let name = file.file_name().and_then(|n| n.to_str()).unwrap_or_default();
        std::fs::write(&digest, format!("{sha256}  {name}\n")).map_err(|e| io(&digest, &e))?;
        std::fs::rename(&packed, file).map_err(|e| io(file, &e))?;
        Ok(PlainReport { files: report.files, bytes: report.bytes, size, sha256 })
    })();
    for aside in [&tar, &packed].into_iter().chain(whole.is_err().then_some(&digest)) {
        match std::fs::remove_file(aside) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound && whole.is_ok() => return Err(io(aside, &e)),
            _ => {}
        }
    }
    whole
}

/// Writes to a file and hashes what it writes.
struct Hashed {
    file: File,
    hash: sha2::Sha256,
    size: u64,
}

impl std::io::Write for Hashed {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let n = self.file.write(bytes)?;
        sha2::Digest::update(&mut self.hash, &bytes[..n]);
        self.size += n as u64;
        Ok(n)
    }
    fn flush(&mut self) -> std::io::Result<()> {
        self.file.flush()
    }
}

fn compress(tar: &Path, packed: &Path) -> std::io::Result<(u64, String)> {
    use std::os::unix::fs::OpenOptionsExt;
    let file = File::options().write(true).create_new(true).mode(0o600).open(packed)?;
    let mut encoder = zstd::Encoder::new(Hashed { file, hash: sha2::Digest::new(), size: 0 }, PLAIN_LEVEL)?;
    std::io::copy(&mut File::open(tar)?, &mut encoder)?;
    let Hashed { file, hash, size } = encoder.finish()?;
    file.sync_all()?;
    let digest = sha2::Digest::finalize(hash);
    Ok((size, digest.iter().map(|b| format!("{b:02x}")).collect()))
}

#[cfg(test)]
mod tests {
    use super::super::tests::Lab;
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn neither_a_backup_nor_a_restore_nor_a_comparison_goes_through_a_link_on_the_way() {
        let lab = Lab::new();
        let real = lab.dir.path().canonicalize().unwrap();
        let run = |job: Job| super::super::handle(&lab.request(job), Arc::new(|_| {}));
        let at = |path: &str| real.join(path);
        for dir in ["shop/data/sub", "host/sub", "host/empty"] {
            std::fs::create_dir_all(at(dir)).unwrap();
        }
        std::fs::write(at("shop/data/sub/x"), "mine").unwrap();
        std::fs::write(at("host/sub/x"), "of the host").unwrap();
        let backup = |source: PathBuf| {
            let (volume, instance) = ("shop_data".to_owned(), "i".to_owned());
            run(Job::Backup { source: Source::Dir(source), volume, stack: None, instance, tags: vec![], definition: None })
        };
        let Ok(Output::Snapshot(taken)) = backup(at("shop/data")) else { panic!() };
        std::fs::rename(at("shop/data"), at("shop/old")).unwrap();
        symlink(at("host"), at("shop/data")).unwrap();
        let snapshot = taken.snapshot_id;
        let jobs = [
            backup(at("shop/data")),
            backup(at("shop/data/sub")),
            run(Job::Restore { snapshot: snapshot.clone(), into: at("shop/data/empty"), path: None }),
            run(Job::Verify { snapshot: snapshot.clone(), against: Source::Dir(at("shop/data")), path: None }),
        ];
        for refused in jobs {
            assert!(matches!(&refused, Err(Failure::Io { detail, .. }) if detail.contains("is a link")), "{refused:?}");
        }
        assert_eq!(std::fs::read_dir(at("host/empty")).unwrap().count(), 0);
        let Ok(Output::Snapshots(listed)) = run(Job::List) else { panic!() };
        assert_eq!(listed.len(), 1);
        // A directory below that became a link is a difference, and what it leads to is not read.
        std::fs::rename(at("shop/old/sub"), at("shop/old/moved")).unwrap();
        symlink(at("host/sub"), at("shop/old/sub")).unwrap();
        let Ok(Output::Findings(found)) = run(Job::Verify { snapshot, against: Source::Dir(at("shop/old")), path: None }) else { panic!() };
        assert!(found.iter().any(|f| f.starts_with("sub: ") && f.contains("instead of")), "{found:?}");
        assert!(found.contains(&"sub/x: missing".to_owned()), "{found:?}");
    }
}
