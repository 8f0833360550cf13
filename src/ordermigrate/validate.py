"""Validate: prove that both sides hold the same rows, or name the ones that differ.

Both sides are read at the same time, each in one snapshot that stays open until the verdict. The
equal case is one pass over each table, divided into parts by a hash of the key; only where a part
differs are its rows read again, in the order of their keys, and compared side by side in a
stream. So memory stays small however many rows there are and however many differ, and every
differing row is counted even if only some are shown.

An unreadable side is an error, never a difference.
"""

from __future__ import annotations

import heapq
import time
from collections.abc import AsyncIterator, Awaitable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import asyncpg
from psycopg import sql

from ordermigrate import catalog, db, digest, queries, sessions, streams
from ordermigrate.config import Limits
from ordermigrate.db import Session
from ordermigrate.digest import Algorithm, View
from ordermigrate.errors import OrdermigrateError, Refused, Unavailable
from ordermigrate.model import ForeignKey, Side, TableMap
from ordermigrate.progress import CheckFinished, CheckStarted, Locating, Reporter
from ordermigrate.together import run_together

LATEST_ROWS = 10
TOP_USERS = 10
_FETCH = 2000
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Check:
    """The result of one check: `equal`, `different`, `attention` or `skipped`."""

    name: str
    outcome: str
    summary: str
    details: tuple[dict[str, Any], ...] = ()
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Difference:
    """A row that is not the same on both sides: `missing` or `extra` on the target, or `changed`.

    `columns` has both values as text, the source's first; None is NULL, or no such row.
    """

    key: dict[str, str | None]
    kind: str
    columns: dict[str, tuple[str | None, str | None]]


@dataclass(frozen=True, slots=True)
class TableVerdict:
    """All that was found about one table."""

    name: str
    target: str
    source_rows: int
    target_rows: int
    checks: tuple[Check, ...]
    differences: tuple[Difference, ...]
    differences_total: int
    notes: tuple[str, ...]

    @property
    def is_equal(self) -> bool:
        """Whether no check found a difference."""
        return all(check.outcome != "different" for check in self.checks)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a validation found."""

    tables: tuple[TableVerdict, ...]
    algorithm: str | None
    seconds: float
    notes: tuple[str, ...]

    @property
    def is_equal(self) -> bool:
        """Whether both sides hold the same, as far as was asked."""
        return all(table.is_equal for table in self.tables)


@dataclass(slots=True)
class _Scanner:
    """One side's connection with its snapshot."""

    side: Side
    route: streams.Route
    connection: asyncpg.Connection[Any]
    stall_seconds: float

    async def fetch(self, statement: str, *values: object) -> list[Any]:
        """Run a query that may be long and return its rows."""

        async def run() -> list[Any]:
            with streams.translated(self.side):
                return list(await self.connection.fetch(statement, *values))

        return await self.outlive(run())

    async def outlive(self, work: Awaitable[_T]) -> _T:
        """Wait for work on this side for as long as its backend is seen to be there."""
        return await db.outlive(
            work, self.route, self.connection.get_server_pid(), self.stall_seconds
        )

    async def stream(self, statement: str, *values: object) -> AsyncIterator[Any]:
        """Yield a query's rows through a cursor, a few thousand at a time."""
        with streams.translated(self.side):
            cursor = await self.outlive(_open_cursor(self.connection, statement, values))
            while rows := await self.outlive(cursor.fetch(_FETCH)):
                for row in rows:
                    yield row


async def _open_cursor(
    connection: asyncpg.Connection[Any], statement: str, values: Sequence[object]
) -> Any:  # noqa: ANN401  asyncpg's cursor
    return await connection.cursor(statement, *values)


@dataclass(slots=True)
class _Table:
    """A table under validation: its map, both views, both scanners, and what was found."""

    map: TableMap
    source: tuple[_Scanner, View]
    target: tuple[_Scanner, View]
    control: Session
    reporter: Reporter
    max_differences: int
    checks: list[Check] = field(default_factory=list)
    differences: list[Difference] = field(default_factory=list)
    differences_total: int = 0
    rows: tuple[int, int] = (0, 0)

    async def both(self, block: str, *values: object, **parts: sql.Composable) -> list[list[Any]]:
        """Run a block on both sides at once, with each side's own origin."""
        return await run_together(
            *(
                scanner.fetch(
                    queries.compose("validate", block, origin=_raw(view.origin), **parts), *values
                )
                for scanner, view in (self.source, self.target)
            )
        )

    def begin(self, check: str) -> float:
        """Tell the reporter what is looked at now, and return the time."""
        self.reporter.report(CheckStarted(self.map.label, check, self.map.source.rows_estimate))
        return time.monotonic()

    def conclude(self, check: Check, started: float) -> None:
        """Keep a check's result and tell the reporter."""
        seconds = time.monotonic() - started
        self.checks.append(replace(check, seconds=seconds))
        self.reporter.report(CheckFinished(self.map.label, check.name, check.outcome, seconds))


def _raw(text: str) -> sql.SQL:
    return sql.SQL(text)


async def validate(
    sides: tuple[Session, Session],
    watcher: Session,
    maps: Sequence[TableMap],
    limits: Limits,
    reporter: Reporter,
    *,
    algorithm: Algorithm | None,
    max_differences: int,
) -> Verdict:
    """Compare source and target.

    Args:
        sides: Control sessions on source and target.
        watcher: Another one on the source, which sees to it that nobody's ALTER TABLE waits.
        maps: The family.
        limits: Ages and timeouts to keep.
        reporter: Whom to tell of each check.
        algorithm: For row checksums; None leaves them out.
        max_differences: How many differing rows to name; all are counted.

    Raises:
        Refused: The algorithm cannot be had on both sides.
        Unavailable: A side cannot be read, or an exclusive lock waited for us.

    """
    started = time.monotonic()
    notes: list[str] = []
    algorithm = await _choose(algorithm, sides, notes)
    scanners: list[_Scanner] = []

    def abort() -> None:
        for scanner in scanners:
            scanner.connection.terminate()

    try:
        for session, names in (
            (sides[0], [each.source.name for each in maps]),
            (sides[1], [each.target.name for each in maps]),
        ):
            connection = await _open_scanner(session, limits)
            scanners.append(
                _Scanner(session.side, session.route, connection, limits.stall_timeout_seconds)
            )
            await _take_snapshot(session.side, connection, names)
        oids = [leaf.oid for each in maps for leaf in each.source.leaves]
        oids += [each.source.oid for each in maps]
        (verdicts,) = await run_together(
            _validate_tables(scanners, sides[0], maps, reporter, algorithm, max_differences),
            beside=[
                catalog.watch_for_rewriters(
                    watcher, oids, [scanners[0].connection.get_server_pid()]
                )
            ],
            abort=abort,
        )
    finally:
        abort()
    return Verdict(
        tuple(verdicts),
        algorithm.value if algorithm else None,
        time.monotonic() - started,
        tuple(notes),
    )


async def _validate_tables(
    scanners: Sequence[_Scanner],
    control: Session,
    maps: Sequence[TableMap],
    reporter: Reporter,
    algorithm: Algorithm | None,
    max_differences: int,
) -> list[TableVerdict]:
    chosen = algorithm or Algorithm.MD5
    is_same_byte_order = await _is_same_byte_order(scanners, algorithm)
    verdicts = []
    for each in maps:
        views = (
            digest.source_view(each, chosen, is_same_byte_order=is_same_byte_order),
            digest.target_view(each, chosen, is_same_byte_order=is_same_byte_order),
        )
        table = _Table(
            each,
            (scanners[0], views[0]),
            (scanners[1], views[1]),
            control,
            reporter,
            max_differences,
        )
        verdicts.append(await _validate_table(table, has_checksums=algorithm is not None))
    return verdicts


async def _open_scanner(session: Session, limits: Limits) -> asyncpg.Connection[Any]:
    age = sessions.milliseconds(limits.max_snapshot_age_minutes * 60)
    return await streams.connect(
        replace(
            session.route,
            settings={
                **session.route.settings,
                # No statement, and so no snapshot, outlives the stated age by much.
                "statement_timeout": age,
                "idle_in_transaction_session_timeout": age,
            },
            application_name="ordermigrate validate: scan",
        )
    )


async def _take_snapshot(
    side: Side, connection: asyncpg.Connection[Any], names: Sequence[Any]
) -> None:
    with streams.translated(side):
        await connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
        await connection.execute(
            queries.compose(
                "catalog",
                "lock_against_rewrites",
                tables=sql.SQL(", ").join(name.sql for name in names),
            )
        )
        await connection.fetchval("SELECT pg_current_snapshot()::text")


async def _choose(
    wanted: Algorithm | None, sides: Sequence[Session], notes: list[str]
) -> Algorithm | None:
    """Return the algorithm that both sides can compute, and say so where it is another one."""
    if wanted is not Algorithm.MD5:
        return wanted
    for session in sides:
        try:
            await session.fetch_one("validate", "probe_md5")
        except Unavailable:
            raise
        except OrdermigrateError:
            notes.append(f"the {session.side} refuses MD5 (FIPS mode?): SHA-256 was used instead")
            return Algorithm.SHA256
    return wanted


async def _is_same_byte_order(scanners: Sequence[_Scanner], algorithm: Algorithm | None) -> bool:
    statement = queries.get("validate", "probe_byte_order")
    hashes = {(await scanner.fetch(statement))[0]["hash"] for scanner in scanners}
    if len(hashes) > 1 and algorithm is Algorithm.RECORD_HASH:
        raise Refused(
            "The two servers hash the same record differently (byte order or version)",
            wanted="A digest that means the same on both sides",
            todo="Use --algorithm md5 or sha256",
        )
    return len(hashes) == 1


async def _validate_table(table: _Table, *, has_checksums: bool) -> TableVerdict:
    if has_checksums:
        await _check_rows(table)
    else:
        await _check_count(table)
    await _check_status(table)
    await _check_users(table)
    await _check_latest(table)
    return TableVerdict(
        table.map.label,
        str(table.map.target.name),
        *table.rows,
        tuple(table.checks),
        tuple(table.differences),
        table.differences_total,
        table.map.notes,
    )


async def _check_count(table: _Table) -> None:
    started = table.begin("row count")
    source, target = await table.both("count_rows")
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


async def _check_status(table: _Table) -> None:
    name = "status distribution"
    started = table.begin(name)
    column = table.map.status
    if column is None:
        table.conclude(Check(name, "skipped", "no `status` in the configuration"), started)
        return
    counts = await run_together(
        *(
            scanner.fetch(
                queries.compose(
                    "validate",
                    "count_by_status",
                    status=_raw(_expression(view, column)),
                    origin=_raw(view.origin),
                )
            )
            for scanner, view in (table.source, table.target)
        )
    )
    source, target = ({row["status"]: row["rows"] for row in rows} for rows in counts)
    details = tuple(
        {"status": status, "source": source.get(status, 0), "target": target.get(status, 0)}
        for status in sorted(
            source.keys() | target.keys(), key=lambda value: (value is None, value)
        )
    )
    wrong = [each for each in details if each["source"] != each["target"]]
    summary = (
        f"{len(wrong)} of {len(details)} states differ"
        if wrong
        else f"{len(details)} states, the same counts"
    )
    table.conclude(Check(name, "different" if wrong else "equal", summary, details), started)


def _expression(view: View, column: str) -> str:
    """Return a configured column's expression on one side; a frozen one is read as it is."""
    named = dict(view.columns)
    return named.get(column, sql.Identifier(column).as_string(None))


@dataclass(slots=True)
class _Users:
    """What the comparison per user has met so far."""

    users: int = 0
    differing: int = 0
    top: list[tuple[int, int, str | None, int, int]] = field(default_factory=list)
    unknown: int = 0
    unknown_rows: int = 0
    unknown_examples: list[str] = field(default_factory=list)
    batch: dict[str, int] = field(default_factory=dict)

    def meet(self, user: str | None, source: int, target: int) -> None:
        """Count a user; keep the largest differences."""
        self.users += 1
        if target and user is not None:
            self.batch[user] = target
        if source == target:
            return
        self.differing += 1
        entry = (abs(target - source), -self.users, user, source, target)
        if len(self.top) < TOP_USERS:
            heapq.heappush(self.top, entry)
        else:
            heapq.heappushpop(self.top, entry)


async def _check_users(table: _Table) -> None:
    started = table.begin("orders per user")
    column = table.map.user
    if column is None:
        for name in ("orders per user", "orphans"):
            table.conclude(Check(name, "skipped", "no `user` in the configuration"), started)
        return
    key, reason = await _find_reference(table, column)
    found = _Users()
    streams_of = []
    for scanner, view in (table.source, table.target):
        statement = queries.compose(
            "validate",
            "count_by_user",
            user=_raw(_expression(view, column)),
            origin=_raw(view.origin),
        )
        streams_of.append(scanner.stream(statement))
    async for source, target in _merge(*streams_of):
        row = source or target
        found.meet(
            row["user_text"], source["rows"] if source else 0, target["rows"] if target else 0
        )
        if key is not None and len(found.batch) >= _FETCH:
            await _find_orphans(table, key, found)
    details = tuple(
        {"user": user, "source": source, "target": target}
        for _, _, user, source, target in sorted(found.top, reverse=True)
    )
    summary = (
        f"{found.differing:,} of {found.users:,} users differ"
        if found.differing
        else f"{found.users:,} users, the same counts"
    )
    outcome = "different" if found.differing else "equal"
    table.conclude(Check("orders per user", outcome, summary, details), started)
    started = table.begin("orphans")
    if key is None:
        table.conclude(Check("orphans", "skipped", reason), started)
        return
    await _find_orphans(table, key, found)
    table.conclude(_orphan_result(key, found), started)


async def _find_reference(table: _Table, column: str) -> tuple[ForeignKey | None, str]:
    """Return the source's foreign key that says where users are kept, or why it cannot be used."""
    key = next((each for each in table.map.source.foreign_keys if each.columns == (column,)), None)
    if key is None:
        return None, f"no foreign key of the monolith tells where {column} points"
    (there,) = await catalog.find_tables(table.control, [key.references])
    if not there.can_select:
        return None, f"we may not read {key.references} on the monolith"
    return key, ""


async def _find_orphans(table: _Table, key: ForeignKey, found: _Users) -> None:
    """Ask the source, as it is now, which users of the batch it no longer has."""
    batch, found.batch = found.batch, {}
    origin = next(each for each in table.map.source.columns if each.name == key.columns[0])
    rows = await table.control.fetch_all(
        "validate",
        "find_unknown_users",
        list(batch),
        table=key.references.sql,
        column=sql.Identifier(key.referenced_columns[0]),
        type=_raw(origin.type_name),
    )
    for row in rows:
        user = row.user_text
        found.unknown += 1
        found.unknown_rows += batch[user]
        if len(found.unknown_examples) < TOP_USERS:
            found.unknown_examples.append(user)


def _orphan_result(key: ForeignKey, found: _Users) -> Check:
    if not found.unknown:
        return Check("orphans", "equal", f"every user of the target is in {key.references}")
    return Check(
        "orphans",
        "attention",
        f"{found.unknown_rows:,} rows of {found.unknown:,} users that {key.references} on the "
        "monolith no longer has",
        tuple({"user": user} for user in found.unknown_examples),
    )


async def _check_latest(table: _Table) -> None:
    name = "latest orders"
    started = table.begin(name)
    column = table.map.created
    if column is None:
        table.conclude(Check(name, "skipped", "no `created` in the configuration"), started)
        return
    wanted = [*table.map.key, table.map.user, table.map.status, column]
    shown = [each for each in dict.fromkeys(wanted) if each is not None]
    rows = await run_together(
        *(
            scanner.fetch(
                queries.compose(
                    "validate",
                    "read_latest",
                    shown=_raw(", ".join(f"({_expression(view, each)})::text" for each in shown)),
                    created=_raw(_expression(view, column)),
                    key_image=_raw(view.key_image),
                    origin=_raw(view.origin),
                ),
                LATEST_ROWS,
            )
            for scanner, view in (table.source, table.target)
        )
    )
    source, target = ([tuple(row["shown"]) for row in side] for side in rows)
    details = tuple(
        {
            "source": dict(zip(shown, source[place], strict=True)) if place < len(source) else None,
            "target": dict(zip(shown, target[place], strict=True)) if place < len(target) else None,
        }
        for place in range(max(len(source), len(target)))
    )
    wrong = sum(each["source"] != each["target"] for each in details)
    summary = (
        f"{wrong} of the latest {len(details)} differ"
        if wrong
        else f"the latest {len(details)} are the same"
    )
    table.conclude(Check(name, "different" if wrong else "equal", summary, details), started)


async def _check_rows(table: _Table) -> None:
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
            f"{table.differences_total:,} rows differ ({algorithm} of every row, "
            f"{len(parts)} of {digest.PARTS} parts)"
        )
        table.conclude(Check("row checksums", "different", summary), started)
    else:
        summary = f"{table.rows[0]:,} rows compared by {algorithm}, every one equal"
        table.conclude(Check("row checksums", "equal", summary), started)


async def _locate(table: _Table, parts: list[int]) -> None:
    """Read the rows of differing parts on both sides in key order, and name those that differ."""
    found: list[tuple[str, list[str | None]]] = []
    both = (
        scanner.stream(digest.rows_query(view), parts)
        for scanner, view in (table.source, table.target)
    )
    async for source, target in _merge(*both):
        if source and target and _digest_of(source) == _digest_of(target):
            continue
        table.differences_total += 1
        if len(found) < table.max_differences:
            kind = "changed" if source and target else "missing" if source else "extra"
            found.append((kind, list((source or target)["key_texts"])))
    if found:
        await _show(table, found)


def _digest_of(row: Any) -> tuple[int, int]:  # noqa: ANN401  a row of rows_query
    return row["high"], row["low"]


async def _merge(
    source: AsyncIterator[Any], target: AsyncIterator[Any]
) -> AsyncIterator[tuple[Any, Any]]:
    """Walk two streams in the order of their first column, and pair the rows that have the same.

    A row without its like comes with None.
    """
    # The first rows come after a sort on each side: let both servers do that at the same time.
    left, right = await run_together(_next(source), _next(target))
    while left is not None or right is not None:
        if right is None or (left is not None and left[0] < right[0]):
            yield left, None
            left = await _next(source)
        elif left is None or right[0] < left[0]:
            yield None, right
            right = await _next(target)
        else:
            yield left, right
            left, right = await _next(source), await _next(target)


async def _next(rows: AsyncIterator[Any]) -> Any:  # noqa: ANN401  a row, or None at the end
    return await anext(rows, None)


async def _show(table: _Table, found: Sequence[tuple[str, list[str | None]]]) -> None:
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
