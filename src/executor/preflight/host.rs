//! Room on the engine's host: memory, CPU, disk. The host is read only where it is this one.

use super::{Facts, Report};
use crate::model::plan::Strategy;
use crate::model::preflight::Passed;

/// Less free space than this where the engine keeps its data is a failure about to happen.
const DISK: u64 = 512 << 20;
/// Less than this is worth a word.
const DISK_LOW: u64 = 2 << 30;

pub(super) fn all(facts: &Facts<'_>, report: &mut Report) {
    memory(facts, report);
    cpu(facts, report);
    disk(facts, report);
    annotations(facts, report);
}

/// What engines before API 1.43 do not know: worth a word only where a service has some.
fn annotations(facts: &Facts<'_>, report: &mut Report) {
    let api = facts.about.api_version.split_once('.').and_then(|(a, b)| Some((a.parse::<u32>().ok()?, b.parse::<u32>().ok()?)));
    if api.is_none_or(|api| api >= (1, 43)) {
        return;
    }
    for (change, _) in facts.renewed().filter(|(_, s)| !s.annotations.is_empty()) {
        let message = format!(
            "service {}: annotations are left out, they need an engine with API 1.43; this one has {}",
            change.service, facts.about.api_version
        );
        report.add("engine.annotations", Passed::Warn, message);
    }
}

fn memory(facts: &Facts<'_>, report: &mut Report) {
    const ID: &str = "host.memory";
    let total = facts.about.memory_bytes;
    let too_much: Vec<String> = facts
        .renewed()
        .filter_map(|(c, s)| {
            let asked = s.resources.memory_reservation.or(s.resources.memory).filter(|m| total > 0 && *m > total)?;
            Some(format!("service {} asks for {}, the host has {}", c.service, mib(asked), mib(total)))
        })
        .collect();
    if !too_much.is_empty() {
        return report.all(ID, Passed::No, too_much, "");
    }
    // Beside what runs: a canary and the service it proves are up at once.
    let reserved = facts.renewed().map(|(c, s)| {
        let beside = match c.strategy {
            Strategy::Handover => 1,
            Strategy::Front | Strategy::Canary | Strategy::BlueGreen | Strategy::Alias => u64::from(s.replicas.max(1)),
            Strategy::Start | Strategy::Hold | Strategy::Recreate | Strategy::RunOnce | Strategy::Follow | Strategy::InPlace => 0,
        };
        let copies = u64::from(s.replicas.max(1)) + if c.action == crate::model::plan::Action::Update { beside } else { 0 };
        s.resources.memory_reservation.unwrap_or(0) * copies
    });
    let reserved: u64 = reserved.sum();
    match available(facts.local) {
        Some(free) if reserved > free => {
            report.add(ID, Passed::No, format!("the services reserve {}, {} are available", mib(reserved), mib(free)))
        }
        Some(free) => report.add(ID, Passed::Yes, format!("{} reserved, {} available", mib(reserved), mib(free))),
        None => report.add(
            ID,
            Passed::Unknown,
            format!("the free memory of the engine's host cannot be read from here; it has {} in all", mib(total)),
        ),
    }
}

/// `MemAvailable` of this host.
fn available(local: bool) -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok().filter(|_| local)?;
    let line = text.lines().find_map(|l| l.strip_prefix("MemAvailable:"))?;
    line.trim().trim_end_matches("kB").trim().parse::<u64>().ok().map(|kib| kib << 10)
}

fn cpu(facts: &Facts<'_>, report: &mut Report) {
    let cpus = facts.about.cpus;
    let problems = facts.renewed().filter_map(|(c, s)| {
        let asked = s.resources.nano_cpus.filter(|n| cpus > 0 && *n > cpus * 1_000_000_000)?;
        Some(format!("service {} asks for {:.2} CPUs, the host has {cpus}", c.service, asked as f64 / 1e9))
    });
    report.all("host.cpu", Passed::No, problems.collect(), format!("{cpus} CPUs"));
}

fn disk(facts: &Facts<'_>, report: &mut Report) {
    const ID: &str = "host.disk";
    let stat = Some(&facts.about.root_dir).filter(|d| facts.local && !d.is_empty()).and_then(|d| rustix::fs::statvfs(d.as_str()).ok());
    match stat.map(|s| s.f_bavail * s.f_frsize) {
        Some(free) if free < DISK => {
            report.add(ID, Passed::No, format!("{} free where the engine keeps its data; `prune` makes room", mib(free)))
        }
        Some(free) if free < DISK_LOW => report.add(ID, Passed::Warn, format!("{} free where the engine keeps its data", mib(free))),
        Some(free) => report.add(ID, Passed::Yes, format!("{} free where the engine keeps its data", mib(free))),
        None => report.add(ID, Passed::Unknown, "the disk of the engine's host cannot be read from here"),
    }
}

fn mib(bytes: u64) -> String {
    format!("{} MiB", bytes >> 20)
}
