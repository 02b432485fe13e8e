//! The imperative shell: the only code that changes the world.

pub mod backup;
pub mod restore;
pub mod worker;
