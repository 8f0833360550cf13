-- name: read_defaults
-- What columns are given where a statement says nothing; generated ones are told, too.
-- $1: table oids.
SELECT
    d.adrelid::bigint AS table_oid,
    a.attname AS name,
    pg_get_expr(d.adbin, d.adrelid) AS definition
FROM pg_catalog.pg_attrdef AS d
INNER JOIN pg_catalog.pg_attribute AS a ON a.attrelid = d.adrelid AND a.attnum = d.adnum
WHERE d.adrelid = ANY($1::bigint[]::oid[])
ORDER BY 1, 2;

-- name: read_partition_keys
-- How partitioned tables are partitioned.
-- $1: table oids.
SELECT
    p.partrelid::bigint AS table_oid,
    pg_get_partkeydef(p.partrelid) AS definition
FROM pg_catalog.pg_partitioned_table AS p
WHERE p.partrelid = ANY($1::bigint[]::oid[])
ORDER BY 1;

-- name: read_bodies
-- What the triggers of tables run.
-- $1: table oids.
SELECT
    t.tgrelid::bigint AS table_oid,
    t.tgname AS name,
    p.prosrc AS body
FROM pg_catalog.pg_trigger AS t
INNER JOIN pg_catalog.pg_proc AS p ON p.oid = t.tgfoid
WHERE t.tgrelid = ANY($1::bigint[]::oid[]) AND NOT t.tgisinternal
ORDER BY 1, 2;
