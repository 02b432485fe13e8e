//! Whatever comes in from outside is read without a panic: manifests, policies, prompts, compose files, ids, tokens, MCP bodies, arguments of tools. Half of it
//! is made of what is right, changed at random places: noise alone gets no further than the first check. `PROPTEST_CASES` says how many of each kind
//! (benches/README.md); each kind prints how many there were.

use super::mcp::bridge::replay::{self, Conversation};
use super::mcp::http::{admit::Kind, bearer};
use super::socket::wire;
use crate::app::rules;
use crate::compose::{self, Files, LoadInput, Source};
use crate::gate::{manifest, policy, prompt};
use crate::model::ids::{
    AgentName, ApprovalId, CallId, EngineName, ImageRef, OperationId, PlanId, ServiceName, SnapshotId, StackName, TaskId,
};
use crate::model::policy::{Policy, Quotas};
use crate::tools;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use serde_json::{Value, json};
use std::cell::Cell;
use std::collections::BTreeMap;

/// Puts so many inputs through `read`, which must return.
fn through<S: Strategy>(what: &str, inputs: S, read: impl Fn(S::Value)) {
    let config = Config { failure_persistence: None, ..Config::default() };
    let (cases, seen) = (config.cases, Cell::new(0_u32));
    let ran = TestRunner::new(config).run(&inputs, |input| {
        read(input);
        seen.set(seen.get() + 1);
        Ok(())
    });
    ran.unwrap_or_else(|e| panic!("{what}: {e}"));
    assert_eq!(seen.get(), cases, "{what}");
    println!("{what}: {cases} inputs, no panic");
}

/// One of these texts, with up to six pieces of it replaced; or any text at all.
fn changed(right: Vec<String>) -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        ".{0,12}",
        "[\\PC\n]{0,12}",
        Just("\u{0}".to_owned()),
        Just("- ".to_owned()),
        Just("{{{{[[[[".to_owned()),
        Just("99999999999999999999".to_owned()),
        Just("&a *a".to_owned()),
        Just("null".to_owned()),
        Just("\n---\n".to_owned()),
    ];
    let edits = vec((any::<prop::sample::Index>(), 0_usize..40, piece), 0..6);
    let mutated = (prop::sample::select(right), edits).prop_map(|(mut text, edits)| {
        for (at, len, piece) in edits {
            let mut from = at.index(text.len() + 1);
            let mut to = (from + len).min(text.len());
            while !text.is_char_boundary(from) {
                from -= 1;
            }
            while !text.is_char_boundary(to) {
                to += 1;
            }
            text.replace_range(from..to, &piece);
        }
        text
    });
    prop_oneof![3 => mutated, 1 => ".{0,200}"]
}

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(|n| json!(n)),
        ".{0,20}".prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 24, 4, |inner| {
        prop_oneof![
            vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map("[a-z_]{0,10}", inner, 0..4).prop_map(|m| json!(m))
        ]
    })
}

fn texts(of: &[(&str, &str)]) -> Vec<String> {
    of.iter().map(|(_, text)| (*text).to_owned()).collect()
}

#[test]
fn manifests_policies_and_prompts() {
    let (tools, policy) = (tools::gate_facts(), Policy::default());
    through("manifests", changed(texts(rules::AGENTS)), |text| drop(manifest::parse("deployer.md", &text, &tools, &policy)));
    through("policies", changed(vec![rules::POLICY.to_owned()]), |text| drop(policy::parse("policy.toml", &text)));
    let prompts = changed(texts(rules::AGENTS));
    through("prompts", prompts, |text| drop(prompt::parse_prompt("a.md", &text)));
}

struct None_;

impl Files for None_ {
    fn read(&self, _: &str) -> Result<Option<String>, compose::ReadError> {
        Ok(None)
    }
}

#[test]
fn compose_files() {
    let right = vec![include_str!("../../examples/hello/compose.yaml").to_owned()];
    let (variables, quotas) = (BTreeMap::new(), Quotas::default());
    through("compose files", changed(right), |text| {
        let sources = vec![Source { path: "compose.yaml".into(), text }];
        let name = StackName::new("shop").expect("valid");
        let input =
            LoadInput { name, project_dir: "/srv/shop", sources, variables: &variables, profiles: &[], files: &None_, quotas: &quotas };
        drop(compose::load(&input));
    });
}

#[test]
fn ids_and_tokens() {
    let ids =
        changed(["shop", "web-1", "op-01hv3b", "sha256:ab", "ghcr.io/acme/web:1@sha256:00", "..", "a/../b"].map(str::to_owned).to_vec());
    through("ids", ids, |text| {
        /// What is taken cannot leave its segment of an URL, and comes back as it was.
        macro_rules! safe {
            ($($id:ty),*) => {$(
                if let Ok(id) = <$id>::new(text.as_str()) {
                    assert!(!id.as_str().is_empty() && !id.as_str().contains(['/', '?', '#', '%', '\\', '\0', '\n']) && !id.as_str().contains(".."));
                    assert_eq!(serde_json::from_value::<$id>(json!(id)).expect("its own form"), id);
                }
            )*};
        }
        safe!(AgentName, ApprovalId, CallId, EngineName, OperationId, PlanId, ServiceName, SnapshotId, StackName, TaskId);
        if let Ok(image) = ImageRef::new(text.as_str()) {
            let segments = image.as_str().split('/').all(|p| !matches!(p, "" | "." | ".."));
            assert!(segments && !image.as_str().contains(['?', '#', '%', '\\', '\0', '\n', ' ']), "{image:?}");
        }
    });
    let tokens = changed(["Bearer dwa_0123456789abcdef", "bearer  dwo_x", "Basic YTpi"].map(str::to_owned).to_vec());
    through("tokens", tokens, |text| {
        let taken = bearer(&text);
        assert!(taken.is_none_or(|t| text.contains(t)));
    });
}

#[test]
fn bodies_of_mcp_and_arguments_of_tools() {
    let call = |method: &str, params: Value| json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": params}).to_string();
    let bodies = vec![
        call("initialize", json!({"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "c", "version": "1"}})),
        call(
            "tools/call",
            json!({"name": "deploy", "arguments": {"stack": "shop", "compose": "services: {}"}, "_meta": {"progressToken": 1}}),
        ),
        call("subscriptions/listen", json!({"resources": ["dockwarden://stacks"]})),
        json!({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 1}}).to_string(),
        json!({"jsonrpc": "2.0", "id": "a", "result": {"action": "accept", "content": {}}}).to_string(),
    ];
    through("MCP bodies", vec(changed(bodies), 1..4), |lines| {
        let mut conversation = Conversation::default();
        for line in &lines {
            let bytes = line.as_bytes();
            let _ = (Kind::of(bytes), replay::cancels(bytes), replay::asked(bytes), replay::never_begun(bytes), replay::asks(bytes));
            let _ = (conversation.up(bytes), conversation.down(bytes), conversation.unsent(bytes));
            drop(serde_json::from_slice::<rmcp::model::ClientJsonRpcMessage>(bytes));
        }
        let _ = (conversation.cut(), conversation.again(), conversation.returned());
    });
    let hello =
        vec![r#"{"door":"mcp","agent":"deployer"}"#.to_owned(), r#"{"door":"cli","agent":"deployer","call":{"tool":"status"}}"#.to_owned()];
    through("hellos of the socket", changed(hello), |text| drop(wire::parse_hello(&text)));

    let schemas: Vec<(&'static dyn tools::Tool, Vec<String>)> = tools::CATALOGUE
        .iter()
        .map(|tool| {
            let schema = (tool.spec().input_schema)();
            (*tool, schema["properties"].as_object().into_iter().flatten().map(|(key, _)| key.clone()).collect())
        })
        .collect();
    let input = (0..schemas.len()).prop_flat_map(move |n| (Just(n), vec((any::<prop::sample::Index>(), any_json()), 0..5), any_json()));
    through("arguments of tools", input, |(n, given, other)| {
        let (tool, keys) = &schemas[n];
        let pick = |at: &prop::sample::Index| if keys.is_empty() { "x".to_owned() } else { keys[at.index(keys.len())].clone() };
        let arguments: serde_json::Map<String, Value> = given.iter().map(|(at, value)| (pick(at), value.clone())).collect();
        for input in [Value::Object(arguments), other] {
            if let Err(e) = tool.parse(input) {
                assert!(!e.message.is_empty() && !e.hint.is_empty(), "{}", tool.spec().name);
            }
        }
    });
}
