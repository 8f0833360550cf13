"""The verbs of a migration, in the order in which they happen: gate, act, record.

Each verb can be killed at any point and run again: what it finds in the two databases tells it
where to go on. The service's database is changed first and the monolith's last, so a preparation
that was cut short leaves nothing on the monolith.
"""

from __future__ import annotations

import time
import uuid
from dataclasses import replace
from typing import Any

from ordermigrate import (
    __version__,
    bulk_copy,
    catalog,
    db,
    gates,
    indexes,
    ledger,
    preflight,
    sides,
    writes,
)
from ordermigrate import validate as validation
from ordermigrate.bulk_copy import Job
from ordermigrate.config import Config
from ordermigrate.control import Session
from ordermigrate.digest import Algorithm
from ordermigrate.errors import Refused
from ordermigrate.gates import Ground
from ordermigrate.ledger import Run
from ordermigrate.model import Side, TableMap
from ordermigrate.outcomes import (
    CopiedTable,
    CopyResult,
    Preparation,
    Status,
    TableStatus,
    Validation,
    describe_table,
)
from ordermigrate.phases import Phase
from ordermigrate.progress import Prepared, PromiseChecked, Reporter
from ordermigrate.together import run_together

# Counters of a busy session reach the statistics about once a second.
WATCH_SECONDS = 1.5
_BEGIN_AGAIN = "Stop the writers, then begin again with `ordermigrate copy --offline --restart`"


async def prepare(config: Config, reporter: Reporter, *, is_dry_run: bool = False) -> Preparation:
    """Make both databases ready: the service's tables, the ledger, one side row in each.

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
    if ground.run is None:
        steps.append("create the schema ordermigrate on both sides, with the ledger on the service")
    elif one is None:
        steps.append("finish a preparation that was cut short: the monolith's side row")
    await gates.require_empty(ground)
    if is_dry_run:
        steps.extend(
            f"switch off trigger {trigger.name} on {each.target.name} until the service owns it"
            for each in ground.maps
            for trigger in each.target.triggers
            if trigger.enabled != "D"
        )
        return ground.run
    run_id = other.run if other else str(uuid.uuid4())
    service, monolith = ground.service, ground.monolith
    async with service.transaction():
        await service.fetch_all("sessions", "take_prepare_lock")
        run_id = await sides.install(service, run_id, is_hot=False)
        await ledger.install(service, run_id, __version__, monolith.identity)
        steps.extend(await indexes.silence(service, ground.maps))
    async with monolith.transaction():
        await sides.install(monolith, run_id, is_hot=True)
    if steps:
        reporter.report(Prepared(run_id, tuple(steps)))
    return await ledger.read_run(service)


async def copy(
    config: Config,
    reporter: Reporter,
    *,
    is_offline: bool = False,
    is_restart: bool = False,
    is_dry_run: bool = False,
) -> CopyResult:
    """Copy every row of the family, build indexes, gather statistics; resume what was cut off.

    Without capture a copy is right only if nobody writes to the tables meanwhile. That is looked
    at before (unless `is_offline` promises it), and checked after in any case.

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
            run = await _restart(ground, run)
        if run.phase is Phase.COPIED:
            return await _result(ground.service, maps, run, started, (), is_already_done=True)
        counters = writes.to_json(
            await _require_stillness(config, ground, run, is_offline=is_offline)
        )
        if run.phase is Phase.PREPARED:
            run = await _begin(ground, run, reporter)
        else:
            await gates.require_known_rows(ground.service, maps)

        async def note_window(session: Session, snapshot: str) -> dict[str, Any]:
            return await writes.note_window(session, maps, snapshot)

        await bulk_copy.load(Job(config, run.run, maps, counters, note_window), reporter)
        # Still inside, for this session holds the operator's lock.
        return await _complete_copy(config, maps, run, reporter, started, is_offline=is_offline)


async def _complete_copy(
    config: Config,
    maps: list[TableMap],
    run: Run,
    reporter: Reporter,
    started: float,
    *,
    is_offline: bool,
) -> CopyResult:
    """Bring back what was off, prove that nobody wrote, and close the phase.

    On sessions of its own, and as often as it takes: a server may have restarted meanwhile.
    """
    async for attempt in db.retrying(config.limits.retry_deadline_seconds):
        with attempt:
            found = await _finish_copy(config, maps, reporter, is_offline=is_offline)
            async with db.opened(config, Side.SERVICE, "copy: end") as service:
                now = await ledger.read_run(service)
                if now is None:
                    message = "a copy without a run"
                    raise AssertionError(message)
                if now.phase is not Phase.COPIED:  # it is, where only the reply was lost
                    # From the phase that we entered: another may have begun the copy anew.
                    now = await ledger.change_phase(service, run, Phase.COPIED, "copy")
                return await _result(service, maps, now, started, found, is_already_done=False)
    message = "the retry policy ended without a result"
    raise AssertionError(message)


async def _finish_copy(
    config: Config, maps: list[TableMap], reporter: Reporter, *, is_offline: bool
) -> tuple[str, ...]:
    """Build what was dropped, check that nobody wrote to either side; safe to repeat."""
    _, found = await run_together(
        indexes.restore(config, Side.SERVICE, reporter),
        _check_promise(config, maps, reporter, is_offline=is_offline),
    )
    names = [each.target.name for each in maps]
    await run_together(
        indexes.analyze(config, Side.SERVICE, names, reporter), _check_service(config, maps)
    )
    return found or ()


async def _check_service(config: Config, maps: list[TableMap]) -> None:
    """Refuse to call the copy complete if somebody else wrote to the service."""
    async with db.opened(config, Side.SERVICE, "copy: check of rows") as service:
        await gates.require_known_rows(service, maps)


async def _plan_copy(ground: Ground, steps: list[str], *, is_restart: bool) -> CopyResult:
    phase = ground.run.phase if ground.run else Phase.NEW
    if is_restart and phase in {Phase.COPYING, Phase.COPIED}:
        steps.append("remove what earlier attempts have copied, and begin again")
    if phase is Phase.COPIED and not is_restart:
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
        steps.append("build indexes and keys, gather statistics, check that nobody wrote meanwhile")
    run_id = ground.run.run if ground.run else None
    last = await ledger.read_last_validation(ground.service) if run_id else None
    return CopyResult(
        run_id, phase, last, (), 0.0, (), tuple(steps), is_already_done=False, is_dry_run=True
    )


async def _restart(ground: Ground, run: Run) -> Run:
    """Forget a copy and remove its rows, after seeing that there are no others."""
    await gates.require_known_rows(ground.service, ground.maps, is_restart=True)
    async with ground.service.transaction():
        await ground.service.set_local("statement_timeout", "0")
        for each in ground.maps:
            await ledger.lock_target(ground.service, each.target.name)
        await ledger.forget_copy(ground.service, [each.target for each in ground.maps])
        return await ledger.change_phase(ground.service, run, Phase.PREPARED, "copy --restart")


async def _require_stillness(
    config: Config, ground: Ground, run: Run, *, is_offline: bool
) -> dict[str, writes.Counters]:
    """Refuse to begin, or to go on, beside writers; return the counters to compare with later."""
    first = await ledger.read_first_attempt(ground.service) if run.phase is Phase.COPYING else None
    if first is not None:
        async with db.opened(config, Side.MONOLITH, "copy: watch") as watcher:
            still = await writes.check_stillness(
                ground.monolith,
                watcher,
                ground.maps,
                writes.Noted(first.snapshot, first.window),
                None,
            )
        written = [each.describe() for each in still if each.rows_newer or not each.is_window_same]
        if written:
            raise Refused(
                "The monolith was written to since the copy began: " + "; ".join(written),
                wanted="Tables that stay as they are until the copy is complete: this version "
                "does not capture writes",
                todo=_BEGIN_AGAIN,
                findings=written,
            )
        return writes.from_json(first.counters)
    if not is_offline:
        signs = await writes.watch(ground.monolith, ground.maps, WATCH_SECONDS)
        if signs:
            raise Refused(
                "The monolith's tables are being written to: " + "; ".join(signs),
                wanted="Tables that nobody writes to while they are copied: this version does "
                "not capture writes yet",
                todo="Stop the writers and run the command again; `--offline` promises that they "
                "are stopped, and has the promise checked afterwards",
                findings=signs,
            )
    return await writes.read_counters(ground.monolith, ground.maps)


async def _begin(ground: Ground, run: Run, reporter: Reporter) -> Run:
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


async def _check_promise(
    config: Config, maps: list[TableMap], reporter: Reporter, *, is_offline: bool
) -> tuple[str, ...]:
    """Refuse to call the copy complete if the monolith was written to since it began."""
    async with (
        db.opened(config, Side.SERVICE, "copy: check of writes") as service,
        db.opened(config, Side.MONOLITH, "copy: check of writes") as monolith,
        db.opened(config, Side.MONOLITH, "copy: watch") as watcher,
    ):
        first = await ledger.read_first_attempt(service)
        if first is None:
            message = "a copy without an attempt"
            raise AssertionError(message)
        totals = await ledger.read_totals(service)
        still = await writes.check_stillness(
            monolith,
            watcher,
            maps,
            writes.Noted(first.snapshot, first.window),
            {name: each.copied_rows for name, each in totals.items()},
        )
        before = writes.from_json(first.counters)
        after = await writes.read_counters(monolith, maps)
        await catalog.require_unchanged(monolith, [each.source for each in maps])
    written = [each.describe() for each in still if not each.is_still]
    # A TRUNCATE leaves no newer rows behind, but it changes the range of keys.
    written += writes.explain_key_ranges(before, after)
    found = tuple(written or [each.describe() for each in still])
    found += tuple(writes.explain_counters(before, after))
    reporter.report(PromiseChecked(not written, found))
    if written:
        promise = "although --offline promised that it would not be" if is_offline else ""
        raise Refused(
            f"The monolith was written to during the copy {promise}".rstrip()
            + ": "
            + "; ".join(found),
            wanted="Tables that stay as they are until the copy is complete: this version does "
            "not capture writes yet",
            todo=_BEGIN_AGAIN,
            findings=found,
        )
    return found


async def _result(
    service: Session,
    maps: list[TableMap],
    run: Run,
    started: float,
    found: tuple[str, ...],
    *,
    is_already_done: bool,
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
        found,
        (),
        is_already_done,
        is_dry_run=False,
    )


async def validate(
    config: Config,
    reporter: Reporter,
    *,
    algorithm: Algorithm | None,
    max_differences: int,
) -> Validation:
    """Compare both sides and record the verdict, where there is a ledger to record it in.

    Raises:
        OrdermigrateError: A side cannot be read; that is never a difference.

    """
    async with db.open_pair(config, "validate") as (monolith, service):
        run = await gates.read_run(monolith, service)
        await catalog.require_tables(monolith, [each.name for each in config.tables])
        await catalog.require_tables(service, [each.target for each in config.tables])
        await preflight.require_visible_rows(monolith, service, config.tables)
        maps = await gates.read_maps(config, monolith, service)
        async with db.opened(config, Side.MONOLITH, "validate: watch") as watcher:
            verdict = await validation.validate(
                (monolith, service),
                watcher,
                maps,
                config.limits,
                reporter,
                algorithm=algorithm,
                max_differences=max_differences,
            )
        number = None
        if run is not None:
            number = await ledger.record_validation(
                service,
                run.run,
                "equal" if verdict.is_equal else "different",
                verdict.algorithm,
                [describe_table(each) for each in verdict.tables],
                verdict.seconds,
            )
    return Validation(run.run if run else None, run.phase if run else Phase.NEW, verdict, number)


async def status(config: Config) -> Status:
    """Tell where the migration stands, from what the two databases say; changes nothing."""
    async with db.open_pair(config, "status") as (monolith, service):
        run = await gates.read_run(monolith, service)
        one, other = await sides.read_both(monolith, service)
        totals = await ledger.read_totals(service) if run else {}
        listed = await catalog.find_tables(monolith, [each.name for each in config.tables])
        estimates = {each.name: each.rows_estimate for each in listed}
        tables = []
        for each in config.tables:
            total = totals.get(str(each.name), ledger.Totals(0, 0, 0, 0))
            tables.append(
                TableStatus(
                    str(each.name),
                    str(each.target),
                    total.copied_rows
                    if total.chunks and total.is_complete
                    else max(estimates[each.name], total.copied_rows),
                    total.copied_rows,
                    total.copied_bytes,
                    total.chunks,
                    total.chunks_copied,
                )
            )
        kinds = ("index", "check", "trigger", "foreign_key")
        objects = await ledger.read_objects(service, *kinds) if run else []
        hot = [row.side for row in (one, other) if row is not None and row.is_hot]
        return Status(
            run.run if run else None,
            run.phase if run else Phase.NEW,
            run.phase_since.isoformat() if run else None,
            "monolith" if not run else (hot[0].value if len(hot) == 1 else "none"),
            monolith.identity,
            service.identity,
            tuple(tables),
            tuple(
                f"{each.kind.replace('_', ' ')} {each.name} on {each.table_name}"
                for each in objects
            ),
            await ledger.read_last_validation(service) if run else None,
        )
