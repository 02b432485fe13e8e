//! Faults a demo container can be told to have while it runs, where its file allows it (`FAULTS=on`): for exercises and for the soak of the supervisor.

use clap::ValueEnum;
use std::io::Write as _;
use std::sync::atomic::{AtomicBool, Ordering};

/// Lines a full log gets: some 16 MiB, more than the options of any sensible log driver keep.
const LINES: usize = 160_000;
/// Memory is taken in such pieces, and at most so many of them, where no limit ends it before.
const PIECE: usize = 8 << 20;
const PIECES: usize = 128;

/// A fault to order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Fault {
    /// `/health` answers 500 until the process ends.
    Health,
    /// It takes memory until something ends it, a GiB at most.
    Memory,
    /// It writes 16 MiB of log.
    Log,
}

impl Fault {
    /// The path it is ordered by.
    pub(super) fn path(self) -> &'static str {
        match self {
            Self::Health => "/fault/health",
            Self::Memory => "/fault/memory",
            Self::Log => "/fault/log",
        }
    }

    /// The one a path orders.
    pub(super) fn of(path: &str) -> Option<Self> {
        [Self::Health, Self::Memory, Self::Log].into_iter().find(|f| f.path() == path)
    }

    /// Lets it happen, beside the answer that says so.
    pub(super) fn happen(self, ill: &AtomicBool) {
        match self {
            Self::Health => ill.store(true, Ordering::SeqCst),
            Self::Memory => drop(tokio::task::spawn_blocking(hog)),
            Self::Log => drop(tokio::task::spawn_blocking(flood)),
        }
    }
}

fn hog() {
    // Written to, so that it is really taken.
    let held: Vec<Vec<u8>> = (0..PIECES).map(|_| vec![1; PIECE]).collect();
    eprintln!("took {} MiB and nobody minded", held.iter().map(Vec::len).sum::<usize>() >> 20);
}

fn flood() {
    let mut out = std::io::stderr().lock();
    for n in 0..LINES {
        if writeln!(out, "line {n} of a log that somebody forgot to limit, long enough to fill a disk if it is let to go on").is_err() {
            return;
        }
    }
}
