"""The change logs: which keys were written on the hot side, and how they are taken off.

A write and its entry commit together, so an entry is visible at just those snapshots at which the
write is. Entries hold no values: the state of a row is read from its table. Times are for people;
nothing is ordered by them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from psycopg import sql

from ordermigrate import queries
from ordermigrate.control import Session
from ordermigrate.model import Column, Table, TableName

TRUNCATED = "truncated"
COMPARE = "compare"
# Logged as bigint, so that a key may become wider while the application writes.
WHOLE_NUMBERS = frozenset({"smallint", "integer", "bigint"})


@dataclass(frozen=True, slots=True)
class ChangeLog:
    """The log of one table: its number in the database, and the source's key columns."""

    number: int
    table: str
    key: tuple[str, ...]

    @property
    def name(self) -> sql.Identifier:
        """The log's own name, ready to be put into a statement."""
        return sql.Identifier("ordermigrate", f"change_log_{self.number}")

    @property
    def columns(self) -> tuple[str, ...]:
        """The log's key columns, in the order of the table's."""
        return tuple(f"k{place}" for place in range(1, len(self.key) + 1))

    def compose(self, block: str, **parts: sql.Composable) -> str:
        """Return a block of change_logs.sql about this log."""
        return queries.compose("change_logs", block, log=self.name, **parts)

    def entries(self, table: Table, part: sql.Composable) -> sql.Composed:
        """Return a query for the distinct keys in a part of the log, named as in the table."""
        return sql.SQL("SELECT DISTINCT {} FROM {} AS l WHERE l.k1 IS NOT NULL AND {}").format(
            sql.SQL(", ").join(
                sql.SQL("{} AS {}").format(_cast(table, mine, theirs), sql.Identifier(theirs))
                for mine, theirs in zip(self.columns, self.key, strict=True)
            ),
            self.name,
            part,
        )


def _cast(table: Table, mine: str, theirs: str) -> sql.Composed:
    """Return a key column of a log in the type that the table's own has.

    So it goes over the wire as the table's own would, and the key's index serves to look it up.
    """
    column = table.column(theirs)
    if column is None or column.base_type not in WHOLE_NUMBERS:
        return sql.SQL("l.{}").format(sql.Identifier(mine))
    return sql.SQL("l.{}::pg_catalog.{}").format(
        sql.Identifier(mine),
        sql.SQL({"smallint": "int2", "integer": "int4"}.get(column.base_type, "int8")),
    )


def logged_type(column: Column) -> str:
    """Return the type in which a log has a column of its table's key."""
    return "bigint" if column.base_type in WHOLE_NUMBERS else column.base_type


@dataclass(frozen=True, slots=True)
class Waiting:
    """What waits in one log: entries, marks among them, and the age of the oldest in seconds."""

    number: int
    changes: int
    marks: int
    age_seconds: float | None


@dataclass(frozen=True, slots=True)
class Backlog:
    """What waits in some logs together, and the age of the oldest in seconds, 0 where none does."""

    changes: int
    age_seconds: float


ALL = sql.SQL("true")


def before_block(block: int) -> sql.Composed:
    """Return the condition for the entries that stand before a block of the log."""
    return sql.SQL("l.ctid < {}::tid").format(sql.Literal(f"({block},0)"))


def label_parent(name: TableName) -> str:
    """Return what the log of a table that columns depend on is known by.

    The table may be one of the family too, and then it has another log as that.
    """
    return f"{name} (for columns that depend on it)"


async def create(session: Session, table: Table, label: str = "") -> ChangeLog:
    """Give a table a log, in the caller's transaction; safe to repeat.

    Args:
        session: In a transaction.
        table: The table.
        label: What the log is known by; the table's name where it is left out.

    """
    label = label or str(table.name)
    await session.fetch_all("change_logs", "create_capture")
    await session.fetch_all("change_logs", "insert_capture", label, list(table.primary_key))
    (log,) = [each for each in await read_all(session) if each.table == label]
    # Below any domain: one that forbids NULL would forbid marks, and none has a say in a log.
    types = [logged_type(column) for name in log.key if (column := table.column(name)) is not None]
    columns = sql.SQL(", ").join(
        sql.SQL("{} {}").format(sql.Identifier(name), sql.SQL(type_name))
        for name, type_name in zip(log.columns, types, strict=True)
    )
    missing = await session.fetch_all("change_logs", "find_missing_logs")
    await session.run(log.compose("create_log", columns=columns))
    if log.table in {row.table_name for row in missing}:
        # Only while nobody can be writing to it: the lock would keep writers of the table waiting.
        await session.run(log.compose("identify_log"))
    return log


async def read_all(session: Session) -> list[ChangeLog]:
    """Return the logs of this database; none where nothing is captured."""
    if not (await session.fetch_one("change_logs", "has_capture")).has_capture:
        return []
    return [
        ChangeLog(row.number, row.table_name, tuple(row.key_columns))
        for row in await session.fetch_all("change_logs", "read_captures")
    ]


async def find_missing(session: Session, tables: Sequence[TableName | str]) -> list[str]:
    """Say in sentences which tables' logs are not there; empty where all are.

    Without its log a table takes no writes, and what was waiting in it is known to nobody.
    """
    known = {log.table for log in await read_all(session)}
    if known:
        known -= {
            row.table_name for row in await session.fetch_all("change_logs", "find_missing_logs")
        }
    return [f"the change log of {name} is missing" for name in tables if str(name) not in known]


def measure_query(logs: Sequence[ChangeLog]) -> str:
    """Return one query that measures all logs at the same moment."""
    return " UNION ALL ".join(
        log.compose("measure_log", number=sql.Literal(log.number)) for log in logs
    )


async def measure(session: Session, logs: Sequence[ChangeLog]) -> list[Waiting]:
    """Return what waits in each log."""
    if not logs:
        return []
    return [Waiting(*row) for row in await session.run(measure_query(logs))]


async def measure_all(session: Session, logs: Sequence[ChangeLog] | None = None) -> Backlog:
    """Return what waits in these logs together, or in all that the side has."""
    waiting = await measure(session, await read_all(session) if logs is None else logs)
    return Backlog(
        sum(each.changes for each in waiting),
        max((each.age_seconds or 0.0 for each in waiting), default=0.0),
    )


async def add_mark(session: Session, log: ChangeLog, mark: str) -> None:
    """Put a mark into a log."""
    await session.run(log.compose("add_mark"), mark)


async def add_rows_of_leaf(session: Session, log: ChangeLog, leaf: TableName) -> None:
    """Put the keys of all rows of one part of a table into its log."""
    await session.run_long(
        log.compose(
            "add_rows_of_leaf",
            log_key=sql.SQL(", ").join(map(sql.Identifier, log.columns)),
            key=sql.SQL(", ").join(map(sql.Identifier, log.key)),
            leaf=leaf.sql,
        )
    )


async def add_keys(
    session: Session, log: ChangeLog, table: Table, keys: Sequence[Sequence[str | None]]
) -> None:
    """Put keys, given as texts, into a log, so that the next round looks at their rows.

    Raises:
        Refused: A text is no value of the key's type.

    """
    types = [column.type_name for name in log.key if (column := table.column(name)) is not None]
    names = [sql.Identifier(name) for name in log.columns]
    await session.run(
        log.compose(
            "add_keys",
            log_key=sql.SQL(", ").join(names),
            casts=sql.SQL(", ").join(
                sql.SQL("given.{}::{}").format(name, sql.SQL(type_name))
                for name, type_name in zip(names, types, strict=True)
            ),
            arrays=sql.SQL(", ").join(
                sql.SQL(f"${place}::text[]") for place in range(1, len(names) + 1)
            ),
        ),
        *(list(column) for column in zip(*keys, strict=True)),
    )
