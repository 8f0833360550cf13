-- What a new trade engine begins with: ten pairs, and the rules for partitions. On the monolith alone; the service gets
-- its rows with the move.

INSERT INTO public.symbols (
    symbol, base_asset, quote_asset, price_step, quantity_step, least_quantity, most_quantity, created_at, updated_at
)
SELECT
    pair.base || '/' || pair.quote, pair.base, pair.quote, pair.step, 0.00000001, 0.00001, pair.most,
    '2024-11-01 00:00+00', '2024-11-01 00:00+00'
FROM (
    VALUES
    ('BTC', 'USDT', 0.01, 1000),
    ('ETH', 'USDT', 0.01, 10000),
    ('BNB', 'USDT', 0.01, 10000),
    ('SOL', 'USDT', 0.01, 100000),
    ('XRP', 'USDT', 0.0001, 1000000),
    ('ADA', 'USDT', 0.0001, 1000000),
    ('DOGE', 'USDT', 0.00001, 10000000),
    ('AVAX', 'USDT', 0.01, 100000),
    ('ETH', 'BTC', 0.000001, 10000),
    ('SOL', 'BTC', 0.0000001, 100000)
) AS pair (base, quote, step, most);

INSERT INTO public.partition_retention_config (table_name, created_ahead) VALUES ('orders', 3), ('trades', 7);
