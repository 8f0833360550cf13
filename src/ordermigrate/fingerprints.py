"""Fingerprints: what of a table must not change while its rows are on their way.

Oids tell a table from one that was dropped and made again, partitions included; files are not
part of it, for a rewrite changes nothing but where the rows are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from ordermigrate.model import Table


def describe_structure(table: Table) -> dict[str, Any]:
    """Return what must not change while rows are on their way, as JSON can hold it."""
    return {
        "oid": table.oid,
        "kind": table.kind,
        "columns": {
            column.name: [
                column.position,
                column.type_name,
                column.collation,
                column.is_not_null,
                column.identity,
                column.generated,
            ]
            for column in table.columns
        },
        "keys": {
            index.name: [index.is_primary, list(index.columns)]
            for index in table.indexes
            if index.is_unique
        },
        "leaves": {str(leaf.name): [leaf.oid, leaf.bound] for leaf in table.leaves},
        "row_security": table.has_row_security,
    }


def fingerprint(tables: Iterable[Table]) -> dict[str, Any]:
    """Return the structure of several tables, by name, ready for the ledger."""
    return {str(table.name): describe_structure(table) for table in tables}


def explain_drift(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """Say in sentences what differs between two fingerprints; empty where nothing does."""
    said: list[str] = []
    for name in sorted(before.keys() | after.keys()):
        old, new = before.get(name), after.get(name)
        if old is None or new is None:
            said.append(f"{name} has {'appeared' if old is None else 'gone'}")
            continue
        if old["oid"] != new["oid"]:
            said.append(f"{name} was dropped and created again")
        describe: list[tuple[str, Callable[[str], str]]] = [
            ("columns", lambda key, name=name: f"column {key} of {name}"),  # type: ignore[misc]
            ("keys", lambda key, name=name: f"unique index {key} of {name}"),  # type: ignore[misc]
            ("leaves", lambda key, name=name: f"part {key} of {name}"),  # type: ignore[misc]
        ]
        for section, label in describe:
            said.extend(_explain_section(old[section], new[section], label))
        if old["row_security"] != new["row_security"]:
            said.append(f"row level security of {name} was switched")
    return said


def _explain_section(
    old: dict[str, Any], new: dict[str, Any], label: Callable[[str], str]
) -> Iterable[str]:
    for key in sorted(old.keys() | new.keys()):
        if key not in old:
            yield f"{label(key)} was added"
        elif key not in new:
            yield f"{label(key)} was dropped"
        elif old[key] != new[key]:
            yield f"{label(key)} changed from {old[key]} to {new[key]}"
