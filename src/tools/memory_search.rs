//! `memory_search`: full text over the calling agent's own notes and history.

use super::memory_read::{bounded, listed, of_others_enveloped};
use super::{Effect, ToolSpec, Verb, schema};
use crate::call::facts::Scope;
use crate::call::{Call, CallError};
use crate::gate::Permit;
use crate::model::plan::Plan;
use crate::store::memory::MemoryEntry;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Entries returned.
const FOUND: usize = 20;

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Input {
    /// Words to find.
    query: String,
}

#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Output {
    entries: Vec<MemoryEntry>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    truncated: bool,
}

pub(super) struct MemorySearch;

impl Verb for MemorySearch {
    const SPEC: &'static ToolSpec = &ToolSpec {
        name: "memory_search",
        title: "Search own memory",
        description: "Finds words in your own notes and in the history of your own calls, best match first.",
        effect: Effect::Read,
        idempotent: true,
        input_schema: schema::input::<Input>,
        output_schema: schema::output::<Output>,
    };
    type Input = Input;
    type Output = Output;

    async fn scope(_: &Call, _: &Input) -> Result<Scope, CallError> {
        Ok(Scope::default())
    }

    async fn run(call: &Call, input: Input, _: Option<Plan>, _: Permit) -> Result<Output, CallError> {
        let query = crate::redact::keep_start(&input.query, 500);
        let found = call.house.store.memory_search(&call.who.agent, query, FOUND).await?;
        let (entries, truncated) = bounded(of_others_enveloped(found, &call.who.agent));
        Ok(Output { entries, truncated })
    }

    fn text(o: &Output) -> Option<String> {
        Some(listed(&o.entries, o.truncated))
    }
}
