"""Schema: the service's tables made from the monolith's, both compared, and each object looked for.

`apply` makes all or nothing, in one transaction, and only where none of the tables is there: it
never changes a table, a type or a function that somebody else has made.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ordermigrate import (
    catalog,
    db,
    derivation,
    differences,
    families,
    ledger,
    locks,
    needs,
    objects,
)
from ordermigrate.config import Config
from ordermigrate.control import Session
from ordermigrate.derivation import Derived
from ordermigrate.differences import Details, Difference
from ordermigrate.errors import OrdermigrateError, Refused, UsageError
from ordermigrate.ledger import Run
from ordermigrate.model import Side, Table, TableName
from ordermigrate.needs import Needed
from ordermigrate.objects import Looked
from ordermigrate.partitioning import Partitioning
from ordermigrate.sqlstates import ConnectionLost

COMMAND = "schema"


@dataclass(frozen=True, slots=True)
class Applied:
    """What `apply` has done, or would do."""

    outcome: str
    derived: Derived | None
    steps: tuple[str, ...]
    run: Run | None


async def derive(config: Config, wanted: Sequence[Partitioning]) -> Derived:
    """Derive the service's DDL; the service itself is not asked.

    Raises:
        OrdermigrateError: A table is not there, pg_dump is not, or the monolith is away.

    """
    async with db.opened(config, Side.MONOLITH, COMMAND) as monolith:
        return await _derive(config, monolith, wanted)


async def _derive(config: Config, monolith: Session, wanted: Sequence[Partitioning]) -> Derived:
    names = [each.name for each in config.tables]
    await catalog.require_tables(monolith, names)
    tables = await _read(monolith, names)
    return await derivation.derive(
        monolith,
        config.dsn(Side.MONOLITH),
        config.tables,
        tables,
        wanted,
        config.limits.stall_timeout_seconds,
    )


async def _read(session: Session, names: Sequence[TableName]) -> dict[TableName, Table]:
    async with locks.locked_snapshot(session, names):
        return await catalog.read_tables(session, names)


async def apply(
    config: Config, wanted: Sequence[Partitioning], *, is_dry_run: bool = False
) -> Applied:
    """Create the service's tables where there are none of them.

    Raises:
        Refused: Some are there and some are not, or something else has a name that is needed.

    """
    async with db.open_pair(config, COMMAND) as (monolith, service):
        targets = await catalog.find_tables(service, [each.target for each in config.tables])
        there = [str(each.name) for each in targets if each.oid is not None]
        run = await ledger.read_run(service)
        if len(there) == len(targets):
            return Applied("already_there", None, (), run)
        if there:
            raise Refused(
                f"{', '.join(there)} is on the service already, and the rest of the family is not",
                wanted="All of the tables, or none of them: the script makes them together",
                todo="Look at `ordermigrate schema --diff`; drop what is there if nobody needs it, "
                "or create the rest by hand from `ordermigrate schema`",
            )
        derived = await _derive(config, monolith, wanted)
        missing = await _find_missing(service, derived.needed)
        derived = replace(derived, needed=missing)
        steps = _describe(config, derived)
        if not is_dry_run:
            await ledger.take_operator_lock(service)
            await _run(service, derived)
        return Applied("planned" if is_dry_run else "applied", derived, steps, run)


async def _find_missing(service: Session, wanted: Sequence[Needed]) -> tuple[Needed, ...]:
    """Return what is not on the service; refuse what is there and is another."""
    present = await needs.find_present(service, wanted)
    others = [
        f"{each.kind} {each.name}"
        for each in wanted
        if each.name in present and present[each.name] != each.definition
    ]
    if others:
        raise Refused(
            f"The service has another {', another '.join(others)}",
            wanted="Types and functions that are what they are on the monolith, or are not there",
            todo="Drop or rename what is there, or create the tables by hand from `ordermigrate "
            "schema`",
            findings=others,
        )
    return tuple(each for each in wanted if each.name not in present)


def _describe(config: Config, derived: Derived) -> tuple[str, ...]:
    steps = [f"create schema {each} unless it is there" for each in derived.schemas]
    steps += [f"create {each.kind} {each.name}" for each in derived.needed]
    steps += [f"create table {each.target}" for each in config.tables]
    return (*steps, *derived.notes)


async def _run(service: Session, derived: Derived) -> None:
    try:
        async with service.transaction():
            await service.set_local("check_function_bodies", "off")
            await service.run_script(derived.write().replace(derivation.HEAD, "", 1))
    except (ConnectionLost, UsageError):
        raise
    except OrdermigrateError as error:
        raise Refused(
            f"The service does not take the derived schema: {error.fact}",
            wanted="A server and a role that can have what the monolith has",
            todo="See what the message names, then correct `ordermigrate schema`'s output by hand "
            "and run that; nothing was created",
        ) from error


async def diff(config: Config) -> tuple[list[Difference], Run | None]:
    """Compare both sides' tables.

    Raises:
        UsageError: The monolith lacks a table.

    """
    async with db.open_pair(config, COMMAND) as (monolith, service):
        names = [each.name for each in config.tables]
        await catalog.require_tables(monolith, names)
        found = await catalog.find_tables(service, [each.target for each in config.tables])
        sources = await _read(monolith, names)
        there = [each.name for each in found if each.oid is not None]
        if there:
            await catalog.require_tables(service, there)
        targets = await _read(service, there) if there else {}
        details = {
            Side.MONOLITH: await _read_details(monolith, sources),
            Side.SERVICE: await _read_details(service, targets),
        }
        run = await ledger.read_run(service)
    return differences.compare(config.tables, sources, targets, details), run


async def _read_details(session: Session, tables: dict[TableName, Table]) -> Details:
    names = {each.oid: str(each.name) for each in tables.values()}

    async def read(block: str) -> list[tuple[str, Any]]:
        rows = await session.fetch_all("schema", block, list(names))
        return [(names[row.table_oid], row) for row in rows]

    return Details(
        {(table, row.name): row.definition for table, row in await read("read_defaults")},
        {table: row.definition for table, row in await read("read_partition_keys")},
        {(table, row.name): row.body for table, row in await read("read_bodies")},
    )


async def verify(config: Config, path: Path | None) -> tuple[list[Looked], Run | None]:
    """Look on the service for every object of the family's list, or of another.

    Raises:
        UsageError: There is no list.

    """
    listed = objects.read_list(path or _find_list(config))
    async with db.opened(config, Side.SERVICE, COMMAND) as service:
        return await objects.look(service, listed), await ledger.read_run(service)


def _find_list(config: Config) -> Path:
    folder = families.find_family(config.family) if config.family else None
    if folder is None:
        raise UsageError(
            f"There is no family named {config.family}"
            if config.family
            else "The configuration names no family, whose objects could be looked for",
            wanted="A list of what the schema has to have: one object a line",
            todo="Set family = in the configuration, or name a list with --objects FILE",
        )
    return folder / objects.FILE
