-- name: create_view
-- Have the server look at a query.
CREATE TEMPORARY VIEW ordermigrate_expression AS
{query};

-- name: read_columns
-- The tables that the query reads, and which of their columns.
SELECT DISTINCT
    n.nspname AS schema_name,
    c.relname AS table_name,
    a.attname AS column_name
FROM pg_catalog.pg_rewrite AS r
INNER JOIN pg_catalog.pg_depend AS d
    ON
        d.classid = 'pg_catalog.pg_rewrite'::regclass
        AND d.objid = r.oid
        AND d.refclassid = 'pg_catalog.pg_class'::regclass
        AND d.refobjid <> r.ev_class
INNER JOIN pg_catalog.pg_class AS c ON c.oid = d.refobjid AND c.relkind <> 'S'
INNER JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
LEFT JOIN pg_catalog.pg_attribute AS a
    ON a.attrelid = c.oid AND a.attnum = d.refobjsubid AND d.refobjsubid <> 0
WHERE r.ev_class = to_regclass('pg_temp.ordermigrate_expression');

-- name: read_unsteady
-- The functions in it whose value may change though their arguments do not.
SELECT DISTINCT p.oid::regprocedure::text AS name
FROM pg_catalog.pg_rewrite AS r
CROSS JOIN LATERAL regexp_matches(
    r.ev_action::text, ':(?:funcid|opfuncid|aggfnoid|winfnoid) (\d+)', 'g'
) AS used (numbers)
INNER JOIN pg_catalog.pg_proc AS p ON p.oid = used.numbers[1]::oid
WHERE
    r.ev_class = to_regclass('pg_temp.ordermigrate_expression')
    AND (
        p.provolatile = 'v'
        OR (p.provolatile = 's' AND p.oid >= 16384)
        OR (
            p.provolatile = 's'
            AND p.proname ~ '^(now|(statement|transaction)_timestamp|current_|session_user|pg_|has_|txid_|inet_)'
        )
        OR (p.proname = 'age' AND p.pronargs = 1)
    )
UNION ALL
SELECT 'CURRENT_DATE, CURRENT_TIME, CURRENT_USER or one like them' AS name
FROM pg_catalog.pg_rewrite AS r
WHERE
    r.ev_class = to_regclass('pg_temp.ordermigrate_expression')
    AND r.ev_action::text ~ 'SQLVALUEFUNCTION'
ORDER BY 1;
