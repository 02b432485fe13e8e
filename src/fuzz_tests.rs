//! Whatever text comes in, nothing panics: manifests, policy files, foreign manifests, prompts, ids, tokens and stored credentials, MCP bodies and the arguments
//! of every tool. Inputs are made from good ones by small damage, the same ones in every run; `DOCKWARDEN_FUZZ_CASES` says how many of each (default 300).
//! Each test prints how many it tried and how many were taken.

use crate::gate::call::decide;
use crate::gate::explain::call_of;
use crate::gate::{Rulebook, manifest, ossa, policy, prompt};
use crate::model::ids::*;
use crate::model::policy::Policy;
use crate::tools;
use serde_json::{Value, json};
use std::panic::{AssertUnwindSafe, catch_unwind};

const DEFAULT_CASES: usize = 300;

fn cases() -> usize {
    match std::env::var("DOCKWARDEN_FUZZ_CASES") {
        Ok(n) => n.parse().expect("DOCKWARDEN_FUZZ_CASES is a number"),
        Err(_) => DEFAULT_CASES,
    }
}

/// SplitMix64: small, and the same numbers everywhere.
struct Dice(u64);

impl Dice {
    fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
    fn below(&mut self, n: usize) -> usize {
        usize::try_from(self.roll() % n.max(1) as u64).expect("below a usize")
    }
    fn pick<'a, T: ?Sized>(&mut self, of: &[&'a T]) -> &'a T {
        of[self.below(of.len())]
    }
}

/// What breaks parsers: structure of YAML, TOML and JSON, and text nobody expects.
const SHARP: &[&str] = &[
    "",
    " ",
    "\n",
    "\t",
    "---\n",
    "{",
    "}",
    "[",
    "]",
    ":",
    ": ",
    ",",
    "\"",
    "'",
    "#",
    "&a ",
    "*a",
    "<<: ",
    "!!binary ",
    "|",
    ">",
    "-",
    "- ",
    "=",
    ".",
    "..",
    "/",
    "\\",
    "\u{0}",
    "\u{1b}[31m",
    "\u{202e}",
    "\u{feff}",
    "\u{e0041}",
    "é",
    "日本",
    "🦀",
    "null",
    "true",
    "~",
    "0",
    "-1",
    "1e999",
    ".nan",
    "18446744073709551616",
    "99999999999999999999",
    "args: {a: {min: 1}}",
    "match: [{tool: deploy}]",
    "environments: []",
    "tools: [\"*\"]",
    "can_delegate_to: [a, a]",
    "%2e%2e%2f",
    "\u{d7ff}",
    "$",
    "${X:?}",
    "?",
    "*",
];

/// A good text with one to six small damages.
fn damaged(dice: &mut Dice, good: &[&str]) -> String {
    let mut text: Vec<char> = dice.pick(good).chars().collect();
    for _ in 0..=dice.below(6) {
        let (from, to) = (dice.below(text.len() + 1), dice.below(text.len() + 1));
        let (from, to) = (from.min(to), from.max(to).min(from.min(to) + 40));
        match dice.below(5) {
            0 => drop(text.drain(from..to)),
            1 => {
                let copy: Vec<char> = text[from..to].to_vec();
                let at = dice.below(text.len() + 1);
                text.splice(at..at, copy);
            }
            2 => drop(text.splice(from..from, dice.pick(SHARP).chars())),
            3 => drop(text.splice(from..to, dice.pick(SHARP).chars())),
            _ => {
                let other: Vec<char> = dice.pick(good).chars().collect();
                let cut = dice.below(other.len() + 1);
                let end = (cut + dice.below(80)).min(other.len());
                text.splice(from..from, other[cut..end].iter().copied());
            }
        }
        // A duplicated duplicate must not grow without end.
        text.truncate(20_000);
    }
    text.into_iter().collect()
}

/// Tries a function on damaged texts; it says whether it took one.
fn hammer(what: &str, seed: u64, good: &[&str], times: usize, mut taken_by: impl FnMut(&str) -> bool) {
    let mut dice = Dice(seed);
    let (mut taken, mut panics) = (0, vec![]);
    for _ in 0..times {
        let text = damaged(&mut dice, good);
        match catch_unwind(AssertUnwindSafe(|| taken_by(&text))) {
            Ok(took) => taken += usize::from(took),
            Err(_) => panics.push(text),
        }
    }
    println!("fuzz {what}: {times} inputs, {taken} taken, {} panics", panics.len());
    assert!(panics.is_empty(), "{what}: {:#?}", &panics[..panics.len().min(3)]);
}

const AGENTS: &[&str] = &[
    include_str!("../agents/deployer.md"),
    include_str!("../agents/stack-keeper.md"),
    include_str!("../agents/backup-keeper.md"),
    "---\nname: a\ndescription: d\ntools: scale\ndockwarden:\n  tier: tier_3_write_elevated\n  rules: [{id: a, effect: allow, tools: [scale], args: {replicas: {max: 3}}, because: b, match: [{tool: scale, args: {replicas: 2}}]}]\n---\np\n",
];

#[test]
fn manifests() {
    let (tools, policy) = (tools::gate_facts(), Policy::default());
    hammer("manifests", 1, AGENTS, cases(), |text| {
        let stem = manifest::front_matter(text).ok().and_then(|(f, _)| f.lines().find_map(|l| l.strip_prefix("name: "))).unwrap_or("a");
        let Ok(book) = Rulebook::build(vec![(format!("agents/{stem}.md"), text.to_owned())], "", &tools) else {
            return manifest::parse("agents/a.md", text, &tools, &policy).is_ok();
        };
        // What loads decides, whatever is asked.
        for agent in book.agents.keys() {
            for tool in ["deploy", "scale", "status", "x"] {
                let facts = call_of(agent, tool, true, StackName::new("shop").ok(), Some("production".into()), None);
                crate::gate::explain::explain(&book, &facts);
                decide(&book, &facts);
            }
        }
        true
    });
}

#[test]
fn policy_files() {
    let good = [
        include_str!("../agents/policy.toml"),
        "[environments.live]\nmutations = \"approval\"\nchanges_per_hour = 3\n[taint]\nwindow_s = 9\n[[exceptions]]\nrule = \"bind.outside\"\nstack = \"a\"\nvalue = \"/x\"\nbecause = \"b\"\nexpires = \"2030-01-01\"\n",
    ];
    hammer("policy files", 2, &good, cases(), |text| policy::parse("policy.toml", text).is_ok());
}

#[test]
fn foreign_manifests_and_prompts() {
    let good = [
        "apiVersion: ossa/v0.4.1\nkind: Agent\nmetadata: {name: a, description: d}\nspec:\n  role: r\n  access: {tier: tier_3_write_elevated}\n  separation: {conflicts_with: [b], can_delegate_to: [b], prohibited_actions: [prune, stop]}\n  constraints: {cost: {maxCostPerDay: 1, currency: USD}, resources: {cpu: 1}}\n  monitoring: {health_check: {path: /x}}\n",
    ];
    let (tools, policy, agents) = (tools::gate_facts(), Policy::default(), ["b".to_owned()].into());
    hammer("OSSA manifests", 3, &good, cases(), |text| match ossa::import("x.yaml", text, &tools, &policy, &agents) {
        Ok(made) => {
            manifest::parse(&format!("agents/{}.md", made.name), &made.text, &tools, &policy).map(|_| true).expect("what is imported loads")
        }
        Err(problems) => {
            assert!(problems.iter().all(|p| p.file == "x.yaml"), "a faulty manifest is told as such: {problems:?}");
            false
        }
    });
    let prompts = [include_str!("../prompts/deploy.md"), include_str!("../prompts/rollback.md")];
    hammer("prompts", 4, &prompts, cases(), |text| prompt::parse_prompt("deploy.md", text).is_ok());
}

#[test]
fn ids() {
    let good = [
        "shop",
        "web-1",
        "op-01h455vb4pex5vsknk084sn02q",
        "docker.io/library/nginx:1.27@sha256:0000000000000000000000000000000000000000000000000000000000000000",
        "a.b_c",
    ];
    /// A text that is safe as one segment of a URL's path.
    fn segment(text: &str) -> bool {
        text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b)) && !text.contains("..") && !text.is_empty()
    }
    hammer("ids", 5, &good, cases(), |text| {
        macro_rules! all {
            ($($kind:ident),*) => { [$($kind::new(text).map(|id| id.as_str().to_owned()).ok()),*] };
        }
        let taken =
            all!(StackName, ServiceName, EngineName, AgentName, OperationId, PlanId, ApprovalId, SnapshotId, IncidentId, TaskId, CallId);
        let taken: Vec<String> = taken.into_iter().flatten().collect();
        assert!(taken.iter().all(|t| t == text && segment(t)), "{taken:?}");
        let image = ImageRef::new(text).is_ok();
        assert!(!image || !text.contains(|c: char| c.is_whitespace() || c.is_control() || matches!(c, '?' | '#' | '%' | '&')), "{text:?}");
        !taken.is_empty() || image
    });
}

#[tokio::test]
async fn tokens_and_stored_credentials() {
    use sha2::{Digest, Sha256};
    let dir = tempfile::tempdir().expect("a directory");
    let store = crate::store::Store::open(&dir.path().join("home"), &dir.path().join("memory")).await.expect("a store");
    let (token, kept) = crate::adapters::socket::credential::token().expect("random");
    store.put_token("deployer", "", &kept, None, chrono::Utc::now()).await.expect("kept");
    let mut dice = Dice(6);
    let (times, mut taken) = (cases(), 0);
    for _ in 0..times {
        let tried = damaged(&mut dice, &[token.as_str()]);
        let hash: [u8; 32] = Sha256::digest(tried.as_bytes()).into();
        let used = store.token_use(&hash, chrono::Utc::now()).await.expect("read");
        assert_eq!(used.is_some(), tried == token, "only the token itself opens: {tried:?}");
        taken += usize::from(used.is_some());
    }
    println!("fuzz tokens: {times} inputs, {taken} taken (damaged back into themselves), 0 panics");
    let stored =
        ["scrypt$1$1$1$AAAAAAAAAAAAAAAAAAAAAA$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA", "scrypt$63$4294967295$4294967295$AA$AA"];
    // Some of these are sound and cost a derivation: fewer of them.
    hammer("stored credentials", 7, &stored, cases().min(2_000), |text| {
        crate::adapters::socket::credential::verify("a passphrase", text).is_ok()
    });
}

#[test]
fn bodies_of_mcp_and_arguments_of_every_tool() {
    let bodies: Vec<String> = [
        json!({"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "x", "version": "1"}}}),
        json!({"jsonrpc": "2.0", "id": "a", "method": "tools/call", "params": {"name": "deploy", "arguments": {"stack": "shop", "images": {"web": "nginx"}}, "_meta": {"progressToken": 1}}}),
        json!({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 1, "reason": "x"}}),
        json!({"jsonrpc": "2.0", "id": 2, "method": "completion/complete", "params": {"ref": {"type": "ref/prompt", "name": "deploy"}, "argument": {"name": "stack", "value": "s"}}}),
        json!({"jsonrpc": "2.0", "id": 4, "method": "tools/call", "params": {"name": "deploy", "arguments": {"stack": "shop"}, "requestState": "eyJh.0a",
               "inputResponses": {"approval": {"action": "accept", "content": {"approve": true}}}, "_meta": {"io.modelcontextprotocol/protocolVersion": "2026-07-28"}}}),
        json!({"jsonrpc": "2.0", "id": 3, "result": {"action": "accept", "content": {"approve": true}}}),
    ]
    .iter()
    .map(Value::to_string)
    .collect();
    let bodies: Vec<&str> = bodies.iter().map(String::as_str).collect();
    hammer("MCP bodies", 8, &bodies, cases(), |text| serde_json::from_str::<rmcp::model::ClientJsonRpcMessage>(text).is_ok());

    let arguments = [
        r#"{"stack":"shop","compose":"services: {}","variables":{"A":"b"},"images":{"web":"nginx:1"},"wait":true,"timeout_s":5,"reason":"r"}"#,
        r#"{"plan_id":"plan-1","digest":"d","idempotency_key":"k"}"#,
        r#"{"stack":"shop","service":"web","replicas":3,"to_release":2,"data":"keep","snapshot_id":"abc","swap":true,"dry_run":false,"what":"images"}"#,
        r#"{"since":"15m","until":"2026-01-01T00:00:00Z","limit":5,"cursor":"x","agent":"a","key":"k","value":{"a":[1,2]},"query":"q"}"#,
    ];
    let names: Vec<&str> = tools::catalogue().iter().map(|s| s.name).collect();
    let mut dice = Dice(9);
    hammer("tool arguments", 10, &arguments, cases(), |text| {
        let name = names[dice.below(names.len())];
        let Ok(mut value) = serde_json::from_str::<Value>(text) else { return false };
        // Half of them only with fields the tool has, so that values are reached.
        let known =
            tools::catalogue().iter().find(|s| s.name == name).map(|s| (s.input_schema)()["properties"].clone()).unwrap_or_default();
        if let (Value::Object(map), 0) = (&mut value, dice.below(2)) {
            map.retain(|k, _| known.get(k).is_some());
        }
        let told = tools::find(name).expect("of the catalogue").parse(value);
        if let Err(e) = &told {
            assert!(!e.message.is_empty() && !e.hint.is_empty(), "{text}");
        }
        told.is_ok()
    });
}
