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
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, TypeVar

from psycopg import sql

from ordermigrate import (
    apply,
    change_logs,
    db,
    digest,
    evaluation,
    ledger,
    locks,
    partitions,
    quarantine,
    resolving,
    sessions,
    staging,
    write_ahead_log,
)
from ordermigrate.apply import Applied
from ordermigrate.change_logs import COMPARE, TRUNCATED, ChangeLog, Waiting
from ordermigrate.config import Config
from ordermigrate.control import Session, pick
from ordermigrate.digest import Algorithm
from ordermigrate.errors import OrdermigrateError, Refused
from ordermigrate.model import Direction, Side, TableMap, TableName, find_parents, names_read
from ordermigrate.progress import (
    ChangesStaged,
    ChangesWritten,
    Reporter,
    RoundBegun,
    RoundHalfCommitted,
    RowsQuarantined,
    StructureSettled,
)
from ordermigrate.stages import Stage
from ordermigrate.stream_sessions import StreamSession
from ordermigrate.together import run_together

GONE_BACK = (
    "Rows may differ without a trace in the logs. `ordermigrate sync --adopt` goes on from here, "
    "and `ordermigrate validate --checksums --repair` then finds and mends them all; or begin anew "
    "with `ordermigrate copy --restart`"
)
TIMELINE_CHANGED = "a server's timeline has changed: a failover or a restore"
_T = TypeVar("_T")
# Forget old rounds' records every so many.
_TIDY_EVERY = 500


class StructureChanged(Exception):
    """A side's tables or triggers are not what they were when the line was opened."""

    def __init__(self, side: Side) -> None:
        super().__init__(f"the {side}'s tables or triggers have changed")
        self.side = side


class OwnerChanged(Exception):
    """The owner is not the one for which the line was opened, or nobody is."""


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
    versions: Mapping[Side, str]
    reporter: Reporter
    timeout_ms: str
    last_position: str | None
    # Whether the source, when it was the target, has refused rows.
    has_quarantine: bool = False
    # Whether rows that the target refuses go into its quarantine; else they end the round.
    is_quarantining: bool = False
    # Tables of the target for which partitions that are missing are created.
    growing: frozenset[TableName] = frozenset()

    @property
    def maps(self) -> list[TableMap]:
        """The family."""
        return [stage.map for stage in self.stages]

    @property
    def direction(self) -> Direction:
        """Which way the rows go."""
        return Direction.from_source(self.source.side)

    @property
    def ledger(self) -> StreamSession:
        """The session whose transaction keeps the history: the one in the service's database."""
        return self.target if self.direction is Direction.FORWARD else self.source


@dataclass(frozen=True, slots=True)
class Round:
    """What one round has done.

    `is_complete` says that the target equals the source as of `seen_at` (the source's clock).
    `lag_seconds` is the age, at the snapshot, of the oldest change that was waiting. `quarantined`
    rows were refused that had not been before.
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
    quarantined: int = 0


@contextlib.asynccontextmanager
async def open_line(
    config: Config,
    sides: tuple[Session, Session],
    maps: Sequence[TableMap],
    run: str,
    epoch: int,
    algorithm: Algorithm,
    versions: Mapping[Side, str],
    reporter: Reporter,
) -> AsyncIterator[Line]:
    """Open the connections of rounds from source to target (control sessions on both).

    The rounds insist on the `versions` that the catalogs had before the tables were looked at.
    """
    control, book = sides
    async with contextlib.AsyncExitStack() as stack:
        watcher = await db.connect(config, control.side, "sync: watch")
        stack.push_async_callback(watcher.close)
        opened = [await open_stream(stack, config, session, "sync: rounds") for session in sides]
        wanted = {*(each.label for each in maps), *map(change_logs.label_parent, names_read(maps))}
        logs = {
            log.table: log for log in await change_logs.read_all(control) if log.table in wanted
        }
        stages = tuple(
            Stage(each, number, digest.target_view(each, algorithm, is_same_byte_order=True))
            for number, each in enumerate(maps, 1)
        )
        await apply.create_stages(opened[1], stages)
        oids = {
            control.side: sorted(
                {each.source.oid for each in maps}
                | {parent.oid for parent, _ in find_parents(maps).values()}
            ),
            book.side: [each.target.oid for each in maps],
        }
        service = pick(Side.SERVICE, book, control)
        last = await ledger.read_last_round(service)
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
            timeouts(config)["statement_timeout"],
            last.source_position if last and last.source is control.side else None,
            has_quarantine=bool(await quarantine.count(control)),
            # On the way back the monolith may refuse rows, for what has happened there meanwhile.
            is_quarantining=control.side is Side.SERVICE,
            growing=frozenset(
                each.name if book.side is Side.MONOLITH else each.target
                for each in config.tables
                if each.missing_partition == "create"
            ),
        )


def timeouts(config: Config) -> dict[str, str]:
    """Return the settings by which a round's transaction cannot last for ever."""
    limits = config.limits
    return {
        "statement_timeout": sessions.milliseconds(limits.max_snapshot_age_minutes * 60),
        "idle_in_transaction_session_timeout": sessions.milliseconds(limits.stall_timeout_seconds),
    }


async def open_stream(
    stack: contextlib.AsyncExitStack, config: Config, like: Session, what: str
) -> StreamSession:
    """Open a stream session that is cut when the stack is left."""
    opened = await StreamSession.open(
        like, what, timeouts(config), config.limits.stall_timeout_seconds
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
    is_turn_held: bool = False,
) -> Round:
    """Apply what the source has logged, as of a snapshot taken now.

    Args:
        line: The connections; after any exception they must not be used again.
        max_changes: Take about so many changes at most; the round is then not complete.
        before_commit: Called with the name of the exported snapshot, before anything is committed.
        is_turn_held: Nobody else's round can come in between (`hold_turn`): then the snapshot need
            not wait for the turn, and both sides begin at the same time.

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
        _run(line, max_changes, before_commit, started, is_turn_held=is_turn_held),
        beside=[locks.watch_for_rewriters(line.watcher, oids, [line.source.pid])],
    )
    return done


async def _run(
    line: Line,
    max_changes: int | None,
    before_commit: Callable[[str], Awaitable[None]] | None,
    started: float,
    *,
    is_turn_held: bool,
) -> Round:
    source, target = line.source, line.target
    if is_turn_held:
        work: list[Coroutine[Any, Any, Any]] = [_begin_target(line), _begin_source(line)]
        (number, is_new), look = await run_together(*work)
    else:
        number, is_new = await _begin_target(line)
        look = await _begin_source(line)
    _require_round(source.side, look, number)
    is_new = is_new or look["known_timeline"] not in {None, look["timeline"]}
    line.reporter.report(RoundBegun(number))
    await resolving.resolve(source, line.maps, line.logs)
    waiting = await _measure(line)
    # What the target commits, the source must not lose in a crash.
    flushed = write_ahead_log.wait_for_flush(line.control, look["position"], source.stall_seconds)
    work = [_take_tables(line, waiting, max_changes), flushed]
    (taken, applied), _ = await run_together(*work)
    remaining = sum(each.changes for each in waiting.values()) - taken
    if before_commit is not None:
        exported = await source.fetch_one("rounds", "export_snapshot")
        await before_commit(exported["name"])
    if is_new:
        await line.ledger.fetch_one("ledger", "void_validations", TIMELINE_CHANGED)
    done = Round(
        number,
        taken,
        remaining,
        sum(each.written for each in applied.values()),
        sum(each.deleted for each in applied.values()),
        max((each.age_seconds or 0.0 for each in waiting.values()), default=0.0),
        time.monotonic() - started,
        remaining == 0,
        look["seen_at"],
        is_new,
        sum(each.quarantined for each in applied.values()),
    )
    await _record(line, done, look["position"])
    await _commit(target)
    line.reporter.report(RoundHalfCommitted(number))
    for table, each in applied.items():
        if each.quarantined:
            line.reporter.report(RowsQuarantined(table, each.quarantined))
    await _commit(source)
    return replace(done, seconds=time.monotonic() - started)


async def _record(line: Line, done: Round, position: str) -> None:
    """Write the round down on both sides, in the transactions that apply it."""
    await line.ledger.fetch_one(
        "ledger",
        "record_round",
        done.number,
        done.changes,
        done.written,
        done.deleted,
        done.is_complete,
        done.seconds,
        position,
        line.source.side.value,
    )
    if done.number % _TIDY_EVERY == 0:
        first = done.number - ledger.ROUNDS_KEPT
        await line.ledger.fetch_one("ledger", "forget_old_rounds", first)
    if await line.source.fetch_one("sides", "end_round", line.run, line.epoch, done.number) is None:
        message = "a side row that was just looked at is not there"
        raise AssertionError(message)


async def _commit(session: StreamSession) -> None:
    # A transaction that has failed answers COMMIT with ROLLBACK, and that is no error.
    if (tag := await session.run("COMMIT")) != "COMMIT":
        message = f"a round's COMMIT on the {session.side} was answered with {tag}"
        raise AssertionError(message)


async def _begin_source(line: Line) -> Any:  # noqa: ANN401  a row of rounds.look
    """Enter the round on the source, and take the snapshot."""
    source = line.source
    names = names_read(line.maps)
    await locks.begin_locked(source.run, line.control, names, line.timeout_ms, is_writing=True)
    look = await source.fetch_one("rounds", "look")
    _require_owner(line, look)
    await _require_forward(line, look["position"])
    version = await source.fetch_one("catalog", "read_version", line.oids[source.side])
    if version["version"] != line.versions[source.side]:
        raise StructureChanged(source.side)
    if look["timeline"] != look["known_timeline"]:
        await source.fetch_one("sides", "note_timeline", look["timeline"])
    return look


async def _begin_target(line: Line) -> tuple[int, bool]:
    """Enter the round on the target; return its number, and whether the timeline is another."""
    target = line.target
    await target.run("BEGIN")
    await target.fetch_one("rounds", "take_turn")
    row = await target.fetch_one("sides", "begin_round", line.run, line.epoch)
    if row is None:
        await _require_run(line, target)
        raise OwnerChanged
    # Until this is committed nobody begins the copy anew; from then on no round is taken. (From an
    # owner who is the service nobody copies.)
    if (
        line.ledger is target
        and await target.fetch_one("ledger", "hold_followed", line.run) is None
    ):
        raise Refused(
            f"The copy of migration {line.run} was begun anew, or its owner changes",
            wanted="A copy that is complete, and stays so",
            todo="See `ordermigrate status`; run the command again when the copy is complete",
        )
    await target.fetch_one("sides", "show_pass")
    version = await target.fetch_one("catalog", "read_version", line.oids[target.side])
    if version["version"] != line.versions[target.side]:
        raise StructureChanged(target.side)
    now = (await target.fetch_one("rounds", "read_timeline"))["timeline"]
    if now != row["timeline"]:
        await target.fetch_one("sides", "note_timeline", now)
    return row["round"], row["timeline"] is not None and now != row["timeline"]


async def _require_run(line: Line, session: StreamSession) -> None:
    """Raise `Refused` where a side belongs to another migration by now, or to none."""
    row = await session.fetch_one("sides", "read_side")
    if row is None or row["run"] != line.run:
        raise _other_run(line, session.side)


def _other_run(line: Line, side: Side) -> Refused:
    return Refused(
        f"The {side} does not belong to migration {line.run} any more",
        wanted="The same migration as when this command began",
        todo="See `ordermigrate status`; then run the command again if it is still wanted",
    )


def _require_owner(line: Line, look: dict[str, object] | None) -> None:
    """Refuse a source that is not this migration's, or not the owner."""
    if look is None or look["run"] != line.run:
        raise _other_run(line, line.source.side)
    if look["epoch"] != line.epoch or not look["is_hot"]:
        raise OwnerChanged


def _require_round(side: Side, look: dict[str, object], number: int) -> None:
    """Refuse a source that is not where its target is."""
    if look["round"] not in {number - 1, number - 2}:
        raise Refused(
            f"The {side} is at round {look['round']}, the {side.other} at {number - 1}: one of the "
            "two databases has gone back in time (restored from a backup?)",
            wanted="Two databases that have taken the same rounds, or the last one half",
            todo=GONE_BACK,
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
            todo=GONE_BACK,
        )


async def _measure(line: Line) -> dict[int, Waiting]:
    logs = [line.logs[each.label] for each in line.maps]
    rows = await line.source.fetch(change_logs.measure_query(logs))
    return {row["number"]: Waiting(*row.values()) for row in rows}


async def _take_tables(
    line: Line, waiting: dict[int, Waiting], budget: int | None
) -> tuple[int, dict[str, Applied]]:
    """Take the changes of all tables, within a budget; return how many, and what was done."""
    changes, done = 0, dict[str, Applied]()
    for stage in line.stages:
        found = waiting[line.logs[stage.map.label].number]
        if found.changes:
            left = None if budget is None else max(0, budget - changes)
            taken, done[stage.map.label] = await _take_table(line, stage, found, left)
            changes += taken
    return changes, done


async def _take_table(
    line: Line, stage: Stage, found: Waiting, budget: int | None
) -> tuple[int, Applied]:
    """Take one table's changes off its log and apply them; return how many, and what was done."""
    source, target = line.source, line.target
    log = line.logs[stage.map.label]
    marks = set[str]()
    taken = 0
    if line.has_quarantine:
        # What the owner has refused, and written over since, is settled: its row is the right one.
        await source.run(quarantine.forget_logged(stage.map.source, log))
    if found.marks:
        # Before any key, and all of them: what was logged after a mark is then still to come.
        rows = await source.fetch(log.compose("take_marks"))
        marks = {row["mark"] for row in rows}
        taken = len(rows)
    part: sql.Composable = change_logs.ALL
    keys = found.changes - found.marks
    is_partial = budget is not None and keys > budget
    if is_partial:
        block = await staging.find_part(source, log, budget or 0)
        part = change_logs.before_block(block) if block else sql.SQL("false")
    if _is_compared(marks):
        await staging.stage_all_keys(source, target, stage)
    staged = 0
    if keys:
        staged, changes = await _stage_changes(line, stage, log, part)
        taken += changes
    line.reporter.report(ChangesStaged(stage.map.label, taken))
    return taken, await _apply(line, stage, staged, marks, is_partial=is_partial)


def _is_compared(marks: set[str]) -> bool:
    return COMPARE in marks and TRUNCATED not in marks


async def _stage_changes(
    line: Line, stage: Stage, log: ChangeLog, part: sql.Composable
) -> tuple[int, int]:
    """Bring logged keys and their rows to the target, and take them off the log.

    Returns how many rows there are, and how many entries were taken.
    """
    entries = log.entries(stage.map.source, part)
    staged = await staging.stage_keys(line.source, line.target, stage, entries)
    try:
        await staging.stage_rows(line.source, line.target, stage, log, entries, staged)
    except OrdermigrateError as failed:
        if named := await evaluation.explain(line.control, stage.map, failed):
            raise named from failed
        raise
    counted = line.source.count(log.compose("take_changes", part=part))
    return staged, await _kept(line.target, counted)


async def _apply(
    line: Line, stage: Stage, staged: int, marks: set[str], *, is_partial: bool
) -> Applied:
    """Apply what is staged.

    Raises:
        PartCollides: It is a part, and another part may mend what it was refused for.

    """
    if line.is_quarantining and stage.map.target.name in line.growing:
        # Before such a row goes into quarantine.
        await _settle_partitions(line, stage)
    try:
        applied = await _kept(
            line.source,
            apply.apply_stage(
                line.target,
                stage,
                staged_rows=staged,
                is_truncated=TRUNCATED in marks,
                is_compared=_is_compared(marks),
                # What a part is refused for, another part may mend.
                is_quarantining=line.is_quarantining and not is_partial,
            ),
        )
    except Refused as refused:
        if refused.sqlstate == partitions.SQLSTATE:
            await _settle_partitions(line, stage)
        is_mended = refused.sqlstate in {"23505", "23P01"} or line.is_quarantining
        if is_partial and is_mended:
            raise PartCollides from refused
        raise
    line.reporter.report(ChangesWritten(stage.map.label, applied.written, applied.deleted))
    return applied


async def _settle_partitions(line: Line, stage: Stage) -> None:
    """Create the partitions that staged rows lack, or refuse; nothing where none is missing.

    Raises:
        StructureChanged: They are there now, and the round has to be taken anew.
        Refused: They are not to be created, or it cannot be told how wide they would be.

    """
    missing = await partitions.find_missing(line.target, stage)
    if missing is None:
        return
    side = line.target.side
    if stage.map.target.name not in line.growing or not missing.statements:
        raise missing.explain(side)
    # Another session makes them, and this one's locks are not to stand in its way.
    await line.target.run("ROLLBACK")
    line.reporter.report(StructureSettled(tuple(await partitions.create(line.book, missing))))
    raise StructureChanged(side)


async def _kept(idle: StreamSession, work: Coroutine[Any, Any, _T]) -> _T:
    """Do work on one side, and let the other's server know meanwhile that we are still there.

    It ends a transaction in which nothing happens, and should: nobody else might.
    """
    done = asyncio.Event()

    async def finish() -> _T:
        try:
            return await work
        finally:
            done.set()

    async def speak() -> None:
        while not done.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(done.wait(), idle.stall_seconds / 3)
            if not done.is_set():
                await idle.run("SELECT 1")

    both: list[Coroutine[Any, Any, Any]] = [finish(), speak()]
    result: _T = (await run_together(*both))[0]
    return result
