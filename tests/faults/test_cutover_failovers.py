"""A failover to a standby that lacks the last seconds, before, in and after a change of owner.

Nothing can bring back what such a standby never had; but it is found and said, never does anybody
write on two sides unnoticed, and there is a way on from each.
"""

from __future__ import annotations

from contextlib import suppress

import psycopg
import pytest

from tests.faults.fix_changing import Changing
from tests.faults.fix_failover import MakeFailingOver
from tests.faults.fix_syncing import told
from tests.fix_postgres import SIDES, Side

WRITE = (
    "INSERT INTO public.orders (id, user_id, created_at, updated_at) "
    "VALUES (gen_random_uuid(), 99999, now(), now())"
)


def who_takes_writes(changing: Changing) -> list[Side]:
    """Return the sides that take a write; each write is undone."""
    taken: list[Side] = []
    for side in SIDES:
        with psycopg.connect(changing.dsns[side]) as connection:
            with suppress(psycopg.errors.RaiseException, psycopg.errors.Error):
                connection.execute(WRITE.encode())
                taken.append(side)
            connection.rollback()
    return taken


def mend(changing: Changing) -> None:
    """Do what the messages say: go on from here, and have every difference found and mended."""
    changing.syncing.run("sync", "--adopt", "--until-caught-up")
    changing.run("validate", "--checksums", "--repair")
    changing.syncing.catch_up()
    changing.syncing.settle()


@pytest.mark.parametrize("side", SIDES)
def test_a_failover_that_has_lost_rounds_is_found_before_the_owner_changes(
    make_failing_over: MakeFailingOver, side: Side
) -> None:
    shop = make_failing_over(side)
    changing = shop.changing
    shop.back_up()
    for _ in range(3):
        changing.syncing.on("monolith", WRITE)
        changing.syncing.catch_up()
    changing.syncing.run("validate", "--checksums")
    shop.fail_over()
    ended = changing.run("cutover")
    assert ended.exit_code == 3, told(ended)
    assert "gone back in time" in ended.stderr
    assert who_takes_writes(changing) == ["monolith"]
    assert changing.status()["owner"] == "monolith"
    mend(changing)
    changing.bring_home("cutover")


def test_an_owner_who_fails_over_to_before_it_let_go_owns_the_tables_and_that_is_found(
    make_failing_over: MakeFailingOver,
) -> None:
    shop = make_failing_over("monolith")
    changing = shop.changing
    shop.back_up()
    changing.strand("cutover")
    shop.fail_over()
    # The standby never heard of it: it is the owner as before, and nobody else is.
    assert who_takes_writes(changing) == ["monolith"]
    ended = changing.run("cutover")
    assert ended.exit_code == 3, told(ended)
    assert who_takes_writes(changing) == ["monolith"]
    mend(changing)
    changing.bring_home("cutover")


def test_a_service_that_fails_over_to_before_it_was_to_own_the_tables_is_not_made_the_owner(
    make_failing_over: MakeFailingOver,
) -> None:
    shop = make_failing_over("service")
    changing = shop.changing
    shop.back_up()
    changing.syncing.on("monolith", WRITE)
    changing.strand("cutover")
    shop.fail_over()
    assert who_takes_writes(changing) == []
    assert "Nobody owns" in changing.status()["alarm"]
    ended = changing.run("cutover")
    assert ended.exit_code == 8, told(ended)
    assert "`ordermigrate cutover --abort`" in ended.stderr
    assert who_takes_writes(changing) == []
    assert changing.succeed("cutover", "--abort")["owner"] == "monolith"
    assert who_takes_writes(changing) == ["monolith"]
    mend(changing)
    changing.bring_home("cutover")


def test_an_owner_of_old_who_comes_back_by_a_failover_is_said_loudly_and_fenced_off(
    make_failing_over: MakeFailingOver,
) -> None:
    shop = make_failing_over("monolith")
    changing = shop.changing
    shop.back_up()
    changing.bring_home("cutover")
    shop.fail_over()
    assert who_takes_writes(changing) == ["monolith", "service"]
    said = changing.status()
    assert "BOTH sides take writes" in said["alarm"]
    assert "`ordermigrate cutover`" in said["alarm"]
    # Nothing is brought from one to the other meanwhile.
    assert changing.run("sync", "--until-caught-up").exit_code == 8
    changing.syncing.on("monolith", WRITE)
    ended = changing.run("cutover")
    assert ended.exit_code == 8, told(ended)
    assert "1 changes" in ended.stderr
    assert who_takes_writes(changing) == ["service"]
    assert changing.run("cutover").exit_code == 0
    mend(changing)
    changing.require_owner("service")


def test_a_new_owner_who_fails_over_to_before_it_owned_the_tables_is_said_and_the_old_one_can_be(
    make_failing_over: MakeFailingOver,
) -> None:
    shop = make_failing_over("service")
    changing = shop.changing
    shop.back_up()
    changing.syncing.on("monolith", WRITE)
    changing.bring_home("cutover")
    changing.syncing.on("service", WRITE)
    shop.fail_over()
    assert who_takes_writes(changing) == []
    assert "Nobody owns" in changing.status()["alarm"]
    ended = changing.run("cutover")
    assert ended.exit_code == 8, told(ended)
    assert changing.succeed("cutover", "--abort")["owner"] == "monolith"
    assert who_takes_writes(changing) == ["monolith"]
    mend(changing)
    changing.bring_home("cutover")


def test_an_owner_who_went_back_by_two_changes_is_said(make_failing_over: MakeFailingOver) -> None:
    shop = make_failing_over("monolith")
    changing = shop.changing
    shop.back_up()
    changing.bring_home("cutover")
    changing.bring_home("rollback")
    shop.fail_over()
    assert who_takes_writes(changing) == ["monolith"]
    assert "gone back in time" in changing.status()["alarm"]
    ended = changing.run("cutover")
    assert ended.exit_code == 3, told(ended)
    assert "gone back in time" in ended.stderr
    mend(changing)
    changing.bring_home("cutover")
