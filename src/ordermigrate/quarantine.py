"""Quarantine: changes that the cold side's own constraints refuse, kept beside its tables.

A row gets in, and out, in the very transaction of the round that has tried it. So at every moment
the cold side equals the hot one as of a snapshot, but for just the keys that stand here: for each
it has the row as it was before, or none. They are left out where both sides are compared, they are
tried again when the row changes or on demand, and nobody becomes the owner while one is left.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from psycopg import sql

from ordermigrate import change_logs, queries
from ordermigrate.change_logs import ChangeLog
from ordermigrate.control import Session
from ordermigrate.errors import Refused
from ordermigrate.model import Table, TableMap
from ordermigrate.stream_sessions import StreamSession

# A comparison names each of them in its queries.
MAX_LEFT_OUT = 100_000
_RETRY_KEYS = 10_000
_KEY = "ordermigrate_k{}"


@dataclass(frozen=True, slots=True)
class Quarantined:
    """A change that was refused, and why.

    `row` is what was to be written, column by column as text; None where a row was to be deleted.
    """

    table: str
    key: Mapping[str, str]
    kind: str
    reason: str
    sqlstate: str
    constraint_name: str | None
    row: Mapping[str, str | None] | None
    quarantined_at: datetime
    tries: int


async def install(session: Session) -> None:
    """Create the quarantine on a side that is or becomes cold; safe to repeat."""
    await session.fetch_all("quarantine", "create_quarantine")
    await session.fetch_all("quarantine", "create_quarantine_index")


async def count(session: Session) -> dict[str, int]:
    """Return how many rows are in quarantine, by the name that the table has on this side."""
    if not (await session.fetch_one("quarantine", "has_quarantine")).has_quarantine:
        return {}
    rows = await session.fetch_all("quarantine", "count_quarantined")
    return {row.table_name: row.rows for row in rows}


def describe(counted: Mapping[str, int]) -> list[str]:
    """Say in sentences what `count` has found."""
    return [
        f"{rows:,} {'row' if rows == 1 else 'rows'} of {table} {'is' if rows == 1 else 'are'} in "
        "quarantine: the monolith refuses them (`ordermigrate status` names them; mend the cause, "
        "then run `ordermigrate rollback --retry-quarantine`)"
        for table, rows in counted.items()
    ]


async def count_logged(
    session: Session, log: ChangeLog, table: Table, key: Mapping[str, str]
) -> int:
    """Return how often the owner's log has a row's key, or a mark that may stand for it."""
    same = sql.SQL(" AND ").join(
        sql.SQL("l.{} = {}::{}").format(
            sql.Identifier(mine), sql.Literal(key[theirs]), _logged_type(table, theirs)
        )
        for mine, theirs in zip(log.columns, log.key, strict=True)
    )
    row = await session.fetch_one("quarantine", "count_logged", log=log.name, same_key=same)
    return int(row.entries)


def forget_logged(table: Table, log: ChangeLog) -> str:
    """Return the statement that forgets what the owner has written over since, by its log."""
    return queries.compose(
        "quarantine",
        "forget_logged",
        log=log.name,
        table_name=sql.Literal(str(table.name)),
        same_key=sql.SQL(" AND ").join(
            sql.SQL("(q.row_key ->> {})::{} = l.{}").format(
                sql.Literal(theirs), _logged_type(table, theirs), sql.Identifier(mine)
            )
            for mine, theirs in zip(log.columns, log.key, strict=True)
        ),
    )


def _logged_type(table: Table, name: str) -> sql.SQL:
    column = table.column(name)
    return sql.SQL("text" if column is None else change_logs.logged_type(column))


async def read_all(session: Session, limit: int | None = None) -> list[Quarantined]:
    """Return what is in quarantine, the oldest first."""
    if not (await session.fetch_one("quarantine", "has_quarantine")).has_quarantine:
        return []
    rows = await session.fetch_all("quarantine", "read_quarantined", limit)
    return [Quarantined(*row) for row in rows]


async def forget(session: Session, table: str, keys: Sequence[Mapping[str, str]]) -> int:
    """Take keys of a table out of quarantine, whatever its rows are; return how many were in it."""
    texts = [json.dumps(key, ensure_ascii=False) for key in keys]
    return len(await session.fetch_all("quarantine", "forget_keys", table, texts))


async def retry(hot: Session, cold: Session, maps: Sequence[TableMap]) -> int:
    """Have the next round try again all that is in quarantine; return how many rows that are.

    Args:
        hot: The source of rounds, whose change logs take the keys.
        cold: Their target, where the quarantine is.
        maps: The family, from the one to the other.

    """
    if not (await cold.fetch_one("quarantine", "has_quarantine")).has_quarantine:
        return 0
    logs = {log.table: log for log in await change_logs.read_all(hot)}
    tried = 0
    for each in maps:
        rows = await cold.fetch_all(
            "quarantine", "read_keys", str(each.target.name), list(each.key), None
        )
        keys = [row.key_texts for row in rows]
        for start in range(0, len(keys), _RETRY_KEYS):
            await change_logs.add_keys(
                hot, logs[each.label], each.source, keys[start : start + _RETRY_KEYS]
            )
        tried += len(keys)
    return tried


async def leave_out(
    scanners: Sequence[StreamSession], maps: Sequence[TableMap]
) -> tuple[list[TableMap], list[str]]:
    """Leave quarantined rows out of a comparison on both sides, and say how many that are.

    After a rollback the side that has refused them is the owner, so both are looked at.

    Args:
        scanners: On source and target; their snapshots count.
        maps: The family.

    Returns:
        The family as it is to be compared, and a note on each table that has rows in quarantine.

    Raises:
        Refused: They are too many.

    """
    compared, notes = list(maps), list[str]()
    for is_source, scanner in zip((True, False), scanners, strict=True):
        (there,) = await scanner.fetch(queries.get("quarantine", "has_quarantine"))
        if there["has_quarantine"]:
            compared, said = await _leave_out(scanner, compared, is_source=is_source)
            notes += said
    return compared, notes


async def _leave_out(
    scanner: StreamSession, maps: Sequence[TableMap], *, is_source: bool
) -> tuple[list[TableMap], list[str]]:
    compared, notes = list[TableMap](), list[str]()
    for each in maps:
        name = each.source.name if is_source else each.target.name
        origins = {pair.name: pair.origin for pair in each.pairs}
        columns = [(origins[key] or key) if is_source else key for key in each.key]
        rows = await scanner.fetch(
            queries.get("quarantine", "read_keys"), str(name), columns, MAX_LEFT_OUT + 1
        )
        if len(rows) > MAX_LEFT_OUT:
            raise Refused(
                f"On the {scanner.side}, over {MAX_LEFT_OUT:,} rows of {name} are in quarantine",
                wanted="So few that all others can be compared without them",
                todo=f"See on the {scanner.side} what ordermigrate.quarantine has as reasons, mend "
                "it there, and run `ordermigrate rollback --retry-quarantine`",
            )
        if rows:
            keys = [row["key_texts"] for row in rows]
            on_source, on_target = exclusion(each, keys)
            each = replace(  # noqa: PLW2901
                each,
                where=f"({each.where}\n) AND {on_source}",
                target_where=f"({each.target_where}\n) AND {on_target}",
            )
            notes.append(
                f"{name}: {len(rows):,} {'row is' if len(rows) == 1 else 'rows are'} in quarantine "
                f"on the {scanner.side}, and not compared"
            )
        compared.append(each)
    return compared, notes


def exclusion(table: TableMap, keys: Sequence[Sequence[str]]) -> tuple[str, str]:
    """Return the conditions, for the source and for the target, that a row has none of the keys."""
    names = [sql.Identifier(_KEY.format(place)) for place in range(1, len(table.key) + 1)]
    arrays = [sql.Literal(list(column)) for column in zip(*keys, strict=True)]
    listed = sql.SQL("NOT EXISTS (SELECT FROM unnest({}) AS ordermigrate_q ({}) WHERE ").format(
        sql.SQL(", ").join(sql.SQL("{}::text[]").format(array) for array in arrays),
        sql.SQL(", ").join(names),
    )
    conditions = []
    for is_same in (_same_on_source, _same_on_target):
        same = sql.SQL(" AND ").join(
            is_same(table, name, sql.SQL("ordermigrate_q.{}").format(listed_name))
            for name, listed_name in zip(table.key, names, strict=True)
        )
        conditions.append((listed + same + sql.SQL(")")).as_string(None))
    return conditions[0], conditions[1]


def _same_on_target(table: TableMap, name: str, text: sql.Composable) -> sql.Composed:
    column = table.target.column(name)
    own = sql.Identifier(table.target.name.name, name)
    given = _typed(table, name, text)
    return sql.SQL("{} = {}").format(own, given) if column is None else column.is_same(own, given)


def _same_on_source(table: TableMap, name: str, text: sql.Composable) -> sql.Composed:
    """Return the condition that a key column of the source is what the target's has as text.

    By the type's own equality where both sides have the same type; else as the value goes over.
    """
    pair = next(each for each in table.pairs if each.name == name)
    origin, column = table.source.column(pair.origin or ""), table.target.column(name)
    if origin is not None and column is not None and origin.type_name == column.type_name:
        own = sql.Identifier(table.source.name.name, origin.name)
        return origin.is_same(own, _typed(table, name, text))
    if pair.is_binary_safe:
        return sql.SQL("({}) OPERATOR(pg_catalog.=) {}").format(
            sql.SQL(pair.expression), _typed(table, name, text)
        )
    return sql.SQL("({})::text OPERATOR(pg_catalog.=) {}").format(sql.SQL(pair.expression), text)


def key_value(table: TableMap, alias: str, name: str) -> sql.Composed:
    """Return a column of the key that a row under `alias` has as JSON, as the target's would be."""
    text = sql.SQL("({} ->> {})").format(sql.Identifier(alias, "row_key"), sql.Literal(name))
    value = _typed(table, name, text)
    column = table.target.column(name)
    if column is None or column.collation in {None, '"default"'}:
        return value
    return sql.SQL("({} COLLATE {})").format(value, sql.SQL(column.collation or ""))


def _typed(table: TableMap, name: str, text: sql.Composable) -> sql.Composed:
    column = table.target.column(name)
    return sql.SQL("{}::{}").format(text, sql.SQL("text" if column is None else column.type_name))
