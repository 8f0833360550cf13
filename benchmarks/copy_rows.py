"""Rows only: no index on the target, no statistics, only bytes from one server to the other.

The mark to reach is two `psql` pipes of binary COPY, each with half of the heap's blocks. Both
sides of the comparison keep the table's CHECKs.
"""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Final

from benchmarks import programs
from benchmarks.ground import SOURCE, TARGET, Ground, fetch, total
from benchmarks.measure import Contestant, SeriesByName
from benchmarks.programs import Pipeline, ProgramFailed, Usage
from benchmarks.results import Target, compare

OURS: Final = "ordermigrate, rows only"
TWO_BINARY: Final = "psql, 2 pipes, binary"
ONE_BINARY: Final = "psql, 1 pipe, binary"
TWO_TEXT: Final = "psql, 2 pipes, text"
MOST: Final = 1.05


class RowsOnly:
    """Our library in a process that is ready before the clock runs."""

    def __init__(self, ground: Ground) -> None:
        self._ground = ground
        self._errors = ground.folder / "rows_only"
        self._process: subprocess.Popen[bytes] | None = None

    def prepare(self) -> None:
        """Make the target anew and let the process get ready."""
        self._ground.forget_migration()
        self._ground.make_target(has_tables=True)
        with self._errors.open("wb") as errors:
            self._process = subprocess.Popen(
                [programs.python(), "-m", "benchmarks.rows_only", self._ground.config],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=self._ground.variables(SOURCE, TARGET),
                cwd=Path(__file__).parents[1],
            )
        self._expect(self._process, b"ready\n")

    def run(self) -> Usage:
        """Let it copy, and wait for its end."""
        process, self._process = self._process, None
        if process is None or process.stdin is None or process.stdout is None:
            raise ProgramFailed("RowsOnly.prepare was not called")
        with process.stdin, process.stdout:
            process.stdin.write(b"go\n")
            process.stdin.flush()
            self._expect(process, b"done\n")
            return programs.reap(process)

    def _expect(self, process: subprocess.Popen[bytes], wanted: bytes) -> None:
        said = process.stdout.readline() if process.stdout else b""
        if said != wanted:
            process.kill()
            process.wait()
            errors = self._errors.read_text(errors="replace")[-2000:]
            raise ProgramFailed(f"benchmarks.rows_only did not get to {wanted!r}: {errors}")


def make_contestants(ground: Ground) -> list[Contestant]:
    """Return who takes part."""
    columns = ", ".join(ground.columns())
    blocks = int(fetch(ground.source(), "SELECT pg_relation_size('public.orders') / 8192")[0][0])
    half = f"'({blocks // 2},0)'"
    halves = (f"WHERE ctid < {half}", f"WHERE ctid >= {half}")

    def prepare() -> None:
        ground.make_target(has_tables=True)
        ground.drop_indexes()

    def out(form: str, part: str) -> str:
        query = f"SELECT {columns} FROM public.orders {part}"  # noqa: S608  all of it is ours
        return f"COPY ({query}) TO STDOUT (FORMAT {form})"

    def pipes(form: str, *parts: str) -> list[Pipeline]:
        return [
            [
                ground.psql(ground.source(), out(form, part)),
                ground.psql(
                    ground.target(), f"COPY public.orders ({columns}) FROM STDIN (FORMAT {form})"
                ),
            ]
            for part in parts
        ]

    def contestant(name: str, note: str, form: str, *parts: str) -> Contestant:
        return Contestant(
            name, note, prepare, lambda: total(ground.run(*pipes(form, *parts))), verify
        )

    def verify(is_thorough: bool) -> None:  # noqa: FBT001  the protocol's shape
        ground.verify_rows(TARGET, SOURCE, is_thorough=is_thorough)

    ours = RowsOnly(ground)
    return [
        Contestant(
            OURS,
            "two streams, chunks of 64 MiB, snapshot and ledger included; not the start of "
            "Python (for that see the whole job)",
            ours.prepare,
            ours.run,
            verify,
        ),
        contestant(TWO_BINARY, "COPY TO into COPY FROM, split by ctid", "binary", *halves),
        contestant(ONE_BINARY, "COPY TO into COPY FROM", "binary", ""),
        contestant(TWO_TEXT, "COPY TO into COPY FROM, split by ctid", "text", *halves),
    ]


def judge(series: SeriesByName) -> list[Target]:
    """Return the targets of issue and design, and what was measured."""
    return [compare("rows only", series[OURS], series[TWO_BINARY], at_most=MOST)]
