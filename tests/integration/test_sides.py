"""The row that says which side a database is, and all the ways in which two can not belong."""

# ruff: noqa: S608  the statements are the product's own, on tables of these tests

from __future__ import annotations

import uuid

import pytest

from ordermigrate import sides
from ordermigrate.control import Session
from ordermigrate.errors import Refused, UsageError
from ordermigrate.model import Side
from tests.fix_postgres import MakeDatabase, execute
from tests.integration import ground
from tests.integration.ground import RUN, opened


async def install(session: Session, run: str = RUN, *, is_hot: bool = True) -> str:
    async with session.transaction():
        return await sides.install(session, run, is_hot=is_hot)


async def test_a_database_outside_of_any_migration_has_no_row(monolith_dsn: str) -> None:
    async with opened(monolith_dsn) as monolith:
        assert await sides.read(monolith) is None


async def test_a_schema_without_a_row_is_no_side(monolith_dsn: str) -> None:
    # What a transaction leaves behind that created the schema for itself, by hand or by a grant.
    execute(monolith_dsn, "CREATE SCHEMA ordermigrate")
    async with opened(monolith_dsn) as monolith:
        assert await sides.read(monolith) is None


async def test_an_installed_row_is_read_as_it_was_written(monolith_dsn: str) -> None:
    async with opened(monolith_dsn) as monolith:
        await install(monolith)
        row = await sides.read(monolith)
    assert row is not None
    assert row == sides.SideRow(
        Side.MONOLITH, RUN, 0, is_hot=True, round=0, pass_word=row.pass_word
    )


async def test_a_row_that_is_there_stays_and_its_run_is_told(monolith_dsn: str) -> None:
    async with opened(monolith_dsn) as monolith:
        assert await install(monolith) == RUN
        assert await install(monolith, str(uuid.uuid4()), is_hot=False) == RUN
        row = await sides.read(monolith)
    assert row is not None
    assert (row.run, row.is_hot) == (RUN, True)


async def test_each_database_has_a_pass_of_its_own_that_is_not_shown(
    monolith_dsn: str, service_dsn: str
) -> None:
    async with opened(monolith_dsn) as one, opened(service_dsn, Side.SERVICE) as other:
        await ground.install(one, other)
        rows = [await sides.read(session) for session in (one, other)]
    passes = {row.pass_word for row in rows if row}
    assert len(passes) == 2
    assert all(len(each) >= 32 for each in passes)
    assert not any(each in repr(rows) for each in passes)


async def test_the_pass_is_shown_for_one_transaction_only(monolith_dsn: str) -> None:
    async with opened(monolith_dsn) as monolith:
        await install(monolith)
        row = await sides.read(monolith)
        assert row is not None
        shown = "SELECT coalesce(current_setting('ordermigrate.pass', true), '') AS shown"
        async with monolith.transaction():
            await sides.show_pass(monolith)
            assert (await monolith.run(shown))[0].shown == row.pass_word
        assert (await monolith.run(shown))[0].shown == ""


async def test_an_intent_is_kept_until_it_is_taken_back(monolith_dsn: str) -> None:
    async with opened(monolith_dsn) as monolith:
        await install(monolith)
        for intent in ({"cancel": True}, None):
            await sides.note_intent(monolith, intent)
            row = await sides.read(monolith)
            assert row is not None
            assert row.intent == intent


async def test_an_installation_that_is_rolled_back_leaves_nothing(monolith_dsn: str) -> None:
    async with opened(monolith_dsn) as monolith:
        with pytest.raises(ZeroDivisionError):
            await ground.fail_inside(monolith, sides.install(monolith, RUN, is_hot=True))
        assert await sides.read(monolith) is None
        assert not (await monolith.fetch_one("sides", "has_schema")).is_there


async def test_swapped_dsns_are_refused_from_either_side(
    monolith_dsn: str, service_dsn: str
) -> None:
    async with opened(monolith_dsn) as one, opened(service_dsn, Side.SERVICE) as other:
        await ground.install(one, other)
    async with opened(service_dsn) as one, opened(monolith_dsn, Side.SERVICE) as other:
        for session in (one, other):
            with pytest.raises(UsageError, match="the two DSNs are swapped"):
                await sides.read(session)
        with pytest.raises(UsageError, match="swapped"):
            await sides.read_both(one, other)


async def test_two_databases_of_one_run_belong_together(
    monolith_dsn: str, service_dsn: str
) -> None:
    async with opened(monolith_dsn) as one, opened(service_dsn, Side.SERVICE) as other:
        assert await sides.read_both(one, other) == (None, None)
        await ground.install(one, other)
        found = await sides.read_both(one, other)
    assert [row and (row.side, row.run, row.is_hot) for row in found] == [
        (Side.MONOLITH, RUN, True),
        (Side.SERVICE, RUN, False),
    ]


async def test_the_service_alone_is_a_preparation_cut_short(
    monolith_dsn: str, service_dsn: str
) -> None:
    async with opened(monolith_dsn) as one, opened(service_dsn, Side.SERVICE) as other:
        await install(other, is_hot=False)
        found = await sides.read_both(one, other)
    assert found[0] is None
    assert found[1] is not None


async def test_the_monolith_alone_is_refused_for_its_service_is_elsewhere(
    monolith_dsn: str, service_dsn: str
) -> None:
    async with opened(monolith_dsn) as one, opened(service_dsn, Side.SERVICE) as other:
        await install(one)
        with pytest.raises(Refused, match=RUN):
            await sides.read_both(one, other)


async def test_sides_of_two_runs_are_refused(monolith_dsn: str, service_dsn: str) -> None:
    stranger = str(uuid.uuid4())
    async with opened(monolith_dsn) as one, opened(service_dsn, Side.SERVICE) as other:
        await install(one)
        await install(other, stranger, is_hot=False)
        with pytest.raises(Refused, match=f"{RUN}.*{stranger}"):
            await sides.read_both(one, other)


async def test_a_clone_of_the_monolith_in_the_services_place_is_a_swap(
    make_database: MakeDatabase, monolith_dsn: str, service_dsn: str
) -> None:
    async with opened(monolith_dsn) as one, opened(service_dsn, Side.SERVICE) as other:
        await ground.install(one, other)
        original = one.identity.database
    clone = make_database("monolith", template=original)
    async with opened(monolith_dsn) as one, opened(clone, Side.SERVICE) as other:
        with pytest.raises(UsageError, match="swapped"):
            await sides.read_both(one, other)


async def test_a_database_is_one_side_at_most(monolith_dsn: str) -> None:
    async with opened(monolith_dsn) as monolith:
        await install(monolith)
    insert = (
        "INSERT INTO ordermigrate.side (only_one_side, side, run, is_hot, pass) "
        f"VALUES ({{}}, 'service', '{RUN}', true, 'x')"
    )
    for value, name in (("true", "side_pkey"), ("false", "side_is_a_single_row")):
        with pytest.raises(Exception, match=name):
            execute(monolith_dsn, insert.format(value))
