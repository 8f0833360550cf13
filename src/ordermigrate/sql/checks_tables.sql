-- name: find_extensions
-- Extensions that columns' types, indexes or defaults of the tables come from.
-- $1: oids of tables and parts.
WITH used (classid, objid) AS (
    SELECT
        'pg_catalog.pg_type'::regclass,
        kind.oid
    FROM pg_catalog.pg_attribute AS a
    INNER JOIN pg_catalog.pg_type AS t ON t.oid = a.atttypid
    CROSS JOIN LATERAL (VALUES (t.oid), (t.typelem), (t.typbasetype)) AS kind (oid)
    WHERE a.attrelid = ANY($1::bigint[]::oid[]) AND a.attnum > 0 AND NOT a.attisdropped
    UNION
    SELECT
        'pg_catalog.pg_opclass'::regclass,
        class.oid
    FROM pg_catalog.pg_index AS i
    CROSS JOIN LATERAL unnest(i.indclass::oid[]) AS class (oid)
    WHERE i.indrelid = ANY($1::bigint[]::oid[])
    UNION
    SELECT
        d.refclassid,
        d.refobjid
    FROM pg_catalog.pg_attrdef AS ad
    INNER JOIN pg_catalog.pg_depend AS d
        ON d.classid = 'pg_catalog.pg_attrdef'::regclass AND d.objid = ad.oid
    WHERE ad.adrelid = ANY($1::bigint[]::oid[]) AND d.refclassid = 'pg_catalog.pg_proc'::regclass
)

SELECT DISTINCT e.extname AS name
FROM used
INNER JOIN pg_catalog.pg_depend AS d
    ON
        d.classid = used.classid
        AND d.objid = used.objid
        AND d.deptype = 'e'
        AND d.refclassid = 'pg_catalog.pg_extension'::regclass
INNER JOIN pg_catalog.pg_extension AS e ON e.oid = d.refobjid
ORDER BY 1;

-- name: find_missing_extensions
-- Which of these extensions this database lacks, and whether the server has them to offer.
-- $1: their names.
SELECT
    wanted.name,
    EXISTS (SELECT FROM pg_catalog.pg_available_extensions AS a WHERE a.name = wanted.name) AS is_available
FROM unnest($1::text[]) AS wanted (name)
WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_extension AS e WHERE e.extname = wanted.name)
ORDER BY 1;

-- name: find_own_types
-- Types of the tables' columns that somebody made here: enums, domains, composites, ranges.
-- $1: table oids.
SELECT DISTINCT
    a.attrelid::bigint AS table_oid,
    format_type(t.oid, NULL) AS type_name
FROM pg_catalog.pg_attribute AS a
INNER JOIN pg_catalog.pg_type AS given ON given.oid = a.atttypid
INNER JOIN pg_catalog.pg_type AS t
    ON t.oid = CASE WHEN given.typelem <> 0 AND given.typlen = -1 THEN given.typelem ELSE given.oid END
WHERE
    a.attrelid = ANY($1::bigint[]::oid[])
    AND a.attnum > 0
    AND NOT a.attisdropped
    AND t.oid >= 16384
    AND NOT EXISTS (
        SELECT FROM pg_catalog.pg_depend AS d
        WHERE d.classid = 'pg_catalog.pg_type'::regclass AND d.objid = t.oid AND d.deptype = 'e'
    )
ORDER BY 2;

-- name: find_missing_types
-- Which of these types this database lacks.
-- $1: their names, quoted as in SQL.
SELECT wanted.name
FROM unnest($1::text[]) AS wanted (name)
WHERE to_regtype(wanted.name) IS NULL
ORDER BY 1;

-- name: find_parents
-- What the tables themselves inherit from, or are partitions of.
-- $1: table oids.
SELECT
    h.inhrelid::regclass::text AS table_name,
    h.inhparent::regclass::text AS parent_name,
    c.relispartition AS is_partition
FROM pg_catalog.pg_inherits AS h
INNER JOIN pg_catalog.pg_class AS c ON c.oid = h.inhrelid
WHERE h.inhrelid = ANY($1::bigint[]::oid[])
ORDER BY 1, 2;

-- name: find_policies
-- Tables with row level security, and the names of their policies.
-- $1: oids of tables and parts.
SELECT
    c.oid::regclass::text AS table_name,
    c.relrowsecurity AS is_on,
    ARRAY(
        SELECT p.polname::text FROM pg_catalog.pg_policy AS p
        WHERE p.polrelid = c.oid
        ORDER BY p.polname
    ) AS policies
FROM pg_catalog.pg_class AS c
WHERE
    c.oid = ANY($1::bigint[]::oid[])
    AND (c.relrowsecurity OR c.oid IN (SELECT p.polrelid FROM pg_catalog.pg_policy AS p))
ORDER BY 1;

-- name: find_shared_sequences
-- Sequences from which columns of other tables draw as well.
-- $1: the sequences' oids, $2: oids of tables and parts.
SELECT DISTINCT
    d.refobjid::regclass::text AS sequence_name,
    ad.adrelid::regclass::text AS table_name
FROM pg_catalog.pg_depend AS d
INNER JOIN pg_catalog.pg_attrdef AS ad ON ad.oid = d.objid
WHERE
    d.classid = 'pg_catalog.pg_attrdef'::regclass
    AND d.refclassid = 'pg_catalog.pg_class'::regclass
    AND d.refobjid = ANY($1::bigint[]::oid[])
    AND ad.adrelid <> ALL($2::bigint[]::oid[])
ORDER BY 1, 2;

-- name: has_hypertables
-- Whether the database keeps a list of hypertables.
SELECT to_regclass('_timescaledb_catalog.hypertable') IS NOT NULL AS is_there;

-- name: find_hypertables
-- Which of the tables are hypertables; to be asked only where there is such a list.
-- $1: table oids.
SELECT c.oid::regclass::text AS table_name
FROM _timescaledb_catalog.hypertable AS h
INNER JOIN pg_catalog.pg_namespace AS n ON n.nspname = h.schema_name
INNER JOIN pg_catalog.pg_class AS c ON c.relnamespace = n.oid AND c.relname = h.table_name
WHERE c.oid = ANY($1::bigint[]::oid[])
ORDER BY 1;
