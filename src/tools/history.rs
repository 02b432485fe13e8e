//! `history`: the releases of a stack, newest first, and which of them could run again.

mod file;

use super::{Effect, ToolSpec, Verb, schema};
use crate::call::error::ErrorCode;
use crate::call::facts::Scope;
use crate::call::{Call, CallError, prepare};
use crate::executor::backup::DataResult;
use crate::gate::Permit;
use crate::model::ids::{ServiceName, StackName};
use crate::model::plan::{GitState, Plan};
use crate::model::release::{Release, ReleaseState};
use crate::planner::diff::{self, diff};
use crate::redact::{self, Untrusted};
use chrono::{DateTime, Utc};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Releases shown: as many as keep their image tags, twice over.
const SHOWN: usize = 20;
/// Bytes of what one release consists of and changed, together: a reply says them twice, and a model reads it all. What it changed goes first.
const BUDGET: usize = 12_000;

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Input {
    /// Stack name.
    stack: StackName,
    /// Only this release: its services in full, and what it changed.
    release: Option<u32>,
    /// Of it only this service.
    service: Option<ServiceName>,
    /// It as a compose file: for the resource of a release and the command line.
    #[serde(default)]
    #[schemars(skip)]
    compose: bool,
    /// `next_cursor` of the reply before, for older releases.
    cursor: Option<String>,
}

/// Whether a release could run again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
enum Restorable {
    /// All its images are on the engine.
    Yes,
    /// Missing images can be pulled by digest.
    Pull,
    /// An image is gone and has no digest.
    No,
}

#[derive(Debug, Serialize, JsonSchema)]
#[schemars(inline)]
struct Row {
    release: u32,
    state: ReleaseState,
    current: bool,
    at: DateTime<Utc>,
    agent: String,
    operation_id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    content_of: Option<u32>,
    images: Vec<String>,
    restorable: Restorable,
    #[serde(skip_serializing_if = "Option::is_none")]
    why: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    git: Option<GitState>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<Untrusted>,
}

#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Output {
    stack: StackName,
    environment: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    current: Option<u32>,
    releases: Vec<Row>,
    /// `service path: value` of the one release that was asked for.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    content: Vec<String>,
    /// The same as a compose file: what may be secret is a hash.
    // Not in the schema, as `truncated`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(skip)]
    compose: Option<String>,
    /// `service path: from -> to`, against the release before it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    changed: Vec<String>,
    /// Not all of it is shown; `service` shows one whole.
    // Not in the schema: every client pays for it, and few releases are so large.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    #[schemars(skip)]
    truncated: bool,
    /// Pass as `cursor` for older releases.
    #[serde(skip_serializing_if = "Option::is_none")]
    next_cursor: Option<String>,
}

pub(super) struct History;

impl Verb for History {
    const SPEC: &'static ToolSpec = &ToolSpec {
        name: "history",
        title: "Releases of a stack",
        description: "The releases of a stack, newest first: state, images, who and why, and whether each could run again. With release also what it consists of and what it changed.",
        effect: Effect::Read,
        idempotent: true,
        input_schema: schema::input::<Input>,
        output_schema: schema::output::<Output>,
    };
    type Input = Input;
    type Output = Output;

    async fn scope(_: &Call, input: &Input) -> Result<Scope, CallError> {
        Ok(Scope::stack(&input.stack))
    }

    async fn run(call: &Call, input: Input, _: Option<Plan>, _: Permit) -> Result<Output, CallError> {
        let store = &call.house.store;
        let record = store.stack(&input.stack).await?.ok_or_else(|| prepare::not_deployed(&input.stack))?;
        let before = input.cursor.as_deref().map(cursor).transpose()?;
        let (mut found, next) = match input.release {
            Some(number) => (vec![one(call, &input.stack, number).await?], None),
            None => page(call, &input.stack, before).await?,
        };
        if (input.service.is_some() || input.compose) && input.release.is_none() {
            let (field, hint) = (if input.compose { "compose" } else { "service" }, "name the release, too, or leave it out");
            let message = format!("{field} says how one release is shown");
            return Err(CallError::new(ErrorCode::InvalidArgument, message, hint).field(field));
        }
        let (mut content, mut changed) = match (input.release, found.first()) {
            (Some(_), Some(release)) => told(call, release, input.service.as_ref()).await?,
            _ => (vec![], vec![]),
        };
        let mut truncated = false;
        let compose = match found.first().filter(|_| input.compose) {
            Some(release) => {
                // It stands for the lines.
                content.clear();
                let (text, cut) = as_file(call, release, input.service.as_ref())?;
                truncated = cut;
                Some(text)
            }
            None => None,
        };
        truncated |= cut(&mut changed, &mut content);
        let here: std::collections::BTreeSet<String> = call.house.engine.images().await?.into_iter().map(|i| i.id).collect();
        let mut releases: Vec<Row> = found.drain(..).map(|r| row(r, record.current, &here)).collect();
        if input.release.is_none() {
            shorten(&mut releases);
        }
        let next_cursor = next.map(|n| n.to_string());
        Ok(Output {
            stack: record.name,
            environment: record.environment,
            current: record.current,
            releases,
            content,
            compose,
            changed,
            truncated,
            next_cursor,
        })
    }

    fn text(o: &Output) -> Option<String> {
        let mut out = format!("{} in {}", o.stack, o.environment);
        for r in &o.releases {
            let (mark, state) = (if r.current { "*" } else { " " }, format!("{:?}", r.state).to_lowercase());
            out.push_str(&format!(
                "\n{mark}r{} {state} {} by {} {}",
                r.release,
                r.at.format("%Y-%m-%d %H:%M"),
                r.agent,
                r.images.join(" ")
            ));
        }
        for line in &o.content {
            out.push_str(&format!("\n{line}"));
        }
        if let Some(compose) = &o.compose {
            out.push_str(&format!("\n{}", compose.trim_end()));
        }
        if !o.changed.is_empty() {
            out.push_str(&format!("\nchanged:\n{}", o.changed.join("\n")));
        }
        if o.truncated {
            out.push_str("\n(cut: not all of this release is shown; give service for one service of it)");
        }
        if let Some(next) = &o.next_cursor {
            out.push_str(&format!("\n(older releases: cursor {next})"));
        }
        Some(out)
    }
}

fn cursor(text: &str) -> Result<u32, CallError> {
    text.parse().ok().filter(|n| *n > 0).ok_or_else(|| {
        let message = format!("{:?} is no cursor", redact::line(text, 64));
        CallError::new(ErrorCode::InvalidArgument, message, "pass next_cursor of the reply before").field("cursor")
    })
}

/// Releases older than `before`, newest first, and where the next page begins.
async fn page(call: &Call, stack: &StackName, before: Option<u32>) -> Result<(Vec<Release>, Option<u32>), CallError> {
    let store = &call.house.store;
    // Numbers only grow by one: those that are not older are skipped by counting.
    let newer = match before {
        Some(before) => store.last_release_number(stack).await?.saturating_add(1).saturating_sub(before),
        None => 0,
    };
    let mut found = store.releases(stack, SHOWN + 1 + usize::try_from(newer).unwrap_or_default()).await?;
    found.retain(|r| before.is_none_or(|b| r.number < b));
    let more = found.len() > SHOWN;
    found.truncate(SHOWN);
    let next = found.last().map(|r| r.number).filter(|_| more);
    Ok((found, next))
}

async fn one(call: &Call, stack: &StackName, number: u32) -> Result<Release, CallError> {
    call.house.store.release(stack, number).await?.ok_or_else(|| {
        let hint = format!("call `history` with stack {stack} to see its releases");
        CallError::new(ErrorCode::NotFound, format!("stack {stack} has no release {number}"), hint).field("release")
    })
}

/// What a release consists of, and what it changed against the one before it; values of variables as set or changed, with a hash.
async fn told(call: &Call, release: &Release, only: Option<&ServiceName>) -> Result<(Vec<String>, Vec<String>), CallError> {
    let store = &call.house.store;
    let earlier = match release.number {
        0 | 1 => None,
        number => store.release(&release.stack, number - 1).await?,
    };
    let literal = &call.rulebook.policy.literal_keys;
    let hash = |text: &str| store.keyed_hash(text);
    let old = |name: &ServiceName| earlier.as_ref().and_then(|e| e.spec.services.get(name));
    let (mut content, mut changed) = (vec![], vec![]);
    let wanted = |name: &ServiceName| only.is_none_or(|only| only == name);
    if let Some(only) = only.filter(|only| !release.spec.services.contains_key(*only) && old(only).is_none()) {
        let hint = format!("call `history` with stack {} and release {} to see its services", release.stack, release.number);
        let message = format!("release {} of stack {} has no service {only}", release.number, release.stack);
        return Err(CallError::new(ErrorCode::NotFound, message, hint).field("service"));
    }
    for (name, service) in release.spec.services.iter().filter(|(name, _)| wanted(name)) {
        let value = |v: Option<String>| redact::line(v.as_deref().unwrap_or("-"), 200);
        content.extend(diff(None, Some(service), literal, &hash).into_iter().map(|l| format!("{name} {}: {}", l.path, value(l.to))));
        let lines = if earlier.is_some() { diff(old(name), Some(service), literal, &hash) } else { vec![] };
        changed.extend(lines.into_iter().map(|l| format!("{name} {}: {} -> {}", l.path, value(l.from), value(l.to))));
    }
    let gone = earlier.iter().flat_map(|e| e.spec.services.keys()).filter(|n| wanted(n) && !release.spec.services.contains_key(*n));
    changed.extend(gone.map(|name| format!("{name}: removed")));
    if let (Some(earlier), None) = (&earlier, only) {
        let value = |v: Option<String>| redact::line(v.as_deref().unwrap_or("-"), 200);
        let lines = diff::stack(Some(&earlier.spec), &release.spec, &hash);
        changed.extend(lines.into_iter().map(|l| format!("{}: {} -> {}", l.path, value(l.from), value(l.to))));
    }
    // What the journal tells: data is in no file.
    let data = DataResult::of(&store.steps(&release.operation).await?);
    changed.extend(
        data.restored.into_iter().map(|r| format!("data {}: as it was -> snapshot {}", redact::line(&r.source, 200), r.snapshot_id)),
    );
    Ok((content, changed))
}

fn as_file(call: &Call, release: &Release, only: Option<&ServiceName>) -> Result<(String, bool), CallError> {
    let hash = |text: &str| call.house.store.keyed_hash(text);
    file::text(&release.spec, only, &call.rulebook.policy.literal_keys, &hash).map_err(|e| {
        let hint = "call without compose for what it consists of, and report this";
        CallError::new(ErrorCode::Internal, "the release could not be written as a compose file", hint).detail(e.to_string())
    })
}

/// Cuts both to [`BUDGET`] bytes, at whole lines; whether anything went.
fn cut(changed: &mut Vec<String>, content: &mut Vec<String>) -> bool {
    let mut left = BUDGET;
    let mut went = false;
    for lines in [changed, content] {
        let kept = lines.iter().take_while(|line| {
            let fits = line.len() < left;
            left = if fits { left - line.len() - 1 } else { 0 };
            fits
        });
        let kept = kept.count();
        went |= kept < lines.len();
        lines.truncate(kept);
    }
    went
}

/// Images of many releases of a large stack: each keeps its share of [`BUDGET`], and says how many more it has.
fn shorten(rows: &mut [Row]) {
    let share = BUDGET / rows.len().max(1);
    for row in rows {
        let mut left = share;
        let fits = |image: &&String| {
            let next = left.checked_sub(image.len() + 1);
            left = next.unwrap_or(0);
            next.is_some()
        };
        let kept = row.images.iter().take_while(fits).count();
        if kept < row.images.len() {
            let more = format!("and {} more: give release {} for all", row.images.len() - kept, row.release);
            row.images.truncate(kept);
            row.images.push(more);
        }
        row.why = row.why.take().map(|why| redact::line(&why, share));
    }
}

fn row(r: Release, current: Option<u32>, here: &std::collections::BTreeSet<String>) -> Row {
    let missing: Vec<_> = r.images.values().filter(|i| i.id.as_ref().is_none_or(|id| !here.contains(id))).collect();
    let lost: Vec<String> = missing.iter().filter(|i| i.repo_digest.is_none()).map(|i| i.reference.to_string()).collect();
    let (restorable, why) = match (missing.is_empty(), lost.is_empty()) {
        (true, _) => (Restorable::Yes, None),
        (false, true) => (
            Restorable::Pull,
            Some(format!("to be pulled: {}", missing.iter().map(|i| i.reference.to_string()).collect::<Vec<_>>().join(", "))),
        ),
        (false, false) => (Restorable::No, Some(format!("gone from the engine and without a registry digest: {}", lost.join(", ")))),
    };
    Row {
        release: r.number,
        state: r.state,
        current: current == Some(r.number),
        at: r.created_at,
        images: r.images.iter().map(|(service, i)| format!("{service}={}", i.reference)).collect(),
        restorable,
        why,
        reason: r.reason.as_deref().map(|text| redact::envelope(format!("reason given by {}", r.agent), text, 300)),
        agent: r.agent,
        operation_id: r.operation.to_string(),
        content_of: r.content_of,
        git: r.git,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::call::dispatch::tests::bench;
    use serde_json::{Value, json};

    #[test]
    fn a_list_of_large_releases_is_bounded_and_says_where_the_rest_is() {
        let row = |release: u32, services: usize| Row {
            release,
            state: ReleaseState::Good,
            current: false,
            at: DateTime::UNIX_EPOCH,
            agent: "keeper".into(),
            operation_id: "op-1".into(),
            content_of: None,
            images: (0..services).map(|n| format!("service-{n}=registry.example.com/team/image-{n}:1.2.3")).collect(),
            restorable: Restorable::Pull,
            why: Some("x".repeat(40 * services)),
            git: None,
            reason: None,
        };
        let mut rows: Vec<Row> = (1..=20).map(|n| row(n, if n == 1 { 3 } else { 60 })).collect();
        shorten(&mut rows);
        assert_eq!(rows[0].images.len(), 3, "what fits is whole");
        let last = rows[19].images.last().expect("an image");
        assert!(rows[19].images.len() > 5 && last.ends_with("more: give release 20 for all"), "{last}");
        let bytes: usize =
            rows.iter().map(|r| r.images.iter().map(|i| i.len() + 1).sum::<usize>() + r.why.as_ref().map_or(0, String::len)).sum();
        assert!(bytes < 3 * BUDGET, "{bytes}");
    }

    #[tokio::test]
    async fn a_release_is_a_compose_file_and_tells_what_it_changed_beside_its_services() {
        let b = bench().await;
        let text =
            "services:\n  web:\n    image: hello:1\n    mem_limit: 64m\n    cpus: 0.1\n    environment: {DB_PASSWORD: hunter2-long}\n";
        b.call("deploy", json!({"stack": "shop", "compose": text})).await.expect("deployed");
        let reply = b.call("history", json!({"stack": "shop", "release": 1, "compose": true})).await.expect("read").value;
        let compose = reply["compose"].as_str().expect("a text");
        assert!(compose.contains("image: hello:1") && compose.contains("DB_PASSWORD: set ("), "{compose}");
        assert!(reply["content"].is_null() && !reply.to_string().contains("hunter2"), "{reply}");
        let wrong = b.call("history", json!({"stack": "shop", "compose": true})).await.expect_err("of which release");
        assert_eq!(wrong.field.as_deref(), Some("compose"));
        // As if there had been another, with a network more.
        let mut next = b.house.store.release(&StackName::new("shop").expect("valid"), 1).await.expect("read").expect("there");
        next.number = 2;
        next.spec.networks.insert("back".into(), crate::model::spec::NetworkSpec { name: "shop_back".into(), ..Default::default() });
        let who = crate::call::Principal {
            agent: crate::model::ids::AgentName::new("keeper").expect("valid"),
            door: crate::call::Door::McpStdio,
            client: None,
            read_only: false,
            on_behalf: vec![],
        };
        let call = Call::new(&b.house, &who, None, None);
        let (_, changed) = super::told(&call, &next, None).await.expect("told");
        assert!(changed.iter().any(|l| l == "networks.back.name: - -> shop_back"), "{changed:?}");
    }

    #[tokio::test]
    async fn a_large_release_is_bounded_and_says_so() {
        let b = bench().await;
        let service = |n: usize| {
            let variables: String = (0..15).map(|v| format!("      SETTING_{v}_OF_A_SERVICE: value-{n}-{v}\n")).collect();
            format!("  web{n}:\n    image: hello:1\n    mem_limit: 64m\n    cpus: 0.1\n    environment:\n{variables}")
        };
        let compose = format!("services:\n{}", (0..40).map(service).collect::<String>());
        let release = b.call("plan", json!({"stack": "shop", "compose": compose})).await.expect("planned").value;
        let id = crate::model::ids::PlanId::new(release["plan_id"].as_str().expect("an id")).expect("valid");
        let plan = b.house.store.plan(&id).await.expect("read").expect("there");
        let small = b.call("deploy", json!({"stack": "shop", "compose": crate::call::dispatch::tests::COMPOSE})).await.expect("deployed");
        assert!(small.known.operation.is_some());
        // The same release as if it had this content: forty containers need not run for it.
        let mut of_it = b.house.store.release(&plan.stack, 1).await.expect("read").expect("there");
        of_it.spec = plan.desired;
        let told = |service: Option<&str>| {
            let only = service.map(|s| ServiceName::new(s).expect("valid"));
            let (b, of_it) = (&b, &of_it);
            async move {
                let who = crate::call::Principal {
                    agent: crate::model::ids::AgentName::new("keeper").expect("valid"),
                    door: crate::call::Door::McpStdio,
                    client: None,
                    read_only: false,
                    on_behalf: vec![],
                };
                let call = Call::new(&b.house, &who, None, None);
                super::told(&call, of_it, only.as_ref()).await
            }
        };
        let (mut content, mut changed) = told(None).await.expect("told");
        assert!(content.iter().map(String::len).sum::<usize>() > 2 * BUDGET, "{}", content.len());
        assert!(cut(&mut changed, &mut content));
        assert!(content.iter().chain(&changed).map(|l| l.len() + 1).sum::<usize>() <= BUDGET && content.len() > 50);
        let (mut content, mut changed) = told(Some("web7")).await.expect("told");
        assert!(!cut(&mut changed, &mut content) && content.iter().all(|l| l.starts_with("web7 ")) && content.len() > 15, "{content:?}");
        assert_eq!(told(Some("nosuch")).await.expect_err("not there").code, ErrorCode::NotFound);
        let row: Value = b.call("history", json!({"stack": "shop", "release": 1, "service": "web"})).await.expect("read").value;
        assert!(row["content"].as_array().is_some_and(|c| !c.is_empty()) && row["truncated"].is_null(), "{row}");
        let wrong = b.call("history", json!({"stack": "shop", "service": "web"})).await.expect_err("of which release");
        assert_eq!(wrong.field.as_deref(), Some("service"));
    }
}
