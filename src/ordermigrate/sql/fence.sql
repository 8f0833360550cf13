-- name: create_counter
-- Counts refused statements; a sequence keeps its count when the statement is rolled back.
CREATE SEQUENCE IF NOT EXISTS ordermigrate.refused_writes;

-- name: create_refuse_write
-- Refuse a write, and name the owner of the table. A statement that comes from a trigger (the
-- cascade of a foreign key) may turn out to touch no row; its rows are refused one by one.
CREATE OR REPLACE FUNCTION ordermigrate.refuse_write() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $fence$
BEGIN
    IF TG_LEVEL = 'STATEMENT' AND TG_OP IN ('UPDATE', 'DELETE') AND pg_trigger_depth() > 1 THEN
        RETURN NULL;
    END IF;
    PERFORM nextval('ordermigrate.refused_writes');
    RAISE EXCEPTION USING
        ERRCODE = 'OM001',
        MESSAGE = format('%I.%I is fenced: the %s owns it', TG_TABLE_SCHEMA, TG_TABLE_NAME, TG_ARGV[0]),
        DETAIL = format('An ordermigrate migration is under way; nobody but it may %s here.', lower(TG_OP)),
        HINT = format('Write to the %s''s database.', TG_ARGV[0]);
END
$fence$;

-- name: keep_refuse_write_private
-- Nobody but a trigger calls it.
REVOKE ALL ON FUNCTION ordermigrate.refuse_write() FROM PUBLIC;

-- name: create_statement_fence
-- Refuse statements by anyone who does not show the pass; its hash tells nobody what it is.
CREATE TRIGGER ordermigrate_fence
BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE ON {table} FOR EACH STATEMENT
WHEN (sha256(convert_to(coalesce(current_setting('ordermigrate.pass', true), ''), 'UTF8')) <> {hash}::bytea)
EXECUTE FUNCTION ordermigrate.refuse_write({owner});

-- name: create_row_fence
-- Refuse rows: what comes by a cascade, by a subscription's apply, or into a later partition.
CREATE TRIGGER ordermigrate_fence_row
AFTER INSERT OR UPDATE OR DELETE ON {table} FOR EACH ROW
WHEN (sha256(convert_to(coalesce(current_setting('ordermigrate.pass', true), ''), 'UTF8')) <> {hash}::bytea)
EXECUTE FUNCTION ordermigrate.refuse_write({owner});

-- name: fire_always
-- Let a trigger fire whatever session_replication_role says.
ALTER TABLE {table} ENABLE ALWAYS TRIGGER {trigger};

-- name: stand_by
-- Keep a trigger of ours from firing, ready to be switched on.
ALTER TABLE {table} DISABLE TRIGGER {trigger};

-- name: count_refused
-- How many statements the fence has refused.
SELECT CASE WHEN s.is_called THEN s.last_value ELSE 0 END AS refused
FROM ordermigrate.refused_writes AS s;

-- name: has_counter
-- Whether there is a fence's counter here.
SELECT to_regclass('ordermigrate.refused_writes') IS NOT NULL AS has_counter;
