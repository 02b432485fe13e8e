//! What `x-dockwarden` has the supervisor do: commands of hooks, and addresses that probes ask. Probes in the container are as its health check and
//! need no rule of their own.

use super::{At, Judge};
use crate::model::spec::ProbeCheck;
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
            v6.to_ipv4_mapped().is_some_and(|v4| forbidden(IpAddr::V4(v4)))
                || v6.is_unicast_link_local()
                || v6.is_unspecified()
                || v6.is_multicast()
                || v6 == aws
        }
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
        for (i, probe) in probes.iter().enumerate() {
            let ProbeCheck::Url(url) = &probe.check else { continue };
            let path = format!("x-dockwarden.{list}[{i}].url");
            let host = url.parse::<http::Uri>().ok().and_then(|u| u.host().map(str::to_ascii_lowercase)).unwrap_or_default();
            let host = host.trim_start_matches('[').trim_end_matches(']').trim_end_matches('.');
            let ip = host.parse::<IpAddr>().ok();
            if ip.is_some_and(forbidden) || METADATA_HOSTS.contains(&host) {
                j.at(
                    "probe.metadata",
                    at,
                    &path,
                    host,
                    "a probe asks a link-local or metadata address, where credentials of the host are served",
                );
            } else if host != "localhost" && !ip.is_some_and(|ip| ip.is_loopback()) {
                j.at("probe.outside", at, &path, host, "the supervisor itself asks this address, from its own place in the network");
            }
        }
    }
}
