"""What a validation says: checks, differing rows, the verdict on each table and on the whole."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Check:
    """The result of one check: `equal`, `different`, `attention` or `skipped`."""

    name: str
    outcome: str
    summary: str
    details: tuple[dict[str, Any], ...] = ()
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Difference:
    """A row that is not the same on both sides: `missing` or `extra` on the target, or `changed`.

    `columns` has both values as text, the source's first; None is NULL, or no such row.
    """

    key: dict[str, str | None]
    kind: str
    columns: dict[str, tuple[str | None, str | None]]


@dataclass(frozen=True, slots=True)
class TableVerdict:
    """All that was found about one table."""

    name: str
    target: str
    source_rows: int
    target_rows: int
    checks: tuple[Check, ...]
    differences: tuple[Difference, ...]
    differences_total: int
    notes: tuple[str, ...]

    @property
    def is_equal(self) -> bool:
        """Whether no check found a difference."""
        return all(check.outcome != "different" for check in self.checks)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a validation found."""

    tables: tuple[TableVerdict, ...]
    algorithm: str | None
    seconds: float
    notes: tuple[str, ...]

    @property
    def is_equal(self) -> bool:
        """Whether both sides hold the same, as far as was asked."""
        return all(table.is_equal for table in self.tables)
