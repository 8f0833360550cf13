"""Resolving: which rows of the family change with the logged rows of what their columns depend on.

At the round's own snapshot, and in its transaction on the source, the keys of these rows are put
into their table's log, and the parents' entries are taken off theirs. From there on they are keys
like any other. If the round is not committed, nothing of that has happened.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from psycopg import sql

from ordermigrate import change_logs
from ordermigrate.apply import BY_INDEX, BY_STATISTICS, FEW_ROWS
from ordermigrate.change_logs import ChangeLog
from ordermigrate.model import Dependence, TableMap, find_parents
from ordermigrate.stream_sessions import StreamSession


async def resolve(
    source: StreamSession, maps: Sequence[TableMap], logs: Mapping[str, ChangeLog]
) -> None:
    """Have the tables' logs name the rows that change with what the parents' logs name.

    Args:
        source: In a round's transaction, whose snapshot counts.
        maps: The family.
        logs: The logs of its tables and of their parents.

    """
    for name in find_parents(maps):
        log = logs[change_logs.label_parent(name)]
        (found,) = await source.fetch(log.compose("see_log"))
        if not found["changes"]:
            continue
        if found["changes"] < FEW_ROWS:
            await source.run(BY_INDEX)
        else:
            await source.run(f"{BY_STATISTICS}; {log.compose('analyze_log')}")
        for table in maps:
            mine = logs[table.label]
            reading = [each for each in table.depends if each.parent.name == name]
            if reading and found["marks"]:
                await source.fetch(_log_all(mine, table), found["oldest"])
            elif reading:
                for statement in dict.fromkeys(_log_some(mine, log, each) for each in reading):
                    await source.fetch(statement, found["oldest"])
        await source.run(log.compose("empty_log"))


def _log_all(log: ChangeLog, table: TableMap) -> str:
    return log.compose(
        "log_all_rows",
        log_key=sql.SQL(", ").join(map(sql.Identifier, log.columns)),
        key=sql.SQL(", ").join(map(sql.Identifier, log.key)),
        table=table.source.name.sql,
    )


def _log_some(log: ChangeLog, parents: ChangeLog, dependence: Dependence) -> str:
    return log.compose(
        "log_dependents",
        log_key=sql.SQL(", ").join(map(sql.Identifier, log.columns)),
        resolved_key=sql.SQL(", ").join(sql.Identifier("resolved", name) for name in log.columns),
        entries=parents.entries(dependence.parent, change_logs.ALL),
        # A comment at its end must not swallow what follows.
        keys=sql.SQL(dependence.keys + "\n"),
    )
