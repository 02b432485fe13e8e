-- Second repositories: which snapshots each holds and under which id, and what came of bringing it up to date. The last runs of each are kept.
CREATE TABLE backup_copy (
  copy        TEXT NOT NULL,
  snapshot_id TEXT NOT NULL,
  copy_id     TEXT NOT NULL,
  PRIMARY KEY (copy, snapshot_id)
);
CREATE INDEX backup_copy_snapshot ON backup_copy (snapshot_id);
CREATE TABLE backup_copy_run (
  operation   TEXT NOT NULL,
  copy        TEXT NOT NULL,
  at          TEXT NOT NULL,
  passed      INTEGER NOT NULL,
  copied      INTEGER NOT NULL,
  removed     INTEGER NOT NULL,
  held        INTEGER NOT NULL,
  bytes       INTEGER NOT NULL,
  duration_ms INTEGER NOT NULL,
  detail      TEXT NOT NULL,
  PRIMARY KEY (operation, copy)
);
CREATE INDEX backup_copy_run_age ON backup_copy_run (copy, at);
-- Drills and checks of a copy stand beside those of the repository.
ALTER TABLE drill ADD COLUMN copy TEXT;
ALTER TABLE backup_check ADD COLUMN copy TEXT;
