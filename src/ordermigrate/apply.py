"""Apply: bring the rows of given keys on the cold side to what they are on the hot side.

The one way to write a row there after the bulk copy. Keys and rows, as of one snapshot of the
source, are staged in temporary tables by COPY; then, in one transaction: delete what is gone,
update what differs in its image, insert what is missing, and compare the digest of every row with
the one that the source has given. Where a unique value moves between rows, all of it is undone and
done again, after way was made. No old images are replayed, so it does not matter how often, or in
how many steps, a row has changed, and applying the same keys again changes nothing.

Rows that the target refuses end it with nothing applied, or, where the caller wants that, go into
quarantine, and all others are applied without them.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from psycopg import sql

from ordermigrate import queries, refusals
from ordermigrate.errors import OrdermigrateError, Refused
from ordermigrate.model import Side, TableMap
from ordermigrate.stages import SCHEMA, Stage
from ordermigrate.stream_sessions import StreamSession

# With so few rows nothing has to be known of them.
FEW_ROWS = 200
# To find a row by its key's index costs about as much as to read so many in passing. The planner,
# which takes a page that is in memory for one on a slow disk, would read the whole table too soon.
LOOKUP_COSTS_ROWS = 10
_WAYS = ("seqscan", "hashjoin", "mergejoin")
BY_INDEX = "; ".join(f"SET LOCAL enable_{way} = off" for way in _WAYS)
BY_STATISTICS = "; ".join(
    [*(f"SET LOCAL enable_{way} = on" for way in _WAYS), "SET LOCAL work_mem = '64MB'"]
)
# A unique value, or one that an exclusion constraint guards, is held by another row.
_COLLISIONS = {"23505", "23P01"}
_DENIED = "42501"
# So often what is refused is looked for; if then something is in the way, rows are written singly.
_MAX_SEARCHES = 8
_UNDO = "ROLLBACK TO SAVEPOINT ordermigrate_apply; RELEASE SAVEPOINT ordermigrate_apply"
_ACTION = re.compile(r" ON DELETE (CASCADE|SET NULL|SET DEFAULT)")


@dataclass(frozen=True, slots=True)
class Applied:
    """What was done to one table: rows inserted or updated, rows removed.

    `quarantined` are those that were refused, and had not been the last time.
    """

    written: int
    deleted: int
    quarantined: int = 0


async def create_stages(target: StreamSession, stages: Sequence[Stage]) -> None:
    """Create the temporary tables, once for each connection."""
    for stage in stages:
        key = sql.SQL(", ").join(sql.Identifier("t", name) for name in stage.map.key)
        for name in (stage.keys, stage.all_keys):
            await target.run(
                stage.compose("create_key_stage", stage=sql.Identifier(SCHEMA, name), key=key)
            )
        await target.run(
            stage.compose(
                "create_row_stage",
                stage=sql.Identifier(SCHEMA, stage.rows),
                columns=sql.SQL(", ").join(
                    sql.Identifier("t", pair.name) for pair in stage.map.copied
                ),
            )
        )
    await target.run(queries.get("apply", "create_refused"))
    await refusals.create(target)


async def apply_stage(
    target: StreamSession,
    stage: Stage,
    *,
    staged_rows: int,
    is_truncated: bool,
    is_compared: bool,
    is_quarantining: bool = False,
) -> Applied:
    """Bring one table to what is staged, in the caller's transaction, and verify it.

    Args:
        target: In a transaction that passes the fence.
        stage: The table, with its keys and rows staged.
        staged_rows: How many keys and rows there are at most.
        is_truncated: Whether all rows have to go first.
        is_compared: Whether all of the source's keys are staged, and all others have to go.
        is_quarantining: Whether what the target refuses goes into its quarantine.

    Raises:
        Refused: The target refuses a row (the key, the constraint and the value are named), or
            something there changes rows while they are written.

    """
    if is_quarantining and is_truncated:
        # A row that comes back may be one that others there refer to; so it is not to go at all.
        await refusals.keep_staged(target, stage)
        is_truncated, is_compared = False, True
    is_few = staged_rows < FEW_ROWS and not is_compared
    if not is_few:
        await target.run(f"{BY_STATISTICS}; {stage.analyze()}")
    between_stages = BY_INDEX if is_few else BY_STATISTICS
    with_table = BY_INDEX if is_few or _is_looked_up(stage.map, staged_rows) else BY_STATISTICS

    write = partial(
        _write,
        target,
        stage,
        is_truncated=is_truncated,
        is_compared=is_compared,
        between_stages=between_stages,
        with_table=with_table,
        is_quarantining=is_quarantining,
    )
    try:
        applied = await _write_all(target, write)
    except OrdermigrateError as error:
        if is_quarantining and _is_about_rows(error):
            await target.run(_UNDO)
            await target.run(f"{BY_STATISTICS}; {stage.analyze()}")
            applied = await _apply_what_is_taken(target, stage, write, is_compared=is_compared)
        elif isinstance(error, Refused) and error.sqlstate[:2] in {"22", "23"}:
            await target.run(f"ROLLBACK TO SAVEPOINT ordermigrate_apply; {between_stages}")
            await _free_values(target, stage, is_truncated=is_truncated, is_compared=is_compared)
            raise await _explain(target, stage, error) from error
        else:
            raise
    await _require_equal(target, stage)
    if is_quarantining:
        await target.run(BY_STATISTICS)
        new = await refusals.settle(target, stage, is_compared=is_compared)
        applied = replace(applied, quarantined=new)
    return applied


def _is_about_rows(error: OrdermigrateError) -> bool:
    """Whether other rows could be applied without those that an error is about.

    One may be that we may not see who refers to rows that have to go for a moment.
    """
    return refusals.is_refusal(error.sqlstate) or error.sqlstate == _DENIED


async def _apply_what_is_taken(
    target: StreamSession,
    stage: Stage,
    write: Callable[..., Awaitable[Applied]],
    *,
    is_compared: bool,
) -> Applied:
    """Apply what the target takes; what it refuses is set aside, to go into quarantine.

    A row that is set aside stays as it was, and may itself stand in another's way: so what is
    refused is looked for again, until all that is left is taken.
    """
    is_all_found = False
    for _ in range(_MAX_SEARCHES):
        is_all_found = not await refusals.set_aside(target, stage, is_compared=is_compared)
        if is_all_found:
            break
        try:
            return await _write_all(target, write)
        except OrdermigrateError as error:
            if not _is_about_rows(error):
                raise
            await target.run(_UNDO)
    singly = await refusals.write_singly(
        target, stage, is_compared=is_compared, is_making_way=is_all_found
    )
    return Applied(singly.written, singly.deleted)


async def _require_equal(target: StreamSession, stage: Stage) -> None:
    """Refuse rows that are not what was written to them."""
    unequal = await target.fetch(stage.find_unequal())
    if unequal:
        keys = "; ".join(
            ", ".join(f"{name} = {text}" for name, text in zip(stage.map.key, each, strict=True))
            for each in (row["key_texts"] for row in unequal)
        )
        raise Refused(
            f"Rows of {stage.map.target.name} on the {target.side} are not what was written to "
            f"them: {keys}",
            wanted="Tables on which nothing but ordermigrate acts: no trigger, no rule",
            todo="Look for what changes them; `ordermigrate prepare` switches user triggers off. "
            "Nothing of this round was kept",
        )


async def _write_all(target: StreamSession, write: Callable[..., Awaitable[Applied]]) -> Applied:
    """Write all that is staged, and once more with way made where unique values collide."""
    await target.run("SAVEPOINT ordermigrate_apply")
    try:
        return await write(is_making_way=False)
    except Refused as refused:
        if refused.sqlstate not in _COLLISIONS:
            raise
        await target.run("ROLLBACK TO SAVEPOINT ordermigrate_apply")
        return await write(is_making_way=True)


async def _write(
    target: StreamSession,
    stage: Stage,
    *,
    is_truncated: bool,
    is_compared: bool,
    is_making_way: bool,
    is_quarantining: bool,
    between_stages: str,
    with_table: str,
) -> Applied:
    written = 0
    await target.run(between_stages)
    deleted = await _delete_absent(
        target, stage, is_truncated=is_truncated, is_compared=is_compared
    )
    await target.run(stage.keep_gone())
    if is_making_way:
        if is_quarantining:
            await refusals.lock_staged(target, stage)
        else:
            _require_nothing_follows(target.side, stage)
        for statement in stage.make_way(is_sparing=is_quarantining):
            await target.run(statement)
    await target.run(with_table)
    deleted += await target.count(stage.delete_keys())
    if misfits := stage.delete_misfits():
        await target.run(misfits)
    if update := stage.update_changed():
        written += await target.count(update)
    written += await target.count(stage.insert_missing())
    await target.run("SET CONSTRAINTS ALL IMMEDIATE; RELEASE SAVEPOINT ordermigrate_apply")
    return Applied(written, deleted)


def _is_looked_up(table: TableMap, rows: int) -> bool:
    """Whether so many rows are best found by the key's index, one by one."""
    cost = rows * LOOKUP_COSTS_ROWS * max(1, len(table.target.leaves))
    return table.target.has_index_on(table.key) and cost < table.target.rows_estimate


def _require_nothing_follows(side: Side, stage: Stage) -> None:
    """Refuse to take rows off for a moment where others would go with them."""
    keys = [
        f"{key.name} of {key.table}"
        for key in stage.map.target.incoming_keys
        if _ACTION.search(key.definition)
    ]
    if keys:
        raise Refused(
            f"Unique values of {stage.map.target.name} move between rows, which on the {side} have "
            f"to be taken off for a moment; by foreign key {', '.join(keys)} other rows would go "
            "with them",
            wanted="No table that is changed by what a round does in between",
            todo="Drop that foreign key on the "
            f"{side} until the migration is over; then run the command again",
        )


async def _free_values(
    target: StreamSession, stage: Stage, *, is_truncated: bool, is_compared: bool
) -> None:
    """Delete what goes or comes, or a unique value that moves would be taken for a cause."""
    try:
        await _delete_absent(target, stage, is_truncated=is_truncated, is_compared=is_compared)
        await target.run(f"{stage.delete_keys()}; SET CONSTRAINTS ALL IMMEDIATE")
    except Refused:  # something else still refers to them
        await target.run("ROLLBACK TO SAVEPOINT ordermigrate_apply")


async def _delete_absent(
    target: StreamSession, stage: Stage, *, is_truncated: bool, is_compared: bool
) -> int:
    """Remove the rows that a mark in the log stands for; return how many."""
    if is_truncated:
        return await target.count(stage.compose("delete_all"))
    if is_compared:
        return await target.count(
            stage.compose("delete_strangers", stage=sql.Identifier(SCHEMA, stage.all_keys))
        )
    return 0


async def _explain(target: StreamSession, stage: Stage, refused: Refused) -> OrdermigrateError:
    """Name the row that the target refuses, the constraint, and what the server says of it."""
    await target.run(stage.find_refused())
    found = await target.fetch(queries.get("apply", "read_refused"))
    if not found:
        return refused  # not a row by itself: the message of the whole statement has to do
    row = found[0]
    detail = f" ({row['detail'].rstrip('.')})" if row["detail"] else ""
    named = Refused(
        f"The {target.side} refuses the row of {stage.map.target.name} with {row['row_key']}: "
        f"{row['message'].rstrip('.')}{detail}",
        wanted="Constraints on the cold side that every row of the hot side fits"
        + (f"; this one is {row['constraint_name']}" if row["constraint_name"] else ""),
        todo=f"Correct the row on the {target.side.other}, or drop or adapt the constraint on the "
        f"{target.side}; then run the command again. Nothing of this round was kept, nothing is "
        "lost: the change stays in the log",
    )
    named.sqlstate = refused.sqlstate
    return named
