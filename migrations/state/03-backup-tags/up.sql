-- Why a snapshot was taken (comma-separated tags) and the operation that took it.
ALTER TABLE backup ADD COLUMN tags TEXT NOT NULL DEFAULT '';
ALTER TABLE backup ADD COLUMN operation TEXT;

-- What came of rehearsing a restore.
CREATE TABLE drill (
  operation   TEXT NOT NULL,
  snapshot_id TEXT NOT NULL,
  stack       TEXT,
  volume      TEXT NOT NULL,
  at          TEXT NOT NULL,
  passed      INTEGER NOT NULL,
  files       INTEGER NOT NULL,
  bytes       INTEGER NOT NULL,
  duration_ms INTEGER NOT NULL,
  probed      TEXT,
  detail      TEXT NOT NULL,
  PRIMARY KEY (operation, snapshot_id)
);
CREATE INDEX drill_age ON drill (at);
