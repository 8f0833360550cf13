"""The client that tells an application where to read: sticky, cached, and never in the way."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ordermigrate import reads
from ordermigrate.reads import NONE, Reads, Share
from ordermigrate.traffic import STEPS

KEYS = st.text(st.characters(exclude_categories=["Cs"]))


class World:
    """A clock, and a database that gives the next answer, or none."""

    def __init__(self, *answers: Share | Exception) -> None:
        self.now = 1000.0
        self.asked = 0
        self._answers: Iterator[Share | Exception] = iter(answers)

    def ask(self) -> Share:
        self.asked += 1
        answer = next(self._answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def reads(self) -> Reads:
        return Reads(self.ask, cache_seconds=5, patience_seconds=60, clock=lambda: self.now)


def away() -> Exception:
    return ConnectionError("nobody there")


@given(KEYS)
def test_a_users_place_is_always_the_same_and_among_a_hundred(key: str) -> None:
    assert 0 <= reads.find_place(key) < 100
    assert reads.find_place(key) == reads.find_place("".join(key))


@given(KEYS)
def test_who_is_among_a_share_is_among_every_larger_one(key: str) -> None:
    found = [reads.is_among(key, step) for step in STEPS]
    assert found == sorted(found)
    assert (found[0], found[-1]) == (False, True)


def test_places_are_those_that_were_promised() -> None:
    # SHA-256 in UTF-8, three bytes, modulo 100: who changes it moves every user.
    assert [reads.find_place(key) for key in ("", "1", "42", "Zoë", "用户")] == [24, 34, 8, 82, 78]


@pytest.mark.parametrize("step", STEPS)
def test_a_share_has_as_many_users_as_it_says(step: int) -> None:
    users = [str(number) for number in range(20_000)]
    found = sum(reads.is_among(user, step) for user in users) / 200
    assert abs(found - step) < 1


def test_the_share_is_asked_for_once_and_kept_for_a_while() -> None:
    world = World(Share(0), Share(100))
    client = world.reads()
    assert not any(client.reads_from_service(str(user)) for user in range(100))
    world.now += 4.9
    assert not client.reads_from_service("7")
    assert world.asked == 1
    world.now += 0.2
    assert client.reads_from_service("7")
    assert world.asked == 2


def test_the_last_answer_counts_while_the_database_is_away_and_then_the_monolith_is_read() -> None:
    world = World(Share(100), *(away() for _ in range(20)))
    client = world.reads()
    assert client.reads_from_service("7")
    for _ in range(13):
        world.now += 5
        assert client.find_share() == Share(100)
    world.now += 0.1
    assert client.find_share() == NONE
    assert not client.reads_from_service("7")


def test_a_database_that_is_away_is_not_asked_for_every_read() -> None:
    world = World(away(), Share(100))
    client = world.reads()
    assert not any(client.reads_from_service(str(user)) for user in range(50))
    assert world.asked == 1
    world.now += 5
    assert client.reads_from_service("7")


def test_a_service_that_was_the_owner_stays_so_until_somebody_says_otherwise() -> None:
    # The monolith's rows are the old ones then: no patience makes them right.
    world = World(Share(100, is_service_owner=True), away(), Share(0))
    client = world.reads()
    assert client.reads_from_service("7")
    world.now += 3600
    assert client.reads_from_service("7")
    world.now += 5
    assert not client.reads_from_service("7")


def test_while_one_thread_asks_others_go_on_with_what_is_known() -> None:
    asking, answer = threading.Event(), threading.Event()
    shares = iter([Share(0), Share(100)])

    def ask() -> Share:
        share = next(shares)
        if share.percentage:
            asking.set()
            assert answer.wait(10)
        return share

    now = [0.0]
    client = Reads(ask, cache_seconds=5, clock=lambda: now[0])
    assert not client.reads_from_service("7")
    now[0] = 6.0
    found: list[bool] = []
    slow = threading.Thread(target=lambda: found.append(client.reads_from_service("7")))
    slow.start()
    assert asking.wait(10)
    assert not client.reads_from_service("7")
    answer.set()
    slow.join(10)
    assert found == [True]
    assert client.reads_from_service("7")


def test_the_client_brings_nothing_heavy_into_the_application() -> None:
    script = (
        "import sys, ordermigrate.reads;"
        "print(sorted({'asyncpg', 'click', 'pydantic', 'rich', 'structlog', 'uvloop'} "
        "& set(sys.modules)), [m for m in sys.modules if m.startswith('ordermigrate')])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], check=True, capture_output=True, text=True
    )
    assert done.stdout.split("\n")[0] == "[] ['ordermigrate', 'ordermigrate.reads']"
