"""The one row in each database that says which side it is, of which run, and who owns the tables.

The run's id is random, so that a clone or a restored backup of another migration is told from the
real thing; epochs, not clocks, order what the two rows say. A database that has been one side can
never be taken for the other.
"""

from __future__ import annotations

import json
import secrets
from dataclasses import dataclass, field
from typing import Any

from ordermigrate.control import Session
from ordermigrate.errors import Refused, Stranded, UsageError
from ordermigrate.model import Direction, Side

# What the service's row says while a cancellation is under way.
CANCELLING = {"cancel": True}
# The key of what both rows say while a cleanup is under way; `cleanup` writes what stands there.
CLEANING = "cleanup"


@dataclass(frozen=True, slots=True)
class SideRow:
    """The row of one database."""

    side: Side
    run: str
    epoch: int
    is_hot: bool
    round: int
    pass_word: str = field(repr=False)
    intent: dict[str, Any] | None = None

    @property
    def token(self) -> str | None:
        """Who intends to change the owner, if anybody does."""
        return (self.intent or {}).get("token")


class NoOwner(Refused):
    """Both sides refuse writes: a change of owner was cut off between its two commits."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where one database is in the migration, and whether its server writes where it last did."""

    run: str
    epoch: int
    is_hot: bool
    round: int
    is_timeline_known: bool
    has_gone_back: bool


async def read(session: Session) -> SideRow | None:
    """Return this database's row, or None where it takes part in no migration.

    Raises:
        UsageError: The row says that this database is the other side.

    """
    there = await session.fetch_one("sides", "has_schema")
    if not there.has_side:
        return None
    row = await session.fetch_one("sides", "read_side")
    if row is None:
        return None
    if row.side != session.side:
        raise UsageError(
            f"The database that the {session.side}'s DSN leads to is the {row.side} of migration "
            f"{row.run}: the two DSNs are swapped",
            wanted="The same two databases in the same places as before",
            todo="Put the DSNs back as they were",
        )
    return SideRow(
        Side(row.side), row.run, row.epoch, row.is_hot, row.round, row.pass_word, row.intent
    )


async def read_both(monolith: Session, service: Session) -> tuple[SideRow | None, SideRow | None]:
    """Return both rows, checked against each other.

    A row on the service alone is a preparation that was cut short. A row on the monolith alone,
    or two runs, mean that these two databases do not belong together.
    """
    one, other = await read(monolith), await read(service)
    if other is not None and other.intent == CANCELLING:
        raise Refused(
            f"A cancellation of migration {other.run} was cut off half-way",
            wanted="A migration that is whole, or gone",
            todo="Run `ordermigrate cancel` again; it goes on where it stopped",
        )
    for row in (one, other):
        if row is not None and row.intent is not None and CLEANING in row.intent:
            raise Refused(
                f"A cleanup of migration {row.run} is under way",
                wanted="A migration that is whole, or gone",
                todo="`ordermigrate cleanup --dry-run` tells how far it is, `ordermigrate cleanup` "
                "goes on with it, and until the tables are dropped `ordermigrate cleanup --undo` "
                "takes it back",
            )
    if one is not None and other is None:
        raise Refused(
            f"The monolith belongs to migration {one.run}, but the service's database does not",
            wanted="The service's database with which the migration was begun",
            todo="Correct the service's DSN; if that database is lost, remove the schema "
            "ordermigrate from the monolith and begin anew",
        )
    if one is not None and other is not None and one.run != other.run:
        raise Refused(
            f"The monolith belongs to migration {one.run}, the service to {other.run}",
            wanted="Two databases of the same migration",
            todo="Correct the DSNs; one of them leads to a clone, a restored backup or another "
            "migration's database",
        )
    return one, other


async def require_both(monolith: Session, service: Session) -> tuple[SideRow, SideRow]:
    """Return both rows of a migration that is known to have them, checked against each other."""
    one, other = await read_both(monolith, service)
    if one is None or other is None:
        message = "a run without its side rows"
        raise AssertionError(message)
    return one, other


def find_direction(one: SideRow, other: SideRow) -> Direction:
    """Return which way rows go now: from the owner to the other side.

    Raises:
        NoOwner: A change of owner is half done.
        Stranded: Both sides take writes.

    """
    if one.is_hot and other.is_hot:
        stale = one if one.epoch < other.epoch else other
        owner = other if stale is one else one
        raise Stranded(
            f"BOTH sides take writes: the {owner.side} has owned the tables since epoch "
            f"{owner.epoch}, and the {stale.side}, still in epoch {stale.epoch}, has gone back to "
            "before it let go (a failover that lost its last transactions, or a restored backup)",
            wanted="One owner",
            todo=f"Run `{Direction.from_source(stale.side).command_line}` at once: it fences the "
            f"{stale.side} off and says what was written there meanwhile",
        )
    if not one.is_hot and not other.is_hot:
        later = one if one.epoch > other.epoch else other
        direction = Direction.from_source(later.side)
        raise NoOwner(
            "Nobody owns the tables: both sides refuse writes, for a change of owner was cut off "
            f"after the {later.side} had let go",
            wanted="One owner",
            todo=f"Run `{direction.command_line}` to finish it, or "
            f"`{direction.command_line} --abort` to give the tables back to the {later.side}",
        )
    return Direction.from_source(one.side if one.is_hot else other.side)


async def find_place(session: Session, position: str | None = None) -> Place | None:
    """Return where this database is, in one query, or None where its row is gone.

    `has_gone_back` says that its server's log is shorter than `position`, which it has had.
    """
    row = await session.fetch_one("sides", "find_place", position)
    return row and Place(*row)


async def install(session: Session, run: str, *, is_hot: bool) -> str:
    """Write this database's row, in the caller's transaction, and return the run that it names.

    A row that is there stays, and with it its run.
    """
    await session.fetch_all("sides", "create_schema")
    await session.fetch_all("sides", "create_side")
    await session.fetch_all(
        "sides", "insert_side", session.side.value, run, is_hot, secrets.token_hex(16)
    )
    row = await session.fetch_one("sides", "read_side")
    return str(row.run)


async def show_pass(session: Session) -> None:
    """Pass this database's fence for the rest of the transaction."""
    await session.fetch_all("sides", "show_pass")


async def align_rounds(monolith: Session, service: Session) -> bool:
    """Let both sides count rounds from the later of theirs; return whether they did not fit.

    For databases of which one has gone back in time, where an operator has decided to go on.
    """
    one, other = await read_both(monolith, service)
    if one is None or other is None or one.round in {other.round, other.round - 1}:
        return False
    latest = max(one.round, other.round)
    for session in (service, monolith):
        await session.fetch_all("sides", "set_round", latest)
    return True


async def align_epochs(monolith: Session, service: Session) -> None:
    """Let an owner who has gone back in time be in the epoch that the other side knows of."""
    one, other = await read_both(monolith, service)
    if one is None or other is None or one.is_hot == other.is_hot:
        return
    epoch = max(one.epoch, other.epoch)
    for session in (service, monolith):
        await session.fetch_all("sides", "set_epoch", epoch)


async def align_epoch(cold: Session, owner: SideRow) -> None:
    """Let a cold side follow the owner's later epoch; what was intended for it is over."""
    await cold.fetch_all("sides", "align_epoch", owner.run, owner.epoch)


async def begin_cancelling(service: Session, row: SideRow) -> bool:
    """Put on record that the migration is being cancelled; False if its owner is changing."""
    cancelling = json.dumps(CANCELLING)
    found = await service.fetch_one("sides", "begin_cancelling", row.run, row.epoch, cancelling)
    return found is not None


async def note_intent(session: Session, intent: dict[str, Any] | None) -> None:
    """Say on this side what is about to happen to it, or that nothing is."""
    await session.fetch_all("sides", "note_intent", intent and json.dumps(intent))


async def remove(session: Session) -> None:
    """Remove our schema with all that is in it, in the caller's transaction."""
    await session.fetch_all("sides", "drop_schema")
