//! From a permitted plan to the reply of `deploy`, `rollback`, `restart`, `stop`, `scale` and `operation`: hands it to the executor, waits with progress,
//! shows where it stands. The operation goes on whatever happens to the caller. Deliberately absent: any decision, any step.

use super::error::ErrorCode;
use super::observe::{self, ServiceHealth};
use super::{Call, CallError, accepted, approval};
use crate::executor::{ExecutorError, Request, Until};
use crate::gate::Permit;
use crate::model::ids::{OperationId, PlanId, StackName};
use crate::model::operation::{Evidence, Operation, OperationState, Phase};
use crate::model::plan::{Plan, PlanKind};
use crate::redact::{self, Untrusted};
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::json;
use std::time::Duration;

/// Clients give up at 60 s; a call that waits returns before.
const MAX_WAIT_S: u64 = 55;
/// Waiting when the caller does not say how long.
const DEFAULT_WAIT_S: u64 = 45;

/// How a caller wants to wait.
#[derive(Debug, Clone, Default)]
pub struct Waiting {
    /// `wait`.
    pub wait: Option<bool>,
    /// `timeout_s`.
    pub timeout_s: Option<u64>,
    /// `idempotency_key`.
    pub idempotency_key: Option<String>,
    /// `reason`.
    pub reason: Option<String>,
}

/// What was kept of a container that failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
#[schemars(inline)]
pub struct EvidenceView {
    /// Service.
    pub service: String,
    /// Container.
    pub container: String,
    /// Why it counts as failed.
    pub reason: String,
    /// What the engine said of it.
    // Not in the schema: every client pays for it, and few failures have it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(skip)]
    pub engine: Option<Untrusted>,
    /// Exit code.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i64>,
    /// Killed by the out-of-memory killer.
    pub oom_killed: bool,
    /// Output of the last probe.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub probe: Option<Untrusted>,
    /// Last lines it wrote.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub logs: Option<Untrusted>,
}

/// Where an operation stands.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
pub struct OperationView {
    /// Absent when nothing was to be done.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub operation_id: Option<OperationId>,
    /// What it does.
    pub verb: String,
    /// Stack.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stack: Option<StackName>,
    /// State.
    pub state: OperationState,
    /// Phase, while it is at work.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub phase: Option<Phase>,
    /// How far it is, 0 to 100, while it is at work.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub percent: Option<u8>,
    /// Release it makes or made.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub release: Option<u32>,
    /// Services as they are now, once it settled.
    pub services: Vec<ServiceHealth>,
    /// From acceptance to settled, or until now.
    pub duration_ms: u64,
    /// Why it ended as it did, or what comes next.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// What the engine said, where that is why.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(skip)]
    pub engine: Option<Untrusted>,
    /// Approval that let it start.
    // `approval` is the object of a call that waits for one. Not in the schema: every client pays for it, and few operations have one.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(skip)]
    pub approval_id: Option<String>,
    /// What was kept of a failure.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub evidence: Vec<EvidenceView>,
}

/// Runs a permitted plan and waits as asked.
///
/// # Errors
/// `Busy`, `StalePlan`, and those of engine and store.
pub async fn execute(
    call: &Call,
    verb: &str,
    plan: Plan,
    permit: Permit,
    waiting: Waiting,
    arguments: &serde_json::Value,
) -> Result<OperationView, CallError> {
    // A stop or restart that changes no container still changes what the loop may do: those go through the executor.
    if plan.is_noop() && matches!(plan.kind, PlanKind::Deploy | PlanKind::Rollback | PlanKind::Scale) {
        return unchanged(call, verb, &plan).await;
    }
    let operation = submit(call, verb, plan, permit, &waiting, arguments).await?;
    // What an operator approved starts and is polled: nobody waits at this call.
    let operation = if waiting.wait.unwrap_or(true) && call.resumes.is_none() {
        wait(call, operation.id, waiting.timeout_s, Until::Settled).await?
    } else {
        operation
    };
    view(call, operation).await
}

/// Hands a permitted plan to the executor.
///
/// # Errors
/// `Busy`, `StalePlan`, and the store's.
pub async fn submit(
    call: &Call,
    verb: &str,
    plan: Plan,
    permit: Permit,
    waiting: &Waiting,
    arguments: &serde_json::Value,
) -> Result<Operation, CallError> {
    let request = Request {
        verb: verb.to_owned(),
        agent: call.who.agent.to_string(),
        call: call.id.clone(),
        idempotency_key: waiting.idempotency_key.clone(),
        args_hash: args_hash(call, arguments),
        reason: waiting.reason.as_deref().map(|r| redact::line(r, 500)),
        approval: call.approved_by.get().cloned(),
    };
    let (asked, release) = (plan.asked.clone(), plan.to_release);
    let operation = call.house.executor.submit(plan, permit, request).await.map_err(executor_error)?;
    if operation.call == call.id {
        accepted::keep(call, &asked, release, &operation.id).await;
    }
    tracing::info!(operation = %operation.id, "operation accepted");
    call.accepted(&operation.id);
    Ok(operation)
}

/// Keyed hash of a call's arguments, to tell the reuse of a key.
pub fn args_hash(call: &Call, arguments: &serde_json::Value) -> String {
    call.house.store.keyed_digest(approval::canonical(arguments).to_string().as_bytes())
}

/// The operation an earlier call with the same key or plan began.
///
/// # Errors
/// `Conflict` when the key was used with other arguments, and the store's.
pub async fn earlier(
    call: &Call,
    arguments: &serde_json::Value,
    key: Option<&str>,
    plan: Option<&PlanId>,
) -> Result<Option<Operation>, CallError> {
    let hash = args_hash(call, arguments);
    Ok(call.house.store.earlier_operation(call.who.agent.as_str(), key, &hash, plan, call.now).await?)
}

/// An earlier call's operation, waited for like a new one.
///
/// # Errors
/// The executor's and the store's.
pub async fn replay(call: &Call, operation: Operation, waiting: &Waiting) -> Result<OperationView, CallError> {
    let operation =
        if waiting.wait.unwrap_or(true) { wait(call, operation.id, waiting.timeout_s, Until::Settled).await? } else { operation };
    view(call, operation).await
}

/// Waits until an operation stands as asked or the time is over, passing its progress on.
///
/// # Errors
/// The executor's.
pub async fn wait(call: &Call, id: OperationId, timeout_s: Option<u64>, until: Until) -> Result<Operation, CallError> {
    let limit = Duration::from_secs(timeout_s.unwrap_or(DEFAULT_WAIT_S).min(MAX_WAIT_S));
    let settled = call.house.executor.wait(&id, limit, until);
    tokio::pin!(settled);
    let Some(mut standing) = call.house.executor.standing(&id).filter(|_| call.progress.is_some()) else {
        return settled.await.map_err(executor_error);
    };
    loop {
        tokio::select! {
            done = &mut settled => return done.map_err(executor_error),
            changed = standing.changed() => {
                if changed.is_err() {
                    return settled.await.map_err(executor_error);
                }
                let now = standing.borrow_and_update().clone();
                call.progress(now.percent, redact::line(&now.message, 200));
            }
        }
    }
}

/// An operation as replies show it.
///
/// # Errors
/// The store's and the engine's.
pub async fn view(call: &Call, operation: Operation) -> Result<OperationView, CallError> {
    let settled = operation.state == OperationState::Monitoring || operation.state.is_terminal();
    let services = match &operation.stack {
        Some(stack) if settled => services(call, stack).await?,
        _ => vec![],
    };
    let end = operation.settled_at.unwrap_or_else(chrono::Utc::now);
    let standing = call.house.executor.standing(&operation.id).map(|s| s.borrow().clone()).filter(|_| !operation.state.is_terminal());
    let percent = standing.as_ref().map(|s| s.percent.clamp(0.0, 100.0) as u8);
    let (ended, engine) = operation.message.as_deref().map(|m| said("engine", m, 1_000)).unzip();
    let message = ended.or_else(|| {
        let next = next_step(&operation)?;
        Some(standing.map_or(next.clone(), |s| format!("{}; {next}", redact::line(&s.message, 200))))
    });
    Ok(OperationView {
        verb: operation.verb,
        stack: operation.stack,
        state: operation.state,
        phase: (!operation.state.is_terminal()).then_some(operation.phase),
        percent,
        release: operation.release,
        services,
        duration_ms: millis(end - operation.created_at),
        message,
        engine: engine.flatten(),
        approval_id: operation.approval.map(|a| a.to_string()),
        evidence: operation.evidence.iter().map(evidence).collect(),
        operation_id: Some(operation.id),
    })
}

fn next_step(operation: &Operation) -> Option<String> {
    match operation.state {
        OperationState::Queued | OperationState::Running => {
            Some(format!("still at work: call `operation` with {} and wait_s", operation.id))
        }
        OperationState::Monitoring => Some("serves; it counts as good when its watch window has passed".into()),
        _ => None,
    }
}

/// Health of the services of a stack as they are now.
///
/// # Errors
/// The store's and the engine's.
pub async fn services(call: &Call, stack: &StackName) -> Result<Vec<ServiceHealth>, CallError> {
    let store = &call.house.store;
    let Some(record) = store.stack(stack).await? else { return Ok(vec![]) };
    let Some(number) = record.current else { return Ok(vec![]) };
    let Some(release) = store.release(stack, number).await? else { return Ok(vec![]) };
    let containers = observe::details(&call.house, &observe::shown(&call.house, Some(stack)).await?).await?;
    let standing = observe::standing(&call.house, &release, record.stopped, chrono::Utc::now()).await?;
    Ok(observe::health(&release, &containers, &standing))
}

async fn unchanged(call: &Call, verb: &str, plan: &Plan) -> Result<OperationView, CallError> {
    Ok(OperationView {
        operation_id: None,
        verb: verb.to_owned(),
        stack: Some(plan.stack.clone()),
        state: OperationState::Done,
        phase: None,
        percent: None,
        release: plan.from_release,
        services: services(call, &plan.stack).await?,
        duration_ms: millis(chrono::Utc::now() - call.now),
        message: Some("nothing to do: what runs is what was asked for".into()),
        engine: None,
        approval_id: None,
        evidence: vec![],
    })
}

/// A text of the executor: in our words, and what of it is the engine's, which quotes images, containers and registries.
pub fn said(source: &str, text: &str, max: usize) -> (String, Option<Untrusted>) {
    let (ours, theirs) = crate::engine::foreign(text);
    (redact::line(ours, max), theirs.map(|t| redact::envelope(source, redact::keep_start(t, max), max)))
}

fn evidence(e: &Evidence) -> EvidenceView {
    let logs = e.logs.join("\n");
    let (reason, engine) = said(&format!("engine, of {}", e.container), &e.reason, 300);
    EvidenceView {
        service: e.service.clone(),
        container: e.container.clone(),
        reason,
        engine,
        exit_code: e.exit_code,
        oom_killed: e.oom_killed,
        probe: e.probe_output.as_deref().filter(|p| !p.is_empty()).map(|p| redact::envelope(format!("probe of {}", e.container), p, 2_000)),
        logs: (!logs.is_empty()).then(|| redact::envelope(format!("logs of {}", e.container), &logs, 8_000)),
    }
}

/// Whole milliseconds; none for a span that runs backwards.
pub fn millis(span: chrono::TimeDelta) -> u64 {
    u64::try_from(span.num_milliseconds()).unwrap_or_default()
}

/// One line a person or model reads, and one per service that is not well.
pub fn text(view: &OperationView) -> String {
    let stack = view.stack.as_ref().map(|s| format!(" {s}")).unwrap_or_default();
    let release = view.release.map(|r| format!(" release {r}")).unwrap_or_default();
    let percent = view.percent.map(|p| format!(", {p} %")).unwrap_or_default();
    let id = view.operation_id.as_ref().map(|i| format!(" ({i})")).unwrap_or_default();
    let mut out = format!("{}{stack}{release}: {}{percent} in {} ms{id}", view.verb, view.state.as_str(), view.duration_ms);
    if let Some(message) = &view.message {
        out.push_str(&format!("\n{message}"));
    }
    if let Some(engine) = &view.engine {
        out.push_str(&format!("\n[untrusted, {}]\n{}", engine.source, engine.text));
    }
    for s in &view.services {
        let health = match s.state.as_str() {
            // Nothing of it shall run.
            "stopped" => "",
            _ if s.healthy => " healthy",
            _ => " NOT healthy",
        };
        out.push_str(&format!(
            "\n{} {}/{} {}{health}{}",
            s.service,
            s.running,
            s.desired,
            s.state,
            s.reason.as_ref().map(|r| format!(": {r}")).unwrap_or_default()
        ));
    }
    for e in &view.evidence {
        out.push_str(&format!("\nevidence {}: {}", e.service, e.reason));
        for found in e.engine.iter().chain(&e.probe).chain(&e.logs) {
            out.push_str(&format!("\n[untrusted, {}]\n{}", found.source, found.text));
        }
    }
    out
}

/// Cause and next step of what the executor answered.
pub fn executor_error(e: ExecutorError) -> CallError {
    let message = e.to_string();
    match e {
        ExecutorError::Busy { operation, .. } => {
            CallError::new(ErrorCode::Busy, message, format!("wait for it with `operation` {operation}, or `cancel` it"))
                .data(json!({"operation_id": operation}))
        }
        ExecutorError::Stale(_) => CallError::new(ErrorCode::StalePlan, message, "call `plan` again and deploy the new plan"),
        ExecutorError::Unknown(_) => CallError::new(
            ErrorCode::NotFound,
            message,
            "use the operation_id that deploy, rollback, restart, stop, scale, backup or restore returned",
        )
        .field("operation_id"),
        ExecutorError::TooLate(_) => {
            CallError::new(ErrorCode::Conflict, message, "where a new release serves already, `rollback` goes back to the one before")
        }
        ExecutorError::NoRepository => {
            CallError::new(ErrorCode::Conflict, message, "an operator installs a build with the `backup` feature")
        }
        ExecutorError::Ended { .. } => {
            CallError::new(ErrorCode::Conflict, message, "nothing is left to cancel: `history` and `operation` tell what it did")
        }
        ExecutorError::Closing => CallError::new(ErrorCode::Busy, message, "call again when it is back"),
        ExecutorError::Store(e) => e.into(),
        ExecutorError::Engine(e) => e.into(),
    }
}
