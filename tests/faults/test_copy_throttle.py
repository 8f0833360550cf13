"""A copy that is told to wait for the monolith waits, says for what, and goes on by itself."""

from __future__ import annotations

import time
from pathlib import Path

import psycopg
import pytest

from tests.faults.fix_copying import (
    Copying,
    MakeCopying,
    await_true,
    in_background,
    names,
    transaction,
)
from tests.fix_orders import RunningCli

CHUNKS = 4
A_WHILE_SECONDS = 1.5


@pytest.fixture
def copying(make_copying: MakeCopying) -> Copying:
    return make_copying(behind=["service"], limits={"workers": 1}, is_written_to=True)


@pytest.fixture
def brake(tmp_path: Path) -> Path:
    """The file that an operator makes to hold a copy up."""
    return tmp_path / "hold on"


def throttled(running: RunningCli) -> list[str]:
    return [str(each["reason"]) for each in running.events if each["event"] == "throttled"]


def assert_waits(running: RunningCli, so_far: int) -> None:
    time.sleep(A_WHILE_SECONDS)
    assert running.process.poll() is None
    assert names(running).count("chunk_copied") == so_far


def test_a_file_holds_the_copy_up_for_as_long_as_it_is_there(copying: Copying, brake: Path) -> None:
    brake.touch()
    running = copying.start("--throttle", f"file={brake}")
    running.wait_for_event("throttled")
    assert_waits(running, 0)
    brake.unlink()
    done = running.finish()
    assert done.exit_code == 0, done.stderr
    assert throttled(running) == [f"the file {brake} is there", ""]
    copying.assert_complete()


def test_a_file_that_comes_in_mid_copy_lets_the_chunk_that_is_under_way_be_finished(
    copying: Copying, brake: Path
) -> None:
    copying.stall_service_in_mid_copy()
    running = copying.start("--throttle", f"file={brake}")
    copying.await_stall()
    so_far = names(running).count("chunk_copied")
    brake.touch()
    running.wait_for_event("throttled")
    copying.proxies["service"].heal()
    running.wait_for_event("chunk_copied", so_far + 1)
    assert_waits(running, so_far + 1)
    brake.unlink()
    done = running.finish()
    assert done.exit_code == 0, done.stderr
    assert names(done).count("chunk_copied") == CHUNKS
    copying.assert_complete()


def test_a_wait_longer_than_every_limit_ends_no_copy(
    make_copying: MakeCopying, brake: Path
) -> None:
    # Snapshots grow too old meanwhile, one after the other.
    limits = {"retry_deadline_seconds": 4.0, "max_snapshot_age_minutes": 3 / 60}
    copying = make_copying(limits=limits, is_written_to=True)
    brake.touch()
    running = copying.start("--throttle", f"file={brake}")
    running.wait_for_event("throttled")
    running.wait_for_event("snapshot_taken", 3)
    brake.unlink()
    done = running.finish()
    assert done.exit_code == 0, done.stderr
    copying.assert_complete()


def test_sessions_that_the_server_ended_during_a_wait_are_opened_anew(
    make_copying: MakeCopying, brake: Path
) -> None:
    limits = {"stall_timeout_seconds": 2.0, "retry_deadline_seconds": 5.0}
    copying = make_copying(limits=limits, is_written_to=True)
    brake.touch()
    running = copying.start("--throttle", f"file={brake}")
    running.wait_for_event("throttled")
    time.sleep(7.0)  # the workers' transactions may idle for four seconds
    brake.unlink()
    done = running.finish()
    assert done.exit_code == 0, done.stderr
    copying.assert_complete()


def test_a_copy_that_waits_can_be_interrupted_and_goes_on_without_the_option(
    copying: Copying, brake: Path
) -> None:
    brake.touch()
    running = copying.start("--throttle", f"file={brake}")
    running.wait_for_event("throttled")
    running.interrupt()
    stopped = running.finish()
    assert stopped.exit_code == 130, stopped.stderr
    assert "Traceback" not in stopped.stderr
    copying.finish()


def test_busy_sessions_hold_the_copy_up_and_ours_are_not_among_them(
    make_copying: MakeCopying,
) -> None:
    copying = make_copying(limits={"workers": 4})
    busy = 3

    def keep_busy() -> None:
        with psycopg.connect(copying.hub.monolith) as connection:
            connection.execute("SELECT pg_advisory_xact_lock(4711)")

    def count_busy() -> int:
        statement = "SELECT count(*) FROM pg_locks WHERE NOT granted AND objid = 4711"
        return int(copying.on_monolith(statement)[0][0])

    with transaction(copying.hub.monolith) as holder:
        holder.execute("SELECT pg_advisory_xact_lock(4711)")
        with in_background(keep_busy), in_background(keep_busy), in_background(keep_busy):
            await_true(lambda: count_busy() == busy)
            running = copying.start("--throttle", f"sessions={busy - 1}")
            first = running.wait_for_event("throttled")
            said = f"sessions are active on the monolith (limit {busy - 1})"
            assert first["reason"].endswith(said)
            assert "chunk_copied" not in names(running)
            holder.rollback()
            done = running.finish()
    assert done.exit_code == 0, done.stderr
    assert throttled(running)[-1] == ""
    copying.assert_complete()


def test_without_replicas_there_is_no_lag_to_wait_for(copying: Copying) -> None:
    done = copying.run("--throttle", "replica-lag=0")
    assert done.exit_code == 0, done.stderr
    assert "throttled" not in names(done)
    copying.assert_complete()


@pytest.mark.parametrize(
    "sign",
    ["speed=3", "sessions", "sessions=", "sessions=many", "sessions=-1", "replica-lag=nan"],
)
def test_a_sign_that_is_none_is_refused_before_anything(
    make_copying: MakeCopying, sign: str
) -> None:
    copying = make_copying(orders=10)
    refused = copying.run("--throttle", sign)
    assert refused.exit_code == 2, refused.stderr
    assert "Traceback" not in refused.stderr
    assert copying.on_service("SELECT to_regnamespace('ordermigrate') IS NULL") == [(True,)]
