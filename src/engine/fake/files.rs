//! Files of fake containers and volumes, and the archives that carry them in and out: what lies under a volume's mount point is the
//! volume's, the rest the container's own. Regular files only, no modes or owners.

use super::world::World;
use crate::engine::{EngineError, EngineResult};
use crate::model::ids::EngineName;
use bytes::Bytes;
use std::collections::BTreeMap;
use std::io::Read;

impl World {
    /// See `FakeEngine::write_volume_file`.
    pub fn write_volume_file(&mut self, volume: &str, path: &str, content: &[u8]) {
        self.ensure_volume(volume);
        if let Some(v) = self.volumes.get_mut(volume) {
            v.files.insert(path.trim_start_matches('/').to_owned(), content.to_vec());
        }
    }

    /// Puts a file at an absolute path of a container.
    pub fn put_file(&mut self, id: &EngineName, path: &str, content: Vec<u8>) {
        let path = normal(path);
        let Some(c) = self.containers.get_mut(id) else { return };
        let mount = c
            .mounts
            .iter()
            .filter_map(|m| Some((m.name.clone()?, below(&path, &m.target)?)))
            .max_by_key(|(_, rest)| usize::MAX - rest.len());
        match mount {
            Some((volume, rest)) => {
                if let Some(v) = self.volumes.get_mut(&volume) {
                    v.files.insert(rest, content);
                }
            }
            None => {
                c.files.insert(path, content);
            }
        }
    }

    /// All files of a container by absolute path, those of its volumes included.
    fn files_of(&self, id: &str) -> EngineResult<BTreeMap<String, Vec<u8>>> {
        let c = self.find(id).ok_or_else(|| super::world::no_container(id))?;
        let mut all = c.files.clone();
        for m in &c.mounts {
            if let Some(v) = m.name.as_ref().and_then(|n| self.volumes.get(n)) {
                all.extend(v.files.iter().map(|(p, content)| (normal(&format!("{}/{p}", m.target)), content.clone())));
            }
        }
        Ok(all)
    }

    /// A tar of a file or directory; entries begin with the last component of `path`, as Docker's do.
    pub fn download(&self, id: &str, path: &str) -> EngineResult<Bytes> {
        let files = self.files_of(id)?;
        let is_mount = self.find(id).is_some_and(|c| c.mounts.iter().any(|m| normal(&m.target) == normal(path)));
        let root = normal(path);
        let base = root.rsplit('/').next().unwrap_or("").to_owned();
        let mut tar = tar::Builder::new(Vec::new());
        let mut found = is_mount || root == "/";
        if !files.contains_key(&root) && (found || files.keys().any(|p| below(p, &root).is_some())) {
            found = true;
            let name = if base.is_empty() { "./".to_owned() } else { format!("{base}/") };
            append(&mut tar, &name, tar::EntryType::Directory, &[])?;
        }
        for (p, content) in &files {
            let name = if *p == root { base.clone() } else { below(p, &root).map(|rest| format!("{base}/{rest}")).unwrap_or_default() };
            if !name.is_empty() {
                found = true;
                append(&mut tar, name.trim_start_matches('/'), tar::EntryType::Regular, content)?;
            }
        }
        if !found {
            return Err(EngineError::NotFound { what: "path", detail: format!("Could not find the file {path} in container {id}") });
        }
        tar.into_inner().map(Bytes::from).map_err(|e| EngineError::Protocol(e.to_string()))
    }

    /// Unpacks a tar at a directory.
    pub fn upload(&mut self, id: &str, path: &str, archive: &[u8]) -> EngineResult<()> {
        let id = self.find_mut(id)?.id.clone();
        let bad = |e: std::io::Error| EngineError::Refused(format!("unpacking the archive: {e}"));
        let mut tar = tar::Archive::new(archive);
        let mut files = Vec::new();
        for entry in tar.entries().map_err(bad)? {
            let mut entry = entry.map_err(bad)?;
            if entry.header().entry_type().is_file() {
                let name = entry.path().map_err(bad)?.to_string_lossy().into_owned();
                let mut content = Vec::new();
                entry.read_to_end(&mut content).map_err(bad)?;
                files.push((format!("{path}/{name}"), content));
            }
        }
        for (name, content) in files {
            self.put_file(&id, &name, content);
        }
        Ok(())
    }
}

fn append(tar: &mut tar::Builder<Vec<u8>>, name: &str, kind: tar::EntryType, content: &[u8]) -> EngineResult<()> {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(if kind.is_dir() { 0o755 } else { 0o644 });
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(content.len() as u64);
    tar.append_data(&mut header, name, content).map_err(|e| EngineError::Protocol(e.to_string()))
}

/// One leading slash, no empty or `.` components, none at the end.
fn normal(path: &str) -> String {
    format!("/{}", path.split('/').filter(|p| !p.is_empty() && *p != ".").collect::<Vec<_>>().join("/"))
}

/// The part of `path` below the directory `dir`.
fn below(path: &str, dir: &str) -> Option<String> {
    let dir = normal(dir);
    let dir = dir.trim_end_matches('/');
    path.strip_prefix(dir)?.strip_prefix('/').filter(|rest| !rest.is_empty()).map(str::to_owned)
}
