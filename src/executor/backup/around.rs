//! Who is around data: the containers of the engine without the supervisor's own. That one mounts what it restores and exchanges (the roots of the stacks, writable),
//! so every search for those who write or use a directory would find it; held or stopped it could not set anybody going again, itself included. Deliberately
//! absent: which of the others are held.

use super::BackupError;
use crate::engine::{Engine, EngineError};
use crate::model::config::OwnContainer;
use crate::model::ids::{EngineName, StackName};
use crate::model::labels;
use crate::model::observed::ContainerSummary;
use std::collections::BTreeMap;

/// An engine as its supervisor looks at it.
#[derive(Debug, Clone, Copy)]
pub struct Around<'a> {
    /// The engine.
    pub engine: &'a dyn Engine,
    /// Instance id of the home.
    pub instance: &'a str,
    /// The supervisor's own container.
    pub own: &'a OwnContainer,
}

impl Around<'_> {
    /// All containers but the supervisor's own, running or not.
    ///
    /// # Errors
    /// What the engine answered.
    pub async fn others(&self) -> Result<Vec<ContainerSummary>, EngineError> {
        Ok(self.engine.containers(&[]).await?.into_iter().filter(|c| !self.is_us(&c.id)).collect())
    }

    /// Whether it is known to be the supervisor's own.
    pub fn is_us(&self, id: &EngineName) -> bool {
        matches!(self.own, OwnContainer::Is(own) if own == id)
    }

    /// Stack of a container that this home made.
    pub fn stack(&self, marks: &BTreeMap<String, String>) -> Option<StackName> {
        let ours = marks.get(labels::INSTANCE).is_some_and(|i| i == self.instance);
        marks.get(labels::STACK).filter(|_| ours).and_then(|s| StackName::new(s.as_str()).ok())
    }

    /// Refuses to hold a container still that is the supervisor's own, or may be: `stack` is that of one that this home made, which is none.
    ///
    /// # Errors
    /// `NotQuiet` that names it.
    pub fn may_hold(&self, id: &EngineName, name: &str, stack: Option<&StackName>, verb: &'static str) -> Result<(), BackupError> {
        let why = match self.own {
            OwnContainer::Is(own) if own == id => "it is the supervisor's own container, which could not set it going again",
            OwnContainer::Unknown if stack.is_none() => {
                "it may be the supervisor's own container, which nobody can tell here: give that one a host name that is its id or its name (the engine's default), \
                 or set quiesce to none"
            }
            OwnContainer::Is(_) | OwnContainer::Unknown | OwnContainer::None => return Ok(()),
        };
        Err(BackupError::NotQuiet { container: name.to_owned(), verb, cause: EngineError::Conflict(why.to_owned()) })
    }
}
