"""A network that breaks, and backends that an administrator ends: the copy recovers or resumes.

A writer is at work on the monolith all the while, and sync brings what it wrote.
"""

from __future__ import annotations

import pytest

from tests.faults.fix_copying import (
    MID_COPY_BYTES,
    Copying,
    MakeCopying,
    break_at_every_event,
    names,
)
from tests.fix_faults import Direction
from tests.fix_orders import RunningCli
from tests.fix_postgres import SIDES, Side


@pytest.fixture
def copying(make_copying: MakeCopying) -> Copying:
    return make_copying(behind=["monolith", "service"], is_written_to=True)


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("side", SIDES)
def test_a_network_cut_at_every_event_loses_nothing(copying: Copying, side: Side) -> None:
    break_at_every_event(copying, lambda _: copying.proxies[side].cut())


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("side", SIDES)
def test_backends_ended_at_every_event_lose_nothing(copying: Copying, side: Side) -> None:
    break_at_every_event(copying, lambda _: copying.end_backends(side, "ordermigrate%"))


@pytest.mark.parametrize(
    ("side", "direction"), [("monolith", "to_client"), ("service", "to_server")]
)
def test_a_network_cut_in_mid_chunk_is_survived_by_the_command_itself(
    copying: Copying, side: Side, direction: Direction
) -> None:
    copying.proxies[side].cut_after(MID_COPY_BYTES, direction)
    done = copying.run()
    assert done.exit_code == 0, done.stderr
    assert "attempt_ended" in names(done)
    copying.assert_complete()


@pytest.mark.parametrize(
    ("side", "name"),
    [
        ("monolith", "ordermigrate copy: worker 1"),
        ("service", "ordermigrate copy: worker 1"),
        ("monolith", "ordermigrate copy: snapshot"),
        ("service", "ordermigrate copy"),
    ],
)
def test_a_backend_that_is_ended_in_mid_chunk_is_replaced(
    copying: Copying, side: Side, name: str
) -> None:
    copying.stall_service_in_mid_copy()
    running = copying.start()
    copying.await_stall()
    assert copying.end_backends(side, name) >= 1
    copying.proxies["service"].heal()
    done = running.finish()
    assert done.exit_code == 0, done.stderr
    copying.assert_complete()


@pytest.mark.parametrize(
    "statement", [b"AS wanted (name, value)", b"LOCK TABLE"], ids=["connecting", "locking"]
)
def test_a_snapshot_whose_session_ends_before_a_worker_has_it_is_taken_again(
    copying: Copying, statement: bytes
) -> None:
    proxy = copying.proxies["monolith"]
    ended: list[int] = []

    def end() -> None:
        ended.append(copying.end_backends("monolith", "ordermigrate copy: snapshot"))

    # The first such statement after the snapshot was exported is a worker's.
    proxy.when_seen(b"pg_export_snapshot", lambda: proxy.when_seen(statement, end))
    done = copying.run()
    assert ended == [1]
    assert done.exit_code == 0, done.stderr
    copying.assert_complete()


def test_a_network_that_refuses_for_a_while_is_waited_for(copying: Copying) -> None:
    proxy = copying.proxies["service"]

    def break_off(_: RunningCli) -> None:
        proxy.refuse()
        proxy.cut()

    running = copying.start(at=("chunk_copied", 1, break_off))
    running.wait_for_event("attempt_ended")
    proxy.heal()
    done = running.finish()
    assert done.exit_code == 0, done.stderr
    copying.assert_complete()
