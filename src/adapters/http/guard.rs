//! Host and Origin allow-lists (a browser on this machine must not become a client by DNS rebinding), and the rule for addresses beyond
//! loopback. Deliberately absent: tokens of `/mcp`, which belong to its own door.

use super::api::Who;
use crate::adapters::mcp::http::{Base, problem};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode, header};
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
    /// Who calls may come from another machine or container: by the address, or through a proxy in front of it.
    pub beyond_loopback: bool,
    /// It speaks TLS itself.
    pub tls: bool,
}

/// Why the listener was not opened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, miette::Diagnostic)]
pub enum BindRefused {
    /// Not loopback, no TLS, no proxy.
    #[error("{0} is reachable from other machines and this door has no TLS")]
    #[diagnostic(help(
        "listen on 127.0.0.1, or set tls_cert and tls_key in [http] of dockwarden.toml, or put a TLS proxy (or a private container network) in front and add --behind-proxy; the latter two need --allowed-host NAME"
    ))]
    BeyondLoopback(SocketAddr),
    /// Beyond loopback without names.
    #[error("an address beyond loopback, or a proxy, needs the host names clients use")]
    #[diagnostic(help("add --allowed-host NAME for each name clients (or the proxy) use, or allowed_hosts in dockwarden.toml"))]
    NoHosts,
}

/// Whether an address may be bound.
///
/// # Errors
/// See `BindRefused`.
pub fn may_bind(address: SocketAddr, tls: bool, behind_proxy: bool, hosts: &[String]) -> Result<(), BindRefused> {
    // A proxy brings in whoever reaches it, on whatever address it finds us.
    if address.ip().is_loopback() && !behind_proxy {
        return Ok(());
    }
    if !tls && !behind_proxy {
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
    /// The scheme a request came by, as far as can be known: a proxy says it, and one that says nothing has TLS.
    fn scheme(&self, headers: &HeaderMap) -> &'static str {
        let forwarded = headers.get("x-forwarded-proto").and_then(|v| v.to_str().ok());
        match (self.tls, self.beyond_loopback, forwarded) {
            (true, ..) => "https",
            (false, true, Some("http")) | (false, false, _) => "http",
            (false, true, _) => "https",
        }
    }
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
pub async fn names(State(guard): State<Arc<Guard>>, mut request: Request, next: Next) -> Response {
    let headers = request.headers();
    let host = headers.get(header::HOST).and_then(|h| h.to_str().ok()).or_else(|| request.uri().authority().map(|a| a.as_str()));
    let base = host.filter(|h| guard.host(h)).map(|h| format!("{}://{h}", guard.scheme(headers)));
    let Some(base) = base else {
        let hint = "use 127.0.0.1 or localhost, or an operator adds the name to allowed_hosts in dockwarden.toml (or --allowed-host)";
        return problem(StatusCode::MISDIRECTED_REQUEST, "host_refused", "this server does not answer to that Host", hint);
    };
    let foreign = headers.get_all(header::ORIGIN).iter().any(|o| !o.to_str().is_ok_and(|o| guard.origin(o)));
    if foreign {
        let hint = "an operator adds the origin to allowed_origins in dockwarden.toml";
        return problem(StatusCode::FORBIDDEN, "origin_refused", "pages of that Origin are not served", hint);
    }
    request.extensions_mut().insert(Base(base));
    next.run(request).await
}

/// Middleware: any valid token, for what tells about the host when it is reachable from elsewhere.
pub async fn token(_who: Who, request: Request, next: Next) -> Response {
    next.run(request).await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guard() -> Guard {
        Guard {
            hosts: vec!["dockwarden".into(), "box.example:7420".into()],
            origins: vec!["https://console.example".into()],
            beyond_loopback: true,
            tls: false,
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
    fn the_scheme_is_ours_or_what_the_proxy_says() {
        let said =
            |proto: &str| HeaderMap::from_iter([(header::HeaderName::from_static("x-forwarded-proto"), proto.parse().expect("a value"))]);
        let local = Guard { beyond_loopback: false, ..guard() };
        assert_eq!((local.scheme(&HeaderMap::new()), local.scheme(&said("https"))), ("http", "http"));
        assert_eq!(
            (guard().scheme(&HeaderMap::new()), guard().scheme(&said("http")), guard().scheme(&said("x"))),
            ("https", "http", "https")
        );
        assert_eq!(Guard { tls: true, ..local }.scheme(&said("http")), "https");
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
    fn an_address_beyond_loopback_needs_tls_or_a_proxy_and_names() {
        let any: SocketAddr = "0.0.0.0:7420".parse().expect("address");
        let local: SocketAddr = "127.0.0.1:0".parse().expect("address");
        assert_eq!(may_bind(local, false, false, &[]), Ok(()));
        assert_eq!(may_bind(local, false, true, &[]), Err(BindRefused::NoHosts));
        assert_eq!(may_bind(local, false, true, &["x".into()]), Ok(()));
        assert_eq!(may_bind(any, false, false, &["x".into()]), Err(BindRefused::BeyondLoopback(any)));
        for (tls, behind_proxy) in [(true, false), (false, true), (true, true)] {
            assert_eq!(may_bind(any, tls, behind_proxy, &[]), Err(BindRefused::NoHosts));
            assert_eq!(may_bind(any, tls, behind_proxy, &["x".into()]), Ok(()));
        }
    }
}
