-- name: end_old_backups
-- End what a backup of ours that was killed has left at work, and wait a moment until it is gone.
-- $1: its application_name.
SELECT pg_terminate_backend(a.pid, 2000) AS is_ended
FROM pg_catalog.pg_stat_activity AS a
WHERE a.datname = current_database() AND a.usename = session_user AND a.application_name = $1::text;
