-- What to watch in the service's database. Each statement stands by itself and only reads; `alert` says ok, warning or critical by
-- the service's own thresholds. Numbers of the whole server need a role that may see them: GRANT pg_monitor.
-- Runs on service.sql and on service_partitioned.sql alike, by psql or by whatever collects metrics.
-- Not in here, for a database cannot tell: room on the disk (warn at 80 %), and a pool that runs short inside the application.
-- Sizes wait for whoever has orders locked altogether, so give whatever runs this a statement_timeout.
-- Growth by day is the difference of two answers of table_size: more than a tenth is worth a look.

-- name: connections
-- How much of what the server allows is in use: a warning above 70 %, critical above 90 %.
WITH counted AS (
    SELECT
        count(*) FILTER (WHERE a.state = 'active') AS active,
        count(*) FILTER (WHERE a.state = 'idle') AS idle,
        count(*) FILTER (WHERE a.state LIKE 'idle in transaction%') AS idle_in_transaction,
        count(*) FILTER (WHERE a.wait_event_type = 'Lock') AS waiting_for_a_lock,
        count(*) AS connections,
        pg_catalog.current_setting('max_connections')::integer AS max_connections
    FROM pg_catalog.pg_stat_activity AS a
    WHERE a.backend_type = 'client backend'
)
SELECT
    c.active,
    c.idle,
    c.idle_in_transaction,
    c.waiting_for_a_lock,
    c.connections,
    c.max_connections,
    CASE
        WHEN c.connections > 0.9 * c.max_connections THEN 'critical'
        WHEN c.connections > 0.7 * c.max_connections THEN 'warning'
        ELSE 'ok'
    END AS alert
FROM counted AS c;

-- name: slow_queries
-- What has been running here for more than half a second (a warning) or a second (critical). To have what took more than 100 ms
-- in the server's log: ALTER DATABASE hub_order_service SET log_min_duration_statement = 100, as a superuser.
SELECT
    a.pid,
    a.usename,
    a.application_name,
    extract(epoch FROM pg_catalog.clock_timestamp() - a.query_start) AS seconds,
    a.wait_event_type,
    a.query,
    CASE
        WHEN pg_catalog.clock_timestamp() - a.query_start > '1 second'::interval THEN 'critical'
        ELSE 'warning'
    END AS alert
FROM pg_catalog.pg_stat_activity AS a
WHERE a.datname = pg_catalog.current_database()
    AND a.backend_type = 'client backend'
    AND a.state = 'active'
    AND a.pid <> pg_catalog.pg_backend_pid()
    AND pg_catalog.clock_timestamp() - a.query_start > '500 milliseconds'::interval
ORDER BY seconds DESC;

-- name: throughput
-- Transactions since the statistics began; a rate is the difference of two answers.
SELECT
    d.xact_commit AS commits,
    d.xact_rollback AS rollbacks,
    d.deadlocks,
    d.tup_inserted AS rows_inserted,
    d.tup_updated AS rows_updated,
    d.tup_deleted AS rows_deleted,
    d.stats_reset AS since
FROM pg_catalog.pg_stat_database AS d
WHERE d.datname = pg_catalog.current_database();

-- name: table_size
-- Rows (estimated) and bytes of orders with all parts and indexes, and whether it is time for service_partitioned.sql: above
-- 1,000,000 rows or 1 GB.
WITH parts AS (
    SELECT 'public.orders'::regclass AS relid
    UNION
    SELECT t.relid FROM pg_catalog.pg_partition_tree('public.orders') AS t
), sums AS (
    SELECT
        sum(greatest(c.reltuples, 0)) FILTER (WHERE c.relkind = 'r')::bigint AS rows_estimate,
        sum(pg_catalog.pg_table_size(c.oid))::bigint AS table_bytes,
        sum(pg_catalog.pg_indexes_size(c.oid))::bigint AS index_bytes,
        count(*) FILTER (WHERE c.relispartition) AS partitions
    FROM parts AS p
    JOIN pg_catalog.pg_class AS c ON c.oid = p.relid
)
SELECT
    s.rows_estimate,
    s.table_bytes,
    s.index_bytes,
    s.partitions,
    s.partitions = 0 AND (s.rows_estimate > 1000000 OR s.table_bytes + s.index_bytes > 1073741824) AS is_to_be_partitioned,
    CASE
        WHEN s.partitions = 0 AND (s.rows_estimate > 1000000 OR s.table_bytes + s.index_bytes > 1073741824) THEN 'warning'
        ELSE 'ok'
    END AS alert
FROM sums AS s;

-- name: dead_rows
-- Rows that vacuum has not taken yet, by part, and when it last came. More than a fifth is worth a look.
WITH parts AS (
    SELECT 'public.orders'::regclass AS relid
    UNION
    SELECT t.relid FROM pg_catalog.pg_partition_tree('public.orders') AS t
)
SELECT
    s.relname AS part,
    s.n_live_tup AS live_rows,
    s.n_dead_tup AS dead_rows,
    greatest(s.last_vacuum, s.last_autovacuum) AS last_vacuum,
    greatest(s.last_analyze, s.last_autoanalyze) AS last_analyze,
    CASE WHEN s.n_dead_tup > 1000 AND s.n_dead_tup > 0.2 * s.n_live_tup THEN 'warning' ELSE 'ok' END AS alert
FROM parts AS p
JOIN pg_catalog.pg_stat_user_tables AS s ON s.relid = p.relid
ORDER BY s.relname;

-- name: index_usage
-- How often each index of orders was used, its size, and how much of that an index of just these rows would not need: a warning
-- above half of it (REINDEX INDEX CONCURRENTLY). An estimate from the statistics; small indexes are left out of it.
WITH parts AS (
    SELECT 'public.orders'::regclass AS relid
    UNION
    SELECT t.relid FROM pg_catalog.pg_partition_tree('public.orders') AS t
), sized AS (
    SELECT
        s.relname,
        s.indexrelname,
        s.idx_scan,
        s.idx_tup_read,
        s.idx_tup_fetch,
        pg_catalog.pg_relation_size(s.indexrelid) AS bytes,
        -- an entry's head and pointer, its columns, and pages that are nine tenths full; entries that are alike take less
        greatest(c.reltuples, 0)::float8 * (
            12 + (
                SELECT coalesce(sum(8 * pg_catalog.ceil(v.avg_width / 8.0)), 8)
                FROM pg_catalog.pg_attribute AS a
                JOIN pg_catalog.pg_stats AS v
                    ON v.schemaname = s.schemaname AND v.tablename = s.relname AND v.attname = a.attname
                WHERE a.attrelid = s.indexrelid
            )::float8
        ) / 0.9 AS wanted_bytes
    FROM parts AS p
    JOIN pg_catalog.pg_stat_user_indexes AS s ON s.relid = p.relid
    JOIN pg_catalog.pg_class AS c ON c.oid = s.indexrelid
)
SELECT
    z.relname AS part,
    z.indexrelname AS index,
    z.idx_scan AS scans,
    z.idx_tup_read AS entries_read,
    z.idx_tup_fetch AS rows_fetched,
    z.bytes,
    CASE WHEN z.bytes > 1048576 AND z.wanted_bytes < 0.5 * z.bytes THEN 'warning' ELSE 'ok' END AS alert
FROM sized AS z
ORDER BY z.idx_scan DESC, z.relname, z.indexrelname;

-- name: replicas
-- How far each replica is behind: critical above 30 seconds. No row where there is none.
SELECT
    r.application_name,
    r.state,
    pg_catalog.pg_wal_lsn_diff(
        CASE WHEN pg_catalog.pg_is_in_recovery() THEN pg_catalog.pg_last_wal_receive_lsn() ELSE pg_catalog.pg_current_wal_lsn() END,
        r.replay_lsn
    ) AS bytes_behind,
    extract(epoch FROM r.replay_lag) AS seconds_behind,
    CASE WHEN r.replay_lag > '30 seconds'::interval THEN 'critical' ELSE 'ok' END AS alert
FROM pg_catalog.pg_stat_replication AS r;

-- name: default_partition
-- Of service_partitioned.sql: whether orders_default has rows, which belong into months that nobody has made (maintenance.sql).
SELECT
    s.relname AS part,
    s.n_live_tup AS rows_estimate,
    CASE WHEN s.n_live_tup > 0 THEN 'warning' ELSE 'ok' END AS alert
FROM pg_catalog.pg_stat_user_tables AS s
WHERE s.schemaname = 'public'
    AND s.relname = 'orders_default';
