"""A cleanup that is killed, whenever that is, goes on where it stopped."""

from __future__ import annotations

import contextlib
import subprocess

import pytest

from tests.fix_cleanup import Shop

EVENTS = (
    "cleanup_begun",
    "backed_up",
    "tables_renamed",
    "drop_decided",
    "tables_dropped",
    "drop_noted",
    "trace_removed",
)


@pytest.mark.parametrize("event", EVENTS)
def test_a_killed_cleanup_goes_on_where_it_stopped(shop: Shop, event: str) -> None:
    shop.kill_at(event)
    shop.require_half()
    shop.finish()


def test_a_cleanup_killed_at_its_last_event_is_over(shop: Shop) -> None:
    shop.kill_at("trace_removed", 2)
    shop.require_clean()
    shop.require_done()


@pytest.mark.parametrize("event", EVENTS[:4])
def test_a_killed_cleanup_can_be_undone_until_the_tables_are_dropped(
    shop: Shop, event: str
) -> None:
    before = shop.pair.pictures()
    shop.kill_at(event)
    shop.pair.run("cleanup", "--undo")
    if event != "drop_decided":  # the drop may have been done a moment after its event
        assert shop.pair.pictures() == before
    shop.finish()


@pytest.mark.slow
def test_a_cleanup_killed_at_any_time_at_all_goes_on(shop: Shop) -> None:
    for place in range(8):
        running = shop.start()
        with contextlib.suppress(AssertionError):
            running.wait_for_event("cleanup_begun", timeout_seconds=5)
        with contextlib.suppress(subprocess.TimeoutExpired):
            running.process.wait(0.02 * 1.5**place)
        running.kill()
        running.finish()
    shop.finish()
