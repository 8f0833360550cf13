-- name: read_heap_size
-- How large a table is, with its partitions, in KiB.
-- $1: the table's name, quoted as in SQL.
SELECT
    coalesce(
        (
            SELECT sum(pg_relation_size(p.relid))
            FROM pg_partition_tree($1::text::regclass) AS p
            WHERE p.isleaf
        ),
        pg_relation_size($1::text::regclass)
    )::bigint / 1024 AS heap_kib;

-- name: drop_constraint
-- Drop a constraint whose definition is on record.
ALTER TABLE {table} DROP CONSTRAINT {name};

-- name: drop_index
-- Drop an index whose definition is on record.
DROP INDEX {index};

-- name: find_index
-- Whether a table has a usable index of this name.
-- $1: schema, $2: the index's name, $3: the table's.
SELECT i.indexrelid::bigint AS oid
FROM pg_catalog.pg_class AS c
INNER JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
INNER JOIN pg_catalog.pg_index AS i ON i.indexrelid = c.oid
INNER JOIN pg_catalog.pg_class AS t ON t.oid = i.indrelid
WHERE n.nspname = $1::text AND c.relname = $2::text AND t.relname = $3::text AND i.indisvalid;

-- name: find_constraint
-- Whether a table has a constraint of this name.
-- $1: schema, $2: table, $3: constraint.
SELECT
    k.oid::bigint AS oid,
    k.convalidated AS is_validated
FROM pg_catalog.pg_constraint AS k
INNER JOIN pg_catalog.pg_class AS c ON c.oid = k.conrelid
INNER JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
WHERE n.nspname = $1::text AND c.relname = $2::text AND k.conname = $3::text;

-- name: attach_primary_key
-- Make a unique index the primary key.
ALTER TABLE {table} ADD CONSTRAINT {name} PRIMARY KEY USING INDEX {index};

-- name: attach_unique
-- Put a unique constraint in front of a unique index.
ALTER TABLE {table} ADD CONSTRAINT {name} UNIQUE USING INDEX {index};

-- name: add_constraint
-- Bring a constraint back by its recorded definition.
ALTER TABLE {table} ADD CONSTRAINT {name} {definition};

-- name: read_leaves
-- The parts of a table that hold rows themselves; a plain table is its own.
-- $1: the table's name, quoted as in SQL.
SELECT
    n.nspname AS schema_name,
    c.relname AS table_name
FROM pg_partition_tree($1::text::regclass) AS p
INNER JOIN pg_catalog.pg_class AS c ON c.oid = p.relid
INNER JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
WHERE p.isleaf
UNION ALL
SELECT
    n.nspname AS schema_name,
    c.relname AS table_name
FROM pg_catalog.pg_class AS c
INNER JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
WHERE c.oid = $1::text::regclass AND c.relkind <> 'p' AND NOT c.relispartition;

-- name: validate_constraint
-- Look at the rows that were there before the constraint; nobody waits for it.
ALTER TABLE {table} VALIDATE CONSTRAINT {name};

-- name: set_replica_identity
-- Let the index identify rows in logical replication again.
ALTER TABLE {table} REPLICA IDENTITY USING INDEX {index};

-- name: set_clustered
-- Remember the index as the one that CLUSTER uses.
ALTER TABLE {table} CLUSTER ON {index};

-- name: comment_on_index
-- Bring an index's comment back.
COMMENT ON INDEX {index} IS {comment};

-- name: comment_on_constraint
-- Bring a constraint's comment back.
COMMENT ON CONSTRAINT {name} ON {table} IS {comment};

-- name: disable_trigger
-- Keep a user's trigger from firing on rows that are copied: it fired on the source already.
ALTER TABLE {table} DISABLE TRIGGER {name};

-- name: enable_trigger
-- Let a user's trigger fire again.
ALTER TABLE {table} ENABLE TRIGGER {name};

-- name: enable_trigger_always
-- The same for one that fired always.
ALTER TABLE {table} ENABLE ALWAYS TRIGGER {name};

-- name: enable_trigger_on_replica
-- The same for one that fired on replicas only.
ALTER TABLE {table} ENABLE REPLICA TRIGGER {name};

-- name: find_trigger
-- Whether a table has a trigger of this name.
-- $1: schema, $2: table, $3: trigger.
SELECT t.oid::bigint AS oid
FROM pg_catalog.pg_trigger AS t
INNER JOIN pg_catalog.pg_class AS c ON c.oid = t.tgrelid
INNER JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
WHERE n.nspname = $1::text AND c.relname = $2::text AND t.tgname = $3::text;

-- name: analyze
-- Give the planner fresh statistics.
ANALYZE {table};
