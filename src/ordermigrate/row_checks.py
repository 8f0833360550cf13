"""Checks of every row: how many there are, and the checksum of each.

The equal case is one pass over each table, divided into parts by a hash of the key. Only where a
part differs are its rows read again, in the order of their keys, and compared side by side.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ordermigrate import digest
from ordermigrate.progress import Locating
from ordermigrate.scanning import Comparison, merge
from ordermigrate.together import run_together
from ordermigrate.verdicts import Check, Difference

REPAIR_ROWS = 1000


async def check_count(table: Comparison) -> None:
    """Compare how many rows there are."""
    started = table.begin("row count")
    source, target = await table.both("row_checks", "count_rows")
    table.rows = source[0]["rows"], target[0]["rows"]
    table.conclude(_count_result(table.rows), started)


def _count_result(rows: tuple[int, int]) -> Check:
    if rows == (0, 0):
        return Check("row count", "equal", "0 rows compared: both sides are empty")
    if rows[0] == rows[1]:
        return Check("row count", "equal", f"{rows[0]:,} rows on each side")
    return Check(
        "row count",
        "different",
        f"{rows[0]:,} on the source, {rows[1]:,} on the target ({rows[1] - rows[0]:+,})",
    )


async def check_rows(table: Comparison) -> None:
    """Compare the checksums of every row, and find the rows behind those that differ."""
    started = table.begin("row checksums")
    sums = await run_together(
        *(scanner.fetch(digest.parts_query(view)) for scanner, view in (table.source, table.target))
    )
    source, target = (
        {row["part"]: (row["rows"], row["high"], row["low"]) for row in rows} for rows in sums
    )
    table.rows = (
        sum(each[0] for each in source.values()),
        sum(each[0] for each in target.values()),
    )
    table.conclude(_count_result(table.rows), started)
    parts = sorted(
        part for part in source.keys() | target.keys() if source.get(part) != target.get(part)
    )
    algorithm = table.source[1].algorithm
    if parts:
        table.reporter.report(Locating(table.map.label, len(parts), digest.PARTS))
        await _locate(table, parts)
        summary = (
            f"{table.differences_total:,} "
            f"{'row differs' if table.differences_total == 1 else 'rows differ'} "
            f"({algorithm} of every row, "
            f"{len(parts)} of {digest.PARTS} parts)"
        )
        table.conclude(Check("row checksums", "different", summary), started)
    else:
        summary = f"{table.rows[0]:,} rows compared by {algorithm}, every one equal"
        table.conclude(Check("row checksums", "equal", summary), started)


async def _locate(table: Comparison, parts: list[int]) -> None:
    """Read the rows of differing parts on both sides in key order, and name those that differ."""
    found: list[tuple[str, list[str | None]]] = []
    batch: list[list[str | None]] = []
    both = (
        scanner.stream(digest.rows_query(view), parts)
        for scanner, view in (table.source, table.target)
    )
    async for source, target in merge(*both):
        if source and target and _digest_of(source) == _digest_of(target):
            continue
        table.differences_total += 1
        key = list((source or target)["key_texts"])
        if len(found) < table.max_differences:
            kind = "changed" if source and target else "missing" if source else "extra"
            found.append((kind, key))
        if table.repair is not None:
            batch.append(key)
            if len(batch) >= REPAIR_ROWS:
                await table.repair(table.map, batch)
                batch = []
    if table.repair is not None and batch:
        await table.repair(table.map, batch)
    if found:
        await _show(table, found)


def _digest_of(row: Any) -> tuple[int, int]:  # noqa: ANN401  a row of rows_query
    return row["high"], row["low"]


async def _show(table: Comparison, found: Sequence[tuple[str, list[str | None]]]) -> None:
    """Read both sides' values of the rows that differ."""
    keys = [list(column) for column in zip(*(key for _, key in found), strict=True)]
    values = await run_together(
        *(
            scanner.fetch(digest.columns_query(view), *keys)
            for scanner, view in (table.source, table.target)
        )
    )
    source, target = (
        {tuple(row["key_texts"]): (row["texts"], row["images"]) for row in rows} for rows in values
    )
    names = [name for name, _ in table.source[1].columns]
    nothing = [None] * len(names)
    for kind, key in found:
        left, right = source.get(tuple(key)), target.get(tuple(key))
        columns = {
            name: (mine, theirs)
            for name, mine, theirs, my_image, their_image in zip(
                names,
                left[0] if left else nothing,
                right[0] if right else nothing,
                left[1] if left else nothing,
                right[1] if right else nothing,
                strict=True,
            )
            if my_image != their_image
        }
        table.differences.append(
            Difference(dict(zip(table.map.key, key, strict=True)), kind, columns)
        )
