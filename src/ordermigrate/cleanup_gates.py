"""The gates of a cleanup: the service owns the tables, that is proved, and nothing hangs on ours.

Every reason is told at once. What was true when a cleanup began need not be proved again: from then
on the fence and the note of it on both sides keep everybody out, ourselves included.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from ordermigrate import backup, catalog, cleanup, fence, ledger, proof, quarantine
from ordermigrate.cleanup import Progress, Stage
from ordermigrate.config import Config
from ordermigrate.control import Session
from ordermigrate.errors import Refused
from ordermigrate.ledger import Run
from ordermigrate.model import Side, Table
from ordermigrate.phases import Phase
from ordermigrate.sides import SideRow

_DAY_SECONDS = 86400.0


async def require_open(
    config: Config,
    monolith: Session,
    service: Session,
    rows: tuple[SideRow, SideRow],
    progress: Progress | None,
    directory: Path,
) -> None:
    """Raise `Refused` with every reason why the monolith's tables may not go yet.

    Args:
        config: The configuration.
        monolith: A session there.
        service: A session there.
        rows: The monolith's side row and the service's.
        progress: How far the cleanup is; None where it has not begun.
        directory: Where a backup would go.

    """
    findings = await _find_wrong_owner(service, rows)
    if not findings:
        if progress is None:
            findings += await _find_unproved(config, service)
            findings += quarantine.describe(await quarantine.count(monolith))
            findings += await _find_strange_tables(config, monolith, service)
        if progress is None or progress.stage in {Stage.BEGUN, Stage.BACKED_UP}:
            findings += await _find_users(config, monolith, service)
            findings += backup.find_obstacles(monolith, config.dsn(Side.MONOLITH), directory)
        else:
            findings += await _find_losses(config, service, progress, directory)
    if findings:
        raise Refused(
            f"The monolith's tables cannot go yet: {'; '.join(findings)}",
            wanted="Tables that the service has owned for long enough, proved equal, backed up, "
            "and used by nothing on the monolith any more",
            todo="Deal with each; `ordermigrate cleanup --dry-run` looks again",
            findings=findings,
        )


async def _find_wrong_owner(service: Session, rows: tuple[SideRow, SideRow]) -> list[str]:
    one, other = rows
    run = await ledger.read_run(service)
    if run is None or run.phase is not Phase.CUT_OVER or one.is_hot or not other.is_hot:
        phase = run.phase if run else Phase.NEW
        said = (
            f"the service does not own the tables (phase {phase}, the monolith is "
            f"{_say_hot(one)}, the service is {_say_hot(other)}): it has to, by a cutover"
        )
        return [said]
    return []


def _say_hot(row: SideRow) -> str:
    return "hot" if row.is_hot else "cold"


async def _find_unproved(config: Config, service: Session) -> list[str]:
    limits = config.limits
    said: list[str] = []
    age = await ledger.read_phase_age(service)
    left = limits.cleanup_after_days * _DAY_SECONDS - age
    if left > 0:
        said.append(
            f"the service has owned the tables for {age / _DAY_SECONDS:.1f} of "
            f"{limits.cleanup_after_days:g} days (cleanup_after_days): wait for "
            f"{left / _DAY_SECONDS:.1f} days more"
        )
    last = await ledger.read_last_validation(service)
    said += [
        f"{each}: run `ordermigrate validate --checksums`, with --repair where rows differ"
        for each in proof.find_doubts(last, limits.validation_age_minutes)
    ]
    said += [
        f"{each.kind.replace('_', ' ')} {each.name} on {each.table_name} is still off on the "
        "service: bring it back"
        for each in await ledger.read_objects(service, "index", "check", "trigger", "foreign_key")
    ]
    return said


async def _find_strange_tables(config: Config, monolith: Session, service: Session) -> list[str]:
    """Compare the configuration with the tables that were moved: no other may be dropped."""
    structure = await ledger.read_structure(service, Side.MONOLITH) or {"tables": {}}
    moved = {name: int(each["oid"]) for name, each in structure["tables"].items()}
    found = await catalog.find_tables(monolith, [each.name for each in config.tables])
    said = [
        f"{each.name} on the monolith is not the table that was moved: correct the configuration"
        for each in found
        if each.oid is None or moved.get(str(each.name)) != each.oid
    ]
    listed = {str(each.name) for each in config.tables}
    return said + [
        f"{name} was moved, too: name it in the configuration" for name in moved.keys() - listed
    ]


async def _find_users(config: Config, monolith: Session, service: Session) -> list[str]:
    """Say what is still at work on the monolith's tables, or hangs on them."""
    found = await catalog.find_tables(monolith, [each.name for each in config.tables])
    present = [each.name for each in found if each.kind in {"r", "p"}]
    if not present:
        return []
    tables = list((await catalog.read_tables(monolith, present)).values())
    said = fence.find_gaps(tables, await catalog.read_own_triggers(monolith), has_rows=False)
    said = [f"the monolith's fence is not whole: {each}" for each in said]
    if await ledger.is_sync_at_work(service):
        said.append("`ordermigrate sync` is at work on the monolith's tables: end it")
    said += await _find_dependents(monolith, tables)
    return said


async def _find_dependents(monolith: Session, tables: Sequence[Table]) -> list[str]:
    family = frozenset(table.name for table in tables)
    keys = [key for table in tables for key in table.foreign_keys_by_scope(family)["into"]]
    progress = Progress(Stage.BEGUN, tuple((table.oid, str(table.name)) for table in tables))
    lines = await cleanup.find_dependents(monolith, progress)
    return [
        *(
            f"foreign key {key.name} of {key.table} points at {key.references}: drop it"
            for key in keys
        ),
        *(
            f"{line}: drop it, or have it depend on something else"
            for line in lines
            # What is listed above by its name need not be told twice.
            if not any(f" {key.name} " in line for key in keys)
        ),
    ]


async def _find_losses(
    config: Config, service: Session, progress: Progress, directory: Path
) -> list[str]:
    """Say what is not there any more of what the drop relies on."""
    said = [
        f"{each.name} is not on the service any more: bring it back, or take the cleanup back "
        "with --undo"
        for each in await catalog.find_tables(service, [each.target for each in config.tables])
        if each.oid is None
    ]
    if progress.backup is None or await backup.find_whole(progress.backup, directory) is None:
        file = progress.backup.file if progress.backup else "of the tables"
        said.append(
            f"the backup {file} is not there as it was made: name the directory where it is with "
            "--backup, or begin anew with --undo"
        )
    return said


def plan(config: Config, progress: Progress | None, run: Run, directory: Path) -> Iterator[str]:
    """Yield sentences on what a cleanup does up to the drop, as far as it is still to be done."""
    names = ", ".join(str(each.name) for each in config.tables)
    stage = progress.stage if progress else Stage.BEGUN
    if stage in {Stage.BEGUN, Stage.BACKED_UP}:
        yield f"back {names} up to {backup.find_file(directory, run.run)}, and read it back"
        yield (
            f"rename {names} on the monolith under a lock for a moment: what still uses a table "
            "gets an error, and `ordermigrate cleanup --undo` takes it back"
        )
        if config.limits.cleanup_wait_hours:
            yield f"wait for {config.limits.cleanup_wait_hours:g} hours; then run the command again"
    yield f"drop {names} on the monolith, with its rows; from here on there is no way back"
