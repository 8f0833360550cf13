"""Taking over: what the side does that becomes the owner.

All of it, but for its COMMIT, is done before the other side lets go. Whoever finds a change that
was cut off between the two commits can do it again, by the intent that is on record on this side.
"""

from __future__ import annotations

import asyncio
import contextlib

from ordermigrate import catalog, commits, db, indexes, ledger, locks, ownership, sequences, sides
from ordermigrate.changes import Change
from ordermigrate.commits import Transaction
from ordermigrate.control import Session
from ordermigrate.errors import OrdermigrateError, Refused, Undone
from ordermigrate.ledger import RecordedObject
from ordermigrate.progress import IntentNoted
from ordermigrate.sequences import SequencePair


async def begin(change: Change, taker: Session) -> None:
    """Open the transaction that will take over, as far as it hinders no round."""
    await taker.run("BEGIN")
    await locks.lock_against_vacuum(taker, change.names[taker.side])
    limit = str(max(1, round(change.max_pause_seconds * 1000)))
    for name in ("lock_timeout", "statement_timeout"):
        await taker.set_local(name, limit)


async def warm(taker: Session) -> list[RecordedObject]:
    """Have a new backend read beforehand what it will need while writers wait.

    Returns what has to come back on this side.
    """
    await catalog.read_own_triggers(taker)
    await sides.read(taker)
    return await ledger.read_silenced(taker)


async def note_intent(change: Change, book: Session, intent: str) -> None:
    """Put on record, at once and for good, that this side is about to own the tables."""
    row = await book.fetch_one("sides", "intend", change.run, change.epoch, intent)
    if row is None:
        raise Undone(f"The {book.side} is not the cold side in epoch {change.epoch} any more")
    change.reporter.report(IntentNoted(book.side.value))


async def prepare(
    change: Change,
    taker: Session,
    pairs: list[SequencePair],
    values: dict[int, int | None],
    sessions: int,
    recorded: list[RecordedObject],
) -> None:
    """Do all of the taking over that its side row has no say in."""
    await locks.lock_against_writers(taker, change.names[taker.side])
    await sequences.advance(taker, pairs, values, sessions)
    change.switched[taker.side] = await ownership.switch(
        taker, change.target.tables, change.target.triggers, is_hot=True
    )
    change.notes += await indexes.unsilence(taker, recorded, is_hasty=True)


async def take_over(change: Change, taker: Session) -> Transaction:
    """Do the rest of it but for its commit."""
    row = await taker.fetch_one("sides", "take_over", change.run, change.epoch, change.token)
    if row is None:
        raise Refused(
            f"The {taker.side} is not to own the tables any more: another command has decided so",
            todo="See `ordermigrate status`",
        )
    return await commits.identify(taker, change.epoch + 1, is_hot=True)


async def forget_intent(change: Change) -> None:
    """Take back what was said of the change; if that fails, whoever comes next does it."""
    with contextlib.suppress(OrdermigrateError, TimeoutError):
        async with asyncio.timeout(commits.RESOLVE_SECONDS):
            async with db.opened(
                change.config, change.direction.target, f"{change.direction.command}: intent"
            ) as book:
                await book.fetch_all("sides", "forget_intent", change.run, change.epoch)


async def finish(change: Change, end: float) -> None:
    """Let the target take over from a source that has let go; safe to repeat.

    Raises:
        OrdermigrateError: It could not; nothing has changed.
        Stranded: It is not known whether it did.

    """
    direction = change.direction
    config = db.make_impatient(change.config)  # whoever asks has a limit of its own
    async with db.opened(config, direction.target, f"{direction.command}: finish") as taker:
        row = await sides.read(taker)
        if row is not None and row.is_hot and row.epoch > change.epoch:
            return
        await begin(change, taker)
        recorded = await ledger.read_silenced(taker)
        await prepare(change, taker, [], {}, 0, recorded)  # of the sequences the caller has thought
        taken = await take_over(change, taker)
        if not await commits.commit(change.config, change.direction, taker, taken, end):
            raise Refused(f"The {taker.side}'s server did not take the commit")
