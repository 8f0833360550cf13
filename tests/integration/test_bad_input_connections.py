"""Databases that cannot be reached, are not the right ones, or are the same one: said clearly."""

# ruff: noqa: S608  the statements are the test's own, on tables of its own

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from ordermigrate.demo.servers import find_free_port
from tests.fix_faults import FaultProxy
from tests.fix_pairs import PASSWORD, MakePair, MakeRole, Pair, assert_refused, role_dsn
from tests.fix_postgres import MakeDatabase, TestServers, execute

TABLE = "CREATE TABLE public.thing (id integer PRIMARY KEY, word text)"
ROWS = f"{TABLE}; INSERT INTO public.thing SELECT n, 'word ' || n FROM generate_series(1, 20) n"
# A person should not wait longer for the news that a server is not there.
IMPATIENT = {"retry_deadline_seconds": 0}
COMMANDS = ("prepare", "copy", "validate", "status")


@pytest.fixture
def pair(make_pair: MakePair) -> Pair:
    return make_pair(ROWS, TABLE, limits=IMPATIENT)


@pytest.mark.parametrize("side", ["monolith", "service"])
def test_a_wrong_password_is_refused_and_not_repeated(pair: Pair, side: str) -> None:
    wrong = make_conninfo(getattr(pair, side), password="opensesame")
    done = pair.but(**{f"{side}_dsn": wrong}).refuse(
        "copy", exit_code=2, says=[f"The {side} does not let us in", "password", "DSN"]
    )
    assert "opensesame" not in done.stderr + done.stdout


@pytest.mark.parametrize("side", ["monolith", "service"])
def test_a_role_that_does_not_exist_is_refused(pair: Pair, side: str) -> None:
    wrong = make_conninfo(getattr(pair, side), user="nobody_at_all")
    pair.but(**{f"{side}_dsn": wrong}).refuse(
        "copy", exit_code=2, says=[f"The {side} does not let us in", "nobody_at_all"]
    )


@pytest.mark.parametrize("side", ["monolith", "service"])
def test_a_database_that_does_not_exist_is_named(pair: Pair, side: str) -> None:
    wrong = make_conninfo(getattr(pair, side), dbname="no such database")
    pair.but(**{f"{side}_dsn": wrong}).refuse(
        "status",
        exit_code=2,
        says=[f"The {side}'s server has no such database", "no such database", "Create it"],
    )


def test_a_database_that_lets_us_not_connect_says_so(pair: Pair, make_role: MakeRole) -> None:
    role = make_role()
    name = conninfo_to_dict(pair.service)["dbname"]
    pair.on_service(f'REVOKE CONNECT ON DATABASE "{name}" FROM PUBLIC')
    pair.as_role(role, monolith=False).refuse(
        "status", exit_code=3, says=["The service denies us a right", str(name)]
    )


@pytest.mark.parametrize("side", ["monolith", "service"])
def test_a_server_that_is_down_is_tried_for_a_while_and_then_named(pair: Pair, side: str) -> None:
    wrong = make_conninfo(getattr(pair, side), port=find_free_port())
    started = time.monotonic()
    pair.but(limits={"retry_deadline_seconds": 1}, **{f"{side}_dsn": wrong}).refuse(
        "copy",
        exit_code=5,
        says=[f"The {side}'s database is not available", "refused", "Run the same command again"],
    )
    assert 1 <= time.monotonic() - started < 5


def test_a_host_that_cannot_be_found_is_named(pair: Pair) -> None:
    wrong = "host=no-such-host.invalid dbname=x user=y"
    pair.but(service_dsn=wrong).refuse("status", exit_code=5, says=["no-such-host.invalid"])


@pytest.mark.parametrize(
    ("dsn", "says"),
    [
        ("service=no_such_service", "no_such_service"),
        ("host=127.0.0.1 sslmode=sometimes", "sometimes"),
        ("host=127.0.0.1 target_session_attrs=best", "best"),
    ],
)
def test_an_option_that_libpq_refuses_is_an_error_of_usage_at_once(
    pair: Pair, dsn: str, says: str
) -> None:
    pair.but(monolith_dsn=dsn).refuse(
        "status", exit_code=2, says=["The monolith's DSN cannot be used", says]
    )


@pytest.mark.parametrize("password", ["pa@ss", "pa/ss", "pa@ss:word", "pa/ss@word"])
def test_a_password_that_is_not_percent_encoded_is_not_shown_as_a_host(
    pair: Pair, password: str
) -> None:
    done = pair.but(monolith_dsn=f"postgresql://me:{password}@db.example:5432/hub").refuse(
        "status", exit_code=2, says=["percent-encoded"]
    )
    assert "ss" not in done.stderr.replace("password", "").replace("postgresql", "").replace(
        "passed", ""
    ).replace("necessary", "")


@pytest.mark.parametrize("side", ["monolith", "service"])
def test_a_server_that_stalls_is_given_up(
    pair: Pair, make_proxy: Callable[[str], FaultProxy], side: str
) -> None:
    proxy = make_proxy(getattr(pair, side))
    proxy.stall()
    slow = pair.but(
        limits=IMPATIENT | {side: {"connect_timeout_seconds": 0.5}},
        **{f"{side}_dsn": proxy.dsn(getattr(pair, side))},
    )
    started = time.monotonic()
    slow.refuse("status", exit_code=5, says=[f"The {side} did not answer within 0.5 s", "up and"])
    assert time.monotonic() - started < 10


def test_one_database_cannot_be_both_sides(pair: Pair) -> None:
    for other in (pair.monolith, make_conninfo(pair.monolith, application_name="other")):
        pair.but(service_dsn=other).refuse(
            "copy", exit_code=2, says=["Both DSNs lead to the same database", "Correct the DSN"]
        )


def test_one_database_is_recognised_through_a_proxy(
    pair: Pair, make_proxy: Callable[[str], FaultProxy]
) -> None:
    other = make_proxy(pair.monolith).dsn(pair.monolith)
    pair.but(service_dsn=other).refuse(
        "prepare", exit_code=2, says=["Both DSNs lead to the same database"]
    )


def test_dsns_that_were_swapped_later_are_refused(pair: Pair) -> None:
    pair.copy()
    swapped = pair.but(monolith_dsn=pair.service, service_dsn=pair.monolith)
    for command in COMMANDS:
        swapped.refuse(
            command,
            exit_code=2,
            says=["is the service of migration", "the two DSNs are swapped", "Put the DSNs back"],
        )


def test_a_service_of_another_migration_is_refused(pair: Pair, make_pair: MakePair) -> None:
    other = make_pair(ROWS, TABLE)
    pair.run("prepare")
    other.run("prepare")
    mixed = pair.but(service_dsn=other.service)
    before = other.pictures()
    for command in COMMANDS:
        mixed.refuse(
            command,
            exit_code=3,
            says=["belongs to migration", "the service to", "Correct the DSNs"],
        )
    assert other.pictures() == before


def test_a_service_that_was_lost_and_made_anew_is_refused(
    pair: Pair, make_database: MakeDatabase
) -> None:
    pair.run("prepare")
    anew = make_database("service", script=TABLE)
    pair.but(service_dsn=anew).refuse(
        "copy",
        exit_code=3,
        says=["The monolith belongs to migration", "the service's database does not"],
    )


def test_a_service_that_is_a_clone_of_the_monolith_is_refused(
    pair: Pair, make_database: MakeDatabase, postgres_servers: TestServers
) -> None:
    pair.run("prepare")
    name = str(conninfo_to_dict(pair.monolith)["dbname"])
    clone = make_database("monolith", template=name)
    pair.but(service_dsn=clone).refuse("copy", exit_code=2, says=["the two DSNs are swapped"])


def test_a_preparation_that_was_cut_short_is_finished(pair: Pair) -> None:
    """The monolith is written last, so the service's row alone is what a kill leaves behind."""
    pair.run("prepare")
    pair.on_monolith("DROP SCHEMA ordermigrate CASCADE")
    pair.move()


@pytest.mark.parametrize("command", ["copy", "prepare", "validate", "status"])
def test_a_monolith_that_has_forgotten_its_copy_is_refused(pair: Pair, command: str) -> None:
    """It is another database, or one restored from before: its rows are not those of the copy."""
    pair.move()
    pair.on_monolith("DROP SCHEMA ordermigrate CASCADE")
    assert_refused(pair.run(command), 3, ["belongs to migration", "Correct the monolith's DSN"])


def test_service_files_and_password_files_are_understood(
    pair: Pair, make_role: MakeRole, tmp_path: Path
) -> None:
    role = make_role(options="SUPERUSER")
    (tmp_path / "services.conf").write_text(
        "".join(
            f"[{side}]\nhost={where['host']}\nport={where['port']}\n"
            f"dbname={where['dbname']}\nuser={role}\n"
            for side, where in (
                ("hub", conninfo_to_dict(pair.monolith)),
                ("orders", conninfo_to_dict(pair.service)),
            )
        )
    )
    passwords = tmp_path / "pgpass"
    passwords.write_text(f"*:*:*:{role}:{PASSWORD}\n")
    passwords.chmod(0o600)
    env = {
        "PGSERVICEFILE": str(tmp_path / "services.conf"),
        "PGPASSFILE": str(passwords),
        "ORDERMIGRATE_MONOLITH_DSN": "service=hub",
        "ORDERMIGRATE_SERVICE_DSN": "service=orders",
    }
    for args in (("copy",), ("validate", "--checksums"), ("status",)):
        done = pair.run(*args, env=env)
        assert done.exit_code == 0, done.stderr
    passwords.write_text(f"*:*:*:{role}:wrong\n")
    assert_refused(pair.run("status", env=env), 2, ["does not let us in"])


HARD_PASSWORD = "p@ss:w/o?r#d %41&=\\'\"é✓"


def test_a_password_of_special_characters_works_as_uri_and_as_keywords(
    pair: Pair, make_role: MakeRole
) -> None:
    role = make_role(options="SUPERUSER", password=HARD_PASSWORD)
    where = conninfo_to_dict(pair.monolith)
    uri = (
        f"postgresql://{role}:{quote(HARD_PASSWORD, safe='')}@{where['host']}:{where['port']}"
        f"/{where['dbname']}"
    )
    strange = pair.but(monolith_dsn=uri, service_dsn=role_dsn(pair.service, role, HARD_PASSWORD))
    strange.move()


def test_a_password_is_never_printed_logged_or_stored(
    make_pair: MakePair, make_role: MakeRole, make_proxy: Callable[[str], FaultProxy]
) -> None:
    secret = "Xyzzy-Plugh-42"
    role = make_role(options="SUPERUSER", password=secret)
    pair = make_pair(ROWS, TABLE, limits=IMPATIENT)
    one, other = (role_dsn(dsn, role, secret) for dsn in (pair.monolith, pair.service))
    seen = pair.but(monolith_dsn=one, service_dsn=other)
    commands = [
        ("prepare", "--dry-run"),
        ("prepare", "--json"),
        ("copy", "--log-format", "json"),
        ("copy", "--json"),
        ("validate", "--checksums"),
        ("validate", "--json", "--log-format", "json"),
        ("status",),
        ("status", "--json"),
    ]
    done = [seen.run(*args) for args in commands]
    assert [each.exit_code for each in done] == [0] * len(done)
    proxy = make_proxy(pair.service)
    proxy.refuse()
    for wrong in (
        make_conninfo(other, user="nobody"),
        make_conninfo(other, dbname="nothing"),
        make_conninfo(other, port=find_free_port()),
        make_conninfo(other, sslmode="verify-full"),
        proxy.dsn(other),
        one,
    ):
        for args in (("status", "--json"), ("copy", "--log-format", "json")):
            done.append(seen.but(service_dsn=wrong).run(*args))
            assert done[-1].exit_code in {2, 5}
    said = "".join(each.stdout + each.stderr for each in done)
    assert "nobody" in said  # so there was something to look through
    assert secret not in said
    for dsn in (pair.monolith, pair.service):
        stored = execute(dsn, "SELECT query_to_xml('SELECT * FROM pg_tables', true, true, '')")
        assert stored
        for (table,) in execute(
            dsn,
            "SELECT oid::regclass::text FROM pg_class "
            "WHERE relnamespace = 'ordermigrate'::regnamespace AND relkind = 'r'",
        ):
            assert secret not in str(execute(dsn, f"SELECT t::text FROM {table} AS t"))
