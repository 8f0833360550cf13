-- The application's role, its rights, and row level security: each tenant sees its own orders. Runs on either side, as the
-- tables' owner with the right to create roles, after monolith.sql or service.sql; may be run again.
-- The role gets no password here: psql's \password, or your secrets' store, gives it one.
--
-- Decided where the seed of these rights contradicts its own tables:
-- - its policy is on a column tenant_id that orders does not have. The tenant stands in metadata, as tenant_id.
-- - its policy covers orders alone, and every tenant would read the others' history. There is one for the history, too.
-- - a session that has not said whose it is (SET app.tenant_id) sees nothing, and gets no error from the policy.
-- - it grants the use of sequences, of which there are none here.
--
-- Row level security is not forced: the tables' owner sees every row, and a migration that runs as the owner moves every row.
-- All other roles see none until they have a policy of their own.
DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = 'cryptopulse_app') THEN
        CREATE ROLE cryptopulse_app LOGIN;
    END IF;
    EXECUTE pg_catalog.format('GRANT CONNECT ON DATABASE %I TO cryptopulse_app', pg_catalog.current_database());
END;
$$;

GRANT USAGE ON SCHEMA public TO cryptopulse_app;
GRANT SELECT, INSERT, UPDATE, DELETE ON public.orders TO cryptopulse_app;
GRANT SELECT, INSERT ON public.order_status_history TO cryptopulse_app;

ALTER TABLE public.orders ENABLE ROW LEVEL SECURITY;
ALTER TABLE public.order_status_history ENABLE ROW LEVEL SECURITY;

DROP POLICY IF EXISTS orders_tenant_policy ON public.orders;
CREATE POLICY orders_tenant_policy ON public.orders
    FOR ALL TO cryptopulse_app
    USING (metadata ->> 'tenant_id' = pg_catalog.current_setting('app.tenant_id', true));

-- The orders that the subquery sees are the tenant's own, by the policy above. (An order has an order_id, too: the exchange's.)
DROP POLICY IF EXISTS order_status_history_tenant_policy ON public.order_status_history;
CREATE POLICY order_status_history_tenant_policy ON public.order_status_history
    FOR ALL TO cryptopulse_app
    USING (EXISTS (SELECT FROM public.orders AS o WHERE o.id = order_status_history.order_id));
