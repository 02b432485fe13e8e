//! A bucket of an S3 service. Deliberately absent: tries and time limits, which the backend has for every way alike.

use super::super::{Failure, Trouble};
use super::Fault;
use crate::model::target::Target;
use bytes::Bytes;
use opendal::options::{ListOptions, ReadOptions};
use opendal::services::S3;
use opendal::{Buffer, ErrorKind, HttpTransporter, OperationContext, Operator};
use opendal_http_transport_reqwest::ReqwestTransport;
use std::ops::Range;
use std::time::Duration;

/// Region for which requests are signed where none is said; services that are not Amazon's mostly take any.
const REGION: &str = "us-east-1";
/// Longest wait for a connection.
const CONNECT_WITHIN: Duration = Duration::from_secs(15);

/// A bucket, or what lies below a prefix of it.
#[derive(Debug)]
pub(super) struct Bucket {
    operator: Operator,
}

/// Who we are to the service. Never shown.
struct Credentials {
    id: String,
    secret: String,
    token: Option<String>,
}

/// Reads credentials from the file that is named, in AWS's format, or else from the environment. Read anew by every worker, so that they can be exchanged.
fn credentials(target: &Target) -> Result<Credentials, Failure> {
    let of = |source: &str, find: &dyn Fn(&str) -> Option<String>| {
        let need = |name: &str| {
            find(name)
                .filter(|v| !v.is_empty())
                .ok_or_else(|| Failure::Credentials { source_of: source.to_owned(), detail: format!("it has no {name}") })
        };
        let token = find("aws_session_token").filter(|v| !v.is_empty());
        Ok(Credentials { id: need("aws_access_key_id")?, secret: need("aws_secret_access_key")?, token })
    };
    let Some(file) = &target.credentials_file else {
        return of("the environment", &|name| std::env::var(name.to_uppercase()).ok());
    };
    let source = file.display().to_string();
    let text = std::fs::read_to_string(file).map_err(|e| Failure::Credentials { source_of: source.clone(), detail: e.to_string() })?;
    of(&source, &|name| {
        text.lines().find_map(|line| {
            let (key, value) = line.split_once('=')?;
            (key.trim() == name).then(|| value.trim().to_owned())
        })
    })
}

impl Bucket {
    pub(super) fn new(target: &Target, endpoint: &str, bucket: &str, prefix: &str) -> Result<Self, Failure> {
        let unusable = |e: &dyn std::fmt::Display| Failure::Internal { detail: format!("no client for {}: {e}", target.at) };
        let Credentials { id, secret, token } = credentials(target)?;
        let mut builder = S3::default()
            .endpoint(endpoint)
            .bucket(bucket)
            .root(&format!("/{prefix}"))
            .region(target.region.as_deref().unwrap_or(REGION))
            .access_key_id(&id)
            .secret_access_key(&secret)
            // Nothing but what was configured is used: no profile, no metadata service of a cloud.
            .disable_config_load()
            .disable_ec2_metadata();
        if let Some(token) = &token {
            builder = builder.session_token(token);
        }
        if rustls::crypto::ring::default_provider().install_default().is_err() {
            tracing::trace!("the process has a provider of cryptography already");
        }
        let client = reqwest::Client::builder().connect_timeout(CONNECT_WITHIN).redirect(reqwest::redirect::Policy::none()).build();
        let transport = ReqwestTransport::new(client.map_err(|e| unusable(&e))?);
        let context = OperationContext::new().with_http_transport(HttpTransporter::new(transport));
        Ok(Self { operator: Operator::new(builder).map_err(|e| unusable(&e))?.with_context(context) })
    }

    pub(super) async fn list(&self, dir: &str) -> Result<Vec<(String, u64)>, Fault> {
        let options = ListOptions { recursive: true, ..ListOptions::default() };
        let entries = self.operator.list_options(dir, options).await.map_err(fault)?;
        Ok(entries.iter().filter(|e| e.metadata().is_file()).map(|e| (e.path().to_owned(), e.metadata().content_length())).collect())
    }

    /// By a list and not by asking for the file: the answer to that has no body, and could not name a bucket that is missing.
    pub(super) async fn size(&self, path: &str) -> Result<Option<u64>, Fault> {
        let options = ListOptions { recursive: true, ..ListOptions::default() };
        let entries = self.operator.list_options(path, options).await.map_err(fault)?;
        Ok(entries.iter().find(|e| e.path() == path).map(|e| e.metadata().content_length()))
    }

    pub(super) async fn read(&self, path: &str, range: Option<Range<u64>>) -> Result<Bytes, Fault> {
        let options = ReadOptions { range: range.map(Into::into).unwrap_or_default(), ..ReadOptions::default() };
        Ok(self.operator.read_options(path, options).await.map_err(fault)?.to_bytes())
    }

    pub(super) async fn write(&self, path: &str, content: Vec<Bytes>) -> Result<(), Fault> {
        self.operator.write(path, Buffer::from(content)).await.map(|_| ()).map_err(fault)
    }

    pub(super) async fn remove(&self, path: &str) -> Result<(), Fault> {
        self.operator.delete(path).await.map_err(fault)
    }
}

/// An answer of the service is shown as its code and its own words.
fn words(message: &str) -> String {
    let field = |name: &str| message.split_once(&format!("{name}: \"")).and_then(|(_, rest)| rest.split_once('"')).map(|(value, _)| value);
    match (message.strip_prefix("S3Error"), field("code"), field("message")) {
        (Some(_), Some(code), Some(said)) if said == code => code.to_owned(),
        (Some(_), Some(code), Some(said)) => format!("{code}: {said}"),
        _ => message.to_owned(),
    }
}

/// The service's answer in words. Its text names keys and codes, never secrets.
fn fault(e: opendal::Error) -> Fault {
    let trouble = match e.kind() {
        ErrorKind::PermissionDenied => Trouble::Denied,
        ErrorKind::ConfigInvalid => Trouble::NoBucket,
        ErrorKind::NotFound => Trouble::Gone,
        _ if e.message().contains("send http request") => Trouble::Unreachable,
        _ => Trouble::Other,
    };
    let again = e.is_temporary() || trouble == Trouble::Unreachable;
    let mut detail = words(e.message());
    let mut cause = std::error::Error::source(&e);
    // The last of the causes is the one that says something: refused, no such host, certificate.
    while let Some(c) = cause {
        if c.source().is_none() && !detail.contains(&c.to_string()) {
            detail = format!("{detail}: {c}");
        }
        cause = c.source();
    }
    Fault::new(trouble, again, detail)
}

#[cfg(test)]
mod tests {
    use super::words;

    #[test]
    fn an_answer_is_its_code_and_its_words() {
        let said = "S3Error { code: \"AccessDenied\", message: \"Access Denied.\", resource: \"/b\", request_id: \"1\" }";
        assert_eq!(words(said), "AccessDenied: Access Denied.");
        assert_eq!(words("send http request"), "send http request");
    }
}
