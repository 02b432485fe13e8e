//! What a front and its supervisor tell each other: the routes it follows and the state it is in. Closed and versioned, since a front outlives the
//! supervisor that made it. Plain data; the process is `front`.

use super::ids::EngineName;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// Version of [`Routes`]. A front refuses any other.
pub const ROUTES_VERSION: u32 = 1;
/// Directory of the routes inside a front's container: the only place it may write.
pub const DIR: &str = "/routes";
/// Name of the routes file in its directory.
pub const ROUTES_FILE: &str = "routes.json";
/// Name of the control socket beside the routes file.
pub const SOCKET: &str = "control.sock";
/// Environment variable of a command that applies routes: so many ms it may wait for the sessions of backends that left them.
pub const SETTLE: &str = "DOCKWARDEN_FRONT_SETTLE_MS";
/// Largest routes file, bytes.
pub const MAX_ROUTES: usize = 64 * 1024;
/// Longest [`Limits::drain_ms`] that is waited for.
pub const MAX_DRAIN_MS: u64 = 3_600_000;
/// Most backends of one front.
const MAX_BACKENDS: usize = 256;

/// Whether new connections go to a backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RouteState {
    /// To the backends, by weight.
    Serve,
    /// They wait, bounded in number and time, until the state is `serve` again.
    Hold,
}

/// Where a front sends connections. A backend that is not listed, or drains, gets no new ones; its open sessions end within
/// [`Limits::drain_ms`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Routes {
    /// [`ROUTES_VERSION`].
    pub version: u32,
    /// Grows with every change: a late duplicate of an older change is refused.
    pub revision: u64,
    /// State.
    pub state: RouteState,
    /// Backends.
    pub backends: Vec<Backend>,
    /// Bounds.
    #[serde(default)]
    pub limits: Limits,
}

/// One backend.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Backend {
    /// DNS name on the stack's networks, resolved at each connect. Never an address that was stored.
    pub name: EngineName,
    /// Share of new connections, 1 to 1000.
    #[serde(default = "one")]
    pub weight: u32,
    /// Gets no new connections.
    #[serde(default)]
    pub drain: bool,
}

fn one() -> u32 {
    1
}

/// Bounds of a front.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Open connections; beyond it the kernel's queue waits.
    pub max_connections: u32,
    /// Connections that wait for a backend; beyond it they are refused.
    pub max_held: u32,
    /// How long a connection waits for a backend, from its accept on, ms.
    pub hold_ms: u64,
    /// Time for one backend to take a connection, name look-up included, ms.
    pub connect_ms: u64,
    /// A session without a byte in either direction ends, ms.
    pub idle_ms: u64,
    /// A session of which one side has closed ends after so long without a byte, ms.
    pub half_open_ms: u64,
    /// Sessions of a backend that left the routes end after so long, ms.
    pub drain_ms: u64,
    /// Each session begins with a PROXY protocol v2 header to the backend.
    pub proxy_protocol: bool,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_connections: 4096,
            max_held: 1024,
            hold_ms: 30_000,
            connect_ms: 2_000,
            // Keepalive finds dead peers in minutes; this is for live ones that have forgotten.
            idle_ms: 3_600_000,
            half_open_ms: 60_000,
            drain_ms: 10_000,
            proxy_protocol: false,
        }
    }
}

impl Routes {
    /// Routes to these backends with equal weights; without any, connections are held.
    pub fn to(backends: impl IntoIterator<Item = EngineName>, limits: Limits) -> Self {
        let backends: Vec<Backend> = backends.into_iter().map(|name| Backend { name, weight: 1, drain: false }).collect();
        let state = if backends.is_empty() { RouteState::Hold } else { RouteState::Serve };
        Self { version: ROUTES_VERSION, revision: 0, state, backends, limits }
    }

    /// Routes that give `percent` of new connections to the `new` backends and the rest to the `old` ones.
    pub fn shared(old: Vec<EngineName>, new: Vec<EngineName>, percent: u32, limits: Limits) -> Self {
        let (olds, news) = (u32::try_from(old.len()).unwrap_or(u32::MAX), u32::try_from(new.len()).unwrap_or(u32::MAX));
        // Each group's share is its weight times its number: what one has more of, each of it has less.
        let (of_old, of_new) = ((100 - percent.min(99)).saturating_mul(news), percent.clamp(1, 99).saturating_mul(olds));
        let scale = of_old.max(of_new).div_ceil(1000).max(1);
        let backend = |weight: u32| move |name| Backend { name, weight: (weight / scale).clamp(1, 1000), drain: false };
        let backends = old.into_iter().map(backend(of_old)).chain(new.into_iter().map(backend(of_new))).collect();
        Self { backends, ..Self::to([], limits) }.serve()
    }

    fn serve(self) -> Self {
        Self { state: if self.backends.is_empty() { RouteState::Hold } else { RouteState::Serve }, ..self }
    }

    /// Reads and checks a routes file.
    ///
    /// # Errors
    /// A sentence with the cause.
    pub fn parse(text: &str) -> Result<Self, String> {
        if text.len() > MAX_ROUTES {
            return Err(format!("routes of {} bytes; at most {MAX_ROUTES} are read", text.len()));
        }
        let routes: Self = serde_json::from_str(text).map_err(|e| format!("routes do not parse: {e}"))?;
        routes.check()?;
        Ok(routes)
    }

    /// Whether it can be followed.
    ///
    /// # Errors
    /// A sentence with the cause.
    pub fn check(&self) -> Result<(), String> {
        if self.version != ROUTES_VERSION {
            return Err(format!("routes of version {}; this front knows {ROUTES_VERSION}", self.version));
        }
        if self.backends.len() > MAX_BACKENDS {
            return Err(format!("{} backends; at most {MAX_BACKENDS}", self.backends.len()));
        }
        let names: BTreeSet<&EngineName> = self.backends.iter().map(|b| &b.name).collect();
        if names.len() != self.backends.len() {
            return Err("a backend is named twice".into());
        }
        if let Some(b) = self.backends.iter().find(|b| !(1..=1000).contains(&b.weight)) {
            return Err(format!("backend {} has weight {}; 1 to 1000 are allowed", b.name, b.weight));
        }
        if self.state == RouteState::Serve && self.backends.iter().all(|b| b.drain) {
            return Err("state serve without a backend that takes connections; use state hold".into());
        }
        let l = &self.limits;
        let zero = [
            ("max_connections", u64::from(l.max_connections)),
            ("max_held", u64::from(l.max_held)),
            ("hold_ms", l.hold_ms),
            ("connect_ms", l.connect_ms),
            ("idle_ms", l.idle_ms),
            ("half_open_ms", l.half_open_ms),
            ("drain_ms", l.drain_ms),
        ];
        match zero.iter().find(|(_, v)| *v == 0) {
            Some((name, _)) => Err(format!("limits.{name} is 0; leave it out for its default")),
            None => Ok(()),
        }
    }

    /// Names of backends that take new connections.
    pub fn serving(&self) -> Vec<&EngineName> {
        let takes = self.state == RouteState::Serve;
        self.backends.iter().filter(|b| takes && !b.drain).map(|b| &b.name).collect()
    }
}

/// What a front does at this moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Revision of the routes in force.
    pub revision: u64,
    /// Their state.
    pub state: RouteState,
    /// Open connections, held ones included.
    pub connections: u64,
    /// Connections that wait for a backend.
    pub held: u64,
    /// Connections accepted since the start.
    pub accepted: u64,
    /// Connections given up since the start: too many waited, or none of the backends took them in time.
    pub refused: u64,
    /// Why the routes file as it lies there is not what is followed.
    pub problem: Option<String>,
    /// Backends of the routes, and those with open sessions.
    pub backends: Vec<BackendStatus>,
}

impl Status {
    /// Open sessions of backends that take no new connections.
    pub fn open(&self) -> u64 {
        self.backends.iter().filter(|b| b.leaving).map(|b| b.sessions).sum()
    }
}

/// One backend as a front sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackendStatus {
    /// Name.
    pub name: EngineName,
    /// Open sessions.
    pub sessions: u64,
    /// Sessions since the start.
    pub served: u64,
    /// Failed connects since the start.
    pub failures: u64,
    /// Takes no new connections.
    pub leaving: bool,
}

/// A line to a front's control socket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Command {
    /// Follow these routes from now on, also after a restart.
    Apply(Routes),
    /// Tell the state.
    Status,
    /// Answer when these backends have no session left, or after so long.
    Drained {
        /// Backends; all that take no new connections when empty.
        backends: Vec<EngineName>,
        /// Longest wait, ms.
        within_ms: u64,
    },
}

/// Its answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    /// Done; for `drained` the sessions still open are in the state.
    Ok(Status),
    /// The routes are older than those in force.
    Stale {
        /// Revision in force.
        revision: u64,
    },
    /// Not done.
    Error(String),
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(n: &str) -> EngineName {
        EngineName::new(n).unwrap()
    }

    #[test]
    fn shares_are_of_groups_whatever_their_sizes() {
        for (old, new, percent) in [(1u32, 1u32, 10u32), (3, 1, 25), (1, 4, 50), (10, 20, 1), (2, 2, 99)] {
            let names = |n: u32, tag: &str| (0..n).map(|i| name(&format!("{tag}-{i}"))).collect::<Vec<_>>();
            let routes = Routes::shared(names(old, "old"), names(new, "new"), percent, Limits::default());
            assert_eq!(routes.check(), Ok(()));
            let weigh =
                |tag: &str| routes.backends.iter().filter(|b| b.name.as_str().starts_with(tag)).map(|b| f64::from(b.weight)).sum::<f64>();
            let share = 100.0 * weigh("new") / (weigh("new") + weigh("old"));
            assert!((share - f64::from(percent)).abs() < 0.6, "{old} old, {new} new, {percent} %: {share}");
        }
    }

    #[test]
    fn routes_are_closed_and_versioned() {
        let good = Routes::to([name("web-1")], Limits::default());
        let text = serde_json::to_string(&good).unwrap();
        assert_eq!(Routes::parse(&text), Ok(good));
        let bare = r#"{"version":1,"revision":3,"state":"serve","backends":[{"name":"web-1"}]}"#;
        assert_eq!(Routes::parse(bare).unwrap().limits, Limits::default());
        for (broken, why) in [
            (r#"{"version":2,"revision":1,"state":"hold","backends":[]}"#, "version 2"),
            (r#"{"version":1,"revision":1,"state":"hold","backends":[],"extra":1}"#, "unknown field `extra`"),
            (r#"{"version":1,"revision":1,"state":"serve","backends":[]}"#, "without a backend"),
            (r#"{"version":1,"revision":1,"state":"serve","backends":[{"name":"a","drain":true}]}"#, "without a backend"),
            (r#"{"version":1,"revision":1,"state":"serve","backends":[{"name":"a"},{"name":"a"}]}"#, "named twice"),
            (r#"{"version":1,"revision":1,"state":"serve","backends":[{"name":"a","weight":0}]}"#, "weight 0"),
            (r#"{"version":1,"revision":1,"state":"serve","backends":[{"name":"a/b"}]}"#, "invalid engine name"),
            (r#"{"version":1,"revision":1,"state":"hold","backends":[],"limits":{"idle_ms":0}}"#, "limits.idle_ms is 0"),
            ("{", "do not parse"),
        ] {
            let error = Routes::parse(broken).unwrap_err();
            assert!(error.contains(why), "{broken}: {error}");
        }
        assert!(Routes::parse(&" ".repeat(MAX_ROUTES + 1)).unwrap_err().contains("at most"));
    }
}
