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

async fn away_everywhere(before: Option<StackSpec>, after: StackSpec, ends_on: u32) {
    let mut n = 1;
    loop {
        let rig = rig().await;
        if let Some(before) = before.clone() {
            deploy(&rig, before).await;
        }
        let want = release_of(&rig, after.clone()).await;
        let plan = plan_for(&rig, &rig.exec, want).await;
        let seen = away_at(&rig.engine, n);
        let op = rig.exec.submit(plan, permit("deploy"), request("deploy")).await.unwrap();
        ended(&rig.exec, &op.id).await;
        rig.engine.clear_hook();
        rig.engine.set_down(false);
        let op = rig.store.operation(&op.id).await.unwrap().unwrap();
        let context = format!("away at change {n}, ended {:?} ({:?})", op.state, op.message);
        assert_one_release(&rig, &context).await;
        let current = rig.store.stack(&shop()).await.unwrap().and_then(|s| s.current);
        assert_eq!(current, Some(ends_on), "{context}");
        if seen.load(Ordering::SeqCst) < n {
            assert!(n > 20, "more than twenty moments");
            return;
        }
        n += 1;
    }
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
