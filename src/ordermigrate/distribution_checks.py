"""Checks that people look at first: statuses, orders per user, orphans, the latest orders.

They compare what is counted, not what is stored, and so explain a difference better than they
find one; `row_checks` finds them all.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field

from psycopg import sql

from ordermigrate import catalog, queries
from ordermigrate.digest import View
from ordermigrate.model import ForeignKey
from ordermigrate.scanning import Comparison, merge, raw
from ordermigrate.stream_sessions import FETCH_ROWS
from ordermigrate.together import run_together
from ordermigrate.verdicts import Check

LATEST_ROWS = 10
TOP_USERS = 10


async def check_status(table: Comparison) -> None:
    """Compare how many rows have each status."""
    name = "status distribution"
    started = table.begin(name)
    column = table.map.status
    if column is None:
        table.conclude(Check(name, "skipped", "no `status` in the configuration"), started)
        return
    counts = await run_together(
        *(
            scanner.fetch(
                queries.compose(
                    "distribution_checks",
                    "count_by_status",
                    status=raw(_expression(view, column)),
                    origin=raw(view.origin),
                )
            )
            for scanner, view in (table.source, table.target)
        )
    )
    source, target = ({row["status"]: row["rows"] for row in rows} for rows in counts)
    details = tuple(
        {"status": status, "source": source.get(status, 0), "target": target.get(status, 0)}
        for status in sorted(
            source.keys() | target.keys(), key=lambda value: (value is None, value)
        )
    )
    wrong = [each for each in details if each["source"] != each["target"]]
    summary = (
        f"{len(wrong)} of {len(details)} states differ"
        if wrong
        else f"{len(details)} states, the same counts"
    )
    table.conclude(Check(name, "different" if wrong else "equal", summary, details), started)


def _expression(view: View, column: str) -> str:
    """Return a configured column's expression on one side; a frozen one is read as it is."""
    named = dict(view.columns)
    return named.get(column, sql.Identifier(column).as_string(None))


def _by_its_bytes(table: Comparison, expression: str, column: str) -> str:
    """Return an expression that groups as bytes do: to a collation, two texts can be one."""
    target = table.map.target.column(column)
    has_collation = target is not None and target.collation is not None
    return f'({expression})::text COLLATE "C"' if has_collation else expression


@dataclass(slots=True)
class _Users:
    """What the comparison per user has met so far."""

    users: int = 0
    differing: int = 0
    top: list[tuple[int, int, str | None, int, int]] = field(default_factory=list)
    unknown: int = 0
    unknown_rows: int = 0
    unknown_examples: list[str] = field(default_factory=list)
    batch: dict[str, int] = field(default_factory=dict)

    def meet(self, user: str | None, source: int, target: int) -> None:
        """Count a user; keep the largest differences."""
        self.users += 1
        if target and user is not None:
            self.batch[user] = target
        if source == target:
            return
        self.differing += 1
        entry = (abs(target - source), -self.users, user, source, target)
        if len(self.top) < TOP_USERS:
            heapq.heappush(self.top, entry)
        else:
            heapq.heappushpop(self.top, entry)


async def check_users(table: Comparison) -> None:
    """Compare how many rows each user has, and look for users that the source no longer has.

    Only the largest differences are kept; all are counted.
    """
    started = table.begin("orders per user")
    column = table.map.user
    if column is None:
        for name in ("orders per user", "orphans"):
            table.conclude(Check(name, "skipped", "no `user` in the configuration"), started)
        return
    key, reason = await _find_reference(table, column)
    found = _Users()
    streams_of = []
    for scanner, view in (table.source, table.target):
        statement = queries.compose(
            "distribution_checks",
            "count_by_user",
            user=raw(_by_its_bytes(table, _expression(view, column), column)),
            origin=raw(view.origin),
        )
        streams_of.append(scanner.stream(statement))
    async for source, target in merge(*streams_of):
        row = source or target
        found.meet(
            row["user_text"], source["rows"] if source else 0, target["rows"] if target else 0
        )
        if key is not None and len(found.batch) >= FETCH_ROWS:
            await _find_orphans(table, key, found)
    details = tuple(
        {"user": user, "source": source, "target": target}
        for _, _, user, source, target in sorted(found.top, reverse=True)
    )
    summary = (
        f"{found.differing:,} of {found.users:,} users differ"
        if found.differing
        else f"{found.users:,} users, the same counts"
    )
    outcome = "different" if found.differing else "equal"
    table.conclude(Check("orders per user", outcome, summary, details), started)
    started = table.begin("orphans")
    if key is None:
        table.conclude(Check("orphans", "skipped", reason), started)
        return
    await _find_orphans(table, key, found)
    table.conclude(_orphan_result(table, key, found), started)


async def _find_reference(table: Comparison, column: str) -> tuple[ForeignKey | None, str]:
    """Return the source's foreign key that says where users are kept, or why it cannot be used."""
    key = next((each for each in table.map.source.foreign_keys if each.columns == (column,)), None)
    if key is None:
        return None, f"no foreign key of the {table.control.side} tells where {column} points"
    (there,) = await catalog.find_tables(table.control, [key.references])
    if not there.can_select:
        return None, f"we may not read {key.references} on the {table.control.side}"
    return key, ""


async def _find_orphans(table: Comparison, key: ForeignKey, found: _Users) -> None:
    """Ask the source, as it is now, which users of the batch it no longer has."""
    batch, found.batch = found.batch, {}
    origin = next(each for each in table.map.source.columns if each.name == key.columns[0])
    rows = await table.control.fetch_all(
        "distribution_checks",
        "find_unknown_users",
        list(batch),
        table=key.references.sql,
        column=sql.Identifier(key.referenced_columns[0]),
        type=raw(origin.type_name),
    )
    for row in rows:
        user = row.user_text
        found.unknown += 1
        found.unknown_rows += batch[user]
        if len(found.unknown_examples) < TOP_USERS:
            found.unknown_examples.append(user)


def _orphan_result(table: Comparison, key: ForeignKey, found: _Users) -> Check:
    if not found.unknown:
        return Check("orphans", "equal", f"every user of the target is in {key.references}")
    return Check(
        "orphans",
        "attention",
        f"{found.unknown_rows:,} rows of {found.unknown:,} users that {key.references} on the "
        f"{table.control.side} no longer has",
        tuple({"user": user} for user in found.unknown_examples),
    )


async def check_latest(table: Comparison) -> None:
    """Compare the newest rows: key, user, status and time."""
    name = "latest orders"
    started = table.begin(name)
    column = table.map.created
    if column is None:
        table.conclude(Check(name, "skipped", "no `created` in the configuration"), started)
        return
    wanted = [*table.map.key, table.map.user, table.map.status, column]
    shown = [each for each in dict.fromkeys(wanted) if each is not None]
    rows = await run_together(
        *(
            scanner.fetch(
                queries.compose(
                    "distribution_checks",
                    "read_latest",
                    shown=raw(", ".join(f"({_expression(view, each)})::text" for each in shown)),
                    created=raw(_expression(view, column)),
                    key_image=raw(view.key_image),
                    origin=raw(view.origin),
                ),
                LATEST_ROWS,
            )
            for scanner, view in (table.source, table.target)
        )
    )
    source, target = ([tuple(row["shown"]) for row in side] for side in rows)
    details = tuple(
        {
            "source": dict(zip(shown, source[place], strict=True)) if place < len(source) else None,
            "target": dict(zip(shown, target[place], strict=True)) if place < len(target) else None,
        }
        for place in range(max(len(source), len(target)))
    )
    wrong = sum(each["source"] != each["target"] for each in details)
    summary = (
        f"{wrong} of the latest {len(details)} differ"
        if wrong
        else f"the latest {len(details)} are the same"
    )
    table.conclude(Check(name, "different" if wrong else "equal", summary, details), started)
