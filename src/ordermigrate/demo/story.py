"""The story that `ordermigrate demo` tells: orders leave a monolith, and the proof is put to proof.

Promise: what is shown is what happened. The verbs are the product's own, the figures are those
of this run, and if the proof fails to find what was planted, the demo fails.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ordermigrate import console, db, meters, migration, outcomes, progress, queries
from ordermigrate.control import Session
from ordermigrate.demo.databases import (
    FAMILY,
    VARIABLES,
    Databases,
    find_lent,
    open_databases,
)
from ordermigrate.demo.narrator import Narrator
from ordermigrate.digest import Algorithm
from ordermigrate.errors import OrdermigrateError
from ordermigrate.families import find_family
from ordermigrate.model import Side
from ordermigrate.outcomes import Validation
from ordermigrate.progress import Event, Reporter

USERS = 1000
SEED = 1
_BATCH = 20_000

Listen = Callable[[], contextlib.AbstractContextManager[Reporter]]


@dataclass(slots=True)
class _Story:
    """Who tells it, who listens, where it happens, and what has been measured so far."""

    narrator: Narrator
    listen: Listen
    databases: Databases
    rows: int
    bytes: int = 0
    copy_seconds: float = 0.0
    proof_seconds: float = 0.0
    indexes: int = 0

    async def open(self, side: Side) -> Session:
        """Open a session on one side."""
        return await db.connect(self.databases.config, side, "demo")


def _count(rows: int) -> str:
    return f"{rows:,} {'order' if rows == 1 else 'orders'}"


class _Listener:
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
        if not isinstance(event, progress.CheckFinished):  # the tables below tell of these
            self._reporter.report(event)


async def tell(
    rows: int, environ: Mapping[str, str], listen: Listen, *, is_kept: bool = False
) -> None:
    """Tell the whole story, from two empty servers to their end.

    Args:
        rows: How many orders the monolith has.
        environ: Where servers to be lent are looked for (`databases.VARIABLES`).
        listen: Opens a reporter of progress, once for each verb.
        is_kept: Whether to leave the servers running until the user ends them.

    Raises:
        OrdermigrateError: No servers can be had, a verb fails, or the proof does not hold.

    """
    lent = find_lent(environ)
    narrator = Narrator()
    started = time.monotonic()
    narrator.title(f"{_count(rows)}, from a monolith's database into a service's own")
    narrator.say(
        "A monolith keeps its orders in a PostgreSQL database. A new order service is to have",
        "them in a database of its own. This demo moves them, on two real servers, and proves",
        "that none was lost or changed.",
    )
    narrator.step("Two PostgreSQL servers")
    try:
        async with open_databases(lent) as databases:
            story = _Story(narrator, listen, databases, rows)
            await _tell_on(story)
            _sum_up(story, time.monotonic() - started)
            if is_kept:
                await _wait_for_the_end(story)
    except OrdermigrateError:
        # Ctrl-C may have reached a program that we were running, and us a moment later.
        await asyncio.sleep(0)
        raise


async def _tell_on(story: _Story) -> None:
    _introduce(story)
    await _fill(story)
    await _copy(story)
    await _prove(story)
    await _fool(story)


def _introduce(story: _Story) -> None:
    databases, narrator = story.databases, story.narrator
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


async def _fill(story: _Story) -> None:
    """Give the monolith its tables and rows, and show one of them."""
    narrator = story.narrator
    narrator.step("A monolith with orders")
    folder = find_family(FAMILY)
    if folder is None:
        message = "the family was there a moment ago"
        raise AssertionError(message)
    generate = queries.parse_blocks((folder / "generate.sql").read_text("utf-8"))
    started = time.monotonic()
    session = await story.open(Side.MONOLITH)
    try:
        await session.run_script((folder / "monolith.sql").read_text("utf-8"))
        await session.fetch_all("story", "lift_statement_timeout")
        with narrator.progress("adding orders", story.rows) as bar:
            for first in range(1, story.rows + 1, _BATCH):
                count = min(_BATCH, story.rows - first + 1)
                await session.run_long(
                    generate["generate_orders"], USERS, count, SEED, first, story.rows
                )
                if bar is not None:
                    bar.update(bar.task_ids[0], advance=count)
        await session.fetch_all("story", "analyze_tables")
        seconds = time.monotonic() - started
        size = await session.fetch_one("story", "measure_tables")
        order = await _choose_order(session, story.rows)
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


async def _choose_order(session: Session, rows: int) -> Any:  # noqa: ANN401  a row of choose_order
    return await session.fetch_one("story", "choose_order", rows // 2)


async def _copy(story: _Story) -> None:
    narrator = story.narrator
    narrator.step("Copy")
    narrator.say(
        "All rows are read as of one moment, in pieces, and their bytes go straight into the",
        "service's empty table. A piece and the note that it has arrived are committed",
        "together: killed at any point, the copy goes on where it stopped. Indexes are built",
        "afterwards, which is faster. --offline promises that nobody writes meanwhile; the",
        "promise is checked.",
    )
    narrator.command("ordermigrate copy --offline")
    with story.listen() as reporter:
        listener = _Listener(reporter)
        done = await migration.copy(story.databases.config, listener)
    if listener.rows is None:
        message = "a copy without rows"
        raise AssertionError(message)
    load, story.indexes = listener.rows, listener.built
    story.bytes, story.copy_seconds = load.bytes, done.seconds
    narrator.figures(
        {
            "rows": f"{load.rows:,} in {meters.format_seconds(load.seconds)}, "
            f"{load.rows / load.seconds:,.0f} rows/s, "
            f"{meters.format_bytes(load.bytes / load.seconds)}/s",
            "indexes": f"{listener.built} built, statistics gathered",
            "all in all": meters.format_seconds(done.seconds),
        }
    )


async def _prove(story: _Story) -> None:
    narrator = story.narrator
    narrator.step("Prove it")
    narrator.say(
        "Equal row counts prove little. Both databases compute an MD5 of every row, all",
        "columns, at the same time; the sums are compared. A few questions that people would",
        "ask are answered beside that.",
    )
    done = await _validate(story)
    _require(done, is_equal=True)
    story.proof_seconds = done.verdict.seconds
    console.show_verdict(_document(done))
    narrator.say(
        f"Equal: {_count(story.rows)}, every column,",
        f"in {meters.format_seconds(done.verdict.seconds)}.",
    )


async def _fool(story: _Story) -> None:
    """Plant one wrong digit, see it found, mend it, see that."""
    narrator = story.narrator
    narrator.step("Try to fool it")
    service = await story.open(Side.SERVICE)
    try:
        order = await _choose_order(service, story.rows // 2)
        changed = await service.fetch_one("story", "change_last_digit", order.id)
        narrator.say(
            "A proof that never says no is worth nothing. So one digit of one order is changed",
            "on the service, behind the tool's back: the eighth decimal of its quantity.",
        )
        narrator.figures({"order": order.id, "was": order.quantity, "is": changed.quantity})
        found = await _validate(story)
        _require(found, is_equal=False)
        console.show_differences(_document(found))
        narrator.say(
            "Found: key, column and both values, in",
            f"{meters.format_seconds(found.verdict.seconds)}. The command line exits with 4.",
        )
        narrator.step("Mend it, and prove again")
        await service.fetch_all("story", "mend_quantity", order.id, order.quantity)
        narrator.say("The digit is put back.")
    finally:
        await service.close()
    done = await _validate(story)
    _require(done, is_equal=True)
    narrator.say(
        f"Equal again: {_count(story.rows)}, in",
        f"{meters.format_seconds(done.verdict.seconds)}. The command line exits with 0.",
    )


async def _validate(story: _Story) -> Validation:
    story.narrator.command("ordermigrate validate --checksums")
    with story.listen() as reporter:
        return await migration.validate(
            story.databases.config,
            _Listener(reporter),
            algorithm=Algorithm.MD5,
            max_differences=20,
        )


def _require(done: Validation, *, is_equal: bool) -> None:
    differences = [each for table in done.verdict.tables for each in table.differences]
    if done.verdict.is_equal is not is_equal or len(differences) != (0 if is_equal else 1):
        raise OrdermigrateError(
            f"The validation found {len(differences)} differing rows",
            wanted="None" if is_equal else "Exactly the one that was planted",
            todo="Report this as a bug, with the output above",
        )


def _document(done: Validation) -> dict[str, Any]:
    return {
        "tables": [outcomes.describe_table(each) for each in done.verdict.tables],
        "notes": list(done.verdict.notes),
    }


def _sum_up(story: _Story, seconds: float) -> None:
    narrator = story.narrator
    narrator.step("What you have seen")
    narrator.say(
        f"{_count(story.rows)} ({meters.format_bytes(story.bytes)}) went from one PostgreSQL",
        f"server to another in {meters.format_seconds(story.copy_seconds)}, indexes and keys",
        "included.",
        f"All were proved equal on both sides in {meters.format_seconds(story.proof_seconds)},",
        "and one wrong digit among them was found and named.",
        "This version copies tables that nobody writes to: capturing writes, cutover and the way",
        "back are still to come.",
    )
    narrator.figures(
        {
            "the whole demo": meters.format_seconds(seconds),
            "read on": "docs/tutorial.md: the same on your own two databases, in ten minutes",
            "": "docs/how-it-works.md: why each step is safe, what each check can see",
            " ": "docs/what-if.md: what happens when something breaks",
        }
    )


async def _wait_for_the_end(story: _Story) -> None:
    """Say how to reach the databases, and wait until the user has seen enough."""
    narrator = story.narrator
    narrator.step("Look around")
    narrator.say("Both databases stay until you press Ctrl-C. In another terminal:")
    narrator.verbatim(
        *(
            f"export ORDERMIGRATE_{side.name}_DSN='{dsn}'"
            for side, dsn in story.databases.dsns.items()
        ),
        f"ordermigrate init --family {FAMILY}",
        "ordermigrate status",
    )
    if story.databases.are_lent:
        narrator.say("(Passwords are left out: these servers are yours.)")
    task = asyncio.current_task()
    with contextlib.suppress(asyncio.CancelledError):
        await asyncio.Event().wait()
    # To be interrupted is how this is meant to end.
    if task is not None:
        task.uncancel()
    narrator.say("Done: the databases are being removed.")
