//! What a plan says of the content of images, beside their references. Pure.

use super::PlanInput;
use crate::model::ids::ServiceName;
use crate::model::observed::{ContainerDetail, ImageIdentity};
use crate::model::plan::DiffLine;

/// What a plan shows where nobody could tell what a tag names.
pub const UNKNOWN_DIGEST: &str = "unknown until it is pulled";

/// What changes about the content of a service's image: its id where both are known, its digest in the registry where that is told, and that nobody knows
/// it where it is.
pub(super) fn image_lines(
    input: &PlanInput<'_>,
    image: Option<&ImageIdentity>,
    service: &ServiceName,
    running: Option<&ContainerDetail>,
    lines: &mut Vec<DiffLine>,
) {
    let Some(image) = image else { return };
    let here = running.map(|c| c.image_id.as_str());
    if here.is_some() && here == image.id.as_deref() {
        return;
    }
    if let (Some(old), Some(new)) = (here, image.id.as_deref())
        && !lines.iter().any(|l| l.path == "image")
    {
        lines.push(DiffLine { path: "image.id".into(), from: Some(short(old)), to: Some(short(new)) });
    }
    let digest = |i: &ImageIdentity| i.repo_digest.as_deref().map(|d| d.split_once('@').map_or(d, |(_, d)| d).to_owned());
    let from = input.current.and_then(|r| r.images.get(service)).and_then(digest);
    let to = digest(image).or_else(|| image.id.is_none().then(|| UNKNOWN_DIGEST.to_owned()));
    if to.is_some() && from != to {
        lines.push(DiffLine { path: "image.digest".into(), from, to });
    }
}

fn short(id: &str) -> String {
    id.trim_start_matches("sha256:").chars().take(12).collect()
}
