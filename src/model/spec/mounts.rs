//! Mounts of a service as the file says them, and how its configs and secrets come beside them. Deliberately absent: volumes, and where a host path leads.

use super::{FileMount, FileObject, ServiceSpec, StackSpec};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

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

/// How a config or secret comes into a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way<'a> {
    /// Not at all: a mount of the service is at the same place and counts, as in Compose.
    Replaced,
    /// Its text is copied in before the start.
    Copied(&'a str),
    /// The host's file is mounted, read-only.
    Mounted(&'a str),
    /// In no way: no text that may be copied, no file that may be mounted.
    None,
}

/// A config or secret of a service, and how it comes into its containers.
#[derive(Debug, Clone)]
pub struct Placed<'a> {
    /// `config` or `secret`.
    pub kind: &'static str,
    /// Where the service says so, e.g. `configs[0]`.
    pub path: String,
    /// What the service wants.
    pub wanted: &'a FileMount,
    /// What the stack has under that name.
    pub object: Option<&'a FileObject>,
    /// The mount it would be copied into, or be hidden by.
    pub covered: Option<&'a str>,
    /// How it comes.
    pub way: Way<'a>,
}

/// How each config and secret of a service comes into its containers: the one answer for who makes the request and for who judges it. A read-only container
/// takes no copies, and what is mounted above a target would: the copy would be in a volume or a host's directory that the old container is still at work
/// on, or be hidden by memory. There the file is mounted. `carried` are places of volumes beside the service's own mounts: those its image declares, and
/// those taken over from the container before.
pub fn placed<'a>(stack: &'a StackSpec, service: &'a ServiceSpec, carried: &'a BTreeSet<String>) -> Vec<Placed<'a>> {
    let own = || service.mounts.iter().map(|m| m.target.as_str());
    let others = || carried.iter().map(String::as_str);
    let configs = service.configs.iter().enumerate().map(|(i, m)| ("config", i, m, stack.configs.get(&m.source)));
    let secrets = service.secrets.iter().enumerate().map(|(i, m)| ("secret", i, m, stack.secrets.get(&m.source)));
    let place = |(kind, i, wanted, object): (&'static str, usize, &'a FileMount, Option<&'a FileObject>)| {
        let at = |place: &&str| same_place(place, &wanted.target);
        let covered = others().find(at).or_else(|| above(&wanted.target, own().chain(others())));
        let (text, file) = object.map_or((None, None), |o| (o.content.as_deref(), o.file.as_deref()));
        let way = match (text, file) {
            _ if own().any(|place| at(&place)) => Way::Replaced,
            (Some(text), _) if !service.read_only && covered.is_none() => Way::Copied(text),
            (_, Some(file)) => Way::Mounted(file),
            (_, None) => Way::None,
        };
        Placed { kind, path: format!("{kind}s[{i}]"), wanted, object, covered, way }
    };
    configs.chain(secrets).map(place).collect()
}
