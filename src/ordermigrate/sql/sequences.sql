-- name: count_sessions
-- How many sessions this server allows.
SELECT current_setting('max_connections')::integer AS sessions;

-- name: read_values
-- The last numbers that sequences have given out; null where none was.
-- $1: oids.
SELECT
    listed.oid,
    pg_sequence_last_value(listed.oid::oid) AS last_value
FROM unnest($1::bigint[]) AS listed (oid);

-- name: advance
-- Let a sequence go on past a number, unless it is past it already.
-- $1: its oid, $2: the number.
SELECT setval($1::bigint::oid::regclass, $2::bigint) AS last_value
WHERE coalesce(pg_sequence_last_value($1::bigint::oid), $2::bigint - 1) < $2::bigint;

-- name: advance_down
-- The same for one that counts down.
-- $1: its oid, $2: the number.
SELECT setval($1::bigint::oid::regclass, $2::bigint) AS last_value
WHERE coalesce(pg_sequence_last_value($1::bigint::oid), $2::bigint + 1) > $2::bigint;

-- name: pass_largest
-- Let a sequence that only this side has go on past the largest number in its column.
-- $1: its oid.
SELECT setval($1::bigint::oid::regclass, largest.value) AS last_value
FROM (SELECT max(t.{column})::bigint AS value FROM {table} AS t) AS largest
WHERE largest.value > coalesce(pg_sequence_last_value($1::bigint::oid), largest.value - 1);

-- name: pass_smallest
-- The same for one that counts down.
-- $1: its oid.
SELECT setval($1::bigint::oid::regclass, smallest.value) AS last_value
FROM (SELECT min(t.{column})::bigint AS value FROM {table} AS t) AS smallest
WHERE smallest.value < coalesce(pg_sequence_last_value($1::bigint::oid), smallest.value + 1);
