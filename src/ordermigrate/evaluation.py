"""Evaluation: which row it is that an expression of the configuration has no value for.

A server says what went wrong and not with which row. So the rows are gone over one by one, each
expression by itself, until it goes wrong again. That is slow, and done only when it has.
"""

from __future__ import annotations

from collections.abc import Sequence

from psycopg import sql

from ordermigrate import queries
from ordermigrate.control import Session
from ordermigrate.errors import OrdermigrateError, Refused
from ordermigrate.model import TableMap, quote_name

# The server's codes for values, for more than one row, and for what a function raises.
_CLASSES = frozenset({"21", "22", "23", "38", "39", "P0"})
_LIMIT_MS = "120000"


def is_about_values(error: OrdermigrateError) -> bool:
    """Whether a server's code may be that of an expression which has no value."""
    return error.sqlstate[:2] in _CLASSES


async def explain(
    session: Session,
    table: TableMap,
    failed: OrdermigrateError,
    *,
    origin: sql.Composable | None = None,
    condition: sql.Composable | None = None,
) -> Refused | None:
    """Return an error that names the row and the column; None where there is none to be found.

    Args:
        session: On the source, in no transaction.
        table: The table whose rows were read.
        failed: What the server said.
        origin: From where they were read, if not from the whole table.
        condition: Which of them, if not all.

    """
    evaluations = _evaluations(table, origin or table.source.name.sql)
    if not is_about_values(failed) or not evaluations:
        return None
    alias = sql.Identifier(table.source.name.name)
    try:
        async with session.transaction():
            await session.set_local("statement_timeout", _LIMIT_MS)
            await session.run_long(
                queries.compose(
                    "evaluation",
                    "find_failing_row",
                    origin=origin or table.source.name.sql,
                    alias=alias,
                    condition=condition or sql.SQL("true"),
                    row_key=_describe_key(table, alias),
                    names=sql.SQL(", ").join(sql.Literal(name) for name, _ in evaluations),
                    statements=sql.SQL(", ").join(sql.Literal(text) for _, text in evaluations),
                )
            )
            found = await session.fetch_one("evaluation", "read_failing_row")
    except OrdermigrateError:
        return None  # the search is a courtesy
    if found is None or not found.row_key:
        return None
    named = Refused(
        f"The {session.side} has no value of {found.expression} for the row of "
        f"{table.source.name} with {found.row_key}: {found.said.rstrip('.')} "
        f"(SQLSTATE {found.sqlstate})",
        wanted="Expressions that have a value for every row of the table",
        todo="Correct the row, or the expression in the configuration; then run the command again",
    )
    named.sqlstate = failed.sqlstate
    return named


async def explain_any(
    session: Session, maps: Sequence[TableMap], failed: OrdermigrateError
) -> Refused | None:
    """Do the same where it is not known which table's row it was."""
    for table in maps:
        if named := await explain(session, table, failed):
            return named
    return None


def _evaluations(table: TableMap, origin: sql.Composable) -> list[tuple[str, str]]:
    """Return a statement for the filter, and for each column that is not merely taken over."""
    plain = {sql.Identifier(each.name).as_string(None) for each in table.source.columns}
    tried = [
        (f"column {quote_name(pair.name)}", pair.expression, table.where)
        for pair in table.pairs
        if pair.expression not in plain and not pair.is_generated
    ]
    if table.where.strip().lower() != "true":
        tried.insert(0, ("where", f"({table.where}\n)", "true"))
    return [
        (
            name,
            queries.compose(
                "evaluation",
                "evaluate",
                expression=sql.SQL(expression),
                origin=origin,
                alias=sql.Identifier(table.source.name.name),
                where=sql.SQL(f"{where}\n"),
            ),
        )
        for name, expression, where in tried
    ]


def _describe_key(table: TableMap, alias: sql.Identifier) -> sql.Composed:
    return sql.SQL(" || ', ' || ").join(
        sql.SQL("{} || {}.{}::pg_catalog.text").format(
            sql.Literal(f"{name} = "), alias, sql.Identifier(name)
        )
        for name in table.source.primary_key
    )
