-- name: read_range
-- The least and the greatest value of a column, and whether a row has none.
SELECT
    min(t.{column}) FILTER (WHERE isfinite(t.{column}))::timestamp::text AS least,
    max(t.{column}) FILTER (WHERE isfinite(t.{column}))::timestamp::text AS most,
    count(*) FILTER (WHERE t.{column} IS NULL) AS nulls,
    count(*) FILTER (WHERE NOT isfinite(t.{column})) AS endless
FROM {table} AS t;

-- name: list_bounds
-- One row for each interval from the least value to the greatest, or to now, and so many after it.
-- $1: the least value, or NULL; $2: the greatest, or NULL; $3: day, week, month or year; $4: how
-- many more; $5: how the names end, for to_char; $6: the
-- most rows that are wanted.
SELECT
    to_char(part.lower, $5::text) AS suffix,
    part.lower::text AS lower,
    (part.lower + ('1 ' || $3::text)::interval)::text AS upper
FROM
    generate_series(
        date_trunc($3::text, least($1::text::timestamp, localtimestamp)),
        date_trunc($3::text, greatest($2::text::timestamp, localtimestamp))
        + $4::integer * ('1 ' || $3::text)::interval,
        ('1 ' || $3::text)::interval
    ) AS part (lower)
ORDER BY part.lower
LIMIT $6::integer;
