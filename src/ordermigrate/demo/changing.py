"""The story's part in which the owner changes: reads go over first, then writes, back, and again.

The pause is told twice: by the command's own clock, and by the writers', who know nothing of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from ordermigrate import migration, reads
from ordermigrate.config import Config
from ordermigrate.demo.scene import USERS, Listener, Scene, format_moment
from ordermigrate.errors import OrdermigrateError, Unavailable
from ordermigrate.model import Side
from ordermigrate.outcomes import OwnerChange
from ordermigrate.progress import Reporter

SHARES = (5, 25, 100)
# For so long the writers write at each owner before anything else happens.
_AT_OWNER_SECONDS = 1.5
_LOOK_SECONDS = 0.05
_PATIENCE_SECONDS = 30.0


async def lead_reads(scene: Scene) -> None:
    """Let more and more users read from the service."""
    narrator = scene.narrator
    narrator.step("Reads go over first")
    narrator.say(
        "Writes stay where they are. Whose reads go to the service is decided by a hash of the",
        "user's key, so a user stays where he is; the application asks a small client.",
    )
    narrator.command(
        f"for share in {' '.join(map(str, SHARES))}; do ordermigrate traffic $share; done"
    )
    for share in SHARES:
        with scene.listen() as reporter:
            await migration.show_or_set_traffic(scene.databases.config, reporter, share)
        narrator.row(f"{share:>3} %  {await _count_readers(scene)}")


async def _count_readers(scene: Scene) -> str:
    """Ask the client of each user, as the monolith's application would."""
    ask = reads.ask_database(scene.databases.config.dsn(Side.MONOLITH))

    def count() -> int:
        client = reads.Reads(ask)
        return sum(client.reads_from_service(str(user)) for user in range(1, USERS + 1))

    return f"{await asyncio.to_thread(count):>5,} of {USERS:,} users read from the service"


async def cut_over(scene: Scene) -> None:
    """Make the service the owner, and let it take the writes."""
    scene.narrator.step("Cutover: the service becomes the owner")
    scene.narrator.say(
        "For a moment the writers wait; the last round is brought over and verified; the monolith",
        "fences its orders off, and the service opens. Nobody has told the writers. The monolith",
        "refuses their next write with an error that names the new owner; so they connect there,",
        "and try it again.",
    )
    scene.narrator.figures(await _change(scene, "cutover", migration.cutover, Side.SERVICE))


async def roll_back(scene: Scene) -> None:
    """Make the monolith the owner again, with all that the service has taken."""
    scene.narrator.step("Rollback: the monolith has them back")
    scene.narrator.say(
        "The service captures its writes, and sync, still running, has turned round by itself:",
        "what the service took went to the monolith all the time. So the way back is the same",
        "command in the other direction.",
    )
    figures = await _change(scene, "rollback", migration.rollback, Side.MONOLITH)
    figures["reads"] = (await _count_readers(scene)).strip()
    scene.narrator.figures(figures)


async def cut_over_again(scene: Scene) -> None:
    """Make the service the owner once more."""
    scene.narrator.step("Cutover again")
    scene.narrator.figures(await _change(scene, "cutover", migration.cutover, Side.SERVICE))


async def _change(
    scene: Scene,
    command: str,
    verb: Callable[[Config, Reporter], Awaitable[OwnerChange]],
    owner: Side,
) -> dict[str, str]:
    """Change the owner, wait until all writers have followed, and return both clocks' figures."""
    traffic = scene.traffic
    scene.narrator.command(f"ordermigrate {command}")
    traffic.take_stretch()
    with scene.listen() as reporter:
        done = await verb(scene.databases.config, Listener(reporter))
    await _await_writers(scene, owner)
    around = traffic.take_stretch()
    if done.pause_seconds is None or done.owner != owner:
        raise OrdermigrateError(
            f"The {done.owner} owns the orders after `ordermigrate {command}` ({done.outcome})",
            wanted=f"The {owner}",
            todo="Report this as a bug, with the output above",
        )
    scene.pauses.append((done.pause_seconds, around.silence_seconds))
    await asyncio.sleep(_AT_OWNER_SECONDS)
    return {
        "pause": f"{format_moment(done.pause_seconds)} at the most by the command's clock; by the "
        f"writers', {format_moment(around.silence_seconds)} without an acknowledged write",
        "refused": f"{around.refused} writes by the {owner.other}, all done on the {owner} then",
        "since then": scene.describe_traffic(),
    }


async def _await_writers(scene: Scene, owner: Side) -> None:
    """Wait until every writer writes to the new owner."""
    try:
        async with asyncio.timeout(_PATIENCE_SECONDS):
            while any(side is not owner for side in scene.traffic.sides):  # noqa: ASYNC110
                await asyncio.sleep(_LOOK_SECONDS)
    except TimeoutError as late:
        raise Unavailable(
            f"After {_PATIENCE_SECONDS:g} s some writers have not found the {owner}",
            wanted="All of them where the orders are owned",
            todo="Run the demo when the machine has less to do",
        ) from late
