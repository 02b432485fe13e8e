//! Published ports, short and long, ranges expanded to one entry per port. Does not know which ports are free.

use super::Report;
use super::reader::Reader;
use super::value::Value;
use crate::model::spec::PortSpec;

/// Entries of one service after expansion: the whole range of ports, once.
const MAX_PORTS: usize = 65_535;
/// What one entry takes in memory, bytes, beside its text.
const COST: usize = 240;
const HINT: &str = "write \"8080:80\", \"127.0.0.1:8080:80/tcp\" or the long form {target: 80, published: \"8080\"}";

/// The ports of a service.
pub(super) fn read(value: Value, path: &str, report: &mut Report) -> Vec<PortSpec> {
    let Value::Seq(items) = value else {
        report.error(path, format!("a list is needed, found {}", value.kind()), HINT);
        return Vec::new();
    };
    let mut out: Vec<PortSpec> = Vec::new();
    for (index, item) in items.into_iter().enumerate() {
        let path = format!("{path}[{index}]");
        let more = match item {
            Value::Map(_) => long(item, &path, report),
            Value::Null | Value::Seq(_) | Value::Tagged(..) => {
                report.error(&path, format!("a port is needed, found {}", item.kind()), HINT);
                Vec::new()
            }
            scalar => {
                let text = scalar.scalar().unwrap_or_default();
                match short(&text, &path, &mut |ports| report.expand(&path, ports * (COST + path.len()))) {
                    Ok(ports) => ports,
                    Err(message) => {
                        report.error(&path, message, HINT);
                        Vec::new()
                    }
                }
            }
        };
        if out.len() + more.len() > MAX_PORTS {
            report.error(&path, format!("more than {MAX_PORTS} ports"), "publish fewer ports");
            break;
        }
        out.extend(more);
    }
    // Overrides repeat what the base says: an identical publication is one, and the later one counts.
    let mut places = std::collections::BTreeMap::new();
    let mut unique: Vec<PortSpec> = Vec::with_capacity(out.len());
    for port in out {
        let host = port.host_ip.clone().unwrap_or_else(|| "0.0.0.0".into());
        let place = *places.entry((host, port.published.clone(), port.target, port.protocol.clone())).or_insert(unique.len());
        match unique.get_mut(place) {
            Some(same) => *same = port,
            None => unique.push(port),
        }
    }
    unique
}

/// One port or an ascending range.
pub(super) fn range(text: &str) -> Result<(u16, u16), String> {
    let number = |t: &str| t.trim().parse::<u16>().map_err(|_| format!("{t:?} is no port; ports are 0 to 65535"));
    let (from, to) = match text.split_once('-') {
        Some((from, to)) => (number(from)?, number(to)?),
        None => (number(text)?, number(text)?),
    };
    if from > to { Err(format!("the range {text:?} runs backwards")) } else { Ok((from, to)) }
}

fn short(text: &str, path: &str, may: &mut dyn FnMut(usize) -> bool) -> Result<Vec<PortSpec>, String> {
    let (body, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let protocol = if protocol.is_empty() { "tcp".to_owned() } else { protocol.to_ascii_lowercase() };
    if !matches!(protocol.as_str(), "tcp" | "udp" | "sctp") {
        return Err(format!("{protocol:?} is no protocol; there are tcp, udp and sctp"));
    }
    let (front, container) = body.rsplit_once(':').map_or((None, body), |(f, c)| (Some(f), c));
    if container.is_empty() {
        return Err(format!("{text:?} has no container port; is a variable unset?"));
    }
    let (ip, published) = match front {
        None => (None, ""),
        Some(front) => match front.rsplit_once(':') {
            None => (None, front),
            Some((ip, published)) => (Some(ip), published),
        },
    };
    let host_ip = match ip {
        None | Some("") => None,
        Some(ip) => {
            let bare = ip.trim_start_matches('[').trim_end_matches(']');
            if bare.parse::<std::net::IpAddr>().is_err() {
                return Err(format!("{bare:?} is no IP address"));
            }
            Some(bare.to_owned())
        }
    };
    let (from, to) = range(container)?;
    let port = |target, published| PortSpec {
        target,
        published,
        host_ip: host_ip.clone(),
        protocol: protocol.clone(),
        mode: "ingress".into(),
        name: None,
        app_protocol: None,
        path: path.into(),
    };
    // Compose sorts the ports of one entry as text: 10 before 9.
    let in_order = |mut ports: Vec<PortSpec>| {
        ports.sort_by_key(|p| p.target.to_string());
        ports
    };
    if from == 0 {
        return Err("a container port is 1 to 65535".into());
    }
    if !may(usize::from(to - from) + 1) {
        return Ok(Vec::new());
    }
    if published.is_empty() {
        return Ok(in_order((from..=to).map(|t| port(t, None)).collect()));
    }
    let (first, last) = range(published)?;
    if last - first == to - from {
        return Ok(in_order((from..=to).map(|t| port(t, Some((first + (t - from)).to_string()))).collect()));
    }
    if from == to {
        return Ok(vec![port(from, Some(format!("{first}-{last}")))]);
    }
    Err(format!("the ranges in {text:?} differ in length"))
}

fn long(value: Value, path: &str, report: &mut Report) -> Vec<PortSpec> {
    let mut r = Reader::new(value, path, report);
    let target = r.parsed("target", report, range);
    let published = r.string("published", report).filter(|p| !p.is_empty());
    let host_ip = r.string("host_ip", report).filter(|p| !p.is_empty());
    let protocol = r.string("protocol", report).unwrap_or_else(|| "tcp".into());
    let mode = r.string("mode", report).unwrap_or_else(|| "ingress".into());
    let name = r.string("name", report).filter(|n| !n.is_empty());
    let app_protocol = r.string("app_protocol", report).filter(|n| !n.is_empty());
    let errors = report.errors.len();
    r.finish(report);
    if !matches!(protocol.to_ascii_lowercase().as_str(), "tcp" | "udp" | "sctp") {
        report.later(path, Some(super::INVALID), format!("{protocol:?} is no protocol; there are tcp, udp and sctp"), "");
    }
    if host_ip.as_ref().is_some_and(|ip| ip.parse::<std::net::IpAddr>().is_err()) {
        report.later(path, Some(super::INVALID), "host_ip is no IP address", "");
    }
    let Some((from, to)) = target else {
        if report.errors.len() == errors {
            report.error(path, "the port has no target", HINT);
        }
        return Vec::new();
    };
    if from == 0 {
        report.error(path, "a container port is 1 to 65535", "");
    }
    if !report.expand(path, (usize::from(to - from) + 1) * (COST + path.len())) {
        return Vec::new();
    }
    if let Some(Err(message)) = published.as_deref().map(range) {
        report.later(path, Some(super::INVALID), message, HINT);
    }
    let first = published.as_deref().and_then(|p| range(p).ok());
    let published_for = |t: u16| match first {
        Some((first, last)) if last - first == to - from => Some((first + (t - from)).to_string()),
        _ => published.clone(),
    };
    (from..=to)
        .map(|t| PortSpec {
            target: t,
            published: published_for(t),
            host_ip: host_ip.clone(),
            protocol: protocol.clone(),
            mode: mode.clone(),
            name: name.clone(),
            app_protocol: app_protocol.clone(),
            path: path.to_owned(),
        })
        .collect()
}
