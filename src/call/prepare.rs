//! From a call's words to a plan: reads files, resolves images, observes the engine, asks the planner, has the plan gate judge. All reading happens here,
//! before anything is decided, so that planner and gate stay pure. Nothing is changed.

use super::data_plan::{self, bring::Brought};
use super::error::ErrorCode;
use super::images::identities;
use super::{Call, CallError, Door, House, accepted, compose_files, coverage, observe, plan_facts, sealed, spare, successor};
use crate::gate;
use crate::gate::plan::Weighed;
use crate::gate::plan::outside::{PRE_UPDATE, UNSUPPORTED};
use crate::model::config::{Config, StackSettingsEntry};
use crate::model::ids::{PlanId, ServiceName, StackName};
use crate::model::labels;
use crate::model::observed::ImageIdentity;
use crate::model::plan::{GitState, Plan, PlanKind, Weight};
use crate::model::release::Release;
use crate::model::spec::StackSpec;
use crate::model::verdict::Finding;
use crate::planner::{self, PlanError, PlanInput, Want};
use crate::redact;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

mod back;
mod source;

pub use back::{rollback, swap};
use source::interrupted;
pub(super) use source::load_from;
pub use source::{CONTENT, Source};

/// A stack as it shall be, with what is known of where it came from.
#[derive(Debug, Clone)]
pub(super) struct Desired {
    pub(super) spec: StackSpec,
    images: BTreeMap<ServiceName, ImageIdentity>,
    /// What there is to say of images that nobody knows yet.
    unresolved: Vec<Weighed>,
    content_of: Option<u32>,
    pub(super) project_dir: Option<String>,
    pub(super) git: Option<GitState>,
    pub(super) facts: plan_facts::Texts,
    pub(super) brought: Brought,
}

/// Plans a deploy of what the caller gave, of the registered directory, or of the current release with other images.
///
/// # Errors
/// With field, cause and hint: files that do not load, unknown images and services, a name in use, bind sources that do not exist.
pub async fn deploy(call: &Call, source: &Source) -> Result<Plan, CallError> {
    foreign_project(call, &source.stack).await?;
    let mut desired = match load(call, source).await? {
        Some(desired) => desired,
        None => from_current(call, source).await?,
    };
    for (service, image) in &source.images {
        let known = desired.spec.services.keys().cloned().collect::<Vec<_>>();
        let spec =
            desired.spec.services.get_mut(service).ok_or_else(|| no_service(&source.stack, service, known.iter()).field("images"))?;
        spec.image = Some(image.clone());
    }
    (desired.images, desired.unresolved) = identities(call, &desired.spec, &|_| source.refresh).await?;
    let mut plan = planned(call, &source.stack, Some(desired.clone()), None, new_id(), (&BTreeSet::new(), Brought::default())).await?;
    plan.given = Some(source.given());
    let current = match plan.from_release {
        Some(number) => call.house.store.release(&source.stack, number).await?,
        None => None,
    };
    let again = super::images::pulled_again(&plan, current.as_ref(), call.now);
    if again.is_empty() {
        return Ok(plan);
    }
    let (images, unresolved) = identities(call, &desired.spec, &|service| again.contains(service)).await?;
    if images == desired.images {
        return Ok(plan);
    }
    (desired.images, desired.unresolved) = (images, unresolved);
    let mut again = planned(call, &source.stack, Some(desired), None, plan.id, (&BTreeSet::new(), Brought::default())).await?;
    again.given = plan.given;
    Ok(again)
}

/// A stored plan made by `plan`.
///
/// # Errors
/// `NotFound`.
pub async fn stored(call: &Call, id: &PlanId) -> Result<Plan, CallError> {
    let plan = call.house.store.plan(id).await?.filter(|p| p.kind == PlanKind::Deploy);
    plan.ok_or_else(|| {
        CallError::new(
            ErrorCode::NotFound,
            format!("there is no plan {id}"),
            "plans are kept for 24 hours: call `plan` again and use its plan_id and digest",
        )
        .field("plan_id")
    })
}

/// Makes a stored plan again against the world as it is now, and judges it again.
///
/// # Errors
/// `InvalidArgument` when the digest is not the plan's, `StalePlan` when the world or the policy moved.
pub async fn again(call: &Call, plan: &Plan, digest: &str) -> Result<Plan, CallError> {
    if digest != plan.digest {
        let message = format!("the digest is not that of plan {}", plan.id);
        return Err(
            CallError::new(ErrorCode::InvalidArgument, message, "pass the digest that `plan` returned with this plan_id").field("digest")
        );
    }
    foreign_project(call, &plan.stack).await?;
    let desired = Desired {
        spec: plan.desired.clone(),
        images: plan.images.clone(),
        // What was said of them then is kept below.
        unresolved: vec![],
        content_of: plan.content_of,
        project_dir: plan.project_dir.clone(),
        git: plan.git.clone(),
        facts: plan_facts::Texts::unknown(&plan.desired),
        brought: Brought { restore: plan.data.restore.clone(), exchange: plan.data.exchange.clone() },
    };
    let mut now = planned(call, &plan.stack, Some(desired), None, plan.id.clone(), (&plan.weighed, Brought::default())).await?;
    if now.fingerprint != plan.fingerprint || now.digest != plan.digest {
        let what = if now.fingerprint == plan.fingerprint { "the policy or what would be done" } else { "the stack on the engine" };
        return Err(CallError::new(
            ErrorCode::StalePlan,
            format!("{what} changed since plan {} was made", plan.id),
            "call `plan` again and deploy the new plan",
        ));
    }
    now.given.clone_from(&plan.given);
    // The texts are gone, so what was found in them then is kept beside what is found now.
    let found_then = plan.findings.iter().filter(|f| f.rule != PRE_UPDATE).cloned();
    judged(&mut now, found_then.collect());
    now.asked.extend(plan.asked.iter().filter(|a| !now.asked.iter().any(|b| b.finding == a.finding)).cloned().collect::<Vec<_>>());
    Ok(now)
}

/// Plans what changes no release's content: restart, stop, scale.
///
/// # Errors
/// `NotFound` when the stack is not deployed or has no such service; `Conflict` when Compose runs what would be made.
pub async fn in_place(call: &Call, stack: &StackName, want: Want) -> Result<Plan, CallError> {
    let makes = match &want {
        Want::Scale { service, .. } | Want::Recreate { service } | Want::Refill { service } => Some(service.clone()),
        Want::Release { .. } | Want::Restart { .. } | Want::Stop { .. } => None,
    };
    let plan = planned(call, stack, None, Some(want), new_id(), (&BTreeSet::new(), Brought::default())).await?;
    if makes.is_some() {
        successor::refuse(&call.house, stack, &plan.desired, makes.as_ref()).await?;
    }
    Ok(plan)
}

pub(super) fn new_id() -> PlanId {
    PlanId::new(format!("plan-{}", ulid::Ulid::generate().to_string().to_ascii_lowercase())).expect("a ulid is alphanumeric")
}

async fn planned(
    call: &Call,
    stack: &StackName,
    desired: Option<Desired>,
    in_place: Option<Want>,
    id: PlanId,
    (weighed_before, anonymous): (&BTreeSet<Weight>, Brought),
) -> Result<Plan, CallError> {
    if let Some(desired) = &desired {
        let (own, spec) = (call.own.clone(), desired.spec.clone());
        tokio::task::spawn_blocking(move || own.spec(&spec)).await.map_err(|e| interrupted(&e))?;
    }
    let store = &call.house.store;
    let record = store.stack(stack).await?;
    let current = match record.and_then(|r| r.current) {
        Some(number) => store.release(stack, number).await?,
        None => None,
    };
    let observed = observe::stack(&call.house, stack).await?;
    let spared = match &current {
        Some(release) if call.who.door == Door::Loop => {
            spare::of(&call.house.store, release, &observed, in_place.as_ref(), call.now).await?
        }
        _ => spare::Spared::default(),
    };
    let in_place = spared.instead.or(in_place);
    let environment = call.environment().to_owned();
    let mut brought = anonymous;
    let mut said = vec![];
    let (want, project_dir, git, texts) = match (desired, in_place) {
        (Some(mut d), _) => {
            said = d.unresolved;
            data_plan::carry(call, stack, current.as_ref(), &mut d.spec).await?;
            brought = data_plan::bring::swap(&mut d.spec, &d.brought);
            (Want::Release { desired: Box::new(d.spec), images: d.images, content_of: d.content_of }, d.project_dir, d.git, Some(d.facts))
        }
        // More copies, and copies made anew, are more of what was judged: judged again, against the host as it is now. A stop or restart must be possible whatever the policy says by now.
        (None, Some(want @ (Want::Scale { .. } | Want::Recreate { .. } | Want::Refill { .. }))) => {
            let texts = current.as_ref().map(|r| plan_facts::Texts::unknown(&r.spec));
            (want, current.as_ref().and_then(|r| r.project_dir.clone()), current.as_ref().and_then(|r| r.git.clone()), texts)
        }
        (None, Some(want)) => {
            (want, current.as_ref().and_then(|r| r.project_dir.clone()), current.as_ref().and_then(|r| r.git.clone()), None)
        }
        (None, None) => return Err(not_deployed(stack)),
    };
    let anew = brought.anew();
    let policy_version = call.policy_version();
    let next_release = store.last_release_number(stack).await? + 1;
    // In a block of its own: the planner's input borrows functions that must not be held over an await.
    let mut plan = {
        let input = PlanInput {
            id,
            stack: stack.clone(),
            environment,
            want,
            observed: &observed,
            current: current.as_ref(),
            anew: &anew,
            next_release,
            policy_version: &policy_version,
            project_dir,
            git,
            literal_keys: &call.rulebook.policy.literal_keys,
            hash: &|value| store.keyed_hash(value),
            digest: &|bytes| store.keyed_digest(bytes),
            now: call.now,
        };
        planner::plan(&input).map_err(|e| plan_error(&e))?
    };
    (plan.data.restore, plan.data.exchange) = (brought.restore, brought.exchange);
    plan.left = spared.left;
    if let Some(texts) = texts {
        let about_data = data_plan::make_safe(call, &mut plan, &observed, current.as_ref()).await?;
        judged(&mut plan, about_data.findings);
        said.extend(about_data.said);
        said.extend(coverage::findings(call, &plan.desired, plan.project_dir.as_deref()));
        said.extend(
            plan.desired
                .unsupported
                .iter()
                .map(|u| Weighed::said(UNSUPPORTED, None, Some(u.path.clone()), u.path.as_str(), redact::line(&u.reason, 300))),
        );
        plan.carried =
            plan_facts::carried::of(&call.house, (&plan.desired, current.as_ref().map(|r| &r.spec)), &plan.images, &observed).await?;
        let facts = plan_facts::gather(call, &plan, &observed, current.as_ref(), &texts).await?;
        super::binds::exist(call, &plan.desired, &facts)?;
        let mut weighed = gate::plan::weigh(&plan.desired, &facts, &call.rulebook.policy, call.now.date_naive());
        let scales = data_plan::scales(call, &plan);
        weighed.extend(said.into_iter().filter_map(|said| scales.again(said)));
        sealed::seal(call, &mut plan, &facts, &weighed, weighed_before);
        // What runs was approved as it runs; what a rollback goes back to was approved when it was deployed.
        let older = match plan.content_of.filter(|n| current.as_ref().is_none_or(|c| c.number != *n)) {
            Some(number) => store.release(stack, number).await?,
            None => None,
        };
        let approved: Vec<&Release> = older.iter().chain(&current).collect();
        let accepted = accepted::with(call, &approved).await?;
        let mut findings = accepted::settle(call, &mut plan, weighed, &accepted);
        unseen_binds(&call.house.config, &plan.desired, &mut findings);
        // What goes back or is changed in place brings nothing that did not run before.
        if plan.kind == PlanKind::Deploy && !plan.is_noop() {
            let who = &call.who;
            findings.extend(gate::hooks::findings(&plan.desired, &call.rulebook, who.agent.as_str(), &who.on_behalf));
        }
        judged(&mut plan, findings);
    }
    Ok(plan)
}

/// A host path that is refused because the supervisor's container does not see it: the finding gets the line that would show it.
fn unseen_binds(config: &Config, spec: &StackSpec, findings: &mut [Finding]) {
    if config.path_map.is_none() {
        return;
    }
    for mount in spec.services.values().flat_map(|s| &s.mounts).filter(|m| m.kind == crate::model::spec::MountKind::Bind) {
        let Some(source) = mount.source.as_deref().filter(|s| compose_files::visible(config, Path::new(s)).is_none()) else { continue };
        for finding in findings.iter_mut().filter(|f| f.rule == "bind.outside" && f.path.as_deref() == Some(mount.path.as_str())) {
            let line = redact::line(&format!("- {source}:{source}:ro"), 300);
            finding.because = format!(
                "the supervisor's container does not see this path and the policy does not allow it; where it is meant to, an operator adds `{line}` to the \
                 supervisor's volumes and the path to bind_roots_allow in policy.toml"
            );
        }
    }
}

/// Adds findings to a plan; its verdict is the strictest of all.
fn judged(plan: &mut Plan, findings: Vec<Finding>) {
    plan.findings.extend(findings);
    plan.findings.sort();
    plan.findings.dedup();
    plan.verdict = plan.findings.iter().map(|f| f.verdict).max().unwrap_or_default();
}

/// Where a stack's files are: as the operator wrote it down in dockwarden.toml, else as it was adopted.
///
/// # Errors
/// The store's.
pub async fn registration(house: &House, stack: &StackName) -> Result<Option<StackSettingsEntry>, CallError> {
    match house.config.settings.stacks.get(stack) {
        Some(entry) => Ok(Some(entry.clone())),
        None => Ok(house.store.registration(stack).await?),
    }
}

async fn load(call: &Call, source: &Source) -> Result<Option<Desired>, CallError> {
    let entry = registration(&call.house, &source.stack).await?;
    load_from(call, source, entry).await
}

/// Without files: the release that runs, for `images` and `refresh` of a stack that was deployed inline.
async fn from_current(call: &Call, source: &Source) -> Result<Desired, CallError> {
    let stack = &source.stack;
    let store = &call.house.store;
    let current = match store.stack(stack).await?.and_then(|r| r.current) {
        Some(number) => store.release(stack, number).await?,
        None => None,
    };
    let release = current.ok_or_else(|| {
        let hint = format!(
            "give `compose` or `files`, or have an operator register its directory: [stacks.{stack}] dir = \"/...\" in dockwarden.toml"
        );
        CallError::new(ErrorCode::NotFound, format!("nothing is known of stack {stack}"), hint).field("stack")
    })?;
    if let Some(variable) = source.variables.keys().next() {
        let message = format!("stack {stack} was deployed from texts that came with the call, so there is nothing to put {variable} into");
        let hint = "give `compose` or `files` again with the variables; for other images alone give `images`";
        return Err(CallError::new(ErrorCode::InvalidArgument, message, hint).field("variables"));
    }
    let facts = plan_facts::Texts::unknown(&release.spec);
    Ok(Desired {
        spec: release.spec,
        images: BTreeMap::new(),
        unresolved: vec![],
        content_of: None,
        project_dir: release.project_dir,
        git: release.git,
        facts,
        brought: Brought::default(),
    })
}

/// Whether the registered files of a stack say what runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Compared {
    /// `same`, `differ` or `unknown`.
    pub word: &'static str,
    /// Why it is unknown, or what it was compared with.
    pub why: Option<String>,
}

impl Compared {
    fn said(word: &'static str, why: impl Into<Option<String>>) -> Self {
        Self { word, why: why.into() }
    }

    /// They could not be compared.
    pub fn unknown(why: &str) -> Self {
        Self::said("unknown", redact::line(why, 200))
    }
}

/// Compares the registered files of a stack with what runs. Variables that came only with the call that deployed it are not kept, so files that need them
/// cannot be compared.
pub async fn compared(call: &Call, stack: &StackName) -> Compared {
    let source = Source::registered(stack);
    let ways = "declare it in .env or env_files of the stack, or compare with `plan` and the variables of that call";
    let plan = match deploy(call, &source).await {
        Ok(plan) if plan.is_noop() => return Compared::said("same", None),
        Ok(plan) => plan,
        Err(e) if e.message.contains("required variable") => {
            return Compared::said("unknown", format!("{}; {ways}", redact::line(&e.message, 200)));
        }
        Err(e) => return Compared::unknown(&e.message),
    };
    let undeclared = match load(call, &source).await {
        Ok(desired) => desired.map(|d| d.facts.undeclared()).unwrap_or_default(),
        Err(e) => return Compared::unknown(&e.message),
    };
    let empty = |name: &&String| plan.desired.unsupported.iter().any(|u| u.reason.starts_with(&format!("variable {name} is not set")));
    if let Some(name) = undeclared.iter().find(empty) {
        return Compared::said("unknown", format!("nothing here declares the variable {}; {ways}", redact::line(name, 64)));
    }
    let defaults = (!undeclared.is_empty())
        .then(|| format!("with the defaults of {}, which nothing here declares", redact::line(&undeclared.join(", "), 200)));
    Compared::said("differ", defaults)
}

/// A Compose project of that name that someone else runs is never taken over by accident.
async fn foreign_project(call: &Call, stack: &StackName) -> Result<(), CallError> {
    let mut foreign = observe::unmanaged(&call.house, Some(stack)).await?;
    // What `docker compose run` left stands in nobody's way.
    foreign.retain(|c| !super::adopt::one_off(c));
    let Some(first) = foreign.first() else { return Ok(()) };
    let (owner, hint) = if first.labels.contains_key(labels::INSTANCE) {
        ("another dockwarden", "choose another stack name, or have that project removed first by whoever runs it".to_owned())
    } else {
        let hint =
            format!("an operator takes it over with `dockwarden adopt {stack}` (nothing is restarted); or choose another stack name");
        ("someone else", hint)
    };
    let message =
        format!("a Compose project named {stack} is run by {owner} ({} containers, e.g. {})", foreign.len(), redact::line(&first.name, 80));
    Err(CallError::new(ErrorCode::Conflict, message, hint).field("stack"))
}

/// Nothing is deployed under that name.
pub fn not_deployed(stack: &StackName) -> CallError {
    CallError::new(ErrorCode::NotFound, format!("stack {stack} is not deployed"), "call `status` to see the stacks, or `plan` to deploy it")
        .field("stack")
}

/// The stack has no such service.
pub fn no_service<'a>(stack: &StackName, service: &ServiceName, known: impl Iterator<Item = &'a ServiceName>) -> CallError {
    let known: Vec<&str> = known.map(ServiceName::as_str).collect();
    let near = crate::tools::nearest(service.as_str(), known.iter().copied());
    let hint =
        if near.is_empty() { format!("its services are {}", known.join(", ")) } else { format!("did you mean {}?", near.join(" or ")) };
    CallError::new(ErrorCode::NotFound, format!("stack {stack} has no service {service}"), hint).field("service")
}

pub(super) fn plan_error(e: &PlanError) -> CallError {
    match e {
        PlanError::NotDeployed(stack) => not_deployed(stack),
        PlanError::NoService { stack, service, known } => no_service(stack, service, known.iter()),
        PlanError::Cycle(_) => {
            CallError::new(ErrorCode::InvalidArgument, e.to_string(), "remove one of these depends_on").field("depends_on")
        }
        PlanError::Impossible(_) => {
            CallError::new(ErrorCode::Conflict, redact::line(&e.to_string(), 400), "change what stands in the way, then plan again")
        }
    }
}
