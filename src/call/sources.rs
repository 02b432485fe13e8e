//! What a backup of a stack reads and how, from the release that runs: volumes, directories of the host that services write, outputs of commands, with
//! the settings of stack and services put together. Reads only; deliberately absent: reading the data, and when.

use super::error::ErrorCode;
use super::{Call, CallError, House, compose_files, observe, volumes};
use crate::executor::backup::{BackupJob, Directory, Keeping, Quiesce, ServiceCommands, Silent, command};
use crate::executor::{places, straight};
use crate::gate::plan::normalise;
use crate::model::config::Config;
use crate::model::ids::{EngineName, ServiceName, StackName};
use crate::model::labels;
use crate::model::release::Release;
use crate::model::spec::{BackupSettings, MountKind, MountSpec, ServiceSpec, StackSpec, VolumeSpec};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Which of a stack's data.
#[derive(Debug, Clone, PartialEq)]
pub enum Choice {
    /// One volume.
    Volume(EngineName),
    /// What one service writes.
    Service(ServiceName),
    /// Everything.
    All,
    /// What the stack's own schedule covers: everything but services that are switched off or have a schedule of their own.
    Scheduled,
}

impl Choice {
    fn takes(&self, service: &ServiceName, spec: &ServiceSpec) -> bool {
        match self {
            Self::Volume(_) => false,
            Self::Service(name) => name == service,
            Self::All => true,
            Self::Scheduled => !apart(spec),
        }
    }
}

fn of(spec: &ServiceSpec) -> BackupSettings {
    spec.settings.backup.clone().unwrap_or_default()
}

/// What a stack says of all its data: its files, and where they say nothing its registration.
pub fn of_stack(config: &Config, spec: &StackSpec) -> BackupSettings {
    let own = spec.settings.backup.clone().unwrap_or_default();
    match config.settings.stacks.get(&spec.name).and_then(|entry| entry.backup.as_ref()) {
        Some(registered) => own.or(registered),
        None => own,
    }
}

/// A service that the stack's schedule leaves alone.
fn apart(spec: &ServiceSpec) -> bool {
    let own = of(spec);
    own.enable == Some(false) || own.schedule.is_some()
}

/// A volume that neither the stack's schedule nor that of a service reads. One that is kept outside of the stack has no schedule of its own.
fn aside(volume: &VolumeSpec) -> bool {
    let own = volume.backup();
    own.enable == Some(false) || (own.schedule.is_some() && !volume.external)
}

/// A volume of a stack by its name on the engine.
fn volume_named<'a>(spec: &'a StackSpec, name: &str) -> Option<&'a VolumeSpec> {
    spec.volumes.values().find(|v| v.name == name)
}

fn volume_apart(spec: &StackSpec, name: &str) -> bool {
    volume_named(spec, name).is_some_and(aside)
}

/// Volumes with a schedule of their own.
pub fn volume_schedules(release: &Release) -> BTreeMap<EngineName, String> {
    let of = |v: &VolumeSpec| Some((EngineName::new(v.name.as_str()).ok()?, v.backup().schedule?));
    release.spec.volumes.values().filter(|v| !v.external && v.backup().enable != Some(false)).filter_map(of).collect()
}

/// Services with data and their own schedule.
pub fn own_schedules(house: &House, release: &Release) -> BTreeMap<ServiceName, String> {
    let aside = |key: &str| release.spec.volumes.get(key).is_some_and(aside);
    let reads = |s: &ServiceSpec| s.active && of(s).enable != Some(false) && writes(s, &aside, &|s| reads_directory(house, release, s));
    release.spec.services.iter().filter(|(_, s)| reads(s)).filter_map(|(n, s)| Some((n.clone(), of(s).schedule?))).collect()
}

/// Whether the stack's own schedule has anything to read.
pub fn has_data(house: &House, release: &Release) -> bool {
    left_for_the_stack(&release.spec, &|s| reads_directory(house, release, s))
}

/// A path of the host is data only where a backup reads it; where its links lead does not matter for that.
fn reads_directory(house: &House, release: &Release, spec: &ServiceSpec) -> bool {
    !directories(house, release.project_dir.as_deref(), &BTreeMap::new(), spec).is_empty()
}

/// What services with a schedule of their own write is not the stack's to read; a volume nobody writes is.
fn left_for_the_stack(spec: &StackSpec, reads_directory: &dyn Fn(&ServiceSpec) -> bool) -> bool {
    let own = |s: &ServiceSpec| s.active && !apart(s);
    let theirs: BTreeSet<&str> = spec.services.values().filter(|s| !own(s)).flat_map(volumes_of).collect();
    let aside = |key: &str| spec.volumes.get(key).is_some_and(aside);
    spec.services.values().any(|s| own(s) && writes(s, &aside, reads_directory))
        || spec.volumes.iter().any(|(key, v)| !v.external && !theirs.contains(key.as_str()) && !aside(key))
}

fn volumes_of(spec: &ServiceSpec) -> impl Iterator<Item = &str> {
    spec.mounts.iter().filter(|m| !m.read_only && m.kind == MountKind::Volume).filter_map(|m| m.source.as_deref())
}

/// Whether a service has data that its schedule reads; `aside`: a volume that is left alone.
fn writes(spec: &ServiceSpec, aside: &dyn Fn(&str) -> bool, reads_directory: &dyn Fn(&ServiceSpec) -> bool) -> bool {
    let volume = |m: &MountSpec| !m.read_only && m.kind == MountKind::Volume && !m.source.as_deref().is_some_and(aside);
    spec.mounts.iter().any(volume) || of(spec).stdout.is_some() || reads_directory(spec)
}

/// Puts the job of a backup together.
///
/// # Errors
/// `NotFound` when there is nothing of the kind, and those of engine and store.
pub async fn job(call: &Call, stack: &StackName, release: Option<&Release>, choice: Choice, keeps: bool) -> Result<BackupJob, CallError> {
    let mut job = BackupJob { release: release.map(|r| r.number), ..BackupJob::default() };
    let Some(release) = release else {
        job.volumes = match choice {
            Choice::Volume(volume) => vec![volume],
            Choice::Service(_) | Choice::All | Choice::Scheduled => volumes::of_stack(call, stack, None).await?,
        };
        return nothing(stack, job);
    };
    let stack_wide = of_stack(&call.house.config, &release.spec);
    let taken: BTreeMap<&ServiceName, &ServiceSpec> =
        release.spec.services.iter().filter(|(n, s)| s.active && choice.takes(n, s)).collect();
    match &choice {
        Choice::Volume(volume) => job.volumes.push(volume.clone()),
        Choice::All => job.volumes = volumes::of_stack(call, stack, Some(release)).await?,
        Choice::Service(_) | Choice::Scheduled => {
            let left: BTreeSet<&ServiceName> = release.spec.services.keys().filter(|n| !taken.contains_key(n)).collect();
            let (mine, others) = (
                written(call, stack, release, &|n| taken.contains_key(n)).await?,
                written(call, stack, release, &|n| left.contains(n)).await?,
            );
            job.volumes = volumes::of_stack(call, stack, Some(release)).await?;
            // What nobody mounts goes with the stack; what two write goes with either.
            let scheduled = choice == Choice::Scheduled;
            job.volumes.retain(|v| mine.contains(v) || (scheduled && !others.contains(v)));
        }
    }
    // By the clock each volume is read by one schedule, or by none; a call of anybody else reads all that it asks for.
    if keeps && !matches!(choice, Choice::Volume(_)) {
        job.volumes.retain(|v| !volume_apart(&release.spec, v.as_str()));
    }
    let judged = places::judged(&call.house.store, release).await?;
    for spec in taken.values() {
        for directory in directories(&call.house, release.project_dir.as_deref(), &judged, spec) {
            if !job.directories.contains(&directory) {
                job.directories.push(directory);
            }
        }
    }
    (job.commands, job.silent) = commands(call, stack, release, &taken).await?;
    let users: Vec<&ServiceSpec> = match &choice {
        Choice::Volume(_) => release.spec.services.values().collect(),
        Choice::Service(_) | Choice::All | Choice::Scheduled => taken.values().copied().collect(),
    };
    let volumes: Vec<BackupSettings> =
        job.volumes.iter().filter_map(|v| volume_named(&release.spec, v.as_str())).map(VolumeSpec::backup).collect();
    let all = || users.iter().map(|s| of(s)).chain(volumes.iter().cloned()).chain([stack_wide.clone()]);
    job.quiesce = all().filter_map(|b| b.quiesce).map(Quiesce::from).max().unwrap_or_default();
    job.timeout = all().filter_map(|b| b.timeout).max().map(Duration::from_secs);
    if keeps {
        job.keep = Some(keeping(&call.house.config, stack, release));
    }
    nothing(stack, job)
}

fn nothing(stack: &StackName, job: BackupJob) -> Result<BackupJob, CallError> {
    let empty = job.volumes.is_empty() && job.directories.is_empty() && job.commands.iter().all(|c| c.stdout.is_none());
    if let Some(silent) = job.silent.iter().find(|s| empty && s.output) {
        let message = format!("service {} has no container, and its backup is what a command in it writes", silent.service);
        return Err(CallError::new(ErrorCode::Conflict, message, "`deploy` or `restart` the service").field("stack"));
    }
    if job.volumes.is_empty() && job.directories.is_empty() && job.commands.iter().all(|c| c.stdout.is_none()) {
        let hint = "`status` shows what its services mount; directories of the host count below the project and the policy's roots";
        return Err(CallError::new(ErrorCode::NotFound, format!("stack {stack} has no data of that kind"), hint).field("stack"));
    }
    Ok(job)
}

/// Volumes that services write: those their release names and those their containers have, anonymous ones too.
async fn written(
    call: &Call,
    stack: &StackName,
    release: &Release,
    takes: &(dyn Fn(&ServiceName) -> bool + Sync),
) -> Result<BTreeSet<EngineName>, CallError> {
    let mut out = BTreeSet::new();
    for (_, spec) in release.spec.services.iter().filter(|(n, _)| takes(n)) {
        let mounts = spec.mounts.iter().filter(|m| m.kind == MountKind::Volume && !m.read_only);
        let keys = mounts.filter_map(|m| release.spec.volumes.get(m.source.as_deref()?));
        out.extend(keys.filter_map(|v| EngineName::new(v.name.as_str()).ok()));
    }
    for container in observe::details(&call.house, &observe::serving(&call.house, Some(stack)).await?).await? {
        let service = container.labels.get(labels::SERVICE).and_then(|s| ServiceName::new(s.as_str()).ok());
        if service.is_some_and(|s| takes(&s)) {
            let mounts = container.mounts.into_iter().filter(|m| m.kind == "volume" && m.writable);
            out.extend(mounts.filter_map(|m| EngineName::new(m.name?).ok()));
        }
    }
    Ok(out)
}

/// Directories of the host that a service may write, as far as they are its data: below the project or the policy's roots, directories, nothing of our own.
/// `judged` is where paths led when they were judged, as far as that is noted.
pub fn directories(house: &House, project: Option<&str>, judged: &BTreeMap<String, String>, spec: &ServiceSpec) -> Vec<Directory> {
    let roots = roots(house, project);
    let mounts = spec.mounts.iter().filter(|m| m.kind == MountKind::Bind && !m.read_only).filter_map(|m| m.source.as_deref());
    let mut out = vec![];
    for host in mounts.filter(|host| below(Path::new(host), &roots)) {
        let directory = directory(&house.config, &roots, judged, host);
        // A socket or a single file is configuration more often than data. What is a link by now, or cannot be seen, is named and refused when it is read.
        let data = directory.here.as_ref().is_none_or(|h| !matches!(straight::identity(h), Err(straight::Refused::NotDirectory(_))));
        if data && !own(house, &directory) && !out.contains(&directory) {
            out.push(directory);
        }
    }
    out
}

/// The directory of the host that a snapshot is of, where it was judged to be in the release that runs.
///
/// # Errors
/// The store's.
pub async fn directory_of(house: &House, release: Option<&Release>, host: &str) -> Result<Directory, CallError> {
    let judged = match release {
        Some(release) => places::judged(&house.store, release).await?,
        None => BTreeMap::new(),
    };
    let roots = roots(house, release.and_then(|r| r.project_dir.as_deref()));
    let mut found = directory(&house.config, &roots, &judged, host);
    if own(house, &found) {
        found.here = None;
    }
    Ok(found)
}

fn roots(house: &House, project: Option<&str>) -> Vec<PathBuf> {
    let rulebook = house.rulebook.load();
    let policy = &rulebook.policy;
    policy.bind_roots_allow.iter().chain(&policy.bind_roots_approval).map(String::as_str).chain(project).map(PathBuf::from).collect()
}

/// Where a path leads by the judgement: as noted; else as it is written, below a root whose own links are the operator's. A container mounts nothing above
/// the highest root, so it cannot have put these there.
fn directory(config: &Config, roots: &[PathBuf], judged: &BTreeMap<String, String>, written: &str) -> Directory {
    let host = normalise(written);
    let by_root = || {
        let root = roots.iter().filter(|r| Path::new(&host).starts_with(r)).min_by_key(|r| r.components().count())?;
        let here = compose_files::visible(config, root)?;
        let real = std::fs::canonicalize(here).map_or_else(|_| root.clone(), |real| compose_files::on_host(config, &real));
        let rest = Path::new(&host).strip_prefix(root).ok()?;
        Some(normalise(real.join(rest).to_str()?))
    };
    let real = judged.get(&host).cloned().or_else(by_root);
    let here = real.as_deref().and_then(|r| compose_files::visible(config, Path::new(r)));
    Directory { real: real.filter(|r| *r != host), host, here }
}

/// Whether a directory is, holds or lies in what is our own.
fn own(house: &House, directory: &Directory) -> bool {
    let here = Path::new(directory.bound());
    compose_files::protected(&house.config).iter().any(|own| own.starts_with(here) || here.starts_with(own))
}

/// Whether a path lies below one of the roots, as written: no root itself, and no way up.
fn below(path: &Path, roots: &[PathBuf]) -> bool {
    let plain = path.is_absolute() && !path.components().any(|c| c == std::path::Component::ParentDir);
    plain && roots.iter().any(|r| path.starts_with(r) && path != r)
}

/// Whether a service has anything run around the reading of its data.
pub fn has_commands(settings: &BackupSettings) -> bool {
    !settings.pre.is_empty() || !settings.post.is_empty() || settings.stdout.is_some()
}

async fn commands(
    call: &Call,
    stack: &StackName,
    release: &Release,
    taken: &BTreeMap<&ServiceName, &ServiceSpec>,
) -> Result<(Vec<ServiceCommands>, Vec<Silent>), CallError> {
    let (mut out, mut silent) = (vec![], vec![]);
    let asked = has_commands;
    if !taken.values().any(|s| asked(&of(s))) {
        return Ok((out, silent));
    }
    let serving = observe::serving(&call.house, Some(stack)).await?;
    for (name, own) in taken.iter().map(|(n, s)| (*n, of(s))).filter(|(_, own)| asked(own)) {
        match serving.iter().find(|c| c.labels.get(labels::SERVICE).is_some_and(|s| s == name.as_str())) {
            Some(container) => out.push(ServiceCommands::of(name.clone(), release.environment.clone(), container.id.clone(), own)),
            // The data of the others is backed up all the same.
            None => silent.push(Silent { service: name.clone(), output: own.stdout.is_some() }),
        }
    }
    Ok((out, silent))
}

/// How many snapshots stay: of a volume as it says, of what a service writes as that says, of the rest as the stack says.
pub fn keeping(config: &Config, stack: &StackName, release: &Release) -> Keeping {
    let stack_wide = of_stack(config, &release.spec);
    let mut keeping = Keeping { own: BTreeMap::new(), rest: stack_wide.keep.unwrap_or_default() };
    for (name, spec) in &release.spec.services {
        let Some(keep) = of(spec).keep else { continue };
        keeping.own.insert(command::output_of(stack, name), keep.clone());
        for mount in spec.mounts.iter().filter(|m| !m.read_only) {
            let source = match (mount.kind, mount.source.as_deref()) {
                (MountKind::Volume, Some(key)) => release.spec.volumes.get(key).map(|v| v.name.clone()),
                (MountKind::Bind, Some(path)) => Some(path.trim_end_matches('/').to_owned()),
                _ => None,
            };
            keeping.own.extend(source.map(|s| (s, keep.clone())));
        }
    }
    keeping.own.extend(release.spec.volumes.values().filter_map(|v| Some((v.name.clone(), v.backup().keep?))));
    keeping
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn config() -> Config {
        let (home, config_dir, memory) = ("/h".into(), "/c".into(), "/m".into());
        Config { host_name: "h".into(), ..Config::new(home, config_dir, memory) }
    }

    #[test]
    fn an_operators_link_above_the_project_is_followed_once_and_a_containers_link_below_it_never() {
        let dir = tempfile::tempdir().unwrap();
        let real = dir.path().canonicalize().unwrap();
        std::fs::create_dir_all(real.join("disk/shop/data")).unwrap();
        symlink(real.join("disk"), real.join("srv")).unwrap();
        let project = real.join("srv/shop");
        let host = project.join("data").display().to_string();
        let of = |judged: &BTreeMap<String, String>| directory(&config(), std::slice::from_ref(&project), judged, &format!("{host}/"));
        let straight_on = real.join("disk/shop/data");
        let found = of(&BTreeMap::new());
        assert_eq!((found.host.as_str(), found.bound()), (host.as_str(), straight_on.to_str().unwrap()));
        assert!(straight::identity(found.here.as_deref().unwrap()).is_ok());
        // What the container does to its own directory.
        std::fs::rename(&straight_on, real.join("disk/shop/old")).unwrap();
        symlink("/etc", &straight_on).unwrap();
        let found = of(&BTreeMap::new());
        assert_eq!(found.bound(), straight_on.to_str().unwrap(), "the same place, not where it leads by now");
        let refused = straight::identity(found.here.as_deref().unwrap()).unwrap_err().to_string();
        assert!(refused.contains(&format!("{} is a link", straight_on.display())), "{refused}");
        // An inner link that was judged leads where it led then.
        let noted = BTreeMap::from([(host.clone(), real.join("disk/shop/old").display().to_string())]);
        assert_eq!(of(&noted).bound(), real.join("disk/shop/old").to_str().unwrap());
    }

    #[test]
    fn a_path_below_no_root_is_nothing_to_read() {
        let found = directory(&config(), &[PathBuf::from("/srv/shop")], &BTreeMap::new(), "/etc/cron.d");
        assert_eq!((found.here, found.real), (None, None));
    }

    #[test]
    fn the_stacks_own_schedule_reads_nothing_where_every_volume_has_one_of_its_own() {
        use crate::model::spec::{MountSpec, VolumeSpec};
        let mount = |source: &str| MountSpec { source: Some(source.into()), ..MountSpec::new(MountKind::Volume, "/data", "") };
        let mut db = ServiceSpec { active: true, mounts: vec![mount("data")], ..ServiceSpec::default() };
        let stack = |db: &ServiceSpec, volumes: &[&str]| StackSpec {
            services: BTreeMap::from([(ServiceName::new("db").unwrap(), db.clone())]),
            volumes: volumes.iter().map(|v| ((*v).to_owned(), VolumeSpec { name: format!("shop_{v}"), ..VolumeSpec::default() })).collect(),
            ..StackSpec::new(StackName::new("shop").unwrap())
        };
        let has = |db: &ServiceSpec, volumes: &[&str]| left_for_the_stack(&stack(db, volumes), &|_| false);
        assert!(has(&db, &["data"]));
        db.settings.backup = Some(BackupSettings { schedule: Some("hourly".into()), ..BackupSettings::default() });
        assert!(!has(&db, &["data"]), "it is read by the schedule of its own");
        assert!(has(&db, &["data", "loose"]), "what nobody mounts goes with the stack");
        db.mounts[0].read_only = true;
        assert!(has(&db, &["data"]), "what a service only reads is not its to back up");
        // A socket of the host is mounted and no data.
        let socket = ServiceSpec {
            active: true,
            mounts: vec![MountSpec { kind: MountKind::Bind, ..mount("/run/x.sock") }],
            ..ServiceSpec::default()
        };
        assert!(!has(&socket, &[]));
        assert!(left_for_the_stack(&stack(&socket, &[]), &|_| true), "a directory that is read is");
    }

    fn shop(volume: VolumeSpec) -> StackSpec {
        let mount = MountSpec { source: Some("data".into()), ..MountSpec::new(MountKind::Volume, "/data", "") };
        let db = ServiceSpec { active: true, mounts: vec![mount], ..ServiceSpec::default() };
        StackSpec {
            services: BTreeMap::from([(ServiceName::new("db").unwrap(), db)]),
            volumes: BTreeMap::from([("data".to_owned(), volume)]),
            ..StackSpec::new(StackName::new("shop").unwrap())
        }
    }

    #[test]
    fn a_volume_says_itself_when_it_is_read_and_what_stays_of_it() {
        use crate::model::spec::{Keep, VolumeSettings};
        let with = |own: BackupSettings| VolumeSpec {
            name: "shop_data".into(),
            settings: VolumeSettings { backup: Some(own) },
            ..VolumeSpec::default()
        };
        let named = |own: BackupSettings| {
            let spec = shop(with(own));
            let found = (left_for_the_stack(&spec, &|_| false), volume_apart(&spec, "shop_data"));
            (found, volume_schedules(&Release::sample(spec)).into_values().collect::<Vec<_>>())
        };
        assert_eq!(named(BackupSettings::default()), ((true, false), vec![]), "as its stack says");
        let hourly = BackupSettings { schedule: Some("hourly".into()), ..BackupSettings::default() };
        assert_eq!(named(hourly.clone()), ((false, true), vec!["hourly".to_owned()]));
        let off = BackupSettings { enable: Some(false), ..hourly };
        assert_eq!(named(off), ((false, true), vec![]));
        let keep = Keep { daily: 3, ..Keep::default() };
        let release = Release::sample(shop(with(BackupSettings { keep: Some(keep.clone()), ..BackupSettings::default() })));
        let keeping = keeping(&config(), &release.spec.name, &release);
        assert_eq!((keeping.own.get("shop_data"), keeping.rest), (Some(&keep), Keep::default()));
    }

    #[test]
    fn the_registration_of_a_stack_says_what_its_files_do_not() {
        use crate::model::config::StackSettingsEntry;
        let registered =
            BackupSettings { schedule: Some("weekly".into()), quiesce: Some(crate::model::spec::Quiesce::Stop), ..Default::default() };
        let mut config = config();
        let mut spec = shop(VolumeSpec::default());
        assert_eq!(of_stack(&config, &spec), BackupSettings::default());
        let entry = StackSettingsEntry { backup: Some(registered.clone()), ..StackSettingsEntry::default() };
        config.settings.stacks.insert(spec.name.clone(), entry);
        assert_eq!(of_stack(&config, &spec), registered);
        spec.settings.backup = Some(BackupSettings { schedule: Some("off".into()), ..BackupSettings::default() });
        let both = of_stack(&config, &spec);
        assert_eq!((both.schedule.as_deref(), both.quiesce), (Some("off"), registered.quiesce));
    }

    #[test]
    fn only_what_lies_below_a_root_is_data() {
        let roots = [PathBuf::from("/srv/shop"), PathBuf::from("/mnt/media")];
        for (path, is) in [
            ("/srv/shop/data", true),
            ("/srv/shop", false),
            ("/srv/shopping", false),
            ("/srv/shop/../etc", false),
            ("/etc", false),
            ("data", false),
        ] {
            assert_eq!(below(Path::new(path), &roots), is, "{path}");
        }
    }
}
