-- orders by month and trades by day, and the three functions that make and maintain their partitions.
-- Bounds are midnights in UTC, whatever the session's time zone.

ALTER TABLE public.orders RENAME TO orders_shape;
CREATE TABLE public.orders (
    LIKE public.orders_shape INCLUDING ALL,
    PRIMARY KEY (order_id, created_at)
) PARTITION BY RANGE (created_at);
DROP TABLE public.orders_shape;

ALTER TABLE public.trades RENAME TO trades_shape;
CREATE TABLE public.trades (
    LIKE public.trades_shape INCLUDING ALL,
    PRIMARY KEY (trade_id, executed_at)
) PARTITION BY RANGE (executed_at);
ALTER SEQUENCE public.trades_trade_id_seq OWNED BY public.trades.trade_id;
DROP TABLE public.trades_shape;

-- One index has to differ as well. Without partitions a user's own number for an order is unique; with them only together
-- with created_at: an order that is sent again has to come with its own time, and the rest is for the application to see to.
CREATE UNIQUE INDEX idx_orders_client_order_id ON public.orders (user_id, client_order_id, created_at)
WHERE client_order_id IS NOT NULL;

-- Makes the partition of a month, orders_YYYY_MM; returns its name, NULL where it is there already.
CREATE FUNCTION public.create_orders_partition(month DATE) RETURNS TEXT LANGUAGE plpgsql AS $$
DECLARE
    first_day TIMESTAMP := date_trunc('month', month::timestamp);
    partition_name TEXT := 'orders_' || to_char(first_day, 'YYYY_MM');
BEGIN
    IF to_regclass('public.' || partition_name) IS NOT NULL THEN
        RETURN NULL;
    END IF;
    EXECUTE format(
        'CREATE TABLE public.%I PARTITION OF public.orders FOR VALUES FROM (%L) TO (%L)',
        partition_name, first_day AT TIME ZONE 'UTC', (first_day + interval '1 month') AT TIME ZONE 'UTC'
    );
    RETURN partition_name;
END
$$;

-- Makes the partition of a day, trades_YYYY_MM_DD; returns its name, NULL where it is there already.
CREATE FUNCTION public.create_trades_partition(day DATE) RETURNS TEXT LANGUAGE plpgsql AS $$
DECLARE
    midnight TIMESTAMP := day::timestamp;
    partition_name TEXT := 'trades_' || to_char(midnight, 'YYYY_MM_DD');
BEGIN
    IF to_regclass('public.' || partition_name) IS NOT NULL THEN
        RETURN NULL;
    END IF;
    EXECUTE format(
        'CREATE TABLE public.%I PARTITION OF public.trades FOR VALUES FROM (%L) TO (%L)',
        partition_name, midnight AT TIME ZONE 'UTC', (midnight + interval '1 day') AT TIME ZONE 'UTC'
    );
    RETURN partition_name;
END
$$;

-- Makes the partitions that partition_retention_config wants ahead of a day, and drops those that are older than it keeps,
-- where it says that they may go; returns what was done. To be run every day. Only partitions that are named after their
-- month or day are ever dropped.
CREATE FUNCTION public.maintain_partitions(as_of DATE DEFAULT CURRENT_DATE)
RETURNS TABLE (action TEXT, partition_name TEXT) LANGUAGE plpgsql AS $$
DECLARE
    rule RECORD;
    expired RECORD;
    made TEXT;
BEGIN
    FOR rule IN SELECT c.* FROM public.partition_retention_config AS c ORDER BY c.table_name LOOP
        FOR step IN 0 .. rule.created_ahead LOOP
            IF rule.table_name = 'orders' THEN
                made := public.create_orders_partition((as_of + step * interval '1 month')::date);
            ELSE
                made := public.create_trades_partition((as_of + step * interval '1 day')::date);
            END IF;
            IF made IS NOT NULL THEN
                action := 'created';
                partition_name := made;
                RETURN NEXT;
            END IF;
        END LOOP;
        FOR expired IN
            SELECT c.relname AS name
            FROM pg_catalog.pg_inherits AS h
            INNER JOIN pg_catalog.pg_class AS c ON c.oid = h.inhrelid
            WHERE
                rule.drops_expired
                AND h.inhparent = format('public.%I', rule.table_name)::regclass
                AND c.relname ~ format('^%s_\d{4}_\d{2}(_\d{2})?$', rule.table_name)
                AND substr(c.relname, length(rule.table_name) + 2) < to_char(
                    as_of - rule.retention_months * interval '1 month',
                    CASE rule.table_name WHEN 'orders' THEN 'YYYY_MM' ELSE 'YYYY_MM_DD' END
                )
            ORDER BY c.relname
        LOOP
            EXECUTE format('DROP TABLE public.%I', expired.name);
            action := 'dropped';
            partition_name := expired.name;
            RETURN NEXT;
        END LOOP;
    END LOOP;
END
$$;
