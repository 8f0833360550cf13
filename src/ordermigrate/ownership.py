"""Ownership: what the triggers of a side have to be, by whether it owns the tables.

On the hot side capture fires and the fence stands by; on the cold side it is the other way round.
All of them are there beforehand. To change sides is only to switch them, which takes the lock that
keeps writers out and nothing that would keep readers out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from psycopg import sql

from ordermigrate import capture, catalog, fence, indexes, ledger, locks, queries
from ordermigrate.control import Session
from ordermigrate.errors import Refused
from ordermigrate.model import OwnTrigger, Table, TableMap


async def arm(
    session: Session,
    tables: Sequence[Table],
    pass_word: str,
    *,
    is_hot: bool,
    mends_capture: bool = True,
) -> list[str]:
    """Put up, or mend, all triggers of ours on one side; return what was done, in sentences.

    Args:
        session: On that side.
        tables: The family as it is there.
        pass_word: That database's pass.
        is_hot: Whether the side owns the tables.
        mends_capture: Whether to mend the owner's capture, too. Who does so has to see to it that
            what was written without it is found: a gap that is gone is seen by nobody.

    Raises:
        LockTimeout: There was no moment in which nobody wrote to them.

    """
    done: list[str] = []
    triggers = await catalog.read_own_triggers(session)
    # A cold side without a key cannot become hot, and a gate of the cutover says so.
    if mends_capture if is_hot else all(table.primary_key for table in tables):
        done += await capture.install(session, tables, triggers, is_on=is_hot)
        triggers = await catalog.read_own_triggers(session)
    if fence.find_gaps(tables, triggers, is_on=not is_hot):
        async with locks.excluding_writers(session, [each.name for each in tables]):
            done += await fence.install(
                session, tables, triggers, pass_word, has_rows=True, is_on=not is_hot
            )
    return done


def find_gaps(
    tables: Sequence[Table], triggers: Sequence[OwnTrigger], *, is_hot: bool
) -> list[str]:
    """Say in sentences what of a side's triggers is not as its part in the migration wants it."""
    return [
        *capture.find_gaps(tables, triggers, is_on=is_hot),
        *fence.find_gaps(tables, triggers, is_on=not is_hot),
    ]


def compose_switch(tables: Sequence[Table], triggers: Sequence[OwnTrigger], *, is_hot: bool) -> str:
    """Return the statements that switch a side's triggers; empty where nothing is to be done.

    A trigger on a partitioned table takes those of its parts with it.
    """
    return _compose(tables, triggers, lambda each: not each.is_clone, is_hot=is_hot)


async def switch(
    session: Session,
    tables: Sequence[Table],
    triggers: Sequence[OwnTrigger],
    *,
    is_hot: bool,
) -> list[OwnTrigger]:
    """Switch a side's triggers, in a transaction that keeps writers out; return them as they are.

    Raises:
        Refused: A trigger is not there, or not as it has to be, any more.

    """
    if statements := compose_switch(tables, triggers, is_hot=is_hot):
        await session.run_script(statements)
    now = await catalog.read_own_triggers(session)
    if find_gaps(tables, now, is_hot=is_hot):
        # One that a part had by itself, or whose state was once set apart from its table's.
        if statements := _compose(tables, now, lambda _: True, is_hot=is_hot):
            await session.run_script(statements)
        now = await catalog.read_own_triggers(session)
    if gaps := find_gaps(tables, now, is_hot=is_hot):
        raise Refused(
            f"On the {session.side} {'; '.join(gaps)}",
            wanted="All triggers of ours there, to be switched",
            todo="Run `ordermigrate prepare`, which puts up what is missing; then try again",
            findings=gaps,
        )
    return now


def _compose(
    tables: Sequence[Table],
    triggers: Sequence[OwnTrigger],
    is_taken: Callable[[OwnTrigger], bool],
    *,
    is_hot: bool,
) -> str:
    names = {leaf.name for table in tables for leaf in table.leaves}
    names |= {table.name for table in tables}
    statements = []
    for each in triggers:
        if not (capture.is_capture(each) or fence.is_fence(each)):
            continue
        is_on = is_hot if capture.is_capture(each) else not is_hot
        if each.table in names and is_taken(each) and each.enabled != ("A" if is_on else "D"):
            statements.append(
                queries.compose(
                    "fence",
                    "fire_always" if is_on else "stand_by",
                    table=each.table.sql,
                    trigger=sql.Identifier(each.name),
                )
            )
    return "; ".join(statements)


async def silence(cold: Session, maps: Sequence[TableMap]) -> list[str]:
    """Record and take off what would act on applied rows, on a side that has let go.

    Args:
        cold: On that side.
        maps: The family, with that side as the target.

    Raises:
        LockTimeout: A foreign key takes a moment in which nobody reads the tables.

    """
    family = frozenset(each.target.name for each in maps)
    tables = [each.target for each in maps]
    has_keys = any(each.foreign_keys_by_scope(family)["within"] for each in tables)
    has_triggers = any(trigger.enabled != "D" for each in tables for trigger in each.triggers)
    if not has_keys and not has_triggers:
        return []
    async with locks.excluding_writers(cold, [each.name for each in tables], is_exclusive=has_keys):
        await ledger.install_records(cold)
        return await indexes.silence(cold, maps)
