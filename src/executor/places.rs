//! Host paths that containers mount, looked at again before a container starts: the engine follows links at each start, so a path that became a
//! link since it was judged would lead a restart to where nobody looked. Containers of ours name paths without links; what was taken over from
//! Compose may name links, whose ends were noted then. Deliberately absent: judging paths (`gate::plan::mounts`).

use super::Executor;
use super::run::{Fail, Run};
use crate::gate::plan::normalise;
use crate::model::ids::{EngineName, StackName};
use crate::model::observed::ContainerDetail;
use crate::model::release::Release;
use crate::store::{Store, StoreResult};
use serde_json::json;
use std::collections::BTreeMap;

/// Where the ends of links are kept that containers of a stack named when it was taken over.
fn place(stack: &StackName) -> String {
    format!("links:{stack}")
}

/// Where the host paths of a release led when it was judged, those that are or lie behind a link.
fn of_release(stack: &StackName, number: u32) -> String {
    format!("links:{stack}:{number}")
}

/// Where host paths of a release led when they were judged, by the path as it is written (without dots and closing slashes); those that are not named led
/// nowhere else.
///
/// # Errors
/// The store's.
pub async fn judged(store: &Store, release: &Release) -> StoreResult<BTreeMap<String, String>> {
    let mut all = BTreeMap::new();
    for key in [place(&release.stack), of_release(&release.stack, release.number)] {
        let noted = store.value(&key).await?.unwrap_or_default();
        let pairs = noted.as_object().into_iter().flatten();
        all.extend(pairs.filter_map(|(from, to)| Some((normalise(from), normalise(to.as_str()?)))));
    }
    Ok(all)
}

fn binds(c: &ContainerDetail) -> impl Iterator<Item = &str> {
    c.mounts.iter().filter(|m| m.kind == "bind" && m.source.starts_with('/')).map(|m| m.source.as_str())
}

impl Executor {
    /// Notes where the links lead that containers name which were not made by us.
    pub(super) async fn note_links(&self, stack: &StackName, containers: &[ContainerDetail]) -> StoreResult<()> {
        let leads = |source: &str| Some((source.to_owned(), (self.real)(source)?));
        let links: BTreeMap<String, String> =
            containers.iter().flat_map(binds).filter_map(leads).filter(|(source, real)| normalise(source) != normalise(real)).collect();
        self.store.set_value(&place(stack), &json!(links)).await
    }
}

impl Run {
    /// Notes where the paths of the release lead, for whoever reads or writes there long after they were judged.
    pub(super) async fn note_judged(&self) -> StoreResult<()> {
        let plan = &self.plan;
        let links: BTreeMap<&String, &String> = plan.real_paths.iter().filter(|(from, to)| normalise(from) != normalise(to)).collect();
        let key = of_release(&plan.stack, plan.to_release);
        // An earlier life of the name may have left some under this number.
        if links.is_empty() && self.exec.store.value(&key).await?.is_none() {
            return Ok(());
        }
        self.exec.store.set_value(&key, &json!(links)).await
    }

    /// Refuses the start of a container one of whose host paths leads elsewhere than when it was judged. What is gone is left to the engine, which refuses it.
    pub(super) async fn same_paths(&self, id: &EngineName) -> Result<(), Fail> {
        let Some(container) = self.exec.engine.container(id).await? else { return Ok(()) };
        for source in binds(&container) {
            let Some(now) = (self.exec.real)(source) else { continue };
            if normalise(&now) == normalise(source) {
                continue;
            }
            let links = self.exec.store.value(&place(&self.plan.stack)).await?.unwrap_or_default();
            if links[source].as_str().is_none_or(|noted| normalise(noted) != normalise(&now)) {
                let source = crate::redact::line(source, 200);
                return Err(Fail::Refused(format!(
                    "{source}, mounted by {}, is or lies behind a link that was not there when it was judged; the container is not started: put the path \
                     right, or `deploy` (or `restart` with recreate) to have it judged where it leads now",
                    crate::redact::line(&container.name, 80)
                )));
            }
        }
        Ok(())
    }
}
