-- name: take_turn
-- One applier at a time, for the rest of the transaction; `validate` holds the same lock while it
-- opens its snapshots.
SELECT pg_advisory_xact_lock(hashtextextended('ordermigrate apply', 0));

-- name: hold_turn
-- Hold that lock beyond the transaction.
SELECT pg_advisory_lock(hashtextextended('ordermigrate apply', 0));

-- name: release_turn
-- Let it go, and say whether it was ours until now.
SELECT pg_advisory_unlock(hashtextextended('ordermigrate apply', 0)) AS was_held;

-- name: look
-- The first look of a round at the source, which takes the snapshot: which round its side row is at,
-- whose it is, and how far the server's log reached after the snapshot was there.
SELECT
    s.run::text AS run,
    s.epoch,
    s.is_hot,
    s.round,
    s.timeline AS known_timeline,
    ('x' || left(pg_walfile_name(pg_current_wal_insert_lsn()), 8))::bit(32)::bigint AS timeline,
    pg_current_wal_insert_lsn()::text AS position,
    clock_timestamp() AS seen_at
FROM ordermigrate.side AS s;

-- name: read_timeline
-- On which timeline this server writes.
SELECT ('x' || left(pg_walfile_name(pg_current_wal_insert_lsn()), 8))::bit(32)::bigint AS timeline;

-- name: export_snapshot
-- Let other sessions see just what this transaction sees, for as long as it is open.
SELECT pg_export_snapshot() AS name;

-- name: has_gone_back
-- Whether this server's log is shorter than it was.
-- $1: a position that it has had.
SELECT pg_current_wal_insert_lsn() < $1::text::pg_lsn AS has_gone_back;

-- name: is_behind
-- Whether a position of the server's log is before another.
-- $1, $2: positions.
SELECT $1::text::pg_lsn < $2::text::pg_lsn AS is_behind;
