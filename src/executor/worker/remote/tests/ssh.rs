//! Repositories behind an SSH server of our own on loopback: own host key, own client key, own configuration, ended by its id.

use super::*;
use std::io::Read;
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::Instant;

/// The server; ends when it is dropped.
struct Server {
    child: Child,
    port: u16,
    dir: PathBuf,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Where Debian has it.
fn part(path: &str) -> PathBuf {
    let found = Path::new("/").join(path);
    assert!(found.is_file(), "{} must be there for this test: install openssh-server", found.display());
    found
}

fn keygen(file: &Path) {
    let made = Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(file).status().unwrap();
    assert!(made.success());
}

impl Server {
    fn start(lab: &Lab) -> Self {
        let dir = lab.path("sshd");
        fs::create_dir(&dir).unwrap();
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o700)).unwrap();
        keygen(&dir.join("host"));
        keygen(&dir.join("client"));
        keygen(&dir.join("stranger"));
        fs::copy(dir.join("client.pub"), dir.join("authorized")).unwrap();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let here = dir.display();
        let config = format!(
            "Port {port}\nListenAddress 127.0.0.1\nHostKey {here}/host\nPidFile {here}/pid\nAuthorizedKeysFile {here}/authorized\nStrictModes no\n\
             UsePAM no\nPasswordAuthentication no\nKbdInteractiveAuthentication no\nPermitRootLogin prohibit-password\nSubsystem sftp {}\n",
            part("usr/lib/openssh/sftp-server").display()
        );
        fs::write(dir.join("config"), config).unwrap();
        // Where it separates its privileges, when it is not installed.
        fs::create_dir_all("/run/sshd").unwrap();
        let log = fs::File::create(dir.join("log")).unwrap();
        let child = Command::new(part("usr/sbin/sshd"))
            .args(["-D", "-e", "-f"])
            .arg(dir.join("config"))
            .stdin(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        let server = Self { child, port, dir };
        let known = fs::read_to_string(server.dir.join("host.pub")).unwrap();
        fs::write(server.dir.join("known"), format!("[127.0.0.1]:{port} {known}")).unwrap();
        let begun = Instant::now();
        while !server.greets() {
            let log = fs::read_to_string(server.dir.join("log")).unwrap_or_default();
            assert!(begun.elapsed() < Duration::from_secs(30), "no SSH server on port {port}: {log}");
            std::thread::yield_now();
        }
        server
    }

    fn greets(&self) -> bool {
        let Ok(mut stream) = TcpStream::connect(("127.0.0.1", self.port)) else { return false };
        stream.read_exact(&mut [0; 4]).is_ok()
    }

    fn far(&self, lab: &Lab, path: &str) -> Far {
        let user = if rustix::process::geteuid().is_root() { "root@" } else { "" };
        let mut far = far(lab, &format!("sftp://{user}127.0.0.1:{}{path}", self.port));
        far.target.identity_file = Some(self.dir.join("client"));
        far.target.known_hosts = Some(self.dir.join("known"));
        far
    }
}

#[test]
fn a_repository_behind_sftp_serves_in_full_and_restic_reads_it() {
    let lab = Lab::new();
    let server = Server::start(&lab);
    let place = lab.path("there/host/a");
    let far = server.far(&lab, place.to_str().unwrap());
    serves(&lab, &far);
    takes_copies(&lab, &far);
    // What a connection that was lost long ago has left goes, what is being written does not.
    let aside = |id: &str| place.join(format!("data/aa/{}.part-{id}", "aa".repeat(32)));
    let (old, young) = (aside("01ARZ3NDEKTSV4RRFFQ69G5FAV"), aside(&ulid::Ulid::generate().to_string()));
    fs::create_dir_all(place.join("data/aa")).unwrap();
    for path in [&old, &young] {
        fs::write(path, "a part").unwrap();
    }
    assert!(matches!(far.run(Job::Forget { snapshots: vec![] }), Ok(Output::Forgotten(0))));
    assert_eq!((old.exists(), young.exists()), (false, true));
    fs::remove_file(young).unwrap();
    // What restic sees through the same server is what lies in the directory.
    let out = Command::new("restic")
        .args(["--no-cache", "--repo"])
        .arg(&place)
        .arg("--password-file")
        .arg(&far.key)
        .args(["check", "--read-data"])
        .output()
        .unwrap();
    assert!(out.status.success(), "{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    let mut left = vec![];
    let mut open = vec![place];
    while let Some(dir) = open.pop() {
        for entry in fs::read_dir(dir).unwrap().map(Result::unwrap) {
            if entry.path().is_dir() {
                open.push(entry.path());
            } else if entry.file_name().to_string_lossy().contains(".part-") {
                left.push(entry.path());
            }
        }
    }
    assert_eq!(left, Vec::<PathBuf>::new(), "nothing lies aside");
}

#[test]
fn what_is_wrong_with_an_ssh_server_is_said_with_what_to_do() {
    let lab = Lab::new();
    let server = Server::start(&lab);
    let place = lab.path("there").display().to_string();
    let mut stranger = server.far(&lab, &place);
    stranger.target.identity_file = Some(server.dir.join("stranger"));
    let (kind, text) = trouble(stranger.run(Job::Init));
    assert!(kind == Trouble::Denied && text.contains("identity_file"), "{text}");
    let mut other_host = server.far(&lab, &place);
    let known = fs::read_to_string(server.dir.join("stranger.pub")).unwrap();
    fs::write(server.dir.join("known-wrong"), format!("[127.0.0.1]:{} {known}", server.port)).unwrap();
    other_host.target.known_hosts = Some(server.dir.join("known-wrong"));
    let (kind, text) = trouble(other_host.run(Job::Init));
    assert!(kind == Trouble::HostKey && text.contains("known_hosts"), "{text}");
    let mut unknown = server.far(&lab, &place);
    fs::write(server.dir.join("empty"), "").unwrap();
    unknown.target.known_hosts = Some(server.dir.join("empty"));
    assert_eq!(trouble(unknown.run(Job::Init)).0, Trouble::HostKey, "nobody is believed at first sight");
    let gone = server.far(&lab, &place);
    drop(server);
    let (kind, text) = trouble(gone.run(Job::Init));
    assert!(kind == Trouble::Unreachable && text.contains("refused"), "{text}");
    assert!(!lab.path("there").exists(), "nothing was written by any of them");
}
