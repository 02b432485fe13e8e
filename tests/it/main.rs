//! The one integration binary: one link, one run, one summary. A module per area; `tidy` fails when a file beside this one is not named here.

// An unwrap that fails is a failed test, in a helper as in a test.
#![allow(clippy::unwrap_used)]

mod adopt;
mod answers;
mod away;
mod backups;
mod before;
mod bringing_back;
mod container;
mod copies;
mod crash;
mod data;
mod elicit;
mod engine_live;
mod eras;
mod examples;
mod front;
mod full;
mod heal;
mod hijack;
mod inputs;
mod journey;
mod killed;
mod killed_data;
mod matrix;
mod mcp;
mod models;
mod outside;
mod pages;
mod peers;
mod postgres;
mod prove;
mod proxy;
mod python;
mod refresh;
mod reload;
mod rest;
mod soak;
mod stdio;
mod strategies;
mod support;
mod tasks;
mod tidy;
mod tls;
mod tokens;
