"""One side's server with an asynchronous standby that stopped receiving, and the failover to it.

The standby is a base backup, taken at a moment of the test's choosing, and promoted later: it has
what the primary had then, and a timeline of its own. Test and program reach whichever of the two is
in charge by the same address.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import psycopg
import pytest

from ordermigrate.demo import servers
from ordermigrate.demo.account import find_account, hand_over
from tests.faults.fix_changing import LIMITS, Changing
from tests.faults.fix_copying import await_true
from tests.faults.fix_syncing import WRITERS, Syncing
from tests.fix_family import SHOP_DDL, Shop, fill_shop
from tests.fix_faults import FaultProxy
from tests.fix_orders import RunCli, StartCli, WriteToml
from tests.fix_postgres import (
    TEST_SETTINGS,
    MakeDatabase,
    Side,
    StartServer,
    data_parent,
    execute,
)

_SETTINGS: Mapping[str, str | int] = {"shared_buffers": "16MB"}


@dataclass(eq=False)
class FailingOver:
    """A shop one of whose sides can fail over.

    Attributes:
        changing: The shop.
        primary: The server of that side.
        door: The address of whoever is in charge.

    """

    changing: Changing
    primary: servers.Server
    door: FaultProxy
    stack: ExitStack = field(repr=False)
    standby: servers.Server | None = None

    def back_up(self) -> None:
        """Let the standby have what is there now, and no more."""
        standby = servers.Server(
            "standby", settings={**TEST_SETTINGS, **_SETTINGS}, parent=data_parent()
        )
        self.stack.callback(standby.close)
        program = Path(standby.binaries.program("pg_basebackup"))
        if not program.exists():
            pytest.skip("needs pg_basebackup")
        execute(self.primary.dsn(), "CHECKPOINT")
        done = subprocess.run(
            [
                str(program),
                *("-D", str(standby.data_dir), "-d", self.primary.dsn()),
                *("-X", "stream", "-c", "fast"),
            ],
            check=False,
            capture_output=True,
            text=True,
            env=standby.binaries.environment(),
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        (standby.data_dir / "standby.signal").touch()
        hand_over(standby.data_dir, find_account())
        standby.password = self.primary.password
        standby.port = servers.find_free_port()
        self.standby = standby

    def fail_over(self) -> None:
        """End the primary and put the standby in charge."""
        assert self.standby is not None
        self.standby.start()
        dsn = self.standby.dsn()
        execute(dsn, "SELECT pg_promote()")
        await_true(lambda: execute(dsn, "SELECT pg_is_in_recovery()") == [(False,)])
        self.primary.kill()
        self.door.upstream = (self.standby.host, self.standby.port)
        self.door.cut()
        for proxy in self.changing.syncing.proxies.values():
            proxy.cut()


class MakeFailingOver(Protocol):
    """Make a shop one of whose sides can fail over."""

    def __call__(self, side: Side) -> FailingOver:
        """Name that side."""
        ...


@pytest.fixture
def make_failing_over(
    make_database: MakeDatabase,
    start_server: StartServer,
    make_proxy: Callable[[str], FaultProxy],
    ordermigrate_toml: WriteToml,
    start_cli: StartCli,
    run_cli: RunCli,
) -> Iterator[MakeFailingOver]:
    """Return a factory of shops that are followed and proved."""
    with ExitStack() as stack:

        def make(side: Side) -> FailingOver:
            primary = start_server(settings=_SETTINGS)
            execute(primary.dsn(), "CREATE DATABASE shop")
            door = make_proxy(primary.dsn("shop"))
            ours = door.dsn(primary.dsn("shop"))
            with psycopg.connect(ours) as connection:
                connection.execute(SHOP_DDL.encode())
            other = make_database("service" if side == "monolith" else "monolith", script=SHOP_DDL)
            shop = Shop(ours, other) if side == "monolith" else Shop(other, ours)
            fill_shop(shop.monolith, orders=20, owners=WRITERS)
            proxies: dict[Side, FaultProxy] = {
                "monolith": make_proxy(shop.monolith),
                "service": make_proxy(shop.service),
            }
            syncing = Syncing(shop, proxies, ordermigrate_toml, start_cli, LIMITS)
            syncing.run("copy")
            changing = Changing(syncing, run_cli)
            changing.prove()
            return FailingOver(changing, primary, door, stack)

        yield make
