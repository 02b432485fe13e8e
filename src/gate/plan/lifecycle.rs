//! How a service runs and is watched: user, health, logs, hooks, and Compose features that reach past containers.

use super::{At, Judge};
use crate::model::spec::{DependencyCondition, Logging};
use serde_json::Value;

/// Log drivers that keep the output on this host.
const LOCAL_DRIVERS: &[&str] = &["", "json-file", "local", "journald", "default"];

/// Whether a `user` is root, by name or by number in any spelling.
pub fn is_root(user: &str) -> bool {
    let name = user.trim().split(':').next().unwrap_or_default();
    name.eq_ignore_ascii_case("root") || name.parse::<u64>() == Ok(0)
}

pub(super) fn service(j: &mut Judge<'_>, at: At<'_>) {
    let s = at.service;
    if s.user.as_deref().is_some_and(is_root) {
        j.at("user.root", at, "user", "root", "the service runs as root; most images can do without");
    }
    health(j, at);
    if let Some(logging) = &s.logging {
        logs(j, at, logging);
    }
    for hook in ["post_start", "pre_stop"] {
        for (i, entry) in s.other.get(hook).and_then(Value::as_array).into_iter().flatten().enumerate() {
            let privileged = entry
                .get("privileged")
                .is_some_and(|v| v.as_bool() == Some(true) || v.as_str().is_some_and(|t| t.eq_ignore_ascii_case("true")));
            if privileged {
                j.at("hook.privileged", at, &format!("{hook}[{i}]"), "privileged", "the hook would run with all rights on the host");
            }
            let user = entry.get("user").map(|u| u.as_str().map_or_else(|| u.to_string(), str::to_owned));
            if user.as_deref().is_some_and(is_root) {
                j.at("hook.root", at, &format!("{hook}[{i}]"), "root", "the hook runs as root");
            }
        }
    }
    if s.other.get("provider").is_some_and(|p| !p.is_null()) {
        j.at("compose.provider", at, "provider", "provider", "a provider is a program that would run on the host");
    }
    if s.use_api_socket {
        j.at("compose.api_socket", at, "use_api_socket", "true", "this hands in the engine's socket and the registry credentials");
    }
}

fn health(j: &mut Judge<'_>, at: At<'_>) {
    let disabled = at.service.healthcheck.as_ref().is_some_and(|h| h.test.first().is_some_and(|t| t.eq_ignore_ascii_case("NONE")));
    if disabled {
        j.at("health.disabled", at, "healthcheck", "NONE", "without a health check nobody notices when the service stops working");
    }
    let own = at.service.healthcheck.as_ref().is_some_and(|h| h.test.len() > 1);
    let image = j.facts.image_healthchecks.contains(at.name);
    let runs_once = |d: &crate::model::spec::ServiceSpec| {
        d.depends_on.iter().any(|(n, d)| n.as_str() == at.name && d.condition == DependencyCondition::ServiceCompletedSuccessfully)
    };
    if (disabled || !(own || image)) && !j.spec.services.values().any(runs_once) {
        j.at(
            "health.missing",
            at,
            "healthcheck",
            "",
            "neither the file nor the image has a health check; a broken release would count as good",
        );
    }
}

fn logs(j: &mut Judge<'_>, at: At<'_>, logging: &Logging) {
    let driver = logging.driver.trim().to_ascii_lowercase();
    let local_syslog = driver == "syslog" && logging.options.get("syslog-address").is_none_or(|a| a.starts_with("unix"));
    if driver == "none" {
        j.at("log.off", at, "logging.driver", "none", "without logs there is no evidence when something fails");
    } else if !LOCAL_DRIVERS.contains(&driver.as_str()) && !local_syslog {
        j.at("log.remote", at, "logging.driver", &driver, format!("the driver {driver} ships what the service prints to another place"));
    }
}
