-- memory.db: one agent's memory. The event log is append-only and hash-chained; context, history and search are projections of it.

CREATE TABLE memory_event (
  seq       INTEGER PRIMARY KEY,
  ts        TEXT NOT NULL,
  op        TEXT NOT NULL,
  key       TEXT NOT NULL,
  value     TEXT NOT NULL,
  source    TEXT NOT NULL,
  prev_hash BLOB NOT NULL,
  hash      BLOB NOT NULL
);

CREATE TRIGGER memory_event_no_update BEFORE UPDATE ON memory_event
BEGIN
  SELECT RAISE(ABORT, 'memory events are never changed');
END;

CREATE TRIGGER memory_event_no_delete BEFORE DELETE ON memory_event
BEGIN
  SELECT RAISE(ABORT, 'memory events are never deleted');
END;

CREATE TRIGGER memory_event_append_only BEFORE INSERT ON memory_event
WHEN NEW.seq IS NOT (SELECT coalesce(max(seq), 0) + 1 FROM memory_event)
  OR NEW.prev_hash IS NOT coalesce((SELECT hash FROM memory_event ORDER BY seq DESC LIMIT 1), zeroblob(32))
BEGIN
  SELECT RAISE(ABORT, 'memory events are only appended after the last one');
END;

CREATE TABLE context (
  key    TEXT PRIMARY KEY,
  seq    INTEGER NOT NULL,
  ts     TEXT NOT NULL,
  value  TEXT NOT NULL,
  source TEXT NOT NULL
);
CREATE UNIQUE INDEX context_seq ON context (seq);

CREATE TABLE history (
  seq    INTEGER PRIMARY KEY,
  ts     TEXT NOT NULL,
  key    TEXT NOT NULL,
  value  TEXT NOT NULL,
  source TEXT NOT NULL
);

-- rowid = seq of the event the text came from.
CREATE VIRTUAL TABLE search USING fts5 (
  key, body, content='', contentless_delete=1, prefix='2 3', tokenize='unicode61 remove_diacritics 2'
);

-- How far each home's audit log was projected into this file.
CREATE TABLE projected (
  instance TEXT PRIMARY KEY,
  seq      INTEGER NOT NULL
) WITHOUT ROWID;
