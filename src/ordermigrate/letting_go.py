"""Letting go: what the side does that is the owner no more, and how it gets its tables back."""

from __future__ import annotations

import asyncio
import time

from ordermigrate import (
    catalog,
    commits,
    db,
    locks,
    ownership,
    sequences,
    sides,
)
from ordermigrate.changes import Change
from ordermigrate.commits import LOOK_SECONDS, Transaction
from ordermigrate.control import Session
from ordermigrate.errors import OrdermigrateError, Refused, Stranded, Undone
from ordermigrate.progress import TakenBack
from ordermigrate.sequences import SequencePair

STANDBY_SECONDS = 1.0


async def warm(change: Change, freezer: Session, pairs: list[SequencePair]) -> None:
    """Have a new backend read beforehand what it will need while writers wait."""
    await _limit_silence(freezer, change.max_pause_seconds)
    await sequences.read_values(freezer, pairs)
    await catalog.read_own_triggers(freezer)
    await sides.read(freezer)


async def _limit_silence(freezer: Session, seconds: float) -> None:
    """Let the server let the writers go when this process says nothing more for so long."""
    limit = str(max(1, round(seconds * 1000)))
    await freezer.fetch_all("letting_go", "limit_freeze", limit)


async def prepare(
    change: Change, freezer: Session, pairs: list[SequencePair]
) -> tuple[Transaction, dict[int, int | None]]:
    """Switch the source's triggers, in the transaction that keeps writers out."""
    # Each statement begins the time anew; so from here on it is what is left of the pause.
    await _limit_silence(freezer, change.end - time.monotonic())
    values = await sequences.read_values(freezer, pairs)
    change.switched[freezer.side] = await ownership.switch(
        freezer, change.source.tables, change.source.triggers, is_hot=False
    )
    return await commits.identify(freezer, change.epoch + 1, is_hot=False), values


async def give_up(change: Change, freezer: Session, number: int, intent: str) -> None:
    """Change the side row, in the transaction that keeps writers out."""
    await _limit_silence(freezer, change.end - time.monotonic())
    row = await freezer.fetch_one("sides", "give_up", change.run, change.epoch, number, intent)
    if row is None:
        raise Undone(f"The {freezer.side} is not the owner in epoch {change.epoch} any more")


async def see_standbys(change: Change, freezer: Session, end: float) -> None:
    """Wait until the source's standbys have what it has let go, or say that nobody can tell.

    A failover to one that has not would make the source an owner again, behind everyone's back.
    """
    limit = min(STANDBY_SECONDS, max(0.0, end - time.monotonic()))
    until = time.monotonic() + limit
    try:
        # An answer that does not come must not keep the other side from taking over.
        async with asyncio.timeout(limit + LOOK_SECONDS):
            position = None
            while True:
                row = await freezer.fetch_one("letting_go", "measure_standbys", position)
                position = row.position
                if row.standbys == row.flushed:
                    return
                if row.hidden == row.standbys or time.monotonic() >= until:
                    break
                await asyncio.sleep(LOOK_SECONDS)
    except (OrdermigrateError, TimeoutError):
        change.notes.append(
            f"whether the {change.direction.source}'s standbys know that it has let go was not seen"
        )
        return
    change.notes.append(
        f"{row.standbys - row.flushed} of the {change.direction.source}'s {row.standbys} standbys "
        "are not known to have on disk that it has let go: after a failover to one of them, run "
        "`ordermigrate status` before anyone writes"
    )


async def take_back(change: Change, reason: str) -> None:
    """Give the tables back to a source that has let go.

    The target is told first, so that nobody can finish the change meanwhile; where it cannot be
    reached, nobody else can, either, for our own transaction there is over.

    Raises:
        Stranded: It could not be done; nobody owns the tables.

    """
    direction = change.direction
    try:
        async with db.opened(
            change.config, direction.source, f"{direction.command}: give back"
        ) as session:
            await session.run("BEGIN")
            await locks.lock_against_writers(session, change.names[session.side])
            triggers = await catalog.read_own_triggers(session)
            await ownership.switch(session, change.source.tables, triggers, is_hot=True)
            row = await session.fetch_one(
                "sides", "take_back", change.run, change.epoch + 1, change.token
            )
            if row is None:
                raise Refused(
                    f"The {session.side}'s row has changed: another command has decided about it"
                )
            transaction = await commits.identify(session, change.epoch + 2, is_hot=True)
            end = time.monotonic() + 1
            if not await commits.commit(change.config, direction, session, transaction, end):
                raise Refused(f"The {session.side}'s server did not take the commit")
    except OrdermigrateError as failed:
        raise Stranded(
            f"Nobody owns the tables: the {direction.source} has let go, {reason}, and it could "
            f"not be made the owner again: {failed.fact}",
            wanted="One owner",
            todo=f"Run `{direction.command_line} --abort` as soon as the {direction.source} can be "
            f"reached, or `{direction.command_line}` to finish",
        ) from failed
    change.reporter.report(TakenBack(direction.source.value, reason))
