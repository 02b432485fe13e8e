-- Shares of a month's budget that somebody was told about, and of which budget: a higher one is reached anew. What was told of the running month is told once more.
DROP TABLE ledger_told;
CREATE TABLE ledger_told (
  month   TEXT NOT NULL,
  agent   TEXT NOT NULL,
  percent INTEGER NOT NULL,
  cap     INTEGER NOT NULL,
  PRIMARY KEY (month, agent, percent, cap)
) WITHOUT ROWID;
