-- name: measure_tables
-- What the monolith's tables hold, in rows and bytes.
SELECT
    (SELECT count(*) FROM public.users) AS users,
    (SELECT count(*) FROM public.orders) AS orders,
    pg_table_size('public.orders'::regclass) AS table_bytes,
    pg_indexes_size('public.orders'::regclass) AS index_bytes;

-- name: choose_order
-- One order from the middle of the table, to be looked at and to be tampered with.
-- $1: how many come before it in the order of the keys.
SELECT
    o.id::text AS id,
    o.user_id,
    o.order_side,
    o.symbol,
    o.quantity::text AS quantity,
    o.status,
    o.created_at::text AS created_at
FROM public.orders AS o
ORDER BY o.id
OFFSET $1::bigint
LIMIT 1;

-- name: change_last_digit
-- Make an order's quantity differ by one in its eighth and last decimal, and in no other digit.
-- $1: the order's id.
UPDATE public.orders AS o
SET quantity = o.quantity + CASE WHEN right(o.quantity::text, 1) = '9' THEN -0.00000001 ELSE 0.00000001 END
WHERE o.id = $1::uuid
RETURNING o.quantity::text AS quantity;

-- name: mend_quantity
-- Give an order the quantity that it should have.
-- $1: the order's id, $2: the quantity as text.
UPDATE public.orders AS o
SET quantity = $2::numeric
WHERE o.id = $1::uuid
RETURNING o.quantity::text AS quantity;

-- name: lift_statement_timeout
-- Let the statements of this session take as long as they need.
SELECT set_config('statement_timeout', '0', false);

-- name: create_database
-- Make an empty database of the demo's own.
CREATE DATABASE {database} TEMPLATE template0 ENCODING 'UTF8';

-- name: drop_database
-- Remove a database that the demo has made, whoever is connected to it.
DROP DATABASE IF EXISTS {database} WITH (FORCE);

-- name: analyze_tables
-- Give the monolith the statistics that a database in use has.
ANALYZE public.users, public.orders;
