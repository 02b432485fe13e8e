//! A GET by https to an address that was looked up before: the name is only for the certificate, the connection goes where it was judged to go.
//! Redirects are answers, not followed; a proxy of the environment is never asked.

use super::{BODY, Outcome, judged};
use crate::model::spec::HttpProbe;
use std::net::SocketAddr;

/// Asks for a page. `insecure` takes any certificate.
pub(super) async fn get(to: SocketAddr, url: &str, insecure: bool, wanted: Option<&HttpProbe>, how: &str) -> Outcome {
    match ask(to, url, insecure).await {
        Ok((status, body)) => match wanted {
            Some(http) => judged(http, status, &body, how),
            // The body of an address outside of the stack is nobody's evidence.
            None if (200..400).contains(&status) => Outcome::Passed(how.to_owned()),
            None => Outcome::Failed { reason: format!("{how}: status {status}"), output: None },
        },
        Err(why) => Outcome::Failed { reason: format!("{how}: {why}"), output: None },
    }
}

async fn ask(to: SocketAddr, url: &str, insecure: bool) -> Result<(u16, String), String> {
    // What reqwest says first is only that it failed; the reason lies below.
    let text = |e: reqwest::Error| {
        let mut source: &dyn std::error::Error = &e;
        while let Some(below) = source.source() {
            source = below;
        }
        source.to_string()
    };
    let host = url.parse::<http::Uri>().ok().and_then(|u| u.host().map(str::to_owned)).ok_or("it names no host")?;
    // The process has one TLS provider; a second call finds it there.
    if rustls::crypto::ring::default_provider().install_default().is_err() {
        tracing::trace!("the TLS provider was there already");
    }
    let client = reqwest::Client::builder()
        .user_agent(concat!("dockwarden/", env!("CARGO_PKG_VERSION")))
        .redirect(reqwest::redirect::Policy::none())
        .no_proxy()
        .resolve(&host, to)
        .tls_danger_accept_invalid_certs(insecure)
        .build()
        .map_err(text)?;
    let mut response = client.get(url).send().await.map_err(text)?;
    let mut body = Vec::new();
    while body.len() < BODY
        && let Some(part) = response.chunk().await.map_err(text)?
    {
        body.extend_from_slice(&part[..part.len().min(BODY - body.len())]);
    }
    Ok((response.status().as_u16(), String::from_utf8_lossy(&body).into_owned()))
}
