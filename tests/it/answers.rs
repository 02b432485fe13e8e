//! Do the tools' own words lead to the right one, and what does an answer cost? Twenty questions of an operator, no model: each tool is ranked by the
//! words its name, title and description share with the question (BM25), the best one is called, and its reply must hold the answer. The tokens a
//! client pays are printed and pinned; tokens are characters divided by four, an estimate.

use crate::support::engine::engine;
use crate::support::home::Home;
use crate::support::mcp::Client;
use crate::support::serve::Serve;
use rmcp::model::Tool;
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};

/// A question and what solves it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Task {
    question: String,
    /// The tool its words must lead to.
    tool: String,
    /// Its arguments; `{name}` stands for what is known by then.
    arguments: Value,
    /// What the reply must contain.
    says: Vec<String>,
    /// What later questions use of the reply: name and JSON pointer.
    #[serde(default)]
    keep: BTreeMap<String, String>,
    /// Most tokens of request and reply.
    tokens: usize,
}

/// Words that say nothing about which tool is meant.
const COMMON: &str = "a an and are be by can could did do does for from have how i in is it its me of on or shall so that the their them there this to up was what when where which will with";

fn words(text: &str) -> Vec<String> {
    let common: BTreeSet<&str> = COMMON.split(' ').collect();
    let stem = |word: &str| {
        let cut = |end: &&str| word.ends_with(*end) && word.len() >= end.len() + 3 && !word.ends_with("ss");
        ["ing", "ed", "es", "s"].iter().find(|end| cut(end)).map_or(word, |end| &word[..word.len() - end.len()]).to_owned()
    };
    let lower = text.to_lowercase();
    lower.split(|c: char| !c.is_ascii_alphanumeric()).filter(|w| !w.is_empty() && !common.contains(w)).map(stem).collect()
}

/// Tools by how well their words fit a question, best first.
fn ranked<'a>(question: &str, tools: &'a [Tool]) -> Vec<(&'a str, f64)> {
    let document = |tool: &Tool| {
        // Name and title count twice: they are what a reader looks at first.
        let short = format!("{} {}", tool.name.replace('_', " "), tool.title.as_deref().unwrap_or_default());
        words(&format!("{short} {short} {}", tool.description.as_deref().unwrap_or_default()))
    };
    let documents: Vec<Vec<String>> = tools.iter().map(document).collect();
    let count = documents.len() as f64;
    let average = documents.iter().map(Vec::len).sum::<usize>() as f64 / count;
    let asked: BTreeSet<String> = words(question).into_iter().collect();
    let score = |document: &Vec<String>| -> f64 {
        let of_word = |word: &String| {
            let here = document.iter().filter(|w| *w == word).count() as f64;
            let having = documents.iter().filter(|d| d.contains(word)).count() as f64;
            let rarity = (1.0 + (count - having + 0.5) / (having + 0.5)).ln();
            rarity * here * 2.2 / (here + 1.2 * (0.25 + 0.75 * document.len() as f64 / average))
        };
        asked.iter().map(of_word).sum()
    };
    let mut ranked: Vec<_> = tools.iter().zip(&documents).map(|(tool, d)| (tool.name.as_ref(), score(d))).collect();
    ranked.sort_by(|a, b| b.1.total_cmp(&a.1));
    ranked
}

fn filled(value: &Value, known: &BTreeMap<String, String>) -> Value {
    match value {
        Value::String(text) => match text.strip_prefix('{').and_then(|t| t.strip_suffix('}')) {
            Some(name) => json!(known.get(name).unwrap_or_else(|| panic!("{name} is not known yet"))),
            None => value.clone(),
        },
        Value::Object(map) => map.iter().map(|(k, v)| (k.clone(), filled(v, known))).collect::<serde_json::Map<_, _>>().into(),
        other => other.clone(),
    }
}

fn tokens(text: &str) -> usize {
    text.chars().count().div_ceil(4)
}

#[tokio::test]
async fn an_operators_questions_are_answered_by_the_tool_whose_words_fit_within_their_tokens() {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/answers/questions.json");
    let tasks: Vec<Task> = serde_json::from_str(&std::fs::read_to_string(file).expect("there")).expect("tasks");
    assert_eq!(tasks.len(), 20);
    let slot = engine().await;
    let home = Home::new();
    home.unlimited("stack-keeper");
    let stack = home.stack("answers");
    let compose = format!(
        "x-dockwarden: {{monitor_s: 0}}\nservices:\n  store:\n    image: {}\n    restart: unless-stopped\n    mem_limit: 64m\n    environment: {{ROLE: store}}\n    tmpfs: [/data]\n    healthcheck: {{test: [\"CMD\", \"/dockwarden\", \"demo-app\", \"check\", \"http://127.0.0.1:8080/health\"], interval: 2s, timeout: 2s}}\n",
        slot.image
    );
    let serve = Serve::start(&home).await;
    let mut known = BTreeMap::from([("stack".to_owned(), stack), ("compose".to_owned(), compose)]);
    // All tools: the more there are to choose from, the harder it is.
    let mut bridge = home.command(["mcp", "--agent", "stack-keeper", "--toolsets", "all"]);
    let client = Client::over(&mut bridge).await;
    let listed = client.peer().list_all_tools().await.expect("listed");
    let list = tokens(&serde_json::to_string(&listed).expect("JSON"));
    let (mut table, mut wrong, mut all) = (String::new(), vec![], list);
    for task in &tasks {
        let ranking = ranked(&task.question, &listed);
        if ranking[0].0 != task.tool {
            wrong.push(format!("{:?} leads to {:?}, not {}", task.question, &ranking[..3], task.tool));
        }
        let arguments = filled(&task.arguments, &known);
        let result = client.call(&task.tool, arguments.clone()).await.unwrap_or_else(|e| panic!("{}: {e}", task.tool));
        let reply = serde_json::to_value(&result).expect("JSON");
        let structured = &reply["structuredContent"];
        if result.is_error == Some(true) {
            wrong.push(format!("{:?}: {reply:#}", task.question));
        }
        for expected in &task.says {
            let expected = filled(&json!(expected), &known);
            let expected = expected.as_str().expect("a text");
            if !reply.to_string().contains(expected) {
                wrong.push(format!("{:?}: the reply does not say {expected:?}: {reply:#}", task.question));
            }
        }
        for (name, pointer) in &task.keep {
            let value = structured.pointer(pointer).and_then(Value::as_str);
            known.insert(name.clone(), value.unwrap_or_else(|| panic!("{pointer} of {structured:#}")).to_owned());
        }
        let paid = tokens(&json!({"name": task.tool, "arguments": arguments}).to_string()) + tokens(&reply.to_string());
        all += paid;
        table.push_str(&format!("{paid:>6} of {:>6}  {:<14} {}\n", task.tokens, task.tool, task.question));
        // Both ways: a pin far above what is paid would let a reply double unseen.
        if paid > task.tokens || paid * 2 < task.tokens {
            wrong.push(format!("{:?} costs {paid} tokens, pinned are {}", task.question, task.tokens));
        }
    }
    println!("{list:>6} tools/list, once a session\n{table}{all:>6} in all");
    assert!(wrong.is_empty(), "{}\n{table}", wrong.join("\n"));
    serve.stop().await;
}
