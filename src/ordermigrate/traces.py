"""Traces: what is ours in a database, and its removal by what is found there.

Nothing is taken from the configuration or from memory: a trigger on a partition that was detached
long ago goes as well, whichever of the two sides it is and whichever the other was. Triggers go
under a lock for a moment; the schema, and with it every table, function and row of ours, goes last,
for a command that is cut off reads in it where to go on.
"""

from __future__ import annotations

from dataclasses import dataclass

from psycopg import sql

from ordermigrate import catalog, locks, sides
from ordermigrate.control import Session


@dataclass(frozen=True, slots=True)
class Trace:
    """Something of ours: its kind, and its name as one writes it in SQL."""

    kind: str
    name: str

    def __str__(self) -> str:
        """Say what it is."""
        return f"{self.kind} {self.name}"


async def find(session: Session) -> list[Trace]:
    """Return all that is ours in this database, or named for us; empty where nothing is."""
    return [Trace(*row) for row in await session.fetch_all("traces", "find_traces")]


async def describe_left(session: Session) -> list[str]:
    """Say what has our name and is not ours, so that nobody looks for it later."""
    return [
        f"{each} on the {session.side} has our name and is not ours: it stays"
        for each in await find(session)
    ]


async def plan(session: Session) -> list[str]:
    """Say in sentences what `remove_triggers` and `remove_schema` would remove."""
    steps = [
        f"remove trigger {each.name} from {each.table} on the {session.side}"
        for each in await catalog.read_own_triggers(session)
        if not each.is_clone
    ]
    if (await session.fetch_one("sides", "has_schema")).is_there:
        steps.append(f"drop schema ordermigrate on the {session.side}")
    return steps


async def remove_triggers(session: Session) -> None:
    """Take our triggers off whatever tables they are on, in a transaction of its own.

    Raises:
        LockTimeout: There was no moment in which nobody used the tables.

    """
    ours = [each for each in await catalog.read_own_triggers(session) if not each.is_clone]
    if not ours:
        return
    names = dict.fromkeys(each.table for each in ours)
    async with locks.excluding_writers(session, names, is_exclusive=True):
        for each in ours:
            await session.fetch_all(
                "traces", "drop_trigger", table=each.table.sql, trigger=sql.Identifier(each.name)
            )


async def remove_schema(session: Session) -> None:
    """Remove our schema with all that is in it, in the caller's transaction."""
    await session.set_local("statement_timeout", "0")
    await sides.remove(session)
