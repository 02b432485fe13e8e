//! Host paths that lie in a directory some container may write: it can put a link in their place, and the engine follows that link whenever it starts their
//! container by itself, when nobody judges. That is the whole host, so it is asked for, in every environment; what was approved once is a warning after.
//! Looked at from both sides: a path of this stack below a directory that this or another stack writes, and a directory that this stack writes above a path
//! of another. Deliberately absent: paths that are merely read above others (`:ro`), and containers that are no stack's.

use super::volumes::{LocalVolume, local_volume};
use super::{Judge, is_below};
use crate::model::plan::Carried;
use crate::model::spec::mounts::{Way, placed};
use crate::model::spec::{MountKind, StackSpec};
use std::collections::{BTreeMap, BTreeSet};

const RULE: &str = "bind.above";

/// A host path that the engine follows when it starts a container.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Followed {
    /// Service that has it.
    pub service: String,
    /// Where in the file.
    pub path: String,
    /// The host path, as `real` gives it.
    pub real: String,
    /// Whether the container may write there.
    pub writable: bool,
}

/// The host paths that services of a stack have in their containers: binds, volumes that are binds, files that are mounted. `real` follows links.
pub fn followed(spec: &StackSpec, carried: &Carried, real: &dyn Fn(&str) -> String) -> Vec<Followed> {
    let none = BTreeSet::new();
    let devices: BTreeMap<&str, String> = spec
        .volumes
        .iter()
        .filter_map(|(key, v)| match local_volume(v) {
            LocalVolume::Bind(device) => Some((key.as_str(), device)),
            LocalVolume::Plain | LocalVolume::Remote | LocalVolume::Host => None,
        })
        .collect();
    let mut all = vec![];
    for (name, s) in &spec.services {
        for (i, mount) in s.mounts.iter().enumerate() {
            let source = mount.source.as_deref().unwrap_or_default();
            let host = match mount.kind {
                MountKind::Bind => Some(source),
                MountKind::Volume | MountKind::Cluster => devices.get(source).map(String::as_str),
                MountKind::Tmpfs | MountKind::Npipe | MountKind::Image => None,
            };
            let path = if mount.path.is_empty() { format!("services.{name}.volumes[{i}]") } else { mount.path.clone() };
            all.extend(host.map(|h| Followed { service: name.to_string(), path, real: real(h), writable: !mount.read_only }));
        }
        for file in placed(spec, s, carried.get(name).unwrap_or(&none)) {
            if let Way::Mounted(host) = file.way {
                all.push(Followed {
                    service: name.to_string(),
                    path: format!("services.{name}.{}", file.path),
                    real: real(host),
                    writable: false,
                });
            }
        }
    }
    all
}

fn lies_in(inner: &Followed, outer: &Followed) -> bool {
    outer.writable && inner.real != outer.real && is_below(&inner.real, &outer.real)
}

/// What an approval or an exception is for: the one path in the other.
fn judged(inner: &Followed, outer: &Followed) -> String {
    format!("{} in {}", inner.real, outer.real)
}

pub(super) fn stack(j: &mut Judge<'_>) {
    let mine = followed(j.spec, &j.facts.carried, &|path| j.real(path));
    let facts = j.facts;
    let others = || facts.other_stacks.iter().flat_map(|(stack, other)| other.followed.iter().map(move |f| (Some(stack), f)));
    let whose = |stack: Option<&String>, f: &Followed| match stack {
        None => format!("service {}", f.service),
        Some(stack) => format!("service {} of stack {stack}", f.service),
    };
    for inner in &mine {
        for (stack, outer) in mine.iter().map(|f| (None, f)).chain(others()).filter(|(_, outer)| lies_in(inner, outer)) {
            let value = judged(inner, outer);
            let because = format!(
                "{value}: {} may write there and put a link to anywhere on the host in its place, and the engine follows that when it restarts the container; \
                 mount the outer directory :ro, or what is inside of it piece by piece",
                whose(stack, outer)
            );
            j.hit(RULE, Some(&inner.service), inner.path.clone(), &value, because);
        }
    }
    for outer in &mine {
        for (stack, inner) in others().filter(|(_, inner)| lies_in(inner, outer)) {
            let value = judged(inner, outer);
            let because = format!(
                "{value}: {} has the former, and whoever writes the latter can put a link to anywhere on the host in its place, which the engine follows when \
                 it restarts that container",
                whose(stack, inner)
            );
            j.hit(RULE, Some(&outer.service), outer.path.clone(), &value, because);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{BindFact, OtherStack, PlanFacts, judge};
    use super::*;
    use crate::model::policy::{Exception, Policy, RuleLevel};
    use crate::model::verdict::Verdict;
    use serde_json::{Value, json};

    fn spec(services: &[(&str, &[(&str, bool)])]) -> StackSpec {
        let services: serde_json::Map<String, Value> = services
            .iter()
            .map(|(name, mounts)| {
                let mounts: Vec<Value> = mounts
                    .iter()
                    .map(|(source, read_only)| json!({"kind": "bind", "source": source, "target": "/x", "read_only": read_only, "propagation": null,
                        "selinux": null, "create_host_path": false, "nocopy": false, "subpath": null, "tmpfs_size": null, "tmpfs_mode": null}))
                    .collect();
                ((*name).to_owned(), json!({"active": true, "image": "a:1", "replicas": 1, "restart": "always", "resources": {"memory": 1}, "mounts": mounts}))
            })
            .collect();
        let all = json!({"name": "shop", "services": services, "networks": {}, "volumes": {}, "configs": {}, "secrets": {}});
        serde_json::from_value(all).unwrap()
    }

    fn found(spec: &StackSpec, facts: &PlanFacts, policy: &Policy) -> Vec<(Option<String>, Option<String>, Verdict)> {
        let day = chrono::NaiveDate::from_ymd_opt(2026, 6, 1).unwrap();
        let found = judge(spec, facts, policy, day).into_iter().filter(|f| f.rule == RULE);
        found.map(|f| (f.service, f.path, f.verdict)).collect()
    }

    fn facts(links: &[(&str, &str)]) -> PlanFacts {
        let fact = |real: &str| BindFact { real: real.to_owned(), exists: true, kind: None };
        PlanFacts {
            project_dir: Some("/srv/shop".into()),
            environment: "development".into(),
            resolved: links.iter().map(|(path, real)| ((*path).to_owned(), fact(real))).collect(),
            ..PlanFacts::default()
        }
    }

    fn services(spec: &StackSpec, facts: &PlanFacts) -> Vec<String> {
        found(spec, facts, &Policy::default()).into_iter().filter_map(|f| f.0).collect()
    }

    #[test]
    fn a_path_below_what_a_container_writes_is_asked_for_and_others_are_not() {
        let two = |outer: (&'static str, bool), inner: (&'static str, bool)| spec(&[("a", &[outer]), ("b", &[inner])]);
        let asked = |outer, inner| services(&two(outer, inner), &facts(&[]));
        assert_eq!(asked(("/srv/shop", false), ("/srv/shop/x", false)), ["b"]);
        assert_eq!(asked(("/srv/shop/", false), ("/srv/shop/./x", true)), ["b"], "reading the host is no better");
        assert_eq!(asked(("/srv/shop", true), ("/srv/shop/x", false)), Vec::<String>::new(), "who only reads above moves nothing");
        assert_eq!(asked(("/srv/shop/x", false), ("/srv/shop/x", false)), Vec::<String>::new(), "a mount cannot replace itself");
        assert_eq!(asked(("/srv/shop/x", false), ("/srv/shop/xy", false)), Vec::<String>::new());
        let one = spec(&[("app", &[("/srv/shop", false), ("/srv/shop/data", false)])]);
        assert_eq!(services(&one, &facts(&[])), ["app"], "it restarts itself just as well");
        // Where they really lead.
        let linked = facts(&[("/srv/shop", "/data/shop"), ("/srv/shop/x", "/data/shop/x")]);
        assert_eq!(services(&two(("/srv/shop", false), ("/srv/shop/x", false)), &linked), ["b"]);
        let apart = facts(&[("/srv/shop", "/data/shop"), ("/srv/shop/x", "/mnt/x")]);
        assert_eq!(services(&two(("/srv/shop", false), ("/srv/shop/x", false)), &apart), Vec::<String>::new());
    }

    #[test]
    fn volumes_that_are_binds_and_mounted_files_count() {
        let mut spec = spec(&[("a", &[("/srv/shop", false)]), ("b", &[])]);
        let mount = |source: &str| {
            json!({"kind": "volume", "source": source, "target": "/x", "read_only": false, "propagation": null, "selinux": null, "create_host_path": false,
                "nocopy": false, "subpath": null, "tmpfs_size": null, "tmpfs_mode": null})
        };
        spec.volumes = serde_json::from_value(
            json!({"v": {"name": "shop_v", "external": false, "driver_opts": {"o": "bind", "device": "/srv/shop/v"}}}),
        )
        .unwrap();
        let b = spec.services.iter_mut().find(|(n, _)| n.as_str() == "b").unwrap().1;
        b.mounts = vec![serde_json::from_value(mount("v")).unwrap()];
        assert_eq!(services(&spec, &facts(&[])), ["b"]);
        let b = spec.services.iter_mut().find(|(n, _)| n.as_str() == "b").unwrap().1;
        (b.mounts, b.read_only) = (vec![], true);
        b.secrets = serde_json::from_value(json!([{"source": "key", "target": "/run/secrets/key"}])).unwrap();
        spec.secrets = serde_json::from_value(
            json!({"key": {"name": "key", "external": false, "file": "/srv/shop/key", "content": "k", "labels": {}}}),
        )
        .unwrap();
        assert_eq!(services(&spec, &facts(&[])), ["b"]);
        spec.services.iter_mut().find(|(n, _)| n.as_str() == "b").unwrap().1.read_only = false;
        assert_eq!(services(&spec, &facts(&[])), Vec::<String>::new(), "copied into the container, nothing is followed");
        let b = spec.services.iter_mut().find(|(n, _)| n.as_str() == "b").unwrap().1;
        b.mounts = vec![crate::model::spec::MountSpec::new(MountKind::Tmpfs, "/run", "")];
        assert_eq!(services(&spec, &facts(&[])), ["b"], "mounted beneath another mount");
        spec.services.iter_mut().find(|(n, _)| n.as_str() == "b").unwrap().1.mounts.clear();
        for place in ["/run/", "/run/secrets", "/run/secrets/key"] {
            let carried = BTreeMap::from([(crate::model::ids::ServiceName::new("b").unwrap(), BTreeSet::from([place.to_owned()]))]);
            assert_eq!(services(&spec, &PlanFacts { carried, ..facts(&[]) }), ["b"], "beneath a volume of the image, {place}");
        }
    }

    #[test]
    fn other_stacks_are_looked_at_from_both_sides() {
        let other = |real: &str, writable| {
            let followed = vec![Followed { service: "files".into(), path: String::new(), real: real.into(), writable }];
            let other_stacks = BTreeMap::from([("tools".to_owned(), OtherStack { followed, ..OtherStack::default() })]);
            PlanFacts { other_stacks, ..facts(&[]) }
        };
        let (inner, outer) = (spec(&[("b", &[("/srv/shop/x", false)])]), spec(&[("a", &[("/srv/shop", false)])]));
        assert_eq!(services(&inner, &other("/srv", true)), ["b"]);
        assert_eq!(services(&inner, &other("/srv", false)), Vec::<String>::new());
        assert_eq!(services(&outer, &other("/srv/shop/theirs", false)), ["a"]);
        assert_eq!(services(&outer, &other("/srv/other", true)), Vec::<String>::new());
    }

    #[test]
    fn it_is_asked_for_in_every_environment_and_policy_and_exceptions_say_otherwise() {
        let spec = spec(&[("a", &[("/srv/shop", false)]), ("b", &[("/srv/shop/x", false)])]);
        for environment in ["development", "staging", "production"] {
            let facts = PlanFacts { environment: environment.into(), ..facts(&[]) };
            let all = found(&spec, &facts, &Policy::default());
            assert_eq!(all, [(Some("b".to_owned()), Some("services.b.volumes[0]".to_owned()), Verdict::Approval)], "{environment}");
        }
        let mut policy = Policy::default();
        policy.rules.insert(RULE.to_owned(), RuleLevel::Deny);
        assert_eq!(found(&spec, &facts(&[]), &policy)[0].2, Verdict::Deny);
        policy.exceptions = vec![Exception {
            rule: RULE.into(),
            stack: "shop".into(),
            service: Some("b".into()),
            value: "/srv/shop/x in /srv/shop".into(),
            because: "a trusted editor".into(),
            expires: chrono::NaiveDate::from_ymd_opt(2026, 6, 1).unwrap(),
        }];
        assert_eq!(found(&spec, &facts(&[]), &policy)[0].2, Verdict::Warn);
    }
}
