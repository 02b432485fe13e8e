//! A part of a snapshot: what lies at one path, and the directories above it. Deliberately absent: whether a caller's text is a path at all.

use super::Failure;
use super::repo::repository_failure;
use crate::model::ids::SnapshotId;
use rustic_core::repofile::Node;
use rustic_core::{IndexedFull, LsOptions, Repository};
use std::path::{Path, PathBuf};

/// Names told to one who asked for what is not there.
const NEAREST: usize = 5;

/// Whether an entry is of the part: at the path, below it, or a directory on the way to it.
pub(super) fn belongs(part: Option<&Path>, name: &Path) -> bool {
    part.is_none_or(|part| name.starts_with(part) || part.starts_with(name))
}

/// Whether there is something at the path.
///
/// # Errors
/// `NoSuchPath` with the names nearest to the first component that is not there.
pub(super) fn holds<S: IndexedFull>(repo: &Repository<S>, id: &SnapshotId, root: &Node, path: &Path) -> Result<(), Failure> {
    let (mut here, mut below) = (root.clone(), PathBuf::new());
    for component in path {
        let wanted = component.to_string_lossy();
        let mut names = vec![];
        let mut next = None;
        if here.is_dir() {
            for item in repo.ls(&here, &LsOptions::default().recursive(false)).map_err(repository_failure)? {
                let (name, node) = item.map_err(repository_failure)?;
                if name.as_os_str() == component {
                    next = Some(node);
                    break;
                }
                names.push(below.join(name).display().to_string());
            }
        }
        let Some(next) = next else {
            return Err(Failure::NoSuchPath {
                snapshot: id.to_string(),
                path: path.display().to_string(),
                near: nearest(&below.join(wanted.as_ref()).display().to_string(), names),
            });
        };
        below.push(component);
        here = next;
    }
    Ok(())
}

/// Those most like the one that is missing, most like first.
fn nearest(missing: &str, names: Vec<String>) -> Vec<String> {
    let mut scored: Vec<(f64, String)> = names.into_iter().map(|n| (strsim::jaro_winkler(missing, &n), n)).collect();
    scored.sort_by(|a, b| b.0.total_cmp(&a.0).then_with(|| a.1.cmp(&b.1)));
    scored.into_iter().take(NEAREST).map(|(_, n)| n).collect()
}
