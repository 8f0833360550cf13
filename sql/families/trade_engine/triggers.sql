-- The seven triggers and what they run. Each fires for whatever writes a row, into a partition directly, too.

CREATE FUNCTION public.set_updated_at() RETURNS TRIGGER LANGUAGE plpgsql AS $$
BEGIN
    NEW.updated_at := now();
    RETURN NEW;
END
$$;

CREATE TRIGGER symbols_updated_at BEFORE UPDATE ON public.symbols
FOR EACH ROW EXECUTE FUNCTION public.set_updated_at();
CREATE TRIGGER orders_updated_at BEFORE UPDATE ON public.orders
FOR EACH ROW EXECUTE FUNCTION public.set_updated_at();

CREATE FUNCTION public.set_order_filled_at() RETURNS TRIGGER LANGUAGE plpgsql AS $$
BEGIN
    NEW.filled_at := coalesce(NEW.filled_at, now());
    RETURN NEW;
END
$$;

CREATE TRIGGER orders_filled_at BEFORE INSERT OR UPDATE ON public.orders
FOR EACH ROW WHEN (NEW.status = 'FILLED') EXECUTE FUNCTION public.set_order_filled_at();

CREATE FUNCTION public.set_order_cancelled_at() RETURNS TRIGGER LANGUAGE plpgsql AS $$
BEGIN
    NEW.cancelled_at := coalesce(NEW.cancelled_at, now());
    RETURN NEW;
END
$$;

CREATE TRIGGER orders_cancelled_at BEFORE INSERT OR UPDATE ON public.orders
FOR EACH ROW WHEN (NEW.status = 'CANCELLED') EXECUTE FUNCTION public.set_order_cancelled_at();

-- What is final stays as it is; what was filled in part was open, and is never merely open again.
CREATE FUNCTION public.require_status_transition() RETURNS TRIGGER LANGUAGE plpgsql AS $$
BEGIN
    IF OLD.status IN ('FILLED', 'CANCELLED', 'REJECTED', 'EXPIRED')
        OR NEW.status = 'PENDING'
        OR OLD.status = 'PARTIALLY_FILLED' AND NEW.status IN ('OPEN', 'REJECTED')
    THEN
        RAISE EXCEPTION USING
            ERRCODE = 'check_violation',
            MESSAGE = format('order %s cannot go from %s to %s', OLD.order_id, OLD.status, NEW.status);
    END IF;
    RETURN NEW;
END
$$;

CREATE TRIGGER orders_status_transition BEFORE UPDATE OF status ON public.orders
FOR EACH ROW WHEN (OLD.status IS DISTINCT FROM NEW.status) EXECUTE FUNCTION public.require_status_transition();

CREATE FUNCTION public.add_to_watchlist() RETURNS TRIGGER LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO public.stop_orders_watchlist (order_id, user_id, symbol, side, stop_price)
    VALUES (NEW.order_id, NEW.user_id, NEW.symbol, NEW.side, NEW.stop_price)
    ON CONFLICT (order_id) DO UPDATE SET stop_price = excluded.stop_price;
    RETURN NULL;
END
$$;

CREATE TRIGGER orders_watchlist_add AFTER INSERT OR UPDATE OF status, stop_price ON public.orders
FOR EACH ROW WHEN (NEW.order_type IN ('STOP', 'STOP_LIMIT') AND NEW.status = 'PENDING')
EXECUTE FUNCTION public.add_to_watchlist();

CREATE FUNCTION public.remove_from_watchlist() RETURNS TRIGGER LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'DELETE' OR NEW.status <> 'PENDING' THEN
        DELETE FROM public.stop_orders_watchlist AS w WHERE w.order_id = OLD.order_id;
    END IF;
    RETURN NULL;
END
$$;

CREATE TRIGGER orders_watchlist_remove AFTER UPDATE OR DELETE ON public.orders
FOR EACH ROW WHEN (OLD.order_type IN ('STOP', 'STOP_LIMIT') AND OLD.status = 'PENDING')
EXECUTE FUNCTION public.remove_from_watchlist();
