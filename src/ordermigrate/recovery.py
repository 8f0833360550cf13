"""Recovery: what an earlier change of owner has left, brought to an end.

The two side rows tell how far it came. Cut off before the first commit it never happened; between
the two it is finished, or undone where that is wanted; and a side that takes writes although the
other owns the tables by now is fenced off.
"""

from __future__ import annotations

import time

from ordermigrate import (
    catalog,
    change_logs,
    changes,
    commits,
    following,
    gates,
    ledger,
    letting_go,
    locks,
    ownership,
    sequences,
    settling,
    sides,
    taking,
)
from ordermigrate.changes import Change
from ordermigrate.config import Config
from ordermigrate.control import Session
from ordermigrate.errors import OrdermigrateError, Refused, Stranded
from ordermigrate.ledger import Run
from ordermigrate.model import Direction
from ordermigrate.outcomes import OwnerChange
from ordermigrate.progress import Reporter, TakenBack, TakenOver
from ordermigrate.sides import SideRow


async def go_on(
    config: Config,
    reporter: Reporter,
    direction: Direction,
    hot: Session,
    cold: Session,
    *,
    is_dry_run: bool,
    is_aborting: bool,
) -> OwnerChange | None:
    """Deal with what an earlier command has left; None where the change is still to be made."""
    rows = await _read_rows(hot, cold)
    source, target = rows
    if source.is_hot and not target.is_hot and commits.read_transaction(target) is not None:
        if is_dry_run:
            raise Refused(
                "An earlier change of owner was cut off, and it is not known yet whether the "
                f"{source.side} has let go",
                todo=f"Run `{direction.command_line}` or `{direction.command_line} --abort`",
            )
        await _settle_intent(hot, cold, source, target)
        source, target = await _read_rows(hot, cold)
    run = await following.require_copied(*_in_order(hot, cold))
    if source.is_hot and target.is_hot:
        if source.epoch > target.epoch or is_dry_run:
            sides.find_direction(source, target)  # raises
        return await _fence_stale(config, reporter, direction, hot, cold, target.epoch)
    if not source.is_hot and target.is_hot:
        if is_aborting:
            raise Refused(
                f"The {target.side} owns the tables: there is nothing cut off to be undone",
                todo=f"`{_back(direction)}` makes the {source.side} the owner again",
            )
        notes = () if is_dry_run else await settling.settle(config, *_in_order(hot, cold), reporter)
        return _outcome(
            await _run_of(hot, cold), direction, "already_done", direction.target, notes
        )
    if source.is_hot:
        if is_aborting:
            return _outcome(run, direction, "nothing_to_abort", direction.source, ())
        return None
    return await _finish_or_undo(
        config,
        reporter,
        direction,
        hot,
        cold,
        source,
        target,
        is_dry_run=is_dry_run,
        is_aborting=is_aborting,
    )


async def _read_rows(hot: Session, cold: Session) -> tuple[SideRow, SideRow]:
    one, other = await sides.read(hot), await sides.read(cold)
    if one is None or other is None:
        message = "a run without its side rows"
        raise AssertionError(message)
    return one, other


def _in_order(hot: Session, cold: Session) -> tuple[Session, Session]:
    """Return monolith and service."""
    return (hot, cold) if hot.side.value == "monolith" else (cold, hot)


async def _run_of(hot: Session, cold: Session) -> Run:
    return await following.require_copied(*_in_order(hot, cold))


def _back(direction: Direction) -> str:
    return Direction.from_source(direction.target).command_line


def _outcome(
    run: Run, direction: Direction, outcome: str, owner: str, notes: tuple[str, ...]
) -> OwnerChange:
    return OwnerChange(
        run.run, run.phase, direction, outcome, str(owner), None, (), (), (), tuple(notes)
    )


async def _settle_intent(hot: Session, cold: Session, source: SideRow, target: SideRow) -> None:
    """Make sure of the transaction by which an earlier command wanted the owner to let go."""
    transaction = commits.read_transaction(target)
    if transaction is None:
        return
    end = time.monotonic() + commits.RESOLVE_SECONDS
    if not await commits.read_outcome(hot, transaction, end):
        await cold.fetch_all("sides", "forget_intent", source.run, target.epoch)


async def _finish_or_undo(
    config: Config,
    reporter: Reporter,
    direction: Direction,
    hot: Session,
    cold: Session,
    source: SideRow,
    target: SideRow,
    *,
    is_dry_run: bool,
    is_aborting: bool,
) -> OwnerChange:
    """Bring a change home whose first commit is there and whose second is not."""
    if source.epoch != target.epoch + 1 or is_dry_run:
        sides.find_direction(source, target)  # raises: not this way, or nothing may be done
    if not is_aborting and target.round != source.round:
        raise Stranded(
            f"Nobody owns the tables: the {source.side} has let go after round {source.round}, "
            f"and the {target.side} has round {target.round} only: its database has gone back in "
            "time, and has lost writes that the other still has",
            wanted=f"A {target.side} with all that the {source.side} has",
            todo=f"Run `{direction.command_line} --abort`, then `ordermigrate sync --adopt` and "
            "`ordermigrate validate --checksums --repair`",
        )
    maps = await gates.read_maps(config, *_in_order(hot, cold), direction)
    change = Change(
        config,
        direction,
        source.run,
        target.epoch,
        maps,
        await changes.look(hot, [each.source for each in maps]),
        await changes.look(cold, [each.target for each in maps]),
        config.limits.max_pause_seconds,
        reporter,
    )
    await adopt(change, hot, cold, (source.token, target.token), source.round)
    if is_aborting:
        await taking.forget_intent(change)
        await letting_go.take_back(change, "as it was told to")
        await following.read_direction(*_in_order(hot, cold))  # which aligns the epochs
        outcome, owner = "aborted", direction.source
    else:
        await _finish(change, hot, cold)
        reporter.report(TakenOver(direction.target.value, 0.0))
        outcome, owner = "finished", direction.target
    notes = await settling.settle(config, *_in_order(hot, cold), reporter)
    return _outcome(await _run_of(hot, cold), direction, outcome, owner, (*change.notes, *notes))


async def _finish(change: Change, hot: Session, cold: Session) -> None:
    """Let the target take over from a source that has let go; its sequences, too, are looked at.

    They were set by the process that was cut off; a standby that has been promoted since may not
    have that.
    """
    direction = change.direction
    try:
        pairs = sequences.pair_sequences(change.maps)
        values = await sequences.read_values(hot, pairs)
        await sequences.advance(cold, pairs, values, await sequences.count_sessions(hot))
        await taking.finish(change, time.monotonic() + change.max_pause_seconds)
    except Stranded:
        raise
    except OrdermigrateError as failed:
        raise Stranded(
            f"Nobody owns the tables: the {direction.source} has let go, and the "
            f"{direction.target} could not take over: {failed.fact}",
            wanted="One owner",
            todo=f"Run `{direction.command_line}` again to finish, or "
            f"`{direction.command_line} --abort` to give the tables back to the "
            f"{direction.source}",
        ) from failed


async def _fence_stale(
    config: Config,
    reporter: Reporter,
    direction: Direction,
    hot: Session,
    cold: Session,
    epoch: int,
) -> OwnerChange:
    """Fence a side off that takes writes although the other owns the tables by now.

    What was written there meanwhile is in its change logs; the owner does not have it.
    """
    row, _ = await _read_rows(hot, cold)
    names = gates.names_on(config, hot.side)
    tables = await gates.read_family(config, hot)
    service = _in_order(hot, cold)[1]
    reason = f"the {hot.side} took writes while the {cold.side} owned the tables"
    # Before anything else: once the fence is up nobody would know of it any more.
    await ledger.void_validations(service, reason)
    async with locks.excluding_writers(hot, names):
        triggers = await catalog.read_own_triggers(hot)
        await ownership.switch(hot, tables, triggers, is_hot=False)
        written = (await change_logs.measure_all(hot)).changes
        await hot.fetch_all("sides", "give_up", row.run, row.epoch, row.round, None)
        await hot.fetch_all("sides", "set_epoch", epoch)
    reporter.report(TakenBack(cold.side.value, reason))
    notes: tuple[str, ...] = ()
    try:
        notes = await settling.settle(config, *_in_order(hot, cold), reporter)
    except OrdermigrateError:
        if not written:
            raise  # else that has to be told first; the next command settles the rest
    if written:
        raise Stranded(
            f"The {hot.side} is fenced off again. It has {written:,} changes in its change logs "
            f"that the {cold.side}, which owns the tables, was not told of (at most; some may be "
            "from before)",
            wanted="Every acknowledged write on the owner",
            todo="Run `ordermigrate validate --checksums`: it names the rows; decide about each",
        )
    return _outcome(await _run_of(hot, cold), direction, "fenced", direction.target, tuple(notes))


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
