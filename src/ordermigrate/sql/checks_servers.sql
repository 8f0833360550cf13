-- name: read_clock
-- The server's clock, in seconds since 1970.
SELECT extract(epoch FROM clock_timestamp())::float8 AS seconds;

-- name: read_locale
-- What the database sorts and folds text by.
SELECT
    d.datcollate AS collate_name,
    d.datctype AS ctype_name
FROM pg_catalog.pg_database AS d
WHERE d.datname = current_database();

-- name: read_connections
-- How many more sessions the server, the database and our role allow; null where there is no limit
-- (there is none but the server's for a superuser).
SELECT
    current_setting('max_connections')::integer
    - current_setting('superuser_reserved_connections')::integer
    - (SELECT count(*) FROM pg_catalog.pg_stat_activity AS a WHERE a.datid IS NOT NULL OR a.usesysid IS NOT NULL)
        AS free_of_server,
    (
        SELECT
            nullif(d.datconnlimit, -1)
            - (SELECT count(*) FROM pg_catalog.pg_stat_activity AS a WHERE a.datid = d.oid)
        FROM pg_catalog.pg_database AS d
        WHERE
            d.datname = current_database()
            AND NOT (SELECT r.rolsuper FROM pg_catalog.pg_roles AS r WHERE r.rolname = session_user)
    ) AS free_of_database,
    (
        SELECT
            nullif(r.rolconnlimit, -1)
            - (SELECT count(*) FROM pg_catalog.pg_stat_activity AS a WHERE a.usesysid = r.oid)
        FROM pg_catalog.pg_roles AS r
        WHERE r.rolname = session_user AND NOT r.rolsuper
    ) AS free_of_role;

-- name: read_lock_room
-- For how many locks at once the server has set room aside.
SELECT
    current_setting('max_locks_per_transaction')::bigint
    * (
        current_setting('max_connections')::bigint
        + current_setting('max_prepared_transactions')::bigint
    ) AS locks;

-- name: find_kept_wal
-- What keeps write-ahead log on the server's disk: slots that nobody reads, an archive that fails.
SELECT
    format('replication slot %s, which nobody reads', s.slot_name) AS keeper,
    pg_wal_lsn_diff(
        CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_lsn() END,
        s.restart_lsn
    )::bigint AS bytes
FROM pg_catalog.pg_replication_slots AS s
WHERE NOT s.active AND s.restart_lsn IS NOT NULL
UNION ALL
SELECT
    format('archive_command, which has failed since %s', a.last_failed_time) AS keeper,
    NULL AS bytes
FROM pg_catalog.pg_stat_archiver AS a
WHERE
    current_setting('archive_mode') <> 'off'
    AND a.last_failed_time > coalesce(a.last_archived_time, '-infinity')
ORDER BY 1;

-- name: find_long_transactions
-- Transactions in this database that have been open for long, prepared ones too.
-- $1: how long, in seconds.
SELECT
    format(
        'process %s of %s (%s), %s',
        a.pid,
        a.usename,
        coalesce(nullif(a.application_name, ''), 'no name'),
        a.state
    ) AS holder,
    extract(epoch FROM clock_timestamp() - a.xact_start)::float8 AS age_seconds
FROM pg_catalog.pg_stat_activity AS a
WHERE
    a.datname = current_database()
    AND a.backend_type = 'client backend'
    AND a.pid <> pg_backend_pid()
    AND extract(epoch FROM clock_timestamp() - a.xact_start) > $1::float8
UNION ALL
SELECT
    format('prepared transaction %L of %s', p.gid, p.owner) AS holder,
    extract(epoch FROM clock_timestamp() - p.prepared)::float8 AS age_seconds
FROM pg_catalog.pg_prepared_xacts AS p
WHERE
    p.database = current_database()
    AND extract(epoch FROM clock_timestamp() - p.prepared) > $1::float8
ORDER BY 2 DESC;

-- name: count_hidden_sessions
-- Sessions in this database of which the server does not tell us what they do.
SELECT count(*) AS sessions
FROM pg_catalog.pg_stat_activity AS a
WHERE a.datname = current_database() AND a.backend_type IS NULL;

-- name: find_event_triggers
-- Functions that the server calls when something is created, altered or dropped.
SELECT e.evtname AS name
FROM pg_catalog.pg_event_trigger AS e
WHERE e.evtenabled <> 'D'
ORDER BY e.evtname;

-- name: find_maintenance
-- Who holds the lock of a VACUUM, ANALYZE or CREATE INDEX CONCURRENTLY on the tables.
-- $1: oids of tables and parts.
SELECT
    l.relation::regclass::text AS relation,
    CASE
        WHEN a.backend_type = 'autovacuum worker' THEN 'autovacuum'
        ELSE format('process %s of %s', l.pid, coalesce(a.usename, 'a role that we may not see'))
    END AS holder,
    coalesce(left(regexp_replace(a.query, '\s+', ' ', 'g'), 80), '') AS query
FROM pg_catalog.pg_locks AS l
LEFT JOIN pg_catalog.pg_stat_activity AS a ON a.pid = l.pid
WHERE
    l.locktype = 'relation'
    AND l.mode = 'ShareUpdateExclusiveLock'
    AND l.granted
    AND l.pid <> pg_backend_pid()
    AND l.database = (SELECT d.oid FROM pg_catalog.pg_database AS d WHERE d.datname = current_database())
    AND l.relation = ANY($1::bigint[]::oid[])
ORDER BY 1, 2;

-- name: find_writers
-- Who is writing to the tables at this very moment: whoever holds a writer's lock.
-- $1: oids of tables and parts.
SELECT
    coalesce(a.usename, 'a prepared transaction') AS role_name,
    coalesce(nullif(a.application_name, ''), 'no name') AS application,
    count(DISTINCT l.pid) AS sessions
FROM pg_catalog.pg_locks AS l
LEFT JOIN pg_catalog.pg_stat_activity AS a ON a.pid = l.pid
WHERE
    l.locktype = 'relation'
    AND l.mode = 'RowExclusiveLock'
    AND l.granted
    AND l.database = (SELECT d.oid FROM pg_catalog.pg_database AS d WHERE d.datname = current_database())
    AND l.relation = ANY($1::bigint[]::oid[])
GROUP BY 1, 2
ORDER BY 1, 2;

-- name: find_permitted_writers
-- Which roles may write to the tables: owners, and whoever was granted it.
-- $1: oids of tables and parts.
SELECT DISTINCT CASE WHEN acl.grantee = 0 THEN 'everybody (PUBLIC)' ELSE pg_get_userbyid(acl.grantee) END AS role_name
FROM pg_catalog.pg_class AS c
CROSS JOIN LATERAL aclexplode(coalesce(c.relacl, acldefault('r', c.relowner))) AS acl
WHERE
    c.oid = ANY($1::bigint[]::oid[])
    AND acl.privilege_type IN ('INSERT', 'UPDATE', 'DELETE', 'TRUNCATE')
ORDER BY 1;

-- name: read_sizes
-- How large each table is with its parts, its indexes and what is stored beside it. To measure
-- means to open each of them; of many, what the last VACUUM or ANALYZE has noted is enough.
-- $1: oids of tables and parts, $2: for each the oid of the table that it belongs to.
SELECT
    listed.root AS table_oid,
    sum(
        CASE
            WHEN cardinality($1::bigint[]) <= 1000 THEN pg_total_relation_size(c.oid)
            ELSE current_setting('block_size')::bigint * (
                c.relpages
                + coalesce(toast.relpages, 0)
                + (
                    SELECT coalesce(sum(ic.relpages), 0)
                    FROM pg_catalog.pg_index AS i
                    INNER JOIN pg_catalog.pg_class AS ic ON ic.oid = i.indexrelid
                    WHERE i.indrelid = c.oid
                )
            )
        END
    )::bigint AS bytes,
    sum(greatest(c.reltuples, 0))::bigint AS rows
FROM unnest($1::bigint[], $2::bigint[]) AS listed (oid, root)
INNER JOIN pg_catalog.pg_class AS c ON c.oid = listed.oid::oid AND c.relkind = 'r'
LEFT JOIN pg_catalog.pg_class AS toast ON toast.oid = c.reltoastrelid
GROUP BY listed.root;
