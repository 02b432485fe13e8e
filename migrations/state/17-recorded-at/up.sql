-- When a snapshot was recorded: one that was long in the reading is newer than a copy that was made meanwhile.
ALTER TABLE backup ADD COLUMN recorded_at TEXT NOT NULL DEFAULT '';
UPDATE backup SET recorded_at = at;
