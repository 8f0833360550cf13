"""The application, which does not stop for a migration: writers that remember.

Promise: every write that a database has acknowledged is counted, and what it made of its order
is remembered. Nobody else writes to these orders, so the state that was acknowledged last is the
one that has to be on the owner in the end. How many orders are remembered is bounded, whatever
the time.

The driver is psycopg 3, one connection a writer, as an application would have it, with none of
ordermigrate's settings. Of the migration it knows one thing: a write that the fence refuses was
not done, and belongs into the other database; there the writer connects, and tries it again.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from psycopg import AsyncConnection, AsyncRawCursor

from ordermigrate import control, queries
from ordermigrate.errors import OrdermigrateError
from ordermigrate.model import Side
from ordermigrate.together import run_together

WRITERS = 4
WRITES_PER_SECOND = 300.0
# Of those that were there before; the rest are placed by the writers themselves.
MOST_ADOPTED = 400
# One writer places so many orders; then it goes on with those that it has.
MOST_PLACED = 10_000
_FEWEST_OPEN = 10
_CONNECT_SECONDS = 10
# What the fence answers to a write on the side that does not own the orders.
FENCED = "OM001"
# Where both sides refuse, the owner is about to change.
_KNOCK_SECONDS = 0.01
_MOST_KNOCKS = 2_000
_SYMBOLS = ("PETR4", "AAPL", "VALE3", "NVDA", "BTC-USD", "ITUB4", "TSLA", "MSFT")
_KINDS = ("place", "advance", "cancel", "delete")
_WEIGHTS = (45, 45, 7, 3)

# An order's status and the reference of its last write; None where it was deleted.
State = tuple[str, str] | None


@dataclass(frozen=True, slots=True)
class Stretch:
    """What the writers had acknowledged within a stretch of time.

    Attributes:
        seconds: How long it was.
        writes: How many writes.
        longest_seconds: The longest that a write took, one that is still under way included.
        silence_seconds: The longest time in which none of the writers had a write acknowledged.
        refused: How many writes a fence has refused; each was tried again on the other side.

    """

    seconds: float
    writes: int
    longest_seconds: float
    silence_seconds: float
    refused: int


@dataclass(slots=True)
class _Writer:
    """One of them: its connection, and the orders that it may still change."""

    number: int
    side: Side
    connection: AsyncConnection[Any]
    rng: random.Random
    open: list[uuid.UUID]
    users: int
    writes: int = 0
    placed: int = 0

    def choose(self) -> str:
        """Say what to do next."""
        if len(self.open) <= _FEWEST_OPEN:
            return "place" if self.placed < MOST_PLACED else "retry"
        if self.placed >= MOST_PLACED:
            return "retry"
        return self.rng.choices(_KINDS, _WEIGHTS)[0]

    def pick(self) -> int:
        """Return the place of an open order."""
        return self.rng.randrange(len(self.open))


class Traffic:
    """Writers that write until they are told to stop, and what was acknowledged to them.

    Attributes:
        writes: How many writes were acknowledged.
        placed: How many of them were new orders.
        deleted: How many of them took an order away.
        refused: How many writes were refused by a fence, and then done on the other side.
        sides: Where each writer writes.
        states: What the last of them has made of each order.
        adopted: The orders that were there before, and that the writers may write to.

    """

    def __init__(
        self,
        dsns: Mapping[Side, str],
        users: int,
        rate: float = WRITES_PER_SECOND,
        owner: Side = Side.MONOLITH,
    ) -> None:
        self.writes = self.placed = self.deleted = self.refused = 0
        self.sides = [owner] * WRITERS
        self.states: dict[uuid.UUID, State] = {}
        self.adopted: list[uuid.UUID] = []
        self._dsns = dsns
        self._users = users
        self._period = WRITERS / rate
        # References must not be those of another traffic on the same orders.
        self._name = f"app-{uuid.uuid4().hex[:6]}"
        self._under_way: dict[int, float] = {}
        self._longest = 0.0
        self._silence = 0.0
        self._acknowledged_at = time.monotonic()
        self._before = self._acknowledged_at, 0, 0
        self._is_over = False
        self._has_begun = asyncio.Event()
        self._has_ended = asyncio.Event()

    @property
    def orders(self) -> list[uuid.UUID]:
        """The orders that belong to the writers."""
        return list({*self.states, *self.adopted})

    async def run(self) -> None:
        """Write until `stop` is called.

        Raises:
            OrdermigrateError: A write was refused, or an order of a writer's own was not there.

        """
        async with contextlib.AsyncExitStack() as stack:
            writers = []
            for number, side in enumerate(self.sides):
                connection = await self._connect(side)
                rng = random.Random(f"{self._name} {number}")  # noqa: S311  nothing secret
                writer = _Writer(number, side, connection, rng, [], self._users)
                stack.push_async_callback(_close, writer)
                writers.append(writer)
            self.adopted = await self._adopt(writers[0])
            for writer in writers:
                writer.open = self.adopted[writer.number :: WRITERS]
            self._acknowledged_at = time.monotonic()
            self._before = self._acknowledged_at, 0, 0
            self._has_begun.set()
            await run_together(*(self._write(writer) for writer in writers))
        self._has_ended.set()

    async def begin(self) -> None:
        """Wait until they write."""
        await self._has_begun.wait()

    async def stop(self) -> None:
        """Have each writer end after the write that it is at, and wait for that."""
        self._is_over = True
        await self._has_ended.wait()

    def take_stretch(self) -> Stretch:
        """Return what happened since the last time this was asked, and begin anew."""
        now = time.monotonic()
        began, writes, refused = self._before
        longest = max([self._longest, *(now - since for since in self._under_way.values())])
        silence = max(self._silence, now - self._acknowledged_at)
        self._before = now, self.writes, self.refused
        self._longest = self._silence = 0.0
        return Stretch(now - began, self.writes - writes, longest, silence, self.refused - refused)

    async def _connect(self, side: Side) -> AsyncConnection[Any]:
        with control.translated(side):
            return await AsyncConnection.connect(
                self._dsns[side],
                autocommit=True,
                cursor_factory=AsyncRawCursor,
                connect_timeout=_CONNECT_SECONDS,
                application_name="hub",
            )

    async def _adopt(self, writer: _Writer) -> list[uuid.UUID]:
        connection = writer.connection
        with control.translated(writer.side):
            count = await connection.execute(queries.get("story", "count_orders"))
            (orders,) = await count.fetchone() or (0,)
            # At least three of four orders stay as they are.
            some = await connection.execute(
                queries.get("story", "adopt_orders"), [min(MOST_ADOPTED, orders // 4)]
            )
            return [key for (key,) in await some.fetchall()]

    async def _write(self, writer: _Writer) -> None:
        """Write at a steady pace; who was held up goes on at that pace and does not catch up."""
        due = time.monotonic() + self._period * writer.number / WRITERS
        while not self._is_over:
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            due = max(due + self._period, time.monotonic())
            await self._write_once(writer)

    async def _write_once(self, writer: _Writer) -> None:
        kind = writer.choose()
        writer.writes += 1
        reference = f"{self._name}-{writer.number}/{writer.writes}"
        if kind == "place":
            key = uuid.UUID(int=writer.rng.getrandbits(128), version=4)
            await self._acknowledge(writer, "place_order", self._make_order(writer, key, reference))
            writer.placed += 1
            writer.open.append(key)
            self.placed += 1
            self.states[key] = "PENDING", reference
            return
        place = writer.pick()
        key = writer.open[place]
        if kind == "delete":
            await self._acknowledge(writer, "delete_order", [key])
            self.deleted += 1
            self.states[key] = None
        else:
            status = self._choose_status(kind, self.states.get(key))
            await self._acknowledge(writer, "advance_order", [key, status, reference])
            self.states[key] = status, reference
            if status == "PROCESSING":
                return
        writer.open[place] = writer.open[-1]
        writer.open.pop()

    def _make_order(
        self, writer: _Writer, key: uuid.UUID, reference: str
    ) -> tuple[uuid.UUID, int, str, str, int, str]:
        user, symbol = writer.rng.randint(1, self._users), writer.rng.choice(_SYMBOLS)
        side = writer.rng.choice(("BUY", "SELL"))
        return key, user, symbol, side, writer.rng.randint(1, 500), reference

    def _choose_status(self, kind: str, state: State) -> str:
        if kind == "cancel":
            return "CANCELLED"
        is_processing = state is not None and state[0] == "PROCESSING"
        return "EXECUTED" if kind == "advance" and is_processing else "PROCESSING"

    async def _acknowledge(self, writer: _Writer, block: str, values: Sequence[object]) -> None:
        """Do one write, wherever that may be, and count it when it is said to be committed."""
        began = self._under_way[writer.number] = time.monotonic()
        rows = await self._write_to_owner(writer, block, values)
        del self._under_way[writer.number]
        if rows != 1:
            raise OrdermigrateError(
                f"The application's {block} met {rows} orders",
                wanted="Exactly the one that it knows",
                todo="Report this as a bug, with the output above",
            )
        now = time.monotonic()
        self.writes += 1
        self._longest = max(self._longest, now - began)
        self._silence = max(self._silence, now - self._acknowledged_at)
        self._acknowledged_at = now

    async def _write_to_owner(self, writer: _Writer, block: str, values: Sequence[object]) -> int:
        """Do one write on the side that takes it, and return how many rows it met."""
        for knocks in itertools.count():
            try:
                with control.translated(writer.side):
                    done = await writer.connection.execute(queries.get("story", block), values)
            except OrdermigrateError as refused:
                if refused.sqlstate != FENCED or knocks == _MOST_KNOCKS:
                    raise
            else:
                return done.rowcount
            self.refused += 1
            if knocks:
                await asyncio.sleep(_KNOCK_SECONDS)
            await self._go_over(writer)
        raise AssertionError

    async def _go_over(self, writer: _Writer) -> None:
        """Connect to the other database, which is the owner's by now, or will be in a moment."""
        await _close(writer)
        writer.side = self.sides[writer.number] = writer.side.other
        writer.connection = await self._connect(writer.side)


async def _close(writer: _Writer) -> None:
    await writer.connection.close()
