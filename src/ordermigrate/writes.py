"""Whether the source is being written to: what a copy without capture has to know.

Two observers with different blind spots. Before the copy, locks and the server's write counters
show who is at work (counters come late, so this cannot prove silence). After it, the rows
themselves are asked: each carries the transaction that wrote it, so counting all rows, and those
that the copy's snapshot could not see, tells any insert, update or delete since.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from psycopg import sql

from ordermigrate import catalog, queries
from ordermigrate.control import Session
from ordermigrate.model import TableMap
from ordermigrate.together import run_together

POLL_SECONDS = 0.2


@dataclass(frozen=True, slots=True)
class Counters:
    """Write counters of one table with all its leaves, and its range of keys."""

    inserted: int
    updated: int
    deleted: int
    smallest_key: str | None
    greatest_key: str | None


@dataclass(frozen=True, slots=True)
class Window:
    """Rows of transactions that are not older than the oldest one open at a snapshot.

    `sum` is over key and transaction of each: it tells one set of row versions from another.
    """

    rows: int
    sum: str


@dataclass(frozen=True, slots=True)
class Stillness:
    """What the rows of a table say about writes since a snapshot."""

    table: str
    rows_now: int
    rows_newer: int
    rows_copied: int
    is_window_same: bool

    @property
    def is_still(self) -> bool:
        """Whether the table's visible rows are the very ones that the snapshot saw."""
        return self.rows_newer == 0 and self.rows_now == self.rows_copied and self.is_window_same

    def describe(self) -> str:
        """Say what was found, in one sentence."""
        if self.is_still:
            return f"{self.table}: {self.rows_now:,} rows, none written since the copy's snapshot"
        said = [f"{self.rows_newer:,} rows were inserted or updated"] if self.rows_newer else []
        gone = self.rows_copied - (self.rows_now - self.rows_newer)
        if gone > 0:
            said.append(f"{gone:,} row versions that were copied are gone (deleted or updated)")
        if gone < 0 or not said:
            said.append("a transaction that was open at the copy's snapshot has written since")
        return f"{self.table}: " + ", ".join(said)


def _leaf_oids(table: TableMap) -> list[int]:
    return sorted({table.source.oid, *(leaf.oid for leaf in table.source.leaves)})


async def read_counters(session: Session, tables: Sequence[TableMap]) -> dict[str, Counters]:
    """Return the write counters and key ranges of the source's tables, by name."""
    found: dict[str, Counters] = {}
    for table in tables:
        row = await session.fetch_one("writes", "read_counters", _leaf_oids(table))
        found[table.label] = Counters(
            row.inserted, row.updated, row.deleted, *await _read_key_range(session, table)
        )
    return found


async def _read_key_range(session: Session, table: TableMap) -> tuple[str | None, str | None]:
    key = [sql.Identifier(name) for name in table.source.primary_key]
    row = await session.fetch_one(
        "writes",
        "read_key_range",
        table=table.source.name.sql,
        alias=sql.Identifier(table.source.name.name),
        key=sql.SQL(", ").join(key),
        ascending=sql.SQL(", ").join(key),
        descending=sql.SQL(", ").join(sql.SQL("{} DESC").format(each) for each in key),
    )
    return row.smallest, row.greatest


def explain_counters(before: dict[str, Counters], after: dict[str, Counters]) -> list[str]:
    """Say in sentences which write counters have moved; empty where none has.

    They count what was rolled back as well, and come late: a sign, not a proof.
    """
    said: list[str] = []
    for name, old in before.items():
        new = after[name]
        moved = [
            f"{getattr(new, what) - getattr(old, what):+,} {what}"
            for what in ("inserted", "updated", "deleted")
            if getattr(new, what) != getattr(old, what)
        ]
        if moved:
            said.append(f"{name}: write counters moved by {', '.join(moved)}")
    return said


def explain_key_ranges(before: dict[str, Counters], after: dict[str, Counters]) -> list[str]:
    """Say in sentences which ranges of keys have changed; empty where none has."""
    return [
        f"{name}: its {what.replace('_', ' ')} went from {getattr(old, what)} "
        f"to {getattr(after[name], what)}"
        for name, old in before.items()
        for what in ("smallest_key", "greatest_key")
        if getattr(after[name], what) != getattr(old, what)
    ]


def to_json(counters: dict[str, Counters]) -> dict[str, dict[str, object]]:
    """Return counters as the ledger keeps them."""
    return {name: asdict(each) for name, each in counters.items()}


def from_json(kept: dict[str, dict[str, Any]]) -> dict[str, Counters]:
    """Return counters as the ledger has kept them."""
    return {name: Counters(**each) for name, each in kept.items()}


def _describe_holder(pid: int | None, application_name: str) -> str:
    if pid is None:
        return "a prepared transaction"
    return f"backend {pid} ({application_name})" if application_name else f"backend {pid}"


async def watch(session: Session, tables: Sequence[TableMap], seconds: float) -> list[str]:
    """Look for signs of writing for so many seconds, and return the first that are seen.

    An empty list means that none was seen, not that there is none.
    """
    oids = sorted({oid for table in tables for oid in _leaf_oids(table)})
    before = await read_counters(session, tables)
    end = time.monotonic() + seconds
    while True:
        holders = await session.fetch_all("catalog", "see_lock_holders", oids, [session.pid])
        if holders:
            return [
                f"{_describe_holder(row.pid, row.application_name)} holds {row.mode} on "
                f"{row.relation} since {row.age_seconds:.1f} s"
                for row in holders
            ]
        now = await read_counters(session, tables)
        moved = explain_counters(before, now) + explain_key_ranges(before, now)
        if moved or time.monotonic() >= end:
            return moved
        await asyncio.sleep(POLL_SECONDS)


async def note_window(
    session: Session, tables: Sequence[TableMap], snapshot: str
) -> dict[str, dict[str, Any]]:
    """Return each table's window as the session's snapshot sees it; empty where none was open.

    A snapshot's text lists open transactions but not their savepoints, whose rows it therefore
    seems to see. What it really saw has to be noted under the snapshot itself.
    """
    opened = await session.fetch_one("writes", "has_open_transactions", snapshot)
    if not opened.has_open:
        return {}
    noted: dict[str, dict[str, Any]] = {}
    await session.run("SET LOCAL statement_timeout = 0")
    for table in tables:
        row = (await session.run_long(_window_query("read_window", table), snapshot))[0]
        noted[table.label] = asdict(Window(row.window_rows, row.window_sum))
    return noted


def _window_query(block: str, table: TableMap) -> str:
    alias = sql.Identifier(table.source.name.name)
    key = [
        sql.SQL("{}.{}").format(alias, sql.Identifier(each)) for each in table.source.primary_key
    ]
    return queries.compose(
        "writes",
        block,
        table=table.source.name.sql,
        alias=alias,
        key=sql.SQL(", ").join(key),
        where=sql.SQL(f"({table.where}\n)"),
    )


@dataclass(frozen=True, slots=True)
class Noted:
    """What was noted of the source when the copy began."""

    snapshot: str
    window: dict[str, dict[str, Any]]


async def check_stillness(
    session: Session,
    watcher: Session,
    tables: Sequence[TableMap],
    noted: Noted,
    copied: dict[str, int] | None,
) -> list[Stillness]:
    """Ask the rows themselves whether anything was written since a snapshot.

    Args:
        session: A control session on the source, for the scan.
        watcher: Another one, which sees to it that nobody's ALTER TABLE waits for the scan.
        tables: The family.
        noted: The snapshot of the copy's first attempt, and what was noted under it.
        copied: Rows copied per table; None while the copy is not complete, when rows that are
            gone cannot be told.

    Raises:
        GaveWay: An exclusive lock waited for the scan.

    """
    oids = [oid for table in tables for oid in _leaf_oids(table)]
    (found,) = await run_together(
        _count_newer(session, tables, noted, copied),
        beside=[catalog.watch_for_rewriters(watcher, oids, [session.pid])],
        abort=session.abort,
    )
    return found


async def _count_newer(
    session: Session,
    tables: Sequence[TableMap],
    noted: Noted,
    copied: dict[str, int] | None,
) -> list[Stillness]:
    found: list[Stillness] = []
    async with catalog.locked_snapshot(session, [table.source.name for table in tables]):
        await session.run("SET LOCAL statement_timeout = 0")
        for table in tables:
            statement = _window_query("count_recent_rows", table)
            row = (await session.run_long(statement, noted.snapshot))[0]
            newer, window = 0, Window(0, "0")
            if row.recent_rows:
                statement = _window_query("sort_recent_rows", table)
                recent = (await session.run_long(statement, noted.snapshot))[0]
                newer, window = recent.newer_rows, Window(recent.window_rows, recent.window_sum)
            was = row.all_rows - newer if copied is None else copied.get(table.label, 0)
            before = noted.window.get(table.label)
            is_same = before is None or Window(**before) == window
            found.append(Stillness(table.label, row.all_rows, newer, was, is_same))
    return found
