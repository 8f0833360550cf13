"""Validate sees no difference where there is none, however differently the two sides are set up."""

# ruff: noqa: S608  the statements are the test's own, on tables of its own

from __future__ import annotations

from collections.abc import Mapping

import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from ordermigrate.digest import Algorithm
from tests.fix_orders import ORDERS_TABLE, MakeHub, RunCli, WriteToml, add_orders
from tests.fix_pairs import MakePair, MakeRole, Pair, RunHere, assert_refused
from tests.fix_postgres import MakeDatabase, TestServer, TestServers, execute

ALGORITHMS = [each.value for each in Algorithm]
TABLE = (
    "CREATE TABLE public.thing (id integer PRIMARY KEY, at timestamptz, day timestamp, "
    "span interval, real8 double precision, real4 real, raw bytea, word text, price numeric,"
    "cash money, document xml, words text[])"
)
ROWS = (
    f"{TABLE};"
    "INSERT INTO public.thing SELECT n, '2025-04-03 01:02:03.000004+00'::timestamptz + n * "
    "interval '1 day', '2025-04-03'::timestamp + n * interval '13 hours', n * interval "
    "'1 year -1 day 00:00:00.5', n / 3.0, n / 7.0, decode(md5(n::text), 'hex'), "
    "E'word\\\\ ' || n, n / 9.0, n, ('<a>' || n || '</a>')::xml, "
    "ARRAY['a,b', NULL, 'NULL', n::text] "
    "FROM generate_series(1, 40) n"
)
OTHER_SETTINGS: Mapping[str, tuple[str, str]] = {
    "TimeZone": ("America/Sao_Paulo", "Asia/Kolkata"),
    "DateStyle": ("German", "SQL, DMY"),
    "IntervalStyle": ("iso_8601", "sql_standard"),
    "extra_float_digits": ("-15", "0"),
    "bytea_output": ("escape", "hex"),
    "lc_monetary": ("C", "C"),
    "xmloption": ("document", "content"),
    "search_path": ("nowhere", "public, pg_catalog"),
    "standard_conforming_strings": ("off", "on"),
    "array_nulls": ("off", "on"),
    "client_encoding": ("SQL_ASCII", "LATIN1"),
    "row_security": ("on", "on"),
    "default_transaction_isolation": ("serializable", "repeatable read"),
    "default_transaction_read_only": ("on", "off"),
    "enable_seqscan": ("off", "on"),
    "quote_all_identifiers": ("on", "off"),
    "transform_null_equals": ("on", "off"),
}
LISTS = {"DateStyle", "search_path"}


def every_algorithm_agrees(pair: Pair) -> None:
    for algorithm in ALGORITHMS:
        document = pair.validate("--algorithm", algorithm).json
        assert document["algorithm"] == algorithm
        assert all(table["differences_total"] == 0 for table in document["tables"])


@pytest.mark.parametrize("level", ["role", "database"])
def test_settings_of_a_role_or_a_database_make_no_difference(
    make_pair: MakePair, make_role: MakeRole, level: str
) -> None:
    role = make_role(options="SUPERUSER")
    pair = make_pair(ROWS, TABLE)
    for dsn, run, place in (
        (pair.monolith, pair.on_monolith, 0),
        (pair.service, pair.on_service, 1),
    ):
        whose = f"ROLE {role}" if level == "role" else f"DATABASE {conninfo_to_dict(dsn)['dbname']}"
        run(
            ";".join(
                f"ALTER {whose} SET {name} = "
                + (values[place] if name in LISTS else f"'{values[place]}'")
                for name, values in OTHER_SETTINGS.items()
            )
        )
    theirs = pair.as_role(role)
    theirs.copy()
    every_algorithm_agrees(theirs)
    assert pair.compare()
    # Nor to how a value is told: both in the same words.
    pair.plant(
        "UPDATE public.thing SET span = NULL, "
        "at = at + interval '1 microsecond', real8 = 0.1::float8 + 0.2 WHERE id = 3"
    )
    done = theirs.run("validate", "--checksums", "--json")
    (difference,) = done.json["tables"][0]["differences"]
    assert difference["columns"] == {
        "at": {
            "source": "2025-04-06 01:02:03.000004+00",
            "target": "2025-04-06 01:02:03.000005+00",
        },
        "span": {"source": "3 years -3 days +00:00:01.5", "target": None},
        "real8": {"source": "1", "target": "0.30000000000000004"},
    }


def test_settings_of_a_server_make_no_difference(
    make_pair: MakePair, postgres_servers: TestServers
) -> None:
    """Said on the command line of the connection, they reach a session as a server's do."""
    pair = make_pair(ROWS, TABLE)
    names = ("TimeZone", "DateStyle", "IntervalStyle", "extra_float_digits", "bytea_output")
    strange = {
        f"{side}_dsn": f"{getattr(pair, side)}?options="
        + "%20".join(
            f"-c%20{name}%3D{OTHER_SETTINGS[name][place].replace(', ', '%2C')}" for name in names
        )
        for place, side in enumerate(("monolith", "service"))
    }
    theirs = pair.but(**strange)
    theirs.copy()
    every_algorithm_agrees(theirs)
    assert pair.compare()


def test_another_physical_order_of_the_columns_makes_no_difference(make_pair: MakePair) -> None:
    columns = TABLE[TABLE.index("(") + 1 : -1].split(", ")
    mixed = ", ".join(
        sorted((each.strip() for each in ", ".join(columns).split(",")), reverse=True)
    )
    pair = make_pair(
        ROWS,
        f"CREATE TABLE public.thing ({mixed}); ALTER TABLE public.thing DROP COLUMN word;"
        "ALTER TABLE public.thing ADD COLUMN word text",
    )
    pair.copy()
    every_algorithm_agrees(pair)
    assert pair.compare()


@pytest.fixture
def icu(service_server: TestServer) -> None:
    """Skip where the server cannot have the collations that a test is about."""
    if not service_server.run("SELECT 1 FROM pg_collation WHERE collname = 'und-x-icu'"):
        pytest.skip("this PostgreSQL was built without ICU")


@pytest.mark.usefixtures("icu")
def test_another_collation_makes_no_difference(make_pair: MakePair) -> None:
    """Neither to values, nor to the order in which keys of text are walked."""
    words = "unnest(ARRAY['a', 'B', 'ä', 'Z', 'z', 'Å', '_', 'a b', 'ab', 'É', 'e', '', 'ß', 'ss'])"
    table = (
        "CREATE TABLE public.thing (word text COLLATE {}, other varchar(20) COLLATE {}, "
        "PRIMARY KEY (word, other))"
    )
    pair = make_pair(
        table.format('"C"', '"C"')
        + f"; INSERT INTO public.thing SELECT w, v FROM {words} w, {words} v",
        table.format('"und-x-icu"', '"en-x-icu"'),
    )
    pair.copy()
    every_algorithm_agrees(pair)
    pair.plant("UPDATE public.thing SET other = 'Å2' WHERE word = 'É' AND other = 'Å'")
    for algorithm in ALGORITHMS:
        done = pair.run("validate", "--algorithm", algorithm, "--json")
        found = done.json["tables"][0]["differences"]
        assert sorted((each["kind"], each["key"]["other"]) for each in found) == [
            ("extra", "Å2"),
            ("missing", "Å"),
        ]


@pytest.mark.usefixtures("icu")
def test_a_status_and_a_user_of_another_collation_are_counted_alike(make_pair: MakePair) -> None:
    rows = (
        "INSERT INTO public.thing SELECT n, (ARRAY['a','A','ä','b'])[1 + n % 4], "
        "(ARRAY['x','X'])[1 + n % 2], now() FROM generate_series(1, 40) n"
    )
    table = (
        "CREATE TABLE public.thing (id integer PRIMARY KEY, status text COLLATE {0}, "
        "owner text COLLATE {0}, created timestamptz)"
    )
    pair = make_pair(
        table.format('"C"') + ";" + rows,
        "CREATE COLLATION public.loose (provider = icu, locale = 'und-u-ks-level1', "
        "deterministic = false);" + table.format("public.loose"),
        tables=[
            {"name": "public.thing", "status": "status", "user": "owner", "created": "created"}
        ],
    )
    pair.copy()
    every_algorithm_agrees(pair)
    checks = {each["name"]: each for each in pair.validate().json["tables"][0]["checks"]}
    assert len(checks["status distribution"]["details"]) == 4
    assert checks["orders per user"]["summary"].startswith("2 users")


@pytest.mark.parametrize(
    ("options", "letters"),
    [
        ("ENCODING 'LATIN1' LOCALE 'C'", "Ordem não aceita: ação é ½ Müller"),
        ("ENCODING 'SQL_ASCII' LOCALE 'C'", "Ordem não aceita 注文 😀"),
        ("ENCODING 'UTF8' LOCALE 'C'", "Ordem não aceita 注文 😀"),
        ("ENCODING 'WIN1252' LOCALE 'C'", "50 € – “naïve”"),
    ],
)
def test_another_encoding_of_the_monolith_makes_no_difference(
    make_pair: MakePair, options: str, letters: str
) -> None:
    table = "CREATE TABLE public.thing (id text PRIMARY KEY, word varchar(60), list text[])"
    fill = f"INSERT INTO public.thing VALUES ('{letters}', '{letters}', ARRAY['{letters}', NULL])"
    pair = make_pair(table, table, options=(options, ""))
    execute(make_conninfo(pair.monolith, client_encoding="UTF8"), fill)
    pair.copy()
    every_algorithm_agrees(pair)
    assert pair.on_service("SELECT id, word FROM public.thing") == [(letters, letters)]
    pair.plant("UPDATE public.thing SET word = word || 'é'")
    done = pair.run("validate", "--checksums", "--json")
    (difference,) = done.json["tables"][0]["differences"]
    assert difference["key"] == {"id": letters}
    assert difference["columns"] == {"word": {"source": letters, "target": letters + "é"}}


def test_orders_of_a_latin1_monolith_are_moved_whole(
    make_database: MakeDatabase, run_here: RunHere, ordermigrate_toml: WriteToml, make_hub: MakeHub
) -> None:
    from tests.fix_orders import FAMILY  # noqa: PLC0415  the family's SQL for a database of our own

    monolith = make_database(
        "monolith",
        script=(FAMILY / "monolith.sql").read_text(),
        options="ENCODING 'LATIN1' LOCALE 'C'",
    )
    add_orders(monolith, users=20, orders=1500)
    pair = Pair(
        monolith,
        make_hub(users=0, orders=0).service,
        run_here,
        ordermigrate_toml,
        [ORDERS_TABLE],
    )
    pair.copy()
    every_algorithm_agrees(pair)
    assert pair.compare(ORDERS_TABLE)


def test_bytes_that_are_no_letters_are_refused_with_their_place(make_pair: MakePair) -> None:
    """SQL_ASCII lets anything in; a service that wants UTF-8 cannot hold it, and says so."""
    table = "CREATE TABLE public.thing (id integer PRIMARY KEY, word text)"
    pair = make_pair(
        f"{table}; INSERT INTO public.thing VALUES (1, E'caf\\xe9')",
        table,
        options=("ENCODING 'SQL_ASCII' LOCALE 'C'", ""),
    )
    done = pair.run("copy")
    assert_refused(done, 3, ["invalid byte sequence"])
    assert pair.on_service("SELECT count(*) FROM public.thing") == [(0,)]


def test_letters_that_the_services_encoding_lacks_are_refused(make_pair: MakePair) -> None:
    table = "CREATE TABLE public.thing (id integer PRIMARY KEY, word text)"
    pair = make_pair(
        f"{table}; INSERT INTO public.thing VALUES (1, '注文')",
        table,
        options=("", "ENCODING 'LATIN1' LOCALE 'C'"),
    )
    done = pair.run("copy")
    assert_refused(done, 3, ["no equivalent in encoding"])


def test_large_values_are_compared_wherever_and_however_they_are_stored(
    make_pair: MakePair,
) -> None:
    table = "CREATE TABLE public.thing (id integer PRIMARY KEY, a text, b bytea, c jsonb)"
    pair = make_pair(
        f"{table}; ALTER TABLE public.thing ALTER a SET STORAGE EXTERNAL;"
        "INSERT INTO public.thing SELECT n, repeat('large value ' || n, 20000), "
        "decode(repeat(md5(n::text), 3000), 'hex'), jsonb_build_object('k', repeat('v', 50000)) "
        "FROM generate_series(1, 6) n",
        f"{table}; ALTER TABLE public.thing ALTER a SET COMPRESSION pglz,"
        "ALTER b SET STORAGE EXTERNAL",
    )
    pair.copy()
    every_algorithm_agrees(pair)
    pair.plant("UPDATE public.thing SET a = left(a, -1) || '!' WHERE id = 3")
    for algorithm in ALGORITHMS:
        done = pair.run("validate", "--algorithm", algorithm, "--json")
        (difference,) = done.json["tables"][0]["differences"]
        assert (difference["key"], list(difference["columns"])) == ({"id": "3"}, ["a"])


@pytest.mark.parametrize(("rows", "says"), [(0, "0 rows compared"), (1, "1 rows")])
def test_tables_that_nothing_of_ours_has_copied_are_compared_too(
    make_pair: MakePair, rows: int, says: str
) -> None:
    """Before any migration, on tables that were never analysed."""
    table = "CREATE TABLE public.thing (id integer PRIMARY KEY, word text)"
    fill = f"{table}; INSERT INTO public.thing SELECT n, 'x' FROM generate_series(1, {rows}) n"
    pair = make_pair(fill)
    before = pair.pictures()
    for args in (("--checksums",), ()):
        done = pair.run("validate", *args)
        assert done.exit_code == 0
        assert says in done.stdout
        assert "not recorded: there is no ledger yet" in done.stdout
    every_algorithm_agrees(pair)
    assert pair.pictures() == before


def test_time_is_told_the_same_by_processes_of_other_time_zones(
    make_hub: MakeHub, run_cli: RunCli, ordermigrate_toml: WriteToml
) -> None:
    hub = make_hub(users=3, orders=50)
    ordermigrate_toml()
    env = {"TZ": "Pacific/Chatham", "PGTZ": "Asia/Kolkata", "PGDATESTYLE": "German"}
    for args in (("copy",), ("validate", "--checksums")):
        done = run_cli(*args, monolith=hub.monolith, service=hub.service, env=env)
        assert done.exit_code == 0, done.stderr
