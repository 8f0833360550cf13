"""Things that run at once end together, and the first failure is the one that is told."""

from __future__ import annotations

import asyncio

import pytest

from ordermigrate.together import run_together


class Trace:
    """What happened, in order."""

    def __init__(self) -> None:
        self.said: list[str] = []

    async def value(self, what: str, turns: int = 1) -> str:
        for _ in range(turns):
            await asyncio.sleep(0)
        self.said.append(what)
        return what

    async def fail(self, error: BaseException, turns: int = 1) -> str:
        for _ in range(turns):
            await asyncio.sleep(0)
        raise error

    async def last(self, what: str) -> str:
        """Run until cancelled, and take a while to end even then."""
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            self.said.append(f"{what} ended")
        return what

    def abort(self) -> None:
        self.said.append("aborted")


async def test_results_come_in_the_order_of_the_work_whatever_ends_first() -> None:
    trace = Trace()
    assert await run_together(trace.value("slow", 9), trace.value("fast")) == ["slow", "fast"]
    assert trace.said == ["fast", "slow"]


async def test_nothing_to_do_is_done_and_its_watchers_end() -> None:
    assert await run_together() == []
    trace = Trace()
    assert await run_together(beside=[trace.last("watcher")]) == []


async def test_the_first_failure_wins_and_is_raised_as_it_is() -> None:
    trace = Trace()
    with pytest.raises(KeyError, match="first"):
        await run_together(
            trace.last("other"),
            trace.fail(ValueError("second"), 9),
            trace.fail(KeyError("first"), 2),
        )
    assert trace.said == ["other ended"]


async def test_of_two_failures_at_once_the_one_given_first_is_told() -> None:
    trace = Trace()
    with pytest.raises(ValueError, match="source"):
        await run_together(
            trace.fail(ValueError("source")),
            trace.fail(KeyError("what it led to")),
        )


async def test_on_failure_abort_comes_before_the_others_are_cancelled_and_waited_for() -> None:
    trace = Trace()
    with pytest.raises(ValueError, match="no"):
        await run_together(
            trace.fail(ValueError("no"), 3),
            trace.last("work"),
            beside=[trace.last("watcher")],
            abort=trace.abort,
        )
    assert trace.said[0] == "aborted"
    assert sorted(trace.said[1:]) == ["watcher ended", "work ended"]


async def test_success_aborts_nothing_and_ends_the_watchers() -> None:
    trace = Trace()
    done = await run_together(
        trace.value("work", 3), beside=[trace.last("watcher")], abort=trace.abort
    )
    assert done == ["work"]
    assert trace.said == ["work", "watcher ended"]


async def test_a_watcher_that_fails_ends_the_work() -> None:
    trace = Trace()
    with pytest.raises(TimeoutError, match="stalled"):
        await run_together(
            trace.last("work"), beside=[trace.fail(TimeoutError("stalled"))], abort=trace.abort
        )
    assert trace.said == ["aborted", "work ended"]


async def test_a_watcher_that_returns_is_no_longer_needed() -> None:
    trace = Trace()
    assert await run_together(trace.value("work", 9), beside=[trace.value("seen")]) == ["work"]
    assert trace.said == ["seen", "work"]


async def test_a_cancelled_caller_cancels_everything_and_aborts() -> None:
    trace = Trace()
    task = asyncio.ensure_future(
        run_together(trace.last("work"), beside=[trace.last("watcher")], abort=trace.abort)
    )
    for _ in range(3):
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert trace.said[0] == "aborted"
    assert sorted(trace.said[1:]) == ["watcher ended", "work ended"]


async def test_no_task_is_left_behind_after_success_or_failure() -> None:
    before = asyncio.all_tasks()
    trace = Trace()
    await run_together(trace.value("a"), beside=[trace.last("b")])
    with pytest.raises(ValueError, match="no"):
        await run_together(trace.fail(ValueError("no")), trace.last("b"))
    assert asyncio.all_tasks() == before


async def test_a_failure_while_the_others_end_does_not_hide_the_first() -> None:
    async def fail_on_the_way_out() -> str:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            raise KeyError("later") from None  # what a broken connection does
        return "never"

    with pytest.raises(ValueError, match="first"):
        await run_together(fail_on_the_way_out(), Trace().fail(ValueError("first")))
