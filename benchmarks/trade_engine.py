"""The trade engine's targets, on the partitioned service with as many orders as the run has.

One client, one connection; each statement, committed where it writes, is timed from before it is
sent until its last row is here. What is compared with the target is the 95th percentile. Partition
switching: what the median of inserts that go to another month each time costs beyond the median of
inserts into one month.
"""

from __future__ import annotations

import random
import statistics
import time
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import psycopg
from psycopg import sql

from benchmarks.ground import USERS, Ground, execute, fetch
from benchmarks.measure import WrongResult, tell
from benchmarks.results import Section, Table, Target
from ordermigrate import families

FAMILY: Final = Path(__file__).parents[1] / "sql" / "families" / "trade_engine"
DATABASE: Final = "trade_engine"
REPEATS: Final = 1000
_WARMING: Final = 100
_COLUMNS: Final = ("median ms", "95 % ms", "target ms", "share of the target")

_INSERT_ORDER: Final = """
INSERT INTO public.orders (created_at, user_id, symbol, side, order_type, status, quantity, price)
VALUES (%s, %s, 'BTC/USDT', 'BUY', 'LIMIT', 'OPEN', 1, %s)
"""
_INSERT_TRADE: Final = """
INSERT INTO public.trades (executed_at, symbol, buy_order_id, sell_order_id, buyer_user_id,
    seller_user_id, price, quantity)
VALUES (%s, 'BTC/USDT', %s, %s, %s, %s, 100, 1)
"""
_BOOK: Final = "SELECT * FROM public.get_order_book_depth('BTC/USDT', 20)"
_USER_ORDERS: Final = """
SELECT * FROM public.orders AS o WHERE o.user_id = %s ORDER BY o.created_at DESC LIMIT 50
"""
_USER_TRADES: Final = "SELECT * FROM public.get_user_trade_history(%s, 50)"
_VWAP: Final = """
SELECT public.calculate_vwap('BTC/USDT', '2025-10-30 00:00+00', '2025-10-31 00:00+00')
"""

Values = Callable[[random.Random], Sequence[object]]


def measure(ground: Ground, title: str, about: str) -> Section:
    """Fill a service's database and time what the family's description has a target for."""
    _fill(ground)
    rows: list[tuple[str, tuple[float, ...]]] = []
    targets: list[Target] = []

    def add(name: str, times: Sequence[float], limit_ms: float) -> None:
        median, most = statistics.median(times), _percentile(times)
        rows.append((name, (median, most, limit_ms, most / limit_ms)))
        targets.append(Target(f"{name}: share of its target", most / limit_ms, 1.0, unit="of it"))

    with psycopg.connect(ground.target(DATABASE), autocommit=True) as session:
        for name, limit_ms, statement, values in _statements():
            tell(f"the trade engine: {name}")
            add(name, _time(session, statement, values), limit_ms)
        tell("the trade engine: partition switching")
        one = statistics.median(_time(session, _INSERT_ORDER, _order_of_months([10])))
        many = _time(session, _INSERT_ORDER, _order_of_months(range(3, 11)))
        extra = max(0.0, statistics.median(many) - one)
        rows.append(("partition switching", (extra, extra, 1.0, extra)))
        targets.append(Target("partition switching: share of its target", extra, 1.0, unit="of it"))
    return Section(title, about, (), tuple(targets), table=Table(_COLUMNS, tuple(rows)))


def _statements() -> list[tuple[str, float, str, Values]]:
    """Return what is timed, each with its target in milliseconds."""
    return [
        ("insert an order", 5.0, _INSERT_ORDER, _order_of_months([10])),
        ("record a trade", 5.0, _INSERT_TRADE, _trade),
        ("order book, 20 levels", 10.0, _BOOK, lambda _: ()),
        ("a user's order history, 50", 20.0, _USER_ORDERS, lambda rng: (_user(rng),)),
        ("a user's trade history, 50", 20.0, _USER_TRADES, lambda rng: (_user(rng),)),
        ("VWAP of a day", 50.0, _VWAP, lambda _: ()),
    ]


def _fill(ground: Ground) -> None:
    tell(f"generating {ground.rows:,} orders of the trade engine")
    ground.make_target(DATABASE)
    dsn = ground.target(DATABASE)
    with psycopg.connect(dsn) as connection:
        for name in ("service.sql", "defaults.sql"):
            connection.execute(families.read_script(FAMILY / name).encode())
    with psycopg.connect(dsn, cursor_factory=psycopg.RawCursor) as connection:
        connection.execute((FAMILY / "generate.sql").read_bytes(), [USERS, ground.rows, 1, 1, None])
    execute(dsn, "VACUUM (ANALYZE)")
    ((found,),) = fetch(dsn, "SELECT count(*) FROM public.orders")
    if found != ground.rows:
        raise WrongResult(f"There are {found} orders of {ground.rows}")
    ground.checkpoint()


def _time(session: psycopg.Connection, statement: str, values: Values) -> list[float]:
    """Return the milliseconds of each run, after some that do not count."""
    rng, times = random.Random(1), list[float]()  # noqa: S311  nothing secret
    query = sql.SQL(statement)
    for number in range(_WARMING + REPEATS):
        given = values(rng)
        began = time.perf_counter()
        done = session.execute(query, given)
        if done.description:
            done.fetchall()
        if number >= _WARMING:
            times.append(1000 * (time.perf_counter() - began))
    return times


def _percentile(times: Sequence[float]) -> float:
    return statistics.quantiles(times, n=20)[-1]


def _user(rng: random.Random) -> str:
    """Return a user as the generated rows have them: a few place most of the orders."""
    return f"00000000-0000-4000-8000-{1 + int(USERS * rng.random() ** 3):012x}"


def _order_of_months(months: Sequence[int]) -> Values:
    """Return values of orders that go to these months of 2025 in turn."""
    numbers = iter(range(10**9))

    def make(rng: random.Random) -> Sequence[object]:
        month = months[next(numbers) % len(months)]
        at = f"2025-{month:02}-{rng.randint(1, 28):02} 12:00+00"
        return at, _user(rng), 99 - rng.randint(0, 500) / 100

    return make


def _trade(rng: random.Random) -> Sequence[object]:
    at = f"2025-10-{rng.randint(16, 31)} 12:00+00"
    keys = (uuid.UUID(int=rng.getrandbits(128)) for _ in range(2))
    return at, *keys, _user(rng), uuid.UUID(int=0)
