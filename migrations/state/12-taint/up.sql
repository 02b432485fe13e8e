-- What agents heard in untrusted output and what they said themselves: words as keyed hashes of 8 bytes, one after the other, never as text.
-- kind: 'untrusted', 'own', or 'plan' (one hash, of the id of a plan made with such words). Newest last.
CREATE TABLE taint (
  id     INTEGER PRIMARY KEY AUTOINCREMENT,
  agent  TEXT NOT NULL,
  kind   TEXT NOT NULL,
  at     TEXT NOT NULL,
  source TEXT NOT NULL,
  words  BLOB NOT NULL
);
CREATE INDEX taint_agent ON taint (agent, kind, id);
