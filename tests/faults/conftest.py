"""What the fault tests share."""

from __future__ import annotations

from tests.faults.fix_changing import changing, make_changing
from tests.faults.fix_copying import make_copying
from tests.faults.fix_failover import make_failing_over
from tests.faults.fix_syncing import make_syncing, syncing

__all__ = [
    "changing",
    "make_changing",
    "make_copying",
    "make_failing_over",
    "make_syncing",
    "syncing",
]
