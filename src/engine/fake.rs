//! An in-memory engine that behaves like Docker 20.10 where the supervisor can tell: unique names, host ports refused at start,
//! aliases per endpoint, restart policies, states, exit codes, events. Scriptable, deterministic but for its clock, with a recorder
//! of broken invariants. Deliberately absent: time (everything happens at once), processes, real networks, the gate.

mod behaviour;
mod change;
mod files;
mod front;
mod objects;
mod port;
mod pulls;
mod recorder;
mod run;
#[cfg(test)]
mod tests;
mod world;

pub use behaviour::{Behaviour, FakeHealth};

use super::{ContainerSpec, EngineError, EngineResult};
use crate::model::observed::{ExecOutcome, HealthState, StatsSample};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use world::World;

/// Called around each mutating call; see [`FakeEngine::on_mutation`].
type Hook = Arc<dyn Fn(&str) -> bool + Send + Sync>;
/// The exit code of a process right after its start, or `None` to leave it to the image's behaviour.
pub(crate) type RunScript = Arc<dyn Fn(&ContainerSpec) -> Option<i64> + Send + Sync>;
/// Answers an exec, or `None` to leave it to the image's behaviour.
pub(crate) type ExecScript = Arc<dyn Fn(&str, &[String]) -> Option<ExecOutcome> + Send + Sync>;

/// The endpoint named in errors.
const ENDPOINT: &str = "fake://engine";

/// The fake engine. Clones share one world, as two clients of one daemon do.
#[derive(Clone, Default)]
pub struct FakeEngine {
    world: Arc<Mutex<World>>,
    hook: Arc<Mutex<Option<Hook>>>,
    pulls: Arc<pulls::Pulls>,
}

impl std::fmt::Debug for FakeEngine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let w = self.lock();
        f.debug_struct("FakeEngine").field("containers", &w.containers.len()).field("networks", &w.networks.len()).finish_non_exhaustive()
    }
}

impl FakeEngine {
    /// An empty engine that answers.
    pub fn new() -> Self {
        Self::default()
    }

    /// The world; a panic of another test thread inside it does not hide the state it left.
    pub(crate) fn lock(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap_or_else(PoisonError::into_inner)
    }

    // ---- script -------------------------------------------------------------------------------------------------------------

    /// Puts an image on the engine under `reference` (`:latest` is implied) and returns its id. A tag that exists moves to the new
    /// image, the old one stays without it, as after a build.
    ///
    /// # Panics
    /// When `reference` is no valid image reference: a mistake of the test.
    pub fn add_image(&self, reference: &str, behaviour: Behaviour) -> String {
        self.lock().add_image(reference, behaviour, None)
    }

    /// Puts an image into the registry that [`Engine::pull`](super::Engine::pull) finds and returns its digest; pulled, it has a repo digest. A tag that
    /// exists moves; what it named before can still be had by its digest.
    pub fn add_remote_image(&self, reference: &str, behaviour: Behaviour) -> String {
        self.lock().publish(reference, behaviour)
    }

    /// While held, pulls do not end: what a test needs to see how many are under way, and what ends one.
    pub fn hold_pulls(&self, held: bool) {
        self.pulls.hold(held);
    }

    /// Pulls that are under way.
    pub fn pulls_under_way(&self) -> usize {
        self.pulls.now()
    }

    /// Most pulls that were under way at once.
    pub fn pulls_at_once(&self) -> usize {
        self.pulls.most()
    }

    /// Makes the next call of `method` (a method name of the port, reads included) fail without effect. Queues up.
    pub fn fail_next(&self, method: &str, error: EngineError) {
        self.lock().failures.entry(method.to_owned()).or_default().push_back(error);
    }

    /// From now on looks at this container time out, as one whose inspection hangs, or no more.
    pub fn silence_container(&self, name: &str, silent: bool) {
        let mut w = self.lock();
        if silent {
            w.silent.insert(name.to_owned());
        } else {
            w.silent.remove(name);
        }
    }

    /// The container's process ends by itself with this code; its restart policy acts. False when it was not running.
    pub fn crash_container(&self, name: &str, exit_code: i64) -> bool {
        self.lock().crash(name, exit_code, false)
    }

    /// The engine starts it again and again from now on, and it ends each time.
    pub fn loop_container(&self, name: &str) {
        self.lock().looping(name);
    }

    /// As [`Self::crash_container`] with 137, by the out-of-memory killer.
    pub fn oom_container(&self, name: &str) -> bool {
        self.lock().crash(name, 137, true)
    }

    /// The engine ends and starts again: all its containers end with 143, and those whose restart policy says so run again.
    pub fn reboot(&self) {
        self.lock().reboot();
    }

    /// Sets the health of a running container and tells it by an event. False when there is no such running container.
    pub fn set_health(&self, name: &str, health: HealthState) -> bool {
        self.lock().set_health(name, health)
    }

    /// Adds a line to a container's log. False when there is no such container.
    pub fn add_log(&self, name: &str, text: &str, stderr: bool) -> bool {
        self.lock().add_log(name, text, stderr)
    }

    /// Answers execs by `script` (container name, command), before the image's behaviour; `None` leaves it to that.
    pub fn on_exec(&self, script: impl Fn(&str, &[String]) -> Option<ExecOutcome> + Send + Sync + 'static) {
        self.lock().exec_script = Some(Arc::new(script));
    }

    /// Ends processes right after their start by `script` (what the container was made of), before the image's behaviour.
    pub fn on_run(&self, script: impl Fn(&ContainerSpec) -> Option<i64> + Send + Sync + 'static) {
        self.lock().run_script = Some(Arc::new(script));
    }

    /// The sample `stats` gives for every running container.
    pub fn set_stats(&self, sample: StatsSample) {
        self.lock().stats = Some(sample);
    }

    /// A process outside of the engine holds this TCP port on all addresses (or lets it go).
    pub fn occupy_port(&self, port: u16, held: bool) {
        let mut w = self.lock();
        if held {
            w.occupied.insert(port);
        } else {
            w.occupied.remove(&port);
        }
    }

    /// Binds of this host path are refused as missing.
    pub fn missing_path(&self, path: &str) {
        self.lock().missing_paths.insert(path.to_owned());
    }

    /// While down, every call is `Unreachable` and event streams end; containers keep running.
    pub fn set_down(&self, down: bool) {
        let mut w = self.lock();
        w.down = down;
        if down {
            w.listeners.clear();
        }
    }

    /// Ends all event streams, as a lost connection does.
    pub fn drop_event_streams(&self) {
        self.lock().listeners.clear();
    }

    /// Injects crashes: `hook` is called outside the engine's lock with the method's name before each mutating call, and with
    /// `<name>:done` after it took effect. Returning false makes the call fail as `Unreachable`: without effect before, with it after.
    pub fn on_mutation(&self, hook: Box<dyn Fn(&str) -> bool + Send + Sync>) {
        *self.hook.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::from(hook));
    }

    /// Takes the hook away: the next "process" finds the world as the dead one left it.
    pub fn clear_hook(&self) {
        *self.hook.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Writes a file of a volume (made if missing), `path` relative to its root.
    pub fn write_volume_file(&self, volume: &str, path: &str, content: &[u8]) {
        self.lock().write_volume_file(volume, path, content);
    }

    /// A file of a volume.
    pub fn volume_file(&self, volume: &str, path: &str) -> Option<Vec<u8>> {
        self.lock().volumes.get(volume)?.files.get(path.trim_start_matches('/')).cloned()
    }

    // ---- record -------------------------------------------------------------------------------------------------------------

    /// Invariants broken so far, one line each: two running containers of one service (labels `dockwarden.stack` and
    /// `dockwarden.service`) that share a writable named volume or bind source, and two that hold one host port.
    pub fn violations(&self) -> Vec<String> {
        self.lock().violations.clone()
    }

    /// Transcript of the mutating calls that reached the engine, `method subject[ detail]`, with ` -> error` when it refused.
    /// Subjects are names, never ids, so that transcripts compare.
    pub fn calls(&self) -> Vec<String> {
        self.lock().calls.clone()
    }

    /// Names of containers that were asked to stop, with the time they were given.
    pub fn graces(&self) -> Vec<(String, std::time::Duration)> {
        self.lock().graces.clone()
    }

    /// Forgets the transcript so far.
    pub fn clear_calls(&self) {
        self.lock().calls.clear();
    }

    /// Routes a running front follows; `None` when there is no such front, or it does not run.
    pub fn routed(&self, front: &str) -> Option<crate::model::front::Routes> {
        let w = self.lock();
        let c = w.find(front).filter(|c| c.is_up())?;
        w.routes_of(&c.id)
    }

    /// Somebody disconnects a container from a network, past us. False when it did not stand on it.
    pub fn disconnect_by_hand(&self, name: &str, network: &str) -> bool {
        self.lock().find_mut(name).is_ok_and(|c| c.networks.remove(network).is_some())
    }

    /// From now on fronts count one more failed connect to each backend whenever they are asked, or no more.
    pub fn fail_connects(&self, failing: bool) {
        self.lock().connects_fail = failing;
    }

    /// The request a container was made with.
    pub fn spec_of(&self, name: &str) -> Option<ContainerSpec> {
        self.lock().find(name).map(|c| c.spec.clone())
    }

    /// Names of running containers of `stack` (label `dockwarden.stack`) that hold the alias `service` on some network, sorted.
    pub fn serving(&self, stack: &str, service: &str) -> Vec<String> {
        self.lock().serving(stack, service)
    }

    /// Names of all containers, sorted.
    pub fn container_names(&self) -> Vec<String> {
        let mut names: Vec<String> = self.lock().containers.values().map(|c| c.name.clone()).collect();
        names.sort();
        names
    }

    /// Names of running containers, sorted.
    pub fn running(&self) -> Vec<String> {
        let mut names: Vec<String> = self.lock().containers.values().filter(|c| c.is_up()).map(|c| c.name.clone()).collect();
        names.sort();
        names
    }

    // ---- how calls reach the world ----------------------------------------------------------------------------------------------

    fn ask_hook(&self, moment: &str) -> EngineResult<()> {
        let hook = self.hook.lock().unwrap_or_else(PoisonError::into_inner).clone();
        match hook {
            Some(hook) if !hook(moment) => {
                Err(EngineError::Unreachable { endpoint: ENDPOINT.into(), detail: format!("connection lost at {moment} (injected)") })
            }
            _ => Ok(()),
        }
    }

    /// A read: refused while down or by a scripted failure.
    fn read<T>(&self, method: &'static str, act: impl FnOnce(&World) -> EngineResult<T>) -> EngineResult<T> {
        let mut w = self.lock();
        w.admit(method)?;
        act(&w)
    }

    /// A change: hook, admission, act, transcript, hook.
    fn change<T>(&self, method: &'static str, subject: &str, act: impl FnOnce(&mut World) -> EngineResult<T>) -> EngineResult<T> {
        self.ask_hook(method)?;
        let result = {
            let mut w = self.lock();
            let line = format!("{method} {}", w.display(subject));
            let result = w.admit(method).and_then(|()| act(&mut w));
            w.calls.push(match &result {
                Ok(_) => line,
                Err(e) => format!("{line} -> {e}"),
            });
            result
        };
        self.ask_hook(&format!("{method}:done"))?;
        result
    }
}
