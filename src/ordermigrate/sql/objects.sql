-- name: find_objects
-- Which of the listed objects are there. Functions are looked for by their name, whatever they take.
-- $1: kinds, $2: schemas, $3: names, $4: tables as SQL writes them, or NULL.
WITH listed AS (
    SELECT
        given.kind,
        given.schema_name,
        given.name,
        to_regclass(given.on_table)::oid AS relation,
        given.place
    FROM unnest($1::text[], $2::text[], $3::text[], $4::text[]) WITH ORDINALITY
        AS given (kind, schema_name, name, on_table, place)
)

SELECT
    CASE l.kind
        WHEN 'column' THEN EXISTS (
            SELECT FROM pg_catalog.pg_attribute AS a
            WHERE a.attrelid = l.relation AND a.attname = l.name AND a.attnum > 0
        )
        WHEN 'constraint' THEN EXISTS (
            SELECT FROM pg_catalog.pg_constraint AS k
            WHERE k.conrelid = l.relation AND k.conname = l.name
        )
        WHEN 'trigger' THEN EXISTS (
            SELECT FROM pg_catalog.pg_trigger AS t
            WHERE t.tgrelid = l.relation AND t.tgname = l.name
        )
        WHEN 'policy' THEN EXISTS (
            SELECT FROM pg_catalog.pg_policy AS p
            WHERE p.polrelid = l.relation AND p.polname = l.name
        )
        WHEN 'function' THEN EXISTS (
            SELECT FROM pg_catalog.pg_proc AS p
            INNER JOIN pg_catalog.pg_namespace AS n ON n.oid = p.pronamespace
            WHERE n.nspname = l.schema_name AND p.proname = l.name
        )
        WHEN 'type' THEN EXISTS (
            SELECT FROM pg_catalog.pg_type AS t
            INNER JOIN pg_catalog.pg_namespace AS n ON n.oid = t.typnamespace
            WHERE n.nspname = l.schema_name AND t.typname = l.name
        )
        WHEN 'extension' THEN EXISTS (
            SELECT FROM pg_catalog.pg_extension AS e
            WHERE e.extname = l.name
        )
        WHEN 'schema' THEN EXISTS (
            SELECT FROM pg_catalog.pg_namespace AS n
            WHERE n.nspname = l.name
        )
        WHEN 'role' THEN EXISTS (
            SELECT FROM pg_catalog.pg_roles AS r
            WHERE r.rolname = l.name
        )
        ELSE EXISTS (
            SELECT FROM pg_catalog.pg_class AS c
            INNER JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
            WHERE
                n.nspname = l.schema_name
                AND c.relname = l.name
                AND CASE l.kind
                    WHEN 'table' THEN c.relkind IN ('r', 'p')
                    WHEN 'partition' THEN c.relkind IN ('r', 'p') AND c.relispartition
                    WHEN 'index' THEN c.relkind IN ('i', 'I')
                    WHEN 'sequence' THEN c.relkind = 'S'
                    WHEN 'view' THEN c.relkind = 'v'
                    WHEN 'matview' THEN c.relkind = 'm'
                END
                AND (
                    l.relation IS NULL
                    OR EXISTS (
                        SELECT FROM pg_catalog.pg_index AS i
                        WHERE i.indexrelid = c.oid AND i.indrelid = l.relation AND i.indisvalid
                    )
                    OR EXISTS (
                        SELECT FROM pg_catalog.pg_inherits AS h
                        WHERE h.inhrelid = c.oid AND h.inhparent = l.relation
                    )
                )
        )
    END AS is_there
FROM listed AS l
ORDER BY l.place;
