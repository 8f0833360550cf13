"""Fingerprints: what of a table must not change while its rows are on their way.

Oids tell a table from one that was dropped and made again, partitions included. Files and our own
triggers are watched beside it: a rewrite changes nothing but where the rows are, and yet is told.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from ordermigrate.model import OwnTrigger, Parents, Table


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
        "labels": {column.name: dict(column.labels) for column in table.columns if column.labels},
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


def describe_side(
    tables: Iterable[Table],
    triggers: Iterable[OwnTrigger],
    parents: Parents | None = None,
) -> dict[str, Any]:
    """Return all that is watched of one side: structure, files, and our own triggers.

    Of `parents`, which columns of the family depend on, that is what these read.
    """
    tables, parents = list(tables), parents or {}
    read = [*tables, *(table for table, _ in parents.values())]
    return {
        "tables": fingerprint(tables),
        "parents": {
            str(name): _describe_parent(table, columns)
            for name, (table, columns) in parents.items()
        },
        "files": {str(leaf.name): leaf.filenode for table in read for leaf in table.leaves},
        "triggers": {
            f"{each.name} on {each.table}": [each.oid, each.version, each.enabled]
            for each in triggers
        },
    }


def _describe_parent(table: Table, columns: Iterable[str]) -> dict[str, Any]:
    """Return of a parent what its rows' values for others hang on."""
    whole = describe_structure(table)
    read = {*columns, *table.primary_key}
    return {
        **whole,
        "columns": {name: each for name, each in whole["columns"].items() if name in read},
        "labels": {name: each for name, each in whole["labels"].items() if name in read},
        "leaves": {},
    }


def add_later_parts(first: dict[str, Any], last: dict[str, Any]) -> dict[str, Any]:
    """Return the first attempt's description, with the parts that only the last one has.

    Rows came from them, but what they held when they were attached is in no log. So they stand
    apart: such a part is told as gone where it is not there any more, and as added where it is.
    """
    later = {
        name: {
            leaf: described
            for leaf, described in last["tables"][name]["leaves"].items()
            if leaf not in first["tables"][name]["leaves"]
        }
        for name in first["tables"].keys() & last["tables"].keys()
    }
    parts = {leaf for leaves in later.values() for leaf in leaves}
    return {
        **first,
        "tables": {
            name: {**table, "later_leaves": later.get(name, {})}
            for name, table in first["tables"].items()
        },
        "triggers": {
            **first["triggers"],
            **{
                name: trigger
                for name, trigger in last["triggers"].items()
                if name.partition(" on ")[2] in parts
            },
        },
    }


@dataclass(frozen=True, slots=True)
class Changes:
    """What differs between two descriptions of one side, in sentences but for the parts."""

    drift: tuple[str, ...]
    parts_added: tuple[tuple[str, str], ...]
    parts_gone: tuple[tuple[str, str], ...]
    rewritten: tuple[str, ...]
    triggers: tuple[str, ...]


def compare_sides(before: dict[str, Any], after: dict[str, Any]) -> Changes:
    """Tell what has become of a side since it was described.

    Parts of a table are given as (table, part); one that was attached anew is both gone and added,
    and so is one that was detached and attached again: nothing watched it meanwhile.
    """
    added: list[tuple[str, str]] = []
    gone: list[tuple[str, str]] = []
    for name in sorted(before["tables"].keys() & after["tables"].keys()):
        old, new = (each["tables"][name]["leaves"] for each in (before, after))
        brought = {**before["tables"][name].get("later_leaves", {}), **old}
        again = _attached_again(
            before["triggers"], after["triggers"], name, brought.keys() & new.keys()
        )
        # A plain table is its own only part; that it was made anew is told as drift.
        gone.extend(
            (name, leaf)
            for leaf in sorted(brought)
            if leaf != name and (new.get(leaf) != brought[leaf] or leaf in again)
        )
        added.extend(
            (name, leaf)
            for leaf in sorted(new)
            if leaf != name and (new[leaf] != old.get(leaf) or leaf in again)
        )
    moved = {leaf for _, leaf in (*added, *gone)}
    # A part that is none any more keeps triggers of ours for a while, or for good.
    watched = (_watched(before) | _watched(after)) - moved
    return Changes(
        (
            *explain_drift(_rows_only(before["tables"]), _rows_only(after["tables"])),
            *_explain_parents(before, after),
        ),
        tuple(added),
        tuple(gone),
        tuple(
            f"{leaf} has another file (TRUNCATE, VACUUM FULL, CLUSTER or ALTER TABLE)"
            for leaf in sorted(before["files"].keys() & after["files"].keys())
            if before["files"][leaf] != after["files"][leaf] and leaf not in moved
        ),
        tuple(
            _explain_trigger(name, before["triggers"].get(name), after["triggers"].get(name))
            for name in sorted(before["triggers"].keys() | after["triggers"].keys())
            if before["triggers"].get(name) != after["triggers"].get(name)
            and name.partition(" on ")[2] in watched
        ),
    )


def _explain_parents(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """Tell what differs in parents that both descriptions know of, and that columns read."""
    old, new = (each.get("parents", {}) for each in (before, after))
    known = old.keys() & new.keys()
    columns = {name: old[name]["columns"].keys() & new[name]["columns"].keys() for name in known}
    return explain_drift(
        *(
            _rows_only(
                {
                    name: {
                        **side[name],
                        "columns": {
                            key: each
                            for key, each in side[name]["columns"].items()
                            if key in columns[name]
                        },
                    }
                    for name in known
                }
            )
            for side in (old, new)
        )
    )


def _watched(side: dict[str, Any]) -> set[str]:
    return {
        *side["tables"],
        *side.get("parents", {}),
        *(leaf for table in side["tables"].values() for leaf in table["leaves"]),
    }


def _attached_again(
    before: dict[str, Any], after: dict[str, Any], table: str, parts: Iterable[str]
) -> set[str]:
    """Return the parts whose clones of the table's own triggers are others, and the table's not."""
    of_table = f" on {table}"
    kept = [
        name.removesuffix(of_table)
        for name in before.keys() & after.keys()
        if name.endswith(f"_row{of_table}") and before[name][0] == after[name][0]
    ]
    return {
        part
        for part in parts
        for name in kept
        if before.get(f"{name} on {part}", [None])[0] != after.get(f"{name} on {part}", [None])[0]
    }


def _explain_trigger(name: str, old: list[Any] | None, new: list[Any] | None) -> str:
    if old is None:
        return f"trigger {name} was added"
    if new is None:
        return f"trigger {name} was dropped"
    if new[2] != old[2]:
        return f"trigger {name} was switched {'off' if new[2] == 'D' else 'over'}"
    return f"trigger {name} was switched off and on again, or made anew"


def _rows_only(tables: dict[str, Any]) -> dict[str, Any]:
    """Leave out what cannot change the meaning of a row: nullability, further keys, parts."""
    return {
        name: {
            **table,
            "columns": {
                key: [column[0], column[1], column[2], column[5]]
                for key, column in table["columns"].items()
            },
            "keys": {key: each for key, each in table["keys"].items() if each[0]},
            "leaves": {},
        }
        for name, table in tables.items()
    }


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
        said.extend(_explain_labels(name, old, new))
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
            was, now = (
                ", ".join(
                    _say(mine) for mine, theirs in zip(one, other, strict=True) if mine != theirs
                )
                for one, other in ((old[key], new[key]), (new[key], old[key]))
            )
            is_anew = label(key).startswith("column ") and old[key][0] != new[key][0]
            said = " (its place: it was dropped and added again)" if is_anew else ""
            yield f"{label(key)} changed from {was} to {now}{said}"


def _explain_labels(table: str, old: dict[str, Any], new: dict[str, Any]) -> Iterable[str]:
    """Tell of labels that rows may have had and that are others now; one more changes no row.

    What was noted before labels were is not known to have had others.
    """
    before, after = old.get("labels", {}), new.get("labels", {})
    for column in sorted(before.keys() & after.keys()):
        was, now = before[column], after[column]
        for oid, label in was.items():
            said = f"label {label} of column {column} of {table}"
            if now.get(oid, label) != label:
                yield f"{said} was renamed to {now[oid]}"
            elif oid not in now and label not in now.values():
                yield f"{said} was removed"


def _say(value: object) -> str:
    if isinstance(value, list):
        return f"({', '.join(map(str, value))})"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "none" if value in {None, ""} else str(value)
