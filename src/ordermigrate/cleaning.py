"""Cleanup: the service keeps the tables, the monolith's go, and so does every trace of ours.

What the monolith's side row says, or that it is gone, decides where a cleanup goes on; the
service's row says the same a moment earlier or later, so that no other command takes the half of it
for a migration. Each side is cleared by itself once it knows that the tables are dropped, also
while the other one is away; its side row goes last.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from ordermigrate import backup, catalog, cleanup_gates, db, ledger, sides, traces
from ordermigrate import cleanup as steps
from ordermigrate.cleanup import Progress, Stage
from ordermigrate.config import Config
from ordermigrate.control import Session
from ordermigrate.errors import Refused, Unavailable, UsageError
from ordermigrate.ledger import Run
from ordermigrate.model import Side, TableName
from ordermigrate.outcomes import Cleaning
from ordermigrate.phases import Phase
from ordermigrate.progress import (
    BackedUp,
    CleanupBegun,
    DropDecided,
    DropNoted,
    NamesRestored,
    Reporter,
    TablesDropped,
    TablesRenamed,
    TraceRemoved,
)
from ordermigrate.sides import SideRow


@dataclass(frozen=True, slots=True)
class _Work:
    """Both sides of a cleanup, and where its backup goes."""

    config: Config
    reporter: Reporter
    monolith: Session
    service: Session
    directory: Path


async def cleanup(
    config: Config,
    reporter: Reporter,
    *,
    directory: Path | None,
    confirmed: str | None,
    is_undoing: bool,
    is_dry_run: bool,
) -> Cleaning:
    """End the migration, or go on with ending it; see `migration.cleanup`."""
    async with db.open_reachable(config, "cleanup") as (monolith, service):
        if is_undoing and isinstance(service, Unavailable) and isinstance(monolith, Session):
            return await _undo_alone(monolith, service, reporter, is_dry_run=is_dry_run)
        if isinstance(monolith, Unavailable) or isinstance(service, Unavailable):
            return await _clear_reachable(monolith, service, reporter, is_dry_run=is_dry_run)
        work = _Work(config, reporter, monolith, service, directory or Path(backup.DIRECTORY))
        if not is_dry_run:  # before the rows are read: another command may be changing them
            await ledger.take_operator_lock(service)
            await backup.end_left(monolith)
        one, other = await sides.read(monolith), await sides.read(service)
        if one is None and other is None:
            return Cleaning("nothing_to_do")
        progress = await _find_progress(work, one, other)
        if is_undoing:
            return await _undo(work, progress, is_dry_run=is_dry_run)
        if one is None or other is None or (progress and progress.stage is Stage.DROPPED):
            plan = await _plan_rest(work, progress)
        else:
            plan = await _plan(work, (one, other), progress)
        if is_dry_run:
            return plan
        if not plan.is_confirmed:
            _require_confirmed(config, confirmed)
        return await _go_on(work, plan, progress)


async def _find_progress(
    work: _Work, one: SideRow | None, other: SideRow | None
) -> Progress | None:
    """Return how far the cleanup is; None where none has begun.

    Raises:
        Refused: The two databases do not belong together, or one has lost what says how far.

    """
    if one is not None and other is not None and one.run != other.run:
        await sides.read_both(work.monolith, work.service)  # raises
    if one is not None:
        progress = steps.read_progress(one)
        if other is None and (progress is None or progress.stage is not Stage.DROPPED):
            raise Refused(
                f"The monolith belongs to migration {one.run}, but the service's database does not",
                wanted="The service's database, which owns the tables",
                todo="Correct the service's DSN",
            )
        return progress
    progress = steps.read_progress(other)
    if progress is None or progress.stage not in {Stage.DROPPING, Stage.DROPPED}:
        raise Refused(
            "The service belongs to a migration, but the monolith's database does not",
            wanted="The monolith's database with which it was begun, and in it the schema "
            "ordermigrate",
            todo="Correct the monolith's DSN; if somebody has dropped the schema there, drop the "
            "monolith's tables yourself once nobody needs them, and the schema ordermigrate on "
            "the service",
        )
    await _require_cleared(work, progress)
    return replace(progress, stage=Stage.DROPPED)


async def _require_cleared(work: _Work, progress: Progress) -> None:
    """See that a monolith without our schema is the right one, and has none of the tables."""
    run = await ledger.read_run(work.service)
    known = run.monolith if run else {}
    identity = work.monolith.identity
    seen = (identity.system_identifier, identity.database_oid)
    left = [
        str(each.name)
        for each in await steps.read_members(work.monolith, [oid for oid, _ in progress.tables])
        if each in progress.members or each.name == steps.find_other_name(each)
    ]
    if (known.get("system_identifier"), known.get("database_oid")) != seen or left:
        raise Refused(
            "The monolith's database has no trace of the migration that is being cleaned up, "
            + (f"but still {', '.join(left)}" if left else "and is not the one it was begun with"),
            wanted=f"The database with which it was begun ({known.get('database')})",
            todo="Drop what is named yourself, then run the command again"
            if left
            else "Correct the monolith's DSN",
        )


async def _plan(work: _Work, rows: tuple[SideRow, SideRow], progress: Progress | None) -> Cleaning:
    """Pass the gates and tell what is to be done until nothing is left.

    Raises:
        Refused: A gate is shut.

    """
    run = await ledger.read_run(work.service)
    wait_hours = work.config.limits.cleanup_wait_hours
    if run is not None and progress and progress.stage is Stage.RENAMED:
        due = await steps.find_due(work.monolith, progress, wait_hours)
        if due:
            wait = (
                f"wait until {due}, when the tables may be dropped; `ordermigrate cleanup --undo` "
                "gives them their names back"
            )
            return Cleaning("planned", run.run, run.phase, (wait,), _file(progress), due)
    await cleanup_gates.require_open(
        work.config, work.monolith, work.service, rows, progress, work.directory
    )
    if run is None:
        message = "a migration that was cut over has no run"
        raise AssertionError(message)
    said = (
        *cleanup_gates.plan(work.config, progress, run, work.directory),
        *await traces.plan(work.monolith),
        *await traces.plan(work.service),
    )
    return Cleaning("planned", run.run, run.phase, said, _file(progress), is_confirmed=False)


async def _plan_rest(work: _Work, progress: Progress | None) -> Cleaning:
    run = await ledger.read_run(work.service)
    said = (*await traces.plan(work.monolith), *await traces.plan(work.service))
    return Cleaning("planned", run.run if run else None, Phase.CUT_OVER, said, _file(progress))


def _file(progress: Progress | None) -> str | None:
    return progress.backup.file if progress and progress.backup else None


def _require_confirmed(config: Config, confirmed: str | None) -> None:
    """Raise `UsageError` unless somebody has named the first table that will be gone."""
    name = config.tables[0].name
    try:
        is_right = confirmed is not None and TableName.parse(confirmed) == name
    except ValueError:
        is_right = False
    if not is_right:
        raise UsageError(
            f"{confirmed} is not the first table's name"
            if confirmed
            else "Nobody has confirmed that the monolith's tables may go",
            wanted=f"The name of the first table that will be dropped, {name}; nothing was done",
            todo=f"Run the command with --confirm {name}, or on a terminal",
        )


async def _go_on(work: _Work, plan: Cleaning, progress: Progress | None) -> Cleaning:
    """Do what was planned, from where the cleanup is to where it has to wait, or to its end."""
    if plan.drop_after:
        return replace(plan, outcome="renamed")
    if progress is None or progress.stage is not Stage.DROPPED:
        progress = await _set_aside(work, progress, str(plan.run))
        wait_hours = work.config.limits.cleanup_wait_hours
        due = await steps.find_due(work.monolith, progress, wait_hours)
        if due:
            done = tuple(f"rename {each} on the monolith" for each in _describe_names(progress))
            file = _file(progress)
            return replace(plan, outcome="renamed", steps=done, backup=file, drop_after=due)
        progress = await _drop(work, progress, str(plan.run))
    # Either side may have been cleared while the other was away.
    if await sides.read(work.service) is not None:
        await steps.note(work.service, progress)
        work.reporter.report(DropNoted(str(plan.run)))
    left: list[str] = []
    for session in (work.monolith, work.service):
        if await sides.read(session) is not None:
            await _clear(session, work.reporter)
        left += await traces.describe_left(session)
    done = (*plan.steps, *left)
    return replace(plan, outcome="cleaned", phase=Phase.NEW, steps=done, backup=_file(progress))


async def _set_aside(work: _Work, progress: Progress | None, run: str) -> Progress:
    """Back the tables up and give them other names, as far as that is not done."""
    if progress is None:
        progress = await _begin(work, run)
    if progress.stage is Stage.BEGUN or not await _is_backed_up(work, progress):
        progress = await _back_up(work, progress, run)
    if progress.stage is Stage.BACKED_UP:
        progress = await steps.rename(work.monolith, progress)
        await steps.note(work.service, progress)
        work.reporter.report(TablesRenamed(_describe_names(progress)))
    return progress


async def _drop(work: _Work, progress: Progress, run: str) -> Progress:
    """Drop the tables; that they are about to go is said on the service first."""
    await steps.note(work.service, replace(progress, stage=Stage.DROPPING))
    work.reporter.report(DropDecided(run))
    dropped = await steps.drop(work.monolith, progress)
    work.reporter.report(TablesDropped(tuple(name for _, name in progress.tables)))
    return dropped


async def _begin(work: _Work, run: str) -> Progress:
    found = await catalog.find_tables(work.monolith, [each.name for each in work.config.tables])
    progress = Progress(
        Stage.BEGUN, tuple((each.oid, str(each.name)) for each in found if each.oid is not None)
    )
    for session in (work.service, work.monolith):
        await steps.note(session, progress)
    work.reporter.report(CleanupBegun(run))
    return progress


async def _is_backed_up(work: _Work, progress: Progress) -> bool:
    """Whether the tables are still what they were when they were backed up, and the file, too."""
    if progress.stage is not Stage.BACKED_UP:
        return True  # they have other names by now, and the gate has looked at the file
    row = await sides.read(work.monolith)
    now = await steps.read_members(work.monolith, [oid for oid, _ in progress.tables])
    return (
        row is not None
        and progress.backup is not None
        and (row.round, now) == (progress.round, progress.members)
        and await backup.find_whole(progress.backup, work.directory) is not None
    )


async def _back_up(work: _Work, progress: Progress, run: str) -> Progress:
    row = await sides.read(work.monolith)
    members = await steps.read_members(work.monolith, [oid for oid, _ in progress.tables])
    made, seconds = await backup.make(
        work.monolith,
        work.config.dsn(Side.MONOLITH),
        members,
        backup.find_file(work.directory, run),
        work.config.limits.stall_timeout_seconds,
    )
    done = replace(
        progress,
        stage=Stage.BACKED_UP,
        round=row.round if row else None,
        backup=made,
        members=members,
    )
    for session in (work.monolith, work.service):
        await steps.note(session, done)
    work.reporter.report(BackedUp(made.file, made.bytes, seconds))
    return done


def _describe_names(progress: Progress) -> tuple[str, ...]:
    return tuple(f"{each.name} to {steps.find_other_name(each).name}" for each in progress.members)


async def _clear(session: Session, reporter: Reporter) -> None:
    """Remove every trace from one side; the schema, with the side row, last."""
    await traces.remove_triggers(session)
    async with session.transaction():
        await traces.remove_schema(session)
    reporter.report(TraceRemoved(session.side.value))


async def _clear_reachable(
    monolith: Session | Unavailable,
    service: Session | Unavailable,
    reporter: Reporter,
    *,
    is_dry_run: bool,
) -> Cleaning:
    """Clear the side that is there, if it knows that the tables are dropped.

    Raises:
        Unavailable: The other side is still to be cleared.

    """
    for session, away in ((monolith, service), (service, monolith)):
        if not (isinstance(session, Session) and isinstance(away, Unavailable)):
            continue
        if not is_dry_run:
            await ledger.take_operator_lock(session)
        row = await sides.read(session)
        progress = steps.read_progress(row)
        if row is None or progress is None or progress.stage is not Stage.DROPPED:
            raise away
        if is_dry_run:
            plan = tuple(await traces.plan(session))
            return Cleaning("planned", row.run, Phase.CUT_OVER, plan, _file(progress))
        await _clear(session, reporter)
        raise Unavailable(
            f"The {session.side} is clean; the {session.side.other} is not to be reached: "
            f"{away.fact}",
            wanted="Both sides without a trace of the migration",
            todo="Run `ordermigrate cleanup` again when it is back; it clears what is left there",
        )
    message = "both sides were reached"
    raise AssertionError(message)


async def _undo(work: _Work, progress: Progress | None, *, is_dry_run: bool) -> Cleaning:
    """Give the tables their names back and take the notes off both sides."""
    run: Run | None = await ledger.read_run(work.service)
    row = await sides.read(work.service)
    is_noted = steps.read_progress(row) is not None
    if progress is not None and progress.stage is Stage.DROPPED:
        raise Refused(
            "The monolith's tables are dropped already",
            wanted="A cleanup that has not dropped them",
            todo=f"Run `ordermigrate cleanup` to its end; the rows are in {_file(progress)}",
        )
    if run is None or (progress is None and not is_noted):
        return Cleaning("nothing_to_do", run.run if run else None, run.phase if run else Phase.NEW)
    names = tuple(f"give {name} its name back" for _, name in progress.tables) if progress else ()
    plan = Cleaning("planned", run.run, run.phase, names, _file(progress))
    if is_dry_run:
        return plan
    if progress is not None:
        done = await steps.undo(work.monolith, progress)
        work.reporter.report(NamesRestored(tuple(done)))
    await sides.note_intent(work.service, None)
    return replace(plan, outcome="undone")


async def _undo_alone(
    monolith: Session, lost: Unavailable, reporter: Reporter, *, is_dry_run: bool
) -> Cleaning:
    """Give the tables their names back while the service is away: they may be all that is left.

    Raises:
        Unavailable: No cleanup has renamed them, or they are dropped: then the service is needed.

    """
    row = await sides.read(monolith)
    progress = None if row is None else steps.read_progress(row)
    if row is None or progress is None or progress.stage is Stage.DROPPED:
        raise lost
    names = tuple(f"give {name} its name back" for _, name in progress.tables)
    plan = Cleaning("planned", row.run, Phase.CUT_OVER, names, _file(progress))
    if is_dry_run:
        return plan
    reporter.report(NamesRestored(tuple(await steps.undo(monolith, progress))))
    return replace(plan, outcome="undone")
