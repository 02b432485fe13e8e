//! A preflight report: what was checked before anything is touched, one line per check.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What a check came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub enum Passed {
    /// It holds.
    Yes,
    /// It does not hold, and a deploy goes on all the same.
    Warn,
    /// It could not be measured from here.
    Unknown,
    /// It does not hold: a deploy fails before anything is touched.
    No,
}

/// One check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(inline)]
pub struct Check {
    /// Id, e.g. `port.free`.
    pub id: String,
    /// What it came to.
    pub ok: Passed,
    /// What was found, and what to do.
    pub message: String,
}
