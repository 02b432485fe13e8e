//! Images in: pull and look-up in the registry with the Docker client's credentials, and import from a tar. Decides nothing about when.

use super::{DockerEngine, READ, REGISTRY, TRANSFER, credentials, error, stream};
use crate::engine::{EngineError, EngineResult};
use crate::model::ids::ImageRef;
use bollard::models::CreateImageInfo;
use bollard::query_parameters::CreateImageOptions;
use bytes::Bytes;
use futures_util::StreamExt;

impl DockerEngine {
    /// Pulls. Trouble with credentials is told as progress and, when the registry then refuses, in the error.
    pub(super) async fn pull_image(
        &self,
        image: &ImageRef,
        platform: Option<&str>,
        progress: &(dyn Fn(String) + Send + Sync),
    ) -> EngineResult<()> {
        let (credentials, trouble) = match credentials::find(self.config_dir.as_deref(), image).await {
            Ok(found) => (found, None),
            Err(trouble) => {
                progress(format!("credentials of {} cannot be used: {trouble}", credentials::registry_of(image)));
                (None, Some(trouble))
            }
        };
        let (repository, tag) = split(image);
        let options = CreateImageOptions {
            from_image: Some(repository.to_owned()),
            // Without a tag the engine would pull every tag there is.
            tag: Some(tag.unwrap_or("latest").to_owned()),
            platform: platform.unwrap_or_default().to_owned(),
            ..CreateImageOptions::default()
        };
        let mut answers = self.docker.create_image(Some(options), None, credentials).boxed();
        let flow = async {
            while let Some(answer) = stream::next(&mut answers, "image", &self.endpoint).await {
                if let Some(line) = progress_line(answer?) {
                    progress(line);
                }
            }
            Ok(())
        };
        let result = tokio::time::timeout(TRANSFER, flow).await.unwrap_or(Err(EngineError::Timeout { what: "the pull", after: TRANSFER }));
        result.map_err(|e| error::of_pull(image, e, trouble.as_deref()))
    }

    /// What the registry says a reference names.
    pub(super) async fn ask_registry(&self, image: &ImageRef) -> EngineResult<String> {
        let look = async {
            let (credentials, trouble) = match credentials::find(self.config_dir.as_deref(), image).await {
                Ok(found) => (found, None),
                Err(trouble) => (None, Some(trouble)),
            };
            let answer = self.docker.inspect_registry_image(image.as_str(), credentials).await;
            let answer = answer.map_err(|e| error::of_pull(image, error::translate("image", &self.endpoint, e), trouble.as_deref()))?;
            let digest = answer.descriptor.digest.filter(|d| digest_ok(d));
            digest.ok_or_else(|| EngineError::Protocol(format!("the registry of {image} gives no digest")))
        };
        let late = || EngineError::Timeout { what: "the look-up in the registry", after: REGISTRY };
        tokio::time::timeout(REGISTRY, look).await.unwrap_or_else(|_| Err(late()))
    }

    /// Imports a tar as an image and returns its id.
    pub(super) async fn import(&self, tag: &ImageRef, tar: Bytes) -> EngineResult<String> {
        let (repository, name) = split(tag);
        let options = CreateImageOptions {
            from_src: Some("-".into()),
            repo: Some(repository.to_owned()),
            tag: Some(name.unwrap_or("latest").to_owned()),
            ..CreateImageOptions::default()
        };
        let mut answers = self.docker.create_image(Some(options), Some(bollard::body_full(tar)), None).boxed();
        while let Some(answer) = stream::next(&mut answers, "image", &self.endpoint).await {
            answer?;
        }
        let made = self.call("image", READ, self.docker.inspect_image(tag.as_str())).await?;
        made.id.ok_or_else(|| EngineError::Protocol("an imported image without id".into()))
    }
}

/// Repository and tag (or digest) of a reference. A reference with both is pulled by its digest, which is the stricter one.
pub(super) fn split(image: &ImageRef) -> (&str, Option<&str>) {
    let text = image.as_str();
    let (named, digest) = text.split_once('@').map_or((text, None), |(n, d)| (n, Some(d)));
    let (repository, tag) = match named.rsplit_once(':') {
        Some((repository, tag)) if !tag.contains('/') => (repository, Some(tag)),
        _ => (named, None),
    };
    (repository, digest.or(tag))
}

/// `sha256:` and 64 hexadecimal digits, or the like: it becomes part of references.
fn digest_ok(digest: &str) -> bool {
    digest.split_once(':').is_some_and(|(algorithm, hex)| {
        !algorithm.is_empty()
            && algorithm.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
            && (32..=128).contains(&hex.len())
            && hex.bytes().all(|b| b.is_ascii_hexdigit())
    })
}

/// One line for a person; layers' running byte counts are left out.
fn progress_line(info: CreateImageInfo) -> Option<String> {
    let status = info.status?;
    if matches!(status.as_str(), "Downloading" | "Extracting" | "Waiting" | "Verifying Checksum") {
        return None;
    }
    Some(info.id.map_or_else(|| status.clone(), |id| format!("{id}: {status}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_split_at_the_tag_not_at_the_port() {
        for (text, want) in [
            ("busybox", ("busybox", None)),
            ("reg:5000/x", ("reg:5000/x", None)),
            ("reg:5000/x:1", ("reg:5000/x", Some("1"))),
            ("x:1@sha256:ab", ("x", Some("sha256:ab"))),
            ("x@sha256:ab", ("x", Some("sha256:ab"))),
        ] {
            assert_eq!(split(&ImageRef::new(text).unwrap()), want, "{text}");
        }
    }
}
