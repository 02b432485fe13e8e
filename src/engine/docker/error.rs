//! bollard's errors as ours, with the engine's own text. Decides nothing about retries.

use crate::engine::EngineError;
use crate::model::ids::ImageRef;
use bollard::errors::Error;

/// Translates an error of a call about a `what`.
pub(super) fn translate(what: &'static str, endpoint: &str, error: Error) -> EngineError {
    match error {
        Error::DockerResponseServerError { status_code: 404, message } => {
            EngineError::NotFound { what: object_of(&message).unwrap_or(what), detail: message }
        }
        Error::DockerResponseServerError { status_code: 409, message } => EngineError::Conflict(message),
        // Of a proxy before an engine that is away, or of an engine that is starting: nothing was refused.
        Error::DockerResponseServerError { status_code: status_code @ (502..=504), message } => EngineError::Unreachable {
            endpoint: endpoint.into(),
            detail: format!("{status_code} {}", crate::redact::line(&message, 200)).trim_end().to_owned(),
        },
        Error::DockerResponseServerError { message, status_code } if message.is_empty() => {
            EngineError::Refused(format!("the engine answered {status_code} to a call about a {what}"))
        }
        Error::DockerResponseServerError { message, .. } => EngineError::Refused(message),
        Error::DockerStreamError { error } => EngineError::Refused(error),
        Error::RequestTimeoutError => EngineError::Timeout { what, after: std::time::Duration::from_secs(super::CLIENT_S) },
        Error::SocketNotFoundError(path) => EngineError::Unreachable {
            endpoint: endpoint.into(),
            detail: format!("there is no socket at {path}; is the engine installed and started?"),
        },
        e @ (Error::HyperLegacyError { .. } | Error::HyperResponseError { .. } | Error::IOError { .. }) => {
            EngineError::Unreachable { endpoint: endpoint.into(), detail: chain(&e) }
        }
        e => EngineError::Protocol(chain(&e)),
    }
}

/// The kind of object a 404 speaks of, where its text tells: a start may miss a network.
fn object_of(message: &str) -> Option<&'static str> {
    let text = message.to_lowercase();
    let named = ["network", "image", "volume", "container"].into_iter();
    named.into_iter().find(|k| text.contains(&format!("no such {k}")) || (text.starts_with(k) && text.contains("not found")))
}

/// An error with its causes, which hyper keeps out of its own text.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        next = cause.source();
    }
    text
}

/// A failed pull: a registry's demand for credentials is told apart; everything else stays as it is.
pub(super) fn of_pull(image: &ImageRef, error: EngineError, hint: Option<&str>) -> EngineError {
    let detail = match &error {
        EngineError::NotFound { detail, .. } | EngineError::Conflict(detail) | EngineError::Refused(detail) => detail,
        EngineError::Unauthorized { .. }
        | EngineError::Unreachable { .. }
        | EngineError::Timeout { .. }
        | EngineError::Withheld(_)
        | EngineError::Protocol(_) => return error,
    };
    let text = detail.to_lowercase();
    let asks = ["unauthorized", "denied", "authentication required", "no basic auth credentials"];
    if !asks.iter().any(|a| text.contains(a)) {
        // A registry's own words ("manifest unknown") do not say of what.
        return if detail.contains(image.as_str()) {
            error
        } else {
            EngineError::Refused(format!("{image} could not be pulled: {detail}"))
        };
    }
    let detail = hint.map_or_else(|| detail.clone(), |h| format!("{detail} ({h})"));
    EngineError::Unauthorized { registry: super::credentials::registry_of(image).to_owned(), image: image.as_str().to_owned(), detail }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(status_code: u16, message: &str) -> EngineError {
        translate("container", "unix:///x", Error::DockerResponseServerError { status_code, message: message.into() })
    }

    #[test]
    fn answers_keep_the_engines_text() {
        assert_eq!(server(404, "No such container: x").to_string(), "container not found: No such container: x");
        assert_eq!(server(404, "network shop not found").to_string(), "network not found: network shop not found");
        assert_eq!(server(409, "in use").to_string(), "conflict: in use");
        assert_eq!(server(500, "port is already allocated").to_string(), "the engine refused it: port is already allocated");
        assert_eq!(server(501, "").to_string(), "the engine refused it: the engine answered 501 to a call about a container");
    }

    #[test]
    fn a_proxy_without_its_engine_is_an_engine_that_is_away() {
        for (status, text) in [(502, ""), (503, "No server is available to handle this request."), (504, "")] {
            assert!(matches!(server(status, text), EngineError::Unreachable { .. }), "{status}");
        }
        assert!(matches!(server(500, "no"), EngineError::Refused(_)));
    }

    #[test]
    fn a_registry_that_wants_credentials_is_named() {
        let image = ImageRef::new("ghcr.io/acme/web:1").unwrap();
        for text in
            ["unauthorized: authentication required", "denied: requested access to the resource is denied", "no basic auth credentials"]
        {
            match of_pull(&image, EngineError::Refused(text.into()), None) {
                EngineError::Unauthorized { registry, image, detail } => {
                    assert_eq!((registry.as_str(), image.as_str(), detail.as_str()), ("ghcr.io", "ghcr.io/acme/web:1", text));
                }
                other => panic!("{other:?}"),
            }
        }
        let unknown = of_pull(&image, EngineError::Refused("manifest unknown".into()), None);
        assert_eq!(unknown.to_string(), "the engine refused it: ghcr.io/acme/web:1 could not be pulled: manifest unknown");
    }
}
