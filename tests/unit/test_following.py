"""What ends a line without harm is tried again, with growing pauses, and not for ever."""

from __future__ import annotations

import asyncio

import pytest

from ordermigrate import following
from ordermigrate.errors import Refused
from ordermigrate.rounds import PartCollides
from ordermigrate.sync import Tally
from tests.integration.ground import Heard, make_config


async def collide() -> None:
    raise PartCollides


async def test_parts_that_collide_for_ever_are_not_tried_for_ever() -> None:
    config = make_config("", "", retry_deadline_seconds=0.3)
    tally, heard = Tally(), Heard()
    work = following.persist(config, tally, asyncio.Event(), heard, collide)
    with pytest.raises(Refused, match="collides"):
        await asyncio.wait_for(work, 20)
    # Each was told, and waited for: so there were few.
    assert 1 <= len(heard.events) < 10
    assert tally.takes_all


def test_pauses_grow_up_to_a_limit_after_however_many_failures() -> None:
    assert [following.pause_after(failures) for failures in (0, 1, 2)] == [0.0, 0.2, 0.4]
    assert following.pause_after(6) == following.pause_after(100_000) == 5.0
