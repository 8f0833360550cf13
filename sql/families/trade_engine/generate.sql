-- name: generate_orders
-- Adds orders as a young exchange has them after a year (November 2024 to October 2025; half of them from its last thirty
-- days), and the trades of those thirty days: older ones were dropped. Each trade is a fill of one of the orders; whom it
-- was with is a house account, whose orders are not kept here.
-- $1 users: they are numbers in a uuid, for users live elsewhere
-- $2 orders: how many to add
-- $3 seed: the same seed gives the same orders on any day and machine, in one step or in many
-- $4 first: number of the first order to add, 1 in an empty table; order n is the same row in every run
-- $5 total: orders in the year; NULL where the ones added now are their last
-- Every choice takes its own bits of three hashes of the order's number; OFFSET 0 keeps the steps apart, or the planner
-- would work each hash out anew wherever it is used. Triggers fire: stop orders get onto the watchlist by themselves.
WITH new_orders AS (
    INSERT INTO public.orders (
        order_id, created_at, user_id, symbol, side, order_type, status, time_in_force,
        quantity, filled_quantity, price, stop_price, average_price, client_order_id,
        updated_at, filled_at, cancelled_at, metadata
    )
    SELECT
        fate.order_id,
        fate.created_at,
        fate.user_id,
        fate.symbol,
        fate.side,
        fate.order_type,
        fate.status,
        ('{GTC,GTC,GTC,GTC,GTC,IOC,FOK,DAY}'::public.time_in_force[])[1 + (fate.c & 7)],
        fate.quantity,
        CASE fate.status WHEN 'FILLED' THEN fate.quantity WHEN 'PARTIALLY_FILLED' THEN fate.quantity / 2 ELSE 0 END,
        CASE WHEN fate.order_type IN ('LIMIT', 'STOP_LIMIT') THEN fate.price END,
        CASE WHEN fate.order_type IN ('STOP', 'STOP_LIMIT') THEN fate.price * 0.99 END,
        CASE WHEN fate.status IN ('FILLED', 'PARTIALLY_FILLED') THEN fate.price END,
        -- most clients number their orders
        CASE WHEN fate.c >> 3 & 7 <> 0 THEN 'client-' || fate.n END,
        fate.ended_at,
        CASE fate.status WHEN 'FILLED' THEN fate.ended_at END,
        CASE fate.status WHEN 'CANCELLED' THEN fate.ended_at END,
        CASE fate.c >> 6 & 3
            WHEN 0 THEN jsonb_build_object('source', 'api', 'note', E'quote " and\ttab, \\N')
            WHEN 1 THEN jsonb_build_object('source', 'web', 'tags', jsonb_build_array('größer', NULL, fate.n))
        END
    FROM (
        SELECT
            choice.*,
            CASE
                WHEN choice.order_type IN ('STOP', 'STOP_LIMIT') AND choice.is_recent THEN 'PENDING'
                WHEN choice.order_type = 'LIMIT' AND choice.is_recent AND choice.b & 3 = 0 THEN 'OPEN'
                WHEN choice.order_type = 'LIMIT' AND choice.is_recent AND choice.b & 15 = 1 THEN 'PARTIALLY_FILLED'
                WHEN choice.b & 127 < 100 THEN 'FILLED'
                WHEN choice.b & 127 < 120 THEN 'CANCELLED'
                WHEN choice.b & 127 < 124 THEN 'REJECTED'
                ELSE 'EXPIRED'
            END::public.order_status AS status,
            choice.created_at + '1 microsecond'::interval * (choice.c >> 8 & 16777215) AS ended_at
        FROM (
            SELECT
                number.n,
                number.b,
                number.c,
                number.progress > 0.8 AS is_recent,
                encode(int8send(number.a & -61441 | 16384) || int8send(number.b & 4611686018427387903
                    | '-9223372036854775808'::bigint), 'hex')::uuid AS order_id,
                -- half of the orders in eleven months, the other half in the last; none so late that its end is in another
                '2024-11-01 00:00+00'::timestamptz + '1 microsecond'::interval * floor(
                    CASE
                        WHEN number.progress < 0.5 THEN 335 * 86400e6 * number.progress * 2
                        ELSE 335 * 86400e6 + (30 * 86400e6 - 20e6) * (number.progress - 0.5) * 2
                    END
                ) AS created_at,
                -- the first few users place most of the orders
                format(
                    '00000000-0000-4000-8000-%s',
                    lpad(to_hex(1 + floor($1::integer * ((number.a >> 20 & 65535) / 65536.0::float8) ^ 3)::bigint), 12, '0')
                )::uuid AS user_id,
                ('{BTC/USDT,ETH/USDT,BTC/USDT,SOL/USDT,XRP/USDT,ETH/USDT,DOGE/USDT,ETH/BTC}'::text[])
                    [1 + (number.a >> 36 & 7)] AS symbol,
                CASE number.a >> 39 & 1 WHEN 0 THEN 'BUY' ELSE 'SELL' END::public.order_side AS side,
                ('{LIMIT,LIMIT,LIMIT,LIMIT,MARKET,MARKET,STOP,STOP_LIMIT}'::public.order_type[])
                    [1 + (number.a >> 40 & 7)] AS order_type,
                -- buyers bid below 100, sellers ask above: a book in which nothing crosses
                100 + 0.01 * (1 + (number.a >> 43 & 511)) * (CASE number.a >> 39 & 1 WHEN 0 THEN -1 ELSE 1 END) AS price,
                0.00000002 * (1 + (number.b >> 7 & 67108863)) AS quantity
            FROM (
                SELECT
                    hashes.*,
                    (hashes.n - 1 + 0.5) / coalesce($5::bigint, $4::bigint + $2::bigint - 1)::float8 AS progress
                FROM (
                    SELECT
                        series.n,
                        hashint8extended(series.n, 3 * $3::bigint + 1) AS a,
                        hashint8extended(series.n, 3 * $3::bigint + 2) AS b,
                        hashint8extended(series.n, 3 * $3::bigint + 3) AS c
                    FROM generate_series($4::bigint, $4::bigint + $2::bigint - 1) AS series (n)
                    OFFSET 0
                ) AS hashes
                OFFSET 0
            ) AS number
            OFFSET 0
        ) AS choice
        OFFSET 0
    ) AS fate
    ORDER BY fate.n
    RETURNING order_id, symbol, side, user_id, average_price, filled_quantity, order_type, updated_at
)
INSERT INTO public.trades (
    executed_at, symbol, buy_order_id, sell_order_id, buyer_user_id, seller_user_id,
    price, quantity, buyer_fee, seller_fee, is_buyer_maker
)
SELECT
    filled.updated_at,
    filled.symbol,
    CASE filled.side WHEN 'BUY' THEN filled.order_id ELSE md5(filled.order_id::text)::uuid END,
    CASE filled.side WHEN 'BUY' THEN md5(filled.order_id::text)::uuid ELSE filled.order_id END,
    CASE filled.side WHEN 'BUY' THEN filled.user_id ELSE '00000000-0000-4000-8000-000000000000' END,
    CASE filled.side WHEN 'BUY' THEN '00000000-0000-4000-8000-000000000000' ELSE filled.user_id END,
    filled.average_price,
    filled.filled_quantity,
    filled.filled_quantity * 0.001,
    filled.filled_quantity * filled.average_price * 0.001,
    filled.side = 'BUY' AND filled.order_type <> 'MARKET'
FROM new_orders AS filled
WHERE filled.filled_quantity > 0 AND filled.updated_at >= '2025-10-02 00:00+00'
ORDER BY filled.updated_at, filled.order_id
