"""The hub's orders with their users' e-mail addresses, moved while users change these."""

from __future__ import annotations

import random
import threading
import tomllib
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.acceptance.fix_running import catch_up, end_sync, show_status, succeed, syncing
from tests.faults.fix_copying import await_true
from tests.fix_cleanup import TRACES
from tests.fix_orders import FAMILY, MakeHub, StartCli, WriteToml
from tests.fix_pairs import Pair, RunHere
from tests.fix_postgres import execute

USERS = 40
PROPER = (
    "SELECT o.id, o.user_id, o.quantity, o.status, u.email FROM public.orders o "
    "JOIN public.users u ON u.id = o.user_id ORDER BY 1"
)
THERE = "SELECT id, user_id, quantity, status, user_email FROM public.orders ORDER BY 1"
FENCED = "OM001"


class Users(threading.Thread):
    """Users who change their addresses and place orders, some of which change hands."""

    def __init__(self, dsn: str) -> None:
        super().__init__(name="users", daemon=True)
        self.dsn = dsn
        self.is_over = threading.Event()
        self.addresses = 0
        self.refused = 0
        self.failed: BaseException | None = None
        self._rng = random.Random(7)

    def run(self) -> None:
        """Write until told to end."""
        try:
            with psycopg.connect(self.dsn, autocommit=True) as connection:
                while not self.is_over.wait(0.005):
                    self._write(connection)
        except BaseException as failed:  # noqa: BLE001  the test's thread raises it
            self.failed = failed

    def _write(self, connection: psycopg.Connection) -> None:
        user, other = (self._rng.randint(1, USERS) for _ in range(2))
        connection.execute(
            "UPDATE public.users SET email = %s WHERE id = %s", [f"{uuid.uuid4()}@hub", user]
        )
        self.addresses += 1
        try:
            with connection.transaction():
                connection.execute(
                    "INSERT INTO public.orders (id, user_id, symbol, order_type, order_side, "
                    "quantity) VALUES (%s, %s, 'PETR4', 'MARKET', 'BUY', 1)",
                    [uuid.uuid4(), other],
                )
                connection.execute(
                    "UPDATE public.orders SET user_id = %s WHERE id IN (SELECT id FROM "
                    "public.orders WHERE user_id = %s ORDER BY id LIMIT 1)",
                    [user, other],
                )
        except psycopg.Error as error:
            if error.sqlstate != FENCED:
                raise
            self.refused += 1


@contextmanager
def users_of(pair: Pair) -> Iterator[Users]:
    """Have users at work until the block is left."""
    users = Users(pair.monolith)
    users.start()
    try:
        yield users
    finally:
        users.is_over.set()
        users.join(10)
    assert users.failed is None, users.failed


def more(users: Users) -> None:
    """Wait until some more addresses have changed."""
    before = users.addresses
    await_true(lambda: users.addresses > before + 10)


@pytest.fixture
def hub_pair(make_hub: MakeHub, run_here: RunHere, ordermigrate_toml: WriteToml) -> Pair:
    """The family's databases, with the variant's column and its configuration."""
    hub = make_hub(users=USERS, orders=600)
    execute(hub.service, (FAMILY / "service_user_email.sql").read_text("utf-8"))
    written: dict[str, Any] = tomllib.loads(
        (FAMILY / "ordermigrate_user_email.toml").read_text("utf-8")
    )
    limits = {"cleanup_wait_hours": 0, "cleanup_after_days": 0}
    return Pair(hub.monolith, hub.service, run_here, ordermigrate_toml, written["tables"], limits)


def require_emails(pair: Pair) -> None:
    """Every order on the service says what its user's address is on the monolith."""
    catch_up(pair)
    assert pair.on_service(THERE) == pair.on_monolith(PROPER)
    pair.validate()


def test_orders_with_their_users_addresses_move_while_these_change(
    hub_pair: Pair, start_cli: StartCli, tmp_path: Path
) -> None:
    pair = hub_pair
    with users_of(pair) as users:
        succeed(pair, "prepare")
        more(users)
        succeed(pair, "copy")
        with syncing(pair, start_cli) as running:
            more(users)
            pair.validate()
            more(users)
            end_sync(running)
    require_emails(pair)
    with users_of(pair) as users:
        more(users)
        catch_up(pair)
        pair.validate()
        succeed(pair, "cutover")
        more(users)
        assert users.refused
        # The service's own from here on.
        pair.on_service("UPDATE public.orders SET user_email = 'own@service' WHERE user_id = 3")
        catch_up(pair)
        assert pair.on_service(
            "SELECT DISTINCT user_email FROM public.orders WHERE user_id = 3"
        ) == [("own@service",)]
        succeed(pair, "rollback")
        more(users)
    require_emails(pair)
    succeed(pair, "cutover")
    assert show_status(pair)["owner"] == "service"
    pair.validate()
    backup = tmp_path / "backup"
    backup.mkdir(mode=0o700)
    succeed(pair, "cleanup", "--confirm", "public.orders", "--backup", str(backup))
    assert [execute(dsn, TRACES) for dsn in (pair.monolith, pair.service)] == [[], []]
    pair.on_monolith("UPDATE public.users SET email = 'last@hub' WHERE id = 1")
