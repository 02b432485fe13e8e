//! The git state of a project directory, for the record of a release: commit and whether anything was changed since. Reads only, with a time limit; a
//! directory without git, or a host without it, has no state. Deliberately absent: fetching, checking out, hooks of any kind.

use crate::model::plan::GitState;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;
use tokio::process::Command;

/// A status over a large tree on a slow disk; a plan does not wait longer for what only decorates it.
const LIMIT: Duration = Duration::from_secs(3);

/// Commit and dirty flag of a directory under git.
pub async fn state(dir: &Path) -> Option<GitState> {
    let commit = git(dir, &["rev-parse", "HEAD"]).await?;
    let status = git(dir, &["status", "--porcelain", "--untracked-files=normal", "--", "."]).await;
    let commit = commit.trim().to_owned();
    let plausible = commit.len() >= 40 && commit.bytes().all(|b| b.is_ascii_hexdigit());
    // A status that did not answer in time is reported as dirty: the claim "exactly this commit" must be earned.
    plausible.then(|| GitState { commit, dirty: status.is_none_or(|s| !s.trim().is_empty()) })
}

async fn git(dir: &Path, arguments: &[&str]) -> Option<String> {
    let mut command = Command::new("git");
    command
        // A repository's own configuration can name programs that git runs (fsmonitor, pager, hooks): none of them for a directory others write.
        .args(["-c", "core.fsmonitor=false", "-c", "core.hooksPath=/dev/null", "-c", "core.pager=cat", "-C"])
        .arg(dir)
        .args(arguments)
        .env("GIT_OPTIONAL_LOCKS", "0")
        .env("GIT_TERMINAL_PROMPT", "0")
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true);
    let output = tokio::time::timeout(LIMIT, command.output()).await.ok()?.ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}
