"""Steering: the command `traffic`, which leads users' reads over to the service, and back.

Up only through the gates, both databases at hand; down always, and with one of them alone if need
be. What it sets is kept in the databases, where applications ask for it.
"""

from __future__ import annotations

from ordermigrate import change_logs, db, gates, ledger, proof, quarantine, sides, traffic
from ordermigrate.config import Config
from ordermigrate.control import Session
from ordermigrate.errors import Refused, Unavailable, UsageError
from ordermigrate.ledger import Run
from ordermigrate.model import Side
from ordermigrate.outcomes import TrafficResult
from ordermigrate.phases import Phase
from ordermigrate.progress import Reporter, TrafficSet
from ordermigrate.sqlstates import ConnectionLost
from ordermigrate.traffic import Share

_Shares = dict[Side, Share | None]
_BY_HAND = "set by `ordermigrate traffic`"


async def steer(config: Config, percentage: int | None, reporter: Reporter) -> TrafficResult:
    """Show or set the share of users whose reads go to the service; see `migration.traffic`."""
    if percentage is not None and percentage not in traffic.STEPS:
        raise UsageError(
            f"{percentage} is none of the steps",
            wanted=f"One of {', '.join(map(str, traffic.STEPS))}",
            todo="Choose one of these",
        )
    try:
        async with db.open_pair(config, "traffic") as (monolith, service):
            run = await _require_run(monolith, service)
            before = await _read(monolith, service)
            notes: list[str] = []
            if percentage is not None:
                _require_monolith_owns(before, await sides.read_both(monolith, service))
                await _set(config, (monolith, service), run, before, percentage, notes)
            after = await _read(monolith, service)
            is_changed = _percentages(before) != _percentages(after)
            if is_changed and percentage is not None:
                reporter.report(TrafficSet(percentage))
            return await _result(service, run, after, notes, is_changed=is_changed)
    except ConnectionLost as lost:
        if percentage is None:
            raise
        raise await _lower_what_is_there(config, percentage, lost) from lost


async def _require_run(monolith: Session, service: Session) -> Run:
    run = await gates.read_run(monolith, service)
    one, _ = await sides.read_both(monolith, service)
    if run is None or one is None:
        raise Refused(
            "There is no migration between these two databases, or its preparation was cut short",
            wanted="One whose reads can be led over",
            todo="Run `ordermigrate prepare` and `ordermigrate copy` if one is wanted",
        )
    return run


def _require_monolith_owns(
    shares: _Shares, rows: tuple[sides.SideRow | None, sides.SideRow | None]
) -> None:
    one, other = rows
    is_handed_over = any(share.is_service_owner for share in shares.values() if share)
    if is_handed_over or (one and not one.is_hot) or (other and other.is_hot):
        raise _owned_by_service()


def _owned_by_service() -> Refused:
    return Refused(
        "The service owns the tables now: all reads belong to it",
        wanted="A monolith that owns them, of whose reads a share can be led over",
        todo="Nothing is left to do; `ordermigrate rollback` would make the monolith the owner "
        "again, and lead all reads back to it",
    )


async def _read(monolith: Session, service: Session) -> _Shares:
    return {session.side: await traffic.read(session) for session in (monolith, service)}


def _percentages(shares: _Shares) -> dict[Side, int]:
    return {side: share.percentage if share else 0 for side, share in shares.items()}


async def _set(
    config: Config,
    sessions: tuple[Session, Session],
    run: Run,
    before: _Shares,
    percentage: int,
    notes: list[str],
) -> None:
    monolith, service = sessions
    if percentage <= min(_percentages(before).values()):
        # What is urgent first: whoever goes by the monolith has stopped when the service follows.
        for session in (monolith, service):
            await traffic.lower(session, percentage, _BY_HAND)
        notes += await _install(config, sessions)
        return
    await ledger.take_operator_lock(service)
    notes += await _install(config, sessions)
    async with traffic.raising(monolith, service, percentage, _BY_HAND):
        await _require_open_gates(config, monolith, service, run, percentage)


async def _install(config: Config, sessions: tuple[Session, Session]) -> list[str]:
    """Make, on the service first, what applications ask; return which readers are no roles."""
    return [
        f"the {session.side}'s server has no role {name}: it cannot ask there"
        for session in reversed(sessions)
        for name in await traffic.install(session, config.traffic.readers)
    ]


async def _require_open_gates(
    config: Config, monolith: Session, service: Session, run: Run, percentage: int
) -> None:
    """Raise `Refused`, with every reason, unless the service is in step and proved equal."""
    found: list[str] = []
    if run.phase is not Phase.SYNCING:
        found.append(f"the migration is in phase {run.phase}: the service is not kept in step yet")
    found.extend(
        f"of {table.name} only the rows `where {table.where}` are on the service"
        for table in config.tables
        if table.where != "true"
    )
    found.extend(quarantine.describe(await quarantine.count(monolith)))
    lag = (await change_logs.measure_all(monolith)).age_seconds
    limit = config.limits.max_lag_seconds
    if lag > limit:
        found.append(f"the service is {lag:.1f} s behind; max_lag_seconds allows {limit:g}")
    found.extend(
        proof.find_doubts(
            await ledger.read_last_validation(service), config.limits.validation_age_minutes
        )
    )
    if found:
        raise Refused(
            f"The share of reads was not raised to {percentage} %: {'; '.join(found)}",
            wanted="A service that is kept in step, and was proved equal not long ago",
            todo="Keep `ordermigrate sync` running, run `ordermigrate validate --checksums`, and "
            "then this command again",
            findings=found,
        )


async def _result(
    service: Session, run: Run, shares: _Shares, notes: list[str], *, is_changed: bool
) -> TrafficResult:
    one, other = shares[Side.MONOLITH], shares[Side.SERVICE]
    is_syncing = await ledger.is_sync_at_work(service)
    is_handed_over = any(share.is_service_owner for share in (one, other) if share)
    if not is_syncing and not is_handed_over and any(_percentages(shares).values()):
        notes.append("sync is not running: the service falls behind, and nobody holds reads back")
    last = one or other
    return TrafficResult(
        run.run,
        run.phase,
        "service" if is_handed_over else "monolith",
        await ledger.read_last_validation(service),
        one.percentage if one else None,
        other.percentage if other else None,
        last.reason if last else None,
        last.changed_at.isoformat() if last else None,
        is_syncing,
        tuple(notes),
        is_changed,
    )


async def _lower_what_is_there(config: Config, percentage: int, lost: ConnectionLost) -> Exception:
    """Step down where a database answers, and return the error that tells what is left to do."""
    limits = config.limits.model_copy(update={"retry_deadline_seconds": 0.0})
    config = config.model_copy(update={"limits": limits})
    done: list[Side] = []
    for side in Side:
        try:
            async with db.opened(config, side, "traffic") as session:
                await sides.read(session)
                share = await traffic.read(session)
                if share is not None and share.is_service_owner:
                    return _owned_by_service()
                if share is None or percentage > share.percentage:
                    return lost  # a step up takes both, and so does the first step of all
                await traffic.lower(session, percentage, _BY_HAND)
                done.append(side)
        except ConnectionLost as away:
            lost = away
    if len(done) != 1:  # none; or the one that was away is back
        return lost
    return Unavailable(
        f"The share of reads is {percentage} % by the {done[0]}'s word, and not by the "
        f"{done[0].other}'s: {lost.fact}",
        wanted=f"{percentage} % in both databases; who asks the other one goes by what it said "
        "last",
        todo=f"Run `ordermigrate traffic {percentage}` again when it is back",
    )
