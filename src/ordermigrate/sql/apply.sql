-- name: create_key_stage
-- Keys to be looked at, in the target's types; empty again after each transaction.
CREATE TEMPORARY TABLE {stage} ON COMMIT DELETE ROWS AS
SELECT {key} FROM {table} AS t
WITH NO DATA;

-- name: create_row_stage
-- Rows as they are on the source, in the target's types, each with its digest there.
CREATE TEMPORARY TABLE {stage} ON COMMIT DELETE ROWS AS
SELECT
    {columns},
    NULL::text AS ordermigrate_digest
FROM {table} AS t
WITH NO DATA;

-- name: analyze_stages
-- Let the planner know how much there is.
ANALYZE {key_stage} ({key}), {row_stage} ({key});

-- name: delete_all
-- Remove all rows: the source's table was truncated.
DELETE FROM {table};

-- name: delete_strangers
-- Remove rows whose keys the source does not have; all of its keys are on the stage.
DELETE FROM {table} AS t WHERE NOT EXISTS (SELECT FROM {stage} AS s WHERE {match});

-- name: delete_keys
-- Remove the rows of the staged keys.
DELETE FROM {table} AS t USING {key_stage} AS k WHERE {match};

-- name: keep_gone
-- Forget keys whose rows the source has; what stays are rows that do not exist there any more.
DELETE FROM {key_stage} AS k USING {row_stage} AS s WHERE {match};

-- name: delete_movers
-- Remove rows that hold a unique value which another row of this round is to have: PostgreSQL looks
-- at each row of an UPDATE by itself, so two rows could never swap it. They come back changed.
DELETE FROM {table} AS t
USING {row_stage} AS s, {row_stage} AS other
WHERE {match} AND {same_value} AND NOT ({other_match});

-- name: delete_changed
-- Remove rows that an UPDATE cannot bring to what they are to be. They come back changed.
DELETE FROM {table} AS t
USING {row_stage} AS s
WHERE {match} AND {differs};

-- name: update_changed
-- Bring rows to what they are on the source, where one column's image differs.
UPDATE {table} AS t
SET {assignments}
FROM {row_stage} AS s
WHERE {match} AND {differs};

-- name: insert_missing
-- Bring rows that the target does not have.
INSERT INTO {table} ({columns}) OVERRIDING SYSTEM VALUE
SELECT {staged}
FROM {row_stage} AS s
WHERE NOT EXISTS (SELECT FROM {table} AS t WHERE {match});

-- name: find_unequal
-- Keys whose rows are not now what they are on the source.
SELECT ARRAY[{key_texts}] AS key_texts
FROM {row_stage} AS s
LEFT JOIN LATERAL (
    SELECT {digest} AS digest
    FROM {table} AS t
    WHERE {match}
) AS now ON true
WHERE now.digest IS DISTINCT FROM s.ordermigrate_digest
LIMIT 5;

-- name: create_refused
-- Where the search for a refused row leaves what it has found.
CREATE TEMPORARY TABLE IF NOT EXISTS ordermigrate_refused (
    row_key text,
    constraint_name text,
    message text,
    detail text
) ON COMMIT DELETE ROWS;

-- name: find_refused
-- Write the staged rows one by one, and note the first that the target refuses, and why.
DO $search$
DECLARE
    one record;
    broken text;
    said text;
    more text;
BEGIN
    FOR one IN SELECT s.* FROM {row_stage} AS s LOOP
        BEGIN
            DELETE FROM {table} AS t WHERE {match};
            INSERT INTO {table} ({columns}) OVERRIDING SYSTEM VALUE VALUES ({values});
            SET CONSTRAINTS ALL IMMEDIATE;
        EXCEPTION WHEN integrity_constraint_violation OR data_exception THEN
            GET STACKED DIAGNOSTICS
                broken = CONSTRAINT_NAME, said = MESSAGE_TEXT, more = PG_EXCEPTION_DETAIL;
            INSERT INTO pg_temp.ordermigrate_refused (row_key, constraint_name, message, detail)
            VALUES ({row_key}, broken, said, more);
            EXIT;
        END;
    END LOOP;
END
$search$;

-- name: read_refused
-- What that search has found.
SELECT
    r.row_key,
    r.constraint_name,
    r.message,
    r.detail
FROM pg_temp.ordermigrate_refused AS r
LIMIT 1;
