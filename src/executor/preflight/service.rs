//! What each service that gets a new container needs: its image, its secrets, one writer, probes that can be made; and what is only worth a word.

use super::super::render;
use super::{Facts, Report};
use crate::engine::EngineError;
use crate::gate::plan::probes::forbidden;
use crate::model::ids::ServiceName;
use crate::model::plan::{Action, Strategy};
use crate::model::preflight::Passed;
use crate::model::spec::{ProbeCheck, ServiceSpec};
use crate::planner;
use std::net::IpAddr;

pub(super) fn images(facts: &Facts<'_>, report: &mut Report) {
    let (mut gone, mut pulled, mut foreign) = (vec![], vec![], vec![]);
    for (service, identity) in &facts.plan.images {
        match (&identity.id, facts.images.get(service)) {
            (None, _) => match facts.registry.get(service) {
                Some(Ok(())) => {}
                Some(Err(e)) if refused(e) => gone.push(format!("image {} of service {service} cannot be pulled: {e}", identity.reference)),
                Some(Err(e)) => pulled.push(format!(
                    "image {} of service {service} is pulled first; whether its registry gives it shows only then: {e}",
                    identity.reference
                )),
                None => pulled.push(format!(
                    "image {} of service {service} is pulled first; whether its registry gives it shows only then",
                    identity.reference
                )),
            },
            (Some(id), None) => {
                gone.push(format!("image {id} of service {service} ({}) is not on the engine any more", identity.reference))
            }
            (Some(_), Some(image)) => {
                let wanted = facts.plan.desired.services.get(service).and_then(|s| s.platform.as_deref()).and_then(|p| p.split('/').nth(1));
                let host = facts.about.arch.as_str();
                if !image.arch.is_empty() && !host.is_empty() && wanted.unwrap_or(&normal(host)) != normal(&image.arch) {
                    foreign.push(format!(
                        "image {} of service {service} is for {}, the engine's host is {host}; it runs only where emulation is set up",
                        identity.reference, image.arch
                    ));
                }
            }
        }
    }
    if gone.is_empty() && !pulled.is_empty() {
        report.all("image.present", Passed::Unknown, pulled, "");
    } else {
        let good =
            if facts.registry.is_empty() { "all images are on the engine" } else { "all images are on the engine or in their registry" };
        report.all("image.present", Passed::No, gone, good);
    }
    report.all("image.arch", Passed::Warn, foreign, format!("images are for {}", facts.about.arch));
}

/// Whether a registry said no, rather than nothing: a pull would be refused, too.
fn refused(e: &EngineError) -> bool {
    let text = e.to_string().to_lowercase();
    matches!(e, EngineError::Unauthorized { .. })
        || ["manifest unknown", "name unknown", "no such manifest"].iter().any(|w| text.contains(w))
}

/// The name images use for an architecture.
fn normal(arch: &str) -> String {
    match arch {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
    .to_owned()
}

/// Whether old and new of a service run at once.
fn side_by_side(strategy: Strategy) -> bool {
    matches!(strategy, Strategy::Handover | Strategy::Front | Strategy::Canary | Strategy::BlueGreen | Strategy::Alias)
}

pub(super) fn all(facts: &Facts<'_>, report: &mut Report) {
    let (mut secrets, mut writers, mut probes, mut unknown) = (vec![], vec![], vec![], vec![]);
    let (mut pid1, mut pid1_unknown, mut health, mut limits) = (vec![], vec![], vec![], vec![]);
    for (change, spec) in facts.renewed() {
        let service = &change.service;
        let once = planner::one_shot(&facts.plan.desired, service);
        // What an image declares as a volume is carried over to the next container, and what the one before has without a name.
        let mut carried: Vec<&str> = facts.images.get(service).iter().flat_map(|i| &i.volumes).map(String::as_str).collect();
        let old = planner::serving(facts.observed, service).into_iter().flat_map(|c| &c.mounts);
        carried.extend(old.filter(|m| render::carried_over(spec, m, &facts.declared).is_some()).map(|m| m.target.as_str()));
        if let Err(why) = render::deliverable(&facts.plan.desired, service, &carried) {
            secrets.push(why);
        }
        if spec.single_writer() && spec.replicas > 1 {
            writers.push(format!(
                "service {service} writes data and asks for {} copies; set x-dockwarden.concurrent: true if that is safe",
                spec.replicas
            ));
        }
        if spec.single_writer() && change.action == Action::Update && side_by_side(change.strategy) {
            writers.push(format!("service {service} writes data, so no second copy may prove it"));
        }
        checks(facts, service, spec, once, &mut probes, &mut unknown);
        match shell_first(spec) {
            Some(true) => pid1.push(format!(
                "service {service}: its first process is a shell, which passes no stop signal on; begin the command with `exec`, write it as a list, or set init: true"
            )),
            Some(false) => {}
            None => pid1_unknown.push(format!("service {service}: its command is the image's")),
        }
        let own = spec.healthcheck.as_ref().and_then(|h| h.test.first()).map(String::as_str);
        let checked = match own {
            Some("NONE") => false,
            Some(_) => true,
            None => image_checks(facts, service),
        };
        if !once && !checked && spec.settings.probes.is_empty() {
            health.push(format!("service {service} has no health check and no probe: running for a second counts as well"));
        }
        if spec.resources.memory.is_none() || spec.resources.nano_cpus.is_none() && spec.resources.cpu_quota.is_none() {
            limits.push(format!("service {service} has no limit of memory or CPU"));
        }
    }
    report.all("secret.deliverable", Passed::No, secrets, "configs and secrets can be delivered");
    report.all("writer.single", Passed::No, writers, "no service that writes data gets a second copy");
    if probes.is_empty() && !unknown.is_empty() {
        report.all("probe.possible", Passed::Unknown, unknown, "");
    } else {
        report.all("probe.possible", Passed::No, probes, "probes can be made");
    }
    if pid1.is_empty() && !pid1_unknown.is_empty() {
        report.add("pid1.signals", Passed::Unknown, pid1_unknown.join("; "));
    } else {
        report.all("pid1.signals", Passed::Warn, pid1, "first processes get their signals");
    }
    report.all("health.defined", Passed::Warn, health, "every service is checked");
    report.all("limits.set", Passed::Warn, limits, "every service is limited");
}

fn image_checks(facts: &Facts<'_>, service: &ServiceName) -> bool {
    facts.images.get(service).is_some_and(|i| i.health_test.as_ref().is_some_and(|t| t.first().is_some_and(|w| w != "NONE")))
}

/// Probes, smoke tests and hooks that cannot work, and those nobody can tell of before the container runs.
fn checks(facts: &Facts<'_>, service: &ServiceName, spec: &ServiceSpec, once: bool, bad: &mut Vec<String>, unknown: &mut Vec<String>) {
    let settings = &spec.settings;
    if once && !(settings.probes.is_empty() && settings.smoke.is_empty() && settings.hooks.post.is_empty()) {
        bad.push(format!(
            "service {service} runs to its end: probes, smoke tests and post hooks have nothing to look at; its exit code is its test"
        ));
    }
    if !once && !settings.hooks.post.is_empty() && spec.replicas == 0 {
        bad.push(format!("service {service} has no container for its post hooks"));
    }
    for probe in settings.probes.iter().chain(&settings.smoke) {
        match &probe.check {
            ProbeCheck::Http(_) | ProbeCheck::Tcp(_) if !facts.local => unknown.push(format!(
                "service {service}: {} is made by a command in the container, since the supervisor cannot reach the engine's networks; whether its image \
                 has curl, wget or nc shows only then",
                probe.check
            )),
            ProbeCheck::Url(url) => {
                let host = url.parse::<http::Uri>().ok().and_then(|u| u.host().map(str::to_owned)).unwrap_or_default();
                let ip = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
                if ip.is_ok_and(forbidden) {
                    bad.push(format!("service {service}: {url} is a link-local or metadata address, which no probe asks"));
                }
            }
            ProbeCheck::Http(_) | ProbeCheck::Tcp(_) | ProbeCheck::Exec(_) => {}
        }
    }
}

/// Whether the first process is a shell that keeps signals for itself; `None` when the image decides.
fn shell_first(spec: &ServiceSpec) -> Option<bool> {
    if spec.init == Some(true) {
        return Some(false);
    }
    let words: Vec<&str> = match (&spec.entrypoint, &spec.command) {
        (Some(e), c) if !e.is_empty() => e.iter().chain(c.iter().flatten()).map(String::as_str).collect(),
        (Some(_), Some(c)) => c.iter().map(String::as_str).collect(),
        (Some(_), None) | (None, None) => return None,
        // The image's entrypoint, if it has one, runs before it.
        (None, Some(c)) => c.iter().map(String::as_str).collect(),
    };
    let shell = |w: &str| matches!(w.rsplit('/').next().unwrap_or(w), "sh" | "bash" | "ash" | "dash" | "zsh");
    Some(match words.as_slice() {
        // A shell with one plain command replaces itself by it.
        [first, flag, script, ..] if shell(first) && flag.starts_with('-') && flag.ends_with('c') => {
            let script = script.trim_start();
            !(script.starts_with("exec ") || !script.contains([';', '|', '&', '\n']) && !script.contains("$("))
        }
        _ => false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shell_that_stays_is_the_first_process_and_one_that_is_replaced_is_not() {
        let of = |words: &[&str]| ServiceSpec { command: Some(words.iter().map(|w| (*w).to_owned()).collect()), ..ServiceSpec::default() };
        assert_eq!(shell_first(&of(&["/bin/sh", "-c", "migrate && serve"])), Some(true));
        assert_eq!(shell_first(&of(&["sh", "-c", "exec serve; true"])), Some(false));
        assert_eq!(shell_first(&of(&["bash", "-c", "serve"])), Some(false));
        assert_eq!(shell_first(&of(&["serve"])), Some(false));
        assert_eq!(shell_first(&ServiceSpec::default()), None);
        assert_eq!(shell_first(&ServiceSpec { init: Some(true), ..of(&["sh", "-c", "a; b"]) }), Some(false));
    }

    #[test]
    fn architectures_have_one_name() {
        assert_eq!((normal("x86_64"), normal("aarch64"), normal("amd64")), ("amd64".into(), "arm64".into(), "amd64".into()));
    }
}
