-- The three roles of the service's database, with just these grants. Runs on the service, after service.sql or
-- service_partitioned.sql, as the table's owner with the right to create roles; may be run again.
-- The roles get no passwords here: psql's \password, or your secrets' store, gives them theirs.
--
-- Decided where the seed of these grants contradicts itself:
-- - in one place it gives the application all rights on the database, in another just four on orders. The four it is.
-- - its admin changes the schema, and is given all rights on the database alone: with them one makes schemas, and alters no table
--   of another owner. Those stay the grants. Once the migration is over, ALTER TABLE public.orders OWNER TO
--   hub_order_service_admin gives it the table; before, the owner is whom ordermigrate connects as.
DO $$
DECLARE
    wanted TEXT;
BEGIN
    FOREACH wanted IN ARRAY ARRAY['hub_order_service_user', 'hub_order_service_readonly', 'hub_order_service_admin'] LOOP
        IF NOT EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = wanted) THEN
            EXECUTE pg_catalog.format('CREATE ROLE %I LOGIN', wanted);
        END IF;
    END LOOP;
    EXECUTE pg_catalog.format('GRANT ALL PRIVILEGES ON DATABASE %I TO hub_order_service_admin', pg_catalog.current_database());
END;
$$;

-- The application reads and writes
GRANT SELECT, INSERT, UPDATE, DELETE ON public.orders TO hub_order_service_user;

-- Analytics reads
GRANT SELECT ON public.orders TO hub_order_service_readonly;
