//! dockwarden: an autonomous agent supervisor for Docker hosts. This page is the tour of one call; see ARCHITECTURE.md for the map.
#![forbid(unsafe_code)]
#![recursion_limit = "256"]
#![warn(missing_docs)]

pub mod adapters;
pub mod app;
pub mod call;
pub mod compose;
pub mod config;
#[cfg(test)]
mod data_tests;
pub mod demo;
pub mod engine;
pub mod executor;
pub mod front;
#[cfg(test)]
mod fuzz_tests;
pub mod gate;
pub mod model;
pub mod planner;
pub mod redact;
pub mod runner;
pub mod store;
pub mod supervisor;
pub mod tools;
