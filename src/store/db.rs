//! One database: a writer thread that commits what is queued together, and a few readers beside it. Every acknowledged write is on disk.
//! Deliberately absent: SQL. A closure gets the connection inside its own savepoint; if it fails, only what it did is undone.

use super::fault::{Fault, Sql};
use super::migrate::{self, Schema};
use super::reserve::Reserve;
use super::{StoreError, StoreResult, fault};
use rusqlite::Connection;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio::sync::{Semaphore, mpsc, oneshot};

/// Writes that may wait; more make their callers wait.
const QUEUE: usize = 1024;
/// Writes committed together at most: bounds how long the first of them waits.
const BATCH: usize = 256;
/// Longest wait of a commit for writes that are expected: what a slow disk takes must not become idle time.
const LONGEST_WAIT: Duration = Duration::from_millis(1);
/// Reads at once per database: more only contend for the disk.
const READERS: u32 = 4;

/// Tells the caller, once the fate of the whole batch is known.
type Answer = Box<dyn FnOnce(Result<(), StoreError>) + Send>;
/// Runs within the transaction (or, without a connection, not at all); says whether to keep it, and how to answer.
type Run = Box<dyn FnOnce(Option<&Connection>, &Path) -> (bool, Answer) + Send>;

/// A write that waits for its commit.
struct Job {
    undo: Undo,
    run: Run,
}

/// How a write that failed is undone without its neighbours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Undo {
    /// By its savepoint.
    Savepoint,
    /// It is one statement at most, which the database undoes itself: a savepoint around it would cost as much as the statement.
    Itself,
}

/// Bytes of a database file that are in use.
pub(super) fn used_bytes(c: &Connection) -> Sql<u64> {
    let number = |sql: &str| -> Sql<i64> { Ok(c.query_row(sql, [], |r| r.get(0))?) };
    let pages = number("PRAGMA page_count")? - number("PRAGMA freelist_count")?;
    Ok(u64::try_from(pages * number("PRAGMA page_size")?).unwrap_or_default())
}

/// An open database.
pub(super) struct Database {
    path: PathBuf,
    queue: Mutex<Option<mpsc::Sender<Job>>>,
    writer: Mutex<Option<JoinHandle<()>>>,
    idle: Mutex<Vec<Connection>>,
    permits: Arc<Semaphore>,
    reserve: Option<Arc<Reserve>>,
    /// How many writes are refused next.
    #[cfg(test)]
    pub(super) refuse: std::sync::atomic::AtomicU32,
}

/// A poisoned lock only says that a thread ended badly while it held it; what these guard is valid at every moment.
pub(super) fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Database {
    /// Opens, migrates, starts the writer. Blocks.
    pub(super) fn open(path: &Path, schema: &Schema, reserve: Option<Arc<Reserve>>) -> StoreResult<Arc<Self>> {
        let conn = migrate::open(path, schema)?;
        let (send, receive) = mpsc::channel(QUEUE);
        let (file, room) = (path.to_path_buf(), reserve.clone());
        let writer = std::thread::Builder::new()
            .name(format!("write {}", schema.name))
            .spawn(move || write_loop(&conn, &file, receive, room.as_deref()))
            .map_err(|e| fault::io(path, &e))?;
        Ok(Arc::new(Self {
            path: path.to_path_buf(),
            queue: Mutex::new(Some(send)),
            writer: Mutex::new(Some(writer)),
            idle: Mutex::new(Vec::new()),
            permits: Arc::new(Semaphore::new(READERS as usize)),
            reserve,
            #[cfg(test)]
            refuse: std::sync::atomic::AtomicU32::new(0),
        }))
    }

    /// Runs `f` on the writer and returns when its transaction is durable. `f` runs even when the caller stops waiting.
    pub(super) async fn write<T, F>(&self, f: F) -> StoreResult<T>
    where
        T: Send + 'static,
        F: FnOnce(&Connection) -> Sql<T> + Send + 'static,
    {
        self.write_told(Undo::Savepoint, f, |_| ()).await
    }

    /// As [`Self::write`]; `told` learns what came of it as soon as it is durable, on the writer and even when the caller has gone: it must not wait.
    /// With [`Undo::Itself`] an `f` that fails after its change loses the commit for all that share it.
    pub(super) async fn write_told<T, F, G>(&self, undo: Undo, f: F, told: G) -> StoreResult<T>
    where
        T: Send + 'static,
        F: FnOnce(&Connection) -> Sql<T> + Send + 'static,
        G: FnOnce(&T) + Send + 'static,
    {
        #[cfg(test)]
        {
            use std::sync::atomic::Ordering::SeqCst;
            if self.refuse.fetch_update(SeqCst, SeqCst, |n| n.checked_sub(1)).is_ok() {
                return Err(StoreError::Database { db: self.path.display().to_string(), detail: "refused (scripted)".into() });
            }
        }
        let queue = lock(&self.queue).clone().ok_or(StoreError::Closed)?;
        let (reply, answer) = oneshot::channel();
        let run: Run = Box::new(move |conn, path| {
            let Some(conn) = conn else {
                return (false, Box::new(move |broken| drop(reply.send(Err(broken.err().unwrap_or(StoreError::Closed))))));
            };
            let result = catch_unwind(AssertUnwindSafe(|| f(conn)))
                .unwrap_or_else(|_| {
                    Err(Fault::Store(StoreError::Database {
                        db: path.display().to_string(),
                        detail: "a write panicked; see the log".into(),
                    }))
                })
                .map_err(|e| e.named(path));
            let keep = result.is_ok();
            let answer: Answer = Box::new(move |commit| {
                let result = result.and_then(|v| commit.map(|()| v));
                if let Ok(done) = &result {
                    told(done);
                }
                // A caller that went away has no use for the answer.
                drop(reply.send(result));
            });
            (keep, answer)
        });
        queue.send(Job { undo, run }).await.map_err(|_| StoreError::Closed)?;
        let result = answer.await.map_err(|_| StoreError::Closed)?;
        if let (Err(StoreError::Full { .. }), Some(reserve)) = (&result, &self.reserve) {
            reserve.give_up("a write found it full");
        }
        result
    }

    /// Runs `f` on a read-only connection, off the async threads. Sees every write acknowledged before.
    pub(super) async fn read<T, F>(self: &Arc<Self>, f: F) -> StoreResult<T>
    where
        T: Send + 'static,
        F: FnOnce(&Connection) -> Sql<T> + Send + 'static,
    {
        let permit = Arc::clone(&self.permits).acquire_owned().await.map_err(|_| StoreError::Closed)?;
        let this = Arc::clone(self);
        let task = tokio::task::spawn_blocking(move || {
            let pooled = lock(&this.idle).pop();
            let conn = match pooled {
                Some(conn) => conn,
                None => migrate::open_reader(&this.path)?,
            };
            // One snapshot for all statements of the closure.
            let result = conn.unchecked_transaction().map_err(Fault::Sql).and_then(|tx| f(&tx)).map_err(|e| e.named(&this.path));
            lock(&this.idle).push(conn);
            drop(permit);
            result
        });
        match task.await {
            Ok(result) => result,
            Err(e) => Err(StoreError::Database { db: self.path.display().to_string(), detail: format!("a read ended early: {e}") }),
        }
    }

    /// Takes no more work, finishes what is queued, folds the WAL into the file. Later calls answer `Closed`.
    pub(super) async fn close(&self) {
        drop(lock(&self.queue).take());
        // All permits at once: reads under way end first. Fails only when another close was here before.
        let reads = self.permits.acquire_many(READERS).await;
        self.permits.close();
        drop(reads);
        lock(&self.idle).clear();
        let writer = lock(&self.writer).take();
        if let Some(writer) = writer {
            let joined = tokio::task::spawn_blocking(move || writer.join()).await;
            if !matches!(joined, Ok(Ok(()))) {
                tracing::error!(db = %self.path.display(), "the writer ended badly");
            }
        }
    }
}

fn write_loop(conn: &Connection, path: &Path, mut queue: mpsc::Receiver<Job>, reserve: Option<&Reserve>) {
    let mut pace = Pace::default();
    while let Some(first) = queue.blocking_recv() {
        if let Some(reserve) = reserve {
            reserve.look();
        }
        let mut batch = pace.batch(first, &mut queue);
        let commit = commit(conn, path, &mut batch);
        pace = Pace { callers: batch.taken, commit };
    }
    if let Err(e) = conn.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())) {
        tracing::warn!(db = %path.display(), error = %e, "the WAL stays beside the database until it is opened again");
    }
}

/// What the last commit tells about the next: callers that wait for one write each come back with the next as soon as they are answered, but
/// not all at once. Without waiting for them the first to come back has a commit of its own, and the others wait for two.
#[derive(Debug, Default)]
struct Pace {
    /// Writes of the last commit.
    callers: usize,
    /// How long the disk took for it.
    commit: Duration,
}

impl Pace {
    fn batch<'a, T>(&self, first: T, queue: &'a mut mpsc::Receiver<T>) -> Batch<'a, T> {
        Batch { first: Some(first), queue, taken: 0, expected: self.callers, patience: self.commit.min(LONGEST_WAIT) }
    }
}

/// The writes to commit together, each as it comes: those that wait, and those expected, for which all in all no longer is waited than a commit takes. Those
/// that are there are carried out meanwhile; a caller that is alone waits for nobody.
struct Batch<'a, T> {
    first: Option<T>,
    queue: &'a mut mpsc::Receiver<T>,
    taken: usize,
    expected: usize,
    patience: Duration,
}

impl<T> Iterator for Batch<'_, T> {
    type Item = T;

    fn next(&mut self) -> Option<T> {
        let mut idle = None;
        let next = loop {
            if self.taken == BATCH {
                break None;
            }
            if let Some(first) = self.first.take() {
                break Some(first);
            }
            match self.queue.try_recv() {
                Ok(job) => break Some(job),
                Err(mpsc::error::TryRecvError::Empty)
                    if self.taken < self.expected && idle.get_or_insert_with(Instant::now).elapsed() < self.patience =>
                {
                    std::thread::yield_now();
                }
                Err(_) => break None,
            }
        };
        if let Some(since) = idle {
            self.patience = self.patience.saturating_sub(since.elapsed());
        }
        self.taken += usize::from(next.is_some());
        next
    }
}

/// Runs a batch as one transaction and answers each job after the commit, which took so long.
fn commit(conn: &Connection, path: &Path, batch: impl Iterator<Item = Job>) -> Duration {
    let mut answers: Vec<Answer> = vec![];
    let mut begun = None;
    let ran = run(conn, path, batch, &mut answers).and_then(|()| {
        begun = Some(Instant::now());
        step(conn, "COMMIT")
    });
    let took = begun.map_or(Duration::ZERO, |at| at.elapsed());
    let done = ran.map_err(|e| {
        if !conn.is_autocommit()
            && let Err(undo) = conn.execute_batch("ROLLBACK")
        {
            tracing::error!(db = %path.display(), error = %undo, "rollback failed");
        }
        fault::database(path, e)
    });
    for answer in answers {
        answer(done.clone());
    }
    took
}

fn run(conn: &Connection, path: &Path, batch: impl Iterator<Item = Job>, answers: &mut Vec<Answer>) -> rusqlite::Result<()> {
    let begun = step(conn, "BEGIN IMMEDIATE");
    let mut broken = begun.err();
    for Job { undo, run } in batch {
        // After the transaction broke, jobs only learn so: nothing may run outside of one.
        if broken.is_some() {
            answers.push(run(None, path).1);
            continue;
        }
        let (saved, before) = (undo == Undo::Savepoint, conn.total_changes());
        if saved && let Err(e) = step(conn, "SAVEPOINT job") {
            broken = Some(e);
            answers.push(run(None, path).1);
            continue;
        }
        let (keep, answer) = run(Some(conn), path);
        answers.push(answer);
        broken = match (saved, keep) {
            (true, true) => step(conn, "RELEASE job").err(),
            (true, false) => step(conn, "ROLLBACK TO job").and_then(|()| step(conn, "RELEASE job")).err(),
            (false, false) if conn.total_changes() != before => Some(left_behind()),
            (false, _) => None,
        };
        // Some errors (I/O, memory) make SQLite roll everything back by itself: what came before is gone, and what comes after would be a transaction each.
        broken = broken.or_else(|| conn.is_autocommit().then(rolled_back));
    }
    broken.map_or(Ok(()), Err)
}

/// A write that was to be one statement failed after it.
fn left_behind() -> rusqlite::Error {
    let text = "a write that failed left a change behind".to_owned();
    rusqlite::Error::SqliteFailure(rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_MISUSE), Some(text))
}

/// The whole transaction ended in the middle.
fn rolled_back() -> rusqlite::Error {
    let text = "the database rolled the whole transaction back".to_owned();
    rusqlite::Error::SqliteFailure(rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_ABORT), Some(text))
}

fn step(conn: &Connection, sql: &str) -> rusqlite::Result<()> {
    conn.prepare_cached(sql)?.execute([]).map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc as sync;

    const SCHEMA: Schema = Schema { name: "t.db", steps: &["CREATE TABLE a (x INTEGER PRIMARY KEY);"] };

    fn open() -> (tempfile::TempDir, Arc<Database>) {
        let dir = tempfile::tempdir().unwrap();
        let db = Database::open(&dir.path().join("t.db"), &SCHEMA, None).unwrap();
        (dir, db)
    }

    async fn rows(db: &Arc<Database>) -> Vec<i64> {
        db.read(|c| {
            let mut s = c.prepare("SELECT x FROM a ORDER BY x")?;
            Ok(s.query_map([], |r| r.get(0))?.collect::<rusqlite::Result<Vec<i64>>>()?)
        })
        .await
        .unwrap()
    }

    /// Holds the writer inside a job until all `others` are queued, so that they form one batch with what follows.
    async fn blocked(db: &Arc<Database>) -> (sync::Sender<()>, tokio::task::JoinHandle<StoreResult<()>>) {
        let (release, wait) = sync::channel::<()>();
        let (entered_send, entered) = oneshot::channel::<()>();
        let db = Arc::clone(db);
        let task = tokio::spawn(async move {
            db.write(move |_| {
                entered_send.send(()).unwrap();
                wait.recv().unwrap();
                Ok(())
            })
            .await
        });
        entered.await.unwrap();
        (release, task)
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_failing_or_panicking_write_does_not_fail_its_neighbours() {
        let (_dir, db) = open();
        let (release, first) = blocked(&db).await;
        let insert = |x: i64| {
            let db = Arc::clone(&db);
            async move { db.write(move |c| Ok(c.execute("INSERT INTO a VALUES (?1)", [x])?)).await }
        };
        let bad = async {
            db.write(|c| {
                c.execute("INSERT INTO a VALUES (100)", [])?;
                c.execute("INSERT INTO a VALUES (1)", [])?;
                Ok(())
            })
            .await
        };
        let panics = async {
            db.write(|c| {
                c.execute("INSERT INTO a VALUES (200)", [])?;
                assert!(c.is_autocommit(), "fails on purpose");
                Ok(())
            })
            .await
        };
        let go = async {
            release.send(()).unwrap();
        };
        let (one, bad, panics, two, ()) = tokio::join!(insert(1), bad, panics, insert(2), go);
        first.await.unwrap().unwrap();
        assert_eq!(one.unwrap(), 1);
        assert_eq!(two.unwrap(), 1);
        assert!(matches!(&bad, Err(StoreError::Database { detail, .. }) if detail.contains("UNIQUE")), "{bad:?}");
        assert!(matches!(&panics, Err(StoreError::Database { detail, .. }) if detail.contains("panicked")), "{panics:?}");
        assert_eq!(rows(&db).await, [1, 2]);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_write_that_loses_the_transaction_is_told_to_everyone_in_it() {
        let (_dir, db) = open();
        let (release, first) = blocked(&db).await;
        let kept = async { db.write(|c| Ok(c.execute("INSERT INTO a VALUES (1)", [])?)).await };
        let breaks = async {
            db.write(|c| {
                c.execute_batch("ROLLBACK")?;
                Ok(())
            })
            .await
        };
        let after = async { db.write(|c| Ok(c.execute("INSERT INTO a VALUES (2)", [])?)).await };
        let go = async {
            release.send(()).unwrap();
        };
        let (kept, breaks, after, ()) = tokio::join!(kept, breaks, after, go);
        // Whether it shared the transaction is the writer's matter.
        let _ = first.await.unwrap();
        // No acknowledged row is missing, and no refused row is there.
        let acknowledged: Vec<i64> = [(1, kept.is_ok()), (2, after.is_ok())].into_iter().filter(|(_, ok)| *ok).map(|(x, _)| x).collect();
        assert!(breaks.is_err());
        assert_eq!(rows(&db).await, acknowledged);
        db.write(|c| Ok(c.execute("INSERT INTO a VALUES (3)", [])?)).await.unwrap();
        assert!(rows(&db).await.contains(&3), "the writer goes on");
    }

    /// As SQLite does by itself on an I/O error in the middle of a single statement.
    #[tokio::test(flavor = "multi_thread")]
    async fn what_comes_after_a_write_that_lost_the_transaction_is_not_written_outside_of_one() {
        let (_dir, db) = open();
        let (release, first) = blocked(&db).await;
        let one = |x: i64| {
            let db = Arc::clone(&db);
            async move { db.write_told(Undo::Itself, move |c| Ok(c.execute("INSERT INTO a VALUES (?1)", [x])?), |_| ()).await }
        };
        let breaks = async {
            db.write_told(
                Undo::Itself,
                |c| {
                    c.execute_batch("ROLLBACK")?;
                    Err::<(), _>(StoreError::Closed.into())
                },
                |()| (),
            )
            .await
        };
        let go = async {
            release.send(()).unwrap();
        };
        let (before, breaks, after, ()) = tokio::join!(one(1), breaks, one(2), go);
        let _ = first.await.unwrap();
        let acknowledged: Vec<i64> = [(1, before.is_ok()), (2, after.is_ok())].into_iter().filter(|(_, ok)| *ok).map(|(x, _)| x).collect();
        assert!(breaks.is_err());
        assert_eq!(rows(&db).await, acknowledged, "who was told of an error has left nothing");
        one(3).await.unwrap();
    }

    #[test]
    fn callers_that_come_back_are_waited_for_within_bounds_and_a_lone_one_waits_for_nobody() {
        let (send, mut receive) = mpsc::channel(64);
        let alone = Pace { callers: 1, commit: Duration::from_secs(60) };
        let begun = Instant::now();
        assert_eq!(alone.batch(0, &mut receive).collect::<Vec<_>>(), [0]);
        assert!(begun.elapsed() < LONGEST_WAIT * 100);
        // Two came back late, within the time of a commit; a third never.
        let two = Pace { callers: 4, commit: Duration::from_secs(60) };
        send.try_send(1).unwrap();
        let late = std::thread::spawn(move || send.try_send(2).map(|()| send).unwrap());
        let send = late.join().unwrap();
        let begun = Instant::now();
        assert_eq!(two.batch(0, &mut receive).collect::<Vec<_>>(), [0, 1, 2]);
        assert!(begun.elapsed() >= LONGEST_WAIT, "the fourth was expected");
        // Whoever comes while another's write is carried out shares its commit, expected or not.
        let mut batch = alone.batch(0, &mut receive);
        assert_eq!(batch.next(), Some(0));
        send.try_send(3).unwrap();
        assert_eq!((batch.next(), batch.next(), batch.taken), (Some(3), None, 2));
        // Nothing is left behind beyond the most that are committed together.
        for n in 0..64 {
            send.try_send(n).unwrap();
        }
        assert_eq!(Pace::default().batch(0, &mut receive).count(), 65);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_single_statement_undoes_itself_and_what_fails_after_it_is_committed_by_nobody() {
        let (_dir, db) = open();
        let insert = |x: i64, fails: bool| {
            let db = Arc::clone(&db);
            async move {
                let write = move |c: &Connection| {
                    c.execute("INSERT INTO a VALUES (?1)", [x])?;
                    if fails { Err(StoreError::Closed.into()) } else { Ok(()) }
                };
                db.write_told(Undo::Itself, write, |()| ()).await
            }
        };
        let (release, first) = blocked(&db).await;
        let go = async { release.send(()).unwrap() };
        let (one, again, two, ()) = tokio::join!(insert(1, false), insert(1, false), insert(2, false), go);
        first.await.unwrap().unwrap();
        assert!((one.is_ok(), two.is_ok()) == (true, true) && again.is_err_and(|e| e.to_string().contains("UNIQUE")));
        assert_eq!(rows(&db).await, [1, 2], "the second of a kind left nothing, and took nobody along");
        let (release, first) = blocked(&db).await;
        let go = async { release.send(()).unwrap() };
        let (kept, fails, ()) = tokio::join!(insert(3, false), insert(4, true), go);
        let first = first.await.unwrap();
        // Which of them shared its commit is the writer's matter: no acknowledged row is missing, and none is there that was refused.
        assert!(fails.is_err());
        let expected: Vec<i64> = [1, 2].into_iter().chain(kept.is_ok().then_some(3)).collect();
        assert_eq!((rows(&db).await, first.is_ok()), (expected, kept.is_ok()), "{kept:?} {first:?}");
        insert(5, false).await.unwrap();
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn close_finishes_what_is_queued_and_then_refuses() {
        let (dir, db) = open();
        let (release, first) = blocked(&db).await;
        let closing = {
            let db = Arc::clone(&db);
            let write = db.write(|c| Ok(c.execute("INSERT INTO a VALUES (7)", [])?));
            let mut write = Box::pin(write);
            // Polled once: queued.
            assert!(futures_util::poll!(&mut write).is_pending());
            let close = tokio::spawn({
                let db = Arc::clone(&db);
                async move { db.close().await }
            });
            release.send(()).unwrap();
            assert_eq!(write.await.unwrap(), 1);
            close
        };
        closing.await.unwrap();
        first.await.unwrap().unwrap();
        assert!(matches!(db.write(|_| Ok(())).await, Err(StoreError::Closed)));
        assert!(matches!(db.read(|_| Ok(())).await, Err(StoreError::Closed)));
        assert_eq!(std::fs::metadata(dir.path().join("t.db-wal")).map_or(0, |m| m.len()), 0);
        let plain = Connection::open(dir.path().join("t.db")).unwrap();
        assert_eq!(plain.query_row("SELECT x FROM a", [], |r| r.get::<_, i64>(0)).unwrap(), 7);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn readers_cannot_write() {
        let (_dir, db) = open();
        let refused = db.read(|c| Ok(c.execute("INSERT INTO a VALUES (1)", [])?)).await;
        assert!(matches!(&refused, Err(StoreError::Database { detail, .. }) if detail.contains("readonly")), "{refused:?}");
    }
}
