"""The fence: on the cold side nobody but us writes to the family's tables.

A trigger per statement on each table and part, and one per row on each table, which partitions
inherit and which a cascade or a subscription's apply meets as well. Both fire always, for the
owner and superusers too. They let those pass who show the pass of this database's side row, which
only its owner can read; the triggers themselves hold its hash. Refused statements are counted.

The trigger per row comes when the bulk load is over: a COPY would ask it about every row. Until
then, rows that came past the first one are found when the copy is closed, by who wrote them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence

from psycopg import sql

from ordermigrate.control import Session
from ordermigrate.model import OwnTrigger, Table, TableName

STATEMENT = "ordermigrate_fence"
ROW = "ordermigrate_fence_row"


def is_fence(trigger: OwnTrigger) -> bool:
    """Whether a trigger of ours is one of these."""
    return trigger.name in {STATEMENT, ROW}


def _wanted(table: Table, *, has_rows: bool) -> Iterator[tuple[TableName, str]]:
    for name in dict.fromkeys([table.name, *(leaf.name for leaf in table.leaves)]):
        yield name, STATEMENT
        # A partition has its root's clone; an inheritance child needs its own.
        if has_rows and (name == table.name or not table.is_partitioned):
            yield name, ROW


def find_gaps(
    tables: Iterable[Table],
    triggers: Sequence[OwnTrigger],
    *,
    has_rows: bool = True,
    is_on: bool = True,
) -> list[str]:
    """Say in sentences where the fence is missing or does not fire; empty where it is whole.

    On the owner's side it stands by: there it must not fire (`is_on` is False).
    """
    wanted_state = "A" if is_on else "D"
    there = {(each.table, each.name): each for each in triggers}
    said: list[str] = []
    for table in tables:
        for name, trigger in _wanted(table, has_rows=has_rows):
            if (name, trigger) not in there:
                said.append(f"trigger {trigger} on {name} is missing")
        names = {table.name, *(leaf.name for leaf in table.leaves)}
        said.extend(
            f"trigger {each.name} on {each.table} "
            + ("does not fire always" if is_on else "is not off")
            for each in triggers
            if each.table in names
            and each.name in {STATEMENT, ROW}
            and each.enabled != wanted_state
        )
    return said


async def install(
    session: Session,
    tables: Sequence[Table],
    triggers: Sequence[OwnTrigger],
    pass_word: str,
    *,
    has_rows: bool,
    is_on: bool = True,
) -> list[str]:
    """Fence the tables off, or mend what is missing, in the caller's transaction.

    Args:
        session: In a transaction; on the owner's side one that keeps writers out.
        tables: The family as it is there.
        triggers: Our triggers as they are there.
        pass_word: This database's pass.
        has_rows: Whether to put up the fence per row as well.
        is_on: Whether it is to fire, or to stand by for the day when the owner changes.

    Returns:
        What was done, in sentences.

    """
    gaps = find_gaps(tables, triggers, has_rows=has_rows, is_on=is_on)
    if not gaps:
        return []
    await session.fetch_all("fence", "create_counter")
    await session.fetch_all("fence", "create_refuse_write")
    await session.fetch_all("fence", "keep_refuse_write_private")
    wanted_state = "A" if is_on else "D"
    there = {(each.table, each.name): each for each in triggers}
    digest = "\\x" + hashlib.sha256(pass_word.encode()).hexdigest()
    for table in tables:
        for name, trigger in _wanted(table, has_rows=has_rows):
            found = there.get((name, trigger))
            if found is None:
                await session.fetch_all(
                    "fence",
                    "create_statement_fence" if trigger == STATEMENT else "create_row_fence",
                    table=name.sql,
                    hash=sql.Literal(digest),
                    owner=sql.Literal(session.side.other.value),
                )
            if found is None or found.enabled != wanted_state:
                await _switch(session, name, trigger, is_on=is_on)
    for each in triggers:
        if each.is_clone and each.name == ROW and each.enabled != wanted_state:
            await _switch(session, each.table, each.name, is_on=is_on)
    if not is_on:
        return [f"keep a fence ready for {table.name}, switched off" for table in tables]
    return [f"fence {table.name} off: only ordermigrate writes there" for table in tables]


async def _switch(session: Session, table: TableName, name: str, *, is_on: bool) -> None:
    await session.fetch_all(
        "fence",
        "fire_always" if is_on else "stand_by",
        table=table.sql,
        trigger=sql.Identifier(name),
    )


async def count_refused(session: Session) -> int | None:
    """Return how many statements the fence has refused; None where there is no fence."""
    if not (await session.fetch_one("fence", "has_counter")).has_counter:
        return None
    return int((await session.fetch_one("fence", "count_refused")).refused)


def describe(tables: Sequence[Table], triggers: Sequence[OwnTrigger]) -> str:
    """Say whether the fence of a side is `on`, `off` or `partial`."""
    ours = [each for each in triggers if each.name in {STATEMENT, ROW}]
    if all(each.enabled == "D" for each in ours):
        return "off"
    return "partial" if find_gaps(tables, triggers, has_rows=False) else "on"
