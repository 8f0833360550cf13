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

-- name: count_newer_rows
-- Count a table's rows, and those among them that a snapshot does not see because their
-- transaction had not committed then. Transaction ids are compared within their 32 bits first,
-- which is cheap; the few that remain are widened and asked of the snapshot itself.
-- $1: the snapshot.
SELECT
    count(*) AS all_rows,
    count(*) FILTER (
        WHERE age({alias}.xmin) <= age((pg_snapshot_xmin($1::text::pg_snapshot))::xid)
        AND NOT pg_visible_in_snapshot(
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
        )
    ) AS newer_rows
FROM {table} AS {alias}
WHERE {where};
