//! The supervisor in a container, as `docker-compose.mcp.yml` and `.env.example` say: hardened, healthy, answering other containers with a token and
//! nobody without; deploying stacks whose relative binds mean the host's files; backing up volumes it cannot see as directories.

mod twenty;

use crate::support::BIN;
use crate::support::compose_run::{Names, Run, read, translate};
use crate::support::engine::{docker, engine};
use crate::support::eventually;
use crate::support::home::Home;
use crate::support::llm::{Provider, answer};
use crate::support::mcp::Client;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

/// Set in the container in which this binary is the client: the URL to call. The token is in `TOKEN`.
const INSIDE: &str = "DOCKWARDEN_TEST_URL";
const TOKEN: &str = "DOCKWARDEN_TEST_TOKEN";

fn image() -> &'static str {
    static IMAGE: OnceLock<String> = OnceLock::new();
    IMAGE.get_or_init(|| {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/image.sh");
        let output = Command::new(script).args(["supervisor", "--binary", BIN]).output().expect("scripts/image.sh runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    })
}

/// A deployment of the compose file under names of its own; gone with the value.
struct Deployment {
    run: Run,
    name: String,
    port: u16,
    /// An agent of the profile `agents` beside it; started by the test that wants it.
    agent: Run,
}

impl Deployment {
    /// The file with the values of `.env.example`, and those that differ here.
    fn of(home: &Home, more: &[(&'static str, String)]) -> Self {
        use std::os::unix::fs::MetadataExt;
        let name = home.stack("supervisor");
        let root = env!("CARGO_MANIFEST_DIR");
        let text = |file: &str| std::fs::read_to_string(format!("{root}/{file}")).expect("shipped");
        let example = text(".env.example");
        let lines = example.lines().filter(|l| !l.starts_with('#')).filter_map(|l| l.split_once('='));
        let mut variables: BTreeMap<&str, String> = lines.map(|(k, v)| (k, v.to_owned())).collect();
        let port = std::net::TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a free port").port();
        variables.insert("DOCKWARDEN_PORT", port.to_string());
        variables.insert("DOCKWARDEN_IMAGE", image().to_owned());
        variables.insert("STACK_ROOTS", home.path("stacks").display().to_string());
        variables.insert("DOCKER_GID", std::fs::metadata("/var/run/docker.sock").expect("the engine's socket").gid().to_string());
        for (key, value) in more {
            assert!(variables.insert(key, value.clone()).is_some(), "{key} is not in .env.example");
        }
        let file = text("docker-compose.mcp.yml");
        let run = translate(&file, &variables, &Names { project: &name, directory: root, service: "dockwarden" });
        let (beside, secrets) = (format!("{name}-agent"), home.path("secrets").display().to_string());
        variables.insert("AGENT_SECRETS", secrets);
        let mut agent = translate(&file, &variables, &Names { project: &beside, directory: root, service: "agent-stack-keeper" });
        agent.replace("--network", "", &run.network);
        Self { run, name, port, agent }
    }

    fn prepare(&self) {
        docker(&["network", "create", &self.run.network]);
        for volume in &self.run.volumes {
            docker(&["volume", "create", volume]);
        }
    }

    /// Starts it and waits until it answers.
    async fn up(self) -> Self {
        self.prepare();
        docker(&[&["run", "--detach"], &self.run.args()[..]].concat());
        eventually("the supervisor answers", Duration::from_secs(30), || async { self.exec(&["health", "--self"]).0.then_some(()) }).await;
        self
    }

    /// Starts it where it must refuse: exit code and what it said.
    fn refused(mut self) -> (Option<i32>, String) {
        self.run.replace("--restart", "", "no");
        self.prepare();
        let output = Command::new("docker").arg("run").args(self.run.args()).output().expect("the docker client runs");
        (
            output.status.code(),
            String::from_utf8_lossy(&output.stderr).split_whitespace().filter(|w| *w != "│").collect::<Vec<_>>().join(" "),
        )
    }

    fn exec(&self, args: &[&str]) -> (bool, String) {
        let output = Command::new("docker").args(["exec", &self.name, "/dockwarden"]).args(args).output().expect("the docker client runs");
        (output.status.success(), String::from_utf8_lossy(&output.stdout).into_owned())
    }

    fn token(&self) -> String {
        let (ok, out) = self.exec(&["agents", "token", "stack-keeper", "--json"]);
        assert!(ok, "{out}");
        let value: Value = serde_json::from_str(&out).expect("JSON");
        value["token"].as_str().expect("a token").to_owned()
    }

    /// Through the published port.
    async fn client(&self) -> Client {
        Client::http(&format!("http://127.0.0.1:{}/mcp", self.port), &self.token()).await
    }
}

impl Drop for Deployment {
    fn drop(&mut self) {
        let quiet = |args: &[&str]| drop(Command::new("docker").args(args).output());
        quiet(&["rm", "-f", "-v", &self.name, &format!("{}-agent", self.name)]);
        for volume in &self.run.volumes {
            quiet(&["volume", "rm", "-f", volume]);
        }
        quiet(&["network", "rm", &self.run.network]);
    }
}

/// One POST of `initialize` by hand: the status line.
fn status_of(authority: &str, extra: &str) -> String {
    let body = r#"{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":"2025-06-18","capabilities":{},"clientInfo":{"name":"t","version":"1"}}}"#;
    let mut stream = std::net::TcpStream::connect(authority).expect("connected");
    let head = if extra.contains("Host:") { String::new() } else { format!("Host: {authority}\r\n") };
    let accept = "Accept: application/json, text/event-stream\r\nContent-Type: application/json\r\nConnection: close";
    write!(stream, "POST /mcp HTTP/1.1\r\n{head}{extra}{accept}\r\nContent-Length: {}\r\n\r\n{body}", body.len()).expect("sent");
    let mut answer = [0u8; 64];
    let n = stream.read(&mut answer).expect("answered");
    String::from_utf8_lossy(&answer[..n]).split("\r\n").next().unwrap_or_default().to_owned()
}

/// What runs inside of the second container.
async fn as_client(url: &str) {
    let token = std::env::var(TOKEN).expect("given beside the URL");
    let authority = url.trim_start_matches("http://").trim_end_matches("/mcp");
    let client = Client::http(url, &token).await;
    let status = client.ok("status", json!({})).await;
    assert_eq!(status["stacks"].as_array().map(|s| s.iter().any(|s| s["managed"] == json!(true))), Some(false), "{status:#}");
    client.close().await;
    assert_eq!(status_of(authority, &format!("Authorization: Bearer {token}\r\n")), "HTTP/1.1 200 OK");
    assert_eq!(status_of(authority, ""), "HTTP/1.1 401 Unauthorized");
    assert_eq!(status_of(authority, "Authorization: Bearer wrong\r\n"), "HTTP/1.1 401 Unauthorized");
    let elsewhere = format!("Host: evil.example\r\nAuthorization: Bearer {token}\r\n");
    assert_eq!(status_of(authority, &elsewhere), "HTTP/1.1 421 Misdirected Request");
}

#[tokio::test]
async fn it_is_hardened_and_healthy_and_answers_another_container_with_a_token_alone() {
    if let Ok(url) = std::env::var(INSIDE) {
        return as_client(&url).await;
    }
    let _slot = engine().await;
    let home = Home::new();
    let supervisor = Deployment::of(&home, &[]).up().await;
    let seen: Value = serde_json::from_str(&docker(&["inspect", &supervisor.name])).expect("JSON");
    let (host, config) = (&seen[0]["HostConfig"], &seen[0]["Config"]);
    let hardened = json!({
        "read_only": host["ReadonlyRootfs"], "cap_drop": host["CapDrop"], "cap_add": host["CapAdd"], "security": host["SecurityOpt"],
        "privileged": host["Privileged"], "user": config["User"], "published": host["PortBindings"]["7420/tcp"][0]["HostIp"],
    });
    let expected = json!({
        "read_only": true, "cap_drop": ["ALL"], "cap_add": null, "security": ["no-new-privileges:true"],
        "privileged": false, "user": "10001:10001", "published": "127.0.0.1",
    });
    assert_eq!(hardened, expected);
    let writable: Vec<&str> = seen[0]["Mounts"]
        .as_array()
        .expect("mounts")
        .iter()
        .filter(|m| m["RW"] == json!(true))
        .filter_map(|m| m["Destination"].as_str())
        .collect();
    let state = |d: &str| d.starts_with("/var/lib/dockwarden");
    assert!(writable.iter().all(|d| state(d) || *d == "/var/run/docker.sock"), "{writable:?}");
    for agent in std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/agents"))
        .expect("shipped")
        .filter_map(|e| e.expect("readable").file_name().into_string().ok())
    {
        if let Some(agent) = agent.strip_suffix(".md") {
            assert!(
                writable.contains(&format!("/var/lib/dockwarden/memory/{agent}").as_str()),
                "agent {agent} has no memory volume: {writable:?}"
            );
        }
    }

    let url = format!("{INSIDE}=http://dockwarden:7420/mcp");
    let token = format!("{TOKEN}={}", supervisor.token());
    let exe = std::env::current_exe().expect("this binary");
    let mount = format!("{}:/it:ro", exe.display());
    let name = "container::it_is_hardened_and_healthy_and_answers_another_container_with_a_token_alone";
    let network = supervisor.run.network.as_str();
    let run = [
        "run",
        "--rm",
        "--network",
        network,
        "--env",
        &url,
        "--env",
        &token,
        "--volume",
        &mount,
        "--tmpfs",
        "/tmp",
        "--entrypoint",
        "/it",
        image(),
        "--exact",
        name,
    ];
    let output = docker(&run);
    assert!(output.contains("test result: ok. 1 passed"), "{output}");

    // The HEALTHCHECK of the image, at its own pace.
    eventually("healthy", Duration::from_secs(40), || async {
        (docker(&["inspect", "--format", "{{.State.Health.Status}}", &supervisor.name]) == "healthy").then_some(())
    })
    .await;
    let (ok, doctor) = supervisor.exec(&["doctor"]);
    assert!(ok, "{doctor}");
}

/// A registered stack: `conf` answers what its bind-mounted file says, `web` counts visits on the volume of `store`.
fn stack(home: &Home, image: &str, bind: &str) -> String {
    let stack = home.stack("bound");
    let dir = home.path("stacks").join(&stack);
    std::fs::create_dir_all(dir.join("conf")).expect("created");
    std::fs::write(dir.join("conf/hello.txt"), "4711\n").expect("written");
    write_compose(home, &stack, image, bind);
    home.configure("dockwarden.toml", &format!("backup_schedule = \"off\"\n[stacks.{stack}]\ndir = {:?}\n", dir.display().to_string()));
    stack
}

fn write_compose(home: &Home, stack: &str, image: &str, bind: &str) {
    let text = format!(
        r#"
x-dockwarden: {{monitor_s: 1}}
x-service: &service
  image: {image}
  healthcheck: {{test: ["CMD", "/dockwarden", "demo-app", "check", "http://127.0.0.1:8080/health"]}}
services:
  conf:
    <<: *service
    environment: {{ROLE: store, DATA: /conf}}
    volumes: ["{bind}:/conf/visits:ro"]
  store:
    <<: *service
    environment: {{ROLE: store}}
    volumes: ["visits:/data"]
  web:
    <<: *service
    environment: {{ROLE: web, UPSTREAM: "store:8080"}}
    depends_on: [store]
volumes:
  visits:
"#
    );
    std::fs::write(home.path("stacks").join(stack).join("compose.yaml"), text).expect("written");
}

/// What a service answers to itself.
fn ask(stack: &str, service: &str, path: &str) -> String {
    let filters = [format!("label=dockwarden.stack={stack}"), format!("label=com.docker.compose.service={service}")];
    let id = docker(&["ps", "-q", "--filter", &filters[0], "--filter", &filters[1]]);
    docker(&["exec", &id, "/dockwarden", "demo-app", "check", &format!("http://127.0.0.1:8080{path}")])
}

#[tokio::test]
async fn a_bound_file_of_a_stack_is_seen_by_its_service_and_its_volume_is_backed_up_and_restored() {
    let slot = engine().await;
    let home = Home::new();
    let stack = stack(&home, &slot.image, "./conf/hello.txt");
    let toml = home.path("config/dockwarden.toml").display().to_string();
    let supervisor = Deployment::of(&home, &[("DOCKWARDEN_TOML", toml)]).up().await;
    let client = supervisor.client().await;

    let deployed = client.ok("deploy", json!({"stack": stack, "reason": "test"})).await;
    assert!(matches!(deployed["state"].as_str(), Some("monitoring" | "done")), "{deployed:#}");
    assert_eq!(ask(&stack, "conf", "/visits"), "visits 4711");

    // A path that is not under STACK_ROOTS: refused with the line that would change it, and what runs goes on.
    write_compose(&home, &stack, &slot.image, "/etc/hostname");
    let refused = client.refused("deploy", json!({"stack": stack})).await;
    assert_eq!(refused["error"]["code"], json!("denied"), "{refused:#}");
    let message = refused["error"]["message"].as_str().unwrap_or_default();
    assert!(message.contains("`- /etc/hostname:/etc/hostname:ro`") && message.contains("bind_roots_allow"), "{message}");
    assert_eq!(ask(&stack, "conf", "/visits"), "visits 4711");

    // The volume's directory is not to be seen from inside, nor would uid 10001 be allowed to read it: the engine's archive calls are the way.
    ask(&stack, "web", "/");
    let backup = client.ok("backup", json!({"stack": stack})).await;
    let snapshots = backup["snapshots"].as_array().expect("snapshots");
    assert_eq!(snapshots.len(), 1, "{backup:#}");
    assert_eq!(
        (&snapshots[0]["state"], &snapshots[0]["files"], &snapshots[0]["bytes"]),
        (&json!("complete"), &json!(1), &json!(2)),
        "{backup:#}"
    );
    ask(&stack, "web", "/");
    let restored = client.ok("restore", json!({"snapshot_id": snapshots[0]["snapshot_id"]})).await;
    let beside = restored["volume"].as_str().unwrap_or_else(|| panic!("{restored:#}")).to_owned();
    let holder = docker(&["create", "--volume", &format!("{beside}:/data"), &slot.image]);
    let copy = home.path("visits");
    docker(&["cp", &format!("{holder}:/data/visits"), &copy.display().to_string()]);
    docker(&["rm", &holder]);
    docker(&["volume", "rm", &beside]);
    assert_eq!(std::fs::read_to_string(copy).expect("copied"), "1\n");
    assert_eq!(ask(&stack, "store", "/visits"), "visits 2");
    client.ok("stop", json!({"stack": stack, "remove": true})).await;
    client.close().await;
}

#[tokio::test]
async fn roots_mounted_at_another_path_are_mapped() {
    let slot = engine().await;
    let home = Home::new();
    let stack = stack(&home, &slot.image, "./conf/hello.txt");
    let toml = home.path("config/dockwarden.toml").display().to_string();
    let mut supervisor = Deployment::of(&home, &[("DOCKWARDEN_TOML", toml)]);
    let roots = home.path("stacks").display().to_string();
    supervisor.run.replace("--volume", &format!("{roots}:"), &format!("{roots}:/srv/elsewhere:ro"));
    supervisor.run.replace("--env", "STACK_ROOTS=", "STACK_ROOTS=");
    let supervisor = supervisor.up().await;
    let client = supervisor.client().await;
    client.ok("deploy", json!({"stack": stack})).await;
    assert_eq!(ask(&stack, "conf", "/visits"), "visits 4711");
    client.ok("stop", json!({"stack": stack, "remove": true})).await;
    client.close().await;
}

#[tokio::test]
async fn a_wrong_value_in_the_environment_file_ends_the_start_and_names_the_line_to_mend() {
    let _slot = engine().await;
    let home = Home::new();
    let socket_gid = {
        use std::os::unix::fs::MetadataExt;
        std::fs::metadata("/var/run/docker.sock").expect("the engine's socket").gid()
    };
    std::fs::create_dir(home.path("no.sock")).expect("created");
    let cases = [
        ("MCP_LOG_LEVEL", "loud=very=x".to_owned(), "$MCP_LOG_LEVEL", "write error, warn, info, debug or trace".to_owned()),
        ("TZ", "Mars/Phobos".into(), "$TZ", "write a name such as Europe/Berlin".into()),
        ("ALLOWED_HOST", "http://dockwarden".into(), "$ALLOWED_HOST", "write bare names".into()),
        ("DOCKER_GID", "65533".into(), "$DOCKER_GID", format!("DOCKER_GID={socket_gid}")),
        ("DOCKER_SOCKET", home.path("no.sock").display().to_string(), "$DOCKER_SOCKET", "DOCKER_SOCKET=".into()),
        ("DOCKWARDEN_TOML", home.path("no.sock").display().to_string(), "dockwarden.toml", "DOCKWARDEN_TOML".into()),
    ];
    for (key, value, names, mend) in cases {
        let (code, said) = Deployment::of(&home, &[(key, value)]).refused();
        assert_eq!(code, Some(1), "{key}: {said}");
        assert!(said.contains(names) && said.contains(&mend), "{key}: {said}");
    }
    let mut hidden = Deployment::of(&home, &[]);
    hidden.run.replace("--env", "STACK_ROOTS=", "STACK_ROOTS=/srv/not-mounted");
    let (code, said) = hidden.refused();
    assert!(code == Some(1) && said.contains("- /srv/not-mounted:/srv/not-mounted:ro"), "{said}");
}

#[tokio::test]
async fn an_agent_of_the_profile_works_in_a_container_without_the_engine() {
    let _slot = engine().await;
    let home = Home::new();
    let toml = "backup_schedule = \"off\"\n[models]\ndefault = \"m\"\n[models.m]\nprovider = \"anthropic\"\nmodel = \"m-1\"\nbase_url = \"http://127.0.0.1:1\"\nkey_env = \"KEY\"\nprice = {input = 3.0, output = 15.0}\n[tasks]\noutside = [\"stack-keeper\"]\n";
    home.configure("dockwarden.toml", toml);
    let toml = home.path("config/dockwarden.toml").display().to_string();
    let mut supervisor = Deployment::of(&home, &[("DOCKWARDEN_TOML", toml)]).up().await;
    // The host as the containers of that network reach it.
    let gateway = docker(&["network", "inspect", "-f", "{{(index .IPAM.Config 0).Gateway}}", &supervisor.run.network]);
    let provider = Provider::start_at(&gateway, |n, _| match n {
        0 => answer("I look.", &[("status", json!({}))], (20_000, 0, 0, 100)),
        _ => answer("Nothing is deployed.", &[], (20_000, 0, 0, 100)),
    })
    .await;
    supervisor.agent.replace("--env", "DOCKWARDEN_MODEL_URL=", &format!("DOCKWARDEN_MODEL_URL={}", provider.url));
    std::fs::create_dir(home.path("secrets")).expect("created");
    std::fs::write(home.path("secrets/stack-keeper.token"), supervisor.token()).expect("written");
    std::fs::write(home.path("secrets/model.key"), "sk-test-0123456789").expect("written");
    let agent = docker(&[&["run", "--detach"], &supervisor.agent.args()[..]].concat());
    let client = supervisor.client().await;
    let given = client.ok("task_submit", json!({"agent": "stack-keeper", "prompt": "Look."})).await;
    let begun = std::time::Instant::now();
    loop {
        let seen = client.ok("tasks", json!({"task_id": given["task_id"], "wait_s": 5})).await;
        if seen["tasks"][0]["state"] == "succeeded" {
            assert!(seen.to_string().contains("Nothing is deployed."), "{seen:#}");
            break;
        }
        let log = || Command::new("docker").args(["logs", &agent]).output().expect("the docker client runs");
        assert!(begun.elapsed() < Duration::from_secs(60), "{seen:#}\n{:?}", log());
    }
    let rows = client.ok("audit", json!({"tool": "status", "agent": "stack-keeper"})).await;
    assert!(
        rows["rows"].as_array().expect("rows").iter().any(|r| r["door"].as_str().is_some_and(|d| d.starts_with("mcp-http tk-"))),
        "{rows:#}"
    );
    client.close().await;

    let seen: Value = serde_json::from_str(&docker(&["inspect", &agent])).expect("JSON");
    let (host, config) = (&seen[0]["HostConfig"], &seen[0]["Config"]);
    let hardened = json!({
        "read_only": host["ReadonlyRootfs"], "cap_drop": host["CapDrop"], "security": host["SecurityOpt"], "privileged": host["Privileged"],
        "user": config["User"], "groups": host["GroupAdd"], "published": host["PortBindings"], "memory": host["Memory"], "pids": host["PidsLimit"],
    });
    let expected = json!({
        "read_only": true, "cap_drop": ["ALL"], "security": ["no-new-privileges:true"], "privileged": false,
        "user": "10001:10001", "groups": null, "published": {}, "memory": 128 << 20, "pids": 64,
    });
    assert_eq!(hardened, expected);
    let mounts = seen[0]["Mounts"].as_array().expect("mounts");
    let places: Vec<(&str, bool)> = mounts.iter().filter_map(|m| Some((m["Destination"].as_str()?, m["RW"].as_bool()?))).collect();
    assert!(!places.is_empty() && places.iter().all(|(place, writable)| place.starts_with("/run/secrets/") && !writable), "{places:?}");
    docker(&["stop", &agent]);
    assert_eq!(docker(&["inspect", "-f", "{{.State.ExitCode}}", &agent]), "0");
}

#[test]
fn the_profile_has_every_shipped_agent_with_a_model() {
    let root = env!("CARGO_MANIFEST_DIR");
    let file = read(&std::fs::read_to_string(format!("{root}/docker-compose.mcp.yml")).expect("shipped"));
    let mut found = 0;
    for entry in std::fs::read_dir(format!("{root}/agents")).expect("shipped") {
        let path = entry.expect("readable").path();
        let Some(name) = path.file_name().and_then(|n| n.to_str()).and_then(|n| n.strip_suffix(".md")) else { continue };
        // The loop itself is no process of its own.
        if name == "warden" || !std::fs::read_to_string(&path).expect("readable").contains("\nmodel: ") {
            continue;
        }
        let service = &file["services"][format!("agent-{name}")];
        let command: Vec<&str> = service["command"].as_sequence().expect(name).iter().filter_map(|c| c.as_str()).collect();
        assert_eq!(command, ["agent", "run", name]);
        assert_eq!(service["profiles"][0].as_str(), Some("agents"), "{name}");
        assert_eq!(service["secrets"][0]["source"].as_str(), Some(format!("token-{name}").as_str()));
        assert!(
            file["secrets"][format!("token-{name}")]["file"].as_str().is_some_and(|f| f.ends_with(&format!("/{name}.token"))),
            "{name}"
        );
        assert!(service["volumes"].is_null() && service["read_only"].as_bool() == Some(true), "{name}");
        found += 1;
    }
    assert!(found >= 7, "{found}");
}
