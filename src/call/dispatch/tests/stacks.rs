//! What is told of stacks and operations, and which files and variables a call sees.

use super::*;

#[tokio::test]
async fn operations_are_listed_in_pages_by_stack_and_state() {
    let b = bench().await;
    for stack in ["shop", "bank", "mill"] {
        assert_eq!(b.call("deploy", json!({"stack": stack, "compose": COMPOSE})).await.expect("deployed").value["state"], "monitoring");
    }
    b.call("restart", json!({"stack": "shop", "service": "web"})).await.expect("restarted");
    let list = async |input: Value| b.call("operation", input).await.map(|r| r.value);
    let of = |value: &Value| -> Vec<String> {
        let rows = value["operations"].as_array().unwrap_or_else(|| panic!("{value}")).iter();
        rows.map(|o| {
            format!(
                "{} {} {}",
                o["verb"].as_str().expect("a verb"),
                o["stack"].as_str().expect("a stack"),
                o["agent"].as_str().expect("an agent")
            )
        })
        .collect()
    };
    let all = ["restart shop keeper", "deploy mill keeper", "deploy bank keeper", "deploy shop keeper"];
    let whole = list(json!({})).await.expect("listed");
    assert_eq!((of(&whole), whole.get("next_cursor"), whole.get("verb")), (all.map(str::to_owned).to_vec(), None, None));
    let first = list(json!({"limit": 3})).await.expect("listed");
    assert_eq!(of(&first), all[..3]);
    let second = list(json!({"limit": 3, "cursor": first["next_cursor"]})).await.expect("listed");
    assert_eq!((of(&second), second.get("next_cursor")), (all[3..].iter().map(|s| (*s).to_owned()).collect(), None));
    assert_eq!(of(&list(json!({"stack": "shop"})).await.expect("listed")), [all[0], all[3]]);
    assert_eq!(of(&list(json!({"stack": "shop", "state": "failed"})).await.expect("listed")), Vec::<String>::new());
    // What is listed can be looked at, and leads to the same state.
    let one = list(json!({"operation_id": whole["operations"][1]["operation_id"]})).await.expect("one");
    assert_eq!((one["stack"].as_str(), &one["state"], one.get("operations")), (Some("mill"), &whole["operations"][1]["state"], None));
    for (wrong, field) in [
        (json!({"state": "lost"}), "state"),
        (json!({"cursor": "op-none"}), "cursor"),
        (json!({"cursor": "../x"}), "cursor"),
        (json!({"wait_s": 5}), "wait_s"),
        (json!({"operation_id": one["operation_id"], "stack": "mill"}), "operation_id"),
    ] {
        let e = list(wrong.clone()).await.expect_err("refused");
        assert_eq!((e.code, e.field.as_deref()), (ErrorCode::InvalidArgument, Some(field)), "{wrong}");
    }
}

#[tokio::test]
async fn a_stack_stopped_on_purpose_is_stopped_and_not_unhealthy() {
    let b = bench_of(&KEEPER.replace("tools: [deploy, restart]", "tools: [deploy, restart, stop]")).await;
    b.call("deploy", json!({"stack": "shop", "compose": COMPOSE})).await.expect("deployed");
    for _ in 0..2 {
        let stopped = b.call("stop", json!({"stack": "shop"})).await.expect("stopped");
        assert_eq!(stopped.value["state"], "done", "{}", stopped.value);
        assert_eq!(
            (stopped.value["services"][0]["state"].clone(), stopped.value["services"][0]["desired"].clone()),
            (json!("stopped"), json!(0))
        );
        assert!(stopped.text.contains("web 0/0 stopped") && !stopped.text.to_lowercase().contains("healthy"), "{}", stopped.text);
        let health = b.call("health", json!({"stack": "shop"})).await.expect("looked").text;
        assert!(health.starts_with("stopped") && !health.to_lowercase().contains("healthy"), "{health}");
        let all = b.call("health", json!({})).await.expect("looked").value;
        assert_eq!(all["healthy"], true, "{all}");
        let status = b.call("status", json!({"stack": "shop"})).await.expect("looked").value;
        assert_eq!(status["stacks"][0]["state"], "stopped", "{status}");
    }
    let again = b.call("restart", json!({"stack": "shop"})).await.expect("started");
    assert!(again.text.contains("web 1/1 running"), "{}", again.text);
    let removed = b.call("stop", json!({"stack": "shop", "remove": true})).await.expect("removed");
    assert!(!removed.text.to_lowercase().contains("healthy"), "{}", removed.text);
    let health = b.call("health", json!({"stack": "shop"})).await.expect("looked").text;
    assert!(!health.to_lowercase().contains("healthy"), "{health}");
}

#[tokio::test]
async fn status_says_whether_the_registered_files_are_what_runs() {
    let mut b = bench().await;
    let dir = b._dir.path().join("shop");
    std::fs::create_dir(&dir).expect("made");
    let write = |text: &str| std::fs::write(dir.join("compose.yaml"), text).expect("written");
    let house = Arc::get_mut(&mut b.house).expect("nobody else has it");
    let entry = serde_json::from_value(json!({"dir": dir})).expect("an entry");
    house.config.settings.stacks.insert(crate::model::ids::StackName::new("shop").expect("valid"), entry);
    let files = async || {
        let row = b.call("status", json!({"stack": "shop"})).await.expect("looked").value["stacks"][0].clone();
        (row["files"].as_str().expect("told").to_owned(), row["files_why"].as_str().map(str::to_owned))
    };
    write(COMPOSE);
    b.call("deploy", json!({"stack": "shop"})).await.expect("deployed");
    assert_eq!(files().await, ("same".into(), None));
    write(&COMPOSE.replace("morning", "evening"));
    assert_eq!(files().await, ("differ".into(), None));
    write(&COMPOSE.replace("good-morning-s3cret", "${GREETING:-hello}"));
    let defaults = "with the defaults of GREETING, which nothing here declares".to_owned();
    assert_eq!(files().await, ("differ".into(), Some(defaults)));
    // Deployed with a variable of the call: the directory alone cannot say the same, and must not claim that it differs.
    for (text, said) in [("${GREETING}", "nothing here declares the variable GREETING; "), ("${GREETING:?say hello}", "")] {
        write(&COMPOSE.replace("good-morning-s3cret", text));
        b.call("deploy", json!({"stack": "shop", "variables": {"GREETING": text.len().to_string()}})).await.expect("deployed");
        let (word, why) = files().await;
        let why = why.expect("told");
        assert!(word == "unknown" && why.starts_with(said) && why.contains("GREETING") && why.contains(".env"), "{word}: {why}");
    }
    std::fs::remove_file(dir.join("compose.yaml")).expect("gone");
    assert_eq!(files().await.0, "unknown");
}

#[tokio::test]
async fn a_service_is_made_anew_only_from_host_paths_that_lead_where_they_led() {
    let dir = tempfile::tempdir().expect("a directory");
    let root = dir.path().canonicalize().expect("it is there");
    let data = root.join("data");
    std::fs::create_dir(&data).expect("made");
    let b = bench().await;
    let book = {
        let policy = format!("allowed_registries = [\"local\", \"docker.io/library\"]\nbind_roots_allow = [{root:?}]\n");
        Rulebook::build(vec![("keeper.md".into(), KEEPER.into())], &policy, &tools::gate_facts()).expect("a rulebook")
    };
    b.house.rulebook.store(Arc::new(book));
    let compose = COMPOSE.replace("    mem_limit", &format!("    volumes: [\"{}:/data\"]\n    mem_limit", data.display()));
    let plan = async || b.call("plan", json!({"stack": "shop", "compose": compose})).await.expect("planned").value;
    b.call("deploy", json!({"stack": "shop", "compose": compose})).await.expect("deployed");
    let anew = json!({"stack": "shop", "service": "web", "recreate": true});
    assert_eq!(b.call("restart", anew.clone()).await.expect("made anew").value["state"], "monitoring");
    let (before, again) = (plan().await, plan().await);
    assert_eq!(before["digest"], again["digest"], "nothing moved");

    // Still below an allowed root, but another directory: another plan.
    std::fs::rename(&data, root.join("real")).expect("moved");
    std::os::unix::fs::symlink(root.join("real"), &data).expect("linked");
    let id = before["plan_id"].as_str().expect("an id").to_owned();
    let stale = b.call("deploy", json!({"plan_id": id, "digest": before["digest"]})).await.expect_err("stale");
    assert_eq!(stale.code, ErrorCode::StalePlan, "{stale}");
    // Out of every root: refused.
    std::fs::remove_file(&data).expect("gone");
    std::os::unix::fs::symlink("/", &data).expect("linked");
    let denied = b.call("restart", anew).await.expect_err("denied");
    assert!(denied.code == ErrorCode::Denied && denied.message.contains("bind.outside"), "{denied}");
}

#[tokio::test]
async fn texts_of_a_call_see_no_variable_of_the_registered_directory() {
    let mut b = bench().await;
    let dir = b._dir.path().join("shop");
    std::fs::create_dir(&dir).expect("made");
    std::fs::write(dir.join(".env"), "SECRET=hunter2hunter2\nBAD=hunter2${hunter2\n").expect("written");
    std::fs::write(dir.join("labels"), "SECRET=hunter2hunter2\n").expect("written");
    let house = Arc::get_mut(&mut b.house).expect("nobody else has it");
    let entry = serde_json::from_value(json!({"dir": dir})).expect("an entry");
    house.config.settings.stacks.insert(crate::model::ids::StackName::new("shop").expect("valid"), entry);
    let with = |line: &str| COMPOSE.replace("    mem_limit", &format!("    {line}\n    mem_limit"));
    let part = "services:\n  other:\n    image: hello:1\n    command: [\"${SECRET}\"]\n";
    let calls = [
        json!({"stack": "shop", "compose": with("command: [\"${SECRET}\"]")}),
        json!({"stack": "shop", "compose": COMPOSE.replace("hello:1", "hello:${SECRET}")}),
        json!({"stack": "shop", "compose": with("command: [\"${U:?${SECRET}}\"]")}),
        json!({"stack": "shop", "compose": with("label_file: labels")}),
        json!({"stack": "shop", "compose": with("label_file: .env")}),
        json!({"stack": "shop", "compose": with("extends: {file: .env, service: web}")}),
        json!({"stack": "shop", "files": {"compose.yaml": format!("include: [{{path: part.yaml, env_file: labels}}]\n{COMPOSE}"), "part.yaml": part}}),
        json!({"stack": "shop", "files": {"compose.yaml": format!("include: [part.yaml]\n{COMPOSE}"), "part.yaml": part}}),
    ];
    for input in calls {
        let told = match b.call("plan", input.clone()).await {
            Ok(reply) => format!("{} {}", reply.value, reply.text),
            Err(e) => format!("{e:?}"),
        };
        assert!(!told.contains("hunter2"), "{input}: {told}");
    }
    let labels = b.call("plan", json!({"stack": "shop", "compose": with("label_file: labels")})).await.expect("planned").value;
    let line = labels["changes"][0]["diff"].as_array().expect("lines").iter().find(|l| l["path"] == "labels.SECRET").expect("told").clone();
    assert!(line["to"].as_str().is_some_and(|t| t.starts_with("set (")), "{line}");
    // What the call brings itself counts as before.
    let own = json!({"stack": "shop", "files": {"compose.yaml": with("command: [\"${GREETING}\"]"), ".env": "GREETING=good-evening\n"}});
    assert!(b.call("plan", own).await.expect("planned").value.to_string().contains("good-evening"));
}
