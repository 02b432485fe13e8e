//! Resources: the replies of the reading tools under an address. Every read is that tool's call, with its gate and its audit row; nothing is read
//! here. Deliberately absent: any content, and any right the tool does not give.

use super::{Caller, listing};
use crate::adapters::Doors;
use crate::call::dispatch::Wish;
use crate::call::error::ErrorCode;
use crate::call::{CallError, Principal};
use rmcp::ErrorData;
use rmcp::model::{Annotations, CacheScope, ReadResourceResult, Resource, ResourceContents, ResourceTemplate};
use serde_json::{Map, Value, json};
use std::sync::Arc;

/// What every address begins with.
pub const SCHEME: &str = "dockwarden://";
/// Resources a page of the list.
const PAGE: usize = 200;
/// How long a client may keep what can change at any moment: long enough for one answer of a model.
const FRESH_MS: u64 = 2_000;

/// An address with variables, and the tool it is read by.
pub struct Family {
    /// RFC 6570 template.
    pub template: &'static str,
    name: &'static str,
    title: &'static str,
    description: &'static str,
    tool: &'static str,
}

/// Every family; those without variables are listed as resources.
pub const FAMILIES: &[Family] = &[
    family("dockwarden://stacks", "stacks", "Stacks", "Every stack and what runs of it.", "status"),
    family("dockwarden://stacks/{stack}", "stack", "A stack", "What runs of one stack.", "status"),
    family("dockwarden://stacks/{stack}/health", "health", "Health of a stack", "Health of its services, with reasons.", "health"),
    family("dockwarden://stacks/{stack}/services/{service}", "service", "A service", "Health of one service, with the reason.", "health"),
    family("dockwarden://stacks/{stack}/releases", "releases", "Releases of a stack", "Its releases, newest first.", "history"),
    family(
        "dockwarden://stacks/{stack}/releases/{release}",
        "release",
        "A release",
        "One release as a compose file (`compose`) and its difference to the one before (`changed`); secrets are hashes.",
        "history",
    ),
    family(
        "dockwarden://stacks/{stack}/operations/{operation_id}",
        "operation",
        "An operation",
        "Where an operation of the stack stands, with evidence of a failure.",
        "operation",
    ),
    family(
        "dockwarden://audit{?agent,tool,stack,verdict,outcome,since,until,cursor}",
        "audit",
        "Audit log",
        "Who called what and how it ended, newest first.",
        "audit",
    ),
    family("dockwarden://memory/{agent}/context", "memory", "Own notes", "The calling agent's notes.", "memory_read"),
    family("dockwarden://memory/{agent}/history", "memory_history", "Own history", "The calling agent's past calls.", "memory_read"),
    family("dockwarden://agents", "agents", "Agents", "Who there is and what each may do.", "agents"),
    family("dockwarden://agents/{name}", "agent", "An agent", "What one agent may do.", "agents"),
];

const fn family(template: &'static str, name: &'static str, title: &'static str, description: &'static str, tool: &'static str) -> Family {
    Family { template, name, title, description, tool }
}

/// The call an address stands for.
#[derive(Debug, PartialEq)]
pub struct Read {
    /// Tool.
    pub tool: &'static str,
    /// Its arguments.
    pub input: Value,
    /// A field of the reply that the address fixes.
    fixed: Option<(&'static str, String)>,
}

impl Read {
    /// The same as something to follow.
    pub fn wish(&self) -> Wish<'_> {
        let stack = self.fixed.as_ref().filter(|(field, _)| *field == "stack").map(|(_, stack)| stack.as_str());
        Wish { tool: self.tool, input: self.input.clone(), stack }
    }
}

fn read(tool: &'static str, input: Value) -> Option<Read> {
    Some(Read { tool, input, fixed: None })
}

/// `%41` to `A`; `None` for what is no such coding or no UTF-8.
fn decoded(text: &str) -> Option<String> {
    let mut bytes = vec![];
    let mut rest = text.bytes();
    while let Some(b) = rest.next() {
        if b == b'%' {
            let digits = [rest.next()?, rest.next()?];
            bytes.push(u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()?);
        } else {
            bytes.push(b);
        }
    }
    String::from_utf8(bytes).ok()
}

/// Parts of an address's path, and the keys and values of its query.
pub type Address = (Vec<String>, Vec<(String, String)>);

/// Path and query of an address, decoded; `None` where it cannot lead anywhere.
pub fn split(uri: &str) -> Option<Address> {
    let rest = uri.strip_prefix(SCHEME)?;
    let (path, query) = rest.split_once('?').map_or((rest, None), |(p, q)| (p, Some(q)));
    let path: Vec<String> = path.split('/').map(decoded).collect::<Option<_>>()?;
    if query.is_some() && path != ["audit"] {
        return None;
    }
    let pair = |pair: &str| {
        let (key, value) = pair.split_once('=')?;
        Some((decoded(key)?, decoded(value)?))
    };
    let query = query.unwrap_or_default().split('&').filter(|p| !p.is_empty()).map(pair).collect::<Option<_>>()?;
    Some((path, query))
}

/// The call behind an address of this caller; `None` when it leads nowhere.
pub fn parse(uri: &str, caller: &Caller) -> Option<Read> {
    let (parts, query) = split(uri)?;
    let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
    match parts.as_slice() {
        ["stacks"] => read("status", json!({})),
        ["stacks", stack] => read("status", json!({"stack": stack})),
        ["stacks", stack, "health"] => read("health", json!({"stack": stack, "response_format": "detailed"})),
        ["stacks", stack, "services", service] => {
            read("health", json!({"stack": stack, "service": service, "response_format": "detailed"}))
        }
        ["stacks", stack, "releases"] => read("history", json!({"stack": stack})),
        ["stacks", stack, "releases", number] => {
            read("history", json!({"stack": stack, "release": number.parse::<u32>().ok()?, "compose": true}))
        }
        ["stacks", stack, "operations", id] => {
            Some(Read { tool: "operation", input: json!({"operation_id": id}), fixed: Some(("stack", (*stack).to_owned())) })
        }
        ["audit"] => {
            let input: Map<String, Value> = query.into_iter().map(|(key, value)| (key, value.into())).collect();
            read("audit", input.into())
        }
        // Nobody reads another's memory: for anyone else there is nothing at that address.
        ["memory", agent, "context"] if *agent == caller.agent.as_str() => read("memory_read", json!({})),
        ["memory", agent, "history"] if *agent == caller.agent.as_str() => read("memory_read", json!({"history": true})),
        ["agents"] => read("agents", json!({})),
        ["agents", name] => read("agents", json!({"agent": name})),
        _ => None,
    }
}

/// Templates of what this caller may read.
pub fn templates(doors: &Doors, caller: &Caller) -> Vec<ResourceTemplate> {
    let may = allowed(doors, caller);
    let template = |f: &Family| {
        ResourceTemplate::new(f.template, f.name).with_title(f.title).with_description(f.description).with_mime_type("application/json")
    };
    FAMILIES.iter().filter(|f| f.template.contains('{') && may(f.tool)).map(template).collect()
}

fn allowed(doors: &Doors, caller: &Caller) -> impl Fn(&str) -> bool {
    let names: Vec<&str> = listing::callable(&doors.house.rulebook.load(), caller).iter().map(|s| s.name).collect();
    move |tool| names.contains(&tool)
}

/// One page of what there is for this caller, by address, and the cursor of the next.
///
/// # Errors
/// When the cursor is none of ours.
pub async fn list(doors: &Arc<Doors>, caller: &Caller, cursor: Option<&str>) -> Result<(Vec<Resource>, Option<String>), ErrorData> {
    let may = allowed(doors, caller);
    let mut found: Vec<Resource> = vec![];
    let mut add = |uri: String, name: String, title: String, family: &Family, priority: f32| {
        if may(family.tool) {
            let resource =
                Resource::new(uri, name).with_title(title).with_description(family.description).with_mime_type("application/json");
            found.push(resource.with_annotations(Annotations::default().with_priority(priority)));
        }
    };
    for family in FAMILIES {
        let bare = family.template.split("{?").next().unwrap_or_default();
        match bare.split_once("{agent}") {
            Some((before, after)) => {
                add(format!("{before}{}{after}", caller.agent), family.name.into(), family.title.into(), family, 0.3);
            }
            None if !bare.contains('{') => add(bare.into(), family.name.into(), family.title.into(), family, 0.8),
            None => {}
        }
    }
    let stack = &FAMILIES[1];
    for name in super::complete::stacks(doors, caller).await {
        add(format!("{SCHEME}stacks/{name}"), name.clone(), format!("Stack {name}"), stack, 0.6);
    }
    found.sort_by(|a, b| a.uri.cmp(&b.uri));
    if let Some(after) = cursor {
        let at = found.iter().position(|r| r.uri.as_str() > after).unwrap_or(found.len());
        if !after.starts_with(SCHEME) {
            return Err(ErrorData::invalid_params("that is no cursor of this list; pass nextCursor of the page before, or none", None));
        }
        found.drain(..at);
    }
    let more = found.len() > PAGE;
    found.truncate(PAGE);
    let next = found.last().map(|r| r.uri.clone()).filter(|_| more);
    Ok((found, next))
}

/// Reads an address: the matching tool's call.
///
/// # Errors
/// Not found, or what the tool answered, with its code and hint as data.
pub async fn content(doors: &Arc<Doors>, who: Principal, caller: &Caller, uri: &str) -> Result<ReadResourceResult, ErrorData> {
    let read = parse(uri, caller).ok_or_else(|| nowhere(uri))?;
    let reply = doors.call(who, read.tool.to_owned(), read.input, None).await.map_err(|e| refused(uri, &e))?;
    if let Some((field, value)) = read.fixed
        && reply.value[field] != Value::String(value)
    {
        return Err(nowhere(uri));
    }
    let text = ResourceContents::text(reply.value.to_string(), uri).with_mime_type("application/json");
    Ok(ReadResourceResult::new(vec![text]).with_ttl_ms(FRESH_MS).with_cache_scope(CacheScope::Private))
}

/// There is nothing at an address.
pub fn nowhere(uri: &str) -> ErrorData {
    let (shown, hint) = (crate::redact::line(uri, 200), "list resources and resource templates to see the addresses there are");
    ErrorData::resource_not_found(format!("there is no resource {shown}; {hint}"), Some(json!({"uri": uri, "hint": hint})))
}

/// What the tool behind an address refused.
pub fn refused(uri: &str, error: &CallError) -> ErrorData {
    if let Some(detail) = &error.detail {
        tracing::warn!(code = ?error.code, detail, "a resource could not be read");
    }
    let data = Some(json!({"uri": uri, "code": error.code, "hint": error.hint}));
    let message = format!("{}; {}", error.message, error.hint);
    match error.code {
        ErrorCode::NotFound => ErrorData::resource_not_found(message, data),
        ErrorCode::InvalidArgument => ErrorData::invalid_params(message, data),
        ErrorCode::Denied | ErrorCode::RateLimited => ErrorData::invalid_request(message, data),
        _ => ErrorData::internal_error(message, data),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ids::AgentName;
    use crate::tools::{Effect, catalogue};

    fn caller() -> Caller {
        Caller { agent: AgentName::new("observer").expect("a name"), read_only: false, toolsets: Default::default() }
    }

    fn call(uri: &str) -> Option<(&'static str, Value)> {
        parse(uri, &caller()).map(|r| (r.tool, r.input))
    }

    #[test]
    fn an_address_is_a_call_of_a_tool_that_reads() {
        assert_eq!(call("dockwarden://stacks"), Some(("status", json!({}))));
        assert_eq!(call("dockwarden://stacks/shop/releases/3"), Some(("history", json!({"stack": "shop", "release": 3, "compose": true}))));
        assert_eq!(call("dockwarden://audit?stack=shop&since=2%68"), Some(("audit", json!({"stack": "shop", "since": "2h"}))));
        assert_eq!(call("dockwarden://memory/observer/history"), Some(("memory_read", json!({"history": true}))));
        for family in FAMILIES {
            let spec = catalogue().iter().find(|s| s.name == family.tool).expect("a tool");
            assert_eq!(spec.effect, Effect::Read, "{}", family.template);
            // What the template promises is understood, variable by variable.
            let filled = family.template.split("{?").next().unwrap_or_default().replace("{stack}", "s").replace("{release}", "1");
            let filled =
                filled.replace("{service}", "web").replace("{operation_id}", "op-1").replace("{agent}", "observer").replace("{name}", "x");
            assert!(call(&filled).is_some_and(|(tool, _)| tool == family.tool), "{filled}");
        }
    }

    #[test]
    fn what_leads_nowhere_is_no_call() {
        for uri in [
            "http://stacks",
            "dockwarden://",
            "dockwarden://stacks/",
            "dockwarden://stacks/a/b",
            "dockwarden://stacks/shop/releases/x",
            "dockwarden://stacks?x=1",
            "dockwarden://audit?x",
            "dockwarden://memory/deployer/context",
            "dockwarden://stacks/%zz",
            "dockwarden://stacks/%ff",
        ] {
            if uri == "dockwarden://stacks/" {
                // An empty name is refused by the tool itself.
                assert_eq!(call(uri), Some(("status", json!({"stack": ""}))));
            } else {
                assert_eq!(call(uri), None, "{uri}");
            }
        }
    }
}
