"""The share of users whose reads go to the service, kept in both databases.

Reading from the service is safe while it is in step; so a larger share has gates, a smaller one
has none. Up, the service's row is written first and the monolith's last; down, the other way
round. So, whatever is cut off in between, the monolith sends nobody to the service whom the
service's own row does not count as well.

A share counts only under the epoch in which it was set: after a rollback nobody reads from the
service until somebody has looked again.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from psycopg import sql

from ordermigrate import change_logs, db
from ordermigrate.config import Config
from ordermigrate.control import Session
from ordermigrate.errors import OrdermigrateError, Refused
from ordermigrate.model import Side
from ordermigrate.progress import Reporter, TrafficHeldBack

STEPS = (0, 5, 10, 25, 50, 100)
WATCH_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class Share:
    """What one database says: the percentage that counts there, and why it was set to that."""

    percentage: int
    is_service_owner: bool
    reason: str
    changed_at: datetime


async def read(session: Session) -> Share | None:
    """Return what this database says, or None where no share was ever set."""
    if not (await session.fetch_one("traffic", "has_traffic")).is_there:
        return None
    row = await session.fetch_one("traffic", "read_traffic")
    return row and Share(*row)


async def install(session: Session, readers: Sequence[str]) -> list[str]:
    """Make the table and the functions that applications ask, or mend them; nothing is set.

    Just the readers may ask: rights that others have are taken back.

    Args:
        session: On either side, outside a transaction.
        readers: Names of roles.

    Returns:
        Those that this server does not have.

    """
    async with session.transaction():
        await session.fetch_all("sessions", "take_prepare_lock")
        for block in (
            "create_traffic",
            "begin_with_none",
            "create_traffic_in_force",
            "create_reads_from_service",
            "keep_functions_private",
        ):
            await session.fetch_all("traffic", block)
        present = {row.role for row in await session.fetch_all("traffic", "find_roles", [*readers])}
        others = {row.role for row in await session.fetch_all("traffic", "find_readers")} - present
        for roles, blocks in (
            (present, ("grant_schema", "grant_functions")),
            (others, ("revoke_schema", "revoke_functions")),
        ):
            for role, block in itertools.product(sorted(roles), blocks):
                await session.fetch_all("traffic", block, role=sql.Identifier(role))
    return [role for role in readers if role not in present]


@contextlib.asynccontextmanager
async def raising(
    monolith: Session, service: Session, percentage: int, reason: str
) -> AsyncIterator[None]:
    """Hold both rows for the length of a block, the place for gates, and then raise the share.

    The service's row is committed first. Cut off between the two, the step is completed by being
    taken again.
    """
    async with monolith.transaction(), service.transaction():
        for session in (service, monolith):
            await session.fetch_one("traffic", "hold_traffic")
        yield
        for session in (service, monolith):
            await write(session, percentage, reason)


async def write(session: Session, percentage: int, reason: str) -> None:
    """Set this database's share."""
    await session.fetch_all("traffic", "set_traffic", percentage, reason)


async def lower(session: Session, percentage: int, reason: str) -> bool:
    """Set this database's share to a smaller one; return whether it was larger."""
    share = await read(session)
    if share is None or share.percentage <= percentage:
        return False
    await write(session, percentage, reason)
    return True


async def require_none(sessions: Iterable[Session]) -> None:
    """Raise `Refused` while somebody reads from a service that is about to lose its rows."""
    found = [
        f"the {session.side} says {share.percentage} %"
        for session in sessions
        if (share := await read(session)) is not None and share.percentage > 0
    ]
    if found:
        raise Refused(
            f"Users read from the service: {' and '.join(found)}",
            wanted="Nobody who reads from tables that are not kept in step any more",
            todo="Run `ordermigrate traffic 0`; then run the command again",
            findings=found,
        )


@dataclass(frozen=True, slots=True)
class LagWatch:
    """Notices lag that stays over its limit for as long again as the limit is."""

    limit_seconds: float
    over_since: float | None = None

    def see(self, lag_seconds: float, now: float) -> LagWatch:
        """Return the watch after a look at the lag."""
        if lag_seconds <= self.limit_seconds:
            return replace(self, over_since=None)
        return self if self.over_since is not None else replace(self, over_since=now)

    def is_enough(self, now: float) -> bool:
        """Whether the lag has stayed over its limit for too long."""
        return self.over_since is not None and now - self.over_since >= self.limit_seconds


async def hold_back(config: Config, find_lag: Callable[[], float], reporter: Reporter) -> None:
    """Watch the lag for as long as sync runs; where it stays over its limit, nobody reads there.

    It runs beside the rounds, for one that hangs tells nothing. While all is well it costs
    neither side a query: `find_lag` is what sync itself has seen.

    Args:
        config: The configuration; each connection is tried as often as it says.
        find_lag: Returns how far behind the service may be by now, in seconds.
        reporter: Whom to tell.

    """
    loop = asyncio.get_running_loop()
    watch = LagWatch(config.limits.max_lag_seconds)
    while True:
        await asyncio.sleep(WATCH_SECONDS)
        watch = watch.see(find_lag(), loop.time())
        if watch.is_enough(loop.time()):
            # What fails now, sync itself meets as well and tells of; another look comes soon.
            with contextlib.suppress(OrdermigrateError):
                await hold_back_now(config, reporter)
            watch = LagWatch(watch.limit_seconds)


async def hold_back_now(config: Config, reporter: Reporter) -> None:
    """Set the share to 0 in both databases, if the lag is over its limit as the monolith has it.

    A monolith that is away takes no writes, so the service does not fall behind it; then nothing
    is done. A service that is away follows as soon as it is back.
    """
    limit = config.limits.max_lag_seconds
    async with db.opened(config, Side.MONOLITH, "sync: traffic") as monolith:
        share = await read(monolith)
        if share is None or share.is_service_owner:
            return
        lag = (await change_logs.measure_all(monolith)).age_seconds
        if lag <= limit:
            return
        reason = f"held back by sync: {lag:.1f} s behind, the limit is {limit:g} s"
        if await lower(monolith, 0, reason):
            reporter.report(TrafficHeldBack("monolith", share.percentage, round(lag, 1), limit))
    async with db.opened(config, Side.SERVICE, "sync: traffic") as service:
        share = await read(service)
        if share is not None and await lower(service, 0, reason):
            reporter.report(TrafficHeldBack("service", share.percentage, round(lag, 1), limit))
