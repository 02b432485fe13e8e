//! Compose files to a [`StackSpec`]: parse within limits, interpolate, extends and include, overrides, profiles, a closed typed model.
//! Pure: side files come through [`Files`], variables through the input; no process environment, no disk, no clock.
//! It does not judge whether a stack is safe (the gate does) nor whether images or host paths exist (preflight does).

mod canonical;
mod cast;
mod check;
mod deploy;
mod dotenv;
mod files;
mod host;
mod interpolate;
mod locate;
mod merge;
mod mounts;
mod objects;
mod plain;
mod ports;
mod process;
mod reader;
mod schema;
mod service;
mod shape;
mod shellwords;
mod sources;
mod support;
#[cfg(test)]
mod tests;
mod typed;
mod unique;
mod units;
mod value;

pub use canonical::canonical;

use crate::model::ids::StackName;
use crate::model::policy::Quotas;
use crate::model::spec::{StackSpec, Unsupported};
use std::collections::BTreeMap;
use std::fmt;

/// One compose file: the base or an override.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// Name used in messages, relative to the project directory.
    pub path: String,
    /// Its text.
    pub text: String,
}

/// Side files: env files, `extends` and `include` targets, config and secret files.
pub trait Files {
    /// The text of a file, relative to the project directory or absolute; `Ok(None)` = it does not exist, `Err` = it may not or cannot be read.
    fn read(&self, path: &str) -> Result<Option<String>, ReadError>;
    /// The text of a file whose values are put into the texts of compose files.
    fn variables(&self, path: &str) -> Result<Option<String>, ReadError> {
        self.read(path)
    }
    /// Whether the file is one of the host that can be mounted; not a text that came with a call.
    fn mountable(&self, _path: &str) -> bool {
        true
    }
}

/// Why a side file was not read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// It lies outside of the project directory, or a link leads there.
    #[error("{0}")]
    Outside(String),
    /// It cannot be read, or not as text.
    #[error("{0}")]
    Unreadable(String),
    /// It is there and is nothing to read as text: it can be mounted as it is.
    #[error("{why}")]
    Opaque {
        /// What it is instead.
        why: String,
        /// Tells this content from another.
        digest: String,
    },
}

impl ReadError {
    /// Rule of the plan gate that such a file breaks.
    fn rule(&self) -> Option<&'static str> {
        match self {
            Self::Outside(_) => Some("path.traversal"),
            Self::Unreadable(_) | Self::Opaque { .. } => None,
        }
    }
}

impl From<ReadError> for String {
    fn from(e: ReadError) -> Self {
        e.to_string()
    }
}

/// What a stack is loaded from.
pub struct LoadInput<'a> {
    /// Stack it is for; a `name:` in the file must agree.
    pub name: StackName,
    /// Absolute directory relative paths mean; empty when there is none (inline files).
    pub project_dir: &'a str,
    /// Base and overrides, in order.
    pub sources: Vec<Source>,
    /// Declared variables, `.env` already merged in (see [`dotenv`]).
    pub variables: &'a BTreeMap<String, String>,
    /// Active profiles; `*` = all.
    pub profiles: &'a [String],
    /// Side files.
    pub files: &'a dyn Files,
    /// Limits of the text.
    pub quotas: &'a Quotas,
}

/// One thing wrong with a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoadError {
    /// Path in the file, e.g. `services.db.ports[0]`.
    pub path: Option<String>,
    /// File.
    pub file: String,
    /// Line, where the text has the path.
    pub line: Option<usize>,
    /// What is wrong.
    pub message: String,
    /// What to do; may be empty.
    pub hint: String,
    /// Rule of the plan gate that the file breaks by this, where there is one. A file that does not load is refused, so it counts as denied.
    pub rule: Option<&'static str>,
}

impl fmt::Display for LoadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.file)?;
        if let Some(line) = self.line {
            write!(f, ":{line}")?;
        }
        if let Some(path) = &self.path {
            write!(f, ": {path}")?;
        }
        write!(f, ": {}", self.message.replace('\n', " "))?;
        if self.hint.is_empty() { Ok(()) } else { write!(f, " ({})", self.hint) }
    }
}

/// Everything found wrong, at most [`MAX_ERRORS`]; one line each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoadErrors(pub Vec<LoadError>);

impl fmt::Display for LoadErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, error) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            error.fmt(f)?;
        }
        Ok(())
    }
}
impl std::error::Error for LoadErrors {}

/// Errors reported of one load; a caller mends the first ones first.
pub const MAX_ERRORS: usize = 20;
/// Notes kept of one load.
const MAX_NOTES: usize = 500;
/// Bytes all texts together may have after interpolation.
const MAX_INTERPOLATED: usize = 4 << 20;
/// Bytes that all a few words can stand for may have together: ranges of ports, files read for many services, services that extend others. The whole
/// range of ports fits once.
const MAX_EXPANDED: usize = 32 << 20;

/// Problems and notes gathered while loading; paths are located in the texts at the end.
#[derive(Debug)]
struct Report {
    errors: Vec<LoadError>,
    notes: Vec<Unsupported>,
    text_left: usize,
    expansion_left: usize,
    /// Variables that were looked up -> path of the first place.
    references: BTreeMap<String, String>,
    /// Texts into which declared variables were put -> what is left of them without the variables' values.
    substituted: BTreeMap<String, String>,
    env_from_files: BTreeMap<(String, String), String>,
    /// Keys used that the reference's schema has not.
    newer: Vec<String>,
    /// What keeps a file from being deployed and not from being read.
    later: Vec<LoadError>,
    /// Whether the file is only read, as `docker compose config` reads it.
    reading: bool,
}

/// Variable that needs no declaration.
const PROJECT_NAME: &str = "COMPOSE_PROJECT_NAME";

/// Rule of everything that does not fit the compose schema.
const INVALID: &str = "yaml.invalid";

impl Report {
    fn new(reading: bool) -> Self {
        Self {
            errors: Vec::new(),
            notes: Vec::new(),
            text_left: MAX_INTERPOLATED,
            expansion_left: MAX_EXPANDED,
            references: BTreeMap::new(),
            substituted: BTreeMap::new(),
            env_from_files: BTreeMap::new(),
            newer: Vec::new(),
            later: Vec::new(),
            reading,
        }
    }

    /// What Compose refuses and we can do without guessing: an error to who reads the file as Compose does, a note in a plan.
    fn stricter(&mut self, path: &str, message: &str, what_is_done: &str) {
        if self.reading {
            self.error(path, message, "keep one of them, or write the same in both");
        } else {
            self.note(path, format!("{message}; Compose refuses this, here {what_is_done}"));
        }
    }

    /// An error for whoever deploys; who only reads the file is not concerned.
    fn later(&mut self, path: &str, rule: Option<&'static str>, message: impl Into<String>, hint: impl Into<String>) {
        if self.later.len() < MAX_ERRORS {
            let path = Some(path.to_owned());
            self.later.push(LoadError { path, file: String::new(), line: None, message: message.into(), hint: hint.into(), rule });
        }
    }

    fn error(&mut self, path: &str, message: impl Into<String>, hint: impl Into<String>) {
        self.broken(path, Some(INVALID), message, hint);
    }

    /// An error that breaks another rule than that of the schema, or none.
    fn broken(&mut self, path: &str, rule: Option<&'static str>, message: impl Into<String>, hint: impl Into<String>) {
        let path = if path.is_empty() { None } else { Some(path.to_owned()) };
        self.push(LoadError { path, file: String::new(), line: None, message: message.into(), hint: hint.into(), rule });
    }

    fn error_in(&mut self, file: &str, line: Option<usize>, message: impl Into<String>, hint: impl Into<String>) {
        self.broken_in(file, line, Some(INVALID), message, hint);
    }

    fn broken_in(
        &mut self,
        file: &str,
        line: Option<usize>,
        rule: Option<&'static str>,
        message: impl Into<String>,
        hint: impl Into<String>,
    ) {
        self.push(LoadError { path: None, file: file.to_owned(), line, message: message.into(), hint: hint.into(), rule });
    }

    fn push(&mut self, error: LoadError) {
        if self.errors.len() < MAX_ERRORS && !self.errors.contains(&error) {
            self.errors.push(error);
        }
    }

    fn note(&mut self, path: &str, reason: impl Into<String>) {
        let note = Unsupported { path: path.to_owned(), reason: reason.into() };
        if self.notes.len() < MAX_NOTES && !self.notes.contains(&note) {
            self.notes.push(note);
        }
    }

    /// Takes from the allowance of interpolated text; false when it is used up.
    fn spend(&mut self, bytes: usize) -> bool {
        let left = self.text_left.checked_sub(bytes);
        self.text_left = left.unwrap_or(0);
        left.is_some()
    }

    /// Takes from the allowance of what the texts expand to, before it is made; reported and false when it is used up.
    fn expand(&mut self, path: &str, bytes: usize) -> bool {
        let left = self.expansion_left.checked_sub(bytes);
        if left.is_none() && self.expansion_left > 0 {
            let message = format!("the files expand to more than {} MiB here", MAX_EXPANDED >> 20);
            self.broken(path, Some("yaml.bomb"), message, "publish fewer ports, or have fewer services read or extend the same large file");
        }
        self.expansion_left = left.unwrap_or(0);
        left.is_some()
    }
}

/// `parent.key`, without the dot at the top.
fn at(parent: &str, key: &str) -> String {
    if parent.is_empty() { key.to_owned() } else { format!("{parent}.{key}") }
}

/// A loaded stack, and what the gate wants to know of its texts beyond what they mean.
#[derive(Debug, Clone, PartialEq)]
pub struct Loaded {
    /// The stack.
    pub spec: StackSpec,
    /// Variables the files refer to, declared or not -> path of the first place.
    pub references: BTreeMap<String, String>,
    /// Environment entries (service, key) whose value came from an environment file or a declared variable -> the part of the value that
    /// stands in the text of the compose file all the same.
    pub env_from_files: BTreeMap<(String, String), String>,
    /// Paths of keys that compose has by now and the version the loader is measured against (2.26) has not.
    pub newer: Vec<String>,
}

/// Loads a stack. All errors found are returned together.
pub fn load(input: &LoadInput<'_>) -> Result<StackSpec, LoadErrors> {
    load_all(input).map(|l| l.spec)
}

/// As [`load`], with what the texts tell besides.
pub fn load_all(input: &LoadInput<'_>) -> Result<Loaded, LoadErrors> {
    run(input, true)
}

/// As `docker compose config` reads a file: all that makes a project consistent, but not whether it could be deployed under this name and
/// beside itself (another `name:`, a host port or container name used twice).
pub fn read(input: &LoadInput<'_>) -> Result<Loaded, LoadErrors> {
    run(input, false)
}

fn run(input: &LoadInput<'_>, deployable: bool) -> Result<Loaded, LoadErrors> {
    let mut report = Report::new(!deployable);
    // Compose declares the project's name by itself.
    let mut variables = input.variables.clone();
    variables.entry(PROJECT_NAME.to_owned()).or_insert_with(|| input.name.to_string());
    let sources = input.sources.clone();
    let input = &LoadInput { name: input.name.clone(), sources, variables: &variables, ..*input };
    let spec = build(input, &mut report);
    if deployable {
        for error in std::mem::take(&mut report.later) {
            report.push(error);
        }
    }
    report.references.remove(PROJECT_NAME);
    match spec {
        Some(mut spec) if report.errors.is_empty() => {
            spec.unsupported = report.notes;
            Ok(Loaded { spec, references: report.references, env_from_files: report.env_from_files, newer: report.newer })
        }
        _ => {
            let texts: Vec<(&str, &str)> = input.sources.iter().map(|s| (s.path.as_str(), s.text.as_str())).collect();
            for error in &mut report.errors {
                locate::fill(error, &texts);
            }
            Err(LoadErrors(report.errors))
        }
    }
}

fn build(input: &LoadInput<'_>, report: &mut Report) -> Option<StackSpec> {
    let tree = sources::assemble(input, report);
    // A tree that could not be put together would only yield follow-up errors.
    if !report.errors.is_empty() {
        return None;
    }
    let spec = service::stack(tree?, input, report);
    if report.errors.is_empty() {
        check::stack(&spec, report);
    }
    if report.errors.is_empty() {
        check::deployable(&spec, report);
        report.later.append(&mut report.errors);
        support::notes(&spec, report);
    }
    Some(spec)
}

/// What an environment file says; its references mean the declared variables, then what the file said before.
pub fn dotenv(text: &str, file: &str, variables: &BTreeMap<String, String>) -> Result<BTreeMap<String, String>, LoadErrors> {
    dotenv::parse(text, variables, true).map_err(|bad| {
        LoadErrors(vec![LoadError {
            path: None,
            file: file.into(),
            line: Some(bad.line),
            message: bad.message,
            hint: "write KEY=value, one per line".into(),
            rule: None,
        }])
    })
}
