//! What operators say, whichever door they said it at: the credential's check, and the one way a word becomes a decision. Deliberately
//! absent: how a door learns the passphrase (the terminal, the login page), and what an approval leads to (`call::approval`).

pub mod client;
mod decide;
pub mod shown;

pub use decide::{Said, Speaker, Word, decide, decide_confirmed, say};
pub use shown::Shown;

use super::socket::credential;
use super::socket::wire::Credential;
use crate::call::approval;
use crate::call::dispatch::Reply;
use crate::call::error::ErrorCode;
use crate::call::gauge::Gauge;
use crate::call::{CallError, House};
use crate::gate::RateLimit;
use crate::model::ids::ApprovalId;
use crate::model::plan::{DiffLine, Plan};
use crate::redact;
use crate::redact::declared::Own;
use crate::store::approval::{Approval, ApprovalState};
use chrono::{DateTime, Utc};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// One hash at a time at each door, first come, first served, and who guessed wrong waits so long for the answer: nobody waits for that but them, and who
/// guesses at the page keeps nobody from the terminal.
static AT_TERMINAL: Guesses = Guesses::new(WRONG_GUESS);
static AT_PAGE: Guesses = Guesses::new(WRONG_GUESS);
const WRONG_GUESS: Duration = Duration::from_secs(1);
/// Longest wait for the turn: as many as may be connected unknown take less.
const TURN_WITHIN: Duration = Duration::from_secs(30);
/// Wrong guesses leave one row in so many seconds for each operator, and one for all names that are none: the log is not theirs to fill.
const ROW_EVERY_S: u32 = 60;
/// Wrong guesses of one name at one door within [`FORGOTTEN`]; beyond it that name waits there.
const MOST_WRONG: usize = 10;
const FORGOTTEN: Duration = Duration::from_secs(600);
/// Names remembered at a door; the oldest go first.
const MOST_NAMES: usize = 1000;

/// The guesses at a door.
#[derive(Debug)]
struct Guesses {
    turn: tokio::sync::Mutex<()>,
    wrong: Mutex<BTreeMap<String, Vec<Instant>>>,
    rows: Gauge,
    costs: Duration,
}

impl Guesses {
    const fn new(costs: Duration) -> Self {
        Self { turn: tokio::sync::Mutex::const_new(()), wrong: Mutex::new(BTreeMap::new()), rows: Gauge::new(), costs }
    }

    /// Whether a wrong guess leaves a row, and how many before it left none.
    fn row(&self, name: &str, now: DateTime<Utc>) -> Option<u64> {
        let limit = RateLimit { key: String::new(), max: 0, window_s: ROW_EVERY_S };
        self.rows.count(name, &limit, now).err().and_then(|refused| refused.told)
    }

    /// How long a name has to wait at this door, when it does.
    fn waits(&self, name: &str, now: Instant) -> Option<Duration> {
        let mut wrong = self.wrong.lock().unwrap_or_else(PoisonError::into_inner);
        let seen = wrong.get_mut(name)?;
        seen.retain(|at| now.duration_since(*at) < FORGOTTEN);
        let first = *seen.first()?;
        (seen.len() >= MOST_WRONG).then(|| FORGOTTEN.saturating_sub(now.duration_since(first)))
    }

    fn was_wrong(&self, name: &str, now: Instant) {
        let mut wrong = self.wrong.lock().unwrap_or_else(PoisonError::into_inner);
        wrong.retain(|_, seen| seen.last().is_some_and(|at| now.duration_since(*at) < FORGOTTEN));
        if wrong.len() >= MOST_NAMES
            && !wrong.contains_key(name)
            && let Some(oldest) = wrong.iter().min_by_key(|(_, seen)| seen.last().copied()).map(|(name, _)| name.clone())
        {
            wrong.remove(&oldest);
        }
        wrong.entry(name.to_owned()).or_default().push(now);
    }

    fn was_right(&self, name: &str) {
        self.wrong.lock().unwrap_or_else(PoisonError::into_inner).remove(name);
    }
}

/// The command line, as the audit log names it.
pub const CLI: &str = "cli";
/// JSON REST, as the audit log names it.
pub const REST: &str = "rest";
/// The approvals page, as the audit log names it.
pub const PAGE: &str = "page";

/// What a request of a person answers.
pub type Done = Result<Reply, CallError>;

/// An answer.
///
/// # Errors
/// Never.
pub fn reply(value: Value, text: impl Into<String>) -> Done {
    Ok(Reply::new(value, text))
}

/// A refusal.
pub fn denied(message: impl Into<String>, hint: &str) -> CallError {
    CallError::new(ErrorCode::Denied, message, hint)
}

/// An id as typed.
///
/// # Errors
/// `InvalidArgument`.
pub fn approval_id(text: &str) -> Result<ApprovalId, CallError> {
    ApprovalId::new(text)
        .map_err(|e| CallError::new(ErrorCode::InvalidArgument, e.to_string(), "see `dockwarden approvals list`").field("approval"))
}

/// An approval as lists show it: without the call's input, which may carry secret values.
pub fn row(a: &Approval) -> Value {
    json!({"approval_id": a.id, "state": a.state, "agent": a.agent, "tool": a.tool, "stack": a.stack, "environment": a.environment, "reason": a.reason, "on_behalf": a.on_behalf,
           "needed": a.needed, "approved_by": a.approved_by, "denied_by": a.denied_by, "operation_id": a.operation, "created_at": a.created_at, "expires_at": a.expires_at})
}

/// An approval with the plan it stands for, when its tool has one.
///
/// # Errors
/// `InvalidArgument`, `NotFound`, and the store's.
pub async fn with_plan(house: &House, text: &str) -> Result<(Approval, Option<Plan>), CallError> {
    let approval = approval::find(&house.store, &approval_id(text)?).await?;
    let plan = match &approval.plan {
        Some(id) => house.store.plan(id).await?,
        None => None,
    };
    match plan {
        Some(plan) => {
            let (approval, plan) = off_thread(move || {
                let plan = without_secrets(&approval, plan);
                (approval, plan)
            })
            .await?;
            Ok((approval, Some(plan)))
        }
        None => Ok((approval, None)),
    }
}

/// Looking through a large stack for its secrets takes a while.
async fn off_thread<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, CallError> {
    tokio::task::spawn_blocking(work).await.map_err(|e| {
        CallError::new(ErrorCode::Internal, "the approval could not be shown", "try again, and see the log of the supervisor")
            .detail(e.to_string())
    })
}

/// A plan without the secrets that it and its call brought along: the house does not know them before its operation is accepted.
fn without_secrets(approval: &Approval, mut plan: Plan) -> Plan {
    let own = own_of(&approval.input);
    own.spec(&plan.desired);
    own.within(|| {
        for line in plan.changes.iter_mut().flat_map(|c| &mut c.diff).chain(&mut plan.stack_diff) {
            let DiffLine { path, from, to } = line;
            from.iter_mut().chain(to).for_each(|text| *text = redact::at(path, text));
            *path = redact::said(path);
        }
        redact::findings(&mut plan.findings);
    });
    plan
}

/// What the call of an approval brought along.
fn own_of(input: &Value) -> Arc<Own> {
    let own = Arc::<Own>::default();
    own.input(input);
    own
}

/// The call an approval stands for, redacted, with what its arguments meant when it was asked for.
///
/// # Errors
/// The store's.
pub async fn arguments(house: &House, approval: &Approval) -> Result<Value, CallError> {
    let resolved = approval::resolved_for(&house.store, &approval.id).await?;
    let (input, store) = (approval.input.clone(), house.store.clone());
    let masked = move || {
        own_of(&input).within(|| {
            let mut shown = redact::arguments(&input, &|text| store.keyed_hash(text));
            if let (Some(resolved), Some(map)) = (resolved, shown.as_object_mut()) {
                map.insert("resolved".into(), resolved);
            }
            redact::reply(&mut shown);
            shown
        })
    };
    off_thread(masked).await
}

/// What has to be typed to approve what may be the operator's own call: the name of its stack, or of the host. `None` where others asked, where it was approved
/// already, and where it takes two people anyhow.
pub fn confirms<'a>(house: &'a House, approval: &'a Approval) -> Option<&'a str> {
    let own = approval.at_terminal && approval.needed <= 1 && approval.state == ApprovalState::Pending;
    own.then(|| approval.stack.as_ref().map_or(house.config.host_name.as_str(), |s| s.as_str()))
}

/// Who asks, and on whose behalf.
pub fn asker(a: &Approval) -> String {
    if a.on_behalf.is_empty() { a.agent.clone() } else { format!("{} on behalf of {}", a.agent, a.on_behalf.join(", ")) }
}

/// One approval with what it would do.
///
/// # Errors
/// As `with_plan`.
pub async fn show(house: &House, text: &str) -> Done {
    let (approval, plan) = with_plan(house, text).await?;
    let mut value = row(&approval);
    value["digest"] = json!(approval.digest);
    if let Some(name) = confirms(house, &approval) {
        value["confirm"] = json!(name);
    }
    // As the page: the plan where there is one, and the call, which says how it goes about it.
    if let Some(plan) = &plan {
        value["from_release"] = json!(plan.from_release);
        value["to_release"] = json!(plan.to_release);
        value["content_of"] = json!(plan.content_of);
        value["git"] = json!(plan.git.as_ref().map(|g| json!({"commit": g.commit, "dirty": g.dirty})));
        value["changes"] = json!(plan.changes);
        value["stack_diff"] = json!(plan.stack_diff);
        value["findings"] = json!(plan.findings);
    }
    let arguments = arguments(house, &approval).await?;
    let text = Shown::of(&approval, plan.as_ref(), &arguments, Utc::now()).text();
    value["arguments"] = arguments;
    redact::reply(&mut value);
    reply(value, text)
}

/// Checks a passphrase typed at a terminal; one guess at a time, a wrong one is recorded.
///
/// # Errors
/// `Denied` when operator or passphrase are wrong, `RateLimited` after too many wrong ones, `Internal` when the stored credential is unreadable.
pub async fn verified(house: &House, credential: &Credential) -> Result<String, CallError> {
    checked(house, credential, &AT_TERMINAL).await
}

/// As [`verified`], for the login of the approvals page.
///
/// # Errors
/// As [`verified`].
pub async fn verified_at_page(house: &House, credential: &Credential) -> Result<String, CallError> {
    checked(house, credential, &AT_PAGE).await
}

async fn checked(house: &House, credential: &Credential, door: &Guesses) -> Result<String, CallError> {
    let name = redact::keep_start(&credential.operator, 64);
    let waits = || {
        let wait = door.waits(name, Instant::now())?;
        let message = format!("too many wrong passphrases for {}", super::client_text(name));
        let hint = format!("try again in {} s, or at the other door (terminal or page)", wait.as_secs() + 1);
        Some(CallError::new(ErrorCode::RateLimited, message, hint))
    };
    // Before the turn is waited for, and after: those who wait for it guess too.
    waits().map_or(Ok(()), Err)?;
    let turn = tokio::time::timeout(TURN_WITHIN, door.turn.lock()).await.map_err(|_| {
        CallError::new(
            ErrorCode::RateLimited,
            "too many people log in at once",
            "try again in some seconds, or at the other door (terminal or page)",
        )
    })?;
    waits().map_or(Ok(()), Err)?;
    let stored = house.store.operators().await?.into_iter().find(|(name, _)| *name == credential.operator);
    let known = stored.is_some();
    // A name that is no operator's takes as long: how long it takes tells nobody who is one.
    let (passphrase, hash) = (credential.passphrase.clone(), stored.map_or_else(|| credential::NOBODYS.to_owned(), |(_, hash)| hash));
    let checked = tokio::task::spawn_blocking(move || credential::verify(&passphrase, &hash));
    let internal = |e: String| {
        CallError::new(
            ErrorCode::Internal,
            "the operator's credential could not be checked",
            "set it again with `dockwarden operators add`",
        )
        .detail(e)
    };
    let ok = known & checked.await.map_err(|e| internal(e.to_string()))?.map_err(|e| internal(e.to_string()))?;
    if ok {
        door.was_right(name);
        return Ok(credential.operator.clone());
    }
    door.was_wrong(name, Instant::now());
    // The next has the turn while this one waits.
    drop(turn);
    if let Some(untold) = door.row(if known { name } else { "" }, Utc::now()) {
        let operator = super::client_text(&credential.operator);
        let detail = json!({"operator": operator, "more_since_the_last_row": untold});
        house.store.audit_event("operator", "credential_refused", None, &detail, Utc::now()).await?;
    }
    tokio::time::sleep(door.costs).await;
    Err(denied(
        "the operator or the passphrase is wrong",
        "make an operator with `dockwarden operators add NAME`, then type its passphrase",
    ))
}

/// Who may do what needs an operator where there is one.
pub struct Authorised {
    /// Operator, or `home-owner`.
    pub name: String,
    /// What to tell the person about it.
    pub note: String,
}

/// An operator where there is one; on a home without operators its owner, and the reply says so.
///
/// # Errors
/// `Denied`.
pub async fn authorised(house: &House, credential: Option<&Credential>) -> Result<Authorised, CallError> {
    match credential {
        Some(credential) => Ok(Authorised { name: verified(house, credential).await?, note: String::new() }),
        None if house.store.operators().await?.is_empty() => Ok(Authorised {
            name: "home-owner".into(),
            note: "No operator exists yet, so the home's owner was enough. Add one (`dockwarden operators add NAME`): from then on this asks for a passphrase.".into(),
        }),
        None => Err(denied("this needs an operator's passphrase", "run it at a terminal: it is typed there, never passed as an argument or variable").field("credential")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::StreamExt;

    #[test]
    fn a_name_that_was_guessed_too_often_waits_and_no_other_does() {
        let (door, other) = (Guesses::new(WRONG_GUESS), Guesses::new(WRONG_GUESS));
        let start = Instant::now();
        for _ in 0..MOST_WRONG {
            assert_eq!(door.waits("ann", start), None);
            door.was_wrong("ann", start);
        }
        assert_eq!(door.waits("ann", start + FORGOTTEN / 2), Some(FORGOTTEN / 2));
        assert_eq!((door.waits("bob", start), other.waits("ann", start)), (None, None), "neither other names nor other doors");
        assert_eq!(door.waits("ann", start + FORGOTTEN), None);
        door.was_wrong("ann", start);
        door.was_right("ann");
        assert_eq!(door.waits("ann", start), None);
        for n in 0..2 * MOST_NAMES {
            door.was_wrong(&format!("guess-{n}"), start);
        }
        assert!(door.wrong.lock().unwrap().len() <= MOST_NAMES);
    }

    #[tokio::test]
    async fn who_guesses_wrong_keeps_nobody_out_and_fills_no_log() {
        let b = crate::call::dispatch::tests::bench().await;
        let stored = credential::hash("correct horse").expect("hashed");
        b.house.store.put_operator("ann", &stored, Utc::now()).await.expect("kept");
        // Long enough that nobody who waits for it can be the reason.
        let door = Guesses::new(Duration::from_secs(3600));
        let of = |operator: &str, passphrase: &str| Credential { operator: operator.into(), passphrase: passphrase.into() };
        let wrong: Vec<Credential> = ["eve-1", "eve-2", "eve-3", "ann", "ann"].into_iter().map(|name| of(name, "a guess")).collect();
        let right = of("ann", "correct horse");
        let guesses =
            futures_util::stream::iter(wrong.iter().map(|c| checked(&b.house, c, &door))).buffer_unordered(wrong.len()).collect::<Vec<_>>();
        tokio::select! {
            _ = guesses => panic!("a wrong guess costs its time"),
            // Polled after the guesses: it is behind them in the line.
            name = async { tokio::task::yield_now().await; checked(&b.house, &right, &door).await } => assert_eq!(name.expect("right"), "ann"),
        }
        let rows = b.house.store.audit_after(0, None, 100).await.expect("rows");
        let told: Vec<&str> =
            rows.iter().filter(|r| r.tool == "credential_refused").filter_map(|r| r.detail["operator"].as_str()).collect();
        assert_eq!(told, ["eve-1", "ann"], "one for all names that are none, one for the operator");
        let now = Utc::now() + chrono::TimeDelta::seconds(i64::from(ROW_EVERY_S) + 1);
        assert_eq!((door.row("", now), door.row("ann", now)), (Some(2), Some(1)), "the next row counts the others");
    }
}
