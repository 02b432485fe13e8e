//! Mounts of a service: where host paths really lead, the engine's socket in any disguise, propagation, image mounts, volumes of others'
//! containers. Volumes as such are in `volumes.rs`.

use super::{At, BindFact, Judge, PathKind, is_below, normalise};
use crate::model::spec::{MountKind, MountSpec};

/// File names of engines' sockets, wherever they lie.
const SOCKET_NAMES: &[&str] = &[
    "docker.sock",
    "docker-cli.sock",
    "docker.raw.sock",
    "podman.sock",
    "containerd.sock",
    "containerd.sock.ttrpc",
    "crio.sock",
    "cri-dockerd.sock",
    "dockershim.sock",
    "buildkitd.sock",
    "balena-engine.sock",
];
/// Directories that hold one. Their parents other than these are simply outside the allowed roots.
const SOCKET_DIRS: &[&str] = &[
    "/run",
    "/var/run",
    "/run/docker",
    "/var/run/docker",
    "/run/containerd",
    "/var/run/containerd",
    "/run/podman",
    "/var/run/podman",
    "/run/crio",
    "/var/run/crio",
    "/run/buildkit",
    "/run/user",
    "/var/run/user",
];

/// What is wrong with a host path.
pub struct PathProblem {
    /// Rule.
    pub rule: &'static str,
    /// Why.
    pub because: &'static str,
}

/// Whether a path without links is an engine's socket or a directory that holds one.
pub fn engine_socket(path: &str, more: &[String]) -> bool {
    let name = path.rsplit('/').next().unwrap_or_default();
    let user_run = path.strip_prefix("/run/user/").or_else(|| path.strip_prefix("/var/run/user/")).is_some_and(|rest| !rest.contains('/'));
    let holds = |socket: &String| {
        let socket = normalise(socket.strip_prefix("unix://").unwrap_or(socket));
        path != "/" && is_below(&socket, path)
    };
    SOCKET_NAMES.contains(&name) || SOCKET_DIRS.contains(&path) || user_run || more.iter().any(holds)
}

/// Judges a host path that a service would reach: `written` as the plan has it, `fact` as it was resolved.
pub(super) fn host_path(j: &Judge<'_>, written: &str, fact: Option<&BindFact>) -> Option<PathProblem> {
    let problem = |rule, because| Some(PathProblem { rule, because });
    let lexical = normalise(written);
    if engine_socket(&lexical, &j.facts.engine_sockets) {
        return problem("socket.engine", "whoever talks to the engine is root on the host");
    }
    if !lexical.starts_with('/') {
        return problem("bind.outside", "the path is not absolute, so nobody knows where it leads");
    }
    let Some(fact) = fact else {
        return problem("bind.outside", "the path could not be resolved, so nobody knows where it leads");
    };
    let real = normalise(&fact.real);
    if engine_socket(&real, &j.facts.engine_sockets) {
        return problem("socket.engine", "the link leads to the engine's socket; whoever talks to the engine is root on the host");
    }
    let own = |p: &String| is_below(&real, &j.real(p)) || is_below(&j.real(p), &real);
    if j.facts.protected_paths.iter().any(own) {
        return problem("bind.outside", "this is the supervisor's own state or configuration");
    }
    if fact.kind == Some(PathKind::Device) {
        return problem("bind.outside", "a device is handed in by `devices`, not by a mount");
    }
    if j.in_project(&real) || j.policy.bind_roots_allow.iter().any(|r| j.below(&real, r)) {
        return None;
    }
    if j.policy.bind_roots_approval.iter().any(|r| j.below(&real, r)) {
        return problem("bind.approval", "host paths below this root need approval");
    }
    problem("bind.outside", "the path leads outside the project directory and the roots the policy allows")
}

pub(super) fn service(j: &mut Judge<'_>, at: At<'_>) {
    for (i, mount) in at.service.mounts.iter().enumerate() {
        let path = if mount.path.is_empty() { at.path(&format!("volumes[{i}]")) } else { mount.path.clone() };
        one(j, at, mount, &path);
    }
    for (i, from) in at.service.volumes_from.iter().enumerate() {
        let mut words = from.trim().split(':');
        let foreign = match (words.next().unwrap_or_default(), words.next()) {
            ("container", name) => !name.is_some_and(|n| j.own_container(n)),
            (name, _) => !j.has_service(name),
        };
        if foreign {
            j.at(
                "vol.from_foreign",
                at,
                &format!("volumes_from[{i}]"),
                from.trim(),
                "these are volumes of a container that is not of this stack",
            );
        }
    }
}

fn one(j: &mut Judge<'_>, at: At<'_>, mount: &MountSpec, path: &str) {
    let hit = |j: &mut Judge<'_>, rule: &str, value: &str, because: &str| j.hit(rule, Some(at.name), path, value, because);
    let source = mount.source.as_deref().unwrap_or_default();
    match mount.kind {
        MountKind::Bind => {
            let fact = j.resolved(source);
            let real = fact.map_or_else(|| normalise(source), |f| normalise(&f.real));
            if let Some(problem) = host_path(j, source, fact) {
                hit(j, problem.rule, &real, problem.because);
            }
        }
        MountKind::Npipe => hit(j, "socket.engine", source, "named pipes are how engines are reached on Windows"),
        MountKind::Image => super::images::reference(j, at, path, source),
        MountKind::Volume | MountKind::Cluster => {
            if source.starts_with(['/', '.', '~']) {
                hit(j, "bind.outside", source, "a volume's name cannot be a path");
            }
        }
        MountKind::Tmpfs => {}
    }
    let propagation = mount.propagation.as_deref().unwrap_or_default();
    if matches!(propagation.trim().to_ascii_lowercase().as_str(), "shared" | "rshared") {
        hit(j, "bind.propagation", propagation, "mounts made in the container would appear on the host");
    }
}
