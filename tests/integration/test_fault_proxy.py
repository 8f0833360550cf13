"""What PostgreSQL's clients see through a broken network."""

from __future__ import annotations

import threading
from collections.abc import Callable

import asyncpg
import psycopg
import pytest

from tests.fix_faults import FaultProxy
from tests.fix_postgres import execute

MakeProxy = Callable[[str], FaultProxy]


@pytest.fixture
def proxy(monolith_dsn: str, make_proxy: MakeProxy) -> FaultProxy:
    return make_proxy(monolith_dsn)


async def test_both_drivers_work_through_a_healthy_proxy(
    monolith_dsn: str, proxy: FaultProxy
) -> None:
    assert execute(proxy.dsn(monolith_dsn), "SELECT 1") == [(1,)]
    connection = await asyncpg.connect(proxy.dsn(monolith_dsn))
    assert await connection.fetchval("SELECT length(repeat('x', 3000000))") == 3_000_000
    await connection.close()
    assert proxy.connections == 2


def test_a_commit_whose_reply_is_lost_is_done_and_its_client_does_not_know(
    monolith_dsn: str, proxy: FaultProxy
) -> None:
    execute(monolith_dsn, "CREATE TABLE public.told (word text)")

    def cut_when_the_server_has_answered() -> None:
        proxy.wait_until(lambda p: p.swallowed_bytes > 0)
        proxy.cut()

    with psycopg.connect(proxy.dsn(monolith_dsn)) as through:
        through.execute("INSERT INTO public.told VALUES ('kept')")
        proxy.when_seen(b"COMMIT", proxy.swallow_replies)
        cutter = threading.Thread(target=cut_when_the_server_has_answered)
        cutter.start()
        with pytest.raises(psycopg.OperationalError):
            through.commit()
        cutter.join()
    assert execute(monolith_dsn, "SELECT word FROM public.told") == [("kept",)]


def test_a_cut_in_mid_copy_ends_the_copy(monolith_dsn: str, proxy: FaultProxy) -> None:
    proxy.cut_after(1_000_000)
    with (
        psycopg.connect(proxy.dsn(monolith_dsn)) as connection,
        connection.cursor() as cursor,
        pytest.raises(psycopg.OperationalError),
        cursor.copy("COPY (SELECT generate_series(1, 1000000)) TO STDOUT") as copy,
    ):
        for _ in copy:
            pass
    assert proxy.bytes_to_client == 1_000_000


def test_a_stalled_server_keeps_a_new_client_waiting(monolith_dsn: str, proxy: FaultProxy) -> None:
    proxy.stall()
    with pytest.raises(psycopg.errors.ConnectionTimeout):
        psycopg.connect(proxy.dsn(monolith_dsn), connect_timeout=2)
    proxy.heal()
    assert execute(proxy.dsn(monolith_dsn), "SELECT 1") == [(1,)]


def test_a_refused_client_gets_in_again_after_healing(monolith_dsn: str, proxy: FaultProxy) -> None:
    proxy.refuse()
    with pytest.raises(psycopg.OperationalError, match="refused"):
        psycopg.connect(proxy.dsn(monolith_dsn))
    proxy.heal()
    assert execute(proxy.dsn(monolith_dsn), "SELECT 1") == [(1,)]
