"""Situation: where a migration stands, from what the two databases say; nothing is changed.

Who owns the tables is told by the two side rows alone. Where they do not agree, that comes first.
"""

from __future__ import annotations

from ordermigrate import (
    capture,
    catalog,
    change_logs,
    db,
    fence,
    gates,
    ledger,
    parents,
    quarantine,
    rounds,
    sides,
    traffic,
)
from ordermigrate.config import Config
from ordermigrate.control import Session
from ordermigrate.errors import LockTimeout, Refused, Stranded, UsageError
from ordermigrate.model import Dependence, OwnTrigger, Side, Table, collect_parents
from ordermigrate.outcomes import Status, SyncStatus, TableStatus
from ordermigrate.phases import Phase
from ordermigrate.quarantine import Quarantined
from ordermigrate.sides import NoOwner, SideRow

# Of rows in quarantine, so many are told of one by one.
MAX_SHOWN = 100
_KINDS = ("index", "check", "trigger", "foreign_key")


async def read(config: Config) -> Status:
    """Tell where the migration stands."""
    async with db.open_pair(config, "status") as (monolith, service):
        run = await gates.read_run(monolith, service)
        one, other = await sides.read_both(monolith, service)
        owner, alarm = find_owner(one, other)
        return Status(
            run.run if run else None,
            run.phase if run else Phase.NEW,
            run.phase_since.isoformat() if run else None,
            owner,
            monolith.identity,
            service.identity,
            await _read_tables(config, monolith, service),
            await _read_objects(monolith, service) if run else (),
            await ledger.read_last_validation(service) if run else None,
            await _read_sync(monolith, service, config, owner) if run else None,
            alarm,
            max(one.epoch if one else 0, other.epoch if other else 0),
            await _read_quarantine(monolith, service),
            await _read_traffic(monolith, service) if run else None,
        )


async def _read_traffic(monolith: Session, service: Session) -> dict[str, int | None]:
    shares = {each.side.value: await traffic.read(each) for each in (monolith, service)}
    return {side: share.percentage if share else None for side, share in shares.items()}


async def _read_quarantine(monolith: Session, service: Session) -> tuple[Quarantined, ...]:
    found: list[Quarantined] = []
    for session in (monolith, service):
        found += await quarantine.read_all(session, MAX_SHOWN)
    return tuple(found)


def find_owner(one: SideRow | None, other: SideRow | None) -> tuple[str, str | None]:
    """Return who owns the tables, and what is to be shouted, if anything is."""
    if one is None or other is None:
        return Side.MONOLITH.value, None
    try:
        direction = sides.find_direction(one, other)
    except (NoOwner, Stranded) as alarm:
        return "none", str(alarm)
    owner, cold = (one, other) if direction.source is Side.MONOLITH else (other, one)
    if owner.epoch < cold.epoch:
        return owner.side.value, (
            f"The {owner.side} owns the tables in epoch {owner.epoch}, and the {cold.side} knows "
            f"of epoch {cold.epoch}: the {owner.side}'s database has gone back in time and has "
            f"lost writes. {rounds.GONE_BACK}"
        )
    return owner.side.value, None


async def _read_tables(
    config: Config, monolith: Session, service: Session
) -> tuple[TableStatus, ...]:
    totals = await ledger.read_totals(service) if await ledger.read_run(service) else {}
    listed = await catalog.find_tables(monolith, [each.name for each in config.tables])
    estimates = {each.name: each.rows_estimate for each in listed}
    tables = []
    for each in config.tables:
        total = totals.get(str(each.name), ledger.Totals(0, 0, 0, 0))
        tables.append(
            TableStatus(
                str(each.name),
                str(each.target),
                total.copied_rows
                if total.chunks and total.is_complete
                else max(estimates[each.name], total.copied_rows),
                total.copied_rows,
                total.copied_bytes,
                total.chunks,
                total.chunks_copied,
            )
        )
    return tuple(tables)


async def _read_objects(monolith: Session, service: Session) -> tuple[str, ...]:
    """Return what is off on either side, and comes back when that side owns the tables."""
    return tuple(
        [
            f"{each.kind.replace('_', ' ')} {each.name} on {each.table_name}"
            + ("" if session is service else " (monolith)")
            for session in (service, monolith)
            if await ledger.has_records(session)
            for each in await ledger.read_objects(session, *_KINDS)
        ]
    )


async def _find_unwatched(
    config: Config, monolith: Session, triggers: list[OwnTrigger], owner: str
) -> list[str]:
    """Say what of the tables that columns depend on is not watched while the monolith owns all."""
    if owner != Side.MONOLITH.value or not gates.parents_of(config):
        return []
    names = gates.parents_of(config)
    try:
        await catalog.require_tables(monolith, names)
        tables = await catalog.read_tables(monolith, names)
    except (LockTimeout, Refused, UsageError) as unreadable:
        return [f"what columns depend on cannot be looked at: {unreadable.fact}"]
    read = [
        Dependence(tables[rule.depends.table], tuple(rule.depends.columns), rule.depends.keys)
        for table in config.tables
        for rule in table.columns.values()
        if rule.depends is not None
    ]
    return parents.find_gaps(collect_parents(read), triggers)


async def _read_sync(
    monolith: Session, service: Session, config: Config, owner: str
) -> SyncStatus | None:
    """Tell how far the cold side is behind, and whether fence and capture are whole."""
    is_reverse = owner == Side.SERVICE
    hot, cold = (service, monolith) if is_reverse else (monolith, service)
    logs = await change_logs.read_all(hot)
    if not logs:
        return None
    gaps = await change_logs.find_missing(hot, gates.names_on(config, hot.side))
    backlog = await change_logs.measure_all(hot, [] if gaps else logs)
    triggers = {each.side: await catalog.read_own_triggers(each) for each in (monolith, service)}
    tables: dict[Side, list[Table]] = {}
    for session in (monolith, service):
        found = await catalog.find_tables(session, gates.names_on(config, session.side))
        present = [each.name for each in found if each.kind in {"r", "p"}]
        try:
            tables[session.side] = list((await catalog.read_tables(session, present)).values())
        except (LockTimeout, Refused) as unreadable:
            # Somebody is altering them, or has: what else there is to tell is wanted all the more.
            gaps.append(f"the {session.side}'s tables cannot be looked at: {unreadable.fact}")
    if owner != "none":
        gaps += capture.find_gaps(tables.get(hot.side, []), triggers[hot.side])
        gaps += await _find_unwatched(config, monolith, triggers[Side.MONOLITH], owner)
    return SyncStatus(
        backlog.changes,
        backlog.age_seconds,
        await ledger.is_sync_at_work(service),
        await ledger.read_last_round(service),
        {side.value: fence.describe(tables[side], triggers[side]) for side in tables},
        await fence.count_refused(cold),
        tuple(gaps),
    )
