-- The service's side of the hub orders family, partitioned by the month of created_at: instead of service.sql, once the table has
-- more than 1,000,000 rows or 1 GB, or will have soon (monitoring.sql says when).
-- What differs from service.sql:
-- - The primary key is (id, created_at): PostgreSQL keeps a key unique across partitions only where it holds what they are divided
--   by. That an id is there once is then for whoever makes it; they are random.
-- - created_at may not be NULL. On the monolith it may be; a row without it is refused, so give it one there first.
-- - Partitions are made by a function of this file and not by an extension. It makes each month from January 2025 to three months
--   ahead of today; maintenance.sql goes on with it. Rows of any other time lie in orders_default: no write fails for want of
--   a month. Indexes, trigger and rights are the root's, and come to every partition by themselves.
-- Runs once, in an empty database, with any search_path.

CREATE TABLE public.orders (
    -- Part of the primary key, below
    id UUID NOT NULL,

    -- User Reference
    user_id INTEGER NOT NULL CONSTRAINT check_user_id_not_null CHECK (user_id IS NOT NULL),

    -- Order Details
    symbol VARCHAR(20) NOT NULL,
    order_type VARCHAR(20) NOT NULL CHECK (order_type IN ('MARKET', 'LIMIT', 'STOP_LOSS', 'STOP_LIMIT')),
    order_side VARCHAR(10) NOT NULL CHECK (order_side IN ('BUY', 'SELL')),
    quantity DECIMAL(18,8) NOT NULL CHECK (quantity > 0),
    price DECIMAL(18,8) CHECK (price > 0),

    -- Status and Lifecycle
    status VARCHAR(20) NOT NULL DEFAULT 'PENDING' CHECK (status IN ('PENDING', 'PROCESSING', 'EXECUTED', 'FAILED', 'CANCELLED')),
    created_at TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP,
    updated_at TIMESTAMP DEFAULT CURRENT_TIMESTAMP,
    executed_at TIMESTAMP,

    -- Execution Details
    execution_price DECIMAL(18,8),
    market_price_at_submission DECIMAL(18,8),
    market_data_timestamp TIMESTAMP,

    -- Error Handling and Retry
    failure_reason TEXT,
    retry_count INTEGER DEFAULT 0,

    -- Worker Tracking
    processing_worker_id VARCHAR(50),

    -- External Integration
    external_order_id VARCHAR(100),

    -- A partitioned table's key has to hold what it is partitioned by
    PRIMARY KEY (id, created_at)
) PARTITION BY RANGE (created_at);

-- Single-column indexes
CREATE INDEX idx_orders_user_id ON public.orders(user_id);
CREATE INDEX idx_orders_status ON public.orders(status);
CREATE INDEX idx_orders_created_at ON public.orders(created_at DESC);
CREATE INDEX idx_orders_symbol ON public.orders(symbol);

-- Composite indexes
CREATE INDEX idx_orders_user_status ON public.orders(user_id, status);
CREATE INDEX idx_orders_symbol_status ON public.orders(symbol, status);

-- Auto-update updated_at timestamp
CREATE OR REPLACE FUNCTION public.update_orders_updated_at()
RETURNS TRIGGER AS $$
BEGIN
    NEW.updated_at = CURRENT_TIMESTAMP;
    RETURN NEW;
END;
$$ LANGUAGE plpgsql;

CREATE TRIGGER trigger_orders_updated_at
    BEFORE UPDATE ON public.orders
    FOR EACH ROW
    EXECUTE FUNCTION public.update_orders_updated_at();

-- Makes the months that are not there yet, from one to another; returns how many it has made. Where orders_default holds rows of
-- such a month, they move into it: that keeps other writers of these partitions waiting for as long as it takes, and it is
-- for the side that owns the table alone.
CREATE OR REPLACE FUNCTION public.create_orders_partitions(first_month DATE, last_month DATE)
RETURNS INTEGER AS $$
DECLARE
    begins TIMESTAMP := pg_catalog.date_trunc('month', first_month::timestamp);
    ends TIMESTAMP;
    part TEXT;
    is_in_default BOOLEAN;
    made INTEGER := 0;
BEGIN
    WHILE begins <= last_month LOOP
        ends := begins + '1 month'::interval;
        part := 'orders_' || pg_catalog.to_char(begins, 'YYYY_MM');
        IF pg_catalog.to_regclass('public.' || part) IS NULL THEN
            EXECUTE pg_catalog.format(
                'CREATE TABLE public.%I (LIKE public.orders INCLUDING DEFAULTS INCLUDING CONSTRAINTS)', part
            );
            -- Looked for first: where a fence stands, even a DELETE that finds nothing is refused.
            SELECT EXISTS (SELECT FROM public.orders_default AS o WHERE o.created_at >= begins AND o.created_at < ends)
            INTO is_in_default;
            IF is_in_default THEN
                EXECUTE pg_catalog.format(
                    'WITH moved AS (DELETE FROM public.orders_default WHERE created_at >= %L AND created_at < %L RETURNING *) '
                    'INSERT INTO public.%I SELECT * FROM moved',
                    begins, ends, part
                );
            END IF;
            EXECUTE pg_catalog.format(
                'ALTER TABLE public.orders ATTACH PARTITION public.%I FOR VALUES FROM (%L) TO (%L)', part, begins, ends
            );
            made := made + 1;
        END IF;
        begins := ends;
    END LOOP;
    RETURN made;
END;
$$ LANGUAGE plpgsql;

CREATE TABLE public.orders_default PARTITION OF public.orders DEFAULT;
SELECT public.create_orders_partitions('2025-01-01', (CURRENT_DATE + '3 months'::interval)::date);
