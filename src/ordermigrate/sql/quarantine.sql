-- name: create_quarantine
-- Changes that this side's own constraints refuse. There is one row for a key; no constraint says
-- so, for an index over a key as JSON would refuse keys that the table's own takes.
CREATE TABLE IF NOT EXISTS ordermigrate.quarantine (
    table_name text NOT NULL,
    row_key jsonb NOT NULL CONSTRAINT a_key_names_its_columns CHECK (jsonb_typeof(row_key) = 'object'),
    kind text NOT NULL CONSTRAINT what_is_refused_is_a_write_or_a_delete CHECK (kind IN ('write', 'delete')),
    reason text NOT NULL,
    sqlstate text NOT NULL,
    constraint_name text,
    -- Column by column as text: no value is lost to what JSON takes for a number or a character.
    row_values jsonb,
    quarantined_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    tries integer NOT NULL DEFAULT 1 CONSTRAINT tries_count_up_from_one CHECK (tries > 0),
    CONSTRAINT just_a_refused_write_has_a_row CHECK ((kind = 'write') = (row_values IS NOT NULL))
);

-- name: create_quarantine_index
-- Every round looks for the keys of one table.
CREATE INDEX IF NOT EXISTS quarantine_by_table ON ordermigrate.quarantine (table_name);

-- name: has_quarantine
-- Whether there is a quarantine here.
SELECT to_regclass('ordermigrate.quarantine') IS NOT NULL AS has_quarantine;

-- name: count_quarantined
-- How many rows of each table are in quarantine.
SELECT
    q.table_name,
    count(*) AS rows
FROM ordermigrate.quarantine AS q
GROUP BY q.table_name
ORDER BY q.table_name;

-- name: read_quarantined
-- What is in quarantine, the oldest first.
-- $1: how many at most; null for all.
SELECT
    q.table_name,
    q.row_key,
    q.kind,
    q.reason,
    q.sqlstate,
    q.constraint_name,
    q.row_values,
    q.quarantined_at,
    q.tries
FROM ordermigrate.quarantine AS q
ORDER BY q.quarantined_at, q.table_name, q.row_key
LIMIT $1::bigint;

-- name: read_keys
-- The quarantined keys of one table, as texts in the key's order.
-- $1: the table, $2: the key's columns, $3: how many at most; null for all.
SELECT
    ARRAY(
        SELECT q.row_key ->> named.name
        FROM unnest($2::text[]) WITH ORDINALITY AS named (name, place)
        ORDER BY named.place
    ) AS key_texts
FROM ordermigrate.quarantine AS q
WHERE q.table_name = $1::text
LIMIT $3::bigint;

-- name: forget_keys
-- Take keys out of quarantine.
-- $1: the table, $2: keys, each as JSON.
DELETE FROM ordermigrate.quarantine AS q
WHERE q.table_name = $1::text AND q.row_key = ANY($2::text[]::jsonb[])
RETURNING q.row_key;

-- name: count_logged
-- How often a key was logged, or all rows went.
SELECT count(*) AS entries
FROM {log} AS l
WHERE {same_key} OR l.mark IS NOT NULL;

-- name: forget_logged
-- Forget what the owner has written over since it refused it: its row is the right one.
DELETE FROM ordermigrate.quarantine AS q
USING {log} AS l
WHERE q.table_name = {table_name} AND ({same_key} OR l.mark = 'truncated');
