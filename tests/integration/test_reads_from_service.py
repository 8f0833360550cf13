"""What applications ask in the databases: the same answer everywhere, for those who may ask."""

# ruff: noqa: S608  the statements are the test's own, on tables of its own

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ordermigrate import reads, sides, traffic
from ordermigrate.model import Side
from ordermigrate.reads import Reads, Share
from tests.fix_orders import Hub
from tests.fix_pairs import MakeRole, role_dsn
from tests.fix_postgres import MakeDatabase, execute
from tests.integration import ground

KEYS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
ASK = "SELECT ordermigrate.reads_from_service({})"


@pytest.fixture
def reader(make_role: MakeRole) -> str:
    """An application's role; made before the databases, and gone after them."""
    return make_role("reader")


@contextlib.asynccontextmanager
async def installed(hub: Hub, *readers: str) -> AsyncIterator[dict[Side, str]]:
    """Both databases with a share of 0."""
    async with (
        ground.opened(hub.monolith) as monolith,
        ground.opened(hub.service, Side.SERVICE) as service,
    ):
        await ground.install(monolith, service)
        for session in (monolith, service):
            assert await traffic.install(session, readers) == []
    yield {Side.MONOLITH: hub.monolith, Side.SERVICE: hub.service}


def set_share(dsn: str, percentage: int) -> None:
    execute(
        dsn,
        f"UPDATE ordermigrate.traffic SET percentage = {percentage}, "
        "epoch = (SELECT epoch FROM ordermigrate.side)",
    )


def change_side(dsn: str, *, is_hot: bool, epoch: int) -> None:
    execute(dsn, f"UPDATE ordermigrate.side SET is_hot = {is_hot}, epoch = {epoch}")


def ask(dsn: str, key: str = "42") -> bool:
    with psycopg.connect(dsn) as connection:
        row = connection.execute("SELECT ordermigrate.reads_from_service(%s)", (key,)).fetchone()
    assert row is not None
    return bool(row[0])


async def test_the_function_and_the_client_agree_on_every_key_at_every_step(hub: Hub) -> None:
    async with installed(hub) as dsns:
        for dsn in dsns.values():
            with psycopg.connect(dsn, autocommit=True) as connection:
                check_keys(connection)


def check_keys(connection: psycopg.Connection) -> None:
    """Ask with keys of all kinds; a part of it is left to chance."""
    many = [
        *(str(number) for number in range(2000)),
        "",
        " ",
        "Zoë",
        "Zoe\u0308",
        "用户",
        "🦊",
        "'",
    ]

    @settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(st.lists(KEYS, max_size=50))
    def agree(keys: list[str]) -> None:
        found = connection.execute(
            "SELECT ordermigrate.reads_from_service(key) "
            "FROM unnest(%s::text[]) WITH ORDINALITY AS k (key, n) ORDER BY n",
            (keys,),
        ).fetchall()
        assert [row[0] for row in found] == [reads.is_among(key, step) for key in keys]

    for step in traffic.STEPS:
        connection.execute(f"UPDATE ordermigrate.traffic SET percentage = {step}".encode())
        agree()
        agree.hypothesis.inner_test(many)  # type: ignore[attr-defined]


async def test_a_database_in_another_encoding_gives_the_same_answer(
    make_database: MakeDatabase,
) -> None:
    dsn = make_database("monolith", options="ENCODING 'LATIN1' LOCALE 'C'")
    async with ground.opened(dsn) as monolith:
        async with monolith.transaction():
            await sides.install(monolith, ground.RUN, is_hot=True)
        await traffic.install(monolith, [])
    set_share(dsn, 50)
    for key in ("Zoë", "Jürgen", "Åsa", "Ñandú"):
        assert ask(dsn, key) == reads.is_among(key, 50)


async def test_nobody_but_a_reader_may_ask_and_a_reader_nothing_else(
    reader: str, make_role: MakeRole, hub: Hub
) -> None:
    stranger = make_role("stranger")
    async with installed(hub, reader) as dsns:
        for dsn in dsns.values():
            set_share(dsn, 100)
            assert ask(role_dsn(dsn, reader))
            with pytest.raises(psycopg.errors.InsufficientPrivilege, match="schema"):
                ask(role_dsn(dsn, stranger))
            # The right to name what is in the schema is not the right to ask.
            execute(dsn, f"GRANT USAGE ON SCHEMA ordermigrate TO {stranger}")
            for role in (reader, stranger):
                for table in ("traffic", "side"):
                    with pytest.raises(psycopg.errors.InsufficientPrivilege, match="table"):
                        execute(role_dsn(dsn, role), f"SELECT FROM ordermigrate.{table}")
            for function in ("reads_from_service('42')", "traffic_in_force()"):
                with pytest.raises(psycopg.errors.InsufficientPrivilege, match="function"):
                    execute(role_dsn(dsn, stranger), f"SELECT ordermigrate.{function}")


async def test_who_is_a_reader_no_longer_may_not_ask_any_more(reader: str, hub: Hub) -> None:
    async with installed(hub, reader) as dsns, ground.opened(hub.monolith) as monolith:
        assert await traffic.install(monolith, ["nobody_of_this_name"]) == ["nobody_of_this_name"]
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            ask(role_dsn(dsns[Side.MONOLITH], reader))
        assert not ask(role_dsn(dsns[Side.SERVICE], reader))


async def test_grants_go_with_the_schema(reader: str, hub: Hub) -> None:
    async with installed(hub, reader) as dsns, ground.opened(hub.monolith) as monolith:
        async with monolith.transaction():
            await sides.remove(monolith)
        owned = (
            "SELECT d.objid FROM pg_shdepend d JOIN pg_roles r ON r.oid = d.refobjid "
            f"WHERE r.rolname = '{reader}' AND d.dbid = (SELECT oid FROM pg_database "
            "WHERE datname = current_database())"
        )
        assert execute(dsns[Side.MONOLITH], owned) == []
        assert len(execute(dsns[Side.SERVICE], owned)) == 3  # the schema and two functions


async def test_a_search_path_has_no_say_in_the_answer(reader: str, hub: Hub) -> None:
    async with installed(hub, reader) as dsns:
        dsn = dsns[Side.MONOLITH]
        set_share(dsn, 100)
        execute(
            dsn,
            "CREATE SCHEMA trap; GRANT USAGE ON SCHEMA trap TO PUBLIC;"
            "CREATE FUNCTION trap.sha256(bytea) RETURNS bytea LANGUAGE sql AS 'SELECT NULL::bytea'",
        )
        with psycopg.connect(role_dsn(dsn, reader)) as connection:
            connection.execute("SET search_path = trap, pg_catalog")
            row = connection.execute(ASK.format("'42'").encode()).fetchone()
            assert row == (True,)


async def test_both_databases_answer_by_the_owner_through_cutover_and_rollback(hub: Hub) -> None:
    key = next(str(user) for user in range(100) if reads.find_place(str(user)) in range(25, 50))
    async with installed(hub) as dsns:
        monolith, service = dsns[Side.MONOLITH], dsns[Side.SERVICE]

        def answers() -> tuple[bool, bool]:
            return ask(monolith, key), ask(service, key)

        for dsn in (monolith, service):
            set_share(dsn, 25)
        assert answers() == (False, False)
        # Both are cold and hold the same: either answer is right.
        change_side(monolith, is_hot=False, epoch=1)
        assert answers() == (True, False)
        change_side(service, is_hot=True, epoch=1)
        assert answers() == (True, True)
        # Rollback: both hold the same again.
        change_side(service, is_hot=False, epoch=2)
        assert answers() == (True, False)
        change_side(monolith, is_hot=True, epoch=2)
        for dsn in (monolith, service):
            # Nobody has looked since then whether the service is in step.
            assert execute(dsn, "SELECT percentage FROM ordermigrate.traffic") == [(25,)]
            assert not any(ask(dsn, str(user)) for user in range(100))


async def test_a_user_without_a_key_reads_from_the_owner(hub: Hub) -> None:
    async with installed(hub) as dsns:
        dsn = dsns[Side.MONOLITH]
        set_share(dsn, 100)
        assert execute(dsn, ASK.format("NULL")) == [(False,)]
        change_side(dsn, is_hot=False, epoch=1)
        assert execute(dsn, ASK.format("NULL")) == [(True,)]


async def test_the_client_hears_from_a_database_what_the_function_says(
    reader: str, hub: Hub
) -> None:
    async with installed(hub, reader) as dsns:
        dsn = dsns[Side.SERVICE]
        set_share(dsn, 25)
        as_reader = role_dsn(dsn, reader)
        by_dsn = Reads(reads.ask_database(as_reader), cache_seconds=0)
        lent = Reads(reads.ask_database(lambda: psycopg.connect(as_reader)), cache_seconds=0)
        for client in (by_dsn, lent):
            assert client.find_share() == Share(25)
            assert [client.reads_from_service(str(user)) for user in range(50)] == [
                ask(dsn, str(user)) for user in range(50)
            ]
        change_side(dsn, is_hot=True, epoch=1)
        for client in (by_dsn, lent):
            assert client.find_share() == Share(100, is_service_owner=True)


async def test_a_client_that_may_not_ask_leaves_every_read_on_the_monolith(
    reader: str, hub: Hub, caplog: pytest.LogCaptureFixture
) -> None:
    async with installed(hub) as dsns:
        set_share(dsns[Side.MONOLITH], 100)
        client = Reads(reads.ask_database(role_dsn(dsns[Side.MONOLITH], reader)))
        assert not client.reads_from_service("42")
        assert "permission denied" in caplog.text
