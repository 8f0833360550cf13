-- name: find_failing_row
-- Evaluate all expressions for one row after the other, and note the first for which that fails. The
-- variables keep what they were when it did.
DO $ordermigrate_search$
DECLARE
    names text [] := ARRAY[{names}];
    statements text [] := ARRAY[{statements}];
    row_in_hand record;
    place integer;
BEGIN
    PERFORM pg_catalog.set_config('ordermigrate.failing_row', '', true);
    FOR row_in_hand IN
        SELECT
            {alias}.tableoid AS table_oid,
            {alias}.ctid AS tid,
            {row_key} AS row_key
        FROM {origin} AS {alias}
        WHERE {condition}
    LOOP
        FOR tried IN 1..pg_catalog.cardinality(names) LOOP
            place := tried;
            EXECUTE statements[tried] USING row_in_hand.table_oid, row_in_hand.tid;
        END LOOP;
    END LOOP;
EXCEPTION
    WHEN OTHERS THEN
        PERFORM pg_catalog.set_config(
            'ordermigrate.failing_row',
            pg_catalog.jsonb_build_object(
                'row_key', row_in_hand.row_key,
                'expression', names[place],
                'sqlstate', SQLSTATE,
                'said', SQLERRM
            )::text,
            true
        );
END
$ordermigrate_search$;

-- name: evaluate
-- Evaluate one expression for one row. (A part of find_failing_row.)
-- $1: the table or part that it is in, $2: its place there.
SELECT {expression}
FROM {origin} AS {alias}
WHERE
    {alias}.tableoid = $1::oid
    AND {alias}.ctid = $2::tid
    AND (
        {where}
    );

-- name: read_failing_row
-- What that search has found; no row where it has found nothing.
SELECT
    f.found ->> 'row_key' AS row_key,
    f.found ->> 'expression' AS expression,
    f.found ->> 'sqlstate' AS sqlstate,
    f.found ->> 'said' AS said
FROM (SELECT nullif(current_setting('ordermigrate.failing_row', true), '')::jsonb AS found) AS f
WHERE f.found IS NOT NULL;
