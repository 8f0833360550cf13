"""Servers that lose power or are restarted under sync; what vanished with them is nowhere."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from ordermigrate.demo.servers import Server
from tests.faults.fix_copying import names
from tests.faults.fix_syncing import MakeSyncing, Syncing, await_progress, stop_sync, told
from tests.fix_orders import RunningCli
from tests.fix_postgres import SIDES, Side, TestServers, execute

# A flush by the server's own clock comes within three of these; ten seconds are the most it takes.
LAZY = "ALTER SYSTEM SET wal_writer_delay = '10s'"
INSERT = 'INSERT INTO public.order_notes ("order") VALUES (%s)'


@pytest.fixture
def own(postgres_servers: TestServers) -> dict[Side, Server]:
    """Both servers, which may be killed."""
    found: dict[Side, Server] = {}
    for side in SIDES:
        server = postgres_servers.of(side).own
        if server is None:
            pytest.skip("needs servers of its own, to kill them")
        found[side] = server
    return found


@pytest.fixture
def syncing(own: dict[Side, Server], make_syncing: MakeSyncing) -> Syncing:
    return make_syncing()


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("event", ["changes_staged", "round_half_committed", "quiet"])
def test_a_server_that_loses_power_is_waited_for(
    syncing: Syncing, own: dict[Side, Server], side: Side, event: str
) -> None:
    def lose_power(_: RunningCli) -> None:
        own[side].kill()
        own[side].start()

    with syncing.traffic(is_slow=event == "quiet") as traffic:
        running = syncing.start(at=(event, 2, lose_power))
        running.wait_for_event("sync_waits")
        await_progress(running)
        stop_sync(running)
        syncing.settle(traffic)


@pytest.mark.parametrize("sides", [["monolith"], ["service"], ["service", "monolith"]])
def test_servers_that_are_restarted_are_waited_for(
    syncing: Syncing, own: dict[Side, Server], sides: list[Side]
) -> None:
    proxy = syncing.proxies[sides[0]]
    with syncing.traffic() as traffic:
        running = syncing.start()
        await_progress(running)
        for side in sides:
            own[side].stop("fast")
        # Longer than a moment: so many times it has tried in vain.
        running.wait_for_event("sync_waits")
        tried = proxy.connections
        proxy.wait_until(lambda proxy: proxy.connections >= tried + 3)
        for side in sides:
            own[side].start()
        await_progress(running)
        stop_sync(running)
        syncing.settle(traffic)


@pytest.mark.parametrize("side", SIDES)
def test_a_server_that_stays_away_is_told(
    syncing: Syncing, own: dict[Side, Server], side: Side
) -> None:
    syncing.configure(retry_deadline_seconds=1.0)
    with syncing.traffic() as traffic:
        running = syncing.start(at=("round_applied", 2, lambda _: own[side].stop("immediate")))
        gone = running.finish(timeout_seconds=40)
        assert gone.exit_code == 5, told(gone)
        assert "Traceback" not in gone.stderr
        last = gone.stderr.splitlines()[-1]
        assert last.startswith("ordermigrate: ")
        assert side in last
        own[side].start()
        syncing.settle(traffic)


@pytest.mark.parametrize("side", SIDES)
def test_sigterm_ends_a_sync_whose_server_is_away(
    syncing: Syncing, own: dict[Side, Server], side: Side
) -> None:
    syncing.configure(retry_deadline_seconds=2.0)
    with syncing.traffic() as traffic:
        running = syncing.start(at=("round_applied", 2, lambda _: own[side].stop("immediate")))
        running.wait_for_event("sync_waits")
        running.process.terminate()
        ended = running.finish(timeout_seconds=20)
        assert ended.exit_code == 0, told(ended)
        assert ended.stdout.startswith("stopped: ")
        assert "Traceback" not in ended.stderr
        own[side].start()
        syncing.settle(traffic)


# ---------------------------------------------------------------------- commits that may vanish


@contextmanager
def lazy_flushes(syncing: Syncing) -> Iterator[None]:
    """Let the monolith's server flush nothing of asynchronous commits by itself."""
    for statement in (LAZY, "SELECT pg_reload_conf()"):
        execute(syncing.dsn("monolith"), statement)
    try:
        yield
    finally:
        for statement in ("ALTER SYSTEM RESET wal_writer_delay", "SELECT pg_reload_conf()"):
            execute(syncing.dsn("monolith"), statement)


def connect_carelessly(syncing: Syncing) -> psycopg.Connection:
    """Open a session whose commits are told before they are on disk."""
    dsn = make_conninfo(syncing.dsn("monolith"), options="-c synchronous_commit=off")
    return psycopg.connect(dsn, autocommit=True)


@contextmanager
def careless_traffic(syncing: Syncing) -> Iterator[None]:
    """Write without waiting for the disk until the server is gone, and then no more."""
    is_over = threading.Event()

    def write() -> None:
        try:
            with connect_carelessly(syncing) as connection:
                # Little: a full MiB would be flushed however lazy the server is.
                while not is_over.wait(0.01):
                    connection.execute(INSERT, [str(uuid.uuid4())])
        except psycopg.OperationalError:
            return  # the power is gone

    writer = threading.Thread(target=write)
    writer.start()
    try:
        yield
    finally:
        is_over.set()
        writer.join(30)


def test_a_commit_that_vanishes_with_the_source_was_never_on_the_target(
    syncing: Syncing, own: dict[Side, Server]
) -> None:
    # The row is committed, and seen by the round, but on no disk. The power goes at the worst of
    # moments: the target has committed, the source's own COMMIT, which would flush, has not come.
    before = syncing.on("monolith", "SELECT count(*) FROM public.order_notes")[0][0]
    running = syncing.start()
    running.wait_for_event("quiet")
    with lazy_flushes(syncing), connect_carelessly(syncing) as careless:
        syncing.at_commit("service", syncing.proxies["monolith"].stall)
        careless.execute(INSERT, ["careless"])
        running.wait_for_event("round_half_committed")
        own["monolith"].kill()
        on_target = syncing.on("service", "SELECT count(*) FROM public.order_notes")[0][0]
        assert on_target == before + 1
        own["monolith"].start()
        syncing.proxies["monolith"].cut()
        syncing.proxies["monolith"].heal()
        # The wait for the flush has made it durable.
        found = syncing.on("monolith", "SELECT count(*) FROM public.order_notes")[0][0]
        assert found == on_target
        syncing.on("monolith", INSERT.replace("%s", "'careful'"))
        running.wait_for_event("sync_waits")
        await_progress(running, rounds=1)
        stop_sync(running)
    syncing.settle()


@pytest.mark.parametrize("place", range(3))
def test_what_asynchronous_commits_lose_in_a_crash_is_not_on_the_target(
    syncing: Syncing, own: dict[Side, Server], place: int
) -> None:
    running = syncing.start()
    running.wait_for_event("quiet")
    with lazy_flushes(syncing), careless_traffic(syncing):
        await_progress(running, rounds=3 + place)
        # As above, but with whatever is written in between: some of it is lost.
        syncing.at_commit("service", syncing.proxies["monolith"].stall)
        known = names(running).count("round_half_committed")
        running.wait_for_event("round_half_committed", known + 1)
        own["monolith"].kill()
        own["monolith"].start()
        syncing.proxies["monolith"].cut()
        syncing.proxies["monolith"].heal()
    syncing.on("monolith", INSERT.replace("%s", "'careful'"))
    running.wait_for_event("sync_waits")
    await_progress(running, rounds=1)
    stop_sync(running)
    syncing.settle()
