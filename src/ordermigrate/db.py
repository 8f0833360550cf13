"""Control connections, by psycopg: identity of each database, transactions, the one retry policy.

A `Session` never waits without a limit: a control statement has the server's statement_timeout
and, in case the server stalls, ours on top of it; a statement that may be long has a second
connection that looks, now and then, whether its backend is still there. Drivers' errors are
translated here and in `streams`, nowhere else.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from typing import Any, TypeVar

import asyncpg
import psycopg
from psycopg import AsyncConnection, AsyncRawCursor, sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.rows import namedtuple_row
from tenacity import (
    AsyncRetrying,
    retry_if_exception_type,
    stop_after_delay,
    wait_exponential_jitter,
)

from ordermigrate import queries, sessions, streams
from ordermigrate.config import Config, Limits
from ordermigrate.errors import OrdermigrateError, Refused, UsageError
from ordermigrate.model import Identity, Side
from ordermigrate.sqlstates import TRANSIENT, ConnectionLost, ServerError, to_error

FIRST_SECONDS = 10.0
MAX_UNANSWERED = 2
_GRACE_SECONDS = 5.0
_T = TypeVar("_T")


def retrying(deadline_seconds: float) -> AsyncRetrying:
    """Return the one retry policy: lost connections only, jittered, with a total deadline.

    What is worth another try is decided by SQLSTATE (`sqlstates.TRANSIENT`).
    """
    return AsyncRetrying(
        retry=retry_if_exception_type(ConnectionLost),
        stop=stop_after_delay(deadline_seconds),
        wait=wait_exponential_jitter(initial=0.2, max=5.0),
        reraise=True,
    )


def check_dsn(side: Side, dsn: str) -> None:
    """Raise `UsageError`, without repeating its text, unless libpq can parse `dsn`.

    A special character in a URI's password can make a part of it look like a host or a port.
    """
    try:
        options = conninfo_to_dict(dsn)
    except psycopg.ProgrammingError:
        options = {"port": "not to be parsed"}
    ports = str(options.get("port") or "").split(",")
    if "@" in str(options.get("host") or "") or not all(
        port.isdecimal() or not port for port in ports
    ):
        raise UsageError(
            f"The {side}'s DSN cannot be parsed (it is not repeated here: it may hold a password)",
            wanted="A libpq URI such as postgresql://user@host:5432/database, or keywords such as "
            "host=... dbname=..., or service=...",
            todo="Correct it; special characters in a URI's password have to be percent-encoded",
        )


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
        self._connection = connection
        self._timeout_seconds = timeout_seconds + _GRACE_SECONDS
        self._stall_seconds = stall_seconds

    @property
    def side(self) -> Side:
        """Which of the two databases this is."""
        return self.identity.side

    @property
    def pid(self) -> int:
        """The backend's process id."""
        return self._connection.info.backend_pid

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
            done, _ = await asyncio.wait({task}, timeout=_GRACE_SECONDS)
            if not done:
                self.abort()
            await asyncio.gather(task, return_exceptions=True)
            raise

    def abort(self) -> None:
        """Cut the connection under whatever is waiting on it; the server rolls back."""
        descriptor = self._connection.fileno()
        with socket.socket(fileno=os.dup(descriptor)) as duplicate, contextlib.suppress(OSError):
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
            await asyncio.wait({task}, timeout=2 * _GRACE_SECONDS)


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


async def connect(config: Config, side: Side, command: str, *, is_first: bool = False) -> Session:
    """Open a control session, trying again while the server cannot be reached.

    Args:
        config: Whose DSN and limits to use.
        side: Which database.
        command: The command's name, to be seen in pg_stat_activity.
        is_first: Whether nothing has begun yet: then a wrong port is likelier than a restart,
            and nobody should wait for long to learn of it.

    Raises:
        OrdermigrateError: By what the server says (see `sqlstates`), or with exit code 5 once
            `limits.retry_deadline_seconds` are over.

    """
    dsn = config.dsn(side)
    check_dsn(side, dsn)
    deadline = config.limits.retry_deadline_seconds
    async for attempt in retrying(min(deadline, FIRST_SECONDS) if is_first else deadline):
        with attempt:
            return await _connect_once(dsn, side, config.limits, f"ordermigrate {command}")
    message = "the retry policy ended without a result"
    raise AssertionError(message)


async def _connect_once(dsn: str, side: Side, limits: Limits, application_name: str) -> Session:
    block = limits.side(side)
    settings = sessions.settings(block, limits.lock_timeout_seconds)
    conninfo = make_conninfo(
        dsn,
        application_name=application_name,
        client_encoding="UTF8",
        # libpq counts whole seconds and takes 1 for 2; the limit itself is kept by asyncio.
        connect_timeout=str(max(2, round(block.connect_timeout_seconds) + 1)),
        keepalives_idle="15",
        keepalives_interval="5",
        keepalives_count="3",
    )
    try:
        async with asyncio.timeout(block.connect_timeout_seconds):
            connection = await AsyncConnection.connect(
                conninfo,
                autocommit=True,
                cursor_factory=AsyncRawCursor,
                row_factory=namedtuple_row,
                prepare_threshold=None,
            )
    except TimeoutError:
        raise ConnectionLost(
            f"The {side} did not answer within {block.connect_timeout_seconds:g} s",
            todo="Check that the server is up and reachable, and the DSN's host and port",
        ) from None
    except psycopg.OperationalError as error:
        raise await _diagnose(
            error, side, application_name, block.connect_timeout_seconds
        ) from None
    route = _route_of(connection, side, settings, application_name, block.connect_timeout_seconds)
    try:
        async with asyncio.timeout(block.connect_timeout_seconds + _GRACE_SECONDS):
            identity = await _settle(connection, side, settings)
    except TimeoutError:
        await connection.close()
        raise ConnectionLost(
            f"The {side} accepted a connection and then did not answer",
            todo="Check the server's load and the network; then run the command again",
        ) from None
    except BaseException:
        await connection.close()
        raise
    return Session(
        connection, identity, route, block.statement_timeout_seconds, limits.stall_timeout_seconds
    )


async def _settle(
    connection: AsyncConnection[Any], side: Side, settings: dict[str, str]
) -> Identity:
    with translated(side):
        names, values = list(settings), list(settings.values())
        await connection.execute(sessions.SET, (names, values))
        await connection.execute(queries.get("sessions", "keep_commits_durable"))
        with contextlib.suppress(psycopg.errors.InvalidParameterValue):
            await connection.execute(queries.get("sessions", "notice_dead_clients"))
        rows = await (await connection.execute(sessions.READ, (names,))).fetchall()
        sessions.check(side, connection.info.backend_pid, rows)
        found = await (
            await connection.execute(queries.get("sessions", "read_identity"))
        ).fetchone()
        control = await _read_control_file(connection)
    if found is None:
        message = "a SELECT without FROM gave no row"
        raise AssertionError(message)
    _check_server(side, found)
    return Identity(
        side,
        found.database_name,
        found.database_oid,
        control[0],
        found.server_version,
        found.encoding,
        found.is_in_recovery,
        control[1],
        found.deadlock_timeout_ms,
    )


async def _read_control_file(connection: AsyncConnection[Any]) -> tuple[int | None, int | None]:
    try:
        cursor = await connection.execute(queries.get("sessions", "read_control_file"))
        row = await cursor.fetchone()
    except psycopg.errors.InsufficientPrivilege:
        return None, None
    return (row.system_identifier, row.timeline) if row else (None, None)


def _check_server(side: Side, found: Any) -> None:  # noqa: ANN401  a row of read_identity
    if found.server_version < 140000:  # noqa: PLR2004  the oldest version still supported
        raise Refused(
            f"The {side} runs PostgreSQL {found.server_version // 10000}",
            wanted="PostgreSQL 14 or later",
            todo="Upgrade it first",
        )
    for setting in ("fsync", "full_page_writes"):
        if getattr(found, setting) == "off":
            raise Refused(
                f"On the {side}, {setting} is off: a crash can lose or break what was committed",
                wanted=f"{setting} = on, on both sides, for as long as the migration lasts",
                todo=f"ALTER SYSTEM SET {setting} = on; SELECT pg_reload_conf()",
            )
    if side is Side.SERVICE and found.is_in_recovery:
        raise Refused(
            "The service's server is a standby: it cannot be written to",
            wanted="The primary server",
            todo="Correct the service's DSN; target_session_attrs=primary helps",
        )


def _route_of(
    connection: AsyncConnection[Any],
    side: Side,
    settings: dict[str, str],
    application_name: str,
    connect_timeout_seconds: float,
) -> streams.Route:
    info = connection.info
    options = _resolved(connection.pgconn)
    # Of several hosts in a DSN, streams go to the one that the control connection has reached.
    options.update(host=info.host, port=str(info.port), password=info.password)
    return streams.Route(side, options, settings, application_name, connect_timeout_seconds)


def _resolved(pgconn: psycopg.pq.abc.PGconn) -> dict[str, str]:
    return {
        option.keyword.decode(): option.val.decode()
        for option in pgconn.info
        if option.val is not None
    }


async def _diagnose(
    error: psycopg.OperationalError, side: Side, application_name: str, timeout_seconds: float
) -> OrdermigrateError:
    """Find out why a connection failed: libpq gives a text in the server's language only.

    asyncpg gives the SQLSTATE, so it is asked to connect in the same way.
    """
    said = str(error).strip().removeprefix("connection failed: ").replace("\n", " ")
    if said.startswith("connection is bad: ") and "connection to server" not in said:
        # libpq did not even begin. (Python leaves its messages in English.)
        return UsageError(
            f"The {side}'s DSN cannot be used: {said.removeprefix('connection is bad: ')}",
            wanted="Options as libpq has them",
            todo="Correct the DSN, its service file, or the PG variables of the environment",
        )
    if error.pgconn is None:
        return to_error(side, ServerError("", said))
    route = streams.Route(side, _resolved(error.pgconn), {}, application_name, timeout_seconds)
    try:
        connection: asyncpg.Connection[Any] = await streams.connect(route)
    except ConnectionLost:
        return to_error(side, ServerError("", said))
    except OrdermigrateError as diagnosed:
        return diagnosed
    connection.terminate()
    return to_error(side, ServerError("", said))


@contextlib.asynccontextmanager
async def opened(config: Config, side: Side, command: str) -> AsyncIterator[Session]:
    """Open a control session for the length of a block (see `connect`)."""
    session = await connect(config, side, command)
    try:
        yield session
    finally:
        await session.close()


@contextlib.asynccontextmanager
async def open_pair(config: Config, command: str) -> AsyncIterator[tuple[Session, Session]]:
    """Open control sessions on the monolith and on the service, two different databases.

    Raises:
        UsageError: Both DSNs lead to the same database.
        OrdermigrateError: Either cannot be reached.

    """
    for side in Side:
        check_dsn(side, config.dsn(side))
    async with contextlib.AsyncExitStack() as stack:
        monolith = await connect(config, Side.MONOLITH, command, is_first=True)
        stack.push_async_callback(monolith.close)
        service = await connect(config, Side.SERVICE, command, is_first=True)
        stack.push_async_callback(service.close)
        if await is_same_database(monolith, service):
            raise UsageError(
                "Both DSNs lead to the same database "
                f"({monolith.identity.database!r} on one server)",
                wanted="Two databases: the monolith's and the service's own",
                todo="Correct the DSN of one of them",
            )
        yield monolith, service


async def is_same_database(one: Session, other: Session) -> bool:
    """Tell whether two sessions are in one database, by a lock that one takes and the other sees.

    Identifiers can lie (a copied data directory has the same ones); a lock cannot.
    """
    keys = secrets.randbelow(2**31), secrets.randbelow(2**31)
    await one.run(queries.get("sessions", "take_mark"), *keys)
    try:
        row = await other.fetch_one("sessions", "see_mark", *keys)
        return bool(row.is_seen)
    finally:
        await one.run(queries.get("sessions", "drop_mark"), *keys)
