//! Another user of this machine at the local socket: in as the agents `[peers]` grants, to nothing else, and out again when the grant ends.

use crate::support::eventually;
use crate::support::home::Home;
use crate::support::serve::Serve;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::time::Duration;

const NOBODY: &str = "65534";
/// Becomes that user, says the lines it is given and prints what comes back, or why it could not.
const TALK: &str = "import os, socket, sys
os.setgid(65534); os.setuid(65534)
try:
    s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1])
    for line in sys.argv[2:]:
        s.sendall(line.encode() + b'\\n')
    f = s.makefile()
    for _ in sys.argv[2:]:
        print(f.readline().strip())
    print(open(os.path.join(os.path.dirname(os.path.dirname(sys.argv[1])), 'state.db')))
except Exception as e:
    print(type(e).__name__)";

/// Becomes that user, opens connections that stay, prints how many were let in, and waits for the end of its input.
const CROWD: &str = "import os, socket, sys
os.setgid(65534); os.setuid(65534)
kept, let_in = [], 0
for _ in range(300):
    s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); kept.append(s)
    try:
        s.sendall(b'{\"door\":\"cli\",\"agent\":\"observer\",\"read_only\":false}\\n')
        let_in += b'\"ok\":true' in s.recv(4096)
    except OSError:
        pass
print(let_in, flush=True)
sys.stdin.read()";

fn talk(home: &Home, lines: &[&str]) -> String {
    let output = Command::new("python3").args(["-c", TALK]).arg(home.path("state/run/supervisor.sock")).args(lines).output();
    let output = output.expect("python3 runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[tokio::test]
async fn another_user_acts_as_what_the_policy_grants_it_and_as_nothing_else() {
    if rustix::process::getuid().as_raw() != 0 {
        println!("not checked: only root can become another user");
        return;
    }
    let home = Home::new();
    // The directory around the home is the test's own.
    std::fs::set_permissions(home.path(""), std::fs::Permissions::from_mode(0o755)).expect("changed");
    let serve = Serve::start(&home).await;
    let (hello, status) = (r#"{"door":"cli","agent":"observer","read_only":false}"#, r#"{"id":1,"tool":"agents","input":{}}"#);
    assert_eq!(talk(&home, &[hello, status]), "PermissionError\n", "nobody is granted anything yet");

    let policy = std::fs::read_to_string(home.path("config/policy.toml")).expect("shipped");
    home.configure("policy.toml", &policy.replace("[peers]", &format!("[peers]\n{NOBODY} = [\"observer\"]")));
    let said = eventually("the way is open", Duration::from_secs(20), || async {
        let said = talk(&home, &[hello, status]);
        (!said.starts_with("PermissionError")).then_some(said)
    })
    .await;
    assert!(said.contains("\"ok\":true") && said.contains("observer"), "{said}");
    assert!(said.ends_with("PermissionError\n"), "the state stays the owner's: {said}");
    let other = r#"{"door":"cli","agent":"stack-keeper","read_only":false}"#;
    assert!(talk(&home, &[other]).contains("uid 65534 may not act as agent stack-keeper"));
    let admin = talk(&home, &[r#"{"door":"cli","read_only":false}"#, r#"{"id":1,"admin":"info"}"#]);
    assert!(admin.contains("uid 65534 does not own this supervisor's home"), "{admin}");

    home.configure("policy.toml", &policy);
    eventually("the way is closed", Duration::from_secs(20), || async {
        talk(&home, &[hello, status]).starts_with("PermissionError").then_some(())
    })
    .await;
    serve.stop().await;
}

#[tokio::test]
async fn a_crowd_of_one_user_does_not_keep_the_owner_out() {
    use std::io::{BufRead, BufReader};
    if rustix::process::getuid().as_raw() != 0 {
        println!("not checked: only root can become another user");
        return;
    }
    let home = Home::new();
    std::fs::set_permissions(home.path(""), std::fs::Permissions::from_mode(0o755)).expect("changed");
    let policy = std::fs::read_to_string(home.path("config/policy.toml")).expect("shipped");
    home.configure("policy.toml", &policy.replace("[peers]", &format!("[peers]\n{NOBODY} = [\"observer\"]")));
    let serve = Serve::start(&home).await;
    let mut crowd = Command::new("python3")
        .args(["-c", CROWD])
        .arg(home.path("state/run/supervisor.sock"))
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .expect("python3 runs");
    let mut let_in = String::new();
    BufReader::new(crowd.stdout.take().expect("piped")).read_line(&mut let_in).expect("it counts");
    assert_eq!(let_in.trim(), "32", "of 300");
    let (code, _, err) = home.run(&["agents"]).await;
    assert_eq!(code, 0, "the owner finds a place: {err}");
    drop(crowd.stdin.take());
    assert!(crowd.wait().expect("ends").success());
    serve.stop().await;
}
