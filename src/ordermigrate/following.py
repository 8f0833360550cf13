"""Standing on both sides of a migration whose copy is complete, and running rounds there.

Sync and validation do so; a third may join. What ends a line without harm (a lost connection, a
table that has changed, an ALTER TABLE that we make way for) has it opened anew, with everything
looked at again, until the retry deadline has passed without anything going well.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from ordermigrate import catalog, db, gates, ledger, preflight, rounds, sides, sync
from ordermigrate.config import Config
from ordermigrate.control import Session, pick
from ordermigrate.digest import Algorithm
from ordermigrate.errors import LockTimeout, OrdermigrateError, Refused
from ordermigrate.ledger import Run
from ordermigrate.locks import GaveWay
from ordermigrate.model import Direction, Side, TableMap
from ordermigrate.phases import FOLLOWED, Phase
from ordermigrate.progress import Following, Reporter, SyncWaits
from ordermigrate.rounds import Line, OwnerChanged, PartCollides, Round, StructureChanged
from ordermigrate.sides import NoOwner
from ordermigrate.sqlstates import MISSING, ConnectionLost
from ordermigrate.sync import Tally, Unsettled

STANDBY_SECONDS = 1.0
MAX_LOOKS = 5
_LONGEST_WAIT = 5.0
_COLLIDES = "a part of the waiting changes collides with rows on the other side"
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Footing:
    """Both sides, the run and the family, as they were when the line was opened."""

    hot: Session
    cold: Session
    run: Run
    maps: list[TableMap]
    line: Line

    @property
    def service(self) -> Session:
        """The side that keeps the ledger."""
        return pick(Side.SERVICE, self.hot, self.cold)


@contextlib.asynccontextmanager
async def stand(
    config: Config, command: str, reporter: Reporter, *, is_adopting: bool = False
) -> AsyncIterator[Footing]:
    """Open both sides and a line between them, after the gates that every round needs."""
    async with db.open_pair(config, command) as (monolith, service):
        run = await require_copied(monolith, service)
        for session in (monolith, service):
            await gates.require_tables(session, gates.names_on(config, session.side), service)
        await preflight.require_rights(monolith, service, config.tables)
        if is_adopting:
            await _adopt_rounds(monolith, service)
        direction, epoch = await read_direction(monolith, service)
        by_side = {each.side: each for each in (monolith, service)}
        hot, cold = by_side[direction.source], by_side[direction.target]
        versions, maps = await _look(config, hot, cold, reporter, is_adopting=is_adopting)
        algorithm = await choose_algorithm(monolith, service)
        async with rounds.open_line(
            config, (hot, cold), maps, run.run, epoch, algorithm, versions, reporter
        ) as line:
            yield Footing(hot, cold, run, maps, line)


async def read_direction(monolith: Session, service: Session) -> tuple[Direction, int]:
    """Return which way rows go, and in which epoch.

    Raises:
        NoOwner: A change of owner is half done.
        Stranded: Both sides take writes.
        Refused: The owner has gone back to before the other side was told of it.

    """
    one, other = await sides.require_both(monolith, service)
    direction = sides.find_direction(one, other)
    hot, cold = (one, other) if direction is Direction.FORWARD else (other, one)
    if hot.epoch < cold.epoch:
        raise Refused(
            f"The {hot.side}, which owns the tables, is in epoch {hot.epoch}, and the {cold.side} "
            f"in {cold.epoch}: the {hot.side}'s database has gone back in time",
            wanted="Two databases that know of the same changes of owner",
            todo=rounds.GONE_BACK,
        )
    if cold.epoch < hot.epoch:  # a change that was undone
        await sides.align_epoch(monolith if cold is one else service, hot)
    return direction, hot.epoch


async def _adopt_rounds(monolith: Session, service: Session) -> None:
    """Go on from databases of which one has gone back in time, as an operator has decided."""
    await sides.align_epochs(monolith, service)
    last = await ledger.read_last_round(service)
    is_behind = False
    if last is not None:
        source = monolith if last.source is Side.MONOLITH else service
        found = await source.fetch_one("rounds", "has_gone_back", last.source_position)
        is_behind = found.has_gone_back
    if await sides.align_rounds(monolith, service) or is_behind:
        await ledger.forget_rounds(service, "sync went on from databases that did not fit")


async def _look(
    config: Config, hot: Session, cold: Session, reporter: Reporter, *, is_adopting: bool
) -> tuple[dict[Side, str], list[TableMap]]:
    """Look at the tables until nothing is left to be settled; return them, and as of when."""
    direction = Direction.from_source(hot.side)
    monolith, service = (hot, cold) if direction is Direction.FORWARD else (cold, hot)
    for _ in range(MAX_LOOKS):
        # The versions first: whatever changes after that, a round will notice.
        versions = await _read_versions(config, monolith, service, direction)
        maps = await gates.read_maps(config, monolith, service, direction)
        if not await sync.settle(config, hot, cold, maps, reporter, is_adopting=is_adopting):
            return versions, maps
    raise StructureChanged(hot.side)


async def _read_versions(
    config: Config, monolith: Session, service: Session, direction: Direction
) -> dict[Side, str]:
    found: dict[Side, str] = {}
    for session in (monolith, service):
        names = gates.names_on(config, session.side)
        if session is monolith and direction is Direction.FORWARD:
            names += gates.parents_of(config)
        tables = await catalog.find_tables(session, names)
        oids = [each.oid for each in tables if each.oid is not None]
        found[session.side] = await rounds.read_version(session, oids)
    return found


async def require_copied(monolith: Session, service: Session) -> Run:
    """Return the run, or raise `Refused` unless its copy is complete."""
    run = await gates.read_run(monolith, service)
    if run is None:
        raise Refused(
            "There is no migration between these two databases: it has not been begun, or was "
            "cancelled",
            wanted="A migration whose copy is complete",
            todo="Run `ordermigrate prepare` and `ordermigrate copy` if one is wanted",
        )
    if run.phase not in FOLLOWED:
        raise Refused(
            f"The migration is in phase {run.phase}: the copy is not complete",
            wanted="Every row of the copy's snapshot on the service; what was written since is "
            "then applied to it",
            todo="Run `ordermigrate copy` first",
        )
    return run


async def choose_algorithm(monolith: Session, service: Session) -> Algorithm:
    """Return the digest by which rounds verify what they write: MD5 where both sides allow it."""
    for session in (monolith, service):
        try:
            await session.fetch_one("validate", "probe_md5")
        except ConnectionLost:
            raise
        except OrdermigrateError:
            return Algorithm.SHA256
    return Algorithm.MD5


async def persist(
    config: Config,
    tally: Tally,
    stop: asyncio.Event,
    reporter: Reporter,
    work: Callable[[], Awaitable[_T]],
) -> _T | None:
    """Do work that opens a line of its own, again and again until it ends or makes no headway.

    Returns None where `stop` was set while it waited.

    Raises:
        OrdermigrateError: The last failure, once nothing has gone well for
            `limits.retry_deadline_seconds`; any that another try cannot mend, at once.

    """
    loop = asyncio.get_running_loop()
    tally.alive_at = loop.time()
    failures = 0
    while True:
        alive_at = tally.alive_at
        try:
            return await _attempt(work, is_first=not failures)
        except _HARMLESS as ended:
            if tally.alive_at != alive_at:
                failures = 0
            failures = _bear(config, tally, reporter, ended, failures)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), pause_after(failures))
        if stop.is_set():
            return None


async def persist_to_end(
    config: Config, tally: Tally, reporter: Reporter, work: Callable[[], Awaitable[_T]]
) -> _T:
    """Do the same for work that nobody tells to stop, and return what it has come to."""
    done = await persist(config, tally, asyncio.Event(), reporter, work)
    if done is None:
        message = "nobody could have stopped it"
        raise AssertionError(message)
    return done


async def catch_up(config: Config, command: str, reporter: Reporter) -> None:
    """Run rounds until all that waits now is applied."""
    tally = Tally()

    async def work() -> Round:
        async with stand(config, command, reporter) as footing:
            return await sync.run_whole(footing.line, tally, reporter)

    await persist_to_end(config, tally, reporter, work)


def pause_after(failures: int) -> float:
    """Return how long to wait after so many failures in a row, in seconds."""
    # Not any power: after days of failures the number would be too large for a float.
    return min(0.1 * 2 ** min(failures, 6), _LONGEST_WAIT) if failures else 0.0


class _Missing(Refused):
    """Something that was there a moment ago is not: cancelled, or dropped; another look tells."""


# What ends a line, and may be gone when the next one is opened.
_HARMLESS = (
    PartCollides,
    StructureChanged,
    OwnerChanged,
    NoOwner,
    Unsettled,
    ConnectionLost,
    GaveWay,
    LockTimeout,
    _Missing,
)


async def _attempt(work: Callable[[], Awaitable[_T]], *, is_first: bool) -> _T:
    try:
        return await work()
    except Refused as refused:
        if refused.sqlstate in MISSING and is_first:
            raise _Missing(refused.fact, wanted=refused.wanted, todo=refused.todo) from refused
        raise


def _is_over(config: Config, tally: Tally) -> bool:
    now = asyncio.get_running_loop().time()
    return now - tally.alive_at > config.limits.retry_deadline_seconds


def _bear(config: Config, tally: Tally, reporter: Reporter, ended: Exception, failures: int) -> int:
    """Return how many failures in a row there are with this one, or raise where that is enough."""
    if isinstance(ended, PartCollides) and not tally.takes_all:
        tally.takes_all = True  # which mends it
        return failures
    if isinstance(ended, OwnerChanged) and not failures:
        return failures + 1  # the next line goes the other way
    if isinstance(ended, OrdermigrateError):
        if _is_over(config, tally):
            raise ended
        tally.is_caught_up = False  # nobody knows
        reporter.report(SyncWaits(ended.fact))
    else:
        if failures and _is_over(config, tally):
            raise _explain(ended) from None
        reporter.report(SyncWaits(_say(ended)))
    return failures + 1


def _say(ended: Exception) -> str:
    return "the owner has changed" if isinstance(ended, OwnerChanged) else str(ended) or _COLLIDES


def _explain(ended: Exception) -> Refused:
    if isinstance(ended, OwnerChanged):
        return Refused(
            "Again and again, the owner changes between two looks at both sides",
            wanted="One owner for as long as a round takes",
            todo="See `ordermigrate status`; then run the command again",
        )
    if isinstance(ended, StructureChanged):
        return Refused(
            f"Again and again, {ended} between two looks at them",
            wanted="A moment without DDL on the family's tables",
            todo=f"See what changes them on the {ended.side}; then run the command again",
        )
    return Refused(
        f"Again and again, {_COLLIDES}",
        wanted="All waiting changes taken at once, so that no part collides with another",
        todo="Run `ordermigrate sync --until-caught-up`; then run this command again",
    )


async def take_sync_lock(
    service: Session, tally: Tally, stop: asyncio.Event, reporter: Reporter
) -> bool:
    """Wait as a standby until no other sync is at work; False if told to stop meanwhile."""
    is_told = False
    while not (await service.fetch_one("sessions", "try_sync_lock")).is_ours:
        # All is well: patience with what breaks later begins then, not when this began to wait.
        tally.alive_at = asyncio.get_running_loop().time()
        if not is_told:
            reporter.report(SyncWaits("another sync is at work; standing by"))
            is_told = True
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), STANDBY_SECONDS)
        if stop.is_set():
            return False
    return True


async def run_sync(
    config: Config,
    tally: Tally,
    stop: asyncio.Event,
    reporter: Reporter,
    is_enough: Callable[[Tally], bool],
    *,
    is_adopting: bool,
) -> None:
    """Follow the source until enough, stopped, or cut off."""
    config = db.make_impatient(config)  # `persist` does the waiting, and says for what
    async with db.opened(config, Side.SERVICE, "sync: standby") as standby:
        if not await take_sync_lock(standby, tally, stop, reporter):
            return
        is_over = False
        while not is_over:
            async with stand(config, "sync", reporter, is_adopting=is_adopting) as footing:
                run = footing.run
                if run.phase is Phase.COPIED:
                    run = await ledger.change_phase(footing.service, run, Phase.SYNCING, "sync")
                tally.run, tally.owner = run, footing.hot.side
                reporter.report(Following(run.run, footing.hot.side.value))
                is_over = await sync.follow(footing.line, tally, stop, reporter, is_enough)
            is_adopting = False  # whatever comes later, nobody has decided about
