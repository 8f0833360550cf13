-- The monolith's side of the trade engine family without partitions, as it was before the tables grew.
-- partition_retention_config is there already, as the rules for the partitions that are to come; the functions that make
-- partitions are not. Runs once, in an empty database, with any search_path, by psql or by ordermigrate.
\ir types.sql
\ir tables.sql

ALTER TABLE public.orders ADD PRIMARY KEY (order_id);
ALTER TABLE public.trades ADD PRIMARY KEY (trade_id);
CREATE UNIQUE INDEX idx_orders_client_order_id ON public.orders (user_id, client_order_id)
WHERE client_order_id IS NOT NULL;

\ir indexes.sql
\ir triggers.sql
\ir views.sql
\ir functions.sql
\ir defaults.sql
