//! stub: pure planning
use crate::model::ids::*;
use crate::model::observed::*;
use crate::model::plan::*;
use crate::model::release::Release;
use crate::model::spec::StackSpec;
use chrono::{DateTime, Utc};
use std::collections::BTreeMap;

/// What is on the engine for a stack.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Observed {
    /// Containers of the stack that carry our instance label, running or not.
    pub containers: Vec<ContainerDetail>,
    /// Names of networks of the stack that exist.
    pub networks: Vec<String>,
    /// Names of volumes of the stack that exist.
    pub volumes: Vec<String>,
}

/// What is wanted.
#[derive(Debug, Clone, PartialEq)]
pub enum Want {
    /// Make `desired` the stack (deploy, rollback with `content_of`).
    Release {
        /// The stack as it shall be.
        desired: Box<StackSpec>,
        /// Identities of the images of the active services.
        images: BTreeMap<ServiceName, ImageIdentity>,
        /// For a rollback: the release repeated.
        content_of: Option<u32>,
    },
    /// Another number of containers of a service.
    Scale {
        /// Service.
        service: ServiceName,
        /// Containers.
        replicas: u32,
    },
    /// Restart (or start) in place: all services or one.
    Restart {
        /// Service; all when absent.
        service: Option<ServiceName>,
    },
    /// Stop in place; `remove` also removes containers and networks, never volumes.
    Stop {
        /// Remove.
        remove: bool,
    },
}

/// Everything planning needs; no I/O inside.
pub struct PlanInput<'a> {
    /// Id of the new plan.
    pub id: PlanId,
    /// Stack.
    pub stack: StackName,
    /// Environment.
    pub environment: String,
    /// What is wanted.
    pub want: Want,
    /// What is there.
    pub observed: &'a Observed,
    /// Release that is current.
    pub current: Option<&'a Release>,
    /// Number the next release gets.
    pub next_release: u32,
    /// `Rulebook::version`.
    pub policy_version: &'a str,
    /// Project directory.
    pub project_dir: Option<String>,
    /// Its git state.
    pub git: Option<GitState>,
    /// Keys whose values may be shown.
    pub literal_keys: &'a [String],
    /// Keyed 6-character hash of a secret value.
    pub hash: &'a dyn Fn(&str) -> String,
    /// Keyed digest.
    pub digest: &'a dyn Fn(&[u8]) -> String,
    /// Now.
    pub now: DateTime<Utc>,
}

/// Why no plan can be made.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum PlanError {
    /// Nothing is deployed under that name.
    #[error("stack {0} is not deployed")]
    NotDeployed(StackName),
    /// No such service.
    #[error("stack {stack} has no service {service}")]
    NoService {
        /// Stack.
        stack: StackName,
        /// Service.
        service: ServiceName,
        /// Services it has.
        known: Vec<ServiceName>,
    },
    /// The services depend on each other in a ring.
    #[error("dependency cycle: {0}")]
    Cycle(String),
    /// Something the service's nature forbids.
    #[error("{0}")]
    Impossible(String),
}

/// Makes a plan. Findings of the gate are added by the caller (`findings`, `verdict` hold only the planner's own).
pub fn plan(_input: &PlanInput<'_>) -> Result<Plan, PlanError> {
    todo!()
}
