//! Configs and secrets: what was judged as copied is never mounted from the host, and a text that was judged is what runs.

use super::*;
use crate::call::observe;
use crate::model::labels;

/// A bench where stack `shop` is registered in a directory with these files.
async fn registered(files: &[(&str, &str)]) -> (Bench, std::path::PathBuf) {
    let mut b = bench().await;
    let dir = b._dir.path().join("shop");
    for (name, text) in files {
        let at = dir.join(name);
        std::fs::create_dir_all(at.parent().expect("beneath")).expect("made");
        std::fs::write(at, text).expect("written");
    }
    let house = Arc::get_mut(&mut b.house).expect("nobody else has it");
    let entry = serde_json::from_value(json!({"dir": dir})).expect("an entry");
    house.config.settings.stacks.insert(StackName::new("shop").expect("valid"), entry);
    (b, dir)
}

/// `app` of an image, with a config at a place; `side` may write the directory that the config's file lies in.
fn shared(image: &str, target: &str) -> String {
    format!(
        "services:\n  app:\n    image: {image}\n    mem_limit: 64m\n    cpus: 0.5\n    configs: [{{source: c, target: {target}}}]\n  side:\n    \
         image: hello:1\n    mem_limit: 64m\n    cpus: 0.5\n    volumes: [\"./shared:/s\"]\nconfigs:\n  c: {{file: ./shared/f}}\n"
    )
}

/// Services of which `bind.above` is said.
fn above(plan: &Value) -> Vec<String> {
    let findings = plan["findings"].as_array().expect("a list").iter().filter(|f| f["rule"] == "bind.above");
    findings.map(|f| f["service"].as_str().unwrap_or_default().to_owned()).collect()
}

#[tokio::test]
async fn a_file_beneath_a_volume_of_the_image_is_judged_as_what_it_is_mounted() {
    let (b, dir) = registered(&[("shared/f", "text")]).await;
    b.engine.add_image("vol:1", Behaviour::healthy().with_volumes(&["/var/lib/x"]));
    b.engine.add_image("bare:1", Behaviour::healthy());
    let write = |image: &str, target: &str| std::fs::write(dir.join("compose.yaml"), shared(image, target)).expect("written");
    let plan = async || b.call("plan", json!({"stack": "shop"})).await.expect("planned").value;
    // The first containers of the image would get it, and every later one takes the volume over.
    write("vol:1", "/var/lib/x/f");
    assert_eq!(above(&plan().await), ["app"]);
    let held = b.call("deploy", json!({"stack": "shop"})).await.expect("asked").value;
    assert_eq!(held["state"], "pending_approval", "{held}");
    // Elsewhere it is copied, and nobody is asked.
    write("vol:1", "/etc/f");
    assert_eq!(above(&plan().await), Vec::<String>::new());
    b.call("deploy", json!({"stack": "shop"})).await.expect("deployed");
    // The next image declares nothing, but the container that runs has the volume and hands it on.
    write("bare:1", "/var/lib/x/f");
    assert_eq!(above(&plan().await), ["app"]);
    let held = b.call("deploy", json!({"stack": "shop"})).await.expect("asked").value;
    assert_eq!(held["state"], "pending_approval", "{held}");
    // An operator's yes is for that mount, and it is what runs.
    let id = ApprovalId::new(held["approval"]["approval_id"].as_str().expect("an id")).expect("valid");
    b.house.store.decide_approval(&id, "olga", true, chrono::Utc::now()).await.expect("stored").expect("was pending");
    let done = approval::run_approved(&b.house, &id).await.expect("run");
    let operation = done.known.operation.unwrap_or_else(|| panic!("{}", done.text));
    let ended = b.house.executor.wait(&operation, std::time::Duration::from_secs(30), crate::executor::Until::Ended).await.expect("known");
    assert_eq!(ended.state, OperationState::Done, "{ended:?}");
    let observed = observe::stack(&b.house, &StackName::new("shop").expect("valid")).await.expect("looked");
    let app = observed.containers.iter().filter(|c| c.labels.get(labels::SERVICE).is_some_and(|s| s == "app"));
    let binds: Vec<(String, String)> =
        app.flat_map(|c| &c.mounts).filter(|m| m.kind == "bind").map(|m| (m.source.clone(), m.target.clone())).collect();
    assert_eq!(binds, [(dir.canonicalize().expect("there").join("shared/f").display().to_string(), "/var/lib/x/f".to_owned())]);
}

#[tokio::test]
async fn a_text_of_a_call_is_never_stood_in_for_by_a_file_of_the_directory() {
    let (b, _dir) = registered(&[("app.conf", "old"), ("compose.yaml", COMPOSE)]).await;
    let compose = |line: &str| {
        let service = COMPOSE.replace("    mem_limit", &format!("    configs: [{{source: c, target: /etc/app/x}}]\n{line}    mem_limit"));
        format!("{service}configs:\n  c: {{file: ./app.conf}}\n")
    };
    let input = |line: &str| json!({"stack": "shop", "files": {"compose.yaml": compose(line), "app.conf": "new"}});
    for line in ["    read_only: true\n", "    tmpfs: [/etc/app]\n"] {
        let plan = b.call("plan", input(line)).await.expect("planned").value;
        let said = plan["preflight"].as_array().expect("a list").iter().find(|c| c["id"] == "secret.deliverable").expect("there").clone();
        assert!(said["ok"] == "no" && said["message"].as_str().is_some_and(|m| m.contains("cannot be delivered")), "{line}: {said}");
        let told = match b.call("deploy", input(line)).await {
            Ok(reply) => reply.value.to_string(),
            Err(e) => format!("{e:?}"),
        };
        assert!(told.contains("cannot be delivered"), "{line}: {told}");
        assert_eq!(b.engine.running(), Vec::<String>::new(), "{line}");
    }
    b.call("deploy", input("")).await.expect("where it may be copied, it is");
    assert_eq!(b.engine.running().len(), 1);
}
