//! What a person did to containers of ours with the engine's own tools (`docker stop`, `docker rm -f`, `docker compose stop`, `docker compose down`): kept by
//! the loop, which leaves it alone, and told by `status`, `health` and `diagnose`. Deliberately absent: finding it out; the loop does.

use crate::model::ids::{EngineName, ServiceName, StackName};
use crate::model::labels;
use crate::model::observed::{ContainerDetail, ContainerSummary, RunState};
use crate::planner::{self, Observed};
use crate::store::{Store, StoreResult};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};

/// Where it is kept.
const KEY: &str = "loop:stopped_by_hand";

/// What a container stood for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// Stack.
    pub stack: StackName,
    /// Service.
    pub service: ServiceName,
}

/// All of it, durable.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Hands {
    /// Stopped and still there; of lists of earlier versions it is not known what they stood for.
    pub stopped: BTreeMap<EngineName, Option<Place>>,
    /// Those of them that the engine may have stopped itself, as it does with all that runs when it ends.
    pub unsure: BTreeSet<EngineName>,
    /// Services whose containers were removed, and when that was seen.
    pub removed: BTreeMap<StackName, BTreeMap<ServiceName, DateTime<Utc>>>,
}

/// What of it concerns one stack.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct ByHand {
    /// Containers stopped.
    pub stopped: BTreeSet<EngineName>,
    /// Services whose containers were removed.
    pub removed: BTreeSet<ServiceName>,
}

/// Earlier versions kept ids only.
#[derive(Deserialize)]
#[serde(untagged)]
enum Kept {
    Ids(BTreeSet<EngineName>),
    Hands(Hands),
}

impl Hands {
    /// Reads it; what is unreadable counts as nothing and is logged.
    ///
    /// # Errors
    /// The store's.
    pub async fn read(store: &Store) -> StoreResult<Self> {
        let Some(kept) = store.value(KEY).await? else { return Ok(Self::default()) };
        Ok(match serde_json::from_value(kept) {
            Ok(Kept::Hands(hands)) => hands,
            Ok(Kept::Ids(ids)) => Self { stopped: ids.into_iter().map(|id| (id, None)).collect(), ..Self::default() },
            Err(e) => {
                tracing::error!(error = %e, "what was stopped by hand is unreadable");
                Self::default()
            }
        })
    }

    /// Keeps it.
    ///
    /// # Errors
    /// The store's.
    pub async fn keep(&self, store: &Store) -> StoreResult<()> {
        store.set_value(KEY, &json!(self)).await
    }

    /// What concerns one stack; ids whose place is not known concern all.
    pub fn of(&self, stack: &StackName) -> ByHand {
        let here = |(_, place): &(&EngineName, &Option<Place>)| place.as_ref().is_none_or(|p| p.stack == *stack);
        ByHand {
            stopped: self.stopped.iter().filter(here).map(|(id, _)| id.clone()).collect(),
            removed: self.removed.get(stack).into_iter().flat_map(|s| s.keys().cloned()).collect(),
        }
    }

    /// Ids of what was stopped.
    pub fn ids(&self) -> BTreeSet<EngineName> {
        self.stopped.keys().cloned().collect()
    }

    /// Drops what runs again; returns the places of what is gone, and whether anything was dropped.
    pub fn reconcile(&mut self, there: &[ContainerSummary]) -> (Vec<(EngineName, Place)>, bool) {
        let down = |c: &ContainerSummary| matches!(c.state, RunState::Created | RunState::Exited | RunState::Dead | RunState::Removing);
        let known = self.stopped.len();
        let mut gone = vec![];
        self.stopped.retain(|id, place| match there.iter().find(|c| c.id == *id) {
            Some(c) => down(c),
            None => {
                gone.extend(place.take().map(|p| (id.clone(), p)));
                false
            }
        });
        self.unsure.retain(|id| self.stopped.contains_key(id));
        (gone, self.stopped.len() != known)
    }

    /// Forgets what was removed of a stack; whether there was anything.
    pub fn forget(&mut self, stack: &StackName) -> bool {
        self.removed.remove(stack).is_some()
    }

    /// Takes the mark off a container; whether it had one.
    pub fn started(&mut self, id: &EngineName) -> bool {
        self.unsure.remove(id);
        self.stopped.remove(id).is_some()
    }
}

impl ByHand {
    /// A line for each service of the stack that a hand took away or stopped. What was replaced and kept is down by right.
    pub fn lines<'a>(&self, services: impl Iterator<Item = &'a ServiceName>, observed: &Observed) -> Vec<String> {
        let line = |s: &ServiceName| {
            if self.removed.contains(s) {
                return Some(format!("{s}: {REMOVED}"));
            }
            planner::live(observed, s).iter().any(|c| self.stopped.contains(&c.id)).then(|| format!("{s}: {STOPPED}"))
        };
        services.filter_map(line).collect()
    }
}

/// Why a service has no container.
pub const REMOVED: &str = "its container was removed by hand";
/// Why one does not run.
pub const STOPPED: &str = "stopped by hand";

/// What brings back what was removed by hand.
pub fn back(stack: &StackName, release: u32) -> String {
    format!("`deploy`, or `rollback {{stack: {stack}, to_release: {release}}}`, brings it back; until then it is left alone")
}

/// What starts again what was stopped by hand.
pub fn again(stack: &StackName) -> String {
    format!("`restart {{stack: {stack}}}` starts it; until then it is left alone")
}

/// Whether nothing of a deployed stack is left but volumes: what `docker compose down` leaves. A front that is still there carries none of Compose's labels,
/// and the networks it stands on cannot be removed.
pub fn taken_down(observed: &Observed) -> bool {
    let has = |c: &ContainerDetail, role: &str| c.labels.get(labels::ROLE).is_some_and(|r| r == role);
    let serves = |c: &ContainerDetail| !c.labels.contains_key(labels::ROLE) || has(c, labels::ROLE_SERVING);
    let fronts: Vec<&ContainerDetail> = observed.containers.iter().filter(|c| has(c, labels::ROLE_FRONT)).collect();
    !observed.containers.iter().any(serves) && observed.networks.iter().all(|n| fronts.iter().any(|f| f.networks.contains_key(n)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(s: &str) -> EngineName {
        EngineName::new(s).expect("valid")
    }

    fn place(service: &str) -> Place {
        Place { stack: StackName::new("shop").expect("valid"), service: ServiceName::new(service).expect("valid") }
    }

    fn container(name: &str, state: RunState) -> ContainerSummary {
        ContainerSummary {
            id: id(name),
            name: name.into(),
            image: "web:1".into(),
            image_id: "sha256:1".into(),
            state,
            health: crate::model::observed::HealthState::None,
            status: String::new(),
            labels: BTreeMap::new(),
            ports: vec![],
            created: DateTime::UNIX_EPOCH,
        }
    }

    #[test]
    fn what_was_stopped_by_hand_counts_until_it_runs_and_what_is_gone_is_told_with_its_place() {
        let stopped = ["down", "again", "gone"].map(|n| (id(n), Some(place(n))));
        let mut hands = Hands { stopped: stopped.into(), ..Hands::default() };
        hands.stopped.insert(id("gone-too"), None);
        hands.unsure = ["down", "again", "gone"].map(id).into();
        let there = [container("down", RunState::Exited), container("again", RunState::Running)];
        assert_eq!(hands.reconcile(&there), (vec![(id("gone"), place("gone"))], true));
        assert_eq!((hands.ids(), &hands.unsure), (BTreeSet::from([id("down")]), &BTreeSet::from([id("down")])));
        assert_eq!(hands.reconcile(&there), (vec![], false));
    }

    #[tokio::test]
    async fn it_outlives_a_restart_and_the_list_of_an_earlier_version_is_read() {
        let dir = tempfile::tempdir().expect("a directory");
        let store = Store::open(&dir.path().join("home"), &dir.path().join("memory")).await.expect("a store");
        assert_eq!(Hands::read(&store).await.expect("read"), Hands::default());
        store.set_value(KEY, &json!(["c1", "c2"])).await.expect("kept");
        let earlier = Hands::read(&store).await.expect("read");
        assert_eq!(earlier.stopped, BTreeMap::from([(id("c1"), None), (id("c2"), None)]));
        assert_eq!(earlier.of(&place("web").stack).stopped.len(), 2, "whose they were is not known");
        let at = DateTime::from_timestamp(1_800_000_000, 0).expect("valid");
        let hands = Hands {
            stopped: BTreeMap::from([(id("c1"), Some(place("web")))]),
            unsure: BTreeSet::from([id("c1")]),
            removed: BTreeMap::from([(place("db").stack, BTreeMap::from([(place("db").service, at)]))]),
        };
        hands.keep(&store).await.expect("kept");
        assert_eq!(Hands::read(&store).await.expect("read"), hands);
        assert_eq!(hands.of(&StackName::new("other").expect("valid")), ByHand::default());
    }

    #[test]
    fn a_stack_is_taken_down_when_neither_containers_nor_networks_are_left_but_those_of_fronts() {
        let of = |role: &str, networks: &[&str]| {
            let mut c = ContainerDetail::running(role, role, "hello:1");
            c.labels.insert(labels::ROLE.into(), role.into());
            c.networks = networks.iter().map(|n| ((*n).to_owned(), vec![])).collect();
            c
        };
        let down = |containers: Vec<ContainerDetail>, networks: &[&str]| {
            let networks = networks.iter().map(|n| (*n).to_owned()).collect();
            taken_down(&Observed { containers, networks, ..Observed::default() })
        };
        assert!(down(vec![], &[]));
        assert!(!down(vec![], &["shop_default"]), "a single container may be gone for another reason");
        assert!(!down(vec![of(labels::ROLE_SERVING, &[])], &[]));
        assert!(down(vec![of(labels::ROLE_FRONT, &["shop_default"])], &["shop_default"]));
        assert!(!down(vec![of(labels::ROLE_FRONT, &["shop_default"])], &["shop_default", "shop_back"]));
    }
}
