//! The git state of a project directory, for the record of a release: commit and whether anything was changed since. Reads only, with a time limit; a
//! directory without git, or a host without it, has no state. A repository may belong to an agent, and its configuration can name programs that git runs
//! (filters, hooks, fsmonitor): the directory is compared under a configuration of our own, so that none of them runs. Deliberately absent: fetching,
//! checking out.

use crate::model::plan::GitState;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use tokio::process::Command;

/// A status over a large tree on a slow disk; a plan does not wait longer for what only decorates it.
const LIMIT: Duration = Duration::from_secs(3);

/// Commit and dirty flag of a directory under git.
pub async fn state(dir: &Path) -> Option<GitState> {
    // Follows references and runs nothing that a repository names.
    let found = git(
        dir,
        &["rev-parse", "--path-format=absolute", "--git-dir", "--git-common-dir", "--show-toplevel", "--show-object-format", "HEAD"],
        &[],
    );
    let found = found.await?;
    let [git_dir, common, top, format, commit] = found.lines().collect::<Vec<_>>().try_into().ok()?;
    let plausible = commit.len() >= 40 && commit.bytes().all(|b| b.is_ascii_hexdigit()) && matches!(format, "sha1" | "sha256");
    if !plausible {
        return None;
    }
    let place = Place { dir, git_dir: Path::new(git_dir), common: Path::new(common), top: Path::new(top), format, commit };
    // A comparison that was not made, or not in time, is reported as dirty: the claim "exactly this commit" must be earned.
    Some(GitState { commit: commit.to_owned(), dirty: place.dirty().await.unwrap_or(true) })
}

/// Where a repository lies.
struct Place<'a> {
    dir: &'a Path,
    git_dir: &'a Path,
    common: &'a Path,
    top: &'a Path,
    format: &'a str,
    commit: &'a str,
}

impl Place<'_> {
    /// Whether the directory differs from the commit, by the repository's index and objects alone.
    async fn dirty(&self) -> Option<bool> {
        let own = Scratch::new(self.format, self.commit).ok()?;
        let (index, objects) = (self.git_dir.join("index"), self.common.join("objects"));
        let environment = [
            ("GIT_DIR", own.0.as_path()),
            ("GIT_WORK_TREE", self.top),
            ("GIT_INDEX_FILE", &index),
            ("GIT_OBJECT_DIRECTORY", &objects),
            ("GIT_CONFIG_GLOBAL", Path::new("/dev/null")),
            ("GIT_CONFIG_SYSTEM", Path::new("/dev/null")),
            ("GIT_ATTR_NOSYSTEM", Path::new("1")),
        ];
        let excluded = format!("core.excludesFile={}", self.common.join("info/exclude").display());
        // Changes within a submodule would be looked for under the submodule's own configuration.
        let status = ["-c", &excluded, "status", "--porcelain", "--untracked-files=normal", "--ignore-submodules=dirty", "--", "."];
        let status = git(self.dir, &status, &environment).await;
        status.map(|s| !s.trim().is_empty())
    }
}

/// A git directory of our own without objects: its configuration names no program.
struct Scratch(PathBuf);

impl Scratch {
    fn new(format: &str, commit: &str) -> std::io::Result<Self> {
        let dir = std::env::temp_dir().join(format!("dockwarden-git-{}", ulid::Ulid::generate()));
        std::fs::DirBuilder::new().mode(0o700).create(&dir)?;
        let own = Self(dir);
        for name in ["objects", "refs"] {
            std::fs::create_dir(own.0.join(name))?;
        }
        std::fs::write(own.0.join("HEAD"), format!("{commit}\n"))?;
        let version = if format == "sha1" { "0".to_owned() } else { format!("1\n[extensions]\n\tobjectFormat = {format}") };
        std::fs::write(own.0.join("config"), format!("[core]\n\tbare = false\n\trepositoryFormatVersion = {version}\n"))?;
        Ok(own)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(e) = std::fs::remove_dir_all(&self.0) {
            tracing::warn!(dir = %self.0.display(), error = %e, "a directory of a comparison stays behind");
        }
    }
}

async fn git(dir: &Path, arguments: &[&str], environment: &[(&str, &Path)]) -> Option<String> {
    let mut command = Command::new("git");
    for inherited in [
        "GIT_DIR",
        "GIT_WORK_TREE",
        "GIT_INDEX_FILE",
        "GIT_OBJECT_DIRECTORY",
        "GIT_CONFIG_COUNT",
        "GIT_CONFIG_PARAMETERS",
        "GIT_EXTERNAL_DIFF",
    ] {
        command.env_remove(inherited);
    }
    command
        .args(["-c", "core.fsmonitor=false", "-c", "core.hooksPath=/dev/null", "-c", "core.pager=cat", "-C"])
        .arg(dir)
        .args(arguments)
        .env("GIT_OPTIONAL_LOCKS", "0")
        .env("GIT_TERMINAL_PROMPT", "0")
        .envs(environment.iter().copied())
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true);
    let output = tokio::time::timeout(LIMIT, command.output()).await.ok()?.ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn run(dir: &Path, arguments: &[&str]) {
        let identity = [("GIT_CONFIG_GLOBAL", Path::new("/dev/null"))];
        let mut all = vec!["-c", "user.name=a", "-c", "user.email=a@example.org"];
        all.extend(arguments);
        assert!(git(dir, &all, &identity).await.is_some(), "git {arguments:?}");
    }

    #[tokio::test]
    async fn a_repository_names_no_program_that_runs_here() {
        let dir = tempfile::tempdir().expect("a directory");
        let (top, mark) = (dir.path().join("repo"), dir.path().join("it-ran"));
        std::fs::create_dir(&top).expect("made");
        let write = |name: &str, text: &str| std::fs::write(top.join(name), text).expect("written");
        write("compose.yaml", "one\n");
        run(&top, &["init", "-q"]).await;
        run(&top, &["add", "."]).await;
        run(&top, &["commit", "-q", "-m", "one"]).await;
        let clean = state(&top).await.expect("a state");
        assert!(!clean.dirty && clean.commit.len() == 40, "{clean:?}");

        let planted = format!("touch {}; cat", mark.display());
        for key in ["filter.evil.clean", "filter.evil.process", "diff.evil.textconv", "diff.evil.command", "core.fsmonitor", "core.pager"] {
            run(&top, &["config", key, &planted]).await;
        }
        write(".gitattributes", "* filter=evil diff=evil\n");
        write(".git/info/attributes", "* filter=evil diff=evil\n");
        // Of the same size: only a look at the content, through the filter, would tell.
        write("compose.yaml", "two\n");
        let changed = state(&top).await.expect("a state");
        assert!(changed.dirty && changed.commit == clean.commit, "{changed:?}");
        assert!(!mark.exists(), "a program named by the repository ran");

        // The proof that the trap works.
        let trapped = ["-c", "core.fsmonitor=false", "status", "--porcelain"];
        git(&top, &trapped, &[]).await;
        assert!(mark.exists(), "git itself runs the filter");
        std::fs::remove_file(top.join(".gitattributes")).expect("gone");
        write("compose.yaml", "one\n");
        std::fs::remove_file(top.join(".git/info/attributes")).expect("gone");
        assert!(!state(&top).await.expect("a state").dirty);
    }
}
