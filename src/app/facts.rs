//! What the second judgement, on the requests themselves, may find in a plan: the union over its services. Paths are looked up again here:
//! a source that became a link since the plan was judged is not among them. Deliberately absent: judging (`gate::request`).

use crate::call::House;
use crate::call::compose_files::{on_host, visible};
use crate::gate::plan::{BindFact, PathKind, PlanFacts};
use crate::gate::request::RequestFacts;
use crate::model::plan::Plan;
use crate::model::spec::MountKind;
use chrono::Utc;
use std::collections::BTreeSet;
use std::path::Path;

/// The lists for a whole plan.
pub fn of(house: &House, plan: &Plan) -> RequestFacts {
    let rulebook = house.rulebook.load();
    let spec = &plan.desired;
    let mut facts = PlanFacts { stack: Some(spec.name.clone()), environment: plan.environment.clone(), ..PlanFacts::default() };
    let mounts = spec.services.values().flat_map(|s| &s.mounts).filter(|m| m.kind == MountKind::Bind).filter_map(|m| m.source.as_ref());
    let files = spec.configs.values().chain(spec.secrets.values()).filter_map(|o| o.file.as_ref());
    let devices = spec.services.values().flat_map(|s| &s.devices).map(|d| &d.source);
    for path in mounts.chain(files).chain(devices) {
        if let Some(fact) = fact(house, path) {
            facts.resolved.insert(path.clone(), fact);
        }
    }
    let each = spec.services.keys().map(|service| {
        RequestFacts::of(spec, service.as_str(), &facts, &rulebook.policy, Utc::now().date_naive(), BTreeSet::new())
    });
    each.reduce(union).unwrap_or_default()
}

/// What a path is once links are followed; `None` when it cannot be seen from here.
fn fact(house: &House, path: &str) -> Option<BindFact> {
    let seen = std::fs::canonicalize(visible(&house.config, Path::new(path))?).ok()?;
    let kind = kind(&seen)?;
    Some(BindFact { real: on_host(&house.config, &seen).to_str()?.to_owned(), exists: true, kind: Some(kind) })
}

fn kind(path: &Path) -> Option<PathKind> {
    use std::os::unix::fs::FileTypeExt;
    let t = std::fs::metadata(path).ok()?.file_type();
    Some(match () {
        () if t.is_dir() => PathKind::Directory,
        () if t.is_socket() => PathKind::Socket,
        () if t.is_block_device() || t.is_char_device() => PathKind::Device,
        () => PathKind::File,
    })
}

fn union(mut a: RequestFacts, b: RequestFacts) -> RequestFacts {
    a.bind_sources.extend(b.bind_sources);
    a.volumes.extend(b.volumes);
    a.networks.extend(b.networks);
    a.containers.extend(b.containers);
    a.caps.extend(b.caps);
    a.devices.extend(b.devices);
    a.device_rules.extend(b.device_rules);
    a.security_opts.extend(b.security_opts);
    a.sysctls.extend(b.sysctls);
    a.runtime = a.runtime.or(b.runtime);
    a.cgroup_parent = a.cgroup_parent.or(b.cgroup_parent);
    a.oom_score_adj = a.oom_score_adj.into_iter().chain(b.oom_score_adj).min();
    a.log_driver = a.log_driver.or(b.log_driver);
    a.volume_specs.extend(b.volume_specs);
    a.network_drivers.extend(b.network_drivers);
    a.excepted.extend(b.excepted);
    a
}
