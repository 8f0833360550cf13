-- name: count_rows_since
-- How many rows of a table were created or changed at or after a moment, by its own columns.
-- $1: the moment.
SELECT count(*) AS rows
FROM {table} AS t
WHERE {is_since};

-- name: log_rows_since
-- Put the keys of these rows into the table's change log.
-- $1: the moment.
INSERT INTO {log} ({log_key})
SELECT {key}
FROM {table} AS t
WHERE {is_since};

-- name: is_moment
-- Whether a text is a moment, and which.
-- $1: the text.
SELECT $1::text::timestamptz AS moment;
