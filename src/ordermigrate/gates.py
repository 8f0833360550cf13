"""The gates that every changing verb passes before it touches anything.

Both databases are reached and belong together, one command at a time is at work, the tables exist
and fit, our rights suffice, and the rows on the service are ours.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

from ordermigrate import (
    capture,
    catalog,
    db,
    families,
    ledger,
    locks,
    mapping,
    preflight,
    reversing,
    sides,
)
from ordermigrate.config import Config
from ordermigrate.control import Session
from ordermigrate.errors import Refused
from ordermigrate.ledger import Run
from ordermigrate.model import Direction, Side, Table, TableMap, TableName
from ordermigrate.phases import Phase


@dataclass(frozen=True, slots=True)
class Ground:
    """Both sessions, the tables as they are, and the run if there is one."""

    config: Config
    monolith: Session
    service: Session
    maps: list[TableMap]
    run: Run | None


@contextlib.asynccontextmanager
async def stand_on_ground(
    config: Config, command: str, steps: list[str], *, is_dry_run: bool = False
) -> AsyncIterator[Ground]:
    """Open both sides and pass the gates that every changing verb has in common."""
    async with db.open_pair(config, command) as (monolith, service):
        run = await read_run(monolith, service)
        if not is_dry_run:
            await ledger.take_operator_lock(service)
        await require_tables(monolith, [each.name for each in config.tables], service)
        is_absent = await _apply_family(config, service, steps, is_dry_run=is_dry_run)
        if is_absent and is_dry_run:
            yield Ground(config, monolith, service, [], None)
            return
        await require_tables(service, [each.target for each in config.tables], service)
        await preflight.require_rights(monolith, service, config.tables)
        maps = await read_maps(config, monolith, service)
        preflight.require_sound_tables(maps)
        preflight.require_labels(maps)
        yield Ground(config, monolith, service, maps, run)


async def require_tables(session: Session, names: Sequence[TableName], service: Session) -> None:
    """Raise unless the tables are there and readable; of a copied one, say what became of it.

    Raises:
        UsageError: A name is no table, and never was one of this migration.
        Refused: A table was renamed or dropped since the copy, or may not be read.

    """
    if await ledger.read_run(service) is not None:
        known = (await ledger.read_structure(service, session.side) or {"tables": {}})["tables"]
        for each in await catalog.find_tables(session, names):
            if each.oid is None and str(each.name) in known:
                now = await catalog.find_name(session, known[str(each.name)]["oid"])
                raise _explain_gone(session, each.name, now)
    await catalog.require_tables(session, names)


def _explain_gone(session: Session, name: TableName, now: str | None) -> Refused:
    return Refused(
        f"{name} is not on the {session.side} any more: it was "
        + (f"renamed to {now}" if now else "dropped"),
        wanted="The tables that were copied, under the names that they had then",
        todo=f"Give {now} its old name and schema back" + "; nothing is lost, what was written "
        "meanwhile is in the change logs"
        if now
        else "Create it again and begin anew with `ordermigrate copy --restart`, or give the "
        "migration up with `ordermigrate cancel`",
    )


async def read_run(monolith: Session, service: Session) -> Run | None:
    """Return the run on record, after seeing that these two databases belong to it.

    Raises:
        Refused: They do not, or not to the same one.
        UsageError: The two DSNs are swapped.

    """
    one, _ = await sides.read_both(monolith, service)
    run = await ledger.read_run(service)
    if run is None or one is not None:
        return run
    # The service alone has a row: a preparation was cut short, or this is another monolith.
    identity = monolith.identity
    known = {key: run.monolith.get(key) for key in ("system_identifier", "database_oid")}
    seen = {
        "system_identifier": identity.system_identifier,
        "database_oid": identity.database_oid,
    }
    if run.phase is not Phase.PREPARED or known != seen:
        raise Refused(
            f"The service belongs to migration {run.run}, but the monolith's database "
            f"{identity.database} does not",
            wanted="The database with which it was begun "
            f"({run.monolith.get('database')}), and in it the schema ordermigrate",
            todo="Correct the monolith's DSN; if it is the right database and somebody has dropped "
            "the schema, or restored it from before, `ordermigrate cancel` removes the rest",
        )
    return run


async def read_maps(
    config: Config,
    monolith: Session,
    service: Session,
    direction: Direction = Direction.FORWARD,
) -> list[TableMap]:
    """Read the family's tables on both sides and pair them up, the source's first."""
    tables = []
    parents = parents_of(config) if direction is Direction.FORWARD else []
    await catalog.require_tables(monolith, parents)
    for session, names in (
        (monolith, list(dict.fromkeys([*(each.name for each in config.tables), *parents]))),
        (service, [each.target for each in config.tables]),
    ):
        async with locks.locked_snapshot(session, names):
            tables.append(await catalog.read_tables(session, names))
    await preflight.require_sound_expressions(monolith, config.tables)
    known = {name: tables[0][name] for name in parents}
    maps = mapping.build_maps(config.tables, tables[0], tables[1], known)
    if direction is Direction.REVERSE:
        return reversing.reverse_maps(maps)
    await preflight.require_followable(monolith, config.tables, maps)
    return maps


def parents_of(config: Config) -> list[TableName]:
    """Return the monolith's tables that columns depend on."""
    return sorted(
        {
            rule.depends.table
            for table in config.tables
            for rule in table.columns.values()
            if rule.depends is not None
        }
    )


async def read_family(config: Config, session: Session) -> list[Table]:
    """Describe the family as it is on one side."""
    return list((await catalog.read_tables(session, names_on(config, session.side))).values())


def names_on(config: Config, side: Side) -> list[TableName]:
    """Return the family's names on one side."""
    return [each.name if side is Side.MONOLITH else each.target for each in config.tables]


async def _apply_family(
    config: Config, service: Session, steps: list[str], *, is_dry_run: bool
) -> bool:
    """Create the service's tables by the family's SQL where none of them is there yet.

    Returns whether they were absent.
    """
    found = await catalog.find_tables(service, [each.target for each in config.tables])
    if config.family is None or any(each.oid is not None for each in found):
        return False
    folder = families.find_family(config.family)
    if folder is None:
        raise Refused(
            f"There is no family named {config.family}",
            wanted=f"One of: {', '.join(families.list_families())}",
            todo="Correct `family` in the configuration, or leave it out and create the service's "
            "tables yourself",
        )
    steps.append(f"create the service's tables by the family {config.family}")
    if not is_dry_run:
        async with service.transaction():
            await service.run_script(families.read_script(folder / "service.sql"))
    return True


async def require_empty(ground: Ground) -> None:
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


async def require_known_rows(
    service: Session, maps: Sequence[TableMap], *, is_restart: bool = False
) -> None:
    """Refuse a target whose rows are not just those that chunks have brought.

    To begin again, it is enough that there are no others among them.
    """
    totals = await ledger.read_totals(service)
    for each in maps:
        if each.label not in totals:
            continue
        unknown, missing = await ledger.count_unknown_rows(service, each.label, each.target.name)
        if unknown or (missing and not is_restart):
            raise Refused(
                f"{each.target.name} on the service is not as the copy left it: {unknown:,} rows "
                f"are not of its making, {missing:,} that it brought are gone or changed",
                wanted="A table that nobody but ordermigrate writes to",
                todo="Find out who wrote to it; then take the migration off with `ordermigrate "
                "cancel`, empty the table, and begin anew with `ordermigrate copy`",
            )


async def require_capturable(monolith: Session, maps: Sequence[TableMap]) -> None:
    """Refuse tables whose writes cannot be captured."""
    await capture.require_no_subscription(monolith, [each.source for each in maps])
