"""What must be true of both databases before anything of ours is put into them.

Every finding is looked for, and all of them are told at once: an operator should not have to
learn of them one by one. What is looked for is found by the finders of `checks_tables`, the same
ones that the command `preflight` tells of beforehand.
"""

from __future__ import annotations

from collections.abc import Sequence

from ordermigrate import catalog
from ordermigrate.checks_tables import (
    find_faulty_sql,
    find_hidden_rows,
    find_invalid_indexes,
    find_no_schema,
    find_strange_owners,
    find_unlogged,
    find_write_rights,
)
from ordermigrate.config import TableConfig
from ordermigrate.control import Session
from ordermigrate.errors import Refused, UsageError
from ordermigrate.findings import Spot
from ordermigrate.model import Side, TableMap, quote_name


async def require_visible_rows(
    monolith: Session, service: Session, configured: Sequence[TableConfig]
) -> None:
    """Raise `Refused` where row level security would hide rows from us."""
    sources = await catalog.find_tables(monolith, [each.name for each in configured])
    targets = await catalog.find_tables(service, [each.target for each in configured])
    spots = find_hidden_rows(Side.MONOLITH, sources) + find_hidden_rows(Side.SERVICE, targets)
    _refuse(_tell(spots), "We would not see every row")


async def require_rights(
    monolith: Session, service: Session, configured: Sequence[TableConfig]
) -> None:
    """Raise `Refused` unless we may read the monolith's tables and own the service's."""
    sources = await catalog.find_tables(monolith, [each.name for each in configured])
    targets = await catalog.find_tables(service, [each.target for each in configured])
    spots = [
        *find_hidden_rows(Side.MONOLITH, sources),
        *find_hidden_rows(Side.SERVICE, targets),
        *find_write_rights(Side.SERVICE, targets),
        *find_strange_owners(Side.SERVICE, targets),
        *find_strange_owners(Side.MONOLITH, sources),
        *await find_no_schema(monolith),
        *await find_no_schema(service),
    ]
    _refuse(_tell(spots), "Our rights do not suffice")


async def require_sound_expressions(monolith: Session, configured: Sequence[TableConfig]) -> None:
    """Raise `UsageError` where SQL of the configuration is none that the monolith understands."""
    spots = await find_faulty_sql(monolith, configured)
    if spots:
        raise UsageError(
            "The configuration holds SQL that the monolith does not accept: "
            + "; ".join(_tell(spots)),
            wanted="Expressions over the columns of the table's own row; `where` is a condition",
            todo="Correct them under [[tables]]",
        )


def require_followable(configured: Sequence[TableConfig]) -> None:
    """Raise `Refused` where a column is made from what no change log of its table tells of."""
    _refuse(
        [
            f"column {quote_name(name)} of {table.target} depends on {rule.depends.table}, whose "
            "changes this version does not capture (make it `frozen`, or leave it out)"
            for table in configured
            for name, rule in table.columns.items()
            if rule.depends is not None
        ],
        "The configuration cannot be followed",
    )


def require_sound_tables(maps: Sequence[TableMap]) -> None:
    """Raise `Refused` where a table itself could not hold what it has or is brought."""
    sources, targets = [each.source for each in maps], [each.target for each in maps]
    spots = [
        *find_unlogged(Side.MONOLITH, sources),
        *find_unlogged(Side.SERVICE, targets),
        *find_invalid_indexes(Side.SERVICE, targets),
    ]
    _refuse(_tell(spots), "The tables are not fit to be copied")


def _tell(spots: Sequence[Spot]) -> list[str]:
    return [spot.with_todo for spot in spots]


def _refuse(findings: list[str], fact: str) -> None:
    if findings:
        raise Refused(
            f"{fact}: " + "; ".join(findings),
            wanted="All of it settled before the migration touches anything",
            todo="Settle each finding and run the command again",
            findings=findings,
        )
