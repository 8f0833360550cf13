"""Proof: whether the newest validation shows that both sides are equal, not long ago."""

from __future__ import annotations

from ordermigrate.ledger import LastValidation


def find_doubts(last: LastValidation | None, max_age_minutes: float) -> list[str]:
    """Say in sentences why the newest validation does not prove that both sides are equal now.

    Args:
        last: The newest validation on record; None where there is none.
        max_age_minutes: How old it may be.

    """
    if last is None:
        return ["there was no validation"]
    found: list[str] = []
    if last.verdict != "equal":
        found.append("the last validation found differences")
    elif last.algorithm is None:
        found.append("the last validation has only counted (without --checksums)")
    if last.void_because is not None:
        found.append(f"the last validation is void: {last.void_because}")
    age_minutes = last.age_seconds / 60
    if age_minutes > max_age_minutes:
        found.append(
            f"the last validation is {age_minutes:.0f} minutes old; validation_age_minutes allows "
            f"{max_age_minutes:g}"
        )
    return found
