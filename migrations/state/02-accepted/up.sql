-- Findings of the plan gate that an operator approved: by the operation that carried them out, as keyed hashes of rule, place and exact value.
-- `release` is the one they were first approved with.

CREATE TABLE accepted (
  operation TEXT NOT NULL,
  finding   TEXT NOT NULL,
  release   INTEGER NOT NULL,
  PRIMARY KEY (operation, finding)
) WITHOUT ROWID;
