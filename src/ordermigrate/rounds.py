"""A round: everything that the source has committed up to one snapshot, applied to the target.

The target's side row is locked first, always: whoever comes second waits there, and whose time is
over finds no row. Then the source's tables are locked against rewrites, and then comes the
snapshot S. The logged keys that S sees are taken, their rows are read as they are at S, and the
target is brought to that. The target commits first. A crash between the two commits leaves the
log as it was: the same keys are applied again, and nothing changes.

Not before all that S sees is safely on the source's disk does the target commit: a transaction
that committed asynchronously may vanish in a crash, and must not live on here.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime

from psycopg import sql

from ordermigrate import apply, change_logs, db, digest, ledger, locks, sessions, streams
from ordermigrate.apply import Applied, Stage
from ordermigrate.change_logs import COMPARE, TRUNCATED, ChangeLog, Waiting
from ordermigrate.config import Config
from ordermigrate.control import Session
from ordermigrate.digest import Algorithm
from ordermigrate.errors import Refused
from ordermigrate.model import Side, TableMap
from ordermigrate.progress import (
    ChangesStaged,
    ChangesWritten,
    Reporter,
    RoundBegun,
    RoundHalfCommitted,
    Subtracted,
)
from ordermigrate.sqlstates import ConnectionLost
from ordermigrate.stream_sessions import StreamSession
from ordermigrate.together import run_together

# Forget old rounds' records every so many.
_TIDY_EVERY = 500


class StructureChanged(Exception):
    """A side's tables or triggers are not what they were when the line was opened."""

    def __init__(self, side: Side) -> None:
        super().__init__(f"the {side}'s tables or triggers have changed")
        self.side = side


class PartCollides(Exception):
    """A part of the backlog cannot be applied by itself; the whole of it can."""


@dataclass(frozen=True, slots=True)
class Line:
    """The connections that rounds go over, and what they know of both sides."""

    run: str
    epoch: int
    source: StreamSession
    target: StreamSession
    control: Session
    watcher: Session
    book: Session
    stages: tuple[Stage, ...]
    logs: dict[str, ChangeLog]
    oids: dict[Side, list[int]]
    versions: dict[Side, str]
    reporter: Reporter
    timeout_ms: str
    last_position: str | None

    @property
    def maps(self) -> list[TableMap]:
        """The family."""
        return [stage.map for stage in self.stages]


@dataclass(frozen=True, slots=True)
class Round:
    """What one round has done.

    `is_complete` says that the target equals the source as of `seen_at` (the source's clock).
    `lag_seconds` is the age, at the snapshot, of the oldest change that was waiting.
    """

    number: int
    changes: int
    remaining: int
    written: int
    deleted: int
    lag_seconds: float
    seconds: float
    is_complete: bool
    seen_at: datetime
    is_timeline_new: bool


@contextlib.asynccontextmanager
async def open_line(
    config: Config,
    sides: tuple[Session, Session],
    maps: Sequence[TableMap],
    run: str,
    epoch: int,
    algorithm: Algorithm,
    reporter: Reporter,
) -> AsyncIterator[Line]:
    """Open the connections of rounds from source to target (control sessions on both).

    What the catalogs say at this moment is what the rounds then insist on.
    """
    control, book = sides
    timeouts = _timeouts(config)
    async with contextlib.AsyncExitStack() as stack:
        watcher = await db.connect(config, control.side, "sync: watch")
        stack.push_async_callback(watcher.close)
        opened = [await _open_stream(stack, config, session, "sync: rounds") for session in sides]
        logs = {log.table: log for log in await change_logs.read_all(control)}
        stages = tuple(
            Stage(each, number, digest.target_view(each, algorithm, is_same_byte_order=True))
            for number, each in enumerate(maps, 1)
        )
        await apply.create_stages(opened[1], stages)
        oids = {
            control.side: [each.source.oid for each in maps],
            book.side: [each.target.oid for each in maps],
        }
        versions = {each.side: await read_version(each, oids[each.side]) for each in sides}
        last = await ledger.read_last_round(book)
        yield Line(
            run,
            epoch,
            opened[0],
            opened[1],
            control,
            watcher,
            book,
            stages,
            logs,
            oids,
            versions,
            reporter,
            timeouts["statement_timeout"],
            last.source_position if last else None,
        )


def _timeouts(config: Config) -> dict[str, str]:
    limits = config.limits
    return {
        "statement_timeout": sessions.milliseconds(limits.max_snapshot_age_minutes * 60),
        "idle_in_transaction_session_timeout": sessions.milliseconds(limits.stall_timeout_seconds),
    }


async def _open_stream(
    stack: contextlib.AsyncExitStack, config: Config, like: Session, what: str
) -> StreamSession:
    opened = await StreamSession.open(
        like, what, _timeouts(config), config.limits.stall_timeout_seconds
    )
    stack.callback(opened.terminate)
    return opened


async def read_version(session: Session, oids: Sequence[int]) -> str:
    """Return a number that changes with the definition of any of the tables."""
    return str((await session.fetch_one("catalog", "read_version", list(oids))).version)


async def run_round(
    line: Line,
    *,
    max_changes: int | None = None,
    before_commit: Callable[[str], Awaitable[None]] | None = None,
) -> Round:
    """Apply what the source has logged, as of a snapshot taken now.

    Args:
        line: The connections; after any exception they must not be used again.
        max_changes: Take about so many changes at most; the round is then not complete.
        before_commit: Called with the name of the exported snapshot, before anything is committed.

    Raises:
        StructureChanged: Nothing was applied; look at the tables again.
        PartCollides: A part clashed with a row of another part; take all.
        Refused: The rows do not fit, or a side is not where it should be.
        ConnectionLost: Either side is lost; what was not committed is undone.
        GaveWay: Somebody's ALTER TABLE waited for us.

    """
    started = time.monotonic()
    oids = [leaf.oid for each in line.maps for leaf in each.source.leaves]
    oids += line.oids[line.control.side]
    (done,) = await run_together(
        _run(line, max_changes, before_commit, started),
        beside=[locks.watch_for_rewriters(line.watcher, oids, [line.source.pid])],
    )
    return done


async def _run(
    line: Line,
    max_changes: int | None,
    before_commit: Callable[[str], Awaitable[None]] | None,
    started: float,
) -> Round:
    source, target = line.source, line.target
    number, is_new = await _begin_target(line)
    await locks.begin_locked(
        source.run,
        line.control,
        [each.source.name for each in line.maps],
        line.timeout_ms,
        is_writing=True,
    )
    look = await source.fetch_one("rounds", "look")
    _require_place(line, look, number)
    await _require_forward(line, look["position"])
    version = await source.fetch_one("catalog", "read_version", line.oids[source.side])
    if version["version"] != line.versions[source.side]:
        raise StructureChanged(source.side)
    if look["timeline"] != look["known_timeline"]:
        is_new = is_new or look["known_timeline"] is not None
        await source.fetch_one("sides", "note_timeline", look["timeline"])
    line.reporter.report(RoundBegun(number))
    waiting = await _measure(line)
    changes = remaining = 0
    totals = [Applied(0, 0)]
    budget = max_changes
    for stage in line.stages:
        found = waiting[line.logs[stage.map.label].number]
        if not found.changes:
            continue
        taken, applied = await _take_table(line, stage, found, budget)
        if budget is not None:
            budget = max(0, budget - taken)
        changes += taken
        remaining += found.changes - taken
        totals.append(applied)
    await _wait_for_flush(line, look["position"])
    if before_commit is not None:
        exported = await source.fetch_one("rounds", "export_snapshot")
        await before_commit(exported["name"])
    written, deleted = sum(t.written for t in totals), sum(t.deleted for t in totals)
    if is_new:
        await target.fetch_one(
            "ledger", "void_validations", "a server's timeline has changed: a failover or a restore"
        )
    await target.fetch_one(
        "ledger",
        "record_round",
        number,
        changes,
        written,
        deleted,
        remaining == 0,
        time.monotonic() - started,
        look["position"],
    )
    if number % _TIDY_EVERY == 0:
        await target.fetch_one("ledger", "forget_old_rounds", number - ledger.ROUNDS_KEPT)
    if await source.fetch_one("sides", "end_round", line.run, line.epoch, number) is None:
        message = "a side row that was just looked at is not there"
        raise AssertionError(message)
    await target.run("COMMIT")
    line.reporter.report(RoundHalfCommitted(number))
    await source.run("COMMIT")
    return Round(
        number,
        changes,
        remaining,
        written,
        deleted,
        max((each.age_seconds or 0.0 for each in waiting.values()), default=0.0),
        time.monotonic() - started,
        remaining == 0,
        look["seen_at"],
        is_new,
    )


async def _begin_target(line: Line) -> tuple[int, bool]:
    """Enter the round on the target; return its number, and whether the timeline is another."""
    target = line.target
    await target.run("BEGIN")
    await target.fetch_one("rounds", "take_turn")
    row = await target.fetch_one("sides", "begin_round", line.run, line.epoch)
    if row is None:
        raise Refused(
            f"The {target.side} is not the cold side of migration {line.run} in epoch "
            f"{line.epoch} any more",
            wanted="The same migration, with the same owner, as when this command began",
            todo="See `ordermigrate status`; then run the command again if it is still wanted",
        )
    await target.fetch_one("sides", "show_pass")
    version = await target.fetch_one("catalog", "read_version", line.oids[target.side])
    if version["version"] != line.versions[target.side]:
        raise StructureChanged(target.side)
    now = (await target.fetch_one("rounds", "read_timeline"))["timeline"]
    if now != row["timeline"]:
        await target.fetch_one("sides", "note_timeline", now)
    return row["round"], row["timeline"] is not None and now != row["timeline"]


def _require_place(line: Line, look: dict[str, object] | None, number: int) -> None:
    """Refuse a source that is not this migration's, or not where its target is."""
    side = line.source.side
    if look is None or look["run"] != line.run or look["epoch"] != line.epoch or not look["is_hot"]:
        raise Refused(
            f"The {side} is not the owner in migration {line.run}, epoch {line.epoch}, any more",
            wanted="The same migration, with the same owner, as when this command began",
            todo="See `ordermigrate status`; then run the command again if it is still wanted",
        )
    if look["round"] not in {number - 1, number - 2}:
        raise Refused(
            f"The {side} is at round {look['round']}, the {side.other} at {number - 1}: one of the "
            "two databases has gone back in time (restored from a backup?)",
            wanted="Two databases that have taken the same rounds, or the last one half",
            todo="What is on the service cannot be told to be right any more: begin anew with "
            "`ordermigrate copy --restart`",
        )


async def _require_forward(line: Line, position: str) -> None:
    """Refuse a source whose log is shorter than it was at the last round."""
    if line.last_position is None:
        return
    row = await line.source.fetch_one("rounds", "is_behind", position, line.last_position)
    if row["is_behind"]:
        raise Refused(
            f"The {line.source.side}'s write-ahead log is at {position}, before the "
            f"{line.last_position} of the last round: the database has gone back in time",
            wanted="The database that the last round was taken from, with all it had committed",
            todo="What is on the service cannot be told to be right any more: begin anew with "
            "`ordermigrate copy --restart`",
        )


async def _measure(line: Line) -> dict[int, Waiting]:
    logs = [line.logs[each.label] for each in line.maps]
    rows = await line.source.fetch(change_logs.measure_query(logs))
    return {row["number"]: Waiting(*row.values()) for row in rows}


async def _take_table(
    line: Line, stage: Stage, found: Waiting, budget: int | None
) -> tuple[int, Applied]:
    """Take one table's changes off its log and apply them; return how many, and what was done."""
    source, target = line.source, line.target
    log = line.logs[stage.map.label]
    marks = set[str]()
    taken = 0
    if found.marks:
        # Before any key, and all of them: what was logged after a mark is then still to come.
        rows = await source.fetch(log.compose("take_marks"))
        marks = {row["mark"] for row in rows}
        taken = len(rows)
    part: sql.Composable = change_logs.ALL
    keys = found.changes - found.marks
    is_partial = budget is not None and keys > budget
    if is_partial:
        block = await _find_part(source, log, budget or 0)
        part = change_logs.before_block(block) if block else sql.SQL("false")
    is_compared = COMPARE in marks and TRUNCATED not in marks
    if is_compared:
        query = _all_keys(stage.map)
        await _pipe_keys(source, target, stage, query, stage.all_keys)
    staged = 0
    if keys:
        await source.run(_joining(keys, stage.map))
        entries = log.entries(part)
        staged = await _pipe_keys(source, target, stage, _keys(stage.map, entries), stage.keys)
        await _pipe(
            source,
            target,
            _rows(stage, log, entries),
            stage.rows,
            stage.row_columns,
            is_binary=stage.map.is_binary,
        )
        taken += await source.count(log.compose("take_changes", part=part))
    line.reporter.report(ChangesStaged(stage.map.label, taken))
    try:
        applied = await apply.apply_stage(
            target,
            stage,
            staged_rows=staged,
            is_truncated=TRUNCATED in marks,
            is_compared=is_compared,
        )
    except Refused as refused:
        if is_partial and refused.sqlstate in {"23505", "23P01"}:
            raise PartCollides from refused
        raise
    line.reporter.report(ChangesWritten(stage.map.label, applied.written, applied.deleted))
    return taken, applied


async def _find_part(source: StreamSession, log: ChangeLog, changes: int) -> int | None:
    """Return the block of the log before which about so many entries stand."""
    await source.run("SET LOCAL synchronize_seqscans = off")  # from the first block on
    rows = await source.fetch(log.compose("find_part"), changes)
    return rows[0]["end_block"] if rows else None


def _joining(keys: int, table: TableMap) -> str:
    """Return settings by which the rows of a few keys are always fetched through the key's index.

    The server knows neither how many entries of a log are waiting nor how many are dead.
    """
    is_few = keys < max(1000, table.source.rows_estimate // 50)
    value = "off" if is_few else "on"
    return "; ".join(
        f"SET LOCAL enable_{way} = {value}" for way in ("seqscan", "hashjoin", "mergejoin")
    )


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
    alias = table.source.name.name
    key = ", ".join(sql.Identifier(alias, name).as_string(None) for name in log.key)
    return (
        f"SELECT {columns}, {digest.text_digest(view)} FROM {_origin(table)} "  # noqa: S608
        f"AND ({key}) IN ({entries.as_string(None)})"
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


async def subtract(
    config: Config, sides: tuple[Session, Session], maps: Sequence[TableMap], reporter: Reporter
) -> None:
    """Take copied rows off the target whose keys have been logged since capture began.

    After a copy under more than one snapshot a row that was updated in between may be on the
    target twice or not at all. But then its key is in the log; what remains has not changed since
    capture began, and the first round brings the rest. It has to come after the last snapshot of
    the copy, before a unique index is built, and before any round takes entries off the log.
    Safe to repeat until then.
    """
    control, _ = sides
    stages = [
        Stage(each, number, digest.target_view(each, Algorithm.MD5, is_same_byte_order=True))
        for number, each in enumerate(maps, 1)
    ]
    async with contextlib.AsyncExitStack() as stack:
        source, target = [
            await _open_stream(stack, config, session, "copy: subtraction") for session in sides
        ]
        logs = {log.table: log for log in await change_logs.read_all(control)}
        await apply.create_stages(target, stages)
        await locks.begin_locked(
            source.run,
            control,
            [each.source.name for each in maps],
            _timeouts(config)["statement_timeout"],
        )
        await target.run("BEGIN")
        await target.fetch_one("sides", "show_pass")
        removed: dict[str, int] = {}
        for stage in stages:
            label = stage.map.label
            entries = logs[label].entries(change_logs.ALL)
            query = _keys(stage.map, entries)
            if await _pipe_keys(source, target, stage, query, stage.keys):
                await target.run(stage.compose("analyze_stages"))
                removed[label] = await target.count(stage.delete_keys())
                await target.fetch_one("ledger", "add_subtraction", label, removed[label])
        await target.run("COMMIT")
    for label, rows in removed.items():
        reporter.report(Subtracted(label, rows))


async def _wait_for_flush(line: Line, position: str) -> None:
    """Wait until the source's log is on disk up to a position; have it written where it idles."""
    end = time.monotonic() + line.source.stall_seconds
    while True:
        row = await line.control.fetch_one("rounds", "has_flushed", position)
        if row.is_flushed:
            return
        if time.monotonic() >= end:
            raise ConnectionLost(
                f"The {line.source.side} has not written its log to disk for "
                f"{line.source.stall_seconds:g} s",
                todo="Check its disk; then run the command again",
            )
        await line.control.fetch_one("rounds", "push_flush")
        await asyncio.sleep(0)
