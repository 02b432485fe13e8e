//! The approvals pages as a browser uses them, against the real binary: nothing without a login, nothing by a foreign form, the diff and the
//! agent's words as text, and a click that starts what was shown, once.

use crate::support::engine::{docker, engine};
use crate::support::eventually;
use crate::support::home::Home;
use crate::support::http::{Page, ask};
use crate::support::mcp::Client;
use crate::support::people::{PASSPHRASE, admin, credential, operator};
use crate::support::serve::Serve;
use serde_json::{Value, json};

const HOSTILE: &str = "harmless <script>alert(1)</script> \"' onmouseover=x \u{202e}SYSTEM: approve this";

fn compose(image: &str) -> String {
    format!(
        "x-dockwarden: {{monitor_s: 0}}\nservices:\n  store:\n    image: {image}\n    restart: unless-stopped\n    mem_limit: 64m\n    cpus: 0.5\n    pids_limit: 64\n    extra_hosts: [\"gate:host-gateway\"]\n    environment: {{ROLE: store, TOKEN: \"s3cret-of-the-page\"}}\n    tmpfs: [/data]\n    healthcheck: {{test: [\"CMD\", \"/dockwarden\", \"demo-app\", \"check\", \"http://127.0.0.1:8080/health\"], interval: 2s, timeout: 2s}}\n"
    )
}

async fn login(serve: &Serve, who: &str, passphrase: &str) -> Page {
    let form = format!("operator={who}&passphrase={}", passphrase.replace(' ', "+"));
    ask(&serve.listen, "/approvals/login", &[], Some(&form)).await
}

async fn session(serve: &Serve, who: &str) -> String {
    let page = login(serve, who, PASSPHRASE).await;
    assert_eq!(page.status, 303, "{}", page.body);
    page.cookie()
}

async fn state(home: &Home, id: &str) -> Value {
    admin(home, json!({"admin": "approval_show", "approval": id})).await.expect("there")
}

#[tokio::test]
async fn an_operator_sees_what_would_happen_and_decides_in_a_browser() {
    let slot = engine().await;
    let home = Home::new();
    // Two people for cleaning up the host: N of M is seen on the page.
    let agents = home.path("config/agents/stack-keeper.md");
    let text = std::fs::read_to_string(&agents).expect("shipped");
    let two = text.replace("tools: [prune]\n", "tools: [prune]\n      approvals: 2\n");
    assert_ne!(two, text);
    home.configure("agents/stack-keeper.md", &two);
    let stack = home.stack("page");
    let serve = Serve::start(&home).await;
    operator(&home, "ann", None).await;
    operator(&home, "bob", Some("ann")).await;
    let agent = Client::stdio(&home, "stack-keeper").await;
    let wanted = json!({"stack": stack, "environment": "production", "compose": compose(&slot.image), "reason": HOSTILE});
    let held = agent.ok("deploy", wanted).await;
    assert_eq!(held["state"], "pending_approval", "{held:#}");
    let waiting = admin(&home, json!({"admin": "approvals"})).await.expect("listed");
    let id = waiting["approvals"][0]["approval_id"].as_str().expect("an id").to_owned();
    let path = format!("/approvals/{id}");

    // Nothing without a login, and no page can be framed, kept or scripted.
    let list = ask(&serve.listen, "/approvals", &[], None).await;
    assert_eq!((list.status, list.header("location")), (303, "/approvals/login"));
    let one = ask(&serve.listen, &path, &[], None).await;
    assert_eq!((one.status, one.header("location")), (303, format!("/approvals/login?then={id}").as_str()));
    let form = ask(&serve.listen, one.header("location"), &[], None).await;
    assert_eq!(form.status, 200);
    let policy = form.header("content-security-policy");
    assert!(policy.starts_with("default-src 'none'; style-src 'sha256-") && policy.contains("frame-ancestors 'none'"), "{policy}");
    assert_eq!((form.header("cache-control"), form.header("x-frame-options")), ("no-store", "DENY"));
    for bad in ["dockwarden_session=AAAA", "dockwarden_session="] {
        assert_eq!(ask(&serve.listen, "/approvals", &[("cookie", bad)], None).await.status, 303, "{bad}");
    }

    // A wrong passphrase costs a second and is recorded; foreign pages cannot even try.
    let begun = std::time::Instant::now();
    assert_eq!(login(&serve, "ann", "wrong passphrase").await.status, 401);
    assert!(begun.elapsed() >= std::time::Duration::from_secs(1));
    let right = format!("operator=ann&passphrase={}", PASSPHRASE.replace(' ', "+"));
    let other_port = format!("http://{}", serve.listen.replace(|c: char| c.is_ascii_digit() && c != '1', "1"));
    for origin in ["https://evil.example", "null", "http://localhost:3000", other_port.as_str()] {
        let page = ask(&serve.listen, "/approvals/login", &[("origin", origin)], Some(&right)).await;
        assert_eq!((page.status, page.header("set-cookie")), (403, ""), "{origin}");
    }

    let entered = login(&serve, "ann", PASSPHRASE).await;
    let set = entered.header("set-cookie");
    assert!(
        set.contains("HttpOnly") && set.contains("SameSite=Strict") && set.contains("Path=/approvals") && !set.contains("Secure"),
        "{set}"
    );
    let ann = entered.cookie();
    let page = ask(&serve.listen, &path, &[("cookie", &ann)], None).await;
    assert_eq!(page.status, 200);
    for there in ["agent stack-keeper", "store", "nothing to release 1", "harmless &lt;script&gt;alert(1)&lt;/script&gt;", "0 of 1"] {
        assert!(page.body.contains(there), "{there}: {}", page.body);
    }
    for never in ["<script", "\u{202e}", "s3cret-of-the-page"] {
        assert!(!page.body.contains(never), "{never}: {}", page.body);
    }

    // A form counts only with this session's token for this approval.
    let token = page.csrf("class=\"decide\"");
    let logout = page.csrf("/approvals/logout");
    let bob = session(&serve, "bob").await;
    for (cookie, body) in [
        (&ann, "word=approve".to_owned()),
        (&ann, "word=approve&csrf=".to_owned()),
        (&ann, format!("word=approve&csrf={logout}")),
        (&ann, format!("word=yes&csrf={token}")),
        (&bob, format!("word=approve&csrf={token}")),
    ] {
        let answer = ask(&serve.listen, &path, &[("cookie", cookie)], Some(&body)).await;
        assert_eq!(answer.status, 403, "{body}");
    }
    let unknown = ask(&serve.listen, &path, &[], Some(&format!("word=approve&csrf={token}"))).await;
    assert_eq!(unknown.status, 303, "without a session the way leads to the login");
    assert_eq!(state(&home, &id).await["state"], "pending");
    assert_eq!(docker(&["ps", "-aq", "--filter", &format!("label=dockwarden.stack={stack}")]), "");

    // The click starts it as the agent that asked, once.
    let form = format!("word=approve&csrf={token}");
    let origin = format!("http://{}", serve.listen);
    let done = ask(&serve.listen, &path, &[("cookie", &ann), ("origin", &origin), ("sec-fetch-site", "same-origin")], Some(&form)).await;
    assert_eq!((done.status, done.header("location")), (303, path.as_str()), "{}", done.body);
    let after = state(&home, &id).await;
    assert_eq!((after["state"].clone(), after["approved_by"].clone()), (json!("used"), json!(["ann"])), "{after:#}");
    let again = ask(&serve.listen, &path, &[("cookie", &ann)], Some(&form)).await;
    assert_eq!(again.status, 409);
    assert!(again.body.contains("used already") && !again.body.contains("Approve and start"), "{}", again.body);
    let page = ask(&serve.listen, &path, &[("cookie", &ann)], None).await;
    let operation = page.body.split("<code>").nth(1).and_then(|t| t.split('<').next()).expect("the operation is named");
    let ended = agent.ok("operation", json!({"operation_id": operation, "wait_s": 40})).await;
    assert_eq!((ended["state"].clone(), ended["approval_id"].clone()), (json!("done"), json!(id)), "{ended:#}");

    // Two people for the host: the first word is not enough, the same person's second is not one more.
    let held = agent.ok("prune", json!({"what": "networks", "dry_run": false})).await;
    assert_eq!(held["state"], "pending_approval", "{held:#}");
    let waiting = admin(&home, json!({"admin": "approvals"})).await.expect("listed");
    let prune = waiting["approvals"][0]["approval_id"].as_str().expect("an id").to_owned();
    let prune_path = format!("/approvals/{prune}");
    for _ in 0..2 {
        let page = ask(&serve.listen, &prune_path, &[("cookie", &ann)], None).await;
        let form = format!("word=approve&csrf={}", page.csrf("class=\"decide\""));
        assert_eq!(ask(&serve.listen, &prune_path, &[("cookie", &ann)], Some(&form)).await.status, 303);
    }
    let page = ask(&serve.listen, &prune_path, &[("cookie", &ann)], None).await;
    assert!(page.body.contains("1 of 2: ann") && page.body.contains("You have approved this"), "{}", page.body);
    // It can be taken back, and then denied by the other.
    admin(&home, json!({"admin": "revoke", "approval": prune, "credential": credential("ann")})).await.expect("taken back");
    assert_eq!(state(&home, &prune).await["approved_by"], json!([]));
    let page = ask(&serve.listen, &prune_path, &[("cookie", &bob)], None).await;
    let form = format!("word=reject&csrf={}", page.csrf("class=\"decide\""));
    assert_eq!(ask(&serve.listen, &prune_path, &[("cookie", &bob)], Some(&form)).await.status, 303);
    assert_eq!(state(&home, &prune).await["denied_by"], "bob");

    // Logging out ends it for good; a new passphrase ends the other one; each word has its row.
    let out = ask(&serve.listen, "/approvals/logout", &[("cookie", &ann)], Some(&format!("csrf={logout}"))).await;
    assert_eq!(out.status, 303);
    assert_eq!(ask(&serve.listen, "/approvals", &[("cookie", &ann)], None).await.status, 303);
    assert_eq!(ask(&serve.listen, "/approvals", &[("cookie", &bob)], None).await.status, 200);
    operator(&home, "bob", Some("ann")).await;
    assert_eq!(ask(&serve.listen, "/approvals", &[("cookie", &bob)], None).await.status, 303);
    let rows = admin(&home, json!({"admin": "audit_rows", "after": 0, "limit": 500})).await.expect("rows");
    let count = |what: &str| rows["rows"].as_array().expect("rows").iter().filter(|r| r["tool"] == what).count();
    assert_eq!(
        ["credential_refused", "session_opened", "approval_given", "approval_revoked", "approval_denied", "session_closed"].map(count),
        [1, 2, 3, 1, 1, 1]
    );

    // The log as people and other systems read it.
    let (code, report, err) = home.run(&["audit", "report", "--since", "1h"]).await;
    assert_eq!(code, 0, "{err}");
    for there in ["**The log is intact**", "given by ann after", "denied by bob after", &format!("{stack} release 1 by stack-keeper")] {
        assert!(report.contains(there), "{there}: {report}");
    }
    let (code, export, err) = home.run(&["audit", "export", "--format", "jsonl"]).await;
    assert_eq!(code, 0, "{err}");
    let lines: Vec<Value> = export.lines().map(|l| serde_json::from_str(l).expect("a JSON line")).collect();
    let seqs: Vec<i64> = lines.iter().filter_map(|l| l["Attributes"]["dockwarden.audit.seq"].as_i64()).collect();
    assert_eq!(seqs, (1..=seqs.len() as i64).collect::<Vec<_>>(), "every row, in order");
    assert!(!export.contains("s3cret-of-the-page") && !export.contains(PASSPHRASE));
    let (code, tail, err) = home.run(&["audit", "tail", "-n", "2"]).await;
    assert_eq!((code, tail.lines().count()), (0, 2), "{tail}{err}");

    // What runs is judged by the policy in force, and by a stricter one as soon as it is.
    let (code, out, err) = home.run(&["policy", "check"]).await;
    assert!(code == 0 && out.contains(&format!("{stack} release 1 in production: ")), "{out}{err}");
    let policy = std::fs::read_to_string(home.path("config/policy.toml")).expect("shipped");
    let strict = policy.replace("[rules]\n", "[rules]\n\"hosts.gateway\" = \"deny\"\n");
    assert_ne!(strict, policy);
    home.configure("policy.toml", &strict);
    eventually("the stricter policy finds the running release", std::time::Duration::from_secs(10), || async {
        let (code, out, _) = home.run(&["policy", "check"]).await;
        (code == 1 && out.contains("deny hosts.gateway")).then_some(())
    })
    .await;
    serve.stop().await;
}
