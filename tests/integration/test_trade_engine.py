"""The trade engine's SQL: all objects are there, and each does what it is there for."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator

import psycopg
import pytest

from ordermigrate.demo.binaries import find_binaries
from tests.fix_pairs import picture
from tests.fix_postgres import MakeDatabase, TestServers, execute
from tests.fix_trade_engine import FAMILY, find_objects, generate, require_objects, script

VARIANTS = {"monolith": 52, "monolith_partitioned": 97, "service": 97}
ALICE = "00000000-0000-4000-8000-00000000000a"
BOB = "00000000-0000-4000-8000-00000000000b"


@pytest.mark.parametrize(("variant", "count"), VARIANTS.items())
def test_each_side_has_every_object_of_the_list_and_goes_down_without_a_trace(
    make_database: MakeDatabase, variant: str, count: int
) -> None:
    dsn = make_database("service")
    before = picture(dsn)
    # As a session of the program runs it: whatever is not named with its schema is not found.
    execute(dsn, f"SET search_path = ''; {script(variant)}")
    assert require_objects(dsn) == count
    # Indexes of partitions come with their table's; in none is one missing.
    assert execute(dsn, "SELECT indexrelid::regclass FROM pg_index WHERE NOT indisvalid") == []
    execute(dsn, script("views_down"))
    assert not find_objects(dsn).keys() & {"view", "materialized view", "function"}
    execute(dsn, script("down"))
    assert picture(dsn) == before
    execute(dsn, script("down"))


def test_both_partitioned_sides_have_other_bounds_and_hold_the_same_days(
    make_database: MakeDatabase,
) -> None:
    read = (
        "SELECT inhparent::regclass::text, pg_get_expr(relpartbound, c.oid) FROM pg_inherits "
        "JOIN pg_class c ON c.oid = inhrelid AND relkind = 'r'"
    )
    one = make_database("monolith", script=script("monolith_partitioned"))
    other = make_database("service", script=script("service"))
    assert set(execute(one, read)) != set(execute(other, read))
    for dsn in (one, other):
        gaps = "SELECT * FROM public.check_partition_health() WHERE problem = 'gap before it'"
        assert execute(dsn, gaps) == []


def test_rows_are_the_same_by_psql_and_by_a_driver_in_one_step_or_in_two(
    make_database: MakeDatabase,
) -> None:
    by_driver = make_database("monolith", script=script("monolith_partitioned"))
    generate(by_driver, orders=200, total=300)
    generate(by_driver, orders=100, first=201, total=300)
    by_psql = make_database("monolith")
    binaries = find_binaries()
    subprocess.run(
        [
            *(binaries.program("psql"), "-Xq", "-v", "ON_ERROR_STOP=1", "-d", by_psql),
            *("-v", "users=50", "-v", "orders=300"),
            *("-f", "monolith_partitioned.sql", "-f", "load.sql"),
        ],
        cwd=FAMILY,
        env=binaries.environment(),
        check=True,
        stdout=subprocess.DEVNULL,
    )
    # Trades are numbered in the order in which they come.
    rows = (
        "SELECT md5(string_agg(o::text, ' ' ORDER BY order_id)), count(*), count(DISTINCT status),"
        " (SELECT md5(string_agg((to_jsonb(t) - 'trade_id')::text, ' ' ORDER BY buy_order_id, "
        "sell_order_id)) FROM public.trades AS t),"
        " (SELECT count(*) > 50 FROM public.trades),"
        " (SELECT count(*) > 5 FROM public.stop_orders_watchlist) FROM public.orders AS o"
    )
    found = execute(by_psql, f"SET TimeZone = 'UTC'; {rows}")
    assert found == execute(by_driver, f"SET TimeZone = 'UTC'; {rows}")
    assert found[0][1:3] + found[0][4:] == (300, 7, True, True)


# ------------------------------------------------------------------------------ what each one does


@pytest.fixture(scope="module")
def engine(postgres_servers: TestServers) -> Iterator[str]:
    """A partitioned engine with partitions around today."""
    server = postgres_servers.service
    name = server.create_database("engine")
    dsn = server.dsn(name)
    execute(dsn, script("monolith_partitioned"))
    for days in (2, 0):
        today = "(now() AT TIME ZONE 'UTC')::date"
        execute(dsn, f"SELECT public.maintain_partitions({today} - {days})")
    yield dsn
    server.drop_database(name)


@pytest.fixture
def session(engine: str) -> Iterator[psycopg.Connection]:
    """A transaction in it that leaves nothing behind."""
    with psycopg.connect(engine) as connection:
        yield connection
        connection.rollback()


def place(session: psycopg.Connection, kind: str = "LIMIT", **columns: object) -> str:
    """Place an order and return its key."""
    given: dict[str, object] = {
        "user_id": ALICE,
        "symbol": "BTC/USDT",
        "side": "BUY",
        "status": "PENDING" if kind.startswith("STOP") else "OPEN",
        "quantity": 10,
        "price": 100,
        **({"stop_price": 90} if kind.startswith("STOP") else {}),
        **columns,
    }
    row = session.execute(
        f"INSERT INTO public.orders (order_type, {', '.join(given)}) "  # noqa: S608  our own names
        f"VALUES (%s{', %s' * len(given)}) RETURNING order_id::text",
        [kind, *given.values()],
    ).fetchone()
    assert row is not None
    return str(row[0])


def trade(session: psycopg.Connection, price: int, quantity: int, **columns: object) -> None:
    """Record a trade between Alice, who buys, and Bob."""
    given = {"executed_at": "now", "symbol": "BTC/USDT", **columns}
    session.execute(
        "INSERT INTO public.trades (price, quantity, buyer_user_id, seller_user_id, buy_order_id, "
        "sell_order_id, executed_at, symbol) VALUES (%s, %s, %s, %s, gen_random_uuid(), "
        "gen_random_uuid(), %s::timestamptz, %s)",
        [price, quantity, ALICE, BOB, *given.values()],
    )


def ask(session: psycopg.Connection, query: str, *values: object) -> list[tuple[object, ...]]:
    """Return the rows of a query."""
    return session.execute(query.encode(), values or None).fetchall()


def change(session: psycopg.Connection, key: str, assignments: str) -> None:
    """Change an order."""
    session.execute(
        f"UPDATE public.orders SET {assignments} WHERE order_id = %s".encode(),  # noqa: S608
        [key],
    )


def test_a_lifecycle_leaves_its_times(session: psycopg.Connection) -> None:
    filled, cancelled = place(session), place(session)
    times = (
        "SELECT filled_at IS NOT NULL, cancelled_at IS NOT NULL FROM public.orders "
        "WHERE order_id = %s"
    )
    assert ask(session, times, filled) == [(False, False)]
    change(session, filled, "status = 'FILLED', filled_quantity = quantity")
    change(session, cancelled, "status = 'CANCELLED', updated_at = '2000-01-01'")
    assert ask(session, times, filled) == [(True, False)]
    assert ask(session, times, cancelled) == [(False, True)]
    touched = "SELECT updated_at = now() FROM public.orders WHERE order_id = %s"
    assert ask(session, touched, cancelled) == [(True,)]
    session.execute("UPDATE public.symbols SET taker_fee = 0.002 WHERE symbol = 'BTC/USDT'")
    assert ask(session, "SELECT symbol FROM public.symbols WHERE updated_at = now()") == [
        ("BTC/USDT",)
    ]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("FILLED", "CANCELLED"),
        ("CANCELLED", "OPEN"),
        ("OPEN", "PENDING"),
        ("PARTIALLY_FILLED", "OPEN"),
    ],
)
def test_an_order_goes_no_way_that_its_state_forbids(
    session: psycopg.Connection, before: str, after: str
) -> None:
    quantity = 10 if before == "FILLED" else 5
    key = place(session, status=before, filled_quantity=quantity)
    with pytest.raises(psycopg.errors.CheckViolation, match=f"from {before} to {after}"):
        change(session, key, f"status = '{after}'")


def test_the_watchlist_has_just_the_stop_orders_that_wait(session: psycopg.Connection) -> None:
    listed = "SELECT order_id::text, stop_price::int FROM public.stop_orders_watchlist"
    place(session)
    stop, limit, gone = (place(session, kind) for kind in ("STOP", "STOP_LIMIT", "STOP"))
    change(session, stop, "stop_price = 80")
    assert sorted(ask(session, listed)) == sorted([(stop, 80), (limit, 90), (gone, 90)])
    change(session, limit, "status = 'OPEN'")
    session.execute("DELETE FROM public.orders WHERE order_id = %s", [gone])
    assert ask(session, listed) == [(stop, 80)]
    reached = "SELECT order_id::text FROM public.stop_orders_reached"
    trade(session, 79, 1)
    assert ask(session, reached) == []
    trade(session, 80, 1, executed_at="tomorrow")
    assert ask(session, reached) == [(stop,)]


def test_the_book_is_the_same_by_function_view_and_materialized_view(
    session: psycopg.Connection,
) -> None:
    for side, price, filled in (("BUY", 99, 0), ("BUY", 99, 4), ("BUY", 98, 0), ("SELL", 101, 0)):
        status = "PARTIALLY_FILLED" if filled else "OPEN"
        place(session, side=side, price=price, filled_quantity=filled, status=status)
    place(session, status="CANCELLED", price=100)
    levels = "SELECT side::text, price::int, quantity::int, orders FROM "
    book = [("BUY", 99, 16, 2), ("BUY", 98, 10, 1), ("SELL", 101, 10, 1)]
    assert ask(session, levels + "public.get_order_book_depth('BTC/USDT')") == book
    shallow = ask(session, levels + "public.get_order_book_depth('BTC/USDT', 1)")
    assert shallow == [book[0], book[2]]
    assert ask(session, levels + "public.order_book_snapshot") == []
    session.execute("SELECT public.refresh_order_book_snapshot()")
    assert sorted(ask(session, levels + "public.order_book_snapshot")) == sorted(book)
    best = "SELECT best_bid::int, best_ask::int, spread::int FROM public.get_best_bid_ask(%s)"
    assert ask(session, best, "BTC/USDT") == [(99, 101, 2)]
    assert ask(session, best, "XRP/USDT") == [(None, None, None)]
    active = "SELECT count(*), sum(open_quantity)::int FROM public.active_orders"
    assert ask(session, active) == [(4, 36)]


def test_trades_are_summed_up_by_symbol_and_user(session: psycopg.Connection) -> None:
    for price, quantity, hours in ((100, 1, 3), (130, 2, 2), (90, 3, 1), (7, 9, 25)):
        at = ask(session, "SELECT now() - make_interval(hours => %s)", hours)[0][0]
        trade(session, price, quantity, executed_at=at)
    stats = (
        "SELECT symbol, trades, volume::int, quote_volume::int, low::int, high::int, "
        "first_price::int, last_price::int FROM public.trading_stats_24h"
    )
    assert ask(session, stats) == [("BTC/USDT", 3, 6, 630, 90, 130, 100, 90)]
    assert ask(session, "SELECT public.calculate_vwap('BTC/USDT')::int") == [(105,)]
    assert ask(session, "SELECT public.calculate_vwap('ETH/USDT')") == [(None,)]
    volume = (
        "SELECT count(*), sum(trades)::int, sum(volume)::int, sum(quote_volume)::int FROM "
        "public.get_trading_volume('BTC/USDT', 'hour', now() - interval '24 hours')"
    )
    assert ask(session, volume) == [(3, 3, 6, 630)]
    history = "SELECT side::text, price::int FROM public.get_user_trade_history(%s, 2)"
    assert ask(session, history, BOB) == [("SELL", 90), ("SELL", 130)]
    assert ask(session, history, ALICE) == [("BUY", 90), ("BUY", 130)]
    earlier = (
        "SELECT price::int FROM public.get_user_trade_history(%s, 50, now() - interval '2 hours')"
    )
    assert ask(session, earlier, BOB) == [(100,), (7,)]


def test_users_and_states_are_summed_up(session: psycopg.Connection) -> None:
    place(session, status="FILLED", filled_quantity=10)
    for status in ("OPEN", "OPEN", "CANCELLED"):
        place(session, status=status)
    rate = "SELECT orders, filled, fill_rate::float FROM public.get_order_fill_rate(%s)"
    assert ask(session, rate, ALICE) == [(4, 1, 0.25)]
    assert ask(session, rate, BOB) == [(0, 0, None)]
    summary = (
        "SELECT user_id::text, orders, active, filled, cancelled FROM public.user_order_summary"
    )
    assert ask(session, summary) == [(ALICE, 4, 2, 1, 1)]
    flow = (
        "SELECT status::text, orders, filled_quantity::int FROM public.order_flow ORDER BY status"
    )
    assert ask(session, flow) == [("CANCELLED", 1, 0), ("FILLED", 1, 10), ("OPEN", 2, 0)]


def test_the_database_is_watched(session: psycopg.Connection) -> None:
    connections = (
        "SELECT connections > 0 AND share_of_limit > 0 FROM public.check_db_connections() "
        "WHERE state = 'active'"
    )
    assert ask(session, connections) == [(True,)]
    sizes = ask(session, "SELECT table_name, partitions > 12 FROM public.check_table_sizes()")
    assert {name for name, is_large in sizes if is_large} == {"orders", "trades"}
    assert len(sizes) == 6
    usage = "SELECT count(*) FROM public.index_usage WHERE table_name = 'symbols'"
    assert ask(session, usage) == [(4,)]
    health = (
        "SELECT DISTINCT table_name, problem FROM public.check_partition_health() "
        "WHERE problem <> 'none' ORDER BY 1"
    )
    # Those around today are far from those of the family's year.
    assert ask(session, health) == [("orders", "gap before it"), ("trades", "gap before it")]
    late = "SELECT DISTINCT problem FROM public.check_partition_health(now() + interval '1 year')"
    assert ("too few partitions ahead",) in ask(session, late)


def test_partitions_are_made_ahead_once_and_dropped_only_where_that_is_wanted(
    session: psycopg.Connection,
) -> None:
    made = ask(session, "SELECT * FROM public.maintain_partitions('2030-02-10')")
    assert len(made) == 12
    assert made[0] == ("created", "orders_2030_02")
    assert made[-1] == ("created", "trades_2030_02_17")
    assert ask(session, "SELECT public.create_orders_partition('2030-02-28')") == [(None,)]
    assert ask(session, "SELECT public.create_trades_partition('2030-02-18')") == [
        ("trades_2030_02_18",)
    ]
    assert ask(session, "SELECT * FROM public.maintain_partitions('2030-02-10')") == []
    session.execute(
        "UPDATE public.partition_retention_config SET drops_expired = true; "
        "CREATE TABLE public.trades_history PARTITION OF public.trades "
        "FOR VALUES FROM (MINVALUE) TO ('2001-01-01')"
    )
    gone = ask(session, "SELECT * FROM public.maintain_partitions('2030-02-10')")
    # Five years before are in February 2025: that month is not over yet, January is.
    assert gone == [
        ("dropped", name) for name in ("orders_2024_11", "orders_2024_12", "orders_2025_01")
    ]
    gone = ask(session, "SELECT * FROM public.maintain_partitions('2030-10-04')")
    assert ("dropped", "trades_2025_10_03") in gone
    assert ("dropped", "trades_2025_10_04") not in gone
    assert ("dropped", "trades_history") not in gone
