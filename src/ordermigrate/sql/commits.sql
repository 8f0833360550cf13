-- name: identify_transaction
-- Name the transaction in which we are, so that its end can be learned even if the reply is lost.
SELECT
    pg_backend_pid() AS pid,
    pg_current_xact_id()::text AS xid,
    ('x' || left(pg_walfile_name(pg_current_wal_insert_lsn()), 8))::bit(32)::bigint AS timeline;

-- name: end_backend
-- End the backend that a commit was sent to, if it is still there: one that waits for a standby has
-- committed already, which nobody sees until it is gone.
-- $1: its process id, $2: its transaction.
SELECT pg_terminate_backend(a.pid) AS is_told
FROM pg_catalog.pg_stat_activity AS a
WHERE a.pid = $1::integer AND a.backend_xid::text = ($2::text::numeric % 4294967296)::text;

-- name: is_backend_there
-- Whether that backend still has its transaction.
-- $1: its process id, $2: its transaction.
SELECT EXISTS (
    SELECT
    FROM pg_catalog.pg_stat_activity AS a
    WHERE a.pid = $1::integer AND a.backend_xid::text = ($2::text::numeric % 4294967296)::text
) AS is_there;

-- name: read_outcome
-- What became of a transaction: committed, aborted or in progress. No row where this server has never
-- had one of that number: then the next number, which we draw, is not beyond it. (A snapshot would not
-- tell, for the newest one in progress is beyond that.)
-- $1: the transaction.
SELECT pg_xact_status($1::text::xid8) AS outcome
WHERE $1::text::xid8 < pg_current_xact_id();
