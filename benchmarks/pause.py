"""How long nobody can write while the owner changes, as the writers see it.

Twenty connections commit 500 transactions a second on a table of full size, while sync runs. The
owner changes to the service and back, again and again; a writer that is told so by the fence goes
on at the other database. The pause of a change is the longest time between two commits that were
acknowledged, of all writers, from before the command to after it. Some cutovers are given too
little time: each is undone, and no write may fail. In the end every acknowledged write has to be on
the owner.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import statistics
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, Final, TypeAlias

import asyncpg
import uvloop

from benchmarks.ground import SOURCE, USERS, Ground, clone
from benchmarks.measure import WrongResult, tell
from benchmarks.programs import Running
from benchmarks.results import Section, Table, Target

WRITERS: Final = 20
RATE: Final = 500.0
CHANGES: Final = 20
ABORTED: Final = 5
MOST_PAUSE_SECONDS: Final = 0.25
MEDIAN_PAUSE_SECONDS: Final = 0.1
# Too little for any change of owner.
_TOO_SHORT: Final = "0.01"
_SOURCE: Final = "hub_investments_changing"
_TARGET: Final = "hub_order_service_changing"
_AROUND_SECONDS: Final = 1.0
_FENCED: Final = "OM001"
_UNDONE: Final = 7

Session: TypeAlias = "asyncpg.Connection[Any]"

_INSERT: Final = """
INSERT INTO public.orders
    (id, retry_count, user_id, symbol, order_type, order_side, quantity, price)
VALUES ($1::uuid, $2::integer, $3::integer, 'PETR4', 'LIMIT', 'BUY', 100, 31.5)
"""
_UPDATE: Final = "UPDATE public.orders SET retry_count = $2::integer WHERE id = $1::uuid"
_DELETE: Final = "DELETE FROM public.orders WHERE id = $1::uuid"
_FIND: Final = "SELECT id, retry_count FROM public.orders WHERE id = ANY ($1::uuid[])"


class Writers:
    """Twenty connections to each side, and what was acknowledged to them."""

    def __init__(self) -> None:
        self.acknowledged: list[float] = []
        self.refused = 0
        self.rows: dict[uuid.UUID, int | None] = {}
        self._is_writing = True

    async def write(self, sessions: list[Session], seed: int) -> None:
        """Insert, update and delete rows of its own at a steady pace, at whoever owns them."""
        rng = random.Random(seed)  # noqa: S311  nothing secret
        period, own, number = WRITERS / RATE, list[uuid.UUID](), 0
        due = time.monotonic() + period * seed / WRITERS
        while self._is_writing:
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            # One that was held up goes on at the same pace: a pause is not to look like a rush.
            due = max(due, time.monotonic() - period) + period
            number += 1
            kind = rng.choice((_INSERT, _UPDATE, _DELETE)) if len(own) > 1 else _INSERT
            is_new = kind is _INSERT
            key = uuid.UUID(int=rng.getrandbits(128), version=4) if is_new else own[number % 2]
            given: list[object] = [key] if kind is _DELETE else [key, number]
            said = await self._write_once(
                sessions, kind, *given, *([rng.randint(1, USERS)] if is_new else [])
            )
            if not said.endswith(" 1"):
                raise WrongResult(f"A write of its own row {key} said {said}")
            self.acknowledged.append(time.monotonic())
            self.rows[key] = None if kind is _DELETE else number
            if is_new:
                own.append(key)
            elif kind is _DELETE:
                own.remove(key)

    async def _write_once(self, sessions: list[Session], statement: str, *given: object) -> str:
        """Write at whoever owns the table; the first of the sessions is the one tried last."""
        while True:
            try:
                return str(await sessions[0].execute(statement, *given))
            except asyncpg.PostgresError as error:
                if error.sqlstate != _FENCED:
                    raise
            self.refused += 1
            sessions.reverse()
            await asyncio.sleep(0.001)

    def stop(self) -> None:
        """Let every writer end after what it is at."""
        self._is_writing = False

    def longest_gap(self, begin: float, end: float) -> float:
        """Return the longest time without a commit between two moments."""
        seen = [at for at in self.acknowledged if begin <= at <= end]
        if len(seen) < 2:  # noqa: PLR2004  a gap has two ends
            raise WrongResult("Nobody wrote around a change of owner")
        return max(later - earlier for earlier, later in itertools.pairwise(seen))

    async def verify(self, session: Session) -> int:
        """Raise unless every acknowledged write is there; return how many rows were looked for."""
        found = {
            row["id"]: row["retry_count"] for row in await session.fetch(_FIND, list(self.rows))
        }
        lost = [key for key, number in self.rows.items() if found.get(key) != number]
        if lost:
            raise WrongResult(f"{len(lost)} acknowledged writes are not on the owner: {lost[:3]}")
        return len(self.rows)


def measure(ground: Ground, title: str, about: str, *, changes: int = CHANGES) -> Section:
    """Change the owner again and again, and return what the writers saw."""
    clone(ground.monolith, SOURCE, _SOURCE)
    ground.start_migration(_SOURCE, _TARGET)
    ground.catch_up(_SOURCE, _TARGET)
    ground.checkpoint()
    with ground.syncing(_SOURCE, _TARGET) as sync:
        seen = uvloop.run(_change(ground, sync, changes))
        sync.stop()
    ground.catch_up(_SOURCE, _TARGET)
    ground.verify_rows(_TARGET, _SOURCE, is_thorough=True)
    pauses, own, aborted, writers, looked_for = seen
    said = (
        f"{len(writers.acknowledged):,} writes acknowledged, {writers.refused} refused by the "
        f"fence and done at the other side; {looked_for:,} rows looked for at the end, none missing"
    )
    return Section(
        title,
        about,
        (),
        tuple(_judge(pauses, aborted)),
        (said,),
        Table(
            ("median ms", "longest ms", "by the product's own account, median ms"),
            (
                *(
                    (
                        name,
                        (
                            statistics.median(pauses[name]) * 1000,
                            max(pauses[name]) * 1000,
                            statistics.median(own[name]) * 1000,
                        ),
                    )
                    for name in pauses
                ),
            ),
        ),
    )


def _judge(pauses: dict[str, list[float]], aborted: dict[str, float]) -> list[Target]:
    targets = []
    for name, found in pauses.items():
        spread = (min(found), max(found))
        targets += [
            Target(
                f"pause, median of {len(found)}: {name}",
                statistics.median(found),
                MEDIAN_PAUSE_SECONDS,
                spread=spread,
                unit="s",
            ),
            Target(
                f"pause, longest of {len(found)}: {name}", max(found), MOST_PAUSE_SECONDS, unit="s"
            ),
        ]
    return [
        *targets,
        Target(
            f"writes refused in {ABORTED} cutovers that were undone",
            aborted["refused"],
            0,
            unit="writes",
        ),
    ]


async def _change(
    ground: Ground, sync: Running, changes: int
) -> tuple[dict[str, list[float]], dict[str, list[float]], dict[str, float], Writers, int]:
    pauses: dict[str, list[float]] = {"cutover": [], "rollback": []}
    own: dict[str, list[float]] = {"cutover": [], "rollback": []}
    async with _writing(ground) as (writers, sessions):
        await asyncio.sleep(2 * _AROUND_SECONDS)
        await asyncio.to_thread(
            ground.ordermigrate, "validate", "--checksums", source=_SOURCE, target=_TARGET
        )
        aborted = await _abort(ground, sync, writers)
        for number in range(changes):
            for name, found in pauses.items():
                tell(f"{name} {number + 1} of {changes}")
                seen, said = await _change_once(ground, sync, writers, name)
                found.append(seen)
                own[name].append(said)
        writers.stop()
        await asyncio.sleep(2 * _AROUND_SECONDS)
        looked_for = await writers.verify(sessions[0])
    return pauses, own, aborted, writers, looked_for


async def _change_once(
    ground: Ground, sync: Running, writers: Writers, name: str
) -> tuple[float, float]:
    sync.check()
    begin = time.monotonic()
    ended = await asyncio.to_thread(
        ground.ordermigrate, name, "--json", source=_SOURCE, target=_TARGET
    )
    await asyncio.sleep(_AROUND_SECONDS)
    seen = writers.longest_gap(begin, time.monotonic())
    return seen, float(json.loads(ended.output)["pause_seconds"])


async def _abort(ground: Ground, sync: Running, writers: Writers) -> dict[str, float]:
    """Give cutovers too little time, and count the writes that fail."""
    before = writers.refused
    for number in range(ABORTED):
        tell(f"cutover with too little time, {number + 1} of {ABORTED}")
        sync.check()
        await asyncio.to_thread(
            ground.ordermigrate,
            *("cutover", "--max-pause", _TOO_SHORT),
            source=_SOURCE,
            target=_TARGET,
            expected=(_UNDONE,),
        )
        await asyncio.sleep(_AROUND_SECONDS / 4)
    return {"refused": float(writers.refused - before)}


@asynccontextmanager
async def _writing(ground: Ground) -> AsyncIterator[tuple[Writers, list[Session]]]:
    """Let the writers write until the block ends; one that fails ends the block."""
    async with AsyncExitStack() as stack:

        async def connect(dsn: str) -> Session:
            session = await asyncpg.connect(dsn)
            stack.push_async_callback(session.close)
            return session

        dsns = ground.source(_SOURCE), ground.target(_TARGET)
        pairs = [[await connect(dsn) for dsn in dsns] for _ in range(WRITERS)]
        lookers = [await connect(dsn) for dsn in dsns]
        writers = Writers()
        group = await stack.enter_async_context(asyncio.TaskGroup())
        tasks = [group.create_task(writers.write(pair, seed)) for seed, pair in enumerate(pairs)]
        try:
            yield writers, lookers
        finally:
            for task in tasks:
                task.cancel()
