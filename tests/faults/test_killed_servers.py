"""A server that loses power in mid-copy; what it had committed is there when it is back."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from tests.faults.fix_copying import Copying, MakeCopying, names
from tests.fix_orders import RunningCli
from tests.fix_postgres import SIDES, Side, TestServers

TABLE = "CREATE TABLE public.plain (id integer PRIMARY KEY, word text)"
FILL = "INSERT INTO public.plain SELECT n, repeat(md5(n::text), 8) FROM generate_series(1, {}) n"


@pytest.fixture
def copying(make_copying: MakeCopying, postgres_servers: TestServers) -> Copying:
    if not all(postgres_servers.of(side).is_ours for side in SIDES):
        pytest.skip("needs servers of its own, to kill them")
    return make_copying(is_written_to=True)


@pytest.mark.parametrize(
    ("side", "event"),
    [("monolith", "chunk_copied"), ("service", "chunk_copied"), ("service", "index_started")],
)
def test_a_server_that_is_back_in_time_is_waited_for(
    copying: Copying, postgres_servers: TestServers, side: Side, event: str
) -> None:
    server = postgres_servers.of(side).own
    assert server is not None

    def kill(_: RunningCli) -> None:
        server.kill()
        server.start()

    done = copying.run(at=(event, 1, kill))
    assert done.exit_code == 0, done.stderr
    copying.assert_complete()


@pytest.mark.parametrize("side", SIDES)
def test_a_server_that_stays_away_is_told_and_the_next_run_resumes(
    copying: Copying, postgres_servers: TestServers, side: Side
) -> None:
    server = postgres_servers.of(side).own
    assert server is not None
    copying.configure(retry_deadline_seconds=1.0)
    gone = copying.run(at=("chunk_copied", 2, lambda _: server.kill()))
    server.start()
    assert gone.exit_code == 5, (gone.exit_code, gone.stderr)
    assert side in gone.stderr.splitlines()[-1]
    done = copying.finish()
    assert names(done).count("chunk_copied") <= 2


# ---------------------------------------------------------------------- commits that may vanish


@contextmanager
def careless_traffic(copying: Copying, statement: str) -> Iterator[None]:
    """Write without waiting for the disk, on a server that does not hurry, until it is gone."""
    is_over = threading.Event()
    dsn = make_conninfo(copying.hub.monolith, options="-c synchronous_commit=off")

    def write() -> None:
        try:
            with psycopg.connect(dsn, autocommit=True) as connection:
                # Little: a full MiB would be flushed however lazy the server is.
                for number in range(1, 20_000):
                    connection.execute(statement.encode(), [number])
                    if is_over.wait(0.005):
                        return
        except psycopg.OperationalError:
            return  # the power is gone

    copying.on_monolith("ALTER SYSTEM SET wal_writer_delay = '10s'")
    copying.on_monolith("SELECT pg_reload_conf()")
    writer = threading.Thread(target=write)
    writer.start()
    try:
        yield
    finally:
        is_over.set()
        writer.join(30)
        copying.on_monolith("ALTER SYSTEM RESET wal_writer_delay")
        copying.on_monolith("SELECT pg_reload_conf()")


@pytest.mark.parametrize(
    ("event", "statement"),
    [
        ("chunk_copied", "INSERT INTO public.plain VALUES (-%s, 'careless')"),
        ("subtracted", "UPDATE public.plain SET word = 'careless' WHERE id = %s"),
    ],
)
def test_what_asynchronous_commits_lose_in_a_crash_is_neither_copied_nor_taken_off(
    make_copying: MakeCopying, postgres_servers: TestServers, event: str, statement: str
) -> None:
    server = postgres_servers.monolith.own
    if server is None:
        pytest.skip("needs a server of its own, to kill it")
    # Several chunks, for two snapshots; or one that is copied before anything else is written.
    fill = FILL.format(20_000 if event == "subtracted" else 10)
    copying = make_copying(
        orders=10,
        tables=[{"name": "public.plain"}],
        scripts=(f"{TABLE}; {fill}", TABLE),
        limits={"workers": 1},
    )

    def kill(_: RunningCli) -> None:
        server.kill()
        server.start()

    if event == "subtracted":
        copying.run(at=("chunk_copied", 2, RunningCli.kill))
    with careless_traffic(copying, statement):
        done = copying.run(at=(event, 1, kill))
    assert done.exit_code == 0, done.stderr
    assert event in names(done)
    copying.assert_caught_up()
