"""Errors say what is true, what was wanted and what to do; exit codes say whose move it is."""

from __future__ import annotations

import pytest

from ordermigrate import errors
from ordermigrate.cli.app import OUTCOMES
from ordermigrate.errors import OrdermigrateError, Refused

# The house's table: code, meaning, who owns the writes.
TABLE = {
    1: ("a bug", "unchanged unless `status` says otherwise"),
    2: ("usage or configuration", "untouched"),
    3: ("refused by a gate: wrong phase, preflight, lag, no fresh validation, drift", "untouched"),
    5: ("a database is unavailable, retries spent; run again to resume", "untouched"),
    6: ("another run is active", "theirs"),
    7: ("the change of owner failed and was undone", "as before, writes flowing"),
    8: ("stranded: a person must look; the message lists the exact next command", "read `status`"),
}


def kinds() -> list[type[OrdermigrateError]]:
    """Return the root and what stands directly below it: a class for each exit code."""
    return [OrdermigrateError, *OrdermigrateError.__subclasses__()]


def test_each_exit_code_belongs_to_one_class_and_means_what_the_table_says() -> None:
    found = [(kind.exit_code, (kind.meaning, kind.owner_of_writes)) for kind in kinds()]
    assert len({code for code, _ in found}) == len(found)
    assert dict(found) == TABLE


def test_codes_that_are_no_errors_are_apart_from_those_that_are() -> None:
    others = [
        errors.EXIT_OK,
        errors.EXIT_DIFFERENT,
        errors.EXIT_QUARANTINED,
        errors.EXIT_INTERRUPTED,
    ]
    assert others == [0, 4, 9, 130]
    assert not TABLE.keys() & set(others)


def test_every_error_has_an_outcome_for_programs() -> None:
    assert {kind.exit_code for kind in kinds()} <= OUTCOMES.keys()
    assert errors.EXIT_INTERRUPTED in OUTCOMES
    assert len(set(OUTCOMES.values())) == len(OUTCOMES)


def test_a_subclass_deeper_down_keeps_its_parents_code() -> None:
    from ordermigrate.locks import GaveWay  # noqa: PLC0415  it has to be defined, that is all
    from ordermigrate.sqlstates import ConnectionLost  # noqa: PLC0415

    assert ConnectionLost.exit_code == GaveWay.exit_code == errors.Unavailable.exit_code


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OrdermigrateError("It is so"), "It is so."),
        (OrdermigrateError("It is so."), "It is so."),
        (OrdermigrateError("It is so", todo="Do this"), "It is so. Do this."),
        (
            OrdermigrateError("It is so", wanted="Something else", todo="Do this."),
            "It is so. Something else. Do this.",
        ),
    ],
)
def test_a_message_is_what_is_true_what_was_wanted_and_what_to_do(
    error: OrdermigrateError, said: str
) -> None:
    assert str(error) == said


def test_a_refusal_keeps_each_finding_by_itself() -> None:
    refused = Refused("Two things: a; b", findings=["a", "b"])
    assert refused.findings == ("a", "b")
    assert refused.exit_code == 3
