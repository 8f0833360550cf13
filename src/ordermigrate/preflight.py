"""What must be true of both databases before anything of ours is put into them.

Every finding is looked for, and all of them are told at once: an operator should not have to
learn of them one by one. What is looked for is found by the finders of `checks_tables`, the same
ones that the command `preflight` tells of beforehand.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from psycopg import sql

from ordermigrate import catalog, expressions
from ordermigrate.checks_tables import (
    find_faulty_sql,
    find_hidden_rows,
    find_invalid_indexes,
    find_lacking_labels,
    find_no_schema,
    find_strange_owners,
    find_unlogged,
    find_write_rights,
)
from ordermigrate.config import ColumnRule, TableConfig
from ordermigrate.control import Session
from ordermigrate.errors import Refused, UsageError
from ordermigrate.findings import Spot
from ordermigrate.model import Side, TableMap, TableName, quote_name

# Without one of these words an expression reads no other table.
_QUERY = re.compile(r"\b(select|table)\b", re.IGNORECASE)


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
    parents = [
        rule.depends.table
        for each in configured
        for rule in each.columns.values()
        if rule.depends is not None
    ]
    names = dict.fromkeys([*(each.name for each in configured), *parents])
    sources = await catalog.find_tables(monolith, list(names))
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


async def require_followable(
    monolith: Session, configured: Sequence[TableConfig], maps: Sequence[TableMap]
) -> None:
    """Raise `UsageError` where a row could become another one without a trace in a change log."""
    by_name = {each.source.name: each for each in maps}
    faults: list[str] = []
    for table in configured:
        if table.where.strip().lower() != "true":
            faults += await _find_far_filter(monolith, table)
        for name, rule in table.columns.items():
            if rule.depends is not None:
                faults += await _find_unfit_keys(
                    monolith, by_name[table.name], name, rule.depends.table, rule.depends.keys
                )
            if not rule.frozen and _QUERY.search(rule.sql):
                faults += await _find_far_reads(monolith, table, by_name[table.name], name, rule)
    if faults:
        raise UsageError(
            "The configuration holds SQL whose value can change without a trace in the change "
            "logs: " + "; ".join(faults),
            wanted="Filters over the row's own columns; columns that read another table either "
            "`frozen`, or with all that they read under `depends`",
            todo="Correct them under [[tables]]",
        )


async def _find_far_filter(monolith: Session, table: TableConfig) -> list[str]:
    reads = await expressions.find_reads(
        monolith, f"SELECT true AS c1 {_origin(table)} WHERE ({table.where}\n)"
    )
    said = [f"reads {other}" for other in sorted(reads.tables - {table.name})]
    said += [f"uses {function}, which need not always say the same" for function in reads.unsteady]
    return [f"where of {table.name}, {table.where!r}, {each}" for each in said]


async def _find_far_reads(
    monolith: Session, config: TableConfig, table: TableMap, name: str, rule: ColumnRule
) -> list[str]:
    reads = await expressions.find_reads(monolith, f"SELECT ({rule.sql}\n) AS c1 {_origin(config)}")
    known = {config.name}
    declared: set[tuple[TableName, str]] = set()
    if rule.depends is not None:
        known.add(rule.depends.table)
        declared = {(rule.depends.table, column) for column in rule.depends.columns}
        declared |= {
            (each.parent.name, column)
            for each in table.depends
            if each.parent.name == rule.depends.table
            for column in each.parent.primary_key
        }
    said = [f"reads {other}" for other in sorted(reads.tables - known)]
    beyond = frozenset(
        each for each in reads.columns - declared if each[0] in known and each[0] != config.name
    )
    if beyond:
        said.append(f"reads {expressions.describe(beyond)}")
    return [
        f"columns.{quote_name(name)} of {config.name} {each}, which `depends` does not name"
        for each in said
    ]


async def _find_unfit_keys(
    monolith: Session, table: TableMap, name: str, parent: TableName, keys: str
) -> list[str]:
    """Say what is wrong with the query for the keys that change with a parent's row.

    It is asked when the parent's row is as it is now, or gone; so it may not read it.
    """
    (parent_table,) = {
        each.parent.name: each.parent for each in table.depends if each.parent.name == parent
    }.values()
    key = ", ".join(sql.Identifier(each).as_string(None) for each in table.source.primary_key)
    parent_key = ", ".join(
        sql.Identifier("p", each).as_string(None) for each in parent_table.primary_key
    )
    resolved = (
        f"SELECT resolved.* FROM (SELECT {parent_key} FROM {parent.sql.as_string(None)} AS p) "  # noqa: S608
        f"AS changed CROSS JOIN LATERAL (\n{keys}\n) AS resolved"
    )
    place = f"columns.{quote_name(name)}.depends.keys of {table.source.name}"
    own = f"SELECT {key} FROM {table.source.name.sql.as_string(None)}"  # noqa: S608
    if said := await monolith.find_fault(f"{own} UNION ALL {resolved}"):
        return [f"{place}, {keys!r}, does not give keys of {table.source.name}: {said}"]
    # Without the parent itself, of which `changed` has the key.
    types = [(each, parent_table.column(each)) for each in parent_table.primary_key]
    nothing = ", ".join(
        f"NULL::{column.type_name} AS {sql.Identifier(each).as_string(None)}"
        for each, column in types
        if column is not None
    )
    reads = await expressions.find_reads(
        monolith,
        f"SELECT true AS c1 FROM (SELECT {nothing}) AS changed "  # noqa: S608
        f"CROSS JOIN LATERAL (\n{keys}\n) AS resolved",
    )
    return [
        f"{place} reads {other}: a row of it may be gone or changed by the time it is asked"
        for other in sorted(reads.tables - {table.source.name})
    ]


def _origin(table: TableConfig) -> str:
    alias = sql.Identifier(table.name.name)
    return sql.SQL("FROM {} AS {}").format(table.name.sql, alias).as_string(None)


def require_labels(maps: Sequence[TableMap]) -> None:
    """Raise `Refused` where an enum of the service lacks a label that the monolith's has."""
    _refuse(_tell(find_lacking_labels(maps)), "The service cannot hold every value of the monolith")


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
