//! What `x-dockwarden` has the supervisor do: commands of hooks, and addresses that probes ask. Probes in the container are as its health check and
//! need no rule of their own.

use super::{At, Judge};
use crate::model::spec::{Probe, ProbeCheck};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Names under which clouds serve their metadata.
const METADATA_HOSTS: &[&str] = &["metadata", "metadata.google.internal", "instance-data"];

/// Whether an address is link-local, unspecified, multicast, or one where a cloud serves credentials.
pub fn forbidden(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(v4) => {
            let metadata = [Ipv4Addr::new(100, 100, 100, 200), Ipv4Addr::new(168, 63, 129, 16), Ipv4Addr::new(192, 0, 0, 192)];
            v4.is_link_local() || v4.is_unspecified() || v4.is_broadcast() || v4.is_multicast() || metadata.contains(&v4)
        }
        IpAddr::V6(v6) => {
            let aws = Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254);
            // NAT64 (RFC 6052) leads to the IPv4 address in the last 32 bits.
            let embedded = match v6.segments() {
                [0x64, 0xff9b, 0 | 1, 0, 0, 0, high, low] => Some(Ipv4Addr::from((u32::from(high) << 16) | u32::from(low))),
                _ => None,
            };
            embedded.is_some_and(|v4| forbidden(IpAddr::V4(v4)))
                || v6.to_ipv4_mapped().is_some_and(|v4| forbidden(IpAddr::V4(v4)))
                || v6.is_unicast_link_local()
                || v6.is_unspecified()
                || v6.is_multicast()
                || v6 == aws
        }
    }
}

/// Tests and hooks of the whole stack; each runs in a container of the service it names.
pub(super) fn stack(j: &mut Judge<'_>) {
    let spec = j.spec;
    for (list, hooks) in [("pre", &spec.settings.hooks.pre), ("post", &spec.settings.hooks.post)] {
        for (i, h) in hooks.iter().enumerate() {
            let because = "the command runs in a container of the service around a deploy, with its data and secrets in reach";
            j.hit("hook.command", Some(h.service.as_str()), format!("x-dockwarden.hooks.{list}[{i}]"), &h.hook.run.join(" "), because);
        }
    }
    for (i, t) in spec.settings.smoke.iter().enumerate() {
        probe(j, t.service.as_str(), &format!("x-dockwarden.smoke[{i}]"), &t.test);
    }
}

pub(super) fn service(j: &mut Judge<'_>, at: At<'_>) {
    let settings = &at.service.settings;
    for (list, hooks) in [("pre", &settings.hooks.pre), ("post", &settings.hooks.post)] {
        for (i, hook) in hooks.iter().enumerate() {
            let command = hook.run.join(" ");
            let because = "the command runs in a container of the service around a deploy, with its data and secrets in reach";
            j.at("hook.command", at, &format!("x-dockwarden.hooks.{list}[{i}]"), &command, because);
        }
    }
    let backup = settings.backup.clone().unwrap_or_default();
    let around = [("pre", &backup.pre), ("post", &backup.post)];
    let around =
        around.iter().flat_map(|(list, hooks)| hooks.iter().enumerate().map(move |(i, h)| (format!("{list}[{i}]"), h.run.join(" "))));
    let outputs = [("stdout", &backup.stdout), ("verify", &backup.verify)];
    let outputs = outputs.into_iter().filter_map(|(what, c)| Some((what.to_owned(), c.as_ref()?.0.join(" "))));
    for (what, command) in around.chain(outputs) {
        let because = "the command runs in a container of the service at every backup, with its data and secrets in reach";
        j.at("hook.command", at, &format!("x-dockwarden.backup.{what}"), &command, because);
    }
    for (list, probes) in [("probes", &settings.probes), ("smoke", &settings.smoke)] {
        for (i, p) in probes.iter().enumerate() {
            probe(j, at.name, &at.path(&format!("x-dockwarden.{list}[{i}]")), p);
        }
    }
}

fn probe(j: &mut Judge<'_>, service: &str, path: &str, probe: &Probe) {
    if probe.insecure {
        let because = "any certificate will do for this probe: whoever answers at the address passes it";
        j.hit("probe.insecure", Some(service), path, &probe.check.to_string(), because);
    }
    let ProbeCheck::Url(url) = &probe.check else { return };
    let path = format!("{path}.url");
    let host = url.parse::<http::Uri>().ok().and_then(|u| u.host().map(str::to_ascii_lowercase)).unwrap_or_default();
    let host = host.trim_start_matches('[').trim_end_matches(']').trim_end_matches('.');
    let ip = host.parse::<IpAddr>().ok();
    if ip.is_some_and(forbidden) || METADATA_HOSTS.contains(&host) {
        let because = "a probe asks a link-local or metadata address, where credentials of the host are served";
        j.hit("probe.metadata", Some(service), path, host, because);
    } else if host == "localhost" || ip.is_some_and(|ip| ip.is_loopback()) {
        let because = "the supervisor itself asks this address: whatever listens on its own host, not the stack's";
        j.hit("probe.outside", Some(service), path, host, because);
    } else {
        let because = "the supervisor itself asks this address, from its own place in the network";
        j.hit("probe.outside", Some(service), path, host, because);
    }
}
