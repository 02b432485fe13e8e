-- A sealed part of the audit log: the columns of audit.db's rows, in a file that is never written again.
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
CREATE INDEX audit_agent ON audit (agent, seq);
