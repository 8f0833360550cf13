"""What a server reports decides the exit code, by its SQLSTATE and never by its words."""

from __future__ import annotations

import pytest

from ordermigrate.errors import OrdermigrateError, Refused, Unavailable, UsageError
from ordermigrate.model import Side
from ordermigrate.sqlstates import COLLISIONS, TRANSIENT, ConnectionLost, ServerError, to_error

TABLE: list[tuple[str, type[OrdermigrateError]]] = [
    ("", ConnectionLost),
    *((state, ConnectionLost) for state in sorted(TRANSIENT)),
    *((state, ConnectionLost) for state in sorted(COLLISIONS)),
    ("08P01", ConnectionLost),
    ("08007", ConnectionLost),
    ("28P01", UsageError),
    ("28000", UsageError),
    ("3D000", UsageError),
    ("42501", Refused),
    ("53100", Unavailable),
    ("53200", Unavailable),
    ("53400", Unavailable),
    ("58030", Unavailable),
    ("55P03", Unavailable),
    ("57014", Unavailable),
    ("42P01", Refused),
    ("42703", Refused),
    ("3F000", Refused),
    ("42704", Refused),
    ("22001", Refused),
    ("22P02", Refused),
    ("22P05", Refused),
    ("23502", Refused),
    ("23503", Refused),
    ("23505", Refused),
    ("23514", Refused),
    ("XX000", OrdermigrateError),
]


@pytest.mark.parametrize(("state", "kind"), TABLE)
@pytest.mark.parametrize("side", Side)
def test_a_state_becomes_our_error_and_names_side_and_state(
    side: Side, state: str, kind: type[OrdermigrateError]
) -> None:
    error = to_error(side, ServerError(state, "Это не то, чего ждали."))
    assert isinstance(error, kind)
    assert error.exit_code == kind.exit_code
    said = str(error)
    assert side in said
    assert state in said
    assert "Это не то, чего ждали" in said
    assert error.todo


@pytest.mark.parametrize(("state", "kind"), TABLE)
def test_only_what_passes_by_itself_is_tried_again(
    state: str, kind: type[OrdermigrateError]
) -> None:
    error = to_error(Side.MONOLITH, ServerError(state, "x"))
    assert isinstance(error, ConnectionLost) == (kind is ConnectionLost)


@pytest.mark.parametrize("state", ["53100", "57014", "42501", "28P01", "23505", "XX000", "42P01"])
def test_what_only_a_person_can_mend_is_not_tried_again(state: str) -> None:
    assert state not in TRANSIENT


@pytest.mark.parametrize("state", sorted(COLLISIONS))
def test_a_database_that_undoes_a_transaction_is_not_called_away(state: str) -> None:
    assert "not available" not in str(to_error(Side.SERVICE, ServerError(state, "x")))


def test_a_value_that_does_not_fit_is_told_with_where_it_is() -> None:
    said = str(
        to_error(
            Side.SERVICE,
            ServerError(
                "22001",
                "value too long for type character varying(3)",
                detail="Some detail.",
                where='COPY orders, line 7, column symbol: "BTC/USD"\nsecond line',
            ),
        )
    )
    assert "Some detail [COPY orders, line 7, column symbol" in said
    assert "second line" not in said


def test_an_unexpected_report_is_told_with_its_detail() -> None:
    said = str(to_error(Side.SERVICE, ServerError("XX000", "strange", detail="very strange")))
    assert "strange (SQLSTATE XX000). very strange" in said
    assert "bug" in said
