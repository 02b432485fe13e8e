-- On whose behalf an approval was asked for: a JSON list of agents, outermost first. None of them approves.
ALTER TABLE approval ADD COLUMN on_behalf TEXT NOT NULL DEFAULT '[]';
