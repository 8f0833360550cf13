"""The whole job: rows, primary key, six indexes, statistics, from an empty database.

The limit is what the servers themselves need for it: CPU seconds of COPY to /dev/null, of COPY
from a file into the bare table, and of the index builds one after the other, with nothing else at
work, shared over the cores. Nobody who moves rows by COPY can be faster with these servers.
"""

from __future__ import annotations

import re
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable
from typing import Final

from psycopg import sql

from benchmarks.ground import ALONE_SOURCE, SOURCE, TARGET, Ground, execute, fetch, total
from benchmarks.measure import Contestant, Series, SeriesByName, WrongResult
from benchmarks.programs import TIMEOUT_SECONDS, Usage
from benchmarks.results import Target, compare

OURS: Final = "ordermigrate copy"
DUMP: Final = "pg_dump -Fd, pg_restore"
PGCOPYDB: Final = "pgcopydb"
REPLICATION: Final = "logical replication"
LIMIT: Final = "the limit"
MOST_OF_LIMIT: Final = 1.10
OLD_PGCOPYDB: Final = "0.10"
MOST_OF_OLD_PGCOPYDB: Final = 0.67
MOST_OF_NEW_PGCOPYDB: Final = 0.85
# What ordermigrate builds with, measured to be the cheapest: the limit must not be a lax one.
BUILD_SETTINGS: Final = (
    "SET maintenance_work_mem = '16MB'; SET max_parallel_maintenance_workers = 0"
)
_PUBLICATION: Final = "benchmark"
_POLL_SECONDS: Final = 0.02


def make_contestants(ground: Ground) -> list[Contestant]:
    """Return who takes part; pgcopydb where there is one."""

    def verify(is_thorough: bool) -> None:  # noqa: FBT001  the protocol's shape
        ground.verify_job(TARGET, SOURCE, is_thorough=is_thorough)

    def contestant(name: str, note: str, run: Callable[[], Usage]) -> Contestant:
        return Contestant(name, note, ground.make_target, run, verify)

    found = [
        make_ours(ground, OURS, SOURCE, TARGET),
        contestant(
            DUMP,
            "pg_dump -Fd -j 2, then pg_restore -j 2, then ANALYZE",
            lambda: _dump_and_restore(ground),
        ),
        _make_replication(ground, verify),
        _make_limit(ground, verify),
    ]
    version = find_pgcopydb(ground)
    if version:
        options = _pgcopydb_options(ground, version)
        note = f"{version}: clone {' '.join(options)} (its own VACUUM ANALYZE included)"
        found.insert(1, contestant(PGCOPYDB, note, lambda: _clone(ground, options)))
    return found


def make_ours(ground: Ground, name: str, source: str, target: str) -> Contestant:
    """Return our whole command as a contestant, on any source."""

    def prepare() -> None:
        ground.forget_migration(source)
        ground.make_target(target)

    def run() -> Usage:
        return ground.ordermigrate("copy", source=source, target=target).usage

    def verify(is_thorough: bool) -> None:  # noqa: FBT001  the protocol's shape
        ground.verify_job(target, source, is_thorough=is_thorough)

    note = "the whole command, start of Python, capture and ledger included"
    return Contestant(name, f"ordermigrate copy: {note}", prepare, run, verify)


def _dump_and_restore(ground: Ground) -> Usage:
    dump = ground.folder / "dump"
    shutil.rmtree(dump, ignore_errors=True)
    try:
        steps = (
            [
                ground.program("pg_dump"),
                *("-Fd", "-j", "2", "-f", str(dump)),
                ground.source(ALONE_SOURCE),
            ],
            [ground.program("pg_restore"), "-j", "2", "-d", ground.target(), str(dump)],
            ground.psql(ground.target(), "ANALYZE public.orders"),
        )
        usage = Usage()
        for step in steps:
            usage += total(ground.run([step]))
        return usage
    finally:
        shutil.rmtree(dump, ignore_errors=True)


def find_pgcopydb(ground: Ground) -> str | None:
    """Return the version of the pgcopydb on the PATH, if there is one."""
    if shutil.which("pgcopydb") is None:
        return None
    said = ground.run([["pgcopydb", "--version"]])[0].output
    found = re.search(r"version (\d+\.\d+)", said)
    return found[1] if found else None


def _pgcopydb_options(ground: Ground, version: str) -> list[str]:
    """Return the fastest options that this version knows."""
    del ground
    asked = subprocess.run(
        ["pgcopydb", "clone", "--help"], capture_output=True, text=True, check=False
    )
    known = asked.stdout + asked.stderr
    options = ["--table-jobs", "2", "--index-jobs", "2", "--no-owner", "--no-acl"]
    options.append("--skip-large-objects")
    if version != OLD_PGCOPYDB:  # which splits tables by an integer key only
        options += ["--split-tables-larger-than", "64MB"]
    if "--use-copy-binary" in known:
        options.append("--use-copy-binary")
    return options


def _clone(ground: Ground, options: list[str]) -> Usage:
    folder = ground.folder / "pgcopydb"
    shutil.rmtree(folder, ignore_errors=True)
    try:
        return total(
            ground.run(
                [
                    [
                        *("pgcopydb", "clone", "--dir", str(folder), *options),
                        *("--source", ground.source(ALONE_SOURCE), "--target", ground.target()),
                    ]
                ]
            )
        )
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _make_replication(ground: Ground, verify: Callable[[bool], None]) -> Contestant:
    """Return a subscription's initial copy: it fills a table that has its indexes already."""

    def prepare() -> None:
        clean()
        ground.make_target(has_tables=True)
        execute(
            ground.source(),
            sql.SQL("CREATE PUBLICATION {} FOR TABLE public.orders").format(
                sql.Identifier(_PUBLICATION)
            ),
        )

    def run() -> Usage:
        execute(
            ground.target(),
            sql.SQL("CREATE SUBSCRIPTION {name} CONNECTION {dsn} PUBLICATION {name}").format(
                name=sql.Identifier(_PUBLICATION), dsn=sql.Literal(ground.source())
            ),
        )
        deadline = time.monotonic() + TIMEOUT_SECONDS
        query = "SELECT bool_and(srsubstate IN ('r', 's')) FROM pg_subscription_rel"
        while not fetch(ground.target(), query)[0][0]:
            if time.monotonic() > deadline:
                raise WrongResult("The subscription's initial copy does not end")
            time.sleep(_POLL_SECONDS)
        return total(ground.run([ground.psql(ground.target(), "ANALYZE public.orders")]))

    def clean() -> None:
        if fetch(ground.service.dsn(), "SELECT 1 FROM pg_subscription"):
            execute(
                ground.target(),
                sql.SQL("DROP SUBSCRIPTION IF EXISTS {}").format(sql.Identifier(_PUBLICATION)),
            )
        execute(
            ground.source(),
            sql.SQL("DROP PUBLICATION IF EXISTS {}").format(sql.Identifier(_PUBLICATION)),
        )

    def verify_and_clean(is_thorough: bool) -> None:  # noqa: FBT001  the protocol's shape
        try:
            verify(is_thorough)
        finally:
            clean()

    return Contestant(
        REPLICATION,
        "CREATE SUBSCRIPTION until the table is ready, indexes in place, then ANALYZE",
        prepare,
        run,
        verify_and_clean,
    )


def _make_limit(ground: Ground, verify: Callable[[bool], None]) -> Contestant:
    # Both servers run as the same user of the system.
    file = ground.service.data_dir / "orders.copy"
    columns = ", ".join(ground.columns())
    out = f"COPY public.orders ({columns}) TO '{{}}' (FORMAT binary)"
    ground.run([ground.psql(ground.source(), out.format(file))])
    definitions: list[str] = []

    def prepare() -> None:
        ground.make_target(has_tables=True)
        definitions[:] = ground.drop_indexes()

    def run() -> Usage:
        builds = "; ".join([BUILD_SETTINGS, *definitions])
        for dsn, query in (
            (ground.source(), out.format("/dev/null")),
            (ground.target(), f"COPY public.orders ({columns}) FROM '{file}' (FORMAT binary)"),
            (ground.target(), builds),
        ):
            ground.run([ground.psql(dsn, query)])
        return Usage()

    def analyze_and_verify(is_thorough: bool) -> None:  # noqa: FBT001  the protocol's shape
        execute(ground.target(), "ANALYZE public.orders")
        verify(is_thorough)

    return Contestant(
        LIMIT,
        "CPU seconds of COPY TO '/dev/null', COPY FROM a file, CREATE INDEX one by one, over the "
        "cores",
        prepare,
        run,
        analyze_and_verify,
        is_limit=True,
    )


def judge(series: SeriesByName) -> list[Target]:
    """Return the targets, and what was measured."""
    targets = []
    if PGCOPYDB in series:
        is_old = series[PGCOPYDB].note.startswith(f"{OLD_PGCOPYDB}:")
        most = MOST_OF_OLD_PGCOPYDB if is_old else MOST_OF_NEW_PGCOPYDB
        targets.append(compare("whole job", series[OURS], series[PGCOPYDB], at_most=most))
    targets.append(compare("whole job", series[OURS], series[LIMIT], at_most=MOST_OF_LIMIT))
    targets.append(_compare_cpu(series[OURS], series[LIMIT]))
    return targets


def _compare_cpu(ours: Series, limit: Series) -> Target:
    """Return all CPU seconds, client and servers, over those of the limit.

    Where other programs are at work on the machine the clock tells of them, too; this does not.
    """
    ratios = [
        (mine.client_cpu_seconds + mine.server_cpu_seconds) / theirs.server_cpu_seconds
        for mine, theirs in zip(ours.samples, limit.samples, strict=True)
        if mine.server_cpu_seconds is not None and theirs.server_cpu_seconds
    ]
    return Target(
        f"whole job, CPU seconds: {ours.name} / {limit.name}",
        statistics.median(ratios) if ratios else None,
        MOST_OF_LIMIT,
        spread=(min(ratios), max(ratios)) if ratios else None,
    )
