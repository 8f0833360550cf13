"""A control session: one psycopg connection to one side, with our settings.

It never waits without a limit: a control statement has the server's statement_timeout and, in
case the server stalls, ours on top of it; a statement that may be long has a second connection
that looks, now and then, whether its backend is still there. psycopg's errors are translated
here, asyncpg's in `streams`, and nowhere else.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from typing import Any, TypeVar

import psycopg
from psycopg import AsyncConnection, sql

from ordermigrate import queries, streams
from ordermigrate.errors import OrdermigrateError
from ordermigrate.model import Identity, Side
from ordermigrate.sqlstates import TRANSIENT, ConnectionLost, ServerError, to_error

MAX_UNANSWERED = 2
GRACE_SECONDS = 5.0
_T = TypeVar("_T")


class Session:
    """A control connection to one side, in autocommit outside of `transaction`."""

    def __init__(
        self,
        connection: AsyncConnection[Any],
        identity: Identity,
        route: streams.Route,
        timeout_seconds: float,
        stall_seconds: float,
    ) -> None:
        self.identity = identity
        self.route = route
        # The backend's process id: kept, for a closed connection no longer tells it.
        self.pid = connection.info.backend_pid
        self._connection = connection
        self._timeout_seconds = timeout_seconds + GRACE_SECONDS
        self._stall_seconds = stall_seconds

    @property
    def side(self) -> Side:
        """Which of the two databases this is."""
        return self.identity.side

    async def fetch_all(
        self, module: str, name: str, /, *values: object, **parts: sql.Composable
    ) -> list[Any]:
        """Run a block of sql/<module>.sql and return its rows, columns by name."""
        return await self.run(queries.compose(module, name, **parts), *values)

    async def fetch_one(
        self, module: str, name: str, /, *values: object, **parts: sql.Composable
    ) -> Any:  # noqa: ANN401  a row whose columns the block names
        """Run a block and return its first row, or None."""
        rows = await self.fetch_all(module, name, *values, **parts)
        return rows[0] if rows else None

    async def run(self, statement: str, /, *values: object) -> list[Any]:
        """Run one statement within the control timeout and return its rows, if it has any."""
        try:
            async with asyncio.timeout(self._timeout_seconds):
                return await self._execute(statement, values)
        except TimeoutError:
            await self.close()
            raise ConnectionLost(
                f"The {self.side} has not answered for {self._timeout_seconds:g} s",
                todo="Check the server and the network; then run the command again",
            ) from None

    async def commit(self) -> bool:
        """Commit the open transaction, and return whether it was.

        One that has failed answers COMMIT with ROLLBACK, and that is no error.
        """
        task = asyncio.ensure_future(self._connection.execute("COMMIT"))
        try:
            with translated(self.side):
                return (await asyncio.shield(task)).statusmessage == "COMMIT"
        except asyncio.CancelledError:
            # Whoever does not wait any longer is not to wait for an answer to a request to cancel.
            self.abort()
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            raise

    async def run_long(self, statement: str, /, *values: object) -> list[Any]:
        """Run a statement that may take hours, as long as its backend is seen to be alive.

        The caller has taken statement_timeout off the session or transaction.
        """
        try:
            return await outlive(
                self._execute(statement, values), self.route, self.pid, self._stall_seconds
            )
        except ConnectionLost:
            await self.close()
            raise

    async def run_script(self, script: str) -> None:
        """Run several statements that take no parameters, such as a family's DDL."""
        # Without parameters psycopg uses the simple protocol, which takes several statements.
        await self.run(script)

    async def _execute(self, statement: str, values: Sequence[object]) -> list[Any]:
        task = asyncio.ensure_future(self._execute_now(statement, values))
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            # psycopg asks the server to cancel, and then waits for its answer without a limit.
            task.cancel()
            done, _ = await asyncio.wait({task}, timeout=GRACE_SECONDS)
            if not done:
                self.abort()
            await asyncio.gather(task, return_exceptions=True)
            raise

    def abort(self) -> None:
        """Cut the connection under whatever is waiting on it; the server rolls back."""
        with (
            contextlib.suppress(OSError, psycopg.Error),  # it may be lost already
            socket.socket(fileno=os.dup(self._connection.fileno())) as duplicate,
        ):
            duplicate.shutdown(socket.SHUT_RDWR)

    async def find_fault(self, query: str) -> str | None:
        """Let the server parse and plan a query without running it, and return what it minds.

        A text that holds more than one statement is minded too.
        """
        try:
            # In binary, because only psycopg's simple protocol would take several statements.
            async with asyncio.timeout(self._timeout_seconds):
                await self._connection.execute(f"EXPLAIN {query}", binary=True)
        except psycopg.Error as error:
            if error.sqlstate is None or error.sqlstate in TRANSIENT:
                with translated(self.side):
                    raise
            return error.diag.message_primary or str(error)
        except TimeoutError:
            return f"the server could not plan it within {self._timeout_seconds:g} s"
        return None

    async def _execute_now(self, statement: str, values: Sequence[object]) -> list[Any]:
        with translated(self.side):
            cursor = await self._connection.execute(statement, values or None)
            return await cursor.fetchall() if cursor.description else []

    @contextlib.asynccontextmanager
    async def transaction(
        self, begin: Callable[[], Awaitable[None]] | None = None
    ) -> AsyncIterator[None]:
        """Run a block in one transaction, opened by `begin` where BEGIN alone does not do."""
        if begin is None:
            await self.run("BEGIN")
        else:
            await begin()
        try:
            yield
        except (asyncio.CancelledError, ConnectionLost):
            # Closing rolls back as well, and does not wait for a server that may have stalled.
            await self.close()
            raise
        except BaseException:
            with contextlib.suppress(OrdermigrateError):
                await self.run("ROLLBACK")
            raise
        await self.run("COMMIT")

    async def set_local(self, name: str, value: str) -> None:
        """Set a parameter for the rest of the transaction."""
        await self.run("SELECT set_config($1::text, $2::text, true)", name, value)

    async def close(self) -> None:
        """End the connection; the server rolls back what was open."""
        # Closing only sends a farewell; a server that stalls cannot hold it up.
        with contextlib.suppress(psycopg.Error):
            await self._connection.close()


def pick(side: Side, one: Session, other: Session) -> Session:
    """Return the one of two sessions that is on a side."""
    return one if one.side is side else other


async def outlive(work: Awaitable[_T], route: streams.Route, pid: int, stall_seconds: float) -> _T:
    """Wait for a long statement, and look every `stall_seconds` whether its backend still runs.

    Raises:
        ConnectionLost: The server does not answer a second connection, or has no such backend.

    """
    task = asyncio.ensure_future(work)
    # When we are cancelled nobody is left to be told how it ends.
    task.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
    unanswered = 0
    try:
        while True:
            # After a look that nobody answered, the next one follows at once.
            done, _ = await asyncio.wait({task}, timeout=0 if unanswered else stall_seconds)
            if done:
                return task.result()
            try:
                is_alive = await _is_alive(route, pid)
            except ConnectionLost as lost:
                # A server that refuses the connection with a code of its own is alive.
                unanswered = 0 if lost.sqlstate else unanswered + 1
                if unanswered >= MAX_UNANSWERED:
                    raise
            else:
                unanswered = 0
                if not is_alive and not task.done():
                    raise ConnectionLost(
                        f"Backend {pid} on the {route.side} is gone, and its reply never came",
                        todo="Run the same command again; it goes on where it stopped",
                    )
    finally:
        if not task.done():
            task.cancel()
            await asyncio.wait({task}, timeout=2 * GRACE_SECONDS)


async def _is_alive(route: streams.Route, pid: int) -> bool:
    connection = await streams.connect(route)
    try:
        with streams.translated(route.side):
            async with asyncio.timeout(route.connect_timeout_seconds):
                return bool(await connection.fetchval(queries.get("sessions", "see_backend"), pid))
    finally:
        connection.terminate()


@contextlib.contextmanager
def translated(side: Side) -> Iterator[None]:
    """Turn what psycopg raises into our errors."""
    try:
        yield
    except psycopg.Error as error:
        diagnostic = error.diag
        said = ServerError(
            error.sqlstate or "",
            diagnostic.message_primary or str(error).strip() or type(error).__name__,
            diagnostic.message_detail or "",
            diagnostic.message_hint or "",
            diagnostic.context or "",
        )
        raise to_error(side, said) from error
