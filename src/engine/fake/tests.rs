//! The fake against what Docker 20.10 is known to do.

use super::{Behaviour, FakeEngine};
use crate::engine::*;
use crate::gate::{self, Permit};
use crate::model::spec::{Healthcheck, MountKind, NetworkSpec};
use futures_util::StreamExt;

fn permit() -> Permit {
    gate::test_permit("deploy", None)
}

fn name(s: &str) -> EngineName {
    EngineName::new(s).unwrap()
}

fn spec(container: &str, image: &str) -> ContainerSpec {
    let mut s = ContainerSpec::new(name(container), ImageRef::new(image).unwrap());
    s.labels.insert("dockwarden.stack".into(), "shop".into());
    s.labels.insert("dockwarden.service".into(), "web".into());
    s
}

fn port(host: &str) -> PortBinding {
    PortBinding { host_ip: String::new(), host_port: Some(host.into()), container_port: 80, protocol: "tcp".into() }
}

fn volume(source: Option<&str>, target: &str) -> EngineMount {
    EngineMount { source: source.map(str::to_owned), ..EngineMount::new(MountKind::Volume, target.into()) }
}

async fn run(e: &FakeEngine, s: &ContainerSpec) -> EngineName {
    let id = e.create_container(&permit(), s).await.unwrap();
    e.start(&permit(), &id).await.unwrap();
    id
}

async fn network(e: &FakeEngine, n: &str) {
    let spec = NetworkCreate { name: name(n), spec: NetworkSpec::default(), labels: BTreeMap::new() };
    e.create_network(&permit(), &spec).await.unwrap();
}

fn attach(n: &str, aliases: &[&str]) -> NetworkAttachment {
    NetworkAttachment { network: n.into(), aliases: aliases.iter().map(|a| (*a).to_owned()).collect(), ..NetworkAttachment::default() }
}

/// What the events of the labels so far were.
async fn actions(e: &FakeEngine) -> Vec<String> {
    let stream = e.events(&["dockwarden.stack=shop".into()], Some(DateTime::UNIX_EPOCH)).await.unwrap();
    e.drop_event_streams();
    stream.map(|e| e.unwrap().action).collect().await
}

#[tokio::test]
async fn a_taken_name_is_a_conflict_and_rename_frees_it() {
    let e = FakeEngine::new();
    e.add_image("web", Behaviour::running());
    let id = run(&e, &spec("web-1", "web")).await;
    assert!(matches!(e.create_container(&permit(), &spec("web-1", "web:latest")).await, Err(EngineError::Conflict(_))));
    e.rename(&permit(), &id, &name("web-old")).await.unwrap();
    e.create_container(&permit(), &spec("web-1", "web")).await.unwrap();
    assert_eq!(e.container_names(), ["web-1", "web-old"]);
    assert_eq!(
        e.calls()[2..].iter().map(|c| c.split(" -> ").next().unwrap()).collect::<Vec<_>>(),
        ["create_container web-1", "rename web-1 web-old", "create_container web-1"]
    );
}

#[tokio::test]
async fn a_held_host_port_is_refused_at_start_not_at_create() {
    let e = FakeEngine::new();
    e.add_image("web", Behaviour::running());
    let mut one = spec("one", "web");
    one.ports = vec![port("8080")];
    let mut two = spec("two", "web");
    two.ports = vec![PortBinding { host_ip: "127.0.0.1".into(), ..port("8080") }];
    let first = run(&e, &one).await;
    let second = e.create_container(&permit(), &two).await.unwrap();
    let error = e.start(&permit(), &second).await.unwrap_err().to_string();
    assert!(error.ends_with("Bind for 127.0.0.1:8080 failed: port is already allocated"), "{error}");
    e.stop(&permit(), &first, Duration::ZERO).await.unwrap();
    e.start(&permit(), &second).await.unwrap();
    assert_eq!(e.running(), ["two"]);
    assert_eq!(e.violations(), Vec::<String>::new());
    let mut range = spec("three", "web");
    range.ports = vec![port("8080-8081")];
    let third = run(&e, &range).await;
    assert_eq!(e.container(&third).await.unwrap().unwrap().ports[0].host_port, 8081);
}

#[tokio::test]
async fn a_port_of_another_process_is_refused() {
    let e = FakeEngine::new();
    e.add_image("web", Behaviour::running());
    e.occupy_port(8080, true);
    let mut s = spec("one", "web");
    s.ports = vec![port("8080")];
    let id = e.create_container(&permit(), &s).await.unwrap();
    assert!(matches!(e.start(&permit(), &id).await, Err(EngineError::Refused(t)) if t.ends_with("bind: address already in use")));
}

#[tokio::test]
async fn two_writers_of_one_service_are_recorded_others_are_not() {
    let e = FakeEngine::new();
    e.add_image("db", Behaviour::running());
    let with = |n: &str, service: &str, read_only: bool| {
        let mut s = spec(n, "db");
        s.labels.insert("dockwarden.service".into(), service.into());
        s.mounts = vec![EngineMount { read_only, ..volume(Some("data"), "/data") }];
        s
    };
    run(&e, &with("db-1", "db", false)).await;
    run(&e, &with("reader", "db", true)).await;
    run(&e, &with("backup", "other", false)).await;
    assert_eq!(e.violations(), Vec::<String>::new());
    run(&e, &with("db-2", "db", false)).await;
    assert_eq!(e.violations(), ["two writers: db-1 and db-2 share volume data"]);
}

#[tokio::test]
async fn serving_follows_the_alias_and_the_state() {
    let e = FakeEngine::new();
    e.add_image("web", Behaviour::running());
    network(&e, "shop_default").await;
    let mut s = spec("web-1", "web");
    s.networks = vec![attach("shop_default", &["web", "web-1"])];
    let old = run(&e, &s).await;
    let mut canary = spec("web-2", "web");
    canary.networks = vec![attach("shop_default", &["web-2"])];
    let new = run(&e, &canary).await;
    assert_eq!(e.serving("shop", "web"), ["web-1"]);
    network(&e, "shop_extra").await;
    e.connect(&permit(), &new, &attach("shop_extra", &["web"])).await.unwrap();
    e.connect(&permit(), &new, &attach("shop_extra", &["ignored"])).await.unwrap();
    e.stop(&permit(), &old, Duration::ZERO).await.unwrap();
    assert_eq!(e.serving("shop", "web"), ["web-2"]);
    let detail = e.container(&new).await.unwrap().unwrap();
    assert_eq!(detail.networks["shop_extra"], ["web"]);
    assert!(matches!(e.remove_network(&permit(), &name("shop_extra")).await, Err(EngineError::Refused(_))));
    e.disconnect(&permit(), &new, &name("shop_extra")).await.unwrap();
    e.disconnect(&permit(), &new, &name("shop_extra")).await.unwrap();
    e.remove_network(&permit(), &name("shop_extra")).await.unwrap();
    e.remove_network(&permit(), &name("shop_extra")).await.unwrap();
    assert_eq!(e.serving("shop", "web"), Vec::<String>::new());
}

#[tokio::test]
async fn events_come_in_dockers_order_live_and_since() {
    let e = FakeEngine::new();
    e.add_image("web", Behaviour::healthy());
    let mut live = e.events(&["dockwarden.service=web".into()], None).await.unwrap();
    let mut other = e.events(&["dockwarden.service=db".into()], None).await.unwrap();
    let id = run(&e, &spec("web-1", "web")).await;
    e.stop(&permit(), &id, Duration::ZERO).await.unwrap();
    e.start(&permit(), &id).await.unwrap();
    e.remove_container(&permit(), &id, false).await.unwrap();
    e.remove_container(&permit(), &id, false).await.unwrap();
    let want = ["start", "health_status: healthy", "kill", "die", "stop", "start", "health_status: healthy", "kill", "die", "destroy"];
    assert_eq!(actions(&e).await, want);
    let mut seen = Vec::new();
    while let Some(event) = live.next().await {
        seen.push(event.unwrap().action);
    }
    assert_eq!(seen, want);
    assert!(other.next().await.is_none(), "an event of another label must not come");
}

#[tokio::test]
async fn the_restart_policy_acts_on_crashes_not_on_stops() {
    let e = FakeEngine::new();
    e.add_image("web", Behaviour::running());
    let mut s = spec("web-1", "web");
    s.restart = Restart::UnlessStopped;
    let id = run(&e, &s).await;
    assert!(e.crash_container("web-1", 3));
    let d = e.container(&id).await.unwrap().unwrap();
    assert_eq!((d.state, d.restart_count), (RunState::Running, 1));
    e.stop(&permit(), &id, Duration::ZERO).await.unwrap();
    assert_eq!(e.container(&id).await.unwrap().unwrap().state, RunState::Exited);
    e.start(&permit(), &id).await.unwrap();
    e.set_restart(&permit(), &id, Restart::No).await.unwrap();
    assert!(e.oom_container("web-1"));
    let d = e.container(&id).await.unwrap().unwrap();
    assert_eq!((d.state, d.exit_code, d.oom_killed, d.restart_policy.as_str()), (RunState::Exited, 137, true, "no"));
    assert!(!e.crash_container("web-1", 1), "a dead container cannot crash");
}

#[tokio::test]
async fn a_crash_loop_rests_in_restarting_and_on_failure_gives_up() {
    let e = FakeEngine::new();
    e.add_image("bad", Behaviour::exits(1).with_logs(&["boom"]));
    let mut s = spec("loop", "bad");
    s.restart = Restart::Always;
    let id = run(&e, &s).await;
    let d = e.container(&id).await.unwrap().unwrap();
    assert_eq!((d.state, d.restart_count, d.exit_code), (RunState::Restarting, 3, 1));
    let mut s = spec("twice", "bad");
    s.restart = Restart::OnFailure(2);
    let id = run(&e, &s).await;
    let d = e.container(&id).await.unwrap().unwrap();
    assert_eq!((d.state, d.restart_count, d.exit_code), (RunState::Exited, 2, 1));
    let lines = e.logs(&id, &LogQuery { tail: Some(2), since: None, max_bytes: 1000 }).await.unwrap();
    assert_eq!(lines.iter().map(|l| l.text.as_str()).collect::<Vec<_>>(), ["boom", "boom"]);
}

#[tokio::test]
async fn health_and_execs_follow_the_behaviour() {
    let e = FakeEngine::new();
    e.add_image("good", Behaviour::healthy());
    e.add_image("bad", Behaviour::unhealthy());
    e.add_image("slow", Behaviour::starting());
    e.add_image("plain", Behaviour::running());
    let exec = ExecSpec { command: vec!["/probe".into()], user: None, env: vec![], timeout: Duration::from_secs(1), max_output: 5 };
    let mut seen = Vec::new();
    for image in ["good", "bad", "slow", "plain"] {
        let id = run(&e, &spec(image, image)).await;
        let d = e.container(&id).await.unwrap().unwrap();
        let o = e.exec(&permit(), &id, &exec).await.unwrap();
        seen.push((d.health, o.exit_code, o.output, o.truncated));
    }
    assert_eq!(
        seen,
        [
            (HealthState::Healthy, Some(0), String::new(), false),
            (HealthState::Unhealthy, Some(1), "probe".into(), true),
            (HealthState::Starting, Some(0), String::new(), false),
            (HealthState::None, Some(0), String::new(), false),
        ]
    );
    let mut off = spec("off", "bad");
    off.healthcheck = Some(Healthcheck { test: vec!["NONE".into()], ..Healthcheck::default() });
    let id = run(&e, &off).await;
    let d = e.container(&id).await.unwrap().unwrap();
    assert_eq!((d.health, d.health_test), (HealthState::None, None));
    e.stop(&permit(), &id, Duration::ZERO).await.unwrap();
    assert!(matches!(e.exec(&permit(), &id, &exec).await, Err(EngineError::Conflict(_))));
}

#[tokio::test]
async fn anonymous_volumes_go_with_their_container_named_ones_stay() {
    let e = FakeEngine::new();
    e.add_image("db", Behaviour::running().with_volumes(&["/cache", "/data"]));
    let mut s = spec("db-1", "db");
    s.mounts = vec![volume(Some("data"), "/data")];
    let id = run(&e, &s).await;
    assert_eq!(e.volumes(&[]).await.unwrap().len(), 2);
    assert!(matches!(e.remove_volume(&permit(), &name("data")).await, Err(EngineError::Conflict(_))));
    e.remove_container(&permit(), &id, true).await.unwrap();
    let left: Vec<String> = e.volumes(&[]).await.unwrap().iter().map(|v| v.name.to_string()).collect();
    assert_eq!(left, ["data"]);
    e.remove_volume(&permit(), &name("data")).await.unwrap();
    e.remove_volume(&permit(), &name("data")).await.unwrap();
    assert_eq!(e.volumes(&[]).await.unwrap(), vec![]);
}

#[tokio::test]
async fn images_move_tags_pull_and_prune() {
    let e = FakeEngine::new();
    let old = e.add_image("web", Behaviour::running());
    let new = e.add_image("web:latest", Behaviour::healthy());
    let found = e.image(&ImageRef::new("web").unwrap()).await.unwrap().unwrap();
    assert_eq!((found.id, found.tags), (new, vec!["web:latest".to_owned()]));
    assert!(e.image(&ImageRef::new(old).unwrap()).await.unwrap().unwrap().tags.is_empty());
    assert_eq!(e.prune(&permit(), PruneKind::DanglingImages).await.unwrap(), 1_000_000);
    let remote = ImageRef::new("reg.example/app:1").unwrap();
    assert!(matches!(e.pull(&permit(), &remote, None, &|_| ()).await, Err(EngineError::NotFound { what: "image", .. })));
    e.add_remote_image("reg.example/app:1", Behaviour::running());
    e.pull(&permit(), &remote, None, &|_| ()).await.unwrap();
    let pulled = e.image(&remote).await.unwrap().unwrap();
    assert!(pulled.repo_digests[0].starts_with("reg.example/app@sha256:"));
    e.tag(&permit(), &remote, &ImageRef::new("dockwarden/shop/web:r1").unwrap()).await.unwrap();
    let id = run(&e, &spec("app", "reg.example/app:1")).await;
    e.remove_image(&permit(), &remote).await.unwrap();
    let last = ImageRef::new("dockwarden/shop/web:r1").unwrap();
    assert!(matches!(e.remove_image(&permit(), &last).await, Err(EngineError::Conflict(_))));
    e.remove_container(&permit(), &id, true).await.unwrap();
    e.remove_image(&permit(), &last).await.unwrap();
    assert_eq!(e.images().await.unwrap().len(), 1);
}

#[tokio::test]
async fn a_hook_fails_calls_before_and_after_their_effect() {
    let e = FakeEngine::new();
    e.add_image("web", Behaviour::running());
    e.on_mutation(Box::new(|m| m != "create_container"));
    assert!(matches!(e.create_container(&permit(), &spec("a", "web")).await, Err(EngineError::Unreachable { .. })));
    assert_eq!(e.container_names(), Vec::<String>::new());
    e.on_mutation(Box::new(|m| m != "create_container:done"));
    assert!(matches!(e.create_container(&permit(), &spec("a", "web")).await, Err(EngineError::Unreachable { .. })));
    assert_eq!(e.container_names(), ["a"]);
    e.clear_hook();
    e.start(&permit(), &name("a")).await.unwrap();
    assert_eq!(e.running(), ["a"]);
}

#[tokio::test]
async fn scripted_failures_and_outages_come_once_and_while_down() {
    let e = FakeEngine::new();
    e.add_image("web", Behaviour::running());
    e.fail_next("start", EngineError::Refused("no space left on device".into()));
    let id = e.create_container(&permit(), &spec("a", "web")).await.unwrap();
    assert_eq!(e.start(&permit(), &id).await.unwrap_err().to_string(), "the engine refused it: no space left on device");
    e.start(&permit(), &id).await.unwrap();
    assert_eq!(e.calls(), ["create_container a", "start a -> the engine refused it: no space left on device", "start a"]);
    e.set_down(true);
    assert!(matches!(e.info().await, Err(EngineError::Unreachable { .. })));
    e.set_down(false);
    assert_eq!(e.info().await.unwrap().api_version, "1.41");
    assert_eq!(e.running(), ["a"]);
}

#[tokio::test]
async fn archives_go_through_volumes() {
    let e = FakeEngine::new();
    e.add_image("db", Behaviour::running());
    e.write_volume_file("data", "a/b.txt", b"hello");
    let mut s = spec("reader", "db");
    s.mounts = vec![volume(Some("data"), "/data")];
    s.files = vec![InjectedFile { path: "/run/secrets/key".into(), content: b"k".to_vec(), mode: 0o400, uid: 0, gid: 0 }];
    let id = e.create_container(&permit(), &s).await.unwrap();
    let tar: Vec<u8> = e.download(&id, "/data").await.unwrap().map(|b| b.unwrap()).collect::<Vec<_>>().await.concat();
    let mut archive = tar::Archive::new(tar.as_slice());
    let names: Vec<String> = archive.entries().unwrap().map(|e| e.unwrap().path().unwrap().display().to_string()).collect();
    assert_eq!(names, ["data/", "data/a/b.txt"]);
    let mut copy = spec("writer", "db");
    copy.mounts = vec![volume(Some("copy"), "/data")];
    let writer = e.create_container(&permit(), &copy).await.unwrap();
    e.upload(&permit(), &writer, "/", futures_util::stream::iter([bytes::Bytes::from(tar)]).boxed()).await.unwrap();
    assert_eq!(e.volume_file("copy", "a/b.txt"), Some(b"hello".to_vec()));
    assert!(e.download(&id, "/run/secrets/key").await.is_ok());
    assert!(matches!(e.download(&id, "/nothing").await.err(), Some(EngineError::NotFound { what: "path", .. })));
}

#[tokio::test]
async fn a_missing_bind_source_is_refused_and_never_made() {
    let e = FakeEngine::new();
    e.add_image("web", Behaviour::running());
    e.missing_path("/srv/none");
    let mut s = spec("a", "web");
    s.mounts = vec![EngineMount { kind: MountKind::Bind, ..volume(Some("/srv/none"), "/x") }];
    let error = e.create_container(&permit(), &s).await.unwrap_err().to_string();
    assert_eq!(error, "the engine refused it: invalid mount config for type \"bind\": bind source path does not exist: /srv/none");
}

#[tokio::test]
async fn routes_to_what_does_not_run_and_the_stop_of_what_is_routed_to_are_noted() {
    use crate::model::front::{DIR, Limits, Reply, Routes};
    let e = FakeEngine::new();
    e.add_image("a:1", Behaviour::running());
    network(&e, "net").await;
    let mut backend = spec("one", "a:1");
    backend.labels.insert(crate::model::labels::BACKEND.into(), "web-one".into());
    backend.networks = vec![attach("net", &["web-one"])];
    let backend = run(&e, &backend).await;
    let mut front = spec("front", "a:1");
    front.labels.insert(crate::model::labels::ROLE.into(), crate::model::labels::ROLE_FRONT.into());
    front.networks = vec![attach("net", &["web"])];
    front.mounts = vec![volume(None, DIR)];
    let front = run(&e, &front).await;
    let apply = async |revision: u64, to: &[&str]| -> Reply {
        let routes = Routes { revision, ..Routes::to(to.iter().map(|n| name(n)), Limits::default()) };
        let command = vec!["/dockwarden".into(), "front".into(), "--apply".into(), serde_json::to_string(&routes).unwrap()];
        let run = ExecSpec { command, user: None, env: vec![], timeout: Duration::from_secs(1), max_output: 1 << 16 };
        serde_json::from_str(&e.exec(&permit(), &front, &run).await.unwrap().output).unwrap()
    };
    assert!(matches!(apply(2, &["web-one"]).await, Reply::Ok(s) if s.revision == 2));
    assert_eq!(apply(1, &[]).await, Reply::Stale { revision: 2 });
    assert!(!matches!(apply(3, &[]).await, Reply::Stale { .. }));
    e.stop(&permit(), &backend, Duration::ZERO).await.unwrap();
    assert_eq!((e.routed("front").map(|r| r.serving().len()), e.violations()), (Some(0), vec![]), "held before the stop");
    apply(4, &["web-one"]).await;
    assert_eq!(e.violations().len(), 1, "it does not run");
    e.start(&permit(), &backend).await.unwrap();
    e.stop(&permit(), &backend, Duration::ZERO).await.unwrap();
    let noted = e.violations();
    assert!(noted.len() == 2 && noted[1] == "lost connections: web-one is stopped while front front passes them on to it", "{noted:?}");
}
