"""Reaching the two databases: connections, their identity, and the one retry policy.

Every connection has our settings, checked; what a failed one means is decided by SQLSTATE. The
two DSNs must lead to two different databases, and that is proved by a lock, not by identifiers.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator, Iterator
from typing import Any

import asyncpg
import psycopg
from psycopg import AsyncConnection, AsyncRawCursor
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
from ordermigrate.control import GRACE_SECONDS, Session, translated
from ordermigrate.errors import OrdermigrateError, Refused, Unavailable, UsageError
from ordermigrate.model import Identity, Side
from ordermigrate.sqlstates import ConnectionLost, ServerError, to_error

FIRST_SECONDS = 10.0


def retrying(deadline_seconds: float) -> AsyncRetrying:
    """Return the one retry policy: lost connections only, jittered, with a total deadline.

    What is worth another try is decided by SQLSTATE (`sqlstates.to_error`).
    """
    return AsyncRetrying(
        retry=retry_if_exception_type(ConnectionLost),
        stop=stop_after_delay(deadline_seconds),
        wait=wait_exponential_jitter(multiplier=0.2, max=5.0),
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


async def connect(
    config: Config,
    side: Side,
    command: str,
    *,
    is_first: bool = False,
    faults: list[Refused] | None = None,
) -> Session:
    """Open a control session, trying again while the server cannot be reached.

    Args:
        config: Whose DSN and limits to use.
        side: Which database.
        command: The command's name, to be seen in pg_stat_activity.
        is_first: Whether nothing has begun yet: then a wrong port is likelier than a restart,
            and nobody should wait for long to learn of it.
        faults: Where given, what is wrong with a server that can be asked all the same is put
            here, instead of being raised.

    Raises:
        OrdermigrateError: By what the server says (see `sqlstates`), or with exit code 5 once
            `limits.retry_deadline_seconds` are over.

    """
    dsn = config.dsn(side)
    check_dsn(side, dsn)
    deadline = config.limits.retry_deadline_seconds
    async for attempt in retrying(min(deadline, FIRST_SECONDS) if is_first else deadline):
        with attempt:
            return await _connect_once(dsn, side, config.limits, f"ordermigrate {command}", faults)
    message = "the retry policy ended without a result"
    raise AssertionError(message)


async def _connect_once(
    dsn: str, side: Side, limits: Limits, application_name: str, faults: list[Refused] | None
) -> Session:
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
        async with asyncio.timeout(block.connect_timeout_seconds + GRACE_SECONDS):
            identity, found = await _settle(connection, side, settings)
    except TimeoutError:
        await connection.close()
        raise ConnectionLost(
            f"The {side} accepted a connection and then did not answer",
            todo="Check the server's load and the network; then run the command again",
        ) from None
    except BaseException:
        await connection.close()
        raise
    if faults is not None:
        faults.extend(found)
    elif found:
        await connection.close()
        raise found[0]
    return Session(
        connection, identity, route, block.statement_timeout_seconds, limits.stall_timeout_seconds
    )


async def _settle(
    connection: AsyncConnection[Any], side: Side, settings: dict[str, str]
) -> tuple[Identity, list[Refused]]:
    """Set and check the session; return whom it has reached, and what is wrong with it."""
    faults: list[Refused] = []
    with translated(side):
        names, values = list(settings), list(settings.values())
        await connection.execute(sessions.SET, (names, values))
        await connection.execute(queries.get("sessions", "keep_commits_durable"))
        with contextlib.suppress(psycopg.errors.InvalidParameterValue):
            await connection.execute(queries.get("sessions", "notice_dead_clients"))
        rows = await (await connection.execute(sessions.READ, (names,))).fetchall()
        try:
            sessions.check(side, connection.info.backend_pid, rows)
        except Refused as fault:
            faults.append(fault)
        found = await (
            await connection.execute(queries.get("sessions", "read_identity"))
        ).fetchone()
        control = await _read_control_file(connection)
    if found is None:
        message = "a SELECT without FROM gave no row"
        raise AssertionError(message)
    faults.extend(find_server_faults(side, found))
    identity = Identity(
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
    return identity, faults


async def _read_control_file(connection: AsyncConnection[Any]) -> tuple[int | None, int | None]:
    try:
        cursor = await connection.execute(queries.get("sessions", "read_control_file"))
        row = await cursor.fetchone()
    except psycopg.errors.InsufficientPrivilege:
        return None, None
    return (row.system_identifier, row.timeline) if row else (None, None)


def find_server_faults(side: Side, found: Any) -> Iterator[Refused]:  # noqa: ANN401  a row of read_identity
    """Return what is wrong with a server, by what it says of itself."""
    if found.server_version < 140000:  # noqa: PLR2004  the oldest version still supported
        yield Refused(
            f"The {side} runs PostgreSQL {found.server_version // 10000}",
            wanted="PostgreSQL 14 or later",
            todo="Upgrade it first",
            finding="version",
        )
    for setting in ("fsync", "full_page_writes"):
        if getattr(found, setting) == "off":
            yield Refused(
                f"On the {side}, {setting} is off: a crash can lose or break what was committed",
                wanted=f"{setting} = on, on both sides, for as long as the migration lasts",
                todo=f"ALTER SYSTEM SET {setting} = on; SELECT pg_reload_conf()",
                finding="durability",
            )
    if side is Side.SERVICE and found.is_in_recovery:
        yield Refused(
            "The service's server is a standby: it cannot be written to",
            wanted="The primary server",
            todo="Correct the service's DSN; target_session_attrs=primary helps",
            finding="standby",
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
    except ConnectionLost as lost:
        unavailable = to_error(side, ServerError("", said))
        unavailable.sqlstate = lost.sqlstate  # a server that has one to give is alive
        return unavailable
    except OrdermigrateError as diagnosed:
        return diagnosed
    connection.terminate()
    return to_error(side, ServerError("", said))


def make_impatient(config: Config) -> Config:
    """Return a configuration by which each connection is tried once; the caller waits."""
    limits = config.limits.model_copy(update={"retry_deadline_seconds": 0.0})
    return config.model_copy(update={"limits": limits})


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
        await require_two(monolith, service)
        yield monolith, service


@contextlib.asynccontextmanager
async def open_reachable(
    config: Config, command: str
) -> AsyncIterator[tuple[Session | Unavailable, Session | Unavailable]]:
    """Open both sides as `open_pair` does, and give the error in the place of one that is away.

    Raises:
        Unavailable: Both are.
        OrdermigrateError: For whatever is wrong with a DSN or a server that does answer.

    """
    for side in Side:
        check_dsn(side, config.dsn(side))
    async with contextlib.AsyncExitStack() as stack:
        found: list[Session | Unavailable] = []
        for side in Side:
            try:
                session = await connect(config, side, command, is_first=True)
            except Unavailable as unavailable:
                found.append(unavailable)
            else:
                stack.push_async_callback(session.close)
                found.append(session)
        monolith, service = found
        if isinstance(monolith, Session) and isinstance(service, Session):
            await require_two(monolith, service)
        elif isinstance(monolith, Unavailable) and isinstance(service, Unavailable):
            raise monolith
        yield monolith, service


async def require_two(monolith: Session, service: Session) -> None:
    """Raise `UsageError` where both sessions are in one database."""
    if await is_same_database(monolith, service):
        raise UsageError(
            f"Both DSNs lead to the same database ({monolith.identity.database!r} on one server)",
            wanted="Two databases: the monolith's and the service's own",
            todo="Correct the DSN of one of them",
            finding="one-database",
        )


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
