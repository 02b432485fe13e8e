//! Images: where they come from and how exactly they are named. Whether one exists is the preflight's question.

use super::{At, Judge};

/// An image reference taken apart the way engines do.
#[derive(Debug, PartialEq, Eq)]
pub struct Reference {
    /// Registry and repository with Docker Hub's defaults filled in, e.g. `docker.io/library/nginx`.
    pub name: String,
    /// Whether a registry was written.
    pub registry_written: bool,
    /// Tag.
    pub tag: Option<String>,
    /// Digest.
    pub digest: Option<String>,
}

/// Parses a reference by the grammar of the distribution project; `None` = not one.
pub fn parse(text: &str) -> Option<Reference> {
    if text.len() > 512 {
        return None;
    }
    let (rest, digest) = match text.split_once('@') {
        Some((rest, digest)) => (rest, Some(digest)),
        None => (text, None),
    };
    let (name, tag) = match rest.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
        _ => (rest, None),
    };
    let ok = digest.is_none_or(digest_ok) && tag.is_none_or(tag_ok);
    let (registry, path) = match name.split_once('/') {
        Some((first, path)) if first.contains(['.', ':']) || first == "localhost" || first.bytes().any(|b| b.is_ascii_uppercase()) => {
            (Some(first), path)
        }
        _ => (None, name),
    };
    if !ok || !registry.is_none_or(registry_ok) || !path.split('/').all(component_ok) {
        return None;
    }
    let host = match registry.map(str::to_ascii_lowercase).as_deref() {
        None | Some("index.docker.io" | "docker.io") => "docker.io".to_owned(),
        Some(r) => r.to_owned(),
    };
    let library = if host == "docker.io" && !path.contains('/') { "library/" } else { "" };
    Some(Reference {
        name: format!("{host}/{library}{path}"),
        registry_written: registry.is_some(),
        tag: tag.map(str::to_owned),
        digest: digest.map(str::to_owned),
    })
}

fn digest_ok(digest: &str) -> bool {
    let hex = |h: &str, n: usize| h.len() == n && h.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
    match digest.split_once(':') {
        Some(("sha256", h)) => hex(h, 64),
        Some(("sha512", h)) => hex(h, 128),
        _ => false,
    }
}

fn tag_ok(tag: &str) -> bool {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    tag.len() <= 128 && tag.bytes().next().is_some_and(word) && tag.bytes().all(|b| word(b) || b == b'.' || b == b'-')
}

fn registry_ok(registry: &str) -> bool {
    let (host, port) = registry.rsplit_once(':').map_or((registry, None), |(h, p)| (h, Some(p)));
    let label =
        |l: &str| !l.is_empty() && !l.starts_with('-') && !l.ends_with('-') && l.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    host.split('.').all(label) && port.is_none_or(|p| p.parse::<u16>().is_ok())
}

/// `[a-z0-9]+` joined by one of `.`, `_`, `__` or dashes.
fn component_ok(component: &str) -> bool {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = component.as_bytes();
    let ends = bytes.first().is_some_and(|b| plain(*b)) && bytes.last().is_some_and(|b| plain(*b));
    let separators = component.split(|c: char| plain(c as u8) && c.is_ascii());
    ends && bytes.iter().all(|b| plain(*b) || matches!(b, b'.' | b'_' | b'-'))
        && separators.into_iter().all(|s| matches!(s, "" | "." | "_" | "__") || s.bytes().all(|b| b == b'-'))
}

/// Whether a policy entry (`docker.io/library`, `ghcr.io/acme`, `registry.example.com`) covers a full name.
pub fn listed(name: &str, entries: &[String]) -> bool {
    entries.iter().filter(|e| *e != "local").any(|e| {
        let rest = name.strip_prefix(e.trim_end_matches('/'));
        rest.is_some_and(|r| r.is_empty() || r.starts_with('/'))
    })
}

pub(super) fn service(j: &mut Judge<'_>, at: At<'_>) {
    if let Some(image) = &at.service.image {
        reference(j, at, &at.path("image"), image.as_str());
    }
}

/// Judges a reference, wherever in a service it stands.
pub(super) fn reference(j: &mut Judge<'_>, at: At<'_>, path: &str, text: &str) {
    let service = Some(at.name);
    let local = j.policy.allowed_registries.iter().any(|r| r == "local");
    let here = j.facts.local_images.contains(text);
    if is_image_id(text) {
        if !(local && here) {
            j.hit("image.unlisted", service, path, text, "an image id says nothing about where the image came from");
        }
        return;
    }
    let Some(image) = parse(text) else {
        return j.hit("image.malformed", service, path, text, "this is not an image reference: [registry/]name[:tag][@sha256:digest]");
    };
    let from_here = local && here && !image.registry_written;
    if !from_here && !listed(&image.name, &j.policy.allowed_registries) {
        let because = format!("{} is not under allowed_registries ({})", image.name, j.policy.allowed_registries.join(", "));
        j.hit("image.unlisted", service, path, text, because);
    }
    if image.digest.is_none() && image.tag.as_deref().is_none_or(|t| t == "latest") {
        j.hit("image.latest", service, path, text, "the tag latest means another image tomorrow; name a version");
    }
    if image.digest.is_none() && !from_here && j.production() {
        j.hit(
            "image.nodigest_prod",
            service,
            path,
            text,
            "in production an image is named with its digest, so that what was tested is what runs",
        );
    }
}

fn is_image_id(text: &str) -> bool {
    let hex = text.strip_prefix("sha256:").unwrap_or(text);
    hex.len() == 64 && hex.bytes().all(|b| b.is_ascii_hexdigit())
}
