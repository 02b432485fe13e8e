//! What must hold of a repository however it is used: nothing old passes for new, none is made where one was, the disk is not filled, and what harms nothing is
//! not called damage.

use super::*;
use chrono::{DateTime, Utc};
use sha2::Digest;

fn archived(lab: &Lab, content: &str) -> Source {
    let _ = fs::remove_dir_all(lab.path("in"));
    fs::create_dir_all(lab.path("in/data")).unwrap();
    fs::write(lab.path("in/data/page"), content).unwrap();
    let tar = lab.path(&format!("{content}.tar"));
    let times = ["--mtime=@1000000000", "-C"];
    assert!(Command::new("tar").args(times).arg(lab.path("in")).arg("-cf").arg(&tar).arg("data").status().unwrap().success());
    Source::Tar(tar)
}

#[test]
fn a_file_of_an_archive_with_the_size_and_time_it_had_is_read_again() {
    let lab = Lab::new();
    let (before, after) = (archived(&lab, "one"), archived(&lab, "two"));
    lab.backup(before.clone());
    let id = lab.backup(after.clone()).snapshot_id;
    let verify = |against: Source| lab.run(Job::Verify { snapshot: id.clone(), against, path: None });
    assert_eq!(verify(after), Ok(Output::Findings(vec![])));
    assert_eq!(verify(before), Ok(Output::Findings(vec!["page: other content".into()])));
}

#[test]
fn a_repository_that_was_there_is_never_made_anew() {
    let lab = Lab::new();
    let Ok(Output::Opened { id }) = lab.run(Job::Init) else { panic!() };
    let known = Request { expected: vec!["another".into(), id.clone()], known: Some(lab.path("known")), ..lab.request(Job::Init) };
    let init = |request: &Request| handle(request, Arc::new(|_| {}));
    assert_eq!(init(&known), Ok(Output::Opened { id: id.clone() }));
    fs::rename(lab.path("repo"), lab.path("unmounted")).unwrap();
    let (repo, file) = (lab.path("repo").display().to_string(), lab.path("known").display().to_string());
    let gone = Err(Failure::NotThere { repo: repo.clone(), known: file.clone() });
    assert_eq!(init(&known), gone);
    assert!(!lab.path("repo").exists());
    // The place a disk is mounted on is there without it.
    fs::create_dir(lab.path("repo")).unwrap();
    assert_eq!(init(&known), gone);
    assert_eq!(fs::read_dir(lab.path("repo")).unwrap().count(), 0);
    // Another disk, whose repository our key opens.
    let Ok(Output::Opened { id: other }) = lab.run(Job::Init) else { panic!() };
    assert_ne!(other, id);
    assert_eq!(init(&known), Err(Failure::OtherRepository { repo, id: other, known: file }));
}

#[test]
fn what_a_killed_backup_left_is_strange_and_no_damage() {
    let lab = Lab::new();
    fs::create_dir(lab.path("data")).unwrap();
    fs::write(lab.path("data/x"), "x").unwrap();
    lab.backup(Source::Dir(lab.path("data")));
    let noise = b"a pack that no index names";
    let name: String = sha2::Sha256::digest(noise).iter().map(|b| format!("{b:02x}")).collect();
    fs::create_dir_all(lab.path("repo/data").join(&name[..2])).unwrap();
    fs::write(lab.path("repo/data").join(&name[..2]).join(&name), noise).unwrap();
    let check = || match lab.run(Job::Check { read_data: true, part: None }) {
        Ok(Output::Checked(report)) => report,
        other => panic!("{other:?}"),
    };
    let report = check();
    assert!(report.wrong.is_empty() && report.strange.len() == 1 && report.strange[0].contains(&name[..8]), "{report:?}");
    // Pruning takes note of it, and removes it when it is as it was a day later.
    assert_eq!(lab.run(Job::Forget { snapshots: vec![] }), Ok(Output::Forgotten(0)));
    assert_eq!(check().strange.len(), 1);
    let note = lab.path("repo.left");
    let noted: BTreeMap<String, DateTime<Utc>> = serde_json::from_slice(&fs::read(&note).unwrap()).unwrap();
    assert_eq!(noted.keys().collect::<Vec<_>>(), [&name]);
    let earlier: BTreeMap<&String, DateTime<Utc>> = noted.iter().map(|(k, t)| (k, *t - chrono::TimeDelta::hours(24))).collect();
    fs::write(&note, serde_json::to_vec(&earlier).unwrap()).unwrap();
    assert_eq!(lab.run(Job::Forget { snapshots: vec![] }), Ok(Output::Forgotten(0)));
    assert_eq!(check(), CheckReport::default());
    assert!(!lab.path("repo/data").join(&name[..2]).join(&name).exists());
    assert!(lab.restic(&["check", "--read-data"]).contains("no errors were found"));
}

#[test]
fn a_copy_may_not_lie_on_what_is_read_either() {
    let lab = Lab::new();
    fs::create_dir_all(lab.path("data/copy")).unwrap();
    let (volume, instance) = ("v".to_owned(), "i".to_owned());
    let job = Job::Backup { source: Source::Dir(lab.path("data")), volume, stack: None, instance, tags: vec![], definition: None };
    let request = Request { apart: vec![lab.path("not-there-yet"), lab.path("data/copy")], ..lab.request(job) };
    let refused = handle(&request, Arc::new(|_| {}));
    assert!(matches!(&refused, Err(Failure::RepositoryOnSource { repo, .. }) if repo.ends_with("data/copy")), "{refused:?}");
    let elsewhere = Request { apart: vec![lab.path("not-there-yet")], ..request };
    assert!(matches!(handle(&elsewhere, Arc::new(|_| {})), Ok(Output::Snapshot(_))));
}

/// Unmounted when it goes.
struct Mounted(PathBuf);

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
    }
}

#[test]
fn a_backup_that_comes_to_the_last_tenth_of_the_disk_ends_there() {
    let lab = Lab::new();
    let disk = lab.path("disk");
    fs::create_dir(&disk).unwrap();
    let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", "size=64m", "tmpfs"]).arg(&disk).status();
    if !mounted.is_ok_and(|s| s.success()) {
        assert!(std::env::var_os("DOCKWARDEN_REQUIRE_ENGINE").is_none(), "mounting must be possible where everything must be tried");
        return;
    }
    let _mounted = Mounted(disk.clone());
    let on_disk = |job: Job| Request { repo: disk.join("repo"), ..lab.request(job) };
    assert!(matches!(handle(&on_disk(Job::Init), Arc::new(|_| {})), Ok(Output::Opened { .. })));
    fs::create_dir(lab.path("data")).unwrap();
    let mut noise = vec![0u8; 80 << 20];
    getrandom::fill(&mut noise).unwrap();
    fs::write(lab.path("data/noise"), &noise).unwrap();
    let (volume, instance) = ("v".to_owned(), "i".to_owned());
    let job = Job::Backup { source: Source::Dir(lab.path("data")), volume, stack: None, instance, tags: vec![], definition: None };
    let ended = handle(&on_disk(job), Arc::new(|_| {}));
    assert_eq!(ended, Err(Failure::NoRoom { repo: disk.join("repo").display().to_string() }));
    let stat = rustix::fs::statvfs(&disk).unwrap();
    assert!(stat.f_bavail * 10 >= stat.f_blocks, "{} of {} blocks are free", stat.f_bavail, stat.f_blocks);
    assert_eq!(handle(&on_disk(Job::List), Arc::new(|_| {})), Ok(Output::Snapshots(vec![])));
    assert!(
        matches!(handle(&on_disk(Job::Forget { snapshots: vec![] }), Arc::new(|_| {})), Ok(Output::Forgotten(0))),
        "what removes may write"
    );
}

#[test]
fn what_is_to_be_given_up_for_its_snapshot_is_compared_with_what_is_really_stored() {
    let lab = Lab::new();
    let data = lab.path("data");
    fs::create_dir(&data).unwrap();
    let mut noise = vec![0u8; 3 << 20];
    getrandom::fill(&mut noise).unwrap();
    fs::write(data.join("large"), &noise).unwrap();
    let snapshot = lab.backup(Source::Dir(data.clone())).snapshot_id;
    let prove = || match lab.run(Job::Prove { snapshot: snapshot.clone(), against: Source::Dir(data.clone()) }) {
        Ok(Output::Findings(found)) => found,
        other => panic!("{other:?}"),
    };
    assert_eq!(prove(), Vec::<String>::new());
    let packs = fs::read_dir(lab.path("repo/data")).unwrap().flat_map(|d| fs::read_dir(d.unwrap().path()).unwrap());
    let pack = packs.map(|e| e.unwrap().path()).max_by_key(|p| fs::metadata(p).unwrap().len()).unwrap();
    fs::set_permissions(&pack, fs::Permissions::from_mode(0o600)).unwrap();
    File::options().write(true).open(&pack).unwrap().write_at(b"damage", 100_000).unwrap();
    let verify = Job::Verify { snapshot: snapshot.clone(), against: Source::Dir(data.clone()), path: None };
    assert_eq!(lab.run(verify), Ok(Output::Findings(vec![])), "the ids alone do not show it");
    let found = prove();
    assert!(found.len() == 1 && found[0].starts_with("large: the repository cannot give it back"), "{found:?}");
}

#[test]
fn a_directory_that_another_instance_writes_is_refused_until_it_is_handed_over() {
    let lab = Lab::new();
    let by = |instance: &str, replaces: Option<&str>, job: Job| {
        let claim = Some(Claim { instance: instance.to_owned(), replaces: replaces.map(str::to_owned) });
        handle(&Request { claim, ..lab.request(job) }, Arc::new(|_| {}))
    };
    let forget = || Job::Forget { snapshots: vec![] };
    assert!(matches!(by("one", None, Job::Init), Ok(Output::Opened { .. })));
    assert!(matches!(by("one", None, forget()), Ok(Output::Forgotten(0))));
    for job in [Job::Init, forget()] {
        let refused = by("two", None, job);
        assert!(matches!(&refused, Err(Failure::Foreign { owner, .. }) if owner == "one"), "{refused:?}");
    }
    assert!(matches!(by("two", None, Job::List), Ok(Output::Snapshots(_))), "reading is nobody's harm");
    assert!(matches!(by("two", Some("one"), Job::Init), Ok(Output::Opened { .. })));
    assert!(matches!(by("one", None, forget()), Err(Failure::Foreign { .. })));
    assert!(lab.restic(&["check"]).contains("no errors were found"));
}
