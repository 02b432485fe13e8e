-- One row for each time a service was not well, from the first sign to recovery.
CREATE TABLE incident (
  id          TEXT PRIMARY KEY,
  stack       TEXT NOT NULL,
  service     TEXT NOT NULL,
  opened_at   TEXT NOT NULL,
  closed_at   TEXT,
  sealed_body BLOB NOT NULL
) WITHOUT ROWID;
CREATE INDEX incident_stack ON incident (stack, opened_at);
CREATE INDEX incident_open ON incident (stack, service) WHERE closed_at IS NULL;
