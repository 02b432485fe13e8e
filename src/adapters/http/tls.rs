//! TLS of the HTTP door: certificate and key from PEM files, read again when they change, so that a renewed certificate needs no restart.
//! Deliberately absent: client certificates (a token says who calls) and obtaining certificates.

pub mod own;

use crate::store::Store;
use arc_swap::ArcSwap;
use chrono::Utc;
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::json;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;

/// Pause between looks at the files.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// A client that does not finish its handshake is let go.
pub const HANDSHAKE_WITHIN: Duration = Duration::from_secs(10);

/// Why certificate and key cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, miette::Diagnostic)]
#[error("{}: {cause}", .file.display())]
#[diagnostic(help("{hint}"))]
pub struct TlsError {
    /// Which file.
    pub file: PathBuf,
    /// What is wrong with it.
    pub cause: String,
    /// What to do.
    pub hint: &'static str,
}

/// The files and what was read from them last.
#[derive(Debug)]
pub struct Tls {
    cert: PathBuf,
    key: PathBuf,
    current: ArcSwap<ServerConfig>,
}

/// Length and age of both files: a renewal changes at least one of them, and a rename over a file does too.
type Seen = [Option<(SystemTime, u64)>; 2];

impl Tls {
    /// Reads both files.
    ///
    /// # Errors
    /// The file, what is wrong with it and what to do.
    pub fn load(cert: &Path, key: &Path) -> Result<Self, TlsError> {
        let current = ArcSwap::from_pointee(read(cert, key)?);
        Ok(Self { cert: cert.to_path_buf(), key: key.to_path_buf(), current })
    }

    /// The handshake, with the certificate of this moment.
    ///
    /// # Errors
    /// What the client did wrong, or that it took too long.
    pub async fn accept<S: AsyncRead + AsyncWrite + Unpin>(&self, stream: S) -> std::io::Result<TlsStream<S>> {
        let acceptor = TlsAcceptor::from(self.current.load_full());
        let slow = |_| std::io::Error::new(std::io::ErrorKind::TimedOut, "the TLS handshake took too long");
        tokio::time::timeout(HANDSHAKE_WITHIN, acceptor.accept(stream)).await.map_err(slow)?
    }

    fn seen(&self) -> Seen {
        [&self.cert, &self.key].map(|path| std::fs::metadata(path).ok().and_then(|m| m.modified().ok().map(|t| (t, m.len()))))
    }

    /// Reads the files again. What cannot be used leaves what is in force.
    ///
    /// # Errors
    /// As `load`.
    pub fn reload(&self) -> Result<(), TlsError> {
        self.current.store(Arc::new(read(&self.cert, &self.key)?));
        Ok(())
    }

    /// Reads the files again whenever they changed, until shutdown; says so in log and audit.
    pub async fn watch(self: Arc<Self>, store: Store, shutdown: CancellationToken) {
        let mut seen = self.seen();
        while tokio::time::timeout(LOOK_EVERY, shutdown.cancelled()).await.is_err() {
            let now = self.seen();
            if now == seen {
                continue;
            }
            seen = now;
            let (what, detail) = match self.reload() {
                Ok(()) => {
                    tracing::info!(cert = %self.cert.display(), "the TLS certificate was read again");
                    ("tls_reloaded", json!({"cert": self.cert}))
                }
                // The two files of a renewal are rarely written in one moment: the second change mends it.
                Err(e) => {
                    tracing::error!(error = %e, hint = e.hint, "changed TLS files were not taken; the certificate before them stays in force");
                    ("tls_refused", json!({"file": e.file, "cause": e.cause}))
                }
            };
            if let Err(e) = store.audit_event("supervisor", what, None, &detail, Utc::now()).await {
                tracing::error!(error = %e, "the change of the TLS files could not be recorded");
            }
        }
    }
}

fn read(cert: &Path, key: &Path) -> Result<ServerConfig, TlsError> {
    let fault = |file: &Path, cause: String, hint| TlsError { file: file.to_path_buf(), cause, hint };
    let bytes = |file: &Path| {
        std::fs::read(file)
            .map_err(|e| fault(file, e.to_string(), "name files the user dockwarden runs as can read in [http] of dockwarden.toml"))
    };
    let (cert_pem, key_pem) = (bytes(cert)?, bytes(key)?);
    let chain = CertificateDer::pem_slice_iter(&cert_pem)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|e| fault(cert, e.to_string(), "tls_cert is a PEM file: the server's certificate, then those that signed it"))?;
    if chain.is_empty() {
        return Err(fault(
            cert,
            "it holds no certificate".into(),
            "tls_cert is a PEM file: the server's certificate, then those that signed it",
        ));
    }
    let private = PrivateKeyDer::from_pem_slice(&key_pem)
        .map_err(|e| fault(key, e.to_string(), "tls_key is a PEM file with one unencrypted private key (PKCS#8, PKCS#1 or SEC1)"))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| fault(cert, e.to_string(), "this build has no usable TLS"))?
        .with_no_client_auth()
        .with_single_cert(chain, private)
        .map_err(|e| fault(key, e.to_string(), "tls_key must be the key of the first certificate in tls_cert"))?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A certificate with its key, in files.
    pub(crate) struct Pair {
        dir: tempfile::TempDir,
    }

    impl Pair {
        pub(crate) fn new() -> Self {
            Self { dir: tempfile::tempdir().expect("directory") }
        }
        fn cert(&self) -> PathBuf {
            self.dir.path().join("cert.pem")
        }
        fn key(&self) -> PathBuf {
            self.dir.path().join("key.pem")
        }
        pub(crate) fn load(&self) -> Result<Tls, TlsError> {
            Tls::load(&self.cert(), &self.key())
        }
        /// Writes a new pair; the certificate's bytes.
        pub(crate) fn renew(&self) -> Vec<u8> {
            let made = rcgen::generate_simple_self_signed(vec!["localhost".into()]).expect("made");
            std::fs::write(self.cert(), made.cert.pem()).expect("written");
            std::fs::write(self.key(), made.signing_key.serialize_pem()).expect("written");
            made.cert.der().to_vec()
        }
    }

    /// A client that trusts this certificate alone.
    pub(crate) async fn connect<S: AsyncRead + AsyncWrite + Unpin>(
        stream: S,
        trusted: &[u8],
    ) -> std::io::Result<tokio_rustls::client::TlsStream<S>> {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from(trusted.to_vec())).expect("a certificate");
        let client = rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_root_certificates(roots)
            .with_no_client_auth();
        let name = rustls::pki_types::ServerName::try_from("localhost").expect("a name");
        tokio_rustls::TlsConnector::from(Arc::new(client)).connect(name, stream).await
    }

    /// Whether a client that trusts this certificate alone is served.
    async fn shown(tls: &Tls, expected: &[u8]) -> bool {
        let (near, far) = tokio::io::duplex(64 * 1024);
        let (client, server) = tokio::join!(connect(near, expected), tls.accept(far));
        client.is_ok() && server.is_ok()
    }

    #[tokio::test]
    async fn a_renewed_certificate_is_shown_and_a_faulty_one_leaves_the_one_in_force() {
        let files = Pair::new();
        let first = files.renew();
        let tls = files.load().expect("a pair");
        assert!(shown(&tls, &first).await);
        let second = files.renew();
        assert!(shown(&tls, &first).await, "not read again yet");
        tls.reload().expect("a pair");
        assert!(shown(&tls, &second).await && !shown(&tls, &first).await);
        std::fs::write(files.cert(), "no certificate").expect("written");
        assert!(tls.reload().is_err());
        assert!(shown(&tls, &second).await);
    }

    #[test]
    fn what_cannot_be_used_is_named_with_its_file() {
        let files = Pair::new();
        let fault = || files.load().expect_err("refused");
        assert_eq!(fault().file, files.cert(), "missing");
        files.renew();
        let key = std::fs::read(files.key()).expect("there");
        files.renew();
        std::fs::write(files.key(), &key).expect("written");
        let other = fault();
        assert!(other.file == files.key() && other.hint.contains("first certificate"), "{other}");
        std::fs::write(files.key(), "").expect("written");
        assert_eq!(fault().file, files.key());
        std::fs::write(files.cert(), &key).expect("written");
        let none = fault();
        assert!(none.file == files.cert() && none.cause.contains("no certificate"), "{none}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_says_nothing_is_let_go() {
        let files = Pair::new();
        files.renew();
        let tls = files.load().expect("a pair");
        let (_silent, far) = tokio::io::duplex(64);
        let e = tls.accept(far).await.expect_err("let go");
        assert_eq!(e.kind(), std::io::ErrorKind::TimedOut);
    }
}
