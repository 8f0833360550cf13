"""The story's end: the writers stop, sync drains, and every acknowledged write is looked for.

This comparison is the demo's own: of the writers' orders it knows what was acknowledged, and it
asks both sides for them with a query of its own. Nothing of ordermigrate's validation is in it.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Mapping

from ordermigrate import change_logs, meters
from ordermigrate.control import Session
from ordermigrate.demo.scene import Scene, count_orders, format_moment
from ordermigrate.demo.traffic import State
from ordermigrate.errors import OrdermigrateError, Unavailable
from ordermigrate.model import Side

_ASKED_AT_ONCE = 5000
_SHOWN = 5
_LOOK_SECONDS = 0.05
_PATIENCE_SECONDS = 60.0


async def reckon(scene: Scene) -> None:
    """Stop the writers, let sync drain, and look for every acknowledged write on both sides.

    Raises:
        OrdermigrateError: A write is not there.

    """
    narrator, traffic = scene.narrator, scene.traffic
    narrator.step("Every write, counted")
    narrator.say(
        "The writers stop now, and sync applies the rest. What was acknowledged to them, by",
        "whichever side, is looked for on the service, which owns the orders, and on the monolith,",
        "which could have them back: each of their orders has to be as the last write to it left",
        "it, and no order may be there that was not placed.",
    )
    await traffic.stop()
    seconds = await _drain(scene)
    wanted = scene.rows + traffic.placed - traffic.deleted
    lost = {side: await _look_for_writes(scene, side) for side in (Side.SERVICE, Side.MONOLITH)}
    narrator.figures(
        {
            "drained": f"{meters.format_seconds(seconds)} after the last write",
            "writes": f"{traffic.writes:,} acknowledged, to {count_orders(len(traffic.states))}",
            "orders": f"{wanted:,}: {scene.rows:,} + {traffic.placed:,} placed "
            f"- {traffic.deleted:,} deleted",
        }
        | {
            side.value: f"{len(missing):,} lost; {count_orders(there)}"
            for side, (missing, there) in lost.items()
        }
    )
    for side, (missing, there) in lost.items():
        for each in missing[:_SHOWN]:
            narrator.row(each)
        if missing or there != wanted:
            raise OrdermigrateError(
                f"The last write to {count_orders(len(missing))} is not on the {side}, "
                f"which has {there:,} orders",
                wanted=f"Every acknowledged write, and {wanted:,} orders",
                todo="Report this as a bug, with the output above",
            )


async def _look_for_writes(scene: Scene, side: Side) -> tuple[list[str], int]:
    """Return the orders whose last write a side does not have, and how many it has in all."""
    session = await scene.open(side)
    try:
        lost = await find_lost(session, scene.traffic.states)
        return lost, (await session.fetch_one("story", "count_orders")).orders
    finally:
        await session.close()


async def _drain(scene: Scene) -> float:
    """Wait until nothing is waiting on the owner, end sync, and return how long it took."""
    began = time.monotonic()
    owner = await scene.open(scene.traffic.sides[0])
    try:
        logs = await change_logs.read_all(owner)
        while (backlog := (await change_logs.measure_all(owner, logs)).changes) > 0:
            if time.monotonic() - began > _PATIENCE_SECONDS:
                raise Unavailable(
                    f"{backlog:,} changes are still waiting {_PATIENCE_SECONDS:g} s after the "
                    "last write",
                    wanted="None",
                    todo="Run the demo when the machine has less to do",
                )
            await asyncio.sleep(_LOOK_SECONDS)
    finally:
        await owner.close()
    seconds = time.monotonic() - began
    scene.is_synced.set()
    await scene.has_synced.wait()
    return seconds


async def find_lost(session: Session, states: Mapping[uuid.UUID, State]) -> list[str]:
    """Name each order that a side does not have as it was acknowledged last."""
    keys, lost = list(states), []
    for first in range(0, len(keys), _ASKED_AT_ONCE):
        asked = keys[first : first + _ASKED_AT_ONCE]
        rows = await session.fetch_all("story", "read_written_orders", asked)
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
    told = [format_moment(pause) for pause, _ in scene.pauses]
    narrator.step("What you have seen")
    narrator.say(
        f"{traffic.writes:,} writes were acknowledged to the application while",
        f"{count_orders(scene.rows)} went from the monolith to the service, back, and there again.",
        "0 of them were lost: each was looked for on the owner, and on the side that could become",
        "it.",
        f"The pauses in which nobody could write took {', '.join(told[:-1])} and {told[-1]};",
        "by the writers' own clock, their reconnecting included, it was "
        f"{format_moment(max(silence for _, silence in scene.pauses))} at the most.",
    )
    narrator.figures(
        {
            "the whole demo": meters.format_seconds(seconds),
            "read on": "docs/tutorial.md: the same on your own two databases, in ten minutes",
            "": "docs/how-it-works.md: why each step is safe, what each check can see",
            " ": "docs/what-if.md: what happens when something breaks",
        }
    )
