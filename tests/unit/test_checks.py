"""What preflight concludes from what servers say; the servers themselves: test_preflight.py."""

from __future__ import annotations

import re
from types import SimpleNamespace

import pytest

from ordermigrate import checks_neighbours, checks_servers, db, sessions
from ordermigrate.bodies import Function, Library, Relation
from ordermigrate.checks import CHECKS
from ordermigrate.errors import Refused
from ordermigrate.model import ForeignKey, Identity, Side, Table, TableName

RELATIONS = [
    Relation(1, "public", "orders"),
    Relation(2, "public", "audit"),
    Relation(3, "old", "orders"),
    Relation(4, "public", "Order Lines"),
]


def function(body: str, oid: int = 10, name: str = "f", language: str = "plpgsql") -> Function:
    return Function(oid, f"public.{name}()", "public", name, language, body)


def writes(*bodies: Function) -> set[int]:
    return set(Library(bodies, RELATIONS).find_writes(bodies[0].oid).relations)


def test_every_key_is_there_once_and_says_what_to_do() -> None:
    keys = [check.key for check in CHECKS]
    assert len(keys) == len(set(keys))
    for check in CHECKS:
        assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", check.key)
        assert check.meaning.endswith(".")
        assert check.todo.endswith(".")


@pytest.mark.parametrize(
    ("body", "found"),
    [
        ("INSERT INTO audit VALUES (1)", {2}),
        ("insert  into\n public.audit values (1)", {2}),
        ("UPDATE ONLY orders SET a = 1", {1}),
        ("UPDATE old.orders SET a = 1", {3}),
        ("DELETE FROM only public . orders", {1}),
        ("TRUNCATE TABLE orders", {1}),
        ("MERGE INTO orders AS o USING audit", {1}),
        ('DELETE FROM "Order Lines"', {4}),
        ("INSERT INTO nowhere SELECT 1 FROM orders", set()),
        ("SELECT 1 FROM orders FOR UPDATE OF orders", set()),
        ("-- DELETE FROM orders\n/* UPDATE audit */ NULL", set()),
        ("EXECUTE 'DELETE FROM orders'", {1}),
    ],
)
def test_writes_are_found_in_the_text(body: str, found: set[int]) -> None:
    assert writes(function(body)) == found


def test_writes_of_what_is_called_are_found_and_circles_end() -> None:
    one = function("PERFORM g(1)", 10, "f")
    other = function("PERFORM public.f(); INSERT INTO audit VALUES (1)", 11, "g")
    assert writes(one, other) == {2}


def test_what_the_text_does_not_tell_is_said() -> None:
    dynamic, foreign = function("EXECUTE word"), function("x", language="c")
    for each in (dynamic, foreign):
        assert Library([each], RELATIONS).find_writes(10).unread == ("public.f()",)
    assert Library([function("NULL")], RELATIONS).find_writes(10).unread == ()


def test_a_mention_is_of_the_table_itself_and_not_of_another_schemas() -> None:
    mentions = Library(
        [function("SELECT 1 FROM old.orders"), function("SELECT count(*) FROM orders", 11, "g")],
        RELATIONS,
    ).find_mentions(frozenset({1}))
    assert [(each.name, oids) for each, oids in mentions] == [("g", {1})]


def table(name: str, *references: str) -> Table:
    named = TableName("public", name)
    keys = tuple(
        ForeignKey(
            f"to_{other}", named, ("a",), TableName("public", other), ("a",), "", is_validated=True
        )
        for other in references
    )
    return Table(1, named, "r", "me", False, 0, (), (), (), keys, (), (), (), ())  # noqa: FBT003


def test_each_circle_of_foreign_keys_is_named_once() -> None:
    tables = [table("a", "b"), table("b", "c"), table("c", "a", "d"), table("d", "d"), table("e")]
    circles = checks_neighbours.find_cycles(tables)
    assert [[each.name for each in circle] for circle in circles] == [["a", "b", "c", "a"]]


def test_two_circles_through_one_table_are_both_named() -> None:
    tables = [table("a", "b", "c"), table("b", "a"), table("c", "a")]
    assert len(checks_neighbours.find_cycles(tables)) == 2


def test_clocks_may_differ_by_what_the_round_trips_explain() -> None:
    assert checks_servers.find_clock_difference(0.9, 0) == []
    assert checks_servers.find_clock_difference(-3, 2.5) == []
    (spot,) = checks_servers.find_clock_difference(-3, 0.1)
    assert spot.said == "the service's clock is ~3.0 s behind the monolith's"
    assert "ahead of" in checks_servers.find_clock_difference(2, 0)[0].said


def test_more_parts_than_half_of_the_locks_are_told() -> None:
    assert checks_servers.find_lock_shortage(Side.MONOLITH, 3200, 6400) == []
    (spot,) = checks_servers.find_lock_shortage(Side.MONOLITH, 3201, 6400)
    assert "3,201 tables and partitions" in spot.said


def test_commits_that_would_wait_for_ever_are_told() -> None:
    def row(names: str, standbys: int) -> SimpleNamespace:
        return SimpleNamespace(standby_names=names, synchronous_standbys=standbys)

    assert checks_servers.find_lost_standbys(Side.SERVICE, row("", 0)) == []
    assert checks_servers.find_lost_standbys(Side.SERVICE, row("one", 1)) == []
    (spot,) = checks_servers.find_lost_standbys(Side.SERVICE, row("one", 0))
    assert "(one)" in spot.said


def test_a_server_that_is_too_new_or_too_old_is_told() -> None:
    def identity(version: int) -> Identity:
        return Identity(Side.SERVICE, "d", 1, None, version, "UTF8", False, None, 1000)  # noqa: FBT003

    assert checks_servers.find_new_version(identity(180004)) == []
    (spot,) = checks_servers.find_new_version(identity(190001))
    assert "PostgreSQL 19.1" in spot.said
    found = SimpleNamespace(
        server_version=130009, fsync="on", full_page_writes="off", is_in_recovery=True
    )
    faults = list(db.find_server_faults(Side.SERVICE, found))
    assert [fault.finding for fault in faults] == ["version", "durability", "standby"]


@pytest.mark.parametrize(
    ("row", "key"),
    [(("TimeZone", "UTC", 8), "pooler"), (("TimeZone", "Europe/Paris", 7), "session-settings")],
)
def test_what_a_session_tells_of_itself_has_its_key(row: tuple[str, str, int], key: str) -> None:
    with pytest.raises(Refused) as refused:
        sessions.check(Side.SERVICE, 7, [row])
    assert refused.value.finding == key
    assert key in {check.key for check in CHECKS}
