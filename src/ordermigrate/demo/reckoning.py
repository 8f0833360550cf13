"""The story's end: the writers stop, sync drains, and every acknowledged write is looked for.

This comparison is the demo's own: of the writers' orders it knows what was acknowledged, and it
asks the service for them with a query of its own. Nothing of ordermigrate's validation is in it.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Mapping

from ordermigrate import change_logs, meters
from ordermigrate.control import Session
from ordermigrate.demo import moving
from ordermigrate.demo.scene import Scene, count_orders, format_moment
from ordermigrate.demo.traffic import State
from ordermigrate.errors import OrdermigrateError, Unavailable
from ordermigrate.model import Side

_ASKED_AT_ONCE = 5000
_SHOWN = 5
_LOOK_SECONDS = 0.05
_PATIENCE_SECONDS = 60.0


async def reckon(scene: Scene) -> None:
    """Stop the writers, let sync drain, and look for every acknowledged write on the service.

    Raises:
        OrdermigrateError: A write is not there.

    """
    narrator, traffic = scene.narrator, scene.traffic
    narrator.step("Every write, counted")
    narrator.say(
        "The writers stop now, and sync applies the rest. What was acknowledged to them is then",
        "looked for on the service, by the demo itself: each of their orders has to be as the last",
        "write to it left it, and no order may be there that was not placed.",
    )
    await traffic.stop()
    seconds = await _drain(scene)
    service = await scene.open(Side.SERVICE)
    try:
        lost = await find_lost(service, traffic.states)
        there = (await service.fetch_one("story", "count_orders")).orders
    finally:
        await service.close()
    wanted = scene.rows + traffic.placed - traffic.deleted
    narrator.figures(
        {
            "drained": f"{meters.format_seconds(seconds)} after the last write",
            "writes": f"{traffic.writes:,} acknowledged, to {count_orders(len(traffic.states))}",
            "lost": f"{len(lost):,}",
            "orders": f"{there:,} on the service: {scene.rows:,} + {traffic.placed:,} placed "
            f"- {traffic.deleted:,} deleted" + ("" if there == wanted else f" would be {wanted:,}"),
        }
    )
    for each in lost[:_SHOWN]:
        narrator.row(each)
    if lost or there != wanted:
        raise OrdermigrateError(
            f"The last write to {count_orders(len(lost))} is not on the service, "
            f"which has {there:,} orders",
            wanted=f"Every acknowledged write, and {wanted:,} orders",
            todo="Report this as a bug, with the output above",
        )


async def _drain(scene: Scene) -> float:
    """Wait until nothing is waiting on the monolith, end sync, and return how long it took."""
    began = time.monotonic()
    monolith = await scene.open(Side.MONOLITH)
    try:
        logs = await change_logs.read_all(monolith)
        while (backlog := (await moving.measure(monolith, logs))[0]) > 0:
            if time.monotonic() - began > _PATIENCE_SECONDS:
                raise Unavailable(
                    f"{backlog:,} changes are still waiting {_PATIENCE_SECONDS:g} s after the "
                    "last write",
                    wanted="None",
                    todo="Run the demo when the machine has less to do",
                )
            await asyncio.sleep(_LOOK_SECONDS)
    finally:
        await monolith.close()
    seconds = time.monotonic() - began
    scene.is_synced.set()
    await scene.has_synced.wait()
    return seconds


async def find_lost(service: Session, states: Mapping[uuid.UUID, State]) -> list[str]:
    """Name each order that the service does not have as it was acknowledged last."""
    keys, lost = list(states), []
    for first in range(0, len(keys), _ASKED_AT_ONCE):
        asked = keys[first : first + _ASKED_AT_ONCE]
        rows = await service.fetch_all("story", "read_written_orders", asked)
        found: dict[uuid.UUID, State] = {row.id: (row.status, row.reference) for row in rows}
        lost += [
            f"{key}: {_say(states[key])} was acknowledged, {_say(found.get(key))} is there"
            for key in asked
            if found.get(key) != states[key]
        ]
    return lost


def _say(state: State) -> str:
    return "no order" if state is None else " by write ".join(state)


def sum_up(scene: Scene, seconds: float) -> None:
    """Say in three sentences what was seen."""
    narrator, traffic = scene.narrator, scene.traffic
    rounds = scene.synced.rounds if scene.synced else 0
    narrator.step("What you have seen")
    narrator.say(
        f"{count_orders(scene.rows)} ({meters.format_bytes(scene.bytes)}) went from one",
        f"PostgreSQL server to another in {meters.format_seconds(scene.copy_seconds)}, indexes",
        f"included, while the application wrote on: {traffic.writes:,} writes in all, none",
        f"refused, none lost, and the longest took {format_moment(traffic.longest_seconds)}.",
        f"{rounds:,} {'round' if rounds == 1 else 'rounds'} of sync kept the service in step,",
        f"{meters.format_seconds(scene.lag_seconds)} behind at the most whenever we looked.",
        f"All was proved equal in {meters.format_seconds(scene.proof_seconds)} under fire; a write",
        "to the service was refused, and one wrong digit there was found, named and mended.",
    )
    narrator.say(
        "Still to come: cutover, the way back, and leading the application's traffic over."
    )
    narrator.figures(
        {
            "the whole demo": meters.format_seconds(seconds),
            "read on": "docs/tutorial.md: the same on your own two databases, in ten minutes",
            "": "docs/how-it-works.md: why each step is safe, what each check can see",
            " ": "docs/what-if.md: what happens when something breaks",
        }
    )
