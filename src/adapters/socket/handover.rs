//! Stacks taken over from Compose and given back, for people at the machine: requests in, rows and words out. Who asks is checked before.

use crate::call::adopt::{self, Asked, Report};
use crate::call::dispatch::Reply;
use crate::call::eject;
use crate::call::error::ErrorCode;
use crate::call::{CallError, House};
use crate::model::ids::{AgentName, StackName};
use crate::model::verdict::Verdict;
use serde_json::{Value, json};
use std::sync::Arc;

/// How stacks are to be adopted.
#[derive(Debug)]
pub struct How {
    /// Only look.
    pub dry_run: bool,
    /// Although the files differ.
    pub accept_drift: bool,
    /// Environment.
    pub environment: Option<String>,
    /// Operator.
    pub by: String,
}

fn name<T: TryFrom<String>>(text: &str, field: &str) -> Result<T, CallError>
where
    T::Error: std::fmt::Display,
{
    T::try_from(text.to_owned())
        .map_err(|e| CallError::new(ErrorCode::InvalidArgument, e.to_string(), "see `dockwarden status`").field(field))
}

/// Adopts one stack, or every one there is; with several a refusal of one is a row and the others go on.
///
/// # Errors
/// The refusal, when one stack was named; the engine's.
pub async fn adopt(house: &Arc<House>, stack: Option<&str>, how: How) -> Result<Reply, CallError> {
    let by: AgentName = name(&how.by, "operator")?;
    let asked = |stack: StackName| Asked {
        stack,
        dry_run: how.dry_run,
        accept_drift: how.accept_drift,
        environment: how.environment.clone(),
        by: by.clone(),
    };
    let (mut rows, mut texts) = (vec![], vec![]);
    match stack {
        Some(stack) => {
            let report = adopt::adopt(house, &asked(name(stack, "stack")?)).await?;
            texts.push(words(&report));
            rows.push(json!(report));
        }
        None => {
            for stack in adopt::candidates(house).await? {
                match adopt::adopt(house, &asked(stack.clone())).await {
                    Ok(report) => {
                        texts.push(words(&report));
                        rows.push(json!(report));
                    }
                    Err(e) => {
                        texts.push(format!("{stack}: not adopted: {}\n  hint: {}", e.message, e.hint));
                        rows.push(json!({"stack": stack, "state": "refused", "error": e}));
                    }
                }
            }
            if rows.is_empty() {
                texts.push("no Compose project is left to adopt".into());
            }
        }
    }
    Ok(Reply::new(json!({"dry_run": how.dry_run, "stacks": rows}), texts.join("\n\n")))
}

/// Gives a stack back.
///
/// # Errors
/// As `call::eject`.
pub async fn eject(house: &Arc<House>, stack: &str, dry_run: bool, by: &str) -> Result<Reply, CallError> {
    let done = eject::eject(house, &name(stack, "stack")?, dry_run, &name(by, "operator")?).await?;
    let verb = if dry_run { "would be given back" } else { "is given back" };
    let mut text = format!("{} {verb} to Compose; {} containers go on running", done.stack, done.containers.len());
    if let Some(command) = &done.command {
        text.push_str(&format!("\ngo on with:\n  {command}"));
    }
    for note in &done.notes {
        text.push_str(&format!("\nnote: {note}"));
    }
    Ok(Reply::new(json!(done), text))
}

/// A report as a person reads it: what it is, what differs, what to write.
fn words(r: &Report) -> String {
    let release = r.release.map(|n| n.to_string()).unwrap_or_default();
    let mut out = match r.state {
        "managed" => return format!("{}: managed here already, release {release}", r.stack),
        "adopted" => format!("{}: adopted as release {release} in {}; nothing was restarted", r.stack, r.environment),
        _ => format!("{}: would be adopted as release {release} in {}; nothing would be restarted", r.stack, r.environment),
    };
    out.push_str(&format!("\n  files {} in {}", r.files.files.join(", "), r.files.dir.display()));
    for s in &r.services {
        out.push_str(&format!("\n  {} {} ({})", s.service, s.containers.join(", "), s.image));
    }
    let objects: Vec<&str> = r.networks.iter().chain(&r.volumes).map(String::as_str).collect();
    if !objects.is_empty() {
        out.push_str(&format!("\n  networks and volumes: {}", objects.join(", ")));
    }
    for d in &r.drift {
        out.push_str(&format!("\n  differs: {} {}: the files say {}, it runs with {}", d.service, d.what, d.file, d.runs));
    }
    if r.state == "would_adopt" && !r.drift.is_empty() {
        out.push_str("\n  it is refused until the files are as what runs, or with --accept-drift");
    }
    for f in r.findings.iter().filter(|f| f.verdict >= Verdict::Warn) {
        out.push_str(&format!("\n  {} {} {}: {}", f.verdict.as_str(), f.rule, f.path.as_deref().unwrap_or_default(), f.because));
    }
    if !r.policy_lines.is_empty() {
        out.push_str(&format!(
            "\n\nwithout these lines in policy.toml the next deploy of {} is refused or waits:\n\n{}",
            r.stack, r.policy_lines
        ));
    }
    out.trim_end().to_owned()
}

/// Whether a stack of a reply was refused.
pub fn any_refused(value: &Value) -> bool {
    value["stacks"].as_array().into_iter().flatten().any(|s| s["state"] == "refused")
}
