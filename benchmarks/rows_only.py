"""Copy rows by ordermigrate's library, and nothing else: a process that waits for its start.

It prepares both sides and takes the indexes off the target, says "ready" on stdout, waits for a
line on stdin, copies the rows (connections, snapshot, plan, chunks and their ledger included),
and says "done". The command line has no option for rows alone, hence this.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import uvloop

from ordermigrate import (
    bulk_copy,
    catalog,
    config,
    console,
    db,
    indexes,
    ledger,
    mapping,
    migration,
    writes,
)
from ordermigrate.bulk_copy import Job
from ordermigrate.config import Config
from ordermigrate.model import Table, TableName


async def _make_job(chosen: Config) -> Job:
    await migration.prepare(chosen, console.PlainReporter())
    async with db.open_pair(chosen, "copy") as (monolith, service):
        names = [
            (monolith, [each.name for each in chosen.tables]),
            (service, [each.target for each in chosen.tables]),
        ]
        sides: list[dict[TableName, Table]] = []
        for session, wanted in names:
            async with session.transaction(is_snapshot=True):
                sides.append(await catalog.read_tables(session, wanted))
        maps = mapping.build_maps(chosen.tables, *sides)
        async with service.transaction():
            await indexes.drop_for_load(service, maps)
        run = await ledger.read_run(service)
        if run is None:
            message = "a prepared migration has no run"
            raise AssertionError(message)
        counters = writes.to_json(await writes.read_counters(monolith, maps))
        return Job(chosen, run.run, maps, counters)


async def _copy(chosen: Config) -> None:
    job = await _make_job(chosen)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    if not sys.stdin.readline():
        return  # whoever started this has gone
    await bulk_copy.load(job, console.PlainReporter())
    sys.stdout.write("done\n")
    sys.stdout.flush()


if __name__ == "__main__":
    uvloop.run(_copy(config.load(Path(sys.argv[1]), dict(os.environ))))
