"""A steady flow of committed writes on the monolith, and when each is seen on the service.

The measurement is not the product's: every write is remembered when its commit is acknowledged,
and a prober asks the service, every 50 ms and by key, whether it is there. So a delay is told too
long by up to one pause of the prober, never too short. No key has two writes under way, so what is
seen tells which write it was: an inserted row is there, an updated one bears its write's number,
a deleted one is gone. Writers keep to a timetable: one that was held up catches up.
"""

from __future__ import annotations

import asyncio
import random
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final, Literal, TypeAlias

import asyncpg

from benchmarks.ground import USERS

PROBE_SECONDS: Final = 0.05
WRITERS: Final = 4
_KEYS_EACH: Final = 5000
_MOST_ASKED: Final = 20_000
_DRAIN_POLL_SECONDS: Final = 0.02
# Above what the generator gives to retry_count, which bears the number of the last write.
_FIRST_NUMBER: Final = 1000
_SYMBOLS: Final = ("PETR4", "VALE3", "ITUB4", "BBDC4", "ABEV3", "BTC")

Kind = Literal["insert", "update", "delete"]
Session: TypeAlias = "asyncpg.Connection[Any]"

_PICK = """
SELECT id FROM public.orders ORDER BY pg_catalog.uuid_hash_extended(id, $2::bigint) LIMIT $1::bigint
"""
_INSERT = """
INSERT INTO public.orders
    (id, retry_count, user_id, symbol, order_type, order_side, quantity, price)
VALUES ($1::uuid, $2::integer, $3::integer, $4::text, 'LIMIT', 'BUY', 100, 31.5)
"""
_UPDATE = """
UPDATE public.orders SET status = 'EXECUTED', execution_price = 31.4, retry_count = $2::integer
WHERE id = $1::uuid
"""
_DELETE = "DELETE FROM public.orders WHERE id = $1::uuid"
_SEEN = "SELECT id, retry_count FROM public.orders WHERE id = ANY ($1::uuid[])"


@dataclass(frozen=True, slots=True)
class Write:
    """One acknowledged write that the service has not shown yet."""

    key: uuid.UUID
    kind: Kind
    number: int
    acknowledged_at: float
    settled: list[uuid.UUID]

    def is_seen(self, rows: dict[uuid.UUID, int]) -> bool:
        """Return whether the service, which has these of the keys asked for, has applied it."""
        found = rows.get(self.key)
        if self.kind == "delete":
            return found is None
        return found is not None and found >= self.number


@dataclass(slots=True)
class Observed:
    """What one stretch of time showed.

    Attributes:
        seconds: How long it was.
        writes: The commits that were acknowledged in it.
        delays: Seconds from the acknowledgement of a write until it was seen, for each write seen.
        ages: At every probe, the age in seconds of the oldest write that was not seen; 0 if none.

    """

    seconds: float = 0.0
    writes: int = 0
    delays: list[float] = field(default_factory=list)
    ages: list[float] = field(default_factory=list)

    @property
    def writes_per_second(self) -> float:
        """The committed writes per second."""
        return self.writes / self.seconds if self.seconds else 0.0


class Traffic:
    """Writers and the prober; `open_traffic` makes it and ends it.

    Args:
        service: The prober's connection.
        rate: Writes per second, of all writers together.

    """

    def __init__(self, service: Session, rate: float) -> None:
        self._service = service
        self._period = WRITERS / rate
        self._pending: dict[int, Write] = {}
        self._observed = Observed()
        self._begun = time.monotonic()
        self._number = _FIRST_NUMBER
        self._is_writing = True

    @property
    def pending(self) -> int:
        """How many acknowledged writes have not been seen yet."""
        return len(self._pending)

    def take(self) -> Observed:
        """Return what was observed since the last time, and begin anew."""
        now = time.monotonic()
        done, self._observed = self._observed, Observed()
        done.seconds, self._begun = now - self._begun, now
        return done

    async def drain(self, timeout_seconds: float) -> None:
        """Let the writers stop, and wait until the service has shown every write."""
        self._is_writing = False
        async with asyncio.timeout(timeout_seconds):
            while self._pending:  # noqa: ASYNC110  a prober looks, nobody would tell
                await asyncio.sleep(_DRAIN_POLL_SECONDS)

    async def write(self, session: Session, seed: int, settled: list[uuid.UUID]) -> None:
        """Write at a steady pace, with keys of its own, until told to stop."""
        rng = random.Random(seed)  # noqa: S311  nothing secret
        due = time.monotonic() + self._period * seed / WRITERS
        while self._is_writing:
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            due += self._period
            self._number += 1
            number = self._number
            kind: Kind = rng.choice(("insert", "update", "delete")) if settled else "insert"
            if kind == "insert":
                key = uuid.UUID(int=rng.getrandbits(128), version=4)
                user, symbol = rng.randint(1, USERS), rng.choice(_SYMBOLS)
                said = await session.execute(_INSERT, key, number, user, symbol)
            else:
                place = rng.randrange(len(settled))
                settled[place], settled[-1] = settled[-1], settled[place]
                key = settled.pop()
                more = (number,) if kind == "update" else ()
                said = await session.execute(_UPDATE if more else _DELETE, key, *more)
            if not said.endswith(" 1"):
                raise RuntimeError(f"A writer's {kind} of its own row {key} said {said}")
            self._pending[number] = Write(key, kind, number, time.monotonic(), settled)
            self._observed.writes += 1

    async def probe(self) -> None:
        """Look again and again which of the acknowledged writes the service shows."""
        due = time.monotonic()
        while True:
            due = max(due + PROBE_SECONDS, time.monotonic())
            await asyncio.sleep(due - time.monotonic())
            asked = list(self._pending.values())[:_MOST_ASKED]
            found = await self._service.fetch(_SEEN, [one.key for one in asked]) if asked else []
            seen_at = time.monotonic()
            rows = {row[0]: int(row[1] or 0) for row in found}
            for one in asked:
                if one.is_seen(rows):
                    del self._pending[one.number]
                    self._observed.delays.append(seen_at - one.acknowledged_at)
                    if one.kind != "delete":
                        one.settled.append(one.key)
            oldest = min((one.acknowledged_at for one in self._pending.values()), default=seen_at)
            self._observed.ages.append(max(0.0, seen_at - oldest))


@asynccontextmanager
async def open_traffic(monolith: str, service: str, rate: float) -> AsyncIterator[Traffic]:
    """Let writers write to the monolith, at `rate` a second, until the block ends.

    Both sides must hold the same rows already. A writer or prober that fails ends the block.
    """
    async with AsyncExitStack() as stack:
        sessions = []
        for dsn in (service, *[monolith] * WRITERS):
            session = await asyncpg.connect(dsn)
            stack.push_async_callback(session.close)
            sessions.append(session)
        prober, *writers = sessions
        keys = [row[0] for row in await writers[0].fetch(_PICK, WRITERS * _KEYS_EACH, 1)]
        traffic = Traffic(prober, rate)
        group = await stack.enter_async_context(asyncio.TaskGroup())
        tasks = [group.create_task(traffic.probe())]
        for seed, session in enumerate(writers):
            tasks.append(group.create_task(traffic.write(session, seed, keys[seed::WRITERS])))
        try:
            yield traffic
        finally:
            for task in tasks:
                task.cancel()


def quantile(values: Sequence[float], share: float) -> float:
    """Return the smallest value that at least this share of all values do not exceed."""
    if not values:
        return 0.0
    ordered = sorted(values)
    return ordered[max(0, min(len(ordered) - 1, int(-(-share * len(ordered) // 1)) - 1))]
