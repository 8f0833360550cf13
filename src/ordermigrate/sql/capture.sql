-- name: create_log_row
-- Log the key of a row that was written, before and after the write where the two differ. It runs
-- as its owner, so that whoever writes to the table needs no right on the log. A search_path of its
-- own would cost each write as much again as all the rest; so every name in it says its schema, and
-- nobody's search_path has a say in what it does.
-- A session keeps the plans of these statements, and in them the types of the key's columns. That the
-- table is named in each, as a constant of which the plan itself is free, has the server forget the
-- plans when the table is altered: or else a key that becomes wider would end that session's writes.
CREATE OR REPLACE FUNCTION {function}() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
AS $capture$
BEGIN
    IF TG_OP OPERATOR(pg_catalog.<>) 'DELETE'::pg_catalog.text THEN
        INSERT INTO {log} ({log_key})
        SELECT {new_key} WHERE {table_oid}::pg_catalog.regclass IS NOT NULL;
        IF TG_OP OPERATOR(pg_catalog.=) 'INSERT'::pg_catalog.text THEN
            RETURN NULL;
        END IF;
        IF {same_key} AND {table_oid}::pg_catalog.regclass IS NOT NULL THEN
            RETURN NULL;
        END IF;
    END IF;
    INSERT INTO {log} ({log_key})
    SELECT {old_key} WHERE {table_oid}::pg_catalog.regclass IS NOT NULL;
    RETURN NULL;
END
$capture$;

-- name: create_log_truncate
-- Log that rows went which no other trigger has seen; the trigger says how.
CREATE OR REPLACE FUNCTION {function}() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
AS $capture$
BEGIN
    INSERT INTO {log} (mark) VALUES (TG_ARGV[0]);
    RETURN NULL;
END
$capture$;

-- name: keep_function_private
-- Nobody but a trigger calls it.
REVOKE ALL ON FUNCTION {function}() FROM PUBLIC;

-- name: create_row_trigger
-- Capture every way in which a row is written: COPY, MERGE, ON CONFLICT, cascades, rules, a
-- subscription; on a partitioned table into a partition directly, and into later partitions.
CREATE OR REPLACE TRIGGER {trigger} AFTER INSERT OR UPDATE OR DELETE ON {table}
FOR EACH ROW EXECUTE FUNCTION {function}();

-- name: create_truncate_trigger
-- Capture TRUNCATE. A part may have the trigger from an earlier time; to drop it first would keep
-- readers out as well, and one that goes on to write would be in a deadlock with us.
CREATE OR REPLACE TRIGGER {trigger} AFTER TRUNCATE ON {table}
FOR EACH STATEMENT EXECUTE FUNCTION {function}({mark});

-- name: fire_always
-- Let a trigger fire whatever session_replication_role says.
ALTER TABLE {table} ENABLE ALWAYS TRIGGER {trigger};

-- name: stand_by
-- Keep a trigger of ours from firing, ready to be switched on.
ALTER TABLE {table} DISABLE TRIGGER {trigger};

-- name: find_subscriptions
-- Subscriptions that write to these tables: their apply fires no statement trigger.
-- $1: oids of tables and leaves.
SELECT
    s.subname AS subscription,
    r.srrelid::regclass::text AS relation
FROM pg_catalog.pg_subscription_rel AS r
INNER JOIN pg_catalog.pg_subscription AS s ON s.oid = r.srsubid
WHERE r.srrelid = ANY($1::bigint[]::oid[])
ORDER BY 1, 2;
