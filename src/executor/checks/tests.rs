//! Probes against real sockets of this process, and the ways to a container.

use super::*;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

fn seen(address: Option<&str>) -> ContainerDetail {
    ContainerDetail {
        addresses: address.map(|a| ("net".to_owned(), a.to_owned())).into_iter().collect(),
        ..ContainerDetail::running("abc", "n", "i")
    }
}

#[test]
fn the_way_is_direct_only_where_this_host_is_the_engines_and_there_is_an_address() {
    let mode = |m: &str| ServiceSpec { network_mode: Some(m.into()), ..ServiceSpec::default() };
    let plain = ServiceSpec::default();
    let direct = |s: &str| Way::Direct(s.parse().unwrap());
    assert_eq!(way(&seen(Some("172.18.0.2")), &plain, true, 80), direct("172.18.0.2:80"));
    assert_eq!(way(&seen(Some("fd00::2")), &plain, true, 80), direct("[fd00::2]:80"));
    assert_eq!(way(&seen(Some("172.18.0.2")), &plain, false, 80), Way::Inside);
    assert_eq!(way(&seen(Some("")), &plain, true, 80), Way::Inside);
    assert_eq!(way(&seen(None), &mode("host"), true, 80), direct("127.0.0.1:80"));
    assert_eq!(way(&seen(None), &mode("none"), true, 80), Way::Inside);
}

/// Answers every connection with `response`; counts them.
async fn serve(response: &'static str) -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    let count = Arc::new(AtomicUsize::new(0));
    let counted = count.clone();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            counted.fetch_add(1, Ordering::SeqCst);
            let mut request = [0; 1024];
            let _read = stream.read(&mut request).await;
            let _written = stream.write_all(response.as_bytes()).await;
        }
    });
    (at, count)
}

fn http(status: Option<u16>, contains: Option<&str>) -> HttpProbe {
    HttpProbe { port: 1, path: "/".into(), tls: false, status, contains: contains.map(str::to_owned) }
}

#[tokio::test]
async fn a_page_passes_by_status_and_text() {
    let (at, _) = serve("HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nready").await;
    let ask = async |p: HttpProbe| get(at, "localhost", "/", Some(&p), "http").await;
    assert_eq!(ask(http(None, None)).await, Outcome::Passed("http".into()));
    assert_eq!(ask(http(Some(200), Some("ready"))).await, Outcome::Passed("http".into()));
    let reason = "http: status 200, without the text asked for".to_owned();
    assert_eq!(ask(http(None, Some("steady"))).await, Outcome::Failed { reason, output: Some("ready".into()) });
    assert_eq!(ask(http(Some(204), None)).await, Outcome::Failed { reason: "http: status 200".into(), output: Some("ready".into()) });
}

#[tokio::test]
async fn a_page_that_fails_is_told_with_its_status() {
    let (at, _) = serve("HTTP/1.1 503 no\r\ncontent-length: 4\r\n\r\ndown").await;
    let outcome = get(at, "localhost", "/", Some(&http(None, None)), "http").await;
    assert_eq!(outcome, Outcome::Failed { reason: "http: status 503".into(), output: Some("down".into()) });
}

#[tokio::test]
async fn an_address_is_asked_once_and_its_body_is_not_kept() {
    let (at, count) = serve("HTTP/1.1 500 no\r\ncontent-length: 6\r\n\r\nsecret").await;
    let url = format!("http://{at}/x?y=1");
    assert_eq!(ask_url(&url, false).await, Outcome::Failed { reason: format!("url {url} from the supervisor: status 500"), output: None });
    assert_eq!(count.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn link_local_and_metadata_addresses_are_never_asked() {
    for url in [
        "http://169.254.169.254/latest",
        "http://[fe80::1]/",
        "http://0.0.0.0:80/",
        "http://100.100.100.200/",
        "http://[::ffff:169.254.1.1]/",
    ] {
        let Outcome::Impossible(why) = ask_url(url, false).await else { panic!("{url} was asked") };
        assert!(why.contains("link-local or metadata"), "{why}");
    }
}

#[tokio::test]
async fn a_closed_port_fails_and_silence_ends() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let silent = listener.local_addr().unwrap();
    assert_eq!(reach(silent, "tcp").await, Outcome::Passed("tcp".into()));
    let outcome = timed(Duration::from_millis(100), "http", get(silent, "localhost", "/", Some(&http(None, None)), "http")).await;
    assert_eq!(outcome, Outcome::Failed { reason: "http: no answer within 0 s".into(), output: None });
    drop(listener);
    assert!(matches!(reach(silent, "tcp").await, Outcome::Failed { .. }));
}

/// Answers one connection after another by TLS, with a certificate that nobody signed.
async fn serve_tls() -> SocketAddr {
    let signed = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let key = rustls::pki_types::PrivateKeyDer::try_from(signed.signing_key.serialize_der()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let config = config.with_no_client_auth().with_single_cert(vec![signed.cert.der().clone()], key).unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            // A client that does not trust the certificate goes away in the handshake.
            let Ok(mut stream) = acceptor.accept(stream).await else { continue };
            let mut request = [0; 1024];
            let _read = stream.read(&mut request).await;
            let _written = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\nconnection: close\r\n\r\nready").await;
            let _closed = stream.shutdown().await;
        }
    });
    at
}

#[tokio::test]
async fn https_checks_the_certificate_unless_told_otherwise() {
    let at = serve_tls().await;
    let probe = HttpProbe { tls: true, port: at.port(), ..http(Some(200), Some("ready")) };
    assert_eq!(page(at, &probe, true, "https").await, Outcome::Passed("https".into()));
    let Outcome::Failed { reason, output: None } = page(at, &probe, false, "https").await else {
        panic!("a stranger's certificate passed")
    };
    assert!(reason.to_lowercase().contains("certificate") || reason.contains("UnknownIssuer"), "{reason}");
    let url = format!("https://localhost:{}/", at.port());
    assert!(matches!(ask_url(&url, false).await, Outcome::Failed { .. }));
    let wrong = HttpProbe { contains: Some("steady".into()), ..probe };
    assert!(matches!(page(at, &wrong, true, "https").await, Outcome::Failed { .. }));
}
