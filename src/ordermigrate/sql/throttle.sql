-- name: read_signs
-- How busy the source is: the largest replay lag of its replicas in seconds, and its active sessions
-- but for ours. A role that may not see the replicas' lag sees null where there are replicas.
SELECT
    (
        SELECT max(coalesce(extract(epoch FROM r.replay_lag), 0))::float8
        FROM pg_catalog.pg_stat_replication AS r
    ) AS replica_lag_seconds,
    (
        SELECT count(*)
        FROM pg_catalog.pg_stat_activity AS a
        WHERE
            a.state = 'active'
            AND a.backend_type = 'client backend'
            AND a.application_name NOT LIKE 'ordermigrate%'
    ) AS active_sessions,
    EXISTS (
        SELECT FROM pg_catalog.pg_stat_replication AS r WHERE r.state IS NULL
    ) AS is_hidden;
