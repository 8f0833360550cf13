"""Retrying: rows in quarantine are tried again, once what made the monolith refuse them is gone.

While the service owns the tables, their keys go back into its change log, and the next round tries
them. Once the monolith owns them, what was refused is written as an application would write it, but
for a row that an application has written there since: that one counts. What is resolved is brought
to the service by sync.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from psycopg import sql

from ordermigrate import change_logs, db, following, gates, ledger, quarantine, sides
from ordermigrate.change_logs import ChangeLog
from ordermigrate.config import Config
from ordermigrate.control import Session
from ordermigrate.errors import Refused
from ordermigrate.model import Direction, Table, TableMap
from ordermigrate.outcomes import Retry
from ordermigrate.progress import Reporter
from ordermigrate.quarantine import Quarantined


async def retry(
    config: Config, reporter: Reporter, *, is_discarding: bool = False, is_dry_run: bool = False
) -> Retry:
    """Try again, or discard, what is in quarantine.

    Args:
        config: The configuration.
        reporter: Whom to tell.
        is_discarding: Whether the monolith, which owns the tables, is right as it is: what it has
            refused is forgotten, and the service gets the monolith's rows.
        is_dry_run: Whether only to list it.

    Raises:
        Refused: Rows are to be discarded while the service owns the tables.

    """
    async with db.open_pair(config, "rollback") as (monolith, service):
        run = await following.require_copied(monolith, service)
        direction, _ = await following.read_direction(monolith, service)
        before = await quarantine.read_all(monolith)
        if is_discarding and direction is Direction.REVERSE:
            raise Refused(
                "The service owns the tables: its rows count, also those that the monolith refuses",
                wanted="A monolith that owns them, to discard what it has refused",
                todo="Mend the cause on the monolith, and run `ordermigrate rollback "
                "--retry-quarantine`",
            )
        if before and not is_dry_run:
            await ledger.take_operator_lock(service)
            maps = await gates.read_maps(config, monolith, service)
            if direction is Direction.FORWARD:
                await _retry_on_owner(monolith, maps, before, is_discarding=is_discarding)
            else:
                back = await gates.read_maps(config, monolith, service, direction)
                await quarantine.retry(service, monolith, back)
                await following.catch_up(config, "rollback", reporter)
        left = await quarantine.read_all(monolith)
        return Retry(
            run.run,
            run.phase,
            direction.source.value,
            await ledger.read_last_validation(service),
            0 if is_dry_run else len(before),
            len(before) - len(left),
            tuple(left),
            is_dry_run,
        )


async def _retry_on_owner(
    monolith: Session,
    maps: Sequence[TableMap],
    found: Sequence[Quarantined],
    *,
    is_discarding: bool,
) -> None:
    """Deal with each row in a transaction of its own."""
    by_name = {str(each.source.name): each for each in maps}
    logs = {log.table: log for log in await change_logs.read_all(monolith)}
    for each in found:
        table = by_name.get(each.table)
        if table is None:
            continue
        async with monolith.transaction():
            row = await sides.read(monolith)
            if row is None or not row.is_hot:
                raise Refused("The owner has changed meanwhile", todo="Run the command again")
            log = logs[each.table]
            said = None if is_discarding else await _try(monolith, log, table.source, each)
            if said is None:
                await quarantine.forget(monolith, each.table, [each.key])
                # The service has what was refused; it is to get what the monolith has.
                await change_logs.add_keys(
                    monolith, log, table.source, [[each.key[name] for name in log.key]]
                )
            else:
                key = json.dumps(dict(each.key), ensure_ascii=False)
                await monolith.fetch_all("retrying", "note_try", each.table, key, said)


async def _try(monolith: Session, log: ChangeLog, table: Table, one: Quarantined) -> str | None:
    """Write, or delete, one row; return why not, or None.

    Where an application has written it since the monolith owns it, that counts, and nothing is
    done. It is looked for before and after: whoever comes in between finds the row locked, or its
    key taken, or has logged it besides us.
    """
    if await quarantine.count_logged(monolith, log, table, one.key):
        return None
    await monolith.fetch_all("retrying", "begin_try")
    try:
        said = (
            await _delete(monolith, table, one)
            if one.row is None
            else await _write(monolith, table, one)
        )
        await monolith.run("SET CONSTRAINTS ALL IMMEDIATE")
    except Refused as refused:
        await monolith.fetch_all("retrying", "undo_try")
        return refused.fact
    if said is None and await quarantine.count_logged(monolith, log, table, one.key) > 1:
        await monolith.fetch_all("retrying", "undo_try")
        return None
    await monolith.fetch_all("retrying", "end_try")
    return said


async def _delete(monolith: Session, table: Table, one: Quarantined) -> str | None:
    await monolith.fetch_all(
        "retrying",
        "delete_row",
        json.dumps(dict(one.key), ensure_ascii=False),
        table=table.name.sql,
        match=_match(table, one),
    )
    return None


async def _write(monolith: Session, table: Table, one: Quarantined) -> str | None:
    row = {name: text for name, text in (one.row or {}).items() if table.column(name) is not None}
    texts = json.dumps(row, ensure_ascii=False)
    there = await monolith.fetch_one(
        "retrying",
        "has_row",
        texts,
        json.dumps(dict(one.key), ensure_ascii=False),
        table=table.name.sql,
        match=_match(table, one),
        is_same=sql.SQL(" AND ").join(
            sql.SQL("t.{}::text IS NOT DISTINCT FROM (g.given ->> {})").format(
                sql.Identifier(name), sql.Literal(name)
            )
            for name in row
        ),
    )
    if there is not None:
        if not there.is_same:  # as it was when the change of it was refused
            await monolith.fetch_all(
                "retrying",
                "update_row",
                texts,
                json.dumps(dict(one.key), ensure_ascii=False),
                table=table.name.sql,
                match=_match(table, one),
                assignments=sql.SQL(", ").join(
                    sql.SQL("{} = (g.given ->> {})::{}").format(
                        sql.Identifier(name), sql.Literal(name), _type(table, name)
                    )
                    for name in row
                    if name not in one.key
                ),
            )
        return None
    written = await monolith.fetch_one(
        "retrying",
        "insert_row",
        texts,
        table=table.name.sql,
        columns=sql.SQL(", ").join(map(sql.Identifier, row)),
        values=sql.SQL(", ").join(
            sql.SQL("(g.given ->> {})::{}").format(sql.Literal(name), _type(table, name))
            for name in row
        ),
    )
    return None if written is not None else "a unique value of it is taken by another row"


def _match(table: Table, one: Quarantined) -> sql.Composable:
    return sql.SQL(" AND ").join(
        sql.SQL("t.{} = (g.key ->> {})::{}").format(
            sql.Identifier(name), sql.Literal(name), _type(table, name)
        )
        for name in one.key
    )


def _type(table: Table, name: str) -> sql.SQL:
    column = table.column(name)
    return sql.SQL("text" if column is None else column.type_name)
