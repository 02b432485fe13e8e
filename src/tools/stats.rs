//! `stats`: what each container of our stacks uses of the host, one sample.

use super::status::Format;
use super::{Effect, ToolSpec, Verb, schema};
use crate::call::facts::Scope;
use crate::call::{Call, CallError, observe, prepare};
use crate::gate::Permit;
use crate::model::ids::StackName;
use crate::model::labels;
use crate::model::observed::{ContainerSummary, RunState, StatsSample};
use crate::model::plan::Plan;
use futures_util::{StreamExt, stream};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Input {
    /// One stack; all by default.
    stack: Option<StackName>,
    /// How much to say.
    #[serde(default)]
    response_format: Format,
}

#[derive(Debug, Serialize, JsonSchema)]
#[schemars(inline)]
struct Row {
    stack: String,
    service: String,
    container: String,
    cpu_percent: f64,
    memory_bytes: u64,
    memory_limit_bytes: u64,
    net_rx_bytes: u64,
    net_tx_bytes: u64,
    block_read_bytes: u64,
    block_write_bytes: u64,
    pids: u64,
}

#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Output {
    /// `stack container cpu memory pids`.
    rows: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    containers: Vec<Row>,
    cpu_percent: f64,
    memory_bytes: u64,
    /// Containers that gave no sample.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    missing: Vec<String>,
}

pub(super) struct Stats;

impl Verb for Stats {
    const SPEC: &'static ToolSpec = &ToolSpec {
        name: "stats",
        title: "Use of CPU and memory",
        description: "One sample of CPU (percent of one core), memory, network and disk use per running container.",
        effect: Effect::Read,
        idempotent: true,
        input_schema: schema::input::<Input>,
        output_schema: schema::output::<Output>,
    };
    type Input = Input;
    type Output = Output;

    async fn scope(_: &Call, input: &Input) -> Result<Scope, CallError> {
        Ok(Scope::service(input.stack.as_ref(), None))
    }

    async fn run(call: &Call, input: Input, _: Option<Plan>, _: Permit) -> Result<Output, CallError> {
        let mut running = observe::serving(&call.house, input.stack.as_ref()).await?;
        if let Some(name) = input.stack.as_ref().filter(|_| running.is_empty()) {
            return Err(prepare::not_deployed(name));
        }
        running.retain(|c| c.state == RunState::Running);
        let samples: Vec<(&ContainerSummary, Option<StatsSample>)> = stream::iter(running.iter().map(|c| async move {
            let sample = call.house.engine.stats(&c.id).await;
            if let Err(e) = &sample {
                tracing::warn!(container = %c.name, error = %e, "no sample");
            }
            (c, sample.ok())
        }))
        .buffered(32)
        .collect()
        .await;
        let missing = samples.iter().filter(|(_, s)| s.is_none()).map(|(c, _)| c.name.clone()).collect();
        let all: Vec<Row> = samples.into_iter().filter_map(|(c, s)| Some(row(c, s?))).collect();
        let (cpu_percent, memory_bytes) = (round(all.iter().map(|r| r.cpu_percent).sum()), all.iter().map(|r| r.memory_bytes).sum());
        let (rows, containers) = match input.response_format {
            Format::Concise => (all.iter().map(concise).collect(), vec![]),
            Format::Detailed => (vec![], all),
        };
        Ok(Output { rows, containers, cpu_percent, memory_bytes, missing })
    }

    fn text(o: &Output) -> Option<String> {
        let mut out = format!("cpu {}% memory {}", o.cpu_percent, mib(o.memory_bytes));
        for row in o.rows.iter().cloned().chain(o.containers.iter().map(concise)) {
            out.push_str(&format!("\n{row}"));
        }
        Some(out)
    }
}

fn row(c: &ContainerSummary, s: StatsSample) -> Row {
    let label = |key| c.labels.get(key).cloned().unwrap_or_default();
    Row {
        stack: label(labels::STACK),
        service: label(labels::SERVICE),
        container: c.name.clone(),
        cpu_percent: round(s.cpu_percent),
        memory_bytes: s.memory_bytes,
        memory_limit_bytes: s.memory_limit_bytes,
        net_rx_bytes: s.net_rx_bytes,
        net_tx_bytes: s.net_tx_bytes,
        block_read_bytes: s.block_read_bytes,
        block_write_bytes: s.block_write_bytes,
        pids: s.pids,
    }
}

fn concise(r: &Row) -> String {
    format!("{} {} {}% {}/{} {}p", r.stack, r.container, r.cpu_percent, mib(r.memory_bytes), mib(r.memory_limit_bytes), r.pids)
}

fn round(percent: f64) -> f64 {
    (percent * 10.0).round() / 10.0
}

fn mib(bytes: u64) -> String {
    format!("{:.1}MiB", bytes as f64 / 1_048_576.0)
}
