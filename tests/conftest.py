"""The fixtures, a file for each family; each file says what it promises."""

from __future__ import annotations

pytest_plugins = [
    "tests.fix_postgres",
    "tests.fix_orders",
    "tests.fix_faults",
]
