//! Completion of arguments of prompts and resource templates. It names only what the caller could read by a tool: each list asks the call gate
//! first. Deliberately absent: audit rows, since names are all it gives and a client asks at every key.

use super::{Caller, listing, resources};
use crate::adapters::Doors;
use crate::gate::{self, CallFacts};
use crate::model::ids::StackName;
use crate::model::prompt::Prompt;
use crate::model::verdict::Verdict;
use rmcp::ErrorData;
use rmcp::model::{CompleteRequestParams, CompletionInfo, Reference};
use std::sync::Arc;

/// Operations and snapshots looked at for a list.
const RECENT: usize = 200;

/// The values that fit what was typed so far, at most as many as the protocol allows.
///
/// # Errors
/// When there is no such prompt, template or argument.
pub async fn values(doors: &Arc<Doors>, caller: &Caller, request: &CompleteRequestParams) -> Result<CompletionInfo, ErrorData> {
    let argument = request.argument.name.as_str();
    known(&doors.house.prompts.load(), &request.r#ref, argument).map_err(|message| ErrorData::invalid_params(message, None))?;
    let given = request.context.as_ref().and_then(|c| c.get_argument("stack")).and_then(|s| StackName::new(s.as_str()).ok());
    let typed = request.argument.value.to_lowercase();
    let mut found = match own(&request.r#ref, argument) {
        true => vec![caller.agent.to_string()],
        false => candidates(doors, caller, argument, given.as_ref()).await,
    };
    found.retain(|v| v.to_lowercase().contains(&typed));
    // What begins with the typed text is meant before what contains it.
    found.sort_by_key(|v| !v.to_lowercase().starts_with(&typed));
    let total = u32::try_from(found.len()).unwrap_or(u32::MAX);
    let more = found.len() > CompletionInfo::MAX_VALUES;
    found.truncate(CompletionInfo::MAX_VALUES);
    CompletionInfo::with_pagination(found, Some(total), more).map_err(|e| ErrorData::internal_error(e, None))
}

fn known(prompts: &[Prompt], reference: &Reference, argument: &str) -> Result<(), String> {
    let shown = crate::redact::line(argument, 80);
    match reference {
        Reference::Prompt(p) => {
            // A runbook is a task's: `prompts/get` does not know it.
            let prompt = prompts.iter().find(|x| x.name == p.name && x.steps.is_empty());
            let prompt = prompt.ok_or_else(|| format!("there is no prompt {:?}", crate::redact::line(&p.name, 80)))?;
            let has = prompt.arguments.iter().any(|a| a.name == argument);
            if has { Ok(()) } else { Err(format!("prompt {} has no argument {shown:?}", prompt.name)) }
        }
        Reference::Resource(r) => {
            let family = resources::FAMILIES.iter().find(|f| f.template == r.uri);
            let family = family.ok_or_else(|| format!("there is no resource template {:?}", crate::redact::line(&r.uri, 200)))?;
            let variables = family.template.split(['{', '}']).skip(1).step_by(2).flat_map(|v| v.trim_start_matches('?').split(','));
            if variables.into_iter().any(|v| v == argument) {
                Ok(())
            } else {
                Err(format!("{} has no variable {shown:?}", family.template))
            }
        }
        _ => Err("only prompts and resource templates are completed".into()),
    }
}

/// Whether only the caller's own name leads anywhere: nobody reads another's memory.
fn own(reference: &Reference, argument: &str) -> bool {
    argument == "agent" && matches!(reference, Reference::Resource(r) if r.uri.contains("memory/{agent}"))
}

async fn candidates(doors: &Arc<Doors>, caller: &Caller, argument: &str, stack: Option<&StackName>) -> Vec<String> {
    let words = |words: &[&str]| words.iter().map(|w| (*w).to_owned()).collect();
    match (argument, stack) {
        ("stack", _) => stacks(doors, caller).await,
        ("service", Some(stack)) => services(doors, caller, stack).await,
        ("release" | "to_release", Some(stack)) => releases(doors, caller, stack).await,
        ("operation_id", Some(stack)) => operations(doors, caller, stack).await,
        ("volume" | "snapshot_id", Some(stack)) => snapshots(doors, caller, stack, argument).await,
        ("agent" | "name", _) => agents(doors, caller).await,
        ("tool", _) => listing::callable(&doors.house.rulebook.load(), caller).iter().map(|s| s.name.to_owned()).collect(),
        ("environment", _) => doors.house.rulebook.load().policy.environments.keys().cloned().collect(),
        ("verdict", _) => words(&["allow", "warn", "approval", "deny"]),
        ("outcome", _) => words(&["ok", "error", "denied", "pending_approval", "unknown"]),
        ("since" | "until", _) => words(&["1h", "24h", "7d"]),
        _ => vec![],
    }
}

/// Whether the gate would let this caller read by that tool; said without a call, so that no name leaks that a call would not give.
fn may(doors: &Doors, caller: &Caller, tool: &str, stack: Option<&StackName>, environment: Option<String>) -> bool {
    let facts = CallFacts {
        agent: caller.agent.to_string(),
        tool: tool.to_owned(),
        mutates: false,
        stack: stack.cloned(),
        environment: environment.filter(|e| !e.is_empty()),
        service: None,
        preview: false,

        arguments: Default::default(),
        on_behalf: vec![],
    };
    gate::call::decide(&doors.house.rulebook.load(), &facts).verdict < Verdict::Approval
}

/// What could not be read completes nothing; the log says why.
fn or_nothing<T: Default>(read: Result<T, crate::store::StoreError>) -> T {
    read.unwrap_or_else(|e| {
        tracing::warn!(error = %e, "names could not be read for a list");
        T::default()
    })
}

/// Names of stacks this caller may see, deployed or registered, sorted.
pub async fn stacks(doors: &Arc<Doors>, caller: &Caller) -> Vec<String> {
    let house = &doors.house;
    let default = house.rulebook.load().policy.default_environment.clone();
    let records = or_nothing(house.store.stacks().await).into_iter().map(|s| (s.name, s.environment));
    let registered = house.config.settings.stacks.iter().map(|(name, s)| (name.clone(), s.environment.clone().unwrap_or(default.clone())));
    let mut seen: Vec<String> = records
        .chain(registered)
        .filter(|(name, environment)| may(doors, caller, "status", Some(name), Some(environment.clone())))
        .map(|(name, _)| name.to_string())
        .collect();
    seen.sort();
    seen.dedup();
    seen
}

/// Whether the caller may read that of a stack which is there.
async fn readable(doors: &Arc<Doors>, caller: &Caller, tool: &str, stack: &StackName) -> bool {
    let record = or_nothing(doors.house.store.stack(stack).await);
    record.is_some_and(|r| may(doors, caller, tool, Some(stack), Some(r.environment)))
}

async fn services(doors: &Arc<Doors>, caller: &Caller, stack: &StackName) -> Vec<String> {
    if !readable(doors, caller, "health", stack).await {
        return vec![];
    }
    let current = or_nothing(doors.house.store.stack(stack).await).and_then(|r| r.current);
    let Some(number) = current else { return vec![] };
    let release = or_nothing(doors.house.store.release(stack, number).await);
    release.map(|r| r.spec.services.keys().map(ToString::to_string).collect()).unwrap_or_default()
}

async fn releases(doors: &Arc<Doors>, caller: &Caller, stack: &StackName) -> Vec<String> {
    if !readable(doors, caller, "history", stack).await {
        return vec![];
    }
    let last = or_nothing(doors.house.store.last_release_number(stack).await);
    (1..=last).rev().map(|n| n.to_string()).collect()
}

async fn operations(doors: &Arc<Doors>, caller: &Caller, stack: &StackName) -> Vec<String> {
    if !readable(doors, caller, "operation", stack).await {
        return vec![];
    }
    or_nothing(doors.house.store.operations(Some(stack), RECENT).await).into_iter().map(|o| o.id.to_string()).collect()
}

async fn snapshots(doors: &Arc<Doors>, caller: &Caller, stack: &StackName, what: &str) -> Vec<String> {
    if !readable(doors, caller, "backups", stack).await {
        return vec![];
    }
    let found = or_nothing(doors.house.store.backups(Some(stack), None, RECENT).await);
    let mut seen: Vec<String> = found.into_iter().map(|b| if what == "volume" { b.volume } else { b.snapshot_id }).collect();
    if what == "volume" {
        seen.sort();
        seen.dedup();
    }
    seen
}

async fn agents(doors: &Arc<Doors>, caller: &Caller) -> Vec<String> {
    if !may(doors, caller, "agents", None, None) {
        return vec![caller.agent.to_string()];
    }
    doors.house.rulebook.load().agents.keys().cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_exists_is_completed() {
        let template = |uri: &str, argument: &str| known(&[], &Reference::for_resource(uri), argument);
        assert_eq!(template("dockwarden://stacks/{stack}", "stack"), Ok(()));
        assert_eq!(template("dockwarden://audit{?agent,tool,stack,verdict,outcome,since,until,cursor}", "tool"), Ok(()));
        assert_eq!(template("dockwarden://stacks/{stack}/services/{service}", "service"), Ok(()));
        assert!(template("dockwarden://stacks/{stack}", "release").is_err());
        assert!(template("dockwarden://nowhere/{stack}", "stack").is_err());
        let prompt = Prompt {
            name: "p".into(),
            title: String::new(),
            description: String::new(),
            arguments: vec![],
            body: String::new(),
            steps: vec![],
            retry: Default::default(),
        };
        assert!(known(std::slice::from_ref(&prompt), &Reference::for_prompt("p"), "stack").is_err());
        for family in resources::FAMILIES.iter().filter(|f| f.template.contains("{agent}")) {
            assert!(own(&Reference::for_resource(family.template), "agent"), "{}", family.template);
        }
        assert!(!own(&Reference::for_resource("dockwarden://audit{?agent,tool,stack,verdict,outcome,since,until,cursor}"), "agent"));
        assert!(!own(&Reference::for_prompt("p"), "agent"));
        assert!(known(&[prompt], &Reference::for_prompt("q"), "stack").is_err());
    }
}
