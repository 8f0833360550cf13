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
    s.intent
FROM ordermigrate.side AS s;

-- name: insert_side
-- Make this database a side of a migration; a row that is there stays.
-- $1: monolith or service, $2: the run's id, $3: whether it accepts writes, $4: its timeline.
INSERT INTO ordermigrate.side (side, run, is_hot, timeline)
VALUES ($1::text, $2::uuid, $3::boolean, $4::bigint)
ON CONFLICT (only_one_side) DO NOTHING;
