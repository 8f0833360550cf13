"""Throttle: let the bulk copy wait while the source shows signs of having enough to do.

Signs are its replicas' replay lag, its active sessions (ours left out), and a file that an operator
creates. Chunks that are under way are finished; the next one waits, and says for what.
"""

from __future__ import annotations

import asyncio
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

from ordermigrate.control import Session
from ordermigrate.errors import Refused, UsageError
from ordermigrate.progress import Reporter, Throttled

WATCH_SECONDS = 0.5
_WANTED = "replica-lag=SECONDS, sessions=NUMBER or file=PATH"


@dataclass(frozen=True, slots=True)
class Signs:
    """The limits beyond which a copy waits; None where a sign does not matter."""

    replica_lag_seconds: float | None = None
    active_sessions: int | None = None
    file: Path | None = None

    @property
    def is_any(self) -> bool:
        """Whether there is anything to look for."""
        return (self.replica_lag_seconds, self.active_sessions, self.file) != (None, None, None)


def parse(given: tuple[str, ...]) -> Signs:
    """Read what was given with --throttle.

    Raises:
        UsageError: It is none of the signs, or its limit is no number.

    """
    found: dict[str, str] = {}
    for each in given:
        name, equals, limit = each.partition("=")
        if not equals or not limit or name not in {"replica-lag", "sessions", "file"}:
            raise UsageError(
                f"--throttle {each!r} is no sign that a copy can wait for",
                wanted=_WANTED,
                todo="Correct the option",
            )
        found[name] = limit
    try:
        signs = Signs(
            float(found["replica-lag"]) if "replica-lag" in found else None,
            int(found["sessions"]) if "sessions" in found else None,
            Path(found["file"]) if "file" in found else None,
        )
    except ValueError:
        raise UsageError(
            "A limit given with --throttle is not a number", wanted=_WANTED, todo="Correct it"
        ) from None
    if not math.isfinite(signs.replica_lag_seconds or 0):
        raise UsageError(
            "A limit given with --throttle is not a number", wanted=_WANTED, todo="Correct it"
        )
    if min(signs.replica_lag_seconds or 0, signs.active_sessions or 0) < 0:
        raise UsageError(
            "A limit given with --throttle is negative", wanted=_WANTED, todo="Correct it"
        )
    return signs


@dataclass(slots=True)
class Throttle:
    """Keeps workers waiting for as long as a sign is over its limit."""

    signs: Signs = field(default_factory=Signs)
    reason: str = ""
    _is_clear: asyncio.Event = field(default_factory=asyncio.Event)

    async def wait(self) -> bool:
        """Return once the copy may go on, and whether it had to wait."""
        if not self.signs.is_any or self._is_clear.is_set():
            return False
        await self._is_clear.wait()
        return True

    async def watch(self, session: Session, reporter: Reporter) -> NoReturn:
        """Look at the signs until cancelled.

        Raises:
            Refused: Our role may not see a sign that it is to look for.

        """
        while self.signs.is_any:
            reason = await find_reason(session, self.signs)
            if reason != self.reason:
                self.reason = reason
                reporter.report(Throttled(reason))
            if reason:
                self._is_clear.clear()
            else:
                self._is_clear.set()
            await asyncio.sleep(WATCH_SECONDS)
        await asyncio.Event().wait()
        raise AssertionError


async def find_reason(session: Session, signs: Signs) -> str:
    """Say which sign is over its limit; empty where none is."""
    if signs.file is not None and signs.file.exists():
        return f"the file {signs.file} is there"
    if signs.replica_lag_seconds is None and signs.active_sessions is None:
        return ""
    row = await session.fetch_one("throttle", "read_signs")
    if signs.replica_lag_seconds is not None:
        if row.is_hidden:
            raise Refused(
                f"Our role may not see the lag of the {session.side}'s replicas",
                wanted="What --throttle replica-lag is to look at",
                todo="GRANT pg_monitor TO our role, or leave the option out",
            )
        if (row.replica_lag_seconds or 0.0) > signs.replica_lag_seconds:
            return (
                f"a replica of the {session.side} is {row.replica_lag_seconds:.1f} s behind "
                f"(limit {signs.replica_lag_seconds:g} s)"
            )
    if signs.active_sessions is not None and row.active_sessions > signs.active_sessions:
        return (
            f"{row.active_sessions} sessions are active on the {session.side} "
            f"(limit {signs.active_sessions})"
        )
    return ""
