//! Plain data shared by every layer: what a stack is, what a plan says, what an agent may do.
//! No I/O, no clocks, no policy: types, their validation and their wire forms only.

pub mod adopted;
pub mod agent;
pub mod config;
pub mod disk;
pub mod front;
pub mod ids;
pub mod incident;
pub mod labels;
pub mod observed;
pub mod operation;
pub mod plan;
pub mod policy;
pub mod preflight;
pub mod prompt;
pub mod release;
pub mod spec;
pub mod spend;
pub mod target;
pub mod task;
pub mod trigger;
pub mod verdict;
