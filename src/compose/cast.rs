//! Types of texts by their place: `privileged: "yes"` is a boolean, `retries: "3"` a number. The places are those of Compose; a text there that
//! has no such value, an unset variable among them, is an error.

use super::value::Value;

enum Kind {
    Int,
    Float,
    Bool,
}

fn kind(place: &[&str]) -> Option<Kind> {
    Some(match place {
        ["services", _, rest @ ..] => match rest {
            ["configs" | "secrets", "[]", "mode"] | ["ports", "[]", "target"] => Kind::Int,
            [
                "cpu_count" | "cpu_period" | "cpu_quota" | "cpu_rt_period" | "cpu_rt_runtime" | "cpu_shares" | "oom_score_adj"
                | "pids_limit" | "scale",
            ] => Kind::Int,
            ["cpu_percent" | "cpus"] => Kind::Float,
            ["init" | "oom_kill_disable" | "privileged" | "read_only" | "stdin_open" | "tty"] => Kind::Bool,
            ["deploy", "replicas"] | ["deploy", "placement", "max_replicas_per_node"] | ["deploy", "restart_policy", "max_attempts"] => {
                Kind::Int
            }
            ["deploy", "update_config" | "rollback_config", "parallelism"] => Kind::Int,
            ["deploy", "update_config" | "rollback_config", "max_failure_ratio"] => Kind::Float,
            ["healthcheck", "retries"] => Kind::Int,
            ["healthcheck", "disable"] => Kind::Bool,
            ["ulimits", name] if *name != "[]" => Kind::Int,
            ["ulimits", _, "hard" | "soft"] => Kind::Int,
            ["volumes", "[]", "read_only"] | ["volumes", "[]", "volume", "nocopy"] => Kind::Bool,
            _ => return None,
        },
        ["networks", _, "external" | "internal" | "attachable" | "enable_ipv4" | "enable_ipv6"]
        | ["volumes" | "secrets" | "configs", _, "external"] => Kind::Bool,
        _ => return None,
    })
}

/// The value a text has at a place; `segments` with `[]` for an entry of a list.
///
/// # Errors
/// Why it has none.
pub(super) fn text(text: String, segments: &[String]) -> Result<Value, String> {
    if segments.len() > 6 {
        return Ok(Value::String(text));
    }
    let place: Vec<&str> = segments.iter().map(String::as_str).collect();
    let empty = if text.is_empty() { "; is a variable unset?" } else { "" };
    match kind(&place) {
        None => Ok(Value::String(text)),
        Some(Kind::Int) => text.parse::<i64>().map(|i| Value::Int(i.into())).map_err(|_| format!("{text:?} is no whole number{empty}")),
        Some(Kind::Float) => text.parse::<f64>().map(Value::Float).map_err(|_| format!("{text:?} is no number{empty}")),
        Some(Kind::Bool) => boolean(&text).map(Value::Bool).ok_or_else(|| format!("{text:?} is no boolean; write true or false{empty}")),
    }
}

/// A boolean in any of YAML's old spellings.
pub(super) fn boolean(text: &str) -> Option<bool> {
    match text.to_ascii_lowercase().as_str() {
        "true" | "y" | "yes" | "on" => Some(true),
        "false" | "n" | "no" | "off" => Some(false),
        _ => None,
    }
}
