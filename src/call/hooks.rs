//! Signed requests from outside that give agents work: who may (the secret), whether it was taken before, and which tasks it makes. Text in a request is
//! data: it can fill arguments, never choose agent, skill or stack beyond what the operator wrote. Deliberately absent: HTTP.

use super::error::ErrorCode;
use super::tasks::{self, Wish};
use super::{CallError, House};
use crate::gate::runbook::{Scope, fill};
use crate::model::ids::{StackName, TaskId};
use crate::model::task::TaskWork;
use crate::model::trigger::{HookKind, Trigger};
use crate::redact;
use chrono::{DateTime, TimeDelta, Utc};
use hmac::{Hmac, KeyInit, Mac};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use subtle::ConstantTimeEq;

/// Where its tasks come from.
const WEBHOOK: &str = "webhook";
/// Shortest secret, in bytes.
pub const LEAST_SECRET: usize = 16;
/// How far the clock of a signed timestamp may be off.
const WINDOW: TimeDelta = TimeDelta::minutes(5);
/// Alerts of one request that become new tasks; a group is sent again while it fires, and then the next ones do.
const MOST_ALERTS: usize = 100;
/// Alerts of one request that are looked at.
const MOST_FIRING: usize = 1_000;
/// Longest text taken out of a request, in bytes.
const MAX_TEXT: usize = 2000;

/// What became of a request.
#[derive(Debug, Clone, PartialEq)]
pub enum Taken {
    /// Tasks.
    Tasks {
        /// They were queued, or had been by an earlier request.
        tasks: Vec<TaskId>,
        /// Alerts that are none: they cannot be one, or were too many. The log says why.
        left_out: usize,
    },
    /// It was taken before.
    Duplicate,
    /// It is not of a kind that counts, with the reason.
    Ignored(String),
}

/// A request as the door hands it on.
#[derive(Debug)]
pub struct Request<'a> {
    /// Headers, names in lower case.
    pub headers: &'a BTreeMap<String, String>,
    /// The body as it came.
    pub body: &'a [u8],
}

impl Request<'_> {
    fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn same(a: &[u8], b: &[u8]) -> bool {
    // Compared as hashes: equal length, and nothing is told by time.
    let hash = |x: &[u8]| -> [u8; 32] { Sha256::digest(x).into() };
    hash(a).ct_eq(&hash(b)).into()
}

fn signature(secret: &[u8], parts: &[&[u8]]) -> String {
    let mut mac = <Hmac<Sha256> as KeyInit>::new_from_slice(secret).expect("HMAC takes a key of any length");
    parts.iter().for_each(|p| mac.update(p));
    format!("sha256={}", hex(&mac.finalize().into_bytes()))
}

/// Whether a request knows the secret. Pure.
///
/// # Errors
/// Why not, for the log; a caller learns only that it was refused.
pub fn verify(kind: HookKind, secret: &[u8], request: &Request<'_>, now: DateTime<Utc>) -> Result<(), &'static str> {
    let given = |name: &str| request.header(name).ok_or("it carries no signature");
    let good = match kind {
        HookKind::Github => same(given("x-hub-signature-256")?.as_bytes(), signature(secret, &[request.body]).as_bytes()),
        HookKind::Gitlab => same(given("x-gitlab-token")?.as_bytes(), secret),
        HookKind::Alertmanager => {
            let value = given("authorization")?;
            let (scheme, token) = value.split_once(' ').ok_or("its Authorization is no bearer token")?;
            scheme.eq_ignore_ascii_case("bearer") && same(token.trim().as_bytes(), secret)
        }
        HookKind::Generic => {
            let at = request.header("x-dockwarden-timestamp").ok_or("it carries no timestamp")?;
            let good =
                same(given("x-dockwarden-signature")?.as_bytes(), signature(secret, &[at.as_bytes(), b".", request.body]).as_bytes());
            let at = at.parse().ok().and_then(|s| DateTime::from_timestamp(s, 0)).ok_or("its timestamp is no number of seconds")?;
            if good && (now - at).abs() > WINDOW {
                return Err("its timestamp is more than five minutes off");
            }
            good
        }
    };
    if good { Ok(()) } else { Err("its signature is not that of the secret") }
}

/// The facts for one task, and the key under which it is taken once.
type Offered = (Option<String>, Map<String, Value>);

fn fires(alert: &Value) -> bool {
    alert["status"] == "firing"
}

/// Facts a request offers, one set per task, each with the key under which it is taken once; or why it does not count. Pure.
fn facts(trigger: &Trigger, kind: HookKind, request: &Request<'_>, mut body: Value) -> Result<Vec<Offered>, String> {
    bound(&mut body);
    if kind == HookKind::Alertmanager {
        let alerts = body.as_object_mut().and_then(|b| b.remove("alerts"));
        let Some(Value::Array(alerts)) = alerts else { return Err("it has no alerts".into()) };
        let firing = alerts.into_iter().filter(fires).take(MOST_FIRING);
        let each = firing.map(|alert| {
            let text = |k: &str| alert[k].as_str().unwrap_or_default().to_owned();
            // Without a fingerprint the labels tell one alert from another.
            let print = if alert["fingerprint"].is_string() { text("fingerprint") } else { alert["labels"].to_string() };
            let key = hex(&Sha256::digest(format!("{print}\n{}", text("startsAt")))[..16]);
            let facts = Map::from_iter([("alert".to_owned(), alert), ("body".to_owned(), body.clone())]);
            (Some(key), facts)
        });
        let each: Vec<_> = each.collect();
        return if each.is_empty() { Err("none of its alerts fires".into()) } else { Ok(each) };
    }
    let event = match kind {
        HookKind::Github => request.header("x-github-event").map(str::to_owned),
        HookKind::Gitlab => body["object_kind"].as_str().map(str::to_owned),
        HookKind::Generic | HookKind::Alertmanager => body["event"].as_str().map(str::to_owned),
    };
    let event = event.map(|e| redact::line(&e, 80)).unwrap_or_default();
    if event == "ping" {
        return Err("a ping".into());
    }
    if !trigger.on.events.is_empty() && !trigger.on.events.contains(&event) {
        return Err(format!("event {event:?} is not one of this hook's"));
    }
    let reference = body["ref"].as_str().unwrap_or_default();
    if !trigger.on.refs.is_empty() && !trigger.on.refs.iter().any(|r| r == reference) {
        return Err(format!("ref {:?} is not one of this hook's", redact::line(reference, 120)));
    }
    if body["deleted"] == true {
        return Err("the reference was deleted".into());
    }
    Ok(vec![(None, Map::from_iter([("body".to_owned(), body), ("kind".to_owned(), json!(event))]))])
}

/// Texts of others: without control characters, and no longer than an argument is.
fn bound(value: &mut Value) {
    match value {
        Value::String(s) => *s = redact::keep_start(&redact::clean(s), MAX_TEXT).to_owned(),
        Value::Array(items) => items.iter_mut().for_each(bound),
        Value::Object(map) => map.values_mut().for_each(bound),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// The work of a trigger with facts put in. Pure.
///
/// # Errors
/// When the stack it leads to is no name.
pub fn wish(
    trigger: &Trigger,
    facts: &Map<String, Value>,
    stack: Option<StackName>,
    origin: &'static str,
    key: String,
) -> Result<Wish, CallError> {
    let none = BTreeMap::new();
    let scope = Scope { input: facts, steps: &none, item: None };
    let stack = match trigger.stack.as_ref().map(|s| fill(&json!(s), &scope)) {
        None => stack,
        Some(Value::String(name)) => Some(StackName::new(name).map_err(|e| {
            CallError::new(ErrorCode::InvalidArgument, e.to_string(), "correct `stack` of the trigger, or what was sent").field("stack")
        })?),
        Some(_) => None,
    };
    let input = match fill(&Value::Object(trigger.input.clone()), &scope) {
        Value::Object(map) => map,
        _ => Map::new(),
    };
    let work = match (&trigger.skill, &trigger.prompt) {
        (Some(skill), _) => TaskWork::Skill(skill.clone()),
        (None, prompt) => TaskWork::Prompt(prompt.clone().unwrap_or_default()),
    };
    let submitter = format!("{origin}:{}", trigger.name);
    // An alert speaks of no push, whatever its labels say.
    let push = facts.get("body").filter(|_| origin == WEBHOOK && !facts.contains_key("alert"));
    let pushed = push.and_then(|body| body["ref"].as_str()).map(str::to_owned);
    Ok(Wish {
        agent: trigger.agent.clone(),
        work,
        input,
        stack,
        delegated_by: vec![],
        origin,
        submitter,
        idempotency_key: Some(key),
        delay: TimeDelta::zero(),
        pushed,
    })
}

/// Takes a request whose secret was verified.
///
/// # Errors
/// Those of [`tasks::submit`]; then the same request may come again.
pub async fn take(house: &House, trigger: &Trigger, kind: HookKind, request: &Request<'_>, now: DateTime<Utc>) -> Result<Taken, CallError> {
    let body: Value = serde_json::from_slice(request.body)
        .map_err(|e| CallError::new(ErrorCode::InvalidArgument, format!("the body is not JSON: {e}"), "send JSON"))?;
    let once = kind != HookKind::Alertmanager;
    let firing = body["alerts"].as_array().filter(|_| !once).map_or(0, |all| all.iter().filter(|a| fires(a)).count());
    let each = match facts(trigger, kind, request, body) {
        Ok(each) => each,
        Err(why) => return Ok(Taken::Ignored(why)),
    };
    if let Some(why) = each.iter().find_map(|(_, facts)| beside_the_branch(house, trigger, facts)) {
        return Ok(Taken::Ignored(why));
    }
    let too_many = firing.saturating_sub(MOST_ALERTS);
    if too_many > 0 {
        tracing::warn!(trigger = trigger.name, firing, too_many, "a request has more alerts than are taken at once");
    }
    // A signed timestamp tells two equal requests apart; elsewhere the body does.
    let stamp = (kind == HookKind::Generic).then(|| request.header("x-dockwarden-timestamp")).flatten().unwrap_or_default();
    let digest = hex(&Sha256::digest([stamp.as_bytes(), b".", request.body].concat()));
    if once && house.store.hook_taken(&trigger.name, &digest).await? {
        return Ok(Taken::Duplicate);
    }
    let (tasks, refused) = queue(house, trigger, each, &digest, now).await?;
    // After its tasks: killed in between, it comes again and leads to the same ones by their key.
    if once {
        house.store.hook_remember(&trigger.name, &digest, now).await?;
    }
    Ok(Taken::Tasks { tasks, left_out: refused + firing.saturating_sub(MOST_FIRING) })
}

/// Why a push is none for the stack it leads to: its checkout follows another branch.
fn beside_the_branch(house: &House, trigger: &Trigger, facts: &Map<String, Value>) -> Option<String> {
    let wish = wish(trigger, facts, None, WEBHOOK, String::new()).ok()?;
    let (stack, pushed) = (tasks::stack_of(&wish.stack, &wish.input)?, wish.pushed?);
    let follows = house.config.settings.stacks.get(&stack)?.git.as_ref()?.reference();
    (pushed != follows).then(|| format!("stack {stack} follows {follows}, not {:?}", redact::line(&pushed, 120)))
}

/// Queues what was offered; the tasks, and how many offers can be none.
async fn queue(
    house: &House,
    trigger: &Trigger,
    each: Vec<Offered>,
    digest: &str,
    now: DateTime<Utc>,
) -> Result<(Vec<TaskId>, usize), CallError> {
    let (mut ids, mut refused, mut why, mut made) = (vec![], 0, None, 0);
    for (key, facts) in each {
        let known = key.as_deref().unwrap_or(&digest[..32]);
        if made == MOST_ALERTS && !house.store.task_key_known(&format!("webhook:{}", trigger.name), known).await? {
            refused += 1;
            continue;
        }
        let key = key.unwrap_or_else(|| digest[..32].to_owned());
        let taken = match wish(trigger, &facts, None, WEBHOOK, key) {
            Ok(wish) => tasks::submit(house, wish, true, now).await,
            Err(e) => Err(e),
        };
        let (task, before) = match taken {
            Ok(taken) => taken,
            // The same alert with other words: it is the task it was.
            Err(e) if e.code == ErrorCode::Conflict => continue,
            // It can be no task however often it comes; those behind it can.
            Err(e) if e.code == ErrorCode::InvalidArgument => {
                tracing::warn!(trigger = trigger.name, error = %e, "what a request offers can be no task");
                refused += 1;
                why = Some(e);
                continue;
            }
            Err(e) => return Err(e),
        };
        if !before {
            made += 1;
            let detail = json!({"trigger": trigger.name, "task": task.id, "agent": task.agent});
            house.store.audit_event("supervisor", "webhook_taken", task.stack.as_ref().map(StackName::as_str), &detail, now).await?;
        }
        ids.push(task.id);
    }
    match why {
        Some(e) if ids.is_empty() => Err(e),
        Some(_) | None => Ok((ids, refused)),
    }
}

#[cfg(test)]
mod queue_tests;

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: &[u8] = b"It's a Secret to Everybody";

    fn now() -> DateTime<Utc> {
        DateTime::from_timestamp(1_800_000_000, 0).expect("valid")
    }

    fn check(kind: HookKind, headers: &[(&str, &str)], body: &str) -> Result<(), &'static str> {
        let headers = headers.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        verify(kind, SECRET, &Request { headers: &headers, body: body.as_bytes() }, now())
    }

    #[test]
    fn the_signature_of_githubs_documentation_is_accepted_and_nothing_near_it() {
        // https://docs.github.com/webhooks/using-webhooks/validating-webhook-deliveries
        let good = "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17";
        assert_eq!(check(HookKind::Github, &[("x-hub-signature-256", good)], "Hello, World!"), Ok(()));
        for (headers, body) in [
            (vec![("x-hub-signature-256", good)], "Hello, World"),
            (vec![("x-hub-signature-256", &good[..70])], "Hello, World!"),
            (vec![("x-hub-signature-256", "")], "Hello, World!"),
            (vec![("x-hub-signature", good)], "Hello, World!"),
            (vec![], "Hello, World!"),
        ] {
            assert!(check(HookKind::Github, &headers, body).is_err(), "{headers:?} {body}");
        }
    }

    #[test]
    fn a_timestamp_is_signed_and_must_be_fresh() {
        let signed = |at: &str| signature(SECRET, &[at.as_bytes(), b".", b"{}"]);
        let fresh = now().timestamp().to_string();
        let of = |at: &str, s: &str| check(HookKind::Generic, &[("x-dockwarden-timestamp", at), ("x-dockwarden-signature", s)], "{}");
        assert_eq!(of(&fresh, &signed(&fresh)), Ok(()));
        let old = (now().timestamp() - 301).to_string();
        assert_eq!(of(&old, &signed(&old)), Err("its timestamp is more than five minutes off"));
        assert!(of(&fresh, &signed(&old)).is_err(), "an old signature under a new timestamp");
        assert!(of("soon", &signed("soon")).is_err());
    }

    #[test]
    fn tokens_are_the_secret_itself() {
        let secret = std::str::from_utf8(SECRET).expect("text");
        assert_eq!(check(HookKind::Gitlab, &[("x-gitlab-token", secret)], ""), Ok(()));
        assert_eq!(check(HookKind::Alertmanager, &[("authorization", &format!("Bearer {secret}"))], ""), Ok(()));
        assert!(check(HookKind::Gitlab, &[("x-gitlab-token", "")], "").is_err());
        assert!(check(HookKind::Alertmanager, &[("authorization", secret)], "").is_err());
        assert!(check(HookKind::Alertmanager, &[("authorization", "Bearer x")], "").is_err());
    }

    fn trigger(kind: HookKind) -> Trigger {
        serde_json::from_value(json!({"name": "t", "agent": "deployer", "skill": "deploy-push", "on": {"webhook": kind, "secret_file": "/k", "events": ["push"], "refs": ["refs/heads/main"]},
            "stack": "{{body.repository.name}}", "input": {"stack": "{{body.repository.name}}", "reason": "push of {{body.head_commit.id}}", "images": "{{body.images}}"}}))
        .expect("valid")
    }

    fn facts_of(kind: HookKind, event: &str, body: Value) -> Result<Vec<Offered>, String> {
        let headers = [("x-github-event".to_owned(), event.to_owned())].into();
        facts(&trigger(kind), kind, &Request { headers: &headers, body: b"" }, body)
    }

    #[test]
    fn a_push_fills_arguments_and_what_does_not_count_says_why() {
        let push = json!({"ref": "refs/heads/main", "repository": {"name": "shop"}, "head_commit": {"id": "abc\u{1b}[31m"}});
        let found = facts_of(HookKind::Github, "push", push.clone()).expect("counts");
        let w = wish(&trigger(HookKind::Github), &found[0].1, None, "webhook", "k".into()).expect("a wish");
        assert_eq!((w.stack.as_ref().map(StackName::as_str), w.submitter.as_str()), (Some("shop"), "webhook:t"));
        assert_eq!(Value::Object(w.input), json!({"stack": "shop", "reason": "push of abc"}), "without images, without escapes");
        let with = |key: &str, value: Value| {
            let mut body = push.clone();
            body[key] = value;
            body
        };
        assert!(facts_of(HookKind::Github, "ping", push.clone()).is_err_and(|e| e == "a ping"));
        assert!(facts_of(HookKind::Github, "issues", push.clone()).is_err());
        assert!(facts_of(HookKind::Github, "push", with("ref", json!("refs/heads/x"))).is_err());
        assert!(facts_of(HookKind::Github, "push", with("deleted", json!(true))).is_err());
        let evil = facts_of(HookKind::Github, "push", with("repository", json!({"name": "../x"}))).expect("counts");
        assert!(wish(&trigger(HookKind::Github), &evil[0].1, None, "webhook", "k".into()).is_err(), "no stack of that name");
    }

    #[test]
    fn each_firing_alert_is_a_task_told_apart_by_fingerprint_and_start() {
        let alert = |print: &str, start: &str, status: &str| json!({"status": status, "labels": {"alertname": "Down"}, "fingerprint": print, "startsAt": start});
        let body = |alerts: Vec<Value>| json!({"version": "4", "status": "firing", "alerts": alerts});
        let keys = |alerts| {
            facts_of(HookKind::Alertmanager, "", body(alerts)).map(|f| f.into_iter().map(|(k, _)| k.expect("a key")).collect::<Vec<_>>())
        };
        let one = keys(vec![alert("a", "1", "firing"), alert("b", "1", "resolved")]).expect("fires");
        assert_eq!(one.len(), 1);
        assert_eq!(keys(vec![alert("a", "1", "firing")]).expect("fires"), one, "the same alert again");
        assert_ne!(keys(vec![alert("a", "2", "firing")]).expect("fires"), one, "it fired anew");
        assert!(keys(vec![alert("a", "1", "resolved")]).is_err() && facts_of(HookKind::Alertmanager, "", json!({})).is_err());
    }
}
