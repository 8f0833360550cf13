"""Bulk copy: every row of the family as of a snapshot, each chunk exactly once.

A chunk is a range of heap blocks of one leaf. Its rows and its mark in the ledger commit in one
transaction on the target, so a chunk is there whole or not at all, whatever is killed when. All
workers of an attempt share one exported snapshot, taken after the tables were locked against
rewrites; each chunk checks that its leaf still has the file that was planned. An attempt that
ends early (a lost connection, a snapshot grown too old, an ALTER TABLE that we make way for) is
followed by another under a new snapshot, which goes on with the chunks that are missing.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections import deque
from collections.abc import Container, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NoReturn

import asyncpg
from psycopg import sql
from tenacity import AsyncRetrying, retry_if_exception_type, wait_exponential_jitter

from ordermigrate import (
    catalog,
    db,
    evaluation,
    fingerprints,
    ledger,
    locks,
    queries,
    sessions,
    streams,
    write_ahead_log,
)
from ordermigrate.chunks import BLOCK_BYTES, bound_blocks, chunk_query, split_blocks
from ordermigrate.config import Config
from ordermigrate.control import Session
from ordermigrate.errors import OrdermigrateError, Refused
from ordermigrate.locks import GaveWay
from ordermigrate.model import (
    Leaf,
    Side,
    Table,
    TableMap,
    TableName,
    find_parents,
    names_read,
)
from ordermigrate.progress import (
    AttemptEnded,
    BytesMoved,
    ChunkCopied,
    ChunkFound,
    LeafGone,
    LeafRewritten,
    Reporter,
    RowsCopied,
    SnapshotTaken,
)
from ordermigrate.sqlstates import ConnectionLost
from ordermigrate.throttle import Throttle
from ordermigrate.together import run_together

TELL_SECONDS = 0.5
MAX_FRUITLESS = 20
_TOO_OLD = "the snapshot has reached limits.max_snapshot_age_minutes"


class AttemptOver(Exception):
    """An attempt has to end, and another can go on."""


@dataclass(slots=True)
class _Progress:
    """When bytes last moved, and how many attempts in a row have committed nothing."""

    last: float = field(default_factory=time.monotonic)
    fruitless: int = 0


@dataclass(frozen=True, slots=True)
class Job:
    """What is to be copied, and between which sides."""

    config: Config
    run: str
    maps: Sequence[TableMap]
    throttle: Throttle = field(default_factory=Throttle)
    source: Side = Side.MONOLITH

    @property
    def oids(self) -> list[int]:
        """The oids of the source's tables and leaves."""
        return sorted(
            {each.source.oid for each in self.maps}
            | {leaf.oid for each in self.maps for leaf in each.source.leaves}
            | {parent.oid for parent, _ in find_parents(self.maps).values()}
        )

    @property
    def rows_estimate(self) -> int:
        """How many rows the source's statistics speak of; 0 where it was never analysed."""
        return sum(each.source.rows_estimate for each in self.maps)


@dataclass(slots=True)
class _Attempt:
    """The connections and the remaining chunks of one attempt."""

    job: Job
    keeper: Session
    watcher: Session
    book: Session
    deadline: float
    progress: _Progress
    reporter: Reporter
    number: int = 0
    snapshot: str = ""
    chunks: deque[ledger.Chunk] = field(default_factory=deque)
    leaves: dict[int, Leaf] = field(default_factory=dict)
    moved: int = 0
    marks: dict[Side, tuple[int, int]] = field(default_factory=dict)
    pids: list[int] = field(default_factory=list)

    def move(self, count: int) -> None:
        """Count bytes that have left the source."""
        self.moved += count
        self.progress.last = time.monotonic()


async def load(job: Job, reporter: Reporter) -> RowsCopied:
    """Copy every chunk that is still missing, over as many attempts as it takes.

    Raises:
        Refused: The source's schema is not what it was when the copy began.
        Unavailable: For `limits.retry_deadline_seconds` nothing moved, or many attempts in a row
            could not commit a single chunk.

    """
    started = time.monotonic()
    progress = _Progress()
    deadline = job.config.limits.retry_deadline_seconds
    policy = AsyncRetrying(
        retry=retry_if_exception_type((ConnectionLost, GaveWay, AttemptOver)),
        stop=lambda _: (
            time.monotonic() - progress.last > deadline or progress.fruitless >= MAX_FRUITLESS
        ),
        wait=wait_exponential_jitter(multiplier=0.1, max=2.0),
        reraise=True,
    )
    try:
        async for attempt in policy:
            with attempt:
                progress.fruitless += 1
                await _run_attempt(job, progress, reporter)
    except (AttemptOver, GaveWay) as over:
        raise Refused(
            f"No chunk could be copied in {progress.fruitless} attempts: {over}",
            todo="Wait until the schema change or rewrite is over, or raise "
            "limits.max_snapshot_age_minutes; then run the command again",
        ) from None
    service = await db.connect(job.config, job.source.other, "copy")
    try:
        totals = (await ledger.read_totals(service)).values()
    finally:
        await service.close()
    done = RowsCopied(
        sum(each.copied_rows for each in totals),
        sum(each.copied_bytes for each in totals),
        time.monotonic() - started,
    )
    reporter.report(done)
    return done


async def _run_attempt(job: Job, progress: _Progress, reporter: Reporter) -> None:
    limits = job.config.limits
    async with contextlib.AsyncExitStack() as stack:

        async def open_session(side: Side, what: str) -> Session:
            session = await db.connect(job.config, side, what)
            stack.push_async_callback(session.close)
            return session

        keeper = await open_session(job.source, "copy: snapshot")
        watcher = await open_session(job.source, "copy: watch")
        book = await open_session(job.source.other, "copy")
        throttle_session = await open_session(job.source, "copy: throttle")
        age = limits.max_snapshot_age_minutes * 60
        for timeout in ("idle_in_transaction_session_timeout", "transaction_timeout"):
            # Before BEGIN: whatever takes a snapshot inside it would take it before the lock.
            await keeper.run(
                "SELECT set_config($1::text, $2::text, false) "
                "WHERE current_setting($1::text, true) IS NOT NULL",
                timeout,
                sessions.milliseconds(age + limits.stall_timeout_seconds),
            )
        async with locks.locked_snapshot(keeper, names_read(job.maps)):
            attempt = _Attempt(
                job, keeper, watcher, book, time.monotonic() + age, progress, reporter
            )
            attempt.pids.append(keeper.pid)
            try:
                await run_together(
                    _copy_under_snapshot(attempt),
                    beside=[
                        locks.watch_for_rewriters(watcher, job.oids, attempt.pids),
                        _keep_age(attempt),
                        job.throttle.watch(throttle_session, reporter),
                        _tell_bytes(attempt),
                    ],
                )
            except (ConnectionLost, GaveWay, AttemptOver) as over:
                # The source first: whoever waits for our locks should not wait for the target too.
                await keeper.close()
                if job.throttle.reason:  # to wait for the source is no lack of progress
                    progress.last, progress.fruitless = time.monotonic(), 0
                reporter.report(AttemptEnded(attempt.number, str(over)))
                with contextlib.suppress(OrdermigrateError):
                    await ledger.end_attempt(book, attempt.number, str(over))
                raise
            await ledger.end_attempt(book, attempt.number, "complete")


async def _copy_under_snapshot(attempt: _Attempt) -> None:
    """Take the snapshot, compare the schema, plan what is missing, and copy it."""
    job, keeper, book = attempt.job, attempt.keeper, attempt.book
    tables, structure, again = await _check_structure(job, keeper, book)
    exported = (
        await keeper.run(
            "SELECT pg_export_snapshot() AS name, pg_current_snapshot()::text AS snapshot"
        )
    )[0]
    attempt.snapshot = exported.name
    # What vanishes in a crash of the source, and its entry in the log with it, must not live on.
    position = await write_ahead_log.read_position(keeper)
    await write_ahead_log.wait_for_flush(
        attempt.watcher, position, job.config.limits.stall_timeout_seconds
    )
    attempt.leaves = {leaf.oid: leaf for table in tables for leaf in table.leaves}
    await _plan(job, tables, again, book, attempt.reporter)
    attempt.number = await ledger.open_attempt(book, job.run, exported.snapshot, structure)
    await _copy_chunks(attempt)


async def _check_structure(
    job: Job, keeper: Session, book: Session
) -> tuple[list[Table], dict[str, Any], set[str]]:
    """Read the source's catalog under the lock; refuse when it is not what it was.

    The third is the parts that have been away since the last attempt, where nothing captured them.
    """
    tables = await catalog.read_tables(keeper, [each.source.name for each in job.maps])
    known = find_parents(job.maps)
    parents = await catalog.read_tables(keeper, list(known)) if known else {}
    now = fingerprints.describe_side(
        tables.values(),
        await catalog.read_own_triggers(keeper),
        {name: (parents[name], columns) for name, (_, columns) in known.items()},
    )
    first = await ledger.read_first_attempt(book)
    if first is not None:
        require_same(job.source, first.fingerprint, now)
    else:
        mapped = fingerprints.fingerprint(each.source for each in job.maps)
        require_same(job.source, {**now, "tables": mapped}, now)
    last = await ledger.read_last_structure(book)
    parts = fingerprints.compare_sides(last, now).parts_added if last else ()
    return list(tables.values()), now, {part for _, part in parts}


def require_same(side: Side, before: dict[str, Any], now: dict[str, Any]) -> None:
    """Raise `Refused` where what has changed since the copy began makes a row's meaning doubtful.

    Parts may come and go: their rows are in the log, or are looked for when sync begins.
    """
    changes = fingerprints.compare_sides(before, now)
    findings = [*changes.drift, *changes.triggers]
    if findings:
        raise Refused(
            f"The {side}'s tables are not what they were when the copy began: "
            + "; ".join(findings),
            wanted="The same tables, columns and keys, and capture without a gap, from the first "
            "chunk to the last",
            todo="Undo the change and run the command again; or adapt the service's tables and "
            "begin anew with `ordermigrate copy --restart`",
            findings=findings,
        )


async def _plan(
    job: Job, tables: Sequence[Table], again: Container[str], book: Session, reporter: Reporter
) -> None:
    """Write the chunks of leaves that have none; begin anew with those that have a new file.

    And with those that were away: a row that moved there meanwhile would come twice.
    """
    known: dict[int, int | None] = {
        chunk.leaf_oid: chunk.filenode for chunk in await ledger.read_chunks(book)
    }
    chunk_blocks = job.config.limits.chunk_mib * 1024 * 1024 // BLOCK_BYTES
    targets = {each.source.name: each.target for each in job.maps}
    here = {leaf.oid for table in tables for leaf in table.leaves}
    for chunk in await ledger.read_chunks(book):
        if chunk.leaf_oid not in here and chunk.leaf_oid in known:
            table_name = TableName.parse(chunk.table_name)
            removed = await ledger.forget_leaf(
                book, chunk.table_name, targets[table_name], chunk.leaf_oid
            )
            reporter.report(LeafGone(chunk.table_name, chunk.leaf_name, removed))
            del known[chunk.leaf_oid]
    for table in tables:
        for leaf in table.leaves:
            if leaf.oid in known and (known[leaf.oid] != leaf.filenode or str(leaf.name) in again):
                removed = await ledger.forget_leaf(
                    book, str(table.name), targets[table.name], leaf.oid
                )
                reporter.report(LeafRewritten(str(table.name), str(leaf.name), removed))
                del known[leaf.oid]
            if leaf.oid not in known:
                await ledger.plan_chunks(
                    book,
                    job.run,
                    str(table.name),
                    (str(leaf.name), leaf.oid, leaf.filenode),
                    # Only a heap can be cut by blocks; another access method is read as one.
                    split_blocks(leaf.blocks, chunk_blocks)
                    if leaf.access_method == "heap"
                    else [(0, None)],
                )


async def _copy_chunks(attempt: _Attempt) -> None:
    chunks = await ledger.read_chunks(attempt.book)
    attempt.chunks.extend(chunk for chunk in chunks if not chunk.is_copied)
    copied = [chunk for chunk in chunks if chunk.is_copied]
    attempt.reporter.report(
        SnapshotTaken(
            attempt.number,
            len(chunks),
            len(copied),
            sum(chunk.copied_rows for chunk in copied),
            sum(chunk.copied_bytes for chunk in copied),
            attempt.job.rows_estimate,
        )
    )
    for session in (attempt.keeper, attempt.book):
        marks = secrets.randbelow(2**31), secrets.randbelow(2**31)
        await session.run(queries.get("sessions", "take_mark"), *marks)
        attempt.marks[session.side] = marks
    workers = max(1, min(attempt.job.config.limits.workers, len(attempt.chunks)))
    await run_together(*(_work(attempt, number) for number in range(1, workers + 1)))
    if attempt.chunks:
        raise AttemptOver(_TOO_OLD)


async def _keep_age(attempt: _Attempt) -> NoReturn:
    """End the attempt when its snapshot has grown too old."""
    await asyncio.sleep(max(0.0, attempt.deadline - time.monotonic()))
    raise AttemptOver(_TOO_OLD)


async def _tell_bytes(attempt: _Attempt) -> NoReturn:
    while True:
        await asyncio.sleep(TELL_SECONDS)
        attempt.reporter.report(BytesMoved(attempt.moved))


async def _work(attempt: _Attempt, number: int) -> None:
    """Copy chunks until none are left, or the snapshot is nearly too old for another."""
    job = attempt.job
    by_label = {each.label: each for each in job.maps}
    stall = job.config.limits.stall_timeout_seconds
    source = await _open_stream(attempt, attempt.keeper, number)
    target: asyncpg.Connection[Any] | None = None
    try:
        target = await _open_stream(attempt, attempt.book, number)
        await _import_snapshot(attempt, source)
        last_start = attempt.deadline - 0.1 * job.config.limits.max_snapshot_age_minutes * 60
        while attempt.chunks and time.monotonic() < last_start:
            if await job.throttle.wait():
                attempt.progress.last = time.monotonic()
            if not attempt.chunks:
                break
            chunk = attempt.chunks.popleft()
            await _copy_chunk(attempt, by_label[chunk.table_name], chunk, (source, target), stall)
    finally:
        source.terminate()
        if target is not None:
            target.terminate()


async def _import_snapshot(attempt: _Attempt, source: asyncpg.Connection[Any]) -> None:
    async def run(statement: str) -> None:
        with streams.translated(attempt.job.source):
            await source.execute(statement)

    names = names_read(attempt.job.maps)
    await locks.begin_locked(run, attempt.keeper, names, _longest(attempt))
    statement = sql.SQL("SET TRANSACTION SNAPSHOT {}").format(sql.Literal(attempt.snapshot))
    try:
        await run(statement.as_string(None))
    except Refused:
        await attempt.keeper.run("SELECT 1")  # a snapshot goes with its session: raises if lost
        raise


def _longest(attempt: _Attempt) -> str:
    """Return in milliseconds how long a statement that holds the snapshot may last at most."""
    limits = attempt.job.config.limits
    return sessions.milliseconds(
        limits.max_snapshot_age_minutes * 60 + limits.stall_timeout_seconds
    )


async def _open_stream(attempt: _Attempt, like: Session, number: int) -> asyncpg.Connection[Any]:
    """Open a stream's connection to where a session is, and prove that it is the same database."""
    route = replace(
        like.route,
        settings={
            **like.route.settings,
            # Between chunks and while bytes flow, the stall limit watches; these are for the
            # server, should we not be there any more.
            "statement_timeout": _longest(attempt),
            "idle_in_transaction_session_timeout": sessions.milliseconds(
                attempt.job.config.limits.stall_timeout_seconds * 2
            ),
        },
        application_name=f"ordermigrate copy: worker {number}",
    )
    connection = await streams.connect(route)
    try:
        with streams.translated(like.side):
            seen = await connection.fetchval(
                queries.get("sessions", "see_mark"), *attempt.marks[like.side]
            )
    except BaseException:
        connection.terminate()
        raise
    if not seen:
        connection.terminate()
        await like.run("SELECT 1")  # a mark goes with its session: raises if that is lost
        raise Refused(
            f"Two connections by the same DSN reached different {like.side} databases",
            wanted="Every connection to reach the same server",
            todo=f"Let the {like.side}'s DSN name one server, not a balancer or several hosts",
        )
    if like.side is attempt.job.source:
        attempt.pids.append(connection.get_server_pid())
    return connection


async def _explain(
    job: Job, table: TableMap, chunk: ledger.Chunk, leaf: Leaf, failed: OrdermigrateError
) -> Refused | None:
    """Name the row of a chunk that an expression has no value for, if that is what it was."""
    if not evaluation.is_about_values(failed):
        return None
    async with db.opened(job.config, job.source, "copy: search") as session:
        origin = sql.SQL("ONLY {}").format(leaf.name.sql)
        bounds = bound_blocks(table, chunk.first_block, chunk.end_block)
        return await evaluation.explain(session, table, failed, origin=origin, condition=bounds)


async def _copy_chunk(
    attempt: _Attempt,
    table: TableMap,
    chunk: ledger.Chunk,
    connections: tuple[asyncpg.Connection[Any], asyncpg.Connection[Any]],
    stall_seconds: float,
) -> None:
    source, target = connections
    job = attempt.job
    with streams.translated(job.source):
        async with asyncio.timeout(stall_seconds):
            filenode = await source.fetchval(
                queries.get("catalog", "read_filenode"), chunk.leaf_oid
            )
    if filenode != chunk.filenode:
        message = f"{chunk.leaf_name} was rewritten while it was being copied"
        raise AttemptOver(message)
    leaf = attempt.leaves[chunk.leaf_oid]
    query = chunk_query(table, leaf, chunk.first_block, chunk.end_block)
    with streams.translated(job.source.other):
        async with asyncio.timeout(stall_seconds):
            await target.execute("BEGIN")
            await target.fetchval(queries.get("sides", "show_pass"))
            # Locked until commit: a worker whose connection was lost, but whose backend still
            # commits, cannot be overtaken by its successor.
            claimed = await target.fetchval(queries.get("ledger", "claim_chunk"), chunk.chunk_id)
            if claimed is None:
                await target.execute("ROLLBACK")
    if claimed is None:
        attempt.reporter.report(ChunkFound(chunk.table_name, chunk.chunk_id))
        return
    try:
        moved = await streams.pipe(
            source,
            query,
            target,
            schema=table.target.name.schema,
            table=table.target.name.name,
            columns=tuple(pair.name for pair in table.copied),
            is_binary=table.is_binary,
            stall_seconds=stall_seconds,
            sides=(job.source, job.source.other),
            on_bytes=attempt.move,
        )
    except OrdermigrateError as failed:
        if named := await _explain(job, table, chunk, leaf, failed):
            raise named from failed
        raise
    with streams.translated(job.source.other):
        async with asyncio.timeout(stall_seconds):
            await target.fetchval(
                queries.get("ledger", "record_chunk"),
                chunk.chunk_id,
                attempt.number,
                moved.rows,
                moved.bytes,
            )
            await target.execute("COMMIT")
    attempt.progress.fruitless = 0
    attempt.reporter.report(ChunkCopied(chunk.table_name, chunk.chunk_id, moved.rows, moved.bytes))
