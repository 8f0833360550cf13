"""The fixtures, a file for each family; each file says what it promises."""

from __future__ import annotations

import signal

# A shell starts what it puts into the background with SIGINT ignored, and children inherit that;
# the programs under test have to be interruptible.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

pytest_plugins = [
    "tests.fix_postgres",
    "tests.fix_orders",
    "tests.fix_faults",
    "tests.fix_pairs",
    "tests.fix_cleanup",
]
