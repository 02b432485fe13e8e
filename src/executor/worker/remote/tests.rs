//! Repositories in a bucket and behind SFTP, in this process, with restic itself as the judge.

pub(crate) mod bucket;
mod ssh;

use super::super::tests::Lab;
use super::super::{CheckReport, Failure, Job, Output, Remote, Request, SnapshotInfo, Source, Trouble, handle};
use super::*;
use crate::model::ids::SnapshotId;
use crate::model::target::Target;
use bucket::{KEY_ID, SECRET, Service};
use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::Ordering;

/// A place of a repository, and the key that belongs to it.
pub(super) struct Far {
    pub(super) target: Target,
    pub(super) owner: Option<String>,
    lock: PathBuf,
    key: PathBuf,
}

impl Far {
    fn request(&self, job: Job) -> Request {
        let remote = Some(Remote { target: self.target.clone(), owner: self.owner.clone() });
        Request {
            repo: self.lock.clone(),
            remote,
            key_file: self.key.clone(),
            lock_within_s: Some(30),
            expected: vec![],
            known: None,
            claim: None,
            apart: vec![],
            job,
        }
    }
    pub(super) fn run(&self, job: Job) -> Result<Output, Failure> {
        handle(&self.request(job), Arc::new(|_| {}))
    }
    pub(super) fn list(&self) -> Vec<SnapshotInfo> {
        match self.run(Job::List) {
            Ok(Output::Snapshots(found)) => found,
            other => panic!("{other:?}"),
        }
    }
    pub(super) fn backup(&self, data: PathBuf) -> SnapshotId {
        let job = Job::Backup {
            source: Source::Dir(data),
            volume: "shop_data".into(),
            stack: Some("shop".into()),
            instance: "01test".into(),
            tags: vec![],
            definition: None,
        };
        match self.run(job) {
            Ok(Output::Snapshot(report)) => report.snapshot_id,
            other => panic!("{other:?}"),
        }
    }
    fn restic(&self, args: &[&str]) -> String {
        let out = Command::new("restic")
            .args(["--no-cache", "--repo", &self.target.at.restic(), "--password-file"])
            .arg(&self.key)
            .args(args)
            .envs([("AWS_ACCESS_KEY_ID", KEY_ID), ("AWS_SECRET_ACCESS_KEY", SECRET)])
            .output()
            .expect("restic must be installed for this test");
        let text = String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr);
        assert!(out.status.success(), "restic {args:?}: {text}");
        text
    }
}

pub(super) fn far(lab: &Lab, at: &str) -> Far {
    let mut target = Target::plain(at.parse().unwrap());
    target.timeout_s = 20;
    Far { target, owner: Some("01test".into()), lock: lab.path("locks/far"), key: lab.path("key") }
}

fn in_bucket(lab: &Lab, service: &Service) -> Far {
    let file = lab.path("credentials");
    fs::write(&file, format!("[default]\naws_access_key_id = {KEY_ID}\naws_secret_access_key = {SECRET}\n")).unwrap();
    let mut far = far(lab, &service.at("host/a"));
    far.target.credentials_file = Some(file);
    far
}

/// Small files, and one that fills several packs.
pub(super) fn data(lab: &Lab) -> PathBuf {
    let data = lab.path("data");
    fs::create_dir_all(data.join("deep")).unwrap();
    let mut noise = vec![0u8; 20 << 20];
    getrandom::fill(&mut noise).unwrap();
    fs::write(data.join("noise"), noise).unwrap();
    for n in 0..40 {
        fs::write(data.join(format!("deep/{n}")), format!("file {n}")).unwrap();
    }
    data
}

/// Everything a repository has to do, at any place.
pub(super) fn serves(lab: &Lab, far: &Far) {
    assert!(matches!(far.run(Job::Probe), Err(Failure::NoRepository { .. })));
    assert!(matches!(far.run(Job::Init), Ok(Output::Opened { .. })));
    assert!(matches!(far.run(Job::Init), Ok(Output::Opened { .. })), "again");
    assert_eq!(far.run(Job::Probe), Ok(Output::Ready));
    let data = data(lab);
    let first = far.backup(data.clone());
    fs::write(data.join("deep/3"), "changed").unwrap();
    let second = far.backup(data.clone());
    assert_eq!(far.list().iter().map(|s| s.snapshot_id.clone()).collect::<Vec<_>>(), [second.clone(), first.clone()]);
    let check = Job::Check { read_data: true, part: None };
    assert_eq!(far.run(check.clone()), Ok(Output::Checked(CheckReport::default())));
    fs::create_dir(lab.path("back")).unwrap();
    assert!(matches!(far.run(Job::Restore { snapshot: second.clone(), into: lab.path("back"), path: None }), Ok(Output::Restored(_))));
    let against = |dir: PathBuf| Job::Verify { snapshot: second.clone(), against: Source::Dir(dir), path: None };
    assert_eq!(far.run(against(lab.path("back"))), Ok(Output::Findings(vec![])));
    assert_eq!(far.run(Job::Forget { snapshots: vec![first] }), Ok(Output::Forgotten(1)));
    assert_eq!(far.list().len(), 1);
    // Back on this host, as it is: the same key opens it, the same ids are in it.
    fs::create_dir(lab.path("fetched")).unwrap();
    assert!(matches!(far.run(Job::Fetch { into: lab.path("fetched") }), Ok(Output::Fetched(n)) if n > 5));
    let near = Request { repo: lab.path("fetched"), remote: None, ..far.request(Job::List) };
    assert_eq!(handle(&near, Arc::new(|_| {})), Ok(Output::Snapshots(far.list())));
    assert_eq!(handle(&Request { job: check, ..near }, Arc::new(|_| {})), Ok(Output::Checked(CheckReport::default())));
}

/// Snapshots of a repository of this host, added to the far one.
pub(super) fn takes_copies(lab: &Lab, far: &Far) {
    let one = lab.backup(Source::Dir(lab.path("data"))).snapshot_id;
    fs::write(lab.path("data/deep/7"), "for the copy").unwrap();
    let two = lab.backup(Source::Dir(lab.path("data"))).snapshot_id;
    let copy = |ids: Vec<SnapshotId>| {
        let remote = Some(Remote { target: far.target.clone(), owner: far.owner.clone() });
        let job = Job::Copy { snapshots: ids, to: far.lock.clone(), remote, claim: None, key_file: far.key.clone() };
        match handle(&lab.request(job), Arc::new(|_| {})) {
            Ok(Output::Copied(report)) => report.snapshots,
            other => panic!("{other:?}"),
        }
    };
    let before = far.list().len();
    assert_eq!(copy(vec![one.clone()]), 1);
    assert_eq!(copy(vec![one.clone(), two.clone()]), 1, "what is there is left out");
    let listed = far.list();
    assert_eq!(listed.len(), before + 2);
    let copied = listed.iter().find(|s| s.original == two).expect("it says what it is a copy of");
    assert_ne!(copied.snapshot_id, two);
    let same = Job::Verify { snapshot: copied.snapshot_id.clone(), against: Source::Dir(lab.path("data")), path: None };
    assert_eq!(far.run(same), Ok(Output::Findings(vec![])));
}

#[test]
fn a_repository_in_a_bucket_serves_in_full_and_restic_reads_it() {
    let (lab, service) = (Lab::new(), Service::start());
    let far = in_bucket(&lab, &service);
    serves(&lab, &far);
    takes_copies(&lab, &far);
    assert!(service.keys().iter().all(|k| k.starts_with("host/a/")), "{:?}", service.keys());
    let checked = far.restic(&["check", "--read-data"]);
    assert!(checked.contains("no errors were found"), "{checked}");
    assert_eq!(far.restic(&["snapshots", "--json"]).matches("\"short_id\"").count(), far.list().len());
    // restic writes beside us.
    far.restic(&["backup", "--host", "elsewhere", lab.path("data/deep").to_str().unwrap()]);
    assert_eq!(far.list().iter().filter(|s| s.host == "elsewhere").count(), 1);
    assert_eq!(far.run(Job::Check { read_data: true, part: None }), Ok(Output::Checked(CheckReport::default())));
}

fn trouble(answer: Result<Output, Failure>) -> (Trouble, String) {
    match answer {
        Err(failure @ Failure::Remote { trouble, .. }) => (trouble, failure.to_string()),
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_is_wrong_with_a_bucket_is_said_with_what_to_do_and_never_with_the_secret() {
    let (lab, service) = (Lab::new(), Service::start());
    let good = in_bucket(&lab, &service);
    let with = |id: &str, secret: &str| {
        let file = lab.path("other");
        fs::write(&file, format!("aws_access_key_id={id}\naws_secret_access_key={secret}\n")).unwrap();
        let mut far = in_bucket(&lab, &service);
        far.target.credentials_file = Some(file);
        far.run(Job::Init)
    };
    for (answer, says) in [(with(KEY_ID, "another-secret"), "SignatureDoesNotMatch"), (with("AKIAOTHER", SECRET), "InvalidAccessKeyId")] {
        let (kind, text) = trouble(answer);
        assert_eq!(kind, Trouble::Denied, "{text}");
        assert!(text.contains(says) && text.contains("credentials_file"), "{text}");
        assert!(!text.contains(SECRET) && !text.contains("another-secret"), "{text}");
    }
    fs::write(lab.path("other"), "aws_access_key_id = x\n").unwrap();
    let mut half = in_bucket(&lab, &service);
    half.target.credentials_file = Some(lab.path("other"));
    assert!(matches!(half.run(Job::Init), Err(Failure::Credentials { detail, .. }) if detail.contains("aws_secret_access_key")));
    let at = |text: String| Far {
        target: Target { at: text.parse().unwrap(), ..good.target.clone() },
        owner: good.owner.clone(),
        ..in_bucket(&lab, &service)
    };
    let (kind, text) = trouble(at(format!("s3:http://127.0.0.1:{}/other/x", service.port)).run(Job::Init));
    assert_eq!(kind, Trouble::NoBucket, "{text}");
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let (kind, text) = trouble(at(format!("s3:http://127.0.0.1:{free}/bucket/x")).run(Job::Init));
    assert!(kind == Trouble::Unreachable && text.contains("refused"), "{text}");
    // Nothing was written by any of them.
    assert_eq!(service.keys(), Vec::<String>::new());

    assert!(matches!(good.run(Job::Init), Ok(Output::Opened { .. })));
    fs::write(lab.path("wrong"), "f".repeat(64)).unwrap();
    let wrong = Far { key: lab.path("wrong"), ..in_bucket(&lab, &service) };
    match wrong.run(Job::List) {
        Err(e @ Failure::WrongKey { .. }) => assert!(e.to_string().contains(&service.at("host/a")), "{e}"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_service_that_is_busy_is_asked_again_and_one_that_says_nothing_is_not_waited_for() {
    let (lab, service) = (Lab::new(), Service::start());
    let mut far = in_bucket(&lab, &service);
    service.state.busy.store(2, Ordering::SeqCst);
    assert!(matches!(far.run(Job::Init), Ok(Output::Opened { .. })), "two refusals are survived");
    far.target.timeout_s = 1;
    service.state.mute.store(true, Ordering::SeqCst);
    let before = service.state.requests.load(Ordering::SeqCst);
    let (kind, text) = trouble(far.run(Job::List));
    assert!(kind == Trouble::Slow && text.contains("timeout_s"), "{text}");
    assert_eq!(service.state.requests.load(Ordering::SeqCst) - before, 4, "once, and three times more");
}

#[test]
fn a_repository_of_another_instance_is_read_and_never_written_unless_it_is_replaced() {
    let (lab, service) = (Lab::new(), Service::start());
    let first = in_bucket(&lab, &service);
    assert!(matches!(first.run(Job::Init), Ok(Output::Opened { .. })));
    let id = first.backup(data(&lab));
    let mut other = Far { owner: Some("02other".into()), ..in_bucket(&lab, &service) };
    let before = service.keys();
    for job in [Job::Init, Job::Forget { snapshots: vec![id.clone()] }] {
        match other.run(job) {
            Err(e @ Failure::Foreign { .. }) => assert!(e.to_string().contains("replaces = \"01test\""), "{e}"),
            answer => panic!("{answer:?}"),
        }
    }
    assert_eq!(service.keys(), before);
    assert_eq!(other.list().len(), 1, "reading is no harm");
    other.target.replaces = Some("03third".into());
    assert!(matches!(other.run(Job::Init), Err(Failure::Foreign { .. })), "only the one that is named");
    other.target.replaces = Some("01test".into());
    assert!(matches!(other.run(Job::Init), Ok(Output::Opened { .. })));
    assert!(matches!(first.run(Job::Init), Err(Failure::Foreign { owner, .. }) if owner == "02other"), "and the first writes no more");
}

#[test]
fn a_damaged_file_is_not_brought_back() {
    let (lab, service) = (Lab::new(), Service::start());
    let far = in_bucket(&lab, &service);
    assert!(matches!(far.run(Job::Init), Ok(Output::Opened { .. })));
    far.backup(data(&lab));
    let pack = service.keys().into_iter().find(|k| k.contains("/data/")).unwrap();
    service.state.objects.lock().unwrap().get_mut(&pack).unwrap()[10] ^= 1;
    fs::create_dir(lab.path("fetched")).unwrap();
    match far.run(Job::Fetch { into: lab.path("fetched") }) {
        Err(e) => assert!(e.to_string().contains("is damaged"), "{e}"),
        other => panic!("{other:?}"),
    }
    assert!(!lab.path("fetched/config").exists(), "it is no repository");
    let Ok(Output::Checked(CheckReport { wrong: found, .. })) = far.run(Job::Check { read_data: true, part: None }) else { panic!() };
    assert!(!found.is_empty(), "and a check says so");
}
