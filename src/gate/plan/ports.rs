//! Published ports: on which addresses, which services behind them, how many. Each port gets the strictest of what applies to it.

use super::{At, Judge};
use crate::model::spec::PortSpec;
use std::net::IpAddr;

/// Ports of container engines' APIs.
const ENGINE_API: &[u16] = &[2375, 2376];
/// Ports of data stores and remote administration that belong on no open interface.
const DATASTORES: &[u16] = &[
    22, 23, 111, 139, 389, 445, 636, 873, 1433, 1521, 2049, 2181, 2377, 2379, 2380, 3306, 3389, 4369, 5432, 5601, 5672, 5900, 5984, 6379,
    6380, 6443, 7000, 7474, 7687, 8086, 8091, 8200, 8300, 8500, 8529, 9042, 9092, 9200, 9300, 10250, 11211, 15672, 26257, 26379, 27017,
    27018, 27019, 28015, 33060, 50070,
];

/// Host ports an entry can take: `None` = the engine chooses one.
fn published(port: &PortSpec) -> Option<(u16, u16)> {
    let text = port.published.as_deref()?.trim();
    let (from, to) = text.split_once('-').unwrap_or((text, text));
    // What is not a number counts as every port: the strictest reading.
    Some(match (from.trim().parse(), to.trim().parse()) {
        (Ok(a), Ok(b)) => (a, b),
        _ => (1, u16::MAX),
    })
}

/// Whether an address means every interface.
fn everywhere(host_ip: Option<&str>) -> bool {
    let text = host_ip.unwrap_or_default().trim().trim_start_matches('[').trim_end_matches(']');
    match text.parse::<IpAddr>() {
        Ok(ip) => ip.to_canonical().is_unspecified(),
        // A name of an interface or garbage is no restriction anybody can rely on.
        Err(_) => true,
    }
}

pub(super) fn service(j: &mut Judge<'_>, at: At<'_>) {
    for (i, port) in at.service.ports.iter().enumerate() {
        let path = if port.path.is_empty() { at.path(&format!("ports[{i}]")) } else { port.path.clone() };
        let range = published(port).filter(|r| *r != (0, 0));
        let touches = |list: &[u16]| list.iter().any(|p| *p == port.target || range.is_some_and(|(a, b)| (a..=b).contains(p)));
        let shown = format!("{}:{}", port.published.as_deref().unwrap_or("*"), port.target);
        let mut hit = |rule: &str, because: &str| j.hit(rule, Some(at.name), path.clone(), &shown, because);
        let open = everywhere(port.host_ip.as_deref());
        let privileged = range.is_some_and(|(a, _)| (1..1024).contains(&a));
        if touches(ENGINE_API) {
            hit("port.engine_api", "this is the port of a container engine's API");
        }
        if open && touches(DATASTORES) {
            hit(
                "port.datastore",
                "a data store or administration port would be open to every network of the host; publish it on 127.0.0.1",
            );
        }
        if open && privileged {
            hit("port.privileged", "a port below 1024 on all interfaces");
        }
        if open && !privileged && !touches(DATASTORES) && !touches(ENGINE_API) {
            hit("port.all_ifaces", "published on all interfaces; give 127.0.0.1 or the address that is meant");
        }
    }
}
