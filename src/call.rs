//! The one line every call takes, whatever door it came in by: identity, tool, gate, audit, plan, gate, approval, executor, audit, reply.

pub mod context;
pub mod dispatch;
pub mod error;

pub use context::{Door, House, Principal, Progress};
pub use error::CallError;
