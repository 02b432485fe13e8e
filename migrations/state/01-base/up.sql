-- state.db: what the supervisor knows of this home. Times are RFC 3339 in UTC with nine digits, so that text order is time order.
-- Columns named sealed_* are encrypted with the home's key (see src/store/seal.rs).

CREATE TABLE meta (
  key   TEXT PRIMARY KEY,
  value TEXT NOT NULL
) WITHOUT ROWID;

CREATE TABLE stack (
  name        TEXT PRIMARY KEY,
  environment TEXT NOT NULL DEFAULT '',
  current     INTEGER,
  stopped     INTEGER NOT NULL DEFAULT 0,
  epoch       INTEGER NOT NULL DEFAULT 0
) WITHOUT ROWID;

CREATE TABLE release (
  stack       TEXT NOT NULL,
  number      INTEGER NOT NULL,
  state       TEXT NOT NULL,
  environment TEXT NOT NULL,
  sealed_spec BLOB NOT NULL,
  images      TEXT NOT NULL,
  agent       TEXT NOT NULL,
  operation   TEXT NOT NULL,
  reason      TEXT,
  content_of  INTEGER,
  project_dir TEXT,
  git         TEXT,
  created_at  TEXT NOT NULL,
  PRIMARY KEY (stack, number)
);

CREATE TABLE plan (
  id          TEXT PRIMARY KEY,
  stack       TEXT NOT NULL,
  digest      TEXT NOT NULL,
  sealed_plan BLOB NOT NULL,
  created_at  TEXT NOT NULL
);
CREATE INDEX plan_age ON plan (created_at);

CREATE TABLE operation (
  id               TEXT PRIMARY KEY,
  verb             TEXT NOT NULL,
  stack            TEXT,
  plan             TEXT,
  agent            TEXT NOT NULL,
  call             TEXT NOT NULL,
  idempotency_key  TEXT,
  args_hash        TEXT NOT NULL,
  state            TEXT NOT NULL,
  terminal         INTEGER NOT NULL,
  phase            TEXT NOT NULL,
  epoch            INTEGER NOT NULL,
  release          INTEGER,
  reason           TEXT,
  message          TEXT,
  sealed_evidence  BLOB NOT NULL,
  approval         TEXT,
  cancel_requested INTEGER NOT NULL,
  created_at       TEXT NOT NULL,
  settled_at       TEXT
);
CREATE INDEX operation_open ON operation (created_at) WHERE terminal = 0;
CREATE INDEX operation_age ON operation (created_at);
CREATE INDEX operation_stack ON operation (stack, created_at);
CREATE INDEX operation_key ON operation (agent, idempotency_key, created_at) WHERE idempotency_key IS NOT NULL;

CREATE TABLE step (
  operation     TEXT NOT NULL,
  seq           INTEGER NOT NULL,
  phase         TEXT NOT NULL,
  key           TEXT NOT NULL,
  sealed_intent BLOB NOT NULL,
  sealed_done   BLOB,
  at            TEXT NOT NULL,
  PRIMARY KEY (operation, seq)
);

CREATE TABLE approval (
  id           TEXT PRIMARY KEY,
  agent        TEXT NOT NULL,
  tool         TEXT NOT NULL,
  stack        TEXT,
  environment  TEXT,
  plan         TEXT,
  digest       TEXT NOT NULL,
  sealed_input BLOB NOT NULL,
  call         TEXT NOT NULL,
  reason       TEXT,
  state        TEXT NOT NULL,
  needed       INTEGER NOT NULL,
  approved_by  TEXT NOT NULL,
  denied_by    TEXT,
  operation    TEXT,
  created_at   TEXT NOT NULL,
  expires_at   TEXT NOT NULL
);
CREATE INDEX approval_same ON approval (agent, tool, digest);
CREATE INDEX approval_state ON approval (state);

CREATE TABLE backup (
  snapshot_id TEXT PRIMARY KEY,
  stack       TEXT,
  volume      TEXT NOT NULL,
  bytes       INTEGER NOT NULL,
  added       INTEGER NOT NULL,
  files       INTEGER NOT NULL,
  state       TEXT NOT NULL,
  at          TEXT NOT NULL,
  agent       TEXT NOT NULL,
  release     INTEGER
);
CREATE INDEX backup_age ON backup (at);

CREATE TABLE heal (
  stack   TEXT NOT NULL,
  service TEXT NOT NULL,
  at      TEXT NOT NULL
);
CREATE INDEX heal_service ON heal (stack, service, at);

CREATE TABLE token (
  sha256     BLOB PRIMARY KEY,
  agent      TEXT NOT NULL,
  created_at TEXT NOT NULL,
  revoked_at TEXT
);

CREATE TABLE operator (
  name       TEXT PRIMARY KEY,
  credential TEXT NOT NULL,
  created_at TEXT NOT NULL
) WITHOUT ROWID;

CREATE TABLE value (
  key  TEXT PRIMARY KEY,
  json TEXT NOT NULL
) WITHOUT ROWID;
