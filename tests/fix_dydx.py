"""The dydx_orders family: its files, its rows, and desks that trade while it is moved.

A desk is a tenant's application: it places orders, leads them on, deletes some, and goes on
wherever the fence lets it. What was acknowledged to it is on its account: of each order, the
changes of its status, each just once.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import psycopg

from tests.fix_postgres import execute

FAMILY = Path(__file__).parent.parent / "sql" / "families" / "dydx_orders"
MONOLITH = (FAMILY / "monolith.sql").read_text("utf-8")
SERVICE = (FAMILY / "service.sql").read_text("utf-8")
ARCHIVE = (FAMILY / "archive.sql").read_text("utf-8")
ORDERS: Mapping[str, object] = {"name": "public.orders"}
HISTORY: Mapping[str, object] = {"name": "public.order_status_history"}
SEED = 1
FENCED = "OM001"
_PAUSE_SECONDS = 0.02

_STEPS = (
    ("PENDING", "OPEN", "order_id = 'dydx-' || client_id, placed_at = now()"),
    ("OPEN", "PARTIALLY_FILLED", "filled_size = 0.5, remaining_size = size - 0.5"),
    ("PARTIALLY_FILLED", "FILLED", "filled_size = size, remaining_size = 0, filled_at = now()"),
)


def add_orders(dsn: str, *, orders: int, first: int = 1, total: int | None = None) -> None:
    """Add the family's generated rows; order number n is the same row every time."""
    with psycopg.connect(dsn, cursor_factory=psycopg.RawCursor) as connection:
        statement = (FAMILY / "generate.sql").read_bytes()
        connection.execute(statement, [orders, SEED, first, total])


def read_roles(role: str) -> str:
    """Return roles.sql for a role that this test alone has."""
    return (FAMILY / "roles.sql").read_text("utf-8").replace("cryptopulse_app", role)


class Desk:
    """One tenant's application, on either side.

    Attributes:
        account: The changes of each order's status that were acknowledged, by client_id.
        place: Where its last write went: 0 for the monolith, 1 for the service.
        placed: How many orders it has placed.

    """

    def __init__(self, tenant: str, dsns: Sequence[str]) -> None:
        self.tenant = tenant
        self.account: dict[str, list[tuple[str, str]]] = {}
        self.place = 0
        self.placed = 0
        self._dsns = dsns

    def trade(self, is_over: threading.Event) -> None:
        """Lead one order after the other to its end."""
        with ExitStack() as stack:
            connections = [
                stack.enter_context(closing(psycopg.connect(dsn, autocommit=True)))
                for dsn in self._dsns
            ]
            for connection in connections:
                connection.execute("SELECT set_config('app.tenant_id', %s, false)", [self.tenant])
            while not is_over.wait(_PAUSE_SECONDS):
                self._lead_one(connections)

    def _lead_one(self, connections: Sequence[psycopg.Connection]) -> None:
        name = f"{self.tenant}-{self.placed}"
        self._write(
            connections,
            "INSERT INTO public.orders (client_id, market, side, type, size, price, "
            "remaining_size, metadata) VALUES (%s, 'BTC-USD', 'BUY', 'LIMIT', 2, 96000.25, 2, "
            "jsonb_build_object('tenant_id', %s::text))",
            [name, self.tenant],
        )
        self.account[name] = []
        self.placed += 1
        for old, new, values in _STEPS[: 1 + self.placed % 3]:
            self._write(
                connections,
                f"UPDATE public.orders SET status = '{new}', {values} "  # noqa: S608  ours
                "WHERE client_id = %s",
                [name],
            )
            self.account[name].append((old, new))
        if self.placed % 5 == 0:
            self._write(connections, "DELETE FROM public.orders WHERE client_id = %s", [name])
            del self.account[name]

    def _write(
        self, connections: Sequence[psycopg.Connection], statement: str, values: list[object]
    ) -> None:
        """Write one row on the side that takes it."""
        while True:
            try:
                done = connections[self.place].execute(statement.encode(), values)
            except psycopg.Error as error:
                if error.sqlstate != FENCED:
                    raise
                self.place = 1 - self.place
            else:
                assert done.rowcount == 1, statement
                return

    def require_account(self, dsn: str) -> None:
        """All that was acknowledged is there, each change just once, and nothing else is."""
        found = execute(
            dsn,
            "SELECT o.client_id, coalesce(array_agg(ARRAY[h.old_status::text, "  # noqa: S608  ours
            "h.new_status::text] ORDER BY h.created_at) FILTER (WHERE h.id IS NOT NULL), '{}') "
            "FROM public.orders AS o LEFT JOIN public.order_status_history AS h "
            f"ON h.order_id = o.id WHERE o.client_id LIKE '{self.tenant}-%' GROUP BY o.id",
        )
        there = {name: [(old, new) for old, new in changes] for name, changes in found}
        assert there == self.account


@contextmanager
def trading(desks: Sequence[Desk]) -> Iterator[None]:
    """Have desks trade meanwhile; what went wrong at one of them is raised in the end."""
    is_over = threading.Event()
    errors: list[BaseException] = []

    def work(desk: Desk) -> None:
        try:
            desk.trade(is_over)
        except BaseException as error:  # noqa: BLE001  it is raised in the test's thread
            errors.append(error)

    threads = [threading.Thread(target=work, args=(desk,), name=desk.tenant) for desk in desks]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        is_over.set()
        for thread in threads:
            thread.join(30)
        for error in errors:
            raise error


def require_single_changes(dsn: str) -> None:
    """No order has a change of its status twice."""
    doubled = execute(
        dsn,
        "SELECT order_id, new_status, count(*) FROM public.order_status_history "
        "GROUP BY order_id, new_status HAVING count(*) > 1",
    )
    assert doubled == []
