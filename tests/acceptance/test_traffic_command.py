"""`traffic`: reads are led to the service step by step, through gates, and back at any time."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from ordermigrate import reads
from tests.acceptance.fix_running import (
    ROWS,
    TABLE,
    WRITE,
    bring_up,
    catch_up,
    end_sync,
    show_status,
    succeed,
    syncing,
)
from tests.fix_faults import FaultProxy
from tests.fix_orders import StartCli
from tests.fix_pairs import MakePair, MakeRole, Pair, assert_refused, role_dsn
from tests.fix_postgres import execute

SHARE = "SELECT percentage FROM ordermigrate.traffic"
OLDER = "UPDATE ordermigrate.change_log_1 SET changed_at = changed_at - interval '1 minute'"


@pytest.fixture
def pair(make_pair: MakePair) -> Pair:
    """A table of 50 rows, followed and proved."""
    return make_pair(ROWS, TABLE, brought_by=bring_up)


def take_away(proxy: FaultProxy) -> None:
    """Cut what is open, and refuse what is new."""
    proxy.refuse()
    proxy.cut()


def shares(pair: Pair) -> tuple[int, int]:
    return int(pair.on_monolith(SHARE)[0][0]), int(pair.on_service(SHARE)[0][0])


def step(pair: Pair, percentage: int) -> dict[str, Any]:
    return succeed(pair, "traffic", str(percentage), "--json").json


def refuse_step(pair: Pair, percentage: int, *says: str, exit_code: int = 3) -> None:
    """A step up is refused, and nobody's reads change."""
    before = show_status(pair)["traffic"]
    done = pair.run("traffic", str(percentage))
    assert_refused(done, exit_code, says)
    assert show_status(pair)["traffic"] in (before, {"monolith": 0, "service": 0})


def test_reads_are_led_over_step_by_step_and_back(pair: Pair) -> None:
    found = succeed(pair, "traffic", "--json").json
    assert (found["outcome"], found["percentage"]) == ("shown", 0)
    assert found["traffic"] == {"monolith": None, "service": None}
    for percentage in (5, 10, 25, 50, 100, 10, 0):
        found = step(pair, percentage)
        assert (found["outcome"], found["percentage"]) == ("set", percentage)
        assert shares(pair) == (percentage, percentage)
        for ask in (pair.on_monolith, pair.on_service):
            answers = ask(
                "SELECT ordermigrate.reads_from_service(n::text) FROM generate_series(1, 500) n "
                "ORDER BY n"
            )
            assert [row[0] for row in answers] == [
                reads.is_among(str(user), percentage) for user in range(1, 501)
            ]
        assert step(pair, percentage)["outcome"] == "unchanged"
        assert show_status(pair)["traffic"] == {"monolith": percentage, "service": percentage}
        assert f"{percentage} % of users" in succeed(pair, "status").stdout
        assert f"{percentage} % of users" in succeed(pair, "traffic").stdout


@pytest.mark.parametrize("percentage", ["1", "20", "101", "-5", "ten", "5.0"])
def test_a_percentage_that_is_no_step_is_a_usage_error(
    make_pair: MakePair, percentage: str
) -> None:
    assert make_pair(ROWS, TABLE).run("traffic", percentage).exit_code == 2


def test_no_reads_are_led_before_there_is_anything_to_read(make_pair: MakePair) -> None:
    pair = make_pair(ROWS, TABLE)
    for args in ([], ["0"], ["5"]):
        assert_refused(pair.run("traffic", *args), 3, ["There is no migration"])
    succeed(pair, "prepare")
    assert step(pair, 0)["outcome"] == "unchanged"
    refuse_step(pair, 5, "phase prepared", "there was no validation")
    succeed(pair, "copy")
    refuse_step(pair, 5, "phase copied")


def test_every_shut_gate_is_told_at_once(pair: Pair) -> None:
    step(pair, 5)
    pair.on_monolith("VACUUM FULL public.thing")
    catch_up(pair)
    pair.on_monolith(WRITE)
    pair.on_monolith(OLDER)
    done = pair.run("traffic", "10", "--json")
    assert done.exit_code == 3
    found = done.json["findings"]
    assert [each.partition(":")[0] for each in found] == [
        found[0],
        "the last validation is void",
    ]
    assert "max_lag_seconds allows 5" in found[0]
    assert "another file" in found[1]
    assert shares(pair) == (5, 5)
    step(pair, 0)


def test_more_reads_are_refused_while_lag_is_over_its_limit(pair: Pair) -> None:
    pair.on_monolith(WRITE)
    step(pair, 5)
    pair.on_monolith(OLDER)
    refuse_step(pair, 10, "max_lag_seconds allows 5")
    slower = pair.but(limits={"max_lag_seconds": 600})
    assert step(slower, 10)["percentage"] == 10
    assert step(pair, 5)["percentage"] == 5  # less is never refused


def test_more_reads_are_refused_without_a_fresh_proof(pair: Pair) -> None:
    stale = pair.but(limits={"validation_age_minutes": 0.0001})
    refuse_step(stale, 5, "minutes old", "validation_age_minutes")
    step(pair, 5)
    pair.plant("UPDATE public.thing SET word = 'other' WHERE id = 1")
    assert pair.run("validate", "--checksums").exit_code == 4
    refuse_step(pair, 10, "found differences")
    succeed(pair, "validate", "--checksums", "--repair")
    succeed(pair, "validate")
    refuse_step(pair, 10, "only counted")
    pair.validate()
    assert step(pair, 10)["percentage"] == 10


def test_a_step_up_that_is_cut_off_sends_nobody_and_is_completed_by_another(
    pair: Pair, make_proxy: Callable[[str], FaultProxy]
) -> None:
    step(pair, 5)
    monolith, service = make_proxy(pair.monolith), make_proxy(pair.service)
    # The monolith goes away when the service commits, and before its own COMMIT comes.
    service.when_seen(
        b"SET percentage = $1", lambda: service.when_seen(b"COMMIT", lambda: take_away(monolith))
    )
    cut = pair.but(
        monolith_dsn=monolith.dsn(pair.monolith),
        service_dsn=service.dsn(pair.service),
        limits={"retry_deadline_seconds": 0.5},
    )
    done = cut.run("traffic", "25")
    assert_refused(done, 5, ["25 % by the service's word", "ordermigrate traffic 25"])
    assert shares(pair) == (5, 25)
    found = succeed(pair, "traffic", "--json").json
    assert found["percentage"] == 5
    assert found["traffic"] == {"monolith": 5, "service": 25}
    assert found["next_steps"][0]["command"] == "ordermigrate traffic 5"
    assert "the databases differ" in succeed(pair, "status").stdout
    assert step(pair, 25)["outcome"] == "set"
    assert shares(pair) == (25, 25)


@pytest.mark.parametrize("away", ["monolith", "service"])
def test_a_step_down_is_made_where_a_database_answers(
    pair: Pair, make_proxy: Callable[[str], FaultProxy], away: str
) -> None:
    step(pair, 50)
    dsn = pair.monolith if away == "monolith" else pair.service
    proxy = make_proxy(dsn)
    proxy.refuse()
    limits = {"retry_deadline_seconds": 0.5}
    cut = (
        pair.but(monolith_dsn=proxy.dsn(dsn), limits=limits)
        if away == "monolith"
        else pair.but(service_dsn=proxy.dsn(dsn), limits=limits)
    )
    up = "service" if away == "monolith" else "monolith"
    assert_refused(cut.run("traffic", "100"), 5, [f"The {away}'s database is not available"])
    assert shares(pair) == (50, 50)
    done = cut.run("traffic", "10", "--json")
    assert_refused(done, 5, [f"10 % by the {up}'s word", "ordermigrate traffic 10"])
    assert done.json["outcome"] == "unavailable"
    assert shares(pair) == ((50, 10) if away == "monolith" else (10, 50))
    proxy.heal()
    succeed(cut, "traffic", "10")
    assert shares(pair) == (10, 10)


def test_readers_are_let_in_by_the_configuration(make_role: MakeRole, make_pair: MakePair) -> None:
    reader = make_role("reader")
    pair = bring_up(make_pair(ROWS, TABLE))
    path = pair.write_toml(tables=pair.tables)
    text = path.read_text("utf-8") + f'\n[traffic]\nreaders = ["{reader}", "nobody_here"]\n'
    path.write_text(text, "utf-8")
    done = pair.run_here("traffic", "100", "--json", monolith=pair.monolith, service=pair.service)
    assert done.exit_code == 0, done.stderr
    notes = json.loads(done.stdout)["notes"]
    assert [
        f"the {side}'s server has no role nobody_here: it cannot ask there"
        for side in ("service", "monolith")
    ] == notes[:2]
    for dsn in (pair.monolith, pair.service):
        answer = execute(role_dsn(dsn, reader), "SELECT ordermigrate.reads_from_service('7')")
        assert answer == [(True,)]


def test_reads_are_led_back_before_the_service_loses_its_rows(pair: Pair) -> None:
    step(pair, 5)
    for command in (["cancel"], ["copy", "--restart"]):
        assert_refused(pair.run(*command), 3, ["Users read from the service", "traffic 0"])
    step(pair, 0)
    succeed(pair, "copy", "--restart")
    succeed(pair, "cancel")
    for ask in (pair.on_monolith, pair.on_service):
        assert ask("SELECT nspname FROM pg_namespace WHERE nspname = 'ordermigrate'") == []


def test_a_migration_that_has_lost_a_side_can_be_cancelled_whatever_its_share(pair: Pair) -> None:
    step(pair, 5)
    pair.on_monolith("DROP SCHEMA ordermigrate CASCADE")
    assert_refused(pair.run("traffic", "0"), 3, ["ordermigrate cancel"])
    succeed(pair, "cancel")


def test_no_step_is_taken_when_the_service_owns_the_tables(pair: Pair) -> None:
    step(pair, 25)
    # As a cutover leaves the two rows.
    pair.on_monolith("UPDATE ordermigrate.side SET is_hot = false, epoch = 1")
    pair.on_service("UPDATE ordermigrate.side SET is_hot = true, epoch = 1")
    for percentage in ("0", "50"):
        assert_refused(pair.run("traffic", percentage), 3, ["The service owns the tables now"])
    found = succeed(pair, "traffic", "--json").json
    assert (found["owner"], found["percentage"]) == ("service", 100)
    assert shares(pair) == (25, 25)


# Held back by sync


def lagging(pair: Pair) -> Pair:
    return pair.but(limits={"max_lag_seconds": 1, "lock_timeout_seconds": 2})


def test_reads_are_held_back_when_lag_stays_over_its_limit(pair: Pair, start_cli: StartCli) -> None:
    pair = lagging(pair)
    step(pair, 25)
    with syncing(pair, start_cli) as running:
        with psycopg.connect(pair.service) as blocker:
            blocker.execute("LOCK TABLE public.thing IN ACCESS EXCLUSIVE MODE")
            pair.on_monolith(WRITE)
            running.wait_for_event("traffic_held_back", 2)
            assert shares(pair) == (0, 0)
            found = succeed(pair, "traffic", "--json").json
            assert found["percentage"] == 0
            assert "held back by sync" in found["reason"]
            refuse_step(pair, 5, "max_lag_seconds allows 1")
        end_sync(running)
    told = [each for each in running.events if each["event"] == "traffic_held_back"]
    assert [(each["side"], each["was_percentage"]) for each in told] == [
        ("monolith", 25),
        ("service", 25),
    ]
    # In step again, nobody is led over by itself.
    catch_up(pair)
    assert shares(pair) == (0, 0)
    assert step(pair, 5)["percentage"] == 5


def test_reads_are_held_back_on_the_monoliths_word_when_the_service_is_away(
    pair: Pair, make_proxy: Callable[[str], FaultProxy], start_cli: StartCli
) -> None:
    proxy = make_proxy(pair.service)
    cut = lagging(pair).but(service_dsn=proxy.dsn(pair.service))
    step(pair, 25)
    with syncing(cut, start_cli) as running:
        take_away(proxy)
        pair.on_monolith(WRITE)
        running.wait_for_event("traffic_held_back", 1)
        assert shares(pair) == (0, 25)
        proxy.heal()
        running.wait_for_event("traffic_held_back", 2)
        end_sync(running)


def test_a_service_that_nobody_writes_to_is_never_behind(pair: Pair, start_cli: StartCli) -> None:
    pair = lagging(pair)
    step(pair, 25)
    with syncing(pair, start_cli) as running:
        with psycopg.connect(pair.service) as blocker:
            blocker.execute("LOCK TABLE public.thing IN ACCESS EXCLUSIVE MODE")
            # Sync opens its line anew and cannot; nothing waits, so nobody is held back.
            execute(
                pair.monolith,
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE datname = current_database() AND application_name LIKE 'ordermigrate sync%'",
            )
            running.wait_for_event("sync_waits", 3)
        end_sync(running)
    assert shares(pair) == (25, 25)


def test_sync_asks_nothing_of_traffic_while_all_is_well(pair: Pair, start_cli: StartCli) -> None:
    names = (
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() "
        "AND application_name = 'ordermigrate sync: traffic'"
    )
    with syncing(pair, start_cli) as running:
        running.wait_for_event("quiet", 20)
        for ask in (pair.on_monolith, pair.on_service):
            assert ask(names) == [(0,)]
        end_sync(running)
