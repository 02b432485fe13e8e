//! A release: the immutable numbered record of what a stack was resolved to.

use super::ids::{OperationId, ServiceName, StackName};
use super::observed::ImageIdentity;
use super::plan::GitState;
use super::spec::StackSpec;
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// State of a release.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub enum ReleaseState {
    /// Being put in place.
    Pending,
    /// Serves; its watch window has not passed yet.
    Monitoring,
    /// Its watch window passed: a release one can roll back to.
    Good,
    /// Served, and a newer operation ended its watch window: one goes back to it when there is no good one.
    Unproven,
    /// Never became current, or was switched back.
    Failed,
}

/// One release.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Release {
    /// Stack.
    pub stack: StackName,
    /// Number, from 1.
    pub number: u32,
    /// State.
    pub state: ReleaseState,
    /// Environment.
    pub environment: String,
    /// What it was resolved to; secret values are encrypted at rest.
    pub spec: StackSpec,
    /// Image identities.
    pub images: BTreeMap<ServiceName, ImageIdentity>,
    /// Agent or operator who asked for it.
    pub agent: String,
    /// Operation that made it.
    pub operation: OperationId,
    /// Reason given, untrusted text.
    pub reason: Option<String>,
    /// For a rollback: whose content it repeats.
    pub content_of: Option<u32>,
    /// Project directory.
    pub project_dir: Option<String>,
    /// Git state.
    pub git: Option<GitState>,
    /// Creation time.
    pub created_at: DateTime<Utc>,
}

#[cfg(test)]
impl Release {
    /// A good release of a stack, for tests to change what they are about.
    pub(crate) fn sample(spec: StackSpec) -> Self {
        Self {
            stack: spec.name.clone(),
            number: 1,
            state: ReleaseState::Good,
            environment: "development".into(),
            spec,
            images: BTreeMap::new(),
            agent: "tester".into(),
            operation: OperationId::new("op-1").expect("a valid id"),
            reason: None,
            content_of: None,
            project_dir: None,
            git: None,
            created_at: DateTime::UNIX_EPOCH,
        }
    }
}

/// A stack we know.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StackRecord {
    /// Name.
    pub name: StackName,
    /// Environment it was deployed to.
    pub environment: String,
    /// Release that serves.
    pub current: Option<u32>,
    /// Stopped by a call of ours: the loop leaves it alone.
    pub stopped: bool,
    /// Epoch: raised by every operation, so that a late writer of an older one is refused.
    pub epoch: u64,
}
