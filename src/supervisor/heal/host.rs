//! Whether it is the host that fails: more than half of all services went down within one window, and still are. What was given up, is not ours to heal now, or
//! is unhealthy only since what it depends on is down, says nothing of the host. Pure; deliberately absent: asking the engine, and telling anybody.

use crate::model::ids::{EngineName, ServiceName, StackName};
use crate::model::labels;
use crate::model::observed::{ContainerSummary, HealthState, RunState};
use crate::model::spec::{HealMode, StackSpec};
use crate::planner;
use crate::supervisor::policy::WINDOW;
use chrono::{DateTime, Utc};
use std::collections::{BTreeMap, BTreeSet};

/// How a service stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Standing {
    Well,
    /// It runs, and its health check fails.
    Unhealthy,
    Ended,
}

/// Every service there is, by stack.
pub(super) type Seen = BTreeMap<(StackName, ServiceName), Standing>;

/// How services stand, by the containers that stand for each: what was replaced and waits to be removed is down by right.
pub(super) fn seen(found: &[ContainerSummary], left_out: &BTreeSet<StackName>, by_hand: &BTreeSet<EngineName>) -> Seen {
    let mut services: BTreeMap<(StackName, ServiceName), Vec<&ContainerSummary>> = BTreeMap::new();
    for c in found.iter().filter(|c| c.labels.get(labels::ROLE).map(String::as_str) == Some(labels::ROLE_SERVING)) {
        let label = |key| c.labels.get(key).map(String::as_str);
        let stack = label(labels::STACK).and_then(|s| StackName::new(s).ok());
        let service = label(labels::SERVICE).and_then(|s| ServiceName::new(s).ok());
        let (Some(stack), Some(service)) = (stack, service) else { continue };
        if !left_out.contains(&stack) {
            services.entry((stack, service)).or_default().push(c);
        }
    }
    let ended = |c: &&ContainerSummary| matches!(c.state, RunState::Exited | RunState::Dead) && !c.status.starts_with("Exited (0)");
    let mut out = Seen::new();
    for (key, containers) in services {
        let mut live = planner::standing_for(containers, |c| (&c.labels, c.state));
        live.retain(|c| !by_hand.contains(&c.id));
        let standing = match () {
            () if live.is_empty() => continue,
            () if live.iter().any(ended) => Standing::Ended,
            () if live.iter().any(|c| c.health == HealthState::Unhealthy) => Standing::Unhealthy,
            () => Standing::Well,
        };
        out.insert(key, standing);
    }
    out
}

/// Takes out of a stack what says nothing of the host.
pub(super) fn leave_out(seen: &mut Seen, spec: &StackSpec, given_up: &BTreeSet<ServiceName>, maintenance: bool) {
    let down = |seen: &Seen, service: &ServiceName| seen.get(&(spec.name.clone(), service.clone())).is_some_and(|s| *s != Standing::Well);
    let all = seen.clone();
    for (service, s) in &spec.services {
        let key = (spec.name.clone(), service.clone());
        let Some(standing) = all.get(&key).copied() else { continue };
        let mode = s.settings.heal.or(spec.settings.heal).unwrap_or(HealMode::Full);
        let follows = standing == Standing::Unhealthy && s.depends_on.keys().any(|d| down(&all, d));
        let silent = mode == HealMode::Off || maintenance || given_up.contains(service) || planner::one_shot(spec, service);
        if silent || follows {
            seen.remove(&key);
        }
    }
}

/// Since when each service is down.
#[derive(Debug, Default)]
pub(super) struct Down(BTreeMap<(StackName, ServiceName), DateTime<Utc>>);

impl Down {
    /// How many services that are down went down within one window, and how many services there are.
    pub(super) fn at_once(&mut self, seen: &Seen, now: DateTime<Utc>) -> (usize, usize) {
        self.0.retain(|key, _| seen.get(key).is_some_and(|s| *s != Standing::Well));
        for (key, _) in seen.iter().filter(|(_, s)| **s != Standing::Well) {
            let since = self.0.entry(key.clone()).or_insert(now);
            // Later than now, it was noted before the clock was set back.
            *since = now.min(*since);
        }
        let mut times: Vec<DateTime<Utc>> = self.0.values().copied().collect();
        times.sort_unstable();
        let most = times.iter().enumerate().map(|(i, first)| times[i..].iter().take_while(|t| **t - *first < WINDOW).count()).max();
        (most.unwrap_or(0), seen.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::supervisor::policy::host_failing;
    use chrono::TimeDelta;

    fn container(stack: &str, service: &str, release: u32, state: RunState) -> ContainerSummary {
        let own = [
            (labels::STACK, stack.to_owned()),
            (labels::SERVICE, service.to_owned()),
            (labels::ROLE, labels::ROLE_SERVING.to_owned()),
            (labels::NUMBER, "1".to_owned()),
            (labels::RELEASE, release.to_string()),
        ];
        ContainerSummary {
            id: EngineName::new(format!("{stack}-{service}-{release}")).unwrap(),
            name: format!("{stack}-{service}-1"),
            image: "web:1".into(),
            image_id: "sha256:1".into(),
            state,
            health: HealthState::None,
            status: if state == RunState::Exited { "Exited (137) 3 seconds ago".into() } else { "Up".into() },
            labels: own.map(|(k, v)| (k.to_owned(), v)).into(),
            ports: vec![],
            created: DateTime::UNIX_EPOCH,
        }
    }

    fn key(stack: &str, service: &str) -> (StackName, ServiceName) {
        (StackName::new(stack).unwrap(), ServiceName::new(service).unwrap())
    }

    #[test]
    fn what_was_replaced_or_is_being_worked_at_does_not_make_the_host_sick() {
        let (up, down) = (RunState::Running, RunState::Exited);
        let found = [
            container("shop", "web", 1, down),
            container("shop", "web", 2, up),
            container("shop", "db", 1, down),
            container("held", "web", 1, down),
            container("held", "db", 1, down),
        ];
        let held = BTreeSet::from([StackName::new("held").unwrap()]);
        let all = seen(&found, &held, &BTreeSet::new());
        assert_eq!(all, [(key("shop", "db"), Standing::Ended), (key("shop", "web"), Standing::Well)].into());
        let by_hand = BTreeSet::from([EngineName::new("shop-db-1").unwrap()]);
        assert_eq!(seen(&found, &held, &by_hand), [(key("shop", "web"), Standing::Well)].into());
    }

    fn four(down: &[&str]) -> Seen {
        let standing = |s: &str| if down.contains(&s) { Standing::Ended } else { Standing::Well };
        ["a", "b", "c", "d"].iter().map(|s| (key("shop", s), standing(s))).collect()
    }

    #[test]
    fn only_what_fails_at_once_is_the_host_and_it_stays_so_until_it_is_over() {
        let (mut known, began) = (Down::default(), DateTime::<Utc>::UNIX_EPOCH);
        let at = |s: i64| began + TimeDelta::seconds(s);
        let mut failing = |down: &[&str], s| {
            let (sick, all) = known.at_once(&four(down), at(s));
            host_failing(sick, all)
        };
        assert!(!failing(&["a"], 0) && !failing(&["a", "b"], 900));
        assert!(!failing(&["a", "b", "c"], 1800), "one after the other over half an hour");
        assert!(!failing(&[], 1900));
        assert!(!failing(&["a", "b"], 2000));
        assert!(failing(&["a", "b", "c"], 2030), "within a minute");
        assert!(failing(&["a", "b", "c"], 9000), "and still down");
        assert!(!failing(&["a", "b"], 9030));
    }

    #[test]
    fn what_was_given_up_or_only_follows_says_nothing_of_the_host() {
        let waits = |on: &str, condition: &str| serde_json::json!({on: {"condition": condition, "required": true, "restart": false}});
        let services = serde_json::json!({
            "store": {"active": true, "replicas": 1},
            "api": {"active": true, "replicas": 1, "depends_on": waits("store", "service_started")},
            "web": {"active": true, "replicas": 1, "depends_on": waits("store", "service_started")},
            "old": {"active": true, "replicas": 1},
            "off": {"active": true, "replicas": 1, "settings": {"heal": "off"}},
            "once": {"active": true, "replicas": 1},
            "after": {"active": true, "replicas": 1, "depends_on": waits("once", "service_completed_successfully")},
        });
        let none = serde_json::json!({});
        let spec: StackSpec = serde_json::from_value(serde_json::json!({
            "name": "shop", "services": services, "networks": none, "volumes": none, "configs": none, "secrets": none}))
        .expect("a stack");
        let standing = |s: &ServiceName| match s.as_str() {
            "web" => Standing::Unhealthy,
            "after" => Standing::Well,
            _ => Standing::Ended,
        };
        let all: Seen = spec.services.keys().map(|s| ((spec.name.clone(), s.clone()), standing(s))).collect();
        let left = |maintenance| {
            let mut seen = all.clone();
            leave_out(&mut seen, &spec, &BTreeSet::from([ServiceName::new("old").unwrap()]), maintenance);
            seen.into_keys().map(|(_, s)| s.to_string()).collect::<Vec<_>>()
        };
        // `api` has ended itself; `web` runs and says what the store says.
        assert_eq!(left(false), ["after", "api", "store"]);
        assert_eq!(left(true), Vec::<String>::new());
    }
}
