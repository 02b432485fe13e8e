-- audit.db: append-only. Each row carries the hash of the one before; the triggers refuse everything but the next row.
-- No UNIQUE constraint beside the row number: INSERT OR REPLACE would delete the row in conflict, and without recursive_triggers
-- that deletion fires no trigger.

CREATE TABLE audit (
  seq         INTEGER PRIMARY KEY,
  at          TEXT NOT NULL,
  kind        TEXT NOT NULL,
  call        TEXT NOT NULL,
  agent       TEXT NOT NULL,
  door        TEXT NOT NULL,
  tool        TEXT NOT NULL,
  stack       TEXT,
  environment TEXT,
  verdict     TEXT NOT NULL,
  outcome     TEXT,
  detail      TEXT NOT NULL,
  prev_hash   BLOB NOT NULL,
  hash        BLOB NOT NULL
);
CREATE INDEX audit_intent ON audit (call) WHERE kind = 'intent';
CREATE INDEX audit_agent ON audit (agent, seq);

CREATE TRIGGER audit_no_update BEFORE UPDATE ON audit
BEGIN
  SELECT RAISE(ABORT, 'audit rows are never changed');
END;

CREATE TRIGGER audit_no_delete BEFORE DELETE ON audit
BEGIN
  SELECT RAISE(ABORT, 'audit rows are never deleted');
END;

CREATE TRIGGER audit_append_only BEFORE INSERT ON audit
WHEN NEW.seq IS NOT (SELECT coalesce(max(seq), 0) + 1 FROM audit)
  OR NEW.prev_hash IS NOT coalesce((SELECT hash FROM audit ORDER BY seq DESC LIMIT 1), zeroblob(32))
BEGIN
  SELECT RAISE(ABORT, 'audit rows are only appended after the last one');
END;

-- Intents that have no outcome yet: what a start after a crash has to close. Working data, not part of the log.
CREATE TABLE open_call (
  call TEXT PRIMARY KEY,
  seq  INTEGER NOT NULL
) WITHOUT ROWID;

-- Counted calls of each limit, milliseconds since 1970; at most `max` rows a limit. Working data, not part of the log.
CREATE TABLE rate (
  key      TEXT NOT NULL,
  window_s INTEGER NOT NULL,
  at_ms    INTEGER NOT NULL
);
CREATE INDEX rate_window ON rate (key, window_s, at_ms);
