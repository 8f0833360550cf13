-- name: find_prepared
-- Prepared transactions that hold locks on the tables: nobody's end ends them.
-- $1: oids of tables and leaves.
SELECT
    coalesce(p.gid, l.virtualtransaction) AS gid,
    l.relation::regclass::text AS relation,
    coalesce(extract(epoch FROM clock_timestamp() - p.prepared), 0)::float8 AS age_seconds
FROM pg_catalog.pg_locks AS l
-- Each holds a lock on its own number; of its virtual number it keeps that of the session it was
-- prepared in, until the server is restarted.
LEFT JOIN (
    SELECT
        own.virtualtransaction,
        x.gid,
        x.prepared
    FROM pg_catalog.pg_locks AS own
    INNER JOIN pg_catalog.pg_prepared_xacts AS x ON x.transaction = own.transactionid
    WHERE own.pid IS NULL AND own.locktype = 'transactionid' AND own.mode = 'ExclusiveLock'
) AS p ON p.virtualtransaction = l.virtualtransaction
WHERE
    l.pid IS NULL
    AND l.locktype = 'relation'
    AND l.database = (SELECT d.oid FROM pg_catalog.pg_database AS d WHERE d.datname = current_database())
    AND l.relation = ANY($1::bigint[]::oid[])
ORDER BY 3 DESC;

-- name: find_unready_indexes
-- Indexes of the tables that are not valid, or not ready for use.
-- $1: oids of tables and leaves.
SELECT i.indexrelid::regclass::text AS index_name
FROM pg_catalog.pg_index AS i
WHERE i.indrelid = ANY($1::bigint[]::oid[]) AND NOT (i.indisvalid AND i.indisready AND i.indislive)
ORDER BY 1;

-- name: find_unknown_leaves
-- Tables with rows of which the planner has no statistics. By the view: what is under it, superusers alone may read.
-- $1: oids of leaves.
SELECT c.oid::regclass::text AS table_name
FROM pg_catalog.pg_class AS c
JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
WHERE
    c.oid = ANY($1::bigint[]::oid[])
    AND pg_relation_size(c.oid) > 0
    -- looked at, and nothing but dead rows was found: there is no more to be known of it
    AND NOT (c.relpages > 0 AND c.reltuples = 0)
    AND NOT EXISTS (
        SELECT FROM pg_catalog.pg_stats AS s WHERE s.schemaname = n.nspname AND s.tablename = c.relname
    )
ORDER BY 1;

-- name: read_durability
-- Whether a commit here is safe once it is answered, and who has to answer.
SELECT
    current_setting('fsync') AS fsync,
    current_setting('full_page_writes') AS full_page_writes,
    current_setting('synchronous_commit') AS synchronous_commit,
    current_setting('synchronous_standby_names') AS standby_names,
    (
        SELECT count(*)
        FROM pg_catalog.pg_stat_replication AS r
        WHERE r.sync_state IN ('sync', 'quorum') AND r.state = 'streaming'
    ) AS synchronous_standbys;

-- name: find_short_timeouts
-- Roles and databases whose sessions give up waiting sooner than a pause may last.
-- $1: the pause, in milliseconds.
SELECT
    coalesce(r.rolname, 'every role') AS role_name,
    setting.text AS setting
FROM pg_catalog.pg_db_role_setting AS s
LEFT JOIN pg_catalog.pg_roles AS r ON r.oid = s.setrole
CROSS JOIN LATERAL unnest(s.setconfig) AS setting (text)
CROSS JOIN LATERAL (
    SELECT substring(setting.text FROM '^(?:lock_timeout|statement_timeout)=(\d+)(?:ms)?$')::bigint AS milliseconds
) AS given
WHERE
    s.setdatabase IN (0, (SELECT d.oid FROM pg_catalog.pg_database AS d WHERE d.datname = current_database()))
    AND given.milliseconds BETWEEN 1 AND $1::bigint
ORDER BY 1, 2;

-- name: read_round_seconds
-- How long the latest complete rounds with something to do took, as median and longest, in seconds.
SELECT
    coalesce(percentile_cont(0.5) WITHIN GROUP (ORDER BY latest.seconds), 0)::float8 AS median,
    coalesce(max(latest.seconds), 0)::float8 AS longest
FROM (
    SELECT r.seconds
    FROM ordermigrate.round AS r
    WHERE r.is_complete
    ORDER BY r.round DESC
    LIMIT 50
) AS latest;
