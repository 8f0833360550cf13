"""What a database says of the family: columns, keys, foreign keys, triggers, files, fingerprint.

The catalog is read with the tables locked against rewrites, so what it says stays true for the
rest of the transaction. Only names and definitions leave this module, never rows of tables.
"""

from __future__ import annotations

import difflib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ordermigrate.control import Session
from ordermigrate.errors import Refused, UsageError
from ordermigrate.fingerprints import explain_drift, fingerprint
from ordermigrate.model import (
    Check,
    Column,
    ForeignKey,
    Index,
    Leaf,
    OwnTrigger,
    Table,
    TableName,
    Trigger,
    quote_name,
)
from ordermigrate.model import (
    Sequence as OwnedSequence,
)

_KINDS = {
    "v": "a view",
    "m": "a materialized view",
    "f": "a foreign table",
    "S": "a sequence",
    "c": "a composite type",
}


@dataclass(frozen=True, slots=True)
class Presence:
    """Whether a named table is there, and what we may do with it."""

    name: TableName
    oid: int | None
    kind: str
    can_enter: bool
    can_select: bool
    can_insert: bool
    is_owned: bool
    hides_rows: bool
    rows_estimate: int


async def find_tables(session: Session, names: Sequence[TableName]) -> list[Presence]:
    """Tell of each name whether there is such a relation."""
    rows = await session.fetch_all(
        "catalog", "find_tables", [name.schema for name in names], [name.name for name in names]
    )
    found = {TableName(row.schema_name, row.table_name): row for row in rows}
    return [
        Presence(
            name,
            found[name].oid,
            found[name].kind or "",
            found[name].can_enter,
            found[name].can_select,
            found[name].can_insert,
            bool(found[name].is_owned),
            bool(found[name].hides_rows),
            found[name].rows_estimate or 0,
        )
        for name in names
    ]


async def require_tables(session: Session, names: Sequence[TableName]) -> None:
    """Raise unless every name is a table whose rows we may read.

    Raises:
        UsageError: A name is no table, or there is nothing of that name.
        Refused: A table may not be read.

    """
    for fault in await find_faults(session, await find_tables(session, names)):
        raise fault


async def find_faults(
    session: Session, presences: Sequence[Presence]
) -> list[UsageError | Refused]:
    """Return what keeps relations from being tables whose rows we may read, at most one each."""
    found = [await _find_fault(session, presence) for presence in presences]
    return [fault for fault in found if fault is not None]


async def _find_fault(session: Session, presence: Presence) -> UsageError | Refused | None:
    name, side = presence.name, session.side
    if presence.oid is None:
        near = ", ".join(map(str, await _find_similar(session, name)))
        return UsageError(
            f"There is no table {name} on the {side}" + (f"; there is {near}" if near else ""),
            wanted=f"Every table under [[tables]] exists on the {side}",
            todo="Correct its name; capitals and spaces need double quotes inside the string",
            finding="table-missing",
        )
    if presence.kind not in {"r", "p"}:
        return UsageError(
            f"{name} on the {side} is {_KINDS.get(presence.kind, 'not a table')}",
            wanted="A table, plain or partitioned",
            todo="Name the table that holds the rows",
            finding="no-table",
        )
    if not presence.can_enter:
        schema = quote_name(name.schema)
        return Refused(
            f"We may not look into schema {schema} on the {side}, where {name.name} is",
            wanted="USAGE on the schema and SELECT on every table of the family",
            todo=f"GRANT USAGE ON SCHEMA {schema} TO our role, or connect as the table's owner",
            finding="rights-read",
        )
    if not presence.can_select:
        return Refused(
            f"We may not read {name} on the {side}",
            wanted="SELECT on every table of the family",
            todo=f"GRANT SELECT ON {name} TO our role, or connect as the table's owner",
            finding="rights-read",
        )
    return None


async def find_name(session: Session, oid: int) -> str | None:
    """Return the name that a table has now; None where there is none of that oid."""
    row = await session.fetch_one("catalog", "find_name", oid)
    return str(row.name) if row else None


async def _find_similar(session: Session, name: TableName) -> list[TableName]:
    rows = await session.fetch_all("catalog", "find_similar_tables", name.name)
    known = [TableName(row.schema_name, row.table_name) for row in rows]
    alike = difflib.get_close_matches(
        name.name.lower(), {each.name.lower() for each in known}, n=3, cutoff=0.7
    )
    return [each for each in known if each.name.lower() in alike][:3]


async def read_tables(session: Session, names: Sequence[TableName]) -> dict[TableName, Table]:
    """Describe the named tables; all of them exist (see `require_tables`)."""
    listed = await session.fetch_all(
        "catalog", "find_tables", [name.schema for name in names], [name.name for name in names]
    )
    missing = [str(TableName(row.schema_name, row.table_name)) for row in listed if row.oid is None]
    if missing:
        raise Refused(
            f"{', '.join(missing)} is no longer on the {session.side}",
            wanted="The tables of the family as they were",
            todo="Bring it back, or take it out of the configuration and begin anew",
        )
    oids = [row.oid for row in listed]

    async def by_table(block: str) -> dict[int, list[Any]]:
        groups: dict[int, list[Any]] = defaultdict(list)
        for row in await session.fetch_all("catalog", block, oids):
            groups[row.table_oid].append(row)
        return groups

    columns, indexes = await by_table("read_columns"), await by_table("read_indexes")
    checks, triggers = await by_table("read_checks"), await by_table("read_triggers")
    sequences, leaves = await by_table("read_sequences"), await by_table("read_leaves")
    keys = await session.fetch_all("catalog", "read_foreign_keys", oids)
    _require_readable_parts(
        {row.oid: TableName(row.schema_name, row.table_name) for row in listed}, leaves
    )
    tables: dict[TableName, Table] = {}
    for row in listed:
        name = TableName(row.schema_name, row.table_name)
        tables[name] = Table(
            oid=row.oid,
            name=name,
            kind=row.kind,
            owner=row.owner,
            has_row_security=row.has_row_security,
            rows_estimate=row.rows_estimate,
            columns=tuple(_column(each) for each in columns[row.oid]),
            indexes=tuple(_index(name, each) for each in indexes[row.oid]),
            checks=tuple(
                Check(each.name, each.definition, each.is_validated, each.is_inherited)
                for each in checks[row.oid]
            ),
            foreign_keys=tuple(_foreign_key(key) for key in keys if key.table_oid == row.oid),
            incoming_keys=tuple(_foreign_key(key) for key in keys if key.referenced_oid == row.oid),
            triggers=tuple(
                Trigger(
                    each.name,
                    TableName(each.schema_name, each.table_name),
                    each.oid,
                    each.version,
                    each.enabled,
                    each.definition,
                    each.function,
                )
                for each in triggers[row.oid]
            ),
            sequences=tuple(
                OwnedSequence(
                    TableName(each.schema_name, each.sequence_name),
                    each.column_name,
                    each.oid,
                    each.last_value,
                    each.increment,
                    each.cache,
                    each.least,
                    each.most,
                    each.can_set,
                )
                for each in sequences[row.oid]
            ),
            leaves=tuple(_leaf(each) for each in leaves[row.oid]),
        )
    return tables


def _column(row: Any) -> Column:  # noqa: ANN401  a row of read_columns
    return Column(
        row.name,
        row.position,
        row.type_name,
        row.base_type,
        row.is_builtin,
        row.is_enum,
        row.is_binary_safe,
        row.is_not_null,
        row.identity,
        row.generated,
        row.collation,
        row.equality_schema,
        tuple(sorted(row.labels.items())),
        row.has_default,
    )


def _index(table: TableName, row: Any) -> Index:  # noqa: ANN401  a row of read_indexes
    return Index(
        name=row.name,
        table=table,
        definition=row.definition,
        is_unique=row.is_unique,
        is_primary=row.is_primary,
        is_valid=row.is_valid,
        is_partial=row.is_partial,
        columns=tuple(row.column_names),
        method=row.method,
        tablespace=row.tablespace,
        comment=row.comment,
        is_replica_identity=row.is_replica_identity,
        is_clustered=row.is_clustered,
        constraint=row.constraint_name,
        constraint_kind=row.constraint_kind,
        constraint_definition=row.constraint_definition,
        constraint_comment=row.constraint_comment,
        is_deferrable=row.is_deferrable,
        needed_by=tuple(row.needed_by),
    )


def _foreign_key(row: Any) -> ForeignKey:  # noqa: ANN401  a row of read_foreign_keys
    return ForeignKey(
        row.name,
        TableName(row.schema_name, row.table_name),
        tuple(row.column_names),
        TableName(row.referenced_schema, row.referenced_name),
        tuple(row.referenced_columns),
        row.definition,
        row.is_validated,
    )


def _require_readable_parts(
    names: Mapping[int, TableName], leaves: Mapping[int, Sequence[Any]]
) -> None:
    faults = [
        fault
        for oid, table in names.items()
        for row in leaves.get(oid, ())
        if (fault := _find_part_fault(table, row)) is not None
    ]
    if faults:
        first = faults[0]
        raise Refused(
            "; ".join(fault.fact for fault in faults),
            wanted=first.wanted,
            todo=first.todo,
            findings=[fault.fact for fault in faults],
            finding=first.finding,
        )


def _find_part_fault(table: TableName, row: Any) -> Refused | None:  # noqa: ANN401  a row of read_leaves
    name = TableName(row.schema_name, row.table_name)
    if row.kind != "r":
        return Refused(
            f"{name}, a part of {table}, is {_KINDS.get(row.kind, 'not a table')}",
            wanted="Partitions that are tables of this database",
            todo="Detach it, or move its rows into a table first",
            finding="parts-unreadable",
        )
    if not row.can_select or row.hides_rows:
        return Refused(
            f"We may not read all rows of {name}, a part of {table}",
            wanted="SELECT on every part by itself, and no row level security that applies to us",
            todo=f"GRANT SELECT ON {name} TO our role, or connect as the table's owner",
            finding="parts-unreadable",
        )
    return None


def _leaf(row: Any) -> Leaf:  # noqa: ANN401  a row of read_leaves
    name = TableName(row.schema_name, row.table_name)
    return Leaf(
        row.oid, name, row.filenode, row.blocks, row.bound, row.access_method, row.is_unlogged
    )


async def read_own_triggers(session: Session) -> list[OwnTrigger]:
    """Return the triggers of ours in this database, clones on partitions included."""
    return [
        OwnTrigger(
            TableName(row.schema_name, row.table_name),
            row.table_oid,
            row.name,
            row.oid,
            row.version,
            row.enabled,
            row.is_clone,
        )
        for row in await session.fetch_all("catalog", "read_own_triggers")
    ]


async def require_unchanged(session: Session, tables: Sequence[Table]) -> None:
    """Raise `Refused` unless the catalog still says of these tables what it said when read."""
    now = await read_tables(session, [table.name for table in tables])
    drift = explain_drift(fingerprint(tables), fingerprint(now.values()))
    if drift:
        raise Refused(
            f"The {session.side}'s schema has changed while this command was at work: "
            + "; ".join(drift),
            wanted="Tables that keep their columns and keys meanwhile",
            todo="Run the command again when the change is complete",
            findings=drift,
        )


def recorded(value: Index | ForeignKey | Trigger | Check) -> dict[str, Any]:
    """Return a definition as JSON can hold it, for the ledger."""
    return asdict(value)
