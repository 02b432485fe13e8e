//! Commands to a front go over its own socket where that can be reached, and through the engine where it cannot or nothing answers there.

use super::*;
use crate::engine::{EngineResult, ExecSpec};
use crate::model::front::{Command, DIR, Reply, SOCKET};
use crate::model::plan::Strategy;
use std::sync::atomic::{AtomicUsize, Ordering};

/// `web` behind a front that owns its name, so that no port of this machine is tried.
fn behind(image: &str, strategy: Strategy) -> StackSpec {
    let mut spec = stack(image, None, &[]);
    let web = spec.services.get_mut("web").unwrap();
    web.ports.clear();
    web.expose = vec!["80".into()];
    web.settings.strategy = Some(strategy);
    spec
}

/// What a front does with a command that came over its socket: the same as with one that was run beside it.
async fn answer(engine: &FakeEngine, socket: &std::path::Path, command: &Command) -> EngineResult<Option<Reply>> {
    let Some(name) = socket.to_str().and_then(|s| s.strip_suffix(&format!("/{SOCKET}"))) else { return Ok(None) };
    let mut words = vec!["/dockwarden".to_owned(), "front".to_owned()];
    match command {
        Command::Apply(routes) => words.extend(["--apply".to_owned(), serde_json::to_string(routes).unwrap()]),
        Command::Status => words.push("--status".to_owned()),
        Command::Drained { .. } => words.extend(["--drained".to_owned(), "-".to_owned()]),
    }
    for row in engine.containers(&[]).await? {
        let Some(c) = engine.container(&row.id).await? else { continue };
        if c.mounts.iter().any(|m| m.target == DIR && m.source == name) {
            let run = ExecSpec { command: words, user: None, env: vec![], timeout: Duration::from_secs(1), max_output: 100_000 };
            let outcome = engine.exec(&permit("deploy"), &c.id, &run).await?;
            return Ok(outcome.output.lines().find_map(|l| serde_json::from_str(l).ok()));
        }
    }
    Ok(None)
}

/// An executor whose fronts answer at their sockets when `open`; how many commands came that way.
fn with_door(rig: &Rig, open: bool) -> (Arc<Executor>, Arc<AtomicUsize>) {
    let (engine, asked) = (rig.engine.clone(), Arc::new(AtomicUsize::new(0)));
    let counted = asked.clone();
    let door: FrontDoor = Arc::new(move |socket, command, _, owner| {
        let (engine, counted) = (engine.clone(), counted.clone());
        Box::pin(async move {
            assert_eq!(owner, 65534, "nobody else's process is believed");
            counted.fetch_add(1, Ordering::Relaxed);
            match open {
                true => answer(&engine, &socket, &command).await.map_err(|e| e.to_string())?.ok_or_else(|| "no front".to_owned()),
                false => Err("connection refused".to_owned()),
            }
        })
    });
    (executor_as(&rig.engine, &rig.store, Options { host_ports: true, front_door: Some(door), ..Options::default() }), asked)
}

fn execs(rig: &Rig) -> usize {
    rig.engine.calls().iter().filter(|c| c.starts_with("exec ") && c.contains("-front")).count()
}

#[tokio::test]
async fn a_front_whose_socket_can_be_reached_is_asked_there_and_nothing_is_run_in_its_container() {
    for strategy in [Strategy::Front, Strategy::Hold] {
        let rig = rig().await;
        deploy(&rig, behind("web:1", strategy)).await;
        let (exec, asked) = with_door(&rig, true);
        rig.engine.clear_calls();
        let want = release_of(&rig, behind("web:2", strategy)).await;
        let op = run(&rig, &exec, want).await;
        assert_eq!((op.state, op.message), (OperationState::Done, None), "{strategy:?}");
        assert_one_release(&rig, "over the socket").await;
        let came = asked.load(Ordering::Relaxed);
        // The stand-in itself runs them in the container, and nobody else does.
        assert!(came > 0 && execs(&rig) == came, "{strategy:?}: {came} over the socket, {} in the container", execs(&rig));
    }
}

#[tokio::test]
async fn a_front_that_does_not_answer_at_its_socket_is_asked_through_the_engine() {
    let rig = rig().await;
    deploy(&rig, behind("web:1", Strategy::Hold)).await;
    let (exec, asked) = with_door(&rig, false);
    rig.engine.clear_calls();
    let want = release_of(&rig, behind("web:2", Strategy::Hold)).await;
    let op = run(&rig, &exec, want).await;
    assert_eq!((op.state, op.message), (OperationState::Done, None));
    assert_one_release(&rig, "through the engine").await;
    assert!(asked.load(Ordering::Relaxed) > 0 && execs(&rig) > 0);
}
