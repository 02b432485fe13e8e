//! Host and Origin allow-lists (a browser on this machine must not become a client by DNS rebinding), and the rule for addresses beyond
//! loopback. Deliberately absent: tokens of `/mcp`, which belong to its own door.

use crate::adapters::Doors;
use crate::adapters::mcp::http::{caller, problem};
use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::Next;
use axum::response::Response;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

/// Who may be addressed and from where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Guard {
    /// Names beside loopback; a name without port means any port.
    pub hosts: Vec<String>,
    /// Origins beside loopback, exact.
    pub origins: Vec<String>,
    /// The listener is reachable from other machines or containers.
    pub beyond_loopback: bool,
}

/// Why the listener was not opened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, miette::Diagnostic)]
pub enum BindRefused {
    /// Not loopback, no proxy.
    #[error("{0} is reachable from other machines and this door has no TLS")]
    #[diagnostic(help(
        "listen on 127.0.0.1, or put a TLS proxy (or a private container network) in front and add --behind-proxy --allowed-host NAME"
    ))]
    BeyondLoopback(SocketAddr),
    /// Behind a proxy without names.
    #[error("--behind-proxy needs the host names clients use")]
    #[diagnostic(help("add --allowed-host NAME for each name the proxy passes on, or allowed_hosts in dockwarden.toml"))]
    NoHosts,
}

/// Whether an address may be bound.
///
/// # Errors
/// See `BindRefused`.
pub fn may_bind(address: SocketAddr, behind_proxy: bool, hosts: &[String]) -> Result<(), BindRefused> {
    if address.ip().is_loopback() {
        return Ok(());
    }
    if !behind_proxy {
        return Err(BindRefused::BeyondLoopback(address));
    }
    if hosts.is_empty() { Err(BindRefused::NoHosts) } else { Ok(()) }
}

/// Splits `name:port`, `[v6]:port` or a bare name.
fn authority(text: &str) -> Option<(&str, Option<u16>)> {
    let (name, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let (name, port) = rest.split_once(']')?;
            (name, port.strip_prefix(':'))
        }
        None => text.split_once(':').map_or((text, None), |(n, p)| (n, Some(p))),
    };
    if name.is_empty() || name.contains(['/', '@', ' ']) {
        return None;
    }
    match port {
        None => Some((name, None)),
        Some(port) => port.parse().ok().map(|p| (name, Some(p))),
    }
}

fn loopback(name: &str) -> bool {
    name.eq_ignore_ascii_case("localhost") || name.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

impl Guard {
    /// Whether a `Host` is ours.
    pub fn host(&self, host: &str) -> bool {
        let Some((name, port)) = authority(host) else { return false };
        let listed = |entry: &String| authority(entry).is_some_and(|(n, p)| n.eq_ignore_ascii_case(name) && (p.is_none() || p == port));
        loopback(name) || self.hosts.iter().any(listed)
    }
    /// Whether a request of this `Origin` is served; `null` and unlisted ones are not.
    pub fn origin(&self, origin: &str) -> bool {
        let local = origin
            .strip_prefix("http://")
            .or_else(|| origin.strip_prefix("https://"))
            .and_then(authority)
            .is_some_and(|(n, _)| loopback(n));
        local || self.origins.iter().any(|o| o.trim_end_matches('/').eq_ignore_ascii_case(origin))
    }
}

/// Middleware: refuses foreign Host and Origin before anything else looks at the request.
pub async fn names(State(guard): State<Arc<Guard>>, request: Request, next: Next) -> Response {
    let headers = request.headers();
    let host = headers.get(header::HOST).and_then(|h| h.to_str().ok()).or_else(|| request.uri().authority().map(|a| a.as_str()));
    if !host.is_some_and(|h| guard.host(h)) {
        let hint = "use 127.0.0.1 or localhost, or an operator adds the name to allowed_hosts in dockwarden.toml (or --allowed-host)";
        return problem(StatusCode::MISDIRECTED_REQUEST, "host_refused", "this server does not answer to that Host", hint);
    }
    let foreign = headers.get_all(header::ORIGIN).iter().any(|o| !o.to_str().is_ok_and(|o| guard.origin(o)));
    if foreign {
        let hint = "an operator adds the origin to allowed_origins in dockwarden.toml";
        return problem(StatusCode::FORBIDDEN, "origin_refused", "pages of that Origin are not served", hint);
    }
    next.run(request).await
}

/// Middleware: any agent's token, for what tells about the host when it is reachable from elsewhere.
pub async fn token(State(doors): State<Arc<Doors>>, request: Request, next: Next) -> Response {
    match caller(&doors, request.headers()).await {
        Ok(_) => next.run(request).await,
        Err(refused) => *refused,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guard() -> Guard {
        Guard {
            hosts: vec!["dockwarden".into(), "box.example:7420".into()],
            origins: vec!["https://console.example".into()],
            beyond_loopback: true,
        }
    }

    #[test]
    fn loopback_is_answered_on_any_port_and_listed_names_as_listed() {
        for good in
            ["127.0.0.1", "127.0.0.1:9", "localhost:7420", "LOCALHOST", "[::1]:7420", "dockwarden:1", "Dockwarden", "box.example:7420"]
        {
            assert!(guard().host(good), "{good}");
        }
        for bad in [
            "",
            "evil.example",
            "box.example",
            "box.example:80",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "a@localhost",
            "localhost:x",
            "[::1",
        ] {
            assert!(!guard().host(bad), "{bad}");
        }
    }

    #[test]
    fn origins_are_loopback_or_listed() {
        for good in ["http://localhost:3000", "https://127.0.0.1", "http://[::1]:1", "https://console.example"] {
            assert!(guard().origin(good), "{good}");
        }
        for bad in ["null", "https://evil.example", "http://console.example", "http://localhost.evil.example", "file://", ""] {
            assert!(!guard().origin(bad), "{bad}");
        }
    }

    #[test]
    fn an_address_beyond_loopback_needs_a_proxy_and_names() {
        let any: SocketAddr = "0.0.0.0:7420".parse().expect("address");
        let local: SocketAddr = "127.0.0.1:0".parse().expect("address");
        assert_eq!(may_bind(local, false, &[]), Ok(()));
        assert_eq!(may_bind(any, false, &["x".into()]), Err(BindRefused::BeyondLoopback(any)));
        assert_eq!(may_bind(any, true, &[]), Err(BindRefused::NoHosts));
        assert_eq!(may_bind(any, true, &["x".into()]), Ok(()));
    }
}
