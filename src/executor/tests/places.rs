//! Host paths that became links since they were judged: no container starts through them.

use super::*;

fn bound(source: &str) -> MountSpec {
    let mut mount = stack("web:1", Some("db:1"), &[]).services[&name("db")].mounts[0].clone();
    (mount.kind, mount.source, mount.target) = (MountKind::Bind, Some(source.to_owned()), "/srv".into());
    mount
}

#[tokio::test]
async fn a_container_whose_host_path_became_a_link_is_neither_restarted_nor_started() {
    let rig = rig().await;
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().canonicalize().unwrap();
    let data = root.join("data");
    std::fs::create_dir(&data).unwrap();
    let mut spec = stack("web:1", None, &[]);
    spec.services.get_mut(&name("web")).unwrap().mounts = vec![bound(data.to_str().unwrap())];
    assert_eq!(deploy(&rig, spec).await.state, OperationState::Done);

    let restart = Want::Restart { service: None };
    assert_eq!(run(&rig, &rig.exec, restart.clone()).await.state, OperationState::Done, "as it was judged");
    std::fs::remove_dir(&data).unwrap();
    std::os::unix::fs::symlink("/", &data).unwrap();
    let before = rig.engine.calls().len();
    let op = run(&rig, &rig.exec, restart.clone()).await;
    assert!(op.message.as_deref().is_some_and(|m| m.contains("behind a link")), "{op:?}");
    let calls = rig.engine.calls().split_off(before);
    assert!(!calls.iter().any(|c| c.starts_with("restart") || c.starts_with("start")), "{calls:?}");

    assert_eq!(run(&rig, &rig.exec, Want::Stop { remove: false }).await.state, OperationState::Done, "a stop must be possible");
    let before = rig.engine.calls().len();
    let op = run(&rig, &rig.exec, restart).await;
    assert!(op.message.as_deref().is_some_and(|m| m.contains("behind a link")), "{op:?}");
    assert!(!rig.engine.calls().split_off(before).iter().any(|c| c.starts_with("start")), "started after all");
}

#[tokio::test]
async fn a_release_has_no_links_of_an_earlier_life_of_the_name() {
    let rig = rig().await;
    rig.store.set_value("links:shop:1", &serde_json::json!({"/srv/shop": "/elsewhere"})).await.unwrap();
    assert_eq!(deploy(&rig, stack("web:1", None, &[])).await.state, OperationState::Done);
    let release = rig.store.release(&shop(), 1).await.unwrap().unwrap();
    assert_eq!(crate::executor::places::judged(&rig.store, &release).await.unwrap(), BTreeMap::new());
}

#[tokio::test]
async fn a_link_of_an_adopted_container_holds_while_it_leads_where_it_led() {
    let rig = rig().await;
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().canonicalize().unwrap();
    let link = root.join("link");
    std::fs::create_dir(root.join("one")).unwrap();
    std::fs::create_dir(root.join("two")).unwrap();
    std::fs::create_dir(&link).unwrap();
    let mut spec = stack("web:1", None, &[]);
    spec.services.get_mut(&name("web")).unwrap().mounts = vec![bound(link.to_str().unwrap())];
    assert_eq!(deploy(&rig, spec).await.state, OperationState::Done);
    // From here on as if Compose had made it: the container names a link.
    std::fs::remove_dir(&link).unwrap();
    std::os::unix::fs::symlink(root.join("one"), &link).unwrap();
    let containers = rig.exec.observe(&shop()).await.unwrap().containers;
    rig.exec.note_links(&shop(), &containers).await.unwrap();
    let restart = Want::Restart { service: None };
    assert_eq!(run(&rig, &rig.exec, restart.clone()).await.state, OperationState::Done);
    std::fs::remove_file(&link).unwrap();
    std::os::unix::fs::symlink(root.join("two"), &link).unwrap();
    assert!(run(&rig, &rig.exec, restart).await.message.is_some_and(|m| m.contains("behind a link")));
}
