"""Staging: keys from a change log, and their rows, on their way to the target's temporary tables.

Everything is read in the source's one snapshot and goes from socket to socket; nothing of it is
kept here.
"""

from __future__ import annotations

from collections.abc import Sequence

from psycopg import sql

from ordermigrate import digest, streams
from ordermigrate.apply import BY_INDEX, BY_STATISTICS, FEW_ROWS, LOOKUP_COSTS_ROWS
from ordermigrate.change_logs import ChangeLog
from ordermigrate.model import TableMap
from ordermigrate.stages import Stage, match
from ordermigrate.stream_sessions import StreamSession

_ENTRY = "ordermigrate_entry"


async def stage_keys(
    source: StreamSession, target: StreamSession, stage: Stage, entries: sql.Composed
) -> int:
    """Bring the distinct keys of log entries to the target; return how many they are."""
    return await _pipe_keys(source, target, stage, _keys(stage.map, entries), stage.keys)


async def stage_all_keys(source: StreamSession, target: StreamSession, stage: Stage) -> int:
    """Bring all keys that the source has to the target; return how many they are."""
    return await _pipe_keys(source, target, stage, _all_keys(stage.map), stage.all_keys)


async def stage_rows(
    source: StreamSession,
    target: StreamSession,
    stage: Stage,
    log: ChangeLog,
    entries: sql.Composed,
    keys: int,
) -> int:
    """Bring the rows of logged keys, each with its digest, as far as they still exist.

    Args:
        source: In a transaction whose snapshot counts.
        target: Where the stages are.
        stage: The table.
        log: Its log.
        entries: The query for the keys.
        keys: How many there are.

    """
    if _is_few(keys, stage.map):
        await source.run(BY_INDEX)
    else:
        await source.run(f"{BY_STATISTICS}; {log.compose('analyze_log')}")
    return await _pipe(
        source,
        target,
        _rows(stage, log, entries),
        stage.rows,
        stage.row_columns,
        is_binary=stage.map.is_binary,
    )


async def find_part(source: StreamSession, log: ChangeLog, changes: int) -> int | None:
    """Return the block of the log before which about so many entries stand."""
    await source.run("SET LOCAL synchronize_seqscans = off")  # from the first block on
    rows = await source.fetch(log.compose("find_part"), changes)
    return rows[0]["end_block"] if rows else None


def _is_few(keys: int, table: TableMap) -> bool:
    """Whether the rows of so many keys are best fetched one by one.

    The server knows neither how many entries of a log are waiting nor how many are dead; where it
    matters, it is told.
    """
    leaves = max(1, len(table.source.leaves))
    return keys < max(FEW_ROWS, table.source.rows_estimate // (LOOKUP_COSTS_ROWS * leaves))


def _keys(table: TableMap, entries: sql.Composed) -> str:
    """Return the query for logged keys in the target's types."""
    alias = sql.Identifier(table.source.name.name).as_string(None)
    return f"SELECT {_key_list(table)} FROM ({entries.as_string(None)}) AS {alias}"  # noqa: S608


def _all_keys(table: TableMap) -> str:
    """Return the query for all keys of the source, in the target's types."""
    return f"SELECT {_key_list(table)} FROM {_origin(table)}"  # noqa: S608


def _key_list(table: TableMap) -> str:
    expressions = {pair.name: pair.expression for pair in table.pairs}
    return ", ".join(expressions[name] for name in table.key)


def _origin(table: TableMap) -> str:
    name = table.source.name
    alias = sql.Identifier(name.name).as_string(None)
    return f"{name.sql.as_string(None)} AS {alias} WHERE ({table.where}\n)"


def _rows(stage: Stage, log: ChangeLog, entries: sql.Composed) -> str:
    """Return the query for the rows of logged keys, each with its digest."""
    table = stage.map
    view = digest.source_view(table, stage.view.algorithm, is_same_byte_order=True)
    columns = ", ".join(pair.expression for pair in table.copied)
    listed = _entries_by_collation(table, log, entries).as_string(None)
    is_listed = match(table.source, table.source.name.name, _ENTRY, log.key).as_string(None)
    return (
        f"SELECT {columns}, {digest.text_digest(view)} FROM {_origin(table)} "  # noqa: S608
        f"AND EXISTS (SELECT FROM ({listed}) AS {_ENTRY} WHERE {is_listed})"
    )


def _entries_by_collation(table: TableMap, log: ChangeLog, entries: sql.Composed) -> sql.Composed:
    """Return the query for logged keys with those once that the table's own key takes for equal.

    A log tells keys apart byte by byte; where a key's collation does not, PostgreSQL, which knows
    the entries to be distinct, would join a row to each of its names and return it twice.
    """
    columns = [column for column in table.source.columns if column.name in log.key]
    if all(column.collation in {None, '"default"'} for column in columns):
        return entries
    known = {column.name: column.collation for column in columns}
    return sql.SQL("SELECT DISTINCT {} FROM ({}) AS e").format(
        sql.SQL(", ").join(
            sql.SQL("e.{} COLLATE {}").format(sql.Identifier(name), sql.SQL(collation))
            if (collation := known[name])
            else sql.Identifier("e", name)
            for name in log.key
        ),
        entries,
    )


async def _pipe(
    source: StreamSession,
    target: StreamSession,
    query: str,
    table: str,
    columns: Sequence[str],
    *,
    is_binary: bool,
) -> int:
    """Stream a query of the source into a stage of the target; return how many rows went."""
    moved = await streams.pipe(
        source.connection,
        query,
        target.connection,
        schema="pg_temp",
        table=table,
        columns=tuple(columns),
        is_binary=is_binary,
        stall_seconds=source.stall_seconds,
        sides=(source.side, target.side),
        on_bytes=lambda _: None,
    )
    return moved.rows


async def _pipe_keys(
    source: StreamSession, target: StreamSession, stage: Stage, query: str, table: str
) -> int:
    key = [pair for pair in stage.map.pairs if pair.name in stage.map.key]
    is_binary = all(pair.is_binary_safe for pair in key)
    return await _pipe(source, target, query, table, stage.map.key, is_binary=is_binary)
