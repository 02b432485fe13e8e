//! The journey of a stack once more, by the Python SDK: what our SDK and our server would agree to get wrong, another SDK does not.

use crate::support::engine::engine;
use crate::support::home::Home;
use crate::support::serve::Serve;
use std::path::Path;
use tokio::process::Command;

#[tokio::test]
async fn the_python_sdk_takes_a_stack_through_its_life() {
    let slot = engine().await;
    let home = Home::new();
    home.unlimited("stack-keeper");
    let stack = home.stack("python");
    // Named by the script for its second part: it goes with the home, too.
    home.named(format!("{stack}-doors"));
    let serve = Serve::start(&home).await;
    let token = home.token("stack-keeper").await;
    let port = std::net::TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a free port").port().to_string();
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let output = Command::new(root.join("tests/python/run.sh"))
        .arg(Path::new(env!("CARGO_TARGET_TMPDIR")).join("python-sdk"))
        .args(["--binary", crate::support::BIN, "--url", &serve.mcp_url(), "--token", &token])
        .args(["--stack", &stack, "--port", &port, "--image", &slot.image])
        .arg("--home")
        .arg(home.path("state"))
        .arg("--config")
        .arg(home.path("config"))
        .arg("--compose")
        .arg(root.join("examples/hello/compose.yaml"))
        .kill_on_drop(true)
        .output()
        .await
        .expect("tests/python/run.sh runs");
    let text = |b: &[u8]| String::from_utf8_lossy(b).into_owned();
    assert!(
        output.status.success() && text(&output.stdout).ends_with("journey complete\n"),
        "{}\n{}\n{}",
        text(&output.stdout),
        text(&output.stderr),
        std::fs::read_to_string(home.path("serve.log")).unwrap_or_default()
    );
    serve.stop().await;
}
