//! A directory of the host and the one restored beside it change places, since the file that mounts it names its path. Who is who is told by the identity
//! (device, inode) each had before, so that the exchange and its way back can be begun again wherever they were interrupted: at every moment the live path
//! holds either the old data or the new, or (where the file system cannot exchange two names at once) nothing for the moment between two renames, which the
//! next try ends. Deliberately absent: removing either of the two, and setting containers going.

use super::acts::Doer;
use super::quiesce::{Quiesce, Writer, hold, resume};
use super::reach::Devices;
use super::{Around, BackupError};
use crate::engine::EngineError;
use crate::executor::{probe, straight};
use crate::gate::Permit;
use crate::model::ids::ServiceName;
use crate::model::labels;
use crate::model::observed::RunState;
use rustix::fs::{RenameFlags, renameat, renameat_with};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::ffi::OsString;
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// What changes places, as the journal keeps it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exchange {
    /// Path that containers mount.
    pub live: PathBuf,
    /// Path of the restored directory.
    pub staged: PathBuf,
    /// Path under which what was live is kept.
    pub kept: PathBuf,
    /// Device and inode of what was live.
    pub old: (u64, u64),
    /// Device and inode of what was restored.
    pub new: (u64, u64),
    /// Containers that mount it and stay as they are, stopped meanwhile.
    pub users: Vec<Writer>,
}

/// The open directory that a path lies in, and the name in it: no link on the way is followed.
fn place(path: &Path) -> Result<(File, OsString), BackupError> {
    straight::parent(path).map_err(|e| BackupError::io(path, &e.into()))
}

/// Device and inode of what is at a path, links not followed.
fn identity(path: &Path) -> Result<Option<(u64, u64)>, BackupError> {
    let (dir, name) = place(path)?;
    match std::fs::symlink_metadata(straight::through(&dir).join(name)) {
        Ok(meta) => Ok(Some((meta.dev(), meta.ino()))),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(BackupError::io(path, &e)),
    }
}

impl Exchange {
    /// Of two directories that are there.
    ///
    /// # Errors
    /// `NoDirectory` when one is missing or they lie on different file systems.
    pub(crate) fn of(live: &Path, staged: &Path, kept: PathBuf, users: Vec<Writer>) -> Result<Self, BackupError> {
        let bad = |path: &Path, detail: &str| BackupError::NoDirectory { path: path.display().to_string(), detail: detail.to_owned() };
        let old = identity(live)?.ok_or_else(|| bad(live, "it is gone"))?;
        let new = identity(staged)?.ok_or_else(|| bad(staged, "it is gone"))?;
        for path in [live, staged] {
            straight::identity(path).map_err(|e| bad(path, &e.to_string()))?;
        }
        if old.0 != new.0 {
            return Err(bad(
                live,
                "it is a mount point of its own: what was restored lies on another file system and cannot take its place",
            ));
        }
        Ok(Self { live: live.to_owned(), staged: staged.to_owned(), kept, old, new, users })
    }

    fn places(&self) -> Result<[Option<bool>; 3], BackupError> {
        // `true` = the new one, `false` = the old one.
        let who = |path: &Path| match identity(path)? {
            None => Ok(None),
            Some(id) if id == self.new => Ok(Some(true)),
            Some(id) if id == self.old => Ok(Some(false)),
            Some(_) => Err(BackupError::NoDirectory {
                path: path.display().to_string(),
                detail: format!(
                    "something else has taken its place; the data before is the directory with inode {} and the restored one that with inode {}, both beside it",
                    self.old.1, self.new.1
                ),
            }),
        };
        Ok([who(&self.live)?, who(&self.staged)?, who(&self.kept)?])
    }

    /// The restored directory takes the live one's place, and that one is kept. Safe to repeat.
    ///
    /// # Errors
    /// `Io`, or `NoDirectory` when others have moved them.
    pub(super) fn forward(&self) -> Result<(), BackupError> {
        self.forward_by(swapped)
    }

    fn forward_by(&self, swap: impl Fn(&Path, &Path) -> Result<bool, BackupError>) -> Result<(), BackupError> {
        match self.places()? {
            [Some(true), None, Some(false)] => {}
            [Some(true), Some(false), None] => rename(&self.staged, &self.kept)?,
            [None, Some(true), Some(false)] => rename(&self.staged, &self.live)?,
            [Some(false), Some(true), None] => {
                if swap(&self.live, &self.staged)? {
                    rename(&self.staged, &self.kept)?;
                } else {
                    rename(&self.live, &self.kept)?;
                    rename(&self.staged, &self.live)?;
                }
            }
            other => return Err(self.lost(other)),
        }
        self.durable()
    }

    /// What was live is live again, the restored one beside it. Safe to repeat, also when nothing was exchanged.
    ///
    /// # Errors
    /// As [`Self::forward`].
    pub(super) fn back(&self) -> Result<(), BackupError> {
        self.back_by(swapped)
    }

    fn back_by(&self, swap: impl Fn(&Path, &Path) -> Result<bool, BackupError>) -> Result<(), BackupError> {
        match self.places()? {
            [Some(false), _, None] => {}
            [Some(false), None, Some(true)] => rename(&self.kept, &self.staged)?,
            [None, Some(true), Some(false)] => rename(&self.kept, &self.live)?,
            [Some(true), Some(false), None] => {
                if !swap(&self.live, &self.staged)? {
                    rename(&self.staged, &self.kept)?;
                    rename(&self.live, &self.staged)?;
                    rename(&self.kept, &self.live)?;
                }
            }
            [Some(true), None, Some(false)] => {
                if swap(&self.live, &self.kept)? {
                    rename(&self.kept, &self.staged)?;
                } else {
                    rename(&self.live, &self.staged)?;
                    rename(&self.kept, &self.live)?;
                }
            }
            other => return Err(self.lost(other)),
        }
        self.durable()
    }

    /// Whether the restored one is at the live path, or on its way there.
    fn exchanged(&self) -> Result<bool, BackupError> {
        Ok(identity(&self.live)? != Some(self.old))
    }

    fn lost(&self, places: [Option<bool>; 3]) -> BackupError {
        let word = |p: Option<bool>| match p {
            None => "nothing",
            Some(true) => "the restored data",
            Some(false) => "the data before",
        };
        let [live, staged, kept] = places.map(word);
        BackupError::NoDirectory {
            path: self.live.display().to_string(),
            detail: format!(
                "others have moved it: it holds {live}, {} holds {staged}, {} holds {kept}; put back the one you want",
                self.staged.display(),
                self.kept.display()
            ),
        }
    }

    fn durable(&self) -> Result<(), BackupError> {
        let above = self.live.parent().unwrap_or(&self.live);
        let open = straight::open(above).map_err(|e| BackupError::io(above, &e.into()))?;
        open.sync_all().map_err(|e| BackupError::io(above, &e))
    }
}

/// Exchanges two names at once; `false` where the file system cannot.
fn swapped(a: &Path, b: &Path) -> Result<bool, BackupError> {
    let ((in_a, name_a), (in_b, name_b)) = (place(a)?, place(b)?);
    match renameat_with(&in_a, &name_a, &in_b, &name_b, RenameFlags::EXCHANGE) {
        Ok(()) => Ok(true),
        Err(Errno::INVAL | Errno::NOSYS | Errno::NOTSUP) => Ok(false),
        Err(e) => Err(BackupError::io(a, &e.into())),
    }
}

/// Renames, and never over anything: an engine makes an empty directory where a mount's source is missing.
pub(super) fn rename(from: &Path, to: &Path) -> Result<(), BackupError> {
    let ((in_from, name_from), (in_to, name_to)) = (place(from)?, place(to)?);
    match renameat_with(&in_from, &name_from, &in_to, &name_to, RenameFlags::NOREPLACE) {
        Err(Errno::INVAL | Errno::NOSYS | Errno::NOTSUP) if identity(to)?.is_none() => {
            renameat(&in_from, &name_from, &in_to, &name_to).map_err(|e| BackupError::io(from, &e.into()))
        }
        other => other.map_err(|e| BackupError::io(from, &e.into())),
    }
}

/// Running containers that mount the directory, a part of it or what it is a part of, to read or to write, but the supervisor's own: each sees the
/// old one until it starts again.
pub(crate) async fn users(around: Around<'_>, host: &str) -> Result<Vec<Writer>, BackupError> {
    let devices = Devices::of(around.engine).await?;
    let mut found = vec![];
    for summary in around.others().await? {
        if !matches!(summary.state, RunState::Running | RunState::Restarting | RunState::Paused) {
            continue;
        }
        let Some(detail) = around.engine.container(&summary.id).await? else { continue };
        if detail.mounts.iter().any(|m| devices.touches(m, host)) {
            if summary.state == RunState::Paused {
                let cause = EngineError::Conflict("somebody has paused it; resume it first".to_owned());
                return Err(BackupError::NotQuiet { container: detail.name, verb: "stopped", cause });
            }
            found.push(Writer::seen(around, detail));
        }
    }
    Ok(found)
}

/// Waits until those that were stopped are well on what they have now.
pub(super) async fn prove(doer: &Doer<'_>, users: &[Writer]) -> Result<Value, BackupError> {
    let engine = doer.hands.engine.as_ref();
    let failed = |e: crate::store::StoreError| BackupError::Io { path: "state.db".to_owned(), detail: e.to_string() };
    let release = match &doer.stack {
        Some(stack) => match doer.store.stack(stack).await.map_err(failed)?.and_then(|r| r.current) {
            Some(number) => doer.store.release(stack, number).await.map_err(failed)?,
            None => None,
        },
        None => None,
    };
    for user in users {
        // Gone since: it was removed by somebody, and uses nothing.
        let Some(seen) = engine.container(&user.id).await? else { continue };
        let ours = release.as_ref().filter(|r| seen.labels.get(labels::STACK).is_some_and(|s| *s == r.stack.to_string()));
        let service = seen.labels.get(labels::SERVICE).and_then(|s| ServiceName::new(s.as_str()).ok());
        let spec = ours.zip(service).and_then(|(r, s)| r.spec.services.get(&s)).cloned().unwrap_or_default();
        if let Err(cause) = probe::healthy(engine, doer.permit, &user.id, &spec, false).await {
            return Err(BackupError::NotProven { container: user.name.clone(), cause: cause.to_string() });
        }
    }
    Ok(json!({"well": users.iter().map(|u| u.name.as_str()).collect::<Vec<_>>()}))
}

/// What was live is live again; containers that run on the restored one are stopped for it. They are set going again by whoever stopped them first.
pub(super) async fn take_back(around: Around<'_>, permit: &Permit, exchange: &Exchange) -> Result<(), BackupError> {
    if exchange.exchanged()? {
        hold(around, permit, &exchange.users, Quiesce::Stop).await?;
    }
    exchange.back()?;
    resume(around.engine, permit, &exchange.users, Quiesce::Stop).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn world() -> (tempfile::TempDir, Exchange) {
        let dir = tempfile::tempdir().unwrap();
        let real = dir.path().canonicalize().unwrap();
        let at = |name: &str| real.join(name);
        for (name, text) in [("data", "old"), ("data-restored", "new")] {
            fs::create_dir(at(name)).unwrap();
            fs::write(at(name).join("file"), text).unwrap();
        }
        let exchange = Exchange::of(&at("data"), &at("data-restored"), at("data-before"), vec![]).unwrap();
        (dir, exchange)
    }

    fn seen(e: &Exchange) -> [Option<String>; 3] {
        [&e.live, &e.staged, &e.kept].map(|p| fs::read_to_string(p.join("file")).ok())
    }

    fn text(places: [&str; 3]) -> [Option<String>; 3] {
        places.map(|p| (!p.is_empty()).then(|| p.to_owned()))
    }

    type Swap = fn(&Path, &Path) -> Result<bool, BackupError>;
    const WAYS: [Swap; 2] = [swapped, |_, _| Ok(false)];

    #[test]
    fn they_change_places_and_back_as_often_as_asked() {
        for swap in WAYS {
            let (_dir, e) = world();
            for _ in 0..2 {
                e.forward_by(swap).unwrap();
                assert_eq!(seen(&e), text(["new", "", "old"]));
                assert!(e.exchanged().unwrap());
            }
            for _ in 0..2 {
                e.back_by(swap).unwrap();
                assert_eq!(seen(&e), text(["old", "new", ""]));
                assert!(!e.exchanged().unwrap());
            }
        }
    }

    #[test]
    fn wherever_it_was_interrupted_it_goes_on_and_it_goes_back() {
        // What a crash between two renames leaves: on the way there, on the way there without an exchange, and on the way back without one.
        let interrupted: [fn(&Exchange); 4] = [
            |e| {
                swapped(&e.live, &e.staged).unwrap();
            },
            |e| fs::rename(&e.live, &e.kept).unwrap(),
            |e| {
                e.forward().unwrap();
                fs::rename(&e.live, &e.staged).unwrap();
            },
            |e| {
                e.forward().unwrap();
                swapped(&e.live, &e.kept).unwrap();
            },
        ];
        for (n, interrupt) in interrupted.into_iter().enumerate() {
            for swap in WAYS {
                let (_dir, e) = world();
                interrupt(&e);
                e.back_by(swap).unwrap();
                assert_eq!(seen(&e), text(["old", "new", ""]), "{n}");
                // The last one was on its way back already: nothing sends it forward.
                if n < 3 {
                    let (_dir, e) = world();
                    interrupt(&e);
                    e.forward_by(swap).unwrap();
                    assert_eq!(seen(&e), text(["new", "", "old"]), "{n}");
                }
            }
        }
    }

    #[test]
    fn what_others_put_in_the_way_is_neither_moved_nor_lost() {
        let (_dir, e) = world();
        fs::create_dir(&e.kept).unwrap();
        let refused = e.forward().unwrap_err().to_string();
        assert!(refused.contains("something else has taken its place"), "{refused}");
        assert_eq!(seen(&e), text(["old", "new", ""]));
    }

    #[test]
    fn a_link_in_the_place_of_what_they_lie_in_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let real = dir.path().canonicalize().unwrap();
        for (at, text) in
            [("shop/a/cron.d", "old"), ("shop/a/cron.d-restored", "new"), ("etc/cron.d", "host"), ("etc/cron.d-restored", "evil")]
        {
            fs::create_dir_all(real.join(at)).unwrap();
            fs::write(real.join(at).join("file"), text).unwrap();
        }
        let at = |name: &str| real.join("shop/a").join(name);
        let exchange = || Exchange::of(&at("cron.d"), &at("cron.d-restored"), at("cron.d-before"), vec![]);
        let before = exchange().unwrap();
        fs::rename(real.join("shop/a"), real.join("shop/old")).unwrap();
        std::os::unix::fs::symlink(real.join("etc"), real.join("shop/a")).unwrap();
        for refused in [before.forward(), before.back(), exchange().map(|_| ())] {
            let refused = refused.unwrap_err().to_string();
            assert!(refused.contains("is a link"), "{refused}");
        }
        assert_eq!(fs::read_to_string(real.join("etc/cron.d/file")).unwrap(), "host");
        // Nor is a link at the live path itself exchanged.
        fs::remove_file(real.join("shop/a")).unwrap();
        fs::rename(real.join("shop/old"), real.join("shop/a")).unwrap();
        fs::remove_dir_all(at("cron.d")).unwrap();
        std::os::unix::fs::symlink(real.join("etc"), at("cron.d")).unwrap();
        assert!(exchange().unwrap_err().to_string().contains("is a link"));
    }
}
