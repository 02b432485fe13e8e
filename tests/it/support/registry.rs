//! A registry of the test's own on loopback, which engines take without TLS: one image of one layer, open or behind a challenge, and a record of what
//! credentials it was shown. And programs of a few bytes, so that an image costs nothing to make.

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{Response, StatusCode, header};
use serde_json::json;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::io::Write;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};

const MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";

/// Who may pull.
pub enum Access {
    /// Everyone.
    Open,
    /// Who shows this as `Authorization`.
    Basic(String),
    /// Nobody: a challenge for a token that is never given.
    Bearer,
}

struct Inner {
    address: String,
    access: Access,
    content: Mutex<Content>,
    shown: Mutex<Vec<String>>,
}

/// What is stored: nothing is ever taken away, as registries keep what no tag names any more.
#[derive(Default)]
struct Content {
    blobs: BTreeMap<String, Vec<u8>>,
    manifests: BTreeMap<String, Vec<u8>>,
    /// What every tag names.
    tagged: String,
}

/// A running registry; the images pulled from it go when it does.
pub struct Registry {
    inner: Arc<Inner>,
    task: tokio::task::JoinHandle<()>,
}

impl Registry {
    /// Serves one image with this program as `/program` under every name and tag.
    pub async fn start(access: Access, program: &[u8]) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("bound").to_string();
        let inner = Inner { address, access, content: Mutex::default(), shown: Mutex::default() };
        let inner = Arc::new(inner);
        inner.publish(program);
        let router = Router::new().fallback(answer).with_state(inner.clone());
        let task = tokio::spawn(async move { axum::serve(listener, router).await.expect("serves until it is dropped") });
        Self { inner, task }
    }

    /// `127.0.0.1:port`.
    pub fn address(&self) -> &str {
        &self.inner.address
    }

    /// Every tag names an image with this program from now on; what they named before can still be had by its digest. Returns the new digest.
    pub fn move_tags(&self, program: &[u8]) -> String {
        self.inner.publish(program)
    }

    /// Digest of what every tag names.
    pub fn digest(&self) -> String {
        self.inner.content.lock().expect("not poisoned").tagged.clone()
    }

    /// The `Authorization` headers that came, in order.
    pub fn shown(&self) -> Vec<String> {
        self.inner.shown.lock().expect("not poisoned").clone()
    }
}

impl Inner {
    fn publish(&self, program: &[u8]) -> String {
        let tar = layer(program);
        let gz = gzip(&tar);
        let config = json!({"architecture": "amd64", "os": "linux", "config": {"Cmd": ["/program"]},
            "rootfs": {"type": "layers", "diff_ids": [digest(&tar)]}, "history": [{"created_by": "a test"}]});
        let config = config.to_string().into_bytes();
        let part = |kind: &str, bytes: &[u8]| json!({"mediaType": kind, "size": bytes.len(), "digest": digest(bytes)});
        let manifest = json!({"schemaVersion": 2, "mediaType": MANIFEST,
            "config": part("application/vnd.docker.container.image.v1+json", &config),
            "layers": [part("application/vnd.docker.image.rootfs.diff.tar.gzip", &gz)]});
        let manifest = manifest.to_string().into_bytes();
        let mut content = self.content.lock().expect("not poisoned");
        content.blobs.extend([(digest(&config), config), (digest(&gz), gz)]);
        content.tagged = digest(&manifest);
        content.manifests.insert(digest(&manifest), manifest);
        content.tagged.clone()
    }

    /// A manifest by digest, or by any tag but `none`.
    fn manifest(&self, named: &str) -> Option<Vec<u8>> {
        let content = self.content.lock().expect("not poisoned");
        let digest = if named.starts_with("sha256:") { named } else { &content.tagged };
        content.manifests.get(digest).filter(|_| named != "none").cloned()
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.task.abort();
        let listed = Command::new("docker").args(["images", "-q", "--filter", &format!("reference={}/*/*", self.address())]).output();
        let ids = listed.map(|o| String::from_utf8_lossy(&o.stdout).into_owned()).unwrap_or_default();
        for id in ids.split_whitespace() {
            Command::new("docker").args(["rmi", "-f", id]).output().expect("the docker client runs");
        }
    }
}

async fn answer(State(registry): State<Arc<Inner>>, request: Request) -> Response<Body> {
    let given = request.headers().get(header::AUTHORIZATION).and_then(|v| v.to_str().ok()).map(str::to_owned);
    registry.shown.lock().expect("not poisoned").extend(given.clone());
    let challenge = match &registry.access {
        Access::Open => None,
        Access::Basic(wanted) if given.as_ref() == Some(wanted) => None,
        Access::Basic(_) => Some("Basic realm=\"a test\"".to_owned()),
        Access::Bearer => Some(format!("Bearer realm=\"http://{}/token\",service=\"a test\"", registry.address)),
    };
    let response = Response::builder().header("Docker-Distribution-Api-Version", "registry/2.0");
    if let Some(challenge) = challenge {
        let body = json!({"errors": [{"code": "UNAUTHORIZED", "message": "authentication required"}]}).to_string();
        let response = response.status(StatusCode::UNAUTHORIZED).header(header::WWW_AUTHENTICATE, challenge);
        return response.header(header::CONTENT_TYPE, "application/json").body(Body::from(body)).expect("valid");
    }
    let path = request.uri().path();
    let found = if path == "/v2/" {
        Some(("application/json", b"{}".to_vec()))
    } else if let Some((_, named)) = path.rsplit_once("/manifests/") {
        registry.manifest(named).map(|m| (MANIFEST, m))
    } else {
        let blob = |d: &str| registry.content.lock().expect("not poisoned").blobs.get(d).cloned();
        path.rsplit_once("/blobs/").and_then(|(_, d)| blob(d)).map(|b| ("application/octet-stream", b))
    };
    match found {
        Some((kind, bytes)) => {
            let response = response.header(header::CONTENT_TYPE, kind).header("Docker-Content-Digest", digest(&bytes));
            response.header(header::CONTENT_LENGTH, bytes.len()).body(Body::from(bytes)).expect("valid")
        }
        None => {
            let body = json!({"errors": [{"code": "MANIFEST_UNKNOWN", "message": "manifest unknown"}]}).to_string();
            let response = response.status(StatusCode::NOT_FOUND).header(header::CONTENT_TYPE, "application/json");
            response.body(Body::from(body)).expect("valid")
        }
    }
}

fn digest(bytes: &[u8]) -> String {
    let hash = Sha256::digest(bytes);
    format!("sha256:{}", hash.iter().map(|b| format!("{b:02x}")).collect::<String>())
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut child = Command::new("gzip").arg("-n").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("gzip runs");
    let mut stdin = child.stdin.take().expect("piped");
    let bytes = bytes.to_vec();
    let writing = std::thread::spawn(move || stdin.write_all(&bytes).expect("gzip reads"));
    let output = child.wait_with_output().expect("gzip ends");
    writing.join().expect("written");
    output.stdout
}

/// A tar with one executable file.
pub fn layer(program: &[u8]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(program.len() as u64);
    header.set_mode(0o755);
    tar.append_data(&mut header, "program", program).expect("in memory");
    tar.into_inner().expect("in memory")
}

/// An x86-64 program that writes `text` so many times and then waits for its end.
pub fn program(text: &str, times: u32) -> Vec<u8> {
    const BASE: u32 = 0x40_0000;
    const HEADERS: u32 = 64 + 56;
    let mut code: Vec<u8> = Vec::new();
    if times > 0 {
        let after = 5 + 5 + 5 + 5 + 5 + 2 + 2 + 2 + 9;
        code.push(0xbb); // mov ebx, times
        code.extend(times.to_le_bytes());
        code.extend([0xb8, 1, 0, 0, 0, 0xbf, 1, 0, 0, 0, 0xbe]); // mov eax, 1 (write); mov edi, 1 (stdout); mov esi, text
        code.extend((BASE + HEADERS + after).to_le_bytes());
        code.push(0xba); // mov edx, length
        code.extend(u32::try_from(text.len()).expect("short").to_le_bytes());
        code.extend([0x0f, 0x05, 0xff, 0xcb, 0x75, 0xe6]); // syscall; dec ebx; jnz back to mov eax
    }
    code.extend([0xb8, 34, 0, 0, 0, 0x0f, 0x05, 0xeb, 0xf7]); // mov eax, 34 (pause); syscall; jmp back
    code.extend(text.as_bytes());
    let size = u64::from(HEADERS) + code.len() as u64;
    let mut elf = vec![0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    elf.extend([2, 0, 0x3e, 0, 1, 0, 0, 0]);
    for word in [u64::from(BASE + HEADERS), 64, 0] {
        elf.extend(word.to_le_bytes());
    }
    elf.extend([0, 0, 0, 0, 64, 0, 56, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
    elf.extend([1, 0, 0, 0, 5, 0, 0, 0]);
    for word in [0, u64::from(BASE), u64::from(BASE), size, size, 0x1000] {
        elf.extend(word.to_le_bytes());
    }
    elf.extend(code);
    elf
}
