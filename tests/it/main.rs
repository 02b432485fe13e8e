//! The one integration binary: one link, one run, one summary. A module per area; `tidy` fails when a file beside this one is not named here.

mod journey;
mod support;
mod tidy;
