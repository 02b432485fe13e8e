//! stub: stacks, releases, plans
use super::{Store, StoreResult};
use crate::model::ids::*;
use crate::model::plan::Plan;
use crate::model::release::*;
use chrono::{DateTime, Utc};

impl Store {
    /// One stack.
    pub async fn stack(&self, _name: &StackName) -> StoreResult<Option<StackRecord>> {
        todo!()
    }
    /// All stacks, by name.
    pub async fn stacks(&self) -> StoreResult<Vec<StackRecord>> {
        todo!()
    }
    /// Marks a stack as stopped by a call of ours, or not.
    pub async fn set_stopped(&self, _name: &StackName, _stopped: bool) -> StoreResult<()> {
        todo!()
    }
    /// Inserts or replaces a release (spec encrypted with the home's key).
    pub async fn put_release(&self, _release: &Release) -> StoreResult<()> {
        todo!()
    }
    /// Makes a release current in one transaction: stack.current, stack.environment, release.state = monitoring, operation's release. Refused as `Superseded` with an old epoch.
    pub async fn make_current(&self, _name: &StackName, _number: u32, _epoch: u64) -> StoreResult<()> {
        todo!()
    }
    /// Sets back the current release (undo after a failed monitor); `None` = no release serves.
    pub async fn set_current(&self, _name: &StackName, _number: Option<u32>, _epoch: u64) -> StoreResult<()> {
        todo!()
    }
    /// Sets a release's state.
    pub async fn set_release_state(&self, _name: &StackName, _number: u32, _state: ReleaseState) -> StoreResult<()> {
        todo!()
    }
    /// One release.
    pub async fn release(&self, _name: &StackName, _number: u32) -> StoreResult<Option<Release>> {
        todo!()
    }
    /// Newest releases, newest first.
    pub async fn releases(&self, _name: &StackName, _limit: usize) -> StoreResult<Vec<Release>> {
        todo!()
    }
    /// Highest release number ever used for the stack, 0 when none.
    pub async fn last_release_number(&self, _name: &StackName) -> StoreResult<u32> {
        todo!()
    }
    /// Stores a plan (encrypted); plans older than 24 h are dropped.
    pub async fn put_plan(&self, _plan: &Plan) -> StoreResult<()> {
        todo!()
    }
    /// A stored plan.
    pub async fn plan(&self, _id: &PlanId) -> StoreResult<Option<Plan>> {
        todo!()
    }
    /// Records a healing action of the loop and returns how many there were for (stack, service) since `since`, this one included.
    pub async fn heal_action(&self, _stack: &StackName, _service: &str, _now: DateTime<Utc>, _since: DateTime<Utc>) -> StoreResult<u32> {
        todo!()
    }
    /// Healing actions for (stack, service) since a moment.
    pub async fn heal_count(&self, _stack: &StackName, _service: &str, _since: DateTime<Utc>) -> StoreResult<u32> {
        todo!()
    }
    /// A small durable value by key (loop state, last backup time), or `None`.
    pub async fn value(&self, _key: &str) -> StoreResult<Option<serde_json::Value>> {
        todo!()
    }
    /// Sets a small durable value.
    pub async fn set_value(&self, _key: &str, _value: &serde_json::Value) -> StoreResult<()> {
        todo!()
    }
}
