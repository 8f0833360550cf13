-- name: measure_tables
-- What the monolith's tables hold, in rows and bytes.
SELECT
    (SELECT count(*) FROM public.users) AS users,
    (SELECT count(*) FROM public.orders) AS orders,
    pg_table_size('public.orders'::regclass) AS table_bytes,
    pg_indexes_size('public.orders'::regclass) AS index_bytes;

-- name: choose_order
-- One order from the middle of the table, to be looked at and to be tampered with.
-- $1: how many come before it in the order of the keys, $2: ids of orders that it must not be.
SELECT
    o.id::text AS id,
    o.user_id,
    o.order_side,
    o.symbol,
    o.quantity::text AS quantity,
    o.status,
    o.created_at::text AS created_at
FROM public.orders AS o
WHERE NOT EXISTS (SELECT FROM unnest($2::uuid[]) AS other (id) WHERE other.id = o.id)
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

-- name: adopt_orders
-- Some of the orders that are there already, for the application to go on with.
-- $1: how many.
SELECT o.id
FROM public.orders AS o
ORDER BY md5(o.id::text)
LIMIT $1::bigint;

-- name: place_order
-- The application's write when a user orders.
-- $1: id, $2: user, $3: symbol, $4: side, $5: quantity, $6: the write's reference.
INSERT INTO public.orders (id, user_id, symbol, order_type, order_side, quantity, status, external_order_id)
VALUES ($1::uuid, $2::integer, $3::text, 'MARKET', $4::text, $5::numeric, 'PENDING', $6::text);

-- name: advance_order
-- The application's write when an order goes on, or is cancelled.
-- $1: id, $2: its new status, $3: the write's reference.
UPDATE public.orders AS o
SET status = $2::text, external_order_id = $3::text
WHERE o.id = $1::uuid;

-- name: delete_order
-- The application's write when an order is not to have been.
-- $1: id.
DELETE FROM public.orders AS o WHERE o.id = $1::uuid;

-- name: read_written_orders
-- What has become of some orders, in the words in which the application remembers them.
-- $1: ids.
SELECT
    o.id,
    o.status,
    o.external_order_id AS reference
FROM public.orders AS o
WHERE o.id = ANY ($1::uuid[]);

-- name: count_orders
-- How many orders there are.
SELECT count(*) AS orders FROM public.orders;

-- name: touch_order
-- Write to an order without changing anything: a fence has to mind even that.
-- $1: id.
UPDATE public.orders AS o SET status = o.status WHERE o.id = $1::uuid;
