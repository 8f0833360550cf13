"""A shop whose orders are copied and then followed, while its writers go on, and faults are done.

Every test ends with `Syncing.settle`: the traffic stops, what is left is applied, both sides are
compared without a line of the product, every acknowledged write is on both, and `validate` agrees.
"""

from __future__ import annotations

import io
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import pytest
from psycopg import sql

from tests.faults.fix_copying import At, names, ordermigrate
from tests.fix_family import KINDS, SHOP_TABLES, Shop, make_shop, shop_toml
from tests.fix_faults import FaultProxy
from tests.fix_orders import CliResult, RunningCli, StartCli, WriteToml, identical
from tests.fix_postgres import SIDES, MakeDatabase, Side, execute
from tests.fix_traffic import Traffic, live_traffic

ORDERS = 40
WRITERS = 2
# So much is written that each round has changes of several tables, and now and then none is due.
PAUSE_SECONDS = 0.1
SLOW_SECONDS = 0.4
# Each TRUNCATE has sync look at all tables anew: on a slow machine with a few a second it would do
# nothing else. So it is asked for by name, and rare.
NOTES_PAUSE_SECONDS = 3.0
ROUND_EVENTS = (
    "following",
    "round_begun",
    "changes_staged",
    "changes_written",
    "round_half_committed",
    "round_applied",
    "quiet",
)
ROUNDS = "ordermigrate sync: rounds"
ANY_SYNC = "ordermigrate sync%"

# What a round says to a server right before its COMMIT there.
LAST_TO: Mapping[Side, bytes] = {
    "service": b"INSERT INTO ordermigrate.round",
    "monolith": b"AND s.round < $3",
}
# A fault is noticed within a second or two, and waited for like any other.
LIMITS: Mapping[str, object] = {
    "stall_timeout_seconds": 1.5,
    "retry_deadline_seconds": 60.0,
    "monolith": {"connect_timeout_seconds": 1.0, "statement_timeout_seconds": 1.0},
    "service": {"connect_timeout_seconds": 1.0, "statement_timeout_seconds": 1.0},
}


@dataclass(eq=False)
class Syncing:
    """Two databases whose copy is complete, a proxy in front of each, and the program.

    Attributes:
        shop: How the test itself reaches the databases, past the proxies.
        proxies: The network between the program and each of them.

    """

    shop: Shop
    proxies: Mapping[Side, FaultProxy]
    write_toml: WriteToml
    start_cli: StartCli
    limits: Mapping[str, object] = field(default_factory=dict)
    path: Path = field(init=False)

    def __post_init__(self) -> None:
        self.configure()

    def configure(self, **limits: object) -> None:
        """Write the configuration, with these limits over those of the test."""
        self.path = shop_toml(
            self.write_toml,
            self.proxies["monolith"].dsn(self.shop.monolith),
            self.proxies["service"].dsn(self.shop.service),
            limits={**LIMITS, **self.limits, **limits},
        )

    def dsn(self, side: Side) -> str:
        """Return the way past the proxy."""
        return self.shop.monolith if side == "monolith" else self.shop.service

    def on(self, side: Side, statement: str) -> list[tuple[Any, ...]]:
        """Run statements on one side, outside any transaction."""
        return execute(self.dsn(side), statement)

    # The program

    def start(self, *args: str, at: At | None = None) -> RunningCli:
        """Start `sync`."""
        return self.start_cli("sync", *args, at=at)

    def run(self, *args: str) -> str:
        """Run a command in this process, which has to succeed, and return what it printed."""
        printed, said = io.StringIO(), io.StringIO()
        with redirect_stdout(printed), redirect_stderr(said):
            exit_code = ordermigrate(*args, "--config", str(self.path))
        assert exit_code == 0, said.getvalue() + printed.getvalue()
        return printed.getvalue()

    def catch_up(self) -> None:
        """Run another sync until nothing is waiting, whoever writes meanwhile."""
        self.run("sync", "--until-caught-up")

    # The traffic, and the three checks

    @contextmanager
    def traffic(
        self,
        *,
        kinds: Sequence[str] = KINDS,
        pause_seconds: float = PAUSE_SECONDS,
        is_slow: bool = False,
    ) -> Iterator[Traffic]:
        """Let the monolith's writers write, with moments between in which nothing is due."""
        if is_slow:
            pause_seconds = SLOW_SECONDS
        with live_traffic(
            self.shop.monolith,
            writers=WRITERS,
            kinds=kinds,
            pause_seconds=pause_seconds,
            notes_pause_seconds=NOTES_PAUSE_SECONDS,
        ) as traffic:
            yield traffic

    def settle(self, traffic: Traffic | None = None) -> None:
        """Stop the traffic, apply what is left, and check everything."""
        if traffic is not None:
            traffic.stop()
        self.catch_up()
        self.assert_identical()
        if traffic is not None:
            for side in SIDES:
                traffic.require_all_on(self.dsn(side))
        self.run("validate", "--checksums")

    def assert_identical(self) -> None:
        """Assert that both sides hold the same rows, by the judge."""
        for table in SHOP_TABLES:
            assert identical(self.shop.monolith, self.shop.service, str(table["name"]))

    def rounds(self, side: Side) -> int:
        """Return the round that one side's row is at."""
        return int(self.on(side, "SELECT round FROM ordermigrate.side")[0][0])

    def waiting(self) -> int:
        """Return how many entries wait in the change logs."""
        logs = " + ".join(
            f"(SELECT count(*) FROM ordermigrate.change_log_{number})"  # noqa: S608  a number
            for (number,) in self.on("monolith", "SELECT number FROM ordermigrate.capture")
        )
        return int(self.on("monolith", f"SELECT {logs}")[0][0])

    def rows_by_age(self) -> list[tuple[Any, ...]]:
        """Tell what wrote each of the service's rows: it is the same while nothing is written."""
        return self.on(
            "service",
            " UNION ALL ".join(
                f"SELECT '{table['name']}', count(*), coalesce(sum(xmin::text::bigint), 0) "  # noqa: S608
                f"FROM {table['name']}"
                for table in SHOP_TABLES
            ),
        )

    # What happens to it

    def end_backends(self, side: Side, application_name: str = ROUNDS) -> int:
        """End every backend of that name on one side, and return how many there were."""
        statement = sql.SQL(
            "SELECT count(pg_terminate_backend(pid, 5000)) FROM pg_stat_activity "
            "WHERE datname = current_database() AND application_name LIKE {}"
        ).format(sql.Literal(application_name))
        return int(execute(self.dsn(side), statement)[0][0])

    def at_commit(self, side: Side, fault: Callable[[], None]) -> None:
        """Do something once, right after the COMMIT of a round on one side has passed."""
        proxy = self.proxies[side]
        proxy.when_seen(LAST_TO[side], lambda: proxy.when_seen(b"COMMIT", fault))


def nth_of(event: str) -> int:
    """Return which event of a name to wait for: of those that come more than once, the second."""
    return 1 if event == "following" else 2


def stop_sync(running: RunningCli) -> CliResult:
    """Have a sync end after its round, as SIGTERM does, and require that it says so."""
    running.process.send_signal(signal.SIGTERM)
    done = running.finish(timeout_seconds=30)
    assert done.exit_code == 0, told(done)
    return done


def await_progress(running: RunningCli, rounds: int = 2) -> None:
    """Wait until so many more rounds have been applied."""
    running.wait_for_event("round_applied", names(running).count("round_applied") + rounds)


def told(result: CliResult) -> str:
    """Return what a command said besides its events, and the last of these."""
    lines = [line for line in result.stderr.splitlines() if not line.startswith("{")]
    return "\n".join([*map(str, result.events[-10:]), *lines])


class MakeSyncing(Protocol):
    """Make a shop whose copy is complete."""

    def __call__(
        self, *, orders: int = ORDERS, limits: Mapping[str, object] | None = None
    ) -> Syncing:
        """Copy so many orders first."""
        ...


@pytest.fixture
def make_syncing(
    make_database: MakeDatabase,
    make_proxy: Callable[[str], FaultProxy],
    ordermigrate_toml: WriteToml,
    start_cli: StartCli,
) -> MakeSyncing:
    """Return a factory of shops that are to be followed."""

    def make(*, orders: int = ORDERS, limits: Mapping[str, object] | None = None) -> Syncing:
        shop = make_shop(make_database, orders=orders, owners=WRITERS)
        proxies: dict[Side, FaultProxy] = {
            "monolith": make_proxy(shop.monolith),
            "service": make_proxy(shop.service),
        }
        syncing = Syncing(shop, proxies, ordermigrate_toml, start_cli, limits or {})
        syncing.run("copy")
        return syncing

    return make


@pytest.fixture
def syncing(make_syncing: MakeSyncing) -> Syncing:
    """A shop that is copied, and waits to be followed."""
    return make_syncing()
