//! `history`: the releases of a stack, newest first, and which of them could run again.

use super::{Effect, ToolSpec, Verb, schema};
use crate::call::facts::Scope;
use crate::call::{Call, CallError, prepare};
use crate::gate::Permit;
use crate::model::ids::StackName;
use crate::model::plan::{GitState, Plan};
use crate::model::release::{Release, ReleaseState};
use crate::redact::{self, Untrusted};
use chrono::{DateTime, Utc};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Releases shown: as many as keep their image tags, twice over.
const SHOWN: usize = 20;

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Input {
    /// Stack name.
    stack: StackName,
}

/// Whether a release could run again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
enum Restorable {
    /// All its images are on the engine.
    Yes,
    /// Missing images can be pulled by digest.
    Pull,
    /// An image is gone and has no digest.
    No,
}

#[derive(Debug, Serialize, JsonSchema)]
#[schemars(inline)]
struct Row {
    release: u32,
    state: ReleaseState,
    current: bool,
    at: DateTime<Utc>,
    agent: String,
    operation_id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    content_of: Option<u32>,
    images: Vec<String>,
    restorable: Restorable,
    #[serde(skip_serializing_if = "Option::is_none")]
    why: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    git: Option<GitState>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<Untrusted>,
}

#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Output {
    stack: StackName,
    environment: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    current: Option<u32>,
    releases: Vec<Row>,
}

pub(super) struct History;

impl Verb for History {
    const SPEC: &'static ToolSpec = &ToolSpec {
        name: "history",
        title: "Releases of a stack",
        description: "The releases of a stack, newest first: state, images, who and why, and whether each could run again.",
        effect: Effect::Read,
        idempotent: true,
        input_schema: schema::input::<Input>,
        output_schema: schema::output::<Output>,
    };
    type Input = Input;
    type Output = Output;

    async fn scope(_: &Call, input: &Input) -> Result<Scope, CallError> {
        Ok(Scope::stack(&input.stack))
    }

    async fn run(call: &Call, input: Input, _: Option<Plan>, _: Permit) -> Result<Output, CallError> {
        let store = &call.house.store;
        let record = store.stack(&input.stack).await?.ok_or_else(|| prepare::not_deployed(&input.stack))?;
        let found = store.releases(&input.stack, SHOWN).await?;
        let here: std::collections::BTreeSet<String> = call.house.engine.images().await?.into_iter().map(|i| i.id).collect();
        let releases = found.into_iter().map(|r| row(r, record.current, &here)).collect();
        Ok(Output { stack: record.name, environment: record.environment, current: record.current, releases })
    }

    fn text(o: &Output) -> Option<String> {
        let mut out = format!("{} in {}", o.stack, o.environment);
        for r in &o.releases {
            let (mark, state) = (if r.current { "*" } else { " " }, format!("{:?}", r.state).to_lowercase());
            out.push_str(&format!(
                "\n{mark}r{} {state} {} by {} {}",
                r.release,
                r.at.format("%Y-%m-%d %H:%M"),
                r.agent,
                r.images.join(" ")
            ));
        }
        Some(out)
    }
}

fn row(r: Release, current: Option<u32>, here: &std::collections::BTreeSet<String>) -> Row {
    let missing: Vec<_> = r.images.values().filter(|i| i.id.as_ref().is_none_or(|id| !here.contains(id))).collect();
    let lost: Vec<String> = missing.iter().filter(|i| i.repo_digest.is_none()).map(|i| i.reference.to_string()).collect();
    let (restorable, why) = match (missing.is_empty(), lost.is_empty()) {
        (true, _) => (Restorable::Yes, None),
        (false, true) => (
            Restorable::Pull,
            Some(format!("to be pulled: {}", missing.iter().map(|i| i.reference.to_string()).collect::<Vec<_>>().join(", "))),
        ),
        (false, false) => (Restorable::No, Some(format!("gone from the engine and without a registry digest: {}", lost.join(", ")))),
    };
    Row {
        release: r.number,
        state: r.state,
        current: current == Some(r.number),
        at: r.created_at,
        images: r.images.iter().map(|(service, i)| format!("{service}={}", i.reference)).collect(),
        restorable,
        why,
        reason: r.reason.as_deref().map(|text| redact::envelope(format!("reason given by {}", r.agent), text, 300)),
        agent: r.agent,
        operation_id: r.operation.to_string(),
        content_of: r.content_of,
        git: r.git,
    }
}
