"""Tables that cannot be moved, rights that do not suffice: refused before anything is changed."""

# ruff: noqa: S608  the statements are the test's own, on tables of its own

from __future__ import annotations

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from tests.fix_pairs import MakePair, MakeRole, Pair, assert_refused, role_dsn
from tests.fix_postgres import execute

TABLE = "CREATE TABLE public.thing (id integer PRIMARY KEY, word text)"
ROWS = f"{TABLE}; INSERT INTO public.thing SELECT n, 'word ' || n FROM generate_series(1, 20) n"
FOREIGN = "CREATE FOREIGN DATA WRAPPER w; CREATE SERVER s FOREIGN DATA WRAPPER w;"
COMMANDS = ("prepare", "copy", "validate")


@pytest.fixture
def pair(make_pair: MakePair) -> Pair:
    return make_pair(ROWS, TABLE)


# --------------------------------------------------------------------------- not a table like that


def test_a_table_that_does_not_exist_is_named_with_the_nearest_one(pair: Pair) -> None:
    near = [("copy", 'public."Thing"'), ("prepare", "shop.thing"), ("validate", "public.thign")]
    for command, wrong in near:
        pair.but(tables=[{"name": wrong}]).refuse(
            command,
            exit_code=2,
            says=[f"There is no table {wrong} on the monolith; there is public.thing"],
        )
    done = pair.but(tables=[{"name": "public.zebra"}]).refuse(
        "copy", exit_code=2, says=["There is no table public.zebra on the monolith"]
    )
    assert "public.thing" not in done.stderr


def test_a_table_that_the_service_lacks_is_named(pair: Pair) -> None:
    pair.but(tables=[{"name": "public.thing", "to": "public.item"}]).refuse(
        "copy", exit_code=2, says=["There is no table public.item on the service"]
    )


@pytest.mark.parametrize(
    ("make", "what"),
    [
        ("CREATE VIEW public.v AS SELECT * FROM public.thing", "a view"),
        ("CREATE MATERIALIZED VIEW public.v AS SELECT * FROM public.thing", "a materialized view"),
        ("CREATE SEQUENCE public.v", "a sequence"),
        ("CREATE TYPE public.v AS (a integer)", "a composite type"),
        (f"{FOREIGN} CREATE FOREIGN TABLE public.v (id integer) SERVER s", "a foreign table"),
    ],
)
def test_what_is_no_table_is_called_what_it_is(pair: Pair, make: str, what: str) -> None:
    pair.on_both(make)
    pair.but(tables=[{"name": "public.v"}]).refuse(
        "copy", exit_code=2, says=[f"public.v on the monolith is {what}", "Name the table"]
    )
    pair.but(tables=[{"name": "public.thing", "to": "public.v"}]).refuse(
        "copy", exit_code=2, says=[f"public.v on the service is {what}"]
    )


def test_a_partition_that_is_a_foreign_table_is_refused(make_pair: MakePair) -> None:
    pair = make_pair(
        "CREATE FOREIGN DATA WRAPPER w; CREATE SERVER s FOREIGN DATA WRAPPER w;"
        "CREATE TABLE public.thing (id integer NOT NULL, word text) PARTITION BY LIST (id);"
        "CREATE FOREIGN TABLE public.far PARTITION OF public.thing DEFAULT SERVER s",
        TABLE,
    )
    pair.refuse(
        "copy", exit_code=3, says=["public.far, a part of public.thing, is a foreign table"]
    )


@pytest.mark.parametrize("command", COMMANDS)
def test_a_table_without_a_primary_key_is_refused(make_pair: MakePair, command: str) -> None:
    pair = make_pair("CREATE TABLE public.thing (id integer UNIQUE, word text)", TABLE)
    pair.refuse(
        command, exit_code=3, says=["public.thing on the monolith has no primary key", "rows apart"]
    )


def test_a_table_that_a_crash_would_empty_is_refused(make_pair: MakePair) -> None:
    pair = make_pair(ROWS, TABLE.replace("TABLE", "UNLOGGED TABLE"))
    pair.refuse("copy", exit_code=3, says=["UNLOGGED", "ALTER TABLE public.thing SET LOGGED"])


@pytest.mark.parametrize("command", ["prepare", "copy"])
def test_a_table_of_the_monolith_that_a_crash_would_empty_is_refused(
    make_pair: MakePair, command: str
) -> None:
    pair = make_pair(ROWS.replace("TABLE", "UNLOGGED TABLE", 1), TABLE)
    pair.refuse(
        command,
        exit_code=3,
        says=[
            "public.thing on the monolith is UNLOGGED: a crash would empty it, and leave no trace",
            "ALTER TABLE public.thing SET LOGGED",
        ],
    )


@pytest.mark.parametrize("side", ["monolith", "service"])
def test_a_partition_that_a_crash_would_empty_is_refused(make_pair: MakePair, side: str) -> None:
    parted = (
        "CREATE TABLE public.thing (id integer PRIMARY KEY, word text) PARTITION BY LIST (id);"
        "CREATE {} TABLE public.part PARTITION OF public.thing DEFAULT"
    )
    scripts = [
        parted.format("UNLOGGED" if side == each else "") for each in ("monolith", "service")
    ]
    make_pair(*scripts).refuse(
        "copy",
        exit_code=3,
        says=[f"public.part on the {side} is UNLOGGED", "ALTER TABLE public.part SET LOGGED"],
    )


@pytest.mark.parametrize("command", ["prepare", "copy"])
def test_a_service_table_with_rows_is_refused_and_left_alone(pair: Pair, command: str) -> None:
    pair.on_service("INSERT INTO public.thing VALUES (7, 'somebody needs this')")
    pair.refuse(
        command,
        exit_code=3,
        says=["public.thing on the service is not empty", "never overwritten", "empty the table"],
    )


def test_rows_that_came_after_prepare_are_refused_and_left_alone(pair: Pair) -> None:
    assert pair.run("prepare").exit_code == 0
    with pytest.raises(psycopg.Error, match="the monolith owns it") as refused:
        pair.on_service("INSERT INTO public.thing VALUES (7, 'somebody needs this')")
    assert refused.value.sqlstate == "OM001"
    pair.behind_fence("INSERT INTO public.thing VALUES (7, 'somebody needs this')")
    pair.refuse("copy", exit_code=3, says=["public.thing on the service is not empty"])


# ------------------------------------------------------------------------------------------ rights


def test_without_the_right_to_read_the_grant_is_named(pair: Pair, make_role: MakeRole) -> None:
    reader = make_role()
    for command in COMMANDS:
        pair.as_role(reader, service=False).refuse(
            command,
            exit_code=3,
            says=["We may not read public.thing on the monolith", "GRANT SELECT ON public.thing"],
        )


def test_a_right_to_read_some_columns_is_not_enough(pair: Pair, make_role: MakeRole) -> None:
    reader = make_role()
    pair.on_monolith(f"GRANT SELECT (id) ON public.thing TO {reader}")
    pair.as_role(reader, service=False).refuse(
        "copy", exit_code=3, says=["We may not read public.thing on the monolith"]
    )


def test_a_schema_that_we_may_not_enter_is_told_from_one_that_is_not_there(
    make_pair: MakePair, make_role: MakeRole
) -> None:
    reader = make_role()
    pair = make_pair(
        f"CREATE SCHEMA closed; {TABLE}; ALTER TABLE public.thing SET SCHEMA closed;"
        f"GRANT SELECT ON closed.thing TO {reader}",
        tables=[{"name": "closed.thing"}],
    )
    pair.as_role(reader, service=False).refuse(
        "copy", exit_code=3, says=["monolith", "closed", "GRANT USAGE ON SCHEMA closed"]
    )


def test_every_right_that_is_missing_is_told_at_once(pair: Pair, make_role: MakeRole) -> None:
    role = make_role()
    pair.on_both(f"GRANT SELECT ON public.thing TO {role}")
    one, other = (conninfo_to_dict(dsn)["dbname"] for dsn in (pair.monolith, pair.service))
    done = pair.as_role(role).refuse(
        "prepare",
        exit_code=3,
        says=[
            "we may not insert into public.thing on the service",
            "public.thing on the service belongs to another role",
            f"schema ordermigrate in the monolith's database (GRANT CREATE ON DATABASE {one}",
            f"schema ordermigrate in the service's database (GRANT CREATE ON DATABASE {other}",
        ],
    )
    assert done.stderr.count("GRANT CREATE") == 2


def test_a_service_table_of_another_role_is_refused(pair: Pair, make_role: MakeRole) -> None:
    role = make_role()
    name = conninfo_to_dict(pair.service)["dbname"]
    pair.on_service(
        f"GRANT ALL ON public.thing TO {role}; GRANT CREATE ON DATABASE {name} TO {role}"
    )
    pair.as_role(role, monolith=False).refuse(
        "copy", exit_code=3, says=["belongs to another role than ours", "connect as its owner"]
    )


def test_a_monolith_table_of_another_role_is_refused(pair: Pair, make_role: MakeRole) -> None:
    role = make_role()
    name = conninfo_to_dict(pair.monolith)["dbname"]
    pair.on_monolith(
        f"GRANT ALL ON public.thing TO {role}; GRANT CREATE ON DATABASE {name} TO {role}"
    )
    for command in ("prepare", "copy"):
        pair.as_role(role, service=False).refuse(
            command, exit_code=3, says=["public.thing on the monolith belongs to another role"]
        )


def test_the_owners_rights_suffice_on_both_sides(pair: Pair, make_role: MakeRole) -> None:
    """No superuser: ours is a member of the role that owns the table, and may create a schema."""
    application, mover, owner = make_role("app"), make_role("mover"), make_role("owner")
    one, other = (conninfo_to_dict(dsn)["dbname"] for dsn in (pair.monolith, pair.service))
    pair.on_monolith(f"ALTER TABLE public.thing OWNER TO {owner}; GRANT {owner} TO {mover}")
    pair.on_monolith(f"GRANT CREATE ON DATABASE {one} TO {mover}")
    pair.on_monolith(f"GRANT SELECT, INSERT, UPDATE, DELETE ON public.thing TO {application}")
    pair.on_service(f"ALTER TABLE public.thing OWNER TO {owner}")
    pair.on_service(f"GRANT CREATE ON DATABASE {other} TO {owner}")
    pair.on_service(f"GRANT CREATE ON SCHEMA public TO {owner}")
    ours = pair.as_role(mover, service=False).as_role(owner, monolith=False)
    ours.move()
    # Who writes needs no right on what captures the writes.
    written = (
        "UPDATE public.thing SET word = 'new' WHERE id = 3; DELETE FROM public.thing WHERE id = 4"
    )
    execute(role_dsn(pair.monolith, application), written)
    ours.sync()
    ours.validate()
    assert pair.compare()
    done = ours.run("cancel")
    assert done.exit_code == 0, done.stderr


def test_another_role_without_rights_on_the_ledger_is_refused(
    pair: Pair, make_role: MakeRole
) -> None:
    assert pair.run("prepare").exit_code == 0
    role = make_role()
    pair.on_both(f"GRANT SELECT ON public.thing TO {role}")
    for command in ("status", "validate"):
        pair.as_role(role).refuse(command, exit_code=3, says=["denies us a right", "ordermigrate"])


# ------------------------------------------------------------------------------ row level security

HIDING = (
    "ALTER TABLE public.thing ENABLE ROW LEVEL SECURITY;"
    "CREATE POLICY some_rows ON public.thing USING (id % 2 = 0)"
)


@pytest.mark.parametrize("command", COMMANDS)
def test_rows_that_a_policy_hides_from_us_are_an_error_and_never_missing(
    pair: Pair, make_role: MakeRole, command: str
) -> None:
    reader = make_role()
    name = conninfo_to_dict(pair.monolith)["dbname"]
    pair.on_monolith(HIDING)
    pair.on_monolith(
        f"GRANT SELECT ON public.thing TO {reader}; GRANT CREATE ON DATABASE {name} TO {reader}"
    )
    done = pair.as_role(reader, service=False).refuse(
        command, exit_code=3, says=["monolith", "row", "security"]
    )
    assert "BYPASSRLS" in done.stderr


def test_forced_policies_apply_to_the_owner_too(pair: Pair, make_role: MakeRole) -> None:
    owner = make_role()
    name = conninfo_to_dict(pair.monolith)["dbname"]
    pair.on_monolith(
        f"{HIDING}; ALTER TABLE public.thing FORCE ROW LEVEL SECURITY;"
        f"ALTER TABLE public.thing OWNER TO {owner}; GRANT CREATE ON DATABASE {name} TO {owner}"
    )
    pair.as_role(owner, service=False).refuse(
        "copy", exit_code=3, says=["row level security of public.thing on the monolith"]
    )
    pair.on_monolith("ALTER TABLE public.thing NO FORCE ROW LEVEL SECURITY")
    pair.as_role(owner, service=False).move()
    assert pair.on_service("SELECT count(*) FROM public.thing") == [(20,)]


def test_a_policy_on_the_service_that_applies_to_us_is_refused(
    pair: Pair, make_role: MakeRole
) -> None:
    owner = make_role()
    name = conninfo_to_dict(pair.service)["dbname"]
    pair.on_service(
        f"{HIDING}; ALTER TABLE public.thing FORCE ROW LEVEL SECURITY;"
        f"ALTER TABLE public.thing OWNER TO {owner}; GRANT CREATE ON DATABASE {name} TO {owner}"
    )
    pair.as_role(owner, monolith=False).refuse(
        "copy", exit_code=3, says=["row level security of public.thing on the service"]
    )


# ------------------------------------------------------------------------------- settings of roles


def test_time_limits_that_a_role_or_database_has_do_not_matter(
    make_pair: MakePair, make_role: MakeRole
) -> None:
    """Reading a row of the monolith and indexing one of the service takes longer than allowed."""
    slow = (
        "CREATE FUNCTION public.slow(word text) RETURNS text IMMUTABLE LANGUAGE plpgsql AS "
        "$f$ BEGIN PERFORM pg_sleep(0.15); RETURN word; END $f$;"
    )
    pair = make_pair(
        slow + TABLE + "; INSERT INTO public.thing VALUES (1, 'one'), (2, 'two')",
        slow + TABLE + "; CREATE INDEX ON public.thing (public.slow(word))",
        tables=[{"name": "public.thing", "columns": {"word": "public.slow(word)"}}],
    )
    role = make_role(options="SUPERUSER")
    for dsn, run in ((pair.monolith, pair.on_monolith), (pair.service, pair.on_service)):
        run(
            f"ALTER ROLE {role} SET statement_timeout = 100;"
            f"ALTER ROLE {role} SET lock_timeout = 100;"
            f"ALTER ROLE {role} SET idle_in_transaction_session_timeout = 100;"
            f"ALTER ROLE {role} SET default_transaction_read_only = on;"
            f"ALTER ROLE {role} SET default_transaction_isolation = serializable;"
            f'ALTER DATABASE "{conninfo_to_dict(dsn)["dbname"]}" SET statement_timeout = 100'
        )
    pair.as_role(role).move()
    assert pair.compare()


# ----------------------------------------------------------------------- tables that are written to


def test_a_transaction_that_writes_for_long_keeps_capture_out_and_is_named(pair: Pair) -> None:
    with psycopg.connect(pair.monolith) as writer:
        writer.execute("UPDATE public.thing SET word = 'new' WHERE id = 3")
        done = pair.but(limits={"lock_timeout_seconds": 0.5}).run("copy")
        assert_refused(
            done,
            5,
            [
                "there was no moment in which nobody wrote to the monolith's tables",
                f"backend {writer.info.backend_pid} on public.thing",
                "UPDATE public.thing",
            ],
        )
        assert pair.on_service("SELECT count(*) FROM public.thing") == [(0,)]
    pair.copy()
    pair.validate()
    assert pair.compare()


@pytest.mark.parametrize(
    "write",
    [
        "UPDATE public.thing SET word = 'new' WHERE id = 3",
        "INSERT INTO public.thing VALUES (21, 'new')",
        "DELETE FROM public.thing WHERE id = 20",
        "UPDATE public.thing SET id = 22 WHERE id = 20",
    ],
)
def test_a_write_during_the_copy_is_captured_and_follows(pair: Pair, write: str) -> None:
    """A trigger on the ledger writes to the monolith when all chunks are there."""
    where = conninfo_to_dict(pair.monolith)
    pair.on_service("CREATE EXTENSION dblink")
    assert pair.run("prepare").exit_code == 0
    link = " ".join(f"{key}={where[key]}" for key in ("host", "port", "dbname", "user", "password"))
    pair.on_service(
        "CREATE FUNCTION public.write() RETURNS trigger LANGUAGE plpgsql AS $f$ BEGIN "
        f"PERFORM public.dblink_exec('{link}', $w${write}$w$); RETURN NULL; END $f$;"
        "CREATE TRIGGER write AFTER UPDATE ON ordermigrate.attempt EXECUTE FUNCTION public.write()"
    )
    pair.copy()
    assert not pair.compare()  # the copy is as of its snapshot
    pair.sync()
    assert pair.compare()
    pair.validate()
