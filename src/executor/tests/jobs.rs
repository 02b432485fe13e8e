//! Jobs: services that end by themselves, cleanly, and for whose end nobody waits.

use super::*;
use crate::model::plan::{Action, Strategy};
use serde_json::json;

/// `web` and a job without dependants under a restart policy.
fn with_job(image: &str, restart: Restart) -> StackSpec {
    let mut spec = stack("web:1", None, &["mail"]);
    let job = spec.services.get_mut("mail").unwrap();
    (job.image, job.restart) = (Some(ImageRef::new(image).unwrap()), restart);
    spec
}

async fn jobs() -> Rig {
    let rig = rig().await;
    for (tag, code) in [("mail:1", 0), ("mail:2", 0), ("mail:bad", 4)] {
        rig.engine.add_image(tag, Behaviour::exits(code).with_logs(&["the last words"]));
    }
    rig.engine.add_image("mail:long", Behaviour::running());
    rig
}

fn starts(rig: &Rig) -> usize {
    rig.engine.calls().iter().filter(|c| c.starts_with("start ") && c.contains("-mail-")).count()
}

#[tokio::test]
async fn a_job_that_ends_well_is_finished_and_its_deploy_says_so() {
    for restart in [Restart::No, Restart::OnFailure(3)] {
        let rig = jobs().await;
        let mut spec = with_job("mail:1", restart);
        spec.settings.monitor_s = Some(1);
        let op = deploy(&rig, spec).await;
        assert_eq!((op.state, op.message.as_deref()), (OperationState::Done, Some("service mail finished: exit code 0")));
        let seen = rig.engine.container(&EngineName::new("shop-mail-1").unwrap()).await.unwrap().unwrap();
        assert_eq!((seen.state, seen.exit_code), (RunState::Exited, 0));
        assert_eq!(rig.engine.serving("shop", "web"), ["shop-web-1"]);
    }
}

#[tokio::test]
async fn a_finished_job_does_not_run_again_until_it_changes_and_then_once() {
    let rig = jobs().await;
    deploy(&rig, with_job("mail:1", Restart::No)).await;
    rig.engine.clear_calls();
    let again = deploy(&rig, with_job("mail:1", Restart::No)).await;
    assert_eq!((again.state, again.release, starts(&rig)), (OperationState::Done, Some(1), 0), "nothing to do");
    let want = release_of(&rig, with_job("mail:2", Restart::No)).await;
    let plan = plan_for(&rig, &rig.exec, want).await;
    let mail = plan.changes.iter().find(|c| c.service.as_str() == "mail").unwrap();
    assert_eq!(
        (mail.action, mail.strategy, mail.expected_loss.as_str()),
        (Action::Update, Strategy::Recreate, "none: the one before is finished")
    );
    let op = deploy(&rig, with_job("mail:2", Restart::No)).await;
    assert_eq!((op.state, starts(&rig)), (OperationState::Done, 1), "{:?}", op.message);
    assert_eq!(op.message.as_deref(), Some("service mail finished: exit code 0"));
}

#[tokio::test]
async fn a_job_that_fails_fails_its_deploy_with_its_last_words_and_the_one_before_does_not_run_again() {
    let rig = jobs().await;
    deploy(&rig, with_job("mail:1", Restart::No)).await;
    rig.engine.clear_calls();
    let op = deploy(&rig, with_job("mail:bad", Restart::No)).await;
    assert_eq!(op.state, OperationState::RolledBack);
    assert_eq!((op.evidence[0].exit_code, op.evidence[0].logs.clone()), (Some(4), vec!["the last words".to_owned()]));
    assert!(op.message.unwrap().contains("exit code 4"));
    assert_eq!(starts(&rig), 1, "only the failing one ran");
    let seen = rig.engine.container(&EngineName::new("shop-mail-1").unwrap()).await.unwrap().unwrap();
    assert_eq!((seen.state, seen.exit_code), (RunState::Exited, 0), "the finished one is still there");
}

#[tokio::test]
async fn what_somebody_would_miss_is_not_finished_but_gone() {
    type Change = fn(&mut StackSpec);
    let changes: [(&str, Change); 5] = [
        ("a port", |s| {
            s.services.get_mut("mail").unwrap().ports =
                s.services["web"].ports.iter().cloned().map(|p| PortSpec { published: None, ..p }).collect()
        }),
        ("a health check", |s| {
            let test = vec!["CMD".to_owned(), "true".to_owned()];
            s.services.get_mut("mail").unwrap().healthcheck = Some(Healthcheck { test, ..Default::default() });
        }),
        ("a probe", |s| {
            s.services.get_mut("mail").unwrap().settings.probes = vec![serde_json::from_value(json!({"exec": ["true"]})).unwrap()]
        }),
        ("a dependant", |s| {
            let on = Dependency { condition: DependencyCondition::ServiceStarted, required: true, restart: false };
            s.services.get_mut("web").unwrap().depends_on.insert(name("mail"), on);
        }),
        ("a policy that starts it again", |s| s.services.get_mut("mail").unwrap().restart = Restart::Always),
    ];
    for (what, change) in changes {
        let rig = jobs().await;
        let mut spec = with_job("mail:1", Restart::No);
        change(&mut spec);
        let op = deploy(&rig, spec).await;
        assert_eq!(op.state, OperationState::RolledBack, "{what}");
        assert!(op.message.as_deref().unwrap().contains("it ended with exit code 0"), "{what}: {:?}", op.message);
    }
}

#[tokio::test]
async fn a_job_that_ends_in_the_watch_window_is_finished_and_one_that_is_needed_is_switched_back() {
    for needed in [false, true] {
        let rig = jobs().await;
        let mut spec = with_job("mail:long", Restart::No);
        spec.settings.monitor_s = Some(2);
        if needed {
            spec.services.get_mut("mail").unwrap().ports = vec![PortSpec { published: None, ..spec.services["web"].ports[0].clone() }];
        }
        let want = release_of(&rig, spec).await;
        let plan = plan_for(&rig, &rig.exec, want).await;
        let op = rig.exec.submit(plan, permit("deploy"), request("deploy")).await.unwrap();
        let settled = rig.exec.wait(&op.id, Duration::from_secs(20), Until::Settled).await.unwrap();
        assert_eq!((settled.state, settled.message), (OperationState::Monitoring, None));
        assert!(rig.engine.crash_container("shop-mail-1", 0));
        ended(&rig.exec, &op.id).await;
        let op = rig.store.operation(&op.id).await.unwrap().unwrap();
        match needed {
            false => assert_eq!((op.state, op.message.as_deref()), (OperationState::Done, Some("service mail finished: exit code 0"))),
            true => assert_eq!(op.state, OperationState::RolledBack, "{:?}", op.message),
        }
    }
}

#[tokio::test]
async fn a_finished_job_can_be_run_again_by_a_restart() {
    let rig = jobs().await;
    deploy(&rig, with_job("mail:1", Restart::No)).await;
    rig.engine.clear_calls();
    let op = run(&rig, &rig.exec, Want::Restart { service: Some(name("mail")) }).await;
    assert_eq!((op.state, op.message.as_deref(), starts(&rig)), (OperationState::Done, Some("service mail finished: exit code 0"), 1));
}

/// The runs of the job in the order in which the engine was told of them.
fn told(rig: &Rig) -> Vec<String> {
    let job = |c: &&String| c.contains("mail") && (c.starts_with("start ") || c.starts_with("stop "));
    rig.engine.calls().iter().filter(job).map(|c| c.split(' ').next().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn a_job_at_work_is_left_to_finish_when_it_does_not_change() {
    let rig = jobs().await;
    deploy(&rig, with_job("mail:long", Restart::No)).await;
    rig.engine.clear_calls();
    let mut spec = with_job("mail:long", Restart::No);
    spec.services.get_mut("web").unwrap().environment.insert("A".into(), Some("1".into()));
    let op = deploy(&rig, spec).await;
    assert_eq!((op.state, told(&rig)), (OperationState::Done, vec![]), "{:?}", op.message);
    assert_eq!(rig.engine.running().iter().filter(|n| n.contains("mail")).count(), 1);
}

#[tokio::test]
async fn a_job_at_work_that_changes_is_ended_before_the_new_run_begins_and_the_plan_says_so() {
    let rig = jobs().await;
    deploy(&rig, with_job("mail:long", Restart::No)).await;
    let mut changed = with_job("mail:long", Restart::No);
    changed.services.get_mut("mail").unwrap().environment.insert("A".into(), Some("1".into()));
    let want = release_of(&rig, changed.clone()).await;
    let plan = plan_for(&rig, &rig.exec, want).await;
    let mail = plan.changes.iter().find(|c| c.service.as_str() == "mail").unwrap();
    assert_eq!((mail.action, mail.strategy), (Action::Update, Strategy::Recreate));
    assert!(mail.expected_loss.contains("ended within its stop grace before the new one begins"), "{}", mail.expected_loss);
    rig.engine.clear_calls();
    let op = deploy(&rig, changed.clone()).await;
    assert_eq!((op.state, told(&rig)), (OperationState::Done, vec!["stop".to_owned(), "start".into()]), "{:?}", op.message);
    // A new run that fails: the one before begins again, and at no moment did two run.
    rig.engine.clear_calls();
    let op = deploy(&rig, with_job("mail:bad", Restart::No)).await;
    assert_eq!(op.state, OperationState::RolledBack);
    let order = told(&rig);
    assert_eq!((order.first().map(String::as_str), order.last().map(String::as_str)), (Some("stop"), Some("start")), "{order:?}");
    assert_eq!(rig.engine.running().iter().filter(|n| n.contains("mail")).count(), 1);
    // Where the file says that two may run, a canary goes before.
    changed.services.get_mut("mail").unwrap().settings.concurrent = true;
    changed.services.get_mut("mail").unwrap().environment.insert("A".into(), Some("2".into()));
    let want = release_of(&rig, changed).await;
    let plan = plan_for(&rig, &rig.exec, want).await;
    assert_eq!(plan.changes.iter().find(|c| c.service.as_str() == "mail").unwrap().strategy, Strategy::Handover);
}

#[tokio::test]
async fn a_one_shot_still_at_work_is_ended_before_its_next_run_begins() {
    let rig = jobs().await;
    let once = |image: &str| {
        let mut spec = with_job(image, Restart::No);
        let on = Dependency { condition: DependencyCondition::ServiceCompletedSuccessfully, required: true, restart: false };
        spec.services.get_mut("web").unwrap().depends_on.insert(name("mail"), on);
        spec
    };
    let ends = Arc::new(std::sync::atomic::AtomicBool::new(true));
    let script = ends.clone();
    rig.engine.on_run(move |spec| {
        let job = spec.labels.get(crate::model::labels::SERVICE).is_some_and(|s| s == "mail");
        (job && script.load(std::sync::atomic::Ordering::SeqCst)).then_some(0)
    });
    assert_eq!(deploy(&rig, once("mail:long")).await.state, OperationState::Done);
    // Somebody runs it once more with the engine's own tools, and it is at it.
    ends.store(false, std::sync::atomic::Ordering::SeqCst);
    let container = EngineName::new("shop-mail-1").unwrap();
    rig.engine.start(&permit("deploy"), &container).await.unwrap();
    assert_eq!(rig.engine.container(&container).await.unwrap().unwrap().state, RunState::Running);
    let want = release_of(&rig, once("mail:2")).await;
    let plan = plan_for(&rig, &rig.exec, want).await;
    let mail = plan.changes.iter().find(|c| c.service.as_str() == "mail").unwrap();
    assert!(mail.expected_loss.starts_with("the run at work is ended"), "{}", mail.expected_loss);
    rig.engine.clear_calls();
    let op = deploy(&rig, once("mail:2")).await;
    assert_eq!((op.state, told(&rig)), (OperationState::Done, vec!["stop".to_owned(), "start".into()]), "{:?}", op.message);
}
