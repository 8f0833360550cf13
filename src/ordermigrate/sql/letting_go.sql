-- name: measure_standbys
-- How many standbys stream from this server, and how many of them have a position on disk; a role
-- that may not see their positions is told so.
-- $1: the position.
SELECT
    count(*) AS standbys,
    count(*) FILTER (WHERE r.flush_lsn >= $1::text::pg_lsn) AS flushed,
    count(*) FILTER (WHERE r.flush_lsn IS NULL) AS hidden
FROM pg_catalog.pg_stat_replication AS r
WHERE r.application_name <> 'pg_basebackup';

-- name: limit_freeze
-- Let the server end the transaction that keeps writers waiting, if nobody else does.
-- $1: after how many milliseconds of this session's silence.
SELECT set_config('idle_in_transaction_session_timeout', $1::text, false) AS idle;
