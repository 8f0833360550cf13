-- name: create_capture
-- Which tables are captured, and into which log.
CREATE TABLE IF NOT EXISTS ordermigrate.capture (
    number integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    table_name text NOT NULL UNIQUE,
    key_columns text [] NOT NULL CONSTRAINT a_captured_table_has_a_key CHECK (cardinality(key_columns) > 0)
);

-- name: insert_capture
-- Give a table a log; one that has one keeps it.
-- $1: table, $2: its key's columns.
INSERT INTO ordermigrate.capture (table_name, key_columns)
VALUES ($1::text, $2::text[])
ON CONFLICT (table_name) DO NOTHING;

-- name: has_capture
-- Whether anything is captured here.
SELECT to_regclass('ordermigrate.capture') IS NOT NULL AS has_capture;

-- name: read_captures
-- The captured tables, with the numbers of their logs.
SELECT
    c.number,
    c.table_name,
    c.key_columns
FROM ordermigrate.capture AS c
ORDER BY c.number;

-- name: find_missing_logs
-- Captured tables whose log somebody has dropped.
SELECT c.table_name
FROM ordermigrate.capture AS c
WHERE to_regclass(format('ordermigrate.change_log_%s', c.number)) IS NULL
ORDER BY c.number;

-- name: create_log
-- A table's change log: keys of rows that were written, and when. A mark, without a key, stands for
-- a change that has none: `truncated`, all rows went; `compare`, some may have gone unseen. Every
-- write of the application pays for what stands here, so there is no constraint.
CREATE TABLE IF NOT EXISTS {log} (
    {columns},
    changed_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    mark text
) WITH (
    autovacuum_vacuum_scale_factor = 0,
    autovacuum_vacuum_threshold = 2000,
    autovacuum_vacuum_insert_scale_factor = 0,
    autovacuum_vacuum_insert_threshold = 100000,
    autovacuum_vacuum_cost_delay = 0,
    autovacuum_analyze_threshold = 2147483647
);

-- name: identify_log
-- Let entries be taken off where a publication is for all tables: a table that has no key can have
-- its deletions published only by whole rows.
ALTER TABLE {log} REPLICA IDENTITY FULL;

-- name: measure_log
-- How much of one log is waiting, as the snapshot has it. (Parts of one query over all logs.)
SELECT
    {number} AS number,
    count(*) AS changes,
    count(l.mark) AS marks,
    greatest(extract(epoch FROM clock_timestamp() - min(l.changed_at)), 0)::float8 AS age_seconds
FROM {log} AS l;

-- name: analyze_log
-- Let the planner know how many different keys are waiting.
ANALYZE {log};

-- name: find_part
-- The block after the one in which the log's n-th waiting entry stands.
-- $1: how many.
SELECT max(split_part(trim('(' FROM taken.place::text), ',', 1)::bigint) + 1 AS end_block
FROM (
    SELECT l.ctid AS place
    FROM {log} AS l
    LIMIT $1::bigint
) AS taken;

-- name: take_marks
-- Take all marks off a log.
DELETE FROM {log} AS l WHERE l.mark IS NOT NULL
RETURNING l.mark;

-- name: take_changes
-- Take a part of a log off it: just the entries that the snapshot has seen.
DELETE FROM {log} AS l WHERE l.k1 IS NOT NULL AND {part};

-- name: add_mark
-- Put a mark into a log.
-- $1: which.
INSERT INTO {log} (mark) VALUES ($1::text);

-- name: add_rows_of_leaf
-- Put the keys of all rows of one part of a table into its log.
INSERT INTO {log} ({log_key})
SELECT {key} FROM ONLY {leaf};

-- name: add_keys
-- Put keys into a log.
-- $1…: one text array for each column of the key.
INSERT INTO {log} ({log_key})
SELECT {casts} FROM unnest({arrays}) AS given ({log_key});

-- name: empty_log
-- Take everything off a log, as far as the snapshot sees it.
DELETE FROM {log};

-- name: see_log
-- What waits in a log, and since when.
SELECT
    count(*) AS changes,
    count(l.mark) AS marks,
    min(l.changed_at) AS oldest
FROM {log} AS l;

-- name: log_dependents
-- Put the keys of those rows into a table's log that change with rows of a parent, given the keys
-- that its log has of these.
-- $1: since when that waits.
INSERT INTO {log} ({log_key}, changed_at)
SELECT DISTINCT
    {resolved_key},
    $1::timestamptz
FROM ({entries}) AS changed
CROSS JOIN LATERAL (
    {keys}
) AS resolved ({log_key})
WHERE ROW({resolved_key}) IS NOT NULL;

-- name: log_all_rows
-- Put the keys of all rows of a table into its log.
-- $1: since when that waits.
INSERT INTO {log} ({log_key}, changed_at)
SELECT
    {key},
    $1::timestamptz
FROM {table};
