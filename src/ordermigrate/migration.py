"""The verbs of a migration, in the order in which they happen: gate, act, record.

Each verb can be killed at any point and run again: what it finds in the two databases tells it
where to go on. The service's database is changed first and the monolith's last, so a preparation
that was cut short leaves nothing on the monolith.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ordermigrate import (
    __version__,
    bulk_copy,
    cancelling,
    capture,
    catalog,
    change_logs,
    cleaning,
    copying,
    db,
    fence,
    following,
    gates,
    indexes,
    ledger,
    ownership,
    parents,
    proving,
    quarantine,
    reclaiming,
    retrying,
    seizing,
    settling,
    sides,
    situation,
    steering,
    surveying,
    traffic,
)
from ordermigrate import cutover as changing
from ordermigrate.bulk_copy import Job
from ordermigrate.config import Config
from ordermigrate.control import Session
from ordermigrate.digest import Algorithm
from ordermigrate.gates import Ground
from ordermigrate.ledger import Run
from ordermigrate.model import Direction, Side, TableMap, find_parents
from ordermigrate.outcomes import (
    Cancellation,
    Cleaning,
    CopiedTable,
    CopyResult,
    OwnerChange,
    Preflight,
    Preparation,
    Retry,
    Status,
    SyncResult,
    TrafficResult,
    Validation,
)
from ordermigrate.phases import FOLLOWED, Phase
from ordermigrate.progress import Prepared, Reporter
from ordermigrate.reversing import find_cascades
from ordermigrate.sqlstates import ConnectionLost
from ordermigrate.sync import Tally
from ordermigrate.throttle import Signs, Throttle
from ordermigrate.together import run_together


async def preflight(config: Config, skipped: Sequence[str] = ()) -> Preflight:
    """Tell whether this migration can work, and what stands in the way; nothing is changed.

    Args:
        config: The configuration.
        skipped: Keys of checks that are not to run.

    Raises:
        UsageError: A key is none of a check, or a DSN cannot be parsed.

    """
    return await surveying.look(config, skipped)


async def prepare(config: Config, reporter: Reporter, *, is_dry_run: bool = False) -> Preparation:
    """Make both databases ready: the service's tables, the ledger, the fence, and capture.

    Run again, it mends what is missing of them.

    Raises:
        OrdermigrateError: A gate is shut, or a database cannot be reached.

    """
    steps: list[str] = []
    async with gates.stand_on_ground(config, "prepare", steps, is_dry_run=is_dry_run) as ground:
        run = await _prepare(ground, steps, reporter, is_dry_run=is_dry_run)
        last = await ledger.read_last_validation(ground.service) if run else None
    phase = run.phase if run else Phase.NEW
    return Preparation(run.run if run else None, phase, last, tuple(steps), is_dry_run)


async def _prepare(
    ground: Ground, steps: list[str], reporter: Reporter, *, is_dry_run: bool
) -> Run | None:
    one, other = await sides.read_both(ground.monolith, ground.service)
    if one is not None and other is not None and other.epoch:
        # An owner has changed before: each side gets what its part wants.
        if not is_dry_run:
            steps.extend(await settling.arm(ground.config, ground.monolith, ground.service))
            await settling.settle(ground.config, ground.monolith, ground.service, reporter)
        return await ledger.read_run(ground.service)
    if ground.run is None:
        steps.append("create the schema ordermigrate on both sides, with the ledger on the service")
    elif one is None:
        steps.append("finish a preparation that was cut short: the monolith's side row")
    await gates.require_empty(ground)
    await gates.require_capturable(ground.monolith, ground.maps)
    if ground.run is None:
        steps.extend(f"mind before the cutover: {each}" for each in find_cascades(ground.maps))
    if is_dry_run:
        steps.extend(await _plan_preparation(ground))
        return ground.run
    run_id = other.run if other else str(uuid.uuid4())
    steps.extend(await _prepare_service(ground, run_id))
    steps.extend(await _prepare_monolith(ground, run_id))
    if steps:
        reporter.report(Prepared(run_id, tuple(steps)))
    return await ledger.read_run(ground.service)


async def _plan_preparation(ground: Ground) -> list[str]:
    steps: list[str] = []
    if not ground.maps:  # the service's tables are still to be created
        steps.append("fence the service's tables off: only ordermigrate writes there")
        steps.append("capture writes to the monolith's tables, under a lock for a moment")
    for each in ground.maps:
        steps.extend(
            f"switch off trigger {trigger.name} on {each.target.name} until the service owns it"
            for trigger in each.target.triggers
            if trigger.enabled != "D"
        )
    ours = await catalog.read_own_triggers(ground.service)
    if fence.find_gaps([each.target for each in ground.maps], ours, has_rows=False):
        steps.extend(
            f"fence {each.target.name} off: only ordermigrate writes there" for each in ground.maps
        )
    theirs = await catalog.read_own_triggers(ground.monolith)
    if capture.find_gaps([each.source for each in ground.maps], theirs):
        steps.extend(
            f"capture writes to {each.source.name}, under a lock for a moment in which nobody "
            "writes to it"
            for each in ground.maps
        )
    if parents.find_gaps(find_parents(ground.maps), theirs):
        steps.extend(
            f"watch {name} for the columns that depend on it, under a lock for a moment"
            for name in find_parents(ground.maps)
        )
    return steps


async def _prepare_service(ground: Ground, run_id: str) -> list[str]:
    service = ground.service
    async with service.transaction():
        await service.fetch_all("sessions", "take_prepare_lock")
        run_id = await sides.install(service, run_id, is_hot=False)
        await ledger.install(service, run_id, __version__, ground.monolith.identity)
        done = await indexes.silence(service, ground.maps)
        row = await sides.read(service)
        run = await ledger.read_run(service)
        if row is None or run is None:
            message = "a row that was just written is not there"
            raise AssertionError(message)
        done += await fence.install(
            service,
            [each.target for each in ground.maps],
            await catalog.read_own_triggers(service),
            row.pass_word,
            has_rows=run.phase in FOLLOWED,
        )
    tables = [each.target for each in ground.maps]
    if not all(table.primary_key for table in tables):
        return done  # the keys are off for the load; `cutover` looks again
    triggers = await catalog.read_own_triggers(service)
    return done + await capture.install(service, tables, triggers, is_on=False)


async def _prepare_monolith(ground: Ground, run_id: str) -> list[str]:
    monolith = ground.monolith
    async with monolith.transaction():
        await sides.install(monolith, run_id, is_hot=True)
        await ledger.install_records(monolith)
        await quarantine.install(monolith)
    row = await sides.read(monolith)
    if row is None:
        message = "a row that was just written is not there"
        raise AssertionError(message)
    tables = [each.source for each in ground.maps]
    triggers = await catalog.read_own_triggers(monolith)
    gaps = capture.find_gaps(tables, triggers) + await change_logs.find_missing(
        monolith, [each.name for each in tables]
    )
    if gaps and ground.run and ground.run.phase in FOLLOWED:
        reason = f"capture on the monolith had gaps: {'; '.join(gaps)}"
        await ledger.void_validations(ground.service, reason)
    done = await ownership.arm(monolith, tables, row.pass_word, is_hot=True)
    # Before the first snapshot there is nothing on the service that could be behind.
    is_begun = ground.run is not None and ground.run.phase is not Phase.PREPARED
    done += await parents.watch(monolith, find_parents(ground.maps), is_marking=is_begun)
    return done or [f"mended: {gap}" for gap in gaps]


async def copy(
    config: Config,
    reporter: Reporter,
    *,
    signs: Signs | None = None,
    is_restart: bool = False,
    is_dry_run: bool = False,
) -> CopyResult:
    """Copy every row of the family, build indexes, gather statistics; resume what was cut off.

    Writers go on meanwhile: capture is installed first, so every row is in the copy's snapshot,
    or its key is in a change log, or both.

    Raises:
        OrdermigrateError: A gate is shut (exit code 3), a database is unavailable (5), another
            command is at work (6), or the configuration is wrong (2).

    """
    started = time.monotonic()
    steps: list[str] = []
    async with gates.stand_on_ground(config, "copy", steps, is_dry_run=is_dry_run) as found:
        run = await _prepare(found, steps, reporter, is_dry_run=is_dry_run)
        if is_dry_run:
            return await _plan_copy(found, steps, is_restart=is_restart)
        if run is None:
            message = "a prepared migration has no run"
            raise AssertionError(message)
        # What was switched off is not in the way any more: read the tables as they are now.
        maps = await gates.read_maps(config, found.monolith, found.service)
        ground = replace(found, maps=maps, run=run)
        if is_restart and run.phase is not Phase.PREPARED:
            await traffic.require_none((found.monolith, found.service))
            run = await copying.restart(ground, run)
        if run.phase in FOLLOWED:
            return await _result(ground.service, maps, run, started, is_already_done=True)
        if run.phase is Phase.PREPARED:
            run = await copying.begin(ground, run, reporter)
        else:
            await gates.require_known_rows(ground.service, maps)
        await bulk_copy.load(Job(config, run.run, maps, Throttle(signs or Signs())), reporter)
        # Still inside, for this session holds the operator's lock.
        run = await copying.complete(config, maps, run, reporter)
        async with db.opened(config, Side.SERVICE, "copy: result") as service:
            return await _result(service, maps, run, started, is_already_done=False)


async def _plan_copy(ground: Ground, steps: list[str], *, is_restart: bool) -> CopyResult:
    phase = ground.run.phase if ground.run else Phase.NEW
    is_complete = phase in FOLLOWED
    if is_restart and phase not in {Phase.NEW, Phase.PREPARED}:
        steps.append("remove what earlier attempts have copied, and begin again")
    if is_complete and not is_restart:
        steps.append("nothing: every row is copied already")
    else:
        steps.extend(
            f"drop {len([index for index in each.target.indexes if not index.needed_by])} indexes "
            f"and keys of {each.target.name} for the load"
            for each in ground.maps
            if phase in {Phase.NEW, Phase.PREPARED}
        )
        steps.extend(
            f"copy ~{each.source.rows_estimate:,} rows of {each.label} from "
            f"{len(each.source.leaves)} part(s) in "
            f"{'binary' if each.is_binary else 'text'} format"
            for each in ground.maps
        )
        steps.append("build indexes and keys, gather statistics, check whose rows are there")
    run_id = ground.run.run if ground.run else None
    last = await ledger.read_last_validation(ground.service) if run_id else None
    return CopyResult(
        run_id, phase, last, (), 0.0, tuple(steps), is_already_done=False, is_dry_run=True
    )


async def _result(
    service: Session, maps: list[TableMap], run: Run, started: float, *, is_already_done: bool
) -> CopyResult:
    totals = await ledger.read_totals(service)
    tables = tuple(
        CopiedTable(
            each.label,
            str(each.target.name),
            totals[each.label].copied_rows,
            totals[each.label].copied_bytes,
        )
        for each in maps
        if each.label in totals
    )
    return CopyResult(
        run.run,
        run.phase,
        await ledger.read_last_validation(service),
        tables,
        time.monotonic() - started,
        (),
        is_already_done,
        is_dry_run=False,
    )


async def sync(
    config: Config,
    reporter: Reporter,
    stop: asyncio.Event,
    *,
    is_once: bool = False,
    until_caught_up: bool = False,
    is_adopting: bool = False,
) -> SyncResult:
    """Apply what the monolith writes to the service, round after round, until stopped.

    Args:
        config: The configuration.
        reporter: Whom to tell.
        stop: Set it to have sync end after the round that is under way.
        is_once: End after one round, or at once if nothing is waiting.
        until_caught_up: End once nothing is waiting.
        is_adopting: Go on with tables whose definition has changed since the copy.

    Raises:
        OrdermigrateError: A gate is shut, a row does not fit (exit code 3), or a database has been
            unavailable for longer than the retry deadline (5).

    """
    started = time.monotonic()
    tally = Tally()

    def is_enough(tally: Tally) -> bool:
        return is_once or (until_caught_up and tally.is_caught_up)

    tally.alive_at = asyncio.get_running_loop().time()
    await run_together(
        following.persist(
            config,
            tally,
            stop,
            reporter,
            lambda: following.run_sync(
                config, tally, stop, reporter, is_enough, is_adopting=is_adopting
            ),
        ),
        beside=[traffic.hold_back(db.make_impatient(config), tally.find_lag, reporter)],
    )
    run, last = tally.run, None
    try:
        async with db.opened(db.make_impatient(config), Side.SERVICE, "sync") as service:
            run = await ledger.read_run(service)
            last = await ledger.read_last_validation(service)
    except ConnectionLost:
        # Who tells sync to stop while the service is away has still to hear what was done.
        if run is None or not stop.is_set():
            raise
    return SyncResult(
        run.run if run else None,
        run.phase if run else Phase.NEW,
        last,
        tally.rounds,
        tally.changes,
        tally.written,
        tally.deleted,
        tally.is_caught_up,
        time.monotonic() - started,
        is_stopped=stop.is_set(),
        owner=tally.owner.value,
    )


async def validate(
    config: Config,
    reporter: Reporter,
    *,
    algorithm: Algorithm | None,
    max_differences: int,
    is_repairing: bool = False,
) -> Validation:
    """Compare both sides and record the verdict, where there is a ledger to record it in.

    Once the copy is complete, both are read as of the same moment, writers or not. Before, and
    without a migration, each is read as it is.

    Raises:
        OrdermigrateError: A side cannot be read; that is never a difference.

    """
    return await proving.validate(
        config,
        reporter,
        algorithm=algorithm,
        max_differences=max_differences,
        is_repairing=is_repairing,
    )


async def cutover(
    config: Config,
    reporter: Reporter,
    *,
    max_pause_seconds: float | None = None,
    is_dry_run: bool = False,
    is_aborting: bool = False,
) -> OwnerChange:
    """Make the service the owner of the tables, or leave the monolith the owner.

    Raises:
        Refused: A gate is shut (exit code 3).
        Undone: It failed, and writers go on at the monolith (7).
        Stranded: A person must look; says what to do (8).

    """
    return await changing.change_owner(
        config,
        reporter,
        Direction.FORWARD,
        max_pause_seconds=max_pause_seconds or config.limits.max_pause_seconds,
        is_dry_run=is_dry_run,
        is_aborting=is_aborting,
    )


async def rollback(
    config: Config,
    reporter: Reporter,
    *,
    since: str | None = None,
    max_pause_seconds: float | None = None,
    is_dry_run: bool = False,
    is_aborting: bool = False,
    accepts_loss: bool = False,
) -> OwnerChange:
    """Make the monolith the owner again, with everything that the service has accepted.

    Args:
        config: The configuration.
        reporter: Whom to tell.
        since: Where no log says what the service has written: from when on it did.
        max_pause_seconds: For how long no side may take a write.
        is_dry_run: Whether only to look.
        is_aborting: Whether to undo a rollback that was cut off.
        accepts_loss: Whether the monolith is to be the owner although the service cannot be
            reached, or, with `since`, although it has rows of its own that would be lost.

    Raises:
        OrdermigrateError: As `cutover`, with the sides exchanged.

    """
    if since is not None:
        return await reclaiming.reclaim(
            config,
            reporter,
            since,
            max_pause_seconds=max_pause_seconds or config.limits.max_pause_seconds,
            is_dry_run=is_dry_run,
            accepts_loss=accepts_loss,
        )
    if accepts_loss:
        # One that was cut off goes back to the service, where it is the monolith that is lost.
        side = Side.SERVICE if is_aborting else Side.MONOLITH
        return await seizing.seize(config, reporter, side=side, is_dry_run=is_dry_run)
    return await changing.change_owner(
        config,
        reporter,
        Direction.REVERSE,
        max_pause_seconds=max_pause_seconds or config.limits.max_pause_seconds,
        is_dry_run=is_dry_run,
        is_aborting=is_aborting,
    )


async def show_or_set_traffic(
    config: Config, reporter: Reporter, percentage: int | None = None
) -> TrafficResult:
    """Show the share of users whose reads go to the service, or set it.

    Raises:
        OrdermigrateError: It is no step (exit code 2), a gate is shut for a step up (3), or a
            database is unavailable (5): a step down is then made where one answers.

    """
    return await steering.steer(config, percentage, reporter)


async def retry_quarantine(
    config: Config, reporter: Reporter, *, is_discarding: bool = False, is_dry_run: bool = False
) -> Retry:
    """Try rows again that the monolith has refused, or discard them, once it owns the tables.

    Raises:
        OrdermigrateError: A gate is shut, or a database cannot be reached.

    """
    return await retrying.retry(
        config, reporter, is_discarding=is_discarding, is_dry_run=is_dry_run
    )


async def cancel(
    config: Config, reporter: Reporter, *, is_dropping: bool = False, is_dry_run: bool = False
) -> Cancellation:
    """Remove every trace of the migration from both sides; the monolith is as it was before.

    Raises:
        OrdermigrateError: A gate is shut, or a database cannot be reached; run it again then.

    """
    return await cancelling.cancel(config, reporter, is_dropping=is_dropping, is_dry_run=is_dry_run)


async def cleanup(
    config: Config,
    reporter: Reporter,
    *,
    directory: Path | None = None,
    confirmed: str | None = None,
    is_undoing: bool = False,
    is_dry_run: bool = False,
) -> Cleaning:
    """End the migration: back up and drop the monolith's tables, remove every trace of ours.

    Args:
        config: The configuration.
        reporter: Whom to tell.
        directory: Where the backup goes.
        confirmed: The first table's name, given by somebody who knows what will be gone.
        is_undoing: Give renamed tables their names back instead, and let the migration go on.
        is_dry_run: Tell what would be done, and do nothing.

    Raises:
        OrdermigrateError: A gate is shut, or a database cannot be reached; run it again then.

    """
    return await cleaning.cleanup(
        config,
        reporter,
        directory=directory,
        confirmed=confirmed,
        is_undoing=is_undoing,
        is_dry_run=is_dry_run,
    )


async def status(config: Config) -> Status:
    """Tell where the migration stands, from what the two databases say; changes nothing."""
    return await situation.read(config)
