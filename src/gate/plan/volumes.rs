//! Volumes of a stack: whose they are, and what stands behind a driver's options. Mounts of a service are in `mounts.rs`.

use super::{Judge, mounts};
use crate::model::spec::VolumeSpec;

/// Mount options that make the `local` driver reach or change another part of the tree, whatever the type says.
const REACHING_OPTIONS: &[&str] =
    &["bind", "rbind", "move", "remount", "shared", "rshared", "slave", "rslave", "private", "rprivate", "unbindable", "runbindable"];
/// File systems over the network.
const REMOTE_TYPES: &[&str] = &[
    "nfs",
    "nfs3",
    "nfs4",
    "cifs",
    "smb",
    "smb2",
    "smb3",
    "smbfs",
    "ceph",
    "glusterfs",
    "9p",
    "sshfs",
    "fuse.sshfs",
    "lustre",
    "beegfs",
    "afs",
];

/// What a `local` volume's options reach.
#[derive(Debug, PartialEq, Eq)]
pub enum LocalVolume {
    /// Nothing but a directory of the engine, or memory.
    Plain,
    /// A host path, by a bind.
    Bind(String),
    /// A file system over the network.
    Remote,
    /// An overlay, a block device, or something nobody foresaw.
    Host,
}

/// Classifies the options of a `local` volume.
pub fn local_volume(spec: &VolumeSpec) -> LocalVolume {
    let option = |key: &str| spec.driver_opts.iter().find(|(k, _)| k.trim().eq_ignore_ascii_case(key)).map(|(_, v)| v.trim());
    let kind = option("type").unwrap_or_default().to_ascii_lowercase();
    let device = option("device").unwrap_or_default();
    let options: Vec<String> = option("o").unwrap_or_default().split(',').map(|o| o.trim().to_ascii_lowercase()).collect();
    let layered = options.iter().any(|o| ["lowerdir", "upperdir", "workdir"].iter().any(|k| o.starts_with(k)));
    if layered || kind.starts_with("overlay") {
        return LocalVolume::Host;
    }
    if options.iter().any(|o| o == "bind" || o == "rbind") {
        return LocalVolume::Bind(device.to_owned());
    }
    if options.iter().any(|o| REACHING_OPTIONS.contains(&o.as_str())) {
        return LocalVolume::Host;
    }
    match kind.as_str() {
        "tmpfs" => LocalVolume::Plain,
        "" if device.is_empty() => LocalVolume::Plain,
        k if REMOTE_TYPES.contains(&k) => LocalVolume::Remote,
        _ => LocalVolume::Host,
    }
}

pub(super) fn stack(j: &mut Judge<'_>) {
    for (key, volume) in &j.spec.volumes {
        let path = format!("volumes.{key}");
        owner(j, key, volume, &path);
        match volume.driver.as_deref().unwrap_or("local") {
            "local" | "" => options(j, volume, &path),
            driver => j.hit(
                "vol.remote_fs",
                None,
                format!("{path}.driver"),
                driver,
                format!("the volume driver {driver:?} is a program of its own"),
            ),
        }
    }
}

fn options(j: &mut Judge<'_>, volume: &VolumeSpec, path: &str) {
    let path = format!("{path}.driver_opts");
    let device = volume.driver_opts.get("device").map_or("", String::as_str);
    match local_volume(volume) {
        LocalVolume::Plain => {}
        LocalVolume::Remote => j.hit("vol.remote_fs", None, path, device, "the data lives on another machine"),
        LocalVolume::Host => {
            j.hit("vol.driver_opts_bind", None, path, device, "these options mount an overlay, a device or a file system of the host")
        }
        LocalVolume::Bind(device) => {
            let fact = j.resolved(&device);
            let real = j.real(&device);
            match mounts::host_path(j, &device, fact) {
                None => {}
                Some(p) if p.rule == "bind.approval" => j.hit("bind.approval", None, path, &real, p.because),
                Some(p) => j.hit("vol.driver_opts_bind", None, path, &real, format!("this volume is a bind mount: {}", p.because)),
            }
        }
    }
}

fn owner(j: &mut Judge<'_>, key: &str, volume: &VolumeSpec, path: &str) {
    let name = if volume.name.is_empty() { key } else { volume.name.as_str() };
    if j.facts.supervisor_objects.contains(name) {
        return j.hit("vol.foreign", None, path, name, "the volume is the supervisor's own");
    }
    if let Some((other, _)) = j.facts.other_stacks.iter().find(|(_, s)| s.volumes.contains(name)) {
        return j.hit("vol.foreign", None, path, name, format!("the volume belongs to the stack {other:?}"));
    }
    let own = j.facts.own_objects.contains(name);
    if !own && j.facts.supervisor_unknown && (volume.external || j.facts.unowned_objects.contains(name)) {
        return j.hit(
            "vol.foreign",
            None,
            path,
            name,
            "nobody knows whose the volume is, and it may be the supervisor's own: its container was not found",
        );
    }
    if !own && (volume.external || j.facts.unowned_objects.contains(name)) {
        j.hit("vol.external_unknown", None, path, name, format!("nobody knows whose the volume {name:?} is"));
    }
}
