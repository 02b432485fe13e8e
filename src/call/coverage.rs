//! Stateful services whose data no backup covers: what `backups` and `doctor` name, and what a plan says. Reads only.

use super::{Call, CallError, sources};
use crate::gate::plan::Weighed;
use crate::gate::plan::outside::{NO_BACKUP, WRITERS};
use crate::model::config;
use crate::model::ids::StackName;
use crate::model::release::Release;
use crate::model::spec::{MountKind, ServiceSpec, StackSpec};
use crate::store::backup::BackupRecord;
use chrono::{DateTime, Local, TimeDelta, Utc};
use croner::Cron;
use schemars::JsonSchema;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::str::FromStr;

/// A whole snapshot is never called old before this.
const FRESH: TimeDelta = TimeDelta::days(7);
/// Snapshots looked through for one of a volume.
const LOOKED_THROUGH: usize = 1000;

/// Data that would be lost with the host.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, JsonSchema)]
#[schemars(inline)]
pub struct Uncovered {
    /// Stack.
    pub stack: String,
    /// Service that writes it.
    pub service: String,
    /// Volume on the engine, directory on the host, or the path inside of an anonymous volume.
    pub data: String,
    /// Why nothing covers it.
    pub because: String,
}

/// Whether a stack's schedule is on: by its file, else by the configuration.
pub fn scheduled(call: &Call, spec: &StackSpec) -> bool {
    let settings = sources::of_stack(&call.house.config, spec);
    let asked = settings.schedule.as_deref().or(call.house.config.settings.backup_schedule.as_deref());
    call.house.backups.is_some() && settings.enable != Some(false) && asked != Some("off")
}

/// The schedule by which a service's data is backed up: its own, else the stack's; `None` where it is switched off.
fn schedule_of<'a>(stack: Option<&'a str>, spec: &'a ServiceSpec) -> Option<&'a str> {
    let own = spec.settings.backup.as_ref();
    if own.and_then(|b| b.enable) == Some(false) {
        return None;
    }
    own.and_then(|b| b.schedule.as_deref()).or(stack).filter(|s| *s != "off")
}

/// The stack's own schedule, where that is on.
fn stack_schedule(call: &Call, spec: &StackSpec) -> Option<String> {
    let asked = sources::of_stack(&call.house.config, spec).schedule.or(call.house.config.settings.backup_schedule.clone());
    scheduled(call, spec).then(|| asked.unwrap_or_else(|| config::DEFAULT_BACKUP_SCHEDULE.to_owned()))
}

/// Whether a schedule has had two further times since a moment, which is days ago: what was taken then is not kept up with. A schedule that cannot be read
/// has none.
fn old(schedule: &str, at: DateTime<Utc>, now: DateTime<Utc>) -> bool {
    let Ok(cron) = Cron::from_str(config::schedule_line(schedule)) else { return now - at >= FRESH };
    let next = |t: &DateTime<Local>| cron.find_next_occurrence(t, false).ok();
    let second = next(&at.with_timezone(&Local)).and_then(|t| next(&t));
    now - at >= FRESH && second.is_none_or(|t| t.with_timezone(&Utc) < now)
}

/// Snapshots of one source as coverage looks at them.
#[derive(Debug, Clone, Default, PartialEq)]
struct Taken {
    /// When the newest whole one was taken.
    whole: Option<DateTime<Utc>>,
    /// The newest one is not whole.
    partial: bool,
}

/// By source. `newest_first` as the store lists them.
fn taken(newest_first: &[BackupRecord]) -> BTreeMap<String, Taken> {
    let mut out: BTreeMap<String, Taken> = BTreeMap::new();
    for b in newest_first {
        let whole = b.state == "complete";
        let source = out.entry(b.volume.clone()).or_insert_with(|| Taken { whole: None, partial: !whole });
        source.whole = source.whole.or(whole.then_some(b.at));
    }
    out
}

/// What no backup covers of the stacks that run, or of one.
///
/// # Errors
/// The store's.
pub async fn uncovered(call: &Call, only: Option<&StackName>) -> Result<Vec<Uncovered>, CallError> {
    let store = &call.house.store;
    let mut out = vec![];
    for record in store.stacks().await?.into_iter().filter(|r| only.is_none_or(|o| *o == r.name)) {
        let Some(number) = record.current else { continue };
        let Some(release) = store.release(&record.name, number).await? else { continue };
        let taken = taken(&store.backups(Some(&record.name), None, LOOKED_THROUGH).await?);
        let directories = read_directories(call, &release.spec, release.project_dir.as_deref());
        let schedule = stack_schedule(call, &release.spec);
        // A service's own schedule runs whatever the stack's is, but not without backups.
        let possible = call.house.backups.is_some();
        out.extend(of_release(&release, (possible, schedule.as_deref()), &taken, &directories, call.now));
    }
    out.sort();
    Ok(out)
}

/// Directories of the host that backups of a stack read.
fn read_directories(call: &Call, spec: &StackSpec, project: Option<&str>) -> BTreeSet<String> {
    // Where they lead is looked at when they are read; here it is about their names.
    let judged = Default::default();
    spec.services.values().flat_map(|s| sources::directories(&call.house, project, &judged, s)).map(|d| d.host).collect()
}

/// Of one release: data outside of volumes, data that nothing schedules, data without any whole snapshot, or without one of late. Pure.
fn of_release(
    release: &Release,
    (possible, schedule): (bool, Option<&str>),
    taken: &BTreeMap<String, Taken>,
    directories: &BTreeSet<String>,
    now: DateTime<Utc>,
) -> Vec<Uncovered> {
    let row = |service: &str, data: &str, because: &str| Uncovered {
        stack: release.stack.to_string(),
        service: service.to_owned(),
        data: data.to_owned(),
        because: because.to_owned(),
    };
    let schedules = schedules(&release.spec, schedule);
    let mut out = vec![];
    for (service, kind, data) in written(&release.spec) {
        let schedule = schedules.get(&data).filter(|_| possible);
        let scheduled = schedule.is_some();
        let known = taken.get(&data).cloned().unwrap_or_default();
        let late = known.whole.filter(|at| schedule.is_some_and(|s| old(s, *at, now)));
        let age;
        let why: &str = match kind {
            MountKind::Bind if !directories.contains(&data) => {
                "it is a path of the host that backups do not read: no directory below the project or a root of the policy"
            }
            _ if known.whole.is_none() && !scheduled => "its backups are switched off and it has no whole snapshot",
            _ if !scheduled => "its backups are switched off",
            _ if (kind == MountKind::Bind || !data.starts_with('/')) && known.whole.is_none() => "it has no whole snapshot yet",
            _ if known.partial => "its newest snapshot is PARTIAL: some files could not be read",
            _ => match late {
                Some(at) => {
                    age = format!("its newest whole snapshot is {} days old", (now - at).num_days());
                    age.as_str()
                }
                None => continue,
            },
        };
        out.push(row(&service, &data, why));
    }
    out
}

/// What services write: (service, kind, volume or host path or, for an anonymous volume, path inside).
fn written(spec: &StackSpec) -> Vec<(String, MountKind, String)> {
    let mut out = vec![];
    for (name, service) in spec.services.iter().filter(|(_, s)| s.active) {
        for mount in service.mounts.iter().filter(|m| !m.read_only && matches!(m.kind, MountKind::Bind | MountKind::Volume)) {
            let data = match (mount.kind, &mount.source) {
                (MountKind::Volume, Some(key)) => spec.volumes.get(key).map_or_else(|| key.clone(), |v| v.name.clone()),
                (_, Some(source)) => source.trim_end_matches('/').to_owned(),
                (_, None) => mount.target.clone(),
            };
            out.push((name.to_string(), mount.kind, data));
        }
    }
    out
}

/// By data, a schedule that covers it: what two services write is covered by either's.
fn schedules<'a>(spec: &'a StackSpec, stack: Option<&'a str>) -> BTreeMap<String, &'a str> {
    let mut out = BTreeMap::new();
    for (service, _, data) in written(spec) {
        let of = spec.services.iter().find(|(n, _)| n.as_str() == service).and_then(|(_, s)| schedule_of(stack, s));
        if let Some(schedule) = of {
            out.entry(data).or_insert(schedule);
        }
    }
    // What a volume says itself goes before what its services and the stack say.
    for volume in spec.volumes.values() {
        let Some(own) = &volume.settings.backup else { continue };
        if own.enable == Some(false) || own.schedule.as_deref() == Some("off") {
            out.remove(&volume.name);
        } else if let Some(schedule) = &own.schedule {
            out.insert(volume.name.clone(), schedule);
        }
    }
    out
}

/// What a plan says of data that no schedule will cover, and of data that several containers write.
pub fn findings(call: &Call, spec: &StackSpec, project: Option<&str>) -> Vec<Weighed> {
    let schedule = stack_schedule(call, spec);
    let mut out = judged(spec, schedule.as_deref(), call.house.backups.is_some(), &read_directories(call, spec, project));
    out.extend(shared(spec));
    out
}

/// Volumes that several containers write: whether they bear that is for those who wrote them to say.
fn shared(spec: &StackSpec) -> Vec<Weighed> {
    let mut writers: BTreeMap<String, Vec<(String, u32)>> = BTreeMap::new();
    for (service, _, data) in written(spec).into_iter().filter(|(_, k, d)| *k == MountKind::Volume && !d.starts_with('/')) {
        let of = spec.services.iter().find(|(n, _)| n.as_str() == service).map(|(_, s)| s);
        // Who says `concurrent` has said that it is meant.
        let Some(of) = of.filter(|s| !s.settings.concurrent) else { continue };
        let found = writers.entry(data).or_default();
        if !found.iter().any(|(s, _)| *s == service) {
            found.push((service, of.replicas.max(1)));
        }
    }
    let mut out = vec![];
    for (data, of) in writers.into_iter().filter(|(_, of)| of.iter().map(|(_, n)| n).sum::<u32>() > 1) {
        let names: Vec<String> = of.iter().map(|(s, n)| if *n > 1 { format!("{s} ({n} containers)") } else { s.clone() }).collect();
        let because = crate::redact::line(
            &format!(
                "volume {data} is written by several containers: {}; a database bears only one, and a snapshot fits together only with \
                 x-dockwarden.backup.quiesce pause or stop, which hold them all",
                names.join(", ")
            ),
            300,
        );
        out.push(Weighed::said(WRITERS, Some(of[0].0.clone()), None, data, because));
    }
    out
}

fn judged(spec: &StackSpec, schedule: Option<&str>, possible: bool, directories: &BTreeSet<String>) -> Vec<Weighed> {
    let mut out = vec![];
    let schedules = schedules(spec, schedule);
    for (service, kind, data) in written(spec) {
        let scheduled = schedules.contains_key(&data);
        let whose = if schedule.is_some() { "service" } else { "stack" };
        let because = match kind {
            // Sockets and single files of the host are configuration more often than data; a directory that is written is named.
            MountKind::Bind if !directories.contains(&data) => {
                format!("{data} is a path of the host that the service may write: no backup covers it")
            }
            _ if !possible => continue,
            _ if !scheduled => format!("{data} has no scheduled backup: backups are switched off for this {whose}"),
            _ => continue,
        };
        let because = crate::redact::line(&because, 300);
        out.push(Weighed::said(NO_BACKUP, Some(service), None, data, because));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ids::ServiceName;
    use crate::model::spec::{MountSpec, ServiceSpec, VolumeSpec};
    use std::collections::BTreeMap;

    fn mount(kind: MountKind, source: Option<&str>, read_only: bool) -> MountSpec {
        MountSpec { source: source.map(str::to_owned), read_only, ..MountSpec::new(kind, "/data", "") }
    }

    fn release() -> Release {
        let with = |mounts| ServiceSpec { active: true, mounts, ..ServiceSpec::default() };
        let name = |n: &str| ServiceName::new(n).unwrap();
        Release::sample(StackSpec {
            services: BTreeMap::from([
                (name("cache"), with(vec![mount(MountKind::Volume, None, false)])),
                (
                    name("db"),
                    with(vec![mount(MountKind::Volume, Some("data"), false), mount(MountKind::Bind, Some("/srv/shop/in"), false)]),
                ),
                (name("web"), with(vec![mount(MountKind::Volume, Some("data"), true), mount(MountKind::Bind, Some("/etc/ssl"), true)])),
            ]),
            volumes: BTreeMap::from([("data".into(), VolumeSpec { name: "shop_data".into(), ..VolumeSpec::default() })]),
            ..StackSpec::new(StackName::new("shop").unwrap())
        })
    }

    #[test]
    fn data_that_would_be_lost_is_named_and_what_is_only_read_is_not() {
        let found = |scheduled: bool, whole: &[&str]| rows(&release(), scheduled.then_some("daily"), &taken_at(whole, 0));
        let row = |service: &str, data: &str, because: &str| (service.to_owned(), data.to_owned(), because.to_owned());
        let bind = row(
            "db",
            "/srv/shop/in",
            "it is a path of the host that backups do not read: no directory below the project or a root of the policy",
        );
        assert_eq!(found(true, &["shop_data"]), std::slice::from_ref(&bind));
        assert_eq!(found(true, &[]), [row("db", "shop_data", "it has no whole snapshot yet"), bind.clone()]);
        let off = "its backups are switched off and it has no whole snapshot";
        assert_eq!(
            found(false, &["shop_data"]),
            [row("cache", "/data", off), row("db", "shop_data", "its backups are switched off"), bind]
        );
    }

    #[test]
    fn a_volume_that_is_switched_off_itself_is_not_covered_by_the_schedule_of_its_stack() {
        let found = |backup: &str| {
            let mut release = release();
            release.spec.volumes.get_mut("data").unwrap().settings = serde_json::from_str(backup).unwrap();
            let all = rows(&release, Some("daily"), &taken_at(&["shop_data"], 20));
            all.into_iter().filter(|(_, data, _)| data == "shop_data").map(|(_, _, why)| why).collect::<Vec<_>>()
        };
        assert_eq!(found("{}"), ["its newest whole snapshot is 20 days old"]);
        assert_eq!(found(r#"{"backup": {"schedule": "monthly"}}"#), Vec::<String>::new(), "by its own it is not old yet");
        for off in [r#"{"backup": {"enable": false}}"#, r#"{"backup": {"schedule": "off"}}"#] {
            assert_eq!(found(off), ["its backups are switched off"]);
        }
    }

    const NOW: &str = "2026-06-30T12:00:00Z";

    fn now() -> DateTime<Utc> {
        NOW.parse().unwrap()
    }

    fn taken_at(whole: &[&str], days_ago: i64) -> BTreeMap<String, Taken> {
        let at = Some(now() - TimeDelta::days(days_ago));
        whole.iter().map(|w| ((*w).to_owned(), Taken { whole: at, partial: false })).collect()
    }

    fn rows(release: &Release, schedule: Option<&str>, taken: &BTreeMap<String, Taken>) -> Vec<(String, String, String)> {
        let found = of_release(release, (true, schedule), taken, &BTreeSet::new(), now());
        found.into_iter().map(|u| (u.service, u.data, u.because)).collect()
    }

    fn with_db(backup: &str, taken: &BTreeMap<String, Taken>, schedule: Option<&str>) -> Vec<String> {
        let mut release = release();
        let db = release.spec.services.get_mut(&ServiceName::new("db").unwrap()).unwrap();
        db.settings.backup = Some(serde_json::from_str(backup).unwrap());
        let of_volume = |r: (String, String, String)| (r.1 == "shop_data").then_some(r.2);
        rows(&release, schedule, taken).into_iter().filter_map(of_volume).collect()
    }

    #[test]
    fn a_services_own_switch_counts_and_so_does_its_own_schedule() {
        let whole = taken_at(&["shop_data", "/srv/shop/in"], 1);
        for off in [r#"{"enable": false}"#, r#"{"schedule": "off"}"#] {
            assert_eq!(with_db(off, &whole, Some("daily")), ["its backups are switched off"], "{off}");
            assert_eq!(with_db(off, &BTreeMap::new(), Some("daily")), ["its backups are switched off and it has no whole snapshot"]);
        }
        assert_eq!(with_db(r#"{"schedule": "daily"}"#, &whole, None), Vec::<String>::new(), "it has one although the stack has none");
        let mut spec = release().spec;
        spec.services.get_mut(&ServiceName::new("db").unwrap()).unwrap().settings.backup =
            serde_json::from_str(r#"{"enable": false}"#).ok();
        let told = judged(&spec, Some("daily"), true, &BTreeSet::from(["/srv/shop/in".to_owned()]));
        assert!(told.iter().any(|f| f.value == "shop_data" && f.finding.because.contains("for this service")), "{told:?}");
    }

    #[test]
    fn data_whose_schedule_has_failed_for_long_or_brings_half_is_not_covered() {
        let at = |days| with_db("{}", &taken_at(&["shop_data"], days), Some("daily"));
        assert_eq!(at(6), Vec::<String>::new());
        assert_eq!(at(300), ["its newest whole snapshot is 300 days old"]);
        let monthly = |days| with_db("{}", &taken_at(&["shop_data"], days), Some("monthly"));
        assert_eq!((monthly(40), monthly(70).len()), (vec![], 1), "as often as it is asked for");
        let record = |state: &str, days| BackupRecord {
            state: state.into(),
            at: now() - TimeDelta::days(days),
            ..BackupRecord::sample(&format!("a{days}"), "shop_data")
        };
        let half = taken(&[record("partial", 0), record("complete", 1)]);
        assert_eq!(with_db("{}", &half, Some("daily")), ["its newest snapshot is PARTIAL: some files could not be read"]);
        let whole_again = taken(&[record("complete", 0), record("partial", 1)]);
        assert_eq!(with_db("{}", &whole_again, Some("daily")), Vec::<String>::new());
    }

    #[test]
    fn a_volume_that_several_containers_write_is_named() {
        let mut spec = release().spec;
        assert_eq!(shared(&spec), [], "one writes, one reads");
        let web = spec.services.get_mut(&ServiceName::new("web").unwrap()).unwrap();
        web.mounts[0].read_only = false;
        let told = shared(&spec);
        assert_eq!(told.iter().map(|f| (f.finding.rule.as_str(), f.value.as_str())).collect::<Vec<_>>(), [(WRITERS, "shop_data")]);
        assert!(told[0].finding.because.contains("shop_data") && told[0].finding.because.contains("db, web"), "{told:?}");
        let mut many = release().spec;
        many.services.get_mut(&ServiceName::new("db").unwrap()).unwrap().replicas = 3;
        assert!(shared(&many)[0].finding.because.contains("db (3 containers)"));
    }

    #[test]
    fn a_plan_names_data_without_a_schedule() {
        let found = |scheduled, possible, read: &[&str]| {
            let directories = read.iter().map(|d| (*d).to_owned()).collect();
            judged(&release().spec, Some("daily").filter(|_| scheduled), possible, &directories)
                .into_iter()
                .filter_map(|f| f.finding.service)
                .collect::<Vec<_>>()
        };
        assert_eq!(found(true, true, &[]), ["db"]);
        assert_eq!(found(false, true, &[]), ["cache", "db", "db"]);
        assert_eq!(found(true, true, &["/srv/shop/in"]), Vec::<String>::new(), "a directory that backups read is no worry");
        assert_eq!(found(false, false, &[]), ["db"]);
    }
}
