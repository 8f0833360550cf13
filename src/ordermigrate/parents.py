"""Parents: tables that columns of the family depend on, and the triggers that watch them.

A parent's change is logged by its primary key, in the transaction that makes it, as a row's is;
which rows of the family change with it is found out later, by the round that takes it. An update
of anything but the columns that are read costs the parent's writers one comparison.

While the service owns the tables nobody watches. Whenever watching begins again, a mark goes into
the log in the same transaction: every row that depends on the parent is then looked at anew. So
what happened in between need not be known, and triggers that were missing are made good likewise.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from psycopg import sql

from ordermigrate import capture, catalog, change_logs, locks
from ordermigrate.change_logs import TRUNCATED, ChangeLog
from ordermigrate.control import Session
from ordermigrate.model import OwnTrigger, Parents, Table

PREFIX = "ordermigrate_parent_"


@dataclass(frozen=True, slots=True)
class _Wanted:
    """A trigger that belongs on a parent."""

    table: Table
    kind: str
    columns: tuple[str, ...]

    @property
    def name(self) -> str:
        if self.kind != "update":
            return PREFIX + self.kind
        # Which columns it looks at cannot be seen but by its name.
        said = "\n".join(self.columns).encode()
        return f"{PREFIX}{self.kind}_{hashlib.sha256(said).hexdigest()[:8]}"


def is_watch(trigger: OwnTrigger) -> bool:
    """Whether a trigger of ours watches a parent."""
    return trigger.name.startswith(PREFIX)


def _wanted(found: Parents) -> Iterator[_Wanted]:
    for table, columns in found.values():
        seen = (*table.primary_key, *(name for name in columns if name not in table.primary_key))
        for kind in ("row", "update", "truncate"):
            yield _Wanted(table, kind, seen)


def labels(found: Parents) -> list[str]:
    """Return what the parents' logs are known by."""
    return [change_logs.label_parent(name) for name in found]


def find_gaps(found: Parents, triggers: Sequence[OwnTrigger]) -> list[str]:
    """Say in sentences what of the triggers is not as is wanted; empty where all is.

    Args:
        found: What the family's columns depend on; empty where nothing is to be watched, because
            the monolith is not the owner.
        triggers: Our triggers there.

    """
    wanted = {(each.table.name, each.name) for each in _wanted(found)}
    there = {(each.table, each.name): each for each in triggers if is_watch(each)}
    missing = [
        f"trigger {name} on {table} is missing"
        for table, name in sorted(wanted)
        if (table, name) not in there
    ]
    wrong = [
        f"trigger {name} on {table} "
        + ("does not fire always" if (table, name) in wanted else "is not wanted any more")
        for (table, name), each in sorted(there.items())
        if each.enabled != ("A" if (table, name) in wanted else "D")
    ]
    return missing + wrong


async def watch(session: Session, found: Parents, *, is_marking: bool) -> list[str]:
    """Watch what the family's columns depend on, and nothing else; return what was done.

    Args:
        session: On the monolith.
        found: What is to be watched, as for `find_gaps`.
        is_marking: Whether rows may be on the service already: whatever was not watched until now
            then has all rows that depend on it looked at.

    Raises:
        LockTimeout: There was no moment in which nobody wrote to a parent.

    """
    triggers = await catalog.read_own_triggers(session)
    missing = await change_logs.find_missing(session, labels(found)) if found else []
    if not missing and not find_gaps(found, triggers):
        return []
    logs: dict[str, ChangeLog] = {}
    async with session.transaction():
        for name, (table, _) in found.items():
            label = change_logs.label_parent(name)
            logs[label] = await change_logs.create(session, table, label)
            await capture.create_functions(session, table, logs[label])
    there = [each for each in triggers if is_watch(each)]
    names = dict.fromkeys([*found, *(each.table for each in there)])
    async with locks.excluding_writers(session, names):
        begun = await _switch(session, found, there, logs)
        for label, log in logs.items():
            if is_marking and (label in begun or missing):
                await change_logs.add_mark(session, log, TRUNCATED)
        stale = {change_logs.label_parent(name) for name in names} - logs.keys()
        for log in await change_logs.read_all(session):
            if log.table in stale:  # nobody would take what is in it
                await session.run(log.compose("empty_log"))
    return [
        f"watch {name} for the columns that depend on it"
        for name in found
        if change_logs.label_parent(name) in begun
    ]


async def _switch(
    session: Session,
    found: Parents,
    there: Sequence[OwnTrigger],
    logs: Mapping[str, ChangeLog],
) -> set[str]:
    """Put up, switch on and switch off what is to be; return the logs that are filled only now."""
    states = {(each.table, each.name): each.enabled for each in there}
    begun: set[str] = set()
    for each in _wanted(found):
        label = change_logs.label_parent(each.table.name)
        place = each.table.name, each.name
        if place not in states:
            await _create_trigger(session, each, logs[label])
        if states.pop(place, None) != "A":
            await capture.switch(session, *place, is_on=True)
            begun.add(label)
    for (table, name), state in states.items():
        if state != "D":
            await capture.switch(session, table, name, is_on=False)
    return begun


async def _create_trigger(session: Session, wanted: _Wanted, log: ChangeLog) -> None:
    parts: dict[str, sql.Composable] = {
        "trigger": sql.Identifier(wanted.name),
        "table": wanted.table.name.sql,
        "function": capture.name_function(log, "truncate" if wanted.kind == "truncate" else "row"),
    }
    if wanted.kind == "update":
        parts |= {row.lower(): _row(row, wanted.columns) for row in ("OLD", "NEW")}
    if wanted.kind == "truncate":
        parts["mark"] = sql.Literal(TRUNCATED)
    await session.fetch_all("parents", f"watch_{wanted.kind}", **parts)


def _row(row: str, columns: Sequence[str]) -> sql.Composed:
    return sql.SQL(", ").join(
        sql.SQL("{}.{}").format(sql.SQL(row), sql.Identifier(name)) for name in columns
    )
