"""Sequences: what the new owner's next numbers are.

No lock stops nextval, and a session may hold numbers that it drew ahead; so the new owner's
sequences are set past the old one's by a margin, and never back. A gap in numbers harms nobody, a
number given out twice does.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from psycopg import sql

from ordermigrate.control import Session
from ordermigrate.model import Sequence, TableMap, TableName

MARGIN_STEPS = 1000


@dataclass(frozen=True, slots=True)
class SequencePair:
    """A sequence of the target, and the source's that it has to pass; None where there is none."""

    table: TableName
    column: str
    target: Sequence
    source: Sequence | None


def pair_sequences(maps: Iterable[TableMap]) -> list[SequencePair]:
    """Pair the sequences that the target's columns draw from with those of the source."""
    pairs: list[SequencePair] = []
    for each in maps:
        origins = {pair.name: pair.origin for pair in each.pairs}
        for mine in each.target.sequences:
            origin = origins.get(mine.column)
            theirs = next((one for one in each.source.sequences if one.column == origin), None)
            pairs.append(SequencePair(each.target.name, mine.column, mine, theirs))
    return pairs


def find_obstacles(pairs: Iterable[SequencePair], sessions: int) -> list[str]:
    """Say in sentences which sequences could not be set past the other side's.

    Args:
        pairs: As `pair_sequences` gives them.
        sessions: How many sessions the source allows.

    """
    said: list[str] = []
    for each in pairs:
        mine, theirs = each.target, each.source
        if not mine.can_set:
            said.append(f"we may not set sequence {mine.name} (GRANT UPDATE on it to our role)")
        if theirs is None:
            continue
        if (mine.increment > 0) != (theirs.increment > 0):
            said.append(f"sequences {mine.name} and {theirs.name} count in opposite directions")
            continue
        reached = theirs.last_value if theirs.last_value is not None else theirs.least
        next_value = reached + margin(theirs, sessions)
        if not mine.least <= next_value <= mine.most:
            said.append(
                f"sequence {mine.name} ends at {mine.most if mine.increment > 0 else mine.least}, "
                f"and {theirs.name} has reached {theirs.last_value}"
            )
    return said


def margin(source: Sequence, sessions: int) -> int:
    """Return how far past the source's last number the target is to go on, with its sign."""
    return source.increment * max(MARGIN_STEPS, source.cache * sessions)


async def count_sessions(source: Session) -> int:
    """Return how many sessions a server allows; each may hold a sequence's numbers."""
    return int((await source.fetch_one("sequences", "count_sessions")).sessions)


async def read_values(source: Session, pairs: Iterable[SequencePair]) -> dict[int, int | None]:
    """Return the last number of each of the source's sequences, by its oid."""
    oids = [each.source.oid for each in pairs if each.source is not None]
    if not oids:
        return {}
    rows = await source.fetch_all("sequences", "read_values", oids)
    return {row.oid: row.last_value for row in rows}


async def advance(
    target: Session,
    pairs: Iterable[SequencePair],
    values: dict[int, int | None],
    sessions: int,
) -> None:
    """Set the target's sequences past the source's; what is past already stays.

    Not undone by a rollback: a sequence that went ahead for nothing harms nobody.
    """
    for each in pairs:
        mine, theirs = each.target, each.source
        if theirs is None:
            block = "pass_largest" if mine.increment > 0 else "pass_smallest"
            await target.fetch_all(
                "sequences",
                block,
                mine.oid,
                table=each.table.sql,
                column=sql.Identifier(each.column),
            )
            continue
        value = values.get(theirs.oid)
        if value is None:
            continue  # never drawn from
        wanted = value + margin(theirs, sessions)
        await target.fetch_all(
            "sequences",
            "advance" if mine.increment > 0 else "advance_down",
            mine.oid,
            max(mine.least, min(wanted, mine.most)),
        )
