//! What an act that never began costs a service: nothing of its budget. Deliberately absent: when the next one is tried beyond the pause that is noted here.

use super::{HELPS, place};
use crate::call::House;
use crate::call::error::ErrorCode;
use crate::model::ids::{ServiceName, StackName};
use crate::supervisor::WARDEN;
use crate::supervisor::policy::Course;
use chrono::{DateTime, TimeDelta, Utc};
use serde_json::json;

/// After an act that could not begin (engine away, limit reached, disk full) the next try: at each scan, not more often.
const UNABLE: TimeDelta = TimeDelta::seconds(25);

/// An act that did not begin costs a service nothing of its budget; the pause before the next one stays, and is longer where another try so soon says the same.
pub(super) async fn uncharge(
    house: &House,
    stack: &StackName,
    service: &ServiceName,
    at: DateTime<Utc>,
    code: ErrorCode,
) -> Result<(), String> {
    let pause = match code {
        ErrorCode::Busy => TimeDelta::zero(),
        ErrorCode::RateLimited | ErrorCode::EngineUnavailable | ErrorCode::StorageFull | ErrorCode::Internal => UNABLE,
        // Frozen a moment after the look. A rule says the same tomorrow, and that is to be told.
        ErrorCode::Denied => match crate::call::approval::frozen(&house.store).await {
            Ok(Some(_)) => UNABLE,
            Ok(None) => return Ok(()),
            Err(e) => return Err(e.to_string()),
        },
        ErrorCode::InvalidArgument
        | ErrorCode::UnknownTool
        | ErrorCode::NotFound
        | ErrorCode::StalePlan
        | ErrorCode::Conflict
        | ErrorCode::Preflight
        | ErrorCode::Failed
        | ErrorCode::RegistryUnauthorized => return Ok(()),
    };
    let words = |e: crate::store::StoreError| e.to_string();
    // Some of these are also said of what has begun.
    let begun = house.store.operations(Some(stack), 5).await.map_err(words)?;
    if code != ErrorCode::Busy && begun.iter().any(|o| o.agent == WARDEN && HELPS.contains(&o.verb.as_str()) && o.created_at >= at) {
        return Ok(());
    }
    let key = place(stack, service);
    let kept = house.store.value(&key).await.map_err(words)?.and_then(|v| serde_json::from_value::<Course>(v).ok());
    let Some(mut course) = kept else { return Ok(()) };
    course.acts.retain(|(begun, _)| *begun != at);
    course.not_before = course.not_before.max(Some(at + pause));
    house.store.set_value(&key, &json!(course)).await.map_err(words)
}
