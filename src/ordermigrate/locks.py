"""Locks on the family's tables, taken so that no application waits long and none is a victim.

Whoever queues for a lock makes everyone behind it wait, too; so we queue for a moment only, well
within deadlock_timeout, let everything go, and try again. And where an ALTER TABLE of somebody
else queues behind a lock of ours, we are the ones to go.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from functools import partial
from typing import NoReturn

from psycopg import sql

from ordermigrate import queries, streams
from ordermigrate.control import Session
from ordermigrate.errors import LockTimeout, Unavailable
from ordermigrate.model import TableName

WATCH_SECONDS = 0.25
# How long the real lock is queued for, from one try to the next; never beyond half of
# deadlock_timeout, after which the server would look for a victim.
_QUEUE_MS = (50, 100, 200, 400)
_NOT_HAD = frozenset({"55P03", "57014", "40P01"})


async def begin_locked(
    run: Callable[[str], Awaitable[object]],
    session: Session,
    tables: Iterable[TableName],
    statement_timeout_ms: str | None = None,
    *,
    is_writing: bool = False,
) -> None:
    """Begin REPEATABLE READ and take ACCESS SHARE on the tables before any snapshot.

    LOCK TABLE takes no snapshot, so whatever reads next does so in one that no rewrite can have
    overtaken. While it waits for one table it holds others; so it gives up well within
    deadlock_timeout, lets everything go, and tries again.

    Args:
        run: Runs statements on the connection whose transaction this is.
        session: A session on the same side.
        tables: The family; what inherits from them is locked with them.
        statement_timeout_ms: What the transaction goes on with; the session's own if left out.
        is_writing: Whether the transaction will write to tables of ours.

    Raises:
        LockTimeout: Within lock_timeout the locks were not to be had; says who holds them.

    """
    tables = list(tables)
    mode = "READ WRITE" if is_writing else "READ ONLY"
    own = statement_timeout_ms or session.route.settings["statement_timeout"]
    # One message for all: none of these takes a snapshot, and each has a timeout of its own.
    statements = (
        f"BEGIN ISOLATION LEVEL REPEATABLE READ {mode}; "
        # lock_timeout counts for each table by itself; statement_timeout for all of them.
        f"SET LOCAL statement_timeout = {session.identity.deadlock_timeout_ms // 2}; "
        + queries.compose("locks", "lock_against_rewrites", tables=_listed(tables))
        + f"; SET LOCAL statement_timeout = {own}"
    )
    end = time.monotonic() + float(session.route.settings["lock_timeout"]) / 1000
    while True:
        try:
            await run(statements)
        except Unavailable as unavailable:
            if unavailable.sqlstate not in _NOT_HAD:
                raise
            await run("ROLLBACK")
            if time.monotonic() >= end:
                raise await _explain_readers_timeout(session, tables) from unavailable
            await asyncio.sleep(random.uniform(0.05, 0.2))  # noqa: S311  jitter, not a secret
        else:
            return


def _listed(tables: Iterable[TableName]) -> sql.Composed:
    return sql.SQL(", ").join(name.sql for name in tables)


async def _explain_readers_timeout(session: Session, tables: Sequence[TableName]) -> LockTimeout:
    """Say who keeps even readers out of the tables."""
    holders = await _describe_holders(session, "see_exclusive_holders", tables)
    return LockTimeout(
        f"The {session.side}'s tables could not be locked for reading in time"
        + (f": held or wanted exclusively by {holders}" if holders else ""),
        todo="End that session or wait for it; then run the command again",
    )


async def _describe_holders(
    session: Session, block: str, tables: Sequence[TableName], *values: object
) -> str:
    connection = await streams.connect(session.route)
    try:
        with streams.translated(session.side):
            rows = await connection.fetch(
                queries.get("locks", block), [str(each) for each in tables], *values
            )
    finally:
        connection.terminate()
    return "; ".join(
        (f"backend {row['pid']}" if row["pid"] else "a prepared transaction")
        + f" on {row['relation']} for {row['age_seconds']:.0f} s ({row['query']})"
        for row in rows
        if row["pid"] != session.pid
    )


@contextlib.asynccontextmanager
async def excluding_writers(
    session: Session, tables: Iterable[TableName], *, is_exclusive: bool = False
) -> AsyncIterator[None]:
    """Run a block in a transaction that keeps writers out of the tables (SHARE ROW EXCLUSIVE).

    First a lock that blocks no writer, and for which an autovacuum gives way; then the real one on
    all tables, queued for at most half of deadlock_timeout, so that no writer waits longer than
    that behind us and none becomes a deadlock's victim. What the block does should take moments.

    Args:
        session: Where the transaction runs.
        tables: The tables, and all that inherits from them.
        is_exclusive: Whether readers have to stay out as well (to drop a trigger).

    Raises:
        LockTimeout: Within lock_timeout the locks were not to be had; says who holds them.

    """
    tables = list(tables)

    async def begin() -> None:
        await begin_excluding(session, tables, is_exclusive=is_exclusive)

    async with session.transaction(begin):
        yield


async def begin_excluding(
    session: Session,
    tables: Sequence[TableName],
    *,
    is_exclusive: bool = False,
    longest_seconds: float | None = None,
) -> float:
    """Begin a transaction that keeps writers out of the tables, as `excluding_writers` has it.

    Args:
        session: In no transaction.
        tables: The tables, and all that inherits from them.
        is_exclusive: Whether readers have to stay out as well.
        longest_seconds: For how long to queue at most, from one try to the next.

    Returns:
        Since when writers may have waited behind us, by the monotonic clock.

    Raises:
        LockTimeout: Within lock_timeout the locks were not to be had; says who holds them.

    """
    patience = float(session.route.settings["lock_timeout"]) / 1000
    end = time.monotonic() + patience
    longest = session.identity.deadlock_timeout_ms // 2
    if longest_seconds is not None:
        longest = max(1, min(longest, round(longest_seconds * 1000)))
    block = "lock_exclusively" if is_exclusive else "lock_against_writers"
    tries = 0
    while True:
        await session.run("BEGIN")
        try:
            await lock_against_vacuum(session, tables)
            queued = min(_QUEUE_MS[min(tries, len(_QUEUE_MS) - 1)], longest)
            await session.set_local("statement_timeout", str(queued))
            began = time.monotonic()
            await session.fetch_all("locks", block, tables=_listed(tables))
            given = (session.route.settings[each] for each in ("lock_timeout", "statement_timeout"))
            await session.fetch_all("locks", "set_timeouts", *given)
        except Unavailable as unavailable:
            if unavailable.sqlstate not in _NOT_HAD:
                raise
            await session.run("ROLLBACK")
            if time.monotonic() >= end:
                raise await _explain_writers_timeout(
                    session, tables, patience, is_exclusive=is_exclusive
                ) from unavailable
            tries += 1
            # Longer than we have queued: between two tries writers are to have their way.
            await asyncio.sleep(random.uniform(0.2, 0.6))  # noqa: S311  jitter, not a secret
        else:
            return began


async def lock_against_vacuum(session: Session, tables: Sequence[TableName]) -> None:
    """Take the lock that blocks no reader and no writer, and that an autovacuum gives way to.

    In the caller's transaction, which can go on to a stronger one without waiting for a vacuum.
    """
    # Above deadlock_timeout, for it is then that an autovacuum is made to give way.
    await session.set_local("lock_timeout", str(session.identity.deadlock_timeout_ms + 500))
    await session.fetch_all("locks", "lock_against_vacuum", tables=_listed(tables))


async def lock_against_writers(session: Session, tables: Sequence[TableName]) -> None:
    """Keep writers out for the rest of the caller's transaction, which has a timeout of its own."""
    await session.fetch_all("locks", "lock_against_writers", tables=_listed(tables))


async def _explain_writers_timeout(
    session: Session, tables: Sequence[TableName], patience: float, *, is_exclusive: bool
) -> LockTimeout:
    harmless = [] if is_exclusive else ["AccessShareLock", "RowShareLock"]
    holders = await _describe_holders(session, "see_table_users", tables, harmless)
    return LockTimeout(
        f"For {patience:g} s there was no moment in which nobody "
        f"{'used' if is_exclusive else 'wrote to'} the {session.side}'s tables"
        + (f": {holders}" if holders else ""),
        wanted="A lock for a few milliseconds, without making writers wait for long",
        todo="Run the command again when those transactions are over, or end them",
    )


@contextlib.asynccontextmanager
async def locked_snapshot(session: Session, tables: Iterable[TableName]) -> AsyncIterator[None]:
    """Run a block in a transaction as `begin_locked` opens it."""
    async with session.transaction(partial(begin_locked, session.run, session, tables)):
        yield


class GaveWay(Unavailable):
    """A transaction of ours ended early so that somebody's ALTER TABLE need not wait for it."""


async def watch_for_rewriters(
    watcher: Session, oids: Sequence[int], pids: Sequence[int]
) -> NoReturn:
    """Look for ACCESS EXCLUSIVE locks that wait behind backends of ours, until there is one.

    Behind such a lock the whole application would queue, so we are the ones to go.

    Args:
        watcher: A session on the source that does nothing else meanwhile.
        oids: The family's tables and leaves.
        pids: Our backends that read them; may grow while this runs.

    Raises:
        GaveWay: Somebody waits.

    """
    while True:
        await asyncio.sleep(WATCH_SECONDS)
        waiting = await watcher.fetch_all("locks", "see_waiting_rewriters", list(oids), list(pids))
        if waiting:
            who = waiting[0]
            raise GaveWay(
                f"Gave way to backend {who.pid} on the {watcher.side}, which waits for an "
                f"exclusive lock on {who.relation} ({who.query})",
                todo="Run the same command again when that is over",
            )
