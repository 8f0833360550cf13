"""Rollback by a moment in time: where no log says what the service has written."""

# ruff: noqa: S608  the statements are the test's own, on tables of its own

from __future__ import annotations

from types import ModuleType

import pytest

from ordermigrate import ledger, quarantine, settling
from ordermigrate.errors import Unavailable
from tests.acceptance.fix_running import bring_up, catch_up, show_status, succeed
from tests.fix_pairs import MakePair, Pair, assert_refused
from tests.fix_postgres import execute

TABLE = (
    "CREATE TABLE public.thing (id integer PRIMARY KEY, word text, "
    "created_at timestamptz NOT NULL DEFAULT now(), updated_at timestamptz NOT NULL DEFAULT now())"
)
ROWS = (
    f"{TABLE}; INSERT INTO public.thing SELECT n, 'word ' || n, '2026-01-01', '2026-01-01' "
    "FROM generate_series(1, 50) n"
)
TABLES = [{"name": "public.thing", "created": "created_at", "updated": "updated_at"}]
SINCE = "2026-06-01T00:00:00Z"


@pytest.fixture
def opened(make_pair: MakePair) -> Pair:
    """A service that was copied, left without a migration, and opened behind everyone's back."""
    pair = bring_up(make_pair(ROWS, TABLE, tables=TABLES))
    succeed(pair, "cancel")
    pair.on_service("INSERT INTO public.thing VALUES (100, 'new', '2026-07-01', '2026-07-01')")
    pair.on_service("UPDATE public.thing SET word = 'mine', updated_at = '2026-07-02' WHERE id = 5")
    pair.on_service("DELETE FROM public.thing WHERE id = 6")
    return pair


def test_rows_since_a_moment_come_back_and_the_monolith_owns_them(opened: Pair) -> None:
    planned = succeed(opened, "rollback", "--since", SINCE, "--dry-run", "--json").json
    assert planned["outcome"] == "planned"
    assert any("take 2 rows of public.thing" in step for step in planned["steps_taken"])
    done = succeed(opened, "rollback", "--since", SINCE, "--json").json
    assert (done["outcome"], done["owner"]) == ("done", "monolith")
    assert opened.compare()
    rows = execute(opened.monolith, "SELECT word FROM public.thing WHERE id IN (5, 6, 100)")
    assert sorted(rows) == [("mine",), ("new",)]
    catch_up(opened)
    opened.validate()
    assert show_status(opened)["owner"] == "monolith"


@pytest.mark.parametrize(
    ("module", "function"),
    [(ledger, "change_phase"), (quarantine, "install"), (settling, "arm"), (settling, "settle")],
)
def test_a_rollback_by_a_moment_that_was_cut_off_goes_on(
    opened: Pair, module: ModuleType, function: str
) -> None:
    async def cut_off(*_: object, **__: object) -> None:
        raise Unavailable("The network is gone")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, function, cut_off)
        assert opened.run("rollback", "--since", SINCE).exit_code == 5
    assert succeed(opened, "rollback", "--since", SINCE, "--json").json["owner"] == "monolith"
    assert opened.compare()


def test_what_a_moment_does_not_see_keeps_the_owner_where_it_is(opened: Pair) -> None:
    opened.on_service("UPDATE public.thing SET word = 'unseen' WHERE id = 7")
    refused = opened.run("rollback", "--since", SINCE)
    assert_refused(refused, 3, ["1 rows of the service were changed without", "--repair"])
    assert show_status(opened)["owner"] == "service"
    succeed(opened, "validate", "--checksums", "--repair")
    assert succeed(opened, "rollback", "--json").json["owner"] == "monolith"
    assert execute(opened.monolith, "SELECT word FROM public.thing WHERE id = 7") == [("unseen",)]


def test_a_monolith_that_was_written_to_since_then_is_not_overwritten(opened: Pair) -> None:
    opened.on_monolith("INSERT INTO public.thing VALUES (200, 'own', '2026-08-01', '2026-08-01')")
    refused = opened.run("rollback", "--since", SINCE)
    assert_refused(refused, 3, ["1 of public.thing", "--accept-loss"])
    assert execute(
        opened.monolith, "SELECT count(*) FROM pg_namespace WHERE nspname = 'ordermigrate'"
    ) == [(0,)]
    done = succeed(opened, "rollback", "--since", SINCE, "--accept-loss", "--json").json
    assert done["owner"] == "monolith"
    assert execute(opened.monolith, "SELECT 1 FROM public.thing WHERE id = 200") == []


def test_lost_logs_of_an_owner_are_made_up_for_by_a_moment(make_pair: MakePair) -> None:
    pair = bring_up(make_pair(ROWS, TABLE, tables=TABLES))
    succeed(pair, "cutover")
    pair.on_service("ALTER TABLE public.thing DISABLE TRIGGER USER")
    pair.on_service("UPDATE public.thing SET word = 'mine', updated_at = '2026-07-02' WHERE id = 5")
    assert_refused(pair.run("rollback"), 3, ["Capture on the service has gaps"])
    assert succeed(pair, "rollback", "--since", SINCE, "--json").json["owner"] == "monolith"
    assert execute(pair.monolith, "SELECT word FROM public.thing WHERE id = 5") == [("mine",)]


def test_capture_that_was_mended_does_not_make_up_for_what_it_has_missed(
    make_pair: MakePair,
) -> None:
    pair = bring_up(make_pair(ROWS, TABLE, tables=TABLES))
    succeed(pair, "cutover")
    pair.on_service("ALTER TABLE public.thing DISABLE TRIGGER USER")
    pair.on_service("UPDATE public.thing SET word = 'mine' WHERE id = 5")
    succeed(pair, "prepare")
    assert_refused(pair.run("rollback"), 3, ["validation: ", "had gaps"])
    succeed(pair, "validate", "--checksums", "--repair")
    assert succeed(pair, "rollback", "--json").json["owner"] == "monolith"
    assert execute(pair.monolith, "SELECT word FROM public.thing WHERE id = 5") == [("mine",)]


def test_a_moment_that_is_none_is_refused(opened: Pair) -> None:
    assert_refused(opened.run("rollback", "--since", "yesterdayish"), 2, ["is no moment"])


def test_a_write_to_the_monolith_before_its_fence_is_up_is_noticed_by_the_next_run(
    opened: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def cut_off(*_: object, **__: object) -> None:
        raise Unavailable("The network is gone")

    monkeypatch.setattr(settling, "arm", cut_off)
    assert opened.run("rollback", "--since", SINCE).exit_code == 5
    monkeypatch.undo()
    opened.on_monolith("INSERT INTO public.thing VALUES (300, 'late', '2026-08-01', '2026-08-01')")
    refused = opened.run("rollback", "--since", SINCE)
    assert_refused(refused, 3, ["1 of public.thing", "--accept-loss"])
    assert opened.on_monolith("SELECT word FROM public.thing WHERE id = 300") == [("late",)]


def test_a_time_without_a_zone_counts_from_twelve_hours_before(make_pair: MakePair) -> None:
    table = TABLE.replace("timestamptz", "timestamp")
    rows = ROWS.replace("timestamptz", "timestamp")
    pair = bring_up(make_pair(rows, table, tables=TABLES))
    succeed(pair, "cancel")
    # Written after the moment by a clock that is three hours behind.
    pair.on_monolith(
        "INSERT INTO public.thing VALUES (200, 'own', '2026-05-31 22:00', '2026-05-31 22:00')"
    )
    assert_refused(pair.run("rollback", "--since", SINCE), 3, ["1 of public.thing"])
