//! Opens one database file: creates it private to its owner, copies it before a migration, migrates forward, refuses a newer one.
//! Deliberately absent: down migrations (an older version goes back to the copy).

use super::{StoreError, StoreResult, fault};
use rusqlite::{Connection, OpenFlags};
use rusqlite_migration::{M, Migrations};
use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// A kind of database: its name in errors and its migrations, oldest first.
pub(super) struct Schema {
    /// Name, as in `state.db`.
    pub name: &'static str,
    /// SQL of each version.
    pub steps: &'static [&'static str],
}

/// `state.db`.
pub(super) const STATE: Schema = Schema {
    name: "state.db",
    steps: &[
        include_str!("../../migrations/state/01-base/up.sql"),
        include_str!("../../migrations/state/02-accepted/up.sql"),
        include_str!("../../migrations/state/03-backup-tags/up.sql"),
        include_str!("../../migrations/state/04-adopted/up.sql"),
        include_str!("../../migrations/state/05-incident/up.sql"),
        include_str!("../../migrations/state/06-tokens/up.sql"),
        include_str!("../../migrations/state/07-tasks/up.sql"),
        include_str!("../../migrations/state/08-turns/up.sql"),
        include_str!("../../migrations/state/09-operator-tokens/up.sql"),
        include_str!("../../migrations/state/10-on-behalf/up.sql"),
        include_str!("../../migrations/state/11-backup-checks/up.sql"),
        include_str!("../../migrations/state/12-taint/up.sql"),
        include_str!("../../migrations/state/13-approval-terms/up.sql"),
        include_str!("../../migrations/state/14-kept/up.sql"),
        include_str!("../../migrations/state/15-backup-copies/up.sql"),
        include_str!("../../migrations/state/16-step-ended/up.sql"),
        include_str!("../../migrations/state/17-recorded-at/up.sql"),
        include_str!("../../migrations/state/18-told-caps/up.sql"),
        include_str!("../../migrations/state/19-notices/up.sql"),
    ],
};
/// `audit.db`.
pub(super) const AUDIT: Schema = Schema {
    name: "audit.db",
    steps: &[
        include_str!("../../migrations/audit/01-base/up.sql"),
        include_str!("../../migrations/audit/02-segments/up.sql"),
        include_str!("../../migrations/audit/03-rate-totals/up.sql"),
    ],
};
/// A sealed segment of the audit log.
pub(super) const SEGMENT: Schema = Schema { name: "segment", steps: &[include_str!("../../migrations/segment/01-base/up.sql")] };
/// `memory.db` of one agent.
pub(super) const MEMORY: Schema = Schema {
    name: "memory.db",
    steps: &[
        include_str!("../../migrations/memory/01-base/up.sql"),
        include_str!("../../migrations/memory/02-porter/up.sql"),
        include_str!("../../migrations/memory/03-compaction/up.sql"),
    ],
};

/// Opens the file for writing, at the newest schema.
pub(super) fn open(path: &Path, schema: &Schema) -> StoreResult<Connection> {
    create_private(path)?;
    let sql = |e| fault::database(path, e);
    let mut conn = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX).map_err(sql)?;
    configure(&conn).map_err(sql)?;
    conn.pragma_update(None, "journal_mode", "WAL").map_err(sql)?;
    migrate(&mut conn, path, schema)?;
    guarded(&conn, path, schema)?;
    Ok(conn)
}

/// Refuses a file in which writing would not do what it says: a trigger or view that is not ours swallows rows or adds some. Of the audit log everything
/// has to be as a fresh file has it.
fn guarded(conn: &Connection, path: &Path, schema: &Schema) -> StoreResult<()> {
    let mut odd = odd(conn, schema).map_err(|e| fault::database(path, e))?;
    odd.retain(|o| schema.name == AUDIT.name || (o.what == Odd::Foreign && matches!(o.kind.as_str(), "trigger" | "view")));
    match odd.first() {
        None => Ok(()),
        Some(odd) => {
            let hint = "somebody changed the file; an operator finds out who, puts it back from a copy of the home, and runs audit verify";
            Err(fault::corrupt("database", format!("{}: {odd}; {hint}", path.display())))
        }
    }
}

/// Opens the file for reading beside the writer.
pub(super) fn open_reader(path: &Path) -> StoreResult<Connection> {
    let conn = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX)
        .map_err(|e| fault::database(path, e))?;
    configure(&conn).map_err(|e| fault::database(path, e))?;
    Ok(conn)
}

/// Whether a file has the newest schema.
pub(super) fn is_newest(conn: &Connection, schema: &Schema) -> rusqlite::Result<bool> {
    let found: i64 = conn.query_row("PRAGMA user_version", [], |r| r.get(0))?;
    Ok(usize::try_from(found).is_ok_and(|v| v == schema.steps.len()))
}

/// The objects a fresh file of this schema has: (type, name, SQL), to compare a file with.
pub(super) fn expected_objects(schema: &Schema) -> rusqlite::Result<Vec<(String, String, String)>> {
    let conn = Connection::open_in_memory()?;
    for step in schema.steps {
        conn.execute_batch(step)?;
    }
    objects(&conn)
}

/// The tables, indexes and triggers of a file.
pub(super) fn objects(conn: &Connection) -> rusqlite::Result<Vec<(String, String, String)>> {
    let mut statement = conn.prepare("SELECT type, name, sql FROM sqlite_schema WHERE sql IS NOT NULL ORDER BY type, name")?;
    let rows = statement.query_map([], |r| Ok((r.get(0)?, r.get(1)?, r.get(2)?)))?;
    rows.collect()
}

/// How an object of a file is not what a fresh file has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Odd {
    /// It is not there.
    Missing,
    /// It is another.
    Changed,
    /// No fresh file has it.
    Foreign,
}

/// An object that is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct OddObject {
    /// How.
    pub what: Odd,
    /// `table`, `index`, `trigger` or `view`.
    pub kind: String,
    /// Name.
    pub name: String,
}

impl std::fmt::Display for OddObject {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let what = match self.what {
            Odd::Missing => "is missing",
            Odd::Changed => "was changed",
            Odd::Foreign => "is none of ours: it was added",
        };
        write!(f, "{} {} {what}", self.kind, self.name)
    }
}

/// Everything in which a file's tables, indexes, triggers and views differ from those of a fresh one.
pub(super) fn odd(conn: &Connection, schema: &Schema) -> rusqlite::Result<Vec<OddObject>> {
    let (expected, mut found) = (expected_objects(schema)?, objects(conn)?);
    // What ANALYZE keeps.
    found.retain(|(kind, name, _)| !(kind == "table" && name.starts_with("sqlite_stat")));
    let mut out = vec![];
    for (kind, name, sql) in &expected {
        let what = match found.iter().find(|o| o.0 == *kind && o.1 == *name) {
            None => Odd::Missing,
            Some(o) if o.2 != *sql => Odd::Changed,
            Some(_) => continue,
        };
        out.push(OddObject { what, kind: kind.clone(), name: name.clone() });
    }
    found.retain(|f| !expected.iter().any(|e| e.0 == f.0 && e.1 == f.1));
    out.extend(found.into_iter().map(|(kind, name, _)| OddObject { what: Odd::Foreign, kind, name }));
    Ok(out)
}

fn configure(conn: &Connection) -> rusqlite::Result<()> {
    conn.busy_timeout(std::time::Duration::from_secs(5))?;
    conn.set_prepared_statement_cache_capacity(64);
    // FULL: an acknowledged row survives a power cut, not only a killed process.
    conn.pragma_update(None, "synchronous", "FULL")?;
    conn.pragma_update(None, "foreign_keys", "ON")?;
    // INSERT OR REPLACE must fire the delete triggers of the append-only tables.
    conn.pragma_update(None, "recursive_triggers", "ON")?;
    conn.pragma_update(None, "trusted_schema", "OFF")?;
    // A burst must not leave a huge WAL behind.
    conn.pragma_update(None, "journal_size_limit", 64 * 1024 * 1024)
}

fn migrate(conn: &mut Connection, path: &Path, schema: &Schema) -> StoreResult<()> {
    let sql = |e| fault::database(path, e);
    let known = i64::try_from(schema.steps.len()).expect("a handful of migrations");
    let found: i64 = conn.query_row("PRAGMA user_version", [], |r| r.get(0)).map_err(sql)?;
    if found > known {
        return Err(StoreError::TooNew { db: path.display().to_string(), found, known });
    }
    if found == known {
        return Ok(());
    }
    let tables: i64 = conn.query_row("SELECT count(*) FROM sqlite_schema", [], |r| r.get(0)).map_err(sql)?;
    if tables > 0 {
        let copy = copy_before(conn, path, known)?;
        tracing::info!(db = schema.name, from = found, to = known, copy = %copy.display(), "migrating");
    }
    let steps: Vec<M> = schema.steps.iter().map(|s| M::up(s)).collect();
    Migrations::new(steps)
        .to_latest(conn)
        .map_err(|e| StoreError::Database { db: path.display().to_string(), detail: format!("migration to schema {known}: {e}") })
}

/// Copies the database beside itself; the name says which migration it was made for.
fn copy_before(conn: &Connection, path: &Path, version: i64) -> StoreResult<PathBuf> {
    let stamp = chrono::Utc::now().format("%Y%m%dT%H%M%S%3fZ");
    let copy = PathBuf::from(format!("{}.before-v{version}-{stamp}", path.display()));
    // VACUUM INTO accepts an empty file: created first so that it is private from the start.
    create_private(&copy)?;
    conn.execute("VACUUM INTO ?1", [copy.to_string_lossy()]).map_err(|e| fault::database(&copy, e))?;
    let file = std::fs::File::open(&copy).map_err(|e| fault::io(&copy, &e))?;
    file.sync_all().map_err(|e| fault::io(&copy, &e))?;
    sync_dir(&copy)?;
    Ok(copy)
}

/// Creates an empty file with mode 0600 unless it exists. SQLite gives its WAL the same mode.
fn create_private(path: &Path) -> StoreResult<()> {
    match OpenOptions::new().write(true).create_new(true).mode(0o600).open(path) {
        Ok(_) => sync_dir(path),
        Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
        Err(e) => Err(fault::io(path, &e)),
    }
}

/// Makes a new or renamed file's directory entry durable.
pub(super) fn sync_dir(file: &Path) -> StoreResult<()> {
    let dir = file.parent().unwrap_or(Path::new("."));
    let open = std::fs::File::open(dir).map_err(|e| fault::io(dir, &e))?;
    open.sync_all().map_err(|e| fault::io(dir, &e))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: Schema = Schema { name: "t.db", steps: &["CREATE TABLE a (x TEXT);"] };
    const TWO: Schema =
        Schema { name: "t.db", steps: &["CREATE TABLE a (x TEXT);", "ALTER TABLE a ADD COLUMN y TEXT NOT NULL DEFAULT 'new';"] };

    fn copies(dir: &Path) -> Vec<PathBuf> {
        let mut found: Vec<_> = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()).collect();
        found.retain(|p| p.to_string_lossy().contains(".before-v"));
        found
    }

    #[test]
    fn a_migration_copies_the_file_first_and_a_fresh_file_is_not_copied() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("t.db");
        let conn = open(&path, &ONE).unwrap();
        conn.execute("INSERT INTO a VALUES ('kept')", []).unwrap();
        drop(conn);
        assert_eq!(copies(dir.path()), Vec::<PathBuf>::new());

        let conn = open(&path, &TWO).unwrap();
        let row: (String, String) = conn.query_row("SELECT x, y FROM a", [], |r| Ok((r.get(0)?, r.get(1)?))).unwrap();
        assert_eq!(row, ("kept".into(), "new".into()));
        let found = copies(dir.path());
        assert_eq!(found.len(), 1);
        assert!(found[0].to_string_lossy().contains("t.db.before-v2-"));
        let copy = Connection::open(&found[0]).unwrap();
        assert_eq!(copy.query_row("PRAGMA user_version", [], |r| r.get::<_, i64>(0)).unwrap(), 1);
        assert_eq!(copy.query_row("SELECT x FROM a", [], |r| r.get::<_, String>(0)).unwrap(), "kept");
        for file in [&path, &found[0]] {
            assert_eq!(std::fs::metadata(file).unwrap().permissions().mode() & 0o777, 0o600, "{}", file.display());
        }
        drop(conn);
        drop(open(&path, &TWO).unwrap());
        assert_eq!(copies(dir.path()).len(), 1, "an up-to-date file is not copied again");
    }

    #[test]
    fn a_newer_file_is_refused_with_both_versions_and_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("t.db");
        drop(open(&path, &TWO).unwrap());
        let refused = open(&path, &ONE).unwrap_err();
        assert!(matches!(&refused, StoreError::TooNew { found: 2, known: 1, db } if db.ends_with("t.db")), "{refused:?}");
        assert!(open(&path, &TWO).is_ok());
    }

    #[test]
    fn every_shipped_schema_applies() {
        for schema in [&STATE, &AUDIT, &MEMORY] {
            let dir = tempfile::tempdir().unwrap();
            let conn = open(&dir.path().join(schema.name), schema).unwrap();
            assert_eq!(objects(&conn).unwrap(), expected_objects(schema).unwrap(), "{}", schema.name);
        }
    }
}
