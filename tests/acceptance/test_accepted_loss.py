"""The last way out: the service is lost, and the monolith becomes the owner without it."""

from __future__ import annotations

import psycopg
import pytest

from tests.acceptance.fix_running import (
    ROWS,
    TABLE,
    bring_up,
    catch_up,
    show_status,
    succeed,
)
from tests.fix_pairs import MakePair, Pair, assert_refused

CONNECTABLE = "ALTER DATABASE {} ALLOW_CONNECTIONS {}"


@pytest.fixture
def pair(make_pair: MakePair) -> Pair:
    """A service that owns the tables, and has written something that no round has taken back."""
    pair = bring_up(make_pair(ROWS, TABLE, limits={"retry_deadline_seconds": 0}))
    succeed(pair, "cutover")
    pair.on_service("UPDATE public.thing SET word = 'taken back' WHERE id = 1")
    catch_up(pair)
    pair.on_service("UPDATE public.thing SET word = 'lost' WHERE id = 2")
    return pair


def lose(dsn: str, *, is_lost: bool) -> None:
    """Let nobody into a database any more, or let them in again."""
    name = psycopg.conninfo.conninfo_to_dict(dsn)["dbname"]
    maintenance = psycopg.conninfo.make_conninfo(dsn, dbname="postgres")
    with psycopg.connect(maintenance, autocommit=True) as connection:
        connection.execute(CONNECTABLE.format(name, "false" if is_lost else "true").encode())
        if is_lost:
            connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [name]
            )


def test_nothing_is_given_up_while_the_service_answers(pair: Pair) -> None:
    assert_refused(pair.run("rollback", "--accept-loss"), 3, ["The service can be reached"])
    assert show_status(pair)["owner"] == "service"


def test_the_monolith_takes_writes_again_and_the_service_is_fenced_when_it_comes_back(
    pair: Pair,
) -> None:
    lose(pair.service, is_lost=True)
    assert pair.run("rollback").exit_code == 5
    done = succeed(pair, "rollback", "--accept-loss", "--json").json
    assert (done["outcome"], done["owner"]) == ("done", "monolith")
    pair.on_monolith("UPDATE public.thing SET word = 'goes on' WHERE id = 3")
    lose(pair.service, is_lost=False)
    found = show_status(pair)
    assert found["owner"] == "none"
    assert "BOTH sides take writes" in found["alarm"]
    assert "ordermigrate rollback" in found["alarm"]
    assert_refused(pair.run("sync", "--once"), 8, ["BOTH sides take writes"])
    stranded = pair.run("rollback")
    assert_refused(stranded, 8, ["fenced off again", "1 changes"])
    assert show_status(pair)["owner"] == "monolith"
    catch_up(pair)
    repaired = succeed(pair, "validate", "--checksums", "--repair", "--json").json
    assert repaired["repaired_rows"] == 1
    assert pair.compare()
    rows = pair.on_service("SELECT id, word FROM public.thing WHERE id < 4 ORDER BY id")
    assert rows == [(1, "taken back"), (2, "word 2"), (3, "goes on")]


def test_a_partition_that_came_meanwhile_does_not_shut_the_last_way_out(
    make_pair: MakePair,
) -> None:
    parted = (
        "CREATE TABLE public.thing (id integer PRIMARY KEY, word text) PARTITION BY RANGE (id);"
        "CREATE TABLE public.low PARTITION OF public.thing FOR VALUES FROM (0) TO (100)"
    )
    pair = bring_up(make_pair(parted, parted, limits={"retry_deadline_seconds": 0}))
    succeed(pair, "cutover")
    pair.on_monolith(
        "CREATE TABLE public.high PARTITION OF public.thing FOR VALUES FROM (100) TO (200)"
    )
    lose(pair.service, is_lost=True)
    assert succeed(pair, "rollback", "--accept-loss", "--json").json["owner"] == "monolith"
    pair.on_monolith("INSERT INTO public.thing VALUES (1, 'a'), (150, 'b')")
    lose(pair.service, is_lost=False)


def test_a_service_that_is_only_busy_is_not_given_up(pair: Pair) -> None:
    name = psycopg.conninfo.conninfo_to_dict(pair.service)["dbname"]
    role = psycopg.conninfo.conninfo_to_dict(pair.service)["user"]
    pair.on_service("CREATE ROLE busy LOGIN PASSWORD 'busy'")
    pair.on_service(f"GRANT {role} TO busy")
    busy = pair.but(
        service_dsn=psycopg.conninfo.make_conninfo(pair.service, user="busy", password="busy")
    )
    try:
        pair.on_service(f"ALTER DATABASE {name} CONNECTION LIMIT 0")
        assert_refused(busy.run("rollback", "--accept-loss"), 3, ["answers at least"])
    finally:
        pair.on_service(f"ALTER DATABASE {name} CONNECTION LIMIT -1")
        pair.on_service("DROP ROLE busy")


def test_a_rollback_that_was_cut_off_gives_the_tables_back_though_the_monolith_is_lost(
    pair: Pair,
) -> None:
    # As the service is between the two commits of a rollback.
    pair.on_service(
        "UPDATE ordermigrate.side SET is_hot = false, epoch = epoch + 1;"
        "ALTER TABLE public.thing ENABLE ALWAYS TRIGGER ordermigrate_fence;"
        "ALTER TABLE public.thing ENABLE ALWAYS TRIGGER ordermigrate_fence_row;"
        "ALTER TABLE public.thing DISABLE TRIGGER ordermigrate_capture_row;"
        "ALTER TABLE public.thing DISABLE TRIGGER ordermigrate_capture_truncate"
    )
    lose(pair.monolith, is_lost=True)
    done = succeed(pair, "rollback", "--abort", "--accept-loss", "--json").json
    assert (done["outcome"], done["owner"]) == ("done", "service")
    pair.on_service("UPDATE public.thing SET word = 'goes on' WHERE id = 3")
    lose(pair.monolith, is_lost=False)
    found = show_status(pair)
    assert found["owner"] == "service", found["alarm"]
    catch_up(pair)
    assert pair.compare()
