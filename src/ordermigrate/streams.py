"""Streams of bytes between the two databases, by asyncpg: COPY out, COPY in, parallel scans.

The bytes of a COPY pass from one socket to the other unparsed, through a queue of bounded
length, so memory does not grow with the table. If the source fails, the target's COPY is made
to fail too, never to end: a short stream must not look like a complete one. A stream in which
nothing has moved for `stall_seconds` is given up.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import urlencode

import asyncpg

from ordermigrate import queries, sessions
from ordermigrate.model import Side
from ordermigrate.sqlstates import ConnectionLost, ServerError, to_error
from ordermigrate.together import run_together

# asyncpg hands over about 64 KiB at a time; eight of them are enough to keep both sockets busy.
QUEUE_LENGTH = 8

_TLS_KEYWORDS = (
    "sslmode",
    "sslcert",
    "sslkey",
    "sslrootcert",
    "sslcrl",
    "sslpassword",
    "ssl_min_protocol_version",
    "ssl_max_protocol_version",
)


@dataclass(frozen=True, slots=True)
class Route:
    """How to reach a server that libpq has already reached once: its resolved keywords."""

    side: Side
    options: Mapping[str, str] = field(repr=False)
    settings: Mapping[str, str]
    application_name: str
    connect_timeout_seconds: float


@dataclass(frozen=True, slots=True)
class Transfer:
    """What one COPY moved."""

    rows: int
    bytes: int


@contextlib.contextmanager
def translated(side: Side) -> Any:  # noqa: ANN401  a generator, by contextmanager
    """Turn what asyncpg and the network raise into our errors."""
    try:
        yield
    except asyncpg.PostgresError as error:
        said = ServerError(
            error.sqlstate or "",
            error.message or str(error),
            getattr(error, "detail", None) or "",
            getattr(error, "hint", None) or "",
            getattr(error, "context", None) or "",
        )
        raise to_error(side, said) from error
    except (asyncpg.InterfaceError, asyncpg.InternalClientError, OSError) as error:
        reason = str(error) or type(error).__name__
        raise ConnectionLost(
            f"The connection to the {side} is lost: {reason}",
            todo="Run the same command again; it goes on where it stopped",
        ) from error
    except RuntimeError as error:
        # uvloop's, where asyncpg writes to a connection that was reset a moment ago.
        if "the handler is closed" not in str(error):
            raise
        raise ConnectionLost(
            f"The connection to the {side} is lost",
            todo="Run the same command again; it goes on where it stopped",
        ) from error


async def connect(route: Route) -> asyncpg.Connection[Any]:
    """Open a connection with our session settings, checked.

    Raises:
        OrdermigrateError: By what the server says (see `sqlstates`).

    """
    with translated(route.side):
        try:
            async with asyncio.timeout(route.connect_timeout_seconds):
                connection = await _open(route)
        except TimeoutError:
            raise ConnectionLost(
                f"The {route.side} did not answer within {route.connect_timeout_seconds:g} s",
                todo="Check that the server is up and reachable; then run the command again",
            ) from None
        names, values = list(route.settings), list(route.settings.values())
        try:
            async with asyncio.timeout(route.connect_timeout_seconds):
                await connection.fetch(sessions.SET, names, values)
                await connection.execute(queries.get("sessions", "keep_commits_durable"))
                with contextlib.suppress(asyncpg.InvalidParameterValueError):
                    await connection.execute(queries.get("sessions", "notice_dead_clients"))
                rows = await connection.fetch(sessions.READ, names)
            sessions.check(
                route.side,
                connection.get_server_pid(),
                ((row["name"], row["value"], row["pid"]) for row in rows),
            )
        except BaseException:
            connection.terminate()
            raise
    return connection


async def _open(route: Route) -> asyncpg.Connection[Any]:
    options = route.options
    tls = {key: options[key] for key in _TLS_KEYWORDS if options.get(key)}
    try:
        return await asyncpg.connect(
            dsn="postgresql://?" + urlencode(tls) if tls else None,
            host=options.get("host") or options.get("hostaddr") or None,
            port=int(options["port"]) if options.get("port") else None,
            user=options.get("user"),
            password=options.get("password"),
            passfile=options.get("passfile"),
            database=options.get("dbname"),
            statement_cache_size=0,
            server_settings={
                "application_name": route.application_name,
                **({"options": options["options"]} if options.get("options") else {}),
            },
        )
    except (ssl.SSLError, asyncpg.ClientConfigurationError) as error:
        raise ConnectionLost(
            f"TLS with the {route.side} could not be set up: {error}",
            todo=f"Check sslmode, sslrootcert, sslcert and sslkey in the {route.side}'s DSN",
        ) from error


def ignore_cut_streams(loop: asyncio.AbstractEventLoop, told: dict[str, Any]) -> None:
    """Handle what an event loop has to tell: of streams that were cut on purpose, nothing.

    Whoever waited for such a stream was cancelled, so nobody asks for its end.
    """
    if not isinstance(told.get("exception"), asyncpg.ConnectionDoesNotExistError):
        loop.default_exception_handler(told)


class Pulse:
    """Counts the bytes that pass, so that a watcher can see whether anything still moves."""

    def __init__(self) -> None:
        self.bytes = 0
        self.beats = 0

    async def watch(self, side: str, stall_seconds: float) -> None:
        """Return never, but raise `ConnectionLost` once nothing has moved for that long."""
        seen = -1
        while self.beats != seen:
            seen = self.beats
            await asyncio.sleep(stall_seconds)
        raise ConnectionLost(
            f"The stream of {side} has stood still for {stall_seconds:g} s",
            todo="Check the network and the load of both servers; then run the command again, "
            "or raise limits.stall_timeout_seconds",
        )


async def pipe(
    source: asyncpg.Connection[Any],
    query: str,
    target: asyncpg.Connection[Any],
    *,
    schema: str,
    table: str,
    columns: tuple[str, ...],
    is_binary: bool,
    stall_seconds: float,
    sides: tuple[Side, Side],
    on_bytes: Callable[[int], None],
) -> Transfer:
    """Stream the rows of `query` into a table and return how many rows and bytes went.

    Both connections are in transactions of the caller's. On any failure they must not be used
    again: they have been cut, which ends both backends' transactions.

    Raises:
        OrdermigrateError: What either side reported, the source's first, or a stall.

    """
    queue: asyncio.Queue[bytes | None] = asyncio.Queue(QUEUE_LENGTH)
    pulse = Pulse()
    form: Literal["binary", "text"] = "binary" if is_binary else "text"

    async def put(piece: bytes) -> None:
        pulse.bytes += len(piece)
        pulse.beats += 1
        on_bytes(len(piece))
        await queue.put(piece)

    async def pieces() -> AsyncIterator[bytes]:
        while (piece := await queue.get()) is not None:
            yield piece
            pulse.beats += 1

    async def send() -> str:
        with translated(sides[0]):
            tag = await source.copy_from_query(query, output=put, format=form)
        await queue.put(None)
        return str(tag)

    async def receive() -> str:
        with translated(sides[1]):
            return str(
                await target.copy_to_table(
                    table, schema_name=schema, columns=columns, source=pieces(), format=form
                )
            )

    def abort() -> None:
        source.terminate()
        target.terminate()

    tags = await run_together(
        send(),
        receive(),
        beside=[pulse.watch(f"{schema}.{table}", stall_seconds)],
        abort=abort,
    )
    sent, received = (int(tag.rpartition(" ")[2]) for tag in tags)
    if sent != received:
        message = f"{sent} rows left the {sides[0]} but {received} arrived on the {sides[1]}"
        raise RuntimeError(message)
    return Transfer(sent, pulse.bytes)
