//! What comes back from a snapshot where it is easily lost: times, files of many pieces, names that share them, one part of much.

use super::*;

fn noise(bytes: usize) -> Vec<u8> {
    let mut noise = vec![0u8; bytes];
    getrandom::fill(&mut noise).unwrap();
    noise
}

fn restored(lab: &Lab, snapshot: &SnapshotId, name: &str, path: Option<&str>) -> PathBuf {
    let into = lab.path(name);
    fs::create_dir(&into).unwrap();
    let job = Job::Restore { snapshot: snapshot.clone(), into: into.clone(), path: path.map(PathBuf::from) };
    assert!(matches!(lab.run(job), Ok(Output::Restored(_))));
    into
}

fn differences(lab: &Lab, snapshot: &SnapshotId, against: Source) -> Vec<String> {
    match lab.run(Job::Verify { snapshot: snapshot.clone(), against, path: None }) {
        Ok(Output::Findings(found)) => found,
        other => panic!("{other:?}"),
    }
}

#[test]
fn pieces_that_many_files_share_and_packs_of_many_files_come_back_in_their_places() {
    let lab = Lab::new();
    let data = lab.path("data");
    fs::create_dir_all(data.join("d")).unwrap();
    let block = noise(5 << 20);
    fs::write(data.join("a"), &block).unwrap();
    fs::write(data.join("b"), [noise(100).as_slice(), &block, &block].concat()).unwrap();
    fs::write(data.join("holes"), [vec![0; 9 << 20], block.clone(), vec![0; 9 << 20]].concat()).unwrap();
    for n in 0..300 {
        fs::write(data.join(format!("d/{n}")), format!("small {n}").repeat(n)).unwrap();
    }
    fs::hard_link(data.join("a"), data.join("d/also-a")).unwrap();
    let id = lab.backup(Source::Dir(data.clone())).snapshot_id;
    let into = restored(&lab, &id, "into", None);
    assert!(look(&into) == look(&data));
    assert_eq!(differences(&lab, &id, Source::Dir(into)), Vec::<String>::new());
    // The second name alone, without the first.
    let one = restored(&lab, &id, "one", Some("d/also-a"));
    assert!(fs::read(one.join("d/also-a")).unwrap() == block);
    assert_eq!(fs::metadata(one.join("d/also-a")).unwrap().nlink(), 1);
}

#[test]
fn attributes_that_the_directory_gives_to_what_is_made_in_it_do_not_stay() {
    let lab = Lab::new();
    let data = lab.path("data");
    fs::create_dir(&data).unwrap();
    fs::write(data.join("x"), "x").unwrap();
    rustix::fs::lsetxattr(&data, "user.of", b"the root", rustix::fs::XattrFlags::empty()).unwrap();
    let id = lab.backup(Source::Dir(data.clone())).snapshot_id;
    let into = lab.path("into");
    fs::create_dir(&into).unwrap();
    rustix::fs::lsetxattr(&into, "user.note", b"of before", rustix::fs::XattrFlags::empty()).unwrap();
    assert!(matches!(lab.run(Job::Restore { snapshot: id.clone(), into: into.clone(), path: None }), Ok(Output::Restored(_))));
    assert_eq!(attributes(&into), [("user.of".to_owned(), b"the root".to_vec())]);
    assert_eq!(differences(&lab, &id, Source::Dir(into)), Vec::<String>::new());
}

#[test]
fn times_before_1970_come_back_from_a_restore_and_from_an_archive() {
    let lab = Lab::new();
    let data = lab.path("data");
    fs::create_dir(&data).unwrap();
    for (name, seconds, nanoseconds) in [("half", -1, 500_000_000), ("whole", -2, 0), ("old", -1_000_000_000, 1), ("new", 5, 250_000_000)] {
        fs::write(data.join(name), name).unwrap();
        let stamp = rustix::fs::Timespec { tv_sec: seconds, tv_nsec: nanoseconds };
        let stamps = rustix::fs::Timestamps { last_access: stamp, last_modification: stamp };
        rustix::fs::utimensat(rustix::fs::CWD, data.join(name), &stamps, rustix::fs::AtFlags::empty()).unwrap();
    }
    let id = lab.backup(Source::Dir(data.clone())).snapshot_id;
    let into = restored(&lab, &id, "into", None);
    assert_eq!(look(&into), look(&data));
    assert_eq!(differences(&lab, &id, Source::Dir(into)), Vec::<String>::new());
    let tar = lab.path("out.tar");
    let job = Job::Export { snapshot: id.clone(), tar: tar.clone(), top: "volume".into(), path: None };
    assert!(matches!(lab.run(job), Ok(Output::Restored(_))));
    assert_eq!(differences(&lab, &id, Source::Tar(tar.clone())), Vec::<String>::new());
    fs::create_dir(lab.path("unpacked")).unwrap();
    assert!(Command::new("tar").arg("-C").arg(lab.path("unpacked")).arg("-xpf").arg(&tar).status().unwrap().success());
    assert_eq!(look(&lab.path("unpacked/volume")), look(&data));
}
