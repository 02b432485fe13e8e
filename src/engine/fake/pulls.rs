//! Pulls of the fake engine that take their time: held by a test, counted while they are under way. Decides nothing about what is pulled.

use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::sync::watch;

/// The pulls under way.
#[derive(Debug, Default)]
pub(crate) struct Pulls {
    held: watch::Sender<bool>,
    now: AtomicUsize,
    most: AtomicUsize,
}

/// One pull under way; over when dropped, as a connection that is closed ends a pull.
pub(super) struct UnderWay<'a>(&'a Pulls);

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.0.now.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Pulls {
    pub(super) fn hold(&self, held: bool) {
        self.held.send_replace(held);
    }

    pub(super) fn most(&self) -> usize {
        self.most.load(Ordering::SeqCst)
    }

    pub(super) fn now(&self) -> usize {
        self.now.load(Ordering::SeqCst)
    }

    /// Begins a pull and waits while pulls are held.
    pub(super) async fn pass(&self) -> UnderWay<'_> {
        let now = self.now.fetch_add(1, Ordering::SeqCst) + 1;
        self.most.fetch_max(now, Ordering::SeqCst);
        let under_way = UnderWay(self);
        let mut held = self.held.subscribe();
        held.wait_for(|held| !held).await.expect("the sender is in `self`");
        under_way
    }
}
