-- name: watch_row
-- Log the key of a row that columns of other tables may be made from, when it comes or goes.
CREATE OR REPLACE TRIGGER {trigger} AFTER INSERT OR DELETE ON {table}
FOR EACH ROW EXECUTE FUNCTION {function}();

-- name: watch_update
-- Log its key when a column that is read, or the key, has another image. Not UPDATE OF: that would
-- not fire for what a trigger of the application's changes. Whoever changes something else pays for
-- the comparison alone.
CREATE OR REPLACE TRIGGER {trigger} AFTER UPDATE ON {table}
FOR EACH ROW
WHEN (ROW({old})::pg_catalog.record OPERATOR(pg_catalog.*<>) ROW({new})::pg_catalog.record)
EXECUTE FUNCTION {function}();

-- name: watch_truncate
-- Log that all rows went.
CREATE OR REPLACE TRIGGER {trigger} AFTER TRUNCATE ON {table}
FOR EACH STATEMENT EXECUTE FUNCTION {function}({mark});
