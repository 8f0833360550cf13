-- Adds orders to a monolith by psql, for people; the tests run generate.sql themselves.
-- To be run in this directory:
--   psql -f monolith.sql -f load.sql
--   psql -v orders=2000000 -v seed=1 -f load.sql
-- What is not said with -v comes from the environment (ORDERS, SEED), or is as below.
\set ON_ERROR_STOP on
\if :{?orders} \else \set orders `echo "${ORDERS:-60000}"` \endif
\if :{?seed} \else \set seed `echo "${SEED:-1}"` \endif

\set generate_orders `cat generate.sql`
PREPARE generate_orders AS :generate_orders;
EXECUTE generate_orders(:orders, :seed, 1, NULL);
DEALLOCATE generate_orders;
ANALYZE public.orders, public.order_status_history;
