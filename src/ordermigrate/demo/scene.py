"""What the parts of the story share: who tells it, where it happens, what was measured so far."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ordermigrate import db, meters, migration, outcomes, progress
from ordermigrate.control import Session
from ordermigrate.demo.databases import Databases
from ordermigrate.demo.narrator import Narrator
from ordermigrate.demo.traffic import Traffic
from ordermigrate.digest import Algorithm
from ordermigrate.model import Side
from ordermigrate.outcomes import Validation
from ordermigrate.progress import Event, Reporter

USERS = 1000

Listen = Callable[[], contextlib.AbstractContextManager[Reporter]]


@dataclass(slots=True)
class Scene:
    """Who tells the story, who listens, where it happens, and what has been measured so far.

    Attributes:
        listen: Opens a reporter of progress, once for each verb.
        aside: Whom sync tells, behind all the others: it may not draw on the screen.
        may_follow: Set it to have sync begin.
        is_synced: Set it to have sync end.
        has_synced: Is set when it has.
        pauses: For each change of owner, for how long no side took a write, by the command's own
            clock; and the longest time in which the writers had nothing acknowledged.

    """

    narrator: Narrator
    listen: Listen
    aside: Reporter
    databases: Databases
    rows: int
    traffic: Traffic
    may_follow: asyncio.Event = field(default_factory=asyncio.Event)
    is_synced: asyncio.Event = field(default_factory=asyncio.Event)
    has_synced: asyncio.Event = field(default_factory=asyncio.Event)
    pauses: list[tuple[float, float]] = field(default_factory=list)

    async def open(self, side: Side) -> Session:
        """Open a session on one side."""
        return await db.connect(self.databases.config, side, "demo")

    async def choose_order(self, session: Session, offset: int) -> Any:  # noqa: ANN401  a row
        """Return an order that is none of the writers', with so many before it."""
        return await session.fetch_one("story", "choose_order", offset, self.traffic.orders)

    async def validate(self, *, is_repairing: bool = False) -> Validation:
        """Show the command, and do what it does."""
        self.narrator.command(
            "ordermigrate validate " + ("--repair" if is_repairing else "--checksums")
        )
        with self.listen() as reporter:
            return await migration.validate(
                self.databases.config,
                Listener(reporter),
                algorithm=Algorithm.MD5,
                max_differences=20,
                is_repairing=is_repairing,
            )

    def describe_traffic(self) -> str:
        """Say what the writers have done since this was asked the last time."""
        done = self.traffic.take_stretch()
        return (
            f"{done.writes:,} writes acknowledged, {done.writes / done.seconds:,.0f} a second; "
            f"the longest took {format_moment(done.longest_seconds)}"
        )


# The tables tell of checks, and of rounds there is a part of the story; what a change of owner
# leaves for later is told by `ordermigrate status`.
_UNTOLD = (progress.CheckFinished, progress.RoundApplied, progress.Settled)


class Listener:
    """Passes events on, and keeps what the story wants to tell afterwards."""

    def __init__(self, reporter: Reporter) -> None:
        self._reporter = reporter
        self.rows: progress.RowsCopied | None = None
        self.built = 0

    def report(self, event: Event) -> None:
        """Take note of it, and pass it on."""
        if isinstance(event, progress.RowsCopied):
            self.rows = event
        if isinstance(event, progress.IndexBuilt):
            self.built += 1
        if not isinstance(event, _UNTOLD):
            self._reporter.report(event)


class Silence:
    """Tells nobody."""

    def report(self, event: Event) -> None:
        """Keep it to itself."""


def count_orders(rows: int) -> str:
    """Say how many orders."""
    return f"{rows:,} {'order' if rows == 1 else 'orders'}"


def format_moment(seconds: float) -> str:
    """Return a duration that may be very short."""
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else meters.format_seconds(seconds)


def describe(done: Validation) -> dict[str, Any]:
    """Return a validation as the screen's tables take it."""
    return {
        "owner": done.owner,
        "tables": [outcomes.describe_table(each) for each in done.verdict.tables],
        "notes": list(done.verdict.notes),
    }


def count_rows(done: Validation) -> int:
    """Return how many rows of the monolith a validation has compared."""
    return sum(each.source_rows for each in done.verdict.tables)
