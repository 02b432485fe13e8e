//! The engine going away in the middle: before and after every change that reaches it, for a while, in every state. The operation goes on when it is back.

use super::*;
use std::sync::atomic::AtomicU64;

/// Takes the engine away at the n-th hook moment (before a change, or after its effect with the answer lost) and brings it back.
fn away_at(engine: &Arc<FakeEngine>, n: u64) -> Arc<AtomicU64> {
    let seen = Arc::new(AtomicU64::new(0));
    let (count, world) = (seen.clone(), FakeEngine::clone(engine));
    let runtime = tokio::runtime::Handle::current();
    engine.on_mutation(Box::new(move |_| {
        if count.fetch_add(1, Ordering::SeqCst) + 1 != n {
            return true;
        }
        world.set_down(true);
        let back = world.clone();
        runtime.spawn(async move {
            tokio::time::sleep(Duration::from_millis(30)).await;
            back.set_down(false);
        });
        false
    }));
    seen
}

/// An operation, with the engine away at each of its moments in turn; `least` of them there are.
async fn away_in(before: &[StackSpec], want: impl AsyncFn(&Rig) -> Want, least: u64, whole: impl AsyncFn(&Rig, &Operation, &str)) {
    let mut n = 1;
    loop {
        let rig = rig().await;
        for spec in before {
            deploy(&rig, spec.clone()).await;
        }
        let plan = plan_for(&rig, &rig.exec, want(&rig).await).await;
        let seen = away_at(&rig.engine, n);
        let op = rig.exec.submit(plan, permit("deploy"), request("deploy")).await.unwrap();
        ended(&rig.exec, &op.id).await;
        rig.engine.clear_hook();
        rig.engine.set_down(false);
        let op = rig.store.operation(&op.id).await.unwrap().unwrap();
        let context = format!("away at change {n}, ended {:?} ({:?})", op.state, op.message);
        whole(&rig, &op, &context).await;
        if seen.load(Ordering::SeqCst) < n {
            assert!(n > least, "more than {least} moments: {n}");
            return;
        }
        n += 1;
    }
}

async fn away_everywhere(before: Option<StackSpec>, after: StackSpec, ends_on: u32) {
    let want = async |rig: &Rig| release_of(rig, after.clone()).await;
    away_in(before.as_slice(), want, 20, async |rig, _, context| serves(rig, ends_on, context).await).await;
}

pub(super) async fn serves(rig: &Rig, release: u32, context: &str) {
    assert_one_release(rig, context).await;
    let current = rig.store.stack(&shop()).await.unwrap().and_then(|s| s.current);
    assert_eq!(current, Some(release), "{context}");
}

#[tokio::test]
async fn a_first_deploy_goes_on_when_the_engine_is_back() {
    away_everywhere(None, stack("web:1", Some("db:1"), &[]), 1).await;
}

#[tokio::test]
async fn an_update_goes_on_when_the_engine_is_back() {
    away_everywhere(Some(stack("web:1", Some("db:1"), &["old"])), stack("web:2", Some("db:2"), &["fresh"]), 2).await;
}

#[tokio::test]
async fn an_undo_goes_on_when_the_engine_is_back() {
    let mut after = stack("web:bad", Some("db:2"), &[]);
    after.services.get_mut("db").unwrap().settings.migrates = Some(false);
    away_everywhere(Some(stack("web:1", Some("db:1"), &[])), after, 1).await;
}

#[tokio::test]
async fn a_rollback_goes_on_when_the_engine_is_back() {
    let releases = [stack("web:1", Some("db:1"), &[]), stack("web:2", Some("db:1"), &["fresh"])];
    let want = async |rig: &Rig| match release_of(rig, stack("web:1", Some("db:1"), &[])).await {
        Want::Release { desired, images, .. } => Want::Release { desired, images, content_of: Some(1) },
        other => other,
    };
    away_in(&releases, want, 10, async |rig, op, context| {
        assert_eq!(op.state, OperationState::Done, "{context}");
        serves(rig, 3, context).await;
    })
    .await;
}

#[tokio::test]
async fn scaling_goes_on_when_the_engine_is_back() {
    let mut spec = stack("web:1", None, &["worker"]);
    spec.volumes.clear();
    for (from, to) in [(1, 3), (3, 1)] {
        spec.services.get_mut("worker").unwrap().replicas = from;
        let want = async |_: &Rig| Want::Scale { service: name("worker"), replicas: to };
        away_in(&[spec.clone()], want, 3, async |rig, op, context| {
            assert_eq!(op.state, OperationState::Done, "{context}");
            serves(rig, 2, context).await;
            assert_eq!(rig.engine.serving("shop", "worker").len(), to as usize, "{context}");
        })
        .await;
    }
}

#[tokio::test]
async fn a_restart_goes_on_when_the_engine_is_back() {
    let want = async |_: &Rig| Want::Restart { service: None };
    away_in(&[stack("web:1", Some("db:1"), &[])], want, 3, async |rig, op, context| {
        assert_eq!(op.state, OperationState::Done, "{context}");
        serves(rig, 1, context).await;
    })
    .await;
}

#[tokio::test]
async fn a_stop_goes_on_when_the_engine_is_back() {
    for remove in [false, true] {
        let want = async |_: &Rig| Want::Stop { remove };
        away_in(&[stack("web:1", Some("db:1"), &[])], want, 3, async |rig, op, context| {
            assert_eq!(op.state, OperationState::Done, "{context}");
            assert_eq!(rig.engine.running(), Vec::<String>::new(), "{context}");
            let record = rig.store.stack(&shop()).await.unwrap().unwrap();
            assert_eq!((record.stopped, record.current.is_none()), (true, remove), "{context}");
            let left = rig.exec.observe(&shop()).await.unwrap();
            assert_eq!((left.containers.is_empty(), left.networks.is_empty(), left.volumes.len()), (remove, remove, 1), "{context}");
        })
        .await;
    }
}

#[tokio::test]
async fn an_operation_that_nobody_is_at_work_on_is_waited_for_all_the_same() {
    let rig = rig().await;
    let op = Operation {
        stack: Some(shop()),
        state: OperationState::Running,
        phase: Phase::Prepare,
        ..Operation::new(
            crate::model::ids::OperationId::new("op-1").unwrap(),
            "deploy".into(),
            "tester".into(),
            crate::model::ids::CallId::new("call-1").unwrap(),
            Utc::now(),
        )
    };
    let op = rig.store.begin_operation(op, "").await.unwrap().unwrap();
    let wait = async |millis| rig.exec.wait(&op.id, std::time::Duration::from_millis(millis), Until::Settled).await.unwrap().state;
    let began = std::time::Instant::now();
    assert_eq!(wait(300).await, OperationState::Running);
    assert!(began.elapsed().as_millis() >= 300, "whoever follows it does so at the pace of a person");
    // It is taken over and ends meanwhile.
    let ends = async {
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        rig.store.save_operation(&Operation { state: OperationState::Failed, settled_at: Some(Utc::now()), ..op.clone() }).await.unwrap();
    };
    assert_eq!(tokio::join!(wait(20_000), ends).0, OperationState::Failed);
    // A supervisor that ends waits for nobody.
    let op = rig.store.begin_operation(Operation { id: crate::model::ids::OperationId::new("op-2").unwrap(), ..op.clone() }, "").await;
    let op = op.unwrap().unwrap();
    rig.exec.close(std::time::Duration::from_secs(5)).await;
    assert_eq!(rig.exec.wait(&op.id, std::time::Duration::from_secs(60), Until::Settled).await.unwrap().state, OperationState::Running);
}
