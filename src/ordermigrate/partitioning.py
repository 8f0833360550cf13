"""Partitioning: a plain table's pieces, written anew for one that is partitioned by a time.

A partitioned table's unique keys have to hold the column that it is partitioned by. So each of
them gets it, and it is said what that means: what was unique by itself is now unique together
with the moment. Partitions come last, so that they inherit keys, indexes and triggers.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from psycopg import sql

from ordermigrate import queries
from ordermigrate.control import Session
from ordermigrate.errors import Refused, UsageError
from ordermigrate.model import Index, Table, TableName, quote_name
from ordermigrate.pieces import Piece

# How a partition's name ends, by its width.
INTERVALS = {"day": "YYYY_MM_DD", "week": 'IYYY_"w"IW', "month": "YYYY_MM", "year": "YYYY"}
_ZONES = {
    "date": "",
    "timestamp without time zone": "",
    "timestamp with time zone": "+00",
}
_MOST = 2000
_AHEAD = 3
_NAME_BYTES = 63
_BODY_END = re.compile(
    r"^\)(?:\nINHERITS \(.*\))?(?:\nPARTITION BY .*)?(?:\nWITH \((?P<options>.*)\))?;$",
    re.MULTILINE,
)
_CLUSTERED = re.compile(r"^ALTER TABLE .* CLUSTER ON .*;$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Partitioning:
    """What to partition by: a column, in tables that have it or in one alone, and how wide."""

    column: str
    interval: str
    table: TableName | None = None
    ahead: int = _AHEAD

    @classmethod
    def parse(cls, text: str, interval: str) -> Partitioning:
        """Read `created_at`, or `public.orders:created_at`.

        Raises:
            UsageError: The table's name is none.

        """
        table, _, column = text.rpartition(":")
        try:
            return cls(column, interval, TableName.parse(table) if table else None)
        except ValueError as error:
            raise UsageError(f"--partition-by {text}: {error}") from None


@dataclass(frozen=True, slots=True)
class Part:
    """A partition that is to be made, with its bounds as SQL writes them."""

    name: TableName
    lower: str
    upper: str


@dataclass(frozen=True, slots=True)
class Partitioned:
    """A table's pieces as those of a partitioned one, and what has changed by that.

    There are as many as there were; one that cannot be is empty.
    """

    pieces: tuple[Piece, ...]
    parts: tuple[Piece, ...]
    notes: tuple[str, ...]


def choose_tables(
    tables: Sequence[Table], wanted: Sequence[Partitioning]
) -> dict[TableName, Partitioning]:
    """Return which tables are to be partitioned, and how.

    Raises:
        UsageError: One that was named is none of the family, or none has the column.

    """
    chosen: dict[TableName, Partitioning] = {}
    for each in wanted:
        found = [
            table
            for table in tables
            if table.column(each.column) is not None and each.table in {None, table.name}
        ]
        if not found:
            where = f"{each.table} of the family" if each.table else "table of the family"
            raise UsageError(
                f"No {where} has a column {each.column}",
                wanted="A column of type date, timestamp or timestamptz to partition by",
                todo="Correct --partition-by COLUMN, or write it as public.orders:created_at",
            )
        chosen |= {table.name: each for table in found}
    return chosen


async def plan_parts(session: Session, table: Table, how: Partitioning) -> list[Part]:
    """Ask a table which partitions its rows need, and add those that come next.

    Raises:
        Refused: Rows have no value in the column, or an endless one, or too many would be needed.
        UsageError: The column is of another type, or the table has no primary key.

    """
    column = table.column(how.column)
    zone = _ZONES.get(column.base_type) if column else None
    if column is None or zone is None:
        raise UsageError(
            f"{how.column} of {table.name} is {column.type_name if column else 'not there'}",
            wanted="A column of type date, timestamp or timestamptz to partition by",
            todo="Name another one with --partition-by",
        )
    async with session.transaction():
        await session.set_local("statement_timeout", "0")
        statement = queries.compose(
            "partitioning", "read_range", table=table.name.sql, column=sql.Identifier(how.column)
        )
        ((least, most, nulls, endless),) = await session.run_long(statement)
    if nulls or endless:
        what = f"{nulls:,} without {how.column}" if nulls else f"{endless:,} at infinity"
        raise Refused(
            f"{table.name} on the {session.side} has rows that no partition could take: {what}",
            wanted=f"A moment in every row, for {how.column} becomes part of the primary key",
            todo=f"Give these rows a value in {quote_name(how.column)}, or partition by another "
            "column",
        )
    rows = await session.fetch_all(
        "partitioning",
        "list_bounds",
        *(least, most, how.interval, how.ahead, INTERVALS[how.interval], _MOST + 1),
    )
    if len(rows) > _MOST:
        raise Refused(
            f"{table.name} goes from {least} to {most}: more than {_MOST:,} partitions of a "
            f"{how.interval}",
            wanted="Partitions of which a planner can keep sight",
            todo="Take a longer --interval, or correct the row with the outlying moment",
        )
    is_date = column.base_type == "date"
    return [
        Part(
            _name_part(table.name, row.suffix),
            *(each.split()[0] if is_date else each + zone for each in (row.lower, row.upper)),
        )
        for row in rows
    ]


def _name_part(table: TableName, suffix: str) -> TableName:
    room = _NAME_BYTES - len(suffix) - 1
    stem = table.name.encode()[:room].decode("utf-8", "ignore")
    return TableName(table.schema, f"{stem}_{suffix}")


def partition(
    table: Table, pieces: Sequence[Piece], parts: Sequence[Part], how: Partitioning
) -> Partitioned:
    """Write those of some pieces that are a table's own anew, for a partitioned one."""
    notes: list[str] = []
    written: list[Piece] = []
    options = ""
    by_name = {each.constraint or each.name: each for each in table.indexes}
    column = table.column(how.column)
    if column is not None and not column.is_not_null:
        notes.append(
            f"{how.column} of {table.name} may be NULL on the monolith and may not here, as a part "
            "of the primary key; a row without one would stop copy or sync (ALTER TABLE "
            f"{table.name} ALTER COLUMN {quote_name(how.column)} SET NOT NULL on the monolith)"
        )
    for piece in pieces:
        if not _belongs(table, piece):
            written.append(piece)
            continue
        text = _CLUSTERED.sub("", piece.text.replace("ALTER TABLE ONLY ", "ALTER TABLE ")).strip()
        if piece.kind == "TABLE":
            text, options = _make_partitioned(text, how)
        elif piece.kind in {"CONSTRAINT", "INDEX"}:
            name = piece.name.removeprefix(f"{table.name.name} ")
            text = _widen(table, by_name[name], text, how, notes) if name in by_name else text
        written.append(replace(piece, text=text))
    return Partitioned(
        tuple(written), tuple(_make_part(table, each, options) for each in parts), tuple(notes)
    )


def _belongs(table: Table, piece: Piece) -> bool:
    mine = table.name
    return piece.schema == mine.schema and (
        piece.name == mine.name
        or (piece.kind == "INDEX" and piece.name in {each.name for each in table.indexes})
        or (piece.kind != "TABLE" and piece.name.startswith(f"{mine.name} "))
        or piece.text.startswith((f"ALTER TABLE ONLY {mine} ", f"ALTER TABLE {mine} "))
    )


def _make_partitioned(text: str, how: Partitioning) -> tuple[str, str]:
    """Return the table's statement with PARTITION BY, and the options that its parts take over."""
    found = _BODY_END.search(text)
    if found is None:
        message = "pg_dump has written a table in a way that is not known here"
        raise AssertionError(message)
    ending = f")\nPARTITION BY RANGE ({quote_name(how.column)});"
    return text[: found.start()] + ending + text[found.end() :], found["options"] or ""


def _make_part(table: Table, part: Part, options: str) -> Piece:
    ending = f"\nWITH ({options})" if options else ""
    text = (
        f"CREATE TABLE {part.name} PARTITION OF {table.name}\n"
        f"FOR VALUES FROM ('{part.lower}') TO ('{part.upper}'){ending};"
    )
    return Piece("TABLE", part.name.schema, part.name.name, text)


def _widen(table: Table, index: Index, text: str, how: Partitioning, notes: list[str]) -> str:
    """Have a key hold the column that the table is partitioned by."""
    if index.constraint_kind == "x":
        notes.append(
            f"exclusion constraint {index.constraint} of {table.name} is left out: a partitioned "
            "table cannot have it; the service's application has to keep to it by itself"
        )
        return ""
    if not index.is_unique or how.column in index.columns:
        return text.replace(" ON ONLY ", " ON ", 1)
    mine = ", ".join(index.columns) or index.definition
    what = "the primary key" if index.is_primary else f"the unique {index.constraint or index.name}"
    is_key = (
        " ordermigrate finds and compares rows by the monolith's key all the same."
        if index.is_primary
        else ""
    )
    notes.append(
        f"{what} of {table.name} is ({mine}, {how.column}), for on a partitioned table it has to "
        f"hold the column that this is partitioned by. So the service does not refuse a second row "
        f"with the same {mine} and another {how.column}: whoever makes these values has to see "
        f"that they are unique.{is_key}"
    )
    if index.constraint_definition is not None:
        definition = add_column(index.constraint_definition, how.column)
        name = quote_name(index.constraint or index.name)
        return f"ALTER TABLE {table.name}\n    ADD CONSTRAINT {name} {definition};"
    return add_column(text.replace(" ON ONLY ", " ON ", 1), how.column)


def add_column(definition: str, column: str) -> str:
    """Add a column at the end of the first list in parentheses, whatever stands in it."""
    depth, quote = 0, ""
    start = definition.index("(", definition.find(" USING ") + 1)
    for place in range(start, len(definition)):
        letter = definition[place]
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "\"'":
            quote = letter
        elif letter == "(":
            depth += 1
        elif letter == ")":
            depth -= 1
            if not depth:
                return f"{definition[:place]}, {quote_name(column)}{definition[place:]}"
    message = f"no list of columns in {definition}"
    raise AssertionError(message)
