-- name: read_counters
-- How often rows of these tables and leaves were written, as the server's statistics have it:
-- late by up to ten seconds for a session that has gone idle.
-- $1: oids.
SELECT
    coalesce(sum(pg_stat_get_tuples_inserted(listed.oid)), 0)::bigint AS inserted,
    coalesce(sum(pg_stat_get_tuples_updated(listed.oid)), 0)::bigint AS updated,
    coalesce(sum(pg_stat_get_tuples_deleted(listed.oid)), 0)::bigint AS deleted
FROM unnest($1::bigint[]::oid[]) AS listed (oid);

-- name: read_key_range
-- The smallest and the greatest key of a table, as text.
SELECT
    (SELECT ROW({key})::text FROM {table} AS {alias} ORDER BY {ascending} LIMIT 1) AS smallest,
    (SELECT ROW({key})::text FROM {table} AS {alias} ORDER BY {descending} LIMIT 1) AS greatest;

-- name: count_recent_rows
-- Count a table's rows, and those whose transactions are not older than the oldest one that was
-- open at a snapshot. Transaction ids are compared within their 32 bits, which is cheap. The age of
-- a frozen row from before a wraparound is negative.
-- $1: the snapshot.
SELECT
    count(*) AS all_rows,
    count(*) FILTER (
        WHERE age({alias}.xmin) BETWEEN 0 AND age(pg_snapshot_xmin($1::text::pg_snapshot)::xid)
    ) AS recent_rows
FROM {table} AS {alias}
WHERE {where};

-- name: sort_recent_rows
-- Of those recent rows: how many a snapshot does not see because their transactions had not
-- committed then; and of the others (the window) how many there are, with a sum over key and
-- transaction. Their transaction ids are widened to 64 bits and asked of the snapshot itself.
-- $1: the snapshot.
SELECT
    count(*) FILTER (WHERE NOT recent.is_visible) AS newer_rows,
    count(*) FILTER (WHERE recent.is_visible) AS window_rows,
    coalesce(sum(recent.hash) FILTER (WHERE recent.is_visible), 0)::text AS window_sum
FROM (
    SELECT
        pg_visible_in_snapshot(
            (
                pg_snapshot_xmin($1::text::pg_snapshot)::text::bigint
                + (
                    (
                        {alias}.xmin::text::bigint
                        - (pg_snapshot_xmin($1::text::pg_snapshot)::text::bigint & 4294967295)
                    ) & 4294967295
                )
            )::text::xid8,
            $1::text::pg_snapshot
        ) AS is_visible,
        hashtextextended(ROW({key})::text || ' ' || {alias}.xmin::text, 0) AS hash
    FROM {table} AS {alias}
    WHERE
        age({alias}.xmin) BETWEEN 0 AND age(pg_snapshot_xmin($1::text::pg_snapshot)::xid)
        AND {where}
) AS recent;

-- name: read_window
-- The same window as the snapshot itself sees it, run under that snapshot.
-- $1: the snapshot.
SELECT
    count(*) AS window_rows,
    coalesce(sum(hashtextextended(ROW({key})::text || ' ' || {alias}.xmin::text, 0)), 0)::text
        AS window_sum
FROM {table} AS {alias}
WHERE
    age({alias}.xmin) BETWEEN 0 AND age(pg_snapshot_xmin($1::text::pg_snapshot)::xid)
    AND ({where});

-- name: has_open_transactions
-- Whether any transaction was open at a snapshot: only then can it have missed a savepoint's.
-- $1: the snapshot.
SELECT EXISTS (SELECT FROM pg_snapshot_xip($1::text::pg_snapshot)) AS has_open;
