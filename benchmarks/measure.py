"""Measure contestants in turn, so that what changes on the machine changes for all of them.

Every round runs every contestant once, each round beginning with another one. Tables are made
anew outside the measured time, and a CHECKPOINT goes before it. What a contestant left behind is
verified before its time counts; the first round warms the caches and is verified row by row, but
does not count. Ratios are formed inside a round, and the median of these is told.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from benchmarks.programs import Usage

_READINGS: Final = 200
_PAUSE_SECONDS: Final = 0.02


class Measured(Protocol):
    """What is measured beside the clock."""

    def server_cpu_seconds(self) -> float | None:
        """Return the CPU seconds that both servers have used so far; None where unknown."""
        ...

    def checkpoint(self) -> None:
        """Have both servers write out what they hold in memory."""
        ...


@dataclass(frozen=True, slots=True)
class Contestant:
    """One way to do the job.

    Attributes:
        name: What the table calls it.
        note: What exactly runs.
        prepare: Bring the databases into the state before the job; not measured.
        run: Do the job and return what the client's processes cost; measured.
        verify: Raise if the job was not done right; the argument says whether to be thorough.
        is_limit: Its time is the servers' CPU seconds shared over the cores, not the clock's.

    """

    name: str
    note: str
    prepare: Callable[[], None]
    run: Callable[[], Usage]
    verify: Callable[[bool], None]
    is_limit: bool = False


@dataclass(frozen=True, slots=True)
class Sample:
    """One measured run."""

    seconds: float
    client_cpu_seconds: float
    client_peak_bytes: int
    server_cpu_seconds: float | None


class WrongResult(RuntimeError):
    """A contestant was fast, but what it left behind is not right."""


@dataclass(frozen=True, slots=True)
class Series:
    """The samples of one contestant, in the order of the rounds."""

    name: str
    note: str
    samples: tuple[Sample, ...]

    @property
    def seconds(self) -> float:
        """The median time."""
        return statistics.median(sample.seconds for sample in self.samples)

    @property
    def client_cpu_seconds(self) -> float:
        """The median of the client's CPU seconds."""
        return statistics.median(sample.client_cpu_seconds for sample in self.samples)

    @property
    def client_peak_bytes(self) -> int:
        """The highest peak of any run."""
        return max(sample.client_peak_bytes for sample in self.samples)

    @property
    def server_cpu_seconds(self) -> float | None:
        """The median of the servers' CPU seconds."""
        known = [one for one in (s.server_cpu_seconds for s in self.samples) if one is not None]
        return statistics.median(known) if len(known) == len(self.samples) else None

    @property
    def client_share(self) -> float | None:
        """The median of the client's share of all CPU seconds."""
        shares = [
            sample.client_cpu_seconds / (sample.client_cpu_seconds + sample.server_cpu_seconds)
            for sample in self.samples
            if sample.server_cpu_seconds is not None
        ]
        return statistics.median(shares) if shares else None

    def ratios(self, other: Series) -> list[float]:
        """Return this one's time over the other's, round by round."""
        return [
            mine.seconds / theirs.seconds
            for mine, theirs in zip(self.samples, other.samples, strict=True)
        ]


def run_in_turn(
    contestants: Sequence[Contestant], measured: Measured, rounds: int
) -> dict[str, Series]:
    """Run every contestant `rounds` times and once before; return the samples by name."""
    samples: dict[str, list[Sample]] = {one.name: [] for one in contestants}
    for number in range(rounds + 1):
        first = number % len(contestants)
        for one in (*contestants[first:], *contestants[:first]):
            sample = _run_once(one, measured, is_thorough=number == 0)
            label = f"round {number} of {rounds}" if number else "warming up"
            tell(f"{label}: {one.name}: {sample.seconds:.2f} s")
            if number:
                samples[one.name].append(sample)
    return {one.name: Series(one.name, one.note, tuple(samples[one.name])) for one in contestants}


def _run_once(one: Contestant, measured: Measured, *, is_thorough: bool) -> Sample:
    one.prepare()
    measured.checkpoint()
    cpu_before = measured.server_cpu_seconds()
    started = time.perf_counter()
    usage = one.run()
    seconds = time.perf_counter() - started
    cpu_after = measured.server_cpu_seconds()
    server = None if cpu_before is None or cpu_after is None else cpu_after - cpu_before
    one.verify(is_thorough)
    if one.is_limit and server is not None:
        seconds = server / core_count()
    return Sample(seconds, usage.cpu_seconds, usage.peak_bytes, server)


def core_count() -> int:
    """Return how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def tree_cpu_seconds(pid: int) -> float | None:
    """Return the CPU seconds of a postmaster, its children, and those that it has reaped.

    The fields are described in proc(5). None where there is no /proc.
    """
    if not Path("/proc/self/stat").exists():
        return None
    # A child that is reaped between two of our readings would be counted on neither side, with
    # all that it has used: read again until the children were the same before and after.
    for _ in range(_READINGS):
        children = _children(pid)
        used = [_own_ticks(each) for each in (*children, str(pid))]
        if None not in used and _children(pid) == children:
            return sum(ticks or 0 for ticks in used) / os.sysconf("SC_CLK_TCK")
        time.sleep(_PAUSE_SECONDS)
    message = f"the children of process {pid} do not come to rest"
    raise RuntimeError(message)


def _children(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


def _own_ticks(pid: str) -> int | None:
    """Return utime, stime, cutime and cstime of a process together; None when it has gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return sum(int(field) for field in fields[11:15])


def tell(text: str) -> None:
    """Say on stderr how far the run is."""
    sys.stderr.write(f"{time.strftime('%H:%M:%S')} {text}\n")
    sys.stderr.flush()


SeriesByName = Mapping[str, Series]
