//! What of a judgement is part of a plan's digest: where its host paths lead, and what the gate holds against it. Who approves the digest approves
//! these and no others. Left out is what makes no other plan: the words of findings, what was approved before, health and times.

use super::Call;
use crate::gate::plan::{PlanFacts, Weighed, paths};
use crate::model::plan::{Plan, Weight};
use crate::model::verdict::{Finding, Verdict};
use std::collections::BTreeSet;

/// Puts the judgement into the plan and its digest. `before` is what was weighed when the texts of the plan were at hand: it counts as weighed now, and
/// only more than that is another plan.
pub(super) fn seal(call: &Call, plan: &mut Plan, facts: &PlanFacts, weighed: &[Weighed], before: &BTreeSet<Weight>) {
    plan.real_paths = paths::real(&plan.desired, &facts.resolved);
    let heavy = weighed.iter().filter(|w| w.finding.verdict >= Verdict::Approval).map(weight);
    plan.weighed = before.iter().cloned().chain(heavy).collect();
    // Volumes without a name and directories are the same in every release: nothing else of the plan tells which data takes their place.
    let unnamed = plan.data.restore.iter().filter(|r| r.service.is_some()).map(|r| serde_json::json!(r));
    let unnamed: Vec<_> = unnamed.chain(plan.data.exchange.iter().map(|e| serde_json::json!(e))).collect();
    let whole = serde_json::json!([plan.digest, plan.real_paths, plan.weighed, unnamed]);
    plan.digest = call.house.store.keyed_digest(whole.to_string().as_bytes());
}

fn weight(weighed: &Weighed) -> Weight {
    let Finding { rule, verdict, service, path, because: _ } = weighed.finding.clone();
    Weight { rule, verdict, service, path, value: weighed.value.clone() }
}
