"""The server's write-ahead log: what is not on disk yet must not live on elsewhere.

A transaction that commits asynchronously is seen before it is safe, and may vanish in a crash.
Whoever takes rows from a side waits until its log is on disk beyond all that the snapshot sees.
"""

from __future__ import annotations

import asyncio
import time

from ordermigrate.control import Session
from ordermigrate.sqlstates import ConnectionLost


async def read_position(session: Session) -> str:
    """Return how far the log reaches: past all that a snapshot taken before this sees."""
    return str((await session.fetch_one("write_ahead_log", "read_position")).position)


async def wait_for_flush(session: Session, position: str, stall_seconds: float) -> None:
    """Wait until the log is on disk up to a position; have it written where the server idles.

    Args:
        session: On the side whose log it is, in no transaction: to push, it commits one.
        position: As from `read_position`.
        stall_seconds: For how long the disk may take.

    Raises:
        ConnectionLost: It took longer.

    """
    end = time.monotonic() + stall_seconds
    while True:
        row = await session.fetch_one("write_ahead_log", "has_flushed", position)
        if row.is_flushed:
            return
        if time.monotonic() >= end:
            raise ConnectionLost(
                f"The {session.side} has not written its log to disk for {stall_seconds:g} s",
                todo="Check its disk; then run the command again",
            )
        await session.fetch_one("write_ahead_log", "push_flush")
        await asyncio.sleep(0)
