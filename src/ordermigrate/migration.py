"""The verbs of a migration, in the order in which they happen: gate, act, record.

Each verb can be killed at any point and run again: what it finds in the two databases tells it
where to go on. The service's database is changed first and the monolith's last, so a preparation
that was cut short leaves nothing on the monolith.
"""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from ordermigrate import (
    __version__,
    bulk_copy,
    catalog,
    db,
    indexes,
    ledger,
    mapping,
    preflight,
    sides,
    writes,
)
from ordermigrate import (
    validate as validation,
)
from ordermigrate.bulk_copy import Job
from ordermigrate.config import Config
from ordermigrate.db import Session
from ordermigrate.digest import Algorithm
from ordermigrate.errors import Refused
from ordermigrate.ledger import Run
from ordermigrate.model import Identity, Side, TableMap
from ordermigrate.phases import Phase
from ordermigrate.progress import Prepared, PromiseChecked, Reporter
from ordermigrate.together import run_together
from ordermigrate.verdicts import TableVerdict, Verdict

# Counters of a busy session reach the statistics about once a second.
WATCH_SECONDS = 1.5
_BEGIN_AGAIN = "Stop the writers, then begin again with `ordermigrate copy --offline --restart`"


@dataclass(frozen=True, slots=True)
class Preparation:
    """What `prepare` did, or would do."""

    run: str | None
    phase: Phase
    steps: tuple[str, ...]
    is_dry_run: bool


@dataclass(frozen=True, slots=True)
class CopiedTable:
    """How much of one table is on the service."""

    name: str
    target: str
    rows: int
    bytes: int


@dataclass(frozen=True, slots=True)
class CopyResult:
    """What `copy` did, or would do."""

    run: str | None
    phase: Phase
    tables: tuple[CopiedTable, ...]
    seconds: float
    found: tuple[str, ...]
    steps: tuple[str, ...]
    is_already_done: bool
    is_dry_run: bool


@dataclass(frozen=True, slots=True)
class TableStatus:
    """How far the copy of one table is."""

    name: str
    target: str
    total_rows_estimate: int
    copied_rows: int
    copied_bytes: int
    chunks: int
    chunks_copied: int


@dataclass(frozen=True, slots=True)
class Status:
    """Where a migration stands."""

    run: str | None
    phase: Phase
    phase_since: str | None
    owner: str
    monolith: Identity
    service: Identity
    tables: tuple[TableStatus, ...]
    objects_off: tuple[str, ...]
    last_validation: ledger.LastValidation | None


@dataclass(frozen=True, slots=True)
class _Ground:
    """Both sessions, the tables as they are, and the run if there is one."""

    monolith: Session
    service: Session
    maps: list[TableMap]
    run: Run | None


@contextlib.asynccontextmanager
async def _stand_on_ground(
    config: Config, command: str, steps: list[str], *, is_dry_run: bool = False
) -> AsyncIterator[_Ground]:
    """Open both sides and pass the gates that every changing verb has in common."""
    async with db.open_pair(config, command) as (monolith, service):
        await sides.read_both(monolith, service)
        await catalog.require_tables(monolith, [each.name for each in config.tables])
        is_absent = await _apply_family(config, service, steps, is_dry_run=is_dry_run)
        if is_absent and is_dry_run:
            yield _Ground(monolith, service, [], None)
            return
        await catalog.require_tables(service, [each.target for each in config.tables])
        await preflight.require_rights(monolith, service, config.tables)
        maps = await _read_maps(config, monolith, service)
        preflight.require_sound_tables(maps)
        yield _Ground(monolith, service, maps, await ledger.read_run(service))


async def _read_maps(config: Config, monolith: Session, service: Session) -> list[TableMap]:
    tables = []
    for session, names in (
        (monolith, [each.name for each in config.tables]),
        (service, [each.target for each in config.tables]),
    ):
        async with session.transaction(is_snapshot=True):
            await catalog.lock_against_rewrites(session, names)
            tables.append(await catalog.read_tables(session, names))
    return mapping.build_maps(config.tables, *tables)


def find_family(name: str) -> Path | None:
    """Return the folder of a family's SQL, in the installed package or in a checkout."""
    installed = Path(str(resources.files("ordermigrate"))) / "families" / name
    checkout = Path(__file__).parents[2] / "sql" / "families" / name
    return next((folder for folder in (installed, checkout) if folder.is_dir()), None)


def list_families() -> list[str]:
    """Return the names of the families that `init` knows."""
    package = Path(str(resources.files("ordermigrate")))
    for folder in (package / "families", Path(__file__).parents[2] / "sql" / "families"):
        if folder.is_dir():
            return sorted(each.name for each in folder.iterdir() if each.is_dir())
    return []


async def _apply_family(
    config: Config, service: Session, steps: list[str], *, is_dry_run: bool
) -> bool:
    """Create the service's tables by the family's SQL where none of them is there yet.

    Returns whether they were absent.
    """
    found = await catalog.find_tables(service, [each.target for each in config.tables])
    if config.family is None or any(each.oid is not None for each in found):
        return False
    folder = find_family(config.family)
    if folder is None:
        raise Refused(
            f"There is no family named {config.family}",
            wanted=f"One of: {', '.join(list_families())}",
            todo="Correct `family` in the configuration, or leave it out and create the service's "
            "tables yourself",
        )
    steps.append(f"create the service's tables by the family {config.family}")
    if not is_dry_run:
        async with service.transaction():
            await service.run_script((folder / "service.sql").read_text("utf-8"))
    return True


async def prepare(config: Config, reporter: Reporter, *, is_dry_run: bool = False) -> Preparation:
    """Make both databases ready: the service's tables, the ledger, one side row in each.

    Raises:
        OrdermigrateError: A gate is shut, or a database cannot be reached.

    """
    steps: list[str] = []
    async with _stand_on_ground(config, "prepare", steps, is_dry_run=is_dry_run) as ground:
        run = await _prepare(ground, steps, reporter, is_dry_run=is_dry_run)
    phase = run.phase if run else Phase.NEW
    return Preparation(run.run if run else None, phase, tuple(steps), is_dry_run)


async def _prepare(
    ground: _Ground, steps: list[str], reporter: Reporter, *, is_dry_run: bool
) -> Run | None:
    one, other = await sides.read_both(ground.monolith, ground.service)
    if ground.run is None:
        steps.append("create the schema ordermigrate on both sides, with the ledger on the service")
    elif one is None:
        steps.append("finish a preparation that was cut short: the monolith's side row")
    if is_dry_run:
        steps.extend(
            f"switch off trigger {trigger.name} on {each.target.name} until the service owns it"
            for each in ground.maps
            for trigger in each.target.triggers
            if trigger.enabled != "D"
        )
        return ground.run
    await _require_empty(ground)
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


async def _require_empty(ground: _Ground) -> None:
    """Refuse targets with rows that no copy of ours has brought."""
    totals = await ledger.read_totals(ground.service) if ground.run else {}
    for each in ground.maps:
        begun = each.label in totals and totals[each.label].chunks_copied > 0
        if not begun and not await ledger.is_empty(ground.service, each.target.name):
            raise Refused(
                f"{each.target.name} on the service is not empty, and this migration's ledger "
                "does not know its rows",
                wanted="An empty table; rows that are not ours are never overwritten or removed",
                todo="Look at the rows; if nobody needs them, empty the table yourself and run "
                "the command again",
            )


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
    async with _stand_on_ground(config, "copy", steps, is_dry_run=is_dry_run) as ground:
        run = await _prepare(ground, steps, reporter, is_dry_run=is_dry_run)
        if is_dry_run:
            return await _plan_copy(ground, steps, is_restart=is_restart)
        if run is None:
            message = "a prepared migration has no run"
            raise AssertionError(message)
        await ledger.take_operator_lock(ground.service, run.run)
        if is_restart and run.phase is not Phase.PREPARED:
            run = await _restart(ground, run)
        if run.phase is Phase.COPIED:
            return await _result(ground, run, started, (), is_already_done=True)
        counters = await _require_stillness(config, ground, run, is_offline=is_offline)
        if run.phase is Phase.PREPARED:
            run = await _begin(ground, run, reporter)
        else:
            await _require_known_rows(ground)
        job = Job(config, run.run, ground.maps, writes.to_json(counters))
        await bulk_copy.load(job, reporter)
        _, found = await run_together(
            indexes.restore(config, Side.SERVICE, reporter),
            _check_promise(config, ground, reporter, is_offline=is_offline),
        )
        names = [each.target.name for each in ground.maps]
        await run_together(
            indexes.analyze(config, Side.SERVICE, names, reporter), _require_known_rows(ground)
        )
        run = await ledger.change_phase(ground.service, run, Phase.COPIED, "copy")
        return await _result(ground, run, started, found or (), is_already_done=False)


async def _plan_copy(ground: _Ground, steps: list[str], *, is_restart: bool) -> CopyResult:
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
    return CopyResult(
        run_id, phase, (), 0.0, (), tuple(steps), is_already_done=False, is_dry_run=True
    )


async def _restart(ground: _Ground, run: Run) -> Run:
    """Forget a copy and remove its rows, after seeing that there are no others."""
    await _require_known_rows(ground, is_restart=True)
    async with ground.service.transaction():
        await ground.service.set_local("statement_timeout", "0")
        await ledger.forget_copy(ground.service, [each.target for each in ground.maps])
        return await ledger.change_phase(ground.service, run, Phase.PREPARED, "copy --restart")


async def _require_known_rows(ground: _Ground, *, is_restart: bool = False) -> None:
    """Refuse a target whose rows are not just those that chunks have brought.

    To begin again, it is enough that there are no others among them.
    """
    totals = await ledger.read_totals(ground.service)
    for each in ground.maps:
        if each.label not in totals:
            continue
        unknown, missing = await ledger.count_unknown_rows(
            ground.service, each.label, each.target.name
        )
        if unknown or (missing and not is_restart):
            raise Refused(
                f"{each.target.name} on the service is not as the copy left it: {unknown:,} rows "
                f"are not of its making, {missing:,} that it brought are gone or changed",
                wanted="A table that nobody but ordermigrate writes to until the service owns it",
                todo="Find out who wrote to it; then empty the table yourself and run "
                "`ordermigrate copy --restart`",
            )


async def _require_stillness(
    config: Config, ground: _Ground, run: Run, *, is_offline: bool
) -> dict[str, writes.Counters]:
    """Refuse to begin, or to go on, beside writers; return the counters to compare with later."""
    first = await ledger.read_first_attempt(ground.service) if run.phase is Phase.COPYING else None
    if first is not None:
        async with db.opened(config, Side.MONOLITH, "copy: watch") as watcher:
            still = await writes.check_stillness(
                ground.monolith, watcher, ground.maps, first.snapshot, None
            )
        written = [each.describe() for each in still if each.rows_newer]
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


async def _begin(ground: _Ground, run: Run, reporter: Reporter) -> Run:
    """Take indexes off the empty targets and enter the copying phase, all or nothing."""
    async with ground.service.transaction():
        for each in ground.maps:
            if not await ledger.is_empty(ground.service, each.target.name):
                await _require_empty(ground)
        dropped = await indexes.drop_for_load(ground.service, ground.maps)
        run = await ledger.change_phase(ground.service, run, Phase.COPYING, "copy")
    for event in dropped:
        reporter.report(event)
    return run


async def _check_promise(
    config: Config, ground: _Ground, reporter: Reporter, *, is_offline: bool
) -> tuple[str, ...]:
    """Refuse to call the copy complete if the monolith was written to since it began."""
    first = await ledger.read_first_attempt(ground.service)
    if first is None:
        message = "a copy without an attempt"
        raise AssertionError(message)
    totals = await ledger.read_totals(ground.service)
    copied = {name: each.copied_rows for name, each in totals.items()}
    async with (
        db.opened(config, Side.MONOLITH, "copy: check of writes") as monolith,
        db.opened(config, Side.MONOLITH, "copy: watch") as watcher,
    ):
        still = await writes.check_stillness(monolith, watcher, ground.maps, first.snapshot, copied)
        before = writes.from_json(first.counters)
        after = await writes.read_counters(monolith, ground.maps)
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
    ground: _Ground,
    run: Run,
    started: float,
    found: tuple[str, ...],
    *,
    is_already_done: bool,
) -> CopyResult:
    totals = await ledger.read_totals(ground.service)
    tables = tuple(
        CopiedTable(
            each.label,
            str(each.target.name),
            totals[each.label].copied_rows,
            totals[each.label].copied_bytes,
        )
        for each in ground.maps
        if each.label in totals
    )
    return CopyResult(
        run.run,
        run.phase,
        tables,
        time.monotonic() - started,
        found,
        (),
        is_already_done,
        is_dry_run=False,
    )


@dataclass(frozen=True, slots=True)
class Validation:
    """A verdict, and the migration that it is about."""

    run: str | None
    phase: Phase
    verdict: Verdict
    validation_id: int | None


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
        await sides.read_both(monolith, service)
        await catalog.require_tables(monolith, [each.name for each in config.tables])
        await catalog.require_tables(service, [each.target for each in config.tables])
        maps = await _read_maps(config, monolith, service)
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
        run = await ledger.read_run(service)
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


def describe_table(verdict: TableVerdict) -> dict[str, Any]:
    """Return a table's verdict as JSON has it (docs/reference.md)."""
    return {
        "name": verdict.name,
        "to": verdict.target,
        "rows": verdict.target_rows,
        "source_rows": verdict.source_rows,
        "target_rows": verdict.target_rows,
        "outcome": "equal" if verdict.is_equal else "different",
        "checks": [
            {
                "name": check.name,
                "outcome": check.outcome,
                "summary": check.summary,
                "details": list(check.details),
                "seconds": round(check.seconds, 3),
            }
            for check in verdict.checks
        ],
        "differences": [
            {
                "key": each.key,
                "kind": each.kind,
                "columns": {
                    name: {"source": values[0], "target": values[1]}
                    for name, values in each.columns.items()
                },
            }
            for each in verdict.differences
        ],
        "differences_total": verdict.differences_total,
        "notes": list(verdict.notes),
    }


async def status(config: Config) -> Status:
    """Tell where the migration stands, from what the two databases say; changes nothing."""
    async with db.open_pair(config, "status") as (monolith, service):
        one, other = await sides.read_both(monolith, service)
        run = await ledger.read_run(service)
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
