//! `health`: whether what shall run runs well, per service, with the reason where it does not.

use super::status::Format;
use super::{Effect, ToolSpec, Verb, schema};
use crate::call::facts::Scope;
use crate::call::observe::{self, ServiceHealth};
use crate::call::{Call, CallError, prepare};
use crate::gate::Permit;
use crate::model::ids::{ServiceName, StackName};
use crate::model::plan::Plan;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::time::Instant;

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Input {
    /// One stack; all by default.
    stack: Option<StackName>,
    /// One service of the stack.
    service: Option<ServiceName>,
    /// Also check the engine and the store.
    #[serde(default)]
    deep: bool,
    /// `concise` leaves out services that are well when all stacks are asked for.
    #[serde(default)]
    response_format: Format,
}

#[derive(Debug, Serialize, JsonSchema)]
#[schemars(inline)]
struct StackHealth {
    stack: StackName,
    #[serde(skip_serializing_if = "Option::is_none")]
    release: Option<u32>,
    /// `healthy degraded unhealthy stopped not_deployed`.
    state: String,
    services: Vec<ServiceHealth>,
    /// Services that are well and left out.
    #[serde(skip_serializing_if = "is_zero")]
    well: usize,
}

#[derive(Debug, Serialize, JsonSchema)]
#[schemars(inline)]
struct Check {
    what: String,
    ok: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    problem: Option<String>,
    ms: u64,
}

#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Output {
    healthy: bool,
    stacks: Vec<StackHealth>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    checks: Vec<Check>,
}

fn is_zero(n: &usize) -> bool {
    *n == 0
}

pub(super) struct Health;

impl Verb for Health {
    const SPEC: &'static ToolSpec = &ToolSpec {
        name: "health",
        title: "Health of stacks",
        description: "Whether every service that shall run runs and passes its health check, and why not. A stack stopped on purpose does not count. deep also checks the engine and the supervisor's own state.",
        effect: Effect::Read,
        idempotent: true,
        input_schema: schema::input::<Input>,
        output_schema: schema::output::<Output>,
    };
    type Input = Input;
    type Output = Output;

    async fn scope(_: &Call, input: &Input) -> Result<Scope, CallError> {
        Ok(Scope::service(input.stack.as_ref(), input.service.as_ref()))
    }

    async fn run(call: &Call, input: Input, _: Option<Plan>, _: Permit) -> Result<Output, CallError> {
        let checks = if input.deep { deep(call).await } else { vec![] };
        if checks.iter().any(|c| !c.ok) {
            return Ok(Output { healthy: false, stacks: vec![], checks });
        }
        let store = &call.house.store;
        let records: Vec<_> = store.stacks().await?.into_iter().filter(|r| input.stack.as_ref().is_none_or(|n| *n == r.name)).collect();
        if let Some(name) = input.stack.as_ref().filter(|_| records.is_empty()) {
            return Err(prepare::not_deployed(name));
        }
        let containers = observe::details(&call.house, &observe::shown(&call.house, input.stack.as_ref()).await?).await?;
        let mut stacks = vec![];
        for record in records {
            let release = match record.current {
                Some(number) => store.release(&record.name, number).await?,
                None => None,
            };
            let Some(release) = release else {
                stacks.push(StackHealth { stack: record.name, release: None, state: "not_deployed".into(), services: vec![], well: 0 });
                continue;
            };
            let mine: Vec<_> = containers
                .iter()
                .filter(|c| c.labels.get(crate::model::labels::STACK).is_some_and(|s| s == record.name.as_str()))
                .cloned()
                .collect();
            let standing = observe::standing(&call.house, &release, record.stopped, chrono::Utc::now()).await?;
            let mut services = observe::health(&release, &mine, &standing);
            if let Some(wanted) = &input.service {
                if !services.iter().any(|s| s.service == *wanted) {
                    return Err(prepare::no_service(&record.name, wanted, release.spec.services.keys()));
                }
                services.retain(|s| s.service == *wanted);
            }
            let state = state(&services, record.stopped);
            let all = services.len();
            if input.stack.is_none() && input.response_format == Format::Concise && state != "stopped" {
                services.retain(|s| !s.healthy);
            }
            stacks.push(StackHealth {
                stack: record.name,
                release: Some(release.number),
                state: state.into(),
                well: all - services.len(),
                services,
            });
        }
        let ok =
            |s: &StackHealth| s.state == "healthy" || (input.stack.is_none() && matches!(s.state.as_str(), "stopped" | "not_deployed"));
        Ok(Output { healthy: stacks.iter().all(ok), stacks, checks })
    }

    fn text(o: &Output) -> Option<String> {
        // Nothing of these shall run: neither well nor unwell.
        let idle = ["stopped", "not_deployed"].into_iter().find(|idle| !o.stacks.is_empty() && o.stacks.iter().all(|s| s.state == *idle));
        let mut out = idle.unwrap_or(if o.healthy { "healthy" } else { "NOT healthy" }).to_owned();
        for c in o.checks.iter() {
            out.push_str(&format!("\ncheck {}: {} ({} ms)", c.what, c.problem.as_deref().unwrap_or("ok"), c.ms));
        }
        for s in &o.stacks {
            out.push_str(&format!("\n{}{}: {}", s.stack, s.release.map(|r| format!(" release {r}")).unwrap_or_default(), s.state));
            for v in &s.services {
                let reason = v.reason.as_ref().map(|r| format!(": {r}")).unwrap_or_default();
                out.push_str(&format!(
                    "\n  {} {}/{} {}{}{reason}",
                    v.service,
                    v.running,
                    v.desired,
                    v.state,
                    if v.healthy { " healthy" } else { "" }
                ));
                if let Some(found) = &v.output {
                    out.push_str(&format!("\n  [untrusted, {}] {}", found.source, found.text));
                }
            }
        }
        Some(out)
    }
}

fn state(services: &[ServiceHealth], stopped: bool) -> &'static str {
    match services.iter().filter(|s| s.healthy).count() {
        _ if stopped => "stopped",
        well if well == services.len() => "healthy",
        0 => "unhealthy",
        _ => "degraded",
    }
}

async fn deep(call: &Call) -> Vec<Check> {
    let begun = Instant::now();
    let engine = call.house.engine.info().await.err().map(|e| e.to_string());
    let engine_ms = begun.elapsed();
    let begun = Instant::now();
    // Writes, so that a full or read-only disk is found before a deploy finds it.
    let written = call.house.store.set_value("health.deep", &serde_json::json!(call.now)).await;
    let full = || call.house.store.is_full().then(|| "the disk of the home is full: free space there".to_owned());
    let store = written.err().map(|e| e.to_string()).or_else(full);
    [("engine", engine, engine_ms), ("store", store, begun.elapsed())]
        .into_iter()
        .map(|(what, problem, took)| Check {
            what: what.into(),
            ok: problem.is_none(),
            problem,
            ms: u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
        })
        .collect()
}
