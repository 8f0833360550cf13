-- name: find_tables
-- The named relations, with what decides how they can be read.
-- $1: schemas, $2: names.
SELECT
    wanted.schema_name,
    wanted.table_name,
    c.oid::bigint AS oid,
    c.relkind::text AS kind,
    pg_get_userbyid(c.relowner) AS owner,
    c.relrowsecurity AS has_row_security,
    greatest(c.reltuples, 0)::bigint AS rows_estimate,
    coalesce(has_schema_privilege(n.oid, 'USAGE'), false) AS can_enter,
    coalesce(has_table_privilege(c.oid, 'SELECT'), false) AS can_select,
    coalesce(has_table_privilege(c.oid, 'INSERT'), false) AS can_insert,
    pg_has_role(c.relowner, 'USAGE') AS is_owned,
    coalesce(row_security_active(c.oid), false) AS hides_rows
FROM unnest($1::text[], $2::text[]) AS wanted (schema_name, table_name)
LEFT JOIN pg_catalog.pg_namespace AS n ON n.nspname = wanted.schema_name
LEFT JOIN pg_catalog.pg_class AS c
    ON c.relnamespace = n.oid AND c.relname = wanted.table_name AND c.relkind NOT IN ('i', 'I', 't');

-- name: find_name
-- What a relation is called now.
-- $1: its oid.
SELECT c.oid::regclass::text AS name
FROM pg_catalog.pg_class AS c
WHERE c.oid = $1::bigint::oid;

-- name: find_similar_tables
-- Tables that could have been meant, those of the same name but for its case first.
-- $1: a name.
SELECT
    n.nspname AS schema_name,
    c.relname AS table_name
FROM pg_catalog.pg_class AS c
INNER JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
WHERE
    c.relkind IN ('r', 'p')
    AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'ordermigrate')
ORDER BY lower(c.relname) <> lower($1::text), 1, 2
LIMIT 1000;

-- name: read_columns
-- Columns of the given tables. Below a domain lies the type that decides how a value travels;
-- a type that carries OIDs in its binary form (reg*, composites, arrays of user types) does not
-- travel in binary. The labels are those of all enums inside a column's type: below domains, in
-- arrays, ranges and composites.
-- $1: table oids.
WITH RECURSIVE below (top, oid) AS (
    SELECT DISTINCT
        a.atttypid,
        a.atttypid
    FROM pg_catalog.pg_attribute AS a
    WHERE a.attrelid = ANY($1::bigint[]::oid[]) AND a.attnum > 0 AND NOT a.attisdropped
    UNION ALL
    SELECT
        b.top,
        t.typbasetype
    FROM below AS b
    INNER JOIN pg_catalog.pg_type AS t ON t.oid = b.oid
    WHERE t.typtype = 'd'
),

within (top, oid) AS (
    SELECT DISTINCT
        a.atttypid,
        a.atttypid
    FROM pg_catalog.pg_attribute AS a
    WHERE a.attrelid = ANY($1::bigint[]::oid[]) AND a.attnum > 0 AND NOT a.attisdropped
    UNION
    SELECT
        w.top,
        inside.oid
    FROM within AS w
    INNER JOIN pg_catalog.pg_type AS t ON t.oid = w.oid
    CROSS JOIN LATERAL (
        SELECT t.typbasetype
        UNION ALL
        SELECT t.typelem
        UNION ALL
        SELECT r.rngsubtype FROM pg_catalog.pg_range AS r WHERE t.oid IN (r.rngtypid, r.rngmultitypid)
        UNION ALL
        SELECT f.atttypid FROM pg_catalog.pg_attribute AS f WHERE f.attrelid = t.typrelid AND f.attnum > 0
    ) AS inside (oid)
    WHERE inside.oid <> 0
)

SELECT
    a.attrelid::bigint AS table_oid,
    a.attname AS name,
    a.attnum::integer AS position,
    format_type(a.atttypid, a.atttypmod) AS type_name,
    -- -1 is 'no modifiers': NULL would give character, which as a cast means character(1)
    format_type(base.oid, -1) AS base_type,
    a.atttypid < 16384 AS is_builtin,
    base.typtype = 'e' AS is_enum,
    (
        base.typtype = 'e'
        OR (
            base.oid < 16384
            AND base.typtype IN ('b', 'r', 'm')
            AND base.typsend <> 0
            AND base.typreceive <> 0
            AND base.typelem < 16384
            -- an array has a binary form, even of what has none
            AND NOT EXISTS (
                SELECT FROM pg_catalog.pg_type AS e
                WHERE e.oid = base.typelem AND (e.typsend = 0 OR e.typreceive = 0)
            )
            AND base.typname !~ '^_?reg'
            -- PostgreSQL does not take an empty tsquery back in the binary form in which it sends it.
            AND base.typname !~ '^_?tsquery$'
            -- Before 17 there is no infinite interval: its binary form is taken for a very long one,
            -- its text is refused.
            AND NOT (base.typname ~ '^_?interval$' AND current_setting('server_version_num')::integer < 170000)
        )
    ) AS is_binary_safe,
    a.attnotnull OR top_type.typnotnull AS is_not_null,
    a.attidentity::text AS identity,
    a.attgenerated::text AS generated,
    a.atthasdef AS has_default,
    CASE WHEN a.attcollation <> 0 THEN a.attcollation::regcollation::text END AS collation,
    -- Where a type of an extension has its own `=`, a bare one would find another's.
    (
        SELECT n.nspname
        FROM pg_catalog.pg_opclass AS c
        INNER JOIN pg_catalog.pg_am AS m ON m.oid = c.opcmethod AND m.amname = 'btree'
        INNER JOIN pg_catalog.pg_amop AS p
            ON
                p.amopfamily = c.opcfamily
                AND p.amopstrategy = 3
                AND p.amoplefttype = c.opcintype
                AND p.amoprighttype = c.opcintype
        INNER JOIN pg_catalog.pg_operator AS o ON o.oid = p.amopopr
        INNER JOIN pg_catalog.pg_namespace AS n ON n.oid = o.oprnamespace
        WHERE c.opcintype = base.oid AND c.opcdefault AND n.nspname <> 'pg_catalog'
    ) AS equality_schema,
    (
        SELECT coalesce(jsonb_object_agg(e.oid::text, e.enumlabel), jsonb_build_object())
        FROM within AS w
        INNER JOIN pg_catalog.pg_enum AS e ON e.enumtypid = w.oid
        WHERE w.top = a.atttypid
    ) AS labels
FROM pg_catalog.pg_attribute AS a
INNER JOIN below AS b ON b.top = a.atttypid
INNER JOIN pg_catalog.pg_type AS base ON base.oid = b.oid AND base.typtype <> 'd'
INNER JOIN pg_catalog.pg_type AS top_type ON top_type.oid = a.atttypid
WHERE a.attrelid = ANY($1::bigint[]::oid[]) AND a.attnum > 0 AND NOT a.attisdropped
ORDER BY a.attrelid, a.attnum;

-- name: read_indexes
-- Indexes of the given tables (a partitioned one's are the parents of its leaves'), with the
-- constraints that they stand behind and what else depends on either.
-- $1: table oids.
SELECT
    i.indrelid::bigint AS table_oid,
    c.relname AS name,
    CASE
        WHEN c.relkind = 'I' THEN replace(
            pg_get_indexdef(i.indexrelid),
            format('INDEX %I ON ONLY ', c.relname),
            format('INDEX %I ON ', c.relname)
        )
        ELSE pg_get_indexdef(i.indexrelid)
    END AS definition,
    i.indisunique AS is_unique,
    i.indisprimary AS is_primary,
    i.indisvalid AS is_valid,
    i.indpred IS NOT NULL AS is_partial,
    i.indisreplident AS is_replica_identity,
    i.indisclustered AS is_clustered,
    am.amname AS method,
    coalesce(ts.spcname, '') AS tablespace,
    obj_description(i.indexrelid, 'pg_class') AS comment,
    k.conname AS constraint_name,
    coalesce(k.contype::text, '') AS constraint_kind,
    pg_get_constraintdef(k.oid) AS constraint_definition,
    obj_description(k.oid, 'pg_constraint') AS constraint_comment,
    coalesce(k.condeferrable, false) AS is_deferrable,
    ARRAY(
        SELECT a.attname::text
        FROM unnest(i.indkey[0:i.indnkeyatts - 1]) WITH ORDINALITY AS key (attnum, place)
        INNER JOIN pg_catalog.pg_attribute AS a ON a.attrelid = i.indrelid AND a.attnum = key.attnum
        ORDER BY key.place
    ) AS column_names,
    ARRAY(
        SELECT DISTINCT pg_describe_object(d.classid, d.objid, d.objsubid)
        FROM pg_catalog.pg_depend AS d
        WHERE
            d.deptype IN ('n', 'a')
            AND (
                (d.refclassid = 'pg_catalog.pg_class'::regclass AND d.refobjid = i.indexrelid)
                OR (d.refclassid = 'pg_catalog.pg_constraint'::regclass AND d.refobjid = k.oid)
            )
            AND NOT (
                k.oid IS NOT NULL
                AND d.classid = 'pg_catalog.pg_constraint'::regclass
                AND d.objid = k.oid
            )
    ) AS needed_by
FROM pg_catalog.pg_index AS i
INNER JOIN pg_catalog.pg_class AS c ON c.oid = i.indexrelid
INNER JOIN pg_catalog.pg_am AS am ON am.oid = c.relam
LEFT JOIN pg_catalog.pg_tablespace AS ts ON ts.oid = c.reltablespace
LEFT JOIN pg_catalog.pg_constraint AS k ON k.conindid = i.indexrelid AND k.contype IN ('p', 'u', 'x')
WHERE
    i.indrelid = ANY($1::bigint[]::oid[])
    AND NOT EXISTS (SELECT FROM pg_catalog.pg_inherits AS h WHERE h.inhrelid = i.indexrelid)
ORDER BY i.indrelid, c.relname;

-- name: read_checks
-- CHECK constraints of the given tables.
-- $1: table oids.
SELECT
    k.conrelid::bigint AS table_oid,
    k.conname AS name,
    pg_get_constraintdef(k.oid) AS definition,
    k.convalidated AS is_validated,
    NOT k.conislocal AS is_inherited
FROM pg_catalog.pg_constraint AS k
WHERE k.conrelid = ANY($1::bigint[]::oid[]) AND k.contype = 'c'
ORDER BY k.conrelid, k.conname;

-- name: read_foreign_keys
-- Foreign keys that leave the given tables or arrive at them.
-- $1: table oids.
SELECT
    k.conname AS name,
    k.conrelid::bigint AS table_oid,
    n.nspname AS schema_name,
    c.relname AS table_name,
    k.confrelid::bigint AS referenced_oid,
    rn.nspname AS referenced_schema,
    rc.relname AS referenced_name,
    pg_get_constraintdef(k.oid) AS definition,
    k.convalidated AS is_validated,
    ARRAY(
        SELECT a.attname::text
        FROM unnest(k.conkey) WITH ORDINALITY AS key (attnum, place)
        INNER JOIN pg_catalog.pg_attribute AS a ON a.attrelid = k.conrelid AND a.attnum = key.attnum
        ORDER BY key.place
    ) AS column_names,
    ARRAY(
        SELECT a.attname::text
        FROM unnest(k.confkey) WITH ORDINALITY AS key (attnum, place)
        INNER JOIN pg_catalog.pg_attribute AS a ON a.attrelid = k.confrelid AND a.attnum = key.attnum
        ORDER BY key.place
    ) AS referenced_columns
FROM pg_catalog.pg_constraint AS k
INNER JOIN pg_catalog.pg_class AS c ON c.oid = k.conrelid
INNER JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
INNER JOIN pg_catalog.pg_class AS rc ON rc.oid = k.confrelid
INNER JOIN pg_catalog.pg_namespace AS rn ON rn.oid = rc.relnamespace
WHERE
    k.contype = 'f'
    AND k.conparentid = 0
    AND (k.conrelid = ANY($1::bigint[]::oid[]) OR k.confrelid = ANY($1::bigint[]::oid[]))
ORDER BY k.conrelid, k.conname;

-- name: read_triggers
-- Triggers that users have made on the given tables or on their leaves; ours, those of foreign keys
-- and partitions' clones are not among them. The version changes with every change of the row.
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
    INNER JOIN pg_catalog.pg_inherits AS h ON h.inhparent = t.oid AND NOT h.inhdetachpending
)

SELECT
    tree.root::bigint AS table_oid,
    n.nspname AS schema_name,
    c.relname AS table_name,
    t.oid::bigint AS oid,
    t.xmin::text AS version,
    t.tgname AS name,
    t.tgenabled::text AS enabled,
    pg_get_triggerdef(t.oid) AS definition,
    t.tgfoid::regprocedure::text AS function
FROM tree
INNER JOIN pg_catalog.pg_trigger AS t
    ON
        t.tgrelid = tree.oid
        AND NOT t.tgisinternal
        AND t.tgparentid = 0
        AND t.tgname NOT LIKE 'ordermigrate\_%'
INNER JOIN pg_catalog.pg_class AS c ON c.oid = t.tgrelid
INNER JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
ORDER BY t.tgrelid, t.tgname;

-- name: read_sequences
-- Sequences that columns own (serial, identity) or that their defaults draw from.
-- $1: table oids.
SELECT DISTINCT
    a.attrelid::bigint AS table_oid,
    a.attname AS column_name,
    n.nspname AS schema_name,
    c.relname AS sequence_name,
    CASE WHEN has_sequence_privilege(c.oid, 'SELECT, USAGE') THEN pg_sequence_last_value(c.oid) END
        AS last_value,
    c.oid::bigint AS oid,
    s.seqincrement AS increment,
    s.seqcache AS cache,
    s.seqmin AS least,
    s.seqmax AS most,
    has_sequence_privilege(c.oid, 'UPDATE') AS can_set
FROM pg_catalog.pg_attribute AS a
LEFT JOIN pg_catalog.pg_attrdef AS ad ON ad.adrelid = a.attrelid AND ad.adnum = a.attnum
INNER JOIN pg_catalog.pg_depend AS d
    ON (
        d.classid = 'pg_catalog.pg_class'::regclass
        AND d.refclassid = 'pg_catalog.pg_class'::regclass
        AND d.refobjid = a.attrelid AND d.refobjsubid = a.attnum AND d.deptype IN ('a', 'i')
    )
    OR (
        d.classid = 'pg_catalog.pg_attrdef'::regclass
        AND d.objid = ad.oid
        AND d.refclassid = 'pg_catalog.pg_class'::regclass
    )
INNER JOIN pg_catalog.pg_class AS c
    ON c.relkind = 'S'
    AND c.oid = CASE WHEN d.classid = 'pg_catalog.pg_class'::regclass THEN d.objid ELSE d.refobjid END
INNER JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
INNER JOIN pg_catalog.pg_sequence AS s ON s.seqrelid = c.oid
WHERE a.attrelid = ANY($1::bigint[]::oid[]) AND a.attnum > 0 AND NOT a.attisdropped
ORDER BY 1, 2;

-- name: read_leaves
-- The given tables and all that inherits from them, with their files. A partitioned table has no
-- file of its own and is left out; a foreign table is listed, to be refused. A part whose DETACH
-- CONCURRENTLY is pending has gone already: no SELECT from the table returns its rows.
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
    INNER JOIN pg_catalog.pg_inherits AS h ON h.inhparent = t.oid AND NOT h.inhdetachpending
    INNER JOIN pg_catalog.pg_class AS child ON child.oid = h.inhrelid AND child.relkind <> 'I'
)

SELECT
    t.root::bigint AS table_oid,
    c.oid::bigint AS oid,
    c.relkind::text AS kind,
    n.nspname AS schema_name,
    c.relname AS table_name,
    pg_relation_filenode(c.oid)::bigint AS filenode,
    CASE
        WHEN c.relkind = 'r'
            THEN pg_relation_size(c.oid, 'main') / current_setting('block_size')::bigint
        ELSE 0
    END AS blocks,
    pg_get_expr(c.relpartbound, c.oid) AS bound,
    coalesce(am.amname, '') AS access_method,
    c.relpersistence = 'u' AS is_unlogged,
    has_table_privilege(c.oid, 'SELECT') AS can_select,
    coalesce(row_security_active(c.oid), false) AS hides_rows
FROM tree AS t
INNER JOIN pg_catalog.pg_class AS c ON c.oid = t.oid
INNER JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
LEFT JOIN pg_catalog.pg_am AS am ON am.oid = c.relam
WHERE c.relkind <> 'p'
ORDER BY t.root, c.oid;

-- name: read_filenode
-- The file that a leaf has right now: the catalog's newest word, whatever the snapshot.
-- $1: the leaf's oid.
SELECT pg_relation_filenode($1::bigint::oid)::bigint AS filenode;

-- name: read_own_triggers
-- The triggers of ours in this database, on whatever table; clones on partitions, too.
SELECT
    n.nspname AS schema_name,
    c.relname AS table_name,
    c.oid::bigint AS table_oid,
    t.tgname AS name,
    t.oid::bigint AS oid,
    t.xmin::text AS version,
    t.tgenabled::text AS enabled,
    t.tgparentid <> 0 AS is_clone
FROM pg_catalog.pg_trigger AS t
INNER JOIN pg_catalog.pg_class AS c ON c.oid = t.tgrelid
INNER JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
INNER JOIN pg_catalog.pg_proc AS p ON p.oid = t.tgfoid
INNER JOIN pg_catalog.pg_namespace AS pn ON pn.oid = p.pronamespace
WHERE pn.nspname = 'ordermigrate' AND NOT t.tgisinternal
ORDER BY n.nspname, c.relname, t.tgname;

-- name: read_version
-- A number that is another one after any change of the tables' definitions, files, parts, indexes,
-- triggers, subscriptions or enums; it may change for less.
-- $1: the tables' oids.
WITH RECURSIVE tree (oid) AS (
    SELECT listed.oid
    FROM unnest($1::bigint[]::oid[]) AS listed (oid)
    UNION
    SELECT h.inhrelid
    FROM tree AS t
    INNER JOIN pg_catalog.pg_inherits AS h ON h.inhparent = t.oid AND NOT h.inhdetachpending
),

within (oid) AS (
    SELECT a.atttypid
    FROM pg_catalog.pg_attribute AS a
    WHERE a.attrelid = ANY($1::bigint[]::oid[]) AND a.attnum > 0 AND NOT a.attisdropped
    UNION
    SELECT inside.oid
    FROM within AS w
    INNER JOIN pg_catalog.pg_type AS t ON t.oid = w.oid
    CROSS JOIN LATERAL (
        SELECT t.typbasetype
        UNION ALL
        SELECT t.typelem
        UNION ALL
        SELECT r.rngsubtype FROM pg_catalog.pg_range AS r WHERE t.oid IN (r.rngtypid, r.rngmultitypid)
        UNION ALL
        SELECT f.atttypid FROM pg_catalog.pg_attribute AS f WHERE f.attrelid = t.typrelid AND f.attnum > 0
    ) AS inside (oid)
    WHERE inside.oid <> 0
),

facts (fact) AS (
    SELECT concat_ws(' ', 'class', c.oid, c.xmin, pg_relation_filenode(c.oid), n.nspname, c.relname)
    FROM tree
    INNER JOIN pg_catalog.pg_class AS c ON c.oid = tree.oid
    INNER JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
    UNION ALL
    SELECT concat_ws(' ', 'column', a.attrelid, a.attnum, a.xmin)
    FROM tree
    INNER JOIN pg_catalog.pg_attribute AS a ON a.attrelid = tree.oid AND a.attnum > 0
    UNION ALL
    SELECT concat_ws(' ', 'index', i.indexrelid, i.xmin)
    FROM tree
    INNER JOIN pg_catalog.pg_index AS i ON i.indrelid = tree.oid
    UNION ALL
    SELECT concat_ws(' ', 'trigger', t.oid, t.xmin)
    FROM tree
    INNER JOIN pg_catalog.pg_trigger AS t ON t.tgrelid = tree.oid
    UNION ALL
    SELECT concat_ws(' ', 'subscription', r.srsubid, r.srrelid)
    FROM tree
    INNER JOIN pg_catalog.pg_subscription_rel AS r ON r.srrelid = tree.oid
    UNION ALL
    SELECT concat_ws(' ', 'label', e.oid, e.xmin)
    FROM within
    INNER JOIN pg_catalog.pg_enum AS e ON e.enumtypid = within.oid
)

SELECT hashtextextended(string_agg(facts.fact, ',' ORDER BY facts.fact), 0)::text AS version
FROM facts;
