//! Stacks taken over from Compose on a real engine, and given back: made with the plain client and exactly the names and labels that Compose v2 gives, and
//! with Compose itself where `DOCKWARDEN_COMPOSE_BIN` names it.

use crate::support::engine::{docker, engine};
use crate::support::eventually;
use crate::support::home::Home;
use crate::support::mcp::Client;
use crate::support::people::{self, admin};
use crate::support::serve::Serve;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use tokio::io::AsyncWriteExt;

/// A project directory with a compose file of web, api and store; the version is in `.env`.
fn project(home: &Home, stack: &str, image: &str) -> PathBuf {
    let dir = home.path("stacks").join(stack);
    std::fs::create_dir_all(&dir).expect("created");
    let compose = format!(
        r#"
x-dockwarden: {{monitor_s: 1}}
services:
  web:
    image: {image}
    restart: unless-stopped
    mem_limit: 64m
    ports: ["127.0.0.1::8080"]
    environment: {{ROLE: web, UPSTREAM: "api:8080", VERSION: "${{VERSION}}"}}
    depends_on: [api]
  api:
    image: {image}
    restart: unless-stopped
    mem_limit: 64m
    environment: {{ROLE: api, UPSTREAM: "store:8080", VERSION: "${{VERSION}}"}}
    depends_on: [store]
  store:
    image: {image}
    restart: unless-stopped
    mem_limit: 64m
    environment: {{ROLE: store, STORE_VERSION: "${{STORE_VERSION:-1}}"}}
    volumes: ["visits:/data"]
volumes: {{visits: {{}}}}
"#
    );
    std::fs::write(dir.join("compose.yaml"), compose).expect("written");
    variables(&dir, "VERSION=1\n");
    dir
}

fn variables(dir: &Path, text: &str) {
    std::fs::write(dir.join(".env"), text).expect("written");
}

/// What `docker compose up -d` would have made of it, by hand.
fn up_by_hand(stack: &str, dir: &Path, image: &str) {
    let project = format!("com.docker.compose.project={stack}");
    let (network, volume) = (format!("{stack}_default"), format!("{stack}_visits"));
    docker(&["network", "create", "--label", &project, "--label", "com.docker.compose.network=default", &network]);
    docker(&["volume", "create", "--label", &project, "--label", "com.docker.compose.volume=visits", &volume]);
    for service in ["store", "api", "web"] {
        run_service(stack, dir, image, service);
    }
}

fn run_service(stack: &str, dir: &Path, image: &str, service: &str) {
    let project = format!("com.docker.compose.project={stack}");
    let (network, volume) = (format!("{stack}_default"), format!("{stack}_visits"));
    let version = "com.docker.compose.version=2.26.1";
    let dir_label = format!("com.docker.compose.project.working_dir={}", dir.display());
    let files = format!("com.docker.compose.project.config_files={}", dir.join("compose.yaml").display());
    let (env, more) = match service {
        "store" => (vec!["ROLE=store", "STORE_VERSION=1"], vec!["--mount".to_owned(), format!("type=volume,src={volume},dst=/data")]),
        "api" => (vec!["ROLE=api", "UPSTREAM=store:8080", "VERSION=1"], vec![]),
        _ => (vec!["ROLE=web", "UPSTREAM=api:8080", "VERSION=1"], vec!["-p".to_owned(), "127.0.0.1::8080".to_owned()]),
    };
    let name = format!("{stack}-{service}-1");
    let of_service = format!("com.docker.compose.service={service}");
    let mut args = vec!["run", "-d", "--name", &name, "--network", &network, "--network-alias", service, "--restart", "unless-stopped"];
    args.extend(["--memory", "64m", "--memory-swap", "128m"]);
    for label in [
        &project[..],
        &of_service,
        &dir_label,
        &files,
        version,
        "com.docker.compose.container-number=1",
        "com.docker.compose.oneoff=False",
        "com.docker.compose.config-hash=0123456789abcdef",
    ] {
        args.extend(["--label", label]);
    }
    args.extend(env.iter().flat_map(|e| ["--env", *e]));
    args.extend(more.iter().map(String::as_str));
    args.push(image);
    docker(&args);
}

/// Name, id and start of every container of a project, the claim left out.
fn containers(stack: &str) -> Vec<String> {
    let ids = docker(&["ps", "-aq", "--no-trunc", "--filter", &format!("label=com.docker.compose.project={stack}")]);
    let mut found: Vec<String> =
        ids.lines().map(|id| docker(&["inspect", "--format", "{{.Name}} {{.Id}} {{.State.StartedAt}}", id])).collect();
    found.sort();
    found
}

fn claims(stack: &str) -> String {
    docker(&["ps", "-a", "--filter", &format!("name=^dockwarden-claim-{stack}$"), "--format", "{{.Names}}"])
}

async fn operator(home: &Home) -> Value {
    people::operator(home, "ann", None).await;
    people::credential("ann")
}

async fn run_json(home: &Home, args: &[&str]) -> (i32, Value) {
    let (code, out, err) = home.run(args).await;
    (code, serde_json::from_str(&out).unwrap_or_else(|e| panic!("{args:?}: {e}: {out}{err}")))
}

/// One visit: the page's first line and the count.
async fn visit(stack: &str) -> (String, u64) {
    let port = docker(&["port", &format!("{stack}-web-1"), "8080/tcp"]);
    let address = port.lines().next().expect("a published port").to_owned();
    let mut stream = tokio::net::TcpStream::connect(&address).await.expect("the published port accepts");
    stream.write_all(format!("GET / HTTP/1.0\r\nhost: {address}\r\n\r\n").as_bytes()).await.expect("sent");
    let mut answer = String::new();
    let read = tokio::io::AsyncReadExt::read_to_string(&mut stream, &mut answer);
    tokio::time::timeout(Duration::from_secs(30), read).await.expect("in time").expect("an answer");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head and a body");
    assert!(head.split(' ').nth(1) == Some("200"), "{answer}");
    let count = body.lines().find_map(|l| l.strip_prefix("visits ")).and_then(|n| n.parse().ok());
    (body.lines().next().unwrap_or_default().to_owned(), count.unwrap_or_else(|| panic!("no count in {body}")))
}

async fn stack_row(client: &Client, stack: &str) -> Value {
    let status = client.ok("status", json!({"stack": stack})).await;
    status["stacks"][0].clone()
}

async fn done(client: &Client, operation: &Value) {
    eventually("the operation is done", Duration::from_secs(30), || async {
        let op = client.ok("operation", json!({"operation_id": operation["operation_id"], "wait_s": 10})).await;
        (op["state"] == "done").then_some(())
    })
    .await;
}

/// Everything after a stack runs under Compose: looked at, refused to agents, adopted, healed, updated, rolled back, given back.
async fn the_whole_way(home: &Home, stack: &str, dir: &Path) -> Serve {
    let before = containers(stack);
    assert_eq!(before.len(), 3, "{before:?}");
    let serve = Serve::start(home).await;
    let client = Client::stdio(home, "stack-keeper").await;

    // Not ours yet: visible, and a deploy under its name is refused with the way to take it over.
    assert_eq!(stack_row(&client, stack).await["managed"], json!(false));
    let refused = client.refused("plan", json!({"stack": stack, "compose": "services: {web: {image: x}}"})).await;
    assert!(refused.to_string().contains(&format!("dockwarden adopt {stack}")), "{refused:#}");

    // A look changes nothing.
    let (code, look) = run_json(home, &["adopt", stack, "--dry-run", "--json"]).await;
    let row = &look["stacks"][0];
    assert_eq!((code, &row["state"], &row["release"]), (0, &json!("would_adopt"), &json!(1)), "{look:#}");
    assert_eq!(row["drift"], json!([]), "{row:#}");
    assert_eq!(row["files"]["files"], json!(["compose.yaml"]), "{row:#}");
    assert_eq!(row["volumes"], json!([format!("{stack}_visits")]), "{row:#}");
    assert_eq!((claims(stack), containers(stack)), (String::new(), before.clone()));
    assert_eq!(stack_row(&client, stack).await["managed"], json!(false));

    // An operator's word is needed, and the right one.
    let adopt = |credential: Value| json!({"admin": "adopt", "stack": stack, "credential": credential});
    assert_eq!(admin(home, json!({"admin": "adopt", "stack": stack})).await.expect_err("refused")["code"], json!("denied"));
    let ann = operator(home).await;
    let wrong = json!({"operator": "ann", "passphrase": "not the passphrase"});
    assert_eq!(admin(home, adopt(wrong)).await.expect_err("refused")["code"], json!("denied"));
    assert_eq!(claims(stack), "");

    let adopted = admin(home, adopt(ann.clone())).await.expect("adopted");
    assert_eq!(adopted["stacks"][0]["state"], json!("adopted"), "{adopted:#}");
    assert_eq!(containers(stack), before, "nothing was restarted");
    assert_eq!(claims(stack), format!("dockwarden-claim-{stack}"));

    // Ours, good and well; also for the next supervisor. The next plan has nothing to do.
    serve.kill9().await;
    let serve = Serve::start(home).await;
    let client = Client::stdio(home, "stack-keeper").await;
    let row = stack_row(&client, stack).await;
    assert_eq!(
        (&row["managed"], &row["release"], &row["state"], &row["files"]),
        (&json!(true), &json!(1), &json!("running"), &json!("same")),
        "{row:#}"
    );
    assert_eq!(client.ok("health", json!({"stack": stack})).await["healthy"], json!(true));
    let history = client.ok("history", json!({"stack": stack})).await;
    assert_eq!((&history["releases"][0]["state"], &history["releases"][0]["restorable"]), (&json!("good"), &json!("yes")), "{history:#}");
    let again = client.ok("deploy", json!({"stack": stack})).await;
    assert!(again["message"].as_str().is_some_and(|m| m.contains("nothing to do")), "{again:#}");
    let (_, managed) = run_json(home, &["adopt", stack, "--dry-run", "--json"]).await;
    assert_eq!(managed["stacks"][0]["state"], json!("managed"), "{managed:#}");

    // Healed like any other: the same container comes back.
    docker(&["kill", &format!("{stack}-api-1")]);
    eventually("the killed container is healed", Duration::from_secs(30), || async {
        (client.ok("health", json!({"stack": stack})).await["healthy"] == json!(true)).then_some(())
    })
    .await;
    let (release, first) = visit(stack).await;
    assert_eq!(release, "Web release 1");

    // The first update replaces Compose's containers of the services that changed, with the volume and network there are.
    variables(dir, "VERSION=2\nSTORE_VERSION=2\n");
    let plan = client.ok("plan", json!({"stack": stack})).await;
    let actions: Vec<&str> = plan["changes"].as_array().expect("changes").iter().filter_map(|c| c["action"].as_str()).collect();
    assert_eq!(actions, ["update", "update", "update"], "{plan:#}");
    let two = client.ok("deploy", json!({"stack": stack})).await;
    assert_eq!((&two["state"], &two["release"]), (&json!("monitoring"), &json!(2)), "{two:#}");
    done(&client, &two).await;
    let after = containers(stack);
    let names = |list: &[String]| list.iter().map(|l| l.split(' ').next().unwrap().to_owned()).collect::<Vec<_>>();
    assert_eq!(names(&after), names(&before), "the names are Compose's");
    assert!(after.iter().all(|c| !before.contains(c)), "all were replaced: {after:?}");
    assert_eq!(docker(&["volume", "ls", "-q", "--filter", &format!("name={stack}_")]), format!("{stack}_visits"));
    assert_eq!(docker(&["network", "ls", "--format", "{{.Name}}", "--filter", &format!("name={stack}_")]), format!("{stack}_default"));
    assert_eq!(visit(stack).await, ("Web release 2".to_owned(), first + 1), "the new release, with the data there was");

    // Back to what Compose had made.
    let back = client.ok("rollback", json!({"stack": stack, "to_release": 1})).await;
    assert_eq!((&back["state"], &back["release"]), (&json!("monitoring"), &json!(3)), "{back:#}");
    done(&client, &back).await;
    let env = docker(&["inspect", "--format", "{{.Config.Env}}", &format!("{stack}-web-1")]);
    assert!(env.contains("VERSION=1"), "{env}");
    assert_eq!(client.ok("health", json!({"stack": stack})).await["healthy"], json!(true));

    // And given back: everything runs on, nothing is known of it any more, Compose's name is free again.
    let mine = containers(stack);
    let (code, look) = run_json(home, &["eject", stack, "--dry-run", "--json"]).await;
    assert_eq!((code, &look["state"]), (0, &json!("would_eject")), "{look:#}");
    assert_eq!(claims(stack), format!("dockwarden-claim-{stack}"));
    let ejected = admin(home, json!({"admin": "eject", "stack": stack, "credential": ann})).await.expect("ejected");
    let command = ejected["command"].as_str().expect("a command").to_owned();
    assert_eq!(command, format!("cd {} && docker compose -p {stack} -f compose.yaml up -d", dir.display()));
    assert_eq!((claims(stack), containers(stack)), (String::new(), mine));
    assert_eq!(stack_row(&client, stack).await["managed"], json!(false));
    let refused = client.refused("plan", json!({"stack": stack, "compose": "services: {web: {image: x}}"})).await;
    assert!(refused.to_string().contains("dockwarden adopt"), "{refused:#}");
    let (code, out, err) = home.run(&["audit", "verify"]).await;
    assert_eq!(code, 0, "{out}{err}");
    let (_, audit) = run_json(home, &["audit", "--json", "--of", "ann", "--stack", stack]).await;
    for event in ["adopt_asked", "adopted", "eject_asked", "ejected"] {
        assert!(audit.to_string().contains(event), "{event} is not in the audit log: {audit:#}");
    }
    serve
}

#[tokio::test]
async fn a_stack_of_compose_is_taken_over_without_a_restart_and_given_back() {
    let slot = engine().await;
    let home = Home::new();
    home.unlimited("stack-keeper");
    let stack = home.stack("adopt");
    let dir = project(&home, &stack, &slot.image);
    up_by_hand(&stack, &dir, &slot.image);
    the_whole_way(&home, &stack, &dir).await.stop().await;
}

#[tokio::test]
async fn what_differs_is_shown_and_taken_over_only_when_that_is_asked_for() {
    let slot = engine().await;
    let home = Home::new();
    let stack = home.stack("drift");
    let dir = project(&home, &stack, &slot.image);
    up_by_hand(&stack, &dir, &slot.image);
    variables(&dir, "VERSION=7\n");
    let serve = Serve::start(&home).await;
    let ann = operator(&home).await;
    let (_, look) = run_json(&home, &["adopt", &stack, "--dry-run", "--json"]).await;
    let drift: Vec<String> = look["stacks"][0]["drift"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|d| format!("{} {}", d["service"].as_str().unwrap(), d["what"].as_str().unwrap()))
        .collect();
    assert_eq!(drift, ["api environment.VERSION", "web environment.VERSION"], "{look:#}");
    // `--all` looks at every project of the engine, this one among them.
    let (_, all) = run_json(&home, &["adopt", "--all", "--dry-run", "--json"]).await;
    let mine = all["stacks"].as_array().expect("a list").iter().find(|s| s["stack"] == json!(stack)).expect("among all");
    assert_eq!(mine["drift"], look["stacks"][0]["drift"]);
    let request = |accept: bool| json!({"admin": "adopt", "stack": stack, "accept_drift": accept, "credential": ann});
    let refused = admin(&home, request(false)).await.expect_err("refused");
    assert_eq!(refused["code"], json!("conflict"), "{refused:#}");
    assert_eq!(claims(&stack), "");
    let before = containers(&stack);
    let adopted = admin(&home, request(true)).await.expect("adopted");
    assert_eq!(adopted["stacks"][0]["state"], json!("adopted"), "{adopted:#}");
    assert_eq!(containers(&stack), before);
    // What differs is what the next plan replaces, and nothing else.
    let client = Client::stdio(&home, "stack-keeper").await;
    let plan = client.ok("plan", json!({"stack": stack})).await;
    let actions: Vec<String> = plan["changes"]
        .as_array()
        .expect("changes")
        .iter()
        .map(|c| format!("{} {}", c["service"].as_str().unwrap(), c["action"].as_str().unwrap()))
        .collect();
    assert_eq!(actions, ["store unchanged", "api update", "web update"], "{plan:#}");
    serve.stop().await;
}

#[tokio::test]
async fn what_compose_makes_anew_of_a_managed_stack_is_taken_over_once_more() {
    let slot = engine().await;
    let home = Home::new();
    let stack = home.stack("again");
    let dir = project(&home, &stack, &slot.image);
    up_by_hand(&stack, &dir, &slot.image);
    let serve = Serve::start(&home).await;
    let ann = operator(&home).await;
    let request = json!({"admin": "adopt", "stack": stack, "credential": ann});
    admin(&home, request.clone()).await.expect("adopted");
    // Somebody's `docker compose up -d --force-recreate api`: same name, same labels, another container.
    let api = format!("{stack}-api-1");
    docker(&["rm", "-f", &api]);
    run_service(&stack, &dir, &slot.image, "api");
    let client = Client::stdio(&home, "stack-keeper").await;
    let refused = client.refused("deploy", json!({"stack": stack})).await;
    assert!(refused.to_string().contains(&format!("dockwarden adopt {stack}")), "{refused:#}");
    // The loop may have seen the container go, and be at it: its operation ends when it finds the name taken.
    let again = crate::support::eventually("adopted again", std::time::Duration::from_secs(60), || async {
        match admin(&home, request.clone()).await {
            Ok(again) => Some(again),
            Err(e) if e["code"] == json!("busy") || e["code"] == json!("conflict") => None,
            Err(e) => panic!("adopted again: {e:#}"),
        }
    })
    .await;
    let before = containers(&stack);
    assert_eq!((&again["stacks"][0]["state"], &again["stacks"][0]["release"]), (&json!("adopted"), &json!(2)), "{again:#}");
    assert_eq!(containers(&stack), before);
    let noop = client.ok("deploy", json!({"stack": stack})).await;
    assert!(noop["message"].as_str().is_some_and(|m| m.contains("nothing to do")), "{noop:#}");
    serve.stop().await;
}

#[tokio::test]
async fn what_cannot_be_taken_over_is_refused_with_the_reason() {
    let slot = engine().await;
    let home = Home::new();
    let (stack, other) = (home.stack("gone"), Home::new());
    let dir = project(&home, &stack, &slot.image);
    up_by_hand(&stack, &dir, &slot.image);
    let serve = Serve::start(&home).await;
    let ann = operator(&home).await;
    let adopt = |name: &str| json!({"admin": "adopt", "stack": name, "credential": ann});

    let unknown = admin(&home, adopt("no-such-project")).await.expect_err("refused");
    assert_eq!(unknown["code"], json!("not_found"), "{unknown:#}");
    std::fs::rename(dir.join("compose.yaml"), dir.join("away.yaml")).expect("renamed");
    let gone = admin(&home, adopt(&stack)).await.expect_err("refused");
    assert!(gone["message"].as_str().is_some_and(|m| m.contains("is gone")), "{gone:#}");
    std::fs::rename(dir.join("away.yaml"), dir.join("compose.yaml")).expect("renamed");

    // Another supervisor's stack is not Compose's to give.
    let theirs = Serve::start(&other).await;
    let bob = operator(&other).await;
    let taken = admin(&other, json!({"admin": "adopt", "stack": stack, "credential": bob})).await.expect("adopted there");
    assert_eq!(taken["stacks"][0]["state"], json!("adopted"), "{taken:#}");
    let claimed = admin(&home, adopt(&stack)).await.expect_err("refused");
    assert!(claimed["message"].as_str().is_some_and(|m| m.contains("another dockwarden")), "{claimed:#}");
    theirs.stop().await;
    serve.stop().await;
}

/// With Compose itself: `DOCKWARDEN_COMPOSE_BIN=/path/to/docker-compose`.
#[tokio::test]
async fn compose_itself_hands_a_stack_over_and_takes_it_back() {
    let Some(compose) = std::env::var_os("DOCKWARDEN_COMPOSE_BIN") else {
        return eprintln!("DOCKWARDEN_COMPOSE_BIN is not set: the stack of Compose's own making was not tried");
    };
    let slot = engine().await;
    let home = Home::new();
    home.unlimited("stack-keeper");
    let stack = home.stack("compose");
    let dir = project(&home, &stack, &slot.image);
    let up = || {
        let output = Command::new(&compose).args(["-p", &stack, "up", "-d"]).current_dir(&dir).output().expect("compose runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    up();
    let serve = the_whole_way(&home, &stack, &dir).await;
    let before = (containers(&stack), visit(&stack).await);
    up();
    let after = containers(&stack);
    assert_eq!(after.len(), 3, "{after:?}");
    assert!(after.iter().all(|c| !before.0.contains(c)), "Compose made its own again: {after:?}");
    assert_eq!(visit(&stack).await.1, before.1.1 + 1, "the data is the same");
    assert_eq!(docker(&["volume", "ls", "-q", "--filter", &format!("name={stack}_")]), format!("{stack}_visits"));
    // And once more into our hands: nothing of the first time is in the way.
    let ann = people::credential("ann");
    let adopted = admin(&home, json!({"admin": "adopt", "stack": stack, "credential": ann})).await.expect("adopted again");
    assert_eq!(adopted["stacks"][0]["state"], json!("adopted"), "{adopted:#}");
    assert_eq!(containers(&stack), after);
    serve.stop().await;
}
