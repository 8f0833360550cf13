-- What the service's database needs from time to time, by psql as the table's owner: psql -f maintenance.sql, daily, when few write.
-- Runs on service.sql and on service_partitioned.sql alike; may be run again.
\set ON_ERROR_STOP on

-- Of service_partitioned.sql: the months to come, three of them ahead. A short limit on the lock: whoever writes does not
-- wait behind this for longer, and tomorrow is another day.
SET lock_timeout = '2s';
DO $$
BEGIN
    IF pg_catalog.to_regprocedure('public.create_orders_partitions(date, date)') IS NOT NULL THEN
        RAISE NOTICE '% partitions made', public.create_orders_partitions(
            CURRENT_DATE, (CURRENT_DATE + '3 months'::interval)::date
        );
    END IF;
END;
$$;
RESET lock_timeout;

-- Room, and fresh statistics; those of a partitioned table as a whole are never made by autovacuum.
VACUUM (ANALYZE) public.orders;

-- Months that ended more than a year ago, for cold storage: back each up, then ALTER TABLE public.orders DETACH PARTITION ... .
-- Listed here and taken by nobody; not while a migration is going on.
SELECT
    c.oid::regclass AS old_month,
    pg_catalog.pg_size_pretty(pg_catalog.pg_total_relation_size(c.oid)) AS size
FROM pg_catalog.pg_inherits AS i
JOIN pg_catalog.pg_class AS c ON c.oid = i.inhrelid
WHERE i.inhparent = 'public.orders'::regclass
    AND c.relname ~ '^orders_\d{4}_\d{2}$'
    AND pg_catalog.to_date(pg_catalog.right(c.relname, 7), 'YYYY_MM') + '1 month'::interval < CURRENT_DATE - '1 year'::interval
ORDER BY c.relname;
