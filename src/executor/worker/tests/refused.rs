//! What is refused, and damage: told apart, and nothing that was there is harmed.

use super::*;

#[test]
fn an_archive_cut_short_is_refused_and_nothing_is_stored() {
    let lab = Lab::new();
    fs::create_dir(lab.path("data")).unwrap();
    for name in ["one", "two", "three"] {
        fs::write(lab.path("data").join(name), vec![b'x'; 4096]).unwrap();
    }
    let tar = lab.path("in.tar");
    assert!(Command::new("tar").arg("-C").arg(lab.dir.path()).arg("-cf").arg(&tar).arg("data").status().unwrap().success());
    let whole = fs::read(&tar).unwrap();
    // Between two entries, within a file, within a header, nothing at all.
    for length in [512 + 512 + 4096, 512 + 512 + 100, 700, 0] {
        fs::write(&tar, &whole[..length]).unwrap();
        let job = Job::Backup {
            source: Source::Tar(tar.clone()),
            volume: "v".into(),
            stack: None,
            instance: "i".into(),
            tags: vec![],
            definition: None,
        };
        assert!(matches!(lab.run(job), Err(Failure::Archive { .. })), "{length}");
    }
    assert_eq!(lab.run(Job::List), Ok(Output::Snapshots(vec![])));
}

#[test]
fn a_source_that_holds_the_repository_is_refused_also_by_another_name() {
    let lab = Lab::new();
    symlink(lab.dir.path(), lab.path("alias")).unwrap();
    fs::create_dir(lab.path("repo/inside")).unwrap();
    let backup = |source: PathBuf| {
        let (volume, instance) = ("v".to_owned(), "i".to_owned());
        lab.run(Job::Backup { source: Source::Dir(source), volume, stack: None, instance, tags: vec![], definition: None })
    };
    let alias = backup(lab.path("alias"));
    assert!(matches!(&alias, Err(Failure::Io { detail, .. }) if detail.contains("is a link")), "{alias:?}");
    for source in [lab.dir.path().to_owned(), lab.path("repo"), lab.path("repo/inside")] {
        assert_eq!(
            backup(source.clone()),
            Err(Failure::RepositoryOnSource { repo: lab.path("repo").display().to_string(), source_path: source.display().to_string() })
        );
    }
}

#[test]
fn wrong_and_missing_keys_repositories_and_snapshots_are_told_apart() {
    let lab = Lab::new();
    let repo = lab.path("repo").display().to_string();
    let key_file = lab.path("key").display().to_string();
    let good = fs::read(lab.path("key")).unwrap();
    fs::write(lab.path("key"), "f".repeat(64)).unwrap();
    assert_eq!(lab.run(Job::List), Err(Failure::WrongKey { repo: repo.clone(), key_file: key_file.clone() }));
    assert_eq!(lab.run(Job::Init), Err(Failure::WrongKey { repo, key_file: key_file.clone() }));
    fs::write(lab.path("key"), "short").unwrap();
    assert_eq!(lab.run(Job::List), Err(Failure::Key { key_file, detail: "it must hold 64 hexadecimal digits".into() }));
    fs::write(lab.path("key"), good).unwrap();
    let elsewhere = Request { repo: lab.path("none"), ..lab.request(Job::List) };
    assert_eq!(handle(&elsewhere, Arc::new(|_| {})), Err(Failure::NoRepository { repo: lab.path("none").display().to_string() }));
    fs::create_dir(lab.path("empty")).unwrap();
    for id in ["deadbeef", "latest"] {
        let job = Job::Restore { snapshot: SnapshotId::new(id).unwrap(), into: lab.path("empty"), path: None };
        assert!(matches!(lab.run(job), Err(Failure::UnknownSnapshot { .. })), "{id}");
    }
    let job = Job::Restore { snapshot: SnapshotId::new("deadbeef").unwrap(), into: lab.dir.path().to_owned(), path: None };
    assert_eq!(lab.run(job), Err(Failure::TargetNotEmpty { path: lab.dir.path().display().to_string() }));
}

#[test]
fn damage_in_the_repository_is_found_and_a_restore_from_it_fails_loudly() {
    let lab = Lab::new();
    fs::create_dir(lab.path("data")).unwrap();
    fs::write(lab.path("data/x"), (0u32..300_000).flat_map(|i| i.wrapping_mul(2_654_435_761).to_le_bytes()).collect::<Vec<_>>()).unwrap();
    let report = lab.backup(Source::Dir(lab.path("data")));
    let mut packs: Vec<_> =
        look(&lab.path("repo/data")).into_iter().filter(|(_, s)| s.content.is_some()).map(|(p, s)| (s.size, p)).collect();
    packs.sort();
    let pack = lab.path("repo/data").join(&packs.last().unwrap().1);
    fs::set_permissions(&pack, fs::Permissions::from_mode(0o600)).unwrap();
    File::options().write(true).open(&pack).unwrap().write_at(b"damage", 1000).unwrap();
    let Ok(Output::Checked(found)) = lab.run(Job::Check { read_data: true, part: None }) else { panic!() };
    assert!(!found.wrong.is_empty());
    fs::create_dir(lab.path("into")).unwrap();
    let result = lab.run(Job::Restore { snapshot: report.snapshot_id, into: lab.path("into"), path: None });
    assert!(matches!(result, Err(Failure::Internal { .. } | Failure::Repository { .. })), "{result:?}");
}

#[test]
fn a_full_disk_under_the_repository_fails_the_backup_and_damages_nothing_that_was_there() {
    let lab = Lab::new();
    let data = lab.path("data");
    fs::create_dir(&data).unwrap();
    fs::write(data.join("small"), "x").unwrap();
    let first = lab.backup(Source::Dir(data.clone()));
    // A limit on the size of files stands for the disk that is full in the middle of a pack.
    let noise: Vec<u8> = (0u32..3_000_000).flat_map(|i| i.wrapping_mul(2_654_435_761).rotate_left(i % 31).to_le_bytes()).collect();
    fs::write(data.join("large"), noise).unwrap();
    let request = lab.request(Job::Backup {
        source: Source::Dir(data),
        volume: "shop_data".into(),
        stack: None,
        instance: "01test".into(),
        tags: vec![],
        definition: None,
    });
    let me = std::env::current_exe().unwrap();
    let test = "executor::backup::house::tests::worker_process";
    let script = format!("ulimit -f 1024; trap '' XFSZ; exec {} --exact {test} --ignored --nocapture", me.display());
    let mut child = Command::new("sh")
        .args(["-c", &script])
        .env("DOCKWARDEN_TEST_WORKER", "1")
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    std::io::Write::write_all(&mut stdin, format!("{}\n", serde_json::to_string(&request).unwrap()).as_bytes()).unwrap();
    let mut answer = String::new();
    for line in std::io::BufRead::lines(std::io::BufReader::new(child.stdout.take().unwrap())).map_while(Result::ok) {
        if line.contains("\"failed\"") || line.contains("\"done\"") {
            answer = line;
            break;
        }
    }
    drop(stdin);
    child.wait().unwrap();
    assert!(answer.contains("failed"), "{answer}");
    let Ok(Output::Snapshots(listed)) = lab.run(Job::List) else { panic!() };
    assert_eq!(listed.iter().map(|s| s.snapshot_id.clone()).collect::<Vec<_>>(), [first.snapshot_id], "no snapshot that lies");
    assert!(lab.restic(&["check", "--read-data"]).contains("no errors were found"));
}
