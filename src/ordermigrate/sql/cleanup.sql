-- name: read_members
-- Tables and all parts of them, by oid: a name may be another one by now.
-- $1: the tables' oids.
WITH RECURSIVE tree (root, oid) AS (
    SELECT
        listed.oid,
        listed.oid
    FROM unnest($1::bigint[]) AS listed (oid)
    UNION
    SELECT
        t.root,
        h.inhrelid::bigint
    FROM tree AS t
    INNER JOIN pg_catalog.pg_inherits AS h ON h.inhparent = t.oid::oid
)

SELECT DISTINCT ON (tree.oid)
    tree.oid,
    n.nspname::text AS schema_name,
    c.relname::text AS table_name,
    c.relkind <> 'p' AS has_rows,
    tree.root = tree.oid AS is_root
FROM tree
INNER JOIN pg_catalog.pg_class AS c ON c.oid = tree.oid::oid
INNER JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
ORDER BY tree.oid, is_root DESC;

-- name: rename_table
-- Give a table, or a part of one, another name in its schema.
ALTER TABLE {table} RENAME TO {name};

-- name: drop_tables
-- Drop tables at once, so that they may depend on each other. Without CASCADE: what else depends on
-- them is somebody's.
DROP TABLE {tables};

-- name: read_clock
-- Whether a moment has come, and what the time is, by this server's clock.
-- $1: a moment as text, $2: hours after it.
SELECT
    clock_timestamp() >= $1::text::timestamptz + make_interval(secs => $2::float8 * 3600) AS is_due,
    to_char(
        ($1::text::timestamptz + make_interval(secs => $2::float8 * 3600)) AT TIME ZONE 'UTC',
        'YYYY-MM-DD"T"HH24:MI:SS"Z"'
    ) AS due_at,
    clock_timestamp()::text AS now;
