//! A checkout of a bare repository in a directory: brought forward, and everything that must stop it.

use super::*;
use std::fs;
use std::path::PathBuf;

pub(crate) struct Lab {
    _dir: tempfile::TempDir,
    bare: PathBuf,
    /// Where somebody works and pushes.
    desk: PathBuf,
    /// What a stack is registered with.
    pub(crate) here: PathBuf,
}

fn git(dir: &Path, arguments: &[&str]) -> String {
    let own = ["-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "init.defaultBranch=main", "-c", "core.hooksPath=/dev/null"];
    let mut command = std::process::Command::new("git");
    command.arg("-C").arg(dir).args(own).args(arguments).env("GIT_CONFIG_GLOBAL", "/dev/null").stdin(Stdio::null());
    let output = command.output().expect("git runs");
    assert!(output.status.success(), "git {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    line(&output)
}

impl Lab {
    pub(crate) fn new(text: &str) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let at = |name: &str| dir.path().join(name);
        let (bare, desk, here) = (at("bare.git"), at("desk"), at("here"));
        for made in [&bare, &desk] {
            fs::create_dir(made).expect("made");
        }
        git(&bare, &["init", "-q", "--bare"]);
        git(&desk, &["init", "-q"]);
        let lab = Self { _dir: dir, bare, desk, here };
        git(&lab.desk, &["remote", "add", "origin", &lab.url()]);
        lab.push(text);
        git(&lab.desk, &["clone", "-q", &lab.url(), lab.here.to_str().expect("text")]);
        lab
    }

    fn url(&self) -> String {
        format!("file://{}", self.bare.display())
    }

    /// A commit that changes the compose file, pushed.
    pub(crate) fn push(&self, text: &str) -> String {
        fs::write(self.desk.join("compose.yaml"), text).expect("written");
        git(&self.desk, &["add", "."]);
        git(&self.desk, &["commit", "-q", "-m", text]);
        git(&self.desk, &["push", "-q", "--force", "origin", "HEAD:main"]);
        git(&self.desk, &["rev-parse", "HEAD"])
    }

    fn checkout(&self) -> Checkout<'_> {
        Checkout { dir: &self.here, remote: "origin", branch: "main", limit: Duration::from_secs(60) }
    }

    async fn bring(&self) -> Result<Option<Forward>, CheckoutError> {
        let step = self.checkout().fetch().await?;
        if let Some(step) = &step {
            self.checkout().advance(step).await?;
        }
        Ok(step)
    }

    fn text(&self) -> String {
        fs::read_to_string(self.here.join("compose.yaml")).expect("read")
    }
}

#[tokio::test]
async fn a_push_is_taken_forward_and_no_hook_of_the_repository_runs() {
    let lab = Lab::new("one");
    let mark = lab.here.parent().expect("a parent").join("it-ran");
    let hooks = lab.here.join(".git/hooks");
    fs::create_dir_all(&hooks).expect("made");
    for hook in ["post-merge", "pre-merge-commit", "post-checkout", "reference-transaction", "post-rewrite"] {
        use std::os::unix::fs::PermissionsExt;
        fs::write(hooks.join(hook), format!("#!/bin/sh\necho {hook} >> {}\n", mark.display())).expect("written");
        fs::set_permissions(hooks.join(hook), fs::Permissions::from_mode(0o755)).expect("set");
    }
    assert_eq!(lab.bring().await, Ok(None), "nothing was pushed");
    let before = git(&lab.here, &["rev-parse", "HEAD"]);
    lab.push("two");
    let to = lab.push("three");
    // What is not under version control (data, .env) stands in nobody's way.
    fs::write(lab.here.join(".env"), "A=1\n").expect("written");
    assert_eq!(lab.bring().await, Ok(Some(Forward { from: before, to: to.clone() })));
    assert_eq!((lab.text().as_str(), git(&lab.here, &["rev-parse", "HEAD"])), ("three", to));
    assert_eq!(git(&lab.here, &["symbolic-ref", "--short", "HEAD"]), "main");
    assert!(!mark.exists(), "{:?} ran", fs::read_to_string(&mark));
    // The proof that the trap works.
    let plain = std::process::Command::new("git").arg("-C").arg(&lab.here).args(["update-ref", "refs/heads/x", "HEAD"]).status();
    assert!(plain.expect("git runs").success() && mark.exists());
}

#[tokio::test]
async fn what_somebody_changed_here_stops_it_and_stays() {
    let lab = Lab::new("one");
    lab.push("two");
    fs::write(lab.here.join("compose.yaml"), "mine").expect("written");
    let refused = lab.bring().await.expect_err("dirty");
    assert!(matches!(&refused, CheckoutError::Dirty(file) if file == "compose.yaml") && !refused.passes(), "{refused}");
    // Also when it happens between the look and the step.
    git(&lab.here, &["checkout", "-q", "--", "."]);
    let step = lab.checkout().fetch().await.expect("clean").expect("a step");
    fs::write(lab.here.join("compose.yaml"), "mine").expect("written");
    assert!(matches!(lab.checkout().advance(&step).await, Err(CheckoutError::Dirty(_))));
    assert_eq!(lab.text(), "mine");
    // A new file of the branch does not go over one that nobody has committed.
    git(&lab.here, &["checkout", "-q", "--", "."]);
    fs::write(lab.desk.join("new.txt"), "theirs").expect("written");
    lab.push("three");
    fs::write(lab.here.join("new.txt"), "mine").expect("written");
    assert!(matches!(lab.bring().await, Err(CheckoutError::Failed { command: "merge", .. })));
    assert_eq!((fs::read_to_string(lab.here.join("new.txt")).expect("read").as_str(), lab.text().as_str()), ("mine", "one"));
}

#[tokio::test]
async fn a_history_that_went_another_way_is_refused_and_named() {
    let lab = Lab::new("one");
    // Rewritten at the remote.
    fs::write(lab.desk.join("compose.yaml"), "other").expect("written");
    git(&lab.desk, &["commit", "-q", "-a", "--amend", "-m", "other"]);
    git(&lab.desk, &["push", "-q", "--force", "origin", "HEAD:main"]);
    let before = git(&lab.here, &["rev-parse", "HEAD"]);
    let refused = lab.bring().await.expect_err("diverged");
    assert!(matches!(&refused, CheckoutError::Diverged { from, .. } if before.starts_with(from)) && !refused.passes(), "{refused}");
    assert_eq!((lab.text().as_str(), git(&lab.here, &["rev-parse", "HEAD"])), ("one", before));
    // A commit made here that the remote does not have.
    let lab = Lab::new("one");
    git(&lab.here, &["commit", "-q", "--allow-empty", "-m", "here"]);
    assert!(matches!(lab.bring().await, Err(CheckoutError::Diverged { .. })));
}

#[tokio::test]
async fn another_branch_no_repository_and_no_remote_are_told_apart() {
    let lab = Lab::new("one");
    git(&lab.here, &["switch", "-q", "-c", "mine"]);
    let refused = lab.bring().await.expect_err("another branch");
    let expected = CheckoutError::OtherBranch { found: "mine".into(), wanted: "main".into() };
    assert!(refused == expected && refused.to_string().contains("git switch main"), "{refused}");
    git(&lab.here, &["switch", "-q", "--detach", "main"]);
    assert!(matches!(lab.bring().await, Err(CheckoutError::OtherBranch { found, .. }) if found == "a commit without a branch"));
    git(&lab.here, &["switch", "-q", "main"]);
    fs::rename(&lab.bare, lab.bare.with_extension("away")).expect("moved");
    let away = lab.bring().await.expect_err("no remote");
    assert!(matches!(away, CheckoutError::Fetch(_)) && away.passes(), "{away}");
    let nothing = tempfile::tempdir().expect("a directory");
    let none = Checkout { dir: nothing.path(), ..lab.checkout() }.fetch().await.expect_err("no repository");
    assert!(matches!(none, CheckoutError::NoCheckout { .. }), "{none}");
}

/// Whether a process is gone, or waits only for its parent.
fn ended(pid: &str) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.is_empty() || stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('Z'))
}

#[tokio::test]
async fn a_remote_that_hangs_is_ended_with_all_that_git_started() {
    use std::os::unix::fs::PermissionsExt;
    let lab = Lab::new("one");
    let (slow, pids) = (lab.bare.with_file_name("slow.sh"), lab.bare.with_file_name("pids"));
    fs::write(&slow, format!("#!/bin/sh\nsleep 600 &\necho $! $$ > {}\nwait\n", pids.display())).expect("written");
    fs::set_permissions(&slow, fs::Permissions::from_mode(0o755)).expect("set");
    git(&lab.here, &["config", "core.sshCommand", slow.to_str().expect("text")]);
    git(&lab.here, &["remote", "set-url", "origin", "ssh://git@192.0.2.1/shop.git"]);
    let hanging = Checkout { limit: Duration::from_secs(4), ..lab.checkout() };
    let refused = hanging.fetch().await.expect_err("in time");
    assert_eq!(refused, CheckoutError::TimedOut { command: "fetch", seconds: 4 });
    assert!(refused.passes());
    let pids = fs::read_to_string(&pids).expect("it was called");
    for pid in pids.split_whitespace() {
        let mut tries = 0;
        while !ended(pid) {
            tries += 1;
            assert!(tries < 200, "process {pid} outlived the time limit");
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
    }
}
