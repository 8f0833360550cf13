"""Reclaiming: the way back where no log says what the service has written: by a moment in time.

The log was cancelled, or the service was opened without this program. So the service is made the
owner on record first, and its writes captured; then the keys of all rows that it has created or
changed since that moment go into the log, and a mark that has all keys compared, for what it has
deleted. From there on it is a rollback like any other.

A moment does not see everything: `now()` is the start of a transaction, and not every UPDATE sets a
column. Therefore all rows are compared before the monolith becomes the owner, while the service
goes on; what the moment did not see is told, and the owner stays.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from psycopg import sql

from ordermigrate import (
    __version__,
    change_logs,
    cutover,
    db,
    fingerprints,
    following,
    gates,
    ledger,
    proving,
    quarantine,
    queries,
    reversing,
    settling,
    sides,
)
from ordermigrate import catalog as catalogs
from ordermigrate.change_logs import COMPARE
from ordermigrate.config import Config
from ordermigrate.control import Session
from ordermigrate.digest import Algorithm
from ordermigrate.errors import OrdermigrateError, Refused, UsageError
from ordermigrate.model import Direction, Side, Table, TableMap
from ordermigrate.outcomes import OwnerChange
from ordermigrate.phases import Phase
from ordermigrate.progress import Reclaimed, Reporter

_CHAIN = (Phase.COPYING, Phase.COPIED, Phase.SYNCING, Phase.CUT_OVER)
# A time without a zone may be one of a place where the clock is behind ours, a date begins the day.
_SLACK = {"timestamp without time zone": "12 hours", "date": "36 hours"}
_BLIND = (
    "a moment does not see rows that were changed without their columns being set, or by "
    "transactions that began before it; all rows are compared before the owner changes"
)


@dataclass(frozen=True, slots=True)
class Counted:
    """How many rows of a table a moment takes."""

    table: str
    rows: int
    columns: tuple[str, ...]


async def reclaim(
    config: Config,
    reporter: Reporter,
    since: str,
    *,
    max_pause_seconds: float,
    is_dry_run: bool = False,
    accepts_loss: bool = False,
) -> OwnerChange:
    """Make the monolith the owner, with the rows that the service has written since a moment.

    Args:
        config: The configuration, with `created` or `updated` for the tables.
        reporter: Whom to tell.
        since: The moment, as PostgreSQL reads a timestamptz; without a zone it is UTC.
        max_pause_seconds: As for a rollback.
        is_dry_run: Whether only to count.
        accepts_loss: Whether the monolith's own rows since then may be overwritten or removed.

    Raises:
        Refused: The monolith owns the tables, it was written to since then, or all rows compared
            show what the moment did not see.
        OrdermigrateError: As for a rollback.

    """
    async with db.open_pair(config, "rollback") as (monolith, service):
        moment = await _read_moment(service, since)
        for session in (monolith, service):
            names = gates.names_on(config, session.side)
            await catalogs.require_tables(session, names)
        maps = await gates.read_maps(config, monolith, service)
        is_new = await _require_opened(monolith, service)
        counted = [await _count(service, each, Side.SERVICE, moment) for each in maps]
        there = [await _count(monolith, each, Side.MONOLITH, moment) for each in maps]
        if is_new and not accepts_loss:
            _require_unwritten(there, moment)
        if is_dry_run:
            return _plan(maps, counted, moment, is_new=is_new)
        if said := reversing.find_obstacles(maps):
            raise Refused(
                f"Rows of the service cannot go back: {'; '.join(said)}",
                wanted="A monolith's table that has room for every row of the service",
                todo="Adapt the table or the configuration",
                findings=said,
            )
        await ledger.take_operator_lock(service)
        if is_new:
            await _begin(monolith, service, maps)
        await settling.arm(config, monolith, service)
        if not accepts_loss and await ledger.is_reclaiming(service):
            # Once more, now that the fence is up: it was not when they were counted.
            _require_unwritten(
                [await _count(monolith, each, Side.MONOLITH, moment) for each in maps], moment
            )
        await settling.settle(config, monolith, service, reporter)
        back = await gates.read_maps(config, monolith, service, Direction.REVERSE)
        await _seed(service, back, moment)
        reporter.report(Reclaimed(moment.isoformat(), sum(each.rows for each in counted)))
    await following.catch_up(config, "rollback", reporter)
    await _require_equal(config, reporter, moment)
    return await cutover.change_owner(
        config, reporter, Direction.REVERSE, max_pause_seconds=max_pause_seconds
    )


async def _read_moment(session: Session, text: str) -> datetime:
    try:
        row = await session.fetch_one("reclaiming", "is_moment", text)
    except OrdermigrateError as error:
        raise UsageError(
            f"--since {text!r} is no moment that PostgreSQL can read",
            wanted="A timestamp such as 2026-11-21T03:00:00Z",
            todo="Correct it",
        ) from error
    moment: datetime = row.moment
    return moment


async def _require_opened(monolith: Session, service: Session) -> bool:
    """Return whether no migration is on record; refuse one whose owner is the monolith."""
    one, other = await sides.read(monolith), await sides.read(service)
    if other is None and one is None:
        return True
    if other is not None and other.is_hot and one is None:
        return True  # begun here, and cut off
    if one is None or other is None:
        await sides.read_both(monolith, service)  # raises
        raise AssertionError
    if sides.find_direction(one, other) is Direction.FORWARD:
        raise Refused(
            "The monolith owns the tables already",
            wanted="A service that takes the writes, and whose rows are to go back",
            todo="If the service was opened behind the migration's back, run `ordermigrate cancel` "
            "first, which leaves its rows as they are; then this command again",
        )
    return False


def _since(table: TableMap, *, is_source: bool) -> tuple[tuple[str, ...], sql.Composable]:
    """Return the columns by which rows of a map's source or target are taken, and the condition."""
    origins = {pair.name: pair.origin for pair in table.pairs}
    names = [name for name in (table.created, table.updated) if name is not None]
    if is_source:
        names = [name for each in names if (name := origins.get(each)) is not None]
    columns = tuple(dict.fromkeys(names))
    if not columns:
        return (), sql.SQL("$1::timestamptz IS NOT NULL")
    here = table.source if is_source else table.target
    return columns, sql.SQL(" OR ").join(
        sql.SQL("{} >= $1::timestamptz - interval {}").format(
            sql.Identifier("t", name), sql.Literal(_SLACK.get(_type_of(here, name), "0 hours"))
        )
        for name in columns
    )


def _type_of(table: Table, name: str) -> str:
    column = table.column(name)
    return "" if column is None else column.base_type


async def _count(session: Session, table: TableMap, side: Side, moment: datetime) -> Counted:
    here: Table = table.source if side is Side.MONOLITH else table.target
    columns, condition = _since(table, is_source=side is Side.MONOLITH)
    statement = queries.compose(
        "reclaiming", "count_rows_since", table=here.name.sql, is_since=condition
    )
    async with session.transaction():
        await session.set_local("statement_timeout", "0")
        (row,) = await session.run_long(statement, moment)
    return Counted(str(here.name), int(row.rows), columns)


def _require_unwritten(there: Sequence[Counted], moment: datetime) -> None:
    said = [
        f"{each.rows:,} of {each.table}"
        + ("" if each.columns else ", which has no column that tells, were perhaps")
        for each in there
        if each.rows
    ]
    if said:
        raise Refused(
            f"The monolith has rows that were created or changed since {moment.isoformat()}, or "
            f"may have been (times without a zone count from 12 hours before): {', '.join(said)}",
            wanted="A monolith to which nobody has written since the service was opened: its own "
            "writes would be overwritten or removed",
            todo="Give a moment after its last write, if all of the service's are later; look at "
            "those rows; or accept the loss with --accept-loss",
            findings=said,
        )


def _plan(
    maps: Sequence[TableMap], counted: Sequence[Counted], moment: datetime, *, is_new: bool
) -> OwnerChange:
    steps = []
    if is_new:
        steps.append("record the service as the owner, fence the monolith off, capture the service")
    for each, count in zip(maps, counted, strict=True):
        how = (
            f"{' or '.join(count.columns)} at or after {moment.isoformat()}"
            if count.columns
            else "all, for the configuration names no column that says when a row was written"
        )
        steps.append(f"take {count.rows:,} rows of {each.target.name} ({how})")
        steps.append(f"remove rows of {each.source.name} whose keys the service does not have")
    steps += [
        "apply them to the monolith while the service goes on, and compare all rows",
        "then `ordermigrate rollback`, with its gates",
    ]
    return OwnerChange(
        None,
        Phase.CUT_OVER,
        Direction.REVERSE,
        "planned",
        "service",
        None,
        steps=tuple(steps),
        notes=(_BLIND,),
    )


async def _begin(monolith: Session, service: Session, maps: Sequence[TableMap]) -> None:
    """Put on record that the service owns the tables; safe to repeat after being cut off.

    All that the service's ledger has to say comes first: once the monolith has its row, too, this
    is not done again.
    """
    async with service.transaction():
        run_id = await sides.install(service, str(uuid.uuid4()), is_hot=True)
        await service.fetch_all("sides", "set_epoch", 1)
        await ledger.install(service, run_id, __version__, monolith.identity)
        await _note_history(service, maps)
    async with monolith.transaction():
        await sides.install(monolith, run_id, is_hot=False)
        await monolith.fetch_all("sides", "set_epoch", 1)
        await ledger.install_records(monolith)
        await quarantine.install(monolith)


async def _note_history(service: Session, maps: Sequence[TableMap]) -> None:
    seen = {
        Side.MONOLITH: fingerprints.describe_side([each.source for each in maps], ()),
        Side.SERVICE: fingerprints.describe_side([each.target for each in maps], ()),
    }
    for side, described in seen.items():
        await ledger.note_structure(service, side, described)
    run = await ledger.read_run(service)
    if run is None:
        message = "a run that was just written is not there"
        raise AssertionError(message)
    for phase in _CHAIN[_CHAIN.index(run.phase) + 1 if run.phase in _CHAIN else 0 :]:
        run = await ledger.change_phase(service, run, phase, "rollback --since")


async def _seed(service: Session, back: Sequence[TableMap], moment: datetime) -> None:
    """Put into the service's logs what the moment takes, all at once."""
    logs = {log.table: log for log in await change_logs.read_all(service)}
    async with service.transaction():
        await service.set_local("statement_timeout", "0")
        for each in back:
            log = logs[each.label]
            # On the way back the service is the source.
            _, condition = _since(each, is_source=True)
            await service.run_long(
                queries.compose(
                    "reclaiming",
                    "log_rows_since",
                    log=log.name,
                    log_key=sql.SQL(", ").join(map(sql.Identifier, log.columns)),
                    key=sql.SQL(", ").join(sql.Identifier("t", name) for name in log.key),
                    table=each.source.name.sql,
                    is_since=condition,
                ),
                moment,
            )
            await change_logs.add_mark(service, log, COMPARE)


async def _require_equal(config: Config, reporter: Reporter, moment: datetime) -> None:
    """Compare all rows while the service goes on, and refuse to go on where some differ."""
    proved = await proving.validate(
        config, reporter, algorithm=Algorithm.MD5, max_differences=5, is_repairing=False
    )
    if proved.verdict.is_equal:
        return
    rows = sum(table.differences_total for table in proved.verdict.tables)
    raise Refused(
        f"{rows:,} rows of the service were changed without their columns saying that it was since "
        f"{moment.isoformat()}. The service is the owner still, and its writes are captured",
        wanted="Every row of the service on the monolith before that becomes the owner",
        todo="Run `ordermigrate validate --checksums --repair`, which finds and brings them all; "
        "then `ordermigrate rollback`",
    )
