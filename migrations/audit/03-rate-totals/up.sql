-- How many calls each limit has in `rate`: counting them anew at every call costs time in proportion to the limit.
CREATE TABLE rate_total (
  key      TEXT NOT NULL,
  window_s INTEGER NOT NULL,
  n        INTEGER NOT NULL CHECK (n >= 0),
  PRIMARY KEY (key, window_s)
) WITHOUT ROWID;

INSERT INTO rate_total (key, window_s, n) SELECT key, window_s, count(*) FROM rate GROUP BY key, window_s;

CREATE TRIGGER rate_counted AFTER INSERT ON rate
BEGIN
  INSERT INTO rate_total (key, window_s, n) VALUES (NEW.key, NEW.window_s, 1)
    ON CONFLICT (key, window_s) DO UPDATE SET n = n + 1;
END;

CREATE TRIGGER rate_forgotten AFTER DELETE ON rate
BEGIN
  UPDATE rate_total SET n = n - 1 WHERE key = OLD.key AND window_s = OLD.window_s;
END;
