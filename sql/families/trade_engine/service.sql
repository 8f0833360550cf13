-- The service's side of the trade engine family, partitioned by other bounds than the monolith's: what is old lies in one
-- partition each, and months and days reach further ahead. As many partitions, and so as many objects: 97.
-- No rows: symbols and the rules for partitions come with the move.
-- Runs once, in an empty database, with any search_path, by psql or by ordermigrate.
\ir types.sql
\ir tables.sql
\ir partitioned.sql
\ir indexes.sql

CREATE TABLE public.orders_history PARTITION OF public.orders FOR VALUES FROM (MINVALUE) TO ('2025-03-01 00:00+00');
CREATE TABLE public.trades_history PARTITION OF public.trades FOR VALUES FROM (MINVALUE) TO ('2025-10-16 00:00+00');
DO $$
BEGIN
    PERFORM public.create_orders_partition((date '2025-03-01' + n * interval '1 month')::date)
    FROM generate_series(0, 10) AS n;
    PERFORM public.create_trades_partition(date '2025-10-16' + n) FROM generate_series(0, 28) AS n;
END
$$;

\ir triggers.sql
\ir views.sql
\ir functions.sql
