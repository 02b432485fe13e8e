//! RFC 9728: what kind of token this server takes, for clients that were answered 401. Tokens are made by an operator on the host; there is no
//! authorization server, so none is named.

use crate::adapters::Doors;
use crate::adapters::mcp::http::Base;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use serde_json::{Value, json};
use std::sync::Arc;

/// Where the metadata is; what follows it is the path of the resource.
pub const WELL_KNOWN: &str = "/.well-known/oauth-protected-resource";

fn metadata(base: &str, path: &str, host: &str) -> Value {
    json!({
        "resource": format!("{base}{path}"),
        "bearer_methods_supported": ["header"],
        "resource_name": format!("dockwarden on {host}"),
    })
}

/// `GET /.well-known/oauth-protected-resource`, and the form of it for the resource at `path`.
pub async fn describe(path: &'static str, State(doors): State<Arc<Doors>>, Extension(Base(base)): Extension<Base>) -> Response {
    Json(metadata(&base, path, &doors.house.config.host_name)).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_resource_is_what_the_client_asked_for_and_the_token_goes_into_the_header() {
        let seen = metadata("https://box:7420", "/mcp", "box");
        assert_eq!(
            seen,
            json!({"resource": "https://box:7420/mcp", "bearer_methods_supported": ["header"], "resource_name": "dockwarden on box"})
        );
    }
}
