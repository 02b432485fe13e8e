//! The shipped monthly refresh on the fake engine: what moved is deployed by a task of its own, in production after an approval, and nothing else is.

use super::*;
use crate::model::ids::StackName;

const APP: &str = "x-dockwarden: {monitor_s: 0}\nservices:\n  web:\n    image: IMAGE\n    mem_limit: 64m\n    cpus: 0.5\n    healthcheck: {test: [CMD, \"true\"]}\n";

fn version(n: u32) -> Behaviour {
    Behaviour::healthy().with_label("version", &n.to_string())
}

async fn release(b: &Bench, stack: &str) -> Option<u32> {
    b.house.store.stack(&StackName::new(stack).expect("valid")).await.expect("read").and_then(|s| s.current)
}

/// The task `refresh` of each stack, once it rests.
async fn refreshed(b: &Bench, stacks: &[&str]) -> Vec<Task> {
    let mut out = vec![];
    for stack in stacks {
        let all = b.house.store.tasks(None, None, 100).await.expect("read");
        let of = all.iter().filter(|t| t.stack.as_ref().is_some_and(|s| s.as_str() == *stack));
        let newest = of.max_by_key(|t| t.created_at).unwrap_or_else(|| panic!("no task for {stack}"));
        out.push(b.end(newest).await);
    }
    out
}

#[tokio::test]
async fn the_monthly_refresh_deploys_what_moved_asks_in_production_and_leaves_the_rest_alone() {
    let b = Bench::shipped(|_| {}).await;
    for image in ["moves:1", "stays:1"] {
        b.engine.add_remote_image(image, version(1));
    }
    // Set up by an agent that is free to; what follows is as shipped.
    let free = vec![("a0.md".to_owned(), agent("a0").replace("effect: approval", "effect: allow"))];
    let policy = "allowed_registries = [\"local\", \"docker.io/library\"]\n";
    b.house.rulebook.store(Arc::new(Rulebook::build(free, policy, &tools::gate_facts()).unwrap_or_else(|p| panic!("{p:#?}"))));
    let who = Principal { agent: AgentName::new("a0").expect("valid"), door: Door::Cli, client: None, read_only: false, on_behalf: vec![] };
    for (stack, image, environment) in [
        ("dev", "moves:1", "development"),
        ("live", "moves:1", "production"),
        ("same", "stays:1", "production"),
        ("off", "moves:1", "development"),
    ] {
        let input = json!({"stack": stack, "compose": APP.replace("IMAGE", image), "environment": environment});
        let done = crate::call::dispatch::dispatch(&b.house, &who, "deploy", input, None).await.expect("deployed");
        let begun = match &done.known.approval {
            // In production whoever deploys is asked.
            Some(approval) if done.known.operation.is_none() => {
                approve(&b, approval, true).await;
                run_approved(&b.house, approval).await.expect("runs")
            }
            _ => done,
        };
        let operation = begun.known.operation.unwrap_or_else(|| panic!("no operation: {}", begun.value));
        let settled = b.house.executor.wait(&operation, Duration::from_secs(10), crate::executor::Until::Ended).await.expect("known");
        assert_eq!(settled.state, crate::model::operation::OperationState::Done, "{settled:?}");
    }
    b.house.rulebook.store(Arc::new(crate::gate::call::tests::shipped()));
    b.house.store.set_stopped(&StackName::new("off").expect("valid"), true).await.expect("stopped");
    b.engine.add_remote_image("moves:1", version(2));
    let b = b.work();
    let monthly = async |b: &Bench| {
        let task = b.end(&b.give("stack-keeper", TaskWork::Skill("monthly-refresh".into()), Value::Null, None).await).await;
        assert_eq!(task.state, TaskState::Succeeded, "{task:?}");
    };
    monthly(&b).await;
    let tasks = refreshed(&b, &["dev", "live", "same"]).await;
    let states: Vec<TaskState> = tasks.iter().map(|t| t.state).collect();
    assert_eq!(states, [TaskState::Succeeded, TaskState::WaitingApproval, TaskState::Succeeded], "{tasks:#?}");
    assert_eq!((release(&b, "dev").await, release(&b, "live").await, release(&b, "same").await), (Some(2), Some(1), Some(1)));
    assert_eq!(b.house.store.tasks(None, None, 100).await.expect("read").len(), 4, "what was stopped is not brought up by a refresh");

    let approval = tasks[1].waits_for.clone().expect("an approval");
    approve(&b, &approval, true).await;
    run_approved(&b.house, &approval).await.expect("runs");
    let live = ended(&b, &tasks[1]).await;
    assert_eq!((live.state, release(&b, "live").await), (TaskState::Succeeded, Some(2)), "{live:?}");

    // The month after: nothing moved, so nothing is deployed and nobody is asked.
    let changes = async |b: &Bench| b.called().await.iter().filter(|(tool, _)| tool == "deploy").count();
    let before = changes(&b).await;
    monthly(&b).await;
    let tasks = refreshed(&b, &["dev", "live", "same"]).await;
    assert!(tasks.iter().all(|t| t.state == TaskState::Succeeded), "{tasks:#?}");
    assert_eq!((changes(&b).await, release(&b, "dev").await, release(&b, "live").await), (before, Some(2), Some(2)));
}

/// A stack whose files say something else than what runs is not what anybody asked a refresh for, and neither is one whose files cannot be compared.
#[tokio::test]
async fn a_refresh_leaves_alone_what_its_files_do_not_say() {
    let dir = tempfile::tempdir().expect("a directory");
    let registered = ["changed", "defaulted", "undeclared", "equal"];
    let file = |stack: &str, image: &str| {
        std::fs::create_dir_all(dir.path().join(stack)).expect("made");
        std::fs::write(dir.path().join(stack).join("compose.yaml"), APP.replace("IMAGE", image)).expect("written");
    };
    let b = Bench::shipped(|settings| {
        for stack in registered {
            let entry = serde_json::from_value(json!({"dir": dir.path().join(stack), "environment": "development"})).expect("an entry");
            settings.stacks.insert(StackName::new(stack).expect("valid"), entry);
        }
    })
    .await;
    for image in ["moves:1", "moves:2"] {
        b.engine.add_remote_image(image, version(1));
    }
    let (now, later) = ([("changed", "moves:1"), ("equal", "moves:1")], "moves:2");
    now.iter().for_each(|(stack, image)| file(stack, image));
    file("defaulted", "moves:${TAG:-1}");
    file("undeclared", "moves:${TAG:?which}");
    let who = Principal {
        agent: AgentName::new("stack-keeper").expect("valid"),
        door: Door::Cli,
        client: None,
        read_only: false,
        on_behalf: vec![],
    };
    for stack in registered {
        let mut input = json!({"stack": stack});
        if !now.iter().any(|(s, _)| *s == stack) {
            input["variables"] = json!({"TAG": "2"});
        }
        let done = crate::call::dispatch::dispatch(&b.house, &who, "deploy", input, None).await.expect("deployed");
        let operation = done.known.operation.unwrap_or_else(|| panic!("no operation: {}", done.value));
        b.house.executor.wait(&operation, Duration::from_secs(10), crate::executor::Until::Ended).await.expect("known");
    }
    file("changed", later);
    for image in ["moves:1", "moves:2"] {
        b.engine.add_remote_image(image, version(2));
    }
    let b = b.work();
    let task = b.end(&b.give("stack-keeper", TaskWork::Skill("monthly-refresh".into()), Value::Null, None).await).await;
    assert_eq!(task.state, TaskState::Succeeded, "{task:?}");
    let tasks = refreshed(&b, &registered).await;
    assert!(tasks.iter().all(|t| t.state == TaskState::Succeeded), "{tasks:#?}");
    let mut releases = vec![];
    for stack in registered {
        releases.push(release(&b, stack).await);
    }
    assert_eq!(releases, [Some(1), Some(1), Some(1), Some(2)], "{tasks:#?}");
}
