//! `memory_search`: full text over the calling agent's own notes and history, and over the incidents of stacks it may diagnose.

use super::memory_read::{bounded, listed, of_others_enveloped};
use super::{Effect, ToolSpec, Verb, schema};
use crate::call::facts::{self, Scope};
use crate::call::{Call, CallError};
use crate::gate::Permit;
use crate::model::incident::Incident;
use crate::model::plan::Plan;
use crate::redact;
use crate::store::memory::MemoryEntry;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;

/// Who keeps incidents: the loop.
const WARDEN: &str = "warden";
/// Entries returned.
const FOUND: usize = 20;
/// Incidents returned beside them, and bytes of each; `diagnose` has the whole report.
const INCIDENTS: usize = 5;
const REPORT: usize = 1500;

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
        description: "Finds words in your own notes, the history of your own calls, and incidents, best match first.",
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
        let query = redact::keep_start(&input.query, 500);
        let found = call.house.store.memory_search(&call.who.agent, query, FOUND).await?;
        let mut found = of_others_enveloped(found, &call.who.agent);
        found.extend(incidents(call, query).await?);
        let (entries, truncated) = bounded(found);
        Ok(Output { entries, truncated })
    }

    fn text(o: &Output) -> Option<String> {
        Some(listed(&o.entries, o.truncated))
    }
}

/// Incidents the loop recorded, of stacks the caller may diagnose.
async fn incidents(call: &Call, query: &str) -> Result<Vec<MemoryEntry>, CallError> {
    let store = &call.house.store;
    let mut stacks = vec![];
    for stack in store.stacks().await? {
        if facts::may_read(call, "diagnose", &stack.name).await? {
            stacks.push(stack.name);
        }
    }
    let entry = |i: Incident| MemoryEntry {
        seq: 0,
        at: i.opened_at,
        kind: "incident".into(),
        key: format!("{}/{} {}", i.stack, i.service, i.id),
        value: json!(redact::envelope(format!("report of {}", i.id), &i.markdown(call.now), REPORT)),
        source: WARDEN.into(),
    };
    Ok(store.incidents_matching(&stacks, query, INCIDENTS).await?.into_iter().map(entry).collect())
}

#[cfg(test)]
mod tests {
    use crate::call::dispatch::tests::{COMPOSE, KEEPER, bench_of};
    use crate::model::ids::{IncidentId, ServiceName, StackName};
    use crate::model::incident::{Cause, Incident};
    use serde_json::json;

    #[tokio::test]
    async fn incidents_are_found_by_whoever_may_diagnose_their_stack() {
        let rules = "  rules:\n    - {id: no-bank, effect: deny, tools: [diagnose], stacks: [bank], because: \"the bank's is the bank's\", match: [{tool: diagnose, stack: bank}]}\n";
        let keeper = KEEPER.replace("prune\nmodel", "prune, diagnose, memory_search\nmodel").replace("  rules:\n", rules);
        let bench = bench_of(&keeper).await;
        for stack in ["shop", "bank"] {
            bench.call("deploy", json!({"stack": stack, "environment": "development", "compose": COMPOSE})).await.unwrap();
            let incident = Incident {
                id: IncidentId::new(format!("inc-{stack}")).unwrap(),
                stack: StackName::new(stack).unwrap(),
                service: ServiceName::new("web").unwrap(),
                release: 1,
                opened_at: chrono::Utc::now(),
                closed_at: None,
                recovered_at: None,
                cause: Cause::Crashed,
                reason: "it restarted eleven times".into(),
                evidence: vec![],
                changes: vec![],
                actions: vec![],
                quarantined: false,
                ended: None,
            };
            bench.house.store.put_incident(&incident).await.unwrap();
        }
        let reply = bench.call("memory_search", json!({"query": "restarting eleven"})).await.unwrap();
        let kinds: Vec<_> =
            reply.value["entries"].as_array().unwrap().iter().filter(|e| e["kind"] == "incident").map(|e| e["key"].clone()).collect();
        assert_eq!(kinds, [json!("shop/web inc-shop")], "{reply:?}");
        let found = reply.value["entries"].as_array().unwrap().iter().find(|e| e["kind"] == "incident").unwrap();
        assert_eq!((found["value"]["untrusted"].clone(), found["source"].clone()), (json!(true), json!("warden")));
        assert!(reply.text.contains("[untrusted, warden]"), "{}", reply.text);
    }
}
