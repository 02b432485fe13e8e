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
