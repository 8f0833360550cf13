-- name: read_position
-- How far the server's log reaches: beyond everything that a snapshot taken before sees.
SELECT pg_current_wal_insert_lsn()::text AS position;

-- name: has_flushed
-- Whether the server's log is on disk up to a position.
-- $1: the position.
SELECT pg_current_wal_flush_lsn() >= $1::text::pg_lsn AS is_flushed;

-- name: push_flush
-- Have the server flush its log now, as the commit of a small transaction of ours.
SELECT pg_logical_emit_message(true, 'ordermigrate', '')::text AS position;
