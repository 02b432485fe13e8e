//! One worker: starts `dockwarden worker`, gives it its request, follows its lines, and ends it when it is let go of or uses more memory than it may. The
//! cap is kept from outside: where an allocation is refused inside of a library of threads, some of them end and the others wait for them for ever.
//! Deliberately absent: what is asked of it.

use super::{BackupError, BackupStore, ProgressSink};
use crate::executor::worker::{Line, Output, Request};
use async_trait::async_trait;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};

/// End of the worker's error output that is kept for a report, bytes.
const ERROR_TAIL: usize = 2000;
/// Longest wait for what a worker that has answered wrote beside its answer.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// Between two looks at its memory.
const LOOK: Duration = Duration::from_millis(100);

/// The worker as a process: `dockwarden worker`.
#[derive(Debug, Clone)]
pub struct WorkerProcess {
    /// Our own binary.
    exe: PathBuf,
    /// Most memory that one was seen to use, KiB.
    pub(crate) peak_kib: Arc<AtomicU64>,
}

impl WorkerProcess {
    /// Started from this binary.
    pub fn new(exe: PathBuf) -> Self {
        Self { exe, peak_kib: Arc::default() }
    }

    /// Size of the repository's index, which whoever reads a snapshot holds in memory, MiB; of one on another host it is not known.
    fn index_mib(repo: &Path) -> u64 {
        let entries = std::fs::read_dir(repo.join("index")).into_iter().flatten().flatten();
        entries.filter_map(|e| e.metadata().ok()).map(|m| m.len()).sum::<u64>() >> 20
    }

    /// Ends when the process uses more than so many MiB.
    async fn over(&self, pid: Option<u32>, cap: u64) {
        let Some(pid) = pid else { return std::future::pending().await };
        let path = format!("/proc/{pid}/status");
        let mut looks = tokio::time::interval(LOOK);
        looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            looks.tick().await;
            // One that has ended has no memory; whoever reads its lines sees its end.
            let Some(kib) = tokio::fs::read_to_string(&path).await.ok().as_deref().and_then(own_kib) else { continue };
            self.peak_kib.fetch_max(kib, Ordering::Relaxed);
            if kib >> 10 >= cap {
                return;
            }
        }
    }
}

#[async_trait]
impl BackupStore for WorkerProcess {
    // The child dies with this future.
    async fn ask(&self, request: &Request, memory_mib: Option<u64>, progress: ProgressSink) -> Result<Output, BackupError> {
        let lost = |what: &'static str, detail: String| BackupError::WorkerLost { what, detail };
        let mut line = serde_json::to_vec(request).map_err(|e| lost("was not asked", e.to_string()))?;
        line.push(b'\n');
        let mut child = tokio::process::Command::new(&self.exe)
            .arg("worker")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(|e| lost("could not be started", format!("{}: {e}", self.exe.display())))?;
        let mut stdin = child.stdin.take().expect("was piped");
        let stdout = child.stdout.take().expect("was piped");
        let stderr = child.stderr.take().expect("was piped");
        let tail = tokio::spawn(error_tail(stderr));
        let cap = memory_mib.unwrap_or_else(|| request.job.memory_mib() + 2 * Self::index_mib(&request.repo));
        let pid = child.id();
        let work = async {
            let asked = stdin.write_all(&line).await;
            let mut lines = BufReader::new(stdout).lines();
            while let Some(text) = lines.next_line().await.map_err(|e| lost("could not be read", e.to_string()))? {
                // Anything that is not of the protocol was printed by a library; it is not an answer.
                match serde_json::from_str::<Line>(&text) {
                    Ok(Line::Progress(p)) => progress(p),
                    Ok(Line::Done(output)) => return Ok((asked, Some(Ok(output)))),
                    Ok(Line::Failed(failure)) => return Ok((asked, Some(Err(failure)))),
                    Err(_) => tracing::debug!(line = %text, "worker printed"),
                }
            }
            Ok::<_, BackupError>((asked, None))
        };
        let (asked, answer) = tokio::select! {
            done = work => done?,
            () = self.over(pid, cap) => {
                // Not reaped before: until here the number was this child's.
                child.kill().await.map_err(|e| lost("could not be ended", e.to_string()))?;
                return Err(BackupError::OutOfMemory { mib: cap });
            }
        };
        // Closing its input is what ends a worker; until here it meant "go on".
        drop(stdin);
        let status = child.wait().await.map_err(|e| lost("could not be waited for", e.to_string()))?;
        match answer {
            Some(Ok(output)) => {
                // What it could do without. Whatever it has started may hold the pipe open: that is not waited for.
                let said = tokio::time::timeout(LAST_WORDS, tail).await.ok().and_then(Result::ok).unwrap_or_default();
                for line in said.lines().filter(|l| !l.trim().is_empty()) {
                    tracing::warn!(line, "a worker of the repository wrote");
                }
                Ok(output)
            }
            Some(Err(failure)) => Err(failure.into()),
            None => {
                let tail = tail.await.unwrap_or_default();
                let asked = asked.err().map(|e| format!("request not delivered: {e}; ")).unwrap_or_default();
                Err(lost(
                    "ended without an answer",
                    format!("{asked}{status}; {}", if tail.is_empty() { "it wrote no error" } else { tail.trim() }),
                ))
            }
        }
    }
}

/// Memory of its own: its binary and files it has mapped are the kernel's to take back.
fn own_kib(status: &str) -> Option<u64> {
    let of = |name: &str| -> Option<u64> {
        let line = status.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(':'))?;
        line.split_whitespace().next()?.parse().ok()
    };
    Some(of("RssAnon")? + of("RssShmem").unwrap_or_default() + of("VmSwap").unwrap_or_default())
}

async fn error_tail(mut stderr: tokio::process::ChildStderr) -> String {
    let mut kept = Vec::new();
    let mut chunk = [0u8; 4096];
    while let Ok(n) = stderr.read(&mut chunk).await {
        if n == 0 {
            break;
        }
        kept.extend_from_slice(&chunk[..n]);
        let surplus = kept.len().saturating_sub(ERROR_TAIL);
        kept.drain(..surplus);
    }
    String::from_utf8_lossy(&kept).into_owned()
}

#[cfg(test)]
mod tests {
    use super::own_kib;

    #[test]
    fn memory_of_its_own_is_told_from_mapped_files() {
        let status =
            "Name:\tx\nVmRSS:\t  9999 kB\nRssAnon:\t    1000 kB\nRssFile:\t  8000 kB\nRssShmem:\t      20 kB\nVmSwap:\t       3 kB\n";
        assert_eq!(own_kib(status), Some(1023));
        assert_eq!(own_kib("Name:\tx\nState:\tZ (zombie)\n"), None);
        let own = std::fs::read_to_string("/proc/self/status").unwrap();
        assert!(own_kib(&own).is_some_and(|kib| kib > 100), "{own}");
    }
}
