"""A copy of the hub's orders that faults are done to, and the checks that end every test.

The judge compares both sides without a line of the product; the ledger is read by SQL of its own;
`validate` has its say. Where a writer was at work, sync brings what it wrote first, and then both
sides must have what was acknowledged to it. What stands on the service's table (indexes,
constraints, columns) is compared with how it was before any command ran.
"""

from __future__ import annotations

import io
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import psycopg
import pytest
from psycopg import sql

from ordermigrate.cli.app import run
from tests.fix_faults import FaultProxy
from tests.fix_orders import (
    ORDERS_TABLE,
    CliResult,
    Comparison,
    Hub,
    MakeHub,
    RunCli,
    RunningCli,
    StartCli,
    WriteToml,
    execute_behind_fence,
    identical,
)
from tests.fix_postgres import SIDES, Side, execute
from tests.fix_traffic import Traffic, hub_traffic

# Four chunks of 1 MiB, the last one smaller; their rows are some 4.3 MB in COPY's binary format.
ORDERS = 20_000
MID_COPY_BYTES = 2_000_000
CHUNK_MIB = 1
INDEXES = 7
WRITES_PER_SECOND = 40.0
BUILDER = b"max_parallel_maintenance_workers"  # what a builder of indexes sets before each

EVENTS = (
    "prepared",
    "indexes_dropped",
    "snapshot_taken",
    "chunk_copied",
    "rows_copied",
    "subtracted",
    "index_started",
    "index_built",
    "analyzed",
)

_DEFINITIONS = """
SELECT line FROM (
    SELECT format('index %s, valid %s, identity %s, clustered %s, in %s, %s',
        pg_get_indexdef(i.indexrelid), i.indisvalid, i.indisreplident, i.indisclustered,
        c.reltablespace, obj_description(i.indexrelid, 'pg_class'))
    FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
    WHERE i.indrelid = 'public.orders'::regclass
    UNION ALL
    SELECT format('constraint %I %s, valid %s, by %s, %s', conname, pg_get_constraintdef(oid),
        convalidated, conindid::regclass, obj_description(oid, 'pg_constraint'))
    FROM pg_constraint WHERE conrelid = 'public.orders'::regclass
    UNION ALL
    SELECT format('column %I %s, not null %s, default %s', attname,
        format_type(atttypid, atttypmod), attnotnull, pg_get_expr(d.adbin, d.adrelid))
    FROM pg_attribute a LEFT JOIN pg_attrdef d ON d.adrelid = attrelid AND d.adnum = attnum
    WHERE attrelid = 'public.orders'::regclass AND attnum > 0
    UNION ALL
    SELECT format('table owner %s, rights %s, options %s, identity %s', relowner::regrole, relacl,
        reloptions, relreplident)
    FROM pg_class WHERE oid = 'public.orders'::regclass
) AS everything (line)
ORDER BY line COLLATE "C"
"""

At = tuple[str, int, Callable[[RunningCli], object]]


@dataclass(eq=False)
class Copying:
    """Two databases, a proxy in front of each, and the program.

    Attributes:
        hub: How the test itself reaches the databases, past the proxies.
        proxies: The network between the program and each of them.
        traffic: A writer that is at work on the monolith meanwhile, past the proxy.

    """

    hub: Hub
    proxies: Mapping[Side, FaultProxy]
    write_toml: WriteToml
    start_cli: StartCli
    run_cli: RunCli
    limits: Mapping[str, object]
    tables: Sequence[Mapping[str, object]]
    definitions_before: list[str] = field(default_factory=list)
    traffic: Traffic | None = None
    path: Path = field(init=False)

    def __post_init__(self) -> None:
        self.configure()
        self.definitions_before = self.definitions_before or self.definitions()

    def configure(self, **limits: object) -> None:
        """Write the configuration, with these limits over those of the test."""
        self.path = self.write_toml(
            self.through("monolith"),
            self.through("service"),
            tables=self.tables,
            limits={"chunk_mib": CHUNK_MIB, **self.limits, **limits},
        )

    def dsn(self, side: Side) -> str:
        """Return the way past the proxy."""
        return self.hub.monolith if side == "monolith" else self.hub.service

    def through(self, side: Side) -> str:
        """Return the program's way to one side."""
        proxy = self.proxies.get(side)
        return proxy.dsn(self.dsn(side)) if proxy else self.dsn(side)

    def on_monolith(self, statement: str) -> list[tuple[Any, ...]]:
        """Run statements there, outside any transaction."""
        return execute(self.hub.monolith, statement)

    def on_service(self, statement: str) -> list[tuple[Any, ...]]:
        """Run statements there, outside any transaction."""
        return execute(self.hub.service, statement)

    def behind_fence(self, statement: str) -> list[tuple[Any, ...]]:
        """Run statements on the service as nobody but the program could."""
        return execute_behind_fence(self.hub.service, statement)

    def definitions(self) -> list[str]:
        """Return what stands on the service's table; triggers are off until it is the owner."""
        return [str(line) for (line,) in execute(self.hub.service, _DEFINITIONS)]

    # The program

    def start(self, *args: str, at: At | None = None) -> RunningCli:
        """Start `copy`."""
        return self.start_cli("copy", *args, at=at)

    def run(self, *args: str, at: At | None = None) -> CliResult:
        """Run `copy` to its end, whatever that is."""
        return self.start(*args, at=at).finish()

    def finish(self, *args: str) -> CliResult:
        """Run the copy again, which has to complete it, and check everything."""
        done = self.run(*args)
        assert done.exit_code == 0, done.stderr
        self.assert_complete()
        return done

    def recover(self, result: CliResult) -> None:
        """Take a copy that had a fault to its end: it recovered itself, or says run again."""
        assert_resumable(result)
        if result.exit_code == 0:
            self.assert_complete()
        else:
            self.finish()

    def catch_up(self) -> None:
        """End the writer, and let sync bring what was written during the copy."""
        if self.traffic is not None:
            self.traffic.stop()
        self.call("sync", "--until-caught-up")

    def call(self, *args: str) -> None:
        """Run a command in this process, which has to end with 0."""
        said = io.StringIO()
        with redirect_stdout(said), redirect_stderr(said):
            exit_code = ordermigrate(*args, "--config", str(self.path))
        assert exit_code == 0, said.getvalue()

    # The checks, and the catalog

    def assert_complete(self) -> None:
        """Assert that both sides are identical, the ledger agrees, and `validate` does."""
        if self.traffic is None:
            self.assert_ledger("copied")
            for table in self.tables:
                name = str(table["name"])
                assert self.ledger_rows(name) == self.compare(name).service_rows
        else:
            self.catch_up()
            for dsn in (self.hub.monolith, self.hub.service):
                self.traffic.require_all_on(dsn)
        self.assert_proved()

    def assert_caught_up(self) -> None:
        """Let sync bring what the test wrote itself, and assert that all is right then."""
        self.catch_up()
        self.assert_proved()

    def assert_proved(self) -> None:
        """Assert that both sides are identical, definitions included, and `validate` agrees."""
        for table in self.tables:
            self.compare(str(table["name"]))
        self.assert_ledger("copied", "syncing")
        assert self.definitions() == self.definitions_before
        self.call("validate", "--checksums")

    def compare(self, table: str = "public.orders") -> Comparison:
        """Let the judge have its say on a table."""
        compared = identical(self.hub.monolith, self.hub.service, table)
        assert compared
        return compared

    def assert_ledger(self, *phases: str) -> None:
        """Assert that the ledger has no chunk to copy and no index to build, in such a phase."""
        ((phase, *left),) = self.on_service(
            "SELECT phase, (SELECT count(*) FROM ordermigrate.chunk WHERE copied_at IS NULL), "
            "(SELECT count(*) FROM ordermigrate.recorded_object "
            "WHERE state = 'off' AND kind IN ('index', 'check')) FROM ordermigrate.run"
        )
        assert phase in phases
        assert left == [0, 0]

    def ledger_rows(self, table: str = "public.orders") -> int:
        """Return how many rows the ledger says were copied."""
        query = sql.SQL(
            "SELECT coalesce(sum(copied_rows), 0)::bigint FROM ordermigrate.chunk "
            "WHERE table_name = {}"
        ).format(sql.Literal(table))
        return int(execute(self.hub.service, query)[0][0])

    # What happens to it

    def stall_service_in_mid_copy(self) -> None:
        """Let the service's network stop once, with a chunk on its way on each worker."""
        self.proxies["service"].stall_after(MID_COPY_BYTES, "to_server")

    def await_stall(self) -> None:
        """Wait until that has happened."""
        self.proxies["service"].wait_until(lambda proxy: proxy._is_stalled)

    def await_lock_wait(self, side: Side, application_name: str) -> None:
        """Wait until a backend of that name waits for a lock on one side."""
        statement = sql.SQL(
            "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() "
            "AND application_name = {} AND wait_event_type = 'Lock'"
        ).format(sql.Literal(application_name))
        end = time.monotonic() + 30
        while not execute(self.dsn(side), statement):
            assert time.monotonic() < end
            time.sleep(0.05)

    def end_backends(self, side: Side, application_name: str) -> int:
        """End every backend of that name on one side, and return how many there were."""
        statement = sql.SQL(
            "SELECT count(pg_terminate_backend(pid, 5000)) FROM pg_stat_activity "
            "WHERE datname = current_database() AND application_name LIKE {}"
        ).format(sql.Literal(application_name))
        return int(execute(self.dsn(side), statement)[0][0])


def ordermigrate(*args: str) -> int:
    """Run a command in this process, which spares a test the start of another one."""
    return run(list(args))


def assert_resumable(result: CliResult) -> None:
    """Assert that a command is done, or says in one message that it can be run again."""
    said = "\n".join(line for line in result.stderr.splitlines() if not line.startswith("{"))
    assert result.exit_code in {0, 5}, (result.exit_code, names(result), said)
    assert "Traceback" not in said, said
    if result.exit_code == 5:
        assert "ordermigrate: " in result.stderr


def names(result: CliResult | RunningCli) -> list[str]:
    """Return the names of a command's events, in order."""
    return [str(event["event"]) for event in result.events]


def break_at_every_event(
    copying: Copying, fault: Callable[[RunningCli], object], events: Sequence[str] = EVENTS
) -> None:
    """Do something at the first event of each kind, over as many runs as that takes."""
    todo = list(events)
    for _ in range(len(events) + 5):
        running = copying.start()
        for event in list(todo):
            with suppress(AssertionError):  # it ended before
                running.wait_for_event(event)
                todo.remove(event)
                fault(running)
        result = running.finish()
        if result.exit_code != -signal.SIGKILL:
            assert_resumable(result)
        if result.exit_code == 0:
            break
    copying.finish()
    # Statistics come beside the last count, and nothing needs to be subtracted after one snapshot.
    assert set(todo) <= {"analyzed", "subtracted"}, f"these were never seen: {todo}"


def suspend(running: RunningCli) -> None:
    """Stop the process where it stands; its connections stay open."""
    running.process.send_signal(signal.SIGSTOP)


def wake(running: RunningCli) -> None:
    """Let it go on."""
    running.process.send_signal(signal.SIGCONT)


def is_stopped(running: RunningCli) -> bool:
    """Tell whether a process stands still (state T, after its name in parentheses)."""
    stat = Path(f"/proc/{running.process.pid}/stat").read_text()
    return stat.rpartition(")")[2].split()[0] == "T"


def await_true(is_true: Callable[[], bool], timeout_seconds: float = 30.0) -> None:
    """Wait for something that no event tells of."""
    deadline = time.monotonic() + timeout_seconds
    while not is_true():
        assert time.monotonic() < deadline, "it did not become true in time"
        time.sleep(0.02)


@contextmanager
def in_background(work: Callable[[], object]) -> Iterator[None]:
    """Do something beside the block, and raise here what went wrong there."""
    failed: list[BaseException] = []

    def guarded() -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001  it is raised in the test's own thread
            failed.append(error)

    thread = threading.Thread(target=guarded)
    thread.start()
    try:
        yield
    finally:
        thread.join(60)
    assert not thread.is_alive()
    if failed:
        raise failed[0]


@contextmanager
def transaction(dsn: str) -> Iterator[psycopg.Connection]:
    """Open a connection as an application would; it is rolled back unless the test commits."""
    connection = psycopg.connect(dsn)
    try:
        yield connection
    finally:
        connection.close()


class MakeCopying(Protocol):
    """Make a hub to be copied."""

    def __call__(
        self,
        *,
        orders: int = ORDERS,
        behind: Sequence[Side] = (),
        limits: Mapping[str, object] | None = None,
        tables: Sequence[Mapping[str, object]] = (ORDERS_TABLE,),
        scripts: tuple[str, str] = ("", ""),
        is_written_to: bool = False,
    ) -> Copying:
        """Put proxies before the sides that are named; run a script on each side first.

        With `is_written_to` a writer is at work on the monolith, past the proxy.
        """
        ...


@pytest.fixture
def make_copying(
    make_hub: MakeHub,
    make_proxy: Callable[[str], FaultProxy],
    ordermigrate_toml: WriteToml,
    start_cli: StartCli,
    run_cli: RunCli,
) -> Iterator[MakeCopying]:
    """Return a factory of hubs that are to be copied."""
    writers = ExitStack()

    def make(
        *,
        orders: int = ORDERS,
        behind: Sequence[Side] = (),
        limits: Mapping[str, object] | None = None,
        tables: Sequence[Mapping[str, object]] = (ORDERS_TABLE,),
        scripts: tuple[str, str] = ("", ""),
        is_written_to: bool = False,
    ) -> Copying:
        hub = make_hub(orders=orders)
        for side, script in zip(SIDES, scripts, strict=True):
            if script:
                execute(hub.monolith if side == "monolith" else hub.service, script)
        proxies: dict[Side, FaultProxy] = {
            side: make_proxy(hub.monolith if side == "monolith" else hub.service) for side in behind
        }
        copying = Copying(hub, proxies, ordermigrate_toml, start_cli, run_cli, limits or {}, tables)
        if is_written_to:
            copying.traffic = writers.enter_context(hub_traffic(hub.monolith, WRITES_PER_SECOND))
        return copying

    with writers:
        yield make
