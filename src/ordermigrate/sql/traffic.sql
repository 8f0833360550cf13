-- name: create_traffic
-- One row: the share of users whose reads go to the service, as this database has it.
CREATE TABLE IF NOT EXISTS ordermigrate.traffic (
    only_one_share boolean PRIMARY KEY DEFAULT true CONSTRAINT traffic_is_a_single_row CHECK (only_one_share),
    percentage integer NOT NULL CONSTRAINT percentage_is_a_step CHECK (percentage IN (0, 5, 10, 25, 50, 100)),
    -- Of the side row when it was set: with another owner it does not count any more.
    epoch bigint NOT NULL,
    reason text NOT NULL,
    changed_at timestamptz NOT NULL DEFAULT clock_timestamp()
);

-- name: begin_with_none
-- Nobody reads from the service at first; a row that is there stays.
INSERT INTO ordermigrate.traffic (percentage, epoch, reason)
SELECT
    0 AS percentage,
    s.epoch,
    'installed' AS reason
FROM ordermigrate.side AS s
ON CONFLICT (only_one_share) DO NOTHING;

-- name: create_traffic_in_force
-- The share that counts, and whether the service owns the tables as far as this database knows.
-- A monolith that is cold: all that it held is on the service, and nobody writes to it any more. A
-- share that was set under another epoch is one that nobody has looked at since the owner changed.
CREATE OR REPLACE FUNCTION ordermigrate.traffic_in_force(OUT percentage integer, OUT is_service_owner boolean)
LANGUAGE sql STABLE PARALLEL SAFE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $traffic$
SELECT
    CASE
        WHEN s.is_hot = (s.side = 'service') THEN 100
        WHEN t.epoch = s.epoch THEN t.percentage
        ELSE 0
    END,
    s.is_hot = (s.side = 'service')
FROM ordermigrate.side AS s
LEFT JOIN ordermigrate.traffic AS t ON true
$traffic$;

-- name: create_reads_from_service
-- Whether this user's reads go to the service: by the first three bytes of the SHA-256 of the key in
-- UTF-8, modulo 100. So it is the same in every database and program, and who is among the 10 % is
-- among the 25 %.
CREATE OR REPLACE FUNCTION ordermigrate.reads_from_service(user_key text) RETURNS boolean
LANGUAGE sql STABLE PARALLEL SAFE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $traffic$
SELECT coalesce(
    (get_byte(k.hash, 0) * 65536 + get_byte(k.hash, 1) * 256 + get_byte(k.hash, 2)) % 100 < f.percentage,
    f.is_service_owner,
    false
)
FROM ordermigrate.traffic_in_force() AS f
CROSS JOIN sha256(convert_to(user_key, 'UTF8')) AS k (hash)
$traffic$;

-- name: keep_functions_private
-- Nobody may ask but those who are named as readers.
REVOKE ALL ON FUNCTION ordermigrate.traffic_in_force(), ordermigrate.reads_from_service(text) FROM PUBLIC;

-- name: find_roles
-- Those of some names that are roles of this server.
-- $1: names.
SELECT r.rolname::text AS role FROM pg_catalog.pg_roles AS r WHERE r.rolname = ANY($1::text[]);

-- name: find_readers
-- Who may ask at the moment, beside the functions' owner.
SELECT DISTINCT r.rolname::text AS role
FROM pg_catalog.pg_proc AS p
CROSS JOIN LATERAL aclexplode(p.proacl) AS a
INNER JOIN pg_catalog.pg_roles AS r ON r.oid = a.grantee
WHERE
    p.pronamespace = 'ordermigrate'::regnamespace
    AND p.proname IN ('traffic_in_force', 'reads_from_service')
    AND a.grantee <> p.proowner;

-- name: grant_schema
-- Let a reader name what is in our schema; tables there have rights of their own.
GRANT USAGE ON SCHEMA ordermigrate TO {role};

-- name: grant_functions
-- Let a reader ask.
GRANT EXECUTE ON FUNCTION ordermigrate.traffic_in_force(), ordermigrate.reads_from_service(text) TO {role};

-- name: revoke_schema
-- Take back what a role has that is a reader no longer.
REVOKE USAGE ON SCHEMA ordermigrate FROM {role};

-- name: revoke_functions
-- The same.
REVOKE ALL ON FUNCTION ordermigrate.traffic_in_force(), ordermigrate.reads_from_service(text) FROM {role};

-- name: has_traffic
-- Whether a share was ever set here.
SELECT
    to_regclass('ordermigrate.traffic') IS NOT NULL
    AND to_regprocedure('ordermigrate.traffic_in_force()') IS NOT NULL AS is_there;

-- name: read_traffic
-- The share that counts, and who set the one that is on record, and when.
SELECT
    f.percentage,
    f.is_service_owner,
    t.reason,
    t.changed_at
FROM ordermigrate.traffic AS t
CROSS JOIN ordermigrate.traffic_in_force() AS f;

-- name: hold_traffic
-- Keep others from changing the share for the rest of the transaction.
SELECT t.percentage FROM ordermigrate.traffic AS t FOR UPDATE;

-- name: set_traffic
-- Set the share.
-- $1: percentage, $2: why.
UPDATE ordermigrate.traffic AS t
SET percentage = $1::integer, epoch = s.epoch, reason = $2::text, changed_at = clock_timestamp()
FROM ordermigrate.side AS s;
