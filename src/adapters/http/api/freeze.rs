//! The freeze over REST: whether one stands, for anybody with a token; made and lifted by operators.

use super::{Answer, Part, Who, answer};
use crate::adapters::{Doors, people};
use crate::call::approval;
use axum::extract::State;
use axum::extract::rejection::JsonRejection;
use axum::routing::{get, post};
use axum::{Json, Router};
use chrono::Utc;
use serde::Deserialize;
use serde_json::json;
use std::sync::Arc;
use utoipa::OpenApi as _;

#[derive(utoipa::OpenApi)]
#[openapi(paths(stands, freeze, unfreeze), components(schemas(Why)))]
struct Docs;

/// The part.
pub(super) fn part() -> Part {
    let router = Router::new().route("/api/freeze", get(stands).post(freeze)).route("/api/unfreeze", post(unfreeze));
    Part { router, docs: Docs::openapi(), paths: Default::default() }
}

/// Why nothing may change.
#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
struct Why {
    /// For everyone who is refused because of it.
    reason: String,
}

/// Whether changes are frozen, and why.
#[utoipa::path(get, path = "/api/freeze", tag = "freeze", operation_id = "get_freeze",
    responses((status = 200, description = "`frozen` is the reason, or null", body = Object)))]
async fn stands(State(doors): State<Arc<Doors>>, _who: Who) -> Answer {
    Ok(answer(people::reply(json!({"frozen": approval::frozen(&doors.house.store).await?}), "")?))
}

/// Stops all changes until they are allowed again.
#[utoipa::path(post, path = "/api/freeze", tag = "freeze", operation_id = "freeze", request_body = Why,
    responses((status = 200, description = "frozen; `operations` under way go on", body = Object), (status = 403, description = "operators only")))]
async fn freeze(State(doors): State<Arc<Doors>>, who: Who, body: Result<Json<Why>, JsonRejection>) -> Answer {
    let Json(why) = body?;
    let (by, _) = who.operator(&doors, "freeze", None).await?;
    let house = &doors.house;
    approval::freeze(&house.store, &by, &why.reason, Utc::now()).await?;
    Ok(answer(people::reply(json!({"frozen": approval::frozen(&house.store).await?, "operations": house.executor.active()}), "")?))
}

/// Lets changes happen again.
#[utoipa::path(post, path = "/api/unfreeze", tag = "freeze", operation_id = "unfreeze",
    responses((status = 200, description = "`was` is what was lifted, or null", body = Object), (status = 403, description = "operators only")))]
async fn unfreeze(State(doors): State<Arc<Doors>>, who: Who) -> Answer {
    let (by, _) = who.operator(&doors, "unfreeze", None).await?;
    let store = &doors.house.store;
    let before = approval::frozen(store).await?;
    approval::unfreeze(store, &by, Utc::now()).await?;
    Ok(answer(people::reply(json!({"frozen": null, "was": before}), "")?))
}
