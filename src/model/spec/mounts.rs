//! Mounts of a service as the file says them. Deliberately absent: volumes, and where a host path leads.

use serde::{Deserialize, Serialize};

/// Kind of a mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MountKind {
    /// Host path.
    Bind,
    /// Named (or, with no source, anonymous) volume.
    Volume,
    /// Memory.
    Tmpfs,
    /// Named pipe (Windows).
    Npipe,
    /// Cluster volume.
    Cluster,
    /// Content of an image.
    Image,
}

/// One mount.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MountSpec {
    /// Kind.
    pub kind: MountKind,
    /// Absolute host path for binds; key of the volume in the file for volumes; `None` for anonymous volumes and tmpfs.
    pub source: Option<String>,
    /// Path inside.
    pub target: String,
    /// Read-only.
    pub read_only: bool,
    /// `bind.propagation`.
    pub propagation: Option<String>,
    /// `bind.selinux` (`z`, `Z`).
    pub selinux: Option<String>,
    /// `bind.create_host_path` (only ever reported; we never create one).
    pub create_host_path: bool,
    /// `volume.nocopy`.
    pub nocopy: bool,
    /// `volume.subpath` or `image.subpath`.
    pub subpath: Option<String>,
    /// `tmpfs.size` in bytes.
    pub tmpfs_size: Option<u64>,
    /// `tmpfs.mode`.
    pub tmpfs_mode: Option<u32>,
    /// Options of the short `tmpfs:` form beyond size and mode.
    #[serde(default)]
    pub tmpfs_options: Vec<String>,
    /// Path in the file, e.g. `services.web.volumes[0]`.
    #[serde(default)]
    pub path: String,
}

impl MountSpec {
    /// Writable, without a source or any option; `path` is where the file says so.
    pub fn new(kind: MountKind, target: impl Into<String>, path: impl Into<String>) -> Self {
        Self {
            kind,
            source: None,
            target: target.into(),
            read_only: false,
            propagation: None,
            selinux: None,
            create_host_path: false,
            nocopy: false,
            subpath: None,
            tmpfs_size: None,
            tmpfs_mode: None,
            tmpfs_options: Vec::new(),
            path: path.into(),
        }
    }
}

/// Whether a path lies beneath another one, lexically.
pub fn beneath(path: &str, above: &str) -> bool {
    let above = above.trim_end_matches('/');
    path.strip_prefix(above).is_some_and(|rest| rest.len() > 1 && rest.starts_with('/'))
}

/// Whether both are one path, lexically.
pub fn same_place(a: &str, b: &str) -> bool {
    a.trim_end_matches('/') == b.trim_end_matches('/')
}

/// The mount that a file in a container would be copied into, or be hidden by: the deepest one above it.
pub fn above<'a>(path: &str, targets: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    targets.into_iter().filter(|target| beneath(path, target)).max_by_key(|target| target.len())
}
