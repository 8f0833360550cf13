"""A new partition is as wide as its neighbour, and in step with it."""

from __future__ import annotations

import pytest

from ordermigrate.partitioning import add_column
from ordermigrate.partitions import plan

DAY = "timestamp without time zone"
_INDEX = "CREATE UNIQUE INDEX \"x (\" ON public.t USING btree (lower((w || ')'::text))"
CASES = {
    "the next month": (
        DAY,
        [("2024-01-01", "2024-02-01")],
        "2024-02-29 23:00",
        "2024-02-01",
        "2024-03-01",
    ),
    "months later": (DAY, [("2023-12-01", "2024-01-01")], "2024-06-30", "2024-06-01", "2024-07-01"),
    "a month before": (
        DAY,
        [("2024-03-01", "2024-04-01")],
        "2023-12-31",
        "2023-12-01",
        "2024-01-01",
    ),
    "a year": (DAY, [("2020-01-01", "2021-01-01")], "2024-02-29", "2024-01-01", "2025-01-01"),
    "a week": (DAY, [("2024-01-01", "2024-01-08")], "2024-01-29", "2024-01-29", "2024-02-05"),
    "a quarter of an hour": (
        DAY,
        [("2024-01-01 00:00", "2024-01-01 00:15")],
        "2024-01-01 01:07",
        "2024-01-01 01:00",
        "2024-01-01 01:15",
    ),
    "no further than the next": (
        DAY,
        [("2024-01-01", "2024-02-01"), ("2024-02-20", "2024-03-01")],
        "2024-02-05",
        "2024-02-01",
        "2024-02-20",
    ),
    "before one without an end": (
        DAY,
        [("2024-01-01", "2024-02-01"), ("2024-02-20", "MAXVALUE")],
        "2024-02-05",
        "2024-02-01",
        "2024-02-20",
    ),
    "numbers": ("bigint", [("0", "100")], "1234", "1200", "1300"),
    "numbers below": ("integer", [("0", "100")], "-1", "-100", "0"),
}


@pytest.mark.parametrize("case", CASES)
def test_a_range_is_as_wide_as_its_neighbour(case: str) -> None:
    type_name, known, value, lower, upper = CASES[case]
    bounds = [f"FOR VALUES FROM ('{one}') TO ('{other}')" for one, other in known]
    ((found_lower, found_upper),) = plan(type_name, bounds, [value])
    assert str(found_lower).startswith(lower)
    assert str(found_upper).startswith(upper)


def test_values_of_one_range_need_one_partition() -> None:
    bounds = ["FOR VALUES FROM ('2024-01-01') TO ('2024-02-01')"]
    assert len(plan("date", bounds, ["2024-03-01", "2024-03-31", "2024-05-01"])) == 2


@pytest.mark.parametrize(
    ("type_name", "bounds"),
    [
        ("text", ["FOR VALUES FROM ('a') TO ('b')"]),
        ("date", []),
        ("date", ["FOR VALUES FROM (MINVALUE) TO ('2020-01-01')"]),
    ],
)
def test_where_no_width_is_known_nothing_is_planned(type_name: str, bounds: list[str]) -> None:
    assert plan(type_name, bounds, ["2024-03-01"]) == []


@pytest.mark.parametrize(
    ("definition", "widened"),
    [
        ("PRIMARY KEY (id)", "PRIMARY KEY (id, at)"),
        ("UNIQUE (a, b) INCLUDE (c) DEFERRABLE", "UNIQUE (a, b, at) INCLUDE (c) DEFERRABLE"),
        (f"{_INDEX}, \"b)\") WHERE (w > ''::text)", f"{_INDEX}, \"b)\", at) WHERE (w > ''::text)"),
    ],
)
def test_a_key_is_widened_at_the_end_of_its_columns(definition: str, widened: str) -> None:
    assert add_column(definition, "at") == widened
