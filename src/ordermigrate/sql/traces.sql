-- name: drop_trigger
-- Remove a trigger of ours, capture's or the fence's; clones on partitions go with it.
DROP TRIGGER IF EXISTS {trigger} ON {table};

-- name: find_traces
-- All that is ours in this database, or named for us, wherever it is: the schema with what is in it,
-- triggers that run our functions, and anything else with our name.
SELECT
    found.kind,
    found.name
FROM (
    SELECT
        'schema' AS kind,
        n.nspname::text AS name
    FROM pg_catalog.pg_namespace AS n
    WHERE n.nspname LIKE '%ordermigrate%'
    UNION ALL
    SELECT
        'relation' AS kind,
        c.oid::regclass::text AS name
    FROM pg_catalog.pg_class AS c
    INNER JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
    WHERE
        (n.nspname = 'ordermigrate' OR c.relname LIKE '%ordermigrate%')
        AND c.relkind NOT IN ('i', 'I', 't')
        AND c.relpersistence <> 't'
    UNION ALL
    SELECT
        'function' AS kind,
        p.oid::regprocedure::text AS name
    FROM pg_catalog.pg_proc AS p
    INNER JOIN pg_catalog.pg_namespace AS n ON n.oid = p.pronamespace
    WHERE n.nspname = 'ordermigrate' OR p.proname LIKE '%ordermigrate%'
    UNION ALL
    SELECT
        'trigger' AS kind,
        format('%I on %s', t.tgname, t.tgrelid::regclass) AS name
    FROM pg_catalog.pg_trigger AS t
    INNER JOIN pg_catalog.pg_proc AS p ON p.oid = t.tgfoid
    INNER JOIN pg_catalog.pg_namespace AS n ON n.oid = p.pronamespace
    WHERE (n.nspname = 'ordermigrate' OR t.tgname LIKE '%ordermigrate%') AND t.tgparentid = 0
    UNION ALL
    SELECT
        'publication' AS kind,
        p.pubname::text AS name
    FROM pg_catalog.pg_publication AS p
    WHERE p.pubname LIKE '%ordermigrate%'
) AS found
ORDER BY 1, 2;
