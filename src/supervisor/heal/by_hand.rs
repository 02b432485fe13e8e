//! Containers that somebody stopped while no supervisor was looking: recognised at the first look of a new one, where the engine's facts leave no other
//! explanation. Pure. What is not certain counts as a failure and is healed.

use crate::model::ids::EngineName;
use crate::model::observed::{ContainerDetail, RunState};
use chrono::{DateTime, Utc};

/// Containers that a person stopped after `seen`, the last look of the supervisor before. The engine starts again by itself what ended under `always` and
/// `unless-stopped`, whatever ended it, and says so (`restarting`, or an error); what stays down without an error was stopped through the engine. A SIGKILL
/// may have been a failure that the engine gave up on while it was itself restarted: it is not certain.
pub(super) fn stopped(containers: &[ContainerDetail], seen: DateTime<Utc>) -> Vec<EngineName> {
    let certain = |c: &&ContainerDetail| {
        c.state == RunState::Exited
            && matches!(c.restart_policy.as_str(), "always" | "unless-stopped")
            && c.error.is_empty()
            && !c.oom_killed
            && c.exit_code != 137
            && c.finished_at.is_some_and(|at| at > seen)
    };
    containers.iter().filter(certain).map(|c| c.id.clone()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::supervisor::heal::tests::detail;

    #[test]
    fn only_what_the_engine_would_have_started_again_was_stopped_by_a_person() {
        let at = |s: i64| DateTime::<Utc>::from_timestamp(1_800_000_000 + s, 0);
        let base = || ContainerDetail {
            state: RunState::Exited,
            restart_policy: "unless-stopped".into(),
            exit_code: 143,
            started_at: at(-100),
            finished_at: at(10),
            ..detail("web")
        };
        let found = |c: ContainerDetail| !stopped(&[c], at(0).expect("valid")).is_empty();
        assert!(found(base()));
        assert!(found(ContainerDetail { restart_policy: "always".into(), exit_code: 0, ..base() }));
        for (what, c) in [
            ("no policy", ContainerDetail { restart_policy: "no".into(), ..base() }),
            ("on-failure", ContainerDetail { restart_policy: "on-failure".into(), ..base() }),
            ("killed", ContainerDetail { exit_code: 137, ..base() }),
            ("out of memory", ContainerDetail { oom_killed: true, ..base() }),
            ("could not be started", ContainerDetail { error: "port is allocated".into(), ..base() }),
            ("restarting", ContainerDetail { state: RunState::Restarting, ..base() }),
            ("running", ContainerDetail { state: RunState::Running, ..base() }),
            ("ended while we looked", ContainerDetail { finished_at: at(-1), ..base() }),
        ] {
            assert!(!found(c), "{what}");
        }
    }
}
