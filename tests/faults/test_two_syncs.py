"""Two syncs of one migration: the second stands by, takes over, and nothing comes twice.

The lock that keeps the second out goes with its session; what guards the rows is the side row of
the target, which every round locks first.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.faults.fix_copying import await_true, is_stopped, names, suspend, wake
from tests.faults.fix_syncing import (
    ANY_SYNC,
    Syncing,
    await_progress,
    stop_sync,
    told,
)
from tests.fix_orders import RunningCli
from tests.fix_postgres import SIDES, Side

STANDBY = "ordermigrate sync: standby"
NEXT_EPOCH = "UPDATE ordermigrate.side SET epoch = epoch + 1"
needs_proc = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs Linux's /proc")


def await_standby(running: RunningCli) -> None:
    """Wait until a sync says that it stands by."""
    assert "another sync" in running.wait_for_event("sync_waits")["reason"]


def test_a_second_sync_stands_by_and_takes_over_when_the_first_is_killed(syncing: Syncing) -> None:
    with syncing.traffic() as traffic:
        first = syncing.start()
        await_progress(first)
        second = syncing.start()
        await_standby(second)
        await_progress(first)
        assert "following" not in names(second)
        first.kill()
        assert first.finish().exit_code == -signal.SIGKILL
        await_progress(second)
        stop_sync(second)
        syncing.settle(traffic)


def test_a_second_sync_takes_over_when_the_first_ends(syncing: Syncing) -> None:
    with syncing.traffic() as traffic:
        first = syncing.start()
        first.wait_for_event("round_applied")
        second = syncing.start()
        await_standby(second)
        stop_sync(first)
        await_progress(second)
        stop_sync(second)
        syncing.settle(traffic)


def test_a_standby_that_is_terminated_ends_without_a_round(syncing: Syncing) -> None:
    with syncing.traffic() as traffic:
        first = syncing.start()
        first.wait_for_event("round_applied")
        second = syncing.start()
        await_standby(second)
        assert "following" not in names(stop_sync(second))
        await_progress(first)
        stop_sync(first)
        syncing.settle(traffic)


def test_a_standby_of_long_standing_survives_a_lost_connection(syncing: Syncing) -> None:
    # All went well for as long as it stood by: its patience begins with what breaks now.
    syncing.configure(retry_deadline_seconds=2.0)
    with syncing.traffic() as traffic:
        first = syncing.start()
        first.wait_for_event("round_applied")
        second = syncing.start()
        await_standby(second)
        began = time.monotonic()
        await_true(lambda: time.monotonic() - began > 3)  # longer than the retry deadline
        assert first.process.poll() is None, told(first.finish())
        known = applied(first)
        assert syncing.end_backends("service", STANDBY) == 2
        second.wait_for_event("sync_waits", 2)
        await_true(lambda: applied(second) >= 2 or applied(first) >= known + 2)
        assert second.process.poll() is None, told(second.finish())
        stop_sync(second)
        first.kill()
        first.finish()
        syncing.settle(traffic)


def applied(running: RunningCli) -> int:
    """Return how many rounds a sync has applied so far."""
    return names(running).count("round_applied")


@contextmanager
def asleep_at(
    syncing: Syncing, event: str | None, side: Side | None = None
) -> Iterator[RunningCli]:
    """Start a sync that stands still from an event on, or once its COMMIT to a side has passed."""
    if side is not None:
        syncing.at_commit(side, lambda: suspend(slept[0]))
    slept = [syncing.start(at=(event, 1, suspend) if event else None)]
    await_true(lambda: is_stopped(slept[0]))
    yield slept[0]


@needs_proc
@pytest.mark.parametrize(
    ("event", "side"),
    [
        ("round_begun", None),
        ("changes_staged", None),
        ("changes_written", None),
        (None, "service"),
        (None, "monolith"),
    ],
    ids=["round_begun", "changes_staged", "changes_written", "half committed", "committed"],
)
def test_a_sync_that_wakes_after_another_has_taken_over_undoes_nothing(
    syncing: Syncing, event: str | None, side: Side | None
) -> None:
    with syncing.traffic() as traffic:
        with asleep_at(syncing, event, side) as slept:
            known = applied(slept)
            # An administrator who thinks it dead ends what it has left on both servers.
            for each in SIDES:
                syncing.end_backends(each, ANY_SYNC)
            other = syncing.start()
            await_progress(other)
            wake(slept)
            # It finds its connections gone, and stands by.
            await_true(lambda: any("another sync" in reason for reason in waits(slept)))
            assert applied(slept) <= known + 1  # a round whose COMMIT had passed is told of
            await_progress(other)
            numbers = [e["round"] for e in other.events if e["event"] == "round_applied"]
            assert numbers == sorted(set(numbers))
            stop_sync(other)
            await_progress(slept)
            stop_sync(slept)
        syncing.settle(traffic)


@needs_proc
def test_a_sync_that_sleeps_in_mid_round_holds_another_up_for_a_while_only(
    syncing: Syncing,
) -> None:
    # The lock on the side row is what keeps the second out of the round, not the one that is gone.
    with syncing.traffic() as traffic:
        with asleep_at(syncing, "changes_staged") as slept:
            assert syncing.end_backends("service", STANDBY) == 1
            other = syncing.start()
            await_progress(other)
            wake(slept)
            await_true(lambda: any("another sync" in reason for reason in waits(slept)))
            assert applied(slept) == 0
            stop_sync(other)
            await_progress(slept)
            stop_sync(slept)
        syncing.settle(traffic)


def test_two_syncs_that_both_believe_to_be_the_only_one_do_no_harm(syncing: Syncing) -> None:
    # On a slow machine one would wait for the other's round for longer than it may, connect anew,
    # and then, rightly, stand by.
    patience = {"connect_timeout_seconds": 5.0, "statement_timeout_seconds": 60.0}
    syncing.configure(stall_timeout_seconds=30.0, monolith=patience, service=patience)
    with syncing.traffic(pause_seconds=0.05) as traffic:
        first = syncing.start()
        await_progress(first)
        # Its lock goes with this session, of which it asks nothing any more.
        assert syncing.end_backends("service", STANDBY) == 1
        second = syncing.start()
        await_progress(second, rounds=5)
        await_progress(first, rounds=5)
        numbers = [
            event["round"]
            for running in (first, second)
            for event in running.events
            if event["event"] == "round_applied"
        ]
        assert len(numbers) == len(set(numbers))
        for running in (first, second):
            stop_sync(running)
        syncing.settle(traffic)


def waits(running: RunningCli) -> list[str]:
    """Return the reasons for which a sync has waited so far."""
    return [event["reason"] for event in running.events if event["event"] == "sync_waits"]


@pytest.mark.parametrize("is_idle", [False, True], ids=["under traffic", "while nothing waits"])
def test_an_applier_of_a_past_epoch_writes_nothing_more_in_it(
    syncing: Syncing, *, is_idle: bool
) -> None:
    # As after a change of owner to and fro: rounds of the old epoch are over, others begin.
    with syncing.traffic() as traffic:
        running = syncing.start()
        await_progress(running)
        if is_idle:
            traffic.stop()
            running.wait_for_event("quiet", names(running).count("quiet") + 2)
        for side in SIDES:
            syncing.on(side, NEXT_EPOCH)
        running.wait_for_event("following", names(running).count("following") + 1)
        await_progress(running) if not is_idle else None
        stop_sync(running)
        syncing.settle(traffic)


def test_a_cold_side_follows_the_owners_later_epoch(syncing: Syncing) -> None:
    with syncing.traffic() as traffic:
        running = syncing.start()
        await_progress(running)
        syncing.on("monolith", NEXT_EPOCH)
        running.wait_for_event("following", names(running).count("following") + 1)
        await_progress(running)
        stop_sync(running)
        assert syncing.on("service", "SELECT epoch FROM ordermigrate.side") == [(1,)]
        syncing.settle(traffic)


def test_an_owner_who_has_gone_back_to_an_earlier_epoch_is_not_followed(syncing: Syncing) -> None:
    with syncing.traffic() as traffic:
        running = syncing.start()
        await_progress(running)
        syncing.on("service", NEXT_EPOCH)
        refused = running.finish(timeout_seconds=30)
        assert refused.exit_code == 3, told(refused)
        assert "has gone back in time" in refused.stderr.splitlines()[-1]
        assert "--adopt" in refused.stderr.splitlines()[-1]
        syncing.run("sync", "--adopt", "--once")
        syncing.settle(traffic)
