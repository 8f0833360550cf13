"""Sync: rounds, one after the other, for as long as wanted.

Under load a round follows at once; when nothing is waiting, a look five times a second is all that
the databases notice. A backlog too large for one round is taken in parts. Connections that are
lost are opened anew. Before the first round, and whenever the catalogs say something else than
before, both sides are compared with what is on record of them: what can be dealt with is, and what
would make a row's meaning doubtful stops sync, with nothing applied.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ordermigrate import (
    capture,
    catalog,
    change_logs,
    db,
    fence,
    fingerprints,
    ledger,
    parents,
    rounds,
    sides,
)
from ordermigrate.config import Config
from ordermigrate.control import Session, pick
from ordermigrate.errors import Refused
from ordermigrate.ledger import Run
from ordermigrate.model import OwnTrigger, Parents, Side, Table, TableMap, TableName, find_parents
from ordermigrate.progress import (
    Quiet,
    Reporter,
    RoundApplied,
    StructureSettled,
    ValidationVoided,
)
from ordermigrate.rounds import Line, Round

IDLE_SECONDS = 0.2
# Between two rounds under load, so that a few writes a second do not make a round each.
BREATH_SECONDS = 0.02
# How often the catalogs are read while nothing is written: with many partitions that costs a
# server far more than a look at the logs.
CATALOGS_SECONDS = 5.0
# Temporary tables are vacuumed by nobody, and the oldest of a database says how far back it has to
# remember transactions: those of a sync that lives for months are made anew every day.
LINE_SECONDS = 86_400.0
MAX_CHANGES = 250_000
_MEND = "`ordermigrate prepare` mends it; then prove what was not captured with "
_PROVE = "`ordermigrate validate --checksums --repair`"


class Unsettled(Refused):
    """The side that has let go is not yet made ready for rounds."""


@dataclass(slots=True)
class Tally:
    """What sync has done since it was started."""

    run: Run | None = None
    owner: Side = Side.MONOLITH
    rounds: int = 0
    changes: int = 0
    written: int = 0
    deleted: int = 0
    quarantined: int = 0
    is_caught_up: bool = False
    # A part of the backlog could not be applied by itself.
    takes_all: bool = False
    # When something last went well, by the event loop's clock, and the lag that was seen then.
    alive_at: float = field(default=0.0)
    lag_seconds: float = 0.0

    def add(self, done: Round) -> None:
        """Count a round."""
        self.rounds += 1
        self.changes += done.changes
        self.written += done.written
        self.deleted += done.deleted
        self.quarantined += done.quarantined
        self.is_caught_up = done.is_complete
        self.takes_all = False
        self.lag_seconds = done.lag_seconds

    def find_lag(self) -> float:
        """Return how far behind the target may be by now; less, where nobody has written."""
        now = asyncio.get_running_loop().time()
        return max(self.lag_seconds, now - self.alive_at)


async def follow(
    line: Line,
    tally: Tally,
    stop: asyncio.Event,
    reporter: Reporter,
    is_enough: Callable[[Tally], bool],
) -> bool:
    """Run rounds until `stop` is set or `is_enough` says so, always after a whole round.

    Returns:
        Whether that was so; else the line is old, and another is to be opened.

    Raises:
        StructureChanged: The tables have to be looked at again.
        OrdermigrateError: As `rounds.run_round`.

    """
    loop = asyncio.get_running_loop()
    old_at = loop.time() + LINE_SECONDS
    catalogs_due_at = loop.time()
    while True:
        begun = loop.time()
        if await is_quiet(line):
            # Rounds look at the catalogs themselves. Where nobody writes, it is done now and then,
            # and before anybody hears that all is well.
            if begun >= catalogs_due_at or is_enough(replace(tally, is_caught_up=True)):
                await require_known_catalogs(line)
                catalogs_due_at = loop.time() + CATALOGS_SECONDS
            tally.is_caught_up, tally.lag_seconds = True, 0.0
            reporter.report(Quiet())
            pause = IDLE_SECONDS
        else:
            done = await rounds.run_round(
                line, max_changes=None if tally.takes_all else MAX_CHANGES
            )
            tally.add(done)
            report(done, reporter)
            pause = 0.0 if done.remaining else max(BREATH_SECONDS, loop.time() - begun)
        tally.alive_at = loop.time()
        if stop.is_set() or is_enough(tally):
            return True
        if loop.time() >= old_at:
            return False
        if pause:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), min(pause, IDLE_SECONDS))
        if stop.is_set():
            return True


def report(done: Round, reporter: Reporter) -> None:
    """Tell the reporter of a round."""
    reporter.report(
        RoundApplied(
            done.number,
            done.changes,
            done.remaining,
            done.written,
            done.deleted,
            done.lag_seconds,
            done.seconds,
            done.quarantined,
        )
    )
    if done.is_timeline_new:
        reporter.report(ValidationVoided("a server's timeline has changed"))


async def is_quiet(line: Line) -> bool:
    """Whether no round is needed: the logs are empty, and both sides are where they should be.

    Where a side is not, the round that is run then says so, or takes it in.
    """
    backlog = await change_logs.measure_all(line.control, list(line.logs.values()))
    return not backlog.changes and await _is_in_place(line)


async def require_known_catalogs(line: Line) -> None:
    """See that both sides' tables are what they were when the line was opened.

    Raises:
        StructureChanged: A catalog says something else.

    """
    for session in (line.control, line.book):
        if (
            await rounds.read_version(session, line.oids[session.side])
            != line.versions[session.side]
        ):
            raise rounds.StructureChanged(session.side)


async def _is_in_place(line: Line) -> bool:
    """Whether both sides have taken the same rounds, on servers that did not go back or fail over.

    Their rows are looked at one after the other: a round of somebody else's may come in between,
    and then one of ours that finds nothing does no harm.
    """
    source = await sides.find_place(line.control, line.last_position)
    target = await sides.find_place(line.book)
    return (
        source is not None
        and target is not None
        and (source.run, source.epoch, source.is_hot) == (line.run, line.epoch, True)
        and (target.run, target.epoch, target.is_hot) == (line.run, line.epoch, False)
        and source.round in {target.round, target.round - 1}
        and source.is_timeline_known
        and target.is_timeline_known
        and not source.has_gone_back
    )


async def run_whole(
    line: Line,
    tally: Tally,
    reporter: Reporter,
    before_commit: Callable[[str], Awaitable[None]] | None = None,
) -> Round:
    """Run rounds until little is left, then one over all that is waiting.

    After a part has collided there is that one only, however much is waiting.
    """
    while not tally.takes_all:
        backlog = await change_logs.measure_all(line.control, list(line.logs.values()))
        if backlog.changes <= MAX_CHANGES:
            break
        report(await rounds.run_round(line, max_changes=MAX_CHANGES), reporter)
    done = await rounds.run_round(line, before_commit=before_commit)
    report(done, reporter)
    return done


@dataclass(frozen=True, slots=True)
class _Seen:
    """What one side is at the moment."""

    tables: list[Table]
    triggers: list[OwnTrigger]
    parents: Parents = field(default_factory=dict)

    def describe(self) -> dict[str, Any]:
        return fingerprints.describe_side(self.tables, self.triggers, self.parents)


async def _see(session: Session, tables: Sequence[Table]) -> _Seen:
    names = [table.name for table in tables]
    found = await catalog.read_tables(session, names)
    return _Seen(list(found.values()), await catalog.read_own_triggers(session))


async def settle(
    config: Config,
    hot: Session,
    cold: Session,
    maps: Sequence[TableMap],
    reporter: Reporter,
    *,
    is_adopting: bool = False,
) -> bool:
    """Compare both sides with what is on record of them, and deal with what has changed.

    Args:
        config: Where the sides are.
        hot: A session on the side that is captured.
        cold: A session on the other.
        maps: The family as it is now, from the hot side to the other.
        reporter: Whom to tell.
        is_adopting: Go on with tables that have changed; what was proved is void then.

    Returns:
        Whether something was done that the catalogs tell of: look at them again then.

    Raises:
        Refused: Rows may have changed in a way that no log tells.

    """
    void: list[str] = []
    found: list[str] = []
    service = pick(Side.SERVICE, hot, cold)
    known = await ledger.read_structure(service, hot.side)
    seen = replace(
        await _see(hot, [each.source for each in maps]),
        # As they were when the maps were read; a later change is noticed by the next round.
        parents=find_parents(maps),
    )
    await _require_watched(hot, seen)
    if known is not None:
        now = await _settle_source(config, hot, seen, known, void, found, is_adopting=is_adopting)
    else:
        now = seen.describe()
    was = await ledger.read_structure(service, cold.side)
    there = await _settle_target(cold, [each.target for each in maps], was, void, found)
    if void or now != known or there != was:
        async with service.transaction():
            for reason in void:
                await ledger.void_validations(service, reason)
            await ledger.note_structure(service, hot.side, now)
            await ledger.note_structure(service, cold.side, there)
    if found:
        reporter.report(StructureSettled(tuple(found)))
    for reason in void:
        reporter.report(ValidationVoided(reason))
    return bool(found)


async def _require_watched(hot: Session, seen: _Seen) -> None:
    """See that changes of what columns depend on are logged.

    Raises:
        Unsettled: They are not, and after a change of owner somebody may be about to see to that.
        Refused: They are not.

    """
    gaps = parents.find_gaps(seen.parents, seen.triggers) if hot.side is Side.MONOLITH else []
    if labels := parents.labels(seen.parents):
        gaps += await change_logs.find_missing(hot, labels)
    if gaps:
        row = await sides.read(hot)
        raise (Unsettled if row is not None and row.epoch else Refused)(
            f"What columns depend on is not watched on the {hot.side}: {'; '.join(gaps)}",
            wanted="Every change of what they are made from in a change log",
            todo="Run `ordermigrate prepare`, which mends it and has all rows that depend on it "
            "looked at; then go on",
            findings=gaps,
        )


async def _settle_source(
    config: Config,
    hot: Session,
    seen: _Seen,
    known: dict[str, Any],
    void: list[str],
    found: list[str],
    *,
    is_adopting: bool,
) -> dict[str, Any]:
    now = seen.describe()
    changes = fingerprints.compare_sides(known, now)
    added = {part for _, part in changes.parts_added}
    gaps = [
        gap
        for gap in capture.find_gaps(seen.tables, seen.triggers)
        if gap.partition(" on ")[2].partition(" is missing")[0] not in added
    ]
    gaps += await change_logs.find_missing(hot, [each.name for each in seen.tables])
    if gaps:
        raise Refused(
            f"Capture on the {hot.side} has gaps: {'; '.join(gaps)}",
            wanted="Every write to the family in the change logs",
            todo=_MEND + _PROVE,
            findings=gaps,
        )
    if changes.drift and not is_adopting:
        raise Refused(
            f"The {hot.side}'s tables have changed: {'; '.join(changes.drift)}",
            wanted="The columns and keys with which the rows were copied: a change of definition "
            "can change rows without a trace in the logs",
            todo=f"Undo the change; or make the same one on the {hot.side.other}, run "
            f"`ordermigrate sync --adopt`, and then {_PROVE}",
            findings=changes.drift,
        )
    await capture.require_no_subscription(hot, seen.tables)
    by_name = {str(table.name): table for table in seen.tables}
    logs = {log.table: log for log in await change_logs.read_all(hot)}
    covered: set[str] = set()
    for name, part in changes.parts_added:
        table = by_name[name]
        if not table.is_partitioned:
            raise Refused(
                f"{part} now inherits from {name} on the {hot.side}",
                wanted="The tables as they were when capture was installed",
                todo=f"ALTER TABLE {part} NO INHERIT {name}, or begin anew with "
                "`ordermigrate copy --restart`",
            )
        (leaf,) = [each for each in table.leaves if str(each.name) == part]
        async with db.opened(config, hot.side, "sync: watch") as watcher:
            await capture.cover_leaf(hot, watcher, table, leaf)
        covered.add(part)
        found.append(f"{part} was attached to {name}: all its keys are in the log now")
    for name in sorted({name for name, _ in changes.parts_gone}):
        async with hot.transaction():
            await change_logs.add_mark(hot, logs[name], change_logs.COMPARE)
        parts = ", ".join(part for table, part in changes.parts_gone if table == name)
        found.append(f"{parts} is not a part of {name} any more: its keys will be compared")
        void.append(f"{parts} was detached from {name}")
    void.extend((*changes.drift, *changes.rewritten, *changes.triggers))
    if covered:
        # Of all else, what was seen before counts: a switch since then is still to be noticed.
        later = (await _see(hot, seen.tables)).describe()
        for name, trigger in later["triggers"].items():
            if name.partition(" on ")[2] in covered:
                now["triggers"][name] = trigger
    return now


async def _settle_target(
    cold: Session,
    tables: Sequence[Table],
    known: dict[str, Any] | None,
    void: list[str],
    found: list[str],
) -> dict[str, Any]:
    seen = await _see(cold, tables)
    family = frozenset(table.name for table in tables)
    active = [
        f"trigger {trigger.name} on {table.name}"
        for table in seen.tables
        for trigger in table.triggers
        if trigger.enabled != "D"
    ]
    active += [
        f"foreign key {key.name} on {table.name}"
        for table in seen.tables
        for key in table.foreign_keys_by_scope(family)["within"]
    ]
    row = await sides.read(cold)
    if row is None:
        message = "a cold side without its row"
        raise AssertionError(message)
    if active:
        # After a change of owner they are switched off at leisure: somebody may be about to.
        kind = Unsettled if row.epoch else Refused
        raise kind(
            f"On the {cold.side} there is what would act on applied rows: {'; '.join(active)}",
            wanted="Triggers off, and foreign keys inside the family dropped, until this side owns "
            "the tables; each is on record and comes back then",
            todo="Run `ordermigrate prepare`, which records them and switches them off; then go on",
            findings=active,
        )
    gaps = fence.find_gaps(seen.tables, seen.triggers)
    if gaps:
        async with cold.transaction():
            await fence.install(cold, seen.tables, seen.triggers, row.pass_word, has_rows=True)
        found.append(f"the fence on the {cold.side} was mended: {'; '.join(gaps)}")
    stray = [each for each in seen.triggers if capture.is_capture(each) and each.enabled != "D"]
    if stray:  # they would log what rounds write
        await capture.install(cold, seen.tables, seen.triggers, is_on=False)
        found.append(f"capture on the {cold.side}, which is cold, was switched off")
    if known is not None:
        changes = fingerprints.compare_sides(known, seen.describe())
        void.extend((*changes.drift, *changes.rewritten))
        void.extend(f"{part} is not a part of {name} any more" for name, part in changes.parts_gone)
        for name, part in changes.parts_added:
            if not await ledger.is_empty(cold, TableName.parse(part)):
                void.append(f"{part} was attached to {name} with rows in it")
        void.extend(f"the fence on the {cold.side} was down: {each}" for each in changes.triggers)
    return (await _see(cold, tables) if gaps or stray else seen).describe()
