"""Scans of both sides at the same time, each in one snapshot that stays open.

A scan may take hours, so it is waited for as long as its backend is seen to be there. What two
sides return in the same order is read side by side as streams; memory does not grow with them.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from psycopg import sql

from ordermigrate import locks, queries, sessions
from ordermigrate.config import Limits
from ordermigrate.control import Session
from ordermigrate.digest import View
from ordermigrate.model import TableMap, TableName
from ordermigrate.progress import CheckFinished, CheckStarted, Reporter
from ordermigrate.stream_sessions import StreamSession
from ordermigrate.together import run_together
from ordermigrate.verdicts import Check, Difference

# Takes the table and the keys of some rows that differ, as texts.
Repair = Callable[[TableMap, Sequence[Sequence[str | None]]], Awaitable[None]]


@dataclass(slots=True)
class Comparison:
    """A table under comparison: its map, both views, both scanners, and what was found."""

    map: TableMap
    source: tuple[StreamSession, View]
    target: tuple[StreamSession, View]
    control: Session
    reporter: Reporter
    max_differences: int
    repair: Repair | None = None
    checks: list[Check] = field(default_factory=list)
    differences: list[Difference] = field(default_factory=list)
    differences_total: int = 0
    rows: tuple[int, int] = (0, 0)

    async def both(self, module: str, block: str) -> list[list[Any]]:
        """Run a block on both sides at once, with each side's own origin."""
        return await run_together(
            *(
                scanner.fetch(queries.compose(module, block, origin=raw(view.origin)))
                for scanner, view in (self.source, self.target)
            )
        )

    def begin(self, check: str) -> float:
        """Tell the reporter what is looked at now, and return the time."""
        self.reporter.report(CheckStarted(self.map.label, check, self.map.source.rows_estimate))
        return time.monotonic()

    def conclude(self, check: Check, started: float) -> None:
        """Keep a check's result and tell the reporter."""
        seconds = time.monotonic() - started
        self.checks.append(replace(check, seconds=seconds))
        self.reporter.report(CheckFinished(self.map.label, check.name, check.outcome, seconds))


def raw(text: str) -> sql.SQL:
    """Return an expression that the map or the configuration gave, for a query's text."""
    return sql.SQL(text)


async def open_scanner(
    session: Session, names: Sequence[TableName], limits: Limits, snapshot: str | None = None
) -> StreamSession:
    """Open a connection to where a session is, with the one snapshot that all its scans share.

    Args:
        session: A control session on the side to be scanned.
        names: The family there.
        limits: Ages and timeouts to keep.
        snapshot: The name of an exported snapshot to be used; else it is one of the moment.

    """
    # No statement, and so no snapshot, outlives the stated age by much.
    age = sessions.milliseconds(limits.max_snapshot_age_minutes * 60)
    timeouts = {"statement_timeout": age, "idle_in_transaction_session_timeout": age}
    scanner = await StreamSession.open(
        session, "validate: scan", timeouts, limits.stall_timeout_seconds
    )
    try:
        await locks.begin_locked(scanner.run, session, names, age)
        if snapshot is not None:
            statement = sql.SQL("SET TRANSACTION SNAPSHOT {}").format(sql.Literal(snapshot))
            await scanner.run(statement.as_string(None))
        else:
            await scanner.fetch("SELECT 1")  # the snapshot is taken now, not at the first scan
    except BaseException:
        scanner.terminate()
        raise
    return scanner


async def merge(
    source: AsyncIterator[Any], target: AsyncIterator[Any]
) -> AsyncIterator[tuple[Any, Any]]:
    """Walk two streams in the order of their first column, and pair the rows that have the same.

    A row without its like comes with None.
    """
    # The first rows come after a sort on each side: let both servers do that at the same time.
    left, right = await run_together(_next(source), _next(target))
    while left is not None or right is not None:
        if right is None or (left is not None and left[0] < right[0]):
            yield left, None
            left = await _next(source)
        elif left is None or right[0] < left[0]:
            yield None, right
            right = await _next(target)
        else:
            yield left, right
            left, right = await _next(source), await _next(target)


async def _next(rows: AsyncIterator[Any]) -> Any:  # noqa: ANN401  a row, or None at the end
    return await anext(rows, None)
