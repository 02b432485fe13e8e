//! How far a job is, told now and then. Deliberately absent: who listens.

use super::{Progress, ProgressSink};
use rustic_core::{ProgressBars, ProgressType, RusticProgress};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Between two progress reports.
const PROGRESS_EVERY: Duration = Duration::from_millis(250);

/// Counts bytes and files, and reports them now and then.
#[derive(Clone)]
pub(super) struct Counter(Arc<CounterState>);

struct CounterState {
    bytes: AtomicU64,
    files: AtomicU64,
    reported: Mutex<Instant>,
    sink: ProgressSink,
}

impl std::fmt::Debug for Counter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Counter").field(&self.0.bytes).field(&self.0.files).finish()
    }
}

impl Counter {
    pub(super) fn new(sink: ProgressSink) -> Self {
        Self(Arc::new(CounterState { bytes: AtomicU64::new(0), files: AtomicU64::new(0), reported: Mutex::new(Instant::now()), sink }))
    }
    /// Bytes handled so far.
    pub(super) fn bytes(&self) -> u64 {
        self.0.bytes.load(Ordering::Relaxed)
    }
    pub(super) fn add(&self, bytes: u64, files: u64) {
        let bytes = self.0.bytes.fetch_add(bytes, Ordering::Relaxed) + bytes;
        let files = self.0.files.fetch_add(files, Ordering::Relaxed) + files;
        if let Ok(mut reported) = self.0.reported.try_lock()
            && reported.elapsed() >= PROGRESS_EVERY
        {
            *reported = Instant::now();
            (self.0.sink)(Progress { bytes, files });
        }
    }
}

impl ProgressBars for Counter {
    fn progress(&self, kind: ProgressType, _prefix: &str) -> rustic_core::Progress {
        match kind {
            ProgressType::Bytes => rustic_core::Progress::new(self.clone()),
            ProgressType::Spinner | ProgressType::Counter => rustic_core::Progress::hidden(),
        }
    }
}

impl RusticProgress for Counter {
    fn is_hidden(&self) -> bool {
        false
    }
    fn set_length(&self, _len: u64) {}
    fn set_title(&self, _title: &str) {}
    fn inc(&self, inc: u64) {
        self.add(inc, 0);
    }
    fn finish(&self) {}
}
