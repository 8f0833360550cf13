-- name: create_run
-- One migration: how far it is, and between which databases.
CREATE TABLE IF NOT EXISTS ordermigrate.run (
    run uuid PRIMARY KEY,
    only_one_run boolean NOT NULL DEFAULT true UNIQUE CONSTRAINT one_run_in_a_database CHECK (only_one_run),
    phase text NOT NULL,
    phase_since timestamptz NOT NULL DEFAULT clock_timestamp(),
    started_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    program_version text NOT NULL,
    monolith jsonb NOT NULL,
    service jsonb NOT NULL
);

-- name: create_phase_change
-- The history of the phases: who moved the migration on, when, with which command.
CREATE TABLE IF NOT EXISTS ordermigrate.phase_change (
    phase_change_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    run uuid NOT NULL REFERENCES ordermigrate.run,
    old_phase text NOT NULL,
    new_phase text NOT NULL,
    command text NOT NULL,
    changed_by text NOT NULL DEFAULT session_user,
    changed_at timestamptz NOT NULL DEFAULT clock_timestamp()
);

-- name: create_attempt
-- One attempt of the bulk copy: a snapshot of the source, and what the source looked like in it.
CREATE TABLE IF NOT EXISTS ordermigrate.attempt (
    attempt integer PRIMARY KEY CONSTRAINT attempts_count_up_from_one CHECK (attempt > 0),
    run uuid NOT NULL REFERENCES ordermigrate.run,
    snapshot pg_snapshot NOT NULL,
    fingerprint jsonb NOT NULL,
    started_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    ended_at timestamptz,
    outcome text,
    CONSTRAINT an_ended_attempt_has_an_outcome CHECK ((ended_at IS NULL) = (outcome IS NULL))
);

-- name: create_chunk
-- A range of heap blocks of one leaf of a source table. It is copied exactly once: its rows and
-- the mark on this row commit together. The transaction's id finds the rows again.
CREATE TABLE IF NOT EXISTS ordermigrate.chunk (
    chunk_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    run uuid NOT NULL REFERENCES ordermigrate.run,
    table_name text NOT NULL,
    leaf_name text NOT NULL,
    leaf_oid bigint NOT NULL,
    filenode bigint,
    first_block bigint NOT NULL CONSTRAINT chunk_starts_in_the_heap CHECK (first_block >= 0),
    end_block bigint CONSTRAINT chunk_ends_after_it_starts CHECK (end_block > first_block),
    attempt integer REFERENCES ordermigrate.attempt,
    copied_at timestamptz,
    copied_rows bigint,
    copied_bytes bigint,
    transaction_id xid8,
    UNIQUE (leaf_oid, first_block),
    CONSTRAINT a_copied_chunk_says_what_was_copied CHECK (
        num_nonnulls(attempt, copied_at, copied_rows, copied_bytes, transaction_id) IN (0, 5)
    )
);

-- name: create_recorded_object
-- Definitions of what was dropped or switched off on the service, so that it can come back.
CREATE TABLE IF NOT EXISTS ordermigrate.recorded_object (
    table_name text NOT NULL,
    kind text NOT NULL CONSTRAINT kind_of_object_is_known
    CHECK (kind IN ('index', 'check', 'trigger', 'foreign_key')),
    object_name text NOT NULL,
    definition jsonb NOT NULL,
    weight double precision NOT NULL DEFAULT 0,
    state text NOT NULL CONSTRAINT state_of_object_is_known CHECK (state IN ('off', 'restored')),
    changed_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (table_name, kind, object_name)
);

-- name: create_voiding
-- What has made everything void that was proved before. Nothing is ever taken out, so that a
-- validation whose scan was still at work then is void, too, once it is recorded.
CREATE TABLE IF NOT EXISTS ordermigrate.voiding (
    voiding_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    reason text NOT NULL,
    voided_at timestamptz NOT NULL DEFAULT clock_timestamp()
);

-- name: create_validation
-- What a validation found, table by table, and which voidings and changes of phase there had been
-- before it looked: any later one makes it void.
CREATE TABLE IF NOT EXISTS ordermigrate.validation (
    validation_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    run uuid NOT NULL REFERENCES ordermigrate.run,
    verdict text NOT NULL CONSTRAINT verdict_is_equal_or_different CHECK (verdict IN ('equal', 'different')),
    algorithm text,
    tables jsonb NOT NULL,
    seconds double precision NOT NULL,
    validated_by text NOT NULL DEFAULT session_user,
    finished_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    voidings_before bigint NOT NULL,
    phase_changes_before bigint NOT NULL
);

-- name: create_validation_difference
-- The rows that differed, as far as a validation was asked to name them.
CREATE TABLE IF NOT EXISTS ordermigrate.validation_difference (
    validation_id bigint NOT NULL REFERENCES ordermigrate.validation ON DELETE CASCADE,
    table_name text NOT NULL,
    row_key jsonb NOT NULL,
    kind text NOT NULL CONSTRAINT kind_of_difference_is_known CHECK (kind IN ('missing', 'extra', 'changed')),
    column_values jsonb NOT NULL
);

-- name: create_subtraction
-- How many copied rows of a table were taken off again, because they had changed between two
-- snapshots of the copy; the first round brings them as they are.
CREATE TABLE IF NOT EXISTS ordermigrate.subtraction (
    table_name text PRIMARY KEY,
    rows_removed bigint NOT NULL,
    changed_at timestamptz NOT NULL DEFAULT clock_timestamp()
);

-- name: create_structure
-- What each side's tables, keys and triggers of ours are known to be; a change is noticed by it.
CREATE TABLE IF NOT EXISTS ordermigrate.structure (
    side text PRIMARY KEY CONSTRAINT structure_is_of_monolith_or_service
    CHECK (side IN ('monolith', 'service')),
    fingerprint jsonb NOT NULL,
    changed_at timestamptz NOT NULL DEFAULT clock_timestamp()
);

-- name: create_round
-- The latest rounds of sync: what was applied, as of which moment.
CREATE TABLE IF NOT EXISTS ordermigrate.round (
    round bigint PRIMARY KEY,
    logged_changes bigint NOT NULL,
    rows_written bigint NOT NULL,
    rows_deleted bigint NOT NULL,
    is_complete boolean NOT NULL,
    seconds double precision NOT NULL,
    source_position pg_lsn NOT NULL,
    source text NOT NULL CONSTRAINT source_is_monolith_or_service CHECK (source IN ('monolith', 'service')),
    applied_at timestamptz NOT NULL DEFAULT clock_timestamp()
);

-- name: create_owner_change
-- The history of the owners: since which epoch, by which command, after which pause in seconds.
CREATE TABLE IF NOT EXISTS ordermigrate.owner_change (
    epoch bigint PRIMARY KEY,
    owner text NOT NULL CONSTRAINT owner_is_monolith_or_service CHECK (owner IN ('monolith', 'service')),
    pause_seconds double precision,
    command text NOT NULL,
    changed_by text NOT NULL DEFAULT session_user,
    changed_at timestamptz NOT NULL DEFAULT clock_timestamp()
);

-- name: note_owner
-- Record that a side owns the tables; what is on record stays.
-- $1: epoch, $2: owner, $3: pause in seconds or null, $4: command.
INSERT INTO ordermigrate.owner_change (epoch, owner, pause_seconds, command)
VALUES ($1::bigint, $2::text, $3::float8, $4::text)
ON CONFLICT (epoch) DO NOTHING;

-- name: insert_run
-- Begin the ledger of a run; one that is there stays.
-- $1: run, $2: phase, $3: program version, $4: monolith's identity, $5: service's identity.
INSERT INTO ordermigrate.run (run, phase, program_version, monolith, service)
VALUES ($1::uuid, $2::text, $3::text, $4::jsonb, $5::jsonb)
ON CONFLICT DO NOTHING;

-- name: has_ledger
-- Whether the ledger's tables are here.
SELECT to_regclass('ordermigrate.round') IS NOT NULL AS has_ledger;

-- name: has_records
-- Whether definitions can be on record here.
SELECT to_regclass('ordermigrate.recorded_object') IS NOT NULL AS has_records;

-- name: read_run
-- The run, its phase and since when.
SELECT
    r.run::text AS run,
    r.phase,
    r.phase_since,
    r.started_at,
    r.program_version,
    r.monolith
FROM ordermigrate.run AS r;

-- name: read_phase_age
-- For how long the run has been in its phase, by this server's clock.
SELECT extract(epoch FROM clock_timestamp() - r.phase_since)::float8 AS age_seconds
FROM ordermigrate.run AS r;

-- name: change_phase
-- Move a run to another phase, if it is still in the one that we know, and has not left it since.
-- $1: run, $2: old phase, $3: new phase, $4: command, $5: since when it is in the old phase.
WITH moved AS (
    UPDATE ordermigrate.run AS r
    SET phase = $3::text, phase_since = clock_timestamp()
    WHERE r.run = $1::uuid AND r.phase = $2::text AND r.phase_since = $5::timestamptz
    RETURNING r.run
)

INSERT INTO ordermigrate.phase_change (run, old_phase, new_phase, command)
SELECT
    moved.run,
    $2::text,
    $3::text,
    $4::text
FROM moved
RETURNING phase_change_id;

-- name: insert_attempt
-- Open an attempt, numbered after the last one.
-- $1: run, $2: snapshot, $3: fingerprint.
INSERT INTO ordermigrate.attempt (attempt, run, snapshot, fingerprint)
SELECT
    coalesce(max(a.attempt), 0) + 1,
    $1::uuid,
    $2::pg_snapshot,
    $3::jsonb
FROM ordermigrate.attempt AS a
RETURNING attempt;

-- name: end_attempt
-- Close an attempt with its outcome; of attempts that a kill left open, too.
-- $1: attempt, $2: outcome.
UPDATE ordermigrate.attempt AS a
SET ended_at = clock_timestamp(), outcome = CASE WHEN a.attempt = $1::integer THEN $2::text ELSE 'cut off' END
WHERE a.attempt <= $1::integer AND a.ended_at IS NULL;

-- name: read_first_attempt
-- The attempt that began the copy; later ones must find the source as it did.
SELECT
    a.attempt,
    a.snapshot::text AS snapshot,
    a.fingerprint,
    (SELECT count(*) FROM ordermigrate.attempt) AS attempts
FROM ordermigrate.attempt AS a
ORDER BY a.attempt
LIMIT 1;

-- name: read_last_structure
-- What the source was at the latest attempt.
SELECT a.fingerprint
FROM ordermigrate.attempt AS a
ORDER BY a.attempt DESC
LIMIT 1;

-- name: plan_chunks
-- Write down chunks that are to be copied; one that is there stays.
-- $1: run, $2: table, $3: leaf, $4: leaf's oid, $5: filenode, $6: first blocks, $7: end blocks.
INSERT INTO ordermigrate.chunk (run, table_name, leaf_name, leaf_oid, filenode, first_block, end_block)
SELECT
    $1::uuid,
    $2::text,
    $3::text,
    $4::bigint,
    $5::bigint,
    planned.first_block,
    planned.end_block
FROM unnest($6::bigint[], $7::bigint[]) AS planned (first_block, end_block)
ON CONFLICT (leaf_oid, first_block) DO NOTHING;

-- name: read_chunks
-- All chunks in the order in which they are copied.
SELECT
    c.chunk_id,
    c.table_name,
    c.leaf_name,
    c.leaf_oid,
    c.filenode,
    c.first_block,
    c.end_block,
    c.copied_at IS NOT NULL AS is_copied,
    c.copied_rows,
    c.copied_bytes
FROM ordermigrate.chunk AS c
ORDER BY c.chunk_id;

-- name: claim_chunk
-- Lock a chunk that is still to be copied for the rest of the transaction; no row if it is done.
-- $1: chunk.
SELECT c.chunk_id
FROM ordermigrate.chunk AS c
WHERE c.chunk_id = $1::bigint AND c.copied_at IS NULL
FOR UPDATE;

-- name: record_chunk
-- Mark a chunk as copied, in the transaction that wrote its rows.
-- $1: chunk, $2: attempt, $3: rows, $4: bytes.
UPDATE ordermigrate.chunk AS c
SET
    attempt = $2::integer,
    copied_at = clock_timestamp(),
    copied_rows = $3::bigint,
    copied_bytes = $4::bigint,
    transaction_id = pg_current_xact_id()
WHERE c.chunk_id = $1::bigint AND c.copied_at IS NULL
RETURNING c.chunk_id;

-- name: read_totals
-- Per table: chunks planned and copied, rows and bytes copied.
SELECT
    c.table_name,
    count(*) AS chunks,
    count(c.copied_at) AS chunks_copied,
    coalesce(sum(c.copied_rows), 0)::bigint AS copied_rows,
    coalesce(sum(c.copied_bytes), 0)::bigint AS copied_bytes
FROM ordermigrate.chunk AS c
GROUP BY c.table_name
ORDER BY c.table_name;

-- name: count_known_rows
-- Of the rows of a target table: how many there are, and how many the ledger's chunks have brought.
-- $1: the source table's name, as in chunk.
SELECT
    count(*) AS all_rows,
    count(brought.transaction_id) AS known_rows
FROM {table} AS t
LEFT JOIN (
    SELECT DISTINCT c.transaction_id::xid AS transaction_id
    FROM ordermigrate.chunk AS c
    WHERE c.table_name = $1::text AND c.copied_at IS NOT NULL
) AS brought ON brought.transaction_id = t.xmin;

-- name: delete_rows_of_leaf
-- Remove the rows that chunks of one leaf have brought, and say how many were still there.
-- $1: the leaf's oid.
WITH gone AS (
    DELETE FROM {table} AS t
    USING ordermigrate.chunk AS c
    WHERE c.leaf_oid = $1::bigint AND c.copied_at IS NOT NULL AND t.xmin = c.transaction_id::xid
    RETURNING 1
)

SELECT count(*) AS removed FROM gone;

-- name: is_alone
-- Whether all copied chunks of a table come from this leaf.
-- $1: the table's name, $2: the leaf's oid.
SELECT NOT EXISTS (
    SELECT
    FROM ordermigrate.chunk AS c
    WHERE c.table_name = $1::text AND c.leaf_oid <> $2::bigint AND c.copied_at IS NOT NULL
) AS is_alone;

-- name: truncate_target
-- Empty a target table whose every row the ledger knows.
TRUNCATE {table};

-- name: delete_all_rows
-- Empty a target table that foreign keys point at.
DELETE FROM {table};

-- name: forget_leaf
-- Forget the chunks of a leaf; its rows are gone from the target in the same transaction.
-- $1: the leaf's oid.
DELETE FROM ordermigrate.chunk WHERE leaf_oid = $1::bigint;

-- name: forget_chunks
-- Forget all chunks; the rows are gone from the target in the same transaction.
DELETE FROM ordermigrate.chunk;

-- name: forget_attempts
-- Forget all attempts.
DELETE FROM ordermigrate.attempt;

-- name: is_empty
-- Whether a table has no row that we can see.
SELECT NOT EXISTS (SELECT FROM {table}) AS is_empty;

-- name: record_object
-- Write down a definition before it is dropped or switched off. One that is off already stays: what
-- stands there then is half of what was to come back, such as a primary key's index alone.
-- $1: table, $2: kind, $3: name, $4: definition, $5: weight.
INSERT INTO ordermigrate.recorded_object AS o (table_name, kind, object_name, definition, weight, state)
VALUES ($1::text, $2::text, $3::text, $4::jsonb, $5::float8, 'off')
ON CONFLICT (table_name, kind, object_name)
DO UPDATE SET
    definition = CASE WHEN o.state = 'off' THEN o.definition ELSE excluded.definition END,
    weight = CASE WHEN o.state = 'off' THEN o.weight ELSE excluded.weight END,
    state = 'off',
    changed_at = clock_timestamp();

-- name: read_objects
-- What is recorded and still off, or back again; the heaviest first.
-- $1: kinds, $2: `off` or `restored`.
SELECT
    o.table_name,
    o.kind,
    o.object_name,
    o.definition
FROM ordermigrate.recorded_object AS o
WHERE o.state = $2::text AND o.kind = ANY($1::text[])
ORDER BY o.weight DESC, o.table_name, o.object_name;

-- name: claim_object
-- Lock an object that is still off for the rest of the transaction; no row if it is back.
-- $1: table, $2: kind, $3: name.
SELECT o.object_name
FROM ordermigrate.recorded_object AS o
WHERE o.table_name = $1::text AND o.kind = $2::text AND o.object_name = $3::text AND o.state = 'off'
FOR UPDATE;

-- name: mark_restored
-- An object is back, in the transaction that brought it.
-- $1: table, $2: kind, $3: name.
UPDATE ordermigrate.recorded_object AS o
SET state = 'restored', changed_at = clock_timestamp()
WHERE o.table_name = $1::text AND o.kind = $2::text AND o.object_name = $3::text AND o.state = 'off'
RETURNING o.object_name;

-- name: read_standing
-- How far the voidings and the changes of phase have come. One that commits later with a smaller
-- number was found before this moment, in what a comparison that begins now sees for itself.
SELECT
    (SELECT coalesce(max(v.voiding_id), 0) FROM ordermigrate.voiding AS v) AS voidings,
    (SELECT coalesce(max(p.phase_change_id), 0) FROM ordermigrate.phase_change AS p) AS phase_changes;

-- name: insert_validation
-- Record a validation.
-- $1: run, $2: verdict, $3: algorithm or null, $4: tables, $5: seconds, $6: the last voiding and
-- $7: the last change of phase before it looked.
INSERT INTO ordermigrate.validation (
    run, verdict, algorithm, tables, seconds, voidings_before, phase_changes_before
)
VALUES ($1::uuid, $2::text, $3::text, $4::jsonb, $5::float8, $6::bigint, $7::bigint)
RETURNING validation_id;

-- name: insert_differences
-- Record the rows that differed.
-- $1: validation, $2: tables, $3: keys, $4: kinds, $5: values.
INSERT INTO ordermigrate.validation_difference (validation_id, table_name, row_key, kind, column_values)
SELECT
    $1::bigint,
    d.table_name,
    d.row_key::jsonb,
    d.kind,
    d.column_values::jsonb
FROM unnest($2::text[], $3::text[], $4::text[], $5::text[]) AS d (table_name, row_key, kind, column_values);

-- name: read_validation
-- A validation, and what has made it void since it looked, if anything has.
-- $1: its number, or null for the newest.
SELECT
    v.verdict,
    v.algorithm,
    v.finished_at,
    v.seconds,
    v.tables,
    extract(epoch FROM clock_timestamp() - v.finished_at)::float8 AS age_seconds,
    coalesce(
        (
            SELECT voiding.reason
            FROM ordermigrate.voiding AS voiding
            WHERE voiding.voiding_id > v.voidings_before
            ORDER BY voiding.voiding_id
            LIMIT 1
        ),
        CASE
            WHEN
                EXISTS (
                    SELECT FROM ordermigrate.phase_change AS p
                    -- That the first sync has begun, or another side owns the tables, changes no row.
                    WHERE p.phase_change_id > v.phase_changes_before AND p.new_phase NOT IN ('syncing', 'cut_over')
                )
                THEN 'the phase has changed since'
        END
    ) AS void_because
FROM ordermigrate.validation AS v
WHERE $1::bigint IS NULL OR v.validation_id = $1::bigint
ORDER BY v.validation_id DESC
LIMIT 1;

-- name: is_reclaiming
-- Whether the migration was begun by a rollback by time, and no round has led back yet.
SELECT
    EXISTS (SELECT FROM ordermigrate.phase_change AS p WHERE p.command = 'rollback --since')
    AND NOT EXISTS (SELECT FROM ordermigrate.round AS r WHERE r.source = 'service') AS is_reclaiming;

-- name: read_voidings
-- What has made the newest validation void since it looked.
SELECT voiding.reason
FROM ordermigrate.voiding AS voiding
WHERE
    voiding.voiding_id > (
        SELECT v.voidings_before
        FROM ordermigrate.validation AS v
        ORDER BY v.validation_id DESC
        LIMIT 1
    )
ORDER BY voiding.voiding_id;

-- name: void_validations
-- What was proved before does not count any more, nor what is being proved.
-- $1: why.
INSERT INTO ordermigrate.voiding (reason) VALUES ($1::text);

-- name: hold_phase
-- Keep the run in a phase for the rest of the transaction; no row if it has left it.
-- $1: the run's id, $2: phase.
SELECT r.run
FROM ordermigrate.run AS r
WHERE r.run = $1::uuid AND r.phase = $2::text
FOR SHARE;

-- name: hold_followed
-- Keep the run among those that rounds are taken for, for the rest of the transaction; no row if it
-- is not, or not any more.
-- $1: the run's id.
SELECT r.phase
FROM ordermigrate.run AS r
WHERE r.run = $1::uuid AND r.phase IN ('copied', 'syncing', 'cut_over')
FOR SHARE;

-- name: count_snapshots
-- Under how many snapshots the chunks on record were copied.
SELECT count(DISTINCT c.attempt) AS snapshots
FROM ordermigrate.chunk AS c
WHERE c.copied_at IS NOT NULL;

-- name: add_subtraction
-- Note that copied rows of a table were taken off again, in the transaction that does it.
-- $1: table, $2: rows.
INSERT INTO ordermigrate.subtraction AS s (table_name, rows_removed)
VALUES ($1::text, $2::bigint)
ON CONFLICT (table_name)
DO UPDATE SET rows_removed = s.rows_removed + excluded.rows_removed, changed_at = clock_timestamp();

-- name: read_subtraction
-- How many copied rows of a table were taken off again.
-- $1: table.
SELECT s.rows_removed
FROM ordermigrate.subtraction AS s
WHERE s.table_name = $1::text;

-- name: reduce_subtraction
-- Of the rows that were taken off, so many are to be copied again with their leaf.
-- $1: table, $2: rows, or null for all.
UPDATE ordermigrate.subtraction AS s
SET rows_removed = s.rows_removed - coalesce($2::bigint, s.rows_removed), changed_at = clock_timestamp()
WHERE s.table_name = $1::text;

-- name: forget_subtractions
-- Forget them with the copy.
DELETE FROM ordermigrate.subtraction;

-- name: note_structure
-- From now on, this is what a side is known to be.
-- $1: side, $2: fingerprint.
INSERT INTO ordermigrate.structure (side, fingerprint)
VALUES ($1::text, $2::jsonb)
ON CONFLICT (side)
DO UPDATE SET fingerprint = excluded.fingerprint, changed_at = clock_timestamp();

-- name: read_structure
-- What a side is known to be.
-- $1: side.
SELECT s.fingerprint
FROM ordermigrate.structure AS s
WHERE s.side = $1::text;

-- name: forget_structures
-- Forget them with the copy.
DELETE FROM ordermigrate.structure;

-- name: record_round
-- Record a round in the transaction that applies it.
-- $1: round, $2: logged changes taken, $3: rows written, $4: rows deleted, $5: whether the logs were
-- emptied, $6: seconds until now, $7: the source's position in its log, $8: which side that is.
INSERT INTO ordermigrate.round (
    round, logged_changes, rows_written, rows_deleted, is_complete, seconds, source_position, source
)
VALUES (
    $1::bigint, $2::bigint, $3::bigint, $4::bigint, $5::boolean, $6::float8, $7::text::pg_lsn, $8::text
);

-- name: forget_old_rounds
-- Keep the latest rounds only.
-- $1: the first to be kept.
DELETE FROM ordermigrate.round AS r WHERE r.round < $1::bigint;

-- name: read_last_round
-- The newest round, and how many were applied a second during the last minute.
SELECT
    r.round,
    r.logged_changes,
    r.rows_written,
    r.rows_deleted,
    r.is_complete,
    r.seconds,
    r.source_position::text AS source_position,
    r.source,
    r.applied_at,
    extract(epoch FROM clock_timestamp() - r.applied_at)::float8 AS age_seconds,
    (
        SELECT (count(*) / 60.0)::float8
        FROM ordermigrate.round AS recent
        WHERE recent.applied_at > clock_timestamp() - interval '1 minute'
    ) AS rounds_per_second
FROM ordermigrate.round AS r
ORDER BY r.round DESC
LIMIT 1;
