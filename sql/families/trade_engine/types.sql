-- The trade engine's five enums.

CREATE TYPE public.order_side AS ENUM ('BUY', 'SELL');
CREATE TYPE public.order_type AS ENUM ('MARKET', 'LIMIT', 'STOP', 'STOP_LIMIT');
CREATE TYPE public.order_status AS ENUM (
    'PENDING', 'OPEN', 'PARTIALLY_FILLED', 'FILLED', 'CANCELLED', 'REJECTED', 'EXPIRED'
);
CREATE TYPE public.time_in_force AS ENUM ('GTC', 'IOC', 'FOK', 'DAY');
CREATE TYPE public.symbol_status AS ENUM ('ACTIVE', 'SUSPENDED', 'DELISTED');

COMMENT ON TYPE public.order_side IS 'Which way an order trades';
COMMENT ON TYPE public.order_type IS 'How an order finds its price; the two STOP types wait for a price first';
COMMENT ON TYPE public.order_status IS 'Where an order is in its life; the last four are final';
COMMENT ON TYPE public.time_in_force IS 'How long an order stands';
COMMENT ON TYPE public.symbol_status IS 'Whether a pair can be traded';
