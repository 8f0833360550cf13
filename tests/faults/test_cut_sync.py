"""Networks that break or stand still, backends that are ended: sync goes on by itself."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from tests.faults.fix_copying import in_background, names
from tests.faults.fix_syncing import (
    ANY_SYNC,
    LAST_TO,
    ROUND_EVENTS,
    Syncing,
    await_progress,
    stop_sync,
    told,
)
from tests.fix_orders import RunningCli
from tests.fix_postgres import SIDES, Side


def go_on(running: RunningCli) -> None:
    """Wait until a sync that had a fault is at work again, and let it end."""
    await_progress(running)
    done = stop_sync(running)
    assert "sync_waits" in names(done)
    assert "Traceback" not in done.stderr
    assert "never retrieved" not in done.stderr


def break_at_every_event(
    running: RunningCli, fault: Callable[[], object], mend: Callable[[], object] = lambda: None
) -> None:
    """Do something at an event of each kind; each time sync has to notice, and to go on."""
    for event in ROUND_EVENTS:
        running.wait_for_event(event, names(running).count(event) + 1)
        known = names(running).count("sync_waits")
        fault()
        running.wait_for_event("sync_waits", known + 1)
        mend()
        await_progress(running, rounds=1)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("side", SIDES)
def test_a_network_cut_at_every_event_is_survived_by_sync_itself(
    syncing: Syncing, side: Side
) -> None:
    with syncing.traffic(is_slow=True) as traffic:
        running = syncing.start()
        break_at_every_event(running, syncing.proxies[side].cut)
        go_on(running)
        syncing.settle(traffic)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("side", SIDES)
def test_a_network_that_stands_still_at_every_event_is_survived(
    syncing: Syncing, side: Side
) -> None:
    # What is on its way when it stands still arrives when it is well again, from a sync that has
    # given up on it; a COMMIT may be among it.
    proxy = syncing.proxies[side]
    with syncing.traffic(is_slow=True) as traffic:
        running = syncing.start()
        break_at_every_event(running, proxy.stall, proxy.heal)
        go_on(running)
        syncing.settle(traffic)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("side", SIDES)
def test_a_backend_ended_at_every_event_is_replaced(syncing: Syncing, side: Side) -> None:
    with syncing.traffic(is_slow=True) as traffic:
        running = syncing.start()
        break_at_every_event(running, lambda: syncing.end_backends(side))
        go_on(running)
        syncing.settle(traffic)


@pytest.mark.parametrize("side", SIDES)
def test_all_backends_ended_again_and_again_are_replaced(syncing: Syncing, side: Side) -> None:
    with syncing.traffic() as traffic:
        running = syncing.start()
        running.wait_for_event("round_applied")
        for _ in range(3):
            assert syncing.end_backends(side, ANY_SYNC) >= 1
            await_progress(running, rounds=1)
        go_on(running)
        syncing.settle(traffic)


@pytest.mark.parametrize("side", SIDES)
def test_a_commit_whose_reply_is_lost_is_found_done_or_done_again(
    syncing: Syncing, side: Side
) -> None:
    proxy = syncing.proxies[side]

    def mend() -> None:
        proxy.wait_until(lambda proxy: proxy.swallowed_bytes > 0)
        proxy.cut()
        proxy.heal()

    with syncing.traffic() as traffic:
        syncing.at_commit(side, proxy.swallow_replies)
        running = syncing.start()
        with in_background(mend):
            running.wait_for_event("sync_waits")
        go_on(running)
        syncing.settle(traffic)


@pytest.mark.parametrize("side", SIDES)
def test_a_commit_that_is_never_answered_is_given_up(syncing: Syncing, side: Side) -> None:
    proxy = syncing.proxies[side]
    with syncing.traffic() as traffic:
        syncing.at_commit(side, proxy.swallow_replies)
        running = syncing.start()
        running.wait_for_event("sync_waits")
        assert proxy.swallowed_bytes > 0
        proxy.heal()
        go_on(running)
        syncing.settle(traffic)


@pytest.mark.parametrize("side", SIDES)
def test_a_commit_that_arrives_late_does_no_harm(syncing: Syncing, side: Side) -> None:
    # Sync has given it up and begun anew; the server hears of it only then, if it still listens.
    proxy = syncing.proxies[side]
    with syncing.traffic() as traffic:
        # Before its COMMIT each side gets one more statement: that one waits in the network, too.
        proxy.when_seen(LAST_TO[side], proxy.stall)
        running = syncing.start()
        running.wait_for_event("sync_waits")
        traffic.wait_for_commits(traffic.commits + 5)
        proxy.heal()
        go_on(running)
        syncing.settle(traffic)


@pytest.mark.parametrize("side", SIDES)
def test_a_commit_cut_off_on_its_way_does_no_harm_whether_it_arrived_or_not(
    syncing: Syncing, side: Side
) -> None:
    with syncing.traffic() as traffic:
        syncing.at_commit(side, syncing.proxies[side].cut)
        running = syncing.start()
        running.wait_for_event("sync_waits")
        go_on(running)
        syncing.settle(traffic)


@pytest.mark.parametrize("side", SIDES)
def test_a_network_that_refuses_for_too_long_is_told(syncing: Syncing, side: Side) -> None:
    syncing.configure(retry_deadline_seconds=1.0)
    proxy = syncing.proxies[side]

    def break_off(_: RunningCli) -> None:
        proxy.refuse()
        proxy.cut()

    with syncing.traffic() as traffic:
        began = time.monotonic()
        gone = syncing.start(at=("round_applied", 1, break_off)).finish(timeout_seconds=30)
        assert gone.exit_code == 5, told(gone)
        assert time.monotonic() - began < 20
        message = gone.stderr.splitlines()[-1]
        assert message.startswith("ordermigrate: ")
        assert side in message
        proxy.heal()
        syncing.settle(traffic)
