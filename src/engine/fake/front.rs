//! A stand-in for the front's process in a fake container: it answers the commands a supervisor runs beside a real one, keeps its routes in its
//! volume, and has the recorder note what would lose a connection: routes to what does not run, and the stop of what is routed to.

use super::world::{Container, World};
use crate::model::front::{BackendStatus, Command, DIR, ROUTES_FILE, Reply, Routes, Status};
use crate::model::ids::EngineName;
use crate::model::labels;
use crate::model::observed::ExecOutcome;

fn is_front(c: &Container) -> bool {
    c.spec.labels.get(labels::ROLE).map(String::as_str) == Some(labels::ROLE_FRONT)
}

impl World {
    /// Routes that lie in a front's volume.
    pub(super) fn routes_of(&self, id: &EngineName) -> Option<Routes> {
        let c = self.containers.get(id).filter(|c| is_front(c))?;
        let volume = c.mounts.iter().find(|m| m.target == DIR)?.name.as_ref()?;
        let text = self.volumes.get(volume)?.files.get(ROUTES_FILE)?;
        Routes::parse(std::str::from_utf8(text).ok()?).ok()
    }

    /// Answers `front --apply|--status|--drained` in a front's container; `None` for any other command.
    pub(super) fn front_command(&mut self, id: &EngineName, name: &str, command: &[String]) -> Option<ExecOutcome> {
        if !self.containers.get(id).is_some_and(is_front) || command.get(1).map(String::as_str) != Some("front") {
            return None;
        }
        let now = self.routes_of(id);
        let command = match (command.get(2).map(String::as_str), command.get(3)) {
            (Some("--apply"), Some(text)) => Routes::parse(text).map(Command::Apply),
            (Some("--drained"), Some(_)) => Ok(Command::Drained { backends: vec![], within_ms: 0 }),
            (Some("--status"), None) => Ok(Command::Status),
            other => Err(format!("no command of a front: {other:?}")),
        };
        let reply = match (command, now) {
            (Err(why), _) => Reply::Error(why),
            (Ok(Command::Apply(new)), Some(now)) if new.revision <= now.revision && new != now => Reply::Stale { revision: now.revision },
            (Ok(Command::Apply(new)), _) => {
                let text = serde_json::to_vec(&new).expect("routes are plain data");
                self.put_file(id, &format!("{DIR}/{ROUTES_FILE}"), text);
                self.check_front(id);
                Reply::Ok(status(&new, 0))
            }
            (Ok(_), Some(now)) => {
                self.connect_failures += u64::from(self.connects_fail);
                Reply::Ok(status(&now, self.connect_failures))
            }
            (Ok(_), None) => Reply::Error(format!("{name} has no routes")),
        };
        let exit_code = Some(i64::from(!matches!(reply, Reply::Ok(_))));
        let output = serde_json::to_string(&reply).expect("a reply is plain data");
        Some(ExecOutcome { exit_code, output, truncated: false })
    }

    /// Notes a front that passes connections on to what does not run, or to what it shares no network with.
    pub(super) fn check_front(&mut self, id: &EngineName) {
        let (Some(front), Some(routes)) = (self.containers.get(id), self.routes_of(id)) else { return };
        let reachable = |name: &EngineName| {
            let holds = |c: &Container| {
                c.networks.iter().any(|(n, e)| front.networks.contains_key(n) && e.aliases.iter().any(|a| a == name.as_str()))
            };
            self.containers.values().any(|c| c.is_up() && holds(c))
        };
        let lost: Vec<String> = routes
            .serving()
            .into_iter()
            .filter(|b| !reachable(b))
            .map(|b| format!("lost connections: front {} passes them on to {b}, which does not run", front.name))
            .collect();
        self.violations.extend(lost);
    }

    /// Notes the stop of a container that a running front passes connections on to.
    pub(super) fn check_routes(&mut self, id: &EngineName) {
        let Some(alias) = self.containers.get(id).and_then(|c| c.spec.labels.get(labels::BACKEND)).cloned() else { return };
        let routes_to =
            |c: &&Container| c.is_up() && self.routes_of(&c.id).is_some_and(|r| r.serving().iter().any(|b| b.as_str() == alias));
        let lost: Vec<String> = self
            .containers
            .values()
            .filter(|c| is_front(c))
            .filter(routes_to)
            .map(|c| format!("lost connections: {alias} is stopped while front {} passes them on to it", c.name))
            .collect();
        self.violations.extend(lost);
    }
}

fn status(routes: &Routes, failures: u64) -> Status {
    let row = |name: &EngineName| BackendStatus { name: name.clone(), sessions: 0, served: 0, failures, leaving: false };
    Status {
        revision: routes.revision,
        state: routes.state,
        connections: 0,
        held: 0,
        accepted: 0,
        refused: 0,
        problem: None,
        backends: routes.serving().into_iter().map(row).collect(),
    }
}
