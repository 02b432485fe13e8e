//! Where a repository of backups lies when it does not lie in the home: a directory, a bucket of an S3 service, a directory reached by SFTP. Written as restic
//! writes it. Deliberately absent: credentials (files and environment variables are named, never their content), and reaching anything.

use super::spec::Keep;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// `[backup]`: where the repository is, its copies, and what a worker may use. Closed.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BackupSettings {
    /// The repository itself, when it is not to be in the home.
    pub repository: Option<Target>,
    /// Second copies of its snapshots, by name.
    pub copies: BTreeMap<String, CopySettings>,
    /// Most memory of a backup worker, MiB; by default 256 for what reads a snapshot out, 960 and 64 more for each processor for what writes, checks or
    /// prunes.
    pub worker_memory_mib: Option<u64>,
}

/// A place for a repository, and how it is reached. Closed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Target {
    /// Where.
    pub at: Location,
    /// S3: region that requests are signed for; `us-east-1` when absent.
    #[serde(default)]
    pub region: Option<String>,
    /// S3: file in AWS's format with `aws_access_key_id` and `aws_secret_access_key`; the environment's `AWS_ACCESS_KEY_ID` and
    /// `AWS_SECRET_ACCESS_KEY` when absent.
    #[serde(default)]
    pub credentials_file: Option<PathBuf>,
    /// SFTP: private key.
    #[serde(default)]
    pub identity_file: Option<PathBuf>,
    /// SFTP: file with the host's key.
    #[serde(default)]
    pub known_hosts: Option<PathBuf>,
    /// Longest time for one request, seconds.
    #[serde(default = "default_timeout_s")]
    pub timeout_s: u64,
    /// Instance that wrote there before and never will again: this one takes its place.
    #[serde(default)]
    pub replaces: Option<String>,
}

fn default_timeout_s() -> u64 {
    60
}

impl Target {
    /// A place with nothing said about how it is reached.
    pub fn plain(at: Location) -> Self {
        Self {
            at,
            region: None,
            credentials_file: None,
            identity_file: None,
            known_hosts: None,
            timeout_s: default_timeout_s(),
            replaces: None,
        }
    }
}

/// `[backup.copies.NAME]`: a second repository that gets the snapshots, too. Closed. The keys of [`Target`] beside its own.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CopySettings {
    /// Where.
    pub at: Location,
    /// As [`Target::region`].
    #[serde(default)]
    pub region: Option<String>,
    /// As [`Target::credentials_file`].
    #[serde(default)]
    pub credentials_file: Option<PathBuf>,
    /// As [`Target::identity_file`].
    #[serde(default)]
    pub identity_file: Option<PathBuf>,
    /// As [`Target::known_hosts`].
    #[serde(default)]
    pub known_hosts: Option<PathBuf>,
    /// As [`Target::timeout_s`].
    #[serde(default = "default_timeout_s")]
    pub timeout_s: u64,
    /// As [`Target::replaces`].
    #[serde(default)]
    pub replaces: Option<String>,
    /// Key of its own; that of the repository when absent.
    #[serde(default)]
    pub key_file: Option<PathBuf>,
    /// When it is brought up to date; after each backup when absent.
    #[serde(default)]
    pub schedule: Option<String>,
    /// Which snapshots stay in it. When absent, all that the repository holds, and of those it has lost what the house's numbers keep.
    #[serde(default)]
    pub keep: Option<Keep>,
}

impl CopySettings {
    /// Its place.
    pub fn target(&self) -> Target {
        Target {
            at: self.at.clone(),
            region: self.region.clone(),
            credentials_file: self.credentials_file.clone(),
            identity_file: self.identity_file.clone(),
            known_hosts: self.known_hosts.clone(),
            timeout_s: self.timeout_s,
            replaces: self.replaces.clone(),
        }
    }
}

/// Where a repository lies: `/a/directory`, `s3:https://host/bucket/prefix` or `sftp://user@host:port/a/directory`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Location {
    /// A directory that this process reaches.
    Directory(PathBuf),
    /// A bucket, or what lies below a prefix of it.
    S3 {
        /// Scheme, host and port.
        endpoint: String,
        /// Bucket.
        bucket: String,
        /// Path in it without slashes at its ends; empty for the whole bucket.
        prefix: String,
    },
    /// A directory of another host.
    Sftp {
        /// Account there; ssh's own choice when absent.
        user: Option<String>,
        /// Host, or a `Host` of ssh's configuration.
        host: String,
        /// Port; ssh's own choice when absent.
        port: Option<u16>,
        /// Absolute path there.
        path: String,
    },
}

impl Location {
    /// Whether another host is asked for it.
    pub fn is_remote(&self) -> bool {
        !matches!(self, Self::Directory(_))
    }

    /// As restic's `RESTIC_REPOSITORY` names it.
    pub fn restic(&self) -> String {
        match self {
            Self::Directory(_) | Self::S3 { .. } => self.to_string(),
            // One slash ends the host, the second begins the path.
            Self::Sftp { path, .. } => {
                let text = self.to_string();
                format!("{}/{path}", &text[..text.len() - path.len()])
            }
        }
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Directory(path) => write!(f, "{}", path.display()),
            Self::S3 { endpoint, bucket, prefix } if prefix.is_empty() => write!(f, "s3:{endpoint}/{bucket}"),
            Self::S3 { endpoint, bucket, prefix } => write!(f, "s3:{endpoint}/{bucket}/{prefix}"),
            Self::Sftp { user, host, port, path } => {
                let user = user.as_ref().map(|u| format!("{u}@")).unwrap_or_default();
                let port = port.map(|p| format!(":{p}")).unwrap_or_default();
                write!(f, "sftp://{user}{host}{port}{path}")
            }
        }
    }
}

impl From<Location> for String {
    fn from(location: Location) -> Self {
        location.to_string()
    }
}

impl TryFrom<String> for Location {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl FromStr for Location {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let forms = "write /a/directory, s3:https://host/bucket/prefix or sftp://user@host:port/a/directory";
        if text.chars().any(|c| c.is_control() || c.is_whitespace() || matches!(c, '?' | '#' | '"' | '\'' | '\\')) {
            return Err(format!("a place for backups holds no space, quote, '?' or '#': {forms}"));
        }
        if let Some(rest) = text.strip_prefix("s3:") {
            return s3(rest).ok_or_else(|| format!("this is no bucket (credentials do not belong here): {forms}"));
        }
        if let Some(rest) = text.strip_prefix("sftp://") {
            return sftp(rest).ok_or_else(|| format!("this is no directory by SFTP (a password does not belong here): {forms}"));
        }
        if text.starts_with('/') && text.len() > 1 {
            Ok(Self::Directory(PathBuf::from(text)))
        } else {
            Err(format!("not understood: {forms}"))
        }
    }
}

/// A part of a path that means itself.
fn is_step(step: &str) -> bool {
    !step.is_empty() && step != "." && step != ".."
}

fn s3(rest: &str) -> Option<Location> {
    let (scheme, rest) = rest.split_once("://").filter(|(scheme, _)| matches!(*scheme, "http" | "https"))?;
    let (host, path) = rest.split_once('/')?;
    let path = path.trim_end_matches('/');
    let (bucket, prefix) = path.split_once('/').unwrap_or((path, ""));
    let plain =
        |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b':' | b'[' | b']'));
    if !plain(host) || !plain(bucket) || !(prefix.is_empty() || prefix.split('/').all(is_step)) {
        return None;
    }
    Some(Location::S3 { endpoint: format!("{scheme}://{host}"), bucket: bucket.to_owned(), prefix: prefix.to_owned() })
}

fn sftp(rest: &str) -> Option<Location> {
    let (authority, path) = rest.split_once('/')?;
    let path = path.trim_matches('/');
    let (user, host) = authority.rsplit_once('@').map_or((None, authority), |(user, host)| (Some(user), host));
    let (host, port) = match host.rsplit_once(':') {
        Some((host, port)) => (host, Some(port.parse::<u16>().ok().filter(|p| *p > 0)?)),
        None => (host, None),
    };
    // Neither may be taken for an option by ssh.
    let plain = |text: &str| {
        !text.is_empty() && !text.starts_with('-') && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'))
    };
    if !plain(host) || user.is_some_and(|u| !plain(u)) || !path.split('/').all(is_step) {
        return None;
    }
    Some(Location::Sftp { user: user.map(str::to_owned), host: host.to_owned(), port, path: format!("/{path}") })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_read_and_written_as_restic_writes_it() {
        for (text, restic) in [
            ("/mnt/disk/backups", "/mnt/disk/backups"),
            ("s3:https://s3.example.com/bucket/a/b", "s3:https://s3.example.com/bucket/a/b"),
            ("s3:http://127.0.0.1:9000/bucket", "s3:http://127.0.0.1:9000/bucket"),
            ("sftp://me@nas:2222/srv/b", "sftp://me@nas:2222//srv/b"),
            ("sftp://nas/srv", "sftp://nas//srv"),
        ] {
            let place: Location = text.parse().unwrap();
            assert_eq!((place.to_string(), place.restic()), (text.to_owned(), restic.to_owned()));
        }
        let slashes: Location = "s3:https://h/bucket/a/".parse().unwrap();
        assert_eq!(slashes.to_string(), "s3:https://h/bucket/a");
        assert_eq!("sftp://nas//srv/b".parse::<Location>().unwrap().to_string(), "sftp://nas/srv/b");
    }

    #[test]
    fn what_could_hold_a_secret_or_be_an_option_of_ssh_is_no_place() {
        for text in [
            "",
            "/",
            "backups",
            "s3:bucket",
            "s3:ftp://h/b",
            "s3:https://key:secret@h/b",
            "s3:https://h/",
            "s3:https://h/b?x=y",
            "s3:https://h/b/../c",
            "sftp://user:word@h/p",
            "sftp://-oProxyCommand=x/p",
            "sftp://-l@h/p",
            "sftp://h:0/p",
            "sftp://h/",
            "sftp://h/a/../b",
            "sftp://h/with space",
        ] {
            assert!(text.parse::<Location>().is_err(), "{text}");
        }
    }
}
