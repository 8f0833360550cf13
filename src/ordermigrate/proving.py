"""Validation of a migration: aligned with the writes that go on, recorded, and repaired if wanted.

Both sides have to be read as of the same moment. A round is run; before it commits, the scanner on
the source takes over its snapshot; and before another round can begin, the one on the target takes
its own. Both see frozen states that are to be equal, while writers write and sync goes on.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Sequence
from dataclasses import dataclass, field

from ordermigrate import (
    catalog,
    change_logs,
    db,
    following,
    gates,
    ledger,
    preflight,
    scanning,
    sync,
)
from ordermigrate import validate as validation
from ordermigrate.config import Config
from ordermigrate.control import Session
from ordermigrate.digest import Algorithm
from ordermigrate.errors import Refused
from ordermigrate.following import Footing
from ordermigrate.ledger import Run, Standing
from ordermigrate.locks import GaveWay
from ordermigrate.model import Side, TableMap, names_read
from ordermigrate.outcomes import Validation, describe_table
from ordermigrate.phases import FOLLOWED, Phase
from ordermigrate.progress import Repairing, Reporter
from ordermigrate.rounds import Line
from ordermigrate.sqlstates import ConnectionLost
from ordermigrate.stream_sessions import StreamSession
from ordermigrate.sync import Tally
from ordermigrate.verdicts import Verdict


@dataclass(slots=True)
class _Repairs:
    """Puts keys of differing rows into the source's logs, and counts them.

    The count outlives the connections: what is in a log is applied, by whomever.
    """

    reporter: Reporter
    rows: dict[str, int] = field(default_factory=dict)

    @property
    def count(self) -> int:
        """How many rows there were, of all tables."""
        return sum(self.rows.values())

    async def add(
        self, footing: Footing, table: TableMap, keys: Sequence[Sequence[str | None]]
    ) -> None:
        """Have the next round look at some rows."""
        log = footing.line.logs[table.label]
        await change_logs.add_keys(footing.hot, log, table.source, keys)
        self.rows[table.label] = self.rows.get(table.label, 0) + len(keys)
        self.reporter.report(Repairing(table.label, self.rows[table.label]))


async def validate(
    config: Config,
    reporter: Reporter,
    *,
    algorithm: Algorithm | None,
    max_differences: int,
    is_repairing: bool,
) -> Validation:
    """Compare both sides; see `migration.validate`."""
    async with db.open_pair(config, "validate") as (monolith, service):
        run = await gates.read_run(monolith, service)
        is_following = run is not None and run.phase in FOLLOWED
        if is_repairing and not is_following:
            raise Refused(
                "Only a migration whose copy is complete can be repaired",
                wanted="Change logs, and rounds that apply them",
                todo="Run `ordermigrate copy` first, or leave --repair out",
            )
    if is_repairing and algorithm is None:
        algorithm = Algorithm.MD5
    if not is_following:
        return await _validate_still(config, reporter, algorithm, max_differences)
    tally = Tally()
    repairs = _Repairs(reporter) if is_repairing else None

    async def work() -> Validation:
        async with following.stand(config, "validate", reporter) as footing:
            return await _validate_aligned(
                config, footing, tally, reporter, algorithm, max_differences, repairs
            )

    return await following.persist_to_end(config, tally, reporter, work)


async def _validate_still(
    config: Config, reporter: Reporter, algorithm: Algorithm | None, max_differences: int
) -> Validation:
    """Compare two sides between which no rounds run, each as it is at the moment."""
    async with db.open_pair(config, "validate") as (monolith, service):
        run = await gates.read_run(monolith, service)
        await catalog.require_tables(monolith, [each.name for each in config.tables])
        await catalog.require_tables(service, [each.target for each in config.tables])
        await preflight.require_visible_rows(monolith, service, config.tables)
        maps = await gates.read_maps(config, monolith, service)
        standing = await ledger.read_standing(service) if run is not None else None
        scanners = await validation.open_scanners((monolith, service), maps, config.limits)
        async with db.opened(config, Side.MONOLITH, "validate: watch") as watcher:
            verdict = await validation.compare(
                scanners,
                monolith,
                watcher,
                maps,
                reporter,
                algorithm=algorithm,
                max_differences=max_differences,
            )
        number = None
        if run is not None and standing is not None:
            number = await _record(service, run, standing, verdict)
    return Validation(run.run if run else None, run.phase if run else Phase.NEW, verdict, number)


async def _validate_aligned(
    config: Config,
    footing: Footing,
    tally: Tally,
    reporter: Reporter,
    algorithm: Algorithm | None,
    max_differences: int,
    repairs: _Repairs | None,
) -> Validation:
    repair = functools.partial(repairs.add, footing) if repairs else None
    while True:
        known = repairs.count if repairs else 0
        standing, scanners = await _align(config, footing, tally, reporter)
        verdict = await validation.compare(
            scanners,
            footing.hot,
            footing.line.watcher,
            footing.maps,
            reporter,
            algorithm=algorithm,
            max_differences=max_differences,
            repair=repair,
        )
        number = await _record(footing.service, footing.run, standing, verdict)
        if repairs is None or repairs.count == known:
            return Validation(
                footing.run.run,
                footing.run.phase,
                verdict,
                number,
                repaired_rows=repairs.count if repairs else 0,
                is_syncing=await ledger.is_sync_at_work(footing.service),
                owner=footing.hot.side.value,
            )
        # The next round applies them, and the next verdict tells whether that was all.
        repair = None


async def _align(
    config: Config, footing: Footing, tally: Tally, reporter: Reporter
) -> tuple[Standing, list[StreamSession]]:
    """Open a scanner on each side, both as of the snapshot of one round.

    Returned with it is what had made void before that snapshot: all that comes later counts.
    """
    line, limits = footing.line, config.limits
    sources, targets = validation.tables_of(footing.maps)
    scanners: list[StreamSession] = []

    async def take_over(snapshot: str) -> None:
        names = names_read(footing.maps)
        scanners.append(await scanning.open_scanner(footing.hot, names, limits, snapshot))

    try:
        await line.target.fetch_one("rounds", "hold_turn")
        try:
            while True:
                standing = await ledger.read_standing(footing.service)
                done = await sync.run_whole(line, tally, reporter, take_over)
                if not done.is_timeline_new:
                    break
                # This very round has made void what is older than itself; the next one does not.
                scanners.pop().terminate()
            names = [table.name for table in targets]
            scanners.append(await scanning.open_scanner(footing.cold, names, limits))
        except BaseException:
            with contextlib.suppress(Exception):  # it goes with the session, too
                await line.target.fetch_one("rounds", "release_turn")
            raise
        await _release_turn(line)
        for session, tables in zip((footing.hot, footing.cold), (sources, targets), strict=True):
            await catalog.require_unchanged(session, tables)
    except BaseException:
        for scanner in scanners:
            scanner.terminate()
        raise
    return standing, scanners


async def _release_turn(line: Line) -> None:
    """Let others run rounds again, and see that none could until now.

    Raises:
        ConnectionLost: The turn was lost, so a round may have come between the two snapshots.

    """
    row = await line.target.fetch_one("rounds", "release_turn")
    if not row["was_held"]:
        raise ConnectionLost(
            f"The lock that keeps rounds out was lost on the {line.target.side}",
            wanted="No round between the two snapshots that are compared",
            todo="Run `ordermigrate validate` again; if this comes again, see that nothing between "
            "here and the database releases the locks of a session",
        )


class _Overtaken(GaveWay):
    """What was compared has changed in the meantime, in a way that no log tells."""


async def _record(service: Session, run: Run, standing: Standing, verdict: Verdict) -> int:
    """Record a verdict and return its number.

    Raises:
        Unavailable: Both sides were equal, but that proves nothing any more.

    """
    number = await ledger.record_validation(
        service,
        run.run,
        standing,
        "equal" if verdict.is_equal else "different",
        verdict.algorithm,
        [describe_table(each) for each in verdict.tables],
        verdict.seconds,
    )
    recorded = await ledger.read_last_validation(service, number)
    if verdict.is_equal and recorded is not None and recorded.is_void:
        raise _Overtaken(
            f"Both sides were equal, but while they were compared this happened: "
            f"{recorded.void_because}",
            wanted="A comparison during which nothing happens that can change rows without a trace",
            todo="Run `ordermigrate validate --checksums` again",
        )
    return number
