//! A browser's requests without a browser: method, headers, form, and the whole answer.

use http_body_util::{BodyExt, Full};
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;

/// An answer.
#[derive(Debug)]
pub struct Page {
    /// Status.
    pub status: u16,
    /// Headers.
    pub headers: hyper::HeaderMap,
    /// Body.
    pub body: String,
}

impl Page {
    /// A header as text; empty when it is not there.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map(|v| v.to_str().expect("ASCII")).unwrap_or_default()
    }

    /// Name and value of the cookie it sets.
    pub fn cookie(&self) -> String {
        self.header("set-cookie").split(';').next().unwrap_or_default().to_owned()
    }

    /// Value of the form token after `from` in the body.
    pub fn csrf(&self, from: &str) -> String {
        let rest = self.body.split(from).nth(1).unwrap_or_else(|| panic!("{from} is not in {}", self.body));
        let rest = rest.split("name=\"csrf\" value=\"").nth(1).expect("a token");
        rest.split('"').next().expect("closed").to_owned()
    }
}

/// GET without a form, POST with one. Headers may be given twice.
pub async fn ask(address: &str, path: &str, headers: &[(&str, &str)], form: Option<&str>) -> Page {
    let stream = tokio::net::TcpStream::connect(address).await.expect("the door is open");
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.expect("http");
    tokio::spawn(connection);
    let mut request = Request::builder().uri(path).header("host", address);
    if form.is_some() {
        request = request.method(Method::POST).header("content-type", "application/x-www-form-urlencoded");
    }
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let request = request.body(Full::<bytes::Bytes>::from(form.unwrap_or_default().to_owned())).expect("a request");
    let response = sender.send_request(request).await.expect("an answer");
    let (parts, body) = response.into_parts();
    let body = body.collect().await.expect("a body").to_bytes();
    Page { status: parts.status.as_u16(), headers: parts.headers, body: String::from_utf8_lossy(&body).into_owned() }
}
