//! The whole log, wherever its rows are: the sealed segments, oldest first, then the database. Every question about rows that may have been
//! sealed is asked here. Deliberately absent: sealing (`rotate`) and doubting what is read (`verify`).

use super::export::First;
use super::rows::{self, RawRow};
use super::{AuditQuery, AuditRow};
use crate::store::chain::Hash;
use crate::store::codec::{all, parse_time};
use crate::store::fault::{Sql, corrupt, database};
use chrono::{DateTime, Utc};
use rusqlite::{Connection, OpenFlags};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// Directory of the segments under the home.
pub(in crate::store) const DIR: &str = "audit";
/// Most first times told at once.
const MOST_FIRSTS: usize = 200;

/// A sealed part of the log, as the database lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::store) struct Segment {
    /// Number of its first row.
    pub first: i64,
    /// Number of its last row.
    pub last: i64,
    /// Hash of its last row.
    pub head: Hash,
    /// SHA-256 of its file.
    pub sha256: Hash,
    /// Time of its oldest row.
    pub from_at: DateTime<Utc>,
    /// Time of its newest row.
    pub to_at: DateTime<Utc>,
}

/// File of the segment that begins with a row.
pub(super) fn file(dir: &Path, first: i64) -> PathBuf {
    dir.join(format!("segment-{first:012}.db"))
}

/// Its seal.
pub(super) fn seal_file(dir: &Path, first: i64) -> PathBuf {
    dir.join(format!("segment-{first:012}.seal"))
}

/// Segments the database lists, oldest first.
pub(super) fn list(c: &Connection) -> Sql<Vec<Segment>> {
    let mut statement = c.prepare_cached("SELECT first, last, head, sha256, from_at, to_at FROM segment ORDER BY first")?;
    all(&mut statement, [], |r| {
        let at = |n: usize| -> Sql<DateTime<Utc>> { Ok(parse_time("audit segment", &r.get::<_, String>(n)?)?) };
        Ok(Segment { first: r.get(0)?, last: r.get(1)?, head: r.get(2)?, sha256: r.get(3)?, from_at: at(4)?, to_at: at(5)? })
    })
}

/// Number of the last sealed row; 0 when none is.
pub(super) fn sealed_to(c: &Connection) -> Sql<i64> {
    Ok(c.prepare_cached("SELECT coalesce(max(last), 0) FROM segment")?.query_row([], |r| r.get(0))?)
}

/// Opens a segment. Nobody writes it, so nothing is locked.
pub(super) fn open(dir: &Path, first: i64) -> Result<Connection, crate::store::StoreError> {
    let path = file(dir, first);
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX | OpenFlags::SQLITE_OPEN_URI;
    let mut uri = String::from("file:");
    for byte in path.as_os_str().as_encoded_bytes() {
        match byte {
            b'/' | b'.' | b'-' | b'_' | b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' => uri.push(char::from(*byte)),
            other => uri.push_str(&format!("%{other:02X}")),
        }
    }
    uri.push_str("?immutable=1");
    let opened = Connection::open_with_flags(uri, flags).and_then(|c| c.pragma_update(None, "trusted_schema", "OFF").map(|()| c));
    opened.map_err(|e| match std::fs::metadata(&path) {
        Err(gone) => {
            corrupt("audit segment", format!("{}: {gone}; put it back from a copy of the home, and run audit verify", path.display()))
        }
        Ok(_) => database(&path, e),
    })
}

/// The log as one snapshot of the database sees it.
pub(in crate::store) struct Log<'a> {
    live: &'a Connection,
    dir: &'a Path,
    segments: Vec<Segment>,
}

impl<'a> Log<'a> {
    /// `live` is inside of a transaction; `dir` has the segments.
    pub(in crate::store) fn new(live: &'a Connection, dir: &'a Path) -> Sql<Self> {
        Ok(Self { live, dir, segments: list(live)? })
    }

    /// Rows up to here are in segments; some of them may still be in the database.
    fn floor(&self) -> i64 {
        self.segments.last().map_or(0, |s| s.last)
    }

    fn with<T>(&self, segment: &Segment, ask: impl FnOnce(&Connection) -> Sql<T>) -> Sql<T> {
        let c = open(self.dir, segment.first)?;
        ask(&c).map_err(|e| e.named(&file(self.dir, segment.first)).into())
    }

    /// Stored hash of one row.
    pub(super) fn hash_of(&self, seq: i64) -> Sql<Option<Vec<u8>>> {
        match self.segments.iter().find(|s| (s.first..=s.last).contains(&seq)) {
            Some(segment) if segment.last == seq => Ok(Some(segment.head.to_vec())),
            Some(segment) => self.with(segment, |c| rows::hash_of(c, seq)),
            None => rows::hash_of(self.live, seq),
        }
    }

    /// Rows by filter, newest first.
    pub(super) fn select(&self, q: &AuditQuery) -> Sql<Vec<AuditRow>> {
        let mut found = rows::select(self.live, q, self.floor())?;
        for segment in self.segments.iter().rev() {
            let outside = q.before_seq.is_some_and(|b| segment.first >= b)
                || q.since.is_some_and(|s| segment.to_at < s)
                || q.until.is_some_and(|u| segment.from_at >= u);
            if found.len() >= q.limit {
                break;
            }
            if !outside {
                let rest = AuditQuery { limit: q.limit - found.len(), ..q.clone() };
                found.extend(self.with(segment, |c| rows::select(c, &rest, 0))?);
            }
        }
        Ok(found)
    }

    /// Oldest first from the first part that may have what is asked for, until there is enough of it.
    fn forward(&self, seq: i64, n: usize, ask: impl Fn(&Connection, i64, usize) -> Sql<Vec<AuditRow>>) -> Sql<Vec<AuditRow>> {
        let mut found = vec![];
        for segment in self.segments.iter().filter(|s| s.last > seq) {
            if found.len() >= n {
                return Ok(found);
            }
            found.extend(self.with(segment, |c| ask(c, seq, n - found.len()))?);
        }
        if found.len() < n {
            found.extend(ask(self.live, seq.max(self.floor()), n - found.len())?);
        }
        Ok(found)
    }

    /// Rows after a row, oldest first.
    pub(super) fn after(&self, seq: i64, since: Option<DateTime<Utc>>, n: usize) -> Sql<Vec<AuditRow>> {
        self.forward(seq, n, |c, seq, n| rows::after(c, seq, since, n))
    }

    /// The intent of a call and the first row that closes it, wherever they are by now; parts that ended before `since` have neither.
    pub(super) fn of_call(&self, call: &str, since: Option<DateTime<Utc>>) -> Sql<Vec<AuditRow>> {
        let mut found = rows::of_call(self.live, call)?;
        for (n, segment) in self.segments.iter().enumerate().rev() {
            if !found.is_empty() || since.is_some_and(|at| segment.to_at < at) {
                break;
            }
            found = self.with(segment, |c| rows::of_call(c, call))?;
            let [intent] = &found[..] else { continue };
            let mut end = None;
            for later in &self.segments[n + 1..] {
                if end.is_none() {
                    end = self.with(later, |c| rows::outcome_of(c, intent))?;
                }
            }
            let end = if end.is_none() { rows::outcome_of(self.live, intent)? } else { end };
            found.extend(end);
        }
        Ok(found)
    }

    /// Finished calls of an agent after a row, oldest first, at most `n`: what its history is made of.
    pub(in crate::store) fn finished_of(&self, agent: &str, after: i64, n: usize) -> Sql<Vec<AuditRow>> {
        self.forward(after, n, |c, seq, n| rows::finished_of(c, agent, seq, n))
    }

    /// Agents with rows after a row, and the head they were read at.
    pub(in crate::store) fn agents_after(&self, after: i64) -> Sql<(i64, BTreeSet<String>)> {
        let (head, live) = rows::agents_after(self.live, after)?;
        let mut agents = BTreeSet::from_iter(live);
        for segment in self.segments.iter().filter(|s| s.last > after) {
            // All of the segment's, also those before the row: who has nothing new is looked at and left.
            agents.extend(self.with(segment, |c| rows::agents_after(c, 0))?.1);
        }
        Ok((head, agents))
    }

    /// What agents did first since a moment.
    pub(super) fn firsts(&self, since: DateTime<Utc>) -> Sql<Vec<First>> {
        let mut earliest: BTreeMap<(String, String, Option<String>), DateTime<Utc>> = BTreeMap::new();
        let mut take = |found: Vec<First>| {
            for first in found {
                let at = earliest.entry((first.agent, first.tool, first.stack)).or_insert(first.at);
                *at = first.at.min(*at);
            }
        };
        for segment in &self.segments {
            take(self.with(segment, super::export::earliest)?);
        }
        take(super::export::earliest(self.live)?);
        let mut firsts: Vec<First> = earliest
            .into_iter()
            .filter(|(_, at)| *at >= since)
            .map(|((agent, tool, stack), at)| First { agent, tool, stack, at })
            .collect();
        firsts.sort_by_key(|f| f.at);
        firsts.truncate(MOST_FIRSTS);
        Ok(firsts)
    }

    /// Segments of this snapshot.
    pub(super) fn segments(&self) -> &[Segment] {
        &self.segments
    }

    /// Calls `see` with every row of a part, oldest first: a segment's, or the database's.
    pub(super) fn each(&self, segment: Option<&Segment>, see: impl FnMut(RawRow) -> Sql<()>) -> Sql<()> {
        match segment {
            Some(segment) => self.with(segment, |c| rows::each(c, see)),
            None => rows::each(self.live, see),
        }
    }
}
