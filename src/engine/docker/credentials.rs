//! Credentials for a registry from the Docker client's configuration: `auths`, `credsStore`, `credHelpers`. Read per pull, so that a
//! `docker login` counts at once; never kept, never logged.

use crate::model::ids::ImageRef;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bollard::auth::DockerCredentials;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Docker Hub's host in references.
const HUB: &str = "docker.io";
/// Docker Hub's key in the configuration.
const HUB_KEY: &str = "https://index.docker.io/v1/";
/// Limit of a credential helper: one that asks the user must not hold a pull for ever.
const HELPER: Duration = Duration::from_secs(10);
/// Most a helper may answer, bytes; tokens are a few kilobytes.
const HELPER_OUTPUT: u64 = 64 * 1024;

/// The part of `config.json` we read.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ClientConfig {
    auths: BTreeMap<String, Auth>,
    creds_store: String,
    cred_helpers: BTreeMap<String, String>,
}

#[derive(Debug, Default, Clone, Deserialize)]
#[serde(default)]
struct Auth {
    auth: String,
    username: String,
    password: String,
    identitytoken: String,
}

/// What a helper prints.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct HelperAnswer {
    username: String,
    secret: String,
}

/// Host of the registry a reference names: the first component if it looks like a host, else Docker Hub.
pub(super) fn registry_of(image: &ImageRef) -> &str {
    match image.as_str().split_once('/') {
        Some((first, _)) if first == "index.docker.io" => HUB,
        Some((first, _)) if first.contains('.') || first.contains(':') || first == "localhost" => first,
        _ => HUB,
    }
}

/// The credentials for an image's registry, `None` when there are none.
///
/// # Errors
/// Text saying what is wrong with the configuration or the helper; the pull may still work without credentials.
pub(super) async fn find(config_dir: Option<&Path>, image: &ImageRef) -> Result<Option<DockerCredentials>, String> {
    let Some(path) = config_dir.map(|d| d.join("config.json")) else { return Ok(None) };
    let text = match tokio::fs::read_to_string(&path).await {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(format!("{}: {e}", path.display())),
    };
    let config: ClientConfig =
        serde_json::from_str(&text).map_err(|e| format!("{}: line {}: not a Docker client configuration", path.display(), e.line()))?;
    let registry = registry_of(image);
    if let Some(helper) = helper_for(&config, registry) {
        let key = if registry == HUB { HUB_KEY } else { registry };
        return ask(helper, key).await;
    }
    let entry = config.auths.iter().find(|(key, _)| host_of(key) == registry).map(|(_, a)| a);
    entry.map(|a| decode(a, registry)).transpose().map(Option::flatten).map_err(|e| format!("{}: auths of {registry}: {e}", path.display()))
}

/// The helper in charge: the registry's own, else the store for all.
fn helper_for<'a>(config: &'a ClientConfig, registry: &str) -> Option<&'a str> {
    let own = config.cred_helpers.iter().find(|(key, _)| host_of(key) == registry).map(|(_, h)| h.as_str());
    own.or(Some(config.creds_store.as_str())).filter(|h| !h.is_empty())
}

/// The host of a key of `auths`: `https://reg.example/v1/` is `reg.example`.
fn host_of(key: &str) -> &str {
    let bare = key.trim_start_matches("https://").trim_start_matches("http://");
    match bare.split('/').next().unwrap_or(bare) {
        "index.docker.io" | "registry-1.docker.io" => HUB,
        host => host,
    }
}

fn decode(auth: &Auth, registry: &str) -> Result<Option<DockerCredentials>, String> {
    let server = if registry == HUB { HUB_KEY } else { registry };
    let made = |user: &str, password: &str| DockerCredentials {
        username: Some(user.to_owned()),
        password: Some(password.to_owned()),
        serveraddress: Some(server.to_owned()),
        identitytoken: Some(auth.identitytoken.clone()).filter(|t| !t.is_empty()),
        ..DockerCredentials::default()
    };
    if auth.auth.is_empty() {
        // With a store the client leaves empty entries behind; they say nothing.
        let says_something = !auth.username.is_empty() || !auth.identitytoken.is_empty();
        return Ok(says_something.then(|| made(&auth.username, &auth.password)));
    }
    let bytes = STANDARD.decode(auth.auth.trim()).map_err(|_| "not base64; run docker login again".to_owned())?;
    let text = String::from_utf8(bytes).map_err(|_| "not text; run docker login again".to_owned())?;
    let (user, password) = text.split_once(':').ok_or("not user:password; run docker login again")?;
    Ok(Some(made(user, password.trim_end_matches('\0'))))
}

/// Runs `docker-credential-<helper> get`.
async fn ask(helper: &str, server: &str) -> Result<Option<DockerCredentials>, String> {
    if !helper.bytes().all(|c| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'_' | b'.')) {
        return Err(format!("credential helper {helper:?}: not a name"));
    }
    let program = format!("docker-credential-{helper}");
    let fail = |why: String| format!("{program}: {why}");
    let run = async {
        let mut command = tokio::process::Command::new(&program);
        command.arg("get").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).kill_on_drop(true);
        let mut child = command.spawn().map_err(|e| fail(e.to_string()))?;
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(server.as_bytes()).await.map_err(|e| fail(e.to_string()))?;
        }
        let mut output = Vec::new();
        if let Some(stdout) = child.stdout.take() {
            stdout.take(HELPER_OUTPUT).read_to_end(&mut output).await.map_err(|e| fail(e.to_string()))?;
        }
        let status = child.wait().await.map_err(|e| fail(e.to_string()))?;
        Ok::<_, String>((status, output))
    };
    let (status, output) = tokio::time::timeout(HELPER, run).await.map_err(|_| fail(format!("no answer within {HELPER:?}")))??;
    if !status.success() {
        let text = String::from_utf8_lossy(&output).trim().chars().take(200).collect::<String>();
        return if text.contains("credentials not found") { Ok(None) } else { Err(fail(format!("{status}: {text}"))) };
    }
    let answer: HelperAnswer = serde_json::from_slice(&output).map_err(|_| fail("its answer is not credentials".into()))?;
    let mut credentials = DockerCredentials { serveraddress: Some(server.to_owned()), ..DockerCredentials::default() };
    if answer.username == "<token>" {
        credentials.identitytoken = Some(answer.secret);
    } else {
        credentials.username = Some(answer.username);
        credentials.password = Some(answer.secret);
    }
    Ok(Some(credentials))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(s: &str) -> ImageRef {
        ImageRef::new(s).unwrap()
    }

    async fn with(config: &str, reference: &str) -> Result<Option<DockerCredentials>, String> {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("config.json"), config).unwrap();
        find(Some(dir.path()), &image(reference)).await
    }

    #[test]
    fn the_registry_is_the_first_component_only_if_it_looks_like_a_host() {
        for (reference, host) in [
            ("busybox", "docker.io"),
            ("acme/web:1", "docker.io"),
            ("docker.io/acme/web", "docker.io"),
            ("index.docker.io/acme/web", "docker.io"),
            ("ghcr.io/acme/web", "ghcr.io"),
            ("localhost/x", "localhost"),
            ("reg:5000/x", "reg:5000"),
        ] {
            assert_eq!(registry_of(&image(reference)), host, "{reference}");
        }
    }

    #[tokio::test]
    async fn auths_are_found_by_host_whatever_form_the_key_has() {
        let auth = STANDARD.encode("me:p:w");
        for (key, reference) in
            [("https://index.docker.io/v1/", "acme/web"), ("ghcr.io", "ghcr.io/acme/web"), ("https://reg.example/v2/", "reg.example/x")]
        {
            let config = format!(r#"{{"auths":{{"{key}":{{"auth":"{auth}"}}}}}}"#);
            let found = with(&config, reference).await.unwrap().unwrap();
            assert_eq!((found.username.as_deref(), found.password.as_deref()), (Some("me"), Some("p:w")), "{key}");
        }
        assert_eq!(with(r#"{"auths":{"ghcr.io":{"auth":"eDp5"}}}"#, "reg.example/x").await, Ok(None));
        assert_eq!(with(r#"{"auths":{"ghcr.io":{}}}"#, "ghcr.io/x").await, Ok(None));
    }

    #[tokio::test]
    async fn a_broken_configuration_says_where_without_the_secret() {
        let error = with(r#"{"auths":{"ghcr.io":{"auth":"c2VjcmV0"}}}"#, "ghcr.io/x").await.unwrap_err();
        assert!(error.ends_with("auths of ghcr.io: not user:password; run docker login again"), "{error}");
        let error = with("{", "ghcr.io/x").await.unwrap_err();
        assert!(error.ends_with("config.json: line 1: not a Docker client configuration"), "{error}");
        assert_eq!(find(Some(Path::new("/nonexistent")), &image("x")).await, Ok(None));
    }

    #[tokio::test]
    async fn helper_names_cannot_leave_the_path() {
        let error = with(r#"{"credsStore":"../../bin/sh"}"#, "ghcr.io/x").await.unwrap_err();
        assert_eq!(error, "credential helper \"../../bin/sh\": not a name");
        let error = with(r#"{"credHelpers":{"ghcr.io":"none-such"}}"#, "ghcr.io/x").await.unwrap_err();
        assert!(error.starts_with("docker-credential-none-such: "), "{error}");
    }
}
