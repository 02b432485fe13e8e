-- Data that a restore took the place of: kept until somebody confirms that it may go. place: the volume, or the directory as the supervisor sees it.
-- covered: the snapshot that was found to hold all of it, once its removal began.
CREATE TABLE kept (
  place     TEXT PRIMARY KEY,
  source    TEXT NOT NULL,
  stack     TEXT NOT NULL,
  release   INTEGER NOT NULL,
  operation TEXT NOT NULL,
  snapshot  TEXT NOT NULL,
  since     TEXT NOT NULL,
  covered   TEXT
);
