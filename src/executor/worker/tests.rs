//! The worker on real files, in this process, with restic itself as the judge.

mod refused;
mod restored;
mod sound;
mod sums;

use super::*;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, chown, symlink};
use std::path::Path;
use std::process::Command;

pub(crate) struct Lab {
    pub(crate) dir: tempfile::TempDir,
}

impl Lab {
    pub(crate) fn new() -> Self {
        let lab = Self { dir: tempfile::tempdir().unwrap() };
        fs::write(lab.path("key"), format!("{}\n", "0123456789abcdef".repeat(4))).unwrap();
        assert!(matches!(lab.run(Job::Init), Ok(Output::Opened { .. })));
        lab
    }
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
    pub(crate) fn request(&self, job: Job) -> Request {
        Request {
            repo: self.path("repo"),
            remote: None,
            key_file: self.path("key"),
            lock_within_s: None,
            expected: vec![],
            known: None,
            claim: None,
            apart: vec![],
            job,
        }
    }
    pub(crate) fn run(&self, job: Job) -> Result<Output, Failure> {
        handle(&self.request(job), Arc::new(|_| {}))
    }
    pub(crate) fn backup(&self, source: Source) -> SnapshotReport {
        match self.run(Job::Backup {
            source,
            volume: "shop_data".into(),
            stack: Some("shop".into()),
            instance: "01test".into(),
            tags: vec!["pre-update".into()],
            definition: Some("what it is part of".into()),
        }) {
            Ok(Output::Snapshot(report)) => report,
            other => panic!("{other:?}"),
        }
    }
    fn restic(&self, args: &[&str]) -> String {
        let out = Command::new("restic")
            .args(["--no-cache", "--repo"])
            .arg(self.path("repo"))
            .arg("--password-file")
            .arg(self.path("key"))
            .args(args)
            .output()
            .expect("restic must be installed for this test");
        let text = String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr);
        assert!(out.status.success(), "restic {args:?}: {text}");
        text
    }
}

/// Everything of a tree that must survive, in one comparable value.
#[derive(Debug, PartialEq)]
struct Seen {
    mode: u32,
    owner: (u32, u32),
    mtime: (i64, i64),
    size: u64,
    target: Option<PathBuf>,
    content: Option<Vec<u8>>,
    names: u64,
    attributes: Vec<(String, Vec<u8>)>,
}

fn look(root: &Path) -> BTreeMap<PathBuf, Seen> {
    let mut seen = BTreeMap::new();
    let mut open = vec![root.to_owned()];
    while let Some(path) = open.pop() {
        let meta = fs::symlink_metadata(&path).unwrap();
        if meta.is_dir() {
            open.extend(fs::read_dir(&path).unwrap().map(|e| e.unwrap().path()));
        }
        let value = Seen {
            mode: meta.mode(),
            owner: (meta.uid(), meta.gid()),
            mtime: (meta.mtime(), meta.mtime_nsec()),
            size: if meta.is_dir() { 0 } else { meta.len() },
            target: meta.is_symlink().then(|| fs::read_link(&path).unwrap()),
            content: meta.is_file().then(|| fs::read(&path).unwrap()),
            names: if meta.is_dir() { 0 } else { meta.nlink() },
            attributes: attributes(&path),
        };
        seen.insert(path.strip_prefix(root).unwrap().to_owned(), value);
    }
    seen
}

/// `cap_net_bind_service=ep` as the kernel stores it.
const CAP: &[u8] = &[1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

/// Extended attributes of a path, each asked for by its name: what the code under test lists would be compared with itself.
fn attributes(path: &Path) -> Vec<(String, Vec<u8>)> {
    let mut value = [0u8; 64];
    let known = ["security.capability", "user.note", "user.of"];
    let read = known.into_iter().filter_map(|name| {
        let n = rustix::fs::lgetxattr(path, name, value.as_mut_slice()).ok()?;
        Some((name.to_owned(), value[..n].to_vec()))
    });
    read.collect()
}

/// A tree with everything that is easily lost.
fn difficult(root: &Path) {
    fs::create_dir_all(root.join("deep/er")).unwrap();
    fs::create_dir(root.join("empty-dir")).unwrap();
    fs::write(root.join("empty-file"), "").unwrap();
    fs::write(root.join("deep/er/text"), "hello\n").unwrap();
    fs::write(root.join("random"), (0u32..700_000).flat_map(|i| i.wrapping_mul(2_654_435_761).to_le_bytes()).collect::<Vec<_>>()).unwrap();
    let sparse = File::create(root.join("sparse")).unwrap();
    sparse.set_len(64 << 20).unwrap();
    sparse.write_at(b"end", (64 << 20) - 3).unwrap();
    symlink("deep/er/text", root.join("link")).unwrap();
    symlink("/no/where", root.join("dangling")).unwrap();
    symlink(std::ffi::OsStr::from_bytes(b"to-\xff"), root.join("odd-link")).unwrap();
    fs::hard_link(root.join("deep/er/text"), root.join("same-text")).unwrap();
    rustix::fs::mkfifoat(rustix::fs::CWD, root.join("pipe"), rustix::fs::Mode::from_raw_mode(0o640)).unwrap();
    fs::write(root.join("n".repeat(255)), "long").unwrap();
    let long = ["p".repeat(200), "q".repeat(200), "r".repeat(200)].iter().fold(root.to_owned(), |p, c| p.join(c));
    fs::create_dir_all(&long).unwrap();
    fs::write(long.join("far"), "down").unwrap();
    fs::write(root.join(std::ffi::OsStr::from_bytes(b"not-utf8-\xfe\xff")), "bytes").unwrap();
    fs::write(root.join("quote\"back\\slash\nline"), "odd").unwrap();
    fs::write(root.join("setuid"), "x").unwrap();
    chown(root.join("setuid"), Some(1234), Some(4321)).unwrap();
    chown(root.join("empty-dir"), Some(999), Some(999)).unwrap();
    std::os::unix::fs::lchown(root.join("dangling"), Some(55), Some(66)).unwrap();
    fs::set_permissions(root.join("setuid"), fs::Permissions::from_mode(0o6755)).unwrap();
    fs::set_permissions(root.join("empty-dir"), fs::Permissions::from_mode(0o1770)).unwrap();
    fs::set_permissions(root.join("deep/er/text"), fs::Permissions::from_mode(0o400)).unwrap();
    let old = std::time::UNIX_EPOCH + std::time::Duration::new(1_000_000_000, 123_456_789);
    File::open(root.join("random")).unwrap().set_modified(old).unwrap();
    for (path, name, value) in [
        ("random", "user.note", b"kept\0\xff".as_slice()),
        ("empty-dir", "user.of", b"a directory"),
        ("setuid", "security.capability", CAP),
    ] {
        rustix::fs::lsetxattr(root.join(path), name, value, rustix::fs::XattrFlags::empty()).unwrap();
    }
    chown(root, Some(999), Some(998)).unwrap();
    fs::set_permissions(root, fs::Permissions::from_mode(0o2750)).unwrap();
    File::open(root).unwrap().set_modified(old).unwrap();
}

#[test]
fn a_difficult_tree_survives_backup_and_restore_by_us_and_by_restic() {
    let lab = Lab::new();
    let data = lab.path("data");
    fs::create_dir(&data).unwrap();
    difficult(&data);
    let before = look(&data);
    let with_attributes = before.values().filter(|s| !s.attributes.is_empty()).count();
    assert_eq!(with_attributes, 3, "the file system of the test keeps attributes");
    let report = lab.backup(Source::Dir(data.clone()));
    let files = before.values().filter(|s| s.mode & 0o170_000 != 0o040_000).count() as u64;
    assert_eq!((report.state, report.unreadable.clone(), report.files), (SnapshotState::Complete, vec![], files));
    assert!(report.bytes > 64 << 20 && report.added < 4 << 20, "{report:?}");

    let into = lab.path("restored");
    fs::create_dir(&into).unwrap();
    let Ok(Output::Restored(restored)) = lab.run(Job::Restore { snapshot: report.snapshot_id.clone(), into: into.clone(), path: None })
    else {
        panic!()
    };
    assert_eq!(restored.files, files);
    assert_eq!(look(&into), before);
    assert!(fs::metadata(into.join("sparse")).unwrap().blocks() * 512 < 16 << 20, "holes stay holes");
    let verify =
        |dir: &Path| lab.run(Job::Verify { snapshot: report.snapshot_id.clone(), against: Source::Dir(dir.to_owned()), path: None });
    assert_eq!(verify(&into), Ok(Output::Findings(vec![])));

    let definition = Job::Definition { snapshot: report.snapshot_id.clone() };
    assert_eq!(lab.run(definition), Ok(Output::Definition(Some("what it is part of".into()))));
    assert!(lab.restic(&["check", "--read-data"]).contains("no errors were found"));
    let by_restic = lab.path("by-restic");
    lab.restic(&["restore", report.snapshot_id.as_str(), "--target", by_restic.to_str().unwrap()]);
    let mut theirs = look(&by_restic.join("volumes/shop_data"));
    let mut ours = before;
    // restic 0.14 reads no raw link targets; what it makes of a name that is not UTF-8 is its own.
    ours.remove(Path::new("odd-link"));
    theirs.remove(Path::new("odd-link"));
    assert_eq!(theirs, ours);
    assert_eq!(lab.run(Job::Check { read_data: true, part: None }), Ok(Output::Checked(CheckReport::default())));
}

#[test]
fn verify_names_every_kind_of_difference() {
    let lab = Lab::new();
    let data = lab.path("data");
    fs::create_dir(&data).unwrap();
    for name in ["content", "gone", "mode", "owner", "grown", "time", "a", "other-kind"] {
        fs::write(data.join(name), "12345").unwrap();
    }
    fs::hard_link(data.join("a"), data.join("b")).unwrap();
    symlink("x", data.join("link")).unwrap();
    let note = |value: &[u8]| rustix::fs::lsetxattr(data.join("noted"), "user.note", value, rustix::fs::XattrFlags::empty()).unwrap();
    fs::write(data.join("noted"), "x").unwrap();
    note(b"one");
    let report = lab.backup(Source::Dir(data.clone()));
    note(b"two");
    let keep = |name: &str| fs::metadata(data.join(name)).unwrap().modified().unwrap();
    let time = keep("content");
    fs::write(data.join("content"), "12346").unwrap();
    File::open(data.join("content")).unwrap().set_modified(time).unwrap();
    fs::remove_file(data.join("gone")).unwrap();
    fs::set_permissions(data.join("mode"), fs::Permissions::from_mode(0o600)).unwrap();
    chown(data.join("owner"), Some(7), Some(8)).unwrap();
    let time = keep("grown");
    fs::write(data.join("grown"), "123456").unwrap();
    File::open(data.join("grown")).unwrap().set_modified(time).unwrap();
    File::open(data.join("time")).unwrap().set_modified(std::time::UNIX_EPOCH).unwrap();
    let time = keep("b");
    fs::remove_file(data.join("b")).unwrap();
    fs::write(data.join("b"), "12345").unwrap();
    File::open(data.join("b")).unwrap().set_modified(time).unwrap();
    fs::remove_file(data.join("other-kind")).unwrap();
    fs::create_dir(data.join("other-kind")).unwrap();
    let link_time = fs::symlink_metadata(data.join("link")).unwrap();
    fs::remove_file(data.join("link")).unwrap();
    symlink("y", data.join("link")).unwrap();
    let stamp = rustix::fs::Timespec { tv_sec: link_time.mtime(), tv_nsec: link_time.mtime_nsec() as _ };
    rustix::fs::utimensat(
        rustix::fs::CWD,
        data.join("link"),
        &rustix::fs::Timestamps { last_access: stamp, last_modification: stamp },
        rustix::fs::AtFlags::SYMLINK_NOFOLLOW,
    )
    .unwrap();
    fs::write(data.join("new"), "").unwrap();
    let Ok(Output::Findings(found)) =
        lab.run(Job::Verify { snapshot: report.snapshot_id.clone(), against: Source::Dir(data.clone()), path: None })
    else {
        panic!()
    };
    let found: Vec<String> = found.into_iter().filter(|f| !f.starts_with(".:")).collect();
    let time = fs::metadata(data.join("mode")).unwrap().permissions().mode() & 0o777;
    assert_eq!(time, 0o600);
    assert_eq!(
        found,
        vec![
            "b: is no longer a hard link of the other names of its file".to_owned(),
            "content: other content".to_owned(),
            "gone: missing".to_owned(),
            "grown: 6 bytes instead of 5".to_owned(),
            "link: link to another target than x".to_owned(),
            "mode: mode 0600 instead of 0644".to_owned(),
            "noted: other extended attributes".to_owned(),
            "other-kind: directory instead of file".to_owned(),
            "owner: owner 7:8 instead of 0:0".to_owned(),
            format!("time: modification time 0 instead of {}", keep("a").duration_since(std::time::UNIX_EPOCH).unwrap().as_secs()),
            format!("new: not in snapshot {}", &report.snapshot_id.as_str()[..8]),
        ]
    );
}

#[test]
fn a_second_backup_adds_only_what_changed_and_both_are_listed_newest_first() {
    let lab = Lab::new();
    let data = lab.path("data");
    fs::create_dir(&data).unwrap();
    fs::write(data.join("big"), (0u32..2_000_000).flat_map(|i| i.wrapping_mul(2_654_435_761).to_le_bytes()).collect::<Vec<_>>()).unwrap();
    let first = lab.backup(Source::Dir(data.clone()));
    fs::write(data.join("small"), "news").unwrap();
    let second = lab.backup(Source::Dir(data.clone()));
    assert!(second.added < 8192 && second.added * 100 < first.added, "{first:?} {second:?}");
    let Ok(Output::Snapshots(listed)) = lab.run(Job::List) else { panic!() };
    let rows: Vec<_> =
        listed.iter().map(|s| (s.snapshot_id.clone(), s.volume.clone(), s.stack.clone(), s.state, s.files, s.host.clone())).collect();
    let row = |r: &SnapshotReport| {
        (
            r.snapshot_id.clone(),
            Some("shop_data".to_owned()),
            Some("shop".to_owned()),
            SnapshotState::Complete,
            r.files,
            "dockwarden-01test".to_owned(),
        )
    };
    assert_eq!(rows, vec![row(&second), row(&first)]);
    assert_eq!(listed[0].tags, vec!["pre-update", "stack=shop", "volume=shop_data"]);
}

#[test]
fn a_tar_stream_becomes_the_same_snapshot_and_leaves_as_a_tar_that_unpacks_to_the_same_tree() {
    let lab = Lab::new();
    let data = lab.path("data");
    fs::create_dir(&data).unwrap();
    difficult(&data);
    let tar = lab.path("in.tar");
    let status = Command::new("tar")
        .args(["--format=posix", "--pax-option=delete=atime,delete=ctime", "--xattrs", "--xattrs-include=*", "-C"])
        .arg(lab.dir.path())
        .arg("-cf")
        .arg(&tar)
        .arg("data")
        .status();
    assert!(status.unwrap().success());
    let report = lab.backup(Source::Tar(tar.clone()));
    assert_eq!((report.state, report.unreadable.clone()), (SnapshotState::Complete, vec![]));
    let verify = |against: Source| lab.run(Job::Verify { snapshot: report.snapshot_id.clone(), against, path: None });
    assert_eq!(verify(Source::Tar(tar)), Ok(Output::Findings(vec![])));
    assert_eq!(verify(Source::Dir(data.clone())), Ok(Output::Findings(vec![])));

    let out = lab.path("out.tar");
    let Ok(Output::Restored(_)) =
        lab.run(Job::Export { snapshot: report.snapshot_id.clone(), tar: out.clone(), top: "volume".into(), path: None })
    else {
        panic!()
    };
    assert_eq!(verify(Source::Tar(out.clone())), Ok(Output::Findings(vec![])));
    fs::create_dir(lab.path("unpacked")).unwrap();
    let unpack = ["--xattrs", "--xattrs-include=*", "-C"];
    assert!(Command::new("tar").args(unpack).arg(lab.path("unpacked")).arg("-xpf").arg(&out).status().unwrap().success());
    assert_eq!(look(&lab.path("unpacked/volume")), look(&data));
    assert!(lab.restic(&["check", "--read-data"]).contains("no errors were found"));
}

#[test]
fn a_repository_that_restic_made_with_our_key_is_opened() {
    let lab = Lab::new();
    fs::remove_dir_all(lab.path("repo")).unwrap();
    lab.restic(&["init"]);
    fs::create_dir(lab.path("data")).unwrap();
    fs::write(lab.path("data/x"), "x").unwrap();
    let report = lab.backup(Source::Dir(lab.path("data")));
    assert!(lab.restic(&["snapshots"]).contains(&report.snapshot_id.as_str()[..8]));
}

#[test]
fn a_file_beyond_four_gibibytes_that_is_mostly_hole_comes_back_as_one() {
    let lab = Lab::new();
    let data = lab.path("data");
    fs::create_dir(&data).unwrap();
    let size = (4u64 << 30) + 12_345;
    let file = File::create(data.join("image")).unwrap();
    file.set_len(size).unwrap();
    file.write_at(b"begin", 0).unwrap();
    file.write_at(b"past the border", (4 << 30) + 7).unwrap();
    drop(file);
    let report = lab.backup(Source::Dir(data.clone()));
    assert_eq!((report.state, report.bytes), (SnapshotState::Complete, size));
    assert!(report.added < 2 << 20, "holes cost next to nothing: {}", report.added);
    let into = lab.path("into");
    fs::create_dir(&into).unwrap();
    assert!(matches!(
        lab.run(Job::Restore { snapshot: report.snapshot_id.clone(), into: into.clone(), path: None }),
        Ok(Output::Restored(_))
    ));
    let back = File::open(into.join("image")).unwrap();
    let meta = back.metadata().unwrap();
    assert!(meta.len() == size && meta.blocks() * 512 < 64 << 20, "{} bytes in {} blocks", meta.len(), meta.blocks());
    let mut tail = [0u8; 15];
    back.read_exact_at(&mut tail, (4 << 30) + 7).unwrap();
    assert_eq!(&tail, b"past the border");
    assert_eq!(lab.run(Job::Verify { snapshot: report.snapshot_id, against: Source::Dir(into), path: None }), Ok(Output::Findings(vec![])));
}

#[test]
fn whoever_reads_is_not_in_the_way_of_opening_and_removing_never_waits_for_them() {
    let lab = Lab::new();
    let reader = File::open(lab.path("repo.lock")).unwrap();
    reader.lock_shared().unwrap();
    let (told, hear) = std::sync::mpsc::channel();
    let request = lab.request(Job::Init);
    std::thread::spawn(move || told.send(handle(&request, Arc::new(|_| {}))).unwrap());
    let opened = hear.recv_timeout(std::time::Duration::from_secs(60)).expect("a repository that is there is opened beside its readers");
    assert!(matches!(opened, Ok(Output::Opened { .. })), "{opened:?}");
    let forget = || lab.run(Job::Forget { snapshots: vec![] });
    assert_eq!(forget(), Err(Failure::InUse { repo: lab.path("repo").display().to_string() }));
    reader.unlock().unwrap();
    assert_eq!(forget(), Ok(Output::Forgotten(0)));
}

#[test]
fn a_part_of_a_snapshot_comes_back_with_the_way_to_it_and_what_is_not_there_is_answered_with_what_is() {
    let lab = Lab::new();
    let data = lab.path("data");
    fs::create_dir_all(data.join("photos/2024/may")).unwrap();
    fs::create_dir_all(data.join("photos/2025")).unwrap();
    for name in ["photos/2024/may/a", "photos/2024/b", "photos/2025/c", "photos-of-ann", "top"] {
        fs::write(data.join(name), name).unwrap();
    }
    let id = lab.backup(Source::Dir(data.clone())).snapshot_id;
    let path = |text: &str| Some(PathBuf::from(text));
    let restore = |name: &str, of: &str| {
        fs::create_dir(lab.path(name)).unwrap();
        let job = Job::Restore { snapshot: id.clone(), into: lab.path(name), path: path(of) };
        lab.run(job)
    };
    let verify = |against: Source, of: &str| lab.run(Job::Verify { snapshot: id.clone(), against, path: path(of) });
    assert_eq!(restore("into", "photos/2024"), Ok(Output::Restored(RestoreReport { files: 2, bytes: 30 })));
    let names: Vec<String> = look(&lab.path("into")).into_keys().map(|k| k.display().to_string()).collect();
    assert_eq!(names, ["", "photos", "photos/2024", "photos/2024/b", "photos/2024/may", "photos/2024/may/a"]);
    assert_eq!(verify(Source::Dir(lab.path("into")), "photos/2024"), Ok(Output::Findings(vec![])));
    // Neither too little nor too much passes.
    let Ok(Output::Findings(found)) = verify(Source::Dir(lab.path("into")), "photos") else { panic!() };
    assert_eq!(found, ["photos/2025: missing", "photos/2025/c: missing"]);
    fs::write(lab.path("into/photos/2024/b"), "photos/2024/X").unwrap();
    let Ok(Output::Findings(found)) = verify(Source::Dir(lab.path("into")), "photos/2024") else { panic!() };
    assert!(found.iter().any(|f| f.starts_with("photos/2024/b:")), "{found:?}");
    // One file, and through an archive.
    assert_eq!(restore("one", "photos/2025/c"), Ok(Output::Restored(RestoreReport { files: 1, bytes: 13 })));
    let tar = lab.path("part.tar");
    let job = Job::Export { snapshot: id.clone(), tar: tar.clone(), top: "volume".into(), path: path("photos/2024/may") };
    assert_eq!(lab.run(job), Ok(Output::Restored(RestoreReport { files: 1, bytes: 17 })));
    assert_eq!(verify(Source::Tar(tar), "photos/2024/may"), Ok(Output::Findings(vec![])));

    let missing = |of: &str| match lab.run(Job::Find { snapshot: id.clone(), path: PathBuf::from(of) }) {
        Err(Failure::NoSuchPath { path, near, .. }) => (path, near),
        other => panic!("{of}: {other:?}"),
    };
    assert_eq!(lab.run(Job::Find { snapshot: id.clone(), path: "photos/2024".into() }), Ok(Output::Ready));
    assert_eq!(missing("photo"), ("photo".into(), vec!["photos".into(), "photos-of-ann".into(), "top".into()]));
    assert_eq!(missing("photos/2023/may"), ("photos/2023/may".into(), vec!["photos/2024".into(), "photos/2025".into()]));
    assert_eq!(missing("top/of/a/file"), ("top/of/a/file".into(), vec![]));
    assert!(matches!(restore("none", "photos/2023"), Err(Failure::NoSuchPath { .. })));
    assert_eq!(look(&lab.path("none")).len(), 1, "nothing was written");
}
