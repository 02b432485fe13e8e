//! Routes in force and open sessions, behind one lock: a connection is counted in the moment its backend is chosen, so that a backend that left the
//! routes with no session counted has none. Chooses by smooth weighted round robin.

use crate::model::front::{Backend, BackendStatus, Limits, RouteState, Routes, Status};
use crate::model::ids::EngineName;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::{Notify, watch};

/// See the module.
#[derive(Debug)]
pub(super) struct Table {
    inner: Mutex<Inner>,
    /// Grows when routes change; wakes held connections and sessions.
    changed: watch::Sender<u64>,
    /// A connection or a session ended.
    ended: Notify,
}

#[derive(Debug)]
struct Inner {
    routes: Routes,
    /// Current weights of the round robin, in the order of the routes.
    turns: Vec<i64>,
    counts: BTreeMap<EngineName, Count>,
    connections: u64,
    held: u64,
    accepted: u64,
    refused: u64,
    problem: Option<String>,
}

#[derive(Debug, Default, Clone, Copy)]
struct Count {
    sessions: u64,
    served: u64,
    failures: u64,
}

impl Table {
    pub(super) fn new(routes: Routes) -> Self {
        let inner = Inner {
            turns: vec![0; routes.backends.len()],
            routes,
            counts: BTreeMap::new(),
            connections: 0,
            held: 0,
            accepted: 0,
            refused: 0,
            problem: None,
        };
        Self { inner: Mutex::new(inner), changed: watch::Sender::new(0), ended: Notify::new() }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Plain counters: whatever a panic elsewhere left is still consistent.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts routes in force: when this returns, no connection goes to a backend that is not in them.
    pub(super) fn set(&self, routes: Routes) {
        {
            let mut inner = self.lock();
            inner.problem = None;
            if inner.routes == routes {
                return;
            }
            tracing::info!(revision = routes.revision, state = ?routes.state, backends = ?routes.serving(), "new routes");
            inner.turns = vec![0; routes.backends.len()];
            inner.routes = routes;
            let Inner { routes, counts, .. } = &mut *inner;
            counts.retain(|name, c| c.sessions > 0 || routes.backends.iter().any(|b| b.name == *name));
        }
        self.changed.send_modify(|n| *n += 1);
        self.ended.notify_waiters();
    }

    /// Notes why the routes file is not followed.
    pub(super) fn problem(&self, why: String) {
        let mut inner = self.lock();
        if inner.problem.as_ref() != Some(&why) {
            tracing::warn!(%why, "the routes file is not followed; the routes before it stay in force");
        }
        inner.problem = Some(why);
    }

    pub(super) fn routes(&self) -> Routes {
        self.lock().routes.clone()
    }
    pub(super) fn limits(&self) -> Limits {
        self.lock().routes.limits
    }
    pub(super) fn holds(&self) -> bool {
        self.lock().routes.state == RouteState::Hold
    }
    pub(super) fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Whether a backend takes no new connections.
    pub(super) fn leaving(&self, name: &EngineName) -> bool {
        !self.lock().routes.backends.iter().any(|b| b.name == *name && !b.drain)
    }

    /// The next backend that was not tried; its session is counted from here until the ticket is dropped. `None` while held.
    pub(super) fn pick(self: &Arc<Self>, tried: &[EngineName]) -> Option<Ticket> {
        let mut inner = self.lock();
        if inner.routes.state == RouteState::Hold {
            return None;
        }
        let Inner { routes, turns, counts, .. } = &mut *inner;
        let usable = |b: &Backend| !b.drain && !tried.contains(&b.name);
        let total: i64 = routes.backends.iter().filter(|b| usable(b)).map(|b| i64::from(b.weight)).sum();
        for (b, turn) in routes.backends.iter().zip(turns.iter_mut()).filter(|(b, _)| usable(b)) {
            *turn += i64::from(b.weight);
        }
        // The first of equals, so that the order of the routes decides.
        let best =
            (0..routes.backends.len()).filter(|i| usable(&routes.backends[*i])).max_by_key(|i| (turns[*i], std::cmp::Reverse(*i)))?;
        turns[best] -= total;
        let name = routes.backends[best].name.clone();
        counts.entry(name.clone()).or_default().sessions += 1;
        Some(Ticket { table: self.clone(), name })
    }

    pub(super) fn failed(&self, name: &EngineName) {
        self.lock().counts.entry(name.clone()).or_default().failures += 1;
    }
    pub(super) fn served(&self, name: &EngineName) {
        self.lock().counts.entry(name.clone()).or_default().served += 1;
    }
    pub(super) fn refused(&self) {
        self.lock().refused += 1;
    }

    /// A place among the open connections, waiting until one is free.
    pub(super) async fn place(self: &Arc<Self>) -> Place {
        loop {
            let ended = self.ended.notified();
            tokio::pin!(ended);
            // Registered before the look, so that an end in between is not missed.
            ended.as_mut().enable();
            {
                let mut inner = self.lock();
                if inner.connections < u64::from(inner.routes.limits.max_connections) {
                    inner.connections += 1;
                    inner.accepted += 1;
                    return Place { table: self.clone(), held: false };
                }
            }
            ended.await;
        }
    }

    /// Waits until no counted session is left on these backends (on all that leave, when none are named), at most so long.
    pub(super) async fn drained(&self, backends: &[EngineName], within: std::time::Duration) {
        let wait = async {
            loop {
                let ended = self.ended.notified();
                tokio::pin!(ended);
                ended.as_mut().enable();
                let status = self.status();
                let asked = |b: &&BackendStatus| if backends.is_empty() { b.leaving } else { backends.contains(&b.name) };
                if status.backends.iter().filter(asked).all(|b| b.sessions == 0) {
                    return;
                }
                ended.await;
            }
        };
        // Late is told by the sessions that the state still shows.
        let _late = tokio::time::timeout(within, wait).await;
    }

    pub(super) fn status(&self) -> Status {
        let inner = self.lock();
        let listed = inner.routes.backends.iter().map(|b| b.name.clone());
        let names: std::collections::BTreeSet<EngineName> = listed.chain(inner.counts.keys().cloned()).collect();
        let row = |name: EngineName| {
            let c = inner.counts.get(&name).copied().unwrap_or_default();
            let leaving = !inner.routes.backends.iter().any(|b| b.name == name && !b.drain);
            BackendStatus { name, sessions: c.sessions, served: c.served, failures: c.failures, leaving }
        };
        Status {
            revision: inner.routes.revision,
            state: inner.routes.state,
            connections: inner.connections,
            held: inner.held,
            accepted: inner.accepted,
            refused: inner.refused,
            problem: inner.problem.clone(),
            backends: names.into_iter().map(row).collect(),
        }
    }
}

/// A session on a backend, counted until dropped.
#[derive(Debug)]
pub(super) struct Ticket {
    table: Arc<Table>,
    /// Backend.
    pub(super) name: EngineName,
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if let Some(c) = self.table.lock().counts.get_mut(&self.name) {
            c.sessions = c.sessions.saturating_sub(1);
        }
        self.table.ended.notify_waiters();
    }
}

/// An open connection, counted until dropped.
#[derive(Debug)]
pub(super) struct Place {
    table: Arc<Table>,
    held: bool,
}

impl Place {
    /// Counts it as waiting for a backend; false when too many do.
    pub(super) fn hold(&mut self) -> bool {
        let mut inner = self.table.lock();
        if !self.held && inner.held >= u64::from(inner.routes.limits.max_held) {
            return false;
        }
        if !self.held {
            inner.held += 1;
            self.held = true;
        }
        true
    }

    /// It waits no more.
    pub(super) fn release(&mut self) {
        if std::mem::take(&mut self.held) {
            let mut inner = self.table.lock();
            inner.held = inner.held.saturating_sub(1);
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.release();
        {
            let mut inner = self.table.lock();
            inner.connections = inner.connections.saturating_sub(1);
        }
        self.table.ended.notify_waiters();
    }
}
