//! `prune`: removes what nothing uses any more and that is ours or dangling. Never volumes, never what a release may still need; shows first, removes when told to.

use super::{Effect, ToolSpec, Verb, schema};
use crate::call::data;
use crate::call::error::ErrorCode;
use crate::call::facts::Scope;
use crate::call::run::{Waiting, said};
use crate::call::{Call, CallError, observe, sources, volumes};
use crate::engine::{EngineError, PruneKind};
use crate::executor::backup::{DataJob, ForgetPlan, keep};
use crate::executor::names;
use crate::gate::Permit;
use crate::model::ids::{EngineName, ImageRef, StackName};
use crate::model::labels;
use crate::model::observed::{ContainerSummary, ImageInfo, RunState};
use crate::model::operation::OperationState;
use crate::model::plan::Plan;
use crate::planner;
use crate::redact::Untrusted;
use crate::store::backup::BackupRecord;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};

/// Releases of a stack whose images stay.
const KEPT_RELEASES: usize = 10;
/// Items named in a reply.
const SHOWN: usize = 200;
/// What goes comes before what stays in a list.
const GOES: u8 = 0;
/// See [`GOES`].
const STAYS: u8 = 1;
/// Most texts of the engine in one reply.
const MOST_SAID: usize = 10;

/// What to remove.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
enum What {
    /// Dangling images, and tags of ours beyond the last 10 releases.
    Images,
    /// Exited containers of ours of no current release.
    Containers,
    /// Networks of ours of no stack, without containers.
    Networks,
    /// Build cache of the engine.
    BuildCache,
    /// Backups that no schedule's numbers keep; of every source one stays.
    Snapshots,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Input {
    /// What to remove.
    what: What,
    /// Only show what would go; true by default.
    dry_run: Option<bool>,
    /// `next_cursor` of the reply before, of a dry run.
    cursor: Option<String>,
}

#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Output {
    what: What,
    dry_run: bool,
    /// What goes, or went.
    items: Vec<String>,
    /// What stays or could not be removed, and why.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    kept: Vec<String>,
    /// What the engine said of it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(skip)]
    engine: Vec<Untrusted>,
    bytes: u64,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    truncated: bool,
    /// Pass as `cursor` for more.
    #[serde(skip_serializing_if = "Option::is_none")]
    next_cursor: Option<String>,
}

pub(super) struct Prune;

impl Verb for Prune {
    const SPEC: &'static ToolSpec = &ToolSpec {
        name: "prune",
        title: "Remove what nothing uses",
        description: "Removes unused images, containers or networks of this supervisor, build cache, or surplus snapshots; never volumes. Lists what would go unless dry_run is false.",
        effect: Effect::Destructive,
        idempotent: true,
        input_schema: schema::input::<Input>,
        output_schema: schema::approvable::<Output>,
    };
    type Input = Input;
    type Output = Output;

    async fn scope(_: &Call, _: &Input) -> Result<Scope, CallError> {
        Ok(Scope::default())
    }

    fn changes(input: &Input) -> bool {
        input.dry_run == Some(false)
    }

    async fn preview(call: &Call, input: Input) -> Result<Output, CallError> {
        let found = find(call, input.what).await?;
        let bytes = found.iter().map(|i| i.bytes).sum();
        let items = found.into_iter().map(|i| i.shown).collect();
        let kept = if input.what == What::Snapshots { marked(call).await? } else { vec![] };
        let Page { items, kept, next: next_cursor } = page(items, kept, input.cursor.as_deref())?;
        Ok(Output { items, kept, bytes, next_cursor, ..Output::of(input.what, true) })
    }

    async fn resolved(call: &Call, input: &Input) -> Result<Option<Value>, CallError> {
        let mut items: Vec<String> = find(call, input.what).await?.into_iter().map(|i| i.shown).collect();
        items.sort();
        Ok(Some(json!({"items": items})))
    }

    async fn run(call: &Call, input: Input, _: Option<Plan>, permit: Permit) -> Result<Output, CallError> {
        if input.cursor.is_some() {
            let hint = "leave cursor out: all of it is removed at once; pages are of what a dry run lists";
            return Err(CallError::new(ErrorCode::InvalidArgument, "what is removed has no pages", hint).field("cursor"));
        }
        if input.what == What::Snapshots {
            return forget(call, permit).await;
        }
        let mut out = Output::of(input.what, false);
        // What came to be unused since is not what was shown.
        let shown = call.resolved.get().map(named);
        for item in find(call, input.what).await?.into_iter().filter(|i| shown.as_ref().is_none_or(|s| s.contains(i.shown.as_str()))) {
            match remove(call, &permit, &item).await {
                Ok(bytes) => {
                    out.bytes += bytes;
                    out.items.push(item.shown);
                }
                Err(e) => {
                    let (why, theirs) = said(&format!("engine, of {}", item.shown), &e.to_string(), 300);
                    out.kept.push(format!("{}: {why}", item.shown));
                    out.engine.extend(theirs);
                }
            }
        }
        Ok(bounded(out))
    }

    fn text(o: &Output) -> Option<String> {
        let done = if o.dry_run { "would remove" } else { "removed" };
        // The bytes are those of all pages.
        let all = if o.next_cursor.is_some() { "at least " } else { "" };
        let mut out = format!("{done} {all}{} items, {} bytes in all", o.items.len(), o.bytes);
        for item in &o.items {
            out.push_str(&format!("\n{item}"));
        }
        for item in &o.kept {
            out.push_str(&format!("\nkept {item}"));
        }
        for theirs in &o.engine {
            out.push_str(&format!("\n[untrusted, {}]\n{}", theirs.source, theirs.text));
        }
        if let Some(next) = &o.next_cursor {
            out.push_str(&format!("\n(more: cursor {next:?})"));
        }
        Some(out)
    }
}

/// Something that nothing uses any more.
struct Item {
    what: Unused,
    /// How replies name it.
    shown: String,
    bytes: u64,
}

enum Unused {
    Image(ImageRef),
    Container { id: EngineName, volumes: bool },
    Network(EngineName),
    BuildCache,
    Snapshot,
}

/// The items that were shown.
fn named(resolved: &Value) -> BTreeSet<&str> {
    resolved["items"].as_array().into_iter().flatten().filter_map(Value::as_str).collect()
}

impl Output {
    fn of(what: What, dry_run: bool) -> Self {
        Self { what, dry_run, items: vec![], kept: vec![], engine: vec![], bytes: 0, truncated: false, next_cursor: None }
    }
}

/// A page of what a dry run lists.
struct Page {
    items: Vec<String>,
    kept: Vec<String>,
    next: Option<String>,
}

/// What goes, then what stays, each in order. The next page begins behind the last of this one, whatever came or went meanwhile.
fn page(items: Vec<String>, kept: Vec<String>, after: Option<&str>) -> Result<Page, CallError> {
    let after = after.map(cursor).transpose()?;
    let mut all: Vec<(u8, String)> = items.into_iter().map(|i| (GOES, i)).chain(kept.into_iter().map(|k| (STAYS, k))).collect();
    all.sort();
    all.retain(|entry| after.as_ref().is_none_or(|after| entry > after));
    let more = all.len() > SHOWN;
    all.truncate(SHOWN);
    let next = all.last().filter(|_| more).map(|(kind, text)| format!("{kind}:{text}"));
    let (items, kept): (Vec<_>, Vec<_>) = all.into_iter().partition(|(kind, _)| *kind == GOES);
    let texts = |entries: Vec<(u8, String)>| entries.into_iter().map(|(_, text)| text).collect();
    Ok(Page { items: texts(items), kept: texts(kept), next })
}

fn cursor(text: &str) -> Result<(u8, String), CallError> {
    let entry = text.split_once(':').and_then(|(kind, text)| Some((kind.parse().ok().filter(|k| *k <= STAYS)?, text.to_owned())));
    entry.ok_or_else(|| {
        let message = format!("{:?} is no cursor", crate::redact::line(text, 64));
        CallError::new(ErrorCode::InvalidArgument, message, "pass next_cursor of the reply before").field("cursor")
    })
}

fn bounded(mut out: Output) -> Output {
    out.truncated = out.items.len() > SHOWN || out.kept.len() > SHOWN;
    out.items.truncate(SHOWN);
    out.kept.truncate(SHOWN);
    out.engine.truncate(MOST_SAID);
    out
}

/// What would go. Reads only.
async fn find(call: &Call, what: What) -> Result<Vec<Item>, CallError> {
    match what {
        What::Images => images(call).await,
        What::Containers => containers(call).await,
        What::Networks => networks(call).await,
        What::Snapshots => snapshots(call).await,
        What::BuildCache => {
            Ok(vec![Item { what: Unused::BuildCache, shown: "the whole build cache (its size is only known after)".into(), bytes: 0 }])
        }
    }
}

/// Removes one; the bytes that came free.
async fn remove(call: &Call, permit: &Permit, item: &Item) -> Result<u64, EngineError> {
    let engine = &call.house.engine;
    match &item.what {
        Unused::Image(reference) => engine.remove_image(permit, reference).await?,
        Unused::Container { id, volumes } => engine.remove_container(permit, id, *volumes).await?,
        Unused::Network(name) => engine.remove_network(permit, name).await?,
        // They go together, as an operation of their own.
        Unused::Snapshot => return Ok(0),
        Unused::BuildCache => return engine.prune(permit, PruneKind::BuildCache).await,
    }
    Ok(item.bytes)
}

/// Snapshots beyond the numbers of their stacks.
async fn snapshots(call: &Call) -> Result<Vec<Item>, CallError> {
    let (_, surplus) = surplus(call).await?;
    Ok(surplus.iter().map(|b| Item { what: Unused::Snapshot, shown: named_snapshot(b), bytes: b.added }).collect())
}

fn named_snapshot(b: &BackupRecord) -> String {
    format!("{} of {} at {}", b.snapshot_id, b.volume, b.at.format("%Y-%m-%dT%H:%M:%SZ"))
}

/// All snapshots of stacks, and those of them that no schedule's numbers keep.
async fn surplus(call: &Call) -> Result<(Vec<BackupRecord>, Vec<BackupRecord>), CallError> {
    let store = &call.house.store;
    let failed = store.failed_drills(None).await?;
    let (mut all, mut surplus) = (vec![], vec![]);
    for stack in store.stacks().await? {
        let Some(release) = volumes::current(call, &stack.name).await? else { continue };
        let records = store.backups(Some(&stack.name), None, usize::MAX).await?;
        let free = keep::uncovering(records.clone(), &store.kept(Some(&stack.name)).await?);
        surplus.extend(keep::forgettable_here(&free, &sources::keeping(&call.house.config, &stack.name, &release), &failed, call.now));
        all.extend(records);
    }
    Ok((all, surplus))
}

/// Snapshots that stay whatever the numbers say.
async fn marked(call: &Call) -> Result<Vec<String>, CallError> {
    let all = call.house.store.backups(None, None, usize::MAX).await?;
    let marked = all.into_iter().filter(|b| b.tags.iter().any(|t| t == keep::KEPT));
    Ok(marked.map(|b| format!("{}: marked `keep`", named_snapshot(&b))).collect())
}

/// Removes them as one operation: what is journaled is what is removed.
async fn forget(call: &Call, permit: Permit) -> Result<Output, CallError> {
    let shown = call.resolved.get().map(named);
    let (all, mut going) = surplus(call).await?;
    going.retain(|b| shown.as_ref().is_none_or(|s| s.contains(named_snapshot(b).as_str())));
    let plan = ForgetPlan::new(&all, &going, &call.house.store.failed_drills(None).await?);
    going.retain(|b| plan.ids().any(|id| id == b.snapshot_id));
    let of = |going: &[BackupRecord]| going.iter().map(named_snapshot).collect();
    let mut out = Output { items: of(&going), ..Output::of(What::Snapshots, false) };
    if !going.is_empty() {
        let waiting = Waiting { wait: None, timeout_s: None, idempotency_key: None, reason: None };
        let (job, arguments) = (DataJob::Forget { plan: Box::new(plan) }, serde_json::json!({"what": What::Snapshots, "dry_run": false}));
        let (view, done) = data::execute(call, Prune::SPEC.name, None, job, permit, waiting, &arguments).await?;
        if let Some(done) = done.forgotten {
            going.retain(|b| done.snapshots.contains(&b.snapshot_id));
            (out.items, out.kept) = (of(&going), done.spared);
        }
        if view.state == OperationState::Done {
            out.bytes = going.iter().map(|b| b.added).sum();
        } else {
            out.kept.push(view.line("prune"));
        }
    }
    Ok(bounded(out))
}

async fn images(call: &Call) -> Result<Vec<Item>, CallError> {
    let engine = &call.house.engine;
    let all = engine.images().await?;
    let used: BTreeSet<String> = engine.containers(&[]).await?.into_iter().map(|c| c.image_id).collect();
    let (needed_ids, needed_tags) = needed(call).await?;
    // Another supervisor on this engine tags its releases alike: only stacks this one knows are its to tidy.
    let known: BTreeSet<String> = call.house.store.stacks().await?.into_iter().map(|s| s.name.to_string()).collect();
    let mut found = vec![];
    for image in &all {
        let busy = used.contains(&image.id) || needed_ids.contains(&image.id);
        // An image of fronts is made again from our own binary when one is needed.
        let unneeded = |t: &&String| {
            (release_tag(t).is_some_and(|stack| known.contains(stack)) && !needed_tags.contains(*t))
                || (t.starts_with("dockwarden/front:") && !busy)
        };
        for tag in image.tags.iter().filter(unneeded) {
            let Ok(reference) = ImageRef::new(tag.as_str()) else { continue };
            let last = image.tags.len() == 1 && !busy;
            found.push(Item { what: Unused::Image(reference), shown: tag.clone(), bytes: if last { image.size } else { 0 } });
        }
        if let Some(reference) = ImageRef::new(image.id.as_str()).ok().filter(|_| is_dangling(image) && !busy) {
            found.push(Item { what: Unused::Image(reference), shown: format!("{} (dangling)", short(&image.id)), bytes: image.size });
        }
    }
    Ok(found)
}

/// Image ids and tags that the last releases of every stack need.
async fn needed(call: &Call) -> Result<(BTreeSet<String>, BTreeSet<String>), CallError> {
    let (mut ids, mut tags) = (BTreeSet::new(), BTreeSet::new());
    for stack in call.house.store.stacks().await? {
        let releases = call.house.store.releases(&stack.name, KEPT_RELEASES.max(50)).await?;
        let kept = releases.iter().enumerate().filter(|(n, r)| *n < KEPT_RELEASES || Some(r.number) == stack.current);
        for (_, release) in kept {
            for (service, identity) in &release.images {
                ids.extend(identity.id.clone());
                tags.insert(format!("dockwarden/{}/{}:r{}", stack.name, service.as_str().to_lowercase(), release.number));
            }
        }
    }
    Ok((ids, tags))
}

/// The stack of `dockwarden/<stack>/<service>:r<n>`: tags only dockwarden sets.
fn release_tag(tag: &str) -> Option<&str> {
    let (path, version) = tag.strip_prefix("dockwarden/")?.rsplit_once(":r")?;
    let (stack, service) = path.split_once('/')?;
    (!service.contains('/') && !version.is_empty() && version.bytes().all(|b| b.is_ascii_digit())).then_some(stack)
}

/// No tag and no digest by which a registry knows it.
fn is_dangling(image: &ImageInfo) -> bool {
    image.tags.iter().all(|t| t == "<none>:<none>") && image.repo_digests.iter().all(|d| d.starts_with("<none>"))
}

fn short(id: &str) -> &str {
    crate::redact::keep_start(id.trim_start_matches("sha256:"), 12)
}

/// Containers that stand for a service of their stack's current release, stopped ones too: what a start would start, with volumes only they name.
async fn standing(
    call: &Call,
    current: &BTreeMap<String, Option<u32>>,
    all: &[ContainerSummary],
) -> Result<BTreeSet<EngineName>, CallError> {
    let mut found = BTreeSet::new();
    for (name, number) in current.iter().filter_map(|(name, number)| Some((name, (*number)?))) {
        let Ok(stack) = StackName::new(name.as_str()) else { continue };
        let Some(release) = call.house.store.release(&stack, number).await? else { continue };
        for service in release.spec.services.iter().filter(|(_, s)| s.active).map(|(service, _)| service.as_str()) {
            let is = |c: &&ContainerSummary, key: &str, value: &str| c.labels.get(key).is_some_and(|v| v == value);
            let copies = all
                .iter()
                .filter(|c| is(c, labels::STACK, name) && is(c, labels::SERVICE, service) && is(c, labels::ROLE, labels::ROLE_SERVING));
            found.extend(planner::standing_for(copies.collect(), |c| (&c.labels, c.state)).into_iter().map(|c| c.id.clone()));
        }
    }
    Ok(found)
}

async fn containers(call: &Call) -> Result<Vec<Item>, CallError> {
    let mut found = vec![];
    let current: BTreeMap<String, Option<u32>> =
        call.house.store.stacks().await?.into_iter().map(|s| (s.name.to_string(), s.current)).collect();
    let all = call.house.engine.containers(&observe::ours(&call.house, None)).await?;
    let standing = standing(call, &current, &all).await?;
    for c in all {
        let label = |key| c.labels.get(key).map(String::as_str);
        let Some(stack) = label(labels::STACK) else { continue };
        let held = StackName::new(stack).ok().and_then(|s| call.house.executor.holding(&s)).is_some();
        let ended = matches!(c.state, RunState::Exited | RunState::Dead);
        let serves = label(labels::ROLE).is_none_or(|r| r == labels::ROLE_SERVING);
        // A release leaves the containers of services it does not change as an earlier one made them.
        let of_current = serves && standing.contains(&c.id);
        // The front of a stopped stack comes back with it; one that was replaced goes, with the volume that held its routes.
        let front = label(labels::ROLE) == Some(labels::ROLE_FRONT);
        if front && current.get(stack).is_some_and(Option::is_some) && !names::is_retired(&c.name) {
            continue;
        }
        let of_stopped_stack = serves && current.get(stack).is_some_and(Option::is_some) && label(labels::RELEASE).is_none();
        if held || !ended || of_current || of_stopped_stack {
            continue;
        }
        found.push(Item { what: Unused::Container { id: c.id, volumes: front }, shown: c.name, bytes: 0 });
    }
    Ok(found)
}

async fn networks(call: &Call) -> Result<Vec<Item>, CallError> {
    let mut found = vec![];
    let live: BTreeSet<String> =
        call.house.store.stacks().await?.into_iter().filter(|s| s.current.is_some()).map(|s| s.name.to_string()).collect();
    for n in call.house.engine.networks(&observe::ours(&call.house, None)).await? {
        let stack = n.labels.get(labels::STACK).cloned().unwrap_or_default();
        let held = StackName::new(stack.as_str()).ok().and_then(|s| call.house.executor.holding(&s)).is_some();
        if held || live.contains(&stack) {
            continue;
        }
        let name = EngineName::new(n.name.as_str()).map_err(|e| {
            CallError::new(ErrorCode::Internal, "the engine named a network in a way it cannot", "report this").detail(e.to_string())
        })?;
        // Only an inspect tells which containers are attached.
        let empty = call.house.engine.network(&name).await?.is_some_and(|n| n.containers.is_empty());
        if empty {
            found.push(Item { what: Unused::Network(name), shown: n.name, bytes: 0 });
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_of_a_dry_run_give_everything_once_whatever_goes_meanwhile() {
        let names = |what: &str, n: usize| (0..n).map(|i| format!("{what}-{i:04}: x")).collect::<Vec<_>>();
        let (mut items, kept) = (names("image", SHOWN * 2), names("snapshot", 30));
        let (mut seen, mut stayed, mut at, mut pages) = (vec![], vec![], None, 0);
        loop {
            let Page { items: some, kept: rest, next } = page(items.clone(), kept.clone(), at.as_deref()).expect("a page");
            assert!(some.len() + rest.len() <= SHOWN);
            // What was shown may go before the next page is asked for.
            items.retain(|i| *i != some.first().cloned().unwrap_or_default());
            seen.extend(some);
            stayed.extend(rest);
            pages += 1;
            match next {
                Some(next) => at = Some(next),
                None => break,
            }
        }
        assert_eq!((seen, stayed, pages), (names("image", SHOWN * 2), kept, 3));
        for bad in ["", "7:x", "x", "-1:x"] {
            let refused = page(vec![], vec![], Some(bad)).map(|p| p.items).expect_err("refused");
            assert_eq!(refused.field.as_deref(), Some("cursor"), "{bad}");
        }
    }

    #[test]
    fn only_tags_we_set_count_as_ours() {
        for ours in ["dockwarden/shop/web:r1", "dockwarden/shop/web:r12"] {
            assert_eq!(release_tag(ours), Some("shop"), "{ours}");
        }
        for other in
            ["dockwarden:r1", "dockwarden/shop:r1", "dockwarden/shop/web:latest", "dockwarden/shop/web:r", "x/dockwarden/a/b:r1", "web:r1"]
        {
            assert_eq!(release_tag(other), None, "{other}");
        }
    }
}
