"""Seizing: the monolith becomes the owner again although the service is lost.

The last way out: nobody knows what the service has written since the last round. It is taken only
where the service cannot be reached, and only when it is asked for by name. Should that database
come back, its epoch is the older one, and it is fenced off by the next command.
"""

from __future__ import annotations

from ordermigrate import catalog, db, gates, indexes, ledger, locks, ownership, sides
from ordermigrate.config import Config
from ordermigrate.control import Session
from ordermigrate.errors import Refused, Unavailable
from ordermigrate.model import Direction, Side
from ordermigrate.outcomes import OwnerChange
from ordermigrate.phases import Phase
from ordermigrate.progress import Reporter, TakenBack

# Past any epoch that the service may have reached by commits that the monolith has not heard of: it
# may have let go, and taken back, and the monolith was not told.
_EPOCHS_AHEAD = 3


async def seize(config: Config, reporter: Reporter, *, is_dry_run: bool) -> OwnerChange:
    """Make the monolith the owner without the service.

    Raises:
        Refused: The service answers, so that nothing has to be lost; or the monolith is the owner.

    """
    await _require_lost(config)
    async with db.opened(config, Side.MONOLITH, "rollback") as monolith:
        row = await sides.read(monolith)
        if row is None or row.is_hot:
            raise Refused(
                "The monolith takes part in no migration"
                if row is None
                else "The monolith owns the tables already",
                wanted="A monolith that has let go of its tables",
                todo="See `ordermigrate status` as soon as the service can be reached",
            )
        steps = (
            "switch the monolith's fence off, capture on, its own triggers and foreign keys on",
            f"count it as the owner from epoch {row.epoch + _EPOCHS_AHEAD} on",
            "what the service has written since the last round is given up",
        )
        if not is_dry_run:
            await _seize(config, monolith, row.run, row.epoch + _EPOCHS_AHEAD)
            reporter.report(TakenBack(Side.MONOLITH.value, "the service was given up"))
        note = (
            "keep applications away from the service's database: should it come back, it believes "
            "that it is the owner until `ordermigrate rollback` has fenced it off"
        )
        outcome, owner = ("planned", Side.SERVICE) if is_dry_run else ("done", Side.MONOLITH)
        return OwnerChange(
            row.run,
            Phase.SYNCING,
            Direction.REVERSE,
            outcome,
            owner.value,
            None,
            steps=steps if is_dry_run else (),
            notes=(note,),
        )


async def _require_lost(config: Config) -> None:
    try:
        async with db.opened(db.make_impatient(config), Side.SERVICE, "rollback"):
            pass
    except Unavailable:
        return
    raise Refused(
        "The service can be reached: nothing of what it has written has to be lost",
        wanted="--accept-loss only where it is gone for good",
        todo="Run `ordermigrate rollback` without it",
    )


async def _seize(config: Config, monolith: Session, run: str, epoch: int) -> None:
    names = gates.names_on(config, Side.MONOLITH)
    tables = list((await catalog.read_tables(monolith, names)).values())
    triggers = await catalog.read_own_triggers(monolith)
    async with locks.excluding_writers(monolith, names):
        await ownership.switch(monolith, tables, triggers, is_hot=True)
        if await ledger.has_records(monolith):
            await indexes.unsilence(monolith, is_hasty=True)
        if await monolith.fetch_one("sides", "seize", run, epoch) is None:
            raise Refused(
                "The monolith's row has changed meanwhile: another command is at work",
                todo="See `ordermigrate status`",
            )
    await indexes.validate_keys(monolith)
