"""The story that `ordermigrate demo` tells: orders leave a monolith, whose application writes on.

Promise: what is shown is what happened. The verbs are the product's own, the figures are those
of this run; if the proof fails to find what was planted, or a write is lost, the demo fails.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Mapping

from ordermigrate import db, meters, queries
from ordermigrate.demo import changing, moving, proof, reckoning
from ordermigrate.demo.databases import (
    FAMILY,
    VARIABLES,
    find_lent,
    open_databases,
)
from ordermigrate.demo.narrator import Narrator
from ordermigrate.demo.scene import USERS, Listen, Scene, Silence, count_orders
from ordermigrate.demo.traffic import Traffic
from ordermigrate.errors import OrdermigrateError
from ordermigrate.families import find_family
from ordermigrate.model import Side
from ordermigrate.progress import Reporter
from ordermigrate.together import run_together

SEED = 1
_BATCH = 10_000
# While the databases are kept: enough to see them move, for as long as somebody looks.
_GENTLE_WRITES_PER_SECOND = 20.0


async def tell(
    rows: int,
    environ: Mapping[str, str],
    listen: Listen,
    *,
    aside: Reporter | None = None,
    is_kept: bool = False,
) -> None:
    """Tell the whole story, from two empty servers to their end.

    Args:
        rows: How many orders the monolith has.
        environ: Where servers to be lent are looked for (`databases.VARIABLES`).
        listen: Opens a reporter of progress, once for each verb.
        aside: Whom sync tells, behind the others; nobody if left out.
        is_kept: Whether to leave the servers running until the user ends them.

    Raises:
        OrdermigrateError: No servers can be had, a verb fails, or the proof does not hold.

    """
    lent = find_lent(environ)
    narrator = Narrator()
    started = time.monotonic()
    narrator.title(f"{count_orders(rows)}, from a monolith's database into a service's own")
    narrator.say(
        "A monolith keeps its orders in a PostgreSQL database. A new order service is to have",
        "them in a database of its own. This demo moves them, on two real servers, while the",
        "application goes on writing, makes the service their owner, takes that back, and does it",
        "again; and proves that nothing was lost or changed.",
    )
    narrator.step("Two PostgreSQL servers")
    try:
        async with open_databases(lent) as databases:
            traffic = Traffic(databases.writers_dsns, USERS)
            scene = Scene(narrator, listen, aside or Silence(), databases, rows, traffic)
            _introduce(scene)
            await _fill(scene)
            await run_together(_move(scene), beside=[traffic.run()])
            reckoning.sum_up(scene, time.monotonic() - started)
            if is_kept:
                await _wait_for_the_end(scene)
    except OrdermigrateError:
        # Ctrl-C may have reached a program that we were running, and us a moment later.
        await asyncio.sleep(0)
        raise


async def _move(scene: Scene) -> None:
    """Tell what happens while the writers write."""
    await moving.begin_traffic(scene)
    await moving.copy(scene)
    await run_together(_keep_in_step(scene), beside=[moving.follow(scene)])


async def _keep_in_step(scene: Scene) -> None:
    """Tell what happens while sync goes on, too."""
    await moving.watch_sync(scene)
    await proof.prove(scene)
    await proof.fool(scene)
    await changing.lead_reads(scene)
    await changing.cut_over(scene)
    await changing.roll_back(scene)
    await changing.cut_over_again(scene)
    await reckoning.reckon(scene)


def _introduce(scene: Scene) -> None:
    databases, narrator = scene.databases, scene.narrator
    narrator.figures(
        {
            side.value: f"PostgreSQL {found.version_text}, database {found.database}"
            for side, found in databases.identities.items()
        }
    )
    took = meters.format_seconds(databases.seconds)
    if databases.are_lent:
        variables = " and ".join(VARIABLES.values())
        narrator.say(
            f"These are the servers that {variables} name.",
            f"The two databases were made for this demo in {took}; they will be dropped.",
        )
    else:
        narrator.say(
            f"Started just now in {took}, on this machine, for this demo alone.",
            "They end with it, and their data too.",
        )


async def _fill(scene: Scene) -> None:
    """Give the monolith its tables and rows, and show one of them."""
    narrator = scene.narrator
    narrator.step("A monolith with orders")
    folder = find_family(FAMILY)
    if folder is None:
        message = "the family was there a moment ago"
        raise AssertionError(message)
    blocks = queries.parse_blocks((folder / "generate.sql").read_text("utf-8"))
    generate = blocks["generate_orders"]
    started = time.monotonic()
    session = await scene.open(Side.MONOLITH)
    try:
        await session.run_script((folder / "monolith.sql").read_text("utf-8"))
        await session.fetch_all("story", "lift_statement_timeout")
        # The users first: two sessions that add the same ones would wait for each other.
        await session.run_long(generate, USERS, 0, SEED, 1, scene.rows)
        await _add_orders(scene, generate)
        await session.fetch_all("story", "analyze_tables")
        seconds = time.monotonic() - started
        size = await session.fetch_one("story", "measure_tables")
        order = await scene.choose_order(session, scene.rows // 2)
    finally:
        await session.close()
    narrator.figures(
        {
            "users": f"{size.users:,}",
            "orders": f"{size.orders:,}: {meters.format_bytes(size.table_bytes)}, and "
            f"{meters.format_bytes(size.index_bytes)} of indexes",
            "one of them": f"{order.order_side} {order.quantity} {order.symbol} for user "
            f"{order.user_id}, {order.status}, {order.created_at}",
            "made in": meters.format_seconds(seconds),
        }
    )
    narrator.say(
        "The orders refer to users, who stay behind. Half a year of them, as uneven as real",
        "ones: quantities with eight decimals, NULLs, empty texts, line breaks, emoji.",
    )


async def _add_orders(scene: Scene, generate: str) -> None:
    """Add all orders, a share from each of two sessions, for a machine has two cores."""
    firsts = iter(range(1, scene.rows + 1, _BATCH))
    with scene.narrator.progress("adding orders", scene.rows) as bar:

        async def add_share() -> None:
            async with db.opened(scene.databases.config, Side.MONOLITH, "demo") as session:
                await session.fetch_all("story", "lift_statement_timeout")
                for first in firsts:
                    count = min(_BATCH, scene.rows - first + 1)
                    await session.run_long(generate, USERS, count, SEED, first, scene.rows)
                    if bar is not None:
                        bar.update(bar.task_ids[0], advance=count)

        await run_together(add_share(), add_share())


async def _wait_for_the_end(scene: Scene) -> None:
    """Say how to reach the databases, and wait until the user has seen enough."""
    narrator = scene.narrator
    narrator.step("Look around")
    narrator.say(
        "The service owns the orders. The writers are back there, gently:",
        f"{_GENTLE_WRITES_PER_SECOND:g} writes a second. Nobody brings them to the monolith now;",
        "that is yours to do, or to take the orders back: the writers follow their owner. Both",
        "databases stay until you press Ctrl-C. In another terminal:",
    )
    narrator.verbatim(
        *(
            f"export ORDERMIGRATE_{side.name}_DSN='{dsn}'"
            for side, dsn in scene.databases.dsns.items()
        ),
        f"ordermigrate init --family {FAMILY}",
        "ordermigrate status",
        "ordermigrate sync --until-caught-up",
        "ordermigrate validate --checksums",
        "ordermigrate rollback --dry-run",
        "ordermigrate rollback",
        "ordermigrate cutover",
    )
    if scene.databases.are_lent:
        narrator.say("(Passwords are left out: these servers are yours.)")
    traffic = Traffic(
        scene.databases.writers_dsns, USERS, _GENTLE_WRITES_PER_SECOND, owner=Side.SERVICE
    )
    task = asyncio.current_task()
    with contextlib.suppress(asyncio.CancelledError):
        await traffic.run()
    # To be interrupted is how this is meant to end.
    if task is not None:
        task.uncancel()
    narrator.say("Done: the databases are being removed.")
