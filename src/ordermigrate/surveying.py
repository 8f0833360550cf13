"""Preflight: look at both databases with every check, and tell all of what was found.

Nothing is changed, and no table is kept locked. A side that cannot be reached is a finding, and
so is whatever else a changing command would refuse for; a check that could not run is neither a
finding nor a pass, and is told by itself.
"""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Sequence

from ordermigrate import catalog, checks_servers, db, ledger, sides, situation
from ordermigrate.checks import CHECKS, Check
from ordermigrate.config import Config
from ordermigrate.control import Session
from ordermigrate.errors import OrdermigrateError, Refused, UsageError
from ordermigrate.findings import Finding, Severity, TableSize, Unchecked
from ordermigrate.model import Side
from ordermigrate.outcomes import Preflight
from ordermigrate.phases import Phase
from ordermigrate.survey import Survey


async def look(config: Config, skipped: Sequence[str] = ()) -> Preflight:
    """Run every check but those skipped.

    Args:
        config: The configuration.
        skipped: Keys of checks.

    Raises:
        UsageError: A key is none of a check, or a DSN cannot be parsed.

    """
    require_keys(skipped)
    for side in Side:
        db.check_dsn(side, config.dsn(side))
    async with contextlib.AsyncExitStack() as stack:
        survey = await _open(config, stack)
        findings: list[Finding] = []
        unchecked: list[Unchecked] = []
        for check in CHECKS:
            if check.key not in skipped:
                await _run(survey, check, findings, unchecked)
        sizes = await _measure(survey)
        run, phase, owner = await _read_run(survey)
    order = list(Severity)
    findings.sort(key=lambda each: order.index(each.severity))
    return Preflight(
        run, phase, owner, tuple(findings), tuple(unchecked), tuple(dict.fromkeys(skipped)), sizes
    )


def require_keys(keys: Sequence[str]) -> None:
    """Raise `UsageError` unless each is the key of a check."""
    known = [check.key for check in CHECKS]
    for key in keys:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.3)
            raise UsageError(
                f"There is no check {key!r}" + (f"; did you mean {near[0]}?" if near else ""),
                wanted="The key of a finding, as preflight tells it",
                todo="Correct --skip; docs/reference.md lists every key",
            )


async def _open(config: Config, stack: contextlib.AsyncExitStack) -> Survey:
    sessions: dict[Side, Session | OrdermigrateError] = {}
    faults: dict[Side, list[Refused]] = {side: [] for side in Side}
    for side in Side:
        try:
            session = await db.connect(
                config, side, "preflight", is_first=True, faults=faults[side]
            )
        except OrdermigrateError as lost:
            sessions[side] = lost
            continue
        stack.push_async_callback(session.close)
        await session.fetch_all("survey", "refuse_to_write")
        sessions[side] = session
    return Survey(config, sessions, faults)


async def _run(
    survey: Survey, check: Check, findings: list[Finding], unchecked: list[Unchecked]
) -> None:
    for side in check.sides or (None,):
        try:
            spots = await check.see(survey, side or Side.MONOLITH)
        except OrdermigrateError as error:
            unchecked.append(Unchecked(check.key, side, error.fact))
            continue
        findings += [
            Finding(
                check.key, check.severity, side, spot.said, check.meaning, spot.todo or check.todo
            )
            for spot in spots
        ]


async def _measure(survey: Survey) -> tuple[TableSize, ...]:
    """Return how large each table is on the monolith, where that can be told."""
    try:
        presences = await survey.presences(Side.MONOLITH)
        sizes = await checks_servers.read_sizes(survey, Side.MONOLITH)
    except OrdermigrateError:
        presences, sizes = list[catalog.Presence](), {}
    oids = {each.name: each.oid for each in presences}
    found: list[TableSize] = []
    for each in survey.config.tables:
        size, rows = sizes.get(oids.get(each.name) or 0, (None, None))
        found.append(TableSize(str(each.name), str(each.target), rows, size))
    return tuple(found)


async def _read_run(survey: Survey) -> tuple[str | None, Phase | None, str | None]:
    """Return the migration that is on record, its phase and owner; None where it is not known."""
    try:
        monolith, service = survey.session(Side.MONOLITH), survey.session(Side.SERVICE)
        run = await ledger.read_run(service)
        owner, _ = situation.find_owner(*await sides.read_both(monolith, service))
    except OrdermigrateError:
        return None, None, None
    return (run.run, run.phase, owner) if run else (None, Phase.NEW, owner)
