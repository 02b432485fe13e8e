//! What gives an agent work without anybody asking: a time, an event of this host, a signed request. Written by the operator in dockwarden.toml.

use super::ids::{AgentName, StackName};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::path::PathBuf;

/// One `[[triggers]]` entry. Closed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Trigger {
    /// Name; the path of a webhook.
    pub name: String,
    /// What sets it off.
    pub on: On,
    /// Who does the work.
    pub agent: AgentName,
    /// A skill, or:
    #[serde(default)]
    pub skill: Option<String>,
    /// what to do, in words.
    #[serde(default)]
    pub prompt: Option<String>,
    /// Arguments or facts; texts may hold `{{event.stack}}`, `{{body.path}}`, `{{alert.labels.x}}`.
    #[serde(default)]
    pub input: Map<String, Value>,
    /// The stack the task is about, likewise; an event's own by default.
    #[serde(default)]
    pub stack: Option<String>,
    /// Further events about the same service are dropped for so long; 300 s by default.
    #[serde(default)]
    pub cooldown_s: Option<u32>,
}

/// What sets a trigger off: one of `cron`, `event`, `webhook`. Closed.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct On {
    /// Five fields, in the supervisor's time zone.
    pub cron: Option<String>,
    /// An event of this host.
    pub event: Option<EventKind>,
    /// Of stacks like this (`web-*`); of all by default.
    pub stack: Option<String>,
    /// A signed request to `/hooks/NAME`, in this form.
    pub webhook: Option<HookKind>,
    /// File with the secret it is signed with, 16 bytes or more.
    pub secret_file: Option<PathBuf>,
    /// Kinds of request that count (`push`); all by default.
    pub events: Vec<String>,
    /// References of a repository that count (`refs/heads/main`); all by default.
    pub refs: Vec<String>,
}

/// An event of this host that can set off a trigger.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EventKind {
    /// A container's health check fails.
    ContainerUnhealthy,
    /// A container ended by itself.
    ContainerDied,
    /// A service is not well: its incident was opened.
    IncidentOpened,
    /// Healing of a service was given up.
    IncidentQuarantined,
    /// A release was undone.
    OperationRolledBack,
    /// An operation failed or needs a person.
    OperationFailed,
    /// A backup or a drill failed.
    BackupFailed,
    /// What runs is not what was deployed.
    DriftFound,
}

impl EventKind {
    /// The word of the configuration.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ContainerUnhealthy => "container_unhealthy",
            Self::ContainerDied => "container_died",
            Self::IncidentOpened => "incident_opened",
            Self::IncidentQuarantined => "incident_quarantined",
            Self::OperationRolledBack => "operation_rolled_back",
            Self::OperationFailed => "operation_failed",
            Self::BackupFailed => "backup_failed",
            Self::DriftFound => "drift_found",
        }
    }
}

/// Form of a signed request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HookKind {
    /// `X-Hub-Signature-256: sha256=HMAC(body)`; each body is taken once.
    Github,
    /// `X-Gitlab-Token` is the secret itself; each body is taken once.
    Gitlab,
    /// `X-Dockwarden-Signature: sha256=HMAC(TIMESTAMP.body)` and `X-Dockwarden-Timestamp`, five minutes old at most; each is taken once.
    Generic,
    /// Alertmanager's webhook with the secret as `Authorization: Bearer`; one task per firing alert, told apart by fingerprint and start.
    Alertmanager,
}

/// Something that happened on this host.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Happened {
    /// Names it for ever: the same one sets a trigger off once.
    pub id: String,
    /// Kind.
    pub kind: EventKind,
    /// Stack.
    pub stack: Option<StackName>,
    /// Service or object, where there is one.
    pub service: Option<String>,
    /// Facts: ids and words of our own, never text of a container.
    pub facts: Map<String, Value>,
}

impl Trigger {
    /// Whether an event of this host is one of its.
    pub fn fits(&self, event: &Happened) -> bool {
        let stack = event.stack.as_ref().map(StackName::as_str).unwrap_or_default();
        let like = |pattern: &String| match pattern.strip_suffix('*') {
            Some(start) => stack.starts_with(start),
            None => pattern == stack,
        };
        self.on.event == Some(event.kind) && self.on.stack.as_ref().is_none_or(like)
    }

    /// What is wrong with it, in words; pure.
    ///
    /// # Errors
    /// The first thing found, and what to write.
    pub fn check(&self, cron: impl Fn(&str) -> bool) -> Result<(), (String, &'static str)> {
        let name = &self.name;
        let valid = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'_');
        if name.is_empty() || name.len() > 63 || !name.bytes().all(valid) {
            return Err((format!("trigger name {name:?} is not valid"), "lower-case letters, digits, '-' and '_', at most 63"));
        }
        let on = &self.on;
        if [on.cron.is_some(), on.event.is_some(), on.webhook.is_some()].into_iter().filter(|x| *x).count() != 1 {
            return Err((
                format!("trigger {name} has not exactly one of on.cron, on.event, on.webhook"),
                "e.g. on = {cron = \"0 6 * * 1\"}",
            ));
        }
        if self.skill.is_some() == self.prompt.is_some() {
            return Err((format!("trigger {name} has not exactly one of skill and prompt"), "name a skill of prompts/, or say what to do"));
        }
        if let Some(schedule) = on.cron.as_deref().filter(|s| !cron(s)) {
            return Err((
                format!("trigger {name}: {schedule:?} is not a cron line of five fields"),
                "write e.g. \"0 6 * * 1\" (Mondays at 06:00)",
            ));
        }
        if on.stack.is_some() && on.event.is_none() {
            return Err((format!("trigger {name}: on.stack is for events"), "set `stack` beside `on` to say what the task is about"));
        }
        if on.webhook.is_some() != on.secret_file.is_some() {
            return Err((
                format!("trigger {name}: a webhook and its secret_file go together"),
                "set on.secret_file to a file only the supervisor reads",
            ));
        }
        if on.webhook.is_none() && !(on.events.is_empty() && on.refs.is_empty()) {
            return Err((format!("trigger {name}: events and refs are for webhooks"), "leave them out"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trigger(text: &str) -> Result<Trigger, String> {
        #[derive(Deserialize)]
        struct File {
            triggers: Vec<Trigger>,
        }
        let file: File =
            toml::from_str(&format!("[[triggers]]\nname = \"t\"\nagent = \"a\"\n{text}")).map_err(|e| e.message().to_owned())?;
        let trigger = file.triggers.into_iter().next().expect("one");
        trigger.check(|s| s.split(' ').count() == 5).map_err(|(message, _)| message)?;
        Ok(trigger)
    }

    #[test]
    fn a_trigger_has_one_cause_and_one_kind_of_work() {
        assert!(trigger("skill = \"s\"\non = {cron = \"0 6 * * 1\"}").is_ok());
        assert!(trigger("prompt = \"look\"\non = {event = \"incident_opened\", stack = \"web-*\"}").is_ok());
        assert!(trigger("skill = \"s\"\non = {webhook = \"github\", secret_file = \"/k\", events = [\"push\"]}").is_ok());
        for (text, expected) in [
            ("skill = \"s\"\non = {}", "exactly one of on.cron"),
            ("skill = \"s\"\non = {cron = \"0 6 * * 1\", event = \"incident_opened\"}", "exactly one of on.cron"),
            ("on = {cron = \"0 6 * * 1\"}", "exactly one of skill"),
            ("skill = \"s\"\nprompt = \"p\"\non = {cron = \"0 6 * * 1\"}", "exactly one of skill"),
            ("skill = \"s\"\non = {cron = \"daily\"}", "not a cron line"),
            ("skill = \"s\"\non = {cron = \"0 6 * * 1\", stack = \"x\"}", "on.stack is for events"),
            ("skill = \"s\"\non = {webhook = \"github\"}", "secret_file go together"),
            ("skill = \"s\"\non = {event = \"incident_opened\", refs = [\"x\"]}", "for webhooks"),
            ("skill = \"s\"\non = {event = \"everything\"}", "unknown variant"),
            ("skill = \"s\"\nevery = 1\non = {cron = \"0 6 * * 1\"}", "unknown field"),
        ] {
            let refused = trigger(text).expect_err(text);
            assert!(refused.contains(expected), "{text}: {refused}");
        }
    }

    #[test]
    fn an_event_fits_by_kind_and_stack() {
        let event =
            |kind, stack: &str| Happened { id: "x".into(), kind, stack: StackName::new(stack).ok(), service: None, facts: Map::new() };
        let t = trigger("skill = \"s\"\non = {event = \"container_unhealthy\", stack = \"web-*\"}").expect("valid");
        assert!(t.fits(&event(EventKind::ContainerUnhealthy, "web-shop")));
        assert!(!t.fits(&event(EventKind::ContainerUnhealthy, "billing")) && !t.fits(&event(EventKind::ContainerDied, "web-shop")));
    }
}
