"""The tests that depend most on PostgreSQL's version, run over pairs of versions.

    python -m tests.matrix [--pairs "14:18 18:14"] [--workers 3] [-- PYTEST ARGUMENTS]

Without pairs, all versions in both roles; without arguments, the tests marked `matrix`. Exits with
1 when a pair has failed, and with 77 when the programs of a version cannot be had here.
"""

# ruff: noqa: T201  what it says is its output

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Sequence

from ordermigrate.demo.binaries import SUPPORTED_MAJORS
from ordermigrate.errors import OrdermigrateError, Unavailable
from tests.versions import VERSION_VARIABLES, find_version

NOT_TO_BE_HAD = 77
SELECTION = ("-m", "matrix")
# Few examples, for they run once for each pair.
_PROFILE = "matrix"
# Servers that are given have a version of their own.
_UNWANTED = ("ORDERMIGRATE_TEST_MONOLITH_DSN", "ORDERMIGRATE_TEST_SERVICE_DSN")

Pair = tuple[int, int]


def read_pairs(text: str) -> list[Pair]:
    """Return the pairs that a text such as "14:18 18:14" names; all of them where it is empty."""
    if not text.strip():
        return [(one, other) for one in SUPPORTED_MAJORS for other in SUPPORTED_MAJORS]
    pairs: list[Pair] = []
    for word in text.split():
        monolith, _, service = word.partition(":")
        if not {monolith, service} <= set(map(str, SUPPORTED_MAJORS)):
            message = f"{word!r} is no pair of versions from 14 to 18, such as 14:18"
            raise argparse.ArgumentTypeError(message)
        pairs.append((int(monolith), int(service)))
    return pairs


def run_pair(pair: Pair, workers: int, arguments: Sequence[str]) -> int:
    """Run pytest with the monolith in one version and the service in the other."""
    environment = {name: value for name, value in os.environ.items() if name not in _UNWANTED}
    environment |= {
        variable: str(major)
        for variable, major in zip(VERSION_VARIABLES.values(), pair, strict=True)
    }
    environment.setdefault("ORDERMIGRATE_TEST_PROFILE", _PROFILE)
    argv = [sys.executable, "-m", "pytest", "-n", str(workers), "--dist", "worksteal", *arguments]
    return subprocess.run(argv, check=False, env=environment).returncode


def main() -> int:
    """Run every pair, whatever became of the ones before it."""
    parser = argparse.ArgumentParser(prog="python -m tests.matrix")
    parser.add_argument("--pairs", type=read_pairs, default=read_pairs(""))
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("arguments", nargs="*")
    asked = parser.parse_args()
    try:
        for major in sorted({major for pair in asked.pairs for major in pair}):
            found = find_version(major)
            print(f"PostgreSQL {found.version_text}: {found.bin_dir}", flush=True)
    except Unavailable as error:
        print(f"The versions cannot be tested here. {error}", file=sys.stderr)
        return NOT_TO_BE_HAD
    except OrdermigrateError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    failed: list[str] = []
    for pair in asked.pairs:
        name = "PostgreSQL {} to {}".format(*pair)
        print(f"\n--- {name}", flush=True)
        started = time.monotonic()
        if run_pair(pair, asked.workers, asked.arguments or SELECTION):
            failed.append(name)
        print(f"--- {name}: {time.monotonic() - started:.0f} s", flush=True)
    print("\n" + "\n".join(f"FAILED: {name}" for name in failed))
    print(f"{len(asked.pairs) - len(failed)} of {len(asked.pairs)} pairs passed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
