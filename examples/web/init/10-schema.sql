-- Run by PostgreSQL's image when the volume is new, as the user shop in the database shop. Later changes are your migrations' work.
CREATE TABLE IF NOT EXISTS visits (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at timestamptz NOT NULL DEFAULT now()
);
