"""What has become of a side: each change is told once, for what it is, and nothing else is."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

import pytest

from ordermigrate import fingerprints
from ordermigrate.fingerprints import Changes

ORDERS, LOW, HIGH = "public.orders", "public.orders_low", "public.orders_high"
ROW = "ordermigrate_capture_row"
NOTHING = Changes((), (), (), (), ())
Side = dict[str, Any]


def side() -> Side:
    """Return a partitioned table as `describe_side` tells it."""
    return {
        "tables": {
            ORDERS: {
                "oid": 100,
                "kind": "p",
                "columns": {
                    "id": [1, "uuid", None, True, "", ""],
                    "word": [2, "text", None, False, "", ""],
                },
                "keys": {"orders_pkey": [True, ["id"]], "orders_word_key": [False, ["word"]]},
                "leaves": {LOW: [101, "FOR VALUES FROM (0)"], HIGH: [102, "DEFAULT"]},
                "row_security": False,
            }
        },
        "files": {LOW: 501, HIGH: 502},
        "triggers": {
            f"{ROW} on {ORDERS}": [900, "7", "A"],
            f"{ROW} on {LOW}": [901, "7", "A"],
            f"{ROW} on {HIGH}": [902, "7", "A"],
        },
    }


def compare(change: Callable[[Side], object]) -> Changes:
    after = copy.deepcopy(side())
    change(after)
    # As the ledger would give it back.
    return fingerprints.compare_sides(json.loads(json.dumps(side())), after)


def column(after: Side, name: str) -> list[Any]:
    found: list[Any] = after["tables"][ORDERS]["columns"][name]
    return found


def test_a_side_that_has_not_changed_is_not_said_to_have() -> None:
    assert compare(lambda _: None) == NOTHING


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda it: it["tables"].pop(ORDERS), f"{ORDERS} has gone"),
        (lambda it: it["tables"][ORDERS].update(oid=7), f"{ORDERS} was dropped and created again"),
        (
            lambda it: it["tables"][ORDERS].update(row_security=True),
            f"row level security of {ORDERS} was switched",
        ),
        (
            lambda it: it["tables"][ORDERS]["columns"].pop("word"),
            f"column word of {ORDERS} was dropped",
        ),
        (
            lambda it: it["tables"][ORDERS]["columns"].update(new=column(it, "word")),
            f"column new of {ORDERS} was added",
        ),
        (
            lambda it: it["tables"][ORDERS]["keys"].pop("orders_pkey"),
            f"unique index orders_pkey of {ORDERS} was dropped",
        ),
    ],
)
def test_what_could_change_the_meaning_of_a_row_is_drift(
    change: Callable[[Side], object], said: str
) -> None:
    changes = compare(change)
    assert changes.drift == (said,)
    assert not changes.rewritten
    assert not changes.triggers


@pytest.mark.parametrize(("place", "value"), [(1, "varchar(9)"), (2, '"C"'), (5, "s")])
def test_a_columns_type_collation_and_generation_are_part_of_a_rows_meaning(
    place: int, value: str
) -> None:
    (said,) = compare(lambda it: column(it, "word").__setitem__(place, value)).drift
    assert said.startswith(f"column word of {ORDERS} changed from ")
    assert value in said


@pytest.mark.parametrize(
    "change",
    [
        lambda it: column(it, "word").__setitem__(slice(3, 4), [True]),  # NOT NULL
        lambda it: column(it, "word").__setitem__(4, "d"),  # an identity of its own
        lambda it: it["tables"][ORDERS]["keys"].pop("orders_word_key"),
        lambda it: it["tables"][ORDERS]["keys"].update(more=[False, ["id", "word"]]),
    ],
)
def test_what_cannot_change_a_row_that_is_there_is_let_pass(
    change: Callable[[Side], object],
) -> None:
    assert compare(change) == NOTHING


def test_a_part_that_was_attached_is_told_without_its_triggers() -> None:
    def attach(after: Side) -> None:
        after["tables"][ORDERS]["leaves"]["public.new"] = [103, "FOR VALUES FROM (9)"]
        after["files"]["public.new"] = 503
        after["triggers"][f"{ROW} on public.new"] = [903, "8", "A"]

    assert compare(attach) == Changes((), ((ORDERS, "public.new"),), (), (), ())


def test_a_part_that_was_detached_is_told_without_its_triggers() -> None:
    def detach(after: Side) -> None:
        del after["tables"][ORDERS]["leaves"][LOW]
        del after["files"][LOW]
        del after["triggers"][f"{ROW} on {LOW}"]

    assert compare(detach) == Changes((), (), ((ORDERS, LOW),), (), ())


@pytest.mark.parametrize("now", [[999, "FOR VALUES FROM (0)"], [101, "FOR VALUES FROM (5)"]])
def test_a_part_that_is_another_one_now_is_both_gone_and_added(now: list[Any]) -> None:
    def replace(after: Side) -> None:
        after["tables"][ORDERS]["leaves"][LOW] = now
        after["files"][LOW] = 999
        after["triggers"][f"{ROW} on {LOW}"] = [999, "9", "A"]

    assert compare(replace) == Changes((), ((ORDERS, LOW),), ((ORDERS, LOW),), (), ())


@pytest.mark.parametrize("is_there", [True, False])
def test_a_part_of_a_later_attempt_is_added_where_it_is_there_and_gone_where_it_is_not(
    *, is_there: bool
) -> None:
    last = copy.deepcopy(side())
    last["tables"][ORDERS]["leaves"]["public.new"] = [103, "FOR VALUES FROM (9)"]
    last["files"]["public.new"] = 503
    last["triggers"][f"{ROW} on public.new"] = [903, "8", "A"]
    known = json.loads(json.dumps(fingerprints.add_later_parts(side(), last)))
    changes = fingerprints.compare_sides(known, last if is_there else side())
    part = ((ORDERS, "public.new"),)
    assert changes == Changes((), part if is_there else (), () if is_there else part, (), ())
    assert fingerprints.compare_sides(last, last) == NOTHING


def test_a_file_that_is_another_is_a_rewrite_and_no_drift() -> None:
    changes = compare(lambda it: it["files"].update({HIGH: 777}))
    assert changes.rewritten == (
        f"{HIGH} has another file (TRUNCATE, VACUUM FULL, CLUSTER or ALTER TABLE)",
    )
    assert (changes.drift, changes.parts_added, changes.parts_gone) == ((), (), ())


@pytest.mark.parametrize(
    ("now", "said"),
    [
        (None, "was dropped"),
        ([900, "8", "D"], "was switched off"),
        ([900, "8", "O"], "was switched over"),
        ([900, "8", "A"], "was switched off and on again, or made anew"),
        ([950, "8", "A"], "was switched off and on again, or made anew"),
    ],
)
def test_a_trigger_of_ours_that_was_off_for_a_moment_is_told(
    now: list[Any] | None, said: str
) -> None:
    name = f"{ROW} on {ORDERS}"

    def change(after: Side) -> None:
        if now is None:
            del after["triggers"][name]
        else:
            after["triggers"][name] = now

    assert compare(change) == Changes((), (), (), (), (f"trigger {name} {said}",))


def test_a_trigger_that_was_added_is_told() -> None:
    changes = compare(lambda it: it["triggers"].update({f"more on {ORDERS}": [1, "1", "A"]}))
    assert changes.triggers == (f"trigger more on {ORDERS} was added",)


@pytest.mark.parametrize("now", [None, [907, "9", "D"]])
def test_a_trigger_on_what_is_no_part_any_more_is_not_told(now: list[Any] | None) -> None:
    before = side()
    before["triggers"][f"{ROW} on public.detached"] = [907, "7", "A"]
    after = side()
    if now is not None:
        after["triggers"][f"{ROW} on public.detached"] = now
    assert fingerprints.compare_sides(before, after) == NOTHING
