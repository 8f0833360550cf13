"""Capture: triggers on the hot side that write the key of every changed row into a change log.

The write and its entry commit together. This is the dual write, without the ways in which a second
write by the application could be lost. The trigger per row costs short transactions least; it
fires for whatever writes a row, for a write straight into a partition too, and comes to later
partitions by itself. It fires always, whatever the session's replication role. A TRUNCATE leaves a
mark instead of keys: what a statement of an older snapshot would read of the table need not be all
that goes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from psycopg import sql

from ordermigrate import change_logs, locks
from ordermigrate.change_logs import COMPARE, TRUNCATED, ChangeLog
from ordermigrate.control import Session
from ordermigrate.errors import Refused
from ordermigrate.model import Leaf, OwnTrigger, Table, TableName
from ordermigrate.together import run_together

PREFIX = "ordermigrate_capture_"
# Types whose equal values look alike.
_PLAIN = frozenset({"uuid", "smallint", "integer", "bigint"})


def is_capture(trigger: OwnTrigger) -> bool:
    """Whether a trigger of ours is one of these."""
    return trigger.name.startswith(PREFIX)


@dataclass(frozen=True, slots=True)
class _Wanted:
    """A trigger that belongs on a table or one of its parts."""

    table: TableName
    kind: str
    mark: str = ""

    @property
    def name(self) -> str:
        return PREFIX + self.kind


def _wanted(table: Table) -> Iterator[_Wanted]:
    """Yield the triggers that capture a table; clones on partitions come by themselves."""
    if table.is_partitioned:
        yield _Wanted(table.name, "row")
        yield _Wanted(table.name, "truncate", TRUNCATED)
        for leaf in table.leaves:
            yield _Wanted(leaf.name, "truncate", COMPARE)
        return
    has_children = len(table.leaves) > 1
    for leaf in table.leaves:
        yield _Wanted(leaf.name, "row")
        yield _Wanted(leaf.name, "truncate", COMPARE if has_children else TRUNCATED)


def find_gaps(
    tables: Iterable[Table], triggers: Sequence[OwnTrigger], *, is_on: bool = True
) -> list[str]:
    """Say in sentences which capture triggers are missing or do not fire; empty where all do.

    On the cold side they stand by: there they must not fire (`is_on` is False).
    """
    wanted_state = "A" if is_on else "D"
    there = {(each.table, each.name): each for each in triggers}
    said: list[str] = []
    for table in tables:
        for wanted in _wanted(table):
            found = there.get((wanted.table, wanted.name))
            if found is None:
                said.append(f"trigger {wanted.name} on {wanted.table} is missing")
        names = {table.name, *(leaf.name for leaf in table.leaves)}
        said.extend(
            f"trigger {each.name} on {each.table} "
            + ("does not fire always" if is_on else "is not off")
            for each in triggers
            if each.table in names and is_capture(each) and each.enabled != wanted_state
        )
    return said


async def install(
    session: Session,
    tables: Sequence[Table],
    triggers: Sequence[OwnTrigger],
    *,
    is_on: bool = True,
) -> list[str]:
    """Capture the tables, or mend what is missing; return what was done, in sentences.

    Logs and functions are made first, at leisure; only the triggers need a lock on the tables, for
    a moment in which nobody is writing to them.

    Args:
        session: On either side.
        tables: The family as it is there.
        triggers: Our triggers as they are there.
        is_on: Whether they are to fire, or to stand by for the day when the owner changes.

    Raises:
        LockTimeout: There was no such moment.
        Refused: A subscription writes to one of the tables.

    """
    await require_no_subscription(session, tables)
    logs: dict[TableName, ChangeLog] = {}
    async with session.transaction():
        for table in tables:
            logs[table.name] = await change_logs.create(session, table)
            await create_functions(session, table, logs[table.name])
    wanted_state = "A" if is_on else "D"
    fine = {(each.table, each.name) for each in triggers if each.enabled == wanted_state}
    missing = [
        (table, wanted)
        for table in tables
        for wanted in _wanted(table)
        if (wanted.table, wanted.name) not in fine
    ]
    if not missing and not find_gaps(tables, triggers, is_on=is_on):
        return []
    names = [table.name for table in tables]
    async with locks.excluding_writers(session, names):
        known = {(each.table, each.name) for each in triggers}
        for table, wanted in missing:
            if (wanted.table, wanted.name) not in known:
                await _create_trigger(session, wanted, logs[table.name])
            await switch(session, wanted.table, wanted.name, is_on=is_on)
        for each in triggers:
            if is_capture(each) and each.enabled != wanted_state:
                await switch(session, each.table, each.name, is_on=is_on)
    said = "capture writes to {}" if is_on else "keep capture ready for {}, switched off"
    return [said.format(table.name) for table in dict.fromkeys(t for t, _ in missing)]


async def cover_leaf(session: Session, watcher: Session, table: Table, leaf: Leaf) -> None:
    """Take a part that was added to a table into the capture: its trigger, and all its keys.

    The triggers per row came with it. Rows that it held before are in no log, so all its keys go
    into it; if it was emptied meanwhile, what went has to be found by comparing keys.

    Args:
        session: On the hot side.
        watcher: Another on the same side, which looks who waits for us.
        table: The table.
        leaf: The part.

    Raises:
        LockTimeout: There was no moment in which nobody wrote to it.
        GaveWay: Somebody's ALTER TABLE waited for us; to be done again.

    """
    (log,) = [each for each in await change_logs.read_all(session) if each.table == str(table.name)]
    async with locks.excluding_writers(session, [leaf.name]):
        file = await session.fetch_one("catalog", "read_filenode", leaf.oid)
        for wanted in _wanted(table):
            if wanted.table == leaf.name:
                await _create_trigger(session, wanted, log)
                await switch(session, wanted.table, wanted.name, is_on=True)
    await run_together(
        _log_rows_of_leaf(session, log, leaf, is_marked=file.filenode != leaf.oid),
        beside=[locks.watch_for_rewriters(watcher, [table.oid, leaf.oid], [session.pid])],
    )


async def _log_rows_of_leaf(
    session: Session, log: ChangeLog, leaf: Leaf, *, is_marked: bool
) -> None:
    async with session.transaction():
        await session.set_local("statement_timeout", "0")
        await change_logs.add_rows_of_leaf(session, log, leaf.name)
        if is_marked:  # it has not got its first file any more
            await change_logs.add_mark(session, log, COMPARE)


async def find_subscriptions(session: Session, tables: Iterable[Table]) -> list[str]:
    """Say which subscriptions write to which of the tables."""
    oids = [oid for table in tables for oid in (table.oid, *(leaf.oid for leaf in table.leaves))]
    found = await session.fetch_all("capture", "find_subscriptions", oids)
    return [f"{row.subscription} writes to {row.relation}" for row in found]


async def require_no_subscription(session: Session, tables: Sequence[Table]) -> None:
    """Raise `Refused` where a subscription writes to a table: nobody could fence it off later."""
    if said := await find_subscriptions(session, tables):
        raise Refused(
            f"Subscriptions write to the {session.side}'s tables: {'; '.join(said)}",
            wanted="Tables that applications write to: a subscription would stop at the fence when "
            "the owner changes, and what its publisher has done meanwhile would be nowhere",
            todo="Migrate from the server that the subscription reads from, or drop it",
            findings=said,
        )


def name_function(log: ChangeLog, what: str) -> sql.Identifier:
    """Return the function that logs a row, or a TRUNCATE."""
    return sql.Identifier("ordermigrate", f"capture_{log.number}_{what}")


def _key(log: ChangeLog, row: str) -> sql.Composed:
    """Return the table's key columns of one of the trigger's rows."""
    return sql.SQL(", ").join(
        sql.SQL("{}.{}").format(sql.SQL(row), sql.Identifier(name)) for name in log.key
    )


def _logged_key(table: Table, log: ChangeLog, row: str) -> sql.Composed:
    """Return the key of one of the trigger's rows as it goes into the log.

    A whole number of any width fits the log's bigint. What is not one any more must not be rounded
    in silence, as an assignment would: `int8up` takes whole numbers only.
    """
    return sql.SQL(", ").join(
        sql.SQL(
            "pg_catalog.int8up({}.{})"
            if (column := table.column(name)) is not None
            and column.base_type in change_logs.WHOLE_NUMBERS
            else "{}.{}"
        ).format(sql.SQL(row), sql.Identifier(name))
        for name in log.key
    )


def _same_key(table: Table, log: ChangeLog) -> sql.Composed:
    """Return the condition that an update has left the key as it was, to the last bit.

    For types whose equal values look alike, by `=`: every update pays for it. Which function that
    is the server decides anew when the column gets another type.
    """
    types = [column.type_name for name in log.key if (column := table.column(name)) is not None]
    if all(each in _PLAIN for each in types):
        return sql.SQL(" AND ").join(
            sql.SQL("OLD.{} OPERATOR(pg_catalog.=) NEW.{}").format(
                sql.Identifier(name), sql.Identifier(name)
            )
            for name in log.key
        )
    return sql.SQL(
        "ROW({})::pg_catalog.record OPERATOR(pg_catalog.*=) ROW({})::pg_catalog.record"
    ).format(_key(log, "OLD"), _key(log, "NEW"))


async def create_functions(session: Session, table: Table, log: ChangeLog) -> None:
    """Create what triggers run that write a table's keys into a log; safe to repeat."""
    for what in ("row", "truncate"):
        await session.fetch_all(
            "capture",
            f"create_log_{what}",
            function=name_function(log, what),
            log=log.name,
            log_key=sql.SQL(", ").join(map(sql.Identifier, log.columns)),
            old_key=_logged_key(table, log, "OLD"),
            new_key=_logged_key(table, log, "NEW"),
            # A number, so that the table may be renamed.
            table_oid=sql.Literal(str(table.oid)),
            same_key=_same_key(table, log),
        )
        await session.fetch_all(
            "capture", "keep_function_private", function=name_function(log, what)
        )


async def _create_trigger(session: Session, wanted: _Wanted, log: ChangeLog) -> None:
    await session.fetch_all(
        "capture",
        f"create_{wanted.kind}_trigger",
        trigger=sql.Identifier(wanted.name),
        table=wanted.table.sql,
        function=name_function(log, wanted.kind),
        mark=sql.Literal(wanted.mark),
    )


async def switch(session: Session, table: TableName, name: str, *, is_on: bool) -> None:
    """Let a trigger of ours fire always, or not at all."""
    await session.fetch_all(
        "capture",
        "fire_always" if is_on else "stand_by",
        table=table.sql,
        trigger=sql.Identifier(name),
    )
