//! The list of SHA-256 that a snapshot holds beside its tree: by `sha256sum` and restic, over several backups, and against what the snapshot itself says.

use super::super::repo::open;
use super::super::source::root_node;
use super::*;
use crate::executor::straight;
use rustic_core::repofile::{Metadata, Node, NodeType};
use rustic_core::{BackupOptions, ReadSource, ReadSourceEntry, ReadSourceOpen, RusticResult, SnapshotOptions};
use std::io::Cursor;

/// The list as restic gives it out.
fn list(lab: &Lab, snapshot: &SnapshotId) -> String {
    lab.restic(&["dump", snapshot.as_str(), "/volumes/shop_data.sha256"])
}

#[test]
fn a_snapshot_holds_a_list_that_sha256sum_checks_what_restic_restored_with() {
    let lab = Lab::new();
    let data = lab.path("data");
    fs::create_dir(&data).unwrap();
    difficult(&data);
    let report = lab.backup(Source::Dir(data.clone()));
    let target = lab.path("by-restic");
    lab.restic(&["restore", report.snapshot_id.as_str(), "--target", target.to_str().unwrap()]);
    let checks = |strict: &[&str]| {
        let mut command = Command::new("sha256sum");
        let out =
            command.args(["--check", "--quiet"]).args(strict).arg("shop_data.sha256").current_dir(target.join("volumes")).output().unwrap();
        (out.status.success(), String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr))
    };
    // What restic makes of a name that is not UTF-8 is its own.
    let text = fs::read(target.join("volumes/shop_data.sha256")).unwrap();
    let ours = text.split_inclusive(|b| *b == b'\n').filter(|l| std::str::from_utf8(l).is_ok());
    let ours: Vec<&[u8]> = ours.collect();
    fs::set_permissions(target.join("volumes/shop_data.sha256"), fs::Permissions::from_mode(0o600)).unwrap();
    fs::write(target.join("volumes/shop_data.sha256"), ours.concat()).unwrap();
    assert_eq!(checks(&["--strict"]), (true, String::new()));
    let files = look(&data).values().filter(|s| s.content.is_some()).count();
    assert_eq!((ours.len(), text.split_inclusive(|b| *b == b'\n').count()), (files - 1, files));
    fs::set_permissions(target.join("volumes/shop_data/deep/er/text"), fs::Permissions::from_mode(0o600)).unwrap();
    fs::write(target.join("volumes/shop_data/deep/er/text"), "other").unwrap();
    assert!(!checks(&[]).0);
}

#[test]
fn a_file_that_was_not_read_again_keeps_its_line_and_one_that_is_gone_loses_it() {
    let lab = Lab::new();
    let data = lab.path("data");
    fs::create_dir(&data).unwrap();
    for (name, text) in [("same", "one"), ("changed", "one"), ("gone", "one")] {
        fs::write(data.join(name), text).unwrap();
    }
    let first = lab.backup(Source::Dir(data.clone()));
    fs::write(data.join("changed"), "other").unwrap();
    fs::remove_file(data.join("gone")).unwrap();
    fs::write(data.join("new"), "one").unwrap();
    let second = lab.backup(Source::Dir(data.clone()));
    let sum = |text: &str| super::super::compare::hex(&<sha2::Sha256 as sha2::Digest>::digest(text));
    let line = |name: &str, text: &str| format!("{}  shop_data/{name}\n", sum(text));
    assert_eq!(list(&lab, &first.snapshot_id), line("changed", "one") + &line("gone", "one") + &line("same", "one"));
    assert_eq!(list(&lab, &second.snapshot_id), line("changed", "other") + &line("new", "one") + &line("same", "one"));
    assert_eq!((second.files, second.bytes), (3, 11), "the list is no file of the volume");
    let verify =
        |snapshot: &SnapshotId| lab.run(Job::Verify { snapshot: snapshot.clone(), against: Source::Dir(data.clone()), path: None });
    assert_eq!(verify(&second.snapshot_id), Ok(Output::Findings(vec![])));
}

#[test]
fn a_snapshot_without_a_list_is_compared_by_its_pieces_and_says_so() {
    let lab = Lab::new();
    let data = lab.path("volumes/shop_data");
    fs::create_dir_all(&data).unwrap();
    fs::write(data.join("x"), "one").unwrap();
    lab.restic(&["backup", "--host", "dockwarden-01test", data.to_str().unwrap()]);
    let Ok(Output::Snapshots(listed)) = lab.run(Job::List) else { panic!() };
    let verify = || {
        let snapshot = listed[0].snapshot_id.clone();
        lab.run(Job::Verify { snapshot, against: Source::Dir(data.clone()), path: None })
    };
    assert_eq!(verify(), Ok(Output::FoundByPieces(vec![])));
    let time = fs::metadata(data.join("x")).unwrap().modified().unwrap();
    fs::write(data.join("x"), "two").unwrap();
    File::open(data.join("x")).unwrap().set_modified(time).unwrap();
    assert_eq!(verify(), Ok(Output::FoundByPieces(vec!["x: other content".into()])));
}

/// Entries as they are given.
struct Given(Vec<(PathBuf, Node, Option<&'static str>)>);

struct Text(&'static str);

impl ReadSourceOpen for Text {
    type Reader = Cursor<&'static str>;
    fn open(self) -> RusticResult<Self::Reader> {
        Ok(Cursor::new(self.0))
    }
}

impl ReadSource for Given {
    type Open = Text;
    type Iter = std::vec::IntoIter<RusticResult<ReadSourceEntry<Text>>>;
    fn size(&self) -> RusticResult<Option<u64>> {
        Ok(None)
    }
    fn entries(&self) -> Self::Iter {
        let entry = |(path, node, text): &(PathBuf, Node, Option<&'static str>)| {
            Ok(ReadSourceEntry { path: path.clone(), node: node.clone(), open: text.map(Text) })
        };
        self.0.iter().map(entry).collect::<Vec<_>>().into_iter()
    }
}

#[test]
fn data_that_equals_the_pieces_of_a_snapshot_but_not_its_list_is_not_what_was_backed_up() {
    let lab = Lab::new();
    let data = lab.path("data");
    fs::create_dir(&data).unwrap();
    fs::write(data.join("x"), "one").unwrap();
    let real = data.canonicalize().unwrap();
    let dir = straight::open(&real).unwrap();
    let node = |name: &str, text: &str| {
        let metadata = Metadata { size: text.len() as u64, ..Metadata::default() };
        Node::new_node(std::ffi::OsStr::new(name), NodeType::File, metadata)
    };
    // What a wrong bit between the reading and the storing would leave.
    let wrong = "7692c3ad3540bb803c020b3aee66cd8887123234ea0c6e7143c0add73ff431ed  shop_data/x\n";
    let given = Given(vec![
        ("/volumes/shop_data".into(), root_node(&dir, &real, "shop_data").unwrap(), None),
        ("/volumes/shop_data/x".into(), node("x", "two"), Some("two")),
        ("/volumes/shop_data.sha256".into(), node("shop_data.sha256", wrong), Some(wrong)),
    ]);
    let sink: ProgressSink = Arc::new(|_| {});
    let opened = open(&lab.request(Job::List), sink).unwrap();
    let repo = opened.repo.to_indexed().unwrap();
    let taken = SnapshotOptions::default().to_snapshot().unwrap();
    let stored = [PathBuf::from("/volumes/shop_data")];
    let snapshot = repo.archive(&BackupOptions::default().no_scan(true), &given, taken, &stored).unwrap();
    drop((repo, opened.lock));
    let snapshot = SnapshotId::new(snapshot.id.to_hex().as_str()).unwrap();
    let content = |text: &str| {
        fs::write(data.join("x"), text).unwrap();
        match lab.run(Job::Verify { snapshot: snapshot.clone(), against: Source::Dir(real.clone()), path: None }) {
            Ok(Output::Findings(found)) => found.into_iter().filter(|f| f.contains("content")).collect::<Vec<_>>(),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(content("two"), ["x: other content than its SHA-256 of when it was backed up"]);
}

/// Every pack of the repository.
fn packs(lab: &Lab) -> Vec<PathBuf> {
    let folders = fs::read_dir(lab.path("repo/data")).unwrap().map(|e| e.unwrap().path());
    let mut all: Vec<PathBuf> = folders.flat_map(|f| fs::read_dir(f).unwrap().map(|e| e.unwrap().path())).collect();
    all.sort();
    all
}

#[test]
fn a_list_that_cannot_be_read_keeps_nothing_from_being_backed_up_and_nothing_from_coming_back() {
    let lab = Lab::new();
    let data = lab.path("data");
    fs::create_dir(&data).unwrap();
    fs::write(data.join("x"), "one").unwrap();
    lab.backup(Source::Dir(data.clone()));
    let before = packs(&lab);
    // Nothing new but a name: what it adds is its trees, and its list.
    fs::write(data.join("empty"), "").unwrap();
    let second = lab.backup(Source::Dir(data.clone())).snapshot_id;
    let against = || Source::Dir(data.clone());
    let verify = |snapshot: &SnapshotId| lab.run(Job::Verify { snapshot: snapshot.clone(), against: against(), path: None });
    assert_eq!(verify(&second), Ok(Output::Findings(vec![])));
    let aside = lab.path("aside");
    let without = |pack: &PathBuf| {
        fs::rename(pack, &aside).unwrap();
        let found = verify(&second);
        if found != Ok(Output::FoundByPieces(vec![])) {
            fs::rename(&aside, pack).unwrap();
            return false;
        }
        true
    };
    assert!(packs(&lab).iter().filter(|p| !before.contains(p)).any(without), "without its list it is compared by its pieces");
    let Ok(Output::Findings(found) | Output::FoundByPieces(found)) = lab.run(Job::Prove { snapshot: second.clone(), against: against() })
    else {
        panic!("it cannot be told whether the snapshot holds the data");
    };
    assert!(found.iter().any(|f| f.contains("the list of sums cannot be read")), "{found:?}");
    fs::write(data.join("empty too"), "").unwrap();
    let third = lab.backup(Source::Dir(data.clone()));
    assert_eq!((third.state, verify(&third.snapshot_id)), (SnapshotState::Complete, Ok(Output::Findings(vec![]))));
}
