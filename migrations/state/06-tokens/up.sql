-- What a token is for, until when it holds, and when it was last used. Its id is the beginning of its hash.
ALTER TABLE token ADD COLUMN label TEXT NOT NULL DEFAULT '';
ALTER TABLE token ADD COLUMN expires_at TEXT;
ALTER TABLE token ADD COLUMN used_at TEXT;
