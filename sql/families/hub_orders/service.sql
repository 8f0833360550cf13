-- The service's side of the hub orders family: the monolith's orders table, without its users.
-- One thing differs: no foreign key leads out of this database. That a user exists is for the user service to say;
-- that an order has a user is still for this table to say.
-- Runs once, in an empty database, with any search_path.

CREATE TABLE public.orders (
    -- Primary Key
    id UUID PRIMARY KEY,

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
    created_at TIMESTAMP DEFAULT CURRENT_TIMESTAMP,
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
    external_order_id VARCHAR(100)
);

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
