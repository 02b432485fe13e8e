//! The pure parts: which volumes stay in use, what counts as migrated.

use super::bring::{Brought, swap};
use super::*;
use crate::model::ids::ImageRef;
use crate::model::observed::ImageIdentity;
use crate::model::plan::PlannedRestore;
use crate::model::spec::{MountSpec, ServiceSettings, VolumeSpec};

fn volume(name: &str, from: Option<&str>) -> VolumeSpec {
    VolumeSpec { name: name.into(), swapped_from: from.map(str::to_owned), ..VolumeSpec::default() }
}

fn db(mounts: bool) -> ServiceSpec {
    let mount = MountSpec { source: Some("data".into()), ..MountSpec::new(MountKind::Volume, "/data", "") };
    ServiceSpec { active: true, mounts: if mounts { vec![mount] } else { vec![] }, ..ServiceSpec::default() }
}

fn stack(data: VolumeSpec) -> StackSpec {
    StackSpec {
        services: BTreeMap::from([(ServiceName::new("db").unwrap(), db(true)), (ServiceName::new("web").unwrap(), db(false))]),
        volumes: BTreeMap::from([("data".into(), data)]),
        ..StackSpec::new(StackName::new("shop").unwrap())
    }
}

fn release(number: u32, image: &str) -> Release {
    let identity =
        |image: &str| ImageIdentity { reference: ImageRef::new(image).unwrap(), id: Some(format!("sha256:{image}")), repo_digest: None };
    let images = BTreeMap::from([
        (ServiceName::new("db").unwrap(), identity(image)),
        (ServiceName::new("web").unwrap(), identity(&format!("web:{number}"))),
    ]);
    Release { number, images, ..Release::sample(stack(volume("shop_data", None))) }
}

#[test]
fn a_volume_taken_into_use_stays_in_use_whatever_release_comes() {
    let swapped = stack(volume("shop_data-restored-1", Some("shop_data")));
    let after = |mut desired: StackSpec, in_use: Option<&StackSpec>| {
        carried(in_use, &mut desired);
        desired.volumes["data"].clone()
    };
    let kept = volume("shop_data-restored-1", Some("shop_data"));
    assert_eq!(after(stack(volume("shop_data", None)), Some(&swapped)), kept, "the file as it always was");
    assert_eq!(after(swapped.clone(), Some(&swapped)), kept, "the release that runs");
    assert_eq!(
        after(stack(volume("shop_data-restored-0", Some("shop_data"))), Some(&swapped)),
        kept,
        "a release from before the last swap"
    );
    assert_eq!(after(stack(volume("other", None)), Some(&swapped)), volume("other", None), "a name the file changed is the file's");
    let plain = stack(volume("shop_data", None));
    assert_eq!(after(swapped.clone(), Some(&plain)), volume("shop_data", None), "a release from when it was swapped");
    assert_eq!(after(plain.clone(), None), volume("shop_data", None));
    let external = VolumeSpec { external: true, ..volume("shop_data", None) };
    assert_eq!(after(stack(external.clone()), Some(&swapped)), external, "an external volume is what its name says");
}

#[test]
fn a_swap_names_the_live_volume_and_remembers_the_files_name() {
    let planned = |into: &str| Brought {
        exchange: vec![],
        restore: vec![PlannedRestore {
            snapshot_id: "ab12".into(),
            source: "shop_data".into(),
            key: "data".into(),
            service: None,
            live: String::new(),
            into: EngineName::new(into).unwrap(),
        }],
    };
    let mut desired = stack(volume("shop_data", None));
    let first = swap(&mut desired, &planned("r1")).restore;
    assert_eq!((first[0].live.as_str(), desired.volumes["data"].clone()), ("shop_data", volume("r1", Some("shop_data"))));
    let second = swap(&mut desired, &planned("r2")).restore;
    assert_eq!((second[0].live.as_str(), desired.volumes["data"].clone()), ("r1", volume("r2", Some("shop_data"))));
}

#[test]
fn another_version_of_what_writes_data_migrates_unless_the_file_says_otherwise() {
    assert_eq!(migrates(&release(2, "db:1"), &release(1, "db:1")), Vec::<String>::new(), "the web changed, it has no data");
    assert_eq!(migrates(&release(2, "db:2"), &release(1, "db:1")), ["service db went from db:1 to db:2"]);
    let says = |says: bool, image: &str| {
        let mut newer = release(2, image);
        let db = newer.spec.services.get_mut("db").unwrap();
        db.settings = ServiceSettings { migrates: Some(says), ..ServiceSettings::default() };
        migrates(&newer, &release(1, "db:1"))
    };
    assert_eq!(says(false, "db:2"), Vec::<String>::new());
    assert_eq!(says(true, "db:1"), ["service db says that it migrates"], "its settings are not the older one's");
}

#[test]
fn the_size_of_a_tree_is_known_up_to_the_limit() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("sub")).unwrap();
    std::fs::write(dir.path().join("sub/a"), vec![0; 1000]).unwrap();
    std::fs::write(dir.path().join("b"), vec![0; 24]).unwrap();
    assert_eq!(bytes_below(dir.path(), PRE_UPDATE_LIMIT), Some(1024));
    let sparse = std::fs::File::create(dir.path().join("large")).unwrap();
    sparse.set_len(PRE_UPDATE_LIMIT).unwrap();
    assert_eq!(bytes_below(dir.path(), PRE_UPDATE_LIMIT), Some(PRE_UPDATE_LIMIT + 1));
    assert_eq!(bytes_below(&dir.path().join("none"), PRE_UPDATE_LIMIT), None);
}

#[test]
fn directories_that_the_supervisor_does_not_see_are_named_and_the_others_are_snapshotted() {
    let directory = |host: &str, here: Option<&str>| Directory { host: host.into(), here: here.map(PathBuf::from), real: None };
    let (seen, unseen) = apart(vec![directory("/srv/shop/data", Some("/host/shop/data")), directory("/mnt/other", None)]);
    assert_eq!(seen, [PlannedDirectory { host: "/srv/shop/data".into(), here: "/host/shop/data".into(), real: None }]);
    assert_eq!(not_seen(&[]), None);
    let told = not_seen(&unseen).unwrap();
    assert!(told.contains("/mnt/other of the host is not snapshotted") && !told.contains("/srv"), "{told}");
}

#[test]
fn the_policy_says_what_is_snapshotted_before_an_update_and_a_file_says_it_of_volumes_before_it_says_it_of_all() {
    use PreUpdate::{Asked, Every, Image, Small};
    let when = |policy| [by_policy(policy, true), by_policy(policy, false)];
    assert_eq!([Every, Image, Small, Asked].map(when), [[true, true], [true, false], [true, false], [false, false]]);
    let says = |of_volume: Option<bool>, of_service: Option<bool>, of_stack: Option<bool>| {
        let settings = |pre_update: Option<bool>| pre_update.map(|p| BackupSettings { pre_update: Some(p), ..BackupSettings::default() });
        let mut desired = stack(volume("shop_data", None));
        desired.volumes.get_mut("data").unwrap().settings.backup = settings(of_volume);
        desired.settings.backup = settings(of_stack);
        let file = FileSays::read(&desired, &settings(of_service).unwrap_or_default(), &["shop_data".to_owned()].into());
        (file.of("shop_data"), file.of("/srv/shop/in"))
    };
    assert_eq!(says(None, None, None), (None, None));
    assert_eq!(says(None, Some(false), Some(true)), (Some(false), Some(false)), "the service before the stack");
    assert_eq!(says(None, None, Some(true)), (Some(true), Some(true)));
    assert_eq!(says(Some(false), Some(true), None), (Some(false), Some(true)), "a volume for itself");
    assert_eq!(says(Some(true), None, None), (Some(true), Some(true)), "who wants one of it wants it whole");
}

#[test]
fn who_else_writes_what_is_snapshotted_is_named_and_whether_it_is_held() {
    let of = |name: &str, stack: Option<&str>| Writer {
        stack: stack.map(|s| StackName::new(s).unwrap()),
        ..Writer::of(EngineName::new(name).unwrap(), name.to_owned())
    };
    let found = [of("shop-db-1", Some("shop")), of("portal-files-1", Some("portal")), of("team-web-1", Some("team")), of("backupd", None)];
    let shop = StackName::new("shop").unwrap();
    let data = DataPlan { quiesce: Quiesce::Pause, also_held: vec![StackName::new("portal").unwrap()], ..DataPlan::default() };
    let said = told(&found, &shop, &data);
    assert!(said.iter().all(|f| f.verdict == Verdict::Warn && f.rule == PRE_UPDATE) && said.len() == 2, "{said:?}");
    assert!(said[0].because.starts_with("portal-files-1 of others") && said[0].because.contains("is paused"), "{said:?}");
    assert!(said[1].because.starts_with("team-web-1, backupd of others") && said[1].because.contains("is not held"), "{said:?}");
    assert_eq!(told(&found[..1], &shop, &data), []);
}
