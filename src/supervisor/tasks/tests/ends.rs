//! What a try leaves behind when something goes wrong at a bad moment: nothing is done twice, nothing is lost, nothing waits for ever.

use super::*;
use crate::call::approval::freeze;
use crate::call::dispatch::dispatch;
use crate::model::ids::StackName;
use crate::model::prompt::Prompt;
use std::future::poll_fn;
use std::pin::pin;
use std::task::Poll;

fn skill_of(b: &Bench, name: &str) -> Prompt {
    b.house.prompts.load().iter().find(|p| p.name == name).expect("there").clone()
}

/// The agent may restart in development, and a runbook does.
fn restarts(b: &Bench) {
    let text = agent("a0")
        .replace("stop, task_work", "stop, restart, task_work")
        .replace("tools: [deploy], environments: [dev", "tools: [deploy, restart], environments: [dev");
    let policy = "allowed_registries = [\"local\", \"docker.io/library\"]\n";
    let book = Rulebook::build(vec![("a0.md".into(), text)], policy, &tools::gate_facts()).unwrap_or_else(|p| panic!("{p:#?}"));
    b.house.rulebook.store(Arc::new(book));
    let text =
        "---\nname: again\ntitle: A\ndescription: d\nsteps:\n  - {id: re, tool: restart, input: {stack: shop}}\n---\n{{steps.re.state}}\n";
    let skill = parse_prompt("again.md", text).unwrap_or_else(|p| panic!("{p:#?}"));
    b.house.prompts.store(Arc::new(vec![skill]));
}

#[tokio::test]
async fn what_a_call_began_whose_answer_was_lost_is_looked_for_and_not_begun_again() {
    let b = Bench::new(1).await;
    restarts(&b);
    let task = b.skill("again", Value::Null).await;
    let who = principal(&task);
    dispatch(&b.house, &who, "deploy", json!({"stack": "shop", "compose": COMPOSE}), None).await.expect("deployed");
    let task = b.house.store.task_claim(Utc::now(), 40, None).await.expect("claimed").remove(0);
    let (skill, stop) = (skill_of(&b, "again"), CancellationToken::new());
    b.engine.set_down(true);
    let end = runbook::run(&b.house, &task, &skill, &stop).await;
    assert!(matches!(&end, TaskEnd::Retry(why) if why.starts_with("step re (restart)")), "{end:?}");
    b.engine.set_down(false);
    // Whether the engine went away before or after the effect cannot be told from the error: here it was after.
    let made = json!({"stack": "shop", "idempotency_key": format!("{}.re", task.id)});
    dispatch(&b.house, &who, "restart", made, None).await.expect("restarted");
    let end = runbook::run(&b.house, &task, &skill, &stop).await;
    assert!(matches!(end, TaskEnd::Succeeded(_)), "{end:?}");
    let all = b.house.store.operations(Some(&StackName::new("shop").expect("valid")), 10).await.expect("read");
    assert_eq!(all.iter().filter(|o| o.verb == "restart").count(), 1, "{all:#?}");
}

#[tokio::test]
async fn an_approval_whose_call_failed_fails_its_step() {
    let b = Bench::new(1).await.work();
    let task = b.skill("bring", json!({"stack": "shop", "compose": COMPOSE, "environment": "production"})).await;
    let approval = b.end(&task).await.waits_for.expect("an approval");
    // The call is let through, and what carries it out takes nothing any more.
    b.house.executor.close(Duration::from_secs(5)).await;
    approve(&b, &approval, true).await;
    run_approved(&b.house, &approval).await.expect_err("refused");
    let done = ended(&b, &task).await;
    assert_eq!(done.state, TaskState::Failed, "{done:?}");
    assert!(done.result.as_deref().unwrap_or_default().contains("its call failed: the supervisor is shutting down"), "{done:?}");
}

#[tokio::test]
async fn what_was_approved_while_it_could_not_start_starts_when_it_can() {
    let b = Bench::new(1).await.work();
    let task = b.skill("bring", json!({"stack": "shop", "compose": COMPOSE, "environment": "production"})).await;
    let approval = b.end(&task).await.waits_for.expect("an approval");
    freeze(&b.house.store, "ann", "", Utc::now()).await.expect("frozen");
    approve(&b, &approval, true).await;
    let (mut starts, tries) = (Starts::default(), TaskTracker::new());
    let state = async || b.house.store.approval(&approval, Utc::now()).await.expect("read").expect("there").state;
    look_after(&b.house, &mut starts, &tries).await;
    assert!(tries.is_empty(), "the door that took the word has its try first");
    for expected in [ApprovalState::Approved, ApprovalState::Used] {
        starts.hurry();
        look_after(&b.house, &mut starts, &tries).await;
        tries.close();
        tries.wait().await;
        tries.reopen();
        assert_eq!(state().await, expected);
        crate::call::approval::unfreeze(&b.house.store, "ann", Utc::now()).await.expect("lifted");
    }
    assert_eq!(ended(&b, &task).await.state, TaskState::Succeeded);
}

#[tokio::test]
async fn a_task_lent_to_an_agent_that_fetches_no_more_comes_back() {
    let b = Bench::with(|s| s.tasks.outside = vec![AgentName::new("a0").expect("valid")]).await;
    let task = b.give("a0", TaskWork::Prompt("look".into()), Value::Null, None).await;
    let over = (task.agent.clone(), Utc::now() + TimeDelta::milliseconds(200));
    assert_eq!(b.house.store.task_claim(Utc::now(), 40, Some(over)).await.expect("claimed").len(), 1);
    // Started again without `outside`, while the lease still holds.
    let b = b.again().await;
    tasks::restore(&b.house, Utc::now()).await.expect("restored");
    tokio::time::timeout(Duration::from_secs(30), async {
        while b.house.store.task(&task.id).await.expect("read").expect("there").state == TaskState::Running {
            look_after(&b.house, &mut Starts::default(), &TaskTracker::new()).await;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await
    .expect("its lease ends");
    assert!(b.house.store.task_next_due().await.expect("read").is_some(), "it is the house's now");
}

#[tokio::test]
async fn a_plan_that_went_stale_is_made_anew_by_the_next_try() {
    let b = Bench::new(1).await;
    let text = agent("a0").replace("tools: status", "tools: plan, status");
    let policy = "allowed_registries = [\"local\", \"docker.io/library\"]\n";
    let book = Rulebook::build(vec![("a0.md".into(), text)], policy, &tools::gate_facts()).unwrap_or_else(|p| panic!("{p:#?}"));
    b.house.rulebook.store(Arc::new(book));
    let skill = "---\nname: push\ntitle: P\ndescription: d\narguments:\n  - {name: compose, description: c, required: true}\nsteps:\n  - {id: plan, tool: plan, input: {stack: shop, compose: \"{{compose}}\"}}\n  - {id: up, tool: deploy, input: {plan_id: \"{{steps.plan.plan_id}}\", digest: \"{{steps.plan.digest}}\"}}\n---\n{{steps.up.release}}\n";
    b.house.prompts.store(Arc::new(vec![parse_prompt("push.md", skill).unwrap_or_else(|p| panic!("{p:#?}"))]));
    let wants = |mib: u32| format!("x-dockwarden: {{monitor_s: 0}}\n{}", COMPOSE.replace("64m", &format!("{mib}m")));
    let task = b.skill("push", json!({"compose": wants(70)})).await;
    let who = principal(&task);
    let deploy = async |mib: u32| {
        dispatch(&b.house, &who, "deploy", json!({"stack": "shop", "compose": wants(mib)}), None).await.expect("deployed");
    };
    deploy(64).await;
    let task = b.house.store.task_claim(Utc::now(), 40, None).await.expect("claimed").remove(0);
    let planned = dispatch(&b.house, &who, "plan", json!({"stack": "shop", "compose": wants(70)}), None).await.expect("planned");
    let kept = json!({"value": planned.value, "text": planned.text});
    b.house.store.task_step_done(&task.id, "plan", &kept, Utc::now()).await.expect("kept");
    // Somebody deploys between the plan and its deploy.
    deploy(66).await;
    let (skill, stop) = (skill_of(&b, "push"), CancellationToken::new());
    let end = runbook::run(&b.house, &task, &skill, &stop).await;
    assert!(matches!(&end, TaskEnd::Retry(why) if why.starts_with("step up (deploy)")), "{end:?}");
    assert_eq!(b.house.store.task_steps(&task.id).await.expect("read"), []);
    let end = runbook::run(&b.house, &task, &skill, &stop).await;
    assert!(matches!(&end, TaskEnd::Succeeded(report) if report.trim() == "3"), "{end:?}");
}

#[tokio::test]
async fn a_runbook_whose_agent_may_not_look_at_operations_waits_for_its_own() {
    let b = Bench::with(|s| (s.tasks.retry_pause_s, s.tasks.tries) = (0, 1)).await;
    let text = agent("a0").replace("deploy, operation, ", "deploy, ");
    let policy = "allowed_registries = [\"local\", \"docker.io/library\"]\n";
    let book = Rulebook::build(vec![("a0.md".into(), text)], policy, &tools::gate_facts()).unwrap_or_else(|p| panic!("{p:#?}"));
    b.house.rulebook.store(Arc::new(book));
    let skill = "---\nname: go\ntitle: G\ndescription: d\nsteps:\n  - {id: up, tool: deploy, input: {stack: shop, compose: \"{{compose}}\", wait: false}}\narguments:\n  - {name: compose, description: c, required: true}\n---\n{{steps.up.state}}\n";
    b.house.prompts.store(Arc::new(vec![parse_prompt("go.md", skill).unwrap_or_else(|p| panic!("{p:#?}"))]));
    b.engine.add_remote_image("docker.io/library/hello:2", Behaviour::healthy());
    b.engine.hold_pulls(true);
    let b = b.work();
    let task = b.skill("go", json!({"compose": COMPOSE.replace("hello:1", "docker.io/library/hello:2")})).await;
    let looks = async {
        while b.engine.pulls_under_way() == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        // Longer than the pause of a look that gives up.
        tokio::time::sleep(Duration::from_millis(1_500)).await;
        let still = b.house.store.task(&task.id).await.expect("read").expect("there").state;
        b.engine.hold_pulls(false);
        still
    };
    assert_eq!(looks.await, TaskState::Running, "it waits");
    let done = ended(&b, &task).await;
    assert_eq!((done.state, done.attempt), (TaskState::Succeeded, 1), "{done:?}");
}

#[tokio::test]
async fn a_task_cancelled_after_its_claim_and_before_its_work_does_nothing() {
    let b = Bench::new(1).await;
    b.skill("look", Value::Null).await;
    let task = b.house.store.task_claim(Utc::now(), 40, None).await.expect("claimed").remove(0);
    tasks::cancel(&b.house, &task.id, Utc::now()).await.expect("asked");
    attempt(&b.house, task.clone(), &CancellationToken::new()).await;
    let done = b.house.store.task(&task.id).await.expect("read").expect("there");
    assert_eq!((done.state, b.called().await), (TaskState::Cancelled, vec![]), "{done:?}");
}

#[tokio::test]
async fn what_is_refused_while_the_supervisor_ends_is_no_failure_of_the_step() {
    let b = Bench::new(1).await;
    b.skill("careful", Value::Null).await;
    let task = b.house.store.task_claim(Utc::now(), 40, None).await.expect("claimed").remove(0);
    let (skill, stop) = (skill_of(&b, "careful"), CancellationToken::new());
    {
        let mut run = pin!(runbook::run(&b.house, &task, &skill, &stop));
        // Polled by hand, so that the end comes exactly while the call of the first step is under way.
        while b.house.store.task_steps(&task.id).await.expect("read").is_empty() {
            let polled = poll_fn(|cx| Poll::Ready(run.as_mut().poll(cx))).await;
            assert!(polled.is_pending(), "{polled:?}");
        }
        stop.cancel();
        assert_eq!(run.await, TaskEnd::Cancelled);
    }
    let steps = b.house.store.task_steps(&task.id).await.expect("read");
    assert!(steps.len() == 1 && steps[0].reply.is_none(), "nothing is known of it: {steps:?}");
    let end = runbook::run(&b.house, &task, &skill, &CancellationToken::new()).await;
    assert!(matches!(end, TaskEnd::Succeeded(_)), "{end:?}");
}

#[tokio::test]
async fn the_end_of_a_task_that_cannot_be_written_is_written_once_it_can() {
    let b = Bench::with(|s| s.tasks.retry_pause_s = 0).await;
    let (first, second) = (b.skill("look", Value::Null).await, b.skill("look", Value::Null).await);
    let task = b.house.store.task_claim(Utc::now(), 1, None).await.expect("claimed").remove(0);
    let shutdown = CancellationToken::new();
    let ended = async {
        // As a full disk: the step's entries and the end itself.
        b.house.store.fail_writes(4);
        attempt(&b.house, task.clone(), &shutdown).await;
    };
    tokio::time::timeout(Duration::from_secs(20), ended).await.expect("it ends");
    let task = b.house.store.task(&task.id).await.expect("read").expect("there");
    assert_ne!(task.state, TaskState::Running, "{task:?}");
    assert!([&first.id, &second.id].contains(&&task.id));
    let b = b.work();
    for task in [first, second] {
        assert_eq!(super::ended(&b, &task).await.state, TaskState::Succeeded, "its agent goes on");
    }
}

#[tokio::test]
async fn a_worker_that_cannot_take_over_yet_does_so_later() {
    let b = Bench::new(1).await;
    let task = b.skill("look", Value::Null).await;
    assert_eq!(b.house.store.task_claim(Utc::now(), 1, None).await.expect("claimed").len(), 1);
    b.house.store.fail_writes(2);
    let b = b.work();
    assert_eq!(ended(&b, &task).await.state, TaskState::Succeeded);
}

#[tokio::test]
async fn a_cancelled_task_leaves_no_call_that_a_later_yes_would_let_through() {
    let b = Bench::new(1).await.work();
    let input = json!({"stack": "shop", "compose": COMPOSE, "environment": "production"});
    let (one, other) = (b.skill("bring", input.clone()).await, b.skill("bring", input).await);
    let approval = b.end(&one).await.waits_for.expect("an approval");
    assert_eq!(b.end(&other).await.waits_for.as_ref(), Some(&approval), "the same call waits once");
    tasks::cancel(&b.house, &one.id, Utc::now()).await.expect("cancelled");
    let state = async || b.house.store.approval(&approval, Utc::now()).await.expect("read").expect("there").state;
    assert_eq!(state().await, ApprovalState::Pending, "another task waits for it");
    tasks::cancel(&b.house, &other.id, Utc::now()).await.expect("cancelled");
    assert_eq!(state().await, ApprovalState::Stale);
    assert!(b.house.store.decide_approval(&approval, "ann", true, Utc::now()).await.expect("read").is_none(), "nothing to decide");
}

#[tokio::test]
async fn a_task_given_up_for_good_is_told_whoever_gives_it_up() {
    let b = Bench::with(|s| s.tasks.outside = vec![AgentName::new("a0").expect("valid")]).await;
    let told =
        async || b.house.store.audit_after(0, None, 100).await.expect("rows").into_iter().filter(|r| r.tool == "task_failed").count();
    let agent = AgentName::new("a0").expect("valid");
    let given = b.give("a0", TaskWork::Prompt("look".into()), Value::Null, None).await;
    tasks::fetch(&b.house, &agent, Utc::now()).await.expect("fetched").expect("a task");
    tasks::finish(&b.house, &agent, &given.id, (TaskState::Failed, "no idea".into()), Utc::now()).await.expect("ended");
    assert_eq!(told().await, 1);
    // One that takes its supervisor down again and again.
    b.give("a0", TaskWork::Skill("look".into()), Value::Null, None).await;
    for _ in 0..INTERRUPTED_MOST {
        assert_eq!(b.house.store.task_claim(Utc::now(), 1, None).await.expect("claimed").len(), 1);
        assert!(take_over(&b.house).await);
    }
    assert_eq!(told().await, 2);
}
