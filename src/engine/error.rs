//! What an engine answers when it does not do what it was asked, and where in such a text the words of others begin. Deliberately absent: how an answer
//! of Docker's API becomes one of these, see `docker/error.rs`.

use std::time::Duration;

/// What an engine answered when it did not do it.
#[derive(Debug, Clone, thiserror::Error)]
pub enum EngineError {
    /// No such container, image, network or volume.
    #[error("{what} not found: {detail}")]
    NotFound {
        /// Kind of object.
        what: &'static str,
        /// Engine's text.
        detail: String,
    },
    /// Name taken, state does not allow it, or already so.
    #[error("conflict: {0}")]
    Conflict(String),
    /// The engine refused the request (bad parameter, port taken, mount refused, ...).
    #[error("the engine refused it: {0}")]
    Refused(String),
    /// A registry asked for credentials.
    #[error(
        "registry {registry} refused access to {image}: {detail}; put a config.json with credentials for {registry} into the directory DOCKER_CONFIG names for the supervisor"
    )]
    Unauthorized {
        /// Registry host.
        registry: String,
        /// Reference.
        image: String,
        /// Registry's text.
        detail: String,
    },
    /// The engine does not answer.
    #[error("the engine at {endpoint} does not answer: {detail}")]
    Unreachable {
        /// Address.
        endpoint: String,
        /// Cause.
        detail: String,
    },
    /// No answer within the time given.
    #[error("the engine did not finish {what} within {after:?}")]
    Timeout {
        /// What was asked for.
        what: &'static str,
        /// Time given.
        after: Duration,
    },
    /// A request that was not sent: it held what the gate did not judge.
    #[error("a request was withheld: {0}")]
    Withheld(String),
    /// An answer we do not understand.
    #[error("unexpected answer of the engine: {0}")]
    Protocol(String),
}

/// What stands in the text of an [`EngineError`] before words that are not ours: the engine quotes images, containers and registries.
const BEFORE_FOREIGN: [&str; 6] = [
    " not found: ",
    "conflict: ",
    "the engine refused it: ",
    " refused access to ",
    " does not answer: ",
    "unexpected answer of the engine: ",
];

/// A text that may quote an [`EngineError`], in our own words and, where it quotes one, what follows: from there on it is whoever's who could choose what the
/// engine says.
pub fn foreign(text: &str) -> (&str, Option<&str>) {
    let begins = BEFORE_FOREIGN.iter().filter_map(|b| text.find(b).map(|at| at + b.len())).min();
    match begins {
        Some(at) => (text[..at].trim_end().trim_end_matches(':'), Some(&text[at..])),
        None => (text, None),
    }
}

/// Result of an engine call.
pub type EngineResult<T> = Result<T, EngineError>;
