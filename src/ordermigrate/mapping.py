"""How the rows of each table go from source to target: column by column, decided once, up front.

Types must be the same, or the target's must be able to hold every value of the source's without
changing what it means; anything else needs an expression in the configuration. So nothing is
rounded, cut off or shifted by a time zone behind anyone's back. Copy and validation both use the
map made here; they cannot disagree on what a row should look like.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from psycopg import sql

from ordermigrate.config import ColumnRule, TableConfig
from ordermigrate.errors import Refused, UsageError
from ordermigrate.model import (
    Column,
    ColumnPair,
    Dependence,
    Side,
    Table,
    TableMap,
    TableName,
    quote_name,
)

# From a source type to target types that hold each of its values with the same meaning.
# (A float4 becomes another decimal text as float8; a timestamp gains a time zone that nobody
# stated; char(n) loses its blanks: those need an expression.)
_HOLDS: Mapping[str, frozenset[str]] = {
    "smallint": frozenset({"integer", "bigint", "numeric"}),
    "integer": frozenset({"bigint", "numeric"}),
    "bigint": frozenset({"numeric"}),
    "character varying": frozenset({"text"}),
    "text": frozenset({"character varying"}),
    "uuid": frozenset({"text", "character varying"}),
}
_TEXTUAL = frozenset({"text", "character varying"})
# Types whose modifiers cut without a word, or mean another kind of value.
_UNFIT = frozenset({"bpchar", '"bit"', "interval"})
_LENGTH = re.compile(r"\((\d+)(?:,(-?\d+))?\)")


@dataclass(frozen=True, slots=True)
class Misfit:
    """Why a table cannot go over as it is, and under which key `preflight` tells it."""

    finding: str
    said: str


def build_maps(
    configured: Sequence[TableConfig],
    sources: Mapping[TableName, Table],
    targets: Mapping[TableName, Table],
    parents: Mapping[TableName, Table] | None = None,
) -> list[TableMap]:
    """Pair the tables and columns of both sides, parents before children.

    Args:
        configured: The family.
        sources: Its tables on the monolith.
        targets: Its tables on the service.
        parents: The monolith's tables that columns depend on; where they are left out, nothing is
            said of what columns depend on.

    Raises:
        UsageError: The configuration names a column that is not there.
        Refused: Something stands in the way; every finding is told at once.

    """
    maps, misfits = fit_tables(configured, sources, targets, parents)
    if misfits:
        findings = [misfit.said for misfit in misfits]
        raise Refused(
            "The tables of the two sides do not fit together: " + "; ".join(findings),
            wanted="A primary key on each table, and a column on the service for each of the "
            "monolith's that can hold all its values",
            todo="Change the service's table, or say under [tables.columns] how a column is made",
            findings=findings,
        )
    return maps


def fit_tables(
    configured: Sequence[TableConfig],
    sources: Mapping[TableName, Table],
    targets: Mapping[TableName, Table],
    parents: Mapping[TableName, Table] | None = None,
) -> tuple[list[TableMap], list[Misfit]]:
    """Pair the tables as `build_maps` does, and return what does not fit beside them.

    Raises:
        UsageError: The configuration names a column that is not there.

    """
    findings: list[Misfit] = []
    maps: list[TableMap] = []
    for config in in_key_order(configured, sources):
        source, target = sources[config.name], targets[config.target]
        pairs, notes = _pair_columns(config, source, target, findings)
        roles = _find_roles(config, source, target, pairs)
        key = _find_key(source, pairs, findings)
        maps.append(
            TableMap(
                source,
                target,
                tuple(pairs),
                key,
                config.where,
                roles["status"],
                roles["user"],
                roles["created"],
                roles["updated"],
                tuple(notes),
                depends=_find_dependences(config, parents or {}, findings),
            )
        )
    return maps, findings


def _find_dependences(
    config: TableConfig, parents: Mapping[TableName, Table], findings: list[Misfit]
) -> tuple[Dependence, ...]:
    """Return what the table's columns depend on, as far as the parents are known."""
    found: list[Dependence] = []
    for name, rule in config.columns.items():
        if rule.depends is None or rule.depends.table not in parents:
            continue
        parent = parents[rule.depends.table]
        said = f"which column {quote_name(name)} of {config.name} depends on"
        faults: list[str] = []
        if not parent.primary_key:
            faults.append("has no primary key to log its changes by")
        if parent.is_partitioned or len(parent.leaves) > 1:
            faults.append("has parts, which could come and go unseen")
        if any(leaf.is_unlogged for leaf in parent.leaves):
            faults.append("is UNLOGGED: a crash would empty it without a trace")
        faults.extend(
            f"has no column {quote_name(column)}"
            for column in rule.depends.columns
            if parent.column(column) is None
        )
        findings.extend(Misfit("columns", f"{parent.name}, {said}, {fault}") for fault in faults)
        found.append(Dependence(parent, tuple(rule.depends.columns), rule.depends.keys))
    return tuple(found)


def in_key_order(
    configured: Sequence[TableConfig], sources: Mapping[TableName, Table]
) -> list[TableConfig]:
    """Sort the family so that a referenced table comes before those that reference it.

    Tables that reference each other in a circle keep the configuration's order among themselves.
    """
    waiting, done = list(configured), list[TableConfig]()
    while waiting:
        names = {config.name for config in waiting}
        free = [
            config
            for config in waiting
            if not any(
                key.references in names and key.references != config.name
                for key in sources[config.name].foreign_keys
            )
        ]
        batch = free or waiting[:1]
        done.extend(batch)
        waiting = [config for config in waiting if config not in batch]
    return done


def _find_roles(
    config: TableConfig, source: Table, target: Table, pairs: Sequence[ColumnPair]
) -> dict[str, str | None]:
    """Return the target's columns for status, user, created and updated.

    Each is named as the service names it, or as the monolith does where the column goes over as
    it is.
    """
    roles: dict[str, str | None] = {}
    for role in ("status", "user", "created", "updated"):
        name = getattr(config, role)
        pair = next((each for each in pairs if each.name == name), None) or next(
            (each for each in pairs if name is not None and each.origin == name), None
        )
        if name is not None and pair is None:
            known = ", ".join(each.name for each in pairs)
            side = Side.SERVICE if source.column(name) else Side.MONOLITH
            table = target if source.column(name) else source
            raise UsageError(
                f"{role} = {name!r} of table {config.name} names no column of {table.name} "
                f"on the {side}",
                wanted=f"One of its columns: {known}",
                todo="Correct the configuration, or leave the key out to skip its check",
            )
        # A frozen column is not compared, and may be there on one side only.
        roles[role] = pair.name if pair and not pair.is_frozen else None
    return roles


def _pair_columns(
    config: TableConfig, source: Table, target: Table, findings: list[Misfit]
) -> tuple[list[ColumnPair], list[str]]:
    pairs: list[ColumnPair] = []
    notes: list[str] = []
    findings.extend(
        Misfit("columns", f"[tables.columns] maps {name}, but {target.name} has no such column")
        for name in config.columns
        if target.column(name) is None
    )
    for column in target.columns:
        rule = config.columns.get(column.name)
        origin = source.column(column.name)
        if column.generated:
            pair = pair_as_is(origin, column) if origin else None
            if pair:
                pairs.append(replace(pair, is_generated=True))
            else:
                notes.append(f"{column.name} is generated on the service: not copied, not compared")
        elif rule is not None:
            pairs.append(pair_by_rule(column, rule, source))
            if rule.frozen:
                notes.append(f"{column.name} is frozen: copied once, not compared")
        elif origin is None:
            findings.append(
                Misfit(
                    "columns",
                    f"{target.name} on the service has a column {quote_name(column.name)} that "
                    f"{source.name} on the monolith does not have",
                )
            )
        elif pair := pair_as_is(origin, column):
            pairs.append(pair)
        else:
            findings.append(
                Misfit(
                    "types",
                    f"column {quote_name(column.name)} is {origin.type_name} in {source.name} on "
                    f"the monolith but {column.type_name} in {target.name} on the service",
                )
            )
    findings.extend(
        Misfit(
            "columns",
            f"{source.name} on the monolith has a column {quote_name(column.name)} that "
            f"{target.name} on the service has no place for",
        )
        for column in source.columns
        if target.column(column.name) is None and not _is_mentioned(column.name, config)
    )
    return pairs, notes


def _is_mentioned(name: str, config: TableConfig) -> bool:
    word = re.compile(rf"(?<!\w){re.escape(name)}(?!\w)")
    return any(word.search(rule.sql) for rule in config.columns.values())


def _identifier(name: str) -> str:
    return sql.Identifier(name).as_string(None)


def pair_by_rule(column: Column, rule: ColumnRule, source: Table) -> ColumnPair:
    """Return the pair of a column that the configuration computes.

    A column that it merely renames is treated like any other. Otherwise the value is brought to
    the target's length or precision only where that changes nothing: a value that would be cut or
    rounded goes over as it is, to be refused by the column or seen by the validation.
    """
    plain = rule.sql.strip()
    renamed = next(
        (each for each in source.columns if plain in {each.name, _identifier(each.name)}), None
    )
    pair = pair_as_is(renamed, column) if renamed else None
    if pair is not None:
        return replace(pair, is_frozen=rule.frozen)
    # A comment at the end of an expression must not swallow what follows it.
    expression = f"({plain}\n)"
    name = _identifier(column.name)
    if not column.is_builtin:
        text = f"{expression}::text"
        return _textual(column, text, text, f"{name}::text", is_frozen=rule.frozen)
    value = f"{expression}::{column.base_type}"
    if column.type_name != column.base_type:
        fitted = f"{expression}::{column.type_name}::{column.base_type}"
        value = f"CASE WHEN {fitted} IS NOT DISTINCT FROM {value} THEN {fitted} ELSE {value} END"
    return ColumnPair(
        column.name,
        value,
        _compared(column, value),
        _compared(column, name),
        column.is_binary_safe,
        is_frozen=rule.frozen,
    )


def _widened(origin: Column, column: Column) -> ColumnPair:
    """Return the pair of two columns of which the target's holds all that the source's does."""
    value = f"{_identifier(origin.name)}::{column.type_name}"
    return ColumnPair(
        column.name,
        value,
        _compared(column, value),
        _compared(column, _identifier(column.name)),
        column.is_binary_safe,
        origin.name,
    )


def _textual(  # an expression, and what is compared on each side
    column: Column,
    expression: str,
    source: str,
    target: str,
    *,
    origin: str | None = None,
    is_frozen: bool = False,
) -> ColumnPair:
    """Return a pair whose values travel and are compared as text."""
    return ColumnPair(
        column.name,
        expression,
        source,
        target,
        is_binary_safe=False,
        origin=origin,
        is_frozen=is_frozen,
    )


def pair_as_is(origin: Column, column: Column) -> ColumnPair | None:
    """Return the pair of two columns, or None where a value could change on the way."""
    mine, theirs = _identifier(origin.name), _identifier(column.name)
    same_base = origin.base_type == column.base_type
    if origin.type_name == column.type_name and same_base:
        return ColumnPair(
            column.name,
            mine,
            _compared(column, mine),
            _compared(column, theirs),
            origin.is_binary_safe and column.is_binary_safe,
            origin.name,
        )
    if same_base and _fits(origin, column):
        return _widened(origin, column)
    if origin.base_type in _TEXTUAL and column.is_enum:
        return _textual(column, mine, f"{mine}::text", f"{theirs}::text", origin=origin.name)
    if origin.is_enum and column.type_name in _TEXTUAL:
        text = f"{mine}::text"
        return _textual(column, text, text, f"{theirs}::text", origin=origin.name)
    if column.base_type in _HOLDS.get(origin.base_type, frozenset()) and _fits(origin, column):
        return _widened(origin, column)
    return None


def _compared(column: Column, expression: str) -> str:
    """Return what a digest takes: the value's binary image where that means the same everywhere."""
    return expression if column.is_builtin and column.is_binary_safe else f"({expression})::text"


def _modifiers(type_name: str) -> tuple[int, int] | None:
    match = _LENGTH.search(type_name)
    return (int(match[1]), int(match[2] or 0)) if match else None


def _fits(origin: Column, column: Column) -> bool:
    """Whether the target's length or precision has room for whatever the source's has.

    A domain on either side counts as not fitting: its constraints are not known here.
    """
    is_unfit = column.base_type.removesuffix("[]") in _UNFIT
    if not (column.is_builtin and origin.is_builtin) or is_unfit:
        return False
    if column.type_name == column.base_type:
        return True
    new, old = _modifiers(column.type_name), _modifiers(origin.type_name)
    if new is None:
        return False
    if column.base_type == "numeric":
        digits = {"smallint": (5, 0), "integer": (10, 0), "bigint": (19, 0)}
        old = old or digits.get(origin.base_type)
        return old is not None and new[0] - new[1] >= old[0] - old[1] and new[1] >= old[1]
    if origin.base_type == "uuid":
        return new[0] >= 36  # noqa: PLR2004  the length of a uuid's text
    return old is not None and new[0] >= old[0]


def _find_key(
    source: Table, pairs: Sequence[ColumnPair], findings: list[Misfit]
) -> tuple[str, ...]:
    if not source.primary_key:
        findings.append(
            Misfit(
                "primary-key",
                f"{source.name} on the monolith has no primary key to tell its rows apart",
            )
        )
        return ()
    key: list[str] = []
    for column in source.primary_key:
        pair = next((each for each in pairs if each.origin == column and not each.is_frozen), None)
        if pair is None:
            findings.append(
                Misfit(
                    "primary-key",
                    f"primary key column {quote_name(column)} of {source.name} does not go over to "
                    "the service as it is",
                )
            )
        else:
            key.append(pair.name)
    return tuple(key)
