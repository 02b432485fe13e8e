-- Search by stems: "restarting" finds "restarted". The index keeps no text, so it is made anew from the projections.
DROP TABLE search;

-- rowid = seq of the event the text came from.
CREATE VIRTUAL TABLE search USING fts5 (
  key, body, content='', contentless_delete=1, prefix='2 3', tokenize='porter unicode61 remove_diacritics 2'
);

-- The words of a value: names of fields and what they hold, as they are written into the index from now on.
INSERT INTO search (rowid, key, body)
SELECT seq, key, (
  SELECT group_concat(
    CASE typeof(j.key) WHEN 'text' THEN j.key || ' ' ELSE '' END ||
    CASE j.type WHEN 'true' THEN 'true' WHEN 'false' THEN 'false' ELSE coalesce(j.atom, '') END, ' ')
  FROM json_tree(e.value) j
)
FROM (SELECT seq, key, value FROM context UNION ALL SELECT seq, key, value FROM history ORDER BY seq) e;
