"""A stream session: one asyncpg connection to one side, for bytes, scans and what goes with them.

It shares a snapshot or a transaction over many statements, some of which may take hours. Each is
waited for as long as its backend is seen to be there.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self, TypeVar

import asyncpg
from psycopg import sql

from ordermigrate import control, queries, streams
from ordermigrate.control import Session
from ordermigrate.model import Side

FETCH_ROWS = 2000
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class StreamSession:
    """A connection for streams, with where it leads."""

    side: Side
    route: streams.Route
    connection: asyncpg.Connection[Any]
    stall_seconds: float

    @classmethod
    async def open(
        cls, like: Session, what: str, settings: Mapping[str, str], stall_seconds: float
    ) -> Self:
        """Open a connection to where a control session is.

        Args:
            like: The control session.
            what: What it is for, to be seen in pg_stat_activity.
            settings: Settings that differ from the control session's, such as timeouts.
            stall_seconds: How often to look whether the backend is still there.

        """
        route = replace(
            like.route,
            settings={**like.route.settings, **settings},
            application_name=f"ordermigrate {what}",
        )
        return cls(like.side, like.route, await streams.connect(route), stall_seconds)

    @property
    def pid(self) -> int:
        """The backend's process id."""
        return int(self.connection.get_server_pid())

    async def outlive(self, work: Awaitable[_T]) -> _T:
        """Wait for work on this connection for as long as its backend is seen to be there."""
        return await control.outlive(work, self.route, self.pid, self.stall_seconds)

    async def run(self, statements: str) -> str:
        """Run statements without parameters, and return the last one's tag."""

        async def work() -> str:
            with streams.translated(self.side):
                return str(await self.connection.execute(statements))

        return await self.outlive(work())

    async def count(self, statement: str) -> int:
        """Run one statement and return how many rows it has touched."""
        return int((await self.run(statement)).rpartition(" ")[2])

    async def fetch(self, statement: str, *values: object) -> list[Any]:
        """Run a query and return its rows."""

        async def work() -> list[Any]:
            with streams.translated(self.side):
                return list(await self.connection.fetch(statement, *values))

        return await self.outlive(work())

    async def fetch_one(
        self, module: str, name: str, /, *values: object, **parts: sql.Composable
    ) -> Any:  # noqa: ANN401  a row whose columns the block names
        """Run a block and return its first row, or None."""
        rows = await self.fetch(queries.compose(module, name, **parts), *values)
        return rows[0] if rows else None

    async def stream(self, statement: str, *values: object) -> AsyncIterator[Any]:
        """Yield a query's rows through a cursor, a few thousand at a time."""
        with streams.translated(self.side):
            cursor = await self.outlive(_open_cursor(self.connection, statement, values))
            while rows := await self.outlive(cursor.fetch(FETCH_ROWS)):
                for row in rows:
                    yield row

    def terminate(self) -> None:
        """Cut the connection; the server rolls back what was open."""
        self.connection.terminate()


async def _open_cursor(
    connection: asyncpg.Connection[Any], statement: str, values: Sequence[object]
) -> Any:  # noqa: ANN401  asyncpg's cursor
    return await connection.cursor(statement, *values)
