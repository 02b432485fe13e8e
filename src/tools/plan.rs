//! `plan`: what a deploy would do, as data with a digest. Changes nothing on the engine; the plan is kept for `deploy {plan_id, digest}`.

use super::{Effect, ToolSpec, Verb, schema};
use crate::call::facts::Scope;
use crate::call::prepare::{self, Source};
use crate::call::run::said;
use crate::call::{Call, CallError};
use crate::gate::Permit;
use crate::model::ids::{ImageRef, PlanId, ServiceName, StackName};
use crate::model::plan::{Action, Change, DiffLine, GitState, Plan};
use crate::model::preflight::{Check, Passed};
use crate::model::verdict::{Finding, Verdict};
use crate::redact::Untrusted;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Input {
    /// Stack name.
    stack: StackName,
    /// Compose file text; by default the stack's registered directory is read.
    compose: Option<String>,
    /// Relative path -> text, instead of `compose`; 1 MiB in all.
    files: Option<BTreeMap<String, String>>,
    /// Must be the stack's own; only a new stack can choose.
    environment: Option<String>,
    /// Variables for interpolation, over those of `.env`.
    #[serde(default)]
    variables: BTreeMap<String, String>,
    /// Service -> image to use instead of the file's.
    #[serde(default)]
    images: BTreeMap<ServiceName, ImageRef>,
    /// Pull tags again.
    #[serde(default)]
    refresh: bool,
    /// Show only this one; the plan is of all.
    service: Option<ServiceName>,
}

#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Output {
    plan_id: PlanId,
    digest: String,
    stack: StackName,
    environment: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    from_release: Option<u32>,
    to_release: u32,
    changes: Vec<Change>,
    /// What changes beside the services.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    stack_diff: Vec<DiffLine>,
    findings: Vec<Finding>,
    verdict: Verdict,
    /// Services that change data the release before may not read, with the reason.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    migrates: BTreeMap<ServiceName, String>,
    /// What a deploy would check first, judged now; absent when nothing would be done.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    preflight: Vec<Check>,
    /// What engine and registries said where a check does not hold.
    // Not in the schema: every client pays for it, and few plans have it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(skip)]
    engine: Vec<Untrusted>,
    #[serde(skip_serializing_if = "Option::is_none")]
    git: Option<GitState>,
    /// What there was no room for, and how to see it.
    #[serde(skip_serializing_if = "Option::is_none")]
    left_out: Option<LeftOut>,
}

/// What a reply has no room for. All of it is in the plan, and counts.
#[derive(Debug, Default, PartialEq, Serialize, JsonSchema)]
#[schemars(inline)]
struct LeftOut {
    /// Lines of diffs, by service; of the stack under an empty name.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    diff_lines: BTreeMap<String, usize>,
    /// Findings; the strictest are shown.
    #[serde(skip_serializing_if = "is_zero")]
    findings: usize,
    /// Checks; those that do not hold are shown first.
    #[serde(skip_serializing_if = "is_zero")]
    preflight: usize,
    how: &'static str,
}

fn is_zero(n: &usize) -> bool {
    *n == 0
}

/// Bytes of a reply's parts. It carries most of them twice, as value and as text, and clients refuse replies of 25,000 tokens: a plan of 35
/// services stays below 20,000.
const MAX_DIFFS: usize = 12_000;
const MAX_FINDINGS: usize = 9_000;
const MAX_CHECKS: usize = 5_000;

/// Keeps what fits into `room`, in order; gives how many did not.
fn bounded<T: Serialize>(list: &mut Vec<T>, room: &mut usize) -> usize {
    let before = list.len();
    list.retain(|item| {
        let size = serde_json::to_string(item).map_or(usize::MAX, |text| text.len());
        let fits = size <= *room;
        // The first that does not fit ends the list: what follows would read as if it were next.
        *room = if fits { *room - size } else { 0 };
        fits
    });
    before - list.len()
}

impl Output {
    /// Only what concerns a service.
    fn about(mut self, service: &ServiceName) -> Self {
        let place = format!("services.{service}.");
        self.changes.retain(|c| c.service == *service);
        self.stack_diff.clear();
        self.findings.retain(|f| f.service.as_deref() == Some(service.as_str()) || f.path.as_ref().is_some_and(|p| p.starts_with(&place)));
        self.migrates.retain(|s, _| s == service);
        self.preflight.retain(|c| c.ok != Passed::Yes || c.message.contains(service.as_str()));
        self
    }

    /// What a model can read at once, the rest counted.
    fn within_bounds(mut self) -> Self {
        let mut left = LeftOut { how: "call plan again with service for all of one service", ..LeftOut::default() };
        let mut room = MAX_DIFFS;
        // What changes least is shown whole first: one service with a long diff must not hide all others.
        let mut by_size: Vec<usize> = (0..self.changes.len()).collect();
        by_size.sort_by_key(|i| self.changes[*i].diff.len());
        for i in by_size {
            let change = &mut self.changes[i];
            left.diff_lines.insert(change.service.to_string(), bounded(&mut change.diff, &mut room));
        }
        left.diff_lines.insert(String::new(), bounded(&mut self.stack_diff, &mut room));
        left.diff_lines.retain(|_, lines| *lines > 0);
        self.findings.sort_by_key(|f| std::cmp::Reverse(f.verdict));
        room = MAX_FINDINGS;
        left.findings = bounded(&mut self.findings, &mut room);
        self.preflight.sort_by_key(|c| c.ok == Passed::Yes);
        room = MAX_CHECKS;
        left.preflight = bounded(&mut self.preflight, &mut room);
        let all = left.diff_lines.is_empty() && left.findings == 0 && left.preflight == 0;
        self.left_out = (!all).then_some(left);
        self
    }

    fn of(p: Plan, found: Vec<Check>) -> Self {
        let (mut preflight, mut engine) = (vec![], vec![]);
        for check in found {
            let (message, theirs) = said(&format!("engine or registry, check {}", check.id), &check.message, 400);
            engine.extend(theirs);
            preflight.push(Check { message, ..check });
        }
        engine.truncate(MOST_SAID);
        let Plan {
            id, digest, stack, environment, from_release, to_release, changes, stack_diff, findings, verdict, git, migrates, ..
        } = p;
        Self {
            plan_id: id,
            digest,
            stack,
            environment,
            from_release,
            to_release,
            changes,
            stack_diff,
            findings,
            verdict,
            migrates,
            preflight,
            engine,
            git,
            left_out: None,
        }
    }
}

/// Most texts of engine and registries in one reply; the checks themselves are all there.
const MOST_SAID: usize = 10;

/// Plans kept of one agent: each holds a whole stack, and a plan is a read, which anybody may repeat.
const MOST_PLANS: usize = 50;

pub(super) struct Planning;

impl Verb for Planning {
    const SPEC: &'static ToolSpec = &ToolSpec {
        name: "plan",
        title: "Plan a deploy",
        description: "Shows what deploying a stack would change, what clients would lose, and what the policy says; changes nothing. Pass plan_id and digest to `deploy`. Secret values appear as set, changed or unset with a hash.",
        effect: Effect::Read,
        idempotent: true,
        input_schema: schema::input::<Input>,
        output_schema: schema::output::<Output>,
    };
    type Input = Input;
    type Output = Output;

    async fn scope(_: &Call, input: &Input) -> Result<Scope, CallError> {
        Ok(Scope { stack: Some(input.stack.clone()), environment: input.environment.clone(), ..Scope::default() })
    }

    async fn run(call: &Call, input: Input, _: Option<Plan>, _: Permit) -> Result<Output, CallError> {
        let Input { stack, compose, files, variables, images, refresh, service, environment: _ } = input;
        let plan = prepare::deploy(call, &Source { stack, compose, files, variables, images, refresh }).await?;
        call.house.store.put_plan(&plan).await?;
        call.house.store.keep_plans(call.who.agent.as_str(), &plan.id, MOST_PLANS).await?;
        let preflight = if plan.is_noop() { vec![] } else { call.house.executor.preflight(&plan).await? };
        if let Some(service) = service.as_ref().filter(|s| plan.changes.iter().all(|c| c.service != **s)) {
            return Err(prepare::no_service(&plan.stack, service, plan.changes.iter().map(|c| &c.service)));
        }
        let whole = Output::of(plan, preflight);
        let asked = match &service {
            Some(service) => whole.about(service),
            None => whole,
        };
        Ok(asked.within_bounds())
    }

    fn text(o: &Output) -> Option<String> {
        let from = o.from_release.map_or("nothing".into(), |r| format!("release {r}"));
        let mut out = format!(
            "plan {} for {} in {}: {from} -> release {}, verdict {}\ndigest {}",
            o.plan_id,
            o.stack,
            o.environment,
            o.to_release,
            o.verdict.as_str(),
            o.digest
        );
        for c in &o.changes {
            out.push_str(&format!("\n{} {}", c.service, word(&c.action)));
            if c.action != Action::Unchanged {
                out.push_str(&format!(" by {}; expected loss: {}", word(&c.strategy), c.expected_loss));
            }
            for d in &c.diff {
                out.push_str(&format!("\n  {}: {} -> {}", d.path, d.from.as_deref().unwrap_or("-"), d.to.as_deref().unwrap_or("-")));
            }
        }
        for d in &o.stack_diff {
            out.push_str(&format!("\n{}: {} -> {}", d.path, d.from.as_deref().unwrap_or("-"), d.to.as_deref().unwrap_or("-")));
        }
        for f in &o.findings {
            let place = f.path.as_deref().or(f.service.as_deref()).unwrap_or_default();
            out.push_str(&format!("\n{} {} {place}: {}", f.verdict.as_str(), f.rule, f.because));
        }
        for (service, why) in &o.migrates {
            out.push_str(&format!("\nmigrates {service}: {why}; nothing automatic goes back over it"));
        }
        let passed = o.preflight.iter().filter(|c| c.ok == Passed::Yes).count();
        if !o.preflight.is_empty() {
            out.push_str(&format!("\npreflight: {passed} of {} checks hold", o.preflight.len()));
        }
        for c in o.preflight.iter().filter(|c| c.ok != Passed::Yes) {
            out.push_str(&format!("\n{} {}: {}", word(&c.ok), c.id, c.message));
        }
        for theirs in &o.engine {
            out.push_str(&format!("\n[untrusted, {}]\n{}", theirs.source, theirs.text));
        }
        if let Some(left) = &o.left_out {
            let lines: usize = left.diff_lines.values().sum();
            let services: Vec<&str> = left.diff_lines.keys().map(|s| if s.is_empty() { "the stack" } else { s }).collect();
            out.push_str(&format!(
                "\nleft out: {lines} lines of diff ({}), {} findings, {} checks; {}",
                services.join(", "),
                left.findings,
                left.preflight,
                left.how
            ));
        }
        Some(out)
    }
}

/// The wire word of a value.
fn word(value: &impl Serialize) -> String {
    serde_json::to_value(value).ok().and_then(|v| v.as_str().map(str::to_owned)).unwrap_or_default()
}
