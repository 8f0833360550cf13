-- Takes the whole trade engine away, with all rows, from whichever side and variant; what is gone already is passed over.
-- Never during a migration: `ordermigrate cancel` or `ordermigrate cleanup` come before it.
\ir views_down.sql

DROP TABLE IF EXISTS public.partition_retention_config, public.order_book_snapshots, public.stop_orders_watchlist;
DROP TABLE IF EXISTS public.trades, public.orders, public.symbols;
DROP FUNCTION IF EXISTS public.remove_from_watchlist, public.add_to_watchlist, public.require_status_transition;
DROP FUNCTION IF EXISTS public.set_order_cancelled_at, public.set_order_filled_at, public.set_updated_at;
DROP TYPE IF EXISTS public.symbol_status, public.time_in_force, public.order_status, public.order_type, public.order_side;
