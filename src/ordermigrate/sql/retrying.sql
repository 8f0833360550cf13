-- name: begin_try
-- What is tried from here on can be undone by itself.
SAVEPOINT ordermigrate_try;

-- name: end_try
-- It went well.
RELEASE SAVEPOINT ordermigrate_try;

-- name: undo_try
-- It was refused.
ROLLBACK TO SAVEPOINT ordermigrate_try;

-- name: insert_row
-- Write a row that was refused, as an application would; the owner's capture sees it.
-- $1: the columns' values as JSON, each as text.
INSERT INTO {table} ({columns}) OVERRIDING SYSTEM VALUE
SELECT {values}
FROM (SELECT $1::text::jsonb AS given) AS g
ON CONFLICT DO NOTHING
RETURNING true AS is_written;

-- name: has_row
-- Whether the owner has a row of this key, and whether it is the one that was refused.
-- $1: the columns' values as JSON, each as text, $2: the key's.
SELECT {is_same} AS is_same
FROM {table} AS t
CROSS JOIN (SELECT $1::text::jsonb AS given, $2::text::jsonb AS key) AS g
WHERE {match};

-- name: update_row
-- Change a row whose change was refused.
-- $1: the columns' values as JSON, each as text, $2: the key's.
UPDATE {table} AS t
SET {assignments}
FROM (SELECT $1::text::jsonb AS given, $2::text::jsonb AS key) AS g
WHERE {match};

-- name: delete_row
-- Delete a row whose deletion was refused.
-- $1: the key's values as JSON, each as text.
DELETE FROM {table} AS t
USING (SELECT $1::text::jsonb AS key) AS g
WHERE {match};

-- name: note_try
-- It was refused again.
-- $1: the table, $2: the key, as JSON, $3: why.
UPDATE ordermigrate.quarantine AS q
SET tries = q.tries + 1, reason = $3::text
WHERE q.table_name = $1::text AND q.row_key = $2::text::jsonb;
