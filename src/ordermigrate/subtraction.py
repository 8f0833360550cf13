"""Subtraction: what makes a copy under more than one snapshot whole.

A row that was updated between two snapshots may be on the target twice or not at all. But then its
key is in the log. So, after the last snapshot, before a unique index is built, and before any round
takes entries off the logs: every row whose key has been logged since capture began goes. What
remains has not changed since then, and the first round brings the rest.

Of the source nothing is read but the logs, so its tables are not locked. And it is let go before
the target begins to work, which may take long.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

from ordermigrate import apply, change_logs, digest, rounds, staging, write_ahead_log
from ordermigrate.config import Config
from ordermigrate.control import Session
from ordermigrate.digest import Algorithm
from ordermigrate.errors import Busy
from ordermigrate.ledger import Run
from ordermigrate.model import TableMap
from ordermigrate.progress import Reporter, Subtracted
from ordermigrate.stages import Stage


async def subtract(
    config: Config,
    sides: tuple[Session, Session],
    maps: Sequence[TableMap],
    run: Run,
    reporter: Reporter,
) -> None:
    """Take those rows off, and note how many; safe to repeat until a round has run.

    Raises:
        Busy: The copy has been closed, or begun anew, by somebody else.

    """
    control, _ = sides
    stages = [
        Stage(each, number, digest.target_view(each, Algorithm.MD5, is_same_byte_order=True))
        for number, each in enumerate(maps, 1)
    ]
    async with contextlib.AsyncExitStack() as stack:
        source, target = [
            await rounds.open_stream(stack, config, session, "copy: subtraction")
            for session in sides
        ]
        logs = {log.table: log for log in await change_logs.read_all(control)}
        await apply.create_stages(target, stages)
        await target.run("BEGIN")
        await target.fetch_one("sides", "show_pass")
        # Nobody closes the copy before this is committed; once it is closed, rounds take entries
        # off the log, and what is taken off here would not come back.
        held = await target.fetch_one("ledger", "hold_phase", run.run, run.phase.value)
        if held is None:
            raise Busy(
                f"Migration {run.run} has left phase {run.phase} while this command was at work",
                todo="See `ordermigrate status`, then run the command again if it is still wanted",
            )
        await source.run("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
        logged: list[Stage] = []
        for stage in stages:
            entries = logs[stage.map.label].entries(stage.map.source, change_logs.ALL)
            if await staging.stage_keys(source, target, stage, entries):
                logged.append(stage)
        await source.run("COMMIT")
        removed: dict[str, int] = {}
        for stage in logged:
            label = stage.map.label
            await target.run(stage.analyze())
            removed[label] = await target.count(stage.delete_keys())
            await target.fetch_one("ledger", "add_subtraction", label, removed[label])
        # An entry that vanishes in a crash would not bring back what was taken off for it. All
        # that was seen is before where the log is now.
        position = await write_ahead_log.read_position(control)
        await write_ahead_log.wait_for_flush(control, position, config.limits.stall_timeout_seconds)
        await target.run("COMMIT")
    for label, rows in removed.items():
        reporter.report(Subtracted(label, rows))
