"""When reads are held back: decided without a database."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ordermigrate.traffic import LagWatch

LIMIT = 5.0


def test_lag_over_its_limit_is_borne_for_as_long_again() -> None:
    watch = LagWatch(LIMIT)
    for now in (0.0, 1.0, 4.9):
        watch = watch.see(5.1, now)
        assert not watch.is_enough(now)
    assert watch.see(600.0, 5.0).is_enough(5.0)


def test_a_moment_in_step_has_the_waiting_begin_anew() -> None:
    watch = LagWatch(LIMIT).see(9, 0).see(5, 4).see(9, 5)
    assert not watch.is_enough(9.9)
    assert watch.is_enough(10)


@given(st.lists(st.tuples(st.floats(0, LIMIT), st.floats(0, 100)), max_size=30))
def test_lag_within_its_limit_never_holds_anybody_back(looks: list[tuple[float, float]]) -> None:
    watch = LagWatch(LIMIT)
    for lag, now in looks:
        watch = watch.see(lag, now)
        assert not watch.is_enough(now)
