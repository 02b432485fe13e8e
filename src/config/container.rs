//! Running inside a container: knowing that we do, which container we are, and how its paths map to the host's.
//! Deliberately absent: guesses. A mount we cannot see is not in the map, and whoever needs it gets a refusal with the line to add.

use super::ConfigError;
use crate::engine::{Engine, EngineResult};
use crate::model::config::OwnContainer;
use crate::model::ids::EngineName;
use std::collections::BTreeMap;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

/// Whether this process runs in a container (Docker's or Podman's marker file, or a container's cgroup).
pub fn inside() -> bool {
    Path::new("/.dockerenv").exists()
        || Path::new("/run/.containerenv").exists()
        || std::fs::read_to_string("/proc/1/cgroup").is_ok_and(|c| c.contains("/docker/") || c.contains("/kubepods"))
}

/// Our own container's id: from the engine-made files mounted into it (works with any host name), else the host name, which is only a guess.
fn own_id(mountinfo: &str, host_name: &str) -> Option<EngineName> {
    certain_id(mountinfo).or_else(|| EngineName::new(host_name).ok())
}

/// Our own container's id by the engine-made files mounted into it.
fn certain_id(mountinfo: &str) -> Option<EngineName> {
    let hex64 = |s: &&str| s.len() == 64 && s.bytes().all(|b| b.is_ascii_hexdigit());
    let from_mounts = mountinfo
        .lines()
        .filter(|line| ["/etc/hostname", "/etc/resolv.conf", "/etc/hosts"].iter().any(|f| line.contains(f)))
        .find_map(|line| line.split('/').find(hex64));
    EngineName::new(from_mounts?).ok()
}

/// Whether this container is dockwarden's alone: its first process is dockwarden. Not so in a development container with a shell in it.
pub fn dedicated() -> bool {
    inside() && std::fs::read_to_string("/proc/1/comm").is_ok_and(|comm| comm.trim() == "dockwarden")
}

/// Whether the engine behind a socket runs inside of the container we are in, so that its paths are ours: a process we can name listens, on a socket
/// that nobody mounted here. A listener outside of our process namespace has the number 0.
async fn engine_is_here(endpoint: &str, mountinfo: &str) -> bool {
    let Some(path) = endpoint.strip_prefix("unix://") else { return false };
    let Ok(real) = std::fs::canonicalize(path) else { return false };
    if mounted(mountinfo, &real) {
        return false;
    }
    let peer = tokio::net::UnixStream::connect(&real).await.and_then(|s| s.peer_cred());
    peer.is_ok_and(|p| p.pid().is_some_and(|pid| pid > 0))
}

/// Whether a path is a mount point of its own.
fn mounted(mountinfo: &str, path: &Path) -> bool {
    mountinfo.lines().filter_map(|line| line.split(' ').nth(4)).any(|at| Path::new(at) == path)
}

/// Where we run, as the engine knows it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Place {
    /// Container path -> host path of our own container's mounts. `None` when our paths are the engine's: outside of a container, or with the engine inside
    /// of the same one.
    pub map: Option<BTreeMap<PathBuf, PathBuf>>,
    /// Our own container.
    pub own: OwnContainer,
}

impl Place {
    /// When the engine does not answer: nothing can be vouched for.
    pub fn unanswered() -> Self {
        let mountinfo = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        Self { map: Some(BTreeMap::new()), own: certain_id(&mountinfo).map_or(OwnContainer::Unknown, OwnContainer::Is) }
    }
}

/// Inspects our own container.
///
/// # Errors
/// The engine's.
pub async fn place(engine: &dyn Engine, endpoint: &str) -> EngineResult<Place> {
    if !inside() {
        return Ok(Place::default());
    }
    // Unreadable mountinfo leaves the host name, which is the id unless someone set another.
    let mountinfo = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    found(engine, endpoint, &mountinfo, &host).await
}

async fn found(engine: &dyn Engine, endpoint: &str, mountinfo: &str, host: &str) -> EngineResult<Place> {
    let own = match own_id(mountinfo, host) {
        Some(id) => engine.container(&id).await?,
        None => None,
    };
    let Some(own) = own else {
        if engine_is_here(endpoint, mountinfo).await {
            return Ok(Place::default());
        }
        // An id that is certain and that the engine does not know is another engine's: none of our objects are here.
        let own = if certain_id(mountinfo).is_some() { OwnContainer::None } else { OwnContainer::Unknown };
        return Ok(Place { map: Some(BTreeMap::new()), own });
    };
    let mounts = own.mounts.into_iter().filter(|m| !m.source.is_empty());
    Ok(Place { map: Some(mounts.map(|m| (m.target.into(), m.source.into())).collect()), own: OwnContainer::Is(own.id) })
}

/// Checks the variables that `docker-compose.mcp.yml` passes on from `.env`, so that a typing error ends the start and not a later call.
///
/// # Errors
/// The variable and the value to write.
pub fn check_environment(get: &dyn Fn(&str) -> Option<String>, is_dir: &dyn Fn(&Path) -> bool) -> Result<(), ConfigError> {
    let fault = |key: &str, message: String, hint: String| Err(ConfigError::new(format!("${key}"), None, message, hint));
    for root in get("STACK_ROOTS").iter().flat_map(|v| v.split([':', ','])).map(str::trim).filter(|r| !r.is_empty()) {
        let path = Path::new(root);
        if !path.is_absolute() {
            return fault(
                "STACK_ROOTS",
                format!("{root:?} is not an absolute path"),
                "write the whole path, e.g. STACK_ROOTS=/srv/stacks".into(),
            );
        }
        if !is_dir(path) {
            return fault(
                "STACK_ROOTS",
                format!("{root} is not visible here"),
                format!(
                    "create the directory, or mount it at the same path as on the host: STACK_ROOTS of .env takes one directory, each further one is \
                     a line `- {root}:{root}:ro` under volumes of a second compose file (docker compose -f docker-compose.mcp.yml -f FILE up -d)"
                ),
            );
        }
    }
    if let Some(memory) = get("MCP_MEMORY_PATH")
        && !memory.is_empty()
        && !Path::new(&memory).is_absolute()
    {
        return fault("MCP_MEMORY_PATH", format!("{memory:?} is not an absolute path"), "write an absolute path, e.g. /memory".into());
    }
    if let Some(level) = get("MCP_LOG_LEVEL")
        && !level.is_empty()
        && level.parse::<tracing_subscriber::filter::EnvFilter>().is_err()
    {
        return fault("MCP_LOG_LEVEL", format!("{level:?} is not a log level"), "write error, warn, info, debug or trace".into());
    }
    if let Some(zone) = get("TZ").filter(|z| !z.is_empty() && z != "UTC")
        && !known_zone(&zone)
    {
        return fault(
            "TZ",
            format!("{zone:?} is not a time zone that is known here"),
            "write a name such as Europe/Berlin, or UTC (build the image on a host with tzdata)".into(),
        );
    }
    Ok(())
}

/// A name of the time zone database, or a POSIX rule such as `CET-1CEST`. An unknown zone would silently mean UTC.
fn known_zone(zone: &str) -> bool {
    let name = zone.strip_prefix(':').unwrap_or(zone);
    let plain = !name.split('/').any(|part| part.is_empty() || part == "..");
    let posix = (!name.contains('/') || name.contains(','))
        && name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '<')
        && name.contains(|c: char| c.is_ascii_digit());
    posix || name.starts_with('/') && Path::new(name).is_file() || plain && Path::new("/usr/share/zoneinfo").join(name).is_file()
}

/// In a container: whether the engine's socket was handed in and may be used, before anything is asked of it.
///
/// # Errors
/// The line of `.env` to mend.
pub fn check_socket(endpoint: &str) -> Result<(), ConfigError> {
    let Some(path) = endpoint.strip_prefix("unix://").map(Path::new) else { return Ok(()) };
    let again = "then `docker compose -f docker-compose.mcp.yml up -d` again";
    let Ok(meta) = std::fs::metadata(path) else {
        let hint = format!("mount it: DOCKER_SOCKET=<the engine's socket on the host> in .env, {again}");
        return Err(ConfigError::new("$DOCKER_SOCKET", None, format!("there is no {} in this container", path.display()), hint));
    };
    if !meta.file_type().is_socket() {
        let hint = format!(
            "write DOCKER_SOCKET=<the engine's socket on the host> in .env (a path that does not exist becomes a directory), {again}"
        );
        return Err(ConfigError::new("$DOCKER_SOCKET", None, format!("{} is not a socket", path.display()), hint));
    }
    if rustix::fs::access(path, rustix::fs::Access::READ_OK | rustix::fs::Access::WRITE_OK).is_err() {
        let gid = meta.gid();
        let message = format!("the engine's socket {} belongs to group {gid}, and this process is not in it", path.display());
        return Err(ConfigError::new("$DOCKER_GID", None, message, format!("write DOCKER_GID={gid} in .env, {again}")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_own_container_is_found_by_the_engines_mounts_before_the_host_name() {
        let id = "a".repeat(64);
        let info = format!("1 2 8:1 / / rw - ext4 x rw\n3 2 8:1 /var/lib/docker/containers/{id}/hostname /etc/hostname rw - ext4 x rw\n");
        assert_eq!(own_id(&info, "renamed").expect("found").as_str(), id);
        assert_eq!(own_id("", "0123456789ab").expect("found").as_str(), "0123456789ab");
        assert_eq!(own_id("", "../x"), None);
    }

    #[tokio::test]
    async fn our_own_container_is_known_by_its_mounts_whatever_its_host_name_and_not_knowing_it_is_told() {
        use crate::engine::fake::{Behaviour, FakeEngine};
        use crate::model::ids::ImageRef;
        let engine = FakeEngine::new();
        engine.add_image("dockwarden:1", Behaviour::running());
        let spec = crate::engine::ContainerSpec::new(EngineName::new("dockwarden").unwrap(), ImageRef::new("dockwarden:1").unwrap());
        let id = Engine::create_container(&engine, &crate::executor::backup::test_permit(), &spec).await.unwrap();
        let at = async |mountinfo: &str, host: &str| found(&engine, "tcp://10.0.0.1:2375", mountinfo, host).await.unwrap();
        let line = |id: &str| format!("3 2 8:1 /var/lib/docker/containers/{id}/hostname /etc/hostname rw - ext4 x rw\n");
        assert_eq!(at("", id.as_str()).await.own, OwnContainer::Is(id.clone()), "by the host name nobody set");
        assert_eq!(at("", "renamed").await, Place { map: Some(BTreeMap::new()), own: OwnContainer::Unknown });
        assert_eq!(at(&line(&"f".repeat(64)), "renamed").await.own, OwnContainer::None, "another engine's container");
        if id.as_str().len() == 64 {
            assert_eq!(at(&line(id.as_str()), "renamed").await.own, OwnContainer::Is(id));
        }
    }

    #[tokio::test]
    async fn an_engine_beside_us_in_the_same_container_sees_our_paths_and_one_whose_socket_was_mounted_does_not() {
        let dir = tempfile::tempdir().expect("directory");
        let socket = std::fs::canonicalize(dir.path()).expect("a real path").join("engine.sock");
        let endpoint = format!("unix://{}", socket.display());
        assert!(!engine_is_here(&endpoint, "").await, "nobody listens");
        let _open = std::os::unix::net::UnixListener::bind(&socket).expect("bound");
        assert!(engine_is_here(&endpoint, "1 2 8:1 / / rw - ext4 x rw\n").await);
        assert!(!engine_is_here(&endpoint, &format!("3 2 8:1 /run/docker.sock {} rw - tmpfs x rw\n", socket.display())).await);
        assert!(!engine_is_here("tcp://127.0.0.1:2375", "").await);
    }

    #[test]
    fn stack_roots_must_be_absolute_and_visible() {
        let with = |value: &'static str| {
            check_environment(&move |k| (k == "STACK_ROOTS").then(|| value.into()), &|p| p == Path::new("/srv/stacks"))
        };
        assert_eq!(with("/srv/stacks"), Ok(()));
        assert_eq!(with("srv").expect_err("relative").file, "$STACK_ROOTS");
        assert!(with("/srv/stacks:/other").expect_err("not mounted").hint.contains("- /other:/other:ro"));
    }

    #[test]
    fn a_log_level_that_means_nothing_ends_the_start() {
        let with = |value: &'static str| check_environment(&move |k| (k == "MCP_LOG_LEVEL").then(|| value.into()), &|_| true);
        assert_eq!(with("debug"), Ok(()));
        assert_eq!(with("dockwarden=loud=x").expect_err("nonsense").file, "$MCP_LOG_LEVEL");
    }

    #[test]
    fn a_time_zone_nobody_knows_ends_the_start_instead_of_meaning_utc() {
        let with = |value: &'static str| check_environment(&move |k| (k == "TZ").then(|| value.into()), &|_| true);
        for good in ["", "UTC", "CET-1CEST,M3.5.0,M10.5.0/3"] {
            assert_eq!(with(good), Ok(()), "{good}");
        }
        for bad in ["Mars/Phobos", "../../etc/passwd", "Berlin"] {
            assert_eq!(with(bad).expect_err(bad).file, "$TZ");
        }
    }

    #[test]
    fn an_engine_socket_that_cannot_be_used_names_the_line_to_mend() {
        let dir = tempfile::tempdir().expect("directory");
        let at = |name: &str| format!("unix://{}", dir.path().join(name).display());
        assert_eq!(check_socket(&at("absent")).expect_err("absent").file, "$DOCKER_SOCKET");
        std::fs::create_dir(dir.path().join("made")).expect("created");
        assert!(check_socket(&at("made")).expect_err("a directory").message.ends_with("is not a socket"));
        let _open = std::os::unix::net::UnixListener::bind(dir.path().join("socket")).expect("bound");
        assert_eq!(check_socket(&at("socket")), Ok(()));
        assert_eq!(check_socket("tcp://127.0.0.1:2375"), Ok(()));
    }
}
