"""Cutover and rollback: one command changes the owner, another one changes it back."""

from __future__ import annotations

import psycopg
import pytest

from tests.acceptance.fix_running import ROWS, TABLE, bring_up, catch_up, show_status, succeed
from tests.fix_pairs import MakePair, Pair
from tests.fix_postgres import execute

FENCED = "OM001"


@pytest.fixture
def pair(make_pair: MakePair) -> Pair:
    """A pair that is followed, and proved equal."""
    return bring_up(make_pair(ROWS, TABLE))


def owner_of(pair: Pair) -> str:
    return str(show_status(pair)["owner"])


def require_owner(pair: Pair, owner: str) -> None:
    """Exactly one side takes writes, and it is this one."""
    assert owner_of(pair) == owner
    for side, dsn in (("monolith", pair.monolith), ("service", pair.service)):
        statement = "UPDATE public.thing SET number = number + 1 WHERE id = 7"
        if side == owner:
            execute(dsn, statement)
        else:
            with pytest.raises(psycopg.Error, match="fenced") as refused:
                execute(dsn, statement)
            assert refused.value.sqlstate == FENCED
            assert f"the {owner} owns it" in str(refused.value)


def test_ownership_goes_to_the_service_and_back(pair: Pair) -> None:
    require_owner(pair, "monolith")
    catch_up(pair)
    done = succeed(pair, "cutover", "--json").json
    assert (done["outcome"], done["owner"], done["phase"]) == ("done", "service", "cut_over")
    assert 0 < done["pause_seconds"] < 5
    require_owner(pair, "service")
    pair.on_service("INSERT INTO public.thing VALUES (1000, 'new', 1)")
    pair.on_service("DELETE FROM public.thing WHERE id = 3")
    catch_up(pair)
    assert pair.compare()
    pair.validate()
    back = succeed(pair, "rollback", "--json").json
    assert (back["outcome"], back["owner"], back["phase"]) == ("done", "monolith", "syncing")
    require_owner(pair, "monolith")
    catch_up(pair)
    assert pair.compare()
    again = succeed(pair, "cutover", "--json").json
    assert (again["outcome"], again["owner"]) == ("done", "service")
    require_owner(pair, "service")
    assert succeed(pair, "cutover", "--json").json["outcome"] == "already_done"
