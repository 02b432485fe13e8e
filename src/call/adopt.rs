//! `adopt`: an operator takes a stack over from Compose. No tool: an agent must not widen what it may touch.
//! Adopting reads the files that Compose's labels name, compares them with what runs, shows what the policy has to say and makes the running
//! containers a release; nothing is restarted. Deliberately absent: checking who asks (the door does).

mod drift;
mod found;
mod lines;
mod objects;

pub use drift::Drift;
pub use found::one_off;

use super::context::{Door, Principal};
use super::error::ErrorCode;
use super::prepare::{self, Desired, Source};
use super::{Call, CallError, House, accepted, approval, facts, images, observe, plan_facts, run};
use crate::executor::Request;
use crate::executor::render::{self, Rendering, Role};
use crate::gate::{self, CallFacts};
use crate::model::adopted::Adoption;
use crate::model::config::StackSettingsEntry;
use crate::model::ids::*;
use crate::model::labels;
use crate::model::observed::{ContainerDetail, ContainerSummary, ImageIdentity, ImageInfo, MadeWith, RunState};
use crate::model::operation::OperationState;
use crate::model::plan::{Action, Plan};
use crate::model::spec::StackSpec;
use crate::model::verdict::{Finding, Verdict};
use crate::planner::{self, Observed, PlanInput, Want};
use crate::redact;
use serde::Serialize;
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// What an operator asked for.
#[derive(Debug, Clone)]
pub struct Asked {
    /// The stack.
    pub stack: StackName,
    /// Only look.
    pub dry_run: bool,
    /// Go on although the files differ from what runs.
    pub accept_drift: bool,
    /// Environment, where neither the configuration nor an earlier record says.
    pub environment: Option<String>,
    /// Operator, checked by the door; the home's owner for a look.
    pub by: AgentName,
}

/// One service of a project.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ServiceRow {
    /// Service.
    pub service: String,
    /// Containers.
    pub containers: Vec<String>,
    /// Image.
    pub image: String,
}

/// What was found out about a project, and what was done.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// Stack.
    pub stack: StackName,
    /// `would_adopt`, `adopted` or `managed` (it was ours before).
    pub state: &'static str,
    /// Release it is.
    pub release: Option<u32>,
    /// Operation that made it so.
    pub operation_id: Option<OperationId>,
    /// Environment.
    pub environment: String,
    /// Where its files are.
    pub files: StackSettingsEntry,
    /// Services and their containers.
    pub services: Vec<ServiceRow>,
    /// Networks and volumes that become the stack's.
    pub networks: Vec<String>,
    /// See `networks`.
    pub volumes: Vec<String>,
    /// Where the files differ from what runs.
    pub drift: Vec<Drift>,
    /// What the plan gate says about the files.
    pub findings: Vec<Finding>,
    /// Lines for policy.toml without which the next deploy is refused or waits for an approval.
    pub policy_lines: String,
    /// Lines for dockwarden.toml that say the same as our registry; not needed.
    pub config_lines: String,
}

/// Projects on the engine that could be adopted.
///
/// # Errors
/// The engine's.
pub async fn candidates(house: &House) -> Result<Vec<StackName>, CallError> {
    Ok(found::projects(house).await?.into_keys().filter_map(|p| StackName::new(p).ok()).collect())
}

/// Everything known of a project before anything is done.
struct Look {
    plan: Plan,
    adoption: Adoption,
    report: Report,
    call: Call,
}

/// Takes a project over, or tells what that would mean.
///
/// # Errors
/// `NotFound` for a project that is not there, `Preflight` without files, `Conflict` for another supervisor's stack or files that differ from what
/// runs, `Busy` while an operation holds the stack, and the house's.
pub async fn adopt(house: &Arc<House>, asked: &Asked) -> Result<Report, CallError> {
    let store = &house.store;
    let event = if asked.dry_run { "adopt_looked_at" } else { "adopt_asked" };
    let stack = Some(asked.stack.as_str());
    let detail = json!({"accept_drift": asked.accept_drift, "environment": asked.environment});
    store.audit_event(asked.by.as_str(), event, stack, &detail, chrono::Utc::now()).await?;
    let result = adopt_now(house, asked).await;
    let outcome = match &result {
        Ok(r) => json!({"state": r.state, "release": r.release, "operation_id": r.operation_id, "drift": r.drift.len(),
            "containers": r.services.iter().flat_map(|s| &s.containers).collect::<Vec<_>>()}),
        Err(e) => json!({"refused": redact::line(&e.message, 500)}),
    };
    if !asked.dry_run {
        let event = if result.is_ok() { "adopted" } else { "adopt_refused" };
        store.audit_event(asked.by.as_str(), event, stack, &outcome, chrono::Utc::now()).await?;
    }
    result
}

async fn adopt_now(house: &Arc<House>, asked: &Asked) -> Result<Report, CallError> {
    let containers = found::projects(house).await?.remove(asked.stack.as_str()).unwrap_or_default();
    if containers.is_empty() {
        return nothing_foreign(house, &asked.stack).await;
    }
    found::unclaimed(house, &asked.stack, &containers).await?;
    let containers = found::whole(house, &asked.stack).await?;
    let Look { plan, adoption, mut report, call } = look(house, asked, &containers).await?;
    if asked.dry_run {
        return Ok(report);
    }
    if !report.drift.is_empty() && !asked.accept_drift {
        let list: Vec<String> =
            report.drift.iter().take(8).map(|d| format!("{} {}: file {}, runs {}", d.service, d.what, d.file, d.runs)).collect();
        let message = format!("the files of {} differ from what runs in {} places: {}", asked.stack, report.drift.len(), list.join("; "));
        let hint = "run `docker compose up -d` or mend the files (a variable of that shell belongs into .env), then adopt it; or repeat with \
                    --accept-drift: the next deploy then makes it as the files say";
        return Err(CallError::new(ErrorCode::Conflict, redact::line(&message, 1500), hint).data(json!({"drift": report.drift})));
    }
    if let Some(frozen) = approval::frozen(&house.store).await? {
        return Err(CallError::new(ErrorCode::Denied, frozen, "lift it with `dockwarden unfreeze`"));
    }
    let decision = gate::operator_decision(asked.by.as_str());
    let facts = call.facts.get().expect("look() set them");
    // The plan gate's findings are shown, not applied: nothing of the plan is sent to the engine, and what runs already runs.
    let permit = gate::permit(&call.id, facts, &decision, Verdict::Allow, &[], true)
        .map_err(|r| CallError::new(ErrorCode::Denied, r.to_string(), "report this"))?;
    let request = request(&call, "adopt", Some("taken over from Compose".into()));
    let (asked_of, release) = (plan.asked.clone(), plan.to_release);
    let op = house.executor.adopt(plan, permit, request, adoption).await.map_err(run::executor_error)?;
    if op.state != OperationState::Done {
        let why = op.message.unwrap_or_else(|| op.state.as_str().to_owned());
        let hint = "nothing was restarted; mend what it names and adopt it again";
        return Err(CallError::new(ErrorCode::Failed, redact::line(&why, 500), hint).data(json!({"operation_id": op.id})));
    }
    let kept: BTreeMap<String, u32> = asked_of.into_iter().map(|a| (a.finding, release)).collect();
    if !kept.is_empty() {
        house.store.keep_accepted(&op.id, kept).await?;
    }
    report.state = "adopted";
    report.release = op.release;
    report.operation_id = Some(op.id);
    Ok(report)
}

pub(super) fn request(call: &Call, verb: &str, reason: Option<String>) -> Request {
    Request {
        verb: verb.into(),
        agent: call.who.agent.to_string(),
        call: call.id.clone(),
        idempotency_key: None,
        args_hash: String::new(),
        reason,
        approval: None,
    }
}

/// A call in an operator's name.
pub(super) fn call(house: &Arc<House>, by: &AgentName, tool: &str, stack: &StackName, environment: String) -> Call {
    let who = Principal { agent: by.clone(), door: Door::Cli, client: None, read_only: false, on_behalf: vec![] };
    let call = Call::new(house, &who, None, None);
    let facts = CallFacts {
        agent: by.to_string(),
        tool: tool.into(),
        mutates: true,
        stack: Some(stack.clone()),
        environment: Some(environment),
        service: None,
        preview: false,

        arguments: Default::default(),
        on_behalf: vec![],
    };
    call.facts.set(facts).expect("a call's facts are set once");
    call
}

/// Nothing of that name is Compose's: it is ours already, or it is not there.
async fn nothing_foreign(house: &Arc<House>, stack: &StackName) -> Result<Report, CallError> {
    let record = house.store.stack(stack).await?.filter(|r| r.current.is_some());
    let Some(record) = record else {
        let there = candidates(house).await?.iter().map(|s| s.to_string()).collect::<Vec<_>>().join(", ");
        let hint = if there.is_empty() { "no Compose project runs on this engine".to_owned() } else { format!("there are: {there}") };
        return Err(CallError::new(ErrorCode::NotFound, format!("no Compose project named {stack} is on this engine"), hint).field("stack"));
    };
    Ok(Report {
        stack: stack.clone(),
        state: "managed",
        release: record.current,
        operation_id: None,
        environment: record.environment,
        files: prepare::registration(house, stack).await?.unwrap_or_default(),
        services: vec![],
        networks: vec![],
        volumes: vec![],
        drift: vec![],
        findings: vec![],
        policy_lines: String::new(),
        config_lines: String::new(),
    })
}

/// Reads everything and decides nothing. Changes nothing.
async fn look(house: &Arc<House>, asked: &Asked, containers: &[ContainerSummary]) -> Result<Look, CallError> {
    let stack = &asked.stack;
    // What the operator wrote down goes before what labels say.
    let mut entry = match house.config.settings.stacks.get(stack) {
        Some(entry) => entry.clone(),
        None => found::entry(&house.config, stack, containers)?,
    };
    let probe = call(house, &asked.by, "adopt", stack, String::new());
    let environment = facts::environment(&probe, stack, asked.environment.clone()).await?;
    let call = call(house, &asked.by, "adopt", stack, environment.clone());
    let details = observe::details(house, containers).await?;
    let by_service = by_service(&details);
    let mut desired = load(&call, stack, &entry).await?;
    let running = by_service.keys().map(String::as_str).collect();
    if let Some(profiles) = profiles(&desired.spec, &running, &entry.profiles) {
        entry.profiles = profiles;
        desired = load(&call, stack, &entry).await?;
    }
    entry.environment = Some(environment.clone()).filter(|_| asked.environment.is_some());

    let mut gathered = Gathered::default();
    for (service, list) in &by_service {
        gathered.service(&call, &desired, service, list).await?;
    }
    let missing = desired.spec.services.iter().filter(|(n, s)| s.active && s.replicas > 0 && !by_service.contains_key(n.as_str()));
    for (service, spec) in missing {
        gathered.differs(service.as_str(), "containers", format!("{} run", spec.replicas), "none".into());
        let Some(reference) = &spec.image else { continue };
        let identity = images::identity(reference.clone(), house.engine.image(reference).await?);
        gathered.images.insert(service.clone(), identity);
    }
    let (networks, volumes) = objects::of_project(&call, &desired).await?;
    let number = house.store.last_release_number(stack).await? + 1;
    let rows = objects::rows(&call, number, &desired, &details, &gathered.same, &networks, &volumes);
    let observed = objects::observed(&details, &rows, networks.clone(), volumes.clone());
    let mut plan = plan(&call, stack, &environment, &desired, &gathered.images, &observed, number)?;
    // The planner has the last word about "the next plan is a no-op": what it would do and we did not see is drift too.
    for change in plan.changes.iter().filter(|c| c.action != Action::Unchanged) {
        if gathered.drift.iter().any(|d| d.service == change.service.as_str()) {
            continue;
        }
        gathered.differs(change.service.as_str(), "plan", format!("{:?}", change.action).to_lowercase(), "as it is".into());
    }
    gathered.drift.sort();
    let facts = plan_facts::gather(&call, &plan, &observed, None, &desired.facts).await?;
    let (policy, today) = (&call.rulebook.policy, call.now.date_naive());
    let weighed = gate::plan::weigh(&plan.desired, &facts, policy, today);
    let policy_lines = lines::policy(stack, &weighed, today);
    // Adopting is the operator's word on what runs as it runs: it does not ask again while it stays the same.
    let findings = accepted::settle(&call, &mut plan, weighed, &BTreeMap::new());
    let up = |c: &ContainerDetail| matches!(c.state, RunState::Running | RunState::Restarting | RunState::Paused);
    let services = by_service.iter().map(|(service, list)| ServiceRow {
        service: redact::line(service, 63),
        containers: list.iter().map(|c| redact::line(&c.name, 80)).collect(),
        image: redact::line(list.first().map_or("", |c| c.image.as_str()), 120),
    });
    let report = Report {
        stack: stack.clone(),
        state: "would_adopt",
        release: Some(number),
        operation_id: None,
        environment,
        services: services.collect(),
        networks,
        volumes,
        drift: gathered.drift,
        policy_lines,
        findings,
        config_lines: lines::config(stack, &entry),
        files: entry.clone(),
    };
    let adoption = Adoption { objects: rows, entry, stopped: !details.iter().any(up) };
    Ok(Look { plan, adoption, report, call })
}

async fn load(call: &Call, stack: &StackName, entry: &StackSettingsEntry) -> Result<Desired, CallError> {
    let loaded = prepare::load_from(call, &Source::registered(stack), Some(entry.clone())).await?;
    loaded.ok_or_else(|| CallError::new(ErrorCode::Preflight, format!("the files of {stack} are empty"), "mend them, then adopt the stack"))
}

fn by_service(details: &[ContainerDetail]) -> BTreeMap<String, Vec<&ContainerDetail>> {
    let mut out: BTreeMap<String, Vec<&ContainerDetail>> = BTreeMap::new();
    for c in details {
        out.entry(c.labels.get(labels::COMPOSE_SERVICE).cloned().unwrap_or_default()).or_default().push(c);
    }
    for list in out.values_mut() {
        list.sort_by_key(|c| number(c));
    }
    out
}

fn ours(call: &Call, c: &ContainerDetail) -> bool {
    c.labels.get(labels::INSTANCE).is_some_and(|i| i == call.house.store.instance())
}

fn number(c: &ContainerDetail) -> u32 {
    c.labels.get(labels::COMPOSE_NUMBER).and_then(|n| n.parse().ok()).unwrap_or(1)
}

/// Profiles that were active: Compose does not note them, what runs tells. For a service that runs and is not active, the one of its profiles that
/// brings the fewest services that do not run. `None` when nothing has to be added.
fn profiles(spec: &StackSpec, running: &BTreeSet<&str>, given: &[String]) -> Option<Vec<String>> {
    let mut chosen: BTreeSet<String> = given.iter().cloned().collect();
    let extra =
        |profile: &String| spec.services.iter().filter(|(n, s)| s.profiles.contains(profile) && !running.contains(n.as_str())).count();
    for (name, service) in &spec.services {
        if running.contains(name.as_str()) && !service.active && !service.profiles.iter().any(|p| chosen.contains(p)) {
            chosen.extend(service.profiles.iter().min_by_key(|p| extra(p)).cloned());
        }
    }
    (chosen.len() > given.len()).then(|| chosen.into_iter().collect())
}

/// What the comparison brings together.
#[derive(Default)]
struct Gathered {
    drift: Vec<Drift>,
    images: BTreeMap<ServiceName, ImageIdentity>,
    /// Hash of the spec by container id; absent where the container differs.
    same: BTreeMap<String, String>,
}

impl Gathered {
    fn differs(&mut self, service: &str, what: &str, file: String, runs: String) {
        self.drift.push(Drift { service: redact::line(service, 63), what: what.into(), file, runs, content: false });
    }

    async fn service(&mut self, call: &Call, desired: &Desired, name: &str, list: &[&ContainerDetail]) -> Result<(), CallError> {
        let known = ServiceName::new(name).ok().and_then(|n| desired.spec.services.get_key_value(&n)).filter(|(_, s)| s.active);
        let Some((service, spec)) = known else {
            self.differs(name, "service", "not in the files".into(), format!("{} containers", list.len()));
            return Ok(());
        };
        let (engine, store) = (&call.house.engine, &call.house.store);
        let Some(first) = list.first() else { return Ok(()) };
        let image = match ImageRef::new(first.image_id.as_str()) {
            Ok(id) => engine.image(&id).await?,
            Err(_) => None,
        };
        // Compose's own name for what it builds.
        let named = spec.image.clone().or_else(|| ImageRef::new(format!("{}-{service}", desired.spec.name)).ok());
        let resolved = match &named {
            Some(reference) => engine.image(reference).await?.map(|i| i.id),
            None => None,
        };
        let log_driver = engine.about().await?.log_driver;
        let reference = spec.image.clone().or_else(|| ImageRef::new(first.image.as_str()).ok());
        if let Some(reference) = reference {
            // What runs is what the release is, whatever the tag means by now.
            let mut identity = images::identity(reference, image.clone());
            identity.id = Some(first.image_id.clone());
            self.images.insert(service.clone(), identity);
        }
        let once = planner::one_shot(&desired.spec, service);
        if !once && list.len() != spec.replicas as usize {
            self.differs(name, "replicas", spec.replicas.to_string(), list.len().to_string());
        }
        let digest = |bytes: &[u8]| store.keyed_digest(bytes);
        for c in list {
            let hash = planner::hash::spec_hash(&desired.spec, service, &c.image_id, &digest);
            if ours(call, c) {
                // One that we made says itself what it is; what is to be done about it the plan tells.
                if c.labels.get(labels::SPEC) != Some(&hash) {
                    self.differs(name, "container", "another release".into(), redact::line(&c.name, 80));
                }
                continue;
            }
            let made = engine.made_with(&c.id).await?.unwrap_or_default();
            let (images, of_engine) = ((image.as_ref(), resolved.as_deref()), log_driver.as_str());
            let differences = compare(call, desired, (service, spec), (c, &made), images, of_engine, once)?;
            if !differences.iter().any(|d| d.content) {
                self.same.insert(c.id.to_string(), hash);
            }
            self.drift.extend(differences);
        }
        self.drift.dedup();
        Ok(())
    }
}

fn compare(
    call: &Call,
    desired: &Desired,
    (service, spec): (&ServiceName, &crate::model::spec::ServiceSpec),
    (seen, made): (&ContainerDetail, &MadeWith),
    (image, resolved): (Option<&ImageInfo>, Option<&str>),
    log_driver: &str,
    once: bool,
) -> Result<Vec<Drift>, CallError> {
    let store = &call.house.store;
    let cannot = |why: String| {
        CallError::new(
            ErrorCode::Preflight,
            format!("service {service} cannot be taken over: {why}"),
            "change the file, then adopt the stack",
        )
    };
    // Of what it shares only the network is compared, by the container it has.
    let shared = made.network_mode.strip_prefix("container:").and_then(|id| EngineName::new(id).ok()).unwrap_or_else(|| seen.id.clone());
    let joined = render::shared_with(spec).into_iter().map(|other| (other.to_owned(), shared.clone())).collect();
    let operation = OperationId::new("op-adopt").expect("a valid id");
    let wanted = render::container(&Rendering {
        instance: store.instance(),
        stack: &desired.spec,
        service,
        number: number(seen),
        role: Role::Serving,
        operation: &operation,
        release: 1,
        image: ImageRef::new(seen.image_id.as_str()).map_err(|e| cannot(e.to_string()))?,
        hash: String::new(),
        inherited: &[],
        carried: Default::default(),
        declared: desired.spec.volumes.values().map(|v| v.name.clone()).collect(),
        joined,
        log_driver,
    })
    .map_err(cannot)?;
    let hash = |value: &str| store.keyed_hash(value);
    Ok(drift::compare(&drift::Pair { service, spec, wanted: &wanted, resolved, image, seen, made, log_driver, once, hash: &hash }))
}

fn plan(
    call: &Call,
    stack: &StackName,
    environment: &str,
    desired: &Desired,
    images: &BTreeMap<ServiceName, ImageIdentity>,
    observed: &Observed,
    number: u32,
) -> Result<Plan, CallError> {
    let store = &call.house.store;
    let input = PlanInput {
        id: prepare::new_id(),
        stack: stack.clone(),
        environment: environment.to_owned(),
        want: Want::Release { desired: Box::new(desired.spec.clone()), images: images.clone(), content_of: None },
        observed,
        current: None,
        anew: &Default::default(),
        next_release: number,
        policy_version: &call.policy_version(),
        project_dir: desired.project_dir.clone(),
        git: desired.git.clone(),
        literal_keys: &call.rulebook.policy.literal_keys,
        hash: &|value| store.keyed_hash(value),
        digest: &|bytes| store.keyed_digest(bytes),
        now: call.now,
    };
    planner::plan(&input).map_err(|e| prepare::plan_error(&e))
}

#[cfg(test)]
mod tests;
