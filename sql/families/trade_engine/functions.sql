-- Nine functions for applications and for those who watch the database.

-- The best prices of a symbol and what is offered at each, as many levels as wanted on either side.
CREATE FUNCTION public.get_order_book_depth(wanted_symbol TEXT, levels INTEGER DEFAULT 20)
RETURNS TABLE (side public.order_side, price NUMERIC, quantity NUMERIC, orders BIGINT) LANGUAGE sql STABLE AS $$
    (
        SELECT o.side, o.price, sum(o.quantity - o.filled_quantity), count(*)
        FROM public.orders AS o
        WHERE
            o.symbol = wanted_symbol AND o.side = 'BUY'
            AND o.status IN ('OPEN', 'PARTIALLY_FILLED') AND o.price IS NOT NULL
        GROUP BY o.side, o.price
        ORDER BY o.price DESC
        LIMIT levels
    )
    UNION ALL
    (
        SELECT o.side, o.price, sum(o.quantity - o.filled_quantity), count(*)
        FROM public.orders AS o
        WHERE
            o.symbol = wanted_symbol AND o.side = 'SELL'
            AND o.status IN ('OPEN', 'PARTIALLY_FILLED') AND o.price IS NOT NULL
        GROUP BY o.side, o.price
        ORDER BY o.price
        LIMIT levels
    )
$$;

-- A user's newest trades on either side, before a moment where one is given.
CREATE FUNCTION public.get_user_trade_history(
    wanted_user UUID, at_most INTEGER DEFAULT 50, before TIMESTAMPTZ DEFAULT 'infinity'
) RETURNS TABLE (
    trade_id BIGINT, executed_at TIMESTAMPTZ, symbol VARCHAR, side public.order_side, price NUMERIC, quantity NUMERIC,
    fee NUMERIC
) LANGUAGE sql STABLE AS $$
    SELECT found.*
    FROM (
        (
            SELECT t.trade_id, t.executed_at, t.symbol, 'BUY'::public.order_side, t.price, t.quantity, t.buyer_fee
            FROM public.trades AS t
            WHERE t.buyer_user_id = wanted_user AND t.executed_at < before
            ORDER BY t.executed_at DESC
            LIMIT at_most
        )
        UNION ALL
        (
            SELECT t.trade_id, t.executed_at, t.symbol, 'SELL'::public.order_side, t.price, t.quantity, t.seller_fee
            FROM public.trades AS t
            WHERE t.seller_user_id = wanted_user AND t.executed_at < before
            ORDER BY t.executed_at DESC
            LIMIT at_most
        )
    ) AS found
    ORDER BY found.executed_at DESC, found.trade_id DESC
    LIMIT at_most
$$;

-- The best bid, the best ask and what lies between them; NULL where a side is empty.
CREATE FUNCTION public.get_best_bid_ask(wanted_symbol TEXT)
RETURNS TABLE (best_bid NUMERIC, best_ask NUMERIC, spread NUMERIC) LANGUAGE sql STABLE AS $$
    SELECT best.bid, best.ask, best.ask - best.bid
    FROM (
        SELECT
            max(o.price) FILTER (WHERE o.side = 'BUY') AS bid,
            min(o.price) FILTER (WHERE o.side = 'SELL') AS ask
        FROM public.orders AS o
        WHERE o.symbol = wanted_symbol AND o.status IN ('OPEN', 'PARTIALLY_FILLED')
    ) AS best
$$;

-- The average price of a symbol's trades, each counted by its quantity; NULL without trades.
CREATE FUNCTION public.calculate_vwap(
    wanted_symbol TEXT, since TIMESTAMPTZ DEFAULT now() - interval '24 hours', until TIMESTAMPTZ DEFAULT now()
) RETURNS NUMERIC LANGUAGE sql STABLE AS $$
    SELECT sum(t.price * t.quantity) / sum(t.quantity)
    FROM public.trades AS t
    WHERE t.symbol = wanted_symbol AND t.executed_at >= since AND t.executed_at < until
$$;

-- What was traded of a symbol, by period ('hour', 'day', ... as date_trunc takes it), in UTC.
CREATE FUNCTION public.get_trading_volume(
    wanted_symbol TEXT, period TEXT, since TIMESTAMPTZ, until TIMESTAMPTZ DEFAULT now()
) RETURNS TABLE (period_start TIMESTAMPTZ, trades BIGINT, volume NUMERIC, quote_volume NUMERIC) LANGUAGE sql STABLE AS $$
    SELECT
        date_trunc(period, t.executed_at, 'UTC'), count(*), sum(t.quantity), sum(t.quantity * t.price)
    FROM public.trades AS t
    WHERE t.symbol = wanted_symbol AND t.executed_at >= since AND t.executed_at < until
    GROUP BY 1
    ORDER BY 1
$$;

-- How much of what a user has ordered was filled; the rate is NULL for one who has ordered nothing.
CREATE FUNCTION public.get_order_fill_rate(wanted_user UUID, since TIMESTAMPTZ DEFAULT '-infinity')
RETURNS TABLE (orders BIGINT, filled BIGINT, fill_rate NUMERIC) LANGUAGE sql STABLE AS $$
    SELECT
        count(*),
        count(*) FILTER (WHERE o.status = 'FILLED'),
        round(count(*) FILTER (WHERE o.status = 'FILLED')::numeric / nullif(count(*), 0), 4)
    FROM public.orders AS o
    WHERE o.user_id = wanted_user AND o.created_at >= since
$$;

-- Connections to this database by state, and the share of all that the server allows.
CREATE FUNCTION public.check_db_connections()
RETURNS TABLE (state TEXT, connections BIGINT, share_of_limit NUMERIC) LANGUAGE sql STABLE AS $$
    SELECT
        coalesce(a.state, 'background'),
        count(*),
        round(count(*)::numeric / current_setting('max_connections')::numeric, 4)
    FROM pg_catalog.pg_stat_activity AS a
    WHERE a.datname = current_database()
    GROUP BY 1
    ORDER BY 1
$$;

-- Tables with their partitions and indexes, the largest first.
CREATE FUNCTION public.check_table_sizes()
RETURNS TABLE (table_name TEXT, partitions BIGINT, table_bytes BIGINT, index_bytes BIGINT) LANGUAGE sql STABLE AS $$
    SELECT
        c.relname::text,
        count(p.relid) FILTER (WHERE p.level > 0),
        coalesce(sum(pg_table_size(p.relid)), pg_table_size(c.oid))::bigint,
        coalesce(sum(pg_indexes_size(p.relid)), pg_indexes_size(c.oid))::bigint
    FROM pg_catalog.pg_class AS c
    LEFT JOIN LATERAL pg_catalog.pg_partition_tree(c.oid) AS p ON c.relkind = 'p'
    WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p') AND NOT c.relispartition
    GROUP BY c.oid, c.relname
    ORDER BY 3 DESC, 1
$$;

-- Partitions in their order, with what is wrong: a gap before one, or too few after this moment. None without partitions.
CREATE FUNCTION public.check_partition_health(as_of TIMESTAMPTZ DEFAULT now())
RETURNS TABLE (table_name TEXT, partition_name TEXT, begins TIMESTAMPTZ, ends TIMESTAMPTZ, problem TEXT)
LANGUAGE sql STABLE AS $$
    SELECT
        bounds.root,
        bounds.part,
        bounds.first_moment,
        bounds.end_moment,
        CASE
            WHEN bounds.first_moment > bounds.previous_end THEN 'gap before it'
            WHEN
                bounds.is_last
                AND bounds.end_moment <= as_of + rule.created_ahead
                    * CASE bounds.root WHEN 'orders' THEN interval '1 month' ELSE interval '1 day' END
                THEN 'too few partitions ahead'
            ELSE 'none'
        END
    FROM (
        SELECT
            parts.*,
            lag(parts.end_moment) OVER by_time AS previous_end,
            lead(parts.part) OVER by_time IS NULL AS is_last
        FROM (
            SELECT
                root.relname::text AS root,
                part.relname::text AS part,
                coalesce(substring(bound.expression FROM 'FROM \(''([^'']+)''\)')::timestamptz, '-infinity')
                    AS first_moment,
                coalesce(substring(bound.expression FROM 'TO \(''([^'']+)''\)')::timestamptz, 'infinity')
                    AS end_moment
            FROM pg_catalog.pg_class AS root
            INNER JOIN pg_catalog.pg_inherits AS h ON h.inhparent = root.oid
            INNER JOIN pg_catalog.pg_class AS part ON part.oid = h.inhrelid
            CROSS JOIN LATERAL (SELECT pg_get_expr(part.relpartbound, part.oid) AS expression) AS bound
            WHERE
                root.relnamespace = 'public'::regnamespace AND root.relkind = 'p'
                AND root.relname IN ('orders', 'trades')
        ) AS parts
        WINDOW by_time AS (PARTITION BY parts.root ORDER BY parts.first_moment)
    ) AS bounds
    LEFT JOIN public.partition_retention_config AS rule ON rule.table_name = bounds.root
    ORDER BY bounds.root, bounds.first_moment
$$;
