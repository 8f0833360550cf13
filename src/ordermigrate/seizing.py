"""Seizing: a side becomes the owner again although the other is lost.

The last way out: nobody knows what the lost side has written since the last round. It is taken only
where that cannot be reached, and only when it is asked for by name. Should that database come back,
its epoch is the older one, and it is fenced off by the next command.
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
from ordermigrate.sides import SideRow

# Past any epoch that the service may have reached by commits that the monolith has not heard of: it
# may have let go, and taken back, and the monolith was not told.
_EPOCHS_AHEAD = 3
# A server that says that it is overloaded, that it is starting, or that a lock is held, is there.
_ALIVE = ("53", "57014", "57P03", "55P03")


async def seize(
    config: Config, reporter: Reporter, *, side: Side = Side.MONOLITH, is_dry_run: bool = False
) -> OwnerChange:
    """Make a side the owner without the other one.

    Args:
        config: The configuration.
        reporter: Whom to tell.
        side: Which one is to own the tables.
        is_dry_run: Whether only to say what would be done.

    Raises:
        Refused: The other side answers, so that nothing has to be lost; or this one is the owner.

    """
    await _require_lost(config, side.other)
    async with db.opened(config, side, "rollback") as session:
        row = await sides.read(session)
        if row is None or row.is_hot:
            raise Refused(
                f"The {side} takes part in no migration"
                if row is None
                else f"The {side} owns the tables already",
                wanted=f"A {side} that has let go of its tables",
                todo=f"See `ordermigrate status` as soon as the {side.other} can be reached",
            )
        steps = (
            f"switch the {side}'s fence off, capture on, its own triggers and foreign keys on",
            f"count it as the owner from epoch {row.epoch + _EPOCHS_AHEAD} on",
            f"what the {side.other} has written since the last round is given up",
        )
        if not is_dry_run:
            await _seize(config, session, row)
            reporter.report(TakenBack(side.value, f"the {side.other} was given up"))
        outcome, owner = ("planned", side.other) if is_dry_run else ("done", side)
        back = Direction.from_source(side.other).command_line
        note = (
            f"keep applications away from the {side.other}'s database: should it come back, it "
            f"may believe that it is the owner until `{back}` has fenced it off"
        )
        return OwnerChange(
            row.run,
            Phase.SYNCING if side is Side.MONOLITH else Phase.CUT_OVER,
            Direction.from_source(side.other),
            outcome,
            owner.value,
            None,
            steps=steps if is_dry_run else (),
            notes=(note,),
        )


async def _require_lost(config: Config, side: Side) -> None:
    try:
        async with db.opened(config, side, "rollback"):
            pass
    except Unavailable as unavailable:
        if not unavailable.sqlstate.startswith(_ALIVE):
            return
    raise Refused(
        f"The {side} can be reached, or answers at least: nothing of what it has written has to be "
        "lost",
        wanted="--accept-loss only where it is gone for good",
        todo="Run `ordermigrate rollback` without it",
    )


async def _seize(config: Config, session: Session, row: SideRow) -> None:
    names = gates.names_on(config, session.side)
    tables = await gates.read_family(config, session)
    # What came to the tables meanwhile, such as a partition, is first to be switched like the rest.
    await ownership.arm(session, tables, row.pass_word, is_hot=False)
    triggers = await catalog.read_own_triggers(session)
    async with locks.excluding_writers(session, names):
        await ownership.switch(session, tables, triggers, is_hot=True)
        await indexes.unsilence(session, await ledger.read_silenced(session), is_hasty=True)
        epoch = row.epoch + _EPOCHS_AHEAD
        if await session.fetch_one("sides", "seize", row.run, epoch) is None:
            raise Refused(
                f"The {session.side}'s row has changed meanwhile: another command is at work",
                todo="See `ordermigrate status`",
            )
    await indexes.validate_keys(session)
