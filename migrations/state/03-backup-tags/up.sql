-- Why a snapshot was taken (comma-separated tags) and the operation that took it.
ALTER TABLE backup ADD COLUMN tags TEXT NOT NULL DEFAULT '';
ALTER TABLE backup ADD COLUMN operation TEXT;
