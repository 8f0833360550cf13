-- How the application reads the family: the four patterns of the seed, each as one statement. The first line of each says by
-- which index it has to be answered; the tests run every one on both sides, and look whether it is.

-- name: get_active_orders
-- index: idx_orders_active
-- The orders of a market that are still at work, newest first. $1 market
SELECT id, client_id, market, side, type, size, price, status, created_at
FROM public.orders
WHERE market = $1::varchar
    AND status IN ('PENDING', 'OPEN', 'PARTIALLY_FILLED')
ORDER BY created_at DESC;

-- name: list_orders
-- index: idx_orders_created_at
-- A page of orders, newest first. Orders of one moment come in the order of their keys: the seed's statement leaves that open,
-- and an order could be on two pages, or on none. $1 market or NULL, $2 status or NULL, $3 rows of a page, $4 rows before it
SELECT id, client_id, market, side, type, size, price, status, filled_size, remaining_size, created_at, updated_at
FROM public.orders
WHERE ($1::varchar IS NULL OR market = $1::varchar)
    AND ($2::public.order_status IS NULL OR status = $2::public.order_status)
ORDER BY created_at DESC, id
LIMIT $3::bigint OFFSET $4::bigint;

-- name: get_order_with_history
-- index: idx_order_status_history_order_id
-- One order, and its history as JSON, oldest first. $1 key of the order
SELECT
    o.*,
    coalesce(
        json_agg(
            json_build_object(
                'old_status', h.old_status,
                'new_status', h.new_status,
                'timestamp', h.created_at,
                'reason', h.reason
            ) ORDER BY h.created_at
        ) FILTER (WHERE h.id IS NOT NULL),
        '[]'::json
    ) AS history
FROM public.orders AS o
LEFT JOIN public.order_status_history AS h ON h.order_id = o.id
WHERE o.id = $1::uuid
GROUP BY o.id;

-- name: count_orders_by_status
-- index: idx_orders_created_at
-- How many orders there are of each status, since a moment. $1 the moment
SELECT status, count(*) AS count
FROM public.orders
WHERE created_at >= $1::timestamptz
GROUP BY status;
