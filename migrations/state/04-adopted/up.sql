-- Stacks taken over from Compose: which objects on the engine are ours although they do not carry our labels, and where the files are.

CREATE TABLE adopted (
  kind   TEXT NOT NULL,
  id     TEXT NOT NULL,
  stack  TEXT NOT NULL,
  labels TEXT NOT NULL,
  PRIMARY KEY (kind, id)
) WITHOUT ROWID;
CREATE INDEX adopted_stack ON adopted (stack);

CREATE TABLE registration (
  stack TEXT PRIMARY KEY,
  entry TEXT NOT NULL,
  by    TEXT NOT NULL,
  at    TEXT NOT NULL
) WITHOUT ROWID;
