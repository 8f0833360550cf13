"""Preflight: every kind of finding is found, goes away when mended, and nothing is changed."""

# ruff: noqa: S608  the statements are the test's own, on tables of its own

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Iterator, Mapping, Sequence

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from ordermigrate import checks_servers, surveying
from ordermigrate.checks import CHECKS
from ordermigrate.errors import Refused
from ordermigrate.findings import Severity
from ordermigrate.model import Side
from ordermigrate.survey import Survey
from tests.fix_orders import CliResult
from tests.fix_pairs import MakePair, MakeRole, Pair
from tests.fix_postgres import MakeDatabase, StartServer, execute
from tests.integration import ground

BASE = """
CREATE TYPE public.mood AS ENUM ('new', 'done');
CREATE TYPE public.colour AS ENUM ('red');
CREATE TABLE public.users (id integer PRIMARY KEY);
CREATE TABLE public.audit (id integer);
CREATE TABLE public.orders (
    id integer PRIMARY KEY, user_id integer, total integer NOT NULL, word text, mood public.mood
);
CREATE TABLE public.lines (id integer PRIMARY KEY, order_id integer);
CREATE TABLE public.loose (id integer PRIMARY KEY, word text);
CREATE TABLE public.gone (id integer PRIMARY KEY, shade public.colour);
CREATE TABLE public.hidden (id integer PRIMARY KEY);
"""
NAMES = ("orders", "lines", "loose", "gone", "hidden")
TABLES: Sequence[Mapping[str, object]] = [{"name": f"public.{name}"} for name in NAMES]
ODD_TABLES = [
    {"name": "public.orders", "where": "total > 0", "columns": {"word": "lower(nothing)"}},
    *TABLES[1:],
]
NOTHING = "SELECT 1"
# The keys that it brings about; a statement on the monolith, one on the service; and their ends.
BREAKS: list[tuple[str, str, str, str, str]] = [
    (
        "foreign-keys-out cascades-in",
        (
            "ALTER TABLE public.orders ADD CONSTRAINT to_users "
            "FOREIGN KEY (user_id) REFERENCES public.users ON DELETE CASCADE"
        ),
        NOTHING,
        "ALTER TABLE public.orders DROP CONSTRAINT to_users",
        NOTHING,
    ),
    (
        "foreign-keys-in cascades-out",
        (
            "CREATE TABLE public.invoices "
            "(order_id integer CONSTRAINT to_orders REFERENCES public.orders ON DELETE SET NULL)"
        ),
        NOTHING,
        "DROP TABLE public.invoices",
        NOTHING,
    ),
    (
        "foreign-keys-within foreign-key-cycles deferrable-constraints",
        (
            "ALTER TABLE public.lines ADD CONSTRAINT to_orders "
            "FOREIGN KEY (order_id) REFERENCES public.orders DEFERRABLE; "
            "ALTER TABLE public.orders ADD CONSTRAINT to_lines "
            "FOREIGN KEY (user_id) REFERENCES public.lines"
        ),
        NOTHING,
        (
            "ALTER TABLE public.lines DROP CONSTRAINT to_orders; "
            "ALTER TABLE public.orders DROP CONSTRAINT to_lines"
        ),
        NOTHING,
    ),
    (
        "triggers triggers-out",
        (
            "CREATE FUNCTION public.keep_note(integer) RETURNS void LANGUAGE sql AS "
            "'INSERT INTO public.audit VALUES ($1)'; "
            "CREATE FUNCTION public.note_order() RETURNS trigger LANGUAGE plpgsql AS "
            "'BEGIN PERFORM public.keep_note(NEW.id); RETURN NEW; END'; "
            "CREATE TRIGGER note AFTER INSERT ON public.orders "
            "FOR EACH ROW EXECUTE FUNCTION public.note_order()"
        ),
        NOTHING,
        "DROP TRIGGER note ON public.orders; DROP FUNCTION public.note_order, public.keep_note",
        NOTHING,
    ),
    (
        "triggers triggers-unread",
        (
            "CREATE FUNCTION public.say() RETURNS trigger LANGUAGE plpgsql AS "
            "'BEGIN EXECUTE TG_ARGV[0]; RETURN NEW; END'; "
            "CREATE TRIGGER say AFTER INSERT ON public.lines "
            "FOR EACH ROW EXECUTE FUNCTION public.say('SELECT 1')"
        ),
        NOTHING,
        "DROP TRIGGER say ON public.lines; DROP FUNCTION public.say",
        NOTHING,
    ),
    (
        "triggers-in",
        (
            "CREATE FUNCTION public.forget_user() RETURNS trigger LANGUAGE plpgsql AS "
            "'BEGIN DELETE FROM orders WHERE user_id = OLD.id; RETURN OLD; END'; "
            "CREATE TRIGGER forget AFTER DELETE ON public.users "
            "FOR EACH ROW EXECUTE FUNCTION public.forget_user()"
        ),
        NOTHING,
        "DROP TRIGGER forget ON public.users; DROP FUNCTION public.forget_user",
        NOTHING,
    ),
    (
        "views functions",
        (
            "CREATE VIEW public.big AS SELECT id FROM public.orders WHERE total > 100; "
            "CREATE MATERIALIZED VIEW public.sums AS SELECT sum(total) AS s FROM public.orders; "
            "CREATE FUNCTION public.count_orders() RETURNS bigint LANGUAGE sql AS "
            "'SELECT count(*) FROM public.orders'"
        ),
        NOTHING,
        (
            "DROP VIEW public.big; DROP MATERIALIZED VIEW public.sums; "
            "DROP FUNCTION public.count_orders"
        ),
        NOTHING,
    ),
    (
        "rules service-rules",
        "CREATE RULE keep AS ON DELETE TO public.lines DO INSTEAD NOTHING",
        "CREATE RULE keep AS ON DELETE TO public.lines DO INSTEAD NOTHING",
        "DROP RULE keep ON public.lines",
        "DROP RULE keep ON public.lines",
    ),
    (
        "row-security",
        (
            "ALTER TABLE public.lines ENABLE ROW LEVEL SECURITY; "
            "CREATE POLICY ours ON public.lines USING (true)"
        ),
        NOTHING,
        "DROP POLICY ours ON public.lines; ALTER TABLE public.lines DISABLE ROW LEVEL SECURITY",
        NOTHING,
    ),
    (
        "publications",
        "CREATE PUBLICATION ours FOR TABLE public.orders",
        NOTHING,
        "DROP PUBLICATION ours",
        NOTHING,
    ),
    (
        "hypertables",
        (
            "CREATE SCHEMA _timescaledb_catalog; "
            "CREATE TABLE _timescaledb_catalog.hypertable (schema_name name, table_name name); "
            "INSERT INTO _timescaledb_catalog.hypertable VALUES ('public', 'lines')"
        ),
        NOTHING,
        "DROP SCHEMA _timescaledb_catalog CASCADE",
        NOTHING,
    ),
    (
        "event-triggers",
        (
            "CREATE FUNCTION public.see_drop() RETURNS event_trigger LANGUAGE plpgsql AS "
            "'BEGIN NULL; END'; "
            "CREATE EVENT TRIGGER see ON sql_drop EXECUTE FUNCTION public.see_drop()"
        ),
        NOTHING,
        "DROP EVENT TRIGGER see; DROP FUNCTION public.see_drop",
        NOTHING,
    ),
    (
        "timeouts",
        (
            "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET lock_timeout = 1000', "
            "current_database()); END $$"
        ),
        NOTHING,
        (
            "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I RESET lock_timeout', "
            "current_database()); END $$"
        ),
        NOTHING,
    ),
    (
        "generated-columns",
        "ALTER TABLE public.orders ADD twice integer GENERATED ALWAYS AS (total * 2) STORED",
        "ALTER TABLE public.orders ADD twice integer",
        "ALTER TABLE public.orders DROP COLUMN twice",
        "ALTER TABLE public.orders DROP COLUMN twice",
    ),
    (
        "identity-columns sequences sequence-limits",
        "ALTER TABLE public.lines ALTER id ADD GENERATED BY DEFAULT AS IDENTITY",
        "ALTER TABLE public.lines ALTER id ADD GENERATED BY DEFAULT AS IDENTITY (MAXVALUE 10)",
        "ALTER TABLE public.lines ALTER id DROP IDENTITY",
        "ALTER TABLE public.lines ALTER id DROP IDENTITY",
    ),
    (
        "sequences shared-sequences",
        (
            "CREATE SEQUENCE public.numbers; "
            "ALTER TABLE public.loose ALTER id SET DEFAULT nextval('public.numbers'); "
            "ALTER TABLE public.users ALTER id SET DEFAULT nextval('public.numbers')"
        ),
        NOTHING,
        (
            "ALTER TABLE public.loose ALTER id DROP DEFAULT; "
            "ALTER TABLE public.users ALTER id DROP DEFAULT; DROP SEQUENCE public.numbers"
        ),
        NOTHING,
    ),
    (
        "large-objects",
        "ALTER TABLE public.lines ADD picture oid",
        "ALTER TABLE public.lines ADD picture oid",
        "ALTER TABLE public.lines DROP COLUMN picture",
        "ALTER TABLE public.lines DROP COLUMN picture",
    ),
    (
        "unlogged",
        NOTHING,
        "ALTER TABLE public.lines SET UNLOGGED",
        NOTHING,
        "ALTER TABLE public.lines SET LOGGED",
    ),
    (
        "inheritance",
        "CREATE TABLE public.child () INHERITS (public.lines)",
        NOTHING,
        "DROP TABLE public.child",
        NOTHING,
    ),
    (
        "primary-key",
        "ALTER TABLE public.loose DROP CONSTRAINT loose_pkey",
        NOTHING,
        "ALTER TABLE public.loose ADD PRIMARY KEY (id)",
        NOTHING,
    ),
    (
        "columns types",
        NOTHING,
        (
            "ALTER TABLE public.loose ADD colour text; "
            "ALTER TABLE public.loose ALTER word TYPE integer USING NULL"
        ),
        NOTHING,
        "ALTER TABLE public.loose DROP COLUMN colour, ALTER word TYPE text",
    ),
    (
        "labels",
        "ALTER TYPE public.mood ADD VALUE 'lost'",
        NOTHING,
        NOTHING,
        "ALTER TYPE public.mood ADD VALUE 'lost'",
    ),
    (
        "table-missing missing-types",
        NOTHING,
        "DROP TABLE public.gone; DROP TYPE public.colour",
        NOTHING,
        (
            "CREATE TYPE public.colour AS ENUM ('red'); "
            "CREATE TABLE public.gone (id integer PRIMARY KEY, shade public.colour)"
        ),
    ),
    (
        "no-table",
        (
            "ALTER TABLE public.hidden RENAME TO seen; "
            "CREATE VIEW public.hidden AS SELECT id FROM public.seen"
        ),
        NOTHING,
        "DROP VIEW public.hidden; ALTER TABLE public.seen RENAME TO hidden",
        NOTHING,
    ),
    # Before the index: it would be built anew.
    (
        "narrow-columns",
        NOTHING,
        "ALTER TABLE public.orders ALTER user_id TYPE bigint",
        NOTHING,
        "ALTER TABLE public.orders ALTER user_id TYPE integer",
    ),
    (
        "invalid-indexes",
        NOTHING,
        (
            "CREATE INDEX spare ON public.orders (word); "
            "UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'public.spare'::regclass"
        ),
        NOTHING,
        "DROP INDEX public.spare",
    ),
    (
        "rows-on-service",
        NOTHING,
        "INSERT INTO public.loose (id) VALUES (1)",
        NOTHING,
        "DELETE FROM public.loose",
    ),
    (
        "exclusion-constraints",
        NOTHING,
        "ALTER TABLE public.orders ADD CONSTRAINT apart EXCLUDE (total WITH =)",
        NOTHING,
        "ALTER TABLE public.orders DROP CONSTRAINT apart",
    ),
    # Made without a publisher: it is the catalog that tells who writes.
    (
        "subscriptions",
        (
            "CREATE SUBSCRIPTION om_preflight CONNECTION 'dbname=nowhere' PUBLICATION p "
            "WITH (connect = false, slot_name = NONE); "
            "INSERT INTO pg_subscription_rel (srsubid, srrelid, srsubstate) "
            "SELECT oid, 'public.orders'::regclass, 'r' FROM pg_subscription "
            "WHERE subname = 'om_preflight' "
            "AND subdbid = (SELECT oid FROM pg_database WHERE datname = current_database())"
        ),
        NOTHING,
        "DROP SUBSCRIPTION om_preflight",
        NOTHING,
    ),
]
# By the configuration, and by who is at work.
OTHERS = {"configured-sql", "way-back", "writers", "maintenance", "long-transactions", "wal"}
ALWAYS = {"room", "writers"}
PREPARED = "prepared-transactions"
# Each has a test of its own, here or beside (tests/unit/test_checks.py).
ELSEWHERE = {
    *("unreachable", "one-database", "several-servers", "durability", "other-migration"),
    *("rights-read", "rights-insert", "rights-owner", "rights-schema", "hidden-rows"),
    *("connections", "parts-unreadable", "configured-columns", "extensions"),
    *("encoding", "collation", "pooler", "session-settings", "version", "version-untried"),
    *("standby", "synchronous-standby", "lock-room", "clocks", "md5"),
}


def keys(done: CliResult) -> set[str]:
    return {each["key"] for each in done.json["findings"]}


def said(done: CliResult, key: str) -> str:
    """Return all that was found under a key, on one line."""
    return "; ".join(each["said"] for each in done.json["findings"] if each["key"] == key)


def preflight(pair: Pair, *args: str) -> CliResult:
    """Run it; nothing may be another one afterwards."""
    before = pair.pictures()
    done = pair.run("preflight", "--json", *args)
    assert "Traceback" not in done.stderr, done.stderr
    assert pair.pictures() == before
    stops = [each for each in done.json["findings"] if each["severity"] == "stop"]
    assert done.exit_code == (3 if stops else 0)
    return done


@contextlib.contextmanager
def at_work(pair: Pair) -> Iterator[None]:
    """Hold a writer's lock, a vacuum's, a prepared transaction and a slot on the monolith."""
    name = f"om_preflight_{secrets.token_hex(4)}"
    has_prepared = pair.on_monolith("SHOW max_prepared_transactions") != [("0",)]
    with psycopg.connect(pair.monolith, application_name="shop") as connection:
        connection.execute("INSERT INTO public.users VALUES (1)")
        connection.execute("INSERT INTO public.lines (id) VALUES (1)")
        connection.execute("LOCK TABLE public.lines IN SHARE UPDATE EXCLUSIVE MODE")
        if has_prepared:
            pair.on_monolith(
                "BEGIN; INSERT INTO public.orders (id, total) VALUES (1, 1); "
                f"PREPARE TRANSACTION '{name}'"
            )
        pair.on_monolith(f"SELECT pg_create_physical_replication_slot('{name}', true)")
        try:
            yield
        finally:
            pair.on_monolith(f"SELECT pg_drop_replication_slot('{name}')")
            if has_prepared:
                pair.on_monolith(f"ROLLBACK PREPARED '{name}'")
            connection.rollback()


def test_every_finding_is_told_and_goes_away_when_it_is_mended(make_pair: MakePair) -> None:
    pair = make_pair(BASE, tables=ODD_TABLES, limits={"lock_timeout_seconds": 0.001})
    wanted = {key for found, *_ in BREAKS for key in found.split()} | OTHERS | ALWAYS | {PREPARED}
    assert wanted | ELSEWHERE == {check.key for check in CHECKS}, "a check without a test"
    try:
        for _, monolith, service, *_ends in BREAKS:
            pair.on_monolith(monolith)
            pair.on_service(service)
        with at_work(pair):
            found = preflight(pair)
        has_prepared = pair.on_monolith("SHOW max_prepared_transactions") != [("0",)]
        assert keys(found) == wanted - (set() if has_prepared else {PREPARED})
        assert found.json["unchecked"] == []
        check_names(found)
    finally:
        for _, *_begins, monolith, service in reversed(BREAKS):
            pair.on_monolith(monolith)
            pair.on_service(service)
    mended = preflight(pair.but(tables=TABLES, limits={}))
    assert keys(mended) == ALWAYS, mended.stdout
    assert mended.json["unchecked"] == []
    assert mended.json["outcome"] == "clear"


def check_names(found: CliResult) -> None:
    """Assert that what has to be named is."""
    assert "writes to public.invoices (to_orders, ON DELETE SET NULL)" in said(
        found, "cascades-out"
    )
    assert "note of public.orders" in said(found, "triggers-out")
    assert "writes to public.audit" in said(found, "triggers-out")
    assert "forget of public.users" in said(found, "triggers-in")
    circle = said(found, "foreign-key-cycles")
    assert circle == "public.lines → public.orders → public.lines"
    assert "'lost'" in said(found, "labels")
    assert "public.big" in said(found, "views")
    assert "public.sums" in said(found, "views")
    assert "public.count_orders()" in said(found, "functions")
    assert "keep_note" not in said(found, "functions")
    assert "(shop), sessions: 1" in said(found, "writers")
    assert "public.users" in said(found, "shared-sequences")


def test_a_skipped_check_does_not_stop_it(make_pair: MakePair) -> None:
    pair = make_pair(BASE, tables=TABLES)
    pair.on_service("DROP TABLE public.gone")
    assert keys(preflight(pair)) == {"table-missing", *ALWAYS}
    done = preflight(pair, "--skip", "table-missing", "--skip", "room")
    assert done.exit_code == 0
    assert keys(done) == {"writers"}
    assert done.json["skipped"] == ["table-missing", "room"]


def test_an_unknown_key_is_refused_with_the_nearest(make_pair: MakePair) -> None:
    pair = make_pair(BASE, tables=TABLES)
    pair.refuse(
        *("preflight", "--skip", "table-mising"),
        exit_code=2,
        says=["no check 'table-mising'", "did you mean table-missing?"],
    )


def test_a_side_that_is_away_is_a_finding_and_the_other_is_looked_at(make_pair: MakePair) -> None:
    pair = make_pair(BASE, tables=TABLES, limits={"retry_deadline_seconds": 0})
    pair.on_monolith("CREATE VIEW public.big AS SELECT id FROM public.orders")
    away = make_conninfo(pair.service, host="127.0.0.1", port=1)
    done = preflight(pair.but(service_dsn=away))
    assert keys(done) == {"unreachable", "views", *ALWAYS}
    unchecked = {(each["key"], each["side"]) for each in done.json["unchecked"]}
    assert ("types", None) in unchecked
    assert ("rights-insert", "service") in unchecked
    assert ("views", "monolith") not in unchecked
    assert done.json["phase"] is None


def test_a_check_that_could_not_run_is_no_finding(make_pair: MakePair) -> None:
    pair = make_pair(BASE, tables=[{**TABLES[0], "status": "state"}, *TABLES[1:]])
    done = preflight(pair)
    assert keys(done) == {"configured-columns", *ALWAYS}
    assert {"types", "labels"} <= {each["key"] for each in done.json["unchecked"]}


def test_one_database_for_both_sides_is_found(make_pair: MakePair) -> None:
    pair = make_pair(BASE, tables=TABLES)
    done = preflight(pair.but(service_dsn=pair.monolith))
    assert "one-database" in keys(done)


async def test_a_dsn_that_leads_to_two_databases_is_found(make_database: MakeDatabase) -> None:
    here, there = make_database("monolith"), make_database("monolith")
    async with ground.opened(here) as session:
        for dsn, found in ((here, 0), (there, 1)):
            survey = Survey(
                ground.make_config(dsn, dsn), {Side.MONOLITH: session}, {Side.MONOLITH: []}
            )
            assert len(await checks_servers.see_several_servers(survey, Side.MONOLITH)) == found


async def test_its_sessions_refuse_to_write(make_database: MakeDatabase) -> None:
    config = ground.make_config(make_database("monolith"), make_database("service"))
    async with contextlib.AsyncExitStack() as stack:
        survey = await surveying._open(config, stack)
        for side in Side:
            with pytest.raises(Refused, match="takes no writes"):
                await survey.session(side).run("CREATE TABLE public.mine (id integer)")


async def test_nothing_is_locked_through_a_pooler(make_database: MakeDatabase) -> None:
    dsn = make_database("monolith")
    pooler = Refused("A connection pooler stands between us", finding="pooler")
    async with ground.opened(dsn) as session:
        survey = Survey(
            ground.make_config(dsn, dsn), {Side.MONOLITH: session}, {Side.MONOLITH: [pooler]}
        )
        with pytest.raises(Refused, match="prove nothing"):
            await checks_servers.see_several_servers(survey, Side.MONOLITH)
        (spot,) = await checks_servers.see_faults("pooler")(survey, Side.MONOLITH)
    assert spot.said == pooler.fact


def test_rights_that_lack_are_all_told(make_role: MakeRole, make_pair: MakePair) -> None:
    role = make_role("reader", "CONNECTION LIMIT 3")
    pair = make_pair(BASE, tables=TABLES)
    pair.on_both(
        f"GRANT SELECT ON public.orders, public.lines, public.gone, public.hidden TO {role}"
    )
    pair.on_monolith("ALTER TABLE public.hidden ENABLE ROW LEVEL SECURITY")
    # Not FIPS, but to whoever asks the same: no MD5 here.
    pair.on_monolith("REVOKE EXECUTE ON FUNCTION pg_catalog.md5(text) FROM PUBLIC")
    pair.on_monolith("CREATE TABLE public.child () INHERITS (public.lines)")
    with psycopg.connect(pair.monolith):  # a session that our role cannot look into
        done = preflight(pair.as_role(role))
    rights = {"rights-read", "rights-insert", "rights-owner", "rights-schema"}
    assert rights | {"hidden-rows", "connections", "parts-unreadable", "md5"} <= keys(done)
    assert "public.child" in said(done, "parts-unreadable")
    unchecked = {(each["key"], each["side"]): each["reason"] for each in done.json["unchecked"]}
    assert "hides" in unchecked["long-transactions", "monolith"]
    pair.on_monolith("GRANT EXECUTE ON FUNCTION pg_catalog.md5(text) TO PUBLIC")
    pair.on_both(
        f"ALTER ROLE {role} CONNECTION LIMIT -1; "
        f"DO $$ BEGIN EXECUTE format('GRANT CREATE ON DATABASE %I TO {role}', current_database());"
        " END $$; DROP TABLE IF EXISTS public.child; "
        + "".join(f"ALTER TABLE public.{name} OWNER TO {role};" for name in NAMES)
    )
    assert keys(preflight(pair.as_role(role))) == {"row-security", *ALWAYS}
    pair.on_both(f"REASSIGN OWNED BY {role} TO CURRENT_USER; DROP OWNED BY {role}")


def test_an_extension_that_the_service_lacks_is_named(make_pair: MakePair) -> None:
    pair = make_pair(BASE, tables=TABLES)
    if not pair.on_monolith("SELECT 1 FROM pg_available_extensions WHERE name = 'citext'"):
        pytest.skip("the server has no citext to offer")
    pair.on_monolith("CREATE EXTENSION citext; ALTER TABLE public.loose ALTER word TYPE citext")
    done = preflight(pair)
    assert "extension citext" in said(done, "extensions")
    pair.on_service("CREATE EXTENSION citext; ALTER TABLE public.loose ALTER word TYPE citext")
    assert "extensions" not in keys(preflight(pair))


def test_databases_that_read_text_differently_are_told(make_pair: MakePair) -> None:
    one = "ENCODING 'UTF8' LC_COLLATE 'C.UTF-8' LC_CTYPE 'C.UTF-8'"
    other = "ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C'"
    pair = make_pair(BASE, tables=TABLES, options=(one, other))
    assert keys(preflight(pair)) == {"encoding", "collation", *ALWAYS}


def test_a_server_that_forgets_in_a_crash_is_looked_at_all_the_same(
    make_pair: MakePair, start_server: StartServer
) -> None:
    pair = make_pair(BASE, tables=TABLES)
    forgetful = start_server(settings={"fsync": "off"}).dsn("postgres")
    execute(forgetful, BASE)
    done = preflight(pair.but(service_dsn=forgetful))
    assert {"durability"} <= keys(done) <= {"durability", "collation", *ALWAYS}
    assert done.json["unchecked"] == []


def test_after_prepare_it_tells_nothing_of_what_is_ours(make_pair: MakePair) -> None:
    pair = make_pair(BASE, tables=TABLES)
    assert pair.run("prepare").exit_code == 0
    done = preflight(pair)
    assert keys(done) == ALWAYS, done.stdout
    assert (done.json["phase"], done.json["owner"]) == ("prepared", "monolith")
    swapped = pair.but(monolith_dsn=pair.service, service_dsn=pair.monolith)
    assert "other-migration" in keys(preflight(swapped))


def test_a_thousand_partitions_are_looked_at_in_few_queries(
    make_pair: MakePair, make_database: MakeDatabase
) -> None:
    parted = "".join(
        f"CREATE TABLE public.t{number} (id integer PRIMARY KEY) PARTITION BY RANGE (id);"
        for number in range(10)
    )
    parts = (
        "DO $$ BEGIN FOR t IN 0..9 LOOP FOR p IN 0..99 LOOP EXECUTE format('CREATE TABLE "
        "public.t%s_%s PARTITION OF public.t%s FOR VALUES FROM (%s) TO (%s)', t, p, t, p, p + 1); "
        "END LOOP; END LOOP; END $$"
    )
    plain = parted.replace(" PARTITION BY RANGE (id)", "")
    pair = make_pair(
        f"{parted}; {parts}", plain, tables=[{"name": f"public.t{number}"} for number in range(10)]
    )
    before = transactions(pair)
    done = pair.run("preflight", "--json")
    assert keys(done) == ALWAYS
    assert done.exit_code == 0
    # Each of ours is a transaction by itself.
    assert transactions(pair) - before < 150


def transactions(pair: Pair) -> int:
    """Return how many transactions the monolith has ended; a session tells them when it ends."""
    pair.on_monolith("SELECT pg_stat_clear_snapshot()")
    ((count,),) = pair.on_monolith(
        "SELECT xact_commit + xact_rollback FROM pg_stat_database "
        "WHERE datname = current_database()"
    )
    return int(count)


@pytest.mark.parametrize("columns", ["60", "200"])
def test_people_read_it_by_severity(make_pair: MakePair, columns: str) -> None:
    pair = make_pair(BASE, tables=TABLES)
    pair.on_service("DROP TABLE public.gone")
    pair.on_monolith("CREATE VIEW public.big AS SELECT id FROM public.orders")
    done = pair.run("preflight", env={"COLUMNS": columns})
    assert done.exit_code == 3
    places = [done.stdout.index(f"{severity}  ") for severity in Severity]
    assert places == sorted(places)
    assert "table-missing: A table of the configuration is not there." in done.stdout
    assert "There is no table public.gone on the service" in done.stdout
    assert "1 to stop, 1 to warn, 2 to note" in done.stdout
    assert "next: ordermigrate preflight" in done.stdout
