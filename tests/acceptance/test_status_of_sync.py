"""What `status` says of a migration that is followed, whatever state it is in."""

# ruff: noqa: S608  the statements are the test's own, on tables of its own

from __future__ import annotations

import time

import psycopg
import pytest

from tests.acceptance.fix_running import (
    ROWS,
    TABLE,
    WRITE,
    bring_up,
    catch_up,
    end_sync,
    find_void,
    require_end,
    show_status,
    succeed,
    syncing,
)
from tests.fix_orders import StartCli
from tests.fix_pairs import MakePair, Pair, assert_refused

KEYS = (
    "backlog",
    "lag_seconds",
    "is_syncing",
    "last_round",
    "fences",
    "refused_writes",
    "capture_gaps",
)


@pytest.fixture
def pair(make_pair: MakePair) -> Pair:
    """A table of 50 rows, followed and proved."""
    return make_pair(ROWS, TABLE, brought_by=bring_up)


def test_status_before_anything_knows_nothing_of_sync(make_pair: MakePair) -> None:
    pair = make_pair(ROWS, TABLE)
    found = show_status(pair)
    assert [found[key] for key in KEYS] == [None] * 6 + [[]]
    assert found["last_validation"] is None
    succeed(pair, "prepare")
    pair.on_monolith(WRITE)
    found = show_status(pair)
    assert (found["backlog"], found["is_syncing"], found["last_round"]) == (10, False, None)
    assert found["fences"] == {"monolith": "off", "service": "on"}
    assert (found["refused_writes"], found["capture_gaps"]) == (0, [])
    assert "10 changes" in succeed(pair, "status").stdout


def test_status_counts_what_waits_and_how_long(pair: Pair) -> None:
    pair.on_monolith(WRITE)
    time.sleep(1.1)
    pair.on_monolith("DELETE FROM public.thing WHERE id = 1")
    found = show_status(pair)
    assert (found["backlog"], found["is_syncing"]) == (11, False)
    assert 1.1 <= found["lag_seconds"] < 60
    said = succeed(pair, "status").stdout
    assert "11 changes" in said
    assert "sync is not running" in said
    catch_up(pair)
    found = show_status(pair)
    assert (found["backlog"], found["lag_seconds"]) == (0, 0)
    last = found["last_round"]
    assert (last["changes"], last["written"], last["deleted"]) == (11, 10, 1)
    assert last["is_complete"]
    assert 0 <= last["age_seconds"] < 60
    assert last["seconds"] >= 0
    assert last["rounds_per_second"] >= 0
    assert "11 changes in" in succeed(pair, "status").stdout


def test_status_tells_whether_a_sync_is_at_work(pair: Pair, start_cli: StartCli) -> None:
    with syncing(pair, start_cli) as running:
        found = show_status(pair)
        assert found["is_syncing"]
        assert found["next_steps"] == [
            {"command": "ordermigrate cutover --dry-run", "reason": "in sync and proved equal"}
        ]
        assert "sync is at work" in succeed(pair, "status").stdout
        for number in range(20):
            pair.on_monolith(f"UPDATE public.thing SET number = {number} WHERE id = 1")
        running.wait_for_event("round_applied", 2)
        assert show_status(pair)["last_round"]["rounds_per_second"] > 0
        end_sync(running)
    found = show_status(pair)
    assert not found["is_syncing"]
    assert found["next_steps"][0]["command"] == "ordermigrate sync"


def test_status_does_not_take_a_killed_sync_for_one_at_work(
    pair: Pair, start_cli: StartCli
) -> None:
    with syncing(pair, start_cli) as running:
        running.kill()
        running.finish()
    deadline = time.monotonic() + 20
    while show_status(pair)["is_syncing"]:
        assert time.monotonic() < deadline
        time.sleep(0.2)
    require_end(pair)


def test_status_says_why_a_validation_is_void(pair: Pair) -> None:
    pair.on_monolith("VACUUM FULL public.thing")
    catch_up(pair)
    assert "another file" in (find_void(pair) or "")
    said = " ".join(succeed(pair, "status").stdout.split())
    assert "void" in said
    assert "another file" in said
    steps = show_status(pair)["next_steps"]
    assert "ordermigrate validate --checksums" in [each["command"] for each in steps]
    require_end(pair)


def test_status_shows_gaps_in_capture_and_fence(pair: Pair) -> None:
    pair.on_monolith("DROP TRIGGER ordermigrate_capture_truncate ON public.thing")
    pair.on_service("ALTER TABLE public.thing DISABLE TRIGGER ordermigrate_fence")
    found = show_status(pair)
    gap = "trigger ordermigrate_capture_truncate on public.thing is missing"
    assert found["capture_gaps"] == [gap]
    assert found["fences"] == {"monolith": "off", "service": "partial"}
    said = " ".join(succeed(pair, "status").stdout.split())
    assert gap in said
    assert "service partial" in said
    succeed(pair, "prepare")
    assert show_status(pair)["capture_gaps"] == []
    require_end(pair)


@pytest.mark.parametrize("side", ["monolith", "service"])
def test_status_answers_whatever_has_become_of_the_tables(pair: Pair, side: str) -> None:
    pair.on_monolith(WRITE)
    for change in (
        "ALTER TABLE public.thing DISABLE TRIGGER ALL",
        "CREATE INDEX ON public.thing (word)",
        "ALTER TABLE public.thing SET UNLOGGED",
        "ALTER TABLE public.thing RENAME id TO key_id",
        "ALTER TABLE public.thing DROP CONSTRAINT thing_pkey",
        "ALTER TABLE public.thing DROP COLUMN key_id",
        "ALTER TABLE public.thing RENAME TO things",
        "CREATE VIEW public.thing AS SELECT * FROM public.things",
        "DROP TABLE public.things CASCADE",
    ):
        (pair.on_monolith if side == "monolith" else pair.on_service)(change)
        found = show_status(pair)
        assert (found["phase"], found["backlog"]) == ("syncing", 10), change
        assert found["tables"][0]["name"] == "public.thing"
    succeed(pair, "status")


def test_status_answers_beside_an_exclusive_lock(pair: Pair) -> None:
    with psycopg.connect(pair.monolith) as one, psycopg.connect(pair.service) as other:
        for connection in (one, other):
            connection.execute("LOCK TABLE public.thing IN ACCESS EXCLUSIVE MODE")
        assert show_status(pair)["phase"] == "syncing"


@pytest.mark.parametrize(
    ("lost", "says"),
    [
        ("DROP TABLE ordermigrate.change_log_1", None),
        ("DROP TABLE ordermigrate.capture", None),
        ("DROP SCHEMA ordermigrate CASCADE", "belongs to migration"),
        ("DROP TABLE ordermigrate.side", "belongs to migration"),
    ],
)
def test_status_of_a_monolith_that_has_lost_what_is_ours_is_no_traceback(
    pair: Pair, lost: str, says: str | None
) -> None:
    pair.on_monolith(lost)
    done = pair.run("status", "--json")
    if says is None:
        assert done.exit_code == 0, done.stderr
        assert "Traceback" not in done.stderr
        assert done.json["phase"] == "syncing"
        assert_refused(pair.run("sync"), 3, ["the change log of public.thing is missing"])
    else:
        assert_refused(done, 3, [says, "ordermigrate cancel"])


@pytest.mark.parametrize(
    "lost",
    [
        "DROP SCHEMA ordermigrate CASCADE",
        "DROP TABLE ordermigrate.side",
    ],
)
def test_status_of_a_service_that_has_lost_what_is_ours_is_no_traceback(
    pair: Pair, lost: str
) -> None:
    pair.on_service(lost)
    assert_refused(pair.run("status"), 3, ["The monolith belongs to migration", "begin anew"])


def test_status_of_a_migration_that_is_being_cancelled_says_how_to_finish_it(pair: Pair) -> None:
    pair.on_service("""UPDATE ordermigrate.side SET intent = '{"cancel": true}'""")
    assert_refused(pair.run("status"), 3, ["cut off half-way", "ordermigrate cancel"])
    pair.on_monolith("DROP SCHEMA ordermigrate CASCADE")
    assert_refused(pair.run("status"), 3, ["cut off half-way", "ordermigrate cancel"])
    succeed(pair, "cancel")
    assert show_status(pair)["phase"] == "new"
