-- name: refuse_to_write
-- Have the server refuse whatever would change something in this session.
SELECT set_config('default_transaction_read_only', 'on', false);

-- name: read_parts
-- The given tables and all that inherits from them, partitioned ones among it.
-- $1: table oids.
WITH RECURSIVE tree (root, oid) AS (
    SELECT
        listed.oid,
        listed.oid
    FROM unnest($1::bigint[]::oid[]) AS listed (oid)
    UNION
    SELECT
        t.root,
        h.inhrelid
    FROM tree AS t
    INNER JOIN pg_catalog.pg_inherits AS h ON h.inhparent = t.oid
)

SELECT
    c.oid::bigint AS oid,
    n.nspname AS schema_name,
    c.relname AS table_name,
    rn.nspname AS root_schema,
    rc.relname AS root_name,
    c.relispartition AS is_partition,
    tree.root = tree.oid AS is_root
FROM tree
INNER JOIN pg_catalog.pg_class AS c ON c.oid = tree.oid AND c.relkind IN ('r', 'p', 'f')
INNER JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
INNER JOIN pg_catalog.pg_class AS rc ON rc.oid = tree.root
INNER JOIN pg_catalog.pg_namespace AS rn ON rn.oid = rc.relnamespace
ORDER BY tree.root, c.oid;
