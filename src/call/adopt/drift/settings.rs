//! Settings of the host and of the process that a container was made with, beside those its file says. Both sides are text under compose's names.

use super::{Found, Pair};
use crate::engine::made;
use crate::planner::front::fronted;
use std::collections::{BTreeMap, BTreeSet};

/// What an image or the engine's configuration decides where the file says nothing: only what the file says is compared.
const LEFT: [&str; 8] = [
    "cgroup",
    "healthcheck.interval_ms",
    "healthcheck.retries",
    "healthcheck.start_period_ms",
    "healthcheck.timeout_ms",
    "mem_swappiness",
    "runtime",
    "stop_signal",
];

pub(super) fn compare(p: &Pair<'_>, found: &mut Found) {
    let mut wanted = made::settings(p.wanted);
    let mut runs = p.made.settings.clone();
    // Compose cuts the part of a second that we round up.
    if let Some(ms) = p.spec.stop_grace_period_ms.filter(|ms| ms % 1000 != 0)
        && runs.get("stop_grace_period") == Some(&(ms / 1000).to_string())
    {
        wanted.insert("stop_grace_period".into(), (ms / 1000).to_string());
    }
    // What an engine makes of any limit where the kernel does not count swap.
    if runs.get("memswap_limit").is_some_and(|swap| swap == "-1") {
        runs.remove("memswap_limit");
        wanted.remove("memswap_limit");
    }
    logging(p, (&mut wanted, &mut runs), found);
    // A front has the fixed addresses of its service.
    let behind = fronted(p.spec);
    let left = |key: &str| LEFT.contains(&key) && !wanted.contains_key(key);
    let front_has = |key: &str| behind && key.starts_with("networks.");
    let keys: BTreeSet<&String> = wanted.keys().chain(runs.keys()).collect();
    let show = |v: Option<&String>| v.map_or("unset", String::as_str).to_owned();
    for key in keys.into_iter().filter(|k| !left(k)).filter(|k| !front_has(k)).filter(|k| wanted.get(*k) != runs.get(*k)) {
        found.push(key, show(wanted.get(key)), show(runs.get(key)), true);
    }
}

/// The driver, by default the engine's, and the options that the file names: an engine adds those of its configuration. Options carry tokens.
fn logging(p: &Pair<'_>, (wanted, runs): (&mut BTreeMap<String, String>, &mut BTreeMap<String, String>), found: &mut Found) {
    let file = p.spec.logging.clone().unwrap_or_default();
    let driver = Some(file.driver.as_str()).filter(|d| !d.is_empty()).unwrap_or(p.log_driver);
    let has = runs.remove("logging.driver").unwrap_or_default();
    if !driver.is_empty() && !has.is_empty() {
        wanted.insert("logging.driver".into(), driver.to_owned());
        runs.insert("logging.driver".into(), has);
    }
    let prefix = "logging.options.";
    for (key, value) in &file.options {
        let key = format!("{prefix}{key}");
        let has = runs.get(&key);
        if has != Some(value) {
            let show = |v: Option<&String>| v.map_or_else(|| "unset".to_owned(), |v| format!("set ({})", (p.hash)(v)));
            found.push(&key, show(Some(value)), show(has), true);
        }
    }
    runs.retain(|key, _| !key.starts_with(prefix));
}
