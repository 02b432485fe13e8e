//! Services that come near their memory limit: restarted before the kernel kills them, where their file asks for it. Deliberately absent: limits; the
//! engine enforces those.

use super::{Healer, Look, LookError};
use crate::call::diagnose::{self, Ailment};
use crate::model::ids::{EngineName, ServiceName};
use crate::model::incident::Cause;
use crate::model::observed::{ContainerDetail, RunState};
use crate::model::spec::HealMode;
use crate::planner::{self, Observed};
use crate::supervisor::policy::{Act, Course};
use std::collections::BTreeMap;
use std::time::Duration;

/// Scans in a row that must find it too high: a peak passes.
const TIMES: u8 = 3;
/// Longest wait for a sample.
const WITHIN: Duration = Duration::from_secs(3);

/// Scans in a row that found a container too high.
pub(super) type High = BTreeMap<EngineName, u8>;

/// Notes one sample; whether it was the last one needed. Pure.
fn note(high: &mut High, id: &EngineName, used: u64, limit: u64, percent: u8) -> bool {
    if limit == 0 || u128::from(used) * 100 < u128::from(limit) * u128::from(percent) {
        high.remove(id);
        return false;
    }
    let times = high.entry(id.clone()).or_default();
    *times = times.saturating_add(1);
    let enough = *times >= TIMES;
    if enough {
        high.remove(id);
    }
    enough
}

/// Whether an ailment is no more than a sample of its memory.
pub(super) fn sampled(ailment: &Ailment) -> bool {
    ailment.cause == Cause::OutOfMemory && ailment.reason.starts_with(SAMPLED)
}

/// How the reason of one begins.
const SAMPLED: &str = "it uses ";

impl Healer {
    /// Services that have been too near to their limit for some scans.
    pub(super) async fn too_large(&mut self, look: &Look<'_>, observed: &Observed) -> Vec<Ailment> {
        let mut found = vec![];
        for (service, spec) in look.release.spec.services.iter().filter(|(_, s)| s.active) {
            let Some(percent) = spec.settings.memory_restart_percent else { continue };
            // One that is well is taken away only while enough others are.
            let up = diagnose::serving(service, spec, observed);
            if spec.settings.heal_instances.is_some_and(|least| up <= least as usize) {
                continue;
            }
            let running = planner::live(observed, service).into_iter().filter(|c| c.state == RunState::Running);
            for container in running {
                if let Some(ailment) = self.sample(service, container, percent).await {
                    found.push(ailment);
                    break;
                }
            }
        }
        found
    }

    /// Restarts one that is well but large; another container, or an older release, would grow as well. It did not fail: nothing is charged to its course, and
    /// the scans that must find it too large again are the pause before the next time. Whether an act began.
    pub(super) async fn shrink(&self, look: &Look<'_>, patient: &Ailment, course: &Course, mode: HealMode) -> Result<bool, LookError> {
        if mode == HealMode::Off || course.quarantined.is_some() {
            return Ok(false);
        }
        self.incidents.sign(look.stack, look.release, patient, look.now).await?;
        self.incidents.took(look.stack, &patient.service, Act::Restart.as_str(), look.now).await?;
        tracing::warn!(stack = %look.stack, service = %patient.service, reason = %patient.reason, "restarted before it is too large");
        self.house.executor.reactions().begins(look.stack);
        self.act(look, patient, Act::Restart);
        Ok(true)
    }

    async fn sample(&mut self, service: &ServiceName, c: &ContainerDetail, percent: u8) -> Option<Ailment> {
        let sample = match tokio::time::timeout(WITHIN, self.house.engine.stats(&c.id)).await {
            Ok(Ok(sample)) => sample,
            Ok(Err(e)) => {
                tracing::warn!(container = %c.id, error = %e, "no sample of its memory");
                return None;
            }
            Err(_) => {
                tracing::warn!(container = %c.id, "no sample of its memory in time");
                return None;
            }
        };
        let (used, limit) = (sample.memory_bytes, sample.memory_limit_bytes);
        let restart = note(&mut self.high, &c.id, used, limit, percent);
        let share = used.saturating_mul(100).checked_div(limit).unwrap_or_default();
        restart.then(|| Ailment {
            service: service.clone(),
            container: Some(c.id.clone()),
            cause: Cause::OutOfMemory,
            reason: format!("{SAMPLED}{share} % of its memory limit; its file asks for a restart at {percent} %"),
            error: None,
            looping: false,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peak_passes_and_what_stays_high_is_told_once() {
        let (mut high, id) = (High::new(), EngineName::new("c1").expect("valid"));
        let mut of = |used: u64| note(&mut high, &id, used, 100, 90);
        assert_eq!([of(95), of(95), of(10), of(90), of(91)], [false; 5], "the peak began anew");
        assert!(of(92), "three in a row");
        assert!(!of(92), "and the count begins anew");
        assert!(!note(&mut High::new(), &id, u64::MAX, 0, 90), "no limit, no share of it");
    }
}
