//! Mends what bollard sends: `CheckDuplicate` for networks, which engines before API 1.44 need to refuse a second network of one name
//! and bollard's newer model no longer has, and the registry credentials' alphabet. Touches nothing else.

use bollard::{BollardRequest, body_full};
use futures_util::FutureExt;
use http::HeaderValue;
use http_body_util::{BodyExt, Either};

/// Credentials of a pull.
const REGISTRY_AUTH: &str = "x-registry-auth";

/// Runs before each request.
pub(super) fn mend(mut request: BollardRequest) -> BollardRequest {
    if let Some(value) = request.headers().get(REGISTRY_AUTH).and_then(|v| v.to_str().ok()).map(url_safe)
        && let Ok(value) = HeaderValue::from_str(&value)
    {
        request.headers_mut().insert(REGISTRY_AUTH, value);
    }
    if request.method() == http::Method::POST && request.uri().path().ends_with("/networks/create") {
        request = request.map(|body| match body {
            Either::Left(full) => {
                // A full body is there at once; collecting it does not wait.
                let sent = full.collect().now_or_never().and_then(Result::ok).map(|c| c.to_bytes()).unwrap_or_default();
                body_full(check_duplicate(&sent).map_or(sent, bytes::Bytes::from))
            }
            stream @ Either::Right(_) => stream,
        });
    }
    request
}

/// The engine decodes the header by the URL-safe alphabet and takes anything else as "no credentials"; bollard uses the standard one.
fn url_safe(standard: &str) -> String {
    standard.replace('+', "-").replace('/', "_")
}

/// The body with `CheckDuplicate`; `None` when it is no JSON object.
fn check_duplicate(body: &[u8]) -> Option<Vec<u8>> {
    let mut value: serde_json::Value = serde_json::from_slice(body).ok()?;
    value.as_object_mut()?.insert("CheckDuplicate".into(), true.into());
    serde_json::to_vec(&value).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(path: &str, body: &'static str) -> BollardRequest {
        let builder = http::Request::builder().method("POST").uri(format!("http://x{path}")).header("X-Registry-Auth", "ab+/==");
        builder.body(body_full(bytes::Bytes::from_static(body.as_bytes()))).unwrap()
    }

    async fn body(request: BollardRequest) -> String {
        String::from_utf8(request.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap()
    }

    #[tokio::test]
    async fn networks_are_created_with_check_duplicate_and_nothing_else_is_touched() {
        assert_eq!(body(mend(request("/networks/create", r#"{"Name":"a"}"#))).await, r#"{"Name":"a","CheckDuplicate":true}"#);
        assert_eq!(body(mend(request("/volumes/create", r#"{"Name":"a"}"#))).await, r#"{"Name":"a"}"#);
    }

    #[test]
    fn credentials_are_sent_in_the_alphabet_the_engine_reads() {
        assert_eq!(mend(request("/images/create", "")).headers()[REGISTRY_AUTH], "ab-_==");
    }
}
