-- What a model said in a task, written before the calls it asked for are made.
CREATE TABLE turn (
  task        TEXT NOT NULL,
  number      INTEGER NOT NULL,
  at          TEXT NOT NULL,
  sealed_body BLOB NOT NULL,
  PRIMARY KEY (task, number)
) WITHOUT ROWID;
CREATE INDEX turn_age ON turn (at);

-- What models cost, by month (UTC, as 2026-11), agent and model. Money in millionths of a US dollar. `lost` are answers that never came:
-- they are counted at the most they can have cost.
CREATE TABLE ledger (
  month         TEXT NOT NULL,
  agent         TEXT NOT NULL,
  model         TEXT NOT NULL,
  answers       INTEGER NOT NULL DEFAULT 0,
  errors        INTEGER NOT NULL DEFAULT 0,
  lost          INTEGER NOT NULL DEFAULT 0,
  tokens_in     INTEGER NOT NULL DEFAULT 0,
  tokens_cached INTEGER NOT NULL DEFAULT 0,
  tokens_out    INTEGER NOT NULL DEFAULT 0,
  micro_usd     INTEGER NOT NULL DEFAULT 0,
  millis        INTEGER NOT NULL DEFAULT 0,
  PRIMARY KEY (month, agent, model)
) WITHOUT ROWID;

-- Questions under way, with the most they can cost: they count as spent until the answer says what it was.
CREATE TABLE ledger_open (
  id        INTEGER PRIMARY KEY AUTOINCREMENT,
  month     TEXT NOT NULL,
  agent     TEXT NOT NULL,
  model     TEXT NOT NULL,
  task      TEXT NOT NULL,
  micro_usd INTEGER NOT NULL
);
CREATE INDEX ledger_open_task ON ledger_open (task);

-- Shares of a month's budget that somebody was told about.
CREATE TABLE ledger_told (
  month   TEXT NOT NULL,
  agent   TEXT NOT NULL,
  percent INTEGER NOT NULL,
  PRIMARY KEY (month, agent, percent)
) WITHOUT ROWID;
