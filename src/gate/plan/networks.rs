//! Networks a stack makes or joins, and names it gives to addresses. Joined namespaces are in `namespaces.rs`, ports in `ports.rs`.

use super::{At, Judge};
use std::net::{IpAddr, Ipv4Addr};

/// Drivers that stay inside the engine.
const CONTAINED: &[&str] = &["", "bridge", "overlay", "null", "none", "default"];
/// Option of the bridge driver that takes an existing bridge of the host instead of a new one.
const BRIDGE_NAME: &str = "com.docker.network.bridge.name";
/// Metadata services of clouds outside the link-local block: Alibaba, Azure's wire server, Oracle.
const METADATA: &[Ipv4Addr] = &[Ipv4Addr::new(100, 100, 100, 200), Ipv4Addr::new(168, 63, 129, 16), Ipv4Addr::new(192, 0, 0, 192)];

pub(super) fn stack(j: &mut Judge<'_>) {
    for (key, network) in &j.spec.networks {
        let path = format!("networks.{key}");
        let name = if network.name.is_empty() { key.as_str() } else { network.name.as_str() };
        let driver = network.driver.as_deref().unwrap_or_default().trim().to_ascii_lowercase();
        if driver == "host" {
            j.hit("net.host_external", None, format!("{path}.driver"), "host", "this is the host's own network");
        } else if !CONTAINED.contains(&driver.as_str()) {
            j.hit("net.l2", None, format!("{path}.driver"), &driver, format!("the driver {driver} puts containers on the host's network"));
        } else if let Some(bridge) = network.driver_opts.get(BRIDGE_NAME) {
            j.hit(
                "net.l2",
                None,
                format!("{path}.driver_opts"),
                bridge,
                "this takes a bridge of the host, with whatever is attached to it",
            );
        }
        named(j, None, &path, name, network.external);
    }
}

/// Judges a network by its name on the engine.
fn named(j: &mut Judge<'_>, service: Option<&str>, path: &str, name: &str, external: bool) {
    if name == "host" {
        return j.hit("net.host_external", service, path, name, "this is the host's own network");
    }
    if j.facts.supervisor_objects.contains(name) {
        return j.hit("net.foreign", service, path, name, "the network is the supervisor's own");
    }
    if let Some((other, _)) = j.facts.other_stacks.iter().find(|(_, s)| s.networks.contains(name)) {
        return j.hit("net.foreign", service, path, name, format!("the network belongs to the stack {other:?}"));
    }
    if name == "none" || j.policy.networks_granted.iter().any(|n| n == name) || j.facts.own_objects.contains(name) {
        return;
    }
    if name == "bridge" && external {
        return j.hit(
            "net.default_bridge",
            service,
            path,
            name,
            "on the default bridge everything reaches everything, and names do not resolve",
        );
    }
    if external || j.facts.unowned_objects.contains(name) {
        if j.facts.supervisor_unknown {
            let because = "nobody knows whose the network is, and it may be the supervisor's own: its container was not found";
            return j.hit("net.foreign", service, path, name, because);
        }
        j.hit(
            "net.external_unknown",
            service,
            path,
            name,
            format!("nobody granted the network {name:?} (networks_granted in policy.toml)"),
        );
    }
}

pub(super) fn service(j: &mut Judge<'_>, at: At<'_>) {
    let s = at.service;
    let mode = s.network_mode.as_deref().map(str::trim).unwrap_or_default();
    match mode {
        "" | "none" | "private" => {}
        "bridge" | "default" => {
            j.at(
                "net.default_bridge",
                at,
                "network_mode",
                mode,
                "on the default bridge everything reaches everything, and names do not resolve",
            );
        }
        _ if mode.eq_ignore_ascii_case("host") || mode.contains([':', '/']) => {}
        _ => named(j, Some(at.name), &at.path("network_mode"), mode, true),
    }
    for (i, link) in s.external_links.iter().enumerate() {
        let name = link.trim().split(':').next().unwrap_or_default();
        if !j.own_container(name) {
            j.at("links.foreign", at, &format!("external_links[{i}]"), name, "a link to a container that is not of this stack");
        }
    }
    for (i, entry) in s.extra_hosts.iter().enumerate() {
        let path = format!("extra_hosts[{i}]");
        let (host, address) = entry.split_once(['=', ':']).unwrap_or((entry, ""));
        let address = address.trim().trim_start_matches('[').trim_end_matches(']');
        if address == "host-gateway" {
            j.at("hosts.gateway", at, &path, host, "the service reaches the host, and what listens there, by this name");
        } else if address.parse::<IpAddr>().is_ok_and(metadata) {
            j.at("hosts.metadata", at, &path, address, "link-local addresses are where clouds hand out credentials");
        }
    }
}

/// Whether an address is link-local or a cloud's metadata service.
fn metadata(ip: IpAddr) -> bool {
    match ip.to_canonical() {
        IpAddr::V4(v4) => v4.is_link_local() || METADATA.contains(&v4),
        IpAddr::V6(v6) => v6.is_unicast_link_local() || v6.segments() == [0xfd00, 0x0ec2, 0, 0, 0, 0, 0, 0x0254],
    }
}
