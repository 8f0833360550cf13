"""How a copy is begun, begun again and completed, around the bulk load itself.

What is taken off the service's tables for the load is on record first, in the same transaction,
and comes back before the copy counts as complete. Each step finds out what is done already, so
that it can be repeated.
"""

from __future__ import annotations

from ordermigrate import (
    bulk_copy,
    capture,
    catalog,
    db,
    fence,
    fingerprints,
    gates,
    indexes,
    ledger,
    locks,
    sides,
    subtraction,
)
from ordermigrate.config import Config
from ordermigrate.control import Session
from ordermigrate.errors import Busy, Refused
from ordermigrate.gates import Ground
from ordermigrate.ledger import Run
from ordermigrate.model import Side, TableMap, TableName
from ordermigrate.phases import FOLLOWED, Phase
from ordermigrate.progress import Reporter
from ordermigrate.together import run_together


async def begin(ground: Ground, run: Run, reporter: Reporter) -> Run:
    """Take indexes off the empty targets and enter the copying phase, all or nothing."""
    async with ground.service.transaction():
        for each in ground.maps:
            if not await ledger.is_empty(ground.service, each.target.name):
                await gates.require_empty(ground)
        dropped = await indexes.drop_for_load(ground.service, ground.maps)
        run = await ledger.change_phase(ground.service, run, Phase.COPYING, "copy")
    for event in dropped:
        reporter.report(event)
    return run


async def restart(ground: Ground, run: Run) -> Run:
    """Forget a copy and remove its rows, after seeing that there are no others.

    Once rounds have been applied, the fence alone tells that all rows are ours.
    """
    if await ledger.read_last_round(ground.service) is None:
        await gates.require_known_rows(ground.service, ground.maps, is_restart=True)
    await sides.align_rounds(ground.monolith, ground.service)
    await ledger.forget_rounds(ground.service, "the copy was begun anew")
    async with ground.service.transaction():
        await ground.service.set_local("statement_timeout", "0")
        # Before any table: a round that is under way holds the phase, and then writes to tables.
        run = await ledger.change_phase(ground.service, run, Phase.PREPARED, "copy --restart")
        for each in ground.maps:
            await locks.lock_against_writers(ground.service, [each.target.name])
        await ledger.forget_copy(ground.service, [each.target for each in ground.maps])
        return run


async def complete(config: Config, maps: list[TableMap], run: Run, reporter: Reporter) -> Run:
    """Bring back what was off, look whether all is as it was, and close the phase.

    On sessions of its own, and as often as it takes: a server may have restarted meanwhile.
    """
    async for attempt in db.retrying(config.limits.retry_deadline_seconds):
        with attempt:
            return await _complete_once(config, maps, run, reporter)
    message = "the retry policy ended without a result"
    raise AssertionError(message)


async def _complete_once(config: Config, maps: list[TableMap], run: Run, reporter: Reporter) -> Run:
    async with (
        db.opened(config, Side.SERVICE, "copy: end") as service,
        db.opened(config, Side.MONOLITH, "copy: end") as monolith,
    ):
        if done := await _find_completed(service):
            return done  # only the reply was lost
        try:
            if await ledger.count_snapshots(service) > 1:
                await subtraction.subtract(config, (monolith, service), maps, run, reporter)
            await indexes.restore(config, Side.SERVICE, reporter)
            names = [each.target.name for each in maps]
            # Before the count: who comes after it past the fence per statement is noticed by none.
            await _fence_rows_off(service, names)
            await run_together(
                indexes.analyze(config, Side.SERVICE, names, reporter),
                gates.require_known_rows(service, maps),
            )
            await _require_same_source(monolith, service, maps)
            return await _close(service, maps, run)
        except Busy:
            if done := await _find_completed(service):
                return done  # a second copy has closed it: the operator's lock went meanwhile
            raise


async def _find_completed(service: Session) -> Run | None:
    run = await ledger.read_run(service)
    return run if run is not None and run.phase in FOLLOWED else None


async def _require_same_source(monolith: Session, service: Session, maps: list[TableMap]) -> None:
    """Refuse to call a copy complete whose source's tables or capture have changed meanwhile."""
    names = [each.source.name for each in maps]
    async with locks.locked_snapshot(monolith, names):
        tables = await catalog.read_tables(monolith, names)
        triggers = await catalog.read_own_triggers(monolith)
    first = await ledger.read_first_attempt(service)
    if first is None:
        message = "a copy without an attempt"
        raise AssertionError(message)
    bulk_copy.require_same(
        Side.MONOLITH, first.fingerprint, fingerprints.describe_side(tables.values(), triggers)
    )
    known = {each.source.name: each.source for each in maps}
    gaps = capture.find_gaps([known[name] for name in names], triggers)
    there = {leaf.name for table in tables.values() for leaf in table.leaves}
    gone = {leaf.name for table in known.values() for leaf in table.leaves} - there
    gaps = [gap for gap in gaps if not any(f" on {name} " in gap for name in gone)]
    if gaps:
        raise Refused(
            f"Capture on the monolith has gaps: {'; '.join(gaps)}",
            wanted="Every write since the copy began in the change logs",
            todo="Run `ordermigrate prepare`, and begin anew with `ordermigrate copy --restart`",
            findings=gaps,
        )


async def _fence_rows_off(service: Session, names: list[TableName]) -> None:
    """Put up the whole fence; safe to repeat."""
    row = await sides.read(service)
    if row is None:
        message = "a copy without a side"
        raise AssertionError(message)
    async with service.transaction():
        # A second copy may be as far as this one; the server allows no two at one function.
        await service.fetch_one("rounds", "take_turn")
        tables = list((await catalog.read_tables(service, names)).values())
        triggers = await catalog.read_own_triggers(service)
        await fence.install(service, tables, triggers, row.pass_word, has_rows=True)


async def _close(service: Session, maps: list[TableMap], run: Run) -> Run:
    """Put up the whole fence, remember what both sides are, and leave the phase; all or nothing."""
    first, last = (
        await ledger.read_first_attempt(service),
        await ledger.read_last_structure(service),
    )
    row = await sides.read(service)
    if first is None or last is None or row is None:
        message = "a copy without an attempt or a side"
        raise AssertionError(message)
    async with service.transaction():
        await service.fetch_one("rounds", "take_turn")
        names = [each.target.name for each in maps]
        tables = list((await catalog.read_tables(service, names)).values())
        triggers = await catalog.read_own_triggers(service)
        await fence.install(service, tables, triggers, row.pass_word, has_rows=True)
        triggers = await catalog.read_own_triggers(service)
        # As the source was when the first snapshot was taken: what has come since is still to be
        # found out by the first round, and so is whether it has gone again.
        await ledger.note_structure(
            service, Side.MONOLITH, fingerprints.add_later_parts(first.fingerprint, last)
        )
        await ledger.note_structure(
            service, Side.SERVICE, fingerprints.describe_side(tables, triggers)
        )
        # From the phase that we entered: another may have begun the copy anew.
        return await ledger.change_phase(service, run, Phase.COPIED, "copy")
