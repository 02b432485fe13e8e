//! What the loop does about a service that is not well. Pure: the course of a service so far and the circumstances in, one step out.
//! Ladder: restart, restart, recreate, roll back (within the deploy window), restart, then give up. Deliberately absent: clocks, I/O.

use crate::model::spec::HealMode;
use chrono::{DateTime, TimeDelta, Utc};
use serde::{Deserialize, Serialize};

/// Most actions on a service before the loop gives up.
pub const BUDGET: usize = 5;
/// The window: a course ends when the service was well for two of them.
pub const WINDOW: TimeDelta = TimeDelta::minutes(5);
/// No pause between two actions is longer.
const LONGEST: TimeDelta = TimeDelta::seconds(60);
/// A release this young may be what broke the service: it is rolled back.
pub const DEPLOY_WINDOW: TimeDelta = TimeDelta::minutes(15);
/// Fewer services than this are never "more than half of the host".
const HOST_LEAST: usize = 4;

/// One action of the loop.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Act {
    /// Restarted in place.
    Restart,
    /// New container of the same release.
    Recreate,
    /// The release before.
    Rollback,
}

impl Act {
    /// The word in logs and records.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Restart => "restart",
            Self::Recreate => "recreate",
            Self::Rollback => "rollback",
        }
    }
}

/// What was done for a service since it was last well for long. Persisted before each action.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Course {
    /// Actions, oldest first.
    pub acts: Vec<(DateTime<Utc>, Act)>,
    /// No action before.
    pub not_before: Option<DateTime<Utc>>,
    /// Well since; `None` while it is not.
    pub well_since: Option<DateTime<Utc>>,
    /// When the loop gave up.
    pub quarantined: Option<DateTime<Utc>>,
    /// It gave up on some copies while enough others served.
    pub some_only: bool,
    /// Release it is about: another one begins a new course.
    pub release: u32,
}

/// What else bears on the decision.
#[derive(Debug, Clone, Copy)]
pub struct Circumstances {
    /// How far the loop may go.
    pub mode: HealMode,
    /// The engine's own policy restarted it again and again: restarting it once more is no help.
    pub crash_loop: bool,
    /// When the current release was made.
    pub deployed_at: DateTime<Utc>,
    /// There is a good release before it, and going back loses no data.
    pub can_roll_back: bool,
    /// An operation on the stack waits for a person's decision: what serves is restarted in place, and nothing of any release is put anywhere.
    pub attention: bool,
    /// There is no container to restart.
    pub missing: bool,
    /// As many copies are well as must stay up: those are left alone, so nothing is done that takes all.
    pub protected: bool,
    /// Now.
    pub now: DateTime<Utc>,
}

/// What to do now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Nothing: too early, or given up already.
    Wait,
    /// This.
    Do(Act),
    /// Give up, loudly.
    Quarantine,
}

impl Course {
    /// The next step for a service that is not well.
    pub fn next(&self, c: &Circumstances) -> Step {
        // Farther away than any pause, it was noted before the clock was set back.
        let early = self.not_before.is_some_and(|t| t > c.now && t - c.now <= LONGEST);
        if c.mode == HealMode::Off || self.quarantined.is_some() || early {
            return Step::Wait;
        }
        if c.attention && (c.missing || c.crash_loop) {
            return Step::Wait;
        }
        if self.acts.len() >= BUDGET {
            return Step::Quarantine;
        }
        let mode = if c.attention || c.protected { HealMode::Restart } else { c.mode };
        let done = |act| self.acts.iter().any(|(_, a)| *a == act);
        // Younger than now by a clock that was set back is not young.
        let young = (TimeDelta::zero()..=DEPLOY_WINDOW).contains(&(c.now - c.deployed_at));
        let rung = self.acts.len() + if c.crash_loop { 2 } else { 0 };
        match (mode, rung) {
            (HealMode::Full, 2..) if !done(Act::Recreate) => Step::Do(Act::Recreate),
            (HealMode::Full, 3..) if young && c.can_roll_back && !done(Act::Rollback) => Step::Do(Act::Rollback),
            // The engine restarts it already, and nothing else is allowed or left.
            _ if c.crash_loop => Step::Quarantine,
            _ => Step::Do(Act::Restart),
        }
    }

    /// Gives up.
    pub fn give_up(&mut self, c: &Circumstances) {
        (self.quarantined, self.some_only) = (Some(c.now), c.protected);
    }

    /// What was given up on some copies stands for the service no more once too few others serve: a new course begins. `true` when it did.
    pub fn exposed(&mut self, protected: bool) -> bool {
        let anew = self.quarantined.is_some() && self.some_only && !protected;
        if anew {
            *self = Self { release: self.release, ..Self::default() };
        }
        anew
    }

    /// Notes an action: 1, 2, 4, 8, 16 s until the next, spread by up to a fifth (`jitter` from 0 to 1).
    pub fn took(&mut self, act: Act, now: DateTime<Utc>, jitter: f64) {
        let pause_ms = 1000_i64 << self.acts.len().min(5);
        let spread = (pause_ms as f64 * 0.2 * jitter.clamp(0.0, 1.0)) as i64;
        self.acts.push((now, act));
        self.not_before = Some(now + TimeDelta::milliseconds(pause_ms + spread));
        self.well_since = None;
    }

    /// Notes that the service is not well, whatever is done about it; `true` when it was noted as well before.
    pub fn ails(&mut self) -> bool {
        self.well_since.take().is_some()
    }

    /// Notes that the service is well; `true` when that ends the course.
    pub fn well(&mut self, now: DateTime<Utc>) -> bool {
        let since = self.well_since.map_or(now, |t| t.min(now));
        self.well_since = Some(since);
        now - since >= WINDOW * 2
    }
}

/// More than half of all services at once: not their fault.
pub fn host_failing(sick: usize, all: usize) -> bool {
    all >= HOST_LEAST && sick * 2 > all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(s: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(1_790_000_000 + s, 0).unwrap()
    }
    fn circumstances(mode: HealMode, now: i64) -> Circumstances {
        Circumstances {
            mode,
            crash_loop: false,
            deployed_at: at(0),
            can_roll_back: true,
            attention: false,
            missing: false,
            protected: false,
            now: at(now),
        }
    }
    /// Every step of a service that never gets well, one a minute.
    fn ladder(c: Circumstances, every: i64) -> Vec<Step> {
        let mut course = Course::default();
        let mut out = vec![];
        for n in 0..8 {
            let c = Circumstances { now: c.now + TimeDelta::seconds(n * every), ..c };
            let step = course.next(&c);
            out.push(step);
            match step {
                Step::Do(act) => course.took(act, c.now, 1.0),
                Step::Quarantine => course.quarantined = Some(c.now),
                Step::Wait => {}
            }
        }
        out
    }
    use Act::{Recreate, Restart, Rollback};
    use Step::{Do, Quarantine, Wait};

    #[test]
    fn the_ladder_is_climbed_once_and_then_it_gives_up() {
        let full = ladder(circumstances(HealMode::Full, 60), 60);
        assert_eq!(full, [Do(Restart), Do(Restart), Do(Recreate), Do(Rollback), Do(Restart), Quarantine, Wait, Wait]);
        let restart = ladder(circumstances(HealMode::Restart, 60), 60);
        assert_eq!(restart, [Do(Restart), Do(Restart), Do(Restart), Do(Restart), Do(Restart), Quarantine, Wait, Wait]);
        assert!(ladder(circumstances(HealMode::Off, 60), 60).iter().all(|s| *s == Wait));
    }

    #[test]
    fn an_old_release_is_not_rolled_back_nor_one_that_has_nothing_before_it() {
        let old = ladder(circumstances(HealMode::Full, 3600), 60);
        assert_eq!(old[..6], [Do(Restart), Do(Restart), Do(Recreate), Do(Restart), Do(Restart), Quarantine]);
        let first = ladder(Circumstances { can_roll_back: false, ..circumstances(HealMode::Full, 60) }, 60);
        assert!(!first.contains(&Do(Rollback)));
    }

    #[test]
    fn while_a_person_must_decide_what_serves_is_restarted_and_nothing_else() {
        let waiting = Circumstances { attention: true, ..circumstances(HealMode::Full, 60) };
        let steps = ladder(waiting, 60);
        assert_eq!(steps[..6], [Do(Restart), Do(Restart), Do(Restart), Do(Restart), Do(Restart), Quarantine]);
        assert!(ladder(Circumstances { missing: true, ..waiting }, 60).iter().all(|s| *s == Wait), "nothing is made");
        assert!(ladder(Circumstances { crash_loop: true, ..waiting }, 60).iter().all(|s| *s == Wait));
    }

    #[test]
    fn while_enough_copies_serve_nothing_is_done_that_takes_all_of_them() {
        let protected = Circumstances { protected: true, ..circumstances(HealMode::Full, 60) };
        let steps = ladder(protected, 60);
        assert_eq!(steps[..6], [Do(Restart), Do(Restart), Do(Restart), Do(Restart), Do(Restart), Quarantine]);
        let gone = ladder(Circumstances { missing: true, ..protected }, 60);
        assert_eq!(gone[0], Do(Restart), "one that is gone is made beside the others");
        // The minimum is not there any more: the ladder goes on where it is.
        let mut course = Course::default();
        course.took(Restart, at(0), 0.0);
        course.took(Restart, at(60), 0.0);
        let now = |protected| Circumstances { protected, ..circumstances(HealMode::Full, 120) };
        assert_eq!((course.next(&now(true)), course.next(&now(false))), (Do(Restart), Do(Recreate)));
        // One copy was given up; when the others fail too, the service has its whole ladder.
        course.give_up(&now(true));
        assert!(!course.exposed(true) && course.next(&now(true)) == Wait && course.exposed(false));
        assert_eq!((course.acts.len(), course.next(&now(false))), (0, Do(Restart)));
        course.give_up(&now(false));
        assert!(!course.exposed(false), "a service that was given up stays so");
    }

    #[test]
    fn a_crash_loop_is_not_restarted_once_more() {
        let full = ladder(Circumstances { crash_loop: true, ..circumstances(HealMode::Full, 60) }, 60);
        assert_eq!(full[..4], [Do(Recreate), Do(Rollback), Quarantine, Wait]);
        let restart = ladder(Circumstances { crash_loop: true, ..circumstances(HealMode::Restart, 60) }, 60);
        assert_eq!(restart[..2], [Quarantine, Wait]);
    }

    #[test]
    fn actions_are_spaced_and_the_spacing_doubles() {
        let mut course = Course::default();
        let mut last = 0;
        for n in 0..5 {
            course.took(Restart, at(100), 0.0);
            let pause = (course.not_before.unwrap() - at(100)).num_milliseconds();
            assert_eq!(pause, 1000 << n);
            assert!(pause > last);
            last = pause;
            assert_eq!(course.next(&circumstances(HealMode::Full, 100)), Wait);
        }
        course.took(Restart, at(100), 1.0);
        assert!((course.not_before.unwrap() - at(100)).num_milliseconds() > 32_000);
    }

    #[test]
    fn a_clock_set_back_neither_stops_the_healing_nor_hides_that_all_is_well() {
        let mut course = Course::default();
        course.took(Restart, at(90_000), 0.0);
        assert_eq!(course.next(&circumstances(HealMode::Full, 100)), Do(Restart));
        assert!(!course.well(at(90_000)) && !course.well(at(100)));
        assert!(course.well(at(100 + 600)));
    }

    #[test]
    fn a_course_ends_after_two_windows_of_health_and_not_before() {
        let mut course = Course::default();
        course.took(Restart, at(0), 0.0);
        assert!(!course.well(at(10)));
        assert!(!course.well(at(10 + 599)));
        assert!(course.well(at(10 + 600)));
        assert!(course.ails() && !course.ails());
        assert!(!course.well(at(710)), "a relapse begins the count anew, also one that is only waited for");
        assert!(!course.well(at(710 + 599)) && course.well(at(710 + 600)));
    }

    #[test]
    fn half_of_few_services_is_not_the_host() {
        assert!(!host_failing(3, 3));
        assert!(!host_failing(2, 4));
        assert!(host_failing(3, 4));
        assert!(!host_failing(10, 20));
        assert!(host_failing(11, 20));
    }
}
