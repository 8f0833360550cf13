"""A sync that has nothing to do costs the databases little, and notices all the same."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import pytest

from ordermigrate import following, rounds, sync
from ordermigrate.control import Session
from ordermigrate.model import Side
from ordermigrate.progress import Event, Following, Quiet
from ordermigrate.rounds import StructureChanged
from ordermigrate.sync import Tally
from tests.fix_pairs import MakePair, Pair
from tests.integration.ground import make_config

TABLE = "CREATE TABLE public.thing (id integer PRIMARY KEY, word text)"
LOOKS = 6


class Counted:
    """A reporter that does something at each event of a kind, given how many there were."""

    def __init__(self, kind: type[Event], act: Callable[[int], object]) -> None:
        self.kind = kind
        self.act = act
        self.number = 0

    def report(self, event: Event) -> None:
        if isinstance(event, self.kind):
            self.number += 1
            self.act(self.number)


@pytest.fixture
def pair(make_pair: MakePair) -> Pair:
    """A table that is copied."""
    pair = make_pair(TABLE)
    pair.copy()
    return pair


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[Side]:
    """At whose catalogs the rounds' line has looked."""
    sides: list[Side] = []
    read_version = rounds.read_version

    async def read(session: Session, oids: Sequence[int]) -> str:
        sides.append(session.side)
        return await read_version(session, oids)

    monkeypatch.setattr(rounds, "read_version", read)
    return sides


def follow_quietly(pair: Pair, looks: list[Side], act: Callable[[int], object]) -> None:
    """Follow a monolith on which nobody writes, until it has been looked at a few times."""

    tally = Tally()

    def count(number: int) -> None:
        act(number)
        # Until the last look, as if there had been a round in between that left something.
        tally.is_caught_up = number == LOOKS

    async def work() -> None:
        config = make_config(pair.monolith, pair.service, *pair.tables)
        heard = Counted(Quiet, count)
        async with following.stand(config, "test", heard) as footing:
            looks.clear()
            await sync.follow(
                footing.line,
                tally,
                asyncio.Event(),
                heard,
                lambda tally: tally.is_caught_up and heard.number >= LOOKS - 1,
            )
        assert heard.number == LOOKS

    asyncio.run(work())


def test_the_catalogs_are_read_in_the_first_look_and_in_the_last(
    pair: Pair, looks: list[Side]
) -> None:
    follow_quietly(pair, looks, lambda _: None)
    assert looks == [Side.MONOLITH, Side.SERVICE] * 2


def test_the_catalogs_are_read_now_and_then_in_between(
    pair: Pair, looks: list[Side], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sync, "CATALOGS_SECONDS", 0.0)
    follow_quietly(pair, looks, lambda _: None)
    assert looks == [Side.MONOLITH, Side.SERVICE] * LOOKS


def test_a_change_after_the_first_look_is_noticed_in_the_last(
    pair: Pair, looks: list[Side]
) -> None:
    def change(number: int) -> None:
        if number == 1:
            pair.on_monolith("ALTER TABLE public.thing DISABLE TRIGGER ordermigrate_capture_row")

    with pytest.raises(StructureChanged):
        follow_quietly(pair, looks, change)


def test_a_line_that_has_become_old_is_opened_anew(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The temporary tables of the old one are gone with it, and no change is lost."""
    monkeypatch.setattr(sync, "LINE_SECONDS", 0.0)
    backends: set[int] = set()

    async def work() -> Tally:
        stop, tally = asyncio.Event(), Tally()

        def write(number: int) -> None:
            pair.on_monolith("INSERT INTO public.thing SELECT count(*), 'w' FROM public.thing")
            backends.update(
                pid
                for (pid,) in pair.on_service(
                    "SELECT pid FROM pg_stat_activity WHERE datname = current_database() "
                    "AND application_name = 'ordermigrate sync: rounds'"
                )
            )
            if number == 3:
                stop.set()

        config = make_config(pair.monolith, pair.service, *pair.tables)
        await following.run_sync(
            config, tally, stop, Counted(Following, write), lambda _: False, is_adopting=False
        )
        return tally

    tally = asyncio.run(work())
    assert (tally.rounds, tally.changes) == (3, 3)
    assert len(backends) >= 3
    assert pair.compare()
