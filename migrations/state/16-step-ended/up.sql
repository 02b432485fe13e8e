-- When the result of a step was written: what the engine tells of a container between the two is the step's work, what it tells later is somebody else's.
ALTER TABLE step ADD COLUMN done_at TEXT;
