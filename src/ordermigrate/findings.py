"""What preflight tells: what was found, how grave it is, and what could not be looked at.

A check that could not run is not a finding, and a finding is never left out because another one
came first. Nothing here does I/O.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from ordermigrate.model import Side


class Severity(StrEnum):
    """How grave a finding is."""

    STOP = "stop"
    WARN = "warn"
    NOTE = "note"


SEVERITIES = {
    Severity.STOP: "the migration would be refused, or would leave something behind",
    Severity.WARN: "somebody has to decide about it, at the latest before the cutover",
    Severity.NOTE: "good to know; nothing has to be done",
}


@dataclass(frozen=True, slots=True)
class Spot:
    """One place where a check has found something.

    Args:
        said: What is true there, with names.
        todo: What to do about this one, where that is more than what the check says of all.

    """

    said: str
    todo: str = ""

    @property
    def with_todo(self) -> str:
        """Both, as a gate tells them among others."""
        return f"{self.said} ({self.todo})" if self.todo else self.said


@dataclass(frozen=True, slots=True)
class Finding:
    """A spot, and what the check that found it says of all of its kind."""

    key: str
    severity: Severity
    side: Side | None
    said: str
    meaning: str
    todo: str


@dataclass(frozen=True, slots=True)
class Unchecked:
    """A check that could not run, and why."""

    key: str
    side: Side | None
    reason: str


@dataclass(frozen=True, slots=True)
class TableSize:
    """How large one table of the family is; None where it could not be measured."""

    name: str
    target: str
    rows_estimate: int | None
    bytes: int | None


def name_some(names: Sequence[str], most: int = 5) -> str:
    """Join names for a sentence; of many the first few, and how many more there are."""
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest:,} more" if rest > 0 else "")
