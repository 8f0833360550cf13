"""Cleanup of the monolith's tables: renamed first, dropped later, known by their oids throughout.

How far it is stands on the side rows, as their intent, and changes there in the transaction that
does the step: the names with the renaming, the end of the tables with the drop. Before the drop all
of it can be undone. Nothing that the tables' neighbours use is locked for longer than a moment.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from psycopg import sql

from ordermigrate import catalog, locks, sides
from ordermigrate.backup import Backup, Member
from ordermigrate.control import Session
from ordermigrate.errors import Busy, LockTimeout, Refused
from ordermigrate.model import TableName
from ordermigrate.sides import SideRow

# What `lock_timeout` is for tables that ours point at, which a DROP locks as well.
_QUEUE_MS = "200"
_NAME_BYTES = 63


class Stage(StrEnum):
    """How far a cleanup is."""

    BEGUN = "begun"
    BACKED_UP = "backed_up"
    RENAMED = "renamed"
    DROPPING = "dropping"
    DROPPED = "dropped"


@dataclass(frozen=True, slots=True)
class Progress:
    """What a side row says of a cleanup that is under way.

    `tables` are the family's by oid, with the names that they had; `round` is the side's when the
    backup was begun: with another, rows have come since.
    """

    stage: Stage
    tables: tuple[tuple[int, str], ...]
    round: int | None = None
    backup: Backup | None = None
    members: tuple[Member, ...] = ()
    renamed_at: str | None = None

    def as_intent(self) -> dict[str, Any]:
        """Return it as a side row keeps it."""
        return {
            sides.CLEANING: {
                "stage": self.stage.value,
                "tables": [list(each) for each in self.tables],
                "round": self.round,
                "backup": self.backup and self.backup.as_json(),
                "members": [
                    [each.oid, each.name.schema, each.name.name, each.has_rows, each.is_root]
                    for each in self.members
                ],
                "renamed_at": self.renamed_at,
            }
        }


def read_progress(row: SideRow | None) -> Progress | None:
    """Return how far a cleanup is, by one side's row; None where none is under way."""
    if row is None or row.intent is None or sides.CLEANING not in row.intent:
        return None
    found = row.intent[sides.CLEANING]
    return Progress(
        Stage(found["stage"]),
        tuple((int(oid), str(name)) for oid, name in found["tables"]),
        found["round"],
        found["backup"] and Backup.from_json(found["backup"]),
        tuple(
            Member(oid, TableName(schema, name), has_rows, is_root)
            for oid, schema, name, has_rows, is_root in found["members"]
        ),
        found["renamed_at"],
    )


async def note(session: Session, progress: Progress) -> None:
    """Say on a side's row how far the cleanup is."""
    await sides.note_intent(session, progress.as_intent())


async def read_members(monolith: Session, oids: Sequence[int]) -> tuple[Member, ...]:
    """Return the tables of these oids and all parts of them, under the names that they have now."""
    return tuple(
        Member(row.oid, TableName(row.schema_name, row.table_name), row.has_rows, row.is_root)
        for row in await monolith.fetch_all("cleanup", "read_members", list(oids))
    )


def find_other_name(member: Member) -> TableName:
    """Return the name that a table waits under for its end."""
    tail = f"_ordermigrate_{member.oid}"
    head = member.name.name.encode()[: _NAME_BYTES - len(tail)].decode(errors="ignore")
    return TableName(member.name.schema, head + tail)


async def rename(monolith: Session, progress: Progress) -> Progress:
    """Give the tables and their parts other names, and note it, in one transaction.

    Raises:
        LockTimeout: There was no moment in which nobody used them.
        Busy: Rows have come since the backup.

    """
    roots = [each.name for each in progress.members if each.is_root]
    async with locks.excluding_writers(monolith, roots, is_exclusive=True):
        row = await monolith.fetch_one("sides", "lock_side")
        now = await read_members(monolith, [oid for oid, _ in progress.tables])
        if row.round != progress.round or now != progress.members:
            raise Busy(
                "Something has changed in the monolith's tables since they were backed up",
                wanted="A backup of the very tables that are dropped later",
                todo="End what is at work on them (`ordermigrate sync`, an ALTER TABLE), then run "
                "`ordermigrate cleanup` again: it backs up anew",
            )
        for each in progress.members:
            await _rename(monolith, each.name, find_other_name(each))
        clock = await _read_clock(monolith, "now", 0)
        renamed = replace(progress, stage=Stage.RENAMED, renamed_at=clock.now)
        await note(monolith, renamed)
    return renamed


async def undo(monolith: Session, progress: Progress) -> list[str]:
    """Give the tables their names back and take the note off, in one transaction.

    Returns the names that were given back.

    Raises:
        Refused: Something else has one of the names by now.
        LockTimeout: There was no moment in which nobody used the tables.

    """
    known = {each.oid: each.name for each in progress.members}
    now = await read_members(monolith, [oid for oid, _ in progress.tables])
    renamed = [each for each in now if each.oid in known and each.name != known[each.oid]]
    if not renamed:
        await sides.note_intent(monolith, None)
        return []
    await _require_free(monolith, [known[each.oid] for each in renamed])
    roots = [each.name for each in now if each.is_root]
    async with locks.excluding_writers(monolith, roots, is_exclusive=True):
        for each in renamed:
            await _rename(monolith, each.name, known[each.oid])
        await sides.note_intent(monolith, None)
    return [str(known[each.oid]) for each in renamed]


async def _require_free(monolith: Session, names: Sequence[TableName]) -> None:
    taken = [
        str(each.name)
        for each in await catalog.find_tables(monolith, names)
        if each.oid is not None
    ]
    if taken:
        raise Refused(
            f"The monolith has something else of the name {', '.join(taken)} by now",
            wanted="The names that the tables had before they were renamed",
            todo="Rename or drop what has taken them; then run the command again",
        )


async def _rename(monolith: Session, old: TableName, new: TableName) -> None:
    await monolith.fetch_all(
        "cleanup", "rename_table", table=old.sql, name=sql.Identifier(new.name)
    )


async def _read_clock(monolith: Session, moment: str, hours: float) -> Any:  # noqa: ANN401  a row
    return await monolith.fetch_one("cleanup", "read_clock", moment, hours)


async def find_due(monolith: Session, progress: Progress, wait_hours: float) -> str | None:
    """Return from when on the renamed tables may be dropped; None where that is so already."""
    clock = await _read_clock(monolith, progress.renamed_at or "now", wait_hours)
    return None if clock.is_due else str(clock.due_at)


async def drop(monolith: Session, progress: Progress) -> Progress:
    """Drop the tables and note it, in one transaction.

    Raises:
        Refused: Something else depends on them.
        LockTimeout: There was no moment in which nobody used them, or a table that they point at.

    """
    dropped = replace(progress, stage=Stage.DROPPED)
    await _drop(monolith, progress, lambda: note(monolith, dropped))
    return dropped


class _Tried(Exception):
    """Undoes what was only tried."""


async def find_dependents(monolith: Session, progress: Progress) -> list[str]:
    """Say what a DROP of the tables would be refused for: it is tried, and undone.

    Raises:
        LockTimeout: There was no moment in which nobody used them.

    """

    async def stop() -> None:
        raise _Tried

    try:
        with contextlib.suppress(_Tried):
            await _drop(monolith, progress, stop)
    except Refused as refused:
        if refused.sqlstate != _DEPENDED_ON:
            raise
        diagnostic = getattr(refused.__cause__, "diag", None)
        lines = (getattr(diagnostic, "message_detail", None) or refused.fact).splitlines()
        return [line.strip() for line in lines if line.strip()]
    return []


_DEPENDED_ON = "2BP01"


async def _drop(monolith: Session, progress: Progress, then: Callable[[], Awaitable[None]]) -> None:
    """Drop the tables that are still there, and do something more in the same transaction.

    A DROP locks the tables that ours point at by foreign keys, too. They are the application's: so
    it waits for them for a moment only, lets all go, and tries again.
    """
    end = time.monotonic() + float(monolith.route.settings["lock_timeout"]) / 1000
    while True:
        members = await read_members(monolith, [oid for oid, _ in progress.tables])
        roots = [each.name for each in members if each.is_root]
        if not roots:
            async with monolith.transaction():
                await then()
            return
        try:
            async with locks.excluding_writers(monolith, roots, is_exclusive=True):
                await monolith.set_local("lock_timeout", _QUEUE_MS)
                await monolith.set_local("statement_timeout", "0")
                names = sql.SQL(", ").join(each.sql for each in roots)
                await monolith.fetch_all("cleanup", "drop_tables", tables=names)
                await then()
        except LockTimeout:
            if time.monotonic() >= end:
                raise
            await asyncio.sleep(random.uniform(0.2, 0.6))  # noqa: S311  jitter, not a secret
        else:
            return
