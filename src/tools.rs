//! The catalogue: every tool an agent can call, one verb a file. A `Verb` has typed input and output; `Tool` is its object-safe face, so that the
//! line in `call::dispatch` treats all alike. Adding a tool = one file + one line of `CATALOGUE`. Deliberately absent: gates, audit, protocols.

mod agents;
mod approval;
mod audit;
mod backup;
mod backups;
mod cancel;
mod deploy;
mod diagnose;
mod export;
mod health;
mod history;
mod logs;
mod memory_read;
mod memory_search;
mod memory_write;
mod operation;
mod plan;
mod prune;
mod restart;
mod restore;
mod rollback;
mod scale;
mod schema;
mod stats;
mod status;
mod stop;
mod task_submit;
mod task_work;
mod tasks;
pub mod toolsets;
pub(crate) mod verify_backup;

use crate::call::error::ErrorCode;
use crate::call::facts::Scope;
use crate::call::{Call, CallError};
use crate::gate::Permit;
use crate::model::operation::Operation;
use crate::model::plan::Plan;
use async_trait::async_trait;
use schemars::JsonSchema;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::future::Future;
use std::marker::PhantomData;
use std::sync::LazyLock;

/// What a tool does to the world.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// Reads.
    Read,
    /// Changes, can be undone.
    Write,
    /// Changes, may lose something.
    Destructive,
}

/// A tool as doors show it.
#[derive(Debug)]
pub struct ToolSpec {
    /// Name.
    pub name: &'static str,
    /// Title for people.
    pub title: &'static str,
    /// What it does, when to use it, in at most three sentences.
    pub description: &'static str,
    /// Effect.
    pub effect: Effect,
    /// Calling again with the same arguments changes nothing more.
    pub idempotent: bool,
    /// JSON Schema of the input (root `type: object`, no `$ref`, no root combinators).
    pub input_schema: fn() -> Value,
    /// JSON Schema of the output.
    pub output_schema: fn() -> Value,
}

/// One tool, typed.
pub(crate) trait Verb: Send + Sync + 'static {
    /// How doors show it.
    const SPEC: &'static ToolSpec;
    /// Arguments; unknown fields are refused.
    type Input: DeserializeOwned + JsonSchema + Send + Sync + 'static;
    /// Structured content of the reply.
    type Output: Serialize + JsonSchema + Send + Sync;

    /// What the call is about, for the gate. A reference (operation, snapshot, plan) is resolved to its stack here.
    ///
    /// # Errors
    /// When the reference leads nowhere, or the arguments contradict each other.
    fn scope(call: &Call, input: &Self::Input) -> impl Future<Output = Result<Scope, CallError>> + Send;

    /// Whether these arguments change the world: a tool that changes can be asked to only show what it would do. Such a call is a read to every gate.
    fn changes(_input: &Self::Input) -> bool {
        Self::SPEC.effect != Effect::Read
    }

    /// What a call of a tool that changes would do, for arguments of which [`Verb::changes`] says no. Gets no permit, so it cannot change anything.
    ///
    /// # Errors
    /// As [`Verb::run`].
    fn preview(_call: &Call, _input: Self::Input) -> impl Future<Output = Result<Self::Output, CallError>> + Send {
        async { Err(CallError::new(ErrorCode::Internal, "this tool has nothing to show before it is done", "report this to the operator")) }
    }

    /// The operation that an earlier call with this key or plan began: it is the answer, never a second one. Comes before planning, since the world has
    /// moved, and before counting, since a repetition counts against no hourly limit.
    ///
    /// # Errors
    /// When the key was used with other arguments.
    fn earlier(_call: &Call, _input: &Self::Input) -> impl Future<Output = Result<Option<Operation>, CallError>> + Send {
        async { Ok(None) }
    }

    /// The reply of a call that repeats the one that began `operation`; `None` for a tool whose calls never repeat one another.
    ///
    /// # Errors
    /// As [`Verb::run`].
    fn replay(
        _call: &Call,
        _input: &Self::Input,
        _operation: Operation,
    ) -> impl Future<Output = Result<Option<Self::Output>, CallError>> + Send {
        async { Ok(None) }
    }

    /// Whether [`Verb::replay`] answers: then an identical call made while the first is under way joins its operation.
    const REPLAYS: bool = false;

    /// What the arguments of a tool without plan mean now: the snapshot a moment leads to, the objects that would go. An approval is bound to it and shows it.
    ///
    /// # Errors
    /// As [`Verb::run`].
    fn resolved(_call: &Call, _input: &Self::Input) -> impl Future<Output = Result<Option<Value>, CallError>> + Send {
        async { Ok(None) }
    }

    /// The plan of a tool that runs one; `None` for the others.
    ///
    /// # Errors
    /// When no plan can be made.
    fn plan(_call: &Call, _input: &Self::Input) -> impl Future<Output = Result<Option<Plan>, CallError>> + Send {
        async { Ok(None) }
    }

    /// Does it. `plan` is what [`Verb::plan`] made and both gates let through.
    ///
    /// # Errors
    /// With the cause and what to do next.
    fn run(
        call: &Call,
        input: Self::Input,
        plan: Option<Plan>,
        permit: Permit,
    ) -> impl Future<Output = Result<Self::Output, CallError>> + Send;

    /// A short text for people and models that do not read structured content; `None` = the structured content as JSON.
    fn text(_output: &Self::Output) -> Option<String> {
        None
    }
}

/// What a tool answered, before redaction.
#[derive(Debug)]
pub(crate) struct Answer {
    /// Structured content.
    pub(crate) value: Value,
    /// Short text.
    pub(crate) text: Option<String>,
}

/// A tool whose types are hidden.
#[async_trait]
pub(crate) trait Tool: Send + Sync {
    /// How doors show it.
    fn spec(&self) -> &'static ToolSpec;
    /// Parses arguments.
    fn parse(&self, input: Value) -> Result<Box<dyn Bound>, CallError>;
}

/// A tool with its parsed arguments.
#[async_trait]
pub(crate) trait Bound: Send + Sync {
    /// See [`Verb::scope`].
    async fn scope(&self, call: &Call) -> Result<Scope, CallError>;
    /// See [`Verb::changes`].
    fn changes(&self) -> bool;
    /// See [`Verb::preview`].
    async fn preview(self: Box<Self>, call: &Call) -> Result<Answer, CallError>;
    /// See [`Verb::REPLAYS`].
    fn replays(&self) -> bool;
    /// See [`Verb::earlier`].
    async fn earlier(&self, call: &Call) -> Result<Option<Operation>, CallError>;
    /// See [`Verb::replay`].
    async fn replay(&self, call: &Call, operation: Operation) -> Result<Option<Answer>, CallError>;
    /// See [`Verb::resolved`].
    async fn resolved(&self, call: &Call) -> Result<Option<Value>, CallError>;
    /// See [`Verb::plan`].
    async fn plan(&self, call: &Call) -> Result<Option<Plan>, CallError>;
    /// See [`Verb::run`].
    async fn run(self: Box<Self>, call: &Call, plan: Option<Plan>, permit: Permit) -> Result<Answer, CallError>;
}

struct Face<V>(PhantomData<V>);
struct Arguments<V: Verb>(V::Input);

impl<V: Verb> Tool for Face<V> {
    fn spec(&self) -> &'static ToolSpec {
        V::SPEC
    }
    fn parse(&self, input: Value) -> Result<Box<dyn Bound>, CallError> {
        let input = if input.is_null() { Value::Object(serde_json::Map::new()) } else { input };
        let parsed =
            serde_path_to_error::deserialize(input).map_err(|e| refused(V::SPEC, &e.path().to_string(), &e.inner().to_string()))?;
        Ok(Box::new(Arguments::<V>(parsed)))
    }
}

#[async_trait]
impl<V: Verb> Bound for Arguments<V> {
    async fn scope(&self, call: &Call) -> Result<Scope, CallError> {
        V::scope(call, &self.0).await
    }
    fn changes(&self) -> bool {
        V::changes(&self.0)
    }
    async fn preview(self: Box<Self>, call: &Call) -> Result<Answer, CallError> {
        answer::<V>(&V::preview(call, self.0).await?)
    }
    fn replays(&self) -> bool {
        V::REPLAYS
    }
    async fn earlier(&self, call: &Call) -> Result<Option<Operation>, CallError> {
        V::earlier(call, &self.0).await
    }
    async fn replay(&self, call: &Call, operation: Operation) -> Result<Option<Answer>, CallError> {
        V::replay(call, &self.0, operation).await?.map(|output| answer::<V>(&output)).transpose()
    }
    async fn resolved(&self, call: &Call) -> Result<Option<Value>, CallError> {
        V::resolved(call, &self.0).await
    }
    async fn plan(&self, call: &Call) -> Result<Option<Plan>, CallError> {
        match V::plan(call, &self.0).await {
            Err(e) => Err(kindly(call, e).await),
            planned => planned,
        }
    }
    async fn run(self: Box<Self>, call: &Call, plan: Option<Plan>, permit: Permit) -> Result<Answer, CallError> {
        match V::run(call, self.0, plan, permit).await {
            Ok(output) => answer::<V>(&output),
            Err(e) => Err(kindly(call, e).await),
        }
    }
}

/// A stack that is not there gets the nearest names of those that are: said here once, whichever tool missed it.
async fn kindly(call: &Call, mut error: CallError) -> CallError {
    let missed = error.code == ErrorCode::NotFound && error.field.as_deref() == Some("stack");
    let Some(stack) = call.facts.get().and_then(|f| f.stack.as_ref()).filter(|_| missed) else { return error };
    // Its error is worth more than the one of a look for names.
    let Ok(known) = call.house.store.stacks().await else { return error };
    let mut names: Vec<String> = known.into_iter().map(|s| s.name.to_string()).collect();
    names.extend(call.house.config.settings.stacks.keys().map(ToString::to_string));
    names.retain(|n| n != stack.as_str());
    names.sort();
    names.dedup();
    let near = nearest(stack.as_str(), names.iter().map(String::as_str));
    if !near.is_empty() {
        error.hint = format!("did you mean {}? Otherwise {}", near.join(" or "), error.hint);
    }
    error
}

fn answer<V: Verb>(output: &V::Output) -> Result<Answer, CallError> {
    let value = serde_json::to_value(output).map_err(|e| {
        CallError::new(ErrorCode::Internal, "the reply could not be written", "report this to the operator").detail(e.to_string())
    })?;
    Ok(Answer { value, text: V::text(output) })
}

/// Turns serde's complaint into field, cause and hint.
fn refused(spec: &ToolSpec, path: &str, cause: &str) -> CallError {
    let fields = (spec.input_schema)()["properties"].as_object().map(|p| p.keys().cloned().collect::<Vec<_>>()).unwrap_or_default();
    let accepted = if fields.is_empty() { "it takes no arguments".to_owned() } else { format!("it takes {}", fields.join(", ")) };
    let quoted = cause.split('`').nth(1).unwrap_or_default();
    let (field, hint) = if cause.starts_with("unknown field") {
        let like = nearest(quoted, fields.iter().map(String::as_str)).first().map(|n| format!("did you mean {n}? ")).unwrap_or_default();
        let parent = path.strip_suffix(quoted).unwrap_or(path).trim_end_matches('.');
        let field = if parent.is_empty() { quoted.to_owned() } else { format!("{parent}.{quoted}") };
        (field, format!("{like}{accepted}"))
    } else if cause.starts_with("missing field") {
        (quoted.to_owned(), format!("add {quoted}; {accepted}"))
    } else {
        (path.trim_matches('.').to_owned(), format!("correct the value; {accepted}"))
    };
    CallError::new(ErrorCode::InvalidArgument, format!("{}: {}", spec.name, crate::redact::line(cause, 300)), hint)
        .field(crate::redact::line(&field, 200))
}

/// The plan of a tool that always has one.
fn planned(plan: Option<Plan>) -> Result<Plan, CallError> {
    plan.ok_or_else(|| CallError::new(ErrorCode::Internal, "the line lost the plan of this call", "report this to the operator"))
}

/// Arguments as they count for telling a repeated call: fields that change nothing are skipped by the type.
fn as_arguments(input: &impl Serialize) -> Result<Value, CallError> {
    serde_json::to_value(input).map_err(|e| {
        CallError::new(ErrorCode::Internal, "the arguments could not be written", "report this to the operator").detail(e.to_string())
    })
}

/// Up to three candidates that a mistyped word may have meant, best first.
pub(crate) fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Vec<&'a str> {
    let word = crate::redact::keep_start(word, 64);
    let mut scored: Vec<(f64, &str)> = candidates
        .into_iter()
        .map(|c| (strsim::jaro_winkler(word, c), c))
        // Below this, jaro-winkler calls words alike that no one would mistake for each other.
        .filter(|(score, c)| *score > 0.78 || (word.len() > 2 && c.contains(word)))
        .collect();
    scored.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(b.1)));
    scored.into_iter().take(3).map(|(_, c)| c).collect()
}

/// Every tool, sorted by name.
pub(crate) static CATALOGUE: &[&dyn Tool] = &[
    &Face::<agents::Agents>(PhantomData),
    &Face::<approval::Approval>(PhantomData),
    &Face::<audit::Audit>(PhantomData),
    &Face::<backup::Backup>(PhantomData),
    &Face::<backups::Backups>(PhantomData),
    &Face::<cancel::Cancel>(PhantomData),
    &Face::<deploy::Deploy>(PhantomData),
    &Face::<diagnose::Diagnose>(PhantomData),
    &Face::<export::Export>(PhantomData),
    &Face::<health::Health>(PhantomData),
    &Face::<history::History>(PhantomData),
    &Face::<logs::Logs>(PhantomData),
    &Face::<memory_read::MemoryRead>(PhantomData),
    &Face::<memory_search::MemorySearch>(PhantomData),
    &Face::<memory_write::MemoryWrite>(PhantomData),
    &Face::<operation::Follow>(PhantomData),
    &Face::<plan::Planning>(PhantomData),
    &Face::<prune::Prune>(PhantomData),
    &Face::<restart::Restart>(PhantomData),
    &Face::<restore::Restore>(PhantomData),
    &Face::<rollback::Rollback>(PhantomData),
    &Face::<scale::Scale>(PhantomData),
    &Face::<stats::Stats>(PhantomData),
    &Face::<status::Status>(PhantomData),
    &Face::<stop::Stop>(PhantomData),
    &Face::<task_submit::TaskSubmit>(PhantomData),
    &Face::<task_work::Working>(PhantomData),
    &Face::<tasks::Tasks>(PhantomData),
    &Face::<verify_backup::VerifyBackup>(PhantomData),
];

/// All tools, sorted by name.
pub fn catalogue() -> &'static [&'static ToolSpec] {
    static SPECS: LazyLock<Vec<&'static ToolSpec>> = LazyLock::new(|| CATALOGUE.iter().map(|t| t.spec()).collect());
    &SPECS
}

/// The catalogue as the gate needs it to check manifests.
pub fn gate_facts() -> Vec<crate::gate::load::ToolFacts> {
    let facts = |s: &&ToolSpec| crate::gate::load::ToolFacts {
        name: s.name.to_owned(),
        mutates: s.effect != Effect::Read,
        input: (s.input_schema)(),
    };
    catalogue().iter().map(facts).collect()
}

/// The tool of a name.
///
/// # Errors
/// `UnknownTool` with the nearest names.
pub(crate) fn find(name: &str) -> Result<&'static dyn Tool, CallError> {
    CATALOGUE.iter().copied().find(|t| t.spec().name == name).ok_or_else(|| {
        let names = catalogue().iter().map(|s| s.name);
        let near = nearest(name, names.clone());
        let hint = if near.is_empty() {
            format!("the tools are {}", names.collect::<Vec<_>>().join(", "))
        } else {
            format!("did you mean {}?", near.join(" or "))
        };
        CallError::new(ErrorCode::UnknownTool, format!("there is no tool {:?}", crate::redact::line(name, 64)), hint)
    })
}

#[cfg(test)]
pub(crate) mod tests;
