//! Namespaces a service joins: the host's, another container's, a sibling's. Networks by name are in `networks.rs`.

use super::{At, Judge};

/// Where a namespace setting points.
enum Target<'a> {
    Own,
    Host,
    Service(&'a str),
    Container(&'a str),
    Other,
}

/// Words that mean "its own" in one of the settings.
const OWN: &[&str] = &["", "private", "none", "shareable"];

fn target(written: &str) -> Target<'_> {
    let text = written.trim();
    if OWN.contains(&text) {
        return Target::Own;
    }
    if text.eq_ignore_ascii_case("host") {
        return Target::Host;
    }
    match text.split_once(':') {
        Some(("service", name)) => Target::Service(name.trim()),
        Some(("container", name)) => Target::Container(name.trim().trim_start_matches('/')),
        _ => Target::Other,
    }
}

pub(super) fn service(j: &mut Judge<'_>, at: At<'_>) {
    let s = at.service;
    let settings = [
        ("pid", s.pid.as_deref(), "ns.pid.host"),
        ("ipc", s.ipc.as_deref(), "ns.ipc.host"),
        ("uts", s.uts.as_deref(), "ns.uts.host"),
        ("userns_mode", s.userns_mode.as_deref(), "ns.user.host"),
        ("cgroup", s.cgroup.as_deref(), "ns.cgroup.host"),
        ("network_mode", s.network_mode.as_deref(), "ns.net.host"),
    ];
    for (key, written, host_rule) in settings {
        let Some(written) = written else { continue };
        let foreign = |j: &mut Judge<'_>| j.at("ns.foreign", at, key, written.trim(), "this joins a container that is not of this stack");
        match target(written) {
            Target::Own => {}
            Target::Host => j.at(host_rule, at, key, "host", "this namespace of the host is shared with everything that runs there"),
            Target::Service(name) if !j.has_service(name) => foreign(j),
            Target::Container(name) if !j.own_container(name) => foreign(j),
            Target::Service(_) | Target::Container(_) if key == "pid" => {
                j.at("ns.pid.shared", at, key, written.trim(), "the services see and can signal each other's processes");
            }
            Target::Service(_) | Target::Container(_) => {}
            // A network of that name: judged with the networks.
            Target::Other if key == "network_mode" && !written.contains([':', '/']) => {}
            Target::Other if key == "network_mode" || key == "pid" || key == "ipc" => foreign(j),
            Target::Other => j.at(host_rule, at, key, written.trim(), "an unknown mode of this namespace counts as the host's"),
        }
    }
    if let Some(parent) = s.cgroup_parent.as_deref().filter(|p| !p.is_empty()) {
        j.at("cgroup.parent", at, "cgroup_parent", parent, "a cgroup of its own takes the container out of the host's limits");
    }
}
