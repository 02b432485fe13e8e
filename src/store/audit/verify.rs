//! Looks for edits, gaps, reordered or missing rows, removed guards, broken checkpoints, and segments that are missing, swapped or edited, and says
//! where. Changes nothing.

use super::segments::{self, Log, Segment};
use super::{AuditReport, checkpoint, rotate, rows};
use crate::store::chain::{GENESIS, Hash, hex};
use crate::store::codec::time;
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
pub(super) fn verify(
    log: &Log<'_>,
    c: &Connection,
    dir: &Path,
    file: &Path,
    inner: &Inner,
    noted: Option<serde_json::Value>,
    kept: &str,
) -> Sql<AuditReport> {
    let mut problems = Problems::default();
    guards(c, &mut problems)?;
    let (stated, _) = checkpoint::parse_all(&checkpoint::read(file)?, inner);
    let checkpoints = stated.len();
    let mut by_size: BTreeMap<i64, Hash> = BTreeMap::new();
    let (mut last_size, mut untrusted) = (0, 0);
    for (i, one) in stated.into_iter().enumerate() {
        match one {
            Ok(head) => {
                if head.size < last_size {
                    problems.say(format!("checkpoint {} has {} rows, the one before it {last_size}", i + 1, head.size));
                } else if head.size == last_size {
                    problems.say(format!("checkpoint {} states row {last_size} again: it is a copy of the one before it", i + 1));
                }
                last_size = last_size.max(head.size);
                if by_size.insert(head.size, head.hash).is_some_and(|other| other != head.hash) {
                    problems.say(format!("two checkpoints state different hashes of row {}", head.size));
                }
            }
            Err(e) => {
                untrusted += 1;
                problems.say(format!("checkpoint {} cannot be trusted: {e}", i + 1));
            }
        }
    }
    let newest = noted.as_ref().and_then(checkpoint::noted_head);
    let noted = noted.as_ref().map(checkpoint::noted_sizes).unwrap_or_default();
    let missing: Vec<String> = noted.iter().filter(|s| !by_size.contains_key(s)).map(ToString::to_string).collect();
    // As many as cannot be trusted were told above; the rest is gone, however many others the file has.
    if missing.len() > untrusted {
        let what = if missing.len() == 1 { "checkpoint of row" } else { "checkpoints of rows" };
        let is = if missing.len() == 1 { "is" } else { "are" };
        problems.say(format!("the {what} {} {is} missing from {}", missing.join(", "), file.display()));
    }
    let seen = Chain { checkpoints: &by_size, problems: &mut problems, count: 0, last: 0, prev: Some(GENESIS) };
    let (count, last, head) = seen.whole(log, dir, inner)?;
    if let Some((&size, _)) = by_size.last_key_value()
        && last < size
    {
        problems.say(format!("the log ends with row {last}, a checkpoint was made of row {size}: rows were cut off"));
    }
    // The note knows of the newest checkpoint also where the file no longer has it.
    if let Some((size, hash)) = newest.filter(|(size, _)| !by_size.contains_key(size)) {
        if last < size {
            problems.say(format!("the log ends with row {last}, a checkpoint of row {size} was noted: rows were cut off"));
        } else if log.hash_of(size)?.and_then(|h| Hash::try_from(h).ok()) != Some(hash) {
            problems.say(format!("row {size} is not the one its noted checkpoint was made of"));
        }
    }
    elsewhere(log, kept, last, inner, &mut problems)?;
    Ok(AuditReport { rows: count, head: hex(&head), checkpoints, segments: log.segments().len(), problems: problems.done() })
}

/// Checkpoints that were kept elsewhere: the log must still have what each was made of.
fn elsewhere(log: &Log<'_>, kept: &str, last: i64, inner: &Inner, problems: &mut Problems) -> Sql<()> {
    let (stated, complete) = checkpoint::parse_all(kept, inner);
    if stated.is_empty() && !kept.is_empty() || !kept[complete..].trim().is_empty() {
        problems.say(
            "what was kept does not end with a whole checkpoint: give the text as `audit checkpoint` printed it, empty lines included"
                .into(),
        );
    }
    for (i, one) in stated.into_iter().enumerate() {
        match one {
            Err(e) => problems.say(format!("kept checkpoint {} cannot be trusted: {e}", i + 1)),
            Ok(head) if last < head.size => {
                problems.say(format!(
                    "the log ends with row {last}, kept checkpoint {} was made of row {}: rows were cut off",
                    i + 1,
                    head.size
                ));
            }
            Ok(head) if head.size > 0 && log.hash_of(head.size)?.as_deref() != Some(head.hash.as_slice()) => {
                problems.say(format!("row {} is not the one kept checkpoint {} was made of", head.size, i + 1));
            }
            Ok(_) => {}
        }
    }
    Ok(())
}

/// Tables, indexes and triggers must be those of a fresh file, and no more: an added trigger can swallow rows before anybody hashes them.
fn guards(c: &Connection, problems: &mut Problems) -> Sql<()> {
    migrate::odd(c, &migrate::AUDIT)?.iter().for_each(|odd| problems.say(odd.to_string()));
    Ok(())
}

/// The walk along the chain.
struct Chain<'a> {
    checkpoints: &'a BTreeMap<i64, Hash>,
    problems: &'a mut Problems,
    count: i64,
    last: i64,
    /// `None` after a gap: nobody knows what stood before.
    prev: Option<Hash>,
}

impl Chain<'_> {
    /// Every segment, then the database: rows there are, number and hash of the last.
    fn whole(mut self, log: &Log<'_>, dir: &Path, inner: &Inner) -> Sql<(i64, i64, Hash)> {
        for segment in log.segments() {
            self.segment(log, segment, dir, inner)?;
            // Goes on from what the database says, so that one bad segment is told once and not by all after it.
            (self.last, self.prev) = (segment.last, Some(segment.head));
        }
        unlisted(log, dir, self.problems)?;
        let floor = self.last;
        let mut left = None;
        log.each(None, |row| {
            // Sealed already, and not yet deleted: the next rotation does it.
            if row.seq <= floor {
                left = Some((row.seq, row.hash));
                return Ok(());
            }
            self.row(&row);
            Ok(())
        })?;
        if let Some((seq, hash)) = left
            && log.hash_of(seq)?.is_some_and(|sealed| sealed != hash)
        {
            self.problems.say(format!("row {seq} is not the one that was sealed"));
        }
        Ok((self.count, self.last, self.prev.unwrap_or(GENESIS)))
    }

    fn segment(&mut self, log: &Log<'_>, segment: &Segment, dir: &Path, inner: &Inner) -> Sql<()> {
        let Segment { first, last, .. } = *segment;
        let file = segments::file(dir, first);
        let name = format!("segment of rows {first} to {last}");
        if first != self.last + 1 {
            self.problems.say(format!("rows {} to {} are in no segment", self.last + 1, first - 1));
            (self.last, self.prev) = (first - 1, None);
        }
        match rotate::read_seal(&segments::seal_file(dir, first), inner) {
            Err(e) => self.problems.say(format!("the seal of the {name} cannot be trusted: {e}")),
            Ok(sealed) if sealed != (first, last, segment.head, segment.sha256) => {
                self.problems.say(format!("the seal of the {name} is of another segment: rows {} to {}", sealed.0, sealed.1));
            }
            Ok(_) => {}
        }
        let found = match std::fs::metadata(&file) {
            Ok(_) => rotate::digest(&file)?,
            Err(e) => {
                self.problems.say(format!("the {name} is missing: {}: {e}", file.display()));
                return Ok(());
            }
        };
        // What is in the file as it was sealed was checked row by row then; it is checked again all the same.
        let sealed = found == segment.sha256;
        if !sealed {
            self.problems.say(format!("the {name} was changed: {} is not the file that was sealed", file.display()));
        }
        let (before, mut range, mut times) = (self.count, None::<(i64, i64)>, None::<(String, String)>);
        let walked = log.each(Some(segment), |row| {
            range = Some((range.map_or(row.seq, |r| r.0), row.seq));
            if times.as_ref().is_none_or(|(from, _)| row.at < *from) {
                times = Some((row.at.clone(), times.take().map_or_else(|| row.at.clone(), |(_, to)| to)));
            }
            times.iter_mut().filter(|(_, to)| row.at > *to).for_each(|(_, to)| to.clone_from(&row.at));
            // A file with rows of another part is told as such, not row by row.
            if (first..=last).contains(&row.seq) {
                self.row(&row);
            }
            Ok(())
        });
        match (walked, range) {
            (Err(e), _) => self.problems.say(format!("the {name} cannot be read: {}", e.named(&file))),
            (Ok(()), Some((a, b))) if a > last || b < first => self.problems.say(format!("the {name} holds rows {a} to {b}")),
            (Ok(()), _) if self.last != last => self.problems.say(format!("the {name} ends with row {}", self.last)),
            (Ok(()), _) if self.prev != Some(segment.head) => {
                self.problems.say(format!("the {name} does not end with the hash it was sealed with"))
            }
            // Questions with a time pass a segment by on what the list says of its times, which no seal states.
            (Ok(()), _) if times.as_ref() != Some(&(time(segment.from_at), time(segment.to_at))) => {
                self.problems.say(format!("the times of the {name} in the list are not those of its rows"));
            }
            (Ok(()), _) => {}
        }
        tracing::debug!(rows = self.count - before, sealed, "a segment was verified");
        Ok(())
    }

    fn row(&mut self, row: &rows::RawRow) {
        let expected = self.last + 1;
        if row.seq != expected {
            self.problems.say(match row.seq - expected {
                ..=0 => format!("row {} has an impossible number", row.seq),
                1 => format!("row {expected} is missing"),
                _ => format!("rows {expected} to {} are missing", row.seq - 1),
            });
        } else if self.prev.is_some_and(|prev| row.prev_hash != prev) {
            self.problems.say(format!("row {} does not follow row {}: one of them was replaced or moved", row.seq, self.last));
        }
        let stored: Option<Hash> = row.hash.as_slice().try_into().ok();
        let own_prev: Option<Hash> = row.prev_hash.as_slice().try_into().ok();
        if stored.is_none() || own_prev.map(|p| row.link(&p)) != stored {
            self.problems.say(format!("row {} was changed: its content does not fit its hash", row.seq));
        }
        // Goes on from the stored hash, so that one bad row is told once and not by all after it.
        let own = stored.unwrap_or(GENESIS);
        self.prev = Some(own);
        if self.checkpoints.get(&row.seq).is_some_and(|h| *h != own) {
            self.problems.say(format!("row {} is not the one its checkpoint was made of", row.seq));
        }
        self.count += 1;
        self.last = row.seq;
    }
}

/// Files that look like segments and are none. The one a crash may have left, before the database listed it, is replaced by the next rotation.
fn unlisted(log: &Log<'_>, dir: &Path, problems: &mut Problems) -> Sql<()> {
    let next = log.segments().last().map_or(0, |s| s.last) + 1;
    let known: Vec<_> = log.segments().iter().map(|s| s.first).chain([next]).map(|first| segments::file(dir, first)).collect();
    let entries = match std::fs::read_dir(dir) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        entries => entries.map_err(|e| crate::store::fault::io(dir, &e))?,
    };
    for entry in entries {
        let path = entry.map_err(|e| crate::store::fault::io(dir, &e))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name.starts_with("segment-") && name.ends_with(".db") && !known.contains(&path) {
            problems.say(format!("{} is no segment of this log: it is not listed in audit.db", path.display()));
        }
    }
    Ok(())
}
