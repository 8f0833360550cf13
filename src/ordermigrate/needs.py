"""What tables need beside themselves: types, functions, extensions, sequences; how they are made.

The catalog knows what a column, a default, a check or a trigger depends on. What the body of a
function calls it does not know, so functions that are named there count as needed, too: rather one
too many than a trigger that fails at the first row.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from typing import Any

from ordermigrate.control import Session
from ordermigrate.model import TableName

_FOLLOWED = {"pg_class", "pg_attrdef", "pg_constraint", "pg_trigger", "pg_type", "pg_proc"}
# A function's language, and what holds indexes together, come with what needs them.
_COMES_ALONG = {"pg_language", "pg_am", "pg_extension", "pg_cast"}


@dataclass(frozen=True, slots=True)
class Needed:
    """An object that has to be there before the tables, and the statement that makes it."""

    kind: str
    schema: str
    name: str
    definition: str


@dataclass(frozen=True, slots=True)
class Needs:
    """All that tables need: in the order in which it is made, and what cannot be told in SQL.

    `outside` says of functions which tables their bodies name that are not among the given ones.
    """

    schemas: tuple[str, ...]
    objects: tuple[Needed, ...]
    sequences: tuple[TableName, ...]
    by_hand: tuple[str, ...]
    outside: tuple[tuple[str, tuple[str, ...]], ...]


async def find(session: Session, oids: Sequence[int]) -> Needs:
    """Find what the given tables and parts need."""
    called: set[int] = set()
    while True:
        edges = await session.fetch_all("needs", "find_needed", list(oids), sorted(called))
        wanted = _by_class(edges)
        functions = await session.fetch_all(
            "needs", "describe_functions", sorted(wanted["pg_proc"] | called)
        )
        functions = [each for each in functions if not _is_extensions(each.oid, "pg_proc", edges)]
        found = await session.fetch_all(
            "needs", "find_mentioned_functions", [each.source for each in functions]
        )
        more = {each.oid for each in found} - {each.oid for each in functions}
        if not more:
            break
        called |= more
    types = [
        each
        for each in await session.fetch_all("needs", "describe_types", sorted(wanted["pg_type"]))
        if not _is_extensions(each.oid, "pg_type", edges)
    ]
    return await _gather(session, oids, edges, types, functions)


async def _gather(
    session: Session,
    oids: Sequence[int],
    edges: Sequence[Any],
    types: Sequence[Any],
    functions: Sequence[Any],
) -> Needs:
    wanted = _by_class(edges)
    extensions = await session.fetch_all(
        "needs", "describe_extensions", sorted(wanted["pg_extension"])
    )
    sequences = await session.fetch_all("needs", "describe_sequences", sorted(wanted["pg_class"]))
    made = {("pg_type", each.oid): ("type", each) for each in types} | {
        ("pg_proc", each.oid): ("function", each) for each in functions
    }
    objects = [_needed("extension", each) for each in extensions]
    by_hand: list[str] = []
    for key in _in_order(edges, made):
        kind, row = made[key]
        if row.definition is None:
            by_hand.append(f"{kind} {row.name}")
        else:
            objects.append(_needed(kind, row))
    by_hand.extend(_find_unknown(edges))
    outside = [
        (each.name, await _find_outside(session, each.source, oids))
        for each in functions
        if each.definition is not None
    ]
    return Needs(
        tuple(sorted({each.schema for each in objects} | {each.schema_name for each in sequences})),
        tuple(objects),
        tuple(TableName(each.schema_name, each.sequence_name) for each in sequences),
        tuple(sorted(set(by_hand))),
        tuple((name, tables) for name, tables in outside if tables),
    )


async def _find_outside(session: Session, source: str, oids: Sequence[int]) -> tuple[str, ...]:
    rows = await session.fetch_all("needs", "find_mentioned_tables", source, list(oids))
    return tuple(str(TableName(row.schema_name, row.table_name)) for row in rows)


async def find_present(session: Session, objects: Sequence[Needed]) -> dict[str, str]:
    """Return how those types and functions are made that a database has already, by their names."""
    rows = await session.fetch_all(
        "needs",
        "find_present",
        [each.name for each in objects if each.kind == "type"],
        [each.name for each in objects if each.kind == "function"],
    )
    present: dict[str, str] = {}
    for kind, block in (("pg_type", "describe_types"), ("pg_proc", "describe_functions")):
        oids = [each.oid for each in rows if each.kind == kind]
        for row in await session.fetch_all("needs", block, oids):
            present[row.name] = _needed("", row).definition
    return present


def _needed(kind: str, row: Any) -> Needed:  # noqa: ANN401  a row of describe_*
    # One that is there already, and is another, must not be overwritten without a word.
    definition = str(row.definition or "").replace("CREATE OR REPLACE ", "CREATE ", 1)
    return Needed(kind, row.schema_name, row.name, definition)


def _by_class(edges: Sequence[Any]) -> dict[str, set[int]]:
    found: dict[str, set[int]] = defaultdict(set)
    for each in edges:
        found[each.needed_kind].add(each.needed_oid)
    return found


def _is_extensions(oid: int, kind: str, edges: Sequence[Any]) -> bool:
    """Whether an object comes with an extension."""
    return any(
        each.oid == oid and each.kind == kind and each.needed_kind == "pg_extension"
        for each in edges
    )


def _find_unknown(edges: Sequence[Any]) -> list[str]:
    """Name what is needed, and is of a kind that is not made here."""
    return [
        each.needed
        for each in edges
        if each.needed_kind not in _FOLLOWED | _COMES_ALONG
        and not _is_extensions(each.needed_oid, each.needed_kind, edges)
    ]


def _in_order(
    edges: Sequence[Any], made: dict[tuple[str, int], tuple[str, Any]]
) -> list[tuple[str, int]]:
    """Sort so that what is needed comes first; what goes in a circle comes by age."""
    graph: dict[tuple[str, int], set[tuple[str, int]]] = defaultdict(set)
    for each in edges:
        graph[each.kind, each.oid].add((each.needed_kind, each.needed_oid))
    for key in sorted(made, key=lambda key: key[1]):
        graph[key] |= set()
    try:
        ordered = list(TopologicalSorter(graph).static_order())
    except CycleError:
        ordered = sorted(made, key=lambda key: key[1])
    return [key for key in ordered if key in made]
