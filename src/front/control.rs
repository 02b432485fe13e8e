//! The control socket: one JSON line in, one out. Only those who may write the routes' directory can connect.

use super::file::RoutesFile;
use super::table::Table;
use crate::model::front::{Command, MAX_DRAIN_MS, MAX_ROUTES, Reply};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio_util::sync::CancellationToken;

/// Time for a command to arrive, and for its answer beyond what it asks to wait.
const PATIENCE: Duration = Duration::from_secs(10);
/// Longest wait for sessions to end.
const LONGEST: Duration = Duration::from_millis(MAX_DRAIN_MS);

/// Answers until `stop`.
pub(super) async fn serve(listener: UnixListener, table: Arc<Table>, file: Arc<RoutesFile>, stop: CancellationToken) {
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stop.cancelled() => return,
        };
        match accepted {
            Ok((stream, _)) => {
                let (table, file) = (table.clone(), file.clone());
                tokio::spawn(async move {
                    if let Err(e) = answer(stream, &table, &file).await {
                        tracing::debug!(error = %e, "a control connection broke");
                    }
                });
            }
            Err(e) => {
                tracing::warn!(error = %e, "a control connection could not be accepted");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

async fn answer(stream: UnixStream, table: &Arc<Table>, file: &Arc<RoutesFile>) -> std::io::Result<()> {
    let (read, mut write) = stream.into_split();
    let mut line = String::new();
    let mut bounded = BufReader::new(read.take(2 * MAX_ROUTES as u64));
    tokio::time::timeout(PATIENCE, bounded.read_line(&mut line)).await??;
    let reply = match serde_json::from_str::<Command>(&line) {
        Ok(Command::Apply(routes)) => {
            let (table, file) = (table.clone(), file.clone());
            // It waits for the disk.
            let applied = tokio::task::spawn_blocking(move || file.apply(&table, routes).map(|()| table.status())).await?;
            match applied {
                Ok(status) => Reply::Ok(status),
                Err(Ok(revision)) => Reply::Stale { revision },
                Err(Err(why)) => Reply::Error(why),
            }
        }
        Ok(Command::Status) => {
            file.load(table);
            Reply::Ok(table.status())
        }
        Ok(Command::Drained { backends, within_ms }) => {
            table.drained(&backends, Duration::from_millis(within_ms).min(LONGEST)).await;
            Reply::Ok(table.status())
        }
        Err(e) => Reply::Error(format!("no command this front knows: {e}")),
    };
    let mut text = serde_json::to_string(&reply)?;
    text.push('\n');
    write.write_all(text.as_bytes()).await
}

/// Sends a command to the front that listens on a socket. New routes whose leaving backends still have sessions are answered when those have ended,
/// within `settle`: that spares a second command. With `owner`, what listens there must run as that user.
///
/// # Errors
/// A sentence when it does not answer.
pub async fn ask(socket: &Path, command: &Command, settle: Option<Duration>, owner: Option<u32>) -> Result<Reply, String> {
    let reply = exchange(socket, command, owner).await?;
    match (command, &reply, settle) {
        (Command::Apply(_), Reply::Ok(status), Some(settle)) if status.open() > 0 => {
            let within_ms = u64::try_from(settle.as_millis()).unwrap_or(u64::MAX);
            exchange(socket, &Command::Drained { backends: vec![], within_ms }, owner).await
        }
        _ => Ok(reply),
    }
}

async fn exchange(socket: &Path, command: &Command, owner: Option<u32>) -> Result<Reply, String> {
    let wait = match command {
        Command::Drained { within_ms, .. } => Duration::from_millis(*within_ms).min(LONGEST),
        Command::Apply(_) | Command::Status => Duration::ZERO,
    };
    let failed = |e: std::io::Error| format!("the front at {} does not answer: {e}", socket.display());
    let exchange = async {
        let stream = UnixStream::connect(socket).await?;
        if let Some(owner) = owner
            && stream.peer_cred()?.uid() != owner
        {
            return Err(std::io::Error::other("what listens there is another user's"));
        }
        let (read, mut write) = stream.into_split();
        let mut text = serde_json::to_string(command)?;
        text.push('\n');
        write.write_all(text.as_bytes()).await?;
        let mut line = String::new();
        BufReader::new(read.take(2 * MAX_ROUTES as u64)).read_line(&mut line).await?;
        Ok::<_, std::io::Error>(line)
    };
    let line = tokio::time::timeout(wait + PATIENCE, exchange).await.map_err(|_| failed(std::io::ErrorKind::TimedOut.into()))?;
    serde_json::from_str(&line.map_err(failed)?).map_err(|e| format!("the front at {} answered what is no reply: {e}", socket.display()))
}
