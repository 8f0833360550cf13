-- Option for the service's side of the hub orders family: each order says the e-mail address of its user, so that nobody has to ask
-- the user service for it. ordermigrate_user_email.toml fills it, and keeps it up to date while the monolith is the owner.
-- Runs once, after service.sql, before the migration is prepared.
ALTER TABLE public.orders ADD COLUMN user_email VARCHAR(255);
