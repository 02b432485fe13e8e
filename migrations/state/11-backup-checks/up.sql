-- What came of looking at the backup repository itself: 1 = the snapshots just taken are listed with their counts, 2 = its structure and a part of its data.
CREATE TABLE backup_check (
  operation   TEXT NOT NULL,
  level       INTEGER NOT NULL,
  at          TEXT NOT NULL,
  passed      INTEGER NOT NULL,
  part        TEXT,
  duration_ms INTEGER NOT NULL,
  detail      TEXT NOT NULL,
  PRIMARY KEY (operation, level)
);
CREATE INDEX backup_check_age ON backup_check (level, at);
