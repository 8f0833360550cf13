"""Run the benchmarks: `python -m benchmarks`, or `make bench`.

Prints tables, and writes them to benchmarks/results. What is not reached is said there; a slow
machine fails no build. Something that is wrong (a row too few) does.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Final

from benchmarks import (
    capture,
    copy_rows,
    drain,
    lag,
    pause,
    preflight,
    results,
    sizes,
    trade_engine,
    validation,
    whole_job,
)
from benchmarks.ground import Ground, open_ground
from benchmarks.measure import Contestant, SeriesByName, run_in_turn, tell
from benchmarks.results import Section, Target

Make = Callable[[Ground], list[Contestant]]
Judge = Callable[[SeriesByName], list[Target]]
Note = Callable[[SeriesByName], list[str]]

JOBS: Final = (
    *("copy_rows", "whole_job", "validate", "client", "linear"),
    *("capture", "drain", "lag", "pause", "trade_engine", "preflight"),
)


@dataclass(frozen=True, slots=True)
class Plan:
    """A section to be measured."""

    title: str
    measure: Callable[[Ground], Section]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, write; return 0 however fast anything was."""
    chosen = _parse(arguments)
    sections: list[Section] = []
    markdown = ""
    with open_ground(chosen.rows, chosen.locale) as ground:
        machine = results.describe_machine(ground, chosen.rounds)
        for plan in _plans(chosen.only or list(JOBS), chosen):
            tell(f"{plan.title}: preparing")
            sections.append(plan.measure(ground))
            # After each, so that a failure does not take along what was measured before it.
            markdown = results.write(machine, sections, chosen.results)
    sys.stdout.write(markdown)
    return 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measure ordermigrate beside its peers, in turn, on two servers of its own.",
    )
    parser.add_argument("--rows", type=_at_least(1000), default=2_000_000, metavar="N")
    parser.add_argument("--rounds", type=_at_least(1), default=5, metavar="N")
    parser.add_argument(
        "--only",
        type=_job_names,
        metavar="JOB[,JOB]",
        help=f"some of: {', '.join(JOBS)}",
    )
    parser.add_argument(
        "--locale",
        default="C.UTF-8",
        metavar="NAME",
        help="of the databases; sorting text, and so building indexes, depends on it "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--lag-seconds",
        type=_at_least(1),
        default=int(lag.SECONDS),
        metavar="N",
        help="how long lag is watched, and again beside validations (default: %(default)s)",
    )
    parser.add_argument(
        "--lag-rate",
        type=_at_least(1),
        default=int(lag.RATE),
        metavar="N",
        help="writes per second meanwhile (default: %(default)s)",
    )
    parser.add_argument(
        "--changes",
        type=_at_least(1),
        default=pause.CHANGES,
        metavar="N",
        help="how many times the owner changes to and fro (default: %(default)s)",
    )
    parser.add_argument(
        "--results",
        type=Path,
        default=results.FOLDER,
        metavar="FOLDER",
        help="where latest.md and latest.json go (default: benchmarks/results)",
    )
    return parser.parse_args(arguments)


def _at_least(least: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        number = int(text.replace("_", ""))
        if number < least:
            raise argparse.ArgumentTypeError(f"{number} is less than {least}")
        return number

    return parse


def _job_names(text: str) -> list[str]:
    names = text.split(",")
    unknown = [name for name in names if name not in JOBS]
    if unknown:
        raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: not one of {', '.join(JOBS)}")
    return names


def _plans(names: Sequence[str], chosen: argparse.Namespace) -> list[Plan]:
    """Return the sections to measure, in the order of JOBS; client and linear share their runs."""
    rounds: int = chosen.rounds
    sizes_judges = [
        judge
        for name, judge in (("client", sizes.judge_client), ("linear", sizes.judge_linear))
        if name in names
    ]

    def judge_sizes(series: SeriesByName) -> list[Target]:
        return [target for judge in sizes_judges for target in judge(series)]

    def measure_lag(ground: Ground) -> Section:
        title, about = "Lag", _about(lag)
        seconds, rate = float(chosen.lag_seconds), float(chosen.lag_rate)
        return lag.measure(ground, title, about, seconds=seconds, rate=rate)

    def measure_pause(ground: Ground) -> Section:
        return pause.measure(ground, "Pause", _about(pause), changes=chosen.changes)

    def measure_trade_engine(ground: Ground) -> Section:
        return trade_engine.measure(ground, "The trade engine", _about(trade_engine))

    plans = {
        "copy_rows": _in_turn(
            "Rows only", copy_rows, copy_rows.make_contestants, copy_rows.judge, rounds
        ),
        "whole_job": _in_turn(
            "The whole job", whole_job, whole_job.make_contestants, whole_job.judge, rounds
        ),
        "validate": _in_turn(
            "Checksum validation",
            validation,
            validation.make_contestants,
            validation.judge,
            rounds,
        ),
        "client": _in_turn(
            "The client, and the size", sizes, sizes.make_contestants, judge_sizes, rounds
        ),
        "capture": _in_turn(
            "Capture", capture, capture.make_contestants, capture.judge, rounds, capture.note
        ),
        "drain": _in_turn("A backlog", drain, drain.make_contestants, drain.judge, rounds),
        "lag": Plan("Lag", measure_lag),
        "pause": Plan("Pause", measure_pause),
        "trade_engine": Plan("The trade engine", measure_trade_engine),
        "preflight": _in_turn(
            "Preflight", preflight, preflight.make_contestants, preflight.judge, rounds
        ),
    }
    wanted = {"client" if name == "linear" else name for name in names}
    return [plan for name, plan in plans.items() if name in wanted]


def _in_turn(
    title: str, module: ModuleType, make: Make, judge: Judge, rounds: int, note: Note | None = None
) -> Plan:
    """Return a section of contestants that take turns."""

    def measure(ground: Ground) -> Section:
        series = run_in_turn(make(ground), ground, rounds)
        notes = tuple(note(series)) if note else ()
        return Section(title, _about(module), tuple(series.values()), tuple(judge(series)), notes)

    return Plan(title, measure)


def _about(module: ModuleType) -> str:
    """Return a module's docstring as one paragraph."""
    return " ".join((module.__doc__ or "").split())


if __name__ == "__main__":
    # Either way out ends the servers and removes what they and we have written.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
