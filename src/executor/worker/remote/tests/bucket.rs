//! A bucket on loopback for tests: the part of S3 that repositories use, with real signatures (version 4), pages of lists, and troubles on request. Both our client
//! and restic's judge it.

use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

pub(crate) const KEY_ID: &str = "AKIATEST";
pub(crate) const SECRET: &str = "a/secret+of=tests";
pub(crate) const BUCKET: &str = "bucket";
/// Keys of one page: fewer than a repository has.
const PAGE: usize = 50;

#[derive(Default)]
pub(crate) struct State {
    pub(crate) objects: Mutex<BTreeMap<String, Vec<u8>>>,
    /// So many of the next requests are told to come back later.
    pub(crate) busy: AtomicUsize,
    /// Requests are read and not answered.
    pub(crate) mute: AtomicBool,
    pub(crate) requests: AtomicUsize,
}

/// The service; ends with the process of the tests.
pub(crate) struct Service {
    pub(crate) state: Arc<State>,
    pub(crate) port: u16,
}

impl Service {
    pub(crate) fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let state: Arc<State> = Arc::default();
        let of_all = Arc::clone(&state);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let state = Arc::clone(&of_all);
                std::thread::spawn(move || {
                    let mut reader = BufReader::new(stream.try_clone().unwrap());
                    while let Some(request) = Request::read(&mut reader) {
                        if !answer(&state, &request, &stream) {
                            break;
                        }
                    }
                });
            }
        });
        Self { state, port }
    }
    pub(crate) fn at(&self, prefix: &str) -> String {
        format!("s3:http://127.0.0.1:{}/{BUCKET}/{prefix}", self.port)
    }
    pub(crate) fn keys(&self) -> Vec<String> {
        self.state.objects.lock().unwrap().keys().cloned().collect()
    }
}

struct Request {
    method: String,
    path: String,
    query: String,
    headers: BTreeMap<String, String>,
    body: Vec<u8>,
}

impl Request {
    fn read(reader: &mut BufReader<TcpStream>) -> Option<Self> {
        let mut line = String::new();
        if reader.read_line(&mut line).ok()? == 0 {
            return None;
        }
        let mut words = line.split_whitespace();
        let (method, target) = (words.next()?.to_owned(), words.next()?.to_owned());
        let (path, query) = target.split_once('?').unwrap_or((&target, ""));
        let mut headers = BTreeMap::new();
        loop {
            let mut line = String::new();
            reader.read_line(&mut line).ok()?;
            let Some((name, value)) = line.trim_end().split_once(':') else { break };
            headers.insert(name.to_lowercase(), value.trim().to_owned());
        }
        if headers.get("expect").is_some_and(|e| e == "100-continue") {
            reader.get_ref().write_all(b"HTTP/1.1 100 Continue\r\n\r\n").ok()?;
        }
        let length = headers.get("content-length").map_or(0, |l| l.parse().unwrap());
        let mut body = vec![0; length];
        reader.read_exact(&mut body).ok()?;
        if headers.get("x-amz-content-sha256").is_some_and(|h| h.starts_with("STREAMING")) {
            body = unchunked(&body);
        }
        Some(Self { method, path: path.to_owned(), query: query.to_owned(), headers, body })
    }

    fn asked(&self, name: &str) -> Option<String> {
        let of = |pair: &str| pair.split_once('=').map_or((pair.to_owned(), String::new()), |(k, v)| (k.to_owned(), v.to_owned()));
        let value = self.query.split('&').map(of).find(|(k, _)| k == name)?.1;
        Some(decoded(&value))
    }

    /// The code of what is wrong with its signature.
    fn refused(&self) -> Option<&'static str> {
        let auth = self.headers.get("authorization")?.strip_prefix("AWS4-HMAC-SHA256 ")?;
        let part = |name: &str| {
            auth.split(',').find_map(|p| p.trim().strip_prefix(name)).and_then(|p| p.strip_prefix('=')).unwrap_or_default().to_owned()
        };
        let credential = part("Credential");
        let (id, scope) = credential.split_once('/').unwrap_or_default();
        if id != KEY_ID {
            return Some("InvalidAccessKeyId");
        }
        let signed = part("SignedHeaders");
        let headers: String = signed.split(';').map(|h| format!("{h}:{}\n", self.headers.get(h).cloned().unwrap_or_default())).collect();
        // Signed is the encoded form, whatever form was sent.
        let pair = |p: &str| {
            let (k, v) = p.split_once('=').unwrap_or((p, ""));
            format!("{}={}", encoded(&decoded(k)), encoded(&decoded(v)))
        };
        let mut query: Vec<String> = self.query.split('&').filter(|p| !p.is_empty()).map(pair).collect();
        query.sort();
        let hash = &self.headers["x-amz-content-sha256"];
        let canonical = format!("{}\n{}\n{}\n{headers}\n{signed}\n{hash}", self.method, self.path, query.join("&"));
        let to_sign = format!("AWS4-HMAC-SHA256\n{}\n{scope}\n{}", self.headers["x-amz-date"], hex(&Sha256::digest(canonical)));
        let mut key = format!("AWS4{SECRET}").into_bytes();
        for step in scope.split('/') {
            key = mac(&key, step);
        }
        let right = hex(&mac(&key, &to_sign)) == part("Signature");
        let whole = hash.starts_with("STREAMING") || hash == "UNSIGNED-PAYLOAD" || *hash == hex(&Sha256::digest(&self.body));
        if right && whole { None } else { Some("SignatureDoesNotMatch") }
    }
}

fn mac(key: &[u8], text: &str) -> Vec<u8> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).unwrap();
    mac.update(text.as_bytes());
    mac.finalize().into_bytes().to_vec()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn encoded(text: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_' | b'~');
    text.bytes().map(|b| if plain(b) { char::from(b).to_string() } else { format!("%{b:02X}") }).collect()
}

fn decoded(text: &str) -> String {
    let (mut out, mut rest) = (String::new(), text);
    while let Some((before, after)) = rest.split_once('%') {
        out.push_str(before);
        out.push(char::from(u8::from_str_radix(&after[..2], 16).unwrap()));
        rest = &after[2..];
    }
    out + rest
}

/// The payload of chunks that carry a signature each.
fn unchunked(mut body: &[u8]) -> Vec<u8> {
    let mut out = vec![];
    loop {
        let end = body.windows(2).position(|w| w == b"\r\n").unwrap();
        let head = std::str::from_utf8(&body[..end]).unwrap();
        let size = usize::from_str_radix(head.split(';').next().unwrap(), 16).unwrap();
        if size == 0 {
            return out;
        }
        out.extend_from_slice(&body[end + 2..end + 2 + size]);
        body = &body[end + 4 + size..];
    }
}

/// Answers; `false` when the connection is to end.
fn answer(state: &State, request: &Request, mut to: &TcpStream) -> bool {
    state.requests.fetch_add(1, Ordering::SeqCst);
    if state.mute.load(Ordering::SeqCst) {
        // Until whoever asked hangs up.
        let _ = to.read(&mut [0; 1]);
        return false;
    }
    let mut reply = |status: &str, headers: &str, body: &[u8]| {
        let head = format!(
            "HTTP/1.1 {status}\r\nContent-Length: {}\r\nETag: \"e\"\r\nLast-Modified: Thu, 01 Jan 2026 00:00:00 GMT\r\n{headers}\r\n",
            body.len()
        );
        to.write_all(head.as_bytes()).is_ok() && (request.method == "HEAD" || to.write_all(body).is_ok())
    };
    let error = |code: &str| format!("<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>{code}</Message></Error>").into_bytes();
    if state.busy.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1)).is_ok() {
        return reply("503 Slow Down", "", &error("SlowDown"));
    }
    if !request.headers.contains_key("authorization") {
        return reply("403 Forbidden", "", &error("AccessDenied"));
    }
    if let Some(code) = request.refused() {
        return reply("403 Forbidden", "", &error(code));
    }
    let path = decoded(&request.path);
    let (bucket, key) = path.trim_start_matches('/').split_once('/').unwrap_or((path.trim_start_matches('/'), ""));
    if bucket != BUCKET {
        return reply("404 Not Found", "", &error("NoSuchBucket"));
    }
    let mut objects = state.objects.lock().unwrap();
    match (request.method.as_str(), key) {
        ("GET", "") if request.asked("location").is_some() => {
            reply("200 OK", "", b"<?xml version=\"1.0\"?><LocationConstraint></LocationConstraint>")
        }
        ("GET", "") => reply("200 OK", "Content-Type: application/xml\r\n", listing(&objects, request).as_bytes()),
        ("HEAD", "") => reply("200 OK", "", b""),
        ("PUT", key) => {
            objects.insert(key.to_owned(), request.body.clone());
            reply("200 OK", "", b"")
        }
        ("DELETE", key) => {
            objects.remove(key);
            reply("204 No Content", "", b"")
        }
        ("GET" | "HEAD", key) => match (objects.get(key), request.headers.get("range")) {
            (None, _) => reply("404 Not Found", "", &error("NoSuchKey")),
            (Some(body), None) => reply("200 OK", "", body),
            (Some(body), Some(range)) => {
                let (from, to) = range.trim_start_matches("bytes=").split_once('-').unwrap();
                let from: usize = from.parse().unwrap();
                let to = to.parse().map_or(body.len() - 1, |t: usize| t.min(body.len() - 1));
                reply("206 Partial Content", &format!("Content-Range: bytes {from}-{to}/{}\r\n", body.len()), &body[from..=to])
            }
        },
        _ => reply("501 Not Implemented", "", &error("NotImplemented")),
    }
}

fn listing(objects: &BTreeMap<String, Vec<u8>>, request: &Request) -> String {
    let prefix = request.asked("prefix").unwrap_or_default();
    let delimiter = request.asked("delimiter").unwrap_or_default();
    let after = request.asked("continuation-token").or_else(|| request.asked("start-after")).unwrap_or_default();
    let (mut rows, mut count, mut last, mut more) = (String::new(), 0, String::new(), false);
    for (key, body) in objects.range(after.clone()..) {
        if *key == after || !key.starts_with(&prefix) || (!last.is_empty() && last.ends_with('/') && key.starts_with(&last)) {
            continue;
        }
        if !after.is_empty() && after.ends_with('/') && key.starts_with(&after) {
            continue;
        }
        if count == PAGE {
            more = true;
            break;
        }
        let rest = &key[prefix.len()..];
        match rest.find('/').filter(|_| delimiter == "/") {
            Some(at) => {
                last = format!("{prefix}{}", &rest[..=at]);
                rows += &format!("<CommonPrefixes><Prefix>{last}</Prefix></CommonPrefixes>");
            }
            None => {
                last = key.clone();
                rows += &format!(
                    "<Contents><Key>{key}</Key><Size>{}</Size><LastModified>2026-01-01T00:00:00.000Z</LastModified><ETag>&quot;e&quot;</ETag></Contents>",
                    body.len()
                );
            }
        }
        count += 1;
    }
    let next = if more { format!("<NextContinuationToken>{last}</NextContinuationToken>") } else { String::new() };
    format!(
        "<?xml version=\"1.0\"?><ListBucketResult><Name>{BUCKET}</Name><Prefix>{prefix}</Prefix><KeyCount>{count}</KeyCount><MaxKeys>{PAGE}</MaxKeys>\
         <IsTruncated>{more}</IsTruncated>{next}{rows}</ListBucketResult>"
    )
}
