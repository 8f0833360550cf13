"""Readiness: the gates before a change of owner, and what of it can be timed beforehand.

Every gate is looked at, and all of them are reported, open or shut, so that an operator learns in
one go what stands in the way. Nothing here waits for a lock or stops a writer.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from ordermigrate import (
    capture,
    catalog,
    change_logs,
    ledger,
    ownership,
    parents,
    proof,
    quarantine,
    queries,
    reversing,
    rounds,
    sequences,
)
from ordermigrate.config import Config
from ordermigrate.control import Session, pick
from ordermigrate.errors import Refused
from ordermigrate.model import Direction, Side, Table, TableMap, find_parents

TRIES = 5


@dataclass(frozen=True, slots=True)
class Gate:
    """Something that has to be so before the owner changes, and whether it is."""

    name: str
    is_open: bool
    said: str


@dataclass(frozen=True, slots=True)
class Timing:
    """How long a part of the change takes that can be timed without stopping anyone."""

    name: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Scene:
    """Both sides as they are before a change of owner."""

    config: Config
    direction: Direction
    hot: Session
    cold: Session
    maps: Sequence[TableMap]

    @property
    def service(self) -> Session:
        """The side that keeps the ledger."""
        return pick(Side.SERVICE, self.hot, self.cold)

    @property
    def sources(self) -> list[Table]:
        """The family on the owner's side."""
        return [each.source for each in self.maps]

    @property
    def targets(self) -> list[Table]:
        """The family on the other."""
        return [each.target for each in self.maps]


async def look(scene: Scene) -> list[Gate]:
    """Look at every gate; one that cannot be looked at is shut, and says why."""
    gates: list[tuple[str, Callable[[Scene], Awaitable[str]]]] = [
        ("validation", _see_validation),
        ("lag", _see_lag),
        ("quarantine", _see_quarantine),
        ("triggers", _see_triggers),
        ("subscriptions", _see_subscriptions),
        ("prepared transactions", _see_prepared),
        ("indexes", _see_indexes),
        ("statistics", _see_statistics),
        ("sequences", _see_sequences),
        ("way back", _see_way_back),
        ("cascades", _see_cascades),
        ("durability", _see_durability),
    ]
    return [await _look(scene, name, see) for name, see in gates]


async def look_at_proof(scene: Scene) -> Gate:
    """Look at the one gate that a round can shut."""
    return await _look(scene, "validation", _see_validation)


async def _look(scene: Scene, name: str, see: Callable[[Scene], Awaitable[str]]) -> Gate:
    try:
        return Gate(name, is_open=True, said=await see(scene))
    except Refused as shut:
        return Gate(name, is_open=False, said=shut.fact)


def _shut(said: str) -> Refused:
    return Refused(said)


def _oids(tables: Sequence[Table]) -> list[int]:
    return [table.oid for table in tables] + [leaf.oid for table in tables for leaf in table.leaves]


async def _see_validation(scene: Scene) -> str:
    last = await ledger.read_last_validation(scene.service)
    doubts = proof.find_doubts(last, scene.config.limits.validation_age_minutes)
    if last is not None and not doubts:
        return f"both sides were equal {last.age_seconds / 60:.0f} min ago, by {last.algorithm}"
    said = "; ".join(doubts)
    is_sound = last is not None and last.verdict == "equal"
    if is_sound and scene.direction is Direction.REVERSE:
        # That a server has failed over closes no way back: had the monolith lost a round, none had
        # been taken since, and of what the service has lost the monolith has what was brought.
        is_sound = not set(await ledger.read_voidings(scene.service)) - {rounds.TIMELINE_CHANGED}
    if is_sound and scene.direction is Direction.REVERSE:
        # The way back stays open: since that proof, rounds have verified each row that they wrote.
        return f"{said}, which is enough on the way back"
    raise _shut(f"{said} (run `ordermigrate validate --checksums`)")


async def _see_lag(scene: Scene) -> str:
    backlog = await change_logs.measure_all(scene.hot)
    said = f"{backlog.age_seconds:.1f} s, {backlog.changes:,} changes"
    limit = scene.config.limits.max_lag_seconds
    if backlog.age_seconds <= limit:
        return said
    if scene.direction is Direction.REVERSE:
        return f"{said}; they are brought first"
    raise _shut(
        f"the {scene.cold.side} is behind: {said}; "
        f"limits.max_lag_seconds is {limit:g} (let `ordermigrate sync` catch up first)"
    )


async def _see_quarantine(scene: Scene) -> str:
    found: dict[str, int] = {}
    for session in (scene.hot, scene.cold):
        found.update(await quarantine.count(session))
    if not found:
        return "empty"
    said = ", ".join(f"{rows:,} of {table}" for table, rows in found.items())
    if scene.direction is Direction.REVERSE:
        return f"{said}: the monolith refuses them, and will own the tables without them"
    raise _shut(
        f"the monolith refuses rows of the service: {said} (see `ordermigrate status`; mend the "
        "cause, and run `ordermigrate rollback --retry-quarantine`)"
    )


async def _see_triggers(scene: Scene) -> str:
    gaps: list[str] = []
    for session, tables, is_hot in (
        (scene.hot, scene.sources, True),
        (scene.cold, scene.targets, False),
    ):
        triggers = await catalog.read_own_triggers(session)
        gaps += [
            f"{gap} ({session.side})"
            for gap in ownership.find_gaps(tables, triggers, is_hot=is_hot)
        ]
        names = [table.name for table in tables]
        gaps += [
            f"{gap} ({session.side})" for gap in await change_logs.find_missing(session, names)
        ]
        if is_hot and session.side is Side.MONOLITH:
            gaps += [
                f"{gap} (monolith)" for gap in parents.find_gaps(find_parents(scene.maps), triggers)
            ]
    if gaps:
        raise _shut(f"{'; '.join(gaps)} (run `ordermigrate prepare`)")
    return "capture and fence are there on both sides"


async def _see_subscriptions(scene: Scene) -> str:
    for session, tables in ((scene.hot, scene.sources), (scene.cold, scene.targets)):
        await capture.require_no_subscription(session, tables)
    return "none writes to the tables"


async def _see_prepared(scene: Scene) -> str:
    for session, tables in ((scene.hot, scene.sources), (scene.cold, scene.targets)):
        found = await session.fetch_all("readiness", "find_prepared", _oids(tables))
        if found:
            raise _shut(
                f"on the {session.side} prepared transactions hold locks: "
                + "; ".join(
                    f"{row.gid} on {row.relation} for {row.age_seconds:.0f} s" for row in found
                )
                + " (COMMIT PREPARED or ROLLBACK PREPARED them)"
            )
    return "none holds a lock on the tables"


async def _see_indexes(scene: Scene) -> str:
    found = await scene.cold.fetch_all("readiness", "find_unready_indexes", _oids(scene.targets))
    missing = [row.index_name for row in found]
    if await ledger.has_records(scene.cold):
        missing += [
            f"{each.name} on {each.table_name}"
            for each in await ledger.read_objects(scene.cold, "index", "check")
        ]
    if missing:
        raise _shut(
            f"not usable on the {scene.cold.side}: {', '.join(missing)} (REINDEX, or run "
            "`ordermigrate copy`, which builds what is missing)"
        )
    return "all are valid"


async def _see_statistics(scene: Scene) -> str:
    leaves = [leaf.oid for table in scene.targets for leaf in table.leaves]
    found = await scene.cold.fetch_all("readiness", "find_unknown_leaves", leaves)
    if found and scene.direction is Direction.REVERSE:
        return "as they were when the monolith was the owner"
    if found:
        raise _shut(
            f"on the {scene.cold.side} the planner knows nothing of "
            + ", ".join(row.table_name for row in found)
            + " (ANALYZE them)"
        )
    return "the planner has them"


async def _see_sequences(scene: Scene) -> str:
    pairs = sequences.pair_sequences(scene.maps)
    said = sequences.find_obstacles(pairs, await sequences.count_sessions(scene.hot))
    if said:
        raise _shut("; ".join(said))
    return f"{len(pairs)} to be set past the {scene.hot.side}'s"


async def _see_way_back(scene: Scene) -> str:
    if scene.direction is Direction.REVERSE:
        return "this is it"
    said = reversing.find_obstacles(scene.maps)
    if said:
        raise _shut("; ".join(said))
    return "every row of the service can go back to the monolith"


async def _see_cascades(scene: Scene) -> str:
    if scene.direction is Direction.REVERSE:
        return "the monolith's own keys act again"
    if said := reversing.find_cascades(scene.maps):
        raise _shut(
            f"{'; '.join(said)} (take that table into the family, or let the foreign key refuse "
            "instead: ON DELETE NO ACTION ON UPDATE NO ACTION)"
        )
    return "no key of the monolith changes rows outside the family"


async def _see_durability(scene: Scene) -> str:
    for session in (scene.hot, scene.cold):
        row = await session.fetch_one("readiness", "read_durability")
        if "off" in {row.fsync, row.full_page_writes, row.synchronous_commit}:
            raise _shut(
                f"on the {session.side} fsync is {row.fsync}, full_page_writes "
                f"{row.full_page_writes}, synchronous_commit {row.synchronous_commit}: a commit "
                "that is answered may vanish in a crash"
            )
        if row.standby_names and not row.synchronous_standbys:
            raise _shut(
                f"the {session.side} waits at each commit for a synchronous standby "
                f"({row.standby_names}), and none is connected"
            )
    return "what is committed stays"


async def find_notes(scene: Scene, max_pause_seconds: float) -> list[str]:
    """Say what does not stand in the way and should be known."""
    narrow: list[str] = []
    if scene.direction is Direction.FORWARD:
        narrow = reversing.find_narrow_columns(scene.maps)
        narrow += reversing.find_arriving_cascades(scene.maps)
    milliseconds = round(max_pause_seconds * 1000)
    found = await scene.hot.fetch_all("readiness", "find_short_timeouts", milliseconds)
    return narrow + [
        f"on the {scene.hot.side}, {row.role_name} has {row.setting}: its writes would fail in a "
        f"pause of {max_pause_seconds:g} s"
        for row in found
    ]


async def measure(scene: Scene) -> list[Timing]:
    """Time what can be timed without stopping a writer."""
    timings: list[Timing] = []
    for session in (scene.hot, scene.cold):
        timings.append(
            Timing(
                f"round trip to the {session.side}",
                await _time(lambda session=session: session.run("SELECT 1")),  # type: ignore[misc]
            )
        )
        timings.append(
            Timing(
                f"commit on the {session.side}",
                await _time(
                    lambda session=session: session.run(  # type: ignore[misc]
                        queries.get("write_ahead_log", "push_flush")
                    )
                ),
            )
        )
    pairs = sequences.pair_sequences(scene.maps)
    timings.append(
        Timing(
            "reading the sequences",
            await _time(lambda: sequences.read_values(scene.hot, pairs)),
        )
    )
    row = await scene.service.fetch_one("readiness", "read_round_seconds")
    timings.append(Timing("a round, median of the latest", row.median))
    timings.append(Timing("a round, longest of the latest", row.longest))
    return timings


async def _time(act: Callable[[], Awaitable[object]]) -> float:
    taken: list[float] = []
    for _ in range(TRIES):
        started = time.monotonic()
        await act()
        taken.append(time.monotonic() - started)
    return statistics.median(taken)


def require_open(gates: Sequence[Gate], direction: Direction) -> None:
    """Raise `Refused` with everything that is shut, where anything is."""
    shut = [f"{gate.name}: {gate.said}" for gate in gates if not gate.is_open]
    if shut:
        raise Refused(
            f"{len(shut)} of {len(gates)} gates are shut: " + "; ".join(shut),
            wanted=f"All of them open before the {direction.target} becomes the owner",
            todo=f"Deal with each; `{direction.command_line} --dry-run` shows them all again, and "
            "changes nothing",
            findings=shut,
        )
