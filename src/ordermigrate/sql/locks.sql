-- name: lock_against_rewrites
-- Keep rewrites and changes of definition away for this transaction. It takes no snapshot, so a
-- snapshot taken next is one that no rewrite can have overtaken.
LOCK TABLE {tables} IN ACCESS SHARE MODE;

-- name: see_waiting_rewriters
-- Sessions that wait for an ACCESS EXCLUSIVE lock on the family behind one of ours; on an index, too:
-- planning has locked them all, and a REINDEX that waits keeps the table's writers waiting.
-- $1: oids of the family's tables and leaves, $2: our backends' process ids.
SELECT
    l.pid,
    l.relation::regclass::text AS relation,
    coalesce(left(regexp_replace(a.query, '\s+', ' ', 'g'), 80), '') AS query
FROM pg_catalog.pg_locks AS l
LEFT JOIN pg_catalog.pg_stat_activity AS a ON a.pid = l.pid
WHERE
    l.locktype = 'relation'
    AND l.mode = 'AccessExclusiveLock'
    AND NOT l.granted
    AND l.database = (SELECT d.oid FROM pg_catalog.pg_database AS d WHERE d.datname = current_database())
    AND (
        l.relation = ANY($1::bigint[]::oid[])
        OR l.relation IN (
            SELECT i.indexrelid FROM pg_catalog.pg_index AS i WHERE i.indrelid = ANY($1::bigint[]::oid[])
        )
    )
    AND pg_blocking_pids(l.pid) && $2::integer[];

-- name: lock_against_vacuum
-- The first of two steps: blocks no reader and no writer, and makes an autovacuum give way.
LOCK TABLE {tables} IN SHARE UPDATE EXCLUSIVE MODE;

-- name: lock_against_writers
-- The second step: writers wait; readers, row locks and foreign keys' checks go on.
LOCK TABLE {tables} IN SHARE ROW EXCLUSIVE MODE;

-- name: lock_exclusively
-- The second step where readers have to wait as well: DROP TRIGGER needs it.
LOCK TABLE {tables} IN ACCESS EXCLUSIVE MODE;

-- name: set_timeouts
-- For the rest of the transaction.
-- $1: lock_timeout, $2: statement_timeout, both in milliseconds.
SELECT
    set_config('lock_timeout', $1::text, true) AS lock_timeout,
    set_config('statement_timeout', $2::text, true) AS statement_timeout;

-- name: see_exclusive_holders
-- Who holds ACCESS EXCLUSIVE on tables, and so keeps even readers out.
-- $1: the tables' names, quoted as in SQL.
SELECT
    l.pid,
    l.relation::regclass::text AS relation,
    coalesce(extract(epoch FROM clock_timestamp() - a.xact_start), 0)::float8 AS age_seconds,
    coalesce(left(regexp_replace(a.query, '\s+', ' ', 'g'), 80), '') AS query
FROM pg_catalog.pg_locks AS l
LEFT JOIN pg_catalog.pg_stat_activity AS a ON a.pid = l.pid
WHERE
    l.locktype = 'relation'
    AND l.mode = 'AccessExclusiveLock'
    AND l.database = (SELECT d.oid FROM pg_catalog.pg_database AS d WHERE d.datname = current_database())
    AND l.relation = ANY($1::text[]::regclass[]::oid[])
ORDER BY l.granted DESC, age_seconds DESC;

-- name: see_table_users
-- Who holds locks on tables, or on what inherits from them; the oldest first.
-- $1: the tables' names, quoted as in SQL, $2: modes that do not matter.
WITH RECURSIVE tree (oid) AS (
    SELECT listed.name::regclass::oid
    FROM unnest($1::text[]) AS listed (name)
    UNION
    SELECT h.inhrelid
    FROM tree AS t
    INNER JOIN pg_catalog.pg_inherits AS h ON h.inhparent = t.oid
)

SELECT
    l.pid,
    l.relation::regclass::text AS relation,
    coalesce(extract(epoch FROM clock_timestamp() - a.xact_start), 0)::float8 AS age_seconds,
    coalesce(left(regexp_replace(a.query, '\s+', ' ', 'g'), 80), '') AS query
FROM pg_catalog.pg_locks AS l
LEFT JOIN pg_catalog.pg_stat_activity AS a ON a.pid = l.pid
WHERE
    l.locktype = 'relation'
    AND l.granted
    AND l.mode <> ALL($2::text[])
    AND l.database = (SELECT d.oid FROM pg_catalog.pg_database AS d WHERE d.datname = current_database())
    AND l.relation IN (SELECT tree.oid FROM tree)
ORDER BY age_seconds DESC
LIMIT 5;
