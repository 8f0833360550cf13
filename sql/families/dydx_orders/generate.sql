-- name: generate_orders
-- Adds orders as a trading system has them after six months (May to October 2025), each with the history of its status, as
-- the trigger would have written it.
-- $1 orders: how many to add
-- $2 seed: the same seed gives the same rows on any day and machine, in one step or in many
-- $3 first: number of the first order to add, 1 in an empty table. Order n is the same row in every run
-- $4 total: orders in the six months; NULL where the ones added now are their last. Numbers beyond it follow at the same pace
WITH fate AS MATERIALIZED (
    -- Every choice takes its own bits of five hashes of the order's number. OFFSET 0 keeps the steps apart: without it the
    -- planner would work each hash out anew wherever it is used.
    SELECT
        ending.*,
        -- a version 4 uuid: random, so that neither key nor index follows the order of arrival
        pg_catalog.encode(
            pg_catalog.int8send(ending.a & -61441 | 16384)
                || pg_catalog.int8send(ending.b & 4611686018427387903 | '-9223372036854775808'::bigint),
            'hex'
        )::uuid AS id,
        pg_catalog.round(ending.size * ending.part_share / 1024, 8) AS part_size,
        CASE ending.status
            WHEN 'FILLED' THEN ending.size
            ELSE pg_catalog.round(ending.size * ending.part_share / 1024, 8)
        END AS filled_size,
        CASE
            WHEN ending.status NOT IN ('PENDING', 'REJECTED')
                THEN pg_catalog.upper(pg_catalog.encode(pg_catalog.sha256(pg_catalog.int8send(ending.d)), 'hex'))
        END AS tx_hash,
        CASE WHEN ending.status NOT IN ('PENDING', 'REJECTED') THEN 20000000 + ending.n END AS block_height,
        ending.created_at + '1 microsecond'::interval * ending.placed_us AS placed_at,
        ending.created_at + '1 microsecond'::interval * (ending.placed_us + ending.part_us) AS part_at,
        ending.created_at + '1 microsecond'::interval * (ending.placed_us + ending.part_us + ending.end_us) AS ended_at
    FROM (
        SELECT
            choice.*,
            -- up to three per cent above or below the market
            pg_catalog.round(choice.base_price * (1 + ((choice.d & 4095) - 2048) / 65536.0), 8) AS some_price,
            (1 + (choice.d >> 12 & 1048575)) * 0.001 AS size,
            -- of 1,024 parts, how many were filled before the end; 0 where that was no step of its own
            CASE
                WHEN choice.status = 'PARTIALLY_FILLED' OR choice.status IN ('FILLED', 'CANCELLED', 'EXPIRED') AND choice.e >> 20 & 3 = 0
                    THEN 1 + (choice.e >> 22 & 1023) % 1023
                ELSE 0
            END AS part_share,
            50000 + (choice.a & 1048575) AS placed_us,
            1 + (choice.a >> 20 & 268435455) AS part_us,
            1 + (choice.a >> 48 & 32767) * 1000 AS end_us
        FROM (
            SELECT
                number.*,
                (
                    '{BTC-USD,ETH-USD,SOL-USD,AVAX-USD,DOGE-USD,LINK-USD,MATIC-USD,ADA-USD,XRP-USD,DOT-USD,ATOM-USD,UNI-USD}'::text[]
                )[number.market_number] AS market,
                (
                    '{96500.5,2710.25,148.33,24.125,0.1743,13.905,0.4321,0.6187,2.1904,5.55,4.787,7.02}'::numeric[]
                )[number.market_number] AS base_price,
                CASE
                    WHEN number.is_recent AND number.type <> 'MARKET' AND number.e & 1 = 0
                        THEN ('{PENDING,OPEN,OPEN,PARTIALLY_FILLED}'::text[])[1 + (number.e >> 1 & 3)]
                    WHEN number.e >> 3 & 127 < 4 THEN 'REJECTED'
                    WHEN number.e >> 3 & 127 < 16 THEN 'CANCELLED'
                    WHEN number.e >> 3 & 127 < 22 AND number.type <> 'MARKET' THEN 'EXPIRED'
                    ELSE 'FILLED'
                END AS status
            FROM (
                SELECT
                    hashes.*,
                    hashes.progress > 0.95 AS is_recent,
                    '2025-05-01 00:00:00+00'::timestamptz
                        + '1 microsecond'::interval * pg_catalog.floor(15897600e6 * hashes.progress) AS created_at,
                    -- a few markets get most of the orders
                    1 + pg_catalog.floor(12 * ((hashes.c >> 31 & 65535) / 65536.0::float8) ^ 2)::integer AS market_number,
                    CASE
                        WHEN hashes.c >> 48 & 1023 < 450 THEN 'MARKET'
                        WHEN hashes.c >> 48 & 1023 < 850 THEN 'LIMIT'
                        WHEN hashes.c >> 48 & 1023 < 910 THEN 'STOP_MARKET'
                        WHEN hashes.c >> 48 & 1023 < 955 THEN 'STOP_LIMIT'
                        WHEN hashes.c >> 48 & 1023 < 995 THEN 'TAKE_PROFIT_MARKET'
                        ELSE 'TAKE_PROFIT_LIMIT'
                    END AS type
                FROM (
                    SELECT
                        series.n,
                        pg_catalog.hashint8extended(series.n, 7 * $2::bigint + 1) AS a,
                        pg_catalog.hashint8extended(series.n, 7 * $2::bigint + 2) AS b,
                        pg_catalog.hashint8extended(series.n, 7 * $2::bigint + 3) AS c,
                        pg_catalog.hashint8extended(series.n, 7 * $2::bigint + 4) AS d,
                        pg_catalog.hashint8extended(series.n, 7 * $2::bigint + 5) AS e,
                        -- how far into the six months, 0 to 1 and on: orders come evenly, each at a moment of its own
                        (
                            series.n - 1
                            + (pg_catalog.hashint8extended(series.n, 7 * $2::bigint + 5) >> 50 & 8191) / 8192.0::float8
                        ) / coalesce($4::bigint, $3::bigint + $1::bigint - 1) AS progress
                    FROM pg_catalog.generate_series($3::bigint, $3::bigint + $1::bigint - 1) AS series (n)
                    OFFSET 0
                ) AS hashes
                OFFSET 0
            ) AS number
            OFFSET 0
        ) AS choice
        OFFSET 0
    ) AS ending
),

new_orders AS (
    INSERT INTO public.orders (
        id, client_id, order_id, market, side, type, size, price,
        status, filled_size, remaining_size,
        time_in_force, good_til_block, reduce_only, post_only,
        tx_hash, block_height, gas_used, gas_wanted,
        created_at, updated_at, placed_at, filled_at, cancelled_at,
        error_message, retry_count, metadata
    )
    SELECT
        fate.id,
        pg_catalog.format('desk-%s-%s', $2::bigint, fate.n),
        CASE WHEN fate.tx_hash IS NOT NULL THEN pg_catalog.format('dydx-%s-%s', pg_catalog.to_hex(fate.b), fate.n) END,
        fate.market,
        CASE WHEN fate.c & 127 < 70 THEN 'BUY' ELSE 'SELL' END::public.order_side,
        fate.type::public.order_type,
        fate.size,
        CASE
            WHEN fate.type IN ('LIMIT', 'STOP_LIMIT', 'TAKE_PROFIT_LIMIT') THEN fate.some_price
            WHEN fate.type <> 'MARKET' AND fate.c >> 7 & 3 <> 0 THEN fate.some_price
        END,
        fate.status::public.order_status,
        fate.filled_size,
        fate.size - fate.filled_size,
        CASE WHEN fate.type <> 'MARKET' THEN 'GTT' WHEN fate.c >> 9 & 3 = 0 THEN 'FOK' ELSE 'IOC' END::public.time_in_force,
        CASE WHEN fate.type <> 'MARKET' THEN (20000020 + fate.n + (fate.c >> 11 & 1023))::integer END,
        fate.type NOT IN ('MARKET', 'LIMIT') AND fate.c >> 21 & 3 <> 0,
        fate.type = 'LIMIT' AND fate.c >> 23 & 3 = 0,
        fate.tx_hash,
        fate.block_height,
        CASE WHEN fate.tx_hash IS NOT NULL THEN 90000 + (fate.d >> 32 & 65535) END,
        CASE WHEN fate.tx_hash IS NOT NULL THEN 160000 + (fate.d >> 32 & 65535) END,
        fate.created_at,
        CASE
            WHEN fate.status = 'PENDING' THEN fate.created_at
            WHEN fate.status IN ('OPEN', 'REJECTED') THEN fate.placed_at
            WHEN fate.status = 'PARTIALLY_FILLED' THEN fate.part_at
            ELSE fate.ended_at
        END,
        CASE WHEN fate.tx_hash IS NOT NULL THEN fate.placed_at END,
        CASE fate.status WHEN 'FILLED' THEN fate.ended_at END,
        CASE fate.status WHEN 'CANCELLED' THEN fate.ended_at END,
        -- plain reasons, and everything that a text may hold
        CASE
            WHEN fate.status = 'REJECTED' THEN
                CASE fate.e >> 32 & 7
                    WHEN 0 THEN NULL
                    WHEN 1 THEN ''
                    WHEN 2 THEN E'\\N'
                    WHEN 3 THEN E'broadcast tx:\n\tcode=19: "tx already in mempool"\r\n'
                    WHEN 4 THEN 'It''s below the margin '
                    WHEN 5 THEN E'C:\\node\\logs\\new'
                    ELSE pg_catalog.format('Stateful order %s would cross the book', fate.n)
                END
        END,
        CASE WHEN fate.status = 'REJECTED' THEN (fate.e >> 35 & 3)::integer ELSE 0 END,
        -- whose order it is, and all that JSON may hold; SQL's NULL is not JSON's null
        CASE fate.e >> 37 & 15
            WHEN 0 THEN NULL
            WHEN 1 THEN 'null'
            WHEN 2 THEN '{}'
            WHEN 3 THEN '{"tenant_id": "alpha", "tags": [], "note": "a \"quote\" and a \\\\ and \u0041"}'
            WHEN 4 THEN '{"tenant_id": "beta", "limits": {"max": 1e40, "min": 0.10, "none": null}}'
            ELSE pg_catalog.format(
                '{"tenant_id": "%s", "strategy": "grid-%s", "attempt": %s}',
                ('{alpha,beta,gamma,delta}'::text[])[1 + (fate.e >> 41 & 3)],
                fate.e >> 43 & 31,
                fate.e >> 48 & 3
            )
        END::jsonb
    FROM fate
)

INSERT INTO public.order_status_history (
    id, order_id, old_status, new_status, reason, tx_hash, block_height,
    filled_size, remaining_size, fill_price, created_at, metadata
)
SELECT
    pg_catalog.encode(
        pg_catalog.int8send(pg_catalog.hashint8extended(4 * fate.n + step.number, 7 * $2::bigint + 6) & -61441 | 16384)
            || pg_catalog.int8send(
                pg_catalog.hashint8extended(4 * fate.n + step.number, 7 * $2::bigint + 7)
                    & 4611686018427387903 | '-9223372036854775808'::bigint
            ),
        'hex'
    )::uuid,
    fate.id,
    step.old_status::public.order_status,
    step.new_status::public.order_status,
    CASE step.new_status
        WHEN 'FILLED' THEN 'Order completely filled'
        WHEN 'PARTIALLY_FILLED' THEN 'Order partially filled'
        WHEN 'CANCELLED' THEN 'Order cancelled'
        WHEN 'REJECTED' THEN 'Order rejected'
        ELSE 'Status updated'
    END,
    fate.tx_hash,
    fate.block_height,
    step.filled_size,
    fate.size - step.filled_size,
    CASE WHEN step.new_status IN ('FILLED', 'PARTIALLY_FILLED') THEN fate.some_price END,
    step.created_at,
    CASE WHEN step.new_status = 'CANCELLED' AND fate.e >> 50 & 1 = 0 THEN '{"by": "user"}'::jsonb END
FROM fate
CROSS JOIN LATERAL (
    VALUES
    (
        1,
        fate.status <> 'PENDING',
        'PENDING',
        CASE fate.status WHEN 'REJECTED' THEN 'REJECTED' ELSE 'OPEN' END,
        0::numeric,
        fate.placed_at
    ),
    (2, fate.part_share > 0, 'OPEN', 'PARTIALLY_FILLED', fate.part_size, fate.part_at),
    (
        3,
        fate.status IN ('FILLED', 'CANCELLED', 'EXPIRED'),
        CASE WHEN fate.part_share > 0 THEN 'PARTIALLY_FILLED' ELSE 'OPEN' END,
        fate.status,
        fate.filled_size,
        fate.ended_at
    )
) AS step (number, is_taken, old_status, new_status, filled_size, created_at)
WHERE step.is_taken
