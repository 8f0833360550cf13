"""Run several things at once so that they end together.

asyncio's own TaskGroup wraps what went wrong in an ExceptionGroup; a command ends with one error,
the first. So here the first failure is raised as it is, after all the others have been cancelled
and waited for.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, TypeVar

_T = TypeVar("_T")


async def run_together(
    *work: Coroutine[Any, Any, _T],
    beside: Iterable[Coroutine[Any, Any, Any]] = (),
    abort: Callable[[], object] = lambda: None,
) -> list[_T]:
    """Run `work` to its end, and `beside` for as long as that lasts.

    Args:
        work: What has to be done; its results are returned in order.
        beside: Watchers; one that fails ends the work, one that returns is no longer needed.
        abort: Called on failure before the rest are cancelled, to cut connections on which a
            polite end could wait for ever.

    Raises:
        BaseException: The first failure among all of them, once the rest have stopped.

    """
    tasks = [asyncio.ensure_future(each) for each in work]
    watchers = [asyncio.ensure_future(each) for each in beside]
    everyone: list[asyncio.Future[Any]] = [*tasks, *watchers]
    try:
        while not all(task.done() for task in tasks):
            pending = [each for each in everyone if not each.done()]
            done, _ = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            # In the order given, so that a source's error is told before what it led to.
            for each in everyone:
                if each in done:
                    each.result()
    except BaseException:
        abort()
        raise
    finally:
        for each in everyone:
            each.cancel()
        await asyncio.gather(*everyone, return_exceptions=True)
    return [task.result() for task in tasks]
