"""The phases of a migration, and the one table that says which may follow which.

A phase is history: it says how far the work has come. Who owns the tables is not a phase; the
`side` rows of the two databases say that.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from ordermigrate.errors import Refused


class Phase(StrEnum):
    """How far a migration has come."""

    NEW = "new"
    PREPARED = "prepared"
    COPYING = "copying"
    COPIED = "copied"


MEANING: dict[Phase, str] = {
    Phase.NEW: "nothing has been set up yet",
    Phase.PREPARED: "ledger and side rows exist, the service's tables are ready to be filled",
    Phase.COPYING: "the bulk copy has begun and is not complete",
    Phase.COPIED: "every row of the copy's snapshot is on the service, indexes and statistics too",
}

FOLLOWING: dict[Phase, frozenset[Phase]] = {
    Phase.NEW: frozenset({Phase.PREPARED}),
    Phase.PREPARED: frozenset({Phase.COPYING}),
    Phase.COPYING: frozenset({Phase.COPIED, Phase.PREPARED}),
    Phase.COPIED: frozenset({Phase.PREPARED}),
}


def check_transition(old: Phase, new: Phase) -> None:
    """Raise `Refused` unless `new` may follow `old` (or is `old`, said again)."""
    if new is not old and new not in FOLLOWING[old]:
        following = ", ".join(sorted(FOLLOWING[old]))
        raise Refused(
            f"The migration is in phase {old} ({MEANING[old]})",
            wanted=f"Phase {new} does not follow it; {following} does",
            todo="See `ordermigrate status` for the next step",
        )


@dataclass(frozen=True, slots=True)
class NextStep:
    """A command that would be sensible now, and why. Never one that destroys anything."""

    command: str
    reason: str


def next_steps(
    phase: Phase, last_verdict: str | None, *, is_void: bool = False, has_checksums: bool = False
) -> list[NextStep]:
    """Say what comes next.

    Args:
        phase: How far the migration is.
        last_verdict: `equal` or `different`; None where there was no validation.
        is_void: Whether the phase has moved since that validation.
        has_checksums: Whether it compared every row.

    """
    if phase in {Phase.NEW, Phase.PREPARED}:
        return [NextStep("ordermigrate copy", "no rows have been copied yet")]
    if phase is Phase.COPYING:
        return [
            NextStep("ordermigrate copy", "the copy is not complete; it goes on where it stopped")
        ]
    if last_verdict is None or is_void:
        return [NextStep("ordermigrate validate --checksums", "the copy has not been proved yet")]
    if last_verdict == "different":
        return [
            NextStep(
                "ordermigrate validate --checksums",
                "the last validation found differences; see them again once their cause is mended",
            )
        ]
    if not has_checksums:
        return [NextStep("ordermigrate validate --checksums", "counts alone are no proof")]
    return [NextStep("ordermigrate status", "copied and proved equal; nothing is left to be done")]
