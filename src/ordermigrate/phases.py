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
    SYNCING = "syncing"
    CUT_OVER = "cut_over"


MEANING: dict[Phase, str] = {
    Phase.NEW: "nothing has been set up yet",
    Phase.PREPARED: "the monolith's writes are captured, the service's tables fenced off and empty",
    Phase.COPYING: "the bulk copy has begun and is not complete",
    Phase.COPIED: "every row of the copy's snapshot is on the service, indexes and statistics too",
    Phase.SYNCING: "what the monolith commits is applied to the service, while sync runs",
    Phase.CUT_OVER: "the service owns the tables; sync applies what it commits to the monolith",
}

FOLLOWING: dict[Phase, frozenset[Phase]] = {
    Phase.NEW: frozenset({Phase.PREPARED}),
    Phase.PREPARED: frozenset({Phase.COPYING}),
    Phase.COPYING: frozenset({Phase.COPIED, Phase.PREPARED}),
    Phase.COPIED: frozenset({Phase.SYNCING, Phase.PREPARED}),
    Phase.SYNCING: frozenset({Phase.PREPARED, Phase.CUT_OVER}),
    Phase.CUT_OVER: frozenset({Phase.SYNCING}),
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
    phase: Phase,
    last_verdict: str | None,
    *,
    is_void: bool = False,
    has_checksums: bool = False,
    is_syncing: bool = False,
) -> list[NextStep]:
    """Say what comes next.

    Args:
        phase: How far the migration is.
        last_verdict: `equal` or `different`; None where there was no validation.
        is_void: Whether something has happened since that makes it worthless.
        has_checksums: Whether it compared every row.
        is_syncing: Whether a sync is at work at the moment.

    """
    if phase in {Phase.NEW, Phase.PREPARED}:
        return [NextStep("ordermigrate copy", "no rows have been copied yet")]
    if phase is Phase.COPYING:
        return [
            NextStep("ordermigrate copy", "the copy is not complete; it goes on where it stopped")
        ]
    if not is_syncing:
        steps = [NextStep("ordermigrate sync", "what the monolith writes waits in its change logs")]
    else:
        steps = []
    if last_verdict is None or is_void:
        steps.append(
            NextStep("ordermigrate validate --checksums", "that both sides are equal is not proved")
        )
    elif last_verdict == "different":
        steps.append(
            NextStep(
                "ordermigrate validate --checksums --repair",
                "the last validation found differences; once their cause is known, they can be "
                "repaired",
            )
        )
    elif not has_checksums:
        steps.append(NextStep("ordermigrate validate --checksums", "counts alone are no proof"))
    return steps or [NextStep("ordermigrate status", "in sync and proved equal")]
