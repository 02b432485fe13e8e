//! How fake containers live: start, exit, restart policy, stop, health. Everything happens at once; a process that always exits
//! under a restarting policy ends up `restarting`, after as many rounds as [`RESTART_ROUNDS`] or as its policy allows.

use super::FakeHealth;
use super::recorder::overlap;
use super::world::{Container, Endpoint, World};
use crate::engine::{EngineError, EngineResult, PortBinding};
use crate::model::ids::EngineName;
use crate::model::observed::{HealthState, LogLine, PublishedPort, RunState};
use crate::model::spec::Restart;

/// Rounds a crash loop makes before it rests in `restarting`: enough to be seen as one.
const RESTART_ROUNDS: u64 = 3;
/// First port the engine chooses by itself (Linux' ephemeral range).
const FIRST_EPHEMERAL: u16 = 32768;

impl World {
    /// Starts; already running is fine. A failure leaves the container as Docker does: not running, with the error kept.
    pub fn start(&mut self, id: &str) -> EngineResult<()> {
        let c = self.find_mut(id)?;
        let id = c.id.clone();
        match c.state {
            RunState::Running | RunState::Restarting => return Ok(()),
            RunState::Paused => return Err(EngineError::Conflict("cannot start a paused container, try unpause instead".into())),
            RunState::Created | RunState::Exited | RunState::Dead | RunState::Removing => {}
        }
        c.restart_count = 0;
        if let Err(error) = self.launch(&id) {
            let c = self.find_mut(id.as_str())?;
            c.error = error.to_string();
            c.exit_code = 128;
            return Err(error);
        }
        Ok(())
    }

    /// One run of the process, and what follows at once when the image exits by itself.
    fn launch(&mut self, id: &EngineName) -> EngineResult<()> {
        let bound = self.prepare(id)?;
        let script = self.run_script.clone();
        let (now, pid) = (self.now(), 1000 + self.next() as i64);
        let addresses = self.assign_addresses(id)?;
        let c = self.find_mut(id.as_str())?;
        c.bound = bound;
        c.state = RunState::Running;
        c.pid = pid;
        c.started_at = Some(now);
        c.finished_at = None;
        c.exit_code = 0;
        c.oom_killed = false;
        c.error.clear();
        for (network, address) in addresses {
            if let Some(e) = c.networks.get_mut(&network) {
                e.address = address;
            }
        }
        let lines = c.behaviour.logs.clone();
        c.logs.extend(lines.into_iter().map(|text| LogLine { at: now, stderr: false, text }));
        let has_test = c.health_test().is_some();
        c.health = if has_test { HealthState::Starting } else { HealthState::None };
        c.last_health_output = None;
        let scripted = script.and_then(|s| s(&c.spec));
        let (health, exits, output) = (c.behaviour.health, scripted.or(c.behaviour.exits), c.behaviour.exec_output.clone());
        self.emit(id, "start");
        self.check_invariants(id);
        self.check_front(id);
        if let Some(code) = exits {
            self.exit(id, code);
            return Ok(());
        }
        if has_test {
            self.find_mut(id.as_str())?.last_health_output = Some(output);
            match health {
                FakeHealth::Healthy => self.tell_health(id, HealthState::Healthy),
                FakeHealth::Unhealthy => self.tell_health(id, HealthState::Unhealthy),
                FakeHealth::Starting => {}
            }
        }
        Ok(())
    }

    /// What the engine checks before it runs a process: networks, the image's own refusal, host ports.
    fn prepare(&mut self, id: &EngineName) -> EngineResult<Vec<PublishedPort>> {
        let c = self.find_mut(id.as_str())?.clone();
        if let Some(gone) = c.networks.keys().find(|n| !self.networks.contains_key(*n)) {
            return Err(EngineError::NotFound { what: "network", detail: format!("network {gone} not found") });
        }
        if let Some(target) = c.spec.network_mode.as_deref().and_then(|m| m.strip_prefix("container:"))
            && !self.find(target).is_some_and(|t| t.is_up())
        {
            return Err(EngineError::Conflict(format!("cannot join network of a non running container: {target}")));
        }
        if let Some(text) = c.behaviour.start_error {
            return Err(EngineError::Refused(text));
        }
        if c.spec.network_mode.is_some() {
            return Ok(Vec::new());
        }
        let mut bound = Vec::new();
        for p in &c.spec.ports {
            bound.push(self.allocate(&c.name, p, &bound)?);
        }
        Ok(bound)
    }

    /// The first free host port of a binding, or Docker's refusal.
    fn allocate(&self, name: &str, p: &PortBinding, own: &[PublishedPort]) -> EngineResult<PublishedPort> {
        let (low, high) = match p.host_port.as_deref() {
            None | Some("" | "0") => (FIRST_EPHEMERAL, u16::MAX),
            Some(range) => parse_range(range)?,
        };
        for host_port in low..=high {
            let wanted =
                PublishedPort { host_ip: p.host_ip.clone(), host_port, container_port: p.container_port, protocol: p.protocol.clone() };
            let taken = self.containers.values().filter(|c| c.is_up()).flat_map(|c| &c.bound).chain(own).any(|q| overlap(&wanted, q));
            let outside = p.protocol == "tcp" && self.occupied.contains(&host_port);
            if !taken && !outside {
                return Ok(wanted);
            }
            if high == low {
                let ip = if p.host_ip.is_empty() { "0.0.0.0" } else { &p.host_ip };
                let why = if taken {
                    format!("Bind for {ip}:{low} failed: port is already allocated")
                } else {
                    format!("listen tcp4 {ip}:{low}: bind: address already in use")
                };
                return Err(EngineError::Refused(format!("driver failed programming external connectivity on endpoint {name}: {why}")));
            }
        }
        Err(EngineError::Refused(format!("driver failed programming external connectivity on endpoint {name}: all ports are allocated")))
    }

    /// An address per network of a container that comes up; a fixed one that is held is refused.
    fn assign_addresses(&mut self, id: &EngineName) -> EngineResult<Vec<(String, String)>> {
        let endpoints: Vec<(String, Endpoint)> = self.find_mut(id.as_str())?.networks.clone().into_iter().collect();
        endpoints.into_iter().map(|(name, e)| Ok((name.clone(), self.address_on(id, &name, e.fixed.as_deref())?))).collect()
    }

    /// An address on one network.
    pub fn address_on(&mut self, id: &EngineName, network: &str, fixed: Option<&str>) -> EngineResult<String> {
        if let Some(ip) = fixed {
            let held =
                self.containers.values().any(|c| c.id != *id && c.is_up() && c.networks.get(network).is_some_and(|e| e.address == ip));
            return if held { Err(EngineError::Refused("Address already in use".into())) } else { Ok(ip.to_owned()) };
        }
        let Some(n) = self.networks.get_mut(network) else { return Ok(String::new()) };
        n.hosts += 1;
        Ok(format!("172.{}.{}.{}", 16 + (n.number / 256) % 16, n.number % 256, 1 + n.hosts % 253))
    }

    /// The process ends by itself; the restart policy acts.
    pub fn exit(&mut self, id: &EngineName, code: i64) {
        self.end(id, code);
        let Some(c) = self.containers.get_mut(id) else { return };
        let again = match c.restart {
            Restart::No => false,
            Restart::Always | Restart::UnlessStopped => true,
            Restart::OnFailure(0) => code != 0,
            Restart::OnFailure(most) => code != 0 && c.restart_count < u64::from(most),
        };
        if !again {
            return;
        }
        if c.behaviour.exits.is_some() && c.restart_count >= RESTART_ROUNDS {
            c.state = RunState::Restarting;
            return;
        }
        c.restart_count += 1;
        if let Err(error) = self.launch(id)
            && let Some(c) = self.containers.get_mut(id)
        {
            c.error = error.to_string();
        }
    }

    /// It ends whenever it is started: the engine is about to start it again.
    pub fn looping(&mut self, name: &str) {
        if let Ok(c) = self.find_mut(name) {
            c.state = RunState::Restarting;
        }
    }

    /// The process is gone: state, exit code, ports and addresses free, event `die`.
    fn end(&mut self, id: &EngineName, code: i64) {
        let now = self.now();
        let Some(c) = self.containers.get_mut(id) else { return };
        c.state = RunState::Exited;
        c.exit_code = code;
        c.finished_at = Some(now);
        c.pid = 0;
        c.bound.clear();
        c.networks.values_mut().for_each(|e| e.address.clear());
        if c.health != HealthState::None {
            // Docker calls a container unhealthy once its health monitor has ended, whatever it said before.
            c.health = HealthState::Unhealthy;
        }
        self.emit(id, "die");
    }

    /// Stops by hand: no restart policy acts. Already stopped is fine.
    pub fn stop(&mut self, id: &str) -> EngineResult<()> {
        let c = self.find_mut(id)?;
        let (id, code) = (c.id.clone(), c.behaviour.stop_exit);
        match c.state {
            RunState::Running | RunState::Paused => {
                self.check_routes(&id);
                self.emit(&id, "kill");
                if code == 137 {
                    self.emit(&id, "kill");
                }
                self.end(&id, code);
                self.emit(&id, "stop");
            }
            RunState::Restarting => {
                c.state = RunState::Exited;
                self.emit(&id, "stop");
            }
            RunState::Created | RunState::Exited | RunState::Dead | RunState::Removing => {}
        }
        Ok(())
    }

    /// Kills for a removal by force.
    pub fn kill(&mut self, id: &EngineName) {
        self.emit(id, "kill");
        self.end(id, 137);
    }

    /// See `FakeEngine::crash_container`.
    pub fn crash(&mut self, name: &str, code: i64, oom: bool) -> bool {
        let Some(id) = self.find(name).filter(|c| c.state == RunState::Running).map(|c| c.id.clone()) else { return false };
        if oom {
            self.emit(&id, "oom");
        }
        self.exit(&id, code);
        if oom && let Some(c) = self.containers.get_mut(&id) {
            c.oom_killed = true;
        }
        true
    }

    /// See `FakeEngine::reboot`. What connections go through meanwhile is nobody's fault: only two writers or holders count.
    pub fn reboot(&mut self) {
        let known = self.violations.len();
        let up: Vec<EngineName> = self.containers.values().filter(|c| c.is_up()).map(|c| c.id.clone()).collect();
        for id in &up {
            self.end(id, 143);
        }
        let starts = |c: &Container| match c.restart {
            Restart::No => false,
            Restart::Always => c.started_at.is_some(),
            Restart::UnlessStopped | Restart::OnFailure(_) => up.contains(&c.id),
        };
        let back: Vec<EngineName> = self.containers.values().filter(|c| starts(c)).map(|c| c.id.clone()).collect();
        for id in back {
            if let Err(error) = self.launch(&id)
                && let Some(c) = self.containers.get_mut(&id)
            {
                c.error = error.to_string();
            }
        }
        let (mut at, lost) = (0, "lost connections");
        self.violations.retain(|v| {
            at += 1;
            at <= known || !v.starts_with(lost)
        });
    }

    /// See `FakeEngine::set_health`.
    pub fn set_health(&mut self, name: &str, health: HealthState) -> bool {
        let Some(id) = self.find(name).filter(|c| c.state == RunState::Running).map(|c| c.id.clone()) else { return false };
        self.tell_health(&id, health);
        true
    }

    fn tell_health(&mut self, id: &EngineName, health: HealthState) {
        let Some(c) = self.containers.get_mut(id) else { return };
        c.health = health;
        match health {
            HealthState::Healthy => self.emit(id, "health_status: healthy"),
            HealthState::Unhealthy => self.emit(id, "health_status: unhealthy"),
            HealthState::Starting | HealthState::None => {}
        }
    }

    /// See `FakeEngine::add_log`.
    pub fn add_log(&mut self, name: &str, text: &str, stderr: bool) -> bool {
        let at = self.now();
        match self.find_mut(name) {
            Ok(c) => {
                c.logs.push(LogLine { at, stderr, text: text.to_owned() });
                true
            }
            Err(_) => false,
        }
    }
}

/// `8000` or `8000-8010`.
fn parse_range(text: &str) -> EngineResult<(u16, u16)> {
    let bad = || EngineError::Refused(format!("Invalid hostPort: {text}"));
    let (low, high) = text.split_once('-').unwrap_or((text, text));
    let (low, high) = (low.parse().map_err(|_| bad())?, high.parse().map_err(|_| bad())?);
    if low <= high { Ok((low, high)) } else { Err(bad()) }
}
