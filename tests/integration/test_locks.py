"""Locks on other people's tables: nobody waits long for us, and nobody is a victim."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable

import psycopg
import pytest

from ordermigrate import locks
from ordermigrate.control import Session
from ordermigrate.errors import LockTimeout
from ordermigrate.locks import GaveWay
from ordermigrate.model import TableName
from tests.fix_postgres import execute
from tests.integration.ground import opened, read_tables

ONE, OTHER = TableName("public", "one"), TableName("public", "other")
FAMILY = (
    "CREATE TABLE public.one (id integer PRIMARY KEY, n integer NOT NULL DEFAULT 0);"
    "CREATE TABLE public.other (id integer PRIMARY KEY, n integer NOT NULL DEFAULT 0);"
    "INSERT INTO public.one VALUES (1), (2); INSERT INTO public.other VALUES (1), (2);"
)
PARTITIONED = """
CREATE TABLE public.t (id integer, PRIMARY KEY (id)) PARTITION BY RANGE (id);
CREATE TABLE public.t_low PARTITION OF public.t FOR VALUES FROM (0) TO (10);
CREATE TABLE public."t high 1" PARTITION OF public.t FOR VALUES FROM (10) TO (20);
CREATE TABLE public.t_rest PARTITION OF public.t DEFAULT;
"""


@pytest.fixture
async def session(monolith_dsn: str) -> AsyncIterator[Session]:
    async with opened(monolith_dsn) as session:
        yield session


# ---------------------------------------------------------------------------------- giving way


async def test_the_lock_takes_no_snapshot(session: Session, monolith_dsn: str) -> None:
    # What commits between the lock and the first query must be seen: no rewrite can have come
    # between, because the lock is already there.
    execute(monolith_dsn, "CREATE TABLE public.t (id integer PRIMARY KEY)")
    async with locks.locked_snapshot(session, [TableName("public", "t")]):
        execute(monolith_dsn, "INSERT INTO public.t VALUES (1)")
        rows = await session.run("SELECT count(*) AS n FROM public.t")
        assert rows[0].n == 1
        with pytest.raises(psycopg.errors.LockNotAvailable):
            execute(monolith_dsn, "SET lock_timeout = '10ms'; ALTER TABLE public.t ADD x integer")


async def test_the_lock_covers_every_leaf(session: Session, monolith_dsn: str) -> None:
    execute(monolith_dsn, PARTITIONED)
    async with locks.locked_snapshot(session, [TableName("public", "t")]):
        for leaf in ("public.t_low", 'public."t high 1"', "public.t_rest"):
            with pytest.raises(psycopg.errors.LockNotAvailable):
                execute(monolith_dsn, f"SET lock_timeout = '10ms'; TRUNCATE {leaf}")


async def wait_for_rewriter(dsn: str, pids: list[int], oids: list[int]) -> None:
    async with opened(dsn) as watcher, asyncio.timeout(20):
        await locks.watch_for_rewriters(watcher, oids, pids)


async def test_an_exclusive_lock_that_waits_for_us_makes_us_give_way(
    session: Session, monolith_dsn: str
) -> None:
    execute(monolith_dsn, PARTITIONED)
    (table,) = await read_tables(session)
    oids = [table.oid, *(leaf.oid for leaf in table.leaves)]
    async with await psycopg.AsyncConnection.connect(monolith_dsn) as other:
        await session.run("BEGIN")
        await session.run("LOCK TABLE public.t IN ACCESS SHARE MODE")
        waiting = asyncio.ensure_future(other.execute("TRUNCATE public.t_low"))
        with pytest.raises(GaveWay, match=r"public\.t_low \(TRUNCATE public\.t_low\)") as gave_way:
            await wait_for_rewriter(monolith_dsn, [session.pid], oids)
        assert gave_way.value.exit_code == 5
        await session.run("ROLLBACK")
        await waiting


@pytest.mark.parametrize(
    "statement",
    ["REINDEX INDEX public.t_low_pkey", "ALTER INDEX public.t_low_pkey SET TABLESPACE pg_default"],
)
async def test_a_lock_on_an_index_that_waits_for_us_makes_us_give_way(
    session: Session, monolith_dsn: str, statement: str
) -> None:
    execute(monolith_dsn, PARTITIONED)
    (table,) = await read_tables(session)
    oids = [table.oid, *(leaf.oid for leaf in table.leaves)]
    async with await psycopg.AsyncConnection.connect(monolith_dsn, autocommit=True) as other:
        await session.run("BEGIN")
        await session.run("SELECT count(*) FROM public.t")
        waiting = asyncio.ensure_future(other.execute(statement.encode()))
        with pytest.raises(GaveWay, match=r"public\.t_low_pkey"):
            await wait_for_rewriter(monolith_dsn, [session.pid], oids)
        await session.run("ROLLBACK")
        await waiting


@pytest.mark.parametrize(
    ("statement", "pid"),
    [("LOCK TABLE public.t_low IN SHARE MODE", "ours"), ("TRUNCATE public.t_low", "a stranger's")],
)
async def test_a_lesser_lock_or_one_that_waits_for_others_is_none_of_our_business(
    session: Session, monolith_dsn: str, statement: str, pid: str
) -> None:
    execute(monolith_dsn, PARTITIONED)
    (table,) = await read_tables(session)
    oids = [table.oid, *(leaf.oid for leaf in table.leaves)]
    async with await psycopg.AsyncConnection.connect(monolith_dsn) as other:
        await session.run("BEGIN")
        await session.run("LOCK TABLE public.t IN ROW EXCLUSIVE MODE")
        waiting = asyncio.ensure_future(other.execute(statement.encode()))
        ours = session.pid if pid == "ours" else 0
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.7):
                await wait_for_rewriter(monolith_dsn, [ours], oids)
        await session.run("ROLLBACK")
        await waiting


# ----------------------------------------------------------------------------- excluding writers


@contextlib.asynccontextmanager
async def holding(dsn: str, statement: str) -> AsyncIterator[psycopg.AsyncConnection]:
    """Keep a transaction open in which somebody has done something."""
    async with await psycopg.AsyncConnection.connect(dsn) as other:
        await other.execute(statement.encode())
        yield other
        await other.rollback()


@contextlib.asynccontextmanager
async def going_on(*writers: Callable[[], Awaitable[None]]) -> AsyncIterator[list[float]]:
    """Let writers write, one transaction after the other; yields how long each took."""
    seconds: list[float] = []
    is_over = asyncio.Event()

    async def go_on(write: Callable[[], Awaitable[None]]) -> None:
        while not is_over.is_set():
            begun = time.monotonic()
            await write()
            seconds.append(time.monotonic() - begun)
            await asyncio.sleep(0.001)

    async with asyncio.TaskGroup() as group:
        for write in writers:
            group.create_task(go_on(write))
        try:
            yield seconds
        finally:
            is_over.set()


def write_alone(connection: psycopg.AsyncConnection, row: int) -> Callable[[], Awaitable[None]]:
    async def write() -> None:
        await connection.execute("UPDATE public.one SET n = n + 1 WHERE id = %s", [row])
        await connection.commit()

    return write


def write_both(
    connection: psycopg.AsyncConnection, row: int, *tables: str
) -> Callable[[], Awaitable[None]]:
    async def write() -> None:
        for table in tables:
            statement = f"UPDATE public.{table} SET n = n + 1 WHERE id = {row}"  # noqa: S608
            await connection.execute(statement.encode())
            await asyncio.sleep(0.01)
        await connection.commit()

    return write


@pytest.fixture
def family(monolith_dsn: str) -> str:
    execute(monolith_dsn, FAMILY)
    return monolith_dsn


async def test_a_writer_in_a_long_transaction_makes_us_give_up_and_is_named(family: str) -> None:
    async with (
        opened(family, lock_timeout_seconds=1) as session,
        holding(family, "UPDATE public.other SET n = 1 WHERE id = 1") as writer,
    ):
        with pytest.raises(LockTimeout) as gave_up:
            async with locks.excluding_writers(session, [ONE, OTHER]):
                pytest.fail("it had the locks")
        assert f"backend {writer.info.backend_pid} on public.other for " in str(gave_up.value)
        assert "UPDATE public.other" in str(gave_up.value)
        assert "wrote to the monolith's tables" in str(gave_up.value)
        assert gave_up.value.exit_code == 5
        # It has let everything go, and the session is as before.
        await writer.execute("UPDATE public.one SET n = 1 WHERE id = 1")
        await writer.commit()
        async with locks.excluding_writers(session, [ONE, OTHER]):
            pass


async def test_writers_behind_us_wait_for_half_of_deadlock_timeout_at_most(family: str) -> None:
    async with (
        opened(family, lock_timeout_seconds=3) as session,
        holding(family, "UPDATE public.one SET n = 1 WHERE id = 1"),
        await psycopg.AsyncConnection.connect(family) as other,
    ):
        timeout = session.identity.deadlock_timeout_ms / 1000
        async with going_on(write_alone(other, 2)) as seconds:
            with pytest.raises(LockTimeout):
                async with locks.excluding_writers(session, [ONE, OTHER]):
                    pytest.fail("it had the locks")
        assert max(seconds) > 0.1  # so somebody did queue
        assert max(seconds) < timeout / 2 + 0.3  # the rest is for a slow machine


async def test_writers_that_lock_two_tables_in_opposite_order_are_no_victims(family: str) -> None:
    async with (
        opened(family) as session,
        await psycopg.AsyncConnection.connect(family) as one,
        await psycopg.AsyncConnection.connect(family) as other,
    ):
        # Of a deadlock's victim the group would raise the error.
        async with going_on(
            write_both(one, 1, "one", "other"), write_both(other, 2, "other", "one")
        ) as seconds:
            for _ in range(5):
                async with locks.excluding_writers(session, [ONE, OTHER]):
                    before = len(seconds)
                    await asyncio.sleep(0.05)
                    assert len(seconds) == before
                await asyncio.sleep(0.1)
        assert len(seconds) > 10
        assert max(seconds) < session.identity.deadlock_timeout_ms / 1000


async def test_a_vacuum_is_waited_for_without_a_wait_for_writers(family: str) -> None:
    had = asyncio.Event()
    async with (
        opened(family) as session,
        await psycopg.AsyncConnection.connect(family) as other,
        holding(family, "LOCK TABLE public.other IN SHARE UPDATE EXCLUSIVE MODE") as vacuum,
    ):

        async def exclude() -> None:
            async with locks.excluding_writers(session, [ONE, OTHER]):
                had.set()

        excluding = asyncio.ensure_future(exclude())
        async with going_on(write_alone(other, 2)) as seconds:
            await asyncio.sleep(0.8)
            assert not had.is_set()
        assert max(seconds) < 0.4  # nobody queues behind what we wait with
        await vacuum.rollback()
        async with asyncio.timeout(20):
            await excluding
        assert had.is_set()


async def test_readers_and_foreign_keys_checks_go_on_where_only_writers_have_to_wait(
    family: str,
) -> None:
    async with (
        opened(family) as session,
        holding(family, "SELECT * FROM public.one; SELECT FROM public.other FOR KEY SHARE") as one,
        locks.excluding_writers(session, [ONE, OTHER]),
    ):
        await one.execute("SET statement_timeout = '5s'; SELECT FROM public.one FOR KEY SHARE")


async def test_a_reader_is_waited_for_and_named_where_readers_have_to_wait_too(family: str) -> None:
    async with (
        opened(family, lock_timeout_seconds=1) as session,
        holding(family, "SELECT * FROM public.one") as reader,
    ):
        with pytest.raises(LockTimeout, match="used the monolith's tables") as gave_up:
            async with locks.excluding_writers(session, [ONE], is_exclusive=True):
                pytest.fail("it had the lock")
        assert f"backend {reader.info.backend_pid} on public.one" in str(gave_up.value)
        await reader.rollback()
        async with locks.excluding_writers(session, [ONE], is_exclusive=True):
            with pytest.raises(psycopg.errors.LockNotAvailable):
                execute(family, "SET lock_timeout = '10ms'; SELECT * FROM public.one")


async def test_a_writer_of_a_partition_is_one_of_the_table(
    session: Session, monolith_dsn: str
) -> None:
    execute(monolith_dsn, PARTITIONED)
    table = TableName("public", "t")
    async with (
        opened(monolith_dsn, lock_timeout_seconds=0.5) as ours,
        holding(monolith_dsn, "INSERT INTO public.t_low VALUES (1)") as writer,
    ):
        with pytest.raises(LockTimeout) as gave_up:
            async with locks.excluding_writers(ours, [table]):
                pytest.fail("it had the lock")
        assert f"backend {writer.info.backend_pid} on public.t_low" in str(gave_up.value)
    async with locks.excluding_writers(session, [table]):
        with pytest.raises(psycopg.errors.LockNotAvailable):
            execute(
                monolith_dsn, "SET lock_timeout = '10ms'; INSERT INTO public.t_rest VALUES (99)"
            )


async def test_what_was_done_inside_stays_if_all_of_it_succeeds_and_only_then(
    session: Session, family: str
) -> None:
    async def fail() -> None:
        async with locks.excluding_writers(session, [ONE]):
            await session.run("INSERT INTO public.one VALUES (7)")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fail()
    async with locks.excluding_writers(session, [ONE]):
        await session.run("INSERT INTO public.one VALUES (8)")
        for name in ("lock_timeout", "statement_timeout"):
            row = (await session.run("SELECT current_setting($1) AS value", name))[0]
            (own,) = await session.run("SELECT $1::interval::text AS value", row.value)
            wanted = f"{session.route.settings[name]} milliseconds"
            (told,) = await session.run("SELECT $1::interval::text AS value", wanted)
            assert own.value == told.value
    assert execute(family, "SELECT id FROM public.one WHERE id > 6") == [(8,)]


async def test_who_keeps_even_readers_out_is_named(family: str) -> None:
    async with (
        opened(family, lock_timeout_seconds=0.5) as session,
        holding(family, "LOCK TABLE public.one IN ACCESS EXCLUSIVE MODE") as other,
    ):
        with pytest.raises(LockTimeout, match=f"exclusively by backend {other.info.backend_pid}"):
            async with locks.locked_snapshot(session, [ONE, OTHER]):
                pytest.fail("it had the locks")
