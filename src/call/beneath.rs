//! Opens a file beneath a directory so that no link leads out of it, also when somebody swaps files for links meanwhile: the kernel resolves the whole path at
//! once (`openat2`), or, where it lacks that, we go down name by name and follow no link at all. Deliberately absent: reading.

use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags, open as open_at_once, openat, openat2, statat};
use rustix::io::Errno;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Component, Path};

/// Tries of `openat2`, which gives up when a directory is moved under its eyes.
const TRIES: usize = 64;
/// Non-blocking, so that a pipe put in the place of a file cannot hold the call up.
const READ: OFlags = OFlags::RDONLY.union(OFlags::CLOEXEC).union(OFlags::NONBLOCK).union(OFlags::NOCTTY);
const PASS: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Why a file was not opened.
#[derive(Debug)]
pub enum Refused {
    /// The path, or a link on it, leads out of the directory.
    LeadsOut,
    /// There is a link on the path, and this kernel cannot follow it safely.
    Link,
    /// The directory itself cannot be opened.
    Root(std::io::Error),
    /// The file cannot.
    Io(std::io::Error),
}

/// Opens a file for reading; `None` when there is none.
///
/// # Errors
/// `Refused`.
pub fn open(dir: &Path, relative: &Path) -> Result<Option<File>, Refused> {
    let root = root(dir)?;
    match resolved(&root, relative) {
        Err(Refused::Io(e)) if lacking(&e) => walked(root, relative),
        result => result,
    }
}

fn root(dir: &Path) -> Result<OwnedFd, Refused> {
    open_at_once(dir, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).map_err(|e| Refused::Root(e.into()))
}

/// Before Linux 5.6, or in a sandbox that does not know the call.
fn lacking(e: &std::io::Error) -> bool {
    [Errno::NOSYS, Errno::PERM].iter().any(|n| e.raw_os_error() == Some(n.raw_os_error()))
}

/// By the kernel: links are followed as long as they stay beneath.
fn resolved(root: impl AsFd, relative: &Path) -> Result<Option<File>, Refused> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    let mut result = Err(Errno::AGAIN);
    for _ in 0..TRIES {
        result = openat2(&root, relative, READ, Mode::empty(), resolve);
        if !matches!(result, Err(Errno::AGAIN | Errno::INTR)) {
            break;
        }
    }
    match result {
        Ok(file) => Ok(Some(file.into())),
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
        Err(Errno::XDEV | Errno::LOOP) => Err(Refused::LeadsOut),
        Err(e) => Err(Refused::Io(e.into())),
    }
}

/// By ourselves: each name is opened in the directory that was opened before it, and none may be a link.
fn walked(root: OwnedFd, relative: &Path) -> Result<Option<File>, Refused> {
    let mut names = vec![];
    for component in relative.components() {
        match component {
            Component::Normal(name) => names.push(name),
            Component::CurDir => {}
            Component::ParentDir | Component::RootDir | Component::Prefix(_) => return Err(Refused::LeadsOut),
        }
    }
    let Some((file, directories)) = names.split_last() else { return Ok(None) };
    let mut at = root;
    for name in directories {
        at = match openat(&at, *name, PASS, Mode::empty()) {
            Ok(next) => next,
            Err(Errno::NOENT) => return Ok(None),
            Err(Errno::NOTDIR | Errno::LOOP) => return no_directory(&at, name),
            Err(e) => return Err(Refused::Io(e.into())),
        };
    }
    match openat(&at, *file, READ | OFlags::NOFOLLOW, Mode::empty()) {
        Ok(file) => Ok(Some(file.into())),
        Err(Errno::NOENT) => Ok(None),
        Err(Errno::LOOP) => Err(Refused::Link),
        Err(e) => Err(Refused::Io(e.into())),
    }
}

fn no_directory(at: &OwnedFd, name: &std::ffi::OsStr) -> Result<Option<File>, Refused> {
    match statat(at, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) if FileType::from_raw_mode(stat.st_mode).is_symlink() => Err(Refused::Link),
        Ok(_) | Err(_) => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::os::unix::fs::symlink;
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

    type Way = fn(&Path, &Path) -> Result<Option<File>, Refused>;
    const WAYS: [(&str, Way); 3] = [("open", open), ("openat2", |d, p| resolved(root(d)?, p)), ("by names", |d, p| walked(root(d)?, p))];

    fn text(file: Option<File>) -> Option<String> {
        let mut text = String::new();
        file?.read_to_string(&mut text).expect("text");
        Some(text)
    }

    fn tree() -> (tempfile::TempDir, std::path::PathBuf) {
        let dir = tempfile::tempdir().expect("a directory");
        let (project, outside) = (dir.path().join("project"), dir.path().join("outside"));
        std::fs::create_dir_all(project.join("sub")).expect("made");
        std::fs::create_dir(&outside).expect("made");
        std::fs::write(outside.join("x"), "secret").expect("written");
        for at in ["x", "sub/x"] {
            std::fs::write(project.join(at), "in").expect("written");
        }
        symlink("../outside/x", project.join("out")).expect("linked");
        symlink(&outside, project.join("sub-out")).expect("linked");
        symlink("sub/x", project.join("within")).expect("linked");
        (dir, project)
    }

    #[test]
    fn what_stays_beneath_is_opened_and_what_leads_out_is_not() {
        let (_dir, project) = tree();
        for (name, way) in WAYS {
            let read = |path: &str| way(&project, Path::new(path)).map(text);
            for inside in ["x", "./x", "sub/x", "sub/./x"] {
                assert_eq!(read(inside).expect(inside).as_deref(), Some("in"), "{name} {inside}");
            }
            for missing in ["y", "sub/y", "none/y", "x/y"] {
                assert_eq!(read(missing).expect(missing), None, "{name} {missing}");
            }
            for out in ["out", "sub-out/x", "../outside/x", "/etc/passwd", "sub/../../outside/x"] {
                assert!(matches!(read(out), Err(Refused::LeadsOut | Refused::Link)), "{name} {out}");
            }
        }
        assert_eq!(open(&project, Path::new("within")).map(text).expect("it stays beneath").as_deref(), Some("in"));
        assert!(
            matches!(walked(root(&project).expect("there"), Path::new("within")), Err(Refused::Link)),
            "without the kernel's help no link is followed"
        );
        assert!(matches!(open(&project.join("none"), Path::new("x")), Err(Refused::Root(_))));
    }

    #[test]
    fn a_kernel_without_the_call_is_told_from_a_file_that_cannot_be_read() {
        let of = |e: Errno| lacking(&e.into());
        assert_eq!([of(Errno::NOSYS), of(Errno::PERM), of(Errno::ACCESS), of(Errno::NOENT)], [true, true, false, false]);
    }

    struct Stop<'a>(&'a AtomicBool);

    impl Drop for Stop<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }

    /// Somebody swaps a file and a directory for links that lead out, as fast as they can, while the other side reads.
    #[test]
    fn a_swap_while_it_is_opened_never_lets_anything_out() {
        const READS: usize = 4_000;
        let (dir, project) = tree();
        let (stop, swaps) = (AtomicBool::new(false), AtomicUsize::new(0));
        let outside = dir.path().join("outside");
        let mut seen = 0;
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let (draft, away) = (project.join("draft"), project.join("away"));
                    symlink(outside.join("x"), &draft).expect("linked");
                    std::fs::rename(&draft, project.join("x")).expect("swapped");
                    std::fs::rename(project.join("sub"), &away).expect("moved");
                    symlink(&outside, project.join("sub")).expect("linked");
                    std::fs::remove_file(project.join("sub")).expect("removed");
                    std::fs::rename(&away, project.join("sub")).expect("moved back");
                    std::fs::write(&draft, "in").expect("written");
                    std::fs::rename(&draft, project.join("x")).expect("swapped back");
                    swaps.fetch_add(1, Ordering::Relaxed);
                }
            });
            // However the reading ends, the swapping does, too.
            let _end = Stop(&stop);
            for i in 0..READS {
                let (name, way) = WAYS[i % WAYS.len()];
                let path = ["x", "sub/x"][i / WAYS.len() % 2];
                if let Ok(Some(read)) = way(&project, Path::new(path)).map(text) {
                    seen += 1;
                    assert_eq!(read, "in", "{name} {path}");
                }
                if i % 64 == 0 {
                    std::thread::yield_now();
                }
            }
        });
        println!("{READS} reads, {seen} of them got the file, {} swaps", swaps.load(Ordering::Relaxed));
        assert!(seen > 0);
    }
}
