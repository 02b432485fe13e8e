//! Where a stack's text comes from: the texts of a call, or the files an operator registered; read, interpolated and typed. Deliberately absent: what would be
//! done about it.

use super::Desired;
use crate::call::data_plan::bring::Brought;
use crate::call::error::ErrorCode;
use crate::call::{Call, CallError, compose_files, git, plan_facts};
use crate::compose::{self, LoadInput};
use crate::model::config::StackSettingsEntry;
use crate::model::ids::{ImageRef, ServiceName, StackName};
use crate::redact;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::path::Path;

/// What a caller wants deployed.
#[derive(Debug, Clone)]
pub struct Source {
    /// Stack.
    pub stack: StackName,
    /// Compose text.
    pub compose: Option<String>,
    /// Relative path -> text.
    pub files: Option<BTreeMap<String, String>>,
    /// Variables of the call.
    pub variables: BTreeMap<String, String>,
    /// Images instead of the file's.
    pub images: BTreeMap<ServiceName, ImageRef>,
    /// Pull tags again.
    pub refresh: bool,
}

/// Arguments that say what is planned, and so are a stored plan's own.
pub const CONTENT: [&str; 5] = ["compose", "files", "variables", "images", "refresh"];

impl Source {
    /// The stack as it is registered, or as it runs.
    pub fn registered(stack: &StackName) -> Self {
        Self { stack: stack.clone(), compose: None, files: None, variables: BTreeMap::new(), images: BTreeMap::new(), refresh: false }
    }

    /// Its fields as the arguments of a call; what says nothing is left out.
    pub(super) fn given(&self) -> Map<String, Value> {
        let mut all = Map::new();
        self.compose.iter().for_each(|text| drop(all.insert("compose".into(), json!(text))));
        self.files.iter().for_each(|files| drop(all.insert("files".into(), json!(files))));
        if !self.variables.is_empty() {
            all.insert("variables".into(), json!(self.variables));
        }
        if !self.images.is_empty() {
            all.insert("images".into(), json!(self.images));
        }
        if self.refresh {
            all.insert("refresh".into(), json!(true));
        }
        all
    }
}

/// Loads a source with the stack registered as given.
pub(in crate::call) async fn load_from(
    call: &Call,
    source: &Source,
    entry: Option<StackSettingsEntry>,
) -> Result<Option<Desired>, CallError> {
    let (mut config, quotas, source) = (call.house.config.clone(), call.rulebook.policy.quotas.clone(), source.clone());
    let (own, declaring) = (call.own.clone(), call.own.clone());
    config.settings.stacks.extend(entry.map(|e| (source.stack.clone(), e)));
    // Reads files and parses texts of up to a megabyte: off the threads that serve other calls.
    let reading = move || {
        let Some(bundle) = compose_files::bundle(&config, &source)? else { return Ok(None) };
        redact::declared::files(&source.stack, &bundle.of_files, None);
        declaring.variables(&bundle.variables);
        let input = LoadInput {
            name: source.stack.clone(),
            project_dir: &bundle.project_dir,
            sources: bundle.sources.clone(),
            variables: &bundle.variables,
            profiles: &bundle.profiles,
            files: &bundle.side,
            quotas: &quotas,
        };
        let mut loaded = compose::load_all(&input).map_err(|e| compose_files::load_error(&e))?;
        loaded.spec.declared = redact::declared::used(&bundle.variables, &loaded.spec);
        if redact::declared::too_many(&loaded.spec) {
            let (most, bytes) = redact::declared::MOST_OF_ONE;
            let message = format!(
                "stack {} declares more secret values than can be kept out of what leaves: at most {most}, {bytes} bytes",
                source.stack
            );
            return Err(CallError::new(
                ErrorCode::InvalidArgument,
                message,
                "mount long ones as files with `secrets: file:` or from a volume",
            ));
        }
        // Texts and variables of a call are the caller's word, not the operator's.
        if !bundle.given() && source.variables.is_empty() {
            redact::declared::files(&source.stack, [], Some(&loaded.spec));
        }
        let texts = plan_facts::Texts::of(&loaded, &bundle);
        Ok::<_, CallError>(Some((loaded.spec, texts, bundle.project_dir)))
    };
    let loaded = tokio::task::spawn_blocking(move || own.within(reading)).await.map_err(|e| interrupted(&e))??;
    let Some((spec, facts, dir)) = loaded else { return Ok(None) };
    let project_dir = Some(dir).filter(|d| !d.is_empty());
    let git = match project_dir.as_deref().and_then(|d| compose_files::visible(&call.house.config, Path::new(d))) {
        Some(seen) => git::state(&seen).await,
        None => None,
    };
    Ok(Some(Desired {
        spec,
        images: BTreeMap::new(),
        unresolved: vec![],
        content_of: None,
        project_dir,
        git,
        facts,
        brought: Brought::default(),
    }))
}

pub(super) fn interrupted(e: &tokio::task::JoinError) -> CallError {
    CallError::new(ErrorCode::Internal, "the files could not be loaded", "report this to the operator").detail(e.to_string())
}
