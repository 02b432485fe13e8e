//! Host ports and networks: free or ours, there or makeable, without overlap.

use super::{Facts, Report};
use crate::model::ids::ServiceName;
use crate::model::labels;
use crate::model::observed::{NetworkInfo, RunState};
use crate::model::preflight::Passed;
use crate::model::spec::{IpamPool, NetworkSpec, PortSpec, ServiceSpec};
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};

pub(super) fn all(facts: &Facts<'_>, host_ports: bool, report: &mut Report) {
    let mut taken = vec![];
    let mut published = 0;
    for (change, spec) in facts.renewed() {
        published += spec.ports.len();
        taken.extend(taken_ports(facts, host_ports, &change.service, spec));
    }
    let seen = if host_ports { "" } else { " (by containers; other processes of the engine's host cannot be seen from here)" };
    report.all("port.free", Passed::No, taken, format!("{published} published ports are free or ours{seen}"));
    external(facts, report);
    subnets(facts, report);
    definitions(facts, report);
}

/// What exists is used as it is, so it must be what the file says.
fn definitions(facts: &Facts<'_>, report: &mut Report) {
    let own = facts.plan.desired.networks.values().filter(|n| !n.external);
    let problems = own.filter_map(|wanted| {
        let found = facts.networks.iter().find(|n| n.name == wanted.name)?;
        let what = differs(wanted, found)?;
        Some(format!(
            "network {} exists with another {what} than the file's: a network is not changed in place; give it another name, or `stop` the stack with \
             remove and deploy again",
            wanted.name
        ))
    });
    report.all("network.definition", Passed::No, problems.collect(), "networks are as the file says, or are made");
}

/// The first thing a network is made with that is not as the file says. What the file leaves to the engine does not count.
fn differs(wanted: &NetworkSpec, found: &NetworkInfo) -> Option<String> {
    let subnets = |texts: &mut dyn Iterator<Item = &String>| -> BTreeSet<String> {
        texts.map(|t| t.parse::<Subnet>().map_or_else(|()| t.clone(), |s| format!("{s:?}"))).collect()
    };
    let asked = subnets(&mut wanted.ipam.iter().filter_map(|p| p.subnet.as_ref()));
    let option = wanted.driver_opts.iter().find(|(key, value)| found.options.get(*key) != Some(value));
    match () {
        () if wanted.driver.as_ref().is_some_and(|d| *d != found.driver) => Some(format!("driver ({})", found.driver)),
        () if wanted.internal != found.internal => Some(format!("`internal` ({})", found.internal)),
        () if wanted.written_ipv6.is_some_and(|wanted| wanted != found.ipv6) => Some(format!("`enable_ipv6` ({})", found.ipv6)),
        () if wanted.attachable && !found.attachable => Some("`attachable` (false)".into()),
        () if !asked.is_empty() && asked != subnets(&mut found.subnets.iter()) => Some(format!("subnet ({})", found.subnets.join(", "))),
        () if wanted.ipam_driver.as_ref().is_some_and(|d| *d != found.ipam_driver && !found.ipam_driver.is_empty()) => {
            Some(format!("ipam driver ({})", found.ipam_driver))
        }
        () => wanted.ipam.iter().find_map(|pool| addresses(pool, found)).or_else(|| option.map(|(key, _)| format!("driver option {key}"))),
    }
}

/// The first address of a pool that is not as the file writes it. The engine fills in the gateway where the file names none.
fn addresses(wanted: &IpamPool, found: &NetworkInfo) -> Option<String> {
    let parsed = |text: &Option<String>| text.as_ref().and_then(|t| t.parse::<Subnet>().ok());
    // One without a subnet is the only one.
    let same = |p: &&IpamPool| wanted.subnet.is_none() || parsed(&p.subnet) == parsed(&wanted.subnet);
    let pool = found.pools.iter().find(same)?;
    let word = |text: Option<&String>| text.map_or("none", String::as_str).to_owned();
    let other = |wanted: &String, found: Option<&String>| match (
        wanted.parse::<IpAddr>(),
        found.map(|f| f.split('/').next().unwrap_or(f).parse::<IpAddr>()),
    ) {
        (Ok(wanted), Some(Ok(found))) => wanted != found,
        _ => Some(wanted) != found,
    };
    // The engine keeps a range as it was written, whatever its host part.
    let range = |wanted: &String| parsed(&pool.ip_range).is_none_or(|found| wanted.parse() != Ok(found));
    match () {
        () if wanted.gateway.as_ref().is_some_and(|w| other(w, pool.gateway.as_ref())) => {
            Some(format!("gateway ({})", word(pool.gateway.as_ref())))
        }
        () if wanted.ip_range.as_ref().is_some_and(range) => Some(format!("ip_range ({})", word(pool.ip_range.as_ref()))),
        () => wanted.aux_addresses.iter().find(|(host, address)| other(address, pool.aux_addresses.get(*host))).map(|(host, _)| {
            let there = word(pool.aux_addresses.get(host));
            format!("aux address of {host} ({there})")
        }),
    }
}

fn taken_ports(facts: &Facts<'_>, host_ports: bool, service: &ServiceName, spec: &ServiceSpec) -> Vec<String> {
    let mut out = vec![];
    for port in &spec.ports {
        for number in wanted(port, spec.replicas) {
            let holder = facts
                .containers
                .iter()
                .filter(|c| c.state == RunState::Running)
                .find(|c| c.ports.iter().any(|p| p.host_port == number && p.protocol == port.protocol && overlaps(&p.host_ip, port)));
            match holder {
                Some(c) if facts.ours(&c.labels) => {
                    let holder = c.labels.get(labels::SERVICE).map_or("", String::as_str);
                    // Its own port changes hands with it; another service's only where the plan has that one end first.
                    let freed = holder == service.as_str()
                        || facts.plan.makes_way.iter().any(|(gone, heirs)| gone.as_str() == holder && heirs.contains(service));
                    if !freed {
                        out.push(format!(
                        "port {number}/{} of service {service} is held by service {holder} of this stack, which does not give it up in this plan; \
                         give one of them another port, or deploy the change of {holder} first",
                        port.protocol
                    ));
                    }
                }
                Some(c) => out.push(format!("port {number}/{} of service {service} is held by container {}", port.protocol, c.name)),
                None if host_ports && port.protocol == "tcp" && !bindable(port, number) => {
                    out.push(format!("port {number}/tcp of service {service} is held by a process on the host"));
                }
                None => {}
            }
        }
    }
    out
}

/// Host ports the copies of a service will hold; none where the engine chooses.
fn wanted(port: &PortSpec, replicas: u32) -> Vec<u16> {
    let Some(published) = port.published.as_deref() else { return vec![] };
    let (first, last) = published.split_once('-').unwrap_or((published, published));
    match (first.parse::<u16>(), last.parse::<u16>()) {
        (Ok(first), Ok(last)) if first != 0 => (first..=last).take(replicas.max(1) as usize).collect(),
        _ => vec![],
    }
}

fn overlaps(held: &str, wanted: &PortSpec) -> bool {
    let any = |ip: &str| ip.is_empty() || ip == "0.0.0.0" || ip == "::";
    let wanted = wanted.host_ip.as_deref().unwrap_or("");
    any(held) || any(wanted) || held == wanted
}

fn bindable(port: &PortSpec, number: u16) -> bool {
    let ip = port.host_ip.as_deref().and_then(|ip| ip.parse::<IpAddr>().ok()).unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
    match TcpListener::bind(SocketAddr::new(ip, number)) {
        Ok(_) => true,
        Err(e) => e.kind() != std::io::ErrorKind::AddrInUse,
    }
}

fn external(facts: &Facts<'_>, report: &mut Report) {
    let there = |name: &str| facts.networks.iter().any(|n| n.name == name || n.id.as_str() == name);
    let missing = facts.plan.desired.networks.values().filter(|n| n.external && !there(&n.name));
    let problems = missing.map(|n| format!("network {} does not exist; create it or correct its name", n.name)).collect();
    report.all("network.external", Passed::No, problems, "external networks exist");
}

/// Subnets the file asks for must not overlap with those of other networks or with each other.
fn subnets(facts: &Facts<'_>, report: &mut Report) {
    let mut problems = vec![];
    let own = |name: &str| facts.plan.desired.networks.values().any(|n| n.name == name);
    let mut known: Vec<(String, Subnet)> = facts
        .networks
        .iter()
        .filter(|n| !own(&n.name))
        .flat_map(|n| n.subnets.iter().filter_map(|s| Some((n.name.clone(), s.parse().ok()?))))
        .collect();
    for network in facts.plan.desired.networks.values().filter(|n| !n.external) {
        for text in network.ipam.iter().filter_map(|p| p.subnet.as_ref()) {
            let Ok(subnet) = text.parse::<Subnet>() else {
                problems.push(format!("network {}: {text} is no subnet", network.name));
                continue;
            };
            if let Some((other, _)) = known.iter().find(|(_, s)| s.overlaps(&subnet)) {
                problems.push(format!("network {}: subnet {text} overlaps with network {other}; choose another one", network.name));
            }
            known.push((network.name.clone(), subnet));
        }
    }
    report.all("network.subnet", Passed::No, problems, "no subnet overlaps");
}

/// A subnet in CIDR form.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Subnet {
    first: u128,
    bits: u32,
    width: u32,
}

impl std::str::FromStr for Subnet {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (ip, bits) = text.trim().split_once('/').ok_or(())?;
        let bits: u32 = bits.parse().map_err(|_| ())?;
        let (value, width) = match ip.parse::<IpAddr>().map_err(|_| ())? {
            IpAddr::V4(v4) => (u128::from(u32::from(v4)), 32),
            IpAddr::V6(v6) => (u128::from(v6), 128),
        };
        if bits > width {
            return Err(());
        }
        let host = width - bits;
        let first = if host >= 128 { 0 } else { value >> host << host };
        Ok(Self { first, bits, width })
    }
}

impl Subnet {
    fn overlaps(&self, other: &Self) -> bool {
        let shared = self.bits.min(other.bits);
        let cut = |s: &Self| if s.width - shared >= 128 { 0 } else { s.first >> (s.width - shared) };
        self.width == other.width && cut(self) == cut(other)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subnets_overlap_when_one_holds_the_other() {
        let s = |t: &str| t.parse::<Subnet>().unwrap();
        assert!(s("10.0.0.0/8").overlaps(&s("10.1.2.0/24")) && s("10.1.2.0/24").overlaps(&s("10.0.0.0/8")));
        assert!(!s("10.1.2.0/24").overlaps(&s("10.1.3.0/24")) && !s("10.0.0.0/8").overlaps(&s("fd00::/8")));
        assert!(s("0.0.0.0/0").overlaps(&s("192.168.0.0/16")) && s("::/0").overlaps(&s("fd00::/64")));
        assert!("10.0.0.0".parse::<Subnet>().is_err() && "10.0.0.0/33".parse::<Subnet>().is_err());
    }
}
