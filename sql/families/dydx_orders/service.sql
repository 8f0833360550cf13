-- The service's side of the dydx orders family: just what the monolith has. Nothing in it leads out of the family, so nothing
-- has to be left behind. While the monolith owns the tables, triggers and the foreign key are off here: the history arrives as
-- rows, and an order that came over must not write its history a second time.
-- Where the seed of this schema contradicts itself, what was decided stands beside it.
-- Runs once, in an empty database, with any search_path.

-- Each type once: the seed of this schema has order_status and time_in_force twice.
CREATE TYPE public.order_side AS ENUM ('BUY', 'SELL');

CREATE TYPE public.order_type AS ENUM (
    'MARKET', 'LIMIT', 'STOP_MARKET', 'STOP_LIMIT', 'TAKE_PROFIT_MARKET', 'TAKE_PROFIT_LIMIT'
);

CREATE TYPE public.order_status AS ENUM (
    'PENDING',           -- created, not yet submitted
    'OPEN',              -- submitted and active
    'FILLED',
    'PARTIALLY_FILLED',
    'CANCELLED',         -- by the user
    'REJECTED',          -- by the exchange
    'EXPIRED'            -- its time was over
);

CREATE TYPE public.time_in_force AS ENUM ('GTT', 'FOK', 'IOC');

CREATE TABLE public.orders (
    -- Identifiers. gen_random_uuid() is PostgreSQL's own: no extension has to be there for a key.
    id UUID PRIMARY KEY DEFAULT gen_random_uuid(),
    client_id VARCHAR(255) NOT NULL UNIQUE,
    order_id VARCHAR(255) UNIQUE, -- the exchange's, known once the order is placed

    -- What was ordered
    market VARCHAR(50) NOT NULL,
    side public.order_side NOT NULL,
    type public.order_type NOT NULL,
    size DECIMAL(20, 8) NOT NULL CHECK (size > 0),
    price DECIMAL(20, 8) CHECK (price > 0),

    -- What became of it
    status public.order_status NOT NULL DEFAULT 'PENDING',
    filled_size DECIMAL(20, 8) NOT NULL DEFAULT 0 CHECK (filled_size >= 0),
    remaining_size DECIMAL(20, 8) NOT NULL CHECK (remaining_size >= 0),

    -- How it is to be carried out
    time_in_force public.time_in_force NOT NULL DEFAULT 'GTT',
    good_til_block INTEGER,
    reduce_only BOOLEAN NOT NULL DEFAULT FALSE,
    post_only BOOLEAN NOT NULL DEFAULT FALSE,

    -- The transaction on the chain
    tx_hash VARCHAR(255),
    block_height BIGINT,
    gas_used BIGINT,
    gas_wanted BIGINT,

    -- Times
    created_at TIMESTAMP WITH TIME ZONE NOT NULL DEFAULT NOW(),
    updated_at TIMESTAMP WITH TIME ZONE NOT NULL DEFAULT NOW(),
    placed_at TIMESTAMP WITH TIME ZONE,
    filled_at TIMESTAMP WITH TIME ZONE,
    cancelled_at TIMESTAMP WITH TIME ZONE,

    -- Failures
    error_message TEXT,
    retry_count INTEGER NOT NULL DEFAULT 0,

    metadata JSONB,

    CONSTRAINT valid_filled_size CHECK (filled_size <= size),
    CONSTRAINT valid_remaining_size CHECK (remaining_size = size - filled_size),
    -- The seed's rule allows LIMIT and MARKET alone, and so forbids four of its own six types. Decided: whatever has a limit has
    -- a price; MARKET has none; STOP_MARKET and TAKE_PROFIT_MARKET may have the one that sets them off.
    CONSTRAINT price_required_for_limit CHECK (
        CASE
            WHEN type IN ('LIMIT', 'STOP_LIMIT', 'TAKE_PROFIT_LIMIT') THEN price IS NOT NULL
            WHEN type = 'MARKET' THEN price IS NULL
            ELSE TRUE
        END
    )
);

CREATE TABLE public.order_status_history (
    id UUID PRIMARY KEY DEFAULT gen_random_uuid(),
    order_id UUID NOT NULL REFERENCES public.orders(id) ON DELETE CASCADE, -- our key, not the exchange's

    -- The change
    old_status public.order_status,
    new_status public.order_status NOT NULL,

    -- What came with it
    reason VARCHAR(255),
    tx_hash VARCHAR(255),
    block_height BIGINT,
    filled_size DECIMAL(20, 8),
    remaining_size DECIMAL(20, 8),
    fill_price DECIMAL(20, 8),

    created_at TIMESTAMP WITH TIME ZONE NOT NULL DEFAULT NOW(),
    metadata JSONB
);

-- The first two double the indexes of their unique constraints. They are the system's own, names included, and stay.
CREATE INDEX idx_orders_client_id ON public.orders(client_id);
CREATE INDEX idx_orders_order_id ON public.orders(order_id) WHERE order_id IS NOT NULL;
CREATE INDEX idx_orders_status ON public.orders(status);
CREATE INDEX idx_orders_market ON public.orders(market);
CREATE INDEX idx_orders_created_at ON public.orders(created_at);
CREATE INDEX idx_orders_updated_at ON public.orders(updated_at);

-- Composite indexes
CREATE INDEX idx_orders_market_status ON public.orders(market, status);
CREATE INDEX idx_orders_status_created_at ON public.orders(status, created_at);
CREATE INDEX idx_orders_market_side_status ON public.orders(market, side, status);

-- Orders that are still at work
CREATE INDEX idx_orders_active ON public.orders(market, created_at)
    WHERE status IN ('PENDING', 'OPEN', 'PARTIALLY_FILLED');

CREATE INDEX idx_order_status_history_order_id ON public.order_status_history(order_id);
CREATE INDEX idx_order_status_history_created_at ON public.order_status_history(created_at);
CREATE INDEX idx_order_status_history_new_status ON public.order_status_history(new_status);

CREATE OR REPLACE FUNCTION public.update_updated_at_column()
RETURNS TRIGGER AS $$
BEGIN
    NEW.updated_at = NOW();
    RETURN NEW;
END;
$$ LANGUAGE plpgsql;

CREATE TRIGGER update_orders_updated_at
    BEFORE UPDATE ON public.orders
    FOR EACH ROW
    EXECUTE FUNCTION public.update_updated_at_column();

-- Writes down each change of an order's status; the status that an order begins with is the order's own and is no change.
CREATE OR REPLACE FUNCTION public.create_order_status_history()
RETURNS TRIGGER AS $$
BEGIN
    IF OLD.status IS DISTINCT FROM NEW.status THEN
        INSERT INTO public.order_status_history (
            order_id, old_status, new_status, filled_size, remaining_size, tx_hash, block_height, reason
        ) VALUES (
            NEW.id, OLD.status, NEW.status, NEW.filled_size, NEW.remaining_size, NEW.tx_hash, NEW.block_height,
            CASE NEW.status
                WHEN 'FILLED' THEN 'Order completely filled'
                WHEN 'PARTIALLY_FILLED' THEN 'Order partially filled'
                WHEN 'CANCELLED' THEN 'Order cancelled'
                WHEN 'REJECTED' THEN 'Order rejected'
                ELSE 'Status updated'
            END
        );
    END IF;
    RETURN NEW;
END;
$$ LANGUAGE plpgsql;

CREATE TRIGGER create_order_status_history_trigger
    AFTER UPDATE ON public.orders
    FOR EACH ROW
    EXECUTE FUNCTION public.create_order_status_history();
