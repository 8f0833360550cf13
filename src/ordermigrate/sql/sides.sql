-- name: has_schema
-- Whether our schema is here, and whether we could make it.
SELECT
    EXISTS (SELECT FROM pg_catalog.pg_namespace AS n WHERE n.nspname = 'ordermigrate') AS is_there,
    to_regclass('ordermigrate.side') IS NOT NULL AS has_side,
    has_database_privilege(current_database(), 'CREATE') AS can_create;

-- name: create_schema
-- Our own schema; nobody but its owner gets into it.
CREATE SCHEMA IF NOT EXISTS ordermigrate;

-- name: create_side
-- One row that says what this database is in the migration.
CREATE TABLE IF NOT EXISTS ordermigrate.side (
    only_one_side boolean PRIMARY KEY DEFAULT true CONSTRAINT side_is_a_single_row CHECK (only_one_side),
    side text NOT NULL CONSTRAINT side_is_monolith_or_service CHECK (side IN ('monolith', 'service')),
    run uuid NOT NULL,
    epoch bigint NOT NULL DEFAULT 0 CONSTRAINT epoch_counts_up_from_zero CHECK (epoch >= 0),
    is_hot boolean NOT NULL,
    round bigint NOT NULL DEFAULT 0 CONSTRAINT round_counts_up_from_zero CHECK (round >= 0),
    timeline bigint,
    -- Whoever sets ordermigrate.pass to this in its transaction is us; see fence.sql.
    pass text NOT NULL,
    intent jsonb,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp()
);

-- name: read_side
-- What this database is in the migration, if it is in one.
SELECT
    s.side,
    s.run::text AS run,
    s.epoch,
    s.is_hot,
    s.round,
    s.timeline,
    s.pass AS pass_word,
    s.intent
FROM ordermigrate.side AS s;

-- name: find_place
-- Where this database is in the migration, and whether its server writes where it last did: on the
-- timeline that is known, if one is, and with a log no shorter than it was.
-- $1: a position that the log has had, or null.
SELECT
    s.run::text AS run,
    s.epoch,
    s.is_hot,
    s.round,
    coalesce(
        s.timeline = ('x' || left(pg_walfile_name(pg_current_wal_insert_lsn()), 8))::bit(32)::bigint, true
    ) AS is_timeline_known,
    coalesce(pg_current_wal_insert_lsn() < $1::text::pg_lsn, false) AS has_gone_back
FROM ordermigrate.side AS s;

-- name: insert_side
-- Make this database a side of a migration; a row that is there stays.
-- $1: monolith or service, $2: the run's id, $3: whether it accepts writes, $4: the fence's pass.
INSERT INTO ordermigrate.side (side, run, is_hot, pass)
VALUES ($1::text, $2::uuid, $3::boolean, $4::text)
ON CONFLICT (only_one_side) DO NOTHING;

-- name: show_pass
-- Pass the fence for the rest of the transaction.
SELECT set_config('ordermigrate.pass', s.pass, true) IS NOT NULL AS is_shown
FROM ordermigrate.side AS s;

-- name: begin_round
-- Enter the next round on the cold side, for the rest of the transaction: a second applier waits
-- here, and one whose time is over finds no row.
-- $1: the run's id, $2: the epoch.
UPDATE ordermigrate.side AS s
SET round = s.round + 1
WHERE s.run = $1::uuid AND s.epoch = $2::bigint AND NOT s.is_hot
RETURNING s.round, s.timeline;

-- name: end_round
-- The hot side's part of the same round; its rows of the change logs go in the same transaction.
-- $1: the run's id, $2: the epoch, $3: the round.
UPDATE ordermigrate.side AS s
SET round = $3::bigint
WHERE s.run = $1::uuid AND s.epoch = $2::bigint AND s.is_hot AND s.round < $3::bigint
RETURNING s.round;

-- name: set_round
-- Count rounds from here.
-- $1: the round.
UPDATE ordermigrate.side SET round = $1::bigint;

-- name: set_epoch
-- Count changes of owner from here.
-- $1: the epoch.
UPDATE ordermigrate.side SET epoch = $1::bigint;

-- name: note_timeline
-- Remember on which timeline this server is.
-- $1: the timeline.
UPDATE ordermigrate.side SET timeline = $1::bigint;

-- name: note_intent
-- Say what is about to happen to this side, so that a command that is cut off can be finished.
-- $1: what, as JSON, or null.
UPDATE ordermigrate.side SET intent = $1::jsonb;

-- name: give_up
-- The owner lets go: from its commit on this side is cold. The round is said again, for of the last
-- one the source's half may have been lost.
-- $1: the run's id, $2: the epoch, $3: the round that the target has, $4: the intent, as JSON.
UPDATE ordermigrate.side AS s
SET is_hot = false, epoch = s.epoch + 1, round = $3::bigint, intent = $4::jsonb
WHERE s.run = $1::uuid AND s.epoch = $2::bigint AND s.is_hot
RETURNING s.epoch;

-- name: take_over
-- The other side becomes the owner, if that is still intended, and by us.
-- $1: the run's id, $2: the epoch, $3: the token of the intent.
UPDATE ordermigrate.side AS s
SET is_hot = true, epoch = s.epoch + 1, intent = NULL
WHERE s.run = $1::uuid AND s.epoch = $2::bigint AND NOT s.is_hot AND s.intent ->> 'token' = $3::text
RETURNING s.epoch;

-- name: take_back
-- The side that has let go owns the tables again, if nobody else has decided about it meanwhile.
-- $1: the run's id, $2: the epoch that it is in, $3: the token of the intent.
UPDATE ordermigrate.side AS s
SET is_hot = true, epoch = s.epoch + 1, intent = NULL
WHERE s.run = $1::uuid AND s.epoch = $2::bigint AND NOT s.is_hot AND s.intent ->> 'token' = $3::text
RETURNING s.epoch;

-- name: intend
-- Say that this side, which is cold, is about to own the tables; not where the migration is ending.
-- $1: the run's id, $2: the epoch, $3: the intent, as JSON.
UPDATE ordermigrate.side AS s
SET intent = $3::jsonb
WHERE
    s.run = $1::uuid AND s.epoch = $2::bigint AND NOT s.is_hot
    AND NOT (coalesce(s.intent, jsonb_build_object()) ?| ARRAY['cancel', 'cleanup'])
RETURNING s.epoch;

-- name: begin_cancelling
-- Say that the migration is being cancelled, unless the owner is changing, or has changed.
-- $1: the run's id, $2: the epoch, $3: the intent, as JSON.
UPDATE ordermigrate.side AS s
SET intent = $3::jsonb
WHERE
    s.run = $1::uuid AND s.epoch = $2::bigint AND NOT s.is_hot
    AND (s.intent IS NULL OR s.intent ? 'cancel')
RETURNING s.epoch;

-- name: adopt_intent
-- Go on with what another process has begun, if nobody else has gone on with it since we looked.
-- $1: the run's id, $2: the epoch, $3: the intent, as JSON, $4: the token of the intent that was there.
UPDATE ordermigrate.side AS s
SET intent = $3::jsonb
WHERE s.run = $1::uuid AND s.epoch = $2::bigint AND NOT s.is_hot AND s.intent ->> 'token' IS NOT DISTINCT FROM $4::text
RETURNING s.epoch;

-- name: align_epoch
-- A cold side follows the owner's later epoch; what was intended for it is over.
-- $1: the run's id, $2: the owner's epoch.
UPDATE ordermigrate.side AS s
SET epoch = $2::bigint, intent = NULL
WHERE s.run = $1::uuid AND NOT s.is_hot AND s.epoch < $2::bigint
RETURNING s.epoch;

-- name: forget_intent
-- What was intended for this cold side is not any more.
-- $1: the run's id, $2: the epoch.
UPDATE ordermigrate.side AS s
SET intent = NULL
WHERE s.run = $1::uuid AND s.epoch = $2::bigint AND NOT s.is_hot
RETURNING s.epoch;

-- name: lock_side
-- The side row as it is now; it stays so for the rest of the transaction.
SELECT
    s.run::text AS run,
    s.epoch,
    s.is_hot,
    s.round,
    s.intent
FROM ordermigrate.side AS s
FOR UPDATE;

-- name: drop_schema
-- Remove all that is ours in this database but for triggers on the family's tables.
DROP SCHEMA IF EXISTS ordermigrate CASCADE;

-- name: seize
-- This side owns the tables again, whatever the other one believes.
-- $1: the run's id, $2: an epoch that the other cannot have reached.
UPDATE ordermigrate.side AS s
SET is_hot = true, epoch = $2::bigint, intent = NULL
WHERE s.run = $1::uuid AND s.epoch < $2::bigint AND NOT s.is_hot
RETURNING s.epoch;
