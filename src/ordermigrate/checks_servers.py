"""Checks of the two servers and databases: whether they can be used, and who else uses them.

Nothing waits without a limit, and no lock is kept. What a server tells only its administrators is
said to be unknown, never to be fine.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from ordermigrate import db
from ordermigrate.errors import OrdermigrateError, Refused, Unavailable, UsageError
from ordermigrate.findings import Spot, name_some
from ordermigrate.meters import format_bytes, format_seconds
from ordermigrate.model import Identity, Side
from ordermigrate.survey import Survey

NEWEST = 18
MOST_CLOCK_SECONDS = 1.0
CONTROL_CONNECTIONS = 2


async def see_unreachable(survey: Survey, side: Side) -> list[Spot]:
    """Find a side that did not let us in."""
    lost = survey.find_lost(side)
    return [Spot(lost.fact, lost.todo)] if lost else []


def see_faults(key: str) -> Callable[[Survey, Side], Awaitable[list[Spot]]]:
    """Return a check that tells what connecting to a side has found out under a key."""

    async def see(survey: Survey, side: Side) -> list[Spot]:
        survey.session(side)
        return [Spot(each.fact, each.todo) for each in survey.faults[side] if each.finding == key]

    return see


async def see_version(survey: Survey, side: Side) -> list[Spot]:
    """Find a server that is newer than what we have been tried on."""
    return find_new_version(survey.session(side).identity)


def find_new_version(identity: Identity) -> list[Spot]:
    """Find a server that is newer than what we have been tried on."""
    if identity.server_version // 10000 <= NEWEST:
        return []
    return [Spot(f"the {identity.side} runs PostgreSQL {identity.version_text}")]


async def see_standby(survey: Survey, side: Side) -> list[Spot]:
    """Find a server that takes no writes."""
    if not survey.session(side).identity.is_in_recovery:
        return []
    return [Spot(f"the {side}'s server is a standby: it cannot be written to")]


async def see_one_database(survey: Survey, _: Side) -> list[Spot]:
    """Find two DSNs that lead to one database."""
    _require_direct(survey, *Side)
    try:
        await db.require_two(survey.session(Side.MONOLITH), survey.session(Side.SERVICE))
    except UsageError as same:
        return [Spot(same.fact, same.todo)]
    return []


async def see_several_servers(survey: Survey, side: Side) -> list[Spot]:
    """Find a DSN that leads to another database when it is used again."""
    _require_direct(survey, side)
    session = survey.session(side)
    other = await db.connect(db.make_impatient(survey.config), side, "preflight", faults=[])
    try:
        if await db.is_same_database(session, other):
            return []
    finally:
        await other.close()
    return [Spot(f"two connections by the {side}'s DSN did not reach the same database")]


def _require_direct(survey: Survey, *sides: Side) -> None:
    """Raise where a lock taken through a pooler could be left behind in somebody's session."""
    for side in sides:
        if any(fault.finding == "pooler" for fault in survey.faults[side]):
            raise Refused(f"A lock through the {side}'s pooler would prove nothing")


async def see_encoding(survey: Survey, _: Side) -> list[Spot]:
    """Find encodings between which a text may have no way."""
    mine, theirs = (survey.session(side).identity.encoding for side in Side)
    if mine == theirs or (theirs == "UTF8" and mine != "SQL_ASCII"):
        return []
    return [Spot(f"the monolith is encoded in {mine}, the service in {theirs}")]


async def see_locale(survey: Survey, _: Side) -> list[Spot]:
    """Find databases that sort text differently."""
    mine, theirs = [
        await survey.session(side).fetch_one("checks_servers", "read_locale") for side in Side
    ]
    if mine == theirs:
        return []
    said = [f"{row.collate_name} (letters by {row.ctype_name})" for row in (mine, theirs)]
    return [Spot(f"the monolith's default collation is {said[0]}, the service's {said[1]}")]


async def see_clocks(survey: Survey, _: Side) -> list[Spot]:
    """Find clocks that differ by more than the round trips can explain."""
    offsets: list[float] = []
    doubt = 0.0
    for side in Side:
        session, before = survey.session(side), time.time()
        row = await session.fetch_one("checks_servers", "read_clock")
        after = time.time()
        offsets.append(row.seconds - (before + after) / 2)
        doubt += (after - before) / 2
    return find_clock_difference(offsets[1] - offsets[0], doubt)


def find_clock_difference(ahead_seconds: float, doubt_seconds: float) -> list[Spot]:
    """Find a clock of the service that is ahead of the monolith's, or behind it."""
    if abs(ahead_seconds) - doubt_seconds <= MOST_CLOCK_SECONDS:
        return []
    word = "ahead of" if ahead_seconds > 0 else "behind"
    return [Spot(f"the service's clock is ~{abs(ahead_seconds):.1f} s {word} the monolith's")]


async def see_md5(survey: Survey, side: Side) -> list[Spot]:
    """Find a server that refuses MD5."""
    session = survey.session(side)
    try:
        await session.fetch_one("validate", "probe_md5")
    except Unavailable:
        raise
    except OrdermigrateError as refused:
        return [Spot(f"the {side} refuses MD5: {refused.fact}")]
    return []


async def see_standbys(survey: Survey, side: Side) -> list[Spot]:
    """Find commits that wait for a standby which is away."""
    return find_lost_standbys(
        side, await survey.session(side).fetch_one("readiness", "read_durability")
    )


def find_lost_standbys(side: Side, row: Any) -> list[Spot]:  # noqa: ANN401  a row of read_durability
    """Find commits that wait for a standby which is away."""
    if not row.standby_names or row.synchronous_standbys:
        return []
    return [
        Spot(
            f"the {side} waits at each commit for a synchronous standby ({row.standby_names}), and "
            "none is connected"
        )
    ]


async def see_connections(survey: Survey, side: Side) -> list[Spot]:
    """Find limits that leave us too few connections."""
    row = await survey.session(side).fetch_one("checks_servers", "read_connections")
    wanted = survey.config.limits.workers + CONTROL_CONNECTIONS
    free = {
        "server": row.free_of_server,
        "database": row.free_of_database,
        "role": row.free_of_role,
    }
    return [
        Spot(
            f"the {side}'s {what} has room for {max(0, left)} more connections, and a copy with "
            f"{survey.config.limits.workers} workers opens {wanted}"
        )
        for what, left in free.items()
        if left is not None and left < wanted
    ]


async def see_lock_room(survey: Survey, side: Side) -> list[Spot]:
    """Find more tables and partitions than the server has locks for."""
    row = await survey.session(side).fetch_one("checks_servers", "read_lock_room")
    return find_lock_shortage(side, len(await survey.parts(side)), row.locks)


def find_lock_shortage(side: Side, parts: int, locks: int) -> list[Spot]:
    """Find more tables and partitions than half of the server's locks could cover."""
    if parts * 2 <= locks:
        return []
    return [
        Spot(
            f"the family is {parts:,} tables and partitions on the {side}, each of our "
            f"transactions locks them all, and the server has room for ~{locks:,} locks"
        )
    ]


async def see_kept_wal(survey: Survey, side: Side) -> list[Spot]:
    """Find what keeps write-ahead log on the disk."""
    rows = await survey.session(side).fetch_all("checks_servers", "find_kept_wal")
    return [
        Spot(
            f"on the {side}, write-ahead log is kept for {row.keeper}"
            + (f": {format_bytes(row.bytes)} so far" if row.bytes is not None else "")
        )
        for row in rows
    ]


async def see_timeouts(survey: Survey, side: Side) -> list[Spot]:
    """Find roles whose writes would not live through the pause."""
    pause = survey.config.limits.max_pause_seconds
    rows = await survey.session(side).fetch_all(
        "readiness", "find_short_timeouts", round(pause * 1000)
    )
    return [
        Spot(
            f"on the {side}, {row.role_name} has {row.setting}: its writes would fail in a pause "
            f"of {pause:g} s"
        )
        for row in rows
    ]


async def see_long_transactions(survey: Survey, side: Side) -> list[Spot]:
    """Find transactions that have been open for longer than we wait for a lock."""
    session, limit = survey.session(side), survey.config.limits.lock_timeout_seconds
    rows = await session.fetch_all("checks_servers", "find_long_transactions", limit)
    if not rows:
        hidden = await session.fetch_one("checks_servers", "count_hidden_sessions")
        if hidden.sessions:
            raise Refused(
                f"The {side} hides from our role what {hidden.sessions} sessions of others do "
                "(GRANT pg_read_all_stats TO our role)"
            )
    return [
        Spot(f"on the {side}, {row.holder}: open for {format_seconds(row.age_seconds)}")
        for row in rows
    ]


async def see_prepared(survey: Survey, side: Side) -> list[Spot]:
    """Find prepared transactions that hold locks on the tables."""
    rows = await survey.fetch_parts(side, "readiness", "find_prepared")
    return [
        Spot(
            f"on the {side}, prepared transaction {row.gid} has held a lock on {row.relation} for "
            f"{format_seconds(row.age_seconds)}"
        )
        for row in rows
    ]


async def see_event_triggers(survey: Survey, side: Side) -> list[Spot]:
    """Find event triggers, which our DDL fires."""
    rows = await survey.session(side).fetch_all("checks_servers", "find_event_triggers")
    names = [row.name for row in rows]
    return [Spot(f"on the {side}: {name_some(names)}")] if names else []


async def see_maintenance(survey: Survey, side: Side) -> list[Spot]:
    """Find a VACUUM or its like at work on the tables."""
    rows = await survey.fetch_parts(side, "checks_servers", "find_maintenance")
    return [
        Spot(f"on the {side}, {row.holder} is at work on {row.relation}: {row.query}".rstrip(": "))
        for row in rows
    ]


async def see_writers(survey: Survey, side: Side) -> list[Spot]:
    """Find who writes to the tables, and who may."""
    rows = await survey.fetch_parts(side, "checks_servers", "find_writers")
    spots = [
        Spot(
            f"writing to the {side}'s tables at this moment: {row.role_name} ({row.application}), "
            f"sessions: {row.sessions}"
        )
        for row in rows
    ]
    roles = await survey.fetch_parts(side, "checks_servers", "find_permitted_writers")
    if roles:
        names = name_some([row.role_name for row in roles], 10)
        spots.append(Spot(f"may write to the {side}'s tables: {names}, and superusers"))
    return spots


async def read_sizes(survey: Survey, side: Side) -> Mapping[int, tuple[int, int]]:
    """Return bytes and estimated rows of each table that is there, by its oid."""
    return await survey.once("sizes", side, lambda: _read_sizes(survey, side))


async def _read_sizes(survey: Survey, side: Side) -> Mapping[int, tuple[int, int]]:
    parts = await survey.parts(side)
    roots = {part.name: part.oid for part in parts if part.is_root}
    rows = await survey.fetch_parts(
        side, "checks_servers", "read_sizes", [roots[part.root] for part in parts]
    )
    return {row.table_oid: (row.bytes, row.rows) for row in rows}


def describe_room(sizes: Sequence[int]) -> Spot:
    """Say how much room the tables need, and how long it may take to bring them."""
    total = sum(sizes)
    low, high = estimate_seconds(total)
    return Spot(
        f"the family takes {format_bytes(total)} on the monolith, indexes included; the service "
        f"needs as much, and while the copy runs about as much again for write-ahead log; "
        f"the copy may take ~{format_seconds(low)} to ~{format_seconds(high)}"
    )


# Of rows and indexes together; what the slow end stands for is a small server with a network disk.
FAST_BYTES_PER_SECOND = 60 * 2**20
SLOW_BYTES_PER_SECOND = 6 * 2**20


def estimate_seconds(size: int) -> tuple[float, float]:
    """Return how long a copy may take, at best and with bad luck."""
    return size / FAST_BYTES_PER_SECOND, size / SLOW_BYTES_PER_SECOND


async def see_room(survey: Survey, side: Side) -> list[Spot]:
    """Tell how much room is needed."""
    sizes = await read_sizes(survey, side)
    return [describe_room([size for size, _ in sizes.values()])] if sizes else []
