//! What is known of backups in numbers, for those who watch from outside: the newest snapshot of each source, how long backups took, how operations on data
//! ended. Deliberately absent: the size of the repository, which is the disk's to tell.

use super::{Store, StoreResult, WHAT};
use crate::store::codec::{all, limit, parse_time, uint};
use crate::store::fault::Sql;
use chrono::{DateTime, Utc};
use rusqlite::{Connection, Row, params};

/// Numbers of backups.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Figures {
    /// Sources, the one read last first; no more than asked for.
    pub sources: Vec<SourceFigures>,
    /// Sources beyond those.
    pub left_out: u64,
    /// The last whole backup of each stack, ms from acceptance to end; `None` is the supervisor's own.
    pub durations: Vec<(Option<String>, u64)>,
    /// Operations on data that have ended: verb, state, how many.
    pub ended: Vec<(String, String, u64)>,
}

/// Numbers of one source.
#[derive(Debug, Clone, PartialEq)]
pub struct SourceFigures {
    /// Stack.
    pub stack: Option<String>,
    /// Volume, directory or output.
    pub source: String,
    /// Snapshots that are recorded.
    pub snapshots: u64,
    /// When the newest whole one was taken.
    pub last_success: Option<DateTime<Utc>>,
    /// Bytes of data in the newest one.
    pub bytes: u64,
    /// Bytes the newest one added to the repository.
    pub added: u64,
}

impl Store {
    /// Numbers of backups, of at most so many sources and stacks.
    pub async fn backup_figures(&self, most: usize, verbs: &'static [&'static str]) -> StoreResult<Figures> {
        self.inner.state.read(move |c| figures(c, most, verbs)).await
    }
}

fn figures(c: &Connection, most: usize, verbs: &[&str]) -> Sql<Figures> {
    let mut sources = c.prepare_cached(
        "SELECT n.stack, n.volume, n.snapshots, n.bytes, n.added,
                (SELECT max(g.at) FROM backup AS g WHERE g.volume = n.volume AND g.stack IS n.stack AND g.state = 'complete')
         FROM (SELECT stack, volume, count(*) AS snapshots, max(at) AS newest, bytes, added FROM backup GROUP BY stack, volume) AS n
         ORDER BY n.newest DESC, n.volume LIMIT ?1",
    )?;
    let sources = all(&mut sources, params![limit(most)], source)?;
    let known: i64 = c.query_row("SELECT count(*) FROM (SELECT DISTINCT stack, volume FROM backup)", [], |r| r.get(0))?;
    let mut durations = c.prepare_cached(
        "SELECT stack, created_at, settled_at, max(created_at) FROM operation
         WHERE verb = 'backup' AND state = 'done' AND settled_at IS NOT NULL GROUP BY stack ORDER BY max(created_at) DESC LIMIT ?1",
    )?;
    let durations = all(&mut durations, params![limit(most)], |r| {
        let time = |n: usize| -> Sql<DateTime<Utc>> { Ok(parse_time("operation", &r.get::<_, String>(n)?)?) };
        let ms = (time(2)? - time(1)?).num_milliseconds();
        Ok((r.get(0)?, u64::try_from(ms).unwrap_or_default()))
    })?;
    let mut ended =
        c.prepare_cached("SELECT verb, state, count(*) FROM operation WHERE terminal = 1 GROUP BY verb, state ORDER BY verb, state")?;
    let mut ended: Vec<(String, String, u64)> = all(&mut ended, [], |r| Ok((r.get(0)?, r.get(1)?, uint("operation", r.get(2)?)?)))?;
    ended.retain(|(verb, _, _)| verbs.contains(&verb.as_str()));
    let known: u64 = uint(WHAT, known)?;
    Ok(Figures { left_out: known.saturating_sub(sources.len() as u64), sources, durations, ended })
}

fn source(r: &Row<'_>) -> Sql<SourceFigures> {
    let last: Option<String> = r.get(5)?;
    Ok(SourceFigures {
        stack: r.get(0)?,
        source: r.get(1)?,
        snapshots: uint(WHAT, r.get(2)?)?,
        last_success: last.map(|at| parse_time(WHAT, &at)).transpose()?,
        bytes: uint(WHAT, r.get(3)?)?,
        added: uint(WHAT, r.get(4)?)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::backup::BackupRecord;
    use chrono::TimeDelta;

    fn record(id: &str, stack: Option<&str>, volume: &str, hour: i64, state: &str, added: u64) -> BackupRecord {
        BackupRecord {
            snapshot_id: id.into(),
            stack: stack.map(str::to_owned),
            volume: volume.into(),
            bytes: 10 * added,
            added,
            files: 1,
            state: state.into(),
            at: DateTime::UNIX_EPOCH + TimeDelta::hours(hour),
            agent: "tester".into(),
            release: None,
            tags: vec![],
            operation: None,
            copies: vec![],
        }
    }

    #[tokio::test]
    async fn each_source_shows_its_newest_snapshot_and_its_newest_whole_one() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("home"), &dir.path().join("memory")).await.unwrap();
        for r in [
            record("a", Some("shop"), "data", 1, "complete", 5),
            record("b", Some("shop"), "data", 3, "partial", 7),
            record("c", Some("shop"), "data", 2, "complete", 6),
            record("d", None, "own", 4, "complete", 1),
            record("e", Some("shop"), "broken", 0, "partial", 2),
        ] {
            store.put_backup(&r).await.unwrap();
        }
        let hour = |h: i64| Some(DateTime::UNIX_EPOCH + TimeDelta::hours(h));
        let figures = store.backup_figures(10, &["backup"]).await.unwrap();
        let shown: Vec<_> = figures.sources.iter().map(|s| (s.source.as_str(), s.snapshots, s.last_success, s.bytes, s.added)).collect();
        assert_eq!(shown, [("own", 1, hour(4), 10, 1), ("data", 3, hour(2), 70, 7), ("broken", 1, None, 20, 2)]);
        assert_eq!((figures.left_out, figures.ended.len(), figures.durations.len()), (0, 0, 0));
        let few = store.backup_figures(1, &["backup"]).await.unwrap();
        assert_eq!((few.sources.len(), few.left_out), (1, 2), "the others are counted");
    }
}
