-- Bearer tokens of operators: apart from those of agents, so that neither can ever be taken for the other. All of them end.
CREATE TABLE operator_token (
  sha256     BLOB PRIMARY KEY,
  operator   TEXT NOT NULL,
  label      TEXT NOT NULL,
  created_at TEXT NOT NULL,
  expires_at TEXT NOT NULL,
  used_at    TEXT,
  revoked_at TEXT
);
