"""Two copies of one migration: the second is told to wait, and if it is not, nothing comes twice.

The lock that keeps a second operator out goes with its session; what guards the rows is in the
ledger.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.fix_copying import (
    BUILDER,
    Copying,
    MakeCopying,
    assert_resumable,
    await_true,
    is_stopped,
    names,
    suspend,
    wake,
)
from tests.fix_orders import RunningCli, WriteToml

OPERATOR = """
SELECT count(pg_terminate_backend(pid, 5000)) FROM pg_locks
WHERE locktype = 'advisory' AND objsubid = 1 AND granted
    AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
"""
WAITING = """
SELECT count(*) FROM pg_stat_activity
WHERE datname = current_database() AND wait_event_type = 'Lock' AND query LIKE '%FOR UPDATE%'
"""


@pytest.fixture
def copying(make_copying: MakeCopying) -> Copying:
    return make_copying(behind=["service"])


@pytest.fixture
def second(copying: Copying, ordermigrate_toml: WriteToml) -> Copying:
    """The same migration, by another operator whose network is another one."""
    return Copying(
        copying.hub,
        {},
        ordermigrate_toml,
        copying.start_cli,
        copying.run_cli,
        copying.limits,
        copying.tables,
        copying.definitions_before,
    )


def hold_in_mid_copy(copying: Copying, second: Copying) -> RunningCli:
    """Start the first copy and let it stand still with chunks on their way."""
    copying.configure()
    copying.stall_service_in_mid_copy()
    running = copying.start()
    copying.await_stall()
    second.configure()
    return running


def test_a_second_copy_at_the_same_time_is_told_that_another_is_at_work(
    copying: Copying, second: Copying
) -> None:
    first = hold_in_mid_copy(copying, second)
    refused = second.run()
    assert refused.exit_code == 6, (refused.exit_code, refused.stderr)
    assert "Another ordermigrate command is at work" in refused.stderr
    assert names(refused) == []
    copying.proxies["service"].heal()
    done = first.finish()
    assert done.exit_code == 0, done.stderr
    second.assert_complete()


def test_a_chunk_that_another_copy_is_at_is_waited_for_and_found(
    copying: Copying, second: Copying
) -> None:
    # The lock that kept the second out is gone, and both are at the same chunks.
    first = hold_in_mid_copy(copying, second)
    assert copying.on_service(OPERATOR) == [(1,)]
    other = second.start()
    await_true(lambda: copying.on_service(WAITING)[0][0] >= 1)
    copying.proxies["service"].heal()
    results = [first.finish(), other.finish()]
    told = [name for result in results for name in names(result)]
    assert "chunk_found" in names(results[1])
    assert (
        told.count("chunk_copied")
        == second.on_service("SELECT count(*) FROM ordermigrate.chunk")[0][0]
    )
    for result in results:
        assert_resumable(result)
    second.finish()


def test_an_index_that_another_copy_is_at_is_waited_for_and_found(
    copying: Copying, second: Copying
) -> None:
    copying.configure()
    service = copying.proxies["service"]
    # After a builder has set itself up: definitions pass on their way to the ledger, too.
    service.when_seen(BUILDER, lambda: service.when_seen(b"CREATE INDEX", service.stall))
    first = copying.start()
    copying.await_stall()
    second.configure()
    assert copying.on_service(OPERATOR) == [(1,)]
    other = second.start()
    await_true(lambda: copying.on_service(WAITING)[0][0] >= 1)
    service.heal()
    for result in (first.finish(), other.finish()):
        assert_resumable(result)
    second.finish()


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize("event", ["chunk_copied", "index_started"])
def test_a_copy_that_wakes_after_another_has_finished_does_nothing_twice(
    make_copying: MakeCopying, event: str
) -> None:
    copying = make_copying()
    slept = copying.start(at=(event, 1, suspend))
    slept.wait_for_event(event)
    # An administrator who thinks it dead ends what it has left on the service.
    await_true(lambda: is_stopped(slept))
    copying.end_backends("service", "ordermigrate%")
    done = copying.run()
    assert done.exit_code == 0, done.stderr
    before = copying.on_service("SELECT count(*), sum(xmin::text::bigint) FROM public.orders")
    wake(slept)
    assert_resumable(slept.finish())
    after = copying.on_service("SELECT count(*), sum(xmin::text::bigint) FROM public.orders")
    assert after == before
    copying.finish()


def test_a_copy_that_sleeps_on_a_chunk_keeps_another_from_it_but_not_for_ever(
    copying: Copying, second: Copying
) -> None:
    first = hold_in_mid_copy(copying, second)
    assert copying.on_service(OPERATOR) == [(1,)]
    second.configure(stall_timeout_seconds=1.0, retry_deadline_seconds=1.0)
    told = second.run()
    assert told.exit_code == 5, (told.exit_code, told.stderr)
    copying.proxies["service"].heal()
    assert_resumable(first.finish())
    second.configure()
    second.finish()
