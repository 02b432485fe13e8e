//! What agents heard and said: words as keyed hashes, in memory, bounded, and written behind so that a restart forgets none. Deliberately absent: which
//! words count, and what comes of one.

use super::{Tainted, Why, spellings, words};
use crate::call::House;
use crate::redact;
use crate::store::taint::{Heard as Kept, HeardKind};
use crate::store::{Store, StoreResult};
use chrono::{DateTime, TimeDelta, Utc};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, Mutex};

/// Words of untrusted output kept for an agent, and as many of its own: some hundred kilobytes. The oldest go first.
pub(super) const MOST_WORDS: usize = 16_384;
/// Where a word comes from that may have been among those that no longer fit.
const TOO_MUCH: &str = "it read more than is remembered";
/// Agents remembered. Their names come from the rulebook, so this is never reached by a caller's choice.
pub(super) const MOST_AGENTS: usize = 256;
/// Plans remembered as made with tainted words; a plan lives shorter than so many are made.
pub(super) const MOST_PLANS: usize = 1_024;
/// A word that is heard again is written again only after this time: who polls a log costs no write each time. After a restart words count as heard so
/// much later, so that none is forgotten early.
const AGAIN: TimeDelta = TimeDelta::minutes(3);
/// Replies that wait to be written while the store refuses; the oldest go first.
const MOST_WAITING: usize = 1_024;
/// Bytes of a source that is written.
const SOURCE: usize = 200;

/// What the agents saw.
#[derive(Debug)]
pub struct Taints {
    key: (u64, u64),
    pub(super) agents: Mutex<BTreeMap<String, Heard>>,
    pub(super) plans: Mutex<Plans>,
    waiting: Mutex<Waiting>,
    /// One write at a time, and who finds it held waits: what it has to have on disk may be in that write.
    writing: tokio::sync::Mutex<()>,
}

/// Words as hashes, newest last in the queues.
#[derive(Debug, Default)]
pub(super) struct Heard {
    pub(super) untrusted: HashMap<u64, Word>,
    /// With the turn it was heard at: an entry whose word was heard again since counts for nothing.
    pub(super) order: VecDeque<(u64, u64)>,
    turn: u64,
    /// When the newest word was heard that had to make room: whoever floods the memory must not get a word out of it before its time.
    lost: Option<DateTime<Utc>>,
    pub(super) own: BTreeSet<u64>,
    own_order: VecDeque<u64>,
}

#[derive(Debug)]
pub(super) struct Word {
    at: DateTime<Utc>,
    written: DateTime<Utc>,
    source: Arc<str>,
    turn: u64,
}

impl Heard {
    /// Lets the words go that were heard longest ago, until the rest fits.
    fn fit(&mut self) {
        while self.untrusted.len() > MOST_WORDS
            && let Some((hash, turn)) = self.order.pop_front()
        {
            if self.untrusted.get(&hash).is_some_and(|w| w.turn == turn)
                && let Some(word) = self.untrusted.remove(&hash)
            {
                self.lost = self.lost.max(Some(word.at));
            }
        }
        if self.order.len() > 2 * MOST_WORDS {
            let untrusted = &self.untrusted;
            self.order.retain(|(hash, turn)| untrusted.get(hash).is_some_and(|w| w.turn == *turn));
        }
    }

    /// Whether words were let go that would still count.
    fn flooded(&self, since: DateTime<Utc>) -> bool {
        self.lost.is_some_and(|at| at >= since)
    }
}

#[derive(Debug, Default)]
pub(super) struct Plans {
    pub(super) made: HashMap<u64, (DateTime<Utc>, Why)>,
    pub(super) order: VecDeque<u64>,
}

/// What is not on disk yet.
#[derive(Debug, Default)]
struct Waiting {
    rows: VecDeque<Kept>,
    /// It has to be there before the next reply. What an agent says of itself in a read waits for the next change: forgetting it asks a person too
    /// often, never too seldom.
    due: bool,
}

impl Default for Taints {
    /// Remembers nothing, under a key of its own.
    fn default() -> Self {
        let random = RandomState::new();
        Self::new((random.hash_one(0), random.hash_one(1)))
    }
}

impl Taints {
    fn new(key: (u64, u64)) -> Self {
        Self { key, agents: Mutex::default(), plans: Mutex::default(), waiting: Mutex::default(), writing: tokio::sync::Mutex::default() }
    }

    /// As it was when the store was closed, or the supervisor killed.
    ///
    /// # Errors
    /// The store's: a house that cannot know what its agents read does not begin.
    pub async fn open(store: &Store) -> StoreResult<Self> {
        let taints = Self::new(store.word_key());
        let mut words: BTreeMap<String, (DateTime<Utc>, usize)> = BTreeMap::new();
        for kept in store.heard().await? {
            // It may have been heard again since, and not been written again.
            let at = kept.at + AGAIN;
            match kept.kind {
                HeardKind::Untrusted => {
                    let of = words.entry(kept.agent.clone()).or_insert((at, 0));
                    of.1 += kept.words.len();
                    drop(taints.hear(&kept.agent, &kept.source, kept.words, at, kept.at));
                }
                HeardKind::Own => drop(taints.own(&kept.agent, kept.words)),
                HeardKind::Plan => {
                    let because = format!("it has a word the agent first saw in untrusted output ({})", kept.source);
                    let why = Why { because, source: kept.source };
                    kept.words.into_iter().for_each(|plan| taints.plan_made(plan, why.clone(), at));
                }
            }
        }
        // As many as are kept: there may have been more, which are older than the oldest there is.
        for (agent, (oldest, _)) in words.into_iter().filter(|(_, (_, n))| *n >= MOST_WORDS) {
            taints.with(&agent, |heard| heard.lost = heard.lost.max(Some(oldest)));
        }
        Ok(taints)
    }

    /// SipHash under the home's key: short, and nobody outside finds a word that is taken for another.
    #[expect(deprecated, reason = "the one hasher of the standard library whose algorithm is named and stays; what is on disk needs that")]
    fn hash(&self, word: &str) -> u64 {
        use std::hash::{Hasher, SipHasher};
        let mut hasher = SipHasher::new_with_keys(self.key.0, self.key.1);
        hasher.write(word.as_bytes());
        hasher.finish()
    }

    /// Notes untrusted text that reached an agent.
    pub fn heard(&self, agent: &str, source: &str, text: &str, now: DateTime<Utc>) {
        let hashes = words(text).flat_map(|w| spellings(&w)).map(|w| self.hash(&w)).collect();
        let new = self.hear(agent, source, hashes, now, now);
        self.wait(HeardKind::Untrusted, agent, source, new, now, true);
    }

    /// Returns what has to be written, with the moment `write`.
    fn hear(&self, agent: &str, source: &str, hashes: Vec<u64>, at: DateTime<Utc>, write: DateTime<Utc>) -> Vec<u64> {
        let source: Arc<str> = source.into();
        self.with(agent, |heard| {
            let mut new = vec![];
            for hash in hashes {
                if heard.own.contains(&hash) {
                    continue;
                }
                let before = heard.untrusted.get(&hash).map(|w| w.written);
                let written = before.filter(|then| write - *then < AGAIN).unwrap_or(write);
                if before != Some(written) {
                    new.push(hash);
                }
                heard.turn += 1;
                let turn = heard.turn;
                heard.untrusted.insert(hash, Word { at, written, source: source.clone(), turn });
                heard.order.push_back((hash, turn));
                heard.fit();
            }
            new
        })
    }

    /// Notes every enveloped text of a reply.
    pub(in crate::call) fn reply(&self, agent: &str, value: &Value, now: DateTime<Utc>) {
        match value {
            Value::Object(map) if map.get("untrusted") == Some(&Value::Bool(true)) => {
                let word = |key: &str| map.get(key).and_then(Value::as_str).unwrap_or_default();
                self.heard(agent, word("source"), word("text"), now);
            }
            Value::Object(map) => map.values().for_each(|v| self.reply(agent, v, now)),
            Value::Array(items) => items.iter().for_each(|v| self.reply(agent, v, now)),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
        }
    }

    /// The agent says these words itself: those it did not see in untrusted output before are its own from now on.
    /// Of one that read too much since `since` none is: nobody knows any more what it saw.
    pub(super) fn said(&self, agent: &str, asked: &[(String, String)], now: DateTime<Utc>, since: DateTime<Utc>, mutates: bool) {
        if self.with(agent, |heard| heard.flooded(since)) {
            return;
        }
        let new = self.own(agent, asked.iter().flat_map(|(_, w)| spellings(w)).map(|w| self.hash(&w)).collect());
        self.wait(HeardKind::Own, agent, "", new, now, mutates);
    }

    fn own(&self, agent: &str, hashes: Vec<u64>) -> Vec<u64> {
        self.with(agent, |heard| {
            let mut new = vec![];
            for hash in hashes {
                if !heard.untrusted.contains_key(&hash) && heard.own.insert(hash) {
                    heard.own_order.push_back(hash);
                    new.push(hash);
                }
                if heard.own_order.len() > MOST_WORDS
                    && let Some(oldest) = heard.own_order.pop_front()
                {
                    heard.own.remove(&oldest);
                }
            }
            new
        })
    }

    /// Words of a call that an agent saw in untrusted output since a moment.
    pub(super) fn tainted(&self, agent: &str, asked: &[(String, String)], since: DateTime<Utc>) -> Vec<Tainted> {
        let found = |heard: &mut Heard| {
            let flooded = heard.flooded(since);
            let source = |w: &String| {
                let hash = self.hash(w);
                let known = heard.untrusted.get(&hash).filter(|word| word.at >= since).map(|word| word.source.clone());
                known.or_else(|| (flooded && !heard.own.contains(&hash)).then(|| TOO_MUCH.into()))
            };
            let one = |(argument, word): &(String, String)| {
                let seen: Vec<String> = spellings(word).filter(|w| source(w).is_some()).collect();
                let source = seen.first().and_then(source)?;
                Some(Tainted { argument: argument.clone(), word: word.clone(), seen, source })
            };
            asked.iter().filter_map(one).collect()
        };
        self.with(agent, found)
    }

    fn with<T>(&self, agent: &str, f: impl FnOnce(&mut Heard) -> T) -> T {
        let mut agents = self.agents.lock().expect("no panic while held");
        if agents.len() >= MOST_AGENTS && !agents.contains_key(agent) {
            agents.pop_first();
        }
        f(agents.entry(agent.to_owned()).or_default())
    }

    /// Notes a plan made with such words.
    pub(super) fn keep_plan(&self, id: &str, why: Why, now: DateTime<Utc>) {
        let plan = self.hash(id);
        self.wait(HeardKind::Plan, "", &why.source, vec![plan], now, true);
        self.plan_made(plan, why, now);
    }

    fn plan_made(&self, plan: u64, why: Why, now: DateTime<Utc>) {
        let mut plans = self.plans.lock().expect("no panic while held");
        if plans.made.insert(plan, (now, why)).is_none() {
            plans.order.push_back(plan);
        }
        if plans.order.len() > MOST_PLANS
            && let Some(oldest) = plans.order.pop_front()
        {
            plans.made.remove(&oldest);
        }
    }

    /// Why a plan is one made with such words since a moment.
    pub(super) fn plan(&self, id: &str, since: DateTime<Utc>) -> Option<Why> {
        let plans = self.plans.lock().expect("no panic while held");
        plans.made.get(&self.hash(id)).filter(|(at, _)| *at >= since).map(|(_, why)| why.clone())
    }

    fn wait(&self, kind: HeardKind, agent: &str, source: &str, words: Vec<u64>, at: DateTime<Utc>, due: bool) {
        let mut waiting = self.waiting.lock().expect("no panic while held");
        waiting.due |= due && !(words.is_empty() && waiting.rows.is_empty());
        if words.is_empty() {
            return;
        }
        let (agent, source) = (agent.to_owned(), redact::line(source, SOURCE));
        match waiting.rows.back_mut() {
            Some(last) if last.kind == kind && last.agent == agent && last.at == at && last.source == source => last.words.extend(words),
            Some(_) | None => waiting.rows.push_back(Kept { agent, kind, at, source, words }),
        }
        while waiting.rows.len() > MOST_WAITING {
            waiting.rows.pop_front();
        }
    }

    /// Returns when what had to be on disk before this reply is there.
    pub(in crate::call) async fn keep(&self, house: &Arc<House>) {
        {
            let _one = self.writing.lock().await;
            if !self.waiting.lock().expect("no panic while held").due {
                return;
            }
        }
        // Of the house: a caller that goes away in the middle takes nothing with it.
        let for_write = Arc::clone(house);
        let written = house.calls.spawn(async move { for_write.taints.write(&for_write.store).await }).await;
        if let Err(e) = written {
            tracing::error!(error = %e, "writing what agents read ended early");
        }
    }

    /// What the store refuses waits for the next time: an agent that looks for what is wrong with a full disk gets its reply.
    pub(super) async fn write(&self, store: &Store) {
        let _one = self.writing.lock().await;
        let rows = {
            let mut waiting = self.waiting.lock().expect("no panic while held");
            if !std::mem::take(&mut waiting.due) {
                return;
            }
            std::mem::take(&mut waiting.rows)
        };
        let Err(e) = store.keep_heard(rows.iter().cloned().collect(), MOST_WORDS).await else { return };
        tracing::error!(error = %e, "what agents read is not on disk: it is forgotten if the supervisor ends before the next try");
        let mut waiting = self.waiting.lock().expect("no panic while held");
        waiting.due = true;
        let room = MOST_WAITING.saturating_sub(waiting.rows.len());
        for row in rows.into_iter().rev().take(room) {
            waiting.rows.push_front(row);
        }
    }
}
