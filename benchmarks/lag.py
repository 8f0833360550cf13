"""How far the service is behind while the monolith is written to and sync runs.

Writers commit at a steady pace: inserts, updates and deletes, a third each. A prober asks the
service every 50 ms which of the acknowledged writes it shows. The lag is the age of the oldest
write that it does not show; the delay is the time from a write's acknowledgement until it is
shown. Then the same while checksum validations run, one after the other.
"""

from __future__ import annotations

import asyncio
import time
from typing import Final

import uvloop

from benchmarks.ground import SOURCE, Ground, clone
from benchmarks.measure import WrongResult, tell
from benchmarks.programs import Running
from benchmarks.results import Section, Table, Target
from benchmarks.traffic import Observed, Traffic, open_traffic, quantile

RATE: Final = 500.0
SECONDS: Final = 60.0
MOST_LAG_SECONDS: Final = 1.0
LEAST_OF_RATE: Final = 0.98

ALONE: Final = "sync"
VALIDATED: Final = "sync, beside validate --checksums"
_SOURCE: Final = "hub_investments_followed"
_TARGET: Final = "hub_order_service_followed"
_WARMING_SECONDS: Final = 5.0
_DRAIN_SECONDS: Final = 120.0
_COLUMNS: Final = (
    "writes per second",
    *("lag s p50", "lag s p99", "lag s max"),
    *("delay s p50", "delay s p99", "delay s max"),
)


def measure(ground: Ground, title: str, about: str, *, seconds: float, rate: float) -> Section:
    """Let writers and sync run, and return what the prober has seen."""
    clone(ground.monolith, SOURCE, _SOURCE)
    ground.start_migration(_SOURCE, _TARGET)
    ground.catch_up(_SOURCE, _TARGET)
    ground.checkpoint()
    with ground.syncing(_SOURCE, _TARGET) as sync:
        alone, validated, validations = uvloop.run(_follow(ground, sync, seconds, rate))
        sync.stop()
    ground.catch_up(_SOURCE, _TARGET)
    ground.verify_rows(_TARGET, _SOURCE, is_thorough=True)
    return Section(
        title,
        about,
        (),
        (
            *_judge(ALONE, alone, rate),
            *_judge(VALIDATED, validated, rate),
        ),
        (
            f"{ALONE}: {alone.seconds:.0f} s, {len(alone.ages)} probes",
            (
                f"{VALIDATED}: {validated.seconds:.0f} s, {len(validated.ages)} probes, "
                f"{validations} validations, all of them equal"
            ),
        ),
        Table(_COLUMNS, ((ALONE, _figures(alone)), (VALIDATED, _figures(validated)))),
    )


async def _follow(
    ground: Ground, sync: Running, seconds: float, rate: float
) -> tuple[Observed, Observed, int]:
    async with open_traffic(ground.source(_SOURCE), ground.target(_TARGET), rate) as traffic:
        await _wait(sync, _WARMING_SECONDS)
        traffic.take()
        tell(f"{ALONE}: {rate:.0f} writes per second for {seconds:.0f} s")
        await _wait(sync, seconds)
        alone = traffic.take()
        tell(f"{VALIDATED}: the same")
        validations = await _validate(ground, sync, seconds)
        validated = traffic.take()
        await _drain(traffic)
    return alone, validated, validations


async def _wait(sync: Running, seconds: float) -> None:
    """Wait, and raise if sync ends meanwhile."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        sync.check()
        await asyncio.sleep(min(1.0, max(0.0, end - time.monotonic())))


async def _validate(ground: Ground, sync: Running, seconds: float) -> int:
    """Validate again and again for this time, and return how often; each must find all equal."""
    end = time.monotonic() + seconds
    count = 0
    while time.monotonic() < end:
        sync.check()
        await asyncio.to_thread(
            ground.ordermigrate,
            *("validate", "--checksums", "--json"),
            source=_SOURCE,
            target=_TARGET,
        )
        count += 1
    return count


async def _drain(traffic: Traffic) -> None:
    try:
        await traffic.drain(_DRAIN_SECONDS)
    except TimeoutError:
        raise WrongResult(
            f"{traffic.pending} acknowledged writes were not seen on the service "
            f"{_DRAIN_SECONDS:.0f} s after the last one"
        ) from None


def _figures(seen: Observed) -> tuple[float, ...]:
    return (
        seen.writes_per_second,
        *(quantile(seen.ages, share) for share in (0.5, 0.99, 1.0)),
        *(quantile(seen.delays, share) for share in (0.5, 0.99, 1.0)),
    )


def _judge(name: str, seen: Observed, rate: float) -> list[Target]:
    return [
        Target(f"lag, p99: {name}", quantile(seen.ages, 0.99), MOST_LAG_SECONDS, unit="s"),
        Target(
            f"writes per second, committed: {name}",
            seen.writes_per_second,
            LEAST_OF_RATE * rate,
            is_ceiling=False,
            unit="per second",
        ),
    ]
