"""Subtraction: what makes a copy under more than one snapshot whole.

A row that was updated between two snapshots may be on the target twice or not at all. But then its
key is in the log. So, after the last snapshot, before a unique index is built, and before any round
takes entries off the logs: every row whose key has been logged since capture began goes. What
remains has not changed since then, and the first round brings the rest.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

from ordermigrate import apply, change_logs, digest, locks, rounds, staging, write_ahead_log
from ordermigrate.apply import Stage
from ordermigrate.config import Config
from ordermigrate.control import Session
from ordermigrate.digest import Algorithm
from ordermigrate.errors import Busy
from ordermigrate.ledger import Run
from ordermigrate.model import TableMap
from ordermigrate.progress import Reporter, Subtracted


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
        await locks.begin_locked(
            source.run,
            control,
            [each.source.name for each in maps],
            rounds.timeouts(config)["statement_timeout"],
        )
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
        removed: dict[str, int] = {}
        for stage in stages:
            label = stage.map.label
            entries = logs[label].entries(change_logs.ALL)
            if await staging.stage_keys(source, target, stage, entries):
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
