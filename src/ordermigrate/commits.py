"""Commits whose end is known for certain, whatever becomes of the reply.

A reply that is lost says nothing: the transaction may be done, or about to be, or wait for a
standby and be done without anybody seeing it. So its backend is ended and waited for, and then the
side row, which the transaction was to change, is looked at.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

from ordermigrate import db, sides
from ordermigrate.config import Config
from ordermigrate.control import Session
from ordermigrate.errors import OrdermigrateError, Refused, Stranded
from ordermigrate.model import Direction, Side
from ordermigrate.sides import SideRow

# For how long, beyond the pause, a commit under way is asked about before a person has to.
RESOLVE_SECONDS = 10.0
LOOK_SECONDS = 0.02


@dataclass(frozen=True, slots=True)
class Transaction:
    """A transaction, how to ask for its end, and what its side's row says once it is done."""

    pid: int
    xid: str
    timeline: int
    epoch: int
    is_hot: bool


async def identify(session: Session, epoch: int, *, is_hot: bool) -> Transaction:
    """Name the open transaction, and what its side's row will say once it is committed."""
    row = await session.fetch_one("commits", "identify_transaction")
    return Transaction(row.pid, row.xid, row.timeline, epoch, is_hot)


async def commit(
    config: Config,
    direction: Direction,
    session: Session,
    transaction: Transaction,
    end: float,
) -> bool:
    """Commit, and return whether that is so, whatever becomes of the reply.

    Raises:
        Stranded: Nobody can be asked.

    """
    try:
        async with asyncio.timeout(max(1.0, end - time.monotonic())):
            return await session.commit()
    except (OrdermigrateError, TimeoutError):
        await drop(session)
        return await resolve(config, direction, session.side, transaction)


async def resolve(
    config: Config, direction: Direction, side: Side, transaction: Transaction
) -> bool:
    """Find out whether a transaction has committed, after making sure that it is over.

    Raises:
        Stranded: The server cannot be asked.

    """
    end = time.monotonic() + RESOLVE_SECONDS
    config = db.make_impatient(config)
    while True:
        try:
            async with db.opened(config, side, f"{direction.command}: look") as session:
                return await read_outcome(session, transaction, end)
        except OrdermigrateError as failed:
            if time.monotonic() >= end:
                raise Stranded(
                    f"The {side}'s server was told to commit its part of the change of owner, and "
                    f"has not answered since: {failed.fact}",
                    wanted="To know whether it did",
                    todo=f"As soon as it can be reached, run `{direction.command_line}` to "
                    f"finish, or `{direction.command_line} --abort` to give the tables back "
                    f"to the {direction.source}",
                ) from failed
        await asyncio.sleep(5 * LOOK_SECONDS)


async def read_outcome(session: Session, transaction: Transaction, end: float) -> bool:
    """Return whether a transaction has committed; one that is still there is ended.

    Once it is over its side's row tells. Its number alone does not: after a crash before anything
    of it was on disk another transaction may have got the same, and on another timeline it means
    nothing.

    Raises:
        Refused: It does not end.

    """
    place = await session.fetch_one("rounds", "read_timeline")
    if place.timeline == transaction.timeline:
        await _end(session, transaction, end)
    row = await sides.read(session)
    wanted = transaction.epoch, transaction.is_hot
    return row is not None and (row.epoch, row.is_hot) == wanted


async def _end(session: Session, transaction: Transaction, end: float) -> None:
    """End a transaction's backend, and wait until it is gone."""
    given = transaction.pid, transaction.xid
    await session.fetch_all("commits", "end_backend", *given)
    while True:
        is_there = (await session.fetch_one("commits", "is_backend_there", *given)).is_there
        row = await session.fetch_one("commits", "read_outcome", transaction.xid)
        # Another role's backend may be hidden from us; what became of a number never is.
        if not is_there and (row is None or row.outcome != "in progress"):
            return
        if time.monotonic() >= end:
            raise Refused(f"Backend {transaction.pid} on the {session.side} does not end")
        await asyncio.sleep(LOOK_SECONDS)


async def drop(session: Session) -> None:
    """Cut a connection; its server undoes what was open."""
    session.abort()
    await session.close()


def read_transaction(row: SideRow) -> Transaction | None:
    """Return the transaction by which the other side was to let go, as a cold side has it."""
    intent = row.intent or {}
    noted = intent.get("transaction")
    if not noted:
        return None
    pid, xid, timeline = int(noted["pid"]), str(noted["xid"]), int(noted["timeline"])
    return Transaction(pid, xid, timeline, int(intent["epoch"]) + 1, is_hot=False)
