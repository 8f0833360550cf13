"""A network that breaks, and backends that an administrator ends: the copy recovers or resumes."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from typing import Literal

import pytest

from tests.faults.fix_copying import (
    MID_COPY_BYTES,
    Copying,
    MakeCopying,
    assert_resumable,
    names,
)
from tests.fix_orders import RunningCli
from tests.fix_postgres import SIDES, Side

EVENTS = (
    "prepared",
    "indexes_dropped",
    "snapshot_taken",
    "chunk_copied",
    "rows_copied",
    "index_started",
    "index_built",
    "promise_checked",
    "analyzed",
)


@pytest.fixture
def copying(make_copying: MakeCopying) -> Copying:
    return make_copying(behind=["monolith", "service"])


def break_at_every_event(
    copying: Copying, fault: Callable[[], object], *, longest: int = 12
) -> None:
    """Do something at the first event of each kind, over as many runs as that takes."""
    todo = list(EVENTS)
    for _ in range(longest):
        running = copying.start()
        for event in list(todo):
            with contextlib.suppress(AssertionError):  # it ended before
                running.wait_for_event(event)
                todo.remove(event)
                fault()
        result = running.finish()
        assert_resumable(result)
        if result.exit_code == 0:
            break
    copying.finish()
    assert set(todo) <= {"analyzed", "promise_checked"}, f"these were never seen: {todo}"


@pytest.mark.slow
@pytest.mark.parametrize("side", SIDES)
def test_a_network_cut_at_every_event_loses_nothing(copying: Copying, side: Side) -> None:
    break_at_every_event(copying, copying.proxies[side].cut)


@pytest.mark.slow
@pytest.mark.parametrize("side", SIDES)
def test_backends_ended_at_every_event_lose_nothing(copying: Copying, side: Side) -> None:
    break_at_every_event(copying, lambda: copying.end_backends(side, "ordermigrate%"))


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("direction", ["to_server", "to_client"])
def test_a_network_cut_in_mid_chunk_is_survived_by_the_command_itself(
    copying: Copying, side: Side, direction: Literal["to_server", "to_client"]
) -> None:
    if side == "service":
        bytes_passed = MID_COPY_BYTES if direction == "to_server" else 30_000
    else:
        bytes_passed = MID_COPY_BYTES if direction == "to_client" else 30_000
    copying.proxies[side].cut_after(bytes_passed, direction)
    done = copying.run()
    assert done.exit_code == 0, done.stderr
    copying.assert_complete()


@pytest.mark.parametrize(
    ("side", "name", "event"),
    [
        ("monolith", "ordermigrate copy: worker 1", "chunk_copied"),
        ("service", "ordermigrate copy: worker 1", "chunk_copied"),
        ("monolith", "ordermigrate copy: snapshot", "snapshot_taken"),
        ("monolith", "ordermigrate copy: snapshot", "chunk_copied"),
        ("monolith", "ordermigrate copy: watch", "chunk_copied"),
        ("monolith", "ordermigrate copy", "chunk_copied"),
        ("service", "ordermigrate copy", "chunk_copied"),
        ("service", "ordermigrate copy: index builder%", "index_started"),
    ],
)
def test_a_backend_that_is_ended_is_replaced(
    copying: Copying, side: Side, name: str, event: str
) -> None:
    ended: list[int] = []
    result = copying.run(at=(event, 1, lambda _: ended.append(copying.end_backends(side, name))))
    assert ended[0] >= 1, "it was over too soon"
    copying.recover(result)


def test_a_snapshot_whose_session_ends_before_a_worker_has_it_is_taken_again(
    copying: Copying,
) -> None:
    ended: list[int] = []

    def end() -> None:
        ended.append(copying.end_backends("monolith", "ordermigrate copy: snapshot"))

    def arm(_: RunningCli) -> None:
        copying.proxies["monolith"].when_seen(b"LOCK TABLE", end)

    done = copying.run(at=("snapshot_taken", 1, arm))
    assert ended == [1]
    assert done.exit_code == 0, done.stderr
    copying.assert_complete()


@pytest.mark.parametrize("side", SIDES)
def test_a_network_that_refuses_for_a_while_is_waited_for(copying: Copying, side: Side) -> None:
    proxy = copying.proxies[side]

    def break_off(_: RunningCli) -> None:
        proxy.refuse()
        proxy.cut()

    running = copying.start(at=("chunk_copied", 1, break_off))
    running.wait_for_event("attempt_ended")
    proxy.heal()
    done = running.finish()
    assert done.exit_code == 0, done.stderr
    copying.assert_complete()


@pytest.mark.parametrize("side", SIDES)
def test_a_network_that_stays_away_is_told_and_the_next_run_resumes(
    copying: Copying, side: Side
) -> None:
    copying.configure(retry_deadline_seconds=1.0)
    proxy = copying.proxies[side]

    def break_off(_: RunningCli) -> None:
        proxy.refuse()
        proxy.cut()

    started = time.monotonic()
    gone = copying.run(at=("chunk_copied", 1, break_off))
    assert time.monotonic() - started < 30
    assert gone.exit_code == 5, (gone.exit_code, gone.stderr)
    message = gone.stderr.splitlines()[-1]
    assert side in message
    assert "it goes on where it stopped" in message
    proxy.heal()
    done = copying.finish()
    assert names(gone).count("chunk_copied") + names(done).count("chunk_copied") <= 4
