-- Moves orders that are older than 90 days and at their end, with their history, into archive tables beside them.
-- To be run on the side that owns the tables, by their owner, as often as one likes: psql -f archive.sql
-- The seed of this script deletes the orders alone: the history would go with them by the foreign key's cascade, which
-- contradicts the complete audit trail that the same seed promises. Decided: the history is archived, too, and goes first.
BEGIN;

CREATE TABLE IF NOT EXISTS public.orders_archive (LIKE public.orders INCLUDING ALL);
CREATE TABLE IF NOT EXISTS public.order_status_history_archive (LIKE public.order_status_history INCLUDING ALL);

-- Locked, so that nobody adds to an order's history while it goes: whoever does so first has to look at the order, and waits.
-- An order that somebody is at work on waits for the next time.
CREATE TEMPORARY TABLE orders_to_archive ON COMMIT DROP AS
SELECT o.id
FROM public.orders AS o
WHERE o.created_at < NOW() - INTERVAL '90 days'
    AND o.status IN ('FILLED', 'CANCELLED', 'REJECTED', 'EXPIRED')
FOR UPDATE SKIP LOCKED;

INSERT INTO public.orders_archive (
    id, client_id, order_id, market, side, type, size, price, status, filled_size, remaining_size,
    time_in_force, good_til_block, reduce_only, post_only, tx_hash, block_height, gas_used, gas_wanted,
    created_at, updated_at, placed_at, filled_at, cancelled_at, error_message, retry_count, metadata
)
SELECT
    o.id, o.client_id, o.order_id, o.market, o.side, o.type, o.size, o.price, o.status, o.filled_size, o.remaining_size,
    o.time_in_force, o.good_til_block, o.reduce_only, o.post_only, o.tx_hash, o.block_height, o.gas_used, o.gas_wanted,
    o.created_at, o.updated_at, o.placed_at, o.filled_at, o.cancelled_at, o.error_message, o.retry_count, o.metadata
FROM public.orders AS o
JOIN pg_temp.orders_to_archive AS old ON old.id = o.id;

INSERT INTO public.order_status_history_archive (
    id, order_id, old_status, new_status, reason, tx_hash, block_height,
    filled_size, remaining_size, fill_price, created_at, metadata
)
SELECT
    h.id, h.order_id, h.old_status, h.new_status, h.reason, h.tx_hash, h.block_height,
    h.filled_size, h.remaining_size, h.fill_price, h.created_at, h.metadata
FROM public.order_status_history AS h
JOIN pg_temp.orders_to_archive AS old ON old.id = h.order_id;

-- The history goes with its orders, by the foreign key.
DELETE FROM public.orders AS o
USING pg_temp.orders_to_archive AS old
WHERE old.id = o.id;

COMMIT;
