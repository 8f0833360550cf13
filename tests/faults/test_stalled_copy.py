"""A network in which nothing moves: given up within the limits, never a hang; then resumed."""

from __future__ import annotations

import time

import pytest

from tests.faults.fix_copying import MID_COPY_BYTES, Copying, MakeCopying
from tests.fix_orders import CliResult, RunningCli
from tests.fix_postgres import SIDES, Side

LIMITS = {
    "stall_timeout_seconds": 1.0,
    "retry_deadline_seconds": 1.0,
    "lock_timeout_seconds": 1.0,
    "monolith": {"connect_timeout_seconds": 1.0, "statement_timeout_seconds": 1.0},
    "service": {"connect_timeout_seconds": 1.0, "statement_timeout_seconds": 1.0},
}
# Each wait has its own limit, and a few seconds of grace on top; waits follow one another.
LONGEST_SECONDS = 45.0


@pytest.fixture
def copying(make_copying: MakeCopying) -> Copying:
    return make_copying(behind=["monolith", "service"], limits=LIMITS, is_written_to=True)


def assert_given_up(copying: Copying, side: Side, result: CliResult) -> None:
    """Assert that a command says which side does not answer, and that its next run completes."""
    assert result.exit_code == 5, (result.exit_code, result.stderr)
    assert "Traceback" not in result.stderr
    message = result.stderr.splitlines()[-1]
    assert message.startswith("ordermigrate: ")
    assert side in message or "stood still" in message
    copying.proxies[side].heal()


@pytest.mark.parametrize("side", SIDES)
def test_a_side_that_does_not_answer_at_connect_is_given_up(copying: Copying, side: Side) -> None:
    copying.proxies[side].stall()
    started = time.monotonic()
    given_up = copying.run()
    assert time.monotonic() - started < 15
    assert_given_up(copying, side, given_up)
    copying.finish()


@pytest.mark.slow
@pytest.mark.parametrize("side", SIDES)
def test_a_stall_in_mid_chunk_is_given_up(copying: Copying, side: Side) -> None:
    direction = "to_client" if side == "monolith" else "to_server"
    copying.proxies[side].stall_after(MID_COPY_BYTES, direction)  # type: ignore[arg-type]
    running = copying.start()
    copying.proxies[side].wait_until(lambda proxy: proxy._is_stalled)
    started = time.monotonic()
    given_up = running.finish()
    assert time.monotonic() - started < LONGEST_SECONDS
    assert_given_up(copying, side, given_up)
    copying.finish()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("side", "event"), [("monolith", "rows_copied"), ("service", "index_started")]
)
def test_a_stall_at_an_event_is_given_up(copying: Copying, side: Side, event: str) -> None:
    stalled_at: list[float] = []

    def stall(_: RunningCli) -> None:
        copying.proxies[side].stall()
        stalled_at.append(time.monotonic())

    given_up = copying.run(at=(event, 1, stall))
    assert time.monotonic() - stalled_at[0] < LONGEST_SECONDS
    assert_given_up(copying, side, given_up)
    copying.finish()


@pytest.mark.slow
def test_a_stall_in_mid_validation_is_given_up_and_no_verdict(copying: Copying) -> None:
    copying.finish()
    proxy = copying.proxies["monolith"]

    def stall(_: RunningCli) -> None:
        proxy.stall()

    running = copying.start_cli("validate", "--checksums", at=("check_started", 1, stall))
    running.wait_for_event("check_started")
    started = time.monotonic()
    given_up = running.finish()
    assert time.monotonic() - started < LONGEST_SECONDS
    assert_given_up(copying, "monolith", given_up)
    assert copying.on_service(
        "SELECT count(*) FROM ordermigrate.validation WHERE verdict <> 'equal'"
    ) == [(0,)]
    copying.assert_complete()


def test_a_stall_that_ends_in_time_is_only_a_pause(make_copying: MakeCopying) -> None:
    copying = make_copying(behind=["service"])
    copying.stall_service_in_mid_copy()
    running = copying.start()
    copying.await_stall()
    copying.proxies["service"].heal()
    done = running.finish()
    assert done.exit_code == 0, done.stderr
    copying.assert_complete()
