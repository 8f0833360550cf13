"""The client and the size: memory that does not grow, little CPU, cost in line with the rows.

Our whole commands on the source and on one with a tenth of its rows. Peak memory and CPU are the
kernel's figures for the client's process; the servers' CPU is that of all their processes.
"""

from __future__ import annotations

import statistics
from typing import Final

from benchmarks import validation, whole_job
from benchmarks.ground import SMALL_SOURCE, SMALLER, SOURCE, Ground, clone
from benchmarks.measure import Contestant, Series, SeriesByName
from benchmarks.results import Target

COPY: Final = "ordermigrate copy"
SMALL_COPY: Final = "ordermigrate copy, a tenth"
VALIDATE: Final = "ordermigrate validate"
SMALL_VALIDATE: Final = "ordermigrate validate, a tenth"
MOST_MEGABYTES: Final = 150.0
MOST_SHARE: Final = 0.15
MOST_GROWTH: Final = 10.5
_COPY_TARGET: Final = "hub_order_service_sizes"
_SOURCE: Final = "hub_investments_validated"
_SMALL_SOURCE: Final = "hub_investments_small_validated"
_TARGET: Final = "hub_order_service_validated"
_SMALL_TARGET: Final = "hub_order_service_small_validated"


def make_contestants(ground: Ground) -> list[Contestant]:
    """Return our commands at both sizes."""
    # What is validated has sources of its own: every copy below begins another migration of those
    # that it reads.
    for source, copy, target in (
        (SOURCE, _SOURCE, _TARGET),
        (SMALL_SOURCE, _SMALL_SOURCE, _SMALL_TARGET),
    ):
        clone(ground.monolith, source, copy)
        validation.make_equal(ground, copy, target)
    return [
        whole_job.make_ours(ground, COPY, SOURCE, _COPY_TARGET),
        whole_job.make_ours(ground, SMALL_COPY, SMALL_SOURCE, _COPY_TARGET),
        validation.make_ours(ground, VALIDATE, _SOURCE, _TARGET),
        validation.make_ours(ground, SMALL_VALIDATE, _SMALL_SOURCE, _SMALL_TARGET),
    ]


def judge_client(series: SeriesByName) -> list[Target]:
    """Return what the client may cost, and what it does."""
    targets = [
        Target(
            f"peak memory of the client: {name}",
            series[name].client_peak_bytes / 1e6,
            MOST_MEGABYTES,
            unit="MB",
        )
        for name in (COPY, SMALL_COPY, VALIDATE, SMALL_VALIDATE)
    ]
    targets += [
        Target(
            f"the client's share of all CPU: {name}", series[name].client_share, MOST_SHARE, unit=""
        )
        for name in (COPY, VALIDATE)
    ]
    return targets


def judge_linear(series: SeriesByName) -> list[Target]:
    """Return what ten times the rows may cost, and what they do."""
    return [
        _growth("copy", series[COPY], series[SMALL_COPY]),
        _growth("validate", series[VALIDATE], series[SMALL_VALIDATE]),
    ]


def _growth(job: str, large: Series, small: Series) -> Target:
    ratios = large.ratios(small)
    return Target(
        f"{job}: {SMALLER} × the rows / the tenth",
        statistics.median(ratios),
        MOST_GROWTH,
        spread=(min(ratios), max(ratios)),
    )
