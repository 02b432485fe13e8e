-- How an approval may be decided: asked for at the command line (an operator confirms his own call), and whether the answer of the client that asked counts.
-- What earlier ones started is filled in; from now on it is noted where the operation begins.
ALTER TABLE approval ADD COLUMN at_terminal INTEGER NOT NULL DEFAULT 0;
ALTER TABLE approval ADD COLUMN by_client INTEGER NOT NULL DEFAULT 0;
UPDATE approval SET operation = (SELECT o.id FROM operation o WHERE o.approval = approval.id ORDER BY o.created_at LIMIT 1) WHERE state = 'used';
