"""Chunks: how a heap is divided, and the SELECT that reads a piece of it."""

from __future__ import annotations

from collections.abc import Iterator

from psycopg import sql

from ordermigrate.model import Leaf, TableMap

BLOCK_BYTES = 8192


def split_blocks(blocks: int, chunk_blocks: int) -> Iterator[tuple[int, int | None]]:
    """Divide a heap of `blocks` blocks into ranges; the last one is open-ended.

    The heap may have grown since it was measured: what was added is in the last range.
    """
    first = 0
    while blocks - first > chunk_blocks:
        yield first, first + chunk_blocks
        first += chunk_blocks
    yield first, None


def bound_blocks(table: TableMap, first_block: int, end_block: int | None) -> sql.Composed:
    """Return the condition that a row, under the source table's name, is in a range of blocks."""
    alias = sql.Identifier(table.source.name.name)
    bounds = sql.SQL("{}.ctid >= {}::tid").format(alias, sql.Literal(f"({first_block},0)"))
    if end_block is not None:
        bounds += sql.SQL(" AND {}.ctid < {}::tid").format(alias, sql.Literal(f"({end_block},0)"))
    return bounds


def chunk_query(table: TableMap, leaf: Leaf, first_block: int, end_block: int | None) -> str:
    """Return the SELECT that reads a range of blocks of one leaf (a TID range scan)."""
    expressions = sql.SQL(", ").join(
        sql.SQL("{} AS {}").format(sql.SQL(pair.expression), sql.Identifier(pair.name))
        for pair in table.copied
    )
    alias = sql.Identifier(table.source.name.name)
    bounds = bound_blocks(table, first_block, end_block)
    return (
        sql.SQL("SELECT {} FROM ONLY {} AS {} WHERE {} AND ({}\n)")
        .format(expressions, leaf.name.sql, alias, bounds, sql.SQL(table.where))
        .as_string(None)
    )
