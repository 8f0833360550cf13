-- name: read_parts
-- How a table is partitioned, where that is by ranges of one column: a row for each partition, or
-- one without a partition. What a partition takes is told as a condition over the row's columns.
-- $1: the table's oid.
SELECT
    a.attname AS column_name,
    format_type(a.atttypid, NULL) AS type_name,
    pg_get_expr(c.relpartbound, c.oid) AS bound,
    pg_get_partition_constraintdef(c.oid) AS condition,
    pg_get_userbyid(parent.relowner) AS owner
FROM pg_catalog.pg_partitioned_table AS p
INNER JOIN pg_catalog.pg_class AS parent ON parent.oid = p.partrelid
INNER JOIN pg_catalog.pg_attribute AS a ON a.attrelid = p.partrelid AND a.attnum = p.partattrs[0]
LEFT JOIN pg_catalog.pg_inherits AS h ON h.inhparent = p.partrelid AND NOT h.inhdetachpending
LEFT JOIN pg_catalog.pg_class AS c ON c.oid = h.inhrelid
WHERE p.partrelid = $1::bigint::oid AND p.partstrat = 'r' AND p.partnatts = 1 AND a.attnum > 0
ORDER BY c.relname;

-- name: find_homeless
-- Values of staged rows that no partition takes, the least first.
SELECT DISTINCT s.{column}::text AS value
FROM {row_stage} AS s
WHERE s.{column} IS NOT NULL AND ({taken}) IS NOT TRUE
LIMIT 1000;

-- name: create_part
-- Create a partition for a range.
CREATE TABLE {part} PARTITION OF {table} FOR VALUES FROM ({lower}) TO ({upper});

-- name: give_part
-- Give a partition to its table's owner.
ALTER TABLE {part} OWNER TO {owner};
