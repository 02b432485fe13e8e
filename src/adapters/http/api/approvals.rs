//! Approvals over REST: the queue and what one would do, for operators; where one's own stands, for agents; and the word of an operator, which
//! leads to the same record as at the terminal or on the page (`adapters::people`).

use super::who::{Who, only_operators};
use super::{Answer, Failure, Part, answer};
use crate::adapters::Doors;
use crate::adapters::people::{self, Word, shown};
use crate::call::error::ErrorCode;
use crate::call::{CallError, House};
use crate::redact;
use crate::store::approval::Approval;
use axum::extract::rejection::{JsonRejection, PathRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::routing::{get, post};
use axum::{Json, Router};
use chrono::Utc;
use serde::Deserialize;
use serde_json::{Value, json};
use std::sync::Arc;
use utoipa::OpenApi as _;

/// Bytes of an agent's reason.
const MAX_REASON: usize = 2_000;

#[derive(utoipa::OpenApi)]
#[openapi(paths(list, show, approve, reject, revoke), components(schemas(Shown)))]
struct Docs;

/// The part.
pub(super) fn part() -> Part {
    let router = Router::new()
        .route("/api/approvals", get(list))
        .route("/api/approvals/{id}", get(show))
        .route("/api/approvals/{id}/approve", post(approve))
        .route("/api/approvals/{id}/reject", post(reject))
        .route("/api/approvals/{id}/revoke", post(revoke));
    Part { router, docs: Docs::openapi(), paths: Default::default() }
}

/// Which approvals.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Which {
    all: bool,
}

/// What the operator looked at.
#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
struct Shown {
    /// `digest` of the approval that was shown: a word about something else is not taken.
    digest: String,
    /// To approve what was asked for at the command line, and so may be one's own call: `confirm` of the approval that was shown.
    #[serde(default)]
    confirm: Option<String>,
}

/// An approval as it is shown: what the agent wrote is marked as such.
fn listed(a: &Approval) -> Value {
    let mut row = people::row(a);
    row["reason"] = json!(a.reason.as_deref().map(|r| redact::envelope(format!("reason given by agent {}", a.agent), r, MAX_REASON)));
    row["digest"] = json!(a.digest);
    row
}

/// Approvals that wait, or all of them.
#[utoipa::path(get, path = "/api/approvals", tag = "approvals", operation_id = "list_approvals",
    params(("all" = Option<bool>, Query, description = "also those that are settled")),
    responses((status = 200, description = "newest first", body = Object), (status = 403, description = "operators only")))]
async fn list(State(doors): State<Arc<Doors>>, who: Who, which: Result<Query<Which>, QueryRejection>) -> Answer {
    let Query(which) = which?;
    if let Who::Agent { agent, .. } = &who {
        return Err(only_operators(agent).into());
    }
    let all = doors.house.store.approvals(!which.all, Utc::now()).await?;
    let text = format!("{} approvals", all.len());
    Ok(answer(people::reply(json!({"approvals": all.iter().map(listed).collect::<Vec<_>>()}), text)?))
}

/// One approval: for an operator with the plan's diff, its findings and the call's arguments; for an agent where it stands.
#[utoipa::path(get, path = "/api/approvals/{id}", tag = "approvals", operation_id = "get_approval", params(("id" = String, Path)),
    responses((status = 200, description = "with `digest`, `shown` (all of it as text, as at every door), `diff`, `changes`, `stack_diff`, `findings`, `from_release`, `to_release`, `arguments`, `resolved`", body = Object), (status = 404, description = "no such approval")))]
async fn show(State(doors): State<Arc<Doors>>, who: Who, id: Result<Path<String>, PathRejection>) -> Answer {
    let Path(id) = id?;
    if matches!(who, Who::Agent { .. }) {
        return who.call(&doors, "approval", json!({"approval_id": id})).await;
    }
    let value = whole(&doors.house, &id).await?;
    Ok(answer(people::reply(value, "")?))
}

/// Everything a person decides by: what terminal and page show.
async fn whole(house: &House, id: &str) -> Result<Value, CallError> {
    let (approval, plan) = people::with_plan(house, id).await?;
    let mut value = listed(&approval);
    if let Some(name) = people::confirms(house, &approval) {
        value["confirm"] = json!(name);
    }
    let mut arguments = people::arguments(house, &approval).await?;
    let shown = shown::Shown::of(&approval, plan.as_ref(), &arguments, Utc::now());
    // What the agent wrote stands there, too. Nothing is cut here that was not cut with a mark.
    let text = shown.text();
    value["shown"] = json!(redact::envelope("what a person is shown", &text, text.len()));
    // What the call would really do, found out by the house: beside what the agent wrote, not within it.
    if let Some(resolved) = arguments.as_object_mut().and_then(|map| map.remove("resolved")) {
        value["resolved"] = resolved;
    }
    value["arguments"] = json!(redact::envelope(format!("arguments of agent {}", approval.agent), &arguments.to_string(), 16 * 1024));
    if let Some(plan) = plan {
        value["from_release"] = json!(plan.from_release);
        value["to_release"] = json!(plan.to_release);
        value["diff"] = json!(shown.diff());
        value["changes"] = json!(plan.changes);
        value["stack_diff"] = json!(plan.stack_diff);
        value["findings"] = json!(plan.findings);
    }
    redact::reply(&mut value);
    Ok(value)
}

/// Says yes; the last one needed starts the operation as the agent that asked.
#[utoipa::path(post, path = "/api/approvals/{id}/approve", tag = "approvals", operation_id = "approve", params(("id" = String, Path)), request_body = Shown,
    responses((status = 200, description = "recorded; `result` is what it started", body = Object), (status = 403, description = "operators only, and never who asked"), (status = 409, description = "settled already, or about something else than was shown")))]
async fn approve(
    State(doors): State<Arc<Doors>>,
    who: Who,
    id: Result<Path<String>, PathRejection>,
    body: Result<Json<Shown>, JsonRejection>,
) -> Answer {
    let Path(id) = id?;
    let Json(seen) = body?;
    word(&doors, &who, id, Word::Approve, seen).await
}

/// Says no.
#[utoipa::path(post, path = "/api/approvals/{id}/reject", tag = "approvals", operation_id = "reject", params(("id" = String, Path)), request_body = Shown,
    responses((status = 200, description = "recorded", body = Object), (status = 403, description = "operators only"), (status = 409, description = "settled already")))]
async fn reject(
    State(doors): State<Arc<Doors>>,
    who: Who,
    id: Result<Path<String>, PathRejection>,
    body: Result<Json<Shown>, JsonRejection>,
) -> Answer {
    let Path(id) = id?;
    let Json(seen) = body?;
    word(&doors, &who, id, Word::Reject, seen).await
}

/// Takes a yes back while nothing has started.
#[utoipa::path(post, path = "/api/approvals/{id}/revoke", tag = "approvals", operation_id = "revoke", params(("id" = String, Path)), request_body = Shown,
    responses((status = 200, description = "recorded", body = Object), (status = 403, description = "operators only"), (status = 409, description = "started already")))]
async fn revoke(
    State(doors): State<Arc<Doors>>,
    who: Who,
    id: Result<Path<String>, PathRejection>,
    body: Result<Json<Shown>, JsonRejection>,
) -> Answer {
    let Path(id) = id?;
    let Json(seen) = body?;
    word(&doors, &who, id, Word::Revoke, seen).await
}

async fn word(doors: &Arc<Doors>, who: &Who, id: String, word: Word, seen: Shown) -> Answer {
    let what = match word {
        Word::Approve => "approve",
        Word::Reject => "reject",
        Word::Revoke => "revoke",
    };
    let (by, door) = who.operator(doors, what, Some(&redact::line(&id, 80))).await?;
    let (approval, _) = people::with_plan(&doors.house, &id).await?;
    if approval.digest != seen.digest {
        let message = format!("approval {} is about something else than what was shown", approval.id);
        let hint = "get it again, look at its diff, and send the digest it has now";
        return Err(Failure(CallError::new(ErrorCode::Conflict, message, hint).field("digest")));
    }
    // A task of its own: a client that goes away must not leave a decision between its record and its start.
    let house = Arc::clone(&doors.house);
    let done = tokio::spawn(async move { people::decide_confirmed(&house, &id, &by, seen.confirm.as_deref(), word, &door).await }).await;
    let ended = |e: tokio::task::JoinError| {
        CallError::new(ErrorCode::Internal, "the decision ended abnormally", "get the approval again to see what became of it")
            .detail(e.to_string())
    };
    Ok(answer(done.map_err(ended)??))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::call::dispatch::tests::{Bench, COMPOSE, bench};

    async fn asked(b: &Bench, tool: &str, input: Value) -> String {
        let pending = b.call(tool, input).await.expect("asked").value;
        pending["approval"]["approval_id"].as_str().expect("an id").to_owned()
    }

    #[tokio::test]
    async fn a_program_is_shown_what_a_person_is_shown() {
        let b = bench().await;
        let id = asked(&b, "deploy", json!({"stack": "shop", "compose": COMPOSE, "environment": "production"})).await;
        let (program, person) = (whole(&b.house, &id).await.expect("there"), people::show(&b.house, &id).await.expect("there").value);
        for key in ["from_release", "to_release", "changes", "stack_diff", "findings", "digest"] {
            assert!(person.get(key).is_some(), "{key}");
            assert_eq!(program.get(key), person.get(key), "{key}");
        }
        // How a call goes about it is in no plan.
        assert_eq!(person["arguments"]["environment"], "production", "{person}");
        assert!(people::show(&b.house, &id).await.expect("there").text.contains("environment: production"));
        assert!(program["diff"].as_str().is_some_and(|d| d.starts_with("web: create by start")), "{program}");

        b.engine.add_image("dockwarden/gone/web:r1", crate::engine::fake::Behaviour::healthy());
        let id = asked(&b, "prune", json!({"what": "images", "dry_run": false})).await;
        let (program, person) = (whole(&b.house, &id).await.expect("there"), people::show(&b.house, &id).await.expect("there").value);
        assert!(!person["arguments"]["resolved"].is_null(), "{person}");
        assert_eq!(program["resolved"], person["arguments"]["resolved"]);
        assert!(program["arguments"]["text"].as_str().is_some_and(|t| t.contains("images")), "{program}");
    }
}
