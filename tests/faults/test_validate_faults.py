"""A validation under faults: a side that cannot be read is an error, never a verdict."""

from __future__ import annotations

import time

import psycopg
import pytest

from tests.faults.fix_copying import Copying, MakeCopying, names
from tests.fix_orders import CliResult, RunningCli
from tests.fix_postgres import SIDES, Side, TestServers

VERDICTS = "SELECT verdict FROM ordermigrate.validation ORDER BY validation_id"


@pytest.fixture
def copied(make_copying: MakeCopying) -> Copying:
    copying = make_copying(behind=["monolith", "service"], limits={"retry_deadline_seconds": 2.0})
    done = copying.run()
    assert done.exit_code == 0, done.stderr
    return copying


def assert_no_verdict(copied: Copying, result: CliResult) -> None:
    """Assert that a validation failed as unavailable and that nothing was recorded of it."""
    assert result.exit_code == 5, (result.exit_code, result.stderr)
    assert "Traceback" not in result.stderr
    assert copied.on_service(VERDICTS) == []
    copied.assert_complete()


@pytest.mark.parametrize("side", SIDES)
def test_a_cut_in_mid_validation_is_no_difference(copied: Copying, side: Side) -> None:
    running = copied.start_cli(
        "validate", "--checksums", at=("check_started", 1, lambda _: copied.proxies[side].cut())
    )
    assert_no_verdict(copied, running.finish())


@pytest.mark.parametrize("side", SIDES)
def test_a_scan_that_an_administrator_ends_is_no_difference(copied: Copying, side: Side) -> None:
    ended: list[int] = []

    def end(_: RunningCli) -> None:
        ended.append(copied.end_backends(side, "ordermigrate validate: scan"))

    result = copied.start_cli("validate", "--checksums", at=("check_started", 1, end)).finish()
    assert ended == [1]
    assert_no_verdict(copied, result)


@pytest.mark.parametrize("side", SIDES)
def test_a_server_killed_in_mid_validation_is_no_difference(
    copied: Copying, postgres_servers: TestServers, side: Side
) -> None:
    server = postgres_servers.of(side).own
    if server is None:
        pytest.skip("needs a server of its own, to kill it")
    running = copied.start_cli(
        "validate", "--checksums", at=("check_started", 1, lambda _: server.kill())
    )
    result = running.finish()
    server.start()
    assert_no_verdict(copied, result)


def test_a_killed_validation_leaves_no_verdict(copied: Copying) -> None:
    killed = copied.start_cli(
        "validate", "--checksums", at=("check_finished", 1, RunningCli.kill)
    ).finish()
    assert killed.exit_code < 0
    assert copied.on_service(VERDICTS) == []
    copied.assert_complete()


@pytest.mark.parametrize("name", ["interrupt", "terminate"])
def test_an_interrupted_validation_says_so_and_leaves_no_verdict(
    copied: Copying, name: str
) -> None:
    def stop(running: RunningCli) -> None:
        running.interrupt() if name == "interrupt" else running.process.terminate()

    stopped = copied.start_cli("validate", "--checksums", at=("check_started", 1, stop)).finish()
    assert stopped.exit_code == 130, stopped.stderr
    assert copied.on_service(VERDICTS) == []
    copied.assert_complete()


def test_an_alter_table_does_not_wait_for_a_validation(copied: Copying) -> None:
    # The network of the service stands still, so the validation could last; it gives way.
    service = copied.proxies["service"]

    def alter(_: RunningCli) -> None:
        with psycopg.connect(copied.hub.monolith, autocommit=True) as connection:
            connection.execute("SET lock_timeout = '8s'")
            connection.execute("ALTER TABLE public.orders ALTER COLUMN symbol SET STATISTICS 50")
            waited.append(time.monotonic())

    waited: list[float] = []
    running = copied.start_cli(
        "validate", "--checksums", at=("check_started", 1, lambda _: service.stall())
    )
    running.wait_for_event("check_started")
    with psycopg.connect(copied.hub.monolith, autocommit=True) as connection:
        connection.execute("SET lock_timeout = '8s'")
        connection.execute("ALTER TABLE public.orders ADD COLUMN note text")
        connection.execute("ALTER TABLE public.orders DROP COLUMN note")
    service.heal()
    result = running.finish()
    assert_no_verdict(copied, result)
    assert "Gave way" in result.stderr


def test_writes_beside_a_validation_do_not_disturb_its_snapshots(copied: Copying) -> None:
    # Both sides are read as they were when it began; what is written meanwhile is not its affair.
    service = copied.proxies["service"]
    running = copied.start_cli(
        "validate", "--checksums", at=("check_started", 1, lambda _: service.stall())
    )
    running.wait_for_event("check_started")
    for side in SIDES:
        for connection in [psycopg.connect(copied.dsn(side), autocommit=True)]:
            connection.execute("DELETE FROM public.orders WHERE user_id % 2 = 0")
            connection.close()
    service.heal()
    result = running.finish()
    assert result.exit_code == 0, result.stderr
    assert names(result).count("check_finished") >= 5
