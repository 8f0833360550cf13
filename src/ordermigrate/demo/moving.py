"""The story's part in which the orders move: the writers begin, copy, and sync."""

from __future__ import annotations

import asyncio
import time

from ordermigrate import change_logs, meters, migration
from ordermigrate.change_logs import ChangeLog
from ordermigrate.control import Session
from ordermigrate.demo.scene import Listener, Scene
from ordermigrate.demo.traffic import WRITERS
from ordermigrate.errors import Unavailable
from ordermigrate.model import Side

_BEFORE_SECONDS = 1.5
_LOOK_SECONDS = 0.25
_ROW_SECONDS = 0.5
_LONGEST_PAUSE = 5.0
_ROWS_IN_STEP = 5
_PATIENCE_SECONDS = 120.0
_IN_STEP_SECONDS = 1.0


async def begin_traffic(scene: Scene) -> None:
    """Wait until the writers write, and tell of them."""
    narrator, traffic = scene.narrator, scene.traffic
    narrator.step("An application that does not stop")
    await traffic.begin()
    await asyncio.sleep(_BEFORE_SECONDS)
    adopted = len(traffic.adopted)
    narrator.say(
        f"From now to the end, {WRITERS} writers are the application: they place",
        "orders, move them on, cancel some, now and then delete one"
        + (f"; {adopted:,} old ones are among them." if adopted else "."),
        "What the database acknowledges to them is remembered.",
    )
    narrator.figures({"writers": scene.describe_traffic()})


async def copy(scene: Scene) -> None:
    """Copy every row while they write."""
    narrator = scene.narrator
    narrator.step("Copy, while they write")
    narrator.say(
        "First, triggers on the monolith begin to note the key of every order that is written,",
        "and a fence keeps everybody but us off the service's table. Then all rows are read as of",
        "one moment, in pieces, and their bytes go straight into the service. A piece and the",
        "note that it has arrived are committed together: killed at any point, the copy goes on",
        "where it stopped. Indexes are built afterwards, which is faster.",
    )
    narrator.command("ordermigrate copy")
    scene.traffic.take_stretch()
    with scene.listen() as reporter:
        listener = Listener(reporter)
        done = await migration.copy(scene.databases.config, listener)
    if listener.rows is None:
        message = "a copy without rows"
        raise AssertionError(message)
    load = listener.rows
    narrator.figures(
        {
            "rows": f"{load.rows:,} in {meters.format_seconds(load.seconds)}, "
            f"{load.rows / load.seconds:,.0f} rows/s, "
            f"{meters.format_bytes(load.bytes / load.seconds)}/s",
            "indexes": f"{listener.built} built, statistics gathered",
            "all in all": meters.format_seconds(done.seconds),
            "meanwhile": scene.describe_traffic(),
        }
    )


async def follow(scene: Scene) -> None:
    """Keep the service in step from `scene.may_follow` to `scene.is_synced`, beside the rest."""
    await scene.may_follow.wait()
    await migration.sync(scene.databases.config, scene.aside, scene.is_synced)
    scene.has_synced.set()


async def watch_sync(scene: Scene) -> None:
    """Have sync begin, and show how backlog and lag fall, and how they stay.

    Raises:
        Unavailable: The service does not catch up.

    """
    narrator = scene.narrator
    narrator.step("Sync: catch up, and keep in step")
    narrator.say(
        "What they wrote since that moment waits in the monolith's change log. Sync takes keys",
        "off it, reads these rows as they are now, and writes them to the service, round after",
        "round, for as long as it is left running. The backlog is what waits; the lag is how long",
        "the oldest of it has waited.",
    )
    narrator.command("ordermigrate sync")
    monolith = await scene.open(Side.MONOLITH)
    try:
        took, lag = await _watch(scene, monolith, await change_logs.read_all(monolith))
    finally:
        await monolith.close()
    narrator.say(
        f"In step after {meters.format_seconds(took)}; since then, whenever we looked,",
        f"{meters.format_seconds(lag)} behind at the most. It goes on beside us, to the end.",
    )
    narrator.figures({"meanwhile": scene.describe_traffic()})


async def _watch(scene: Scene, monolith: Session, logs: list[ChangeLog]) -> tuple[float, float]:
    """Show a row now and then; return when the service was in step, and its longest lag since."""
    began, longest = time.monotonic(), 0.0
    took: float | None = None
    before: float | None = None
    due, pause, rows_in_step = 0.0, _ROW_SECONDS, 0
    with scene.narrator.moving_row() as move:
        while rows_in_step < _ROWS_IN_STEP:
            backlog = await change_logs.measure_all(monolith, logs)
            lag = backlog.age_seconds
            scene.may_follow.set()
            passed = time.monotonic() - began
            said = f"backlog {backlog.changes:>7,}  lag {meters.format_seconds(lag):>6}"
            # A lag that only grows is short before sync has done anything, too.
            has_fallen = before is not None and (lag < before or not lag)
            if took is None and has_fallen and lag < _IN_STEP_SECONDS:
                took, due, pause = passed, passed, _ROW_SECONDS
            before = lag
            if took is not None:
                longest = max(longest, lag)
            elif passed > _PATIENCE_SECONDS:
                raise _explain_delay(backlog.changes, passed)
            move(said)
            if passed >= due:
                scene.narrator.row(f"{meters.format_seconds(passed):>7}  {said}")
                rows_in_step += took is not None
                due = passed + pause
                pause = min(pause * 1.5, _LONGEST_PAUSE) if took is None else _ROW_SECONDS
            await asyncio.sleep(_LOOK_SECONDS)
    return took or 0.0, longest


def _explain_delay(backlog: int, seconds: float) -> Unavailable:
    return Unavailable(
        f"After {meters.format_seconds(seconds)} of sync, {backlog:,} changes are still waiting",
        wanted=f"A lag of less than {_IN_STEP_SECONDS:g} s",
        todo="Run the demo when the machine has less to do, or with fewer --rows",
    )
