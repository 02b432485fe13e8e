//! The front in-process: real sockets on loopback, where every backend is an address of its own on one port.

use super::*;
use crate::model::front::{Backend, Command, Limits, Reply, RouteState, Status};
use crate::model::ids::EngineName;
use std::net::Shutdown;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// A front that runs until dropped.
struct Rig {
    dir: tempfile::TempDir,
    address: SocketAddr,
    stop: CancellationToken,
    port: u16,
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

fn name(n: &str) -> EngineName {
    EngineName::new(n).unwrap()
}

fn routes(revision: u64, backends: &[&str], limits: Limits) -> Routes {
    Routes { revision, ..Routes::to(backends.iter().map(|b| name(b)), limits) }
}

/// Listeners on one free port of each of these loopback addresses.
async fn backends(addresses: &[&str]) -> Vec<TcpListener> {
    'again: for _ in 0..50 {
        let mut found = vec![TcpListener::bind((addresses[0], 0)).await.unwrap()];
        let port = found[0].local_addr().unwrap().port();
        for a in &addresses[1..] {
            match TcpListener::bind((*a, port)).await {
                Ok(l) => found.push(l),
                Err(_) => continue 'again,
            }
        }
        return found;
    }
    panic!("no free port");
}

/// Answers each connection with its own name and what it received until the client closed its half.
fn echo(listener: TcpListener) -> String {
    let own = listener.local_addr().unwrap().ip().to_string();
    let prefix = own.clone();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let prefix = prefix.clone();
            tokio::spawn(async move {
                let mut all = format!("{prefix}:").into_bytes();
                if stream.read_to_end(&mut all).await.is_ok() {
                    stream.write_all(&all).await.unwrap();
                }
            });
        }
    });
    own
}

async fn front_in(dir: tempfile::TempDir, listen: &str, port: u16) -> Rig {
    let listen = Listen { address: listen.parse().unwrap(), target: port };
    let front = Front::bind(&[listen], dir.path().join("routes.json")).await.unwrap();
    let (address, stop) = (front.addresses()[0], CancellationToken::new());
    tokio::spawn(front.run(stop.clone()));
    Rig { dir, address, stop, port }
}

async fn front(routes: &Routes, port: u16) -> Rig {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("routes.json"), serde_json::to_string(routes).unwrap()).unwrap();
    front_in(dir, "127.0.0.1:0", port).await
}

impl Rig {
    async fn ask(&self, command: Command) -> Reply {
        ask(&self.dir.path().join(SOCKET), &command, None, None).await.unwrap()
    }
    async fn apply(&self, routes: Routes) {
        assert!(matches!(self.ask(Command::Apply(routes)).await, Reply::Ok(_)));
    }
    async fn status(&self) -> Status {
        match self.ask(Command::Status).await {
            Reply::Ok(status) => status,
            other => panic!("{other:?}"),
        }
    }
    /// Waits for a state of the front.
    async fn until(&self, what: &str, holds: impl Fn(&Status) -> bool) -> Status {
        for _ in 0..500 {
            let status = self.status().await;
            if holds(&status) {
                return status;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("{what}: {:?}", self.status().await);
    }
    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }
    /// Sends, closes its half, returns what came until the other half closed.
    async fn exchange(&self, bytes: &[u8]) -> std::io::Result<Vec<u8>> {
        finish(self.connect().await, bytes).await
    }
}

async fn finish(mut stream: TcpStream, bytes: &[u8]) -> std::io::Result<Vec<u8>> {
    stream.write_all(bytes).await?;
    stream.shutdown().await?;
    let mut back = vec![];
    stream.read_to_end(&mut back).await?;
    Ok(back)
}

fn sessions(status: &Status, backend: &str) -> Option<(u64, bool)> {
    status.backends.iter().find(|b| b.name.as_str() == backend).map(|b| (b.sessions, b.leaving))
}

#[tokio::test]
async fn an_answer_that_comes_before_the_request_is_whole_arrives() {
    let listeners = backends(&["127.0.0.2"]).await;
    let listener = listeners.into_iter().next().unwrap();
    let address = listener.local_addr().unwrap();
    let own = address.ip().to_string();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut some = vec![0; 1000];
                stream.read_exact(&mut some).await.unwrap();
                stream.write_all(b"413 too large").await.unwrap();
            });
        }
    });
    let rig = front(&routes(1, &[&own], Limits::default()), address.port()).await;
    for round in 0..50 {
        let mut stream = rig.connect().await;
        let (mut read, mut write) = stream.split();
        // What is written last may be refused: the answer is there by then.
        let sent = async { drop(write.write_all(&vec![7; 2 << 20]).await) };
        let mut answer = vec![0; 13];
        let (came, ()) = tokio::join!(read.read_exact(&mut answer), sent);
        assert_eq!((came.unwrap(), answer.as_slice()), (13, b"413 too large".as_slice()), "round {round}");
    }
    rig.until("the sessions have ended", |s| s.backends.iter().all(|b| b.sessions == 0)).await;
}

#[tokio::test]
async fn bytes_are_relayed_exactly_and_a_closed_half_is_passed_on() {
    let mut listeners = backends(&["127.0.0.2"]).await;
    let port = listeners[0].local_addr().unwrap().port();
    let own = echo(listeners.remove(0));
    let rig = front(&routes(1, &[&own], Limits::default()), port).await;
    let sent: Vec<u8> = (0..4_000_003u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let stream = rig.connect().await;
    let (mut read, mut write) = stream.into_split();
    let data = sent.clone();
    let sending = tokio::spawn(async move {
        write.write_all(&data).await.unwrap();
        write.shutdown().await.unwrap();
        // The read half stays open: the answer comes after this end of ours.
        write
    });
    let mut back = vec![];
    read.read_to_end(&mut back).await.unwrap();
    sending.await.unwrap();
    assert!(back == [b"127.0.0.2:".as_slice(), &sent].concat(), "{} bytes came back for {}", back.len(), sent.len());
}

#[tokio::test]
async fn held_connections_are_all_served_after_the_release() {
    let mut listeners = backends(&["127.0.0.2"]).await;
    let port = listeners[0].local_addr().unwrap().port();
    let own = echo(listeners.remove(0));
    let rig = front(&routes(1, &[], Limits::default()), port).await;
    let waiting: Vec<_> = futures_util::future::try_join_all((0..50).map(|_| TcpStream::connect(rig.address))).await.unwrap();
    let exchanges: Vec<_> =
        waiting.into_iter().enumerate().map(|(i, s)| tokio::spawn(async move { finish(s, format!("{i}").as_bytes()).await })).collect();
    rig.until("all wait", |s| s.held == 50).await;
    rig.apply(routes(2, &[&own], Limits::default())).await;
    for (i, exchange) in exchanges.into_iter().enumerate() {
        assert_eq!(String::from_utf8(exchange.await.unwrap().unwrap()).unwrap(), format!("127.0.0.2:{i}"));
    }
    let status = rig.status().await;
    assert_eq!((status.held, status.refused, status.accepted), (0, 0, 50));
}

#[tokio::test]
async fn what_waits_is_bounded_in_number_and_time_and_a_client_that_leaves_is_forgotten() {
    let limits = Limits { max_held: 2, hold_ms: 400, ..Limits::default() };
    let rig = front(&routes(1, &[], limits), 1).await;
    let left = rig.connect().await;
    rig.until("it waits", |s| s.held == 1).await;
    drop(left);
    rig.until("it is forgotten", |s| s.held == 0 && s.connections == 0 && s.refused == 0).await;
    let (mut one, mut two) = (rig.connect().await, rig.connect().await);
    rig.until("both wait", |s| s.held == 2).await;
    let mut three = rig.connect().await;
    let ended = |r: std::io::Result<usize>| matches!(&r, Err(e) if e.kind() == std::io::ErrorKind::ConnectionReset);
    assert!(ended(three.read(&mut [0]).await), "one too many");
    assert!(ended(one.read(&mut [0]).await) && ended(two.read(&mut [0]).await), "waited too long");
    assert_eq!(rig.status().await.refused, 3);
}

#[tokio::test]
async fn connections_go_by_weight_and_past_a_backend_that_does_not_answer() {
    let mut listeners = backends(&["127.0.0.2", "127.0.0.3"]).await;
    let port = listeners[0].local_addr().unwrap().port();
    let (b, a) = (echo(listeners.remove(1)), echo(listeners.remove(0)));
    let mut weighted = routes(1, &[&a, &b, "127.0.0.4"], Limits::default());
    weighted.backends[0].weight = 3;
    let rig = front(&weighted, port).await;
    let mut seen = vec![];
    for _ in 0..20 {
        seen.push(String::from_utf8(rig.exchange(b"").await.unwrap()).unwrap());
    }
    let count = |n: &str| seen.iter().filter(|s| s.starts_with(n)).count();
    assert_eq!(count(&a) + count(&b), 20, "none is lost to the dead one");
    assert!(count(&a) > count(&b) && count(&b) >= 4, "{seen:?}");
    assert!(rig.status().await.backends.iter().any(|b| b.name.as_str() == "127.0.0.4" && b.failures > 0));
    let even = Routes {
        backends: vec![Backend { name: name(&a), weight: 3, drain: false }, Backend { name: name(&b), weight: 1, drain: false }],
        ..routes(2, &[], Limits::default())
    };
    rig.apply(Routes { state: RouteState::Serve, ..even }).await;
    let mut seen = vec![];
    for _ in 0..8 {
        seen.push(String::from_utf8(rig.exchange(b"").await.unwrap()).unwrap());
    }
    assert_eq!((seen.iter().filter(|s| s.starts_with(&a)).count(), seen.len()), (6, 8));
}

#[tokio::test]
async fn a_connection_waits_for_a_backend_that_is_not_up_yet() {
    let listeners = backends(&["127.0.0.2"]).await;
    let port = listeners[0].local_addr().unwrap().port();
    drop(listeners);
    let rig = front(&routes(1, &["127.0.0.2"], Limits::default()), port).await;
    let stream = rig.connect().await;
    rig.until("it waits", |s| s.held == 1).await;
    echo(TcpListener::bind(("127.0.0.2", port)).await.unwrap());
    assert_eq!(finish(stream, b"x").await.unwrap(), b"127.0.0.2:x");
}

#[tokio::test]
async fn a_backend_that_left_keeps_its_sessions_counted_until_they_end_and_gets_no_new_ones() {
    let mut listeners = backends(&["127.0.0.2", "127.0.0.3"]).await;
    let port = listeners[0].local_addr().unwrap().port();
    let (b, a) = (echo(listeners.remove(1)), echo(listeners.remove(0)));
    let rig = front(&routes(1, &[&a], Limits::default()), port).await;
    let mut old = rig.connect().await;
    old.write_all(b"one ").await.unwrap();
    rig.until("a session", |s| sessions(s, &a) == Some((1, false))).await;
    rig.apply(routes(2, &[&b], Limits::default())).await;
    assert_eq!(sessions(&rig.status().await, &a), Some((1, true)));
    assert_eq!(rig.exchange(b"new").await.unwrap(), b"127.0.0.3:new");
    let late = rig.ask(Command::Drained { backends: vec![name(&a)], within_ms: 50 }).await;
    assert!(matches!(late, Reply::Ok(s) if sessions(&s, &a) == Some((1, true))), "it says what is still open");
    let socket = rig.dir.path().join(SOCKET);
    let drained = tokio::spawn(async move { ask(&socket, &Command::Drained { backends: vec![], within_ms: 60_000 }, None, None).await });
    assert_eq!(finish(old, b"two").await.unwrap(), b"127.0.0.2:one two", "an open session goes on");
    let status = drained.await.unwrap().unwrap();
    assert!(matches!(&status, Reply::Ok(s) if sessions(s, &a).is_none_or(|(open, _)| open == 0)), "{status:?}");
}

#[tokio::test]
async fn sessions_of_a_backend_that_left_end_within_their_bound() {
    let mut listeners = backends(&["127.0.0.2"]).await;
    let port = listeners[0].local_addr().unwrap().port();
    let a = echo(listeners.remove(0));
    let limits = Limits { drain_ms: 200, ..Limits::default() };
    let rig = front(&routes(1, &[&a], limits), port).await;
    let mut open = rig.connect().await;
    rig.until("a session", |s| sessions(s, &a) == Some((1, false))).await;
    rig.apply(routes(2, &[], limits)).await;
    let cut = open.read(&mut [0]).await;
    assert_eq!(cut.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
    rig.until("counted down", |s| s.connections == 0).await;
}

#[tokio::test]
async fn beyond_the_cap_connections_wait_their_turn() {
    let mut listeners = backends(&["127.0.0.2"]).await;
    let port = listeners[0].local_addr().unwrap().port();
    let a = echo(listeners.remove(0));
    let rig = front(&routes(1, &[&a], Limits { max_connections: 2, ..Limits::default() }), port).await;
    let (one, two) = (rig.connect().await, rig.connect().await);
    rig.until("two are open", |s| s.connections == 2).await;
    let third = rig.connect().await;
    let address = rig.address;
    let third = tokio::spawn(async move { (finish(third, b"3").await.unwrap(), address) });
    assert_eq!(rig.status().await.accepted, 2);
    assert_eq!(finish(one, b"1").await.unwrap(), b"127.0.0.2:1");
    assert_eq!(third.await.unwrap().0, b"127.0.0.2:3");
    drop(two);
}

#[tokio::test]
async fn a_broken_file_keeps_the_routes_before_it_and_is_told() {
    let mut listeners = backends(&["127.0.0.2", "127.0.0.3"]).await;
    let port = listeners[0].local_addr().unwrap().port();
    let (b, a) = (echo(listeners.remove(1)), echo(listeners.remove(0)));
    let rig = front(&routes(1, &[&a], Limits::default()), port).await;
    let put = |text: &str| {
        let (draft, file) = (rig.dir.path().join("draft"), rig.dir.path().join("routes.json"));
        std::fs::write(&draft, text).unwrap();
        std::fs::rename(&draft, &file).unwrap();
    };
    put("{\"version\":1,");
    let status = rig.until("it says so", |s| s.problem.is_some()).await;
    assert!(status.problem.unwrap().contains("do not parse"));
    assert_eq!(rig.exchange(b"x").await.unwrap(), b"127.0.0.2:x");
    put(&serde_json::to_string(&routes(2, &[&b], Limits::default())).unwrap());
    rig.until("it follows", |s| s.problem.is_none() && s.revision == 2).await;
    assert_eq!(rig.exchange(b"x").await.unwrap(), b"127.0.0.3:x");
}

#[tokio::test]
async fn applied_routes_outlive_the_process_and_older_ones_are_refused() {
    let mut listeners = backends(&["127.0.0.2"]).await;
    let port = listeners[0].local_addr().unwrap().port();
    let a = echo(listeners.remove(0));
    let rig = front(&routes(5, &["127.0.0.9"], Limits::default()), port).await;
    rig.apply(routes(6, &[&a], Limits::default())).await;
    rig.apply(routes(6, &[&a], Limits::default())).await;
    assert_eq!(rig.ask(Command::Apply(routes(5, &["127.0.0.9"], Limits::default()))).await, Reply::Stale { revision: 6 });
    assert_eq!(rig.ask(Command::Apply(routes(6, &["127.0.0.9"], Limits::default()))).await, Reply::Stale { revision: 6 });
    let broken = Routes { version: 9, ..routes(7, &[&a], Limits::default()) };
    assert!(matches!(rig.ask(Command::Apply(broken)).await, Reply::Error(why) if why.contains("version 9")));
    rig.stop.cancel();
    let copy = tempfile::tempdir().unwrap();
    std::fs::copy(rig.dir.path().join("routes.json"), copy.path().join("routes.json")).unwrap();
    let next = front_in(copy, "127.0.0.1:0", rig.port).await;
    assert_eq!((next.status().await.revision, next.exchange(b"x").await.unwrap()), (6, b"127.0.0.2:x".to_vec()));
}

#[tokio::test]
async fn without_routes_it_starts_and_holds() {
    let mut listeners = backends(&["127.0.0.2"]).await;
    let port = listeners[0].local_addr().unwrap().port();
    let a = echo(listeners.remove(0));
    let rig = front_in(tempfile::tempdir().unwrap(), "127.0.0.1:0", port).await;
    let stream = rig.connect().await;
    let status = rig.until("it waits", |s| s.held == 1).await;
    assert!(status.problem.is_some(), "and says why");
    rig.apply(routes(1, &[&a], Limits::default())).await;
    assert_eq!(finish(stream, b"x").await.unwrap(), b"127.0.0.2:x");
}

#[tokio::test]
async fn a_backend_that_asks_for_it_learns_the_clients_address() {
    let mut listeners = backends(&["127.0.0.2"]).await;
    let port = listeners[0].local_addr().unwrap().port();
    let a = echo(listeners.remove(0));
    let rig = front(&routes(1, &[&a], Limits { proxy_protocol: true, ..Limits::default() }), port).await;
    let stream = rig.connect().await;
    let want = proxy::header(stream.local_addr().unwrap(), stream.peer_addr().unwrap());
    assert_eq!(finish(stream, b"x").await.unwrap(), [b"127.0.0.2:".as_slice(), &want, b"x"].concat());
}

#[tokio::test]
async fn one_socket_takes_both_families() {
    let mut listeners = backends(&["127.0.0.2"]).await;
    let port = listeners[0].local_addr().unwrap().port();
    let a = echo(listeners.remove(0));
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("routes.json"), serde_json::to_string(&routes(1, &[&a], Limits::default())).unwrap()).unwrap();
    let rig = front_in(dir, "[::]:0", port).await;
    for client in ["[::1]", "127.0.0.1"] {
        let stream = TcpStream::connect(format!("{client}:{}", rig.address.port())).await.unwrap();
        assert_eq!(finish(stream, b"x").await.unwrap(), b"127.0.0.2:x", "{client}");
    }
}

#[tokio::test]
async fn silent_sessions_end() {
    let listeners = backends(&["127.0.0.2"]).await;
    let port = listeners[0].local_addr().unwrap().port();
    let limits = Limits { idle_ms: 300, ..Limits::default() };
    let rig = front(&routes(1, &["127.0.0.2"], limits), port).await;
    let mut silent = rig.connect().await;
    let (_backend, _) = listeners[0].accept().await.unwrap();
    let begun = std::time::Instant::now();
    assert_eq!(silent.read(&mut [0]).await.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
    assert!(begun.elapsed() >= Duration::from_millis(200), "not before its time");
    rig.until("none is left", |s| s.connections == 0).await;
}

#[tokio::test]
async fn a_half_open_session_ends_by_its_own_bound_and_not_before() {
    let listeners = backends(&["127.0.0.2"]).await;
    let port = listeners[0].local_addr().unwrap().port();
    // Without the bound of half-open sessions only that of silent ones would end it, a minute later.
    let limits = Limits { idle_ms: 60_000, half_open_ms: 300, ..Limits::default() };
    let rig = front(&routes(1, &["127.0.0.2"], limits), port).await;
    let mut whole = rig.connect().await;
    let (_backend, _) = listeners[0].accept().await.unwrap();
    let half = rig.connect().await.into_std().unwrap();
    half.shutdown(Shutdown::Write).unwrap();
    let mut half = TcpStream::from_std(half).unwrap();
    let (_other, _) = listeners[0].accept().await.unwrap();
    let begun = std::time::Instant::now();
    let ended = tokio::time::timeout(Duration::from_secs(30), half.read(&mut [0])).await.expect("by the bound of half-open sessions");
    assert_eq!(ended.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
    assert!(begun.elapsed() >= Duration::from_millis(200), "not before its time");
    rig.until("the other one is left", |s| s.connections == 1).await;
    whole.write_all(b"x").await.expect("it was never half open");
}

#[tokio::test]
async fn a_backend_that_breaks_breaks_the_client_instead_of_ending_in_order() {
    let listeners = backends(&["127.0.0.2"]).await;
    let port = listeners[0].local_addr().unwrap().port();
    let rig = front(&routes(1, &["127.0.0.2"], Limits::default()), port).await;
    let mut client = rig.connect().await;
    let (mut backend, _) = listeners[0].accept().await.unwrap();
    backend.write_all(b"half an ans").await.unwrap();
    let mut got = [0; 11];
    client.read_exact(&mut got).await.unwrap();
    relay::reset(&backend);
    drop(backend);
    assert_eq!(client.read(&mut [0]).await.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
}

#[test]
fn a_listen_argument_names_a_port_an_address_and_the_backends_port() {
    let parse = |t: &str| t.parse::<Listen>();
    let want = |address: &str, target| Ok(Listen { address: address.parse().unwrap(), target });
    assert_eq!(parse("80"), want("[::]:80", 80));
    assert_eq!(parse("127.0.0.1:8080"), want("127.0.0.1:8080", 8080));
    assert_eq!(parse("[::1]:8080=80"), want("[::1]:8080", 80));
    for bad in ["", "x", "80=", "80=x", "0", "70000"] {
        assert!(parse(bad).is_err(), "{bad}");
    }
}
