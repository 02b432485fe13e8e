-- Oldest events that were copied to a file beside the database and are no longer in it. The list is append-only; an event may be deleted when, and only
-- when, it is in a listed file.
CREATE TABLE compacted (
  first      INTEGER PRIMARY KEY,
  last       INTEGER NOT NULL,
  head       BLOB NOT NULL,
  sha256     BLOB NOT NULL,
  to_at      TEXT NOT NULL,
  -- Last change of the context among all events compacted so far.
  context_at TEXT,
  -- The event that tells so.
  event      INTEGER NOT NULL
);

CREATE TRIGGER compacted_no_update BEFORE UPDATE ON compacted
BEGIN
  SELECT RAISE(ABORT, 'what was compacted is never changed');
END;

CREATE TRIGGER compacted_no_delete BEFORE DELETE ON compacted
BEGIN
  SELECT RAISE(ABORT, 'what was compacted is never forgotten');
END;

CREATE TRIGGER compacted_append_only BEFORE INSERT ON compacted
WHEN NEW.first IS NOT (SELECT coalesce(max(last), 0) + 1 FROM compacted)
  OR NEW.last < NEW.first
  OR NEW.last >= NEW.event
  OR NEW.head IS NOT (SELECT hash FROM memory_event WHERE seq = NEW.last)
  OR NOT EXISTS (SELECT 1 FROM memory_event WHERE seq = NEW.event AND op = 'compact')
BEGIN
  SELECT RAISE(ABORT, 'only the oldest events are compacted, after those before, and an event tells so');
END;

-- The context as the compacted events left it: what the events after them begin with.
CREATE TABLE base (
  key    TEXT PRIMARY KEY,
  seq    INTEGER NOT NULL UNIQUE,
  ts     TEXT NOT NULL,
  value  TEXT NOT NULL,
  source TEXT NOT NULL
);

DROP TRIGGER memory_event_no_delete;
CREATE TRIGGER memory_event_no_delete BEFORE DELETE ON memory_event
WHEN OLD.seq > (SELECT coalesce(max(last), 0) FROM compacted)
BEGIN
  SELECT RAISE(ABORT, 'memory events are never deleted');
END;
