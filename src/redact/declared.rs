//! Values of declared secrets: environment values of secret-looking names, contents of `secrets:`, passwords in URLs. Wherever one of them stands in a text that
//! leaves, plain, in base64, URL-encoded or escaped, it is masked.
//!
//! Whose they are decides how far that goes. What an operator's files hold and what an accepted release holds is masked in whatever leaves the process (the
//! corpus of the house: log, audit, memory and replies share one, bounded, and bounded per stack). What a call brings along is masked in that call's own
//! reply, row and errors ([`Own`]): an agent must not choose what others do not get to read. The house's own words, ids and names are never masked.
//!
//! A weak secret that is an ordinary small word (`postgres`) or a short number is not masked by its value: half of every reply would go with it. Its key still
//! masks it, and plans show no values at all.

mod forms;
mod words;

use super::{MASK, is_secret_key};
use crate::model::ids::StackName;
use crate::model::spec::StackSpec;
use aho_corasick::{AhoCorasick, MatchKind};
use arc_swap::{ArcSwap, ArcSwapOption};
use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::pin::Pin;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::task::{Context, Poll};

/// Shortest value that is masked, bytes.
const LEAST: usize = 6;
/// Longest, bytes; an engine's own limit of a secret is far above, and no log carries such a one whole.
const MOST: usize = 4096;
/// Most values of one stack or call, and their bytes. Each is looked for in some fourteen forms.
pub const MOST_OF_ONE: (usize, usize) = (512, 64 * 1024);
/// Most values of the whole house, and their bytes: about a hundred megabytes while the filter is built.
const MOST_OF_ALL: (usize, usize) = (4096, 128 * 1024);
/// Names of stacks, services and agents that are remembered.
const MOST_NAMES: usize = 16_384;
/// Ends of keys whose value only says where the secret is.
const PLACES: &[&str] = &["_file", "_path", "_dir", "_id", "_name"];

/// Who vouches for a value: what goes first when there are too many comes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Vouched {
    /// A release of an environment where changes are free.
    Release,
    /// One of an environment where they wait for a person: what an agent may release freely pushes nothing of it out.
    Watched,
    /// Files an operator registered.
    Files,
}

/// What a filter is made of, and the filter.
struct Corpus {
    values: BTreeSet<String>,
    finder: AhoCorasick,
}

/// Everything the house knows; each stack's values in the order they came.
#[derive(Default)]
struct Known {
    of: BTreeMap<(Vouched, StackName), Vec<String>>,
    names: BTreeSet<String>,
}

static CORPUS: LazyLock<ArcSwapOption<Corpus>> = LazyLock::new(ArcSwapOption::empty);
static KNOWN: LazyLock<Mutex<Known>> = LazyLock::new(Mutex::default);
/// The names in [`KNOWN`], for who must not wait while a filter is built.
static NAMES: LazyLock<ArcSwap<BTreeSet<String>>> = LazyLock::new(ArcSwap::default);
/// Environments in which agents may change things without anybody's word.
static FREE: LazyLock<ArcSwap<BTreeSet<String>>> = LazyLock::new(ArcSwap::default);

thread_local! {
    static OWN: RefCell<Option<Arc<Own>>> = const { RefCell::new(None) };
}

/// What one call brought along. Everything that is masked within [`Own::scope`] is masked of it, too.
#[derive(Default)]
pub struct Own {
    corpus: ArcSwapOption<Corpus>,
    adding: Mutex<()>,
}

impl std::fmt::Debug for Own {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Own").finish_non_exhaustive()
    }
}

impl Own {
    /// Takes the variables among a call's arguments, as many as a call may bring.
    pub fn input(&self, input: &serde_json::Value) {
        let given = input.get("variables").and_then(serde_json::Value::as_object);
        self.take(given.into_iter().flatten().filter_map(|(k, v)| Some((k.as_str(), v.as_str()?))).flat_map(|(k, v)| of_pair(k, v)));
    }

    /// Takes variables by name.
    pub fn variables<'a>(&self, pairs: impl IntoIterator<Item = (&'a String, &'a String)>) {
        self.take(pairs.into_iter().flat_map(|(k, v)| of_pair(k, v)));
    }

    /// Takes what a stack's spec holds.
    pub fn spec(&self, spec: &StackSpec) {
        self.take(of_spec(spec));
    }

    fn take<'a>(&self, found: impl Iterator<Item = &'a str>) {
        let found: BTreeSet<String> = found.filter(|v| worth(v)).map(str::to_owned).collect();
        let _one = self.adding.lock().unwrap_or_else(PoisonError::into_inner);
        let before = self.corpus.load_full();
        let known = before.as_ref().map(|c| c.values.clone()).unwrap_or_default();
        let mut new: Vec<String> = found.into_iter().filter(|v| !known.contains(v)).collect();
        if new.is_empty() {
            return;
        }
        new.extend(known);
        bounded(&mut new, MOST_OF_ONE);
        if let Some(corpus) = corpus(new.into_iter().collect(), &NAMES.load()) {
            self.corpus.store(Some(Arc::new(corpus)));
        }
    }

    /// Runs a future with these values masked in all it says.
    pub fn scope<F: Future>(self: &Arc<Self>, inner: F) -> Scoped<F> {
        Scoped { own: Arc::clone(self), inner: Box::pin(inner) }
    }

    /// The same for what runs on this thread now.
    pub fn within<T>(self: &Arc<Self>, f: impl FnOnce() -> T) -> T {
        struct Back(Option<Arc<Own>>);
        impl Drop for Back {
            fn drop(&mut self) {
                OWN.set(self.0.take());
            }
        }
        let _back = Back(OWN.replace(Some(Arc::clone(self))));
        f()
    }
}

/// A future of [`Own::scope`].
#[must_use = "a future does nothing unless it is polled"]
pub struct Scoped<F> {
    own: Arc<Own>,
    inner: Pin<Box<F>>,
}

impl<F: Future> Future for Scoped<F> {
    type Output = F::Output;
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let own = Arc::clone(&self.own);
        own.within(|| self.inner.as_mut().poll(cx))
    }
}

/// What is declared in a stack's files, which an operator registered. Builds a filter: not for a thread that serves calls.
pub fn files<'a>(stack: &StackName, variables: impl IntoIterator<Item = (&'a String, &'a String)>, spec: Option<&StackSpec>) {
    let found = variables.into_iter().flat_map(|(k, v)| of_pair(k, v)).chain(spec.into_iter().flat_map(of_spec));
    learn(Vouched::Files, stack, found, &[]);
}

/// The environments in which agents may change things without anybody's word: of too many values those of their releases go first.
pub fn free_environments(names: impl IntoIterator<Item = String>) {
    FREE.store(Arc::new(names.into_iter().collect()));
}

/// What a release holds whose operation was accepted, and what it calls things. Builds a filter: not for a thread that serves calls.
pub fn release(spec: &StackSpec, environment: &str) {
    let names: Vec<&str> = std::iter::once(spec.name.as_str()).chain(spec.services.keys().map(|s| s.as_str())).collect();
    let vouched = if FREE.load().contains(environment) { Vouched::Release } else { Vouched::Watched };
    learn(vouched, &spec.name, of_spec(spec), &names);
}

/// Names of the house: whoever declares one of them a secret hides nothing.
pub fn names<'a>(names: impl IntoIterator<Item = &'a str>) {
    let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    if note(&mut known, names) {
        rebuild(&known);
    }
}

/// Returns whether one of them is new and stands in the way of a value.
fn note<'a>(known: &mut Known, names: impl IntoIterator<Item = &'a str>) -> bool {
    let (mut new, mut hides) = (false, false);
    for name in names.into_iter().filter(|n| n.len() >= LEAST) {
        if known.names.len() < MOST_NAMES && known.names.insert(name.to_owned()) {
            new = true;
            hides |= known.of.values().flatten().any(|v| name.contains(v.as_str()));
        }
    }
    if new {
        NAMES.store(Arc::new(known.names.clone()));
    }
    hides
}

fn learn<'a>(vouched: Vouched, stack: &StackName, found: impl Iterator<Item = &'a str>, names: &[&str]) {
    let found: BTreeSet<&str> = found.filter(|v| worth(v)).collect();
    let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    let mut changed = note(&mut known, names.iter().copied());
    if !found.is_empty() {
        let of = known.of.entry((vouched, stack.clone())).or_default();
        let before = of.len();
        let old = std::mem::take(of);
        // What is declared again is new again; what is old goes first.
        let fresh = found.iter().filter(|v| !old.iter().any(|o| o == *v)).count();
        *of = found.iter().map(|v| (*v).to_owned()).chain(old.into_iter().filter(|o| !found.contains(o.as_str()))).collect();
        bounded(of, MOST_OF_ONE);
        changed |= fresh > 0 || of.len() != before;
    }
    if changed {
        fits(&mut known);
        rebuild(&known);
    }
}

/// Keeps the first values that fit.
fn bounded(values: &mut Vec<String>, (most, most_bytes): (usize, usize)) {
    let mut bytes = 0;
    let fit = values.iter().take(most).take_while(|v| {
        bytes += v.len();
        bytes <= most_bytes
    });
    let fit = fit.count();
    values.truncate(fit);
}

/// Lets the oldest values of whoever has most of them go, those of free releases first, until all fit.
fn fits(known: &mut Known) {
    let size =
        |of: &BTreeMap<(Vouched, StackName), Vec<String>>| of.values().flatten().fold((0, 0), |(n, bytes), v| (n + 1, bytes + v.len()));
    let (mut n, mut bytes) = size(&known.of);
    let all = n;
    while n > MOST_OF_ALL.0 || bytes > MOST_OF_ALL.1 {
        let most = known
            .of
            .iter_mut()
            .filter(|(_, v)| !v.is_empty())
            .min_by_key(|((vouched, _), v)| (*vouched, std::cmp::Reverse(v.iter().map(String::len).sum::<usize>())));
        let Some(gone) = most.and_then(|(_, values)| values.pop()) else { break };
        (n, bytes) = (n - 1, bytes - gone.len());
    }
    if n < all {
        tracing::error!(
            left_out = all - n,
            "more secrets are declared than can be kept out of what leaves: the oldest of the largest stacks are not looked for"
        );
    }
}

fn rebuild(known: &Known) {
    let values = known.of.values().flatten().cloned().collect();
    CORPUS.store(corpus(values, &known.names).map(Arc::new));
}

fn corpus(mut values: BTreeSet<String>, names: &BTreeSet<String>) -> Option<Corpus> {
    values.retain(|v| !names.iter().any(|n| n.contains(v.as_str())));
    let forms: BTreeSet<String> = values.iter().flat_map(|v| forms::forms(v)).collect();
    match AhoCorasick::builder().match_kind(MatchKind::LeftmostLongest).build(&forms) {
        Ok(finder) => Some(Corpus { values, finder }),
        // Only by sizes the bounds above exclude.
        Err(e) => {
            tracing::error!(error = %e, "declared secrets could not be taken into the filter of what leaves");
            None
        }
    }
}

/// Whether a stack declares more than a call's filter takes.
pub fn too_many(spec: &StackSpec) -> bool {
    let mut all: Vec<String> = of_spec(spec).filter(|v| worth(v)).map(str::to_owned).collect::<BTreeSet<_>>().into_iter().collect();
    let n = all.len();
    bounded(&mut all, MOST_OF_ONE);
    all.len() < n
}

/// Whether a word would be masked where somebody declares it a secret.
pub fn could_be_masked(word: &str) -> bool {
    worth(word)
}

/// The secrets among variables that a spec has in it, wherever that is: what its release has to remember of them.
pub fn used<'a>(variables: impl IntoIterator<Item = (&'a String, &'a String)>, spec: &StackSpec) -> BTreeSet<String> {
    let text = serde_json::to_string(spec).expect("a spec is plain data");
    let stands = |v: &&str| {
        let quoted = serde_json::Value::from(*v).to_string();
        text.contains(&quoted[1..quoted.len() - 1])
    };
    variables.into_iter().flat_map(|(k, v)| of_pair(k, v)).filter(|v| worth(v)).filter(stands).map(str::to_owned).collect()
}

fn of_spec(spec: &StackSpec) -> impl Iterator<Item = &str> {
    let environment = spec.services.values().flat_map(|s| &s.environment).filter_map(|(k, v)| Some((k.as_str(), v.as_deref()?)));
    let contents = spec.secrets.values().filter_map(|s| s.content.as_deref()).flat_map(|c| [c, c.trim()]);
    environment.flat_map(|(k, v)| of_pair(k, v)).chain(contents).chain(spec.declared.iter().map(String::as_str))
}

/// The secrets in one variable: its value when its name says so, and the password of a URL.
fn of_pair<'a>(key: &str, value: &'a str) -> Vec<&'a str> {
    let place = (PLACES.iter().any(|p| key.to_ascii_lowercase().ends_with(p)) && !super::words::holds(key))
        || (value.starts_with("http") && !value.contains('@'));
    let whole = (is_secret_key(key) && !place).then_some(value);
    let password = value.split_once("://").and_then(|(_, rest)| {
        let authority = rest.split(['/', '?', '#']).next()?;
        let (user, _) = authority.rsplit_once('@')?;
        user.split_once(':').map(|(_, password)| password)
    });
    whole.into_iter().chain(password).collect()
}

fn worth(value: &str) -> bool {
    let word = value.bytes().all(|b| b.is_ascii_lowercase()) && value.len() < 12;
    let number = value.bytes().all(|b| b.is_ascii_digit()) && value.len() < 8;
    (LEAST..=MOST).contains(&value.len()) && value.trim().len() >= LEAST && !word && !number && !MASK.contains(value) && !words::has(value)
}

/// Masks every declared secret in a text: those of the house, and those of the call this is part of.
pub(super) fn mask(text: &str) -> Cow<'_, str> {
    let house = CORPUS.load();
    let masked = masked(house.as_deref(), text);
    let own = OWN.with_borrow(Option::clone);
    let Some(own) = own.as_ref().and_then(|o| o.corpus.load_full()) else { return masked };
    match masked {
        Cow::Borrowed(text) => self::masked(Some(&own), text),
        Cow::Owned(text) => Cow::Owned(self::masked(Some(&own), &text).into_owned()),
    }
}

fn masked<'a>(corpus: Option<&Corpus>, text: &'a str) -> Cow<'a, str> {
    let Some(c) = corpus.filter(|c| c.finder.is_match(text)) else { return Cow::Borrowed(text) };
    let mut out = String::with_capacity(text.len());
    c.finder.replace_all_with(text, &mut out, |found, value, out| {
        out.push_str(if in_id(text, found.start(), found.end()) { value } else { MASK });
        true
    });
    Cow::Owned(out)
}

/// Whether what was found is only a piece of an id the house gave.
fn in_id(text: &str, from: usize, to: usize) -> bool {
    let part = |b: &u8| b.is_ascii_alphanumeric() || *b == b'-';
    // An id is short: a long token is none, and is not read twice.
    let (before, after) = (text.as_bytes()[..from].iter().rev(), text.as_bytes()[to..].iter());
    let (left, right) =
        (before.take(words::ID * 2).take_while(|b| part(b)).count(), after.take(words::ID * 2).take_while(|b| part(b)).count());
    to - from < words::ID && text.get(from - left..to + right).is_some_and(words::is_id)
}

/// Whether a text has a declared secret in it.
pub(super) fn stands_in(text: &str) -> bool {
    let own = |own: &Option<Arc<Own>>| own.as_ref().and_then(|o| o.corpus.load_full()).is_some_and(|c| c.finder.is_match(text));
    CORPUS.load().as_deref().is_some_and(|c| c.finder.is_match(text)) || OWN.with_borrow(own)
}

#[cfg(test)]
mod tests;
