//! Directories opened along a path on which nothing is a link, and what lies in them by descriptor. Who may write a directory may put links into it at any
//! moment, and what is read or written here is read and written as root: so no link of theirs is ever followed, neither on the way to a directory nor
//! below it. Deliberately absent: where a path may lead at all (`gate::plan::mounts` judges that, and where it led then is what is opened here).

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, RawDir, ResolveFlags, open as open_at_once, openat, openat2, statat};
use rustix::io::Errno;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

const OPEN: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
const PASS: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
/// Bytes of directory entries asked for at once.
const ENTRIES: usize = 64 * 1024;

/// Why a directory was not opened.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refused {
    /// Something on the path is a link.
    #[error(
        "{} is a link, and data is read and written only where no link leads: put back the directory that was there, or, if the link is meant, `deploy` so that \
         it is judged where it leads", .0.display()
    )]
    Link(PathBuf),
    /// It is something else than a directory.
    #[error("{} is not a directory", .0.display())]
    NotDirectory(PathBuf),
    /// Relative, or with a way up.
    #[error("{} is no plain absolute path", .0.display())]
    NotPlain(PathBuf),
    /// The system's word.
    #[error("{0}")]
    Io(std::io::Error),
}

impl From<Errno> for Refused {
    fn from(e: Errno) -> Self {
        Self::Io(e.into())
    }
}

impl From<Refused> for std::io::Error {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Io(e) => e,
            other => Self::other(other.to_string()),
        }
    }
}

/// Opens a directory by its absolute path.
///
/// # Errors
/// `Refused`, which names the link.
pub(crate) fn open(path: &Path) -> Result<File, Refused> {
    opened(path, OPEN)
}

/// A directory's device and inode; it need not be readable from here.
///
/// # Errors
/// As [`open`].
pub(crate) fn identity(path: &Path) -> Result<(u64, u64), Refused> {
    let meta = opened(path, PASS)?.metadata().map_err(Refused::Io)?;
    Ok((meta.dev(), meta.ino()))
}

fn opened(path: &Path, flags: OFlags) -> Result<File, Refused> {
    plain(path)?;
    match openat2(CWD, path, flags, Mode::empty(), ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS) {
        Ok(dir) => Ok(dir.into()),
        // A kernel before 5.6, a sandbox that does not know the call; or something that is to be named.
        Err(Errno::NOSYS | Errno::PERM | Errno::AGAIN | Errno::LOOP | Errno::NOTDIR) => by_names(path, flags),
        Err(e) => Err(e.into()),
    }
}

/// Opens the directory that holds a path's last name, and gives that name.
///
/// # Errors
/// As [`open`].
pub(crate) fn parent(path: &Path) -> Result<(File, OsString), Refused> {
    let not_plain = || Refused::NotPlain(path.to_owned());
    let (above, name) = (path.parent().ok_or_else(not_plain)?, path.file_name().ok_or_else(not_plain)?);
    Ok((opened(above, PASS)?, name.to_owned()))
}

fn plain(path: &Path) -> Result<(), Refused> {
    let plain = path.is_absolute() && path.components().all(|c| matches!(c, Component::RootDir | Component::Normal(_)));
    if plain { Ok(()) } else { Err(Refused::NotPlain(path.to_owned())) }
}

/// Each name is opened in the directory that was opened before it, and none may be a link.
fn by_names(path: &Path, flags: OFlags) -> Result<File, Refused> {
    let mut at = open_at_once("/", PASS, Mode::empty())?;
    let mut seen = PathBuf::from("/");
    let names: Vec<&OsStr> = path.components().filter_map(|c| if let Component::Normal(name) = c { Some(name) } else { None }).collect();
    for name in names {
        seen.push(name);
        at = openat(&at, name, PASS, Mode::empty()).map_err(|e| named(&at, name, &seen, e))?;
    }
    Ok(openat(&at, ".", flags, Mode::empty())?.into())
}

fn named(at: &OwnedFd, name: &OsStr, seen: &Path, e: Errno) -> Refused {
    if !matches!(e, Errno::LOOP | Errno::NOTDIR) {
        return e.into();
    }
    match statat(at, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) if FileType::from_raw_mode(stat.st_mode).is_symlink() => Refused::Link(seen.to_owned()),
        Ok(_) | Err(_) => Refused::NotDirectory(seen.to_owned()),
    }
}

/// Opens a directory that lies in an open one.
///
/// # Errors
/// The system's: `LOOP` or `NOTDIR` where it is a link or anything else by now.
pub(crate) fn child(dir: &File, name: &OsStr) -> rustix::io::Result<File> {
    openat(dir, name, OPEN, Mode::empty()).map(File::from)
}

/// Opens a directory some levels below an open one; an empty path is that one itself.
///
/// # Errors
/// The system's.
pub(crate) fn below(dir: &File, relative: &Path) -> rustix::io::Result<File> {
    if relative.as_os_str().is_empty() {
        return child(dir, OsStr::new("."));
    }
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    match openat2(dir, relative, OPEN, Mode::empty(), resolve) {
        Err(Errno::NOSYS | Errno::PERM | Errno::AGAIN) => {}
        done => return done.map(File::from),
    }
    let mut at = child(dir, OsStr::new("."))?;
    for component in relative.components() {
        match component {
            Component::Normal(name) => at = child(&at, name)?,
            Component::CurDir => {}
            Component::ParentDir | Component::RootDir | Component::Prefix(_) => return Err(Errno::XDEV),
        }
    }
    Ok(at)
}

/// An open directory as a path that leads to it wherever its names lead by now. Good for as long as it is open, and in this process.
pub(crate) fn through(dir: impl AsFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", dir.as_fd().as_raw_fd()))
}

/// Adds the names in a directory that was just opened; what was read before an error is there, too.
///
/// # Errors
/// The system's.
pub(crate) fn names(dir: &File, names: &mut Vec<OsString>) -> rustix::io::Result<()> {
    let mut buffer = Vec::with_capacity(ENTRIES);
    let mut entries = RawDir::new(dir, buffer.spare_capacity_mut());
    while let Some(entry) = entries.next() {
        let name = entry?.file_name().to_bytes().to_vec();
        if name != b"." && name != b".." {
            names.push(OsString::from_vec(name));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    type Way = fn(&Path) -> Result<File, Refused>;
    const WAYS: [(&str, Way); 2] = [("open", open), ("by names", |path| by_names(path, OPEN))];

    fn tree() -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let real = dir.path().canonicalize().unwrap();
        std::fs::create_dir_all(real.join("a/b")).unwrap();
        std::fs::write(real.join("a/b/file"), "x").unwrap();
        symlink(real.join("a"), real.join("link")).unwrap();
        symlink("b", real.join("a/inner")).unwrap();
        (dir, real)
    }

    #[test]
    fn only_a_path_without_links_is_opened_and_the_link_is_named() {
        let (_dir, real) = tree();
        for (way, open) in WAYS {
            let opened = open(&real.join("a/b")).unwrap();
            let mut found = vec![];
            names(&opened, &mut found).unwrap();
            assert_eq!(found, ["file"], "{way}");
            assert_eq!(through(&opened).read_link().unwrap(), real.join("a/b"), "{way}");
            for (path, link) in [("link", "link"), ("link/b", "link"), ("a/inner", "a/inner")] {
                let refused = open(&real.join(path)).unwrap_err();
                assert!(matches!(&refused, Refused::Link(at) if *at == real.join(link)), "{way} {path}: {refused}");
            }
            assert!(matches!(open(&real.join("a/b/file")), Err(Refused::NotDirectory(_))), "{way}");
            assert!(matches!(open(&real.join("none")), Err(Refused::Io(e)) if e.kind() == std::io::ErrorKind::NotFound), "{way}");
        }
        for path in ["a/b", "/tmp/../etc", ""] {
            assert!(matches!(open(Path::new(path)), Err(Refused::NotPlain(_))), "{path}");
        }
    }

    #[test]
    fn nothing_below_an_open_directory_leads_out_of_it() {
        let (_dir, real) = tree();
        let root = open(&real.join("a")).unwrap();
        assert!(below(&root, Path::new("b")).is_ok() && below(&root, Path::new("")).is_ok());
        symlink("/etc", real.join("a/out")).unwrap();
        for bad in ["out", "inner", "out/ssl", "..", "b/../..", "/etc"] {
            assert!(below(&root, Path::new(bad)).is_err(), "{bad}");
        }
        assert!(child(&root, OsStr::new("out")).is_err());
    }
}
