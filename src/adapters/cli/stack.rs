//! Commands that plan and change stacks, and `call` for any tool. Each builds the tool's input and no more.

use super::{CliError, CliResult, Global, reach};
use clap::Args;
use serde_json::{Map, Value, json};
use std::path::{Path, PathBuf};

/// Call any tool with JSON input, the same line as MCP.
#[derive(Debug, Args)]
pub struct CallArgs {
    /// Tool.
    tool: String,
    /// Input: JSON, `@FILE`, or `-` for stdin.
    #[arg(long, default_value = "{}", value_name = "JSON|@FILE|-")]
    input: String,
}

/// What every command that starts an operation takes.
#[derive(Debug, Default, Args)]
pub struct How {
    /// Return as soon as it is accepted.
    #[arg(long)]
    no_wait: bool,
    /// The same key never starts a second operation.
    #[arg(long, value_name = "KEY")]
    idempotency_key: Option<String>,
    /// Why, for the record.
    #[arg(long)]
    reason: Option<String>,
}

impl How {
    /// Calls a tool so. `given` is the rest of its input.
    ///
    /// # Errors
    /// As `reach::operate`.
    pub async fn operate(&self, global: &Global, tool: &str, given: Value) -> CliResult {
        reach::operate(global, tool, self.input(given), !self.no_wait).await
    }

    fn input(&self, mut given: Value) -> Value {
        given["idempotency_key"] = json!(self.idempotency_key);
        given["reason"] = json!(self.reason);
        let mut given = input(given);
        if self.no_wait {
            given["wait"] = json!(false);
        }
        given
    }
}

/// Releases of a stack.
#[derive(Debug, Args)]
pub struct HistoryArgs {
    /// Stack.
    stack: String,
    /// Only this release: what it consists of, and what it changed.
    #[arg(long)]
    release: Option<u32>,
    /// Page: the cursor of the page before.
    #[arg(long, conflicts_with = "release")]
    cursor: Option<String>,
}

/// What to plan or deploy.
#[derive(Debug, Args)]
pub struct SourceArgs {
    /// Compose file; by default the registered directory of the stack is read. Several files are sent as they are named.
    #[arg(short, long = "file", value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Environment of a new stack.
    #[arg(short, long)]
    environment: Option<String>,
    /// Variable for interpolation.
    #[arg(long = "var", value_name = "KEY=VALUE")]
    variables: Vec<String>,
    /// Image of a service, instead of the file's.
    #[arg(long = "image", value_name = "SERVICE=IMAGE")]
    images: Vec<String>,
    /// Resolve tags again.
    #[arg(long)]
    refresh: bool,
}

/// Show what a deploy would change, and whether policy lets it. Changes nothing.
#[derive(Debug, Args)]
pub struct PlanArgs {
    /// Stack.
    stack: String,
    /// Source.
    #[command(flatten)]
    source: SourceArgs,
    /// Show only what concerns this service; the plan is of all.
    #[arg(long)]
    service: Option<String>,
}

/// Deploy a stack, or a plan made before. Waits until it serves or failed; Ctrl-C stops waiting, not the operation.
#[derive(Debug, Args)]
pub struct DeployArgs {
    /// Stack; not with --plan.
    #[arg(required_unless_present = "plan", conflicts_with = "plan")]
    stack: Option<String>,
    /// Source.
    #[command(flatten)]
    source: SourceArgs,
    /// Plan to run.
    #[arg(long, requires = "digest", value_name = "PLAN_ID")]
    plan: Option<String>,
    /// Digest of that plan.
    #[arg(long, requires = "plan")]
    digest: Option<String>,
    /// How it runs.
    #[command(flatten)]
    how: How,
}

/// Go back to an earlier release: the same path as a deploy.
#[derive(Debug, Args)]
pub struct RollbackArgs {
    /// Stack.
    stack: String,
    /// Release; by default the previous good one.
    #[arg(long = "to", value_name = "RELEASE")]
    to_release: Option<u32>,
    /// What happens to data: `keep`, `code_only`, or snapshot ids separated by commas.
    #[arg(long)]
    data: Option<String>,
    /// How it runs.
    #[command(flatten)]
    how: How,
}

/// Restart a stack or one service; starts a stopped stack.
#[derive(Debug, Args)]
pub struct RestartArgs {
    /// Stack.
    stack: String,
    /// Service.
    service: Option<String>,
    /// Make the containers of the service anew instead.
    #[arg(long, requires = "service")]
    recreate: bool,
    /// How it runs.
    #[command(flatten)]
    how: How,
}

/// Set the number of replicas of a service.
#[derive(Debug, Args)]
pub struct ScaleArgs {
    /// Stack.
    stack: String,
    /// Service.
    service: String,
    /// Replicas.
    replicas: u32,
    /// How it runs.
    #[command(flatten)]
    how: How,
}

/// Stop a stack; volumes stay.
#[derive(Debug, Args)]
pub struct StopArgs {
    /// Stack.
    stack: String,
    /// Also remove containers and networks.
    #[arg(long)]
    remove: bool,
    /// How it runs.
    #[command(flatten)]
    how: How,
}

/// Cancel a running operation: undone before the switch, refused after it.
#[derive(Debug, Args)]
pub struct CancelArgs {
    /// Operation.
    operation_id: String,
    /// Why, for the record.
    #[arg(long)]
    reason: Option<String>,
}

/// Show an operation, or list the newest.
#[derive(Debug, Args)]
pub struct OperationArgs {
    /// Operation; lists the newest when absent.
    #[arg(required_if_eq("wait", "true"))]
    operation_id: Option<String>,
    /// List those of this stack.
    #[arg(long, conflicts_with = "operation_id")]
    stack: Option<String>,
    /// List those in this state, e.g. failed.
    #[arg(long, conflicts_with = "operation_id")]
    state: Option<String>,
    /// List at most so many; 20 by default, 200 a page.
    #[arg(long, conflicts_with = "operation_id")]
    limit: Option<u32>,
    /// Page: the cursor of the page before.
    #[arg(long, conflicts_with = "operation_id")]
    cursor: Option<String>,
    /// Wait until it is settled.
    #[arg(long)]
    wait: bool,
}

/// An object without its nulls, false flags and empty parts: what is not given must not be sent.
pub fn input(value: Value) -> Value {
    let keep = |v: &Value| match v {
        Value::Null | Value::Bool(false) => false,
        Value::Object(map) => !map.is_empty(),
        _ => true,
    };
    match value {
        Value::Object(map) => Value::Object(map.into_iter().filter(|(_, v)| keep(v)).collect()),
        other => other,
    }
}

fn pairs(list: &[String], flag: &str) -> Result<Value, CliError> {
    let pair = |text: &String| {
        let hint = format!("write {flag} KEY=VALUE");
        let (key, value) = text.split_once('=').ok_or_else(|| CliError::Usage(format!("{flag} {text:?} has no '='"), hint))?;
        Ok((key.to_owned(), Value::from(value)))
    };
    list.iter().map(pair).collect::<Result<Map<_, _>, CliError>>().map(Value::Object)
}

fn read(path: &Path) -> Result<String, CliError> {
    let text = if path == Path::new("-") { std::io::read_to_string(std::io::stdin()) } else { std::fs::read_to_string(path) };
    text.map_err(|e| CliError::Usage(format!("{}: {e}", path.display()), "name a readable text file".into()))
}

/// The fields of plan and deploy that say what is wanted.
fn source(stack: Option<&String>, source: &SourceArgs) -> Result<Value, CliError> {
    let (mut compose, mut files) = (Value::Null, Value::Null);
    match &source.files[..] {
        [] => {}
        [one] => compose = read(one)?.into(),
        several => {
            let entries = several.iter().map(|f| Ok((f.display().to_string(), Value::from(read(f)?))));
            files = Value::Object(entries.collect::<Result<_, CliError>>()?);
        }
    }
    Ok(
        json!({"stack": stack, "compose": compose, "files": files, "environment": source.environment, "variables": pairs(&source.variables, "--var")?,
              "images": pairs(&source.images, "--image")?, "refresh": source.refresh}),
    )
}

/// Runs `call`.
pub async fn call(global: &Global, args: CallArgs) -> CliResult {
    let text = match args.input.strip_prefix('@') {
        Some(path) => read(Path::new(path))?,
        None if args.input == "-" => read(Path::new("-"))?,
        None => args.input,
    };
    let parsed = serde_json::from_str(&text)
        .map_err(|e| CliError::Usage(format!("--input is not JSON: {e}"), "write e.g. --input '{\"stack\": \"hello\"}'".into()))?;
    reach::show(global, &args.tool, parsed).await
}

/// Runs `history`.
pub async fn history(global: &Global, args: HistoryArgs) -> CliResult {
    reach::show(global, "history", input(json!({"stack": args.stack, "release": args.release, "cursor": args.cursor}))).await
}

/// Runs `plan`.
pub async fn plan(global: &Global, args: PlanArgs) -> CliResult {
    let mut value = source(Some(&args.stack), &args.source)?;
    value["service"] = json!(args.service);
    reach::show(global, "plan", input(value)).await
}

/// Runs `deploy`.
pub async fn deploy(global: &Global, args: DeployArgs) -> CliResult {
    let mut value = source(args.stack.as_ref(), &args.source)?;
    value["plan_id"] = json!(args.plan);
    value["digest"] = json!(args.digest);
    args.how.operate(global, "deploy", value).await
}

/// Runs `rollback`.
pub async fn rollback(global: &Global, args: RollbackArgs) -> CliResult {
    let value = json!({"stack": args.stack, "to_release": args.to_release, "data": args.data});
    args.how.operate(global, "rollback", value).await
}

/// Runs `restart`.
pub async fn restart(global: &Global, args: RestartArgs) -> CliResult {
    args.how.operate(global, "restart", json!({"stack": args.stack, "service": args.service, "recreate": args.recreate})).await
}

/// Runs `scale`.
pub async fn scale(global: &Global, args: ScaleArgs) -> CliResult {
    args.how.operate(global, "scale", json!({"stack": args.stack, "service": args.service, "replicas": args.replicas})).await
}

/// Runs `stop`.
pub async fn stop(global: &Global, args: StopArgs) -> CliResult {
    args.how.operate(global, "stop", json!({"stack": args.stack, "remove": args.remove})).await
}

/// Runs `cancel`.
pub async fn cancel(global: &Global, args: CancelArgs) -> CliResult {
    let (value, text) = reach::value(global, "cancel", input(json!({"operation_id": args.operation_id, "reason": args.reason}))).await?;
    super::output::reply(global.json, "cancel", &value, &text);
    Ok(reach::cancelled(&value))
}

/// Runs `operation`.
pub async fn operation(global: &Global, args: OperationArgs) -> CliResult {
    let asked =
        json!({"operation_id": args.operation_id, "stack": args.stack, "state": args.state, "limit": args.limit, "cursor": args.cursor});
    reach::operate(global, "operation", input(asked), args.wait).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_given_is_sent() {
        let given = json!({"stack": "a", "compose": null, "refresh": false, "variables": {}, "images": {"web": "x"}, "replicas": 0});
        assert_eq!(input(given), json!({"stack": "a", "images": {"web": "x"}, "replicas": 0}));
    }

    #[test]
    fn a_command_that_starts_an_operation_says_how() {
        let how = How { no_wait: true, idempotency_key: Some("k".into()), reason: Some("why".into()) };
        assert_eq!(how.input(json!({"stack": "a"})), json!({"stack": "a", "wait": false, "idempotency_key": "k", "reason": "why"}));
        assert_eq!(How::default().input(json!({"stack": "a", "remove": false})), json!({"stack": "a"}));
    }

    #[test]
    fn pairs_need_an_equals_sign_and_keep_the_rest() {
        assert_eq!(pairs(&["A=b=c".into()], "--var").expect("pairs"), json!({"A": "b=c"}));
        assert_eq!(pairs(&["A".into()], "--var").expect_err("refused").code(), 2);
    }
}
