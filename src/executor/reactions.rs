//! How soon the loop acts: from the moment an event of the engine is read to the first call that changes the engine because of it. What is waited for on purpose
//! (a stop by hand, a pause of the ladder) is no reaction and not counted. Pure; deliberately absent: buckets and names of metrics.

use crate::model::ids::StackName;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// Kept until somebody reads them.
const MOST: usize = 1000;

/// Events under way, and how long those took that were acted on.
#[derive(Debug, Default)]
pub struct Reactions(Mutex<Kept>);

#[derive(Debug, Default)]
struct Kept {
    /// Read, and not looked at yet.
    noticed: BTreeMap<StackName, Instant>,
    /// Looked at, and acted on; the act has not reached the engine.
    begun: BTreeMap<StackName, Instant>,
    took: VecDeque<Duration>,
}

impl Reactions {
    fn with<T>(&self, change: impl FnOnce(&mut Kept) -> T) -> T {
        change(&mut self.0.lock().expect("no panic while held"))
    }

    /// An event about a stack was read; of several the first counts.
    pub fn noticed(&self, stack: &StackName, at: Instant) {
        self.with(|k| {
            k.noticed.entry(stack.clone()).or_insert(at);
        });
    }

    /// The look that an event brought is over.
    pub fn looked(&self, stack: &StackName) {
        self.with(|k| {
            k.noticed.remove(stack);
        });
    }

    /// The look led to an act.
    pub fn begins(&self, stack: &StackName) {
        self.with(|k| {
            match k.noticed.remove(stack) {
                Some(at) => k.begun.insert(stack.clone(), at),
                None => k.begun.remove(stack),
            };
        });
    }

    /// The engine is called now.
    pub fn acts(&self, stack: &StackName, now: Instant) {
        self.with(|k| {
            let Some(at) = k.begun.remove(stack) else { return };
            if k.took.len() == MOST {
                k.took.pop_front();
            }
            k.took.push_back(now.saturating_duration_since(at));
        });
    }

    /// The act is over, whether it has called the engine or not.
    pub fn ended(&self, stack: &StackName) {
        self.with(|k| {
            k.begun.remove(stack);
        });
    }

    /// What came together since this was last asked.
    pub fn take(&self) -> Vec<Duration> {
        self.with(|k| k.took.drain(..).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_an_event_led_to_at_once_is_counted_from_its_first_sign() {
        let (reactions, began) = (Reactions::default(), Instant::now());
        let shop = StackName::new("shop").expect("valid");
        let at = |ms: u64| began + Duration::from_millis(ms);
        reactions.noticed(&shop, at(0));
        reactions.noticed(&shop, at(7));
        reactions.begins(&shop);
        // News of the same stack meanwhile are another reaction.
        reactions.noticed(&shop, at(8));
        reactions.looked(&shop);
        reactions.acts(&shop, at(20));
        reactions.acts(&shop, at(900));
        assert_eq!(reactions.take(), [Duration::from_millis(20)]);
        // Looked at and left alone: what a scan does later is none.
        reactions.noticed(&shop, at(1000));
        reactions.looked(&shop);
        reactions.begins(&shop);
        reactions.acts(&shop, at(31_000));
        // Refused: the next operation of anybody is none.
        reactions.noticed(&shop, at(40_000));
        reactions.begins(&shop);
        reactions.ended(&shop);
        reactions.acts(&shop, at(50_000));
        assert!(reactions.take().is_empty());
    }
}
