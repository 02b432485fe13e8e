//! The way of other users to the socket. Closed unless `[peers]` names one: then home and `run` can be passed through, and everything beside the
//! socket is its owner's alone. Who may act as what is decided for each connection (`peer`). Deliberately absent: groups.

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// Opens the way to the socket of a home, or closes it.
///
/// # Errors
/// The file system's; the way stays closed then.
pub fn pass(home: &Path, socket: &Path, open: bool) -> io::Result<()> {
    let run = socket.parent().unwrap_or(home);
    if open {
        // First what must not be seen: a mode too many is worth more than a moment in which it is.
        for dir in [home, run] {
            for entry in std::fs::read_dir(dir)? {
                let path = entry?.path();
                if path != run && path != socket {
                    private(&path)?;
                }
            }
        }
    }
    let (pass, whole) = if open { (0o711, 0o666) } else { (0o700, 0o660) };
    mode(socket, whole)?;
    mode(run, pass)?;
    mode(home, pass)
}

/// Takes the rights of group and others. What vanished meanwhile, or is a link, has none of its own.
fn private(path: &Path) -> io::Result<()> {
    match std::fs::symlink_metadata(path) {
        Ok(found) if found.is_symlink() || found.permissions().mode() & 0o077 == 0 => Ok(()),
        Ok(found) => match mode(path, found.permissions().mode() & 0o700) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        },
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(e),
    }
}

fn mode(path: &Path, mode: u32) -> io::Result<()> {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn others_pass_to_the_socket_and_to_nothing_else_and_only_while_they_may() {
        let dir = tempfile::tempdir().unwrap();
        let home = dir.path().join("home");
        std::fs::create_dir_all(home.join("run/sessions")).unwrap();
        std::fs::create_dir(home.join("keys")).unwrap();
        std::fs::write(home.join("state.db"), "x").unwrap();
        std::fs::write(home.join("run/http.addr"), "x").unwrap();
        let socket = home.join("run/supervisor.sock");
        let _bound = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        let of = |path: &str| std::fs::metadata(home.join(path)).unwrap().permissions().mode() & 0o777;
        pass(&home, &socket, true).unwrap();
        assert_eq!((of(""), of("run"), of("run/supervisor.sock")), (0o711, 0o711, 0o666));
        for inside in ["run/sessions", "run/http.addr", "keys", "state.db"] {
            assert_eq!(of(inside) & 0o077, 0, "{inside}");
        }
        pass(&home, &socket, false).unwrap();
        assert_eq!((of(""), of("run"), of("run/supervisor.sock")), (0o700, 0o700, 0o660));
    }
}
