"""Checks of what stands around the family: foreign keys, triggers, views, functions, publications.

What crosses the family's border works inside one database and ends at the cutover. Foreign keys,
views and publications are the catalog's word; what functions do is read from their text, which is
a heuristic (see `bodies`) and said as such.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ordermigrate.bodies import Function, Library, Relation
from ordermigrate.control import Session
from ordermigrate.findings import Spot, name_some
from ordermigrate.model import ForeignKey, Side, Table, TableName
from ordermigrate.survey import Survey

_WRITING_ACTIONS = tuple(
    f"ON {event} {action}"
    for event in ("DELETE", "UPDATE")
    for action in ("CASCADE", "SET NULL", "SET DEFAULT")
)


def find_keys(scope: str, side: Side, tables: Iterable[Table]) -> list[tuple[ForeignKey, Spot]]:
    """Find the foreign keys that lead within the family, out of it or into it."""
    tables = list(tables)
    family = frozenset(table.name for table in tables)
    return [
        (key, Spot(f"{key.name} of {key.table} on the {side} refers to {key.references}"))
        for table in tables
        for key in table.foreign_keys_by_scope(family)[scope]
    ]


def find_cascades(scope: str, side: Side, tables: Iterable[Table]) -> list[Spot]:
    """Find foreign keys over the border by which a write here writes there."""
    spots: list[Spot] = []
    for key, _ in find_keys(scope, side, tables):
        actions = [action for action in _WRITING_ACTIONS if action in key.definition]
        if actions:
            spots.append(
                Spot(
                    f"a write to {key.references} on the {side} writes to {key.table} "
                    f"({key.name}, {', '.join(actions)})"
                )
            )
    return spots


def find_cycles(tables: Iterable[Table]) -> list[tuple[TableName, ...]]:
    """Find circles of foreign keys, each once, as the tables that one comes by, the first again."""
    family = {table.name: table for table in tables}
    onward: Mapping[TableName, list[TableName]] = {
        name: sorted(
            {key.references for key in table.foreign_keys if key.references in family} - {name}
        )
        for name, table in family.items()
    }
    found: dict[frozenset[TableName], tuple[TableName, ...]] = {}
    done: set[TableName] = set()

    def follow(path: tuple[TableName, ...]) -> None:
        for each in onward[path[-1]]:
            if each in path:
                circle = path[path.index(each) :]
                found.setdefault(frozenset(circle), (*circle, each))
            elif each not in done:
                follow((*path, each))
        done.add(path[-1])

    for name in sorted(family):
        if name not in done:
            follow((name,))
    return list(found.values())


async def see_keys_out(survey: Survey, side: Side) -> list[Spot]:
    """Find foreign keys that lead out of the family."""
    return [spot for _, spot in find_keys("out", side, (await survey.tables(side)).values())]


async def see_keys_in(survey: Survey, side: Side) -> list[Spot]:
    """Find foreign keys that lead into it."""
    return [spot for _, spot in find_keys("into", side, (await survey.tables(side)).values())]


async def see_keys_within(survey: Survey, side: Side) -> list[Spot]:
    """Find foreign keys between its tables."""
    return [spot for _, spot in find_keys("within", side, (await survey.tables(side)).values())]


async def see_cascades_out(survey: Survey, side: Side) -> list[Spot]:
    """Find tables that are left out and are written to by a cascade from the family."""
    return find_cascades("into", side, (await survey.tables(side)).values())


async def see_cascades_in(survey: Survey, side: Side) -> list[Spot]:
    """Find tables that are left out and whose writes cascade into the family."""
    return find_cascades("out", side, (await survey.tables(side)).values())


async def see_cycles(survey: Survey, side: Side) -> list[Spot]:
    """Find circles of foreign keys."""
    circles = find_cycles((await survey.tables(side)).values())
    return [Spot(" → ".join(map(str, circle))) for circle in circles]


# ------------------------------------------------------------------------- triggers and functions


@dataclass(frozen=True, slots=True)
class _Shelf:
    """What a database has of functions and triggers, and its relations' names."""

    library: Library
    names: Mapping[int, TableName]
    triggers: Sequence[Any]

    def name(self, oids: Iterable[int]) -> str:
        """Name relations for a sentence."""
        return name_some(sorted(str(self.names[oid]) for oid in oids))


async def _read_shelf(session: Session) -> _Shelf:
    relations = [
        Relation(row.oid, row.schema_name, row.name)
        for row in await session.fetch_all("checks_neighbours", "read_relations")
    ]
    functions = [
        Function(
            row.oid,
            row.signature,
            row.schema_name,
            row.name,
            row.language,
            row.body,
            tuple(part.strip(' "') for part in row.search_path.split(",") if part.strip(' "')),
        )
        for row in await session.fetch_all("checks_neighbours", "read_functions")
    ]
    triggers = await session.fetch_all("checks_neighbours", "read_triggers")
    return _Shelf(
        Library(functions, relations),
        {each.oid: TableName(each.schema, each.name) for each in relations},
        [row for row in triggers if row.is_on],
    )


async def _look(survey: Survey, side: Side) -> tuple[_Shelf, frozenset[int]]:
    """Return the shelf of a side, and the oids of the family's tables and parts."""
    session = survey.session(side)
    shelf = await survey.once("shelf", side, lambda: _read_shelf(session))
    return shelf, frozenset(part.oid for part in await survey.parts(side))


async def see_triggers_out(survey: Survey, side: Side) -> list[Spot]:
    """Find triggers of the family that write to tables which it leaves out."""
    shelf, family = await _look(survey, side)
    return [
        Spot(
            f"trigger {row.name} of {row.table_name} on the {side} writes to {shelf.name(others)}, "
            f"by the text of {row.function_name}"
        )
        for row in shelf.triggers
        if row.table_oid in family
        and (others := shelf.library.find_writes(row.function_oid).relations - family)
    ]


async def see_triggers_in(survey: Survey, side: Side) -> list[Spot]:
    """Find triggers of tables that stay, which write to the family."""
    shelf, family = await _look(survey, side)
    return [
        Spot(
            f"trigger {row.name} of {row.table_name} on the {side}, which stays, writes to "
            f"{shelf.name(ours)}, by the text of {row.function_name}"
        )
        for row in shelf.triggers
        if row.table_oid not in family
        and (ours := shelf.library.find_writes(row.function_oid).relations & family)
    ]


async def see_triggers_unread(survey: Survey, side: Side) -> list[Spot]:
    """Find triggers of the family whose text does not tell all that they write to."""
    shelf, family = await _look(survey, side)
    return [
        Spot(
            f"trigger {row.name} of {row.table_name} on the {side} runs {name_some(unread)}, which "
            "puts statements together, or is written in another language than SQL and PL/pgSQL"
        )
        for row in shelf.triggers
        if row.table_oid in family
        and (unread := shelf.library.find_writes(row.function_oid).unread)
    ]


async def see_triggers(survey: Survey, side: Side) -> list[Spot]:
    """Tell of the family's triggers."""
    shelf, family = await _look(survey, side)
    return [
        Spot(f"{row.name} of {row.table_name} on the {side} runs {row.function_name}")
        for row in shelf.triggers
        if row.table_oid in family
    ]


async def see_functions(survey: Survey, side: Side) -> list[Spot]:
    """Find functions that name the family's tables; what triggers run is told with these."""
    shelf, family = await _look(survey, side)
    by_triggers = {row.function_oid for row in shelf.triggers}
    return [
        Spot(f"{function.signature} on the {side} names {shelf.name(found)}")
        for function, found in shelf.library.find_mentions(family)
        if function.oid not in by_triggers
    ]


# --------------------------------------------------------------------- views, rules, publications


async def see_views(survey: Survey, side: Side) -> list[Spot]:
    """Find views that use the family."""
    rows = await survey.fetch_parts(side, "checks_neighbours", "find_views")
    used: dict[tuple[str, bool], list[str]] = {}
    for row in rows:
        used.setdefault((row.view_name, row.is_materialized), []).append(row.table_name)
    return [
        Spot(
            f"{'materialized view' if is_materialized else 'view'} {name} on the {side} uses "
            + name_some(tables)
        )
        for (name, is_materialized), tables in used.items()
    ]


async def see_rules(survey: Survey, side: Side) -> list[Spot]:
    """Find rules on the family's tables."""
    rows = await survey.fetch_parts(side, "checks_neighbours", "find_rules")
    return [Spot(f"rule {row.name} on {row.table_name} ({side})") for row in rows]


async def see_publications(survey: Survey, side: Side) -> list[Spot]:
    """Find publications that send the family's changes."""
    rows = await survey.fetch_parts(side, "checks_neighbours", "find_publications")
    return [
        Spot(
            f"publication {row.publication} on the {side} sends {row.table_name}"
            + (f" and {row.tables - 1:,} more of the family" if row.tables > 1 else "")
        )
        for row in rows
    ]
