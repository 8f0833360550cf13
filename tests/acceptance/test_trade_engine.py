"""The trade engine moves, with triggers and sequences, into tables that are cut elsewhere."""

# ruff: noqa: S608  the statements are the test's own

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import psycopg
import pytest

from tests.acceptance.fix_running import catch_up, succeed
from tests.fix_pairs import Pair, RunHere, assert_refused
from tests.fix_postgres import MakeDatabase, execute
from tests.fix_trade_engine import TABLES, find_objects, generate, require_objects, script, trading

STOP = "00000000-1111-4000-8000-000000000001"
_PLACE = (
    "INSERT INTO public.orders (order_id, created_at, user_id, symbol, side, order_type, quantity, "
    f"price, stop_price) VALUES ('{STOP}', '2025-10-20 12:00+00', gen_random_uuid(), 'ETH/BTC', "
    "'SELL', 'STOP_LIMIT', 5, 100, 99)"
)
_WATCHED = f"SELECT count(*) FROM public.stop_orders_watchlist WHERE order_id = '{STOP}'"
_TRIGGERS = (
    "SELECT count(*) FILTER (WHERE tgenabled = 'O'), count(*) FILTER (WHERE tgenabled = 'D') "
    "FROM pg_trigger WHERE NOT tgisinternal AND tgparentid = 0 AND tgname NOT LIKE 'ordermigrate%'"
)
# Patience is for machines that do much at once.
LIMITS = {
    "cleanup_after_days": 0,
    "cleanup_wait_hours": 0,
    "max_lag_seconds": 60,
    "max_pause_seconds": 30,
}

MakeEngine = Callable[[str], Pair]


@pytest.fixture
def make_engine(make_database: MakeDatabase, run_here: RunHere, tmp_path: Path) -> MakeEngine:
    """Return a maker of pairs: a monolith of a variant with orders, and an empty database."""

    def make(variant: str) -> Pair:
        def keep_toml(
            monolith: str | None = None,
            service: str | None = None,
            *,
            tables: Sequence[Mapping[str, object]] = (),
            limits: Mapping[str, object] | None = None,
        ) -> Path:
            return tmp_path / "ordermigrate.toml"

        monolith = make_database("monolith", script=script(variant))
        generate(monolith, orders=1_500)
        execute(
            monolith,
            "INSERT INTO public.order_book_snapshots (symbol, taken_at, bids) "
            "SELECT symbol, '2025-10-31 12:00+00', '[[99.5, 3], [99.4, 1]]' FROM public.symbols; "
            "ANALYZE",
        )
        pair = Pair(monolith, make_database("service"), run_here, keep_toml, TABLES)
        succeed(pair, "init", "--family", "trade_engine")
        toml = tmp_path / "ordermigrate.toml"
        text = toml.read_text("utf-8")
        for name, limit in LIMITS.items():
            before, _, after = text.partition(f"\n{name} = ")
            text = f"{before}\n{name} = {limit}\n{after.partition(chr(10))[2]}"
        toml.write_text(text, "utf-8")
        return pair

    return make


def require_equal(pair: Pair) -> None:
    """Nothing waits; every table is the same on both sides, by the judge and by `validate`."""
    catch_up(pair)
    for table in TABLES:
        assert pair.compare(table), table["name"]
    pair.validate()


def require_triggers(dsn: str, *, are_on: bool) -> None:
    """All seven are on, or all are off, clones on partitions included."""
    assert execute(dsn, _TRIGGERS) == [(7, 0) if are_on else (0, 7)]
    clones = (
        "SELECT DISTINCT tgenabled::text FROM pg_trigger WHERE tgparentid <> 0 "
        "AND NOT tgisinternal AND tgname NOT LIKE 'ordermigrate%'"
    )
    assert execute(dsn, clones) in ([], [("O" if are_on else "D",)])


def require_lifecycle(pair: Pair, owner: str, other: str) -> None:
    """On the owner all triggers do their work, and the other takes no write."""
    with pytest.raises(psycopg.Error, match="fenced"):
        execute(other, _PLACE)
    require_triggers(owner, are_on=True)
    require_triggers(other, are_on=False)
    execute(owner, _PLACE)
    assert execute(owner, _WATCHED) == [(1,)]
    catch_up(pair)
    assert execute(other, _WATCHED) == [(1,)]
    execute(owner, f"UPDATE public.orders SET status = 'CANCELLED' WHERE order_id = '{STOP}'")
    assert execute(owner, _WATCHED) == [(0,)]
    with pytest.raises(psycopg.errors.CheckViolation, match="from CANCELLED to OPEN"):
        execute(owner, f"UPDATE public.orders SET status = 'OPEN' WHERE order_id = '{STOP}'")
    ended = (
        "SELECT cancelled_at, updated_at, cancelled_at = updated_at FROM public.orders "
        f"WHERE order_id = '{STOP}'"
    )
    catch_up(pair)
    found = execute(owner, ended)
    assert found[0][2]
    assert execute(other, ended) == found
    execute(owner, f"DELETE FROM public.orders WHERE order_id = '{STOP}'")


def move(pair: Pair) -> None:
    """Everything from an empty database to the service's ownership, under traffic."""
    with trading(pair.monolith, pair.service) as exchange:
        succeed(pair, "prepare")
        assert require_objects(pair.service) == 97
        succeed(pair, "copy")
        exchange.wait_for_more()
        catch_up(pair)
        require_triggers(pair.service, are_on=False)
        require_triggers(pair.monolith, are_on=True)
        pair.validate()
        exchange.wait_for_more()
        catch_up(pair)
        succeed(pair, "cutover")
        exchange.wait_for_more()
        assert exchange.dsns[0] == pair.service
    require_equal(pair)
    require_lifecycle(pair, pair.service, pair.monolith)
    # Numbers go on past those that the monolith has given out.
    (before,) = execute(pair.monolith, "SELECT last_value FROM public.trades_trade_id_seq")
    (after,) = execute(pair.service, "SELECT last_value FROM public.trades_trade_id_seq")
    assert after > before


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_trade_engine_leaves_plain_tables_comes_back_and_leaves_for_good(
    make_engine: MakeEngine,
) -> None:
    pair = make_engine("monolith")
    assert require_objects(pair.monolith) == 52
    move(pair)
    succeed(pair, "rollback")
    require_lifecycle(pair, pair.monolith, pair.service)
    require_equal(pair)
    succeed(pair, "cutover")
    require_equal(pair)
    rows = execute(pair.service, "SELECT count(*) FROM public.orders")

    # Views hang on the monolith's tables, and each is named before anything goes.
    refused = pair.run("cleanup", "--confirm", "public.orders")
    assert_refused(refused, 3, ["view public.active_orders", "view public.order_book_snapshot"])
    execute(pair.monolith, script("views_down"))
    done = succeed(pair, "cleanup", "--confirm", "public.orders", "--json").json
    assert done["outcome"] == "cleaned"
    assert find_objects(pair.monolith).keys() == {"enum"}
    assert require_objects(pair.service) == 97
    require_triggers(pair.service, are_on=True)
    execute(pair.service, "SELECT public.refresh_order_book_snapshot()")
    book = "SELECT count(*) > 10 FROM public.order_book_snapshot"
    assert execute(pair.service, book) == [(True,)]
    assert execute(pair.service, "SELECT count(*) FROM public.orders") == rows


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_trade_engine_leaves_partitions_for_others_that_are_cut_elsewhere(
    make_engine: MakeEngine,
) -> None:
    pair = make_engine("monolith_partitioned")
    assert require_objects(pair.monolith) == 97
    move(pair)
    # What was cut into many parts lies in one, and the other way round.
    parts = "SELECT count(DISTINCT tableoid) FROM public.{}"
    for table, there, here in (("orders", 12, 9), ("trades", 30, 17)):
        assert execute(pair.monolith, parts.format(table)) == [(there,)]
        assert execute(pair.service, parts.format(table)) == [(here,)]


def test_a_row_without_a_partition_stops_sync_by_name_until_there_is_one(
    make_engine: MakeEngine,
) -> None:
    pair = make_engine("monolith")
    succeed(pair, "copy")
    execute(pair.monolith, _PLACE.replace("2025-10-20", "2026-02-03"))
    refused = pair.run("sync", "--until-caught-up")
    says = ["No partition of public.orders on the service takes created_at", "orders_2026_02"]
    assert_refused(refused, 3, says)
    made = execute(pair.service, "SELECT public.create_orders_partition('2026-02-03')")
    assert made == [("orders_2026_02",)]
    require_equal(pair)
    with pytest.raises(psycopg.Error, match="fenced"):
        execute(pair.service, "DELETE FROM public.orders_2026_02")
