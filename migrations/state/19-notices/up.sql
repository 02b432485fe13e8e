-- What a person outside is to be told: from the moment it was decided until it was delivered or given up. `held` = it waits for room among the messages of the last minutes.
CREATE TABLE notice (
  n      INTEGER PRIMARY KEY,
  id     TEXT NOT NULL UNIQUE,
  urgent INTEGER NOT NULL,
  held   INTEGER NOT NULL,
  body   TEXT NOT NULL
);
-- What ended lately is looked for by that, however long ago it began.
CREATE INDEX operation_settled ON operation (settled_at);
