-- Adds orders and their trades to a monolith by psql; ordermigrate's tests run generate.sql themselves.
-- To be run in this directory:
--   psql -f monolith.sql -f load.sql
--   psql -v orders=1000000 -v users=1000 -v seed=1 -f load.sql
\set ON_ERROR_STOP on
\if :{?orders} \else \set orders 60000 \endif
\if :{?users} \else \set users 1000 \endif
\if :{?seed} \else \set seed 1 \endif

\set generate_orders `cat generate.sql`
PREPARE generate_orders AS :generate_orders;
EXECUTE generate_orders(:users, :orders, :seed, 1, NULL);
DEALLOCATE generate_orders;
SELECT public.refresh_order_book_snapshot();
ANALYZE public.symbols, public.orders, public.trades, public.stop_orders_watchlist;
