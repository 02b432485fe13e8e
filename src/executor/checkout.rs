//! Brings a registered project directory to what was pushed: fetches one branch and moves the checkout forward along it, or refuses and says why. Nothing of a
//! person's is thrown away, nothing is merged, no hook of the repository runs. What git itself reads from the repository's configuration (credentials, how
//! ssh is called) is believed: the directory is the operator's. Deliberately absent: when, and for whom (`supervisor::tasks::checkout`).

use crate::redact;
use rustix::process::{Pid, Signal, kill_process_group};
use std::path::Path;
use std::process::{Output, Stdio};
use std::time::Duration;
use tokio::process::Command;

/// Longest fetch, and longest step of any other kind.
pub const LIMIT: Duration = Duration::from_secs(120);

/// Where to look, and along what.
#[derive(Debug, Clone, Copy)]
pub struct Checkout<'a> {
    /// The directory, or one below it.
    pub dir: &'a Path,
    /// Name of the remote.
    pub remote: &'a str,
    /// Branch.
    pub branch: &'a str,
    /// Longest run of one command.
    pub limit: Duration,
}

/// A step forward that can be taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Forward {
    /// Commit that is checked out.
    pub from: String,
    /// Commit of the branch at the remote.
    pub to: String,
}

/// Why a checkout was left as it is.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CheckoutError {
    /// No git on this host.
    #[error("git cannot be run here ({0}): install it where the supervisor runs, or leave `git` out of the stack's registration")]
    NoGit(String),
    /// Not a repository, or one git does not want to touch.
    #[error("{dir} is no checkout git would work on ({why}): clone the repository there as the user the supervisor runs as")]
    NoCheckout {
        /// Directory.
        dir: String,
        /// In git's words.
        why: String,
    },
    /// Something else is checked out.
    #[error(
        "{found} is checked out where branch {wanted} is followed: run `git switch {wanted}` there, or correct `git.branch` of the stack's registration"
    )]
    OtherBranch {
        /// What is.
        found: String,
        /// What is followed.
        wanted: String,
    },
    /// Files under version control were changed.
    #[error(
        "the checkout has changes that are not committed ({0}): commit and push them, or undo them with `git restore`; nothing was fetched over them"
    )]
    Dirty(String),
    /// The remote's branch does not contain what is checked out.
    #[error(
        "commit {from} that is checked out is not part of {to} that the remote has: somebody committed here or rewrote the branch; look with `git log {from} {to}` and \
         decide there (`git reset --keep {to}` takes the remote's)"
    )]
    Diverged {
        /// Checked out.
        from: String,
        /// The remote's.
        to: String,
    },
    /// The remote did not give the branch.
    #[error("the branch could not be fetched: {0}")]
    Fetch(String),
    /// A command failed in the middle.
    #[error("git {command} failed: {why}")]
    Failed {
        /// Which.
        command: &'static str,
        /// In git's words.
        why: String,
    },
    /// A command took too long; it and what it had started were ended.
    #[error("git {command} did not end within {seconds} s and was ended")]
    TimedOut {
        /// Which.
        command: &'static str,
        /// The limit.
        seconds: u64,
    },
}

impl CheckoutError {
    /// Whether another try may mend it.
    pub fn passes(&self) -> bool {
        match self {
            Self::Fetch(_) | Self::Failed { .. } | Self::TimedOut { .. } => true,
            Self::NoGit(_) | Self::NoCheckout { .. } | Self::OtherBranch { .. } | Self::Dirty(_) | Self::Diverged { .. } => false,
        }
    }
}

/// Ends a command with all it started, unless it has ended: git's helpers (ssh, git-remote-https) outlive git otherwise.
struct Group(Option<Pid>);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(pid) = self.0
            && let Err(e) = kill_process_group(pid, Signal::KILL)
        {
            tracing::debug!(error = %e, "a process group of git had ended");
        }
    }
}

impl Checkout<'_> {
    /// Fetches the branch; what step forward there is, `None` when it is checked out already. The files stay as they are.
    ///
    /// # Errors
    /// `CheckoutError`.
    pub async fn fetch(&self) -> Result<Option<Forward>, CheckoutError> {
        let head = self.git("rev-parse", &["rev-parse", "--verify", "HEAD^{commit}"]).await?;
        if !head.status.success() {
            return Err(CheckoutError::NoCheckout { dir: self.dir.display().to_string(), why: said(&head) });
        }
        let from = line(&head);
        let name = self.git("symbolic-ref", &["symbolic-ref", "--quiet", "--short", "HEAD"]).await?;
        let found = if name.status.success() { line(&name) } else { "a commit without a branch".to_owned() };
        if found != self.branch {
            return Err(CheckoutError::OtherBranch { found, wanted: self.branch.to_owned() });
        }
        self.clean().await?;
        // Under a name of our own: FETCH_HEAD and the remote's branches may be in somebody else's hands at this moment.
        let own = self.own();
        let what = format!("+refs/heads/{}:{own}", self.branch);
        let fetch = ["fetch", "--quiet", "--no-tags", "--no-recurse-submodules", "--no-write-fetch-head", "--", self.remote, &what];
        let fetched = self.git("fetch", &fetch).await?;
        if !fetched.status.success() {
            return Err(CheckoutError::Fetch(said(&fetched)));
        }
        let to = self.done("rev-parse", &["rev-parse", "--verify", &format!("{own}^{{commit}}")]).await?;
        if to == from {
            return Ok(None);
        }
        let within = self.git("merge-base", &["merge-base", "--is-ancestor", &from, &to]).await?;
        match within.status.code() {
            Some(0) => Ok(Some(Forward { from, to })),
            Some(1) => Err(CheckoutError::Diverged { from: short(&from), to: short(&to) }),
            _ => Err(CheckoutError::Failed { command: "merge-base", why: said(&within) }),
        }
    }

    /// Takes a step forward that was found. It is not taken over changes made meanwhile.
    ///
    /// # Errors
    /// `CheckoutError`.
    pub async fn advance(&self, step: &Forward) -> Result<(), CheckoutError> {
        self.clean().await?;
        self.done("merge", &["merge", "--quiet", "--ff-only", "--no-stat", "--no-verify", "--no-autostash", &step.to]).await?;
        let now = self.done("rev-parse", &["rev-parse", "--verify", "HEAD^{commit}"]).await?;
        if now == step.to {
            return Ok(());
        }
        Err(CheckoutError::Failed { command: "merge", why: format!("{} is checked out afterwards, not {}", short(&now), short(&step.to)) })
    }

    fn own(&self) -> String {
        format!("refs/dockwarden/{}", self.branch)
    }

    /// Whether no file under version control was changed. What is not under it (data, `.env`) is nobody's business; git itself overwrites none of it.
    async fn clean(&self) -> Result<(), CheckoutError> {
        let top = self.done("rev-parse", &["rev-parse", "--show-toplevel"]).await?;
        let all = Checkout { dir: Path::new(&top), ..*self };
        let status = all.git("status", &["status", "--porcelain", "--untracked-files=no", "--ignore-submodules=none"]).await?;
        if !status.status.success() {
            return Err(CheckoutError::Failed { command: "status", why: said(&status) });
        }
        let text = String::from_utf8_lossy(&status.stdout).into_owned();
        let mut files = text.lines().filter_map(|l| l.get(3..));
        let Some(first) = files.next() else { return Ok(()) };
        let more = files.count();
        let more = if more == 0 { String::new() } else { format!(" and {more} more") };
        Err(CheckoutError::Dirty(format!("{}{more}", redact::line(first, 120))))
    }

    /// The one line a command answers.
    async fn done(&self, command: &'static str, arguments: &[&str]) -> Result<String, CheckoutError> {
        let output = self.git(command, arguments).await?;
        match output.status.success() {
            true => Ok(line(&output)),
            false => Err(CheckoutError::Failed { command, why: said(&output) }),
        }
    }

    async fn git(&self, name: &'static str, arguments: &[&str]) -> Result<Output, CheckoutError> {
        let mut command = Command::new("git");
        // Nothing of the supervisor's surroundings says which repository is meant.
        for key in ["GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_OBJECT_DIRECTORY", "GIT_COMMON_DIR", "GIT_NAMESPACE"] {
            command.env_remove(key);
        }
        let own = [
            "core.hooksPath=/dev/null",
            "core.fsmonitor=false",
            "core.pager=cat",
            "gc.auto=0",
            "maintenance.auto=false",
            "submodule.recurse=false",
        ];
        command
            .args(own.iter().flat_map(|setting| ["-c", setting]))
            .args(["-c", "protocol.ext.allow=never", "-C"])
            .arg(self.dir)
            .args(arguments)
            .env("GIT_TERMINAL_PROMPT", "0")
            .env("GIT_ASKPASS", "/bin/false")
            .env("SSH_ASKPASS", "/bin/false")
            .env("LC_ALL", "C")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true);
        let child = command.spawn().map_err(|e| CheckoutError::NoGit(e.to_string()))?;
        let mut group = Group(child.id().and_then(|id| Pid::from_raw(id.cast_signed())));
        let output = tokio::time::timeout(self.limit, child.wait_with_output()).await;
        let output = output.map_err(|_| CheckoutError::TimedOut { command: name, seconds: self.limit.as_secs() })?;
        group.0 = None;
        output.map_err(|e| CheckoutError::Failed { command: name, why: e.to_string() })
    }
}

fn line(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).lines().next().unwrap_or_default().trim().to_owned()
}

/// Git's own complaint. What the other side says ("remote: ...") is left out: it is a stranger's text.
fn said(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    let own = text.lines().find(|l| l.starts_with("fatal: ") || l.starts_with("error: ")).map(|l| redact::line(l, 200));
    own.unwrap_or_else(|| output.status.to_string())
}

fn short(commit: &str) -> String {
    commit.chars().take(12).collect()
}

#[cfg(test)]
pub(crate) mod tests;
