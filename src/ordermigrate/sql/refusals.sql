-- name: create_set_aside
-- What a round has found to be refused. `is_new` is what the search under way has found.
CREATE TEMPORARY TABLE IF NOT EXISTS ordermigrate_set_aside (
    row_key jsonb,
    kind text,
    sqlstate text,
    constraint_name text,
    reason text,
    row_values jsonb,
    is_new boolean DEFAULT true
) ON COMMIT DELETE ROWS;

-- name: keep_staged
-- Let rows that come back stay while all others go: they are updated, for others may refer to them.
INSERT INTO {all_keys} ({key}) SELECT {staged_key} FROM {row_stage} AS s;

-- name: lock_staged
-- Keep others from referring, from now on, to rows that may have to go for a moment.
SELECT FROM {table} AS t WHERE EXISTS (SELECT FROM {row_stage} AS s WHERE {match}) FOR UPDATE;

-- name: delete_strangers
-- Remove rows whose keys the source does not have; all of its keys are on the stage.
DELETE FROM {table} AS t WHERE NOT EXISTS (SELECT FROM {all_keys} AS s WHERE {match});

-- name: delete_gone
-- Remove the rows of staged keys that the source has no rows for.
DELETE FROM {table} AS t
USING {key_stage} AS k
WHERE {key_match} AND NOT EXISTS (SELECT FROM {row_stage} AS s WHERE {match});

-- name: delete_misfit
-- Remove a row that an UPDATE cannot bring to what it is to be. (A part of write_singly.)
DELETE FROM {table} AS t WHERE {one_match} AND {differs};

-- name: update_one
-- Bring a row to what it is on the source. (A part of write_singly.)
UPDATE {table} AS t SET {assignments} WHERE {one_match} AND {differs};

-- name: write_singly
-- Write what is staged row by row, and note what the target refuses, and why.
DO $search$
<<ordermigrate_search>>
DECLARE
    one record;
    refusals jsonb [] := ARRAY[]::jsonb[];
    written bigint := 0;
    deleted bigint := 0;
    touched bigint;
    -- What one pass over the rows has come to: it may find free what in the last one others held.
    refused jsonb [];
    earlier jsonb [];
    progress bigint;
    state text;
    broken text;
    said text;
    more text;
BEGIN
    BEGIN
        SET CONSTRAINTS ALL IMMEDIATE;
        BEGIN
            {delete_gone};
            GET DIAGNOSTICS touched = ROW_COUNT;
            deleted := deleted + touched;
            {delete_strangers};
        EXCEPTION WHEN integrity_constraint_violation OR data_exception OR program_limit_exceeded THEN
            deleted := 0;
            FOR one IN SELECT {target_key} FROM {table} AS t WHERE {is_to_go} LOOP
                BEGIN
                    DELETE FROM {table} AS t WHERE {one_match};
                    GET DIAGNOSTICS touched = ROW_COUNT;
                    deleted := deleted + touched;
                EXCEPTION WHEN integrity_constraint_violation OR data_exception OR program_limit_exceeded THEN
                    GET STACKED DIAGNOSTICS
                        state = RETURNED_SQLSTATE, broken = CONSTRAINT_NAME,
                        said = MESSAGE_TEXT, more = PG_EXCEPTION_DETAIL;
                    refusals := array_append(
                        refusals,
                        jsonb_build_object(
                            'row_key', {one_key}, 'kind', 'delete', 'sqlstate', state,
                            'constraint_name', nullif(broken, ''), 'said', said, 'more', more
                        )
                    );
                END;
            END LOOP;
        END;
        BEGIN
            {make_way};
        EXCEPTION
            WHEN integrity_constraint_violation OR data_exception OR program_limit_exceeded
                OR insufficient_privilege THEN
                NULL;  -- then whoever needs it is refused
        END;
        FOR pass IN 1..{passes} LOOP
            refused := ARRAY[]::jsonb[];
            progress := written;
            FOR one IN
                SELECT s.* FROM {row_stage} AS s
                WHERE
                    ordermigrate_search.earlier IS NULL OR {staged_json} IN (
                        SELECT known.refusal -> 'row_key'
                        FROM unnest(ordermigrate_search.earlier) AS known (refusal)
                    )
            LOOP
                BEGIN
                    {delete_misfit};
                    {update_one};
                    INSERT INTO {table} ({columns}) OVERRIDING SYSTEM VALUE
                    SELECT {one_values}
                    WHERE NOT EXISTS (SELECT FROM {table} AS t WHERE {one_match});
                    GET DIAGNOSTICS touched = ROW_COUNT;
                    written := written + touched;
                EXCEPTION WHEN integrity_constraint_violation OR data_exception OR program_limit_exceeded THEN
                    GET STACKED DIAGNOSTICS
                        state = RETURNED_SQLSTATE, broken = CONSTRAINT_NAME,
                        said = MESSAGE_TEXT, more = PG_EXCEPTION_DETAIL;
                    refused := array_append(
                        refused,
                        jsonb_build_object(
                            'row_key', {one_key}, 'kind', 'write', 'sqlstate', state,
                            'constraint_name', nullif(broken, ''), 'said', said, 'more', more
                        )
                    );
                END;
            END LOOP;
            EXIT WHEN written = progress OR cardinality(refused) = 0;
            earlier := refused;
        END LOOP;
        refusals := refusals || refused;
        {undo};
    EXCEPTION WHEN SQLSTATE 'OM002' THEN
        NULL;  -- a search only: what was found is kept, what was written is not
    END;
    INSERT INTO pg_temp.ordermigrate_set_aside (row_key, kind, sqlstate, constraint_name, reason)
    SELECT
        each.refusal -> 'row_key',
        each.refusal ->> 'kind',
        each.refusal ->> 'sqlstate',
        each.refusal ->> 'constraint_name',
        concat_ws('. ', rtrim(each.refusal ->> 'said', '.'), nullif(rtrim(each.refusal ->> 'more', '.'), ''))
    FROM unnest(refusals) AS each (refusal);
    PERFORM set_config('ordermigrate.written', written::text, true);
    PERFORM set_config('ordermigrate.deleted', deleted::text, true);
END
$search$;

-- name: count_new
-- What that has come to.
SELECT
    (SELECT count(*) FROM pg_temp.ordermigrate_set_aside AS c WHERE c.is_new) AS refused,
    current_setting('ordermigrate.written')::bigint AS written,
    current_setting('ordermigrate.deleted')::bigint AS deleted;

-- name: take_rows
-- Take refused rows off their stage, and keep what they hold.
WITH taken AS (
    DELETE FROM {row_stage} AS s
    USING pg_temp.ordermigrate_set_aside AS c
    WHERE c.is_new AND {refused_match}
    RETURNING c.row_key, jsonb_object(ARRAY[{names}]::text[], ARRAY[{texts}]::text[]) AS row_values
)

UPDATE pg_temp.ordermigrate_set_aside AS c
SET row_values = taken.row_values
FROM taken
WHERE c.row_key = taken.row_key;

-- name: take_keys
-- Take refused keys off their stage.
DELETE FROM {key_stage} AS s
USING pg_temp.ordermigrate_set_aside AS c
WHERE c.is_new AND {refused_match};

-- name: keep_refused
-- Let the rows of refused keys stay where all others go.
INSERT INTO {all_keys} ({key})
SELECT {refused_key} FROM pg_temp.ordermigrate_set_aside AS c
WHERE c.is_new;

-- name: close_search
-- What was found is set aside.
UPDATE pg_temp.ordermigrate_set_aside SET is_new = false WHERE is_new;

-- name: settle_quarantine
-- Take all keys that this round has brought out of quarantine, and put those in that were refused.
WITH tried AS (
    DELETE FROM ordermigrate.quarantine AS c
    WHERE
        c.table_name = {name} AND (
            EXISTS (SELECT FROM {key_stage} AS s WHERE {refused_match})
            OR EXISTS (SELECT FROM {row_stage} AS s WHERE {refused_match})
            OR EXISTS (SELECT FROM pg_temp.ordermigrate_set_aside AS a WHERE {again})
            {or_is_stranger}
        )
    RETURNING c.row_key, c.tries, c.quarantined_at
),

refused AS (
    INSERT INTO ordermigrate.quarantine (
        table_name, row_key, kind, reason, sqlstate, constraint_name, row_values, quarantined_at, tries
    )
    SELECT
        {name},
        a.row_key,
        a.kind,
        a.reason,
        a.sqlstate,
        a.constraint_name,
        a.row_values,
        coalesce(c.quarantined_at, clock_timestamp()),
        coalesce(c.tries, 0) + 1
    FROM pg_temp.ordermigrate_set_aside AS a
    LEFT JOIN tried AS c ON {again}
    RETURNING tries
)

SELECT
    count(*) AS rows,
    count(*) FILTER (WHERE refused.tries = 1) AS new_rows
FROM refused;

-- name: clear_set_aside
-- For the next table of the round.
DELETE FROM pg_temp.ordermigrate_set_aside;
