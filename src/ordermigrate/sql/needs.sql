-- name: find_needed
-- What relations and functions need of other objects, and these again, as pairs: who needs what.
-- What an extension has made is not followed further: it comes with the extension. Other tables
-- are not followed either; sequences and composite types are. A domain needs what its checks do.
-- $1: oids of tables and parts, $2: oids of functions.
WITH RECURSIVE roots (class, oid) AS (
    SELECT
        'pg_catalog.pg_class'::regclass::oid,
        listed.oid
    FROM unnest($1::bigint[]::oid[]) AS listed (oid)
    UNION
    SELECT
        'pg_catalog.pg_class'::regclass::oid,
        i.indexrelid
    FROM pg_catalog.pg_index AS i
    WHERE i.indrelid = ANY($1::bigint[]::oid[])
    UNION
    SELECT
        'pg_catalog.pg_attrdef'::regclass::oid,
        d.oid
    FROM pg_catalog.pg_attrdef AS d
    WHERE d.adrelid = ANY($1::bigint[]::oid[])
    UNION
    SELECT
        'pg_catalog.pg_constraint'::regclass::oid,
        k.oid
    FROM pg_catalog.pg_constraint AS k
    WHERE k.conrelid = ANY($1::bigint[]::oid[]) AND k.contype <> 'f'
    UNION
    SELECT
        'pg_catalog.pg_trigger'::regclass::oid,
        t.oid
    FROM pg_catalog.pg_trigger AS t
    WHERE
        t.tgrelid = ANY($1::bigint[]::oid[])
        AND NOT t.tgisinternal
        AND t.tgname NOT LIKE 'ordermigrate\_%'
    UNION
    SELECT
        'pg_catalog.pg_proc'::regclass::oid,
        listed.oid
    FROM unnest($2::bigint[]::oid[]) AS listed (oid)
),

edges (class, oid, needed_class, needed_oid) AS (
    SELECT
        r.class,
        r.oid,
        NULL::oid,
        NULL::oid
    FROM roots AS r
    UNION
    SELECT
        now.class,
        now.oid,
        d.refclassid,
        d.refobjid
    FROM edges AS e
    CROSS JOIN LATERAL (
        SELECT
            coalesce(e.needed_class, e.class),
            coalesce(e.needed_oid, e.oid)
    ) AS now (class, oid)
    CROSS JOIN LATERAL (
        SELECT
            own.refclassid,
            own.refobjid
        FROM pg_catalog.pg_depend AS own
        WHERE
            own.classid = now.class
            AND own.objid = now.oid
            AND (
                own.deptype = 'e'
                OR NOT EXISTS (
                    SELECT FROM pg_catalog.pg_depend AS m
                    WHERE m.classid = now.class AND m.objid = now.oid AND m.deptype = 'e'
                )
            )
        UNION ALL
        SELECT
            checks.refclassid,
            checks.refobjid
        FROM pg_catalog.pg_constraint AS k
        INNER JOIN pg_catalog.pg_depend AS checks
            ON checks.classid = 'pg_catalog.pg_constraint'::regclass AND checks.objid = k.oid
        WHERE now.class = 'pg_catalog.pg_type'::regclass AND k.contypid = now.oid
    ) AS d
    WHERE
        d.refclassid <> 'pg_catalog.pg_namespace'::regclass
        AND NOT (d.refclassid = now.class AND d.refobjid = now.oid)
        AND (
            d.refclassid <> 'pg_catalog.pg_class'::regclass
            OR EXISTS (
                SELECT FROM pg_catalog.pg_class AS c
                WHERE c.oid = d.refobjid AND c.relkind IN ('S', 'c')
            )
        )
)

SELECT
    e.class::regclass::text AS kind,
    e.oid::bigint AS oid,
    e.needed_class::regclass::text AS needed_kind,
    e.needed_oid::bigint AS needed_oid,
    pg_describe_object(e.needed_class, e.needed_oid, 0) AS needed
FROM edges AS e
WHERE e.needed_oid IS NOT NULL
ORDER BY e.needed_class, e.needed_oid, e.class, e.oid;

-- name: describe_types
-- How each type is made; no definition for one that cannot be told in SQL alone. The row types of
-- tables and arrays, which come by themselves, are left out.
-- $1: oids.
SELECT
    t.oid::bigint AS oid,
    n.nspname AS schema_name,
    format('%I.%I', n.nspname, t.typname) AS name,
    CASE t.typtype
        WHEN 'e' THEN format(
            'CREATE TYPE %I.%I AS ENUM (%s);',
            n.nspname,
            t.typname,
            (
                SELECT string_agg(quote_literal(e.enumlabel), ', ' ORDER BY e.enumsortorder)
                FROM pg_catalog.pg_enum AS e
                WHERE e.enumtypid = t.oid
            )
        )
        WHEN 'd' THEN concat(
            format('CREATE DOMAIN %I.%I AS ', n.nspname, t.typname),
            format_type(t.typbasetype, t.typtypmod),
            CASE
                WHEN t.typcollation <> below.typcollation THEN ' COLLATE ' || t.typcollation::regcollation::text
            END,
            ' DEFAULT ' || t.typdefault,
            CASE WHEN t.typnotnull THEN ' NOT NULL' END,
            (
                SELECT string_agg(
                    format(' CONSTRAINT %I %s', k.conname, pg_get_constraintdef(k.oid)), '' ORDER BY k.conname
                )
                FROM pg_catalog.pg_constraint AS k
                WHERE k.contypid = t.oid AND k.contype = 'c'
            ),
            ';'
        )
        WHEN 'c' THEN format(
            'CREATE TYPE %I.%I AS (%s);',
            n.nspname,
            t.typname,
            (
                SELECT string_agg(
                    format('%I %s', a.attname, format_type(a.atttypid, a.atttypmod)), ', ' ORDER BY a.attnum
                )
                FROM pg_catalog.pg_attribute AS a
                WHERE a.attrelid = t.typrelid AND a.attnum > 0 AND NOT a.attisdropped
            )
        )
        WHEN 'r' THEN (
            SELECT format(
                'CREATE TYPE %I.%I AS RANGE (subtype = %s%s);',
                n.nspname,
                t.typname,
                format_type(r.rngsubtype, NULL),
                CASE WHEN r.rngsubdiff <> 0 THEN ', subtype_diff = ' || r.rngsubdiff::regproc::text END
            )
            FROM pg_catalog.pg_range AS r
            WHERE r.rngtypid = t.oid AND r.rngcanonical = 0
        )
    END AS definition
FROM pg_catalog.pg_type AS t
INNER JOIN pg_catalog.pg_namespace AS n ON n.oid = t.typnamespace
LEFT JOIN pg_catalog.pg_type AS below ON below.oid = t.typbasetype
LEFT JOIN pg_catalog.pg_class AS c ON c.oid = t.typrelid
WHERE
    t.oid = ANY($1::bigint[]::oid[])
    AND (t.typelem = 0 OR t.typsubscript <> 'pg_catalog.array_subscript_handler'::regproc)
    AND t.typtype <> 'm'
    AND (c.oid IS NULL OR c.relkind = 'c')
ORDER BY t.oid;

-- name: describe_functions
-- How each function is made, and what it runs; no definition for an aggregate.
-- $1: oids.
SELECT
    p.oid::bigint AS oid,
    n.nspname AS schema_name,
    p.oid::regprocedure::text AS name,
    p.prosrc AS source,
    CASE WHEN p.prokind IN ('f', 'p') THEN rtrim(pg_get_functiondef(p.oid), E'\n') || ';' END AS definition
FROM pg_catalog.pg_proc AS p
INNER JOIN pg_catalog.pg_namespace AS n ON n.oid = p.pronamespace
WHERE p.oid = ANY($1::bigint[]::oid[])
ORDER BY p.oid;

-- name: describe_extensions
-- How each extension is made; the one that every database has is left out.
-- $1: oids.
SELECT
    e.oid::bigint AS oid,
    n.nspname AS schema_name,
    e.extname AS name,
    format('CREATE EXTENSION IF NOT EXISTS %I WITH SCHEMA %I;', e.extname, n.nspname) AS definition
FROM pg_catalog.pg_extension AS e
INNER JOIN pg_catalog.pg_namespace AS n ON n.oid = e.extnamespace
WHERE e.oid = ANY($1::bigint[]::oid[]) AND e.extname <> 'plpgsql'
ORDER BY e.extname;

-- name: describe_sequences
-- The names of sequences.
-- $1: oids.
SELECT
    n.nspname AS schema_name,
    c.relname AS sequence_name
FROM pg_catalog.pg_class AS c
INNER JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
WHERE c.oid = ANY($1::bigint[]::oid[]) AND c.relkind = 'S'
ORDER BY 1, 2;

-- name: find_mentioned_functions
-- Functions of this database that are called, by their name, in the text of others: what a body in
-- plpgsql calls is known to no catalog.
-- $1: the texts.
SELECT p.oid::bigint AS oid
FROM pg_catalog.pg_proc AS p
INNER JOIN pg_catalog.pg_namespace AS n ON n.oid = p.pronamespace
WHERE
    n.nspname NOT IN ('pg_catalog', 'information_schema', 'ordermigrate')
    AND NOT EXISTS (
        SELECT FROM pg_catalog.pg_depend AS m
        WHERE m.classid = 'pg_catalog.pg_proc'::regclass AND m.objid = p.oid AND m.deptype = 'e'
    )
    AND EXISTS (
        SELECT FROM unnest($1::text[]) AS given (body)
        WHERE
            position(lower(p.proname) IN lower(given.body)) > 0
            AND lower(given.body)
            ~ ('\m' || regexp_replace(lower(p.proname), '([^a-z0-9_])', '\\\1', 'g') || '"?\s*\(')
    )
ORDER BY p.oid;

-- name: find_mentioned_tables
-- Tables and views, other than those given, whose names stand in the text of a function.
-- $1: the text, $2: oids of tables and parts.
SELECT
    n.nspname AS schema_name,
    c.relname AS table_name
FROM pg_catalog.pg_class AS c
INNER JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
WHERE
    c.relkind IN ('r', 'p', 'v', 'm', 'f')
    AND NOT c.relispartition
    AND c.oid <> ALL($2::bigint[]::oid[])
    AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'ordermigrate', 'pg_toast')
    AND position(lower(c.relname) IN lower($1::text)) > 0
    AND lower($1::text) ~ ('\m' || regexp_replace(lower(c.relname), '([^a-z0-9_])', '\\\1', 'g') || '\M')
ORDER BY 1, 2;

-- name: find_present
-- The oids of types and functions of these names, where there are such.
-- $1: names of types, $2: functions with their arguments' types.
SELECT
    'pg_type' AS kind,
    given.name,
    to_regtype(given.name)::oid::bigint AS oid
FROM unnest($1::text[]) AS given (name)
WHERE to_regtype(given.name) IS NOT NULL
UNION ALL
SELECT
    'pg_proc' AS kind,
    given.name,
    to_regprocedure(given.name)::oid::bigint AS oid
FROM unnest($2::text[]) AS given (name)
WHERE to_regprocedure(given.name) IS NOT NULL;

-- name: find_middle_parts
-- Partitions of the given tables that are partitioned themselves.
-- $1: oids of tables.
WITH RECURSIVE tree (oid) AS (
    SELECT h.inhrelid
    FROM pg_catalog.pg_inherits AS h
    WHERE h.inhparent = ANY($1::bigint[]::oid[]) AND NOT h.inhdetachpending
    UNION
    SELECT h.inhrelid
    FROM tree AS t
    INNER JOIN pg_catalog.pg_inherits AS h ON h.inhparent = t.oid AND NOT h.inhdetachpending
)

SELECT
    n.nspname AS schema_name,
    c.relname AS table_name
FROM tree
INNER JOIN pg_catalog.pg_class AS c ON c.oid = tree.oid AND c.relkind = 'p'
INNER JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
ORDER BY 1, 2;

-- name: find_type
-- The type of what an expression over a table's row gives, whether there are rows or not.
SELECT pg_typeof(made.value)::text AS type_name
FROM (SELECT 1) AS one (number)
LEFT JOIN (SELECT ({expression}) AS value FROM {table} AS {alias} LIMIT 0) AS made ON true;
