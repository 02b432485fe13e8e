//! What a call is about, as the call gate judges it: tool, stack, environment, service. The environment comes from the operator's registration, then
//! from the record of the stack, then from the policy; a caller can name it but not choose it. Deliberately absent: any decision.

use super::error::ErrorCode;
use super::{Call, CallError};
use crate::gate::{self, CallFacts};
use crate::model::ids::{OperationId, ServiceName, StackName};
use crate::model::operation::Operation;
use crate::model::verdict::Verdict;
use crate::tools::{Effect, ToolSpec};
use serde_json::Value;
use std::sync::Arc;

/// What a tool says a call is about.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Scope {
    /// Stack, when it names one.
    pub stack: Option<StackName>,
    /// Environment as the caller gave it.
    pub environment: Option<String>,
    /// Service, when it names one.
    pub service: Option<ServiceName>,
    /// A second stack that the call is about just as much: it is judged for both.
    pub also: Option<StackName>,
    /// Arguments of an earlier call that this one carries out: it is judged by them as if they had come with it.
    pub given: Option<serde_json::Map<String, Value>>,
}

impl Scope {
    /// A call about a stack.
    pub fn stack(stack: &StackName) -> Self {
        Self { stack: Some(stack.clone()), ..Self::default() }
    }
    /// A call about a stack and maybe one of its services.
    pub fn service(stack: Option<&StackName>, service: Option<&ServiceName>) -> Self {
        Self { stack: stack.cloned(), service: service.cloned(), ..Self::default() }
    }
}

/// The facts of a call; `changes` is what the tool says of these arguments.
///
/// # Errors
/// When the environment given is not the stack's, or is none of the policy's.
pub async fn resolve(call: &Call, spec: &ToolSpec, changes: bool, scope: Scope, input: &Arc<Value>) -> Result<CallFacts, CallError> {
    let environment = match &scope.stack {
        None => scope.environment,
        Some(stack) => Some(environment(call, stack, scope.environment).await?),
    };
    let arguments = match scope.given {
        None => input.clone(),
        Some(given) => Arc::new(Value::Object(carried(input, given))),
    };
    Ok(CallFacts {
        agent: call.who.agent.to_string(),
        tool: spec.name.to_owned(),
        mutates: changes,
        preview: spec.effect != Effect::Read && !changes,
        stack: scope.stack,
        environment,
        service: scope.service,
        arguments,
        on_behalf: on_behalf(call),
    })
}

/// The arguments of a call that carries out an earlier one. What the earlier one could say is said by it alone: a call that names a plan says nothing of its
/// own there, but `null` or an empty map in its place is no way to make a condition believe so.
fn carried(input: &Value, given: serde_json::Map<String, Value>) -> serde_json::Map<String, Value> {
    let mut all = input.as_object().cloned().unwrap_or_default();
    all.retain(|key, _| !super::prepare::CONTENT.contains(&key.as_str()));
    all.extend(given);
    all
}

/// The same call as one about the other stack of its scope.
///
/// # Errors
/// The store's.
pub async fn also(call: &Call, facts: &CallFacts, other: Option<StackName>) -> Result<Option<CallFacts>, CallError> {
    let Some(stack) = other else { return Ok(None) };
    let environment = Some(environment(call, &stack, None).await?);
    Ok(Some(CallFacts { stack: Some(stack), environment, ..facts.clone() }))
}

/// Facts of a call whose arguments could not be read: enough for its row in the audit log.
pub fn unread(call: &Call, tool: &str) -> CallFacts {
    let (agent, tool) = (call.who.agent.to_string(), tool.to_owned());
    let (arguments, on_behalf) = (Arc::default(), on_behalf(call));
    CallFacts { agent, tool, mutates: false, preview: false, stack: None, environment: None, service: None, arguments, on_behalf }
}

/// Whether the caller could read a stack by another tool: what a reply about no stack in particular may then tell of it.
///
/// # Errors
/// When the stack's environment cannot be settled.
pub async fn may_read(call: &Call, tool: &str, stack: &StackName) -> Result<bool, CallError> {
    let mut facts = unread(call, tool);
    facts.environment = Some(environment(call, stack, None).await?);
    facts.stack = Some(stack.clone());
    Ok(gate::call::decide(&call.rulebook, &facts).verdict < Verdict::Approval)
}

/// Whether the caller may have the containers of a stack held still, as a backup of it does.
///
/// # Errors
/// When the stack's environment cannot be settled.
pub async fn may_hold(call: &Call, stack: &StackName) -> Result<bool, CallError> {
    let mut facts = unread(call, "backup");
    facts.mutates = true;
    facts.environment = Some(environment(call, stack, None).await?);
    facts.stack = Some(stack.clone());
    Ok(gate::call::decide(&call.rulebook, &facts).verdict < Verdict::Approval)
}

fn on_behalf(call: &Call) -> Vec<String> {
    call.who.on_behalf.iter().map(ToString::to_string).collect()
}

pub(super) async fn environment(call: &Call, stack: &StackName, given: Option<String>) -> Result<String, CallError> {
    let policy = &call.rulebook.policy;
    let registered = call.house.config.settings.stacks.get(stack).and_then(|s| s.environment.clone());
    let settled = match registered {
        Some(environment) => Some(environment),
        // Empty until the stack's first operation has made a release: a first deploy that was undone settles nothing.
        None => call.house.store.stack(stack).await?.map(|r| r.environment).filter(|e| !e.is_empty()),
    };
    match (settled, given) {
        (Some(settled), Some(given)) if settled != given => {
            let hint = format!("leave environment out, or say {settled:?}; an operator changes it in dockwarden.toml");
            let message = format!("stack {stack} belongs to environment {settled:?}, not {:?}", crate::redact::line(&given, 64));
            Err(CallError::new(ErrorCode::InvalidArgument, message, hint).field("environment"))
        }
        (Some(settled), _) => Ok(settled),
        (None, Some(given)) if policy.environments.contains_key(&given) => Ok(given),
        (None, Some(given)) => {
            let known = policy.environments.keys().cloned().collect::<Vec<_>>().join(", ");
            let message = format!("there is no environment {:?}", crate::redact::line(&given, 64));
            Err(CallError::new(ErrorCode::InvalidArgument, message, format!("the environments are {known}")).field("environment"))
        }
        (None, None) => Ok(policy.default_environment.clone()),
    }
}

/// The operation a caller names.
///
/// # Errors
/// `NotFound`.
pub async fn operation(call: &Call, id: &OperationId) -> Result<Operation, CallError> {
    call.house.store.operation(id).await?.ok_or_else(|| {
        CallError::new(
            ErrorCode::NotFound,
            format!("there is no operation {id}"),
            "use the operation_id that deploy, rollback, restart, stop or scale returned; `operation` without it lists the newest",
        )
        .field("operation_id")
    })
}
