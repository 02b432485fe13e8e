//! What the second judgement, on the requests themselves, may find in a service of a plan. Paths are looked up again here:
//! a source that became a link since the plan was judged is not among them. Deliberately absent: judging (`gate::request`).

use crate::call::House;
use crate::call::compose_files::{on_host, visible};
use crate::gate::plan::{BindFact, PathKind, PlanFacts};
use crate::gate::request::RequestFacts;
use crate::model::ids::ServiceName;
use crate::model::plan::Plan;
use crate::model::spec::MountKind;
use chrono::Utc;
use std::collections::BTreeSet;
use std::path::Path;

/// The lists for one service of a plan; without one (networks, volumes) those of the whole stack.
pub fn of(house: &House, plan: &Plan, service: Option<&ServiceName>) -> RequestFacts {
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
    let service = service.map_or("", ServiceName::as_str);
    RequestFacts::of(spec, service, &facts, &rulebook.policy, Utc::now().date_naive(), BTreeSet::new())
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
