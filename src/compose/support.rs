//! What the model keeps and nobody carries out: one list, so that every key of a file is either rendered into an engine request or named in the
//! plan. Whoever renders a key deletes its line here. Keys without any meaning outside of Compose's own commands are in `service`.

use super::Report;
use crate::model::spec::written::{Build, Deploy};
use crate::model::spec::{FileObject, ServiceSpec, StackSpec};

type Given<T> = fn(&T) -> bool;

/// Keys of a service: path, whether it is given, why it has no effect.
const SERVICE: &[(&str, Given<ServiceSpec>, &str)] = &[
    ("isolation", |s| s.isolation.is_some(), "has no effect: it is for Windows containers"),
    (
        "pull_policy",
        |s| s.pull_policy.as_deref().is_some_and(|p| !matches!(p, "missing" | "if_not_present" | "never")),
        "says when an image is pulled again, and is asked only when the service's container is made anew; `refresh` pulls for every service",
    ),
    ("use_api_socket", |s| s.use_api_socket, "the engine's socket is not handed in"),
];

/// Keys of `deploy`.
const DEPLOY: &[(&str, Given<Deploy>, &str)] = &[
    ("mode", |d| d.mode.as_deref().is_some_and(|m| m != "replicated"), "there is one node: replicas decide how many containers run"),
    ("endpoint_mode", |d| d.endpoint_mode.is_some(), "has no effect outside of a swarm"),
    ("labels", |d| !d.labels.is_empty(), "labels of a swarm service have no effect; write `labels:`"),
    ("placement", |d| d.placement != Default::default(), "there is one node: nothing to choose from"),
    ("update_config", |d| d.update_config.is_some(), "the strategy decides how an update goes; write `x-dockwarden: {strategy: ...}`"),
    ("rollback_config", |d| d.rollback_config.is_some(), "the strategy decides how a rollback goes"),
    ("resources.reservations.cpus", |d| d.resources.reservations.as_ref().is_some_and(|r| r.cpus.is_some()), "the engine reserves no CPUs"),
    (
        "resources.reservations.generic_resources",
        |d| d.resources.reservations.as_ref().is_some_and(|r| !r.generic_resources.is_empty()),
        "has no effect outside of a swarm",
    ),
];

/// Keys of `build` that the classic builder does not know.
const BUILD: &[(&str, Given<Build>, &str)] = &[
    ("additional_contexts", |b| !b.additional_contexts.is_empty(), NEEDS_BUILDKIT),
    ("cache_to", |b| !b.cache_to.is_empty(), NEEDS_BUILDKIT),
    ("entitlements", |b| !b.entitlements.is_empty(), NEEDS_BUILDKIT),
    ("no_cache_filter", |b| !b.no_cache_filter.is_empty(), NEEDS_BUILDKIT),
    ("privileged", |b| b.privileged, NEEDS_BUILDKIT),
    ("provenance", |b| b.provenance.is_some(), NEEDS_BUILDKIT),
    ("sbom", |b| b.sbom.is_some(), NEEDS_BUILDKIT),
    ("secrets", |b| !b.secrets.is_empty(), NEEDS_BUILDKIT),
    ("ssh", |b| !b.ssh.is_empty(), NEEDS_BUILDKIT),
    ("platforms", |b| b.platforms.len() > 1, "the classic builder builds for one platform"),
];
const NEEDS_BUILDKIT: &str = "needs BuildKit; the classic builder has no such key";

/// Keys of top-level configs and secrets.
const OBJECT: &[(&str, Given<FileObject>, &str)] = &[
    ("labels", |f| !f.labels.is_empty(), "labels have no effect: contents are delivered as files"),
    ("driver", |f| f.driver.is_some() && f.template_driver.is_none(), "a driver has no effect: contents are delivered as files"),
];

fn all<T>(list: &[(&str, Given<T>, &str)], value: &T, path: &str, report: &mut Report) {
    for (key, _, reason) in list.iter().filter(|(_, given, _)| given(value)) {
        report.note(&format!("{path}.{key}"), *reason);
    }
}

/// Notes every key of an active service, and of the top-level objects, that has no effect.
pub(super) fn notes(spec: &StackSpec, report: &mut Report) {
    for (name, service) in spec.services.iter().filter(|(_, s)| s.active) {
        let path = format!("services.{name}");
        all(SERVICE, service, &path, report);
        if let Some(deploy) = &service.written.deploy {
            all(DEPLOY, deploy, &format!("{path}.deploy"), report);
        }
        if let Some(build) = &service.written.build {
            all(BUILD, build, &format!("{path}.build"), report);
        }
        for (mount, sections) in service.mounts.iter().zip(&service.written.mounts) {
            if sections.consistency.is_some() {
                report.note(&mount.path, "`consistency` has no effect on Linux");
            }
        }
    }
    for (kind, objects) in [("configs", &spec.configs), ("secrets", &spec.secrets)] {
        for (key, object) in objects {
            all(OBJECT, object, &format!("{kind}.{key}"), report);
        }
    }
}
