//! What a service's `x-dockwarden.backup` has run in its container: `pre` and `post` around the reading of its data, and `stdout`, whose output is the
//! data. Each command is judged again at the moment it would run, but for `post`: that is judged together with the `pre` it is the counterpart of. Deliberately absent: the journal record, which is the act's, and the order.

use super::acts::{DataAct, Doer};
use super::drill::Unfit;
use super::helper::SpoolDir;
use super::room::Spooled;
use super::{BackupError, BackupReason, SnapshotReport};
use crate::engine::{Engine, ExecSpec};
use crate::executor::CommandGate;
use crate::gate::Permit;
use crate::model::ids::{EngineName, OperationId, ServiceName, StackName};
use crate::model::observed::RunState;
use crate::model::spec::{BackupSettings, Hook};
use crate::model::verdict::Verdict;
use crate::store::Store;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::time::Duration;
use tokio::io::AsyncWriteExt;

/// Output of a command that is kept for its record.
const OUTPUT: usize = 16 * 1024;
/// Name of the one file in a snapshot of a command's output.
pub const OUTPUT_FILE: &str = "stdout";

/// What is run for one service around and instead of the reading of its volumes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ServiceCommands {
    /// Service.
    pub service: ServiceName,
    /// Its environment: what the policy says of commands depends on it.
    pub environment: String,
    /// Container they run in.
    pub container: EngineName,
    /// Before.
    pub pre: Vec<Hook>,
    /// After, also when the backup failed.
    pub post: Vec<Hook>,
    /// Command whose output is stored.
    pub stdout: Option<Vec<String>>,
    /// Longest run of `stdout`, seconds.
    pub timeout_s: u64,
}

/// Longest run of a command whose output is stored, seconds, unless `timeout` says otherwise.
const OUTPUT_WITHIN: u64 = 6 * 3600;

impl ServiceCommands {
    /// Of a service's settings.
    pub fn of(service: ServiceName, environment: String, container: EngineName, own: BackupSettings) -> Self {
        let timeout_s = own.timeout.unwrap_or(OUTPUT_WITHIN);
        Self { service, environment, container, pre: own.pre, post: own.post, stdout: own.stdout.map(|c| c.0), timeout_s }
    }

    /// Source under which the output is recorded: like a volume's name, so that it is restored into one.
    pub fn source(&self, stack: &StackName) -> String {
        output_of(stack, &self.service)
    }
}

/// Ends the names of sources that are the output of a command.
pub const ENDS: &str = ".stdout";

/// Source under which the output of a service's `stdout` is recorded.
pub fn output_of(stack: &StackName, service: &ServiceName) -> String {
    format!("{stack}_{service}{ENDS}")
}

/// Judges all that would be run around the reading of a service's data, before the step that begins it is recorded: what is not let end is not begun. Once
/// it is recorded, `post` may run whatever the rules say by then: nothing else sets free what `pre` holds.
///
/// # Errors
/// The first command that is refused, and by which rule.
pub(in crate::executor) fn may_begin(judge: &CommandGate, act: &DataAct) -> Result<(), BackupError> {
    let DataAct::Before { commands } = act else { return Ok(()) };
    let of = |which: &'static str, hooks: &[Hook]| hooks.iter().try_for_each(|hook| allowed(judge, commands, which, &hook.run));
    of("pre", &commands.pre)?;
    of("post", &commands.post)
}

/// Runs what comes before. The record names each exit code.
pub(super) async fn begin(engine: &dyn Engine, permit: &Permit, judge: &CommandGate, of: &ServiceCommands) -> Result<Value, BackupError> {
    for hook in &of.pre {
        allowed(judge, of, "pre", &hook.run)?;
    }
    run_all(engine, permit, of, "pre", &of.pre).await
}

/// Name of the audit event of `post` commands that ran although the rules of that moment refuse them.
pub const ENDED_ANYWAY: &str = "post_ran_refused";

/// Runs what comes after, which is the counterpart of what was let begin: a refusal by now is recorded and keeps nothing held.
pub(super) async fn end(
    (engine, store): (&dyn Engine, &Store),
    permit: &Permit,
    operation: &OperationId,
    judge: &CommandGate,
    of: &ServiceCommands,
) -> Result<Value, BackupError> {
    let refused = of.post.iter().flat_map(|hook| judge(&of.environment, &hook.run)).find(|f| f.verdict == Verdict::Deny);
    if let Some(f) = refused {
        tracing::warn!(%operation, service = %of.service, rule = f.rule, because = f.because, "`post` runs all the same: its `pre` was let run");
        let detail = json!({"operation": operation, "service": of.service, "rule": f.rule, "because": f.because});
        let stack = permit.stack().map(ToString::to_string);
        if let Err(e) = store.audit_event(permit.agent(), ENDED_ANYWAY, stack.as_deref(), &detail, chrono::Utc::now()).await {
            tracing::error!(%operation, error = %e, "the audit log has no row of `post` commands that ran although they are refused by now");
        }
    }
    run_all(engine, permit, of, "post", &of.post).await
}

async fn run_all(
    engine: &dyn Engine,
    permit: &Permit,
    of: &ServiceCommands,
    which: &'static str,
    hooks: &[Hook],
) -> Result<Value, BackupError> {
    let mut done = vec![];
    for hook in hooks {
        let failed = |why: String, code, output: &str| failure(of, which, &hook.run, why, (code, output));
        let (command, timeout) = (hook.run.clone(), Duration::from_secs(hook.timeout_s));
        let spec = ExecSpec { command, user: None, env: vec![], timeout, max_output: OUTPUT };
        let out = engine.exec(permit, &of.container, &spec).await?;
        match out.exit_code {
            Some(0) => done.push(json!({"exit": 0, "output": out.output})),
            Some(code) => return Err(failed(format!("ended with exit code {code}"), Some(code), &out.output)),
            None => return Err(failed(format!("did not end within {} s", hook.timeout_s), None, &out.output)),
        }
    }
    Ok(Value::Array(done))
}

/// Runs the `post` hooks on the way back. A container that is gone or does not run has nothing left to undo.
pub(super) async fn undo(
    (engine, store): (&dyn Engine, &Store),
    permit: &Permit,
    operation: &OperationId,
    judge: &CommandGate,
    of: &ServiceCommands,
) -> Result<(), BackupError> {
    match engine.container(&of.container).await? {
        Some(c) if c.state == RunState::Running => end((engine, store), permit, operation, judge, of).await.map(|_| ()),
        Some(_) | None => Ok(()),
    }
}

/// Runs `stdout` and stores what it writes. Nothing is stored of a command that fails.
pub(super) async fn store_output(
    doer: &Doer<'_>,
    of: &ServiceCommands,
    reason: BackupReason,
) -> Result<(String, SnapshotReport), BackupError> {
    let stack = doer.stack.clone().ok_or_else(|| failure(of, "stdout", &[], "belongs to no stack".into(), (None, "")))?;
    let run = of.stdout.clone().unwrap_or_default();
    allowed(&doer.judge, of, "stdout", &run)?;
    let dir = SpoolDir::new(&doer.hands)?;
    let path = dir.path().join(OUTPUT_FILE);
    let io = |e: std::io::Error| BackupError::io(&path, &e);
    let file = tokio::fs::File::options().write(true).create_new(true).mode(0o600).open(&path).await.map_err(io)?;
    let mut file = Spooled::new(file, &path);
    let timeout = Duration::from_secs(of.timeout_s);
    let spec = ExecSpec { command: run.clone(), user: None, env: vec![], timeout, max_output: OUTPUT };
    let out = doer.hands.engine.exec_into(doer.permit, &of.container, &spec, &mut file).await?;
    file.flush().await.map_err(io)?;
    drop(file);
    match out.exit_code {
        Some(0) => {}
        Some(code) => return Err(failure(of, "stdout", &run, format!("ended with exit code {code}"), (Some(code), &out.output))),
        None => return Err(failure(of, "stdout", &run, format!("did not end within {} s", of.timeout_s), (None, &out.output))),
    }
    let source = of.source(&stack);
    let report = super::read_directory(&doer.hands, reason, &source, dir.path().to_owned(), doer.progress.clone()).await?;
    dir.remove()?;
    Ok((source, report))
}

/// Longest run of a drill's `verify`.
const VERIFY_WITHIN: Duration = Duration::from_secs(600);

/// Runs a drill's `verify` in the container that uses the restored data. `Err` inside = the data is not what it should be.
pub(super) async fn verified(
    engine: &dyn Engine,
    permit: &Permit,
    judge: &CommandGate,
    (service, environment): (&ServiceName, &str),
    container: &EngineName,
    run: &[String],
) -> Result<Result<(), Unfit>, BackupError> {
    if let Some(f) = judge(environment, run).into_iter().find(|f| f.verdict == Verdict::Deny) {
        return Ok(Err(format!("the `verify` command of {service} is refused by rule {}: {}", f.rule, f.because).into()));
    }
    let spec = ExecSpec { command: run.to_vec(), user: None, env: vec![], timeout: VERIFY_WITHIN, max_output: OUTPUT };
    let out = engine.exec(permit, container, &spec).await?;
    Ok(match out.exit_code {
        Some(0) => Ok(()),
        Some(code) => Err(Unfit { cause: format!("its `verify` command ended with exit code {code}"), said: out.output }),
        None => Err(Unfit { cause: format!("its `verify` command did not end within {} s", VERIFY_WITHIN.as_secs()), said: out.output }),
    })
}

fn allowed(judge: &CommandGate, of: &ServiceCommands, which: &'static str, run: &[String]) -> Result<(), BackupError> {
    match judge(&of.environment, run).into_iter().find(|f| f.verdict == Verdict::Deny) {
        Some(f) => Err(failure(of, which, run, format!("is refused by rule {}: {}", f.rule, f.because), (None, ""))),
        None => Ok(()),
    }
}

/// What the container wrote goes beside the message: it may say anything.
fn failure(
    of: &ServiceCommands,
    which: &'static str,
    run: &[String],
    why: String,
    (exit_code, output): (Option<i64>, &str),
) -> BackupError {
    let source = format!("container {}", of.container);
    let output = crate::redact::envelope(source, output.trim(), 2_000).text;
    if !output.is_empty() {
        tracing::warn!(service = %of.service, which, why, output = crate::redact::line(&output, 500), "a command of a backup failed");
    }
    BackupError::Command {
        service: of.service.to_string(),
        container: of.container.to_string(),
        which,
        command: crate::redact::line(&run.join(" "), 200),
        why,
        exit_code,
        output,
    }
}
