"""Settling: what a change of owner leaves for later, and what each side's part wants in between.

Nothing here is in a hurry: writers write, at the new owner. Everything is safe to repeat, and until
it is done no round is taken back.
"""

from __future__ import annotations

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
    indexes,
    ledger,
    ownership,
    parents,
    quarantine,
    sides,
)
from ordermigrate.config import Config
from ordermigrate.control import Session
from ordermigrate.errors import OrdermigrateError
from ordermigrate.model import Direction, OwnTrigger, Side, find_parents
from ordermigrate.outcomes import OwnerChange
from ordermigrate.phases import Phase
from ordermigrate.progress import Reporter, Settled, SyncWaits


async def arm(
    config: Config, monolith: Session, service: Session, *, mends_capture: bool = True
) -> list[str]:
    """Put up what is missing of our triggers on both sides, by who owns the tables.

    Where the owner's capture had gaps, and they are mended, what was proved before is void.

    Raises:
        NoOwner: Nobody does.

    """
    done: list[str] = []
    one, other = await sides.require_both(monolith, service)
    sides.find_direction(one, other)
    for session, row in ((monolith, one), (service, other)):
        names = gates.names_on(config, session.side)
        tables = await gates.read_family(config, session)
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


async def settle_done(
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
    return await complete(monolith, service, replace(changed, notes=(*changed.notes, *notes)))


async def complete(monolith: Session, service: Session, changed: OwnerChange) -> OwnerChange:
    """Add what both databases say afterwards."""
    run = await following.require_copied(monolith, service)
    last = await ledger.read_last_validation(service)
    is_at_work = await ledger.is_sync_at_work(service)
    refused: dict[str, int] = {}
    if changed.direction is Direction.REVERSE:
        refused = await quarantine.count(monolith)
    return replace(
        changed,
        phase=run.phase,
        last_validation=last,
        quarantined=sum(refused.values()),
        notes=(*changed.notes, *quarantine.describe(refused)),
        # A sync that follows the owner is away for a moment just then.
        is_syncing=changed.is_syncing or is_at_work,
    )


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
    one, other = await sides.require_both(monolith, service)
    direction = sides.find_direction(one, other)
    hot, cold = (monolith, service) if one.is_hot else (service, monolith)
    hot_row, cold_row = (one, other) if one.is_hot else (other, one)
    maps = await gates.read_maps(config, monolith, service, direction)
    if cold_row.epoch == hot_row.epoch:  # the change is done, and nothing is intended any more
        await cold.fetch_all("sides", "forget_intent", cold_row.run, cold_row.epoch)
    # First of all: until then no round is taken back.
    found = await ownership.silence(cold, maps)
    # From the service nothing is read that depends on a parent: then none is watched. Back on the
    # monolith, what depends on one is looked at anew, whatever has become of either meanwhile.
    found += await parents.watch(monolith, find_parents(maps), is_marking=True)
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
    described = {}
    for session in (monolith, service):
        now = await catalog.read_own_triggers(session)
        ours = [each for each in switched.get(session.side, now) if not parents.is_watch(each)]
        ours += [each for each in now if parents.is_watch(each)]  # they were switched just now
        described[session.side] = fingerprints.describe_side((), ours)["triggers"]
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
