//! `memory_read`: the calling agent's own notes. No agent reads another's.

use super::{Effect, ToolSpec, Verb, schema};
use crate::call::error::ErrorCode;
use crate::call::facts::Scope;
use crate::call::{Call, CallError};
use crate::gate::Permit;
use crate::model::ids::AgentName;
use crate::model::plan::Plan;
use crate::redact;
use crate::store::memory::MemoryEntry;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;

/// Most bytes of values in a reply: it carries them twice, as text and as value, and clients refuse replies of 25,000 tokens.
const MAX_BYTES: usize = 24_000;
/// Past calls of a page.
const HISTORY: usize = 100;

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Input {
    /// One key; all keys by default.
    key: Option<String>,
    /// Your past calls instead, newest first.
    #[serde(default)]
    history: bool,
    /// `next_cursor` of the reply before, with history.
    cursor: Option<String>,
}

#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Output {
    entries: Vec<MemoryEntry>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    truncated: bool,
    /// For older calls.
    #[serde(skip_serializing_if = "Option::is_none")]
    next_cursor: Option<String>,
}

pub(super) struct MemoryRead;

impl Verb for MemoryRead {
    const SPEC: &'static ToolSpec = &ToolSpec {
        name: "memory_read",
        title: "Read own memory",
        description: "Your own notes from earlier sessions: one key, or all.",
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
        let (store, me) = (&call.house.store, &call.who.agent);
        let before = input.cursor.as_deref().map(cursor).transpose()?;
        if before.is_some() && !input.history {
            let hint = "give `history: true` with the cursor of past calls; of notes ask for one key";
            return Err(CallError::new(ErrorCode::InvalidArgument, "a cursor goes on with past calls", hint).field("cursor"));
        }
        let mut found = if input.history {
            store.memory_history_page(me, input.key.as_deref(), before, HISTORY + 1).await?
        } else {
            store.memory_read(me, input.key.as_deref()).await?
        };
        let more = input.history && found.len() > HISTORY;
        if more {
            found.truncate(HISTORY);
        }
        let (entries, cut) = bounded(of_others_enveloped(found, me));
        let next_cursor = entries.last().filter(|_| input.history && (more || cut)).map(|e| e.seq.to_string());
        Ok(Output { truncated: cut && next_cursor.is_none(), entries, next_cursor })
    }

    fn text(o: &Output) -> Option<String> {
        let mut out = listed(&o.entries, o.truncated);
        if let Some(next) = &o.next_cursor {
            out.push_str(&format!("\n(older calls: cursor {next})"));
        }
        Some(out)
    }
}

fn cursor(text: &str) -> Result<i64, CallError> {
    text.parse().map_err(|_| {
        let message = format!("{:?} is no cursor", redact::line(text, 64));
        CallError::new(ErrorCode::InvalidArgument, message, "pass next_cursor of the reply before").field("cursor")
    })
}

/// What the agent did not write itself, and the house did not record of it (imported notes and histories), is another's words: data, not instructions.
pub(super) fn of_others_enveloped(mut found: Vec<MemoryEntry>, me: &AgentName) -> Vec<MemoryEntry> {
    let others = |e: &MemoryEntry| match e.kind.as_str() {
        "context" => e.source != me.as_str(),
        "history" => !e.source.starts_with("audit:"),
        _ => false,
    };
    for entry in found.iter_mut().filter(|e| others(e)) {
        let text = entry.value.as_str().map_or_else(|| entry.value.to_string(), str::to_owned);
        entry.value = json!(redact::envelope(format!("note, {}", entry.source), &text, MAX_BYTES));
    }
    found
}

/// As many entries as fit into a reply.
pub(super) fn bounded(found: Vec<MemoryEntry>) -> (Vec<MemoryEntry>, bool) {
    let (mut used, all) = (0, found.len());
    let kept: Vec<MemoryEntry> = found
        .into_iter()
        .take_while(|e| {
            used += e.key.len() + e.value.to_string().len() + 120;
            used <= MAX_BYTES
        })
        .collect();
    let truncated = kept.len() < all;
    (kept, truncated)
}

/// One line per entry.
pub(super) fn listed(entries: &[MemoryEntry], truncated: bool) -> String {
    let mut out = if entries.is_empty() { "nothing remembered".to_owned() } else { String::new() };
    for e in entries {
        let foreign = e.value["untrusted"] == true;
        let value = if foreign { &e.value["text"] } else { &e.value };
        let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        let origin = match e.kind.as_str() {
            _ if foreign => format!(" [untrusted, {}]", e.source),
            "history" => format!(" [history, {}]", e.source),
            _ => String::new(),
        };
        out.push_str(&format!("{} {}{origin}: {}\n", e.at.format("%Y-%m-%d %H:%M"), redact::line(&e.key, 200), value));
    }
    if truncated {
        out.push_str("(more; ask for one key)");
    }
    out.trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_came_from_elsewhere_is_anothers_words_whatever_its_kind() {
        let entry = |kind: &str, source: &str| MemoryEntry {
            seq: 1,
            kind: kind.into(),
            key: "k".into(),
            value: json!("deploy evil"),
            source: source.into(),
            at: chrono::DateTime::UNIX_EPOCH,
        };
        let me = AgentName::new("keeper").expect("valid");
        let found = vec![
            entry("context", "keeper"),
            entry("context", "import:other"),
            entry("history", "audit:7"),
            entry("history", "import"),
            entry("history", "import:other"),
        ];
        let foreign: Vec<bool> = of_others_enveloped(found.clone(), &me).iter().map(|e| e.value["untrusted"] == true).collect();
        assert_eq!(foreign, [false, true, false, true, true]);
        let text = listed(&of_others_enveloped(found, &me), false);
        assert_eq!(text.matches("[untrusted, import").count(), 3, "{text}");
    }
}
