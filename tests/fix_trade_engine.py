"""The trade_engine family: its scripts, rows and list of objects, and a client that writes to it.

The client knows what was acknowledged to it, and goes where the owner is.
"""

from __future__ import annotations

import random
import threading
import tomllib
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg

from ordermigrate import families
from tests.fix_postgres import execute

FAMILY = Path(__file__).parent.parent / "sql" / "families" / "trade_engine"
TABLES: list[Mapping[str, Any]] = tomllib.loads((FAMILY / "ordermigrate.toml").read_text("utf-8"))[
    "tables"
]
# What the family's README counts: the names by kind, triggers with their table.
OBJECTS: Mapping[str, frozenset[str]] = {
    "enum": frozenset(
        {"order_side", "order_type", "order_status", "time_in_force", "symbol_status"}
    ),
    "table": frozenset(
        {
            *("symbols", "orders", "trades", "stop_orders_watchlist", "order_book_snapshots"),
            "partition_retention_config",
        }
    ),
    "index": frozenset(
        {
            *("idx_orders_matching", "idx_orders_active", "idx_orders_user_created"),
            *("idx_orders_user_symbol_status", "idx_orders_symbol_created"),
            *("idx_orders_status_created", "idx_orders_stop_monitoring"),
            *("idx_orders_client_order_id", "idx_trades_symbol_time", "idx_trades_buyer"),
            *("idx_trades_seller", "idx_trades_buy_order", "idx_trades_sell_order"),
            *("idx_trades_executed_at", "idx_symbols_assets", "idx_symbols_status"),
            "idx_symbols_quote_active",
        }
    ),
    "view": frozenset(
        {
            *("active_orders", "user_order_summary", "trading_stats_24h", "stop_orders_reached"),
            *("order_flow", "index_usage"),
        }
    ),
    "materialized view": frozenset({"order_book_snapshot"}),
    "function": frozenset(
        {
            *("create_orders_partition", "create_trades_partition", "maintain_partitions"),
            *("refresh_order_book_snapshot", "get_order_book_depth", "get_user_trade_history"),
            *("get_best_bid_ask", "calculate_vwap", "get_trading_volume", "get_order_fill_rate"),
            *("check_db_connections", "check_table_sizes", "check_partition_health"),
        }
    ),
    "trigger": frozenset(
        {
            *("symbols.symbols_updated_at", "orders.orders_updated_at", "orders.orders_filled_at"),
            *("orders.orders_cancelled_at", "orders.orders_status_transition"),
            *("orders.orders_watchlist_add", "orders.orders_watchlist_remove"),
        }
    ),
}
PARTITION_FUNCTIONS = frozenset(
    {"create_orders_partition", "create_trades_partition", "maintain_partitions"}
)
PARTITIONS = 42
_PAUSE_SECONDS = 0.01
_FIND_OBJECTS = """
SELECT 'enum', typname FROM pg_type
WHERE typtype = 'e' AND typnamespace = 'public'::regnamespace
UNION ALL
SELECT CASE WHEN relkind = 'v' THEN 'view' WHEN relkind = 'm' THEN 'materialized view'
    WHEN relispartition THEN 'partition' ELSE 'table' END, relname
FROM pg_class WHERE relkind IN ('r', 'p', 'v', 'm') AND relnamespace = 'public'::regnamespace
UNION ALL
SELECT 'index', c.relname FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
WHERE NOT c.relispartition AND c.relnamespace = 'public'::regnamespace
    AND NOT EXISTS (
        SELECT FROM pg_constraint k WHERE k.conindid = i.indexrelid AND k.contype <> 'f'
    )
UNION ALL
SELECT 'function', proname FROM pg_proc
WHERE pronamespace = 'public'::regnamespace AND prorettype <> 'trigger'::regtype
UNION ALL
SELECT 'trigger', c.relname || '.' || t.tgname
FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid
WHERE NOT t.tgisinternal AND t.tgparentid = 0 AND t.tgname NOT LIKE 'ordermigrate%'
"""


def script(name: str) -> str:
    """Return one of the family's scripts with all that it takes in."""
    return families.read_script(FAMILY / f"{name}.sql")


def generate(
    dsn: str, *, orders: int, users: int = 50, first: int = 1, total: int | None = None
) -> None:
    """Add the family's generated orders and trades."""
    with psycopg.connect(dsn, cursor_factory=psycopg.RawCursor) as connection:
        statement = (FAMILY / "generate.sql").read_bytes()
        connection.execute(statement, [users, orders, 1, first, total])


def find_objects(dsn: str) -> dict[str, set[str]]:
    """Return the names of what is in a database, by kind."""
    found: dict[str, set[str]] = {}
    for kind, name in execute(dsn, _FIND_OBJECTS):
        found.setdefault(kind, set()).add(name)
    return found


def require_objects(dsn: str) -> int:
    """Require all objects of the family and no other; return how many there are."""
    found = find_objects(dsn)
    partitions = len(found.pop("partition", ()))
    assert partitions in {0, PARTITIONS}
    missing = frozenset() if partitions else PARTITION_FUNCTIONS
    assert found == {kind: set(names - missing) for kind, names in OBJECTS.items()}
    return partitions + sum(len(names) for names in found.values())


# --------------------------------------------------------------------------------------- writers


class Exchange(threading.Thread):
    """One client of the trade engine, which goes where the owner is.

    `acknowledged` says of each of its orders which state the owner has confirmed.
    """

    def __init__(self, monolith: str, service: str) -> None:
        super().__init__(daemon=True)
        self.dsns = [monolith, service]
        self.acknowledged: dict[str, str] = {}
        self.error: BaseException | None = None
        self.is_over = threading.Event()
        self._changed = threading.Condition()
        self._rng = random.Random(1)
        self.written = 0

    def run(self) -> None:
        """Write until it is stopped; what is not expected is kept for the test to raise."""
        try:
            while not self.is_over.is_set():
                try:
                    with psycopg.connect(self.dsns[0], autocommit=True) as connection:
                        while not self.is_over.wait(_PAUSE_SECONDS):
                            self._write(connection)
                except psycopg.Error as error:
                    if error.sqlstate != "OM001":
                        raise
                    self.dsns.reverse()
        except BaseException as error:  # noqa: BLE001  raised in the test's thread
            self.error = error

    def wait_for_more(self, count: int = 20) -> None:
        """Wait until so many further writes are acknowledged."""
        with self._changed:
            wanted = self.written + count
            assert self._changed.wait_for(lambda: self.written >= wanted or self.error, 30)
        assert self.error is None, self.error

    def _write(self, connection: psycopg.Connection) -> None:
        live = [key for key, status in self.acknowledged.items() if status in {"PENDING", "OPEN"}]
        if len(live) < 5 or self._rng.random() < 0.5:
            self._place(connection)
        else:
            self._go_on(connection, self._rng.choice(live))
        with self._changed:
            self.written += 1
            self._changed.notify_all()

    def _place(self, connection: psycopg.Connection) -> None:
        key, day = str(uuid.uuid4()), self._rng.randint(3, 28)
        kind = self._rng.choice(["LIMIT", "STOP", "STOP_LIMIT"])
        status = "OPEN" if kind == "LIMIT" else "PENDING"
        connection.execute(
            "INSERT INTO public.orders (order_id, created_at, user_id, symbol, side, order_type, "
            "status, quantity, price, stop_price, client_order_id) VALUES (%s, %s, %s, 'BTC/USDT', "
            "%s, %s, %s, 10, 100, 101, %s)",
            [
                *(key, f"2025-{self._rng.randint(1, 10):02}-{day:02} 23:30+00", uuid.uuid4()),
                *(self._rng.choice(["BUY", "SELL"]), kind, status, key),
            ],
        )
        self.acknowledged[key] = status

    def _go_on(self, connection: psycopg.Connection, key: str) -> None:
        way = self._rng.choice(["FILLED", "CANCELLED", "OPEN", "gone"])
        if way == "gone":
            connection.execute("DELETE FROM public.orders WHERE order_id = %s", [key])
        elif way == "FILLED":
            # A fill and its trade are one transaction.
            with connection.transaction():
                connection.execute(
                    "UPDATE public.orders SET status = 'FILLED', filled_quantity = quantity "
                    "WHERE order_id = %s",
                    [key],
                )
                connection.execute(
                    "INSERT INTO public.trades (executed_at, symbol, buy_order_id, sell_order_id, "
                    "buyer_user_id, seller_user_id, price, quantity) VALUES (%s, 'BTC/USDT', %s, "
                    "%s, %s, %s, 100, 10)",
                    [
                        f"2025-10-{self._rng.randint(3, 31):02} 12:00+00",
                        *(key, uuid.uuid4(), uuid.uuid4(), uuid.uuid4()),
                    ],
                )
        else:
            connection.execute(
                "UPDATE public.orders SET status = %s::public.order_status WHERE order_id = %s",
                [way, key],
            )
        if way == "gone":
            del self.acknowledged[key]
        else:
            self.acknowledged[key] = way


@contextmanager
def trading(monolith: str, service: str) -> Iterator[Exchange]:
    """Let a client write until the block ends; then all that was acknowledged is on the owner."""
    exchange = Exchange(monolith, service)
    exchange.start()
    try:
        exchange.wait_for_more()
        yield exchange
    finally:
        exchange.is_over.set()
        exchange.join(30)
    assert exchange.error is None, exchange.error
    assert len(exchange.acknowledged) > 10
    rows = execute(exchange.dsns[0], "SELECT order_id::text, status::text FROM public.orders")
    found = dict(rows)
    lost = {key: it for key, it in exchange.acknowledged.items() if found.get(key) != it}
    assert lost == {}
