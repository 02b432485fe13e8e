-- Closed parts of the log: rows that were copied to a sealed file beside the database and are no longer in it. The list is append-only like the log;
-- a row may be deleted when, and only when, it is in a listed segment.
CREATE TABLE segment (
  first     INTEGER PRIMARY KEY,
  last      INTEGER NOT NULL,
  head      BLOB NOT NULL,
  sha256    BLOB NOT NULL,
  from_at   TEXT NOT NULL,
  to_at     TEXT NOT NULL,
  sealed_at TEXT NOT NULL
);

CREATE TRIGGER segment_no_update BEFORE UPDATE ON segment
BEGIN
  SELECT RAISE(ABORT, 'segments are never changed');
END;

CREATE TRIGGER segment_no_delete BEFORE DELETE ON segment
BEGIN
  SELECT RAISE(ABORT, 'segments are never deleted');
END;

-- The row after a segment's last stays in the database: the log always has a head here.
CREATE TRIGGER segment_append_only BEFORE INSERT ON segment
WHEN NEW.first IS NOT (SELECT coalesce(max(last), 0) + 1 FROM segment)
  OR NEW.last < NEW.first
  OR NEW.last >= (SELECT max(seq) FROM audit)
  OR NEW.head IS NOT (SELECT hash FROM audit WHERE seq = NEW.last)
BEGIN
  SELECT RAISE(ABORT, 'a segment is the oldest part of the log, and follows the segment before');
END;

DROP TRIGGER audit_no_delete;
CREATE TRIGGER audit_no_delete BEFORE DELETE ON audit
WHEN OLD.seq > (SELECT coalesce(max(last), 0) FROM segment)
BEGIN
  SELECT RAISE(ABORT, 'audit rows are never deleted');
END;
