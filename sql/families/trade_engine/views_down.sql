-- Takes away what reads the tables by name: the six views, the materialized one, and the functions that people call.
-- To be run on the monolith before `ordermigrate cleanup`, which drops no table that a view depends on.

DROP FUNCTION IF EXISTS public.check_partition_health, public.check_table_sizes, public.check_db_connections;
DROP FUNCTION IF EXISTS public.get_order_fill_rate, public.get_trading_volume, public.calculate_vwap;
DROP FUNCTION IF EXISTS public.get_best_bid_ask, public.get_user_trade_history, public.get_order_book_depth;
DROP FUNCTION IF EXISTS public.refresh_order_book_snapshot;
DROP MATERIALIZED VIEW IF EXISTS public.order_book_snapshot;
DROP VIEW IF EXISTS public.index_usage, public.order_flow, public.stop_orders_reached;
DROP VIEW IF EXISTS public.trading_stats_24h, public.user_order_summary, public.active_orders;
DROP FUNCTION IF EXISTS public.maintain_partitions, public.create_trades_partition, public.create_orders_partition;
