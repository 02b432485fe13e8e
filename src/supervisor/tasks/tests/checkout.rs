//! A signed push on the fake engine: what was pushed is fetched and deployed, what is not to be fetched is not, and nothing is deployed then.

use super::*;
use crate::call::hooks::{self, Request, Taken};
use crate::executor::checkout::tests::Lab;
use crate::model::config::{GitFollow, StackSettingsEntry};
use crate::model::ids::{StackName, TaskId};
use crate::model::trigger::{HookKind, Trigger};

fn shop() -> StackName {
    StackName::new("shop").expect("valid")
}

fn file(services: &[&str]) -> String {
    let service =
        |name: &&str| format!("  {name}: {{image: \"hello:1\", mem_limit: 64m, cpus: 0.5, healthcheck: {{test: [CMD, \"true\"]}}}}\n");
    format!("x-dockwarden: {{monitor_s: 0}}\nservices:\n{}", services.iter().map(service).collect::<String>())
}

async fn bench(lab: &Lab, git: Option<GitFollow>) -> Bench {
    let entry = StackSettingsEntry { dir: lab.here.clone(), environment: Some("development".into()), git, ..Default::default() };
    Bench::with(|s| drop(s.stacks.insert(shop(), entry))).await.work()
}

async fn pushed(b: &Bench, reference: &str, n: u32) -> Taken {
    let trigger: Trigger =
        serde_json::from_value(json!({"name": "push", "agent": "a0", "skill": "lies", "stack": "shop", "input": {"stack": "shop"},
        "on": {"webhook": "github", "secret_file": "/k", "events": ["push"]}}))
        .expect("valid");
    let body = json!({"ref": reference, "n": n}).to_string();
    let headers = [("x-github-event".to_owned(), "push".to_owned())].into();
    let request = Request { headers: &headers, body: body.as_bytes() };
    hooks::take(&b.house, &trigger, HookKind::Github, &request, Utc::now()).await.expect("taken")
}

async fn done(b: &Bench, taken: Taken) -> Task {
    let Taken::Tasks { tasks, .. } = taken else { panic!("{taken:?}") };
    let id: &TaskId = tasks.first().expect("a task");
    let task = b.house.store.task(id).await.expect("read").expect("there");
    ended(b, &task).await
}

/// The services of what runs.
async fn runs(b: &Bench) -> Vec<String> {
    let current = b.house.store.stack(&shop()).await.expect("read").and_then(|s| s.current);
    let release = b.house.store.release(&shop(), current.expect("deployed")).await.expect("read").expect("there");
    release.spec.services.keys().map(ToString::to_string).collect()
}

/// The supervisor's own entries about the checkout, with the commits they name.
async fn told(b: &Bench) -> Vec<(String, String)> {
    let rows = b.house.store.audit_after(0, None, 1000).await.expect("rows");
    rows.into_iter().filter(|r| r.tool.starts_with("checkout_")).map(|r| (r.tool.clone(), json!(r).to_string())).collect()
}

#[tokio::test]
async fn a_signed_push_of_the_branch_is_fetched_and_deployed_and_nothing_else_is() {
    let lab = Lab::new(&file(&["web"]));
    let follows = GitFollow { branch: "main".into(), remote: "origin".into() };
    let b = bench(&lab, Some(follows)).await;
    assert_eq!(done(&b, pushed(&b, "refs/heads/main", 1).await).await.state, TaskState::Succeeded);
    assert_eq!((runs(&b).await, told(&b).await.len()), (vec!["web".to_owned()], 0), "it was there already");

    let to = lab.push(&file(&["web", "api"]));
    let ignored = pushed(&b, "refs/heads/feature", 2).await;
    assert!(matches!(&ignored, Taken::Ignored(why) if why.contains("follows refs/heads/main")), "{ignored:?}");
    // A task that no push gave takes the checkout as it lies.
    assert_eq!(ended(&b, &b.skill("lies", json!({"stack": "shop"})).await).await.state, TaskState::Succeeded);
    assert_eq!(runs(&b).await, ["web"]);

    assert_eq!(done(&b, pushed(&b, "refs/heads/main", 3).await).await.state, TaskState::Succeeded);
    assert_eq!(runs(&b).await, ["api", "web"]);
    let rows = told(&b).await;
    assert_eq!(rows.iter().map(|(what, _)| what.as_str()).collect::<Vec<_>>(), ["checkout_moves", "checkout_moved"]);
    assert!(rows.iter().all(|(_, row)| row.contains(&to) && row.contains("\"from\"")), "{rows:#?}");

    // Somebody is at work there: nothing is fetched over it, nothing is deployed, and it is said.
    lab.push(&file(&["web", "api", "db"]));
    std::fs::write(lab.here.join("compose.yaml"), file(&["mine"])).expect("written");
    let failed = done(&b, pushed(&b, "refs/heads/main", 4).await).await;
    assert_eq!(failed.state, TaskState::Failed);
    assert!(failed.result.as_deref().unwrap_or_default().contains("not committed (compose.yaml)"), "{failed:?}");
    assert_eq!(
        (runs(&b).await, told(&b).await.last().map(|(what, _)| what.clone())),
        (vec!["api".to_owned(), "web".to_owned()], Some("checkout_refused".to_owned()))
    );
}

#[tokio::test]
async fn without_the_operators_word_the_checkout_is_deployed_as_it_lies() {
    let lab = Lab::new(&file(&["web"]));
    let b = bench(&lab, None).await;
    lab.push(&file(&["web", "api"]));
    assert_eq!(done(&b, pushed(&b, "refs/heads/main", 1).await).await.state, TaskState::Succeeded);
    assert_eq!((runs(&b).await, told(&b).await.len()), (vec!["web".to_owned()], 0));
}

#[tokio::test]
async fn a_step_that_has_begun_is_taken_to_its_end_whatever_is_cancelled() {
    use std::io::Write;
    let lab = Lab::new(&file(&["web"]));
    let follows = GitFollow { branch: "main".into(), remote: "origin".into() };
    let entry =
        StackSettingsEntry { dir: lab.here.clone(), environment: Some("development".into()), git: Some(follows), ..Default::default() };
    // Nobody works at the tasks: this one is followed by hand.
    let b = Bench::with(|s| drop(s.stacks.insert(shop(), entry))).await;
    let Taken::Tasks { tasks, .. } = pushed(&b, "refs/heads/main", 1).await else { panic!("nothing to do") };
    let task = b.house.store.task(tasks.first().expect("a task")).await.expect("read").expect("there");
    // Git writes the file through a filter that waits.
    let at = |name: &str| lab.here.parent().expect("a parent").join(name);
    let (begun, go, filter) = (at("begun"), at("go"), at("slow.sh"));
    let text = format!("touch {}\nwhile [ ! -e {} ]; do sleep 0.05; done\nexec cat\n", begun.display(), go.display());
    std::fs::write(&filter, text).expect("written");
    let mut config = std::fs::OpenOptions::new().append(true).open(lab.here.join(".git/config")).expect("there");
    writeln!(config, "[filter \"slow\"]\n\tsmudge = sh {}", filter.display()).expect("written");
    std::fs::create_dir_all(lab.here.join(".git/info")).expect("made");
    std::fs::write(lab.here.join(".git/info/attributes"), "compose.yaml filter=slow\n").expect("written");
    let next = file(&["web", "api"]);
    lab.push(&next);
    let stop = tokio_util::sync::CancellationToken::new();
    let cancel = async {
        let seen = async {
            while !begun.exists() {
                tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(std::time::Duration::from_secs(60), seen).await.expect("it begins");
        stop.cancel();
        std::fs::write(&go, "").expect("written");
    };
    let (done, ()) = tokio::join!(crate::supervisor::tasks::checkout::follow(&b.house, &task, &stop), cancel);
    assert!(done.is_ok(), "{done:?}");
    assert_eq!(std::fs::read_to_string(lab.here.join("compose.yaml")).expect("there"), next);
    assert!(!lab.here.join(".git/index.lock").exists());
    assert_eq!(told(&b).await.last().map(|(what, _)| what.clone()).as_deref(), Some("checkout_moved"));
}
