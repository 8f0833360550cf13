"""How rows go back: the family's maps turned round, for the time after a cutover.

A column that went over as it is comes back as it is. One that the configuration computes has
nothing to come back from: rows that the monolith had keep its value there, new ones get the
column's default. Where there is none, that is told before the owner changes, not after.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from psycopg import sql

from ordermigrate.config import ColumnRule
from ordermigrate.mapping import pair_as_is, pair_by_rule
from ordermigrate.model import Column, ColumnPair, Table, TableMap, quote_name

_ACTION = re.compile(r" ON (?:DELETE|UPDATE) (?:CASCADE|SET NULL|SET DEFAULT)")


def reverse_maps(maps: Sequence[TableMap]) -> list[TableMap]:
    """Return the maps from the service back to the monolith, in the same order of tables."""
    return [_reverse(each) for each in maps]


def find_obstacles(maps: Sequence[TableMap]) -> list[str]:
    """Say in sentences what would keep rows of the service from going back to the monolith.

    Args:
        maps: From the monolith to the service.

    """
    said: list[str] = []
    for each in maps:
        back = _reverse(each)
        covered = {pair.name for pair in back.pairs}
        said.extend(
            f"column {quote_name(column.name)} of {each.source.name} on the monolith has no "
            "default, and a row of the service says nothing of it"
            for column in each.source.columns
            if column.name not in covered and column.is_not_null and not _has_default(column)
        )
        if len(back.key) != len(each.target.primary_key) or not back.key:
            said.append(
                f"the primary key of {each.target.name} on the service does not go back to "
                f"{each.source.name} on the monolith as it is"
            )
        if each.where.strip().lower() != "true":
            said.append(
                f"only a part of {each.source.name} is migrated (where = {each.where!r}), and "
                "a table can have one owner only"
            )
    return said


def find_cascades(maps: Sequence[TableMap]) -> list[str]:
    """Say in sentences which tables the monolith changes along with the family's.

    Once the service owns the family, its changes come to the monolith row by row, a changed key as
    a deletion and a new row: what then goes along is not what the application has asked for.

    Args:
        maps: From the monolith to the service.

    """
    family = {each.source.name for each in maps}
    return [
        f"{key.table}, which is not in the family, is changed by foreign key {key.name} when rows "
        f"of {each.source.name} are: {action[0].strip()}"
        for each in maps
        for key in each.source.incoming_keys
        if key.table not in family and (action := _ACTION.search(key.definition))
    ]


def find_arriving_cascades(maps: Sequence[TableMap]) -> list[str]:
    """Say in sentences whose changes on the monolith would change the family's rows there.

    Until the cutover such a change is captured like any other. After it the fence refuses it.

    Args:
        maps: From the monolith to the service.

    """
    family = {each.source.name for each in maps}
    return [
        f"once the service owns {each.source.name}, rows of {key.references} on the monolith that "
        f"rows of it refer to can be neither deleted nor given another key there: {key.name} "
        f"({action[0].strip()}) would change what is fenced off"
        for each in maps
        for key in each.source.foreign_keys
        if key.references not in family and (action := _ACTION.search(key.definition))
    ]


def find_narrow_columns(maps: Sequence[TableMap]) -> list[str]:
    """Say in sentences which columns of the monolith have no room for all that the service's have.

    Args:
        maps: From the monolith to the service.

    """
    said: list[str] = []
    for each in maps:
        for pair in each.pairs:
            mine = each.source.column(pair.origin or "")
            theirs = each.target.column(pair.name)
            if mine is None or theirs is None or pair.is_frozen or pair_as_is(theirs, mine):
                continue
            said.append(
                f"{mine.name} of {each.source.name} is {mine.type_name} on the monolith and "
                f"{theirs.type_name} on the service: a value that only the service has room for "
                "would stop the rounds back, and a rollback, until it is changed"
            )
    return said


def _has_default(column: Column) -> bool:
    return bool(column.identity or column.generated or column.has_default)


def _reverse(table: TableMap) -> TableMap:
    names = {
        pair.origin: pair.name
        for pair in table.pairs
        if pair.origin is not None and not pair.is_frozen
    }
    pairs: list[ColumnPair] = []
    notes: list[str] = []
    for column in table.source.columns:
        origin = table.target.column(names[column.name]) if column.name in names else None
        if origin is None:
            if not column.generated:
                notes.append(
                    f"{column.name} does not come from the service: rows keep its value, new ones "
                    "get its default"
                )
            continue
        pair = _come_back(origin, column, table.target)
        if column.generated:
            pair = replace(pair, is_generated=True)
        pairs.append(replace(pair, origin=origin.name))
    back = {name: origin for origin, name in names.items()}
    return TableMap(
        source=table.target,
        target=table.source,
        pairs=tuple(pairs),
        key=tuple(back[name] for name in table.target.primary_key if name in back),
        where="true",
        status=back.get(table.status or ""),
        user=back.get(table.user or ""),
        created=back.get(table.created or ""),
        updated=back.get(table.updated or ""),
        notes=tuple(notes),
    )


def _come_back(origin: Column, column: Column, source: Table) -> ColumnPair:
    """Return the pair of a column that held all of the other's values; the way back is narrower.

    A value that is too large for it is refused by the column itself, and nothing is rounded.
    """
    pair = pair_as_is(origin, column)
    if pair is not None:
        return pair
    name = sql.Identifier(origin.name).as_string(None)
    return pair_by_rule(column, ColumnRule(sql=name), source)
