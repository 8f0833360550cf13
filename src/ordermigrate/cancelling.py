"""Cancel: before cutover, remove every trace from both sides; the monolith is as it was.

The monolith comes first: its writers are what matters. That it has begun is said on the service's
side row before anything is removed, so a cancellation that is cut off can be finished by running
it again, and no other command takes the half of it for a migration.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

from psycopg import sql

from ordermigrate import catalog, db, indexes, ledger, quarantine, sides, traces, traffic
from ordermigrate.config import Config
from ordermigrate.control import Session
from ordermigrate.errors import Refused
from ordermigrate.model import Side, Table, TableName
from ordermigrate.outcomes import Cancellation
from ordermigrate.progress import Cancelled, Reporter


async def cancel(
    config: Config, reporter: Reporter, *, is_dropping: bool, is_dry_run: bool
) -> Cancellation:
    """Remove the migration; see `migration.cancel`."""
    async with db.open_pair(config, "cancel") as (monolith, service):
        if not is_dry_run:  # before the rows are read: another command may be changing them
            await ledger.take_operator_lock(service)
        one, other = await sides.read(monolith), await sides.read(service)
        if one is None and other is None:
            return Cancellation(None, (), is_dry_run)
        if one is not None and other is not None and one.run != other.run:
            await sides.read_both(monolith, service)  # raises
        run = (one or other).run  # type: ignore[union-attr]  # one of them is there
        if other is not None:
            await _require_unused_service(one, other, (monolith, service))
        if one is not None and other is None:
            await sides.read_both(monolith, service)  # raises: the service is another database
        steps = await _plan(config, monolith, service, is_dropping=is_dropping)
        if is_dry_run:
            return Cancellation(run, tuple(steps), is_dry_run=True)
        if other is not None:
            await _begin(config, service, other, is_dropping=is_dropping)
        if one is not None:
            steps += await _clear(monolith)
        if other is not None:
            steps += await _clear_service(config, service, reporter, is_dropping=is_dropping)
        reporter.report(Cancelled(run, tuple(steps)))
        return Cancellation(run, tuple(steps), is_dry_run=False)


async def _require_unused_service(
    one: sides.SideRow | None, other: sides.SideRow, sessions: tuple[Session, Session]
) -> None:
    if other.is_hot:
        raise Refused(
            "The service owns the tables already",
            wanted="A migration in which the monolith is the owner",
            todo="Make the monolith the owner again first",
        )
    if one is not None:  # otherwise reads cannot be led back any more
        sides.find_direction(one, other)  # raises where nobody owns the tables: first one has to
        await traffic.require_none(sessions)
        if refused := await quarantine.count(sessions[0]):
            raise Refused(
                f"Rows that the monolith has refused are in quarantine there: {refused}",
                wanted="Nothing that only the migration knows of",
                todo="Run `ordermigrate rollback --retry-quarantine` when their cause is gone, or "
                "`ordermigrate rollback --discard-quarantine`",
            )


async def _plan(
    config: Config, monolith: Session, service: Session, *, is_dropping: bool
) -> list[str]:
    steps = [*await traces.plan(monolith), *await traces.plan(service)]
    if await ledger.has_objects(service):
        steps.extend(
            f"drop {each.target} on the service"
            if is_dropping
            else f"bring back what was off on {each.target}"
            for each in config.tables
        )
    return steps


async def _clear(session: Session) -> list[str]:
    """Bring back what is recorded as off, take our triggers off, then remove our schema.

    Capture and fence may be on either side, on or off: after a rollback both have both. Where the
    fence is on, it stays until all is back. Nobody's write waits longer than a moment.
    """
    notes: list[str] = []
    if await ledger.has_records(session):
        async with session.transaction():
            await session.set_local("statement_timeout", "0")
            await sides.show_pass(session)
            notes = await indexes.unsilence(session, await ledger.read_silenced(session))
    await traces.remove_triggers(session)
    async with session.transaction():
        await traces.remove_schema(session)
    return notes + await traces.describe_left(session)


async def _clear_service(
    config: Config, service: Session, reporter: Reporter, *, is_dropping: bool
) -> list[str]:
    """Drop the family's tables, or bring back what was off and take the fence down."""
    tables = await _read_present(service, [each.target for each in config.tables])
    if is_dropping:
        async with service.transaction():
            await _drop_tables(service, tables)
            await sides.remove(service)
        return []
    await indexes.restore(config, Side.SERVICE, reporter)
    return await _clear(service)


async def _drop_tables(service: Session, tables: Sequence[Table]) -> None:
    if tables:  # at once, so that they may depend on each other, and without CASCADE
        names = sql.SQL(", ").join(table.name.sql for table in tables)
        await service.run(sql.SQL("DROP TABLE {}").format(names).as_string(None))


async def _begin(
    config: Config, service: Session, row: sides.SideRow, *, is_dropping: bool
) -> None:
    """Say that the cancellation has begun, after seeing that nothing outside is in its way.

    From then on no change of owner can begin, and none is under way: the row says so.
    """
    if is_dropping:
        await _require_droppable(config, service)
    if not await sides.begin_cancelling(service, row):
        raise Refused(
            "The service's row has changed meanwhile: its owner is changing, or has changed",
            wanted="A migration in which the monolith is the owner, and stays so",
            todo="See `ordermigrate status`",
        )


class _Tried(Exception):
    """Undoes what was only tried."""


async def _require_droppable(config: Config, service: Session) -> None:
    """Raise `Refused` where something outside the family depends on its tables on the service."""
    tables = await _read_present(service, [each.target for each in config.tables])
    with contextlib.suppress(_Tried):
        async with service.transaction():
            await _drop_tables(service, tables)
            raise _Tried


async def _read_present(session: Session, names: Sequence[TableName]) -> list[Table]:
    found = await catalog.find_tables(session, names)
    present = [each.name for each in found if each.oid is not None]
    return list((await catalog.read_tables(session, present)).values()) if present else []
