"""Scans of both sides at the same time, each in one snapshot that stays open.

A scan may take hours, so it is waited for as long as its backend is seen to be there. What two
sides return in the same order is read side by side as streams; memory does not grow with them.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import asyncpg
from psycopg import sql

from ordermigrate import catalog, control, queries, sessions, streams
from ordermigrate.config import Limits
from ordermigrate.control import Session
from ordermigrate.digest import View
from ordermigrate.model import Side, TableMap, TableName
from ordermigrate.progress import CheckFinished, CheckStarted, Reporter
from ordermigrate.together import run_together
from ordermigrate.verdicts import Check, Difference

FETCH_ROWS = 2000
_T = TypeVar("_T")


@dataclass(slots=True)
class Scanner:
    """One side's connection with its snapshot."""

    side: Side
    route: streams.Route
    connection: asyncpg.Connection[Any]
    stall_seconds: float

    async def fetch(self, statement: str, *values: object) -> list[Any]:
        """Run a query that may be long and return its rows."""

        async def run() -> list[Any]:
            with streams.translated(self.side):
                return list(await self.connection.fetch(statement, *values))

        return await self.outlive(run())

    async def outlive(self, work: Awaitable[_T]) -> _T:
        """Wait for work on this side for as long as its backend is seen to be there."""
        return await control.outlive(
            work, self.route, self.connection.get_server_pid(), self.stall_seconds
        )

    async def stream(self, statement: str, *values: object) -> AsyncIterator[Any]:
        """Yield a query's rows through a cursor, a few thousand at a time."""
        with streams.translated(self.side):
            cursor = await self.outlive(_open_cursor(self.connection, statement, values))
            while rows := await self.outlive(cursor.fetch(FETCH_ROWS)):
                for row in rows:
                    yield row


async def _open_cursor(
    connection: asyncpg.Connection[Any], statement: str, values: Sequence[object]
) -> Any:  # noqa: ANN401  asyncpg's cursor
    return await connection.cursor(statement, *values)


@dataclass(slots=True)
class Comparison:
    """A table under comparison: its map, both views, both scanners, and what was found."""

    map: TableMap
    source: tuple[Scanner, View]
    target: tuple[Scanner, View]
    control: Session
    reporter: Reporter
    max_differences: int
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


async def open_scanner(session: Session, names: Sequence[TableName], limits: Limits) -> Scanner:
    """Open a connection to where a session is, with the one snapshot that all its scans share."""
    # No statement, and so no snapshot, outlives the stated age by much.
    age = sessions.milliseconds(limits.max_snapshot_age_minutes * 60)
    timeouts = {"statement_timeout": age, "idle_in_transaction_session_timeout": age}
    connection = await streams.connect(
        replace(
            session.route,
            settings={**session.route.settings, **timeouts},
            application_name="ordermigrate validate: scan",
        )
    )

    async def run(statement: str) -> None:
        with streams.translated(session.side):
            await connection.execute(statement)

    try:
        await catalog.begin_locked(run, session, names, age)
    except BaseException:
        connection.terminate()
        raise
    return Scanner(session.side, session.route, connection, limits.stall_timeout_seconds)


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
