//! What the second judgement, on the requests themselves, may find in a service of a plan. Paths are looked up again here:
//! a source that became a link since the plan was judged is not among them. Deliberately absent: judging (`gate::request`).

use crate::call::House;
use crate::call::compose_files::{on_host, visible};
use crate::gate::plan::{BindFact, PathKind, PlanFacts, paths};
use crate::gate::request::RequestFacts;
use crate::model::config::Config;
use crate::model::ids::ServiceName;
use crate::model::plan::Plan;
use chrono::Utc;
use std::collections::BTreeSet;
use std::path::Path;

/// The lists for one service of a plan; without one (networks, volumes) those of the whole stack.
pub fn of(house: &House, plan: &Plan, service: Option<&ServiceName>) -> RequestFacts {
    let rulebook = house.rulebook.load();
    let spec = &plan.desired;
    let mut facts = PlanFacts {
        stack: Some(spec.name.clone()),
        environment: plan.environment.clone(),
        carried: plan.carried.clone(),
        ..PlanFacts::default()
    };
    for path in paths::reached(spec) {
        if let Some(fact) = fact(&house.config, path) {
            facts.resolved.insert(path.to_owned(), fact);
        }
    }
    let moved = paths::moved(spec, &plan.real_paths, &facts.resolved);
    // What leads elsewhere by now is looked up no further: its new end is nothing anybody judged.
    facts.resolved.retain(|path, _| !moved.contains(path));
    let service = service.map_or("", ServiceName::as_str);
    let allowed = RequestFacts::of(spec, service, &facts, &rulebook.policy, Utc::now().date_naive(), BTreeSet::new());
    RequestFacts { moved, ..allowed }
}

/// Where a path of the host leads once links are followed; `None` when it cannot be seen from here.
pub fn real(config: &Config, path: &str) -> Option<String> {
    let seen = std::fs::canonicalize(visible(config, Path::new(path))?).ok()?;
    on_host(config, &seen).to_str().map(str::to_owned)
}

/// What a path is once links are followed.
fn fact(config: &Config, path: &str) -> Option<BindFact> {
    let seen = std::fs::canonicalize(visible(config, Path::new(path))?).ok()?;
    let kind = kind(&seen)?;
    Some(BindFact { real: on_host(config, &seen).to_str()?.to_owned(), exists: true, kind: Some(kind) })
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
