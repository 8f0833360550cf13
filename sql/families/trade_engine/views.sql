-- Six views, and the order book as a materialized one with the function that brings it up to date.

CREATE VIEW public.active_orders AS
SELECT
    o.order_id, o.created_at, o.user_id, o.symbol, o.side, o.order_type, o.status, o.price, o.stop_price,
    o.quantity, o.filled_quantity, o.quantity - o.filled_quantity AS open_quantity
FROM public.orders AS o
WHERE o.status IN ('PENDING', 'OPEN', 'PARTIALLY_FILLED');

CREATE VIEW public.user_order_summary AS
SELECT
    o.user_id,
    count(*) AS orders,
    count(*) FILTER (WHERE o.status IN ('PENDING', 'OPEN', 'PARTIALLY_FILLED')) AS active,
    count(*) FILTER (WHERE o.status = 'FILLED') AS filled,
    count(*) FILTER (WHERE o.status = 'CANCELLED') AS cancelled,
    max(o.created_at) AS last_order_at
FROM public.orders AS o
GROUP BY o.user_id;

CREATE VIEW public.trading_stats_24h AS
SELECT
    t.symbol,
    count(*) AS trades,
    sum(t.quantity) AS volume,
    sum(t.quantity * t.price) AS quote_volume,
    min(t.price) AS low,
    max(t.price) AS high,
    (array_agg(t.price ORDER BY t.executed_at, t.trade_id))[1] AS first_price,
    (array_agg(t.price ORDER BY t.executed_at DESC, t.trade_id DESC))[1] AS last_price
FROM public.trades AS t
WHERE t.executed_at >= now() - interval '24 hours'
GROUP BY t.symbol;

-- Stop orders whose price the last trade has reached: each should have been sent on.
CREATE VIEW public.stop_orders_reached AS
SELECT w.order_id, w.user_id, w.symbol, w.side, w.stop_price, last.price AS last_price, w.added_at
FROM public.stop_orders_watchlist AS w
CROSS JOIN LATERAL (
    SELECT t.price
    FROM public.trades AS t
    WHERE t.symbol = w.symbol
    ORDER BY t.executed_at DESC
    LIMIT 1
) AS last
WHERE CASE w.side WHEN 'BUY' THEN last.price >= w.stop_price ELSE last.price <= w.stop_price END;

CREATE VIEW public.order_flow AS
SELECT
    o.symbol,
    o.status,
    count(*) AS orders,
    sum(o.quantity) AS quantity,
    sum(o.filled_quantity) AS filled_quantity,
    max(o.updated_at) AS last_change_at
FROM public.orders AS o
GROUP BY o.symbol, o.status;

CREATE VIEW public.index_usage AS
SELECT
    s.relname AS table_name,
    s.indexrelname AS index_name,
    s.idx_scan AS scans,
    pg_relation_size(s.indexrelid) AS bytes
FROM pg_catalog.pg_stat_user_indexes AS s
WHERE s.schemaname = 'public';

-- Not to be mixed up with the table order_book_snapshots, which keeps those that were taken.
CREATE MATERIALIZED VIEW public.order_book_snapshot AS
SELECT
    o.symbol,
    o.side,
    o.price,
    sum(o.quantity - o.filled_quantity) AS quantity,
    count(*) AS orders
FROM public.orders AS o
WHERE o.status IN ('OPEN', 'PARTIALLY_FILLED') AND o.price IS NOT NULL
GROUP BY o.symbol, o.side, o.price;

-- Not CONCURRENTLY: that takes a unique index, and the book is small. Takes the view's owner, as REFRESH does.
CREATE FUNCTION public.refresh_order_book_snapshot() RETURNS VOID LANGUAGE plpgsql AS $$
BEGIN
    REFRESH MATERIALIZED VIEW public.order_book_snapshot;
END
$$;
