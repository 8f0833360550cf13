"""A long run of sync under steady writes: does anything grow? `python -m benchmarks.soak`.

Sampled all along: the memory of sync, size and dead rows of the change log, dead rows of the
service's table, backlog, and lag. Nothing may be higher in the last quarter of the run than in the
second one, but for a slack; the first quarter is for warming up. Inserts and deletes balance, so
the table itself does not grow. Exits with 1 where something does, or a row is lost.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import asyncpg
import uvloop

from benchmarks import results
from benchmarks.ground import SETTINGS, SOURCE, TARGET, Ground, open_ground
from benchmarks.measure import WrongResult, tell
from benchmarks.programs import Running
from benchmarks.results import Table
from benchmarks.traffic import Observed, Traffic, open_traffic

# Vacuum comes as it does in a real database, only sooner: a short run must see some of it.
SOAK_SETTINGS: Final = {
    **SETTINGS,
    "autovacuum": "on",
    "autovacuum_naptime": "5s",
    "autovacuum_vacuum_scale_factor": 0.05,
}
QUARTERS: Final = 4
MOST_GROWTH: Final = 1.1
_LEAST_SAMPLES: Final = 60
_MOST_SAMPLES: Final = 720
_LONGEST_PAUSE_SECONDS: Final = 5.0
_ROWS_SHOWN: Final = 12
_DRAIN_SECONDS: Final = 120.0
_MIB: Final = 2**20

_LOG_STATE: Final = """
SELECT sum(pg_catalog.pg_total_relation_size(relid))::bigint, sum(n_dead_tup)::bigint
FROM pg_catalog.pg_stat_user_tables
WHERE schemaname = 'ordermigrate' AND relname LIKE 'change\\_log\\_%'
"""
_DEAD_ROWS: Final = """
SELECT n_dead_tup FROM pg_catalog.pg_stat_user_tables WHERE relid = 'public.orders'::regclass
"""


@dataclass(frozen=True, slots=True)
class Measure:
    """What is watched, and by how much more than MOST_GROWTH it may waver."""

    name: str
    slack: float


MEASURES: Final = (
    Measure("sync MiB", 2.0),
    Measure("log MiB", 2.0),
    Measure("log dead rows", 5000.0),
    Measure("service dead rows", 5000.0),
    Measure("backlog", 1000.0),
    Measure("lag s", 0.5),
)


@dataclass(frozen=True, slots=True)
class Sample:
    """The measures at one moment, in the order of MEASURES."""

    minutes: float
    values: tuple[float, ...]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, print, and return 0 where nothing grew."""
    chosen = _parse(arguments)
    seconds = chosen.minutes * 60.0
    with open_ground(chosen.rows, "C.UTF-8", SOAK_SETTINGS) as ground:
        ground.start_migration(SOURCE, TARGET)
        logs = [log.as_string() for log in ground.change_logs(SOURCE)]
        with ground.syncing(SOURCE, TARGET) as sync:
            tell(f"{chosen.rate} writes per second for {chosen.minutes:g} minutes")
            samples, seen = uvloop.run(_soak(ground, sync, logs, seconds, float(chosen.rate)))
            sync.stop()
        ground.catch_up(SOURCE, TARGET)
        ground.verify_rows(TARGET, SOURCE, is_thorough=True)
    grown = find_growth(samples)
    sys.stdout.write("\n".join(_report(samples, seen, grown)) + "\n")
    return 1 if grown else 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.soak",
        description="Run ordermigrate sync under steady writes, and tell whether anything grows.",
    )
    parser.add_argument("--minutes", type=_minutes, default=60.0, metavar="N")
    parser.add_argument("--rows", type=int, default=50_000, metavar="N")
    parser.add_argument("--rate", type=int, default=200, metavar="N", help="writes per second")
    return parser.parse_args(arguments)


def _minutes(text: str) -> float:
    number = float(text)
    most = 7 * 24 * 60.0
    if not 1.0 <= number <= most:
        raise argparse.ArgumentTypeError(f"{text} is not between 1 and {most:.0f}")
    return number


async def _soak(
    ground: Ground, sync: Running, logs: Sequence[str], seconds: float, rate: float
) -> tuple[list[Sample], Observed]:
    pause = min(_LONGEST_PAUSE_SECONDS, max(seconds / _MOST_SAMPLES, 1.0), seconds / _LEAST_SAMPLES)
    monolith = await asyncpg.connect(ground.source())
    service = await asyncpg.connect(ground.target())
    samples: list[Sample] = []
    total = Observed()
    try:
        async with open_traffic(ground.source(), ground.target(), rate) as traffic:
            began = time.monotonic()
            while (passed := time.monotonic() - began) < seconds:
                sync.check()
                await asyncio.sleep(pause)
                seen = traffic.take()
                total.writes += seen.writes
                total.seconds += seen.seconds
                values = await _sample(monolith, service, sync.pid, logs)
                lag_seconds = max(seen.ages, default=0.0)
                samples.append(Sample(passed / 60, (*values, lag_seconds)))
            await _drain(traffic)
    finally:
        await monolith.close()
        await service.close()
    return samples, total


async def _sample(
    monolith: asyncpg.Connection[Any],
    service: asyncpg.Connection[Any],
    pid: int,
    logs: Sequence[str],
) -> tuple[float, ...]:
    size, dead = await monolith.fetchrow(_LOG_STATE) or (0, 0)
    backlog = sum([await monolith.fetchval(f"SELECT count(*) FROM {log}") for log in logs])  # noqa: S608  a quoted name
    service_dead = await service.fetchval(_DEAD_ROWS)
    return (_memory_mib(pid), (size or 0) / _MIB, dead or 0, service_dead, backlog)


def _memory_mib(pid: int) -> float:
    """Return the resident memory of a process, as /proc tells it (see proc(5))."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024 / _MIB
    raise WrongResult("ordermigrate sync has ended")


async def _drain(traffic: Traffic) -> None:
    try:
        await traffic.drain(_DRAIN_SECONDS)
    except TimeoutError:
        raise WrongResult(f"{traffic.pending} writes were never seen on the service") from None


def find_growth(samples: Sequence[Sample]) -> list[str]:
    """Return what is higher in the last quarter of the samples than in the second one.

    Dead rows come and go with every vacuum, so it is the peaks that are compared.
    """
    second, last = _quarter(samples, 1), _quarter(samples, QUARTERS - 1)
    grown = []
    for place, measure in enumerate(MEASURES):
        before, after = (max(one.values[place] for one in part) for part in (second, last))
        if after > before * MOST_GROWTH + measure.slack:
            grown.append(f"{measure.name}: {before:,.1f} in the second quarter, {after:,.1f} last")
    return grown


def _quarter(samples: Sequence[Sample], number: int) -> Sequence[Sample]:
    count = len(samples)
    return samples[number * count // QUARTERS : (number + 1) * count // QUARTERS]


def _report(samples: Sequence[Sample], seen: Observed, grown: Sequence[str]) -> list[str]:
    parts = [
        samples[number * len(samples) // _ROWS_SHOWN : (number + 1) * len(samples) // _ROWS_SHOWN]
        for number in range(_ROWS_SHOWN)
    ]
    rows = tuple(
        (
            f"to minute {part[-1].minutes:.1f}",
            tuple(max(each) for each in zip(*(one.values for one in part), strict=True)),
        )
        for part in parts
        if part
    )
    table = Table(tuple(measure.name for measure in MEASURES), rows)
    return [
        *results.figures_table(table),
        "",
        (
            f"The highest of each stretch. {seen.writes:,} writes, {seen.writes_per_second:,.0f} "
            "per second, all of them on the service."
        ),
        *(f"GROWS: {one}" for one in grown),
        *([] if grown else ["Nothing grows between the second quarter and the last."]),
    ]


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
