"""Run the benchmarks: `python -m benchmarks`, or `make bench`.

Prints tables, and writes them to benchmarks/results. What is not reached is said there; a slow
machine fails no build. Something that is wrong (a row too few) does.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Callable, Sequence
from typing import Final

from benchmarks import copy_rows, results, sizes, validation, whole_job
from benchmarks.ground import Ground, open_ground
from benchmarks.measure import Contestant, SeriesByName, run_in_turn, tell
from benchmarks.results import Section, Target

Make = Callable[[Ground], list[Contestant]]
Judge = Callable[[SeriesByName], list[Target]]

JOBS: Final = ("copy_rows", "whole_job", "validate", "client", "linear")


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, write; return 0 however fast anything was."""
    chosen = _parse(arguments)
    sections: list[Section] = []
    markdown = ""
    with open_ground(chosen.rows, chosen.locale) as ground:
        machine = results.describe_machine(ground, chosen.rounds)
        for plan in _plans(chosen.only or list(JOBS)):
            sections.append(_measure(ground, chosen.rounds, *plan))
            # After each, so that a failure does not take along what was measured before it.
            markdown = results.write(machine, sections)
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


def _plans(names: Sequence[str]) -> list[tuple[str, str, Make, Judge]]:
    """Return the sections to measure; client and linear share their runs."""
    plans: list[tuple[str, str, Make, Judge]] = []
    if "copy_rows" in names:
        plans.append(("Rows only", _about(copy_rows), copy_rows.make_contestants, copy_rows.judge))
    if "whole_job" in names:
        plans.append(
            ("The whole job", _about(whole_job), whole_job.make_contestants, whole_job.judge)
        )
    if "validate" in names:
        plans.append(
            (
                "Checksum validation",
                _about(validation),
                validation.make_contestants,
                validation.judge,
            )
        )
    judges = [
        judge
        for name, judge in (("client", sizes.judge_client), ("linear", sizes.judge_linear))
        if name in names
    ]
    if judges:
        plans.append(
            (
                "The client, and the size",
                _about(sizes),
                sizes.make_contestants,
                lambda series: [target for judge in judges for target in judge(series)],
            )
        )
    return plans


def _about(module: object) -> str:
    """Return a module's docstring as one paragraph."""
    return " ".join((module.__doc__ or "").split())


def _measure(
    ground: Ground, rounds: int, title: str, about: str, make: Make, judge: Judge
) -> Section:
    tell(f"{title}: preparing")
    series = run_in_turn(make(ground), ground, rounds)
    return Section(title, about, tuple(series.values()), tuple(judge(series)))


if __name__ == "__main__":
    # Either way out ends the servers and removes what they and we have written.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
