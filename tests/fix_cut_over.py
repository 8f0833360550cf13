"""A migration whose owner is the service, or the monolith again: the one place that makes it so.

It does what a cutover leaves behind, by the product's own fence, capture and ledger: the side rows,
the phase, the triggers of both kinds on both sides, what was off on the service back. Nobody writes
meanwhile, so there is nothing to freeze.
"""

# ruff: noqa: S608  the statements are the test's own

from __future__ import annotations

import asyncio

from ordermigrate import capture, catalog, fence, indexes, ledger, sides
from ordermigrate.control import Session
from ordermigrate.model import Side, Table
from tests.fix_pairs import Pair
from tests.fix_postgres import execute
from tests.integration import ground

MONTHS = "60 days"
_RECORDED = """
CREATE TABLE ordermigrate.recorded_object (table_name text, kind text, object_name text,
    definition jsonb NOT NULL, weight float8 NOT NULL DEFAULT 0, state text NOT NULL,
    changed_at timestamptz DEFAULT now(), PRIMARY KEY (table_name, kind, object_name))
"""


def cut_over(pair: Pair, *, ago: str = MONTHS, is_proved: bool = True) -> Pair:
    """Make the service the owner, so long ago; prove every row equal now."""
    asyncio.run(_change_owner(pair, Side.SERVICE))
    pair.on_service(
        "INSERT INTO ordermigrate.phase_change (run, old_phase, new_phase, command) "
        "SELECT run, phase, 'cut_over', 'cutover' FROM ordermigrate.run; "
        "UPDATE ordermigrate.run SET phase = 'cut_over', "
        f"phase_since = clock_timestamp() - interval '{ago}'"
    )
    if is_proved:
        prove(pair)
    return pair


def roll_back(pair: Pair) -> Pair:
    """Make the monolith the owner again."""
    asyncio.run(_change_owner(pair, Side.MONOLITH))
    pair.on_service("UPDATE ordermigrate.run SET phase = 'syncing'")
    return pair


def prove(
    pair: Pair, *, verdict: str = "equal", algorithm: str | None = "md5", ago: str = "0"
) -> None:
    """Put a validation on record."""
    asyncio.run(_prove(pair, verdict, algorithm))
    pair.on_service(f"UPDATE ordermigrate.validation SET finished_at = now() - interval '{ago}'")


async def _prove(pair: Pair, verdict: str, algorithm: str | None) -> None:
    async with ground.opened(pair.service, Side.SERVICE) as service:
        run = await ledger.read_run(service)
        assert run is not None
        standing = await ledger.read_standing(service)
        await ledger.record_validation(service, run.run, standing, verdict, algorithm, [], 1.0)


async def _change_owner(pair: Pair, owner: Side) -> None:
    async with (
        ground.opened(pair.monolith) as monolith,
        ground.opened(pair.service, Side.SERVICE) as service,
    ):
        names = {
            Side.MONOLITH: [str(table["name"]) for table in pair.tables],
            Side.SERVICE: [str(table.get("to", table["name"])) for table in pair.tables],
        }
        for session in (monolith, service):
            tables = await ground.read_tables(session, *names[session.side])
            if session.side is owner:
                await _warm_up(session, tables)
            else:
                await _cool_down(session, tables)
    for dsn, side in ((pair.monolith, Side.MONOLITH), (pair.service, Side.SERVICE)):
        is_hot = "true" if side is owner else "false"
        execute(dsn, f"UPDATE ordermigrate.side SET is_hot = {is_hot}, epoch = epoch + 1")
        switch(dsn, "ordermigrate_capture", "ENABLE ALWAYS" if side is owner else "DISABLE")
        switch(dsn, "ordermigrate_fence", "DISABLE" if side is owner else "ENABLE ALWAYS")


async def _warm_up(session: Session, tables: list[Table]) -> None:
    async with session.transaction():
        await sides.show_pass(session)
        if await ledger.has_recorded_objects(session):
            await indexes.unsilence(session)
    await capture.install(session, tables, await catalog.read_own_triggers(session))


async def _cool_down(session: Session, tables: list[Table]) -> None:
    async with session.transaction():
        if not await ledger.has_recorded_objects(session):
            await session.run(_RECORDED)
        row = await sides.read(session)
        assert row is not None
        triggers = await catalog.read_own_triggers(session)
        await fence.install(session, tables, triggers, row.pass_word, has_rows=True)


def switch(dsn: str, prefix: str, how: str) -> None:
    """Switch our triggers of one kind."""
    for table, name in execute(
        dsn,
        "SELECT tgrelid::regclass::text, tgname FROM pg_trigger "
        f"WHERE tgname LIKE '{prefix}%' AND tgparentid = 0",
    ):
        execute(dsn, f"ALTER TABLE {table} {how} TRIGGER {name}")
