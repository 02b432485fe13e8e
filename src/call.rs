//! The one line every call takes, whatever door it came in by: identity, tool, gate, audit, plan, gate, approval, executor, audit, reply.

mod accepted;
pub mod adopt;
pub mod approval;
pub mod beneath;
mod binds;
pub mod brakes;
pub mod compose_files;
pub mod context;
pub mod coverage;
pub mod data;
pub mod data_plan;
pub mod diagnose;
pub mod dispatch;
pub mod doing;
pub mod eject;
pub mod error;
pub mod facts;
pub mod gauge;
pub mod git;
pub mod hooks;
mod images;
pub mod judge;
pub mod observe;
pub mod plan_facts;
pub mod prepare;
pub mod record;
pub mod repeat;
pub mod run;
mod sealed;
pub mod sources;
pub mod successor;
pub mod taint;
pub mod tasks;
pub mod volumes;

pub use context::{Call, Door, House, Principal, Progress};
pub use error::CallError;
