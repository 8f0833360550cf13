"""What proves that both sides are equal, and what is said where nothing does."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

from ordermigrate.ledger import LastValidation
from ordermigrate.proof import find_doubts

PROOF = LastValidation("equal", "md5", datetime(2026, 1, 1, tzinfo=UTC), 60.0, 1.0, [], None)


def test_a_fresh_whole_equal_validation_is_proof() -> None:
    assert find_doubts(PROOF, 60) == []
    assert find_doubts(replace(PROOF, age_seconds=3600.0), 60) == []


def test_every_flaw_of_a_validation_is_told() -> None:
    assert find_doubts(None, 60) == ["there was no validation"]
    worst = replace(PROOF, verdict="different", void_because="a failover", age_seconds=3700.0)
    assert find_doubts(worst, 60) == [
        "the last validation found differences",
        "the last validation is void: a failover",
        "the last validation is 62 minutes old; validation_age_minutes allows 60",
    ]
    assert "only counted" in find_doubts(replace(PROOF, algorithm=None), 60)[0]
