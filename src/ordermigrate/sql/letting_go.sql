-- name: measure_standbys
-- How many standbys stream from this server, and how many of them have a position on disk; a role
-- that may not see their positions is told so.
-- $1: the position; null for where the log is now, which is returned.
SELECT
    asked.position::text AS position,
    count(r.pid) AS standbys,
    count(*) FILTER (WHERE r.flush_lsn >= asked.position) AS flushed,
    count(r.pid) FILTER (WHERE r.flush_lsn IS NULL) AS hidden
FROM (SELECT coalesce($1::text::pg_lsn, pg_current_wal_insert_lsn()) AS position) AS asked
LEFT JOIN pg_catalog.pg_stat_replication AS r ON r.application_name <> 'pg_basebackup'
GROUP BY asked.position;

-- name: limit_freeze
-- Let the server end the transaction that keeps writers waiting, if nobody else does.
-- $1: after how many milliseconds of this session's silence.
SELECT set_config('idle_in_transaction_session_timeout', $1::text, false) AS idle;
