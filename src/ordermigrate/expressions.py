"""Expressions: what SQL of the configuration reads besides the row that it is written for.

The server itself tells: it makes a temporary view of the query, notes in its catalog which columns
and functions that uses, and forgets the view again. Nothing is run.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

from psycopg import sql

from ordermigrate.control import Session
from ordermigrate.model import TableName, quote_name


@dataclass(frozen=True, slots=True)
class Reads:
    """What a query reads: tables, their columns, and functions that need not always say the same.

    Those are functions whose value may change though their arguments do not: volatile ones, those
    that tell the time or the session, and stable ones of the database's own, which may read tables.
    """

    tables: frozenset[TableName]
    columns: frozenset[tuple[TableName, str]]
    unsteady: tuple[str, ...]


class _Seen(Exception):
    """Undoes the view."""


async def find_reads(session: Session, query: str) -> Reads:
    """Return what a query reads, one that the server has been seen to accept.

    Args:
        session: Where the tables are.
        query: A SELECT whose columns have different names.

    """
    columns: list[tuple[TableName, str | None]] = []
    unsteady: list[str] = []
    with contextlib.suppress(_Seen):
        async with session.transaction():
            await session.fetch_all("expressions", "create_view", query=sql.SQL(query))
            columns.extend(
                (TableName(row.schema_name, row.table_name), row.column_name)
                for row in await session.fetch_all("expressions", "read_columns")
            )
            found = await session.fetch_all("expressions", "read_unsteady")
            unsteady.extend(row.name for row in found)
            raise _Seen
    return Reads(
        frozenset(table for table, _ in columns),
        frozenset((table, name) for table, name in columns if name is not None),
        tuple(unsteady),
    )


def describe(columns: frozenset[tuple[TableName, str]]) -> str:
    """Say which columns these are."""
    return ", ".join(f"{table}.{quote_name(name)}" for table, name in sorted(columns))
