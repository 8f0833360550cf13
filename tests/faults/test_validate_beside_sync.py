"""Validation while writers write and sync goes on: never a false alarm, nothing hidden."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Callable, Mapping

import pytest

from tests.faults.fix_copying import names
from tests.faults.fix_syncing import Syncing, await_progress, stop_sync, told
from tests.fix_family import KINDS, TRUNCATE
from tests.fix_faults import FaultProxy
from tests.fix_orders import CliResult, RunningCli, execute_behind_fence
from tests.fix_postgres import SIDES, Side

EVENTS = ("round_begun", "round_half_committed", "check_started", "check_finished")
VERDICTS = "SELECT verdict, count(*) FROM ordermigrate.validation GROUP BY verdict"
# What nobody but the program could have written on the service, on rows that no writer touches.
PLANTED: Mapping[str, str] = {
    "changed": "UPDATE public.orders SET price = price + 0.01 WHERE user_id = 900001",
    "changed in scale": "UPDATE public.orders SET price = 1.50 WHERE user_id = 900001",
    "lost": "DELETE FROM public.orders WHERE user_id = 900001",
    "invented": "INSERT INTO public.orders SELECT (jsonb_populate_record(o, jsonb_build_object("
    "'id', gen_random_uuid(), 'slot', NULL))).* FROM public.orders AS o WHERE user_id = 900001",
}


def validate(
    syncing: Syncing, *, at: tuple[str, int, Callable[[RunningCli], object]] | None = None
) -> RunningCli:
    """Start `validate --checksums`."""
    return syncing.start_cli("validate", "--checksums", "--json", at=at)


def add_quiet_orders(syncing: Syncing) -> None:
    """Add an order of a user whom no writer writes to."""
    syncing.on(
        "monolith",
        "INSERT INTO public.orders (id, user_id, price, created_at, updated_at) "
        "VALUES (gen_random_uuid(), 900001, 1.5, now(), now())",
    )


def require_equal(done: CliResult) -> None:
    assert done.exit_code == 0, told(done) + done.stdout
    assert done.json["outcome"] == "equal"


def test_validations_under_traffic_never_find_a_difference(syncing: Syncing) -> None:
    with syncing.traffic(pause_seconds=0.05) as traffic:
        running = syncing.start()
        await_progress(running)
        for _ in range(10):
            found = json.loads(syncing.run("validate", "--checksums", "--json"))
            assert found["outcome"] == "equal"
        await_progress(running)
        stop_sync(running)
        assert syncing.on("service", VERDICTS) == [("equal", 10)]
        syncing.settle(traffic)


@pytest.mark.parametrize("planted", PLANTED)
def test_a_planted_difference_is_found_under_traffic(syncing: Syncing, planted: str) -> None:
    add_quiet_orders(syncing)
    with syncing.traffic() as traffic:
        running = syncing.start()
        await_progress(running)
        require_equal(validate(syncing).finish())
        execute_behind_fence(syncing.dsn("service"), PLANTED[planted])
        for _ in range(2):
            found = validate(syncing).finish()
            assert found.exit_code == 4, told(found) + found.stdout
            (orders,) = [t for t in found.json["tables"] if t["name"] == "public.orders"]
            assert orders["differences_total"] == 1, orders
        repaired = syncing.start_cli("validate", "--checksums", "--repair", "--json").finish()
        assert repaired.exit_code == 0, told(repaired) + repaired.stdout
        stop_sync(running)
        syncing.settle(traffic)


@pytest.mark.parametrize("cut_off", SIDES)
def test_rows_that_were_marked_before_a_connection_was_lost_count_as_repaired(
    syncing: Syncing, cut_off: Side
) -> None:
    add_quiet_orders(syncing)
    syncing.catch_up()
    execute_behind_fence(syncing.dsn("service"), PLANTED["changed"])
    cut = ("repairing", 1, lambda _: syncing.proxies[cut_off].cut())
    done = syncing.start_cli("validate", "--checksums", "--repair", "--json", at=cut).finish()
    assert done.exit_code == 0, told(done) + done.stdout
    assert "sync_waits" in names(done)
    assert done.json["repaired_rows"] == 1


@pytest.mark.parametrize("event", EVENTS)
def test_a_killed_validation_harms_neither_sync_nor_the_next_one(
    syncing: Syncing, event: str
) -> None:
    with syncing.traffic() as traffic:
        running = syncing.start()
        await_progress(running)
        killed = validate(syncing, at=(event, 1, RunningCli.kill)).finish()
        assert killed.exit_code == -signal.SIGKILL, told(killed)
        assert syncing.on("service", VERDICTS) == []
        await_progress(running)
        require_equal(validate(syncing).finish())
        stop_sync(running)
        syncing.settle(traffic)


@pytest.mark.parametrize("event", EVENTS)
def test_a_sync_killed_beside_a_validation_makes_no_false_difference(
    syncing: Syncing, event: str
) -> None:
    with syncing.traffic() as traffic:
        running = syncing.start()
        await_progress(running)
        require_equal(validate(syncing, at=(event, 1, lambda _: running.kill())).finish())
        assert running.finish().exit_code == -signal.SIGKILL
        syncing.settle(traffic)


@pytest.mark.parametrize("event", ["round_begun", "changes_staged", "round_half_committed"])
def test_a_sync_killed_in_its_round_beside_validations_makes_no_false_difference(
    syncing: Syncing, event: str
) -> None:
    with syncing.traffic(pause_seconds=0.05) as traffic:
        for nth in range(1, 4):
            running = syncing.start(at=(event, nth, RunningCli.kill))
            require_equal(validate(syncing).finish())
            running.kill()
            running.finish()
        syncing.settle(traffic)


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("event", EVENTS)
def test_a_network_cut_during_a_validation_is_an_error_or_survived_never_a_difference(
    syncing: Syncing, event: str, side: Side
) -> None:
    proxy = syncing.proxies[side]
    with syncing.traffic() as traffic:
        running = syncing.start()
        await_progress(running)
        found = validate(syncing, at=(event, 1, lambda _: proxy.cut())).finish()
        assert found.exit_code in {0, 5}, told(found) + found.stdout
        assert "Traceback" not in found.stderr
        await_progress(running)
        stop_sync(running)
        syncing.settle(traffic)


def test_a_validation_without_any_sync_takes_its_own_round(syncing: Syncing) -> None:
    with syncing.traffic(kinds=(*KINDS, TRUNCATE)) as traffic:
        traffic.wait_for_commits(30)
        done = validate(syncing).finish()
        require_equal(done)
        assert names(done).count("round_applied") >= 1
        syncing.settle(traffic)


# ------------------------------------------------------------- what happens in the middle of it

UNLOGGED = """
ALTER TABLE public.orders DISABLE TRIGGER ordermigrate_capture_row;
UPDATE public.orders SET price = price + 1 WHERE user_id = 900001;
ALTER TABLE public.orders ENABLE ALWAYS TRIGGER ordermigrate_capture_row
"""
# What a validation's scan says to the service, when both snapshots have been taken.
SCAN = b"GROUP BY counted.status"
IN_ORDER = "SELECT verdict FROM ordermigrate.validation ORDER BY validation_id"


def hold_scan(syncing: Syncing) -> tuple[RunningCli, FaultProxy]:
    """Start a validation, and return when it waits in its scan for as long as the proxy stalls."""
    syncing.configure(stall_timeout_seconds=60.0)
    proxy, is_held = syncing.proxies["service"], threading.Event()

    def hold() -> None:
        proxy.stall()
        is_held.set()

    proxy.when_seen(SCAN, hold)
    running = validate(syncing)
    assert is_held.wait(60)
    return running, proxy


def test_what_happens_while_a_validation_compares_makes_it_void(
    syncing: Syncing, make_proxy: Callable[[str], FaultProxy]
) -> None:
    add_quiet_orders(syncing)
    syncing.catch_up()
    running, held = hold_scan(syncing)
    syncing.proxies = {side: make_proxy(syncing.dsn(side)) for side in SIDES}
    syncing.configure()
    syncing.on("monolith", UNLOGGED)
    syncing.catch_up()
    held.heal()
    # Its snapshots were equal, and that is on record; but it is void, so it looks once more.
    done = running.finish()
    assert "capture_row" in running.wait_for_event("sync_waits")["reason"]
    assert done.exit_code == 4, told(done) + done.stdout
    assert syncing.on("service", IN_ORDER) == [("equal",), ("different",)]


def test_a_round_between_the_two_snapshots_is_no_difference(
    syncing: Syncing, make_proxy: Callable[[str], FaultProxy]
) -> None:
    """The turn is lost after the round; what another round then brings is not compared."""
    add_quiet_orders(syncing)
    syncing.catch_up()
    syncing.configure(stall_timeout_seconds=60.0)
    proxy, is_held = syncing.proxies["service"], threading.Event()

    def hold() -> None:
        proxy.stall()
        is_held.set()

    # The scanner on the service is about to open: the round is over, its snapshot still to come.
    proxy.when_seen(b"ordermigrate validate: scan", hold)
    running = validate(syncing)
    assert is_held.wait(60)
    assert syncing.end_backends("service") == 1
    syncing.proxies = {side: make_proxy(syncing.dsn(side)) for side in SIDES}
    syncing.configure()
    syncing.on("monolith", "UPDATE public.orders SET price = price + 1 WHERE user_id = 900001")
    syncing.catch_up()
    proxy.heal()
    require_equal(running.finish())
    running.wait_for_event("sync_waits")


@pytest.mark.parametrize("side", SIDES)
def test_a_validation_after_a_failover_is_not_void_by_its_own_round(
    syncing: Syncing, side: Side
) -> None:
    syncing.catch_up()
    require_equal(validate(syncing).finish())
    syncing.on(side, "UPDATE ordermigrate.side SET timeline = timeline + 1")
    require_equal(validate(syncing).finish())
    assert syncing.on("service", IN_ORDER) == [("equal",)] * 2
    last = json.loads(syncing.run("status", "--json"))["last_validation"]
    assert not last["is_void"], last
