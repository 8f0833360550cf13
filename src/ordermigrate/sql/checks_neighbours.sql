-- name: find_views
-- Views that use the tables or their parts.
-- $1: oids of tables and parts.
SELECT DISTINCT
    v.oid::regclass::text AS view_name,
    v.relkind = 'm' AS is_materialized,
    d.refobjid::regclass::text AS table_name
FROM pg_catalog.pg_depend AS d
INNER JOIN pg_catalog.pg_rewrite AS r ON r.oid = d.objid
INNER JOIN pg_catalog.pg_class AS v ON v.oid = r.ev_class AND v.relkind IN ('v', 'm')
WHERE
    d.classid = 'pg_catalog.pg_rewrite'::regclass
    AND d.refclassid = 'pg_catalog.pg_class'::regclass
    AND d.refobjid = ANY($1::bigint[]::oid[])
ORDER BY 1, 3;

-- name: find_rules
-- Rules that turn writes to the tables into something else.
-- $1: oids of tables and parts.
SELECT
    r.rulename AS name,
    r.ev_class::regclass::text AS table_name
FROM pg_catalog.pg_rewrite AS r
WHERE r.ev_class = ANY($1::bigint[]::oid[]) AND r.ev_type <> '1' AND r.ev_enabled <> 'D'
ORDER BY 2, 1;

-- name: find_publications
-- Publications that send the tables' changes to somebody.
-- $1: oids of tables and parts.
SELECT
    p.pubname AS publication,
    min(c.oid::regclass::text) AS table_name,
    count(*) AS tables
FROM pg_catalog.pg_publication_tables AS p
INNER JOIN pg_catalog.pg_namespace AS n ON n.nspname = p.schemaname
INNER JOIN pg_catalog.pg_class AS c ON c.relnamespace = n.oid AND c.relname = p.tablename
WHERE c.oid = ANY($1::bigint[]::oid[])
GROUP BY p.pubname
ORDER BY 1;

-- name: read_triggers
-- All triggers of users in this database, on whatever table; ours and partitions' clones left out.
SELECT
    t.tgrelid::bigint AS table_oid,
    t.tgrelid::regclass::text AS table_name,
    t.tgname AS name,
    t.tgfoid::bigint AS function_oid,
    t.tgfoid::regprocedure::text AS function_name,
    t.tgenabled <> 'D' AS is_on
FROM pg_catalog.pg_trigger AS t
INNER JOIN pg_catalog.pg_proc AS p ON p.oid = t.tgfoid
INNER JOIN pg_catalog.pg_namespace AS n ON n.oid = p.pronamespace
WHERE NOT t.tgisinternal AND t.tgparentid = 0 AND n.nspname <> 'ordermigrate'
ORDER BY 2, 3;

-- name: read_functions
-- Functions and procedures that somebody made in this database, with what they do as text.
SELECT
    p.oid::bigint AS oid,
    p.oid::regprocedure::text AS signature,
    n.nspname AS schema_name,
    p.proname AS name,
    l.lanname AS language,
    coalesce(pg_get_function_sqlbody(p.oid), p.prosrc, '') AS body,
    coalesce(
        (
            SELECT substring(setting.text FROM '^search_path=(.*)$')
            FROM unnest(p.proconfig) AS setting (text)
            WHERE setting.text LIKE 'search_path=%'
        ),
        ''
    ) AS search_path
FROM pg_catalog.pg_proc AS p
INNER JOIN pg_catalog.pg_namespace AS n ON n.oid = p.pronamespace
INNER JOIN pg_catalog.pg_language AS l ON l.oid = p.prolang
WHERE
    p.prokind IN ('f', 'p')
    AND p.oid >= 16384
    AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'ordermigrate')
    AND NOT EXISTS (
        SELECT FROM pg_catalog.pg_depend AS d
        WHERE d.classid = 'pg_catalog.pg_proc'::regclass AND d.objid = p.oid AND d.deptype = 'e'
    )
ORDER BY 2;

-- name: read_relations
-- What a function could write to, by name.
SELECT
    c.oid::bigint AS oid,
    n.nspname AS schema_name,
    c.relname AS name
FROM pg_catalog.pg_class AS c
INNER JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
WHERE
    c.relkind IN ('r', 'p', 'v', 'f')
    AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'ordermigrate')
    AND n.nspname !~ '^pg_(toast|temp)';
