"""Ctrl-C and SIGTERM end a command, even one that loses the first word of it."""

from __future__ import annotations

import asyncio
import os
import signal
from contextlib import suppress

import pytest

from ordermigrate.cli import options


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("lost", [0, 1, 2])
def test_a_signal_ends_work_that_loses_the_first_cancellations(
    monkeypatch: pytest.MonkeyPatch, number: signal.Signals, lost: int
) -> None:
    monkeypatch.setattr(options, "CANCEL_AGAIN_SECONDS", 0.01)
    waited = 0

    async def work() -> None:
        nonlocal waited
        os.kill(os.getpid(), number)
        for _ in range(lost):
            with suppress(asyncio.CancelledError):
                await asyncio.Event().wait()
            waited += 1
        await asyncio.Event().wait()

    with pytest.raises(KeyboardInterrupt):
        options.run_to_end(work())
    assert waited == lost


def test_sigterm_may_end_work_in_a_way_of_its_own() -> None:
    async def work() -> str:
        os.kill(os.getpid(), signal.SIGTERM)
        await stop.wait()
        return "done"

    stop = asyncio.Event()
    assert options.run_to_end(work(), stop.set) == "done"
