//! What was taken over from Compose: objects on the engine that are ours although they do not carry our labels; and what was given back: objects
//! that carry our labels (nothing takes them off) and are ours no more.

use super::config::StackSettingsEntry;
use super::ids::StackName;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Kind of an object on the engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ObjectKind {
    /// By full id.
    Container,
    /// By name.
    Network,
    /// By name.
    Volume,
}

/// One object taken over or given back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AdoptedObject {
    /// Kind.
    pub kind: ObjectKind,
    /// Full id of a container, name of a network or volume.
    pub id: String,
    /// Stack it belongs to.
    pub stack: StackName,
    /// Taken over: the labels it would carry had we made it. Given back: empty, and labels of ours that it carries mean nothing.
    pub labels: BTreeMap<String, String>,
}

/// What adopting a stack puts into the registry.
#[derive(Debug, Clone, PartialEq)]
pub struct Adoption {
    /// Objects taken over.
    pub objects: Vec<AdoptedObject>,
    /// Where its files are.
    pub entry: StackSettingsEntry,
    /// Nothing of it ran: the loop leaves it alone until it is started.
    pub stopped: bool,
}
