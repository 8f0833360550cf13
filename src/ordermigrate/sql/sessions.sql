-- name: set_settings
-- Set every setting that this server knows.
-- $1: names, $2: values.
SELECT wanted.name, set_config(wanted.name, wanted.value, false) AS value
FROM unnest($1::text[], $2::text[]) AS wanted (name, value)
WHERE current_setting(wanted.name, true) IS NOT NULL;

-- name: read_settings
-- Read the settings back, in a transaction after the one that set them.
-- $1: names.
SELECT
    wanted.name,
    current_setting(wanted.name, true) AS value,
    pg_backend_pid() AS pid
FROM unnest($1::text[]) AS wanted (name)
WHERE current_setting(wanted.name, true) IS NOT NULL;

-- name: keep_commits_durable
-- Make commits wait for the local flush at least; a stronger default of the server stays.
SELECT set_config('synchronous_commit', 'on', false)
WHERE current_setting('synchronous_commit') NOT IN ('on', 'remote_apply');

-- name: notice_dead_clients
-- Let a long statement end soon after its client is gone; not every platform's server can.
SELECT set_config('client_connection_check_interval', '2s', false);

-- name: take_prepare_lock
-- One preparation of a database at a time, for the rest of the transaction.
SELECT pg_advisory_xact_lock(hashtextextended('ordermigrate prepare', 0));

-- name: read_identity
-- Which database this is, and what of its settings decides whether a commit is safe.
SELECT
    current_database() AS database_name,
    (SELECT d.oid FROM pg_catalog.pg_database AS d WHERE d.datname = current_database()) AS database_oid,
    current_setting('server_version_num')::integer AS server_version,
    current_setting('server_encoding') AS encoding,
    pg_is_in_recovery() AS is_in_recovery,
    (SELECT s.setting::integer FROM pg_catalog.pg_settings AS s WHERE s.name = 'deadlock_timeout')
        AS deadlock_timeout_ms,
    current_setting('fsync') AS fsync,
    current_setting('full_page_writes') AS full_page_writes;

-- name: read_control_file
-- The cluster's identifier and timeline; a server may deny this to us.
SELECT
    (SELECT s.system_identifier FROM pg_catalog.pg_control_system() AS s) AS system_identifier,
    (SELECT c.timeline_id FROM pg_catalog.pg_control_checkpoint() AS c) AS timeline;

-- name: take_mark
-- Hold an advisory lock by which another session can see that it is in the same database.
-- $1, $2: the lock's two keys.
SELECT pg_advisory_lock($1::integer, $2::integer);

-- name: see_mark
-- Whether that lock is held in this very database.
-- $1, $2: the lock's two keys.
SELECT EXISTS (
    SELECT
    FROM pg_catalog.pg_locks AS l
    WHERE
        l.locktype = 'advisory'
        AND l.classid = $1::bigint::oid
        AND l.objid = $2::bigint::oid
        AND l.database = (SELECT d.oid FROM pg_catalog.pg_database AS d WHERE d.datname = current_database())
) AS is_seen;

-- name: drop_mark
-- Let the mark go.
-- $1, $2: the lock's two keys.
SELECT pg_advisory_unlock($1::integer, $2::integer);

-- name: try_operator_lock
-- Keep a second operator out, as a convenience; the guard is in the rows, not here.
SELECT pg_try_advisory_lock(hashtextextended('ordermigrate operator', 0)) AS is_ours;

-- name: see_backend
-- Whether a backend of ours is still there.
-- $1: its process id.
SELECT EXISTS (SELECT FROM pg_catalog.pg_stat_activity AS a WHERE a.pid = $1::integer) AS is_alive;

-- name: try_sync_lock
-- Be the one sync of this migration; others stand by. The guard is in the rows, not here.
SELECT pg_try_advisory_lock(hashtextextended('ordermigrate sync', 0)) AS is_ours;

-- name: is_sync_at_work
-- Whether a session holds that lock.
SELECT EXISTS (
    SELECT
    FROM pg_catalog.pg_locks AS l
    WHERE
        l.locktype = 'advisory'
        AND l.granted
        AND l.database = (SELECT d.oid FROM pg_catalog.pg_database AS d WHERE d.datname = current_database())
        AND (l.classid::bigint << 32 | l.objid::bigint) = hashtextextended('ordermigrate sync', 0)
) AS is_at_work;
