"""Handover: the two commits between which nobody owns the tables, and how each is made certain.

The old owner lets go in one transaction: writers out, fence on, capture off, side row cold. The new
one takes over in another, which is complete but for its COMMIT before the first is committed. Until
the first commit any end of the process, the network or the server gives the writers back to the old
owner, and the server does that by itself. Between the two both sides refuse, and what to do is on
record on both, with the transaction's number; whoever comes next can finish or undo it.

A reply that is lost says nothing. Then the backend is ended and waited for, and the server asked
what became of the transaction. (A commit that waits for a standby is done, and nobody sees it.)
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import time
from collections.abc import Coroutine
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from ordermigrate import (
    catalog,
    db,
    indexes,
    ledger,
    locks,
    ownership,
    rounds,
    sequences,
    sides,
    write_ahead_log,
)
from ordermigrate.config import Config
from ordermigrate.control import Session
from ordermigrate.errors import OrdermigrateError, Refused, Stranded, Undone
from ordermigrate.model import Direction, OwnTrigger, Side, Table, TableMap
from ordermigrate.progress import (
    Drained,
    Freezing,
    Frozen,
    IntentNoted,
    LetGo,
    Reporter,
    TakenBack,
    TakenOver,
)
from ordermigrate.rounds import Line, Round
from ordermigrate.sequences import SequencePair
from ordermigrate.sides import SideRow
from ordermigrate.together import run_together

# For how long, beyond the pause, a commit under way is asked about before a person has to.
RESOLVE_SECONDS = 10.0
LOOK_SECONDS = 0.02
STANDBY_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Transaction:
    """A transaction, how to ask for its end, and what its side's row says once it is done."""

    pid: int
    xid: str
    timeline: int
    epoch: int
    is_hot: bool


@dataclass(frozen=True, slots=True)
class Stand:
    """One side's tables, and the triggers of ours on them."""

    tables: list[Table]
    triggers: list[OwnTrigger]


@dataclass(slots=True)
class Change:
    """A change of owner under way: between which sides, of what, by whom."""

    config: Config
    direction: Direction
    run: str
    epoch: int
    maps: list[TableMap]
    source: Stand
    target: Stand
    max_pause_seconds: float
    reporter: Reporter
    token: str = field(default_factory=lambda: secrets.token_hex(8))
    notes: list[str] = field(default_factory=list)
    has_standbys: bool = False
    # Our triggers as the change has left them, on each side.
    switched: dict[Side, list[OwnTrigger]] = field(default_factory=dict)

    @property
    def names(self) -> dict[Side, list[Any]]:
        """The family's names on each side."""
        return {
            self.direction.source: [each.name for each in self.source.tables],
            self.direction.target: [each.name for each in self.target.tables],
        }

    def intent(self, let_go: Transaction | None, number: int) -> str:
        """Return what is written down of it, as JSON."""
        return json.dumps(
            {
                "token": self.token,
                "direction": self.direction.value,
                "epoch": self.epoch,
                "round": number,
                "at": datetime.now(UTC).isoformat(timespec="milliseconds"),
                "transaction": let_go
                and {"pid": let_go.pid, "xid": let_go.xid, "timeline": let_go.timeline},
            }
        )


async def look(session: Session, tables: list[Table]) -> Stand:
    """Read the triggers of ours on a side's tables."""
    return Stand(tables, await catalog.read_own_triggers(session))


async def hand_over(change: Change, line: Line, book: Session) -> float:
    """Move the ownership from source to target, or leave it where it was.

    Args:
        change: What is to be done.
        line: Rounds from source to target; nobody else's come in between.
        book: A session on the target, in no transaction.

    Returns:
        For how long no side took a write, in seconds, at most.

    Raises:
        Undone: It could not be done within the pause; the source owns the tables, as before.
        Stranded: It is not known, or nobody does; says what to do.

    """
    source, target = change.direction.source, change.direction.target
    async with (
        db.opened(change.config, source, f"{change.direction.command}: freeze") as freezer,
        db.opened(change.config, target, f"{change.direction.command}: take over") as taker,
    ):
        pairs = sequences.pair_sequences(change.maps)
        sessions = await sequences.count_sessions(freezer)
        try:
            await _begin_taking(change, taker)
            await _warm(change, freezer, taker, pairs)
            change.reporter.report(Freezing(source.value))
            began = await locks.begin_excluding(
                freezer, change.names[source], longest_seconds=change.max_pause_seconds / 2
            )
        except OrdermigrateError as failed:
            raise Undone(
                f"The {source}'s writers could not be stopped: {failed.fact}",
                wanted="A moment in which nobody writes to the tables",
                todo=failed.todo or "Try again",
            ) from failed
        end = began + change.max_pause_seconds
        try:
            async with asyncio.timeout(max(0.0, end - time.monotonic())):
                let_go, taken = await _fill(change, line, freezer, taker, book, pairs, sessions)
        except BaseException as failed:
            # Whatever it was: the server undoes what was open on these two.
            freezer.abort()
            taker.abort()
            # A round that was cut off holds the target's side row for as long as it is there.
            line.source.terminate()
            line.target.terminate()
            await freezer.close()
            await taker.close()
            await _forget_intent(change)
            if isinstance(failed, asyncio.CancelledError):
                raise
            raise _explain_undone(change, failed) from failed
        pause = await _uninterrupted(_exchange(change, freezer, taker, let_go, taken, began, end))
    change.reporter.report(TakenOver(target.value, pause))
    return pause


async def _warm(
    change: Change, freezer: Session, taker: Session, pairs: list[SequencePair]
) -> None:
    """Have two new backends read beforehand what they will need while writers wait."""
    # If this process dies without a word, the server lets the writers go.
    limit = str(max(1, round(change.max_pause_seconds * 1000)))
    await freezer.fetch_all("handover", "limit_freeze", limit)
    change.has_standbys = (
        await freezer.fetch_one("handover", "measure_standbys", "0/0")
    ).standbys > 0
    await sequences.read_values(freezer, pairs)
    for session in (freezer, taker):
        await catalog.read_own_triggers(session)
        await sides.read(session)
    if await ledger.has_records(taker):
        await ledger.read_objects(taker, "trigger", "foreign_key")


async def _uninterrupted(work: Coroutine[Any, Any, float]) -> float:
    """Do work to its end, and only then let an interruption have its way."""
    task = asyncio.ensure_future(work)
    is_cancelled = False
    while not task.done():
        try:
            await asyncio.shield(asyncio.wait({task}))
        except asyncio.CancelledError:
            is_cancelled = True
    if is_cancelled and task.exception() is None:
        raise asyncio.CancelledError
    return task.result()


async def _exchange(
    change: Change,
    freezer: Session,
    taker: Session,
    let_go: Transaction,
    taken: Transaction,
    began: float,
    end: float,
) -> float:
    """Commit both parts; return how long the pause was, in seconds."""
    await _release(change, freezer, let_go, end)
    await _see_standbys(change, freezer, end)
    await _take(change, taker, taken, end)
    return time.monotonic() - began


async def _begin_taking(change: Change, taker: Session) -> None:
    """Open the transaction that will take over, as far as it hinders no round."""
    await taker.run("BEGIN")
    await locks.lock_against_vacuum(taker, change.names[taker.side])
    limit = str(max(1, round(change.max_pause_seconds * 1000)))
    for name in ("lock_timeout", "statement_timeout"):
        await taker.set_local(name, limit)


async def _fill(
    change: Change,
    line: Line,
    freezer: Session,
    taker: Session,
    book: Session,
    pairs: list[SequencePair],
    sessions: int,
) -> tuple[Transaction, Transaction]:
    """Do all that there is between the freeze and the first commit; writers wait, so it is short.

    What does not depend on each other is done at the same time, each on its own session.
    """
    change.reporter.report(Frozen(freezer.side.value))
    work: list[Coroutine[Any, Any, Any]]
    work = [_drain(change, line), _prepare_letting_go(change, freezer, pairs)]
    done, (let_go, values) = await run_together(*work)
    intent = change.intent(let_go, done.number)
    work = [
        _note_intent(change, book, intent),
        _prepare_taking(change, taker, pairs, values, sessions),
    ]
    await run_together(*work)
    work = [_take_over(change, taker), _give_up(change, freezer, done.number, intent)]
    taken: Transaction = (await run_together(*work))[0]
    return let_go, taken


async def _drain(change: Change, line: Line) -> Round:
    done = await rounds.run_round(line)
    if not done.is_complete or done.is_timeline_new:
        raise Undone("The last round has left something, or a server has failed over meanwhile")
    change.reporter.report(Drained(done.number, done.changes))
    return done


async def _prepare_letting_go(
    change: Change, freezer: Session, pairs: list[SequencePair]
) -> tuple[Transaction, dict[int, int | None]]:
    """Switch the source's triggers, in the transaction that keeps writers out."""
    values = await sequences.read_values(freezer, pairs)
    change.switched[freezer.side] = await ownership.switch(
        freezer, change.source.tables, change.source.triggers, is_hot=False
    )
    return await _identify(freezer, change.epoch + 1, is_hot=False), values


async def _note_intent(change: Change, book: Session, intent: str) -> None:
    row = await book.fetch_one("sides", "intend", change.run, change.epoch, intent)
    if row is None:
        raise Undone(f"The {book.side} is not the cold side in epoch {change.epoch} any more")
    change.reporter.report(IntentNoted(book.side.value))


async def _give_up(change: Change, freezer: Session, number: int, intent: str) -> None:
    row = await freezer.fetch_one("sides", "give_up", change.run, change.epoch, number, intent)
    if row is None:
        raise Undone(f"The {freezer.side} is not the owner in epoch {change.epoch} any more")


async def _prepare_taking(
    change: Change,
    taker: Session,
    pairs: list[SequencePair],
    values: dict[int, int | None],
    sessions: int,
) -> None:
    """Do all of the taking over that its side row has no say in."""
    await locks.lock_against_writers(taker, change.names[taker.side])
    await sequences.advance(taker, pairs, values, sessions)
    change.switched[taker.side] = await ownership.switch(
        taker, change.target.tables, change.target.triggers, is_hot=True
    )
    if await ledger.has_records(taker):
        change.notes += await indexes.unsilence(taker, is_hasty=True)


async def _take_over(change: Change, taker: Session) -> Transaction:
    """Do the rest of it but for its commit."""
    row = await taker.fetch_one("sides", "take_over", change.run, change.epoch, change.token)
    if row is None:
        raise Refused(
            f"The {taker.side} is not to own the tables any more: another command has decided so",
            todo="See `ordermigrate status`",
        )
    return await _identify(taker, change.epoch + 1, is_hot=True)


async def _identify(session: Session, epoch: int, *, is_hot: bool) -> Transaction:
    row = await session.fetch_one("handover", "identify_transaction")
    return Transaction(row.pid, row.xid, row.timeline, epoch, is_hot)


async def _forget_intent(change: Change) -> None:
    """Take back what was said of the change; if that fails, whoever comes next does it."""
    with contextlib.suppress(OrdermigrateError, TimeoutError):
        async with asyncio.timeout(RESOLVE_SECONDS):
            async with db.opened(
                change.config, change.direction.target, f"{change.direction.command}: intent"
            ) as book:
                await book.fetch_all("sides", "forget_intent", change.run, change.epoch)


def _explain_undone(change: Change, failed: BaseException) -> BaseException:
    source = change.direction.source
    if isinstance(failed, TimeoutError):
        fact = (
            f"The change of owner was not done within {change.max_pause_seconds:g} s, and was "
            "undone"
        )
        todo = (
            "Look what kept it (a busy server, a large last round); then try again, or allow more "
            "with --max-pause"
        )
    elif isinstance(failed, OrdermigrateError):
        fact, todo = f"The change of owner was undone: {failed.fact}", failed.todo
    elif isinstance(failed, rounds.StructureChanged | rounds.OwnerChanged | rounds.PartCollides):
        fact, todo = f"The change of owner was undone: {failed}", "Try again"
    else:
        return failed
    return Undone(
        fact,
        wanted=f"The {source} owns the tables as before, and no write has failed",
        todo=todo or "Try again",
    )


async def _release(change: Change, freezer: Session, let_go: Transaction, end: float) -> None:
    """Commit the source's part: from here on there is a way forward, and a way back."""
    if not await _commit(change, freezer, let_go, end):
        await _forget_intent(change)
        raise Undone(
            f"The {freezer.side}'s server did not take the commit by which it lets go",
            wanted=f"The {freezer.side} owns the tables as before, and no write has failed",
            todo="Check that server; then try again",
        )
    change.reporter.report(LetGo(freezer.side.value))


async def _commit(change: Change, session: Session, transaction: Transaction, end: float) -> bool:
    """Commit, and return whether that is so, whatever becomes of the reply.

    Raises:
        Stranded: Nobody can be asked.

    """
    try:
        async with asyncio.timeout(max(1.0, end - time.monotonic())):
            return await session.commit()
    except (OrdermigrateError, TimeoutError):
        session.abort()
        await session.close()
        return await resolve(change, session.side, transaction)


async def resolve(change: Change, side: Side, transaction: Transaction) -> bool:
    """Find out whether a transaction has committed, after making sure that it is over.

    Raises:
        Stranded: The server cannot be asked.

    """
    end = time.monotonic() + RESOLVE_SECONDS
    config = db.make_impatient(change.config)
    while True:
        try:
            async with db.opened(config, side, f"{change.direction.command}: look") as session:
                return await read_outcome(session, transaction, end)
        except OrdermigrateError as failed:
            if time.monotonic() >= end:
                raise Stranded(
                    f"The {side}'s server was told to commit its part of the change of owner, and "
                    f"has not answered since: {failed.fact}",
                    wanted="To know whether it did",
                    todo=f"As soon as it can be reached, run `{change.direction.command_line}` to "
                    f"finish, or `{change.direction.command_line} --abort` to give the tables back "
                    f"to the {change.direction.source}",
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
    await session.fetch_all("handover", "end_backend", *given)
    while True:
        is_there = (await session.fetch_one("handover", "is_backend_there", *given)).is_there
        row = await session.fetch_one("handover", "read_outcome", transaction.xid)
        # Another role's backend may be hidden from us; what became of a number never is.
        if not is_there and (row is None or row.outcome != "in progress"):
            return
        if time.monotonic() >= end:
            raise Refused(f"Backend {transaction.pid} on the {session.side} does not end")
        await asyncio.sleep(LOOK_SECONDS)


async def _see_standbys(change: Change, freezer: Session, end: float) -> None:
    """Wait until the source's standbys have what it has let go, or say that nobody can tell.

    A failover to one that has not would make the source an owner again, behind everyone's back.
    """
    if not change.has_standbys:
        return
    session = freezer
    limit = min(STANDBY_SECONDS, max(0.0, end - time.monotonic()))
    until = time.monotonic() + limit
    try:
        position = await write_ahead_log.read_position(session)
        while True:
            row = await session.fetch_one("handover", "measure_standbys", position)
            if row.standbys == row.flushed:
                return
            if row.hidden == row.standbys or time.monotonic() >= until:
                break
            await asyncio.sleep(LOOK_SECONDS)
    except OrdermigrateError:
        change.notes.append(
            f"whether the {change.direction.source}'s standbys know that it has let go was not seen"
        )
        return
    change.notes.append(
        f"{row.standbys - row.flushed} of the {change.direction.source}'s {row.standbys} standbys "
        "are not known to have on disk that it has let go: after a failover to one of them, run "
        "`ordermigrate status` before anyone writes"
    )


async def _take(change: Change, taker: Session, taken: Transaction, end: float) -> None:
    """Commit the target's part, or do it again, or give the tables back."""
    if await _commit(change, taker, taken, end):
        return None
    while True:
        try:
            return await finish(change, end)
        except Stranded:
            raise
        except OrdermigrateError:
            if time.monotonic() >= end:
                break
            await asyncio.sleep(LOOK_SECONDS)
    await take_back(change, f"the {taker.side} could not take over in time")
    raise Undone(
        f"The {taker.side} could not take over within {change.max_pause_seconds:g} s",
        wanted=f"The {change.direction.source} owns the tables again",
        todo=f"Check the {taker.side}'s server; then try again",
    )


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
        await _begin_taking(change, taker)
        await _prepare_taking(change, taker, [], {}, 0)  # of the sequences the caller has thought
        taken = await _take_over(change, taker)
        if not await _commit(change, taker, taken, end):
            raise Refused(f"The {taker.side}'s server did not take the commit")


async def take_back(change: Change, reason: str) -> None:
    """Give the tables back to a source that has let go.

    The target is told first, so that nobody can finish the change meanwhile; where it cannot be
    reached, nobody else can, either, for our own transaction there is over.

    Raises:
        Stranded: It could not be done; nobody owns the tables.

    """
    direction = change.direction
    await _forget_intent(change)
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
            transaction = await _identify(session, change.epoch + 2, is_hot=True)
            if not await _commit(change, session, transaction, time.monotonic() + 1):
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


async def adopt(
    change: Change, hot: Session, cold: Session, tokens: tuple[str | None, str | None], number: int
) -> None:
    """Take over a change that another process has left between its two commits.

    Of several who try, one at most gets both rows, for each insists on what it has read there; and
    whoever has lost a row to another can neither finish nor undo.

    Args:
        change: The change, with a token of our own.
        hot: On the side that has let go.
        cold: On the side that is to take over.
        tokens: Whose intent stood in the two rows when they were read.
        number: The round after which the source has let go.

    Raises:
        Refused: It was decided meanwhile.

    """
    intent = change.intent(None, number)
    for session, epoch, token in (
        (hot, change.epoch + 1, tokens[0]),
        (cold, change.epoch, tokens[1]),
    ):
        given = change.run, epoch, intent, token
        if await session.fetch_one("sides", "adopt_intent", *given) is None:
            raise Refused(
                f"The {session.side}'s row has changed meanwhile: another command is at work",
                todo="See `ordermigrate status`; then run the command again if it is still wanted",
            )


def read_transaction(row: SideRow) -> Transaction | None:
    """Return the transaction by which the other side was to let go, as a cold side has it."""
    intent = row.intent or {}
    noted = intent.get("transaction")
    if not noted:
        return None
    pid, xid, timeline = int(noted["pid"]), str(noted["xid"]), int(noted["timeline"])
    return Transaction(pid, xid, timeline, int(intent["epoch"]) + 1, is_hot=False)
