"""Handover: the two commits between which nobody owns the tables, and how each is made certain.

The old owner lets go in one transaction: writers out, fence on, capture off, side row cold. The new
one takes over in another, which is complete but for its COMMIT before the first is committed. Until
the first commit any end of the process, the network or the server gives the writers back to the old
owner, and the server does that by itself. Between the two both sides refuse, and what to do is on
record on both, with the transaction's number; whoever comes next can finish or undo it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from typing import Any

from ordermigrate import commits, db, letting_go, locks, rounds, sequences, taking
from ordermigrate.changes import Change
from ordermigrate.commits import Transaction
from ordermigrate.control import Session
from ordermigrate.errors import OrdermigrateError, Stranded, Undone
from ordermigrate.ledger import RecordedObject
from ordermigrate.progress import Drained, Freezing, Frozen, LetGo, TakenOver
from ordermigrate.rounds import Line, Round
from ordermigrate.sequences import SequencePair
from ordermigrate.together import run_together


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
            await taking.begin(change, taker)
            # Two new backends read beforehand what they will need while writers wait.
            await letting_go.warm(change, freezer, pairs)
            recorded = await taking.warm(taker)
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
        end = change.end = began + change.max_pause_seconds
        try:
            async with asyncio.timeout(max(0.0, end - time.monotonic())):
                let_go, taken = await _fill(
                    change, line, freezer, taker, book, pairs, sessions, recorded
                )
        except BaseException as failed:
            # Whatever it was: the servers undo what was open. Writers first; and a round that was
            # under way holds the target's row, which is wanted next.
            await commits.drop(freezer)
            await commits.drop(taker)
            for each in (line.source, line.target):
                each.terminate()
            await taking.forget_intent(change)
            if isinstance(failed, asyncio.CancelledError):
                raise
            raise _explain_undone(change, failed) from failed
        pause = await _uninterrupted(_exchange(change, freezer, taker, let_go, taken, began, end))
    change.reporter.report(TakenOver(target.value, pause))
    return pause


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
    if not await commits.commit(change.config, change.direction, freezer, let_go, end):
        await commits.drop(taker)  # it holds the row that is wanted next
        await taking.forget_intent(change)
        raise Undone(
            f"The {freezer.side}'s server did not take the commit by which it lets go",
            wanted=f"The {freezer.side} owns the tables as before, and no write has failed",
            todo="Check that server; then try again",
        )
    # From here on there is a way forward, and a way back.
    change.reporter.report(LetGo(freezer.side.value))
    await letting_go.see_standbys(change, freezer, end)
    await _take(change, taker, taken, end)
    return time.monotonic() - began


async def _fill(
    change: Change,
    line: Line,
    freezer: Session,
    taker: Session,
    book: Session,
    pairs: list[SequencePair],
    sessions: int,
    recorded: list[RecordedObject],
) -> tuple[Transaction, Transaction]:
    """Do all that there is between the freeze and the first commit; writers wait, so it is short.

    What does not depend on each other is done at the same time, each on its own session.
    """
    change.reporter.report(Frozen(freezer.side.value))
    work: list[Coroutine[Any, Any, Any]]
    work = [_drain(change, line), letting_go.prepare(change, freezer, pairs)]
    done, (let_go, values) = await run_together(*work)
    intent = change.intent(let_go, done.number)
    work = [
        taking.note_intent(change, book, intent),
        taking.prepare(change, taker, pairs, values, sessions, recorded),
    ]
    await run_together(*work)
    work = [
        taking.take_over(change, taker),
        letting_go.give_up(change, freezer, done.number, intent),
    ]
    taken: Transaction = (await run_together(*work))[0]
    return let_go, taken


async def _drain(change: Change, line: Line) -> Round:
    done = await rounds.run_round(line, is_turn_held=True)
    if not done.is_complete or done.is_timeline_new:
        raise Undone("The last round has left something, or a server has failed over meanwhile")
    change.reporter.report(Drained(done.number, done.changes))
    return done


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


async def _take(change: Change, taker: Session, taken: Transaction, end: float) -> None:
    """Commit the target's part, or do it again, or give the tables back."""
    if await commits.commit(change.config, change.direction, taker, taken, end):
        return None
    while True:
        try:
            return await taking.finish(change, end)
        except Stranded:
            raise
        except OrdermigrateError:
            if time.monotonic() >= end:
                break
            await asyncio.sleep(commits.LOOK_SECONDS)
    await taking.forget_intent(change)
    await letting_go.take_back(change, f"the {taker.side} could not take over in time")
    raise Undone(
        f"The {taker.side} could not take over within {change.max_pause_seconds:g} s",
        wanted=f"The {change.direction.source} owns the tables again",
        todo=f"Check the {taker.side}'s server; then try again",
    )
