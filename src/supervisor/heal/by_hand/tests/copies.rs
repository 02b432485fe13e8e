//! A service of several copies whose file says how many must stay up while the loop heals: the others are acted on alone.

use super::*;

/// Three copies of `web`, `heal_instances` of them protected.
async fn scaled(instances: Option<u32>) -> Bench {
    let b = Bench::with(|_| {}).await;
    let settings = instances.map_or_else(String::new, |n| format!("    x-dockwarden: {{heal_instances: {n}}}\n"));
    let file = COMPOSE.replace("    mem_limit", &format!("    deploy: {{replicas: 3}}\n{settings}    mem_limit")).replace("  db: *s\n", "");
    deploy_file(&b, &file).await;
    assert_eq!(names(&b).await, ["shop-web-1", "shop-web-2", "shop-web-3"]);
    b
}

fn permit_of(operation: &crate::model::operation::Operation) -> Permit {
    crate::gate::permit_takeover(operation)
}

async fn acts(b: &Bench) -> Permit {
    permit_of(&b.house.store.operations(Some(&shop()), 1).await.expect("read").remove(0))
}

/// Id and start of a container: the same ones mean that nobody touched it.
async fn life(b: &Bench, name: &str) -> (EngineName, Option<DateTime<Utc>>) {
    let c = b.house.engine.container(&id(name)).await.expect("looked").unwrap_or_else(|| panic!("{name} is there"));
    assert_eq!(c.state, RunState::Running, "{name}");
    (c.id, c.started_at)
}

/// Ends for good: no policy acts.
async fn fails(b: &Bench, permit: &Permit, name: &str) {
    b.house.engine.set_restart(permit, &id(name), crate::model::spec::Restart::No).await.expect("set");
    b.crash(name, 1);
}

#[tokio::test]
async fn an_ill_copy_is_restarted_alone_while_enough_others_are_well() {
    let b = scaled(Some(2)).await;
    let permit = acts(&b).await;
    let well = (life(&b, "shop-web-1").await, life(&b, "shop-web-3").await);
    let ill = life(&b, "shop-web-2").await;
    let at_work = Loop::begin(&b).await;
    fails(&b, &permit, "shop-web-2").await;
    at_work.end(&b).await;
    assert_eq!((life(&b, "shop-web-1").await, life(&b, "shop-web-3").await), well, "the well ones were not touched");
    let healed = life(&b, "shop-web-2").await;
    assert!(healed.0 == ill.0 && healed.1 > ill.1, "restarted in place");
}

#[tokio::test]
async fn without_the_key_or_with_too_few_well_the_whole_service_is_restarted() {
    for (instances, down) in [(None, vec!["shop-web-2"]), (Some(2), vec!["shop-web-2", "shop-web-3"])] {
        let b = scaled(instances).await;
        let permit = acts(&b).await;
        let before = life(&b, "shop-web-1").await;
        let at_work = Loop::begin(&b).await;
        for name in &down {
            fails(&b, &permit, name).await;
        }
        at_work.end(&b).await;
        for name in names(&b).await {
            life(&b, &name).await;
        }
        assert_ne!(life(&b, "shop-web-1").await, before, "{instances:?}, {down:?}");
    }
}

#[tokio::test]
async fn a_copy_that_is_gone_is_made_beside_the_well_ones() {
    let b = scaled(Some(2)).await;
    let permit = acts(&b).await;
    let well = (life(&b, "shop-web-1").await, life(&b, "shop-web-3").await);
    b.house.engine.remove_container(&permit, &id("shop-web-2"), true).await.expect("removed while nobody looks");
    Loop::begin(&b).await.end(&b).await;
    assert_eq!(names(&b).await, ["shop-web-1", "shop-web-2", "shop-web-3"]);
    life(&b, "shop-web-2").await;
    assert_eq!((life(&b, "shop-web-1").await, life(&b, "shop-web-3").await), well, "nothing was made anew beside it");
    // A person's own call does what it says.
    call(&b, "warden", "restart", json!({"stack": "shop", "service": "web", "recreate": true})).await;
    assert_ne!(life(&b, "shop-web-1").await, well.0);
}
