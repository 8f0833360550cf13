-- name: generate_orders
-- Adds orders as a brokerage's monolith has them after six months (May to October 2025), and the users who placed them.
-- $1 users: ids 1 to $1; those that are there already stay as they are
-- $2 orders: how many to add; 0 adds the users alone
-- $3 seed: the same seed gives the same rows on any day and machine, in one step or in many
-- $4 first: number of the first order to add, 1 in an empty table. Order n is the same row in every run, so rows can be added
--    later, and several sessions can add a share each (users first: two sessions that add the same users wait for each other)
-- $5 total: orders in the six months; NULL where the ones added now are their last. Numbers beyond it follow at the same pace
WITH new_users AS (
    INSERT INTO public.users (id, email, full_name, created_at)
    SELECT
        person.n,
        pg_catalog.format('user%s@hub.example', person.n),
        pg_catalog.concat_ws(
            ' ',
            ('{Ana,Bruno,Carla,Davi,Elisa,Fabio,Gisele,Hugo,Iara,João,Kátia,Luís,Núbia,Oto,Zoë,Sinéad}'::text[])
                [1 + (person.h & 15)],
            ('{Silva,Santos,Souza,"de Lima",Gonçalves,"O''Brien",Müller,Ito,Costa,Hærem,Rocha,Dias,Moraes,Peña,Kim,"van Dijk"}'::text[])
                [1 + (person.h >> 4 & 15)]
        ),
        '2024-05-01'::timestamp + '1 second'::interval * (person.h >> 8 & 16777215)
    FROM (
        SELECT number.n, pg_catalog.hashint8extended(number.n, $3::bigint) AS h
        FROM pg_catalog.generate_series(1, $1::integer) AS number (n)
        -- not ON CONFLICT, which waits for other sessions even where it has nothing to add
        WHERE NOT EXISTS (SELECT FROM public.users AS present WHERE present.id = number.n)
    ) AS person
)
INSERT INTO public.orders (
    id, user_id, symbol, order_type, order_side, quantity, price,
    status, created_at, updated_at, executed_at,
    execution_price, market_price_at_submission, market_data_timestamp,
    failure_reason, retry_count, processing_worker_id, external_order_id
)
-- Every choice takes its own bits of six hashes of the order's number. OFFSET 0 keeps the steps apart: without it the
-- planner would work each hash out anew wherever it is used.
SELECT
    -- a version 4 uuid: random, so that neither key nor index follows the order of arrival
    pg_catalog.encode(
        pg_catalog.int8send(fate.a & -61441 | 16384)
            || pg_catalog.int8send(fate.b & 4611686018427387903 | '-9223372036854775808'::bigint),
        'hex'
    )::uuid,
    fate.user_id,
    fate.symbol,
    fate.order_type,
    CASE WHEN fate.c & 127 < 70 THEN 'BUY' ELSE 'SELL' END,
    -- shares come in small whole numbers, coins in fractions down to the eighth decimal
    CASE
        WHEN fate.is_coin THEN 0.00000001 * (1 + (fate.d & 67108863) * (1 + (fate.d >> 26 & 31)))
        WHEN fate.d & 7 = 0 THEN 100.0 * (1 + (fate.d >> 3 & 15))
        ELSE 1.0 + (fate.d >> 3 & 31) % (1 + (fate.d >> 8 & 31))
    END,
    fate.unit * fate.limit_units,
    fate.status,
    fate.created_at,
    CASE fate.status
        WHEN 'PENDING' THEN fate.created_at
        WHEN 'EXECUTED' THEN fate.executed_at + '1 microsecond'::interval * (fate.e & 32767)
        ELSE fate.created_at + '1 microsecond'::interval * (fate.delay_us + (fate.e & 1048575))
    END,
    CASE fate.status WHEN 'EXECUTED' THEN fate.executed_at END,
    -- a limit order gets its price or a little better, a market order what the market then gives
    CASE fate.status
        WHEN 'EXECUTED' THEN fate.unit * (
            coalesce(fate.limit_units, fate.market_units)
            + (coalesce(fate.limit_units, fate.market_units) * ((fate.e >> 20 & 1023) - 512)) / 262144
        )
    END,
    -- now and then there was no market data
    CASE WHEN fate.e >> 30 & 63 <> 0 THEN fate.unit * fate.market_units END,
    CASE WHEN fate.e >> 30 & 63 <> 0 THEN fate.created_at - '1 microsecond'::interval * (fate.e >> 36 & 524287) END,
    CASE
        WHEN fate.status = 'FAILED' THEN
            -- half of the reasons are plain, the other half is everything that a text may hold
            CASE fate.f & 31
                WHEN 0 THEN NULL
                WHEN 1 THEN ''
                WHEN 2 THEN ' '
                WHEN 3 THEN 'Broker closed the connection '
                WHEN 4 THEN 'Broker said: "limit exceeded", try again'
                WHEN 5 THEN 'It''s not the user''s account'
                WHEN 6 THEN E'Rejected by C:\\broker\\rules\\new'
                WHEN 7 THEN E'Timeout\n  at broker.submit\n  at worker.run'
                WHEN 8 THEN E'code\t503\tService Unavailable'
                WHEN 9 THEN E'\\N'
                WHEN 10 THEN E'\\.'
                WHEN 11 THEN 'NULL'
                WHEN 12 THEN 'Ordem não aceita: saldo insuficiente (R$ 1.204,10)'
                WHEN 13 THEN '{"code": 4001, "detail": ["price", "tick size"]}'
                WHEN 14 THEN E'carriage\r\nreturn'
                WHEN 15 THEN
                    CASE
                        WHEN fate.f >> 5 & 15 = 0 THEN pg_catalog.repeat('Stack frame, the same again; ', 150)
                        -- letters that one byte cannot hold, where the database can
                        WHEN pg_catalog.getdatabaseencoding() = 'UTF8' THEN
                            'Símbolo desconhecido: ' || pg_catalog.chr((26085 + (fate.f >> 9 & 255))::integer)
                            || pg_catalog.chr((128512 + (fate.f >> 17 & 31))::integer)
                        ELSE 'Símbolo desconhecido'
                    END
                WHEN 16 THEN pg_catalog.format('Price moved %s%% since submission', 1 + (fate.f >> 5 & 15))
                WHEN 17 THEN pg_catalog.format('Broker answered %s after 3 attempts', 500 + (fate.f >> 5 & 3))
                WHEN 18 THEN 'Market closed'
                WHEN 19 THEN 'Symbol halted'
                ELSE pg_catalog.format('Insufficient funds: %s needed', fate.unit * fate.market_units)
            END
        WHEN fate.status = 'CANCELLED' AND fate.f & 3 = 0 THEN ''
        WHEN fate.status = 'CANCELLED' AND fate.f & 3 = 1 THEN 'Cancelled by user'
    END,
    CASE
        WHEN fate.f >> 22 & 511 = 0 THEN NULL
        WHEN fate.status = 'FAILED' THEN (fate.f >> 31 & 3)::integer
        WHEN fate.f >> 33 & 31 = 0 THEN 1
        ELSE 0
    END,
    CASE WHEN fate.status <> 'PENDING' THEN 'order-worker-' || (1 + (fate.f >> 38 & 7)) END,
    CASE
        WHEN fate.status = 'EXECUTED' OR fate.status = 'FAILED' AND fate.f >> 41 & 3 = 0
            THEN 'BRK-' || pg_catalog.to_hex(fate.b & 1099511627775)
    END
FROM (
    SELECT
        market.*,
        CASE
            WHEN market.order_type <> 'MARKET' AND market.is_recent AND market.e >> 55 & 1 = 0 THEN 'PENDING'
            WHEN market.is_recent AND market.f >> 43 & 127 < 6 THEN 'PROCESSING'
            WHEN market.f >> 43 & 127 < 9 THEN 'FAILED'
            WHEN market.f >> 43 & 127 < 20 THEN 'CANCELLED'
            ELSE 'EXECUTED'
        END AS status,
        market.created_at + '1 microsecond'::interval * market.delay_us AS executed_at,
        -- up to three per cent above or below the market
        CASE
            WHEN market.order_type <> 'MARKET'
                THEN market.market_units + market.market_units * ((market.c >> 40 & 4095) - 2048) / 65536
        END AS limit_units
    FROM (
        SELECT
            choice.*,
            (
                '{PETR4,AAPL,VALE3,NVDA,BTC-USD,ITUB4,TSLA,MSFT,ETH-USD,AMZN,BBDC4,GOOGL,META,WEGE3,ABEV3,BRK.B,AMD,NFLX,SOL-USD,MGLU3,JPM,DIS,KO,BAC,XRP-USD,INTC,BABA,UBER,PFE,DOGE-USD,NKE,VOO,SPY,IVVB11,XOM,T,BOVA11,MC.PA,7203.T,HAPV3}'::text[]
            )[choice.symbol_number] AS symbol,
            choice.symbol_number = ANY ('{5,9,19,25,30}'::integer[]) AS is_coin,
            CASE WHEN choice.symbol_number = ANY ('{5,9,19,25,30}'::integer[]) THEN 0.00000001 ELSE 0.01 END AS unit,
            -- the symbol's price half a year ago, in units; since then it has swung, and each order finds it a little elsewhere
            (
                (
                    '{3015,20933,5412,11461,9650000000000,3490,28788,43535,181000000000,18419,1330,16079,54900,4450,1395,53300,9635,113500,14750000000,980,24460,9020,7240,3985,219000000,2010,11925,8175,2430,17400000,5640,50980,55450,38120,10570,2765,13230,48900,271500,3360}'::float8[]
                )[choice.symbol_number] * (1 + 0.15 * pg_catalog.sin(7.0 * choice.progress + choice.symbol_number)
                    + 0.00001 * (choice.d >> 47 & 1023))
            )::bigint AS market_units
        FROM (
            SELECT
                number.*,
                number.progress > 0.95 AS is_recent,
                -- a few users place most of the orders: the first x of them place the cube root of x
                1 + pg_catalog.floor($1::integer * ((number.c >> 7 & 65535) / 65536.0::float8) ^ 3)::integer AS user_id,
                -- and a few symbols get most of them
                1 + pg_catalog.floor(40 * ((number.d >> 31 & 65535) / 65536.0::float8) ^ 2)::integer AS symbol_number,
                CASE
                    WHEN number.c >> 52 & 1023 < 563 THEN 'MARKET'
                    WHEN number.c >> 52 & 1023 < 922 THEN 'LIMIT'
                    WHEN number.c >> 52 & 1023 < 993 THEN 'STOP_LOSS'
                    ELSE 'STOP_LIMIT'
                END AS order_type,
                '2025-05-01'::timestamp + '1 microsecond'::interval * pg_catalog.floor(15897600e6 * number.progress) AS created_at,
                -- a market order takes about a second, the others up to three days, most of them far less
                CASE
                    WHEN number.c >> 52 & 1023 < 563 THEN 80000 + (number.c >> 24 & 1048575)
                    ELSE pg_catalog.floor(259200e6 * ((number.c >> 24 & 65535) / 65536.0::float8) ^ 3)
                END AS delay_us
            FROM (
                SELECT
                    hashes.*,
                    -- how far into the six months, 0 to 1 and on: orders come evenly, each at a moment of its own
                    (hashes.n - 1 + (hashes.f >> 50 & 8191) / 8192.0::float8)
                        / coalesce($5::bigint, $4::bigint + $2::bigint - 1) AS progress
                FROM (
                    SELECT
                        series.n,
                        pg_catalog.hashint8extended(series.n, 6 * $3::bigint + 1) AS a,
                        pg_catalog.hashint8extended(series.n, 6 * $3::bigint + 2) AS b,
                        pg_catalog.hashint8extended(series.n, 6 * $3::bigint + 3) AS c,
                        pg_catalog.hashint8extended(series.n, 6 * $3::bigint + 4) AS d,
                        pg_catalog.hashint8extended(series.n, 6 * $3::bigint + 5) AS e,
                        pg_catalog.hashint8extended(series.n, 6 * $3::bigint + 6) AS f
                    FROM pg_catalog.generate_series($4::bigint, $4::bigint + $2::bigint - 1) AS series (n)
                    OFFSET 0
                ) AS hashes
                OFFSET 0
            ) AS number
            OFFSET 0
        ) AS choice
        OFFSET 0
    ) AS market
    OFFSET 0
) AS fate
