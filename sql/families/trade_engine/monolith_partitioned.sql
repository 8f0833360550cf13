-- The monolith's side of the trade engine family with partitions: twelve months of orders (November 2024 to October 2025)
-- and thirty days of trades (2 to 31 October 2025). 97 objects; the README counts them.
-- Runs once, in an empty database, with any search_path, by psql or by ordermigrate.
\ir types.sql
\ir tables.sql
\ir partitioned.sql
\ir indexes.sql

DO $$
BEGIN
    PERFORM public.create_orders_partition((date '2024-11-01' + n * interval '1 month')::date)
    FROM generate_series(0, 11) AS n;
    PERFORM public.create_trades_partition(date '2025-10-02' + n) FROM generate_series(0, 29) AS n;
END
$$;

\ir triggers.sql
\ir views.sql
\ir functions.sql
\ir defaults.sql
