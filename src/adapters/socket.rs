//! The local door: a unix socket in the home. Its first line says which protocol follows: MCP (the stdio bridge) or the command line's
//! own. Who may act as which agent is read from the kernel's word on the peer, never from the line.

pub mod admin;
pub mod client;
pub mod credential;
pub mod handover;
pub mod others;
pub mod peer;
mod places;
pub mod wire;

use super::mcp::{Caller, stdio};
use super::{Doors, client_text};
use crate::call::{CallError, Door, Principal};
use crate::model::ids::AgentName;
use crate::tools::toolsets::Selection;
use peer::Peer;
use places::Places;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};
use wire::{Answer, Ask, HelloDoor, Welcome};

/// Time for the first line: the bridge sends it at once.
const HELLO_WITHIN: Duration = Duration::from_secs(10);

/// Makes the socket, for the home's owner alone until `others::pass`: its directory 0700, itself 0660, a left-over one of a dead supervisor replaced (the home's lock is held).
///
/// # Errors
/// The file system's.
pub fn bind(path: &Path) -> std::io::Result<UnixListener> {
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir)?;
        std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o700))?;
    }
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660))?;
    Ok(listener)
}

/// Accepts until shutdown. `owner` is the uid the home belongs to.
pub async fn serve(doors: Arc<Doors>, listener: UnixListener, owner: u32) {
    let places = Arc::new(Places::default());
    loop {
        let accepted = tokio::select! {
            () = doors.shutdown.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(e) => {
                // Out of descriptors: pause instead of spinning.
                tracing::warn!(error = %e, "the local socket could not accept");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let peer = match stream.peer_cred() {
            Ok(cred) => Peer { uid: cred.uid(), owner },
            Err(e) => {
                tracing::warn!(error = %e, "the kernel does not tell who a local client is; it was turned away");
                continue;
            }
        };
        let Some(place) = places.take(&peer) else {
            tracing::warn!(uid = peer.uid, "too many local clients of this user, or in all; one was turned away");
            continue;
        };
        let doors = Arc::clone(&doors);
        tokio::spawn(async move {
            let _here = doors.presence.enter();
            if let Err(e) = client_session(&doors, stream, peer).await {
                tracing::debug!(error = %e, "a local client's connection ended");
            }
            drop(place);
        });
    }
}

async fn client_session(doors: &Arc<Doors>, stream: UnixStream, peer: Peer) -> std::io::Result<()> {
    let (read, mut write) = stream.into_split();
    let mut read = BufReader::new(read);
    let hello = match tokio::time::timeout(HELLO_WITHIN, line(&mut read)).await {
        Ok(Ok(Some(text))) => wire::parse_hello(&text),
        Ok(Ok(None)) => return Ok(()),
        Ok(Err(e)) => return Err(e),
        Err(_) => Err("no first line came".to_owned()),
    };
    let admitted = hello.map_err(|e| refused(&format!("the first line is not understood: {e}"))).and_then(|hello| {
        let agent = match (&hello.agent, hello.door) {
            (Some(name), _) => Some(admit(doors, &peer, name)?),
            (None, HelloDoor::Cli) => None,
            (None, HelloDoor::Mcp) => return Err(refused("the first line names no agent")),
        };
        let toolsets = hello.toolsets.as_deref().map(Selection::parse).transpose()?.unwrap_or_default();
        Ok((hello, agent, toolsets))
    });
    let (hello, agent, toolsets) = match admitted {
        Ok(admitted) => admitted,
        Err(error) => return send(&mut write, &Welcome::Refused { error }).await,
    };
    send(&mut write, &Welcome::Ok { ok: true, version: env!("CARGO_PKG_VERSION").into() }).await?;
    match (hello.door, agent) {
        (HelloDoor::Mcp, Some(agent)) => {
            stdio::serve(Arc::clone(doors), Caller { agent, read_only: hello.read_only, toolsets }, read, write).await;
            Ok(())
        }
        (_, agent) => commands(doors, &peer, agent, hello.read_only, read, write).await,
    }
}

fn refused(message: &str) -> CallError {
    CallError::new(
        crate::call::error::ErrorCode::InvalidArgument,
        message,
        "use the dockwarden binary of the same version as the supervisor",
    )
}

fn admit(doors: &Doors, peer: &Peer, name: &str) -> Result<AgentName, CallError> {
    let rulebook = doors.house.rulebook.load();
    peer::admit(peer, name, &rulebook.policy.peers, &rulebook.agents.keys().map(String::as_str).collect::<Vec<_>>())
}

/// One bounded line without its newline; `None` at the end.
async fn line(read: &mut BufReader<OwnedReadHalf>) -> std::io::Result<Option<String>> {
    let mut bytes = Vec::new();
    let taken = (&mut *read).take(stdio::MAX_LINE as u64 + 1).read_until(b'\n', &mut bytes).await?;
    if taken > stdio::MAX_LINE {
        return Err(std::io::Error::other("a line of more than 4 MiB"));
    }
    if taken == 0 {
        return Ok(None);
    }
    String::from_utf8(bytes).map(|s| Some(s.trim_end().to_owned())).map_err(std::io::Error::other)
}

async fn send<T: serde::Serialize>(write: &mut OwnedWriteHalf, value: &T) -> std::io::Result<()> {
    let mut bytes = serde_json::to_vec(value)?;
    bytes.push(b'\n');
    write.write_all(&bytes).await
}

/// The command line's protocol: one request at a time, progress lines before its answer.
async fn commands(
    doors: &Arc<Doors>,
    peer: &Peer,
    agent: Option<AgentName>,
    read_only: bool,
    mut read: BufReader<OwnedReadHalf>,
    mut write: OwnedWriteHalf,
) -> std::io::Result<()> {
    while let Some(text) = line(&mut read).await? {
        if text.is_empty() {
            continue;
        }
        let (id, result) = match serde_json::from_str::<Ask>(&text) {
            Err(e) => (serde_json::Value::Null, Err(refused(&format!("the request is not understood: {e}")))),
            Ok(Ask::Admin { id, admin }) => (id, admin::run(doors, peer, admin).await),
            Ok(Ask::Tool { id, tool, input }) => match &agent {
                None => (id, Err(refused("the first line named no agent, so no tool can be called"))),
                Some(agent) => {
                    let client = Some(client_text(&format!("dockwarden cli uid {}", peer.uid)));
                    let door = if peer.uid == peer.owner || peer.uid == 0 { Door::Cli } else { Door::PeerCli };
                    let who = Principal { agent: agent.clone(), door, client, read_only, on_behalf: vec![] };
                    let (sender, mut lines) = tokio::sync::mpsc::channel(32);
                    let call = doors.call(who, tool, input, Some(sender));
                    tokio::pin!(call);
                    let result = loop {
                        tokio::select! {
                            biased;
                            Some((percent, message)) = lines.recv() => send(&mut write, &Answer::progress(id.clone(), percent, message)).await?,
                            result = &mut call => break result,
                        }
                    };
                    (id, result)
                }
            },
        };
        let answer = match result {
            Ok(reply) => Answer::Done { id, ok: reply.value, text: reply.text },
            Err(error) => Answer::Error { id, error: error_value(&error) },
        };
        send(&mut write, &answer).await?;
    }
    Ok(())
}

fn error_value(error: &CallError) -> serde_json::Value {
    if let Some(detail) = &error.detail {
        tracing::warn!(code = ?error.code, detail, "a local request failed");
    }
    serde_json::to_value(error)
        .unwrap_or_else(|e| serde_json::json!({"code": "internal", "message": e.to_string(), "hint": "see the supervisor's log"}))
}
