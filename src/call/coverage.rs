//! Stateful services whose data no backup covers: what `backups` and `doctor` name, and what a plan says. Reads only.

use super::{Call, CallError, sources};
use crate::model::ids::StackName;
use crate::model::release::Release;
use crate::model::spec::{MountKind, StackSpec};
use crate::model::verdict::{Finding, Verdict};
use schemars::JsonSchema;
use serde::Serialize;
use std::collections::BTreeSet;

/// Rule of the findings about data that no schedule covers.
pub const RULE: &str = "backup.none";
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
    let settings = spec.settings.backup.as_ref();
    let asked = settings.and_then(|s| s.schedule.as_deref()).or(call.house.config.settings.backup_schedule.as_deref());
    call.house.backups.is_some() && settings.and_then(|s| s.enable) != Some(false) && asked != Some("off")
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
        let taken = store.backups(Some(&record.name), None, LOOKED_THROUGH).await?;
        let whole = taken.into_iter().filter(|b| b.state == "complete").map(|b| b.volume).collect();
        let directories = read_directories(call, &release.spec, release.project_dir.as_deref());
        out.extend(of_release(&release, scheduled(call, &release.spec), &whole, &directories));
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

/// Of one release: data outside of volumes, data that nothing schedules, data without any whole snapshot yet. Pure.
fn of_release(release: &Release, scheduled: bool, whole: &BTreeSet<String>, directories: &BTreeSet<String>) -> Vec<Uncovered> {
    let row = |service: &str, data: &str, because: &str| Uncovered {
        stack: release.stack.to_string(),
        service: service.to_owned(),
        data: data.to_owned(),
        because: because.to_owned(),
    };
    let mut out = vec![];
    for (service, kind, data) in written(&release.spec) {
        let why = match kind {
            MountKind::Bind if !directories.contains(&data) => {
                "it is a path of the host that backups do not read: no directory below the project or a root of the policy"
            }
            _ if !whole.contains(&data) && !scheduled => "its backups are switched off and it has no whole snapshot",
            _ if !scheduled => "its backups are switched off",
            _ if (kind == MountKind::Bind || !data.starts_with('/')) && !whole.contains(&data) => "it has no whole snapshot yet",
            _ => continue,
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

/// What a plan says of data that no schedule will cover.
pub fn findings(call: &Call, spec: &StackSpec, project: Option<&str>) -> Vec<Finding> {
    judged(spec, scheduled(call, spec), call.house.backups.is_some(), &read_directories(call, spec, project))
}

fn judged(spec: &StackSpec, scheduled: bool, possible: bool, directories: &BTreeSet<String>) -> Vec<Finding> {
    let mut out = vec![];
    for (service, kind, data) in written(spec) {
        let because = match kind {
            // Sockets and single files of the host are configuration more often than data; a directory that is written is named.
            MountKind::Bind if !directories.contains(&data) => {
                format!("{data} is a path of the host that the service may write: no backup covers it")
            }
            _ if !possible => continue,
            _ if !scheduled => format!("{data} has no scheduled backup: backups are switched off for this stack"),
            _ => continue,
        };
        let because = crate::redact::line(&because, 300);
        out.push(Finding { rule: RULE.into(), verdict: Verdict::Warn, service: Some(service), path: None, because });
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ids::ServiceName;
    use crate::model::spec::{MountSpec, ServiceSpec, StackSettings, VolumeSpec};
    use std::collections::BTreeMap;

    fn mount(kind: MountKind, source: Option<&str>, read_only: bool) -> MountSpec {
        MountSpec { source: source.map(str::to_owned), read_only, ..MountSpec::new(kind, "/data", "") }
    }

    fn release() -> Release {
        let with = |mounts| ServiceSpec { active: true, mounts, ..ServiceSpec::default() };
        let name = |n: &str| ServiceName::new(n).unwrap();
        Release::sample(StackSpec {
            name: StackName::new("shop").unwrap(),
            services: BTreeMap::from([
                (name("cache"), with(vec![mount(MountKind::Volume, None, false)])),
                (
                    name("db"),
                    with(vec![mount(MountKind::Volume, Some("data"), false), mount(MountKind::Bind, Some("/srv/shop/in"), false)]),
                ),
                (name("web"), with(vec![mount(MountKind::Volume, Some("data"), true), mount(MountKind::Bind, Some("/etc/ssl"), true)])),
            ]),
            networks: BTreeMap::new(),
            volumes: BTreeMap::from([("data".into(), VolumeSpec { name: "shop_data".into(), ..VolumeSpec::default() })]),
            configs: BTreeMap::new(),
            secrets: BTreeMap::new(),
            settings: StackSettings::default(),
            unsupported: vec![],
            declared: Default::default(),
            extensions: Default::default(),
        })
    }

    #[test]
    fn data_that_would_be_lost_is_named_and_what_is_only_read_is_not() {
        let found = |scheduled, whole: &[&str]| {
            let whole = whole.iter().map(|w| (*w).to_owned()).collect();
            of_release(&release(), scheduled, &whole, &BTreeSet::new())
                .into_iter()
                .map(|u| (u.service, u.data, u.because))
                .collect::<Vec<_>>()
        };
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
    fn a_plan_names_data_without_a_schedule() {
        let found = |scheduled, possible, read: &[&str]| {
            let directories = read.iter().map(|d| (*d).to_owned()).collect();
            judged(&release().spec, scheduled, possible, &directories)
                .into_iter()
                .map(|f| (f.service.unwrap_or_default(), f.verdict))
                .collect::<Vec<_>>()
        };
        assert_eq!(found(true, true, &[]), [("db".to_owned(), Verdict::Warn)]);
        assert_eq!(found(false, true, &[]), ["cache", "db", "db"].map(|s| (s.to_owned(), Verdict::Warn)));
        assert_eq!(found(true, true, &["/srv/shop/in"]), [], "a directory that backups read is no worry");
        assert_eq!(found(false, false, &[]), [("db".to_owned(), Verdict::Warn)]);
    }
}
