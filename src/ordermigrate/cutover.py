"""Cutover: move the ownership along a direction, or leave it where it was.

Rollback is the same function, pointed the other way. What a command finds in the two side rows
tells it where an earlier one has stopped: a change that was cut off between its two commits is
finished, or undone with `--abort`; one that was cut off before the first never happened.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace

from ordermigrate import (
    capture,
    catalog,
    change_logs,
    db,
    fingerprints,
    following,
    gates,
    handover,
    indexes,
    ledger,
    locks,
    ownership,
    quarantine,
    readiness,
    sequences,
    sides,
    sync,
)
from ordermigrate.config import Config
from ordermigrate.control import Session
from ordermigrate.errors import OrdermigrateError, Refused, Stranded
from ordermigrate.following import Footing
from ordermigrate.handover import Change
from ordermigrate.ledger import Run
from ordermigrate.model import Direction, OwnTrigger, Side
from ordermigrate.outcomes import OwnerChange
from ordermigrate.phases import Phase
from ordermigrate.progress import Reporter, Settled, SyncWaits, TakenBack, TakenOver
from ordermigrate.readiness import Scene
from ordermigrate.sides import SideRow
from ordermigrate.sync import Tally

# A last round of so many changes is small; until one is, rounds are run without stopping anyone.
SMALL_ROUND = 2_000
MAX_ROUNDS = 20


async def change_owner(
    config: Config,
    reporter: Reporter,
    direction: Direction,
    *,
    max_pause_seconds: float,
    is_dry_run: bool = False,
    is_aborting: bool = False,
) -> OwnerChange:
    """Make the direction's target the owner of the tables.

    Args:
        config: The configuration.
        reporter: Whom to tell.
        direction: Forward is cutover, reverse is rollback.
        max_pause_seconds: For how long no side may take a write; beyond it all is undone.
        is_dry_run: Whether only to look at the gates, and to time what can be timed.
        is_aborting: Whether to undo a change that was cut off, instead of finishing it.

    Raises:
        Refused: A gate is shut; all of them are told.
        Undone: It failed, and the owner is who it was.
        Stranded: Nobody owns the tables, or two do, and it could not be mended.

    """
    async with db.open_pair(config, direction.command) as (monolith, service):
        await following.require_copied(monolith, service)
        if not is_dry_run:
            await ledger.take_operator_lock(service)
        sessions = {each.side: each for each in (monolith, service)}
        hot, cold = sessions[direction.source], sessions[direction.target]
        done = await _go_on(
            config, reporter, direction, hot, cold, is_dry_run=is_dry_run, is_aborting=is_aborting
        )
        if done is not None:
            return await _say_where(service, done)
        if not is_dry_run:
            await arm(config, monolith, service, mends_capture=False)
        stop, tally = asyncio.Event(), Tally()

        async def work() -> OwnerChange:
            async with following.stand(config, direction.command, reporter) as footing:
                return await _change(
                    config,
                    reporter,
                    direction,
                    footing,
                    tally,
                    max_pause_seconds,
                    is_dry_run=is_dry_run,
                )

        changed = await following.persist(config, tally, stop, reporter, work)
        if changed is None:
            message = "nobody could have stopped it"
            raise AssertionError(message)
        if is_dry_run:
            return await _say_where(service, changed)
        return await _settle_done(config, monolith, service, reporter, changed)


async def _settle_done(
    config: Config, monolith: Session, service: Session, reporter: Reporter, changed: OwnerChange
) -> OwnerChange:
    """Do what a change that was just made leaves for later; who owns the tables is decided.

    Where our sessions were cut, others are opened. If it cannot be done even so, that is a note.
    """
    given = config, reporter, changed
    try:
        return await _settle_once(monolith, service, *given)
    except OrdermigrateError as failed:
        reporter.report(SyncWaits(failed.fact))
    try:
        async with db.open_pair(config, changed.direction.command) as (one, other):
            return await _settle_once(one, other, *given)
    except OrdermigrateError as failed:
        note = (
            f"{changed.owner} owns the tables, but what is left to be done at leisure is not done: "
            f"{failed.fact}; run `{changed.direction.command_line}` again"
        )
        return replace(changed, notes=(*changed.notes, f"the {note}"))


async def _settle_once(
    monolith: Session, service: Session, config: Config, reporter: Reporter, changed: OwnerChange
) -> OwnerChange:
    notes = await settle(
        config, monolith, service, reporter, changed.pause_seconds, changed.switched
    )
    run = await following.require_copied(monolith, service)
    refused = await quarantine.count(monolith)
    if refused and changed.direction is Direction.REVERSE:
        changed = replace(
            changed,
            quarantined=sum(refused.values()),
            notes=(*changed.notes, *quarantine.describe(refused)),
        )
    changed = replace(changed, phase=run.phase, notes=(*changed.notes, *notes))
    return await _say_where(service, changed)


async def _say_where(service: Session, changed: OwnerChange) -> OwnerChange:
    """Add what the next step depends on: the proof on record, and whether a sync is at work."""
    at_work = await service.fetch_one("sessions", "is_sync_at_work")
    last = await ledger.read_last_validation(service)
    # A sync that follows the owner is away for a moment just then.
    is_syncing = changed.is_syncing or bool(at_work.is_at_work)
    return replace(changed, last_validation=last, is_syncing=is_syncing)


async def arm(
    config: Config, monolith: Session, service: Session, *, mends_capture: bool = True
) -> list[str]:
    """Put up what is missing of our triggers on both sides, by who owns the tables.

    Where the owner's capture had gaps, and they are mended, what was proved before is void.

    Raises:
        NoOwner: Nobody does.

    """
    done: list[str] = []
    one, other = await sides.read_both(monolith, service)
    if one is None or other is None:
        message = "a run without its side rows"
        raise AssertionError(message)
    sides.find_direction(one, other)
    for session, row in ((monolith, one), (service, other)):
        names = gates.names_on(config, session.side)
        tables = list((await catalog.read_tables(session, names)).values())
        if row.is_hot and mends_capture:
            gaps = capture.find_gaps(tables, await catalog.read_own_triggers(session))
            gaps += await change_logs.find_missing(session, names)
            if gaps:
                reason = f"capture on the {session.side} had gaps: {'; '.join(gaps)}"
                await ledger.void_validations(service, reason)
        if session is monolith:  # rows that come back may be refused there
            await quarantine.install(monolith)
        done += await ownership.arm(
            session, tables, row.pass_word, is_hot=row.is_hot, mends_capture=mends_capture
        )
    return done


async def _change(
    config: Config,
    reporter: Reporter,
    direction: Direction,
    footing: Footing,
    tally: Tally,
    max_pause_seconds: float,
    *,
    is_dry_run: bool,
) -> OwnerChange:
    scene = Scene(config, direction, footing.hot, footing.cold, footing.maps)
    found = await readiness.look(scene)
    notes = await readiness.find_notes(scene, max_pause_seconds)
    if is_dry_run:
        return OwnerChange(
            footing.run.run,
            footing.run.phase,
            direction,
            "planned",
            direction.source.value,
            None,
            tuple(found),
            tuple(await readiness.measure(scene)),
            tuple(describe_steps(scene, max_pause_seconds)),
            tuple(notes),
        )
    readiness.require_open(found, direction)
    at_work = await footing.service.fetch_one("sessions", "is_sync_at_work")
    line = footing.line
    change = Change(
        config,
        direction,
        line.run,
        line.epoch,
        footing.maps,
        await handover.look(footing.hot, scene.sources),
        await handover.look(footing.cold, scene.targets),
        max_pause_seconds,
        reporter,
    )
    await _drain(footing, tally, reporter)
    # Whoever else runs rounds waits until the owner has changed, and then finds that it has.
    await line.target.fetch_one("rounds", "hold_turn")
    try:
        pause = await handover.hand_over(change, line, footing.cold)
    finally:
        with contextlib.suppress(Exception):  # it goes with the session, too
            await line.target.fetch_one("rounds", "release_turn")
    return OwnerChange(
        footing.run.run,
        footing.run.phase,
        direction,
        "done",
        direction.target.value,
        pause,
        tuple(found),
        (),
        (),
        (*notes, *change.notes),
        switched=change.switched,
        is_syncing=bool(at_work.is_at_work),
    )


async def _drain(footing: Footing, tally: Tally, reporter: Reporter) -> None:
    """Run rounds until one is small, so that the last one, for which writers wait, is short."""
    for _ in range(MAX_ROUNDS):
        done = await sync.run_whole(footing.line, tally, reporter)
        tally.alive_at = asyncio.get_running_loop().time()
        if done.changes <= SMALL_ROUND:
            return


def describe_steps(scene: Scene, max_pause_seconds: float) -> list[str]:
    """Say what a change of owner does, in order."""
    hot, cold = scene.hot.side, scene.cold.side
    return [
        f"run rounds until little is waiting on the {hot}",
        f"lock the {hot}'s tables against writers, not readers, {max_pause_seconds:g} s at most",
        "run the last round, under a snapshot taken after that lock, and verify its rows",
        f"set the {cold}'s sequences past the {hot}'s",
        f"write on the {cold} what is about to happen",
        f"commit on the {hot}: fence on, capture off; writers that waited are told so",
        f"commit on the {cold}: fence off, capture on, its own triggers and foreign keys back",
        f"at leisure: switch the {hot}'s triggers off, have those foreign keys look at all rows",
    ]


async def _go_on(
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
    if source.is_hot and not target.is_hot and handover.read_transaction(target) is not None:
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
        notes = () if is_dry_run else await settle(config, *_in_order(hot, cold), reporter)
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
    transaction = handover.read_transaction(target)
    if transaction is None:
        return
    end = time.monotonic() + handover.RESOLVE_SECONDS
    if not await handover.read_outcome(hot, transaction, end):
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
        await handover.look(hot, [each.source for each in maps]),
        await handover.look(cold, [each.target for each in maps]),
        config.limits.max_pause_seconds,
        reporter,
    )
    await handover.adopt(change, hot, cold, (source.token, target.token), source.round)
    if is_aborting:
        await handover.take_back(change, "as it was told to")
        await following.read_direction(*_in_order(hot, cold))  # which aligns the epochs
        outcome, owner = "aborted", direction.source
    else:
        await _finish(change, hot, cold)
        reporter.report(TakenOver(direction.target.value, 0.0))
        outcome, owner = "finished", direction.target
    notes = await settle(config, *_in_order(hot, cold), reporter)
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
        await handover.finish(change, time.monotonic() + change.max_pause_seconds)
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
    tables = list((await catalog.read_tables(hot, names)).values())
    async with locks.excluding_writers(hot, names):
        triggers = await catalog.read_own_triggers(hot)
        await ownership.switch(hot, tables, triggers, is_hot=False)
        waiting = await change_logs.measure(hot, await change_logs.read_all(hot))
        await hot.fetch_all("sides", "give_up", row.run, row.epoch, row.round, None)
        await hot.fetch_all("sides", "set_epoch", epoch)
    service = _in_order(hot, cold)[1]
    written = sum(each.changes for each in waiting)
    reason = f"the {hot.side} took writes while the {cold.side} owned the tables"
    await ledger.void_validations(service, reason)
    reporter.report(TakenBack(cold.side.value, reason))
    notes = await settle(config, *_in_order(hot, cold), reporter)
    if written:
        raise Stranded(
            f"The {hot.side} is fenced off again. It has {written:,} changes in its change logs "
            f"that the {cold.side}, which owns the tables, was not told of (at most; some may be "
            "from before)",
            wanted="Every acknowledged write on the owner",
            todo="Run `ordermigrate validate --checksums`: it names the rows; decide about each",
        )
    return _outcome(await _run_of(hot, cold), direction, "fenced", direction.target, tuple(notes))


async def settle(
    config: Config,
    monolith: Session,
    service: Session,
    reporter: Reporter,
    pause_seconds: float | None = None,
    switched: Mapping[Side, Sequence[OwnTrigger]] | None = None,
) -> tuple[str, ...]:
    """Do what a change of owner leaves for later; safe to repeat.

    Args:
        config: The configuration.
        monolith: A session there.
        service: A session there.
        reporter: Whom to tell.
        pause_seconds: For how long no side took a write, if that is known.
        switched: Our triggers as the change has left them; else they are read now.

    Returns:
        Sentences on what is not as it was.

    """
    one, other = await sides.read_both(monolith, service)
    if one is None or other is None:
        message = "a run without its side rows"
        raise AssertionError(message)
    direction = sides.find_direction(one, other)
    hot, cold = (monolith, service) if one.is_hot else (service, monolith)
    hot_row, cold_row = (one, other) if one.is_hot else (other, one)
    maps = await gates.read_maps(config, monolith, service, direction)
    if cold_row.epoch == hot_row.epoch:  # the change is done, and nothing is intended any more
        await cold.fetch_all("sides", "forget_intent", cold_row.run, cold_row.epoch)
    # First of all: until then no round is taken back.
    found = await ownership.silence(cold, maps)
    await _note(direction, monolith, service, switched or {}, pause_seconds)
    notes = await indexes.validate_keys(hot) if await ledger.has_records(hot) else []
    reporter.report(Settled(tuple(found)))
    return tuple(notes)


async def _note(
    direction: Direction,
    monolith: Session,
    service: Session,
    switched: Mapping[Side, Sequence[OwnTrigger]],
    pause_seconds: float | None,
) -> None:
    """Bring the history up to what is so: the phase, the change, our triggers as they are."""
    row, run = await sides.read(service), await ledger.read_run(service)
    if row is None or run is None:
        message = "a run without its rows"
        raise AssertionError(message)
    described = {
        session.side: fingerprints.describe_side(
            (), switched.get(session.side) or await catalog.read_own_triggers(session)
        )["triggers"]
        for session in (monolith, service)
    }
    async with service.transaction():
        for side, triggers in described.items():
            # Nothing but the triggers, which we have switched ourselves: what else has changed
            # meanwhile is still to be noticed.
            if known := await ledger.read_structure(service, side):
                known["triggers"] = {
                    name: triggers.get(name, was) for name, was in known["triggers"].items()
                }
                await ledger.note_structure(service, side, known)
        await ledger.note_owner(
            service, row.epoch, direction.source, pause_seconds, direction.command
        )
        if direction is Direction.REVERSE and run.phase is not Phase.CUT_OVER:
            run = await ledger.change_phase(service, run, Phase.SYNCING, "cutover")
            await ledger.change_phase(service, run, Phase.CUT_OVER, "cutover")
        elif direction is Direction.FORWARD and run.phase is Phase.CUT_OVER:
            await ledger.change_phase(service, run, Phase.SYNCING, "rollback")
