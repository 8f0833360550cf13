"""A validation under faults: a side that cannot be read is an error, never a verdict.

What is over soon is waited for, and both sides are compared anew, as of another moment.
"""

from __future__ import annotations

import pytest

from tests.faults.fix_copying import Copying, MakeCopying, names
from tests.fix_orders import CliResult, RunningCli
from tests.fix_postgres import TestServer

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


def assert_repeated(copied: Copying, result: CliResult) -> None:
    """Assert that a validation was begun anew, and that its one verdict is right."""
    assert result.exit_code == 0, (result.exit_code, result.stderr)
    assert "sync_waits" in names(result)
    assert copied.on_service(VERDICTS) == [("equal",)]
    copied.assert_complete()


def test_a_cut_in_mid_validation_is_no_difference(copied: Copying) -> None:
    copied.configure(retry_deadline_seconds=60.0)
    cut = copied.proxies["service"].cut
    running = copied.start_cli("validate", "--checksums", at=("check_started", 1, lambda _: cut()))
    assert_repeated(copied, running.finish())


def test_a_network_that_refuses_in_mid_validation_is_told(copied: Copying) -> None:
    proxy = copied.proxies["service"]

    def break_off(_: RunningCli) -> None:
        proxy.refuse()
        proxy.cut()

    at = ("check_started", 1, break_off)
    result = copied.start_cli("validate", "--checksums", at=at).finish()
    proxy.heal()
    assert_no_verdict(copied, result)


def test_a_scan_that_an_administrator_ends_is_no_difference(copied: Copying) -> None:
    copied.configure(retry_deadline_seconds=60.0)
    ended: list[int] = []

    def end(_: RunningCli) -> None:
        ended.append(copied.end_backends("monolith", "ordermigrate validate: scan"))

    result = copied.start_cli("validate", "--checksums", at=("check_started", 1, end)).finish()
    assert ended == [1]
    assert_repeated(copied, result)


def test_a_server_killed_in_mid_validation_is_no_difference(
    copied: Copying, service_server: TestServer
) -> None:
    server = service_server.own
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


def test_an_interrupted_validation_says_so_and_leaves_no_verdict(copied: Copying) -> None:
    stopped = copied.start_cli(
        "validate", "--checksums", at=("check_started", 1, RunningCli.interrupt)
    ).finish()
    assert stopped.exit_code == 130, stopped.stderr
    assert copied.on_service(VERDICTS) == []
    copied.assert_complete()


def hold_in_mid_validation(copied: Copying) -> RunningCli:
    """Start a validation whose snapshots stay open: the service's network stands still."""
    service = copied.proxies["service"]
    running = copied.start_cli(
        "validate", "--checksums", at=("check_started", 1, lambda _: service.stall())
    )
    running.wait_for_event("check_started")
    service.wait_until(lambda proxy: proxy._is_stalled)
    return running


def test_an_alter_table_does_not_wait_for_a_validation(copied: Copying) -> None:
    copied.configure(retry_deadline_seconds=60.0)
    running = hold_in_mid_validation(copied)
    copied.on_monolith(
        "SET lock_timeout = '8s'; ALTER TABLE public.orders ADD COLUMN note text; "
        "ALTER TABLE public.orders DROP COLUMN note"
    )
    assert running.process.poll() is None, "it ended before the statement had its lock"
    copied.proxies["service"].heal()
    result = running.finish()
    assert "Gave way" in result.stderr
    assert_repeated(copied, result)


def test_writes_beside_a_validation_do_not_disturb_its_snapshots(copied: Copying) -> None:
    # Both sides are read as they were when it began; what is written meanwhile is not its affair.
    running = hold_in_mid_validation(copied)
    delete = "DELETE FROM public.orders WHERE user_id % 2 = 0"
    copied.on_monolith(delete)
    copied.on_monolith("UPDATE public.orders SET retry_count = 9 WHERE user_id = 1")
    copied.behind_fence(delete)
    copied.proxies["service"].heal()
    result = running.finish()
    assert result.exit_code == 0, result.stderr
    copied.assert_caught_up()
