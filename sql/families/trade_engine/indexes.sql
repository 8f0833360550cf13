-- The trade engine's indexes, but for idx_orders_client_order_id, which depends on partitioning; and its foreign keys.

CREATE INDEX idx_orders_matching ON public.orders (symbol, side, price, created_at)
WHERE status IN ('OPEN', 'PARTIALLY_FILLED') AND order_type IN ('LIMIT', 'STOP_LIMIT');
CREATE INDEX idx_orders_active ON public.orders (symbol, side, price) WHERE status IN ('OPEN', 'PARTIALLY_FILLED');
CREATE INDEX idx_orders_user_created ON public.orders (user_id, created_at DESC);
CREATE INDEX idx_orders_user_symbol_status ON public.orders (user_id, symbol, status);
CREATE INDEX idx_orders_symbol_created ON public.orders (symbol, created_at DESC);
CREATE INDEX idx_orders_status_created ON public.orders (status, created_at DESC);
CREATE INDEX idx_orders_stop_monitoring ON public.orders (symbol, stop_price)
WHERE status = 'PENDING' AND stop_price IS NOT NULL;

CREATE INDEX idx_trades_symbol_time ON public.trades (symbol, executed_at DESC);
CREATE INDEX idx_trades_buyer ON public.trades (buyer_user_id, executed_at DESC);
CREATE INDEX idx_trades_seller ON public.trades (seller_user_id, executed_at DESC);
CREATE INDEX idx_trades_buy_order ON public.trades (buy_order_id);
CREATE INDEX idx_trades_sell_order ON public.trades (sell_order_id);
CREATE INDEX idx_trades_executed_at ON public.trades (executed_at DESC);

CREATE UNIQUE INDEX idx_symbols_assets ON public.symbols (base_asset, quote_asset);
CREATE INDEX idx_symbols_status ON public.symbols (status);
CREATE INDEX idx_symbols_quote_active ON public.symbols (quote_asset) WHERE status = 'ACTIVE';

ALTER TABLE public.orders ADD CONSTRAINT an_order_is_for_a_known_symbol
FOREIGN KEY (symbol) REFERENCES public.symbols (symbol);
ALTER TABLE public.trades ADD CONSTRAINT a_trade_is_in_a_known_symbol
FOREIGN KEY (symbol) REFERENCES public.symbols (symbol);
ALTER TABLE public.order_book_snapshots ADD CONSTRAINT a_snapshot_is_of_a_known_symbol
FOREIGN KEY (symbol) REFERENCES public.symbols (symbol);
