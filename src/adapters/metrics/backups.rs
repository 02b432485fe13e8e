//! Numbers of backups: of each source when it was last saved and what that added, how long it took, whether it comes back, the repository's size, and how
//! work on data ended. Taken from the records when they are asked for, so that they outlive the process. Deliberately absent: more sources than a scraper
//! can be asked to keep; those beyond are counted.

use crate::executor::backup::{BackupHouse, DataJob};
use crate::store::Store;
use crate::store::backup::copies::CopyState;
use crate::store::backup::figures::Figures;
use crate::store::backup::{CheckRecord, DrillRecord};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use std::sync::Mutex;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

/// Sources, and stacks, with rows of their own: beyond that the cardinality would be a caller's to choose.
const MOST: usize = 200;
/// How long a size is good for: a large repository has many files to ask.
const SIZE_KEEPS: Duration = Duration::from_secs(300);

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct SourceLabels {
    stack: String,
    source: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StackLabels {
    stack: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct LevelLabels {
    level: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct EndLabels {
    verb: String,
    state: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CopyLabels {
    copy: String,
}

type Seconds = Gauge<f64, AtomicU64>;

/// The families.
#[derive(Debug)]
pub struct Backups {
    last_success: Family<SourceLabels, Gauge>,
    bytes: Family<SourceLabels, Gauge>,
    added: Family<SourceLabels, Gauge>,
    snapshots: Family<SourceLabels, Gauge>,
    duration: Family<StackLabels, Seconds>,
    drill_passed: Family<SourceLabels, Gauge>,
    drill_at: Family<SourceLabels, Gauge>,
    check_passed: Family<LevelLabels, Gauge>,
    check_at: Family<LevelLabels, Gauge>,
    ended: Family<EndLabels, Counter>,
    left_out: Gauge,
    repository: Gauge,
    copy_success: Family<CopyLabels, Gauge>,
    copy_failed: Family<CopyLabels, Gauge>,
    size: Mutex<Option<(Instant, u64)>>,
}

impl Backups {
    /// Registers every family.
    pub fn new(registry: &mut Registry) -> Self {
        let all = Self {
            last_success: Family::default(),
            bytes: Family::default(),
            added: Family::default(),
            snapshots: Family::default(),
            duration: Family::default(),
            drill_passed: Family::default(),
            drill_at: Family::default(),
            check_passed: Family::default(),
            check_at: Family::default(),
            ended: Family::default(),
            left_out: Gauge::default(),
            repository: Gauge::default(),
            copy_success: Family::default(),
            copy_failed: Family::default(),
            size: Mutex::default(),
        };
        let mut of_source = |name: &str, help: &str, family: &Family<SourceLabels, Gauge>| registry.register(name, help, family.clone());
        of_source("backup_last_success_timestamp_seconds", "When the newest whole snapshot of a source was taken", &all.last_success);
        of_source("backup_last_bytes", "Bytes of data in the newest snapshot of a source", &all.bytes);
        of_source("backup_last_added_bytes", "Bytes the newest snapshot of a source added to the repository", &all.added);
        of_source("backup_snapshots", "Snapshots of a source that are kept", &all.snapshots);
        of_source("backup_drill_passed", "Whether the last rehearsed restore of a source passed", &all.drill_passed);
        of_source("backup_drill_timestamp_seconds", "When the restore of a source was last rehearsed", &all.drill_at);
        registry.register("backup_last_duration_seconds", "Duration of the last whole backup of a stack", all.duration.clone());
        registry.register("backup_check_passed", "Whether the last look at the repository passed, by level", all.check_passed.clone());
        registry.register("backup_check_timestamp_seconds", "When the repository was last looked at, by level", all.check_at.clone());
        registry.register("backup_operations", "Operations on data by how they ended, from the journal", all.ended.clone());
        registry.register("backup_sources_left_out", "Sources without rows of their own", all.left_out.clone());
        let copied = "Begin of the last run that brought a copy up to date";
        registry.register("backup_copy_last_success_timestamp_seconds", copied, all.copy_success.clone());
        registry.register("backup_copy_failed", "Whether the last run for a copy failed", all.copy_failed.clone());
        registry.register("backup_repository_bytes", "Size of the backup repository on its disk", all.repository.clone());
        all
    }

    /// A row of those families that somebody is alerted by.
    #[cfg(test)]
    pub(super) fn sample(&self) {
        let source = SourceLabels { stack: "shop".into(), source: "data".into() };
        for family in [&self.last_success, &self.drill_passed] {
            family.get_or_create(&source).set(1);
        }
        self.check_passed.get_or_create(&LevelLabels { level: "2".into() }).set(1);
    }

    /// Takes everything over as it stands now.
    pub async fn refresh(&self, store: &Store, house: Option<&BackupHouse>) {
        match store.backup_figures(MOST, &DataJob::VERBS).await {
            Ok(figures) => self.figures(&figures),
            Err(e) => tracing::error!(error = %e, "the numbers of backups could not be read"),
        }
        match (store.last_drills(None, None).await, store.last_checks().await) {
            (Ok(drills), Ok(checks)) => self.proofs(&drills, &checks),
            (Err(e), _) | (_, Err(e)) => tracing::error!(error = %e, "the results of drills could not be read"),
        }
        if let Some(house) = house {
            match store.copies(house.copies.iter().map(|c| c.name.clone()).collect()).await {
                Ok(copies) => self.copies(&copies),
                Err(e) => tracing::error!(error = %e, "the state of copies could not be read"),
            }
        }
        let known = *self.size.lock().expect("no panic while held");
        if let Some(house) = house.filter(|_| known.is_none_or(|(at, _)| at.elapsed() > SIZE_KEEPS)) {
            let house = house.clone();
            match tokio::task::spawn_blocking(move || house.size()).await {
                Ok(Ok(bytes)) => {
                    // That of another host is not ours to measure.
                    let bytes = bytes.unwrap_or_default();
                    *self.size.lock().expect("no panic while held") = Some((Instant::now(), bytes));
                    self.repository.set(whole(bytes));
                }
                Ok(Err(e)) => tracing::error!(error = %e, "the size of the backup repository could not be read"),
                Err(e) => tracing::error!(error = %e, "the size of the backup repository could not be read"),
            }
        }
    }

    fn copies(&self, copies: &[CopyState]) {
        self.copy_success.clear();
        self.copy_failed.clear();
        for c in copies {
            let labels = CopyLabels { copy: plain(&c.copy) };
            if let Some(at) = c.last_good {
                self.copy_success.get_or_create(&labels).set(at.timestamp());
            }
            self.copy_failed.get_or_create(&labels).set(c.failed_at.is_some().into());
        }
    }

    fn figures(&self, figures: &Figures) {
        for family in [&self.last_success, &self.bytes, &self.added, &self.snapshots] {
            family.clear();
        }
        self.duration.clear();
        self.ended.clear();
        for s in &figures.sources {
            let labels = labels(s.stack.as_deref(), &s.source);
            if let Some(at) = s.last_success {
                self.last_success.get_or_create(&labels).set(at.timestamp());
            }
            for (family, n) in [(&self.bytes, s.bytes), (&self.added, s.added), (&self.snapshots, s.snapshots)] {
                family.get_or_create(&labels).set(whole(n));
            }
        }
        for (stack, ms) in &figures.durations {
            let stack = plain(stack.as_deref().unwrap_or_default());
            self.duration.get_or_create(&StackLabels { stack }).set(Duration::from_millis(*ms).as_secs_f64());
        }
        for (verb, state, n) in &figures.ended {
            self.ended.get_or_create(&EndLabels { verb: plain(verb), state: plain(state) }).inc_by(*n);
        }
        self.left_out.set(whole(figures.left_out));
    }

    fn proofs(&self, drills: &[DrillRecord], checks: &[CheckRecord]) {
        self.drill_passed.clear();
        self.drill_at.clear();
        self.check_passed.clear();
        self.check_at.clear();
        for d in drills.iter().filter(|d| d.copy.is_none()).take(MOST) {
            let labels = labels(d.stack.as_deref(), &d.volume);
            self.drill_passed.get_or_create(&labels).set(d.passed.into());
            self.drill_at.get_or_create(&labels).set(d.at.timestamp());
        }
        for c in checks.iter().filter(|c| c.copy.is_none()) {
            let level = LevelLabels { level: c.level.to_string() };
            self.check_passed.get_or_create(&level).set(c.passed.into());
            self.check_at.get_or_create(&level).set(c.at.timestamp());
        }
    }
}

fn labels(stack: Option<&str>, source: &str) -> SourceLabels {
    SourceLabels { stack: plain(stack.unwrap_or_default()), source: plain(source) }
}

/// A path of the host may hold anything and be of any length; the encoder escapes what the text format sets apart.
fn plain(text: &str) -> String {
    crate::redact::line(text, 200)
}

fn whole(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::backup::figures::SourceFigures;
    use chrono::{DateTime, TimeDelta};
    use prometheus_client::encoding::text::encode;

    fn source(stack: Option<&str>, source: &str, complete: bool) -> SourceFigures {
        SourceFigures {
            stack: stack.map(str::to_owned),
            source: source.to_owned(),
            snapshots: 3,
            last_success: complete.then(|| DateTime::UNIX_EPOCH + TimeDelta::seconds(1_700_000_000)),
            bytes: 500,
            added: 20,
        }
    }

    #[test]
    fn numbers_are_shown_as_they_stand_by_source_and_what_is_gone_goes() {
        let mut registry = Registry::with_prefix("dockwarden");
        let metrics = Backups::new(&mut registry);
        let text = || {
            let mut text = String::new();
            encode(&mut text, &registry).unwrap();
            text
        };
        let figures = Figures {
            sources: vec![source(Some("shop"), "shop_data", true), source(Some("shop"), "/srv/a\"b\n", false), source(None, "own", true)],
            left_out: 7,
            durations: vec![(Some("shop".into()), 2500)],
            ended: vec![("backup".into(), "done".into(), 9), ("backup".into(), "failed".into(), 2)],
        };
        metrics.figures(&figures);
        metrics.figures(&figures);
        let at = DateTime::UNIX_EPOCH + TimeDelta::seconds(1_700_000_100);
        let drill = DrillRecord {
            snapshot_id: "s".into(),
            stack: Some("shop".into()),
            volume: "shop_data".into(),
            at,
            passed: false,
            files: 1,
            bytes: 1,
            duration_ms: 1,
            probed: None,
            detail: "other content".into(),
            evidence: None,
            operation: "op".into(),
            copy: None,
        };
        let check = CheckRecord {
            level: 2,
            at,
            passed: true,
            part: None,
            duration_ms: 1,
            detail: String::new(),
            operation: "op".into(),
            copy: None,
        };
        metrics.proofs(&[drill], &[check]);
        metrics.repository.set(4096);
        let shown = text();
        for line in [
            "dockwarden_backup_last_success_timestamp_seconds{stack=\"shop\",source=\"shop_data\"} 1700000000",
            "dockwarden_backup_last_success_timestamp_seconds{stack=\"\",source=\"own\"} 1700000000",
            "dockwarden_backup_last_bytes{stack=\"shop\",source=\"shop_data\"} 500",
            "dockwarden_backup_last_added_bytes{stack=\"shop\",source=\"shop_data\"} 20",
            "dockwarden_backup_snapshots{stack=\"shop\",source=\"shop_data\"} 3",
            "dockwarden_backup_last_duration_seconds{stack=\"shop\"} 2.5",
            "dockwarden_backup_drill_passed{stack=\"shop\",source=\"shop_data\"} 0",
            "dockwarden_backup_drill_timestamp_seconds{stack=\"shop\",source=\"shop_data\"} 1700000100",
            "dockwarden_backup_check_passed{level=\"2\"} 1",
            "dockwarden_backup_operations_total{verb=\"backup\",state=\"done\"} 9",
            "dockwarden_backup_operations_total{verb=\"backup\",state=\"failed\"} 2",
            "dockwarden_backup_sources_left_out 7",
            "dockwarden_backup_repository_bytes 4096",
        ] {
            assert!(shown.lines().any(|l| l == line), "{line} is not in\n{shown}");
        }
        let odd: Vec<&str> = shown.lines().filter(|l| l.contains("/srv/a")).collect();
        assert!(odd.len() == 3 && odd.iter().all(|l| l.contains("/srv/a\\\"b")), "no success, and no way out of the label: {odd:?}");
        metrics.figures(&Figures::default());
        assert!(!text().contains("shop_data\"} 500"), "what is gone goes");
    }
}
