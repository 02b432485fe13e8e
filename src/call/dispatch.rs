//! stub
use super::{CallError, House, Principal, Progress};
use serde_json::Value;
use std::sync::Arc;

/// What a caller gets: the structured value every door shows, and whether it was cut.
#[derive(Debug, Clone, PartialEq)]
pub struct Reply {
    /// Structured content, matching the tool's output schema.
    pub value: Value,
    /// Short text for people and models that do not read structured content.
    pub text: String,
}

/// Runs one call. `progress` gets lines while a call waits; dropping this future never stops an operation.
pub async fn dispatch(
    _house: &Arc<House>,
    _who: &Principal,
    _tool: &str,
    _input: Value,
    _progress: Option<Progress>,
) -> Result<Reply, CallError> {
    todo!()
}
