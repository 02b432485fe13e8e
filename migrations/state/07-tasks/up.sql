-- Work given to agents. The body is sealed: input and result may hold what only its agent may read.
CREATE TABLE task (
  id              TEXT PRIMARY KEY,
  agent           TEXT NOT NULL,
  submitter       TEXT NOT NULL,
  idempotency_key TEXT,
  args_hash       TEXT NOT NULL,
  state           TEXT NOT NULL,
  terminal        INTEGER NOT NULL,
  due_at          TEXT NOT NULL,
  created_at      TEXT NOT NULL,
  ended_at        TEXT,
  cancel          INTEGER NOT NULL DEFAULT 0,
  outside         INTEGER NOT NULL,
  lease_until     TEXT,
  sealed_body     BLOB NOT NULL
) WITHOUT ROWID;
CREATE INDEX task_queue ON task (agent, due_at, id) WHERE state = 'queued';
CREATE INDEX task_running ON task (agent) WHERE state = 'running';
CREATE INDEX task_waiting ON task (created_at) WHERE state = 'waiting_approval';
CREATE INDEX task_age ON task (created_at);
CREATE INDEX task_of_agent ON task (agent, created_at);
CREATE INDEX task_ended ON task (ended_at) WHERE terminal = 1;
CREATE UNIQUE INDEX task_key ON task (submitter, idempotency_key) WHERE idempotency_key IS NOT NULL;

-- Steps of a task: the intent before the call, the reply after it. A step with a reply is never made again.
CREATE TABLE task_step (
  task         TEXT NOT NULL,
  step         TEXT NOT NULL,
  at           TEXT NOT NULL,
  sealed_reply BLOB,
  PRIMARY KEY (task, step)
) WITHOUT ROWID;

-- Signed requests that were taken: each is taken once, for as long as it is remembered.
CREATE TABLE hook_seen (
  hook   TEXT NOT NULL,
  digest TEXT NOT NULL,
  at     TEXT NOT NULL,
  PRIMARY KEY (hook, digest)
) WITHOUT ROWID;
CREATE INDEX hook_age ON hook_seen (at);
