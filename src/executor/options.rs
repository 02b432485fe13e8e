//! What an executor is given beside engine and store: the judges it asks, and how it differs from the ordinary one.

use super::backup;
use crate::gate::request::RequestFacts;
use crate::model::config::OwnContainer;
use crate::model::front::{Command, Reply};
use crate::model::ids::ServiceName;
use crate::model::plan::Plan;
use crate::model::verdict::Finding;
use futures_util::future::BoxFuture;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// Says after a number of journal records whether to stop right there, as a crash would. Shutdown and crash tests use it.
pub type StopAfter = Arc<dyn Fn(u64) -> bool + Send + Sync>;

/// What the second judgement allows a service of a plan; without a service, what it allows the stack's networks and volumes.
pub type FactsOf = Arc<dyn Fn(&Plan, Option<&ServiceName>) -> RequestFacts + Send + Sync>;

/// Where a path of the engine's host leads once links are followed; `None` where that cannot be seen.
pub type RealOf = Arc<dyn Fn(&str) -> Option<String> + Send + Sync>;
/// Judges a command of a backup at the moment it would run: environment and words.
pub type CommandGate = Arc<dyn Fn(&str, &[String]) -> Vec<Finding> + Send + Sync>;
/// The judge of the commands that an agent's operation would run: the agent, and those it works for.
pub type CommandsOf = Arc<dyn Fn(&str, &[String]) -> CommandGate + Send + Sync>;

/// Sends a command to the front that listens on a socket as a given user; new routes may wait so long for sessions that leave. An error is a sentence.
pub type FrontDoor = Arc<dyn Fn(PathBuf, Command, Duration, u32) -> BoxFuture<'static, Result<Reply, String>> + Send + Sync>;

/// How an executor differs from the ordinary one.
#[derive(Clone, Default)]
pub struct Options {
    /// See [`StopAfter`].
    pub stop_after: Option<StopAfter>,
    /// How paths of the host are followed; as this process sees them by default.
    pub real: Option<RealOf>,
    /// Host ports are tested by binding them: only where the engine's host is this one.
    pub host_ports: bool,
    /// The backup repository; none in a build without backups.
    pub backups: Option<backup::BackupHouse>,
    /// The supervisor's own container, which it never holds or stops.
    pub own: OwnContainer,
    /// Judges commands of backups; without it none may run.
    pub commands: Option<CommandsOf>,
    /// Binary that fronts and backup workers run; our own by default.
    pub front_binary: Option<PathBuf>,
    /// The way to a front whose volume can be reached from here; without it every command is run in the front's container.
    pub front_door: Option<FrontDoor>,
}
