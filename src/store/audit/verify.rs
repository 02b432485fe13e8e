//! Looks for edits, gaps, reordered or missing rows, removed guards and broken checkpoints, and says where. Changes nothing.

use super::{AuditReport, checkpoint, rows};
use crate::store::chain::{GENESIS, Hash, hex};
use crate::store::fault::Sql;
use crate::store::{Inner, migrate};
use rusqlite::Connection;
use std::collections::BTreeMap;
use std::path::Path;

/// A thoroughly damaged log has a problem in every row; the first ones say enough.
const MOST_PROBLEMS: usize = 100;

/// Findings, bounded.
#[derive(Default)]
struct Problems {
    said: Vec<String>,
    unsaid: usize,
}

impl Problems {
    fn say(&mut self, problem: String) {
        if self.said.len() < MOST_PROBLEMS { self.said.push(problem) } else { self.unsaid += 1 }
    }
    fn done(mut self) -> Vec<String> {
        if self.unsaid > 0 {
            self.said.push(format!("and {} more", self.unsaid));
        }
        self.said
    }
}

/// Verifies the open log against the checkpoint file and the note of the last checkpoint.
pub(super) fn verify(c: &Connection, file: &Path, inner: &Inner, noted: Option<serde_json::Value>) -> Sql<AuditReport> {
    let mut problems = Problems::default();
    guards(c, &mut problems)?;
    let (stated, _) = checkpoint::parse_all(&checkpoint::read(file)?, inner);
    let checkpoints = stated.len();
    let mut by_size: BTreeMap<i64, Hash> = BTreeMap::new();
    let mut last_size = 0;
    for (i, one) in stated.into_iter().enumerate() {
        match one {
            Ok(head) => {
                if head.size < last_size {
                    problems.say(format!("checkpoint {} has {} rows, the one before it {last_size}", i + 1, head.size));
                }
                last_size = last_size.max(head.size);
                if by_size.insert(head.size, head.hash).is_some_and(|other| other != head.hash) {
                    problems.say(format!("two checkpoints state different hashes of row {}", head.size));
                }
            }
            Err(e) => problems.say(format!("checkpoint {} cannot be trusted: {e}", i + 1)),
        }
    }
    let noted = noted.as_ref().map(checkpoint::noted_sizes).unwrap_or_default();
    let missing: Vec<String> = noted.iter().filter(|s| !by_size.contains_key(s)).map(ToString::to_string).collect();
    // One that cannot be trusted was told above.
    if !missing.is_empty() && noted.len() > checkpoints {
        let what = if missing.len() == 1 { "checkpoint of row" } else { "checkpoints of rows" };
        let is = if missing.len() == 1 { "is" } else { "are" };
        problems.say(format!("the {what} {} {is} missing from {}", missing.join(", "), file.display()));
    }
    let (rows, head) = chain(c, &by_size, &mut problems)?;
    if let Some((&size, _)) = by_size.last_key_value()
        && rows.last < size
    {
        problems.say(format!("the log ends with row {}, a checkpoint was made of row {size}: rows were cut off", rows.last));
    }
    Ok(AuditReport { rows: rows.count, head: hex(&head), checkpoints, problems: problems.done() })
}

/// The table and triggers must be those of a fresh file.
fn guards(c: &Connection, problems: &mut Problems) -> Sql<()> {
    let found = migrate::objects(c)?;
    for expected in migrate::expected_objects(&migrate::AUDIT)? {
        let (kind, name, sql) = &expected;
        match found.iter().find(|o| o.0 == *kind && o.1 == *name) {
            None => problems.say(format!("{kind} {name} is missing")),
            Some(o) if o.2 != *sql => problems.say(format!("{kind} {name} was changed")),
            Some(_) => {}
        }
    }
    Ok(())
}

#[derive(Default)]
struct Seen {
    count: i64,
    last: i64,
}

fn chain(c: &Connection, checkpoints: &BTreeMap<i64, Hash>, problems: &mut Problems) -> Sql<(Seen, Hash)> {
    let mut seen = Seen::default();
    let mut prev = GENESIS;
    rows::each(c, |row| {
        let expected = seen.last + 1;
        if row.seq != expected {
            problems.say(match row.seq - expected {
                ..=0 => format!("row {} has an impossible number", row.seq),
                1 => format!("row {expected} is missing"),
                _ => format!("rows {expected} to {} are missing", row.seq - 1),
            });
        } else if row.prev_hash != prev {
            problems.say(format!("row {} does not follow row {}: one of them was replaced or moved", row.seq, seen.last));
        }
        let stored: Option<Hash> = row.hash.as_slice().try_into().ok();
        let own_prev: Option<Hash> = row.prev_hash.as_slice().try_into().ok();
        if stored.is_none() || own_prev.map(|p| row.link(&p)) != stored {
            problems.say(format!("row {} was changed: its content does not fit its hash", row.seq));
        }
        // Goes on from the stored hash, so that one bad row is told once and not by all after it.
        prev = stored.unwrap_or(GENESIS);
        if checkpoints.get(&row.seq).is_some_and(|h| *h != prev) {
            problems.say(format!("row {} is not the one its checkpoint was made of", row.seq));
        }
        seen.count += 1;
        seen.last = row.seq;
        Ok(())
    })?;
    Ok((seen, prev))
}
