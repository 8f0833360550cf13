"""Differences: what the two sides' tables do not have in common, and what each of them means.

Three weights: one that `stops` is refused or fails for certain; one that `may_stop` does with the
first row that the monolith takes and the service does not; a `harmless` one changes nothing of
what copy, sync and validate do. What is so by design is none: foreign keys out of the family that
are not there, the checks in their place, triggers of ours.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from ordermigrate.config import TableConfig
from ordermigrate.errors import OrdermigrateError, Refused
from ordermigrate.mapping import build_maps, pair_as_is
from ordermigrate.model import Column, Side, Table, TableName, Trigger


class Weight(StrEnum):
    """What a difference does to a migration."""

    STOPS = "stops"
    MAY_STOP = "may_stop"
    HARMLESS = "harmless"


@dataclass(frozen=True, slots=True)
class Difference:
    """One thing that is not the same on both sides; None where a side does not have it."""

    table: str
    kind: str
    name: str
    weight: Weight
    monolith: str | None
    service: str | None
    meaning: str


@dataclass(frozen=True, slots=True)
class Details:
    """What of a side's tables only matters here, by table and name."""

    defaults: Mapping[tuple[str, str], str] = field(default_factory=dict)
    partition_keys: Mapping[str, str] = field(default_factory=dict)
    bodies: Mapping[tuple[str, str], str] = field(default_factory=dict)


def compare(
    configured: Sequence[TableConfig],
    sources: Mapping[TableName, Table],
    targets: Mapping[TableName, Table],
    details: Mapping[Side, Details],
) -> list[Difference]:
    """Return every difference, those that stop something first."""
    found: list[Difference] = []
    renamed = {str(each.target): str(each.name) for each in configured}
    for each in configured:
        if each.name not in sources or each.target not in targets:
            side = Side.SERVICE if each.name in sources else Side.MONOLITH
            found.append(_absent(each, side))
            continue
        pair = _Pair(each, sources[each.name], targets[each.target], details, renamed)
        for look in (_columns, _keys, _checks, _foreign_keys, _triggers, _form):
            found.extend(look(pair))
    order = list(Weight)
    found.extend(_rest(configured, sources, targets, found))
    return sorted(found, key=lambda one: order.index(one.weight))


@dataclass(frozen=True, slots=True)
class _Pair:
    config: TableConfig
    source: Table
    target: Table
    details: Mapping[Side, Details]
    renamed: Mapping[str, str]

    def tell(
        self,
        kind: str,
        name: str,
        weight: Weight,
        sides: tuple[str | None, str | None],
        meaning: str,
    ) -> Difference:
        return Difference(str(self.config.name), kind, name, weight, *sides, meaning)

    def as_source(self, definition: str) -> str:
        """Return a definition of the service's with the monolith's names of tables."""
        for new, old in self.renamed.items():
            definition = definition.replace(f" ON {new} ", f" ON {old} ")
            definition = definition.replace(f"REFERENCES {new}(", f"REFERENCES {old}(")
        return definition


def _absent(each: TableConfig, side: Side) -> Difference:
    names = str(each.name), str(each.target)
    return Difference(
        str(each.name),
        "table",
        names[side is Side.SERVICE],
        Weight.STOPS,
        None if side is Side.MONOLITH else names[0],
        None if side is Side.SERVICE else names[1],
        f"There is no such table on the {side}: copy does not begin. "
        + ("`ordermigrate schema --apply` creates it" if side is Side.SERVICE else "Name another"),
    )


def _rest(
    configured: Sequence[TableConfig],
    sources: Mapping[TableName, Table],
    targets: Mapping[TableName, Table],
    found: Sequence[Difference],
) -> Iterator[Difference]:
    """Tell what a copy would refuse and no comparison has found: its word is the last."""
    whole = [each for each in configured if each.name in sources and each.target in targets]
    try:
        build_maps(whole, sources, targets)
    except OrdermigrateError as error:
        if any(one.weight is Weight.STOPS for one in found):
            return
        said = error.findings if isinstance(error, Refused) else (error.fact,)
        for each in said:
            yield Difference("", "mapping", "", Weight.STOPS, None, None, f"Copy refuses: {each}")


def _columns(pair: _Pair) -> Iterator[Difference]:
    for column in pair.target.columns:
        origin = pair.source.column(column.name)
        has_rule = column.name in pair.config.columns
        if origin is None and not has_rule and not column.generated:
            yield pair.tell(
                "column",
                column.name,
                Weight.STOPS,
                (None, column.type_name),
                "The monolith has nothing to put there: copy does not begin. Drop the column, or "
                "say under [tables.columns] how it is made",
            )
        elif origin is not None:
            yield from _column(pair, origin, column, has_rule=has_rule)
    mentioned = " ".join(rule.sql for rule in pair.config.columns.values())
    for column in pair.source.columns:
        if pair.target.column(column.name) is None and column.name not in mentioned:
            yield pair.tell(
                "column",
                column.name,
                Weight.STOPS,
                (column.type_name, None),
                "Its values would be lost: copy does not begin. Add the column to the service's "
                "table, or name it in an expression under [tables.columns]",
            )


def _column(pair: _Pair, origin: Column, column: Column, *, has_rule: bool) -> Iterator[Difference]:
    def tell(what: str, weight: Weight, sides: tuple[str, str], meaning: str) -> Difference:
        return pair.tell(what, column.name, weight, sides, meaning)

    if origin.type_name != column.type_name and not has_rule:
        is_fit = pair_as_is(origin, column) is not None
        yield tell(
            "type",
            Weight.HARMLESS if is_fit else Weight.STOPS,
            (origin.type_name, column.type_name),
            "Every value fits: copy and sync cast it, validate compares it as the service has it"
            if is_fit
            else "A value could be another one there: copy does not begin. Give the column the "
            "monolith's type, or an expression under [tables.columns]",
        )
    missing = {label for _, label in origin.labels} - {label for _, label in column.labels}
    if missing and column.labels:
        yield tell(
            "labels",
            Weight.MAY_STOP,
            (", ".join(sorted(missing)), "none of these"),
            "The service's enum lacks them: copy or sync stops at the first row that has one. "
            f"ALTER TYPE {column.base_type} ADD VALUE … on the service",
        )
    if column.is_not_null and not origin.is_not_null and not has_rule:
        yield tell(
            "not null",
            Weight.MAY_STOP,
            ("NULL is allowed", "NOT NULL"),
            "Copy or sync stops at the first row without a value. Drop it on the service, or set "
            "it on the monolith, too",
        )
    elif origin.is_not_null and not column.is_not_null:
        yield tell(
            "not null",
            Weight.HARMLESS,
            ("NOT NULL", "NULL is allowed"),
            "Nothing is stopped; once the service owns the tables it takes rows that the monolith "
            "would not, and a rollback sets them aside",
        )
    if origin.collation != column.collation and not has_rule:
        yield tell(
            "collation",
            Weight.HARMLESS,
            (str(origin.collation), str(column.collation)),
            "Values are compared by their bytes; queries on the service may sort in another way",
        )
    if (origin.identity, origin.generated) != (column.identity, column.generated):
        yield tell(
            "identity or generated",
            Weight.HARMLESS,
            (_describe_origin(origin), _describe_origin(column)),
            "What the service generates by itself is not copied, but compared; an identity is "
            "written as it is",
        )
    ours, theirs = (
        pair.details[side].defaults.get((str(table.name), column.name))
        for side, table in ((Side.MONOLITH, pair.source), (Side.SERVICE, pair.target))
    )
    if ours != theirs and not (column.generated or origin.generated):
        yield tell(
            "default",
            Weight.HARMLESS,
            (ours or "none", theirs or "none"),
            "Copy and sync write every column; it counts once the service's application writes",
        )


def _describe_origin(column: Column) -> str:
    if column.generated:
        return "generated"
    return {"a": "identity always", "d": "identity by default"}.get(column.identity, "neither")


def _keys(pair: _Pair) -> Iterator[Difference]:
    source, target = pair.source, pair.target
    if not source.primary_key:
        yield pair.tell(
            "primary key",
            "",
            Weight.STOPS,
            (None, None),
            "Without a primary key on the monolith its rows cannot be told apart: copy does not "
            "begin",
        )
    elif source.primary_key != target.primary_key:
        yield _primary_key(pair)
    ours = {_shape(each.definition): each for each in source.indexes if not each.is_primary}
    theirs = {_shape(each.definition): each for each in target.indexes if not each.is_primary}
    for shape in theirs.keys() - ours.keys():
        index = theirs[shape]
        is_strict = index.is_unique or index.constraint_kind == "x"
        yield pair.tell(
            "unique index" if is_strict else "index",
            index.name,
            Weight.MAY_STOP
            if is_strict and not _covers(source, index.columns)
            else Weight.HARMLESS,
            (None, index.definition),
            "The monolith may have two rows that are one to it: copy or sync stops at the second"
            if is_strict
            else "Copy builds it after the load, sync keeps it up to date; both take a little "
            "longer",
        )
    for shape in ours.keys() - theirs.keys():
        index = ours[shape]
        yield pair.tell(
            "unique index" if index.is_unique else "index",
            index.name,
            Weight.HARMLESS,
            (index.definition, None),
            "Nothing is stopped; once the service owns the tables it takes rows that the monolith "
            "would not, and a rollback sets them aside"
            if index.is_unique
            else "Nothing is stopped; the service's queries do not have it",
        )


def _covers(table: Table, columns: tuple[str, ...]) -> bool:
    """Whether columns hold a unique key of a table, and so cannot collide."""
    return any(
        index.is_unique
        and not index.is_partial
        and index.columns
        and set(index.columns) <= set(columns)
        for index in table.indexes
    )


def _primary_key(pair: _Pair) -> Difference:
    ours, theirs = pair.source.primary_key, pair.target.primary_key
    sides = ", ".join(ours), ", ".join(theirs) or None
    if not theirs:
        meaning = (
            "The service has none: sync finds rows by reading the whole table, and nothing there "
            "keeps a key from standing twice"
        )
        return pair.tell("primary key", "", Weight.HARMLESS, sides, meaning)
    if set(ours) <= set(theirs):
        meaning = (
            f"Rows are found and compared by ({', '.join(ours)}) all the same; that these are "
            "unique by themselves is not for the service to refuse any more"
        )
        return pair.tell("primary key", "", Weight.HARMLESS, sides, meaning)
    meaning = "Two rows of the monolith may have the same key there: copy or sync stops at them"
    weight = Weight.HARMLESS if _covers(pair.source, theirs) else Weight.MAY_STOP
    return pair.tell("primary key", "", weight, sides, meaning)


def _shape(definition: str) -> str:
    """Return an index's definition without its names."""
    head, _, rest = definition.partition(" USING ")
    return f"{'UNIQUE ' if ' UNIQUE ' in head else ''}{rest}"


def _checks(pair: _Pair) -> Iterator[Difference]:
    ours = {each.definition.removesuffix(" NOT VALID") for each in pair.source.checks}
    theirs = {each.definition.removesuffix(" NOT VALID") for each in pair.target.checks}
    stated = {
        f"CHECK (({each.name} IS NOT NULL))" for each in pair.source.columns if each.is_not_null
    }
    for each in pair.target.checks:
        if each.definition.removesuffix(" NOT VALID") not in ours | stated:
            yield pair.tell(
                "check",
                each.name,
                Weight.MAY_STOP,
                (None, each.definition),
                "The monolith may have rows that it refuses: copy or sync stops at the first",
            )
    for each in pair.source.checks:
        if each.definition.removesuffix(" NOT VALID") not in theirs:
            yield pair.tell(
                "check",
                each.name,
                Weight.HARMLESS,
                (each.definition, None),
                "Nothing is stopped; once the service owns the tables it takes rows that the "
                "monolith would not, and a rollback sets them aside",
            )


def _foreign_keys(pair: _Pair) -> Iterator[Difference]:
    family = set(pair.renamed.values())
    ours = {each.definition.removesuffix(" NOT VALID"): each for each in pair.source.foreign_keys}
    theirs = {
        pair.as_source(each.definition).removesuffix(" NOT VALID"): each
        for each in pair.target.foreign_keys
    }
    for definition in theirs.keys() - ours.keys():
        yield pair.tell(
            "foreign key",
            theirs[definition].name,
            Weight.MAY_STOP,
            (None, theirs[definition].definition),
            "Sync stops at the first row that refers to nothing on the service",
        )
    for definition, key in ours.items():
        if definition not in theirs and str(key.references) in family:
            yield pair.tell(
                "foreign key",
                key.name,
                Weight.HARMLESS,
                (key.definition, None),
                "Nothing is stopped; validate looks for orphans, and the service's application "
                "has to keep to it",
            )


def _triggers(pair: _Pair) -> Iterator[Difference]:
    def listed(table: Table, side: Side) -> dict[str, tuple[Trigger, str]]:
        bodies = pair.details[side].bodies
        return {
            each.name: (each, bodies.get((str(each.table), each.name), ""))
            for each in table.triggers
            if each.table == table.name
        }

    ours, theirs = listed(pair.source, Side.MONOLITH), listed(pair.target, Side.SERVICE)
    for name in sorted(ours.keys() | theirs.keys()):
        mine, other = ours.get(name), theirs.get(name)
        if mine is None or other is None:
            meaning = (
                "Off until the service owns the tables; then it fires there for the first time"
                if mine is None
                else "It does not fire once the service owns the tables"
            )
        elif mine[0].definition != pair.as_source(other[0].definition) or mine[1] != other[1]:
            meaning = "Off until the service owns the tables; then it does something else there"
        else:
            continue
        sides = mine and mine[0].definition, other and other[0].definition
        yield pair.tell("trigger", name, Weight.HARMLESS, sides, meaning)


def _form(pair: _Pair) -> Iterator[Difference]:
    ours, theirs = (
        pair.details[side].partition_keys.get(str(table.name))
        for side, table in ((Side.MONOLITH, pair.source), (Side.SERVICE, pair.target))
    )
    parts = tuple(
        sorted(str(leaf.bound) for leaf in each.leaves) for each in (pair.source, pair.target)
    )
    if theirs and (ours != theirs or parts[0] != parts[1]):
        yield pair.tell(
            "partitions",
            "",
            Weight.HARMLESS if _takes_all(pair) else Weight.MAY_STOP,
            (
                f"{ours}, {len(parts[0])} parts" if ours else None,
                f"{theirs}, {len(parts[1])} parts",
            ),
            "Each row goes where its values belong; for one without a partition copy stops, and "
            "sync does what missing_partition says",
        )
    elif ours and not theirs:
        yield pair.tell(
            "partitions",
            "",
            Weight.HARMLESS,
            (f"{ours}, {len(parts[0])} parts", None),
            "Rows of all parts go into the one table",
        )
    for side, table in ((Side.MONOLITH, pair.source), (Side.SERVICE, pair.target)):
        if any(leaf.is_unlogged for leaf in table.leaves):
            yield pair.tell(
                "unlogged",
                "",
                Weight.STOPS,
                ("unlogged", None) if side is Side.MONOLITH else (None, "unlogged"),
                f"A crash would empty it: nothing begins (ALTER TABLE {table.name} SET LOGGED)",
            )


def _takes_all(pair: _Pair) -> bool:
    """Whether there is a partition for every row, or one is created for it."""
    return pair.config.missing_partition == "create" or any(
        leaf.bound == "DEFAULT" for leaf in pair.target.leaves
    )
