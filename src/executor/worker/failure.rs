//! Why a job was not done: the cause, and what to do next. Deliberately absent: what a library says beside it.

use serde::{Deserialize, Serialize};

/// What is the matter with a place on another host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Trouble {
    /// No connection.
    Unreachable,
    /// No answer in time.
    Slow,
    /// The credentials are wrong, or may not do this.
    Denied,
    /// No such bucket.
    NoBucket,
    /// A file that was there is not.
    Gone,
    /// The host is not the one that is known.
    HostKey,
    /// There is no ssh here.
    NoSsh,
    /// Anything else.
    Other,
}

impl Trouble {
    fn what(self) -> &'static str {
        match self {
            Self::Unreachable => "cannot be reached",
            Self::Slow => "does not answer in time",
            Self::Denied => "does not let us in",
            Self::NoBucket => "is not there",
            Self::Gone => "has lost a file",
            Self::HostKey => "is not the host that is known",
            Self::NoSsh => "needs ssh",
            Self::Other => "refused",
        }
    }

    fn next(self) -> &'static str {
        match self {
            Self::Unreachable => "check address, port and network; it is tried again",
            Self::Slow => "check the network, or raise its timeout_s; it is tried again",
            Self::Denied => {
                "correct its credentials (credentials_file, identity_file, user) or their rights: they must list, read, write and remove"
            }
            Self::NoBucket => "make the bucket, or correct `at` and `region`",
            Self::Gone => "`verify_backup` with repository_part says what is lost; the other repository still has it",
            Self::HostKey => "compare the host's key on the host itself (`ssh-keygen -lf`), then put it into known_hosts",
            Self::NoSsh => "install the client of OpenSSH where the supervisor runs",
            Self::Other => "the words above are its own",
        }
    }
}

/// Why a job was not done, with what to do next.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Failure {
    /// No repository.
    #[error("there is no backup repository at {repo}: the first backup creates it; if it was moved, put it back or correct the path")]
    NoRepository {
        /// Where.
        repo: String,
    },
    /// It was there before and is not now.
    #[error(
        "the backup repository at {repo} is gone: it was there before, and nothing is made in its place. Is its disk mounted? Mount it and try again; to begin \
         a new one there, remove {known}"
    )]
    NotThere {
        /// Where.
        repo: String,
        /// File that says what was there.
        known: String,
    },
    /// Another one is in its place.
    #[error(
        "the backup repository at {repo} is another one than before ({id}): is the right disk mounted? If this one is meant, too (disks that take turns), add \
         its id as a line to {known}"
    )]
    OtherRepository {
        /// Where.
        repo: String,
        /// Its id.
        id: String,
        /// File that says which were there.
        known: String,
    },
    /// The disk is nearly full.
    #[error(
        "the disk of {repo} has come to its last tenth, which backups leave alone: nothing more was written and no snapshot was recorded; free space, move the \
         repository, or keep fewer snapshots"
    )]
    NoRoom {
        /// Where.
        repo: String,
    },
    /// The key does not open it.
    #[error(
        "the key in {key_file} does not open the backup repository at {repo}: put back the key file that belongs to it (it cannot be made anew)"
    )]
    WrongKey {
        /// Where.
        repo: String,
        /// Which key.
        key_file: String,
    },
    /// Others are at work on it, and this must be done alone.
    #[error("the backup repository {repo} is in use: snapshots are removed when nothing reads it; the next backup or `prune` tries again")]
    InUse {
        /// Where.
        repo: String,
    },
    /// Others are at work on it.
    #[error(
        "the backup repository {repo} is locked: others were at work on it for {waited_s} s; wait until they have ended (`history` names them), or see which \
         process holds {repo}.lock"
    )]
    Locked {
        /// Where.
        repo: String,
        /// How long was waited.
        waited_s: u64,
    },
    /// The key file is missing or malformed.
    #[error("backup key {key_file}: {detail}; restore this file from the copy you keep, or move the repository away to start a new one")]
    Key {
        /// Which key.
        key_file: String,
        /// Cause.
        detail: String,
    },
    /// The repository would be backed up into itself.
    #[error(
        "the backup repository {repo} lies on the data to be backed up ({source_path}): move the repository (or the home) to another place"
    )]
    RepositoryOnSource {
        /// Repository.
        repo: String,
        /// Source.
        source_path: String,
    },
    /// No such snapshot.
    #[error("no snapshot {snapshot}: {detail}; `backups` lists those that exist")]
    UnknownSnapshot {
        /// Id asked for.
        snapshot: String,
        /// Cause.
        detail: String,
    },
    /// Nothing at a path.
    #[error("snapshot {snapshot} holds nothing at {path:?}{}", nearest_are(.near))]
    NoSuchPath {
        /// Snapshot.
        snapshot: String,
        /// The path.
        path: String,
        /// What it holds with a name like it, nearest first.
        near: Vec<String>,
    },
    /// The target holds something.
    #[error("{path} is not empty: a restore never overwrites; give an empty or new target")]
    TargetNotEmpty {
        /// Where.
        path: String,
    },
    /// A file or directory could not be used.
    #[error("{path}: {detail}")]
    Io {
        /// Where.
        path: String,
        /// Cause.
        detail: String,
    },
    /// A tar stream that is not whole.
    #[error("the archive {path} is damaged or cut short ({detail}): nothing was stored; try again")]
    Archive {
        /// Where.
        path: String,
        /// Cause.
        detail: String,
    },
    /// The repository refused.
    #[error("backup repository: {detail}; run the check of the repository (`verify_backup`) before relying on it")]
    Repository {
        /// Cause.
        detail: String,
    },
    /// The request was not understood.
    #[error("the worker did not understand its request: {detail}; supervisor and worker must be the same version, restart the supervisor")]
    Protocol {
        /// Cause.
        detail: String,
    },
    /// A defect.
    #[error("the backup worker failed: {detail}; nothing was recorded, the data is untouched")]
    Internal {
        /// Cause.
        detail: String,
    },
    /// A place on another host.
    #[error("{at} {}: {detail}; {}", .trouble.what(), .trouble.next())]
    Remote {
        /// Where.
        at: String,
        /// What is the matter.
        trouble: Trouble,
        /// In its own words.
        detail: String,
    },
    /// No credentials for it.
    #[error(
        "no credentials in {source_of}: {detail}; write aws_access_key_id = ... and aws_secret_access_key = ... into the credentials_file, or set \
         AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY for the supervisor"
    )]
    Credentials {
        /// Where they were looked for.
        source_of: String,
        /// Cause.
        detail: String,
    },
    /// Another instance writes there.
    #[error(
        "{at} belongs to instance {owner} since {since}: two that write one repository remove what the other needs; give this one a path of its own, or, \
         when that instance never runs again, set replaces = \"{owner}\" beside `at`"
    )]
    Foreign {
        /// Where.
        at: String,
        /// Whose.
        owner: String,
        /// Since when.
        since: String,
    },
    /// Built without the feature.
    #[error("this build of dockwarden has no backup support: build it with the default features")]
    NotBuilt,
    /// Built without the other one.
    #[error("this build of dockwarden reaches no repositories on other hosts: build it with `--features backup-remote`")]
    RemoteNotBuilt,
}

fn nearest_are(names: &[String]) -> String {
    if names.is_empty() { String::new() } else { format!(": nearest are {}", names.join(", ")) }
}
