"""The hub's orders go into a table that is partitioned by month, and come back from it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
import pytest

from tests.acceptance.fix_running import bring_up, catch_up, succeed
from tests.faults.fix_copying import await_true
from tests.fix_orders import FAMILY, ORDERS_TABLE, MakeHub, WriteToml
from tests.fix_pairs import Pair, RunHere, assert_refused
from tests.fix_postgres import MakeDatabase, execute

ORDERS = 600
PLACE = (
    "INSERT INTO public.orders (id, user_id, symbol, order_type, order_side, quantity, created_at) "
    "VALUES (gen_random_uuid(), 1, 'X', 'MARKET', 'BUY', 1, {})"
)
WRITES = (
    PLACE.format("clock_timestamp()"),
    PLACE.format("timestamp '2025-07-04'"),
    # from one month into another, and away
    """UPDATE public.orders SET created_at = created_at + interval '1 month', status = 'CANCELLED'
    WHERE id = (SELECT id FROM public.orders WHERE status <> 'CANCELLED' ORDER BY id LIMIT 1)""",
    "DELETE FROM public.orders WHERE id = (SELECT id FROM public.orders ORDER BY id LIMIT 1)",
)
FAR = "timestamp '2031-03-05 12:00'"


@pytest.fixture
def pair(
    make_hub: MakeHub, make_database: MakeDatabase, run_here: RunHere, ordermigrate_toml: WriteToml
) -> Pair:
    """A monolith as ever, and a service whose table is partitioned."""
    script = (FAMILY / "service_partitioned.sql").read_text("utf-8")
    service = make_database("service", script=script)
    hub = make_hub(users=20, orders=ORDERS)
    return Pair(hub.monolith, service, run_here, ordermigrate_toml, [ORDERS_TABLE])


@contextmanager
def writing(dsn: str) -> Iterator[None]:
    """Have somebody write to one side meanwhile, from whom nothing is refused."""
    is_over, done, errors = threading.Event(), [0], list[BaseException]()

    def write() -> None:
        try:
            with psycopg.connect(dsn, autocommit=True) as connection:
                while not is_over.wait(0.02):
                    connection.execute(WRITES[done[0] % len(WRITES)].encode())
                    done[0] += 1
        except BaseException as error:  # noqa: BLE001  it is raised in the test's thread
            errors.append(error)

    thread = threading.Thread(target=write)
    thread.start()
    try:
        await_true(lambda: done[0] > 2 * len(WRITES) or errors != [])
        yield
    finally:
        is_over.set()
        thread.join(30)
        for error in errors:
            raise error


def test_orders_move_into_a_table_by_month_and_back(pair: Pair) -> None:
    succeed(pair, "prepare")
    with writing(pair.monolith):
        succeed(pair, "copy")
        catch_up(pair)
        pair.validate()
    require_same(pair)
    months = "SELECT count(DISTINCT tableoid) FROM public.orders WHERE created_at < '2025-11-01'"
    assert pair.on_service(months) == [(6,)]
    require_in_default(pair, 0)

    pair.on_monolith(PLACE.format(FAR))
    catch_up(pair)
    require_in_default(pair, 1)
    pair.validate()
    # A part that had no rows when the others got their statistics has none.
    assert_refused(pair.run("cutover"), 3, ["public.orders_default", "ANALYZE"])
    pair.on_service("ANALYZE public.orders")
    succeed(pair, "cutover")
    with writing(pair.service):
        catch_up(pair)
        pair.validate()
    # A month that is made later takes its rows out of the default partition.
    assert pair.on_service(
        "SELECT public.create_orders_partitions('2031-03-01', '2031-04-01')"
    ) == [(2,)]
    require_in_default(pair, 0)
    require_same(pair)
    # The new months get the fence that they lack, and that voids what was proved before.
    assert_refused(pair.run("rollback"), 3, ["ordermigrate_fence on public.orders_2031_03"])
    pair.validate()

    succeed(pair, "rollback")
    with writing(pair.monolith):
        catch_up(pair)
    require_same(pair)
    pair.validate()
    pair.on_service("ANALYZE public.orders")
    succeed(pair, "cutover")
    with writing(pair.service):
        pass
    require_same(pair)


def require_same(pair: Pair) -> None:
    """Nobody writes: both sides hold the same rows, and more than a few."""
    catch_up(pair)
    compared = pair.compare(ORDERS_TABLE)
    assert compared
    assert compared.monolith_rows >= ORDERS


def require_in_default(pair: Pair, rows: int) -> None:
    """So many rows lie in no month."""
    assert pair.on_service("SELECT count(*) FROM public.orders_default") == [(rows,)]


def test_a_month_can_be_made_while_the_monolith_owns_the_table(pair: Pair) -> None:
    bring_up(pair)
    made = "SELECT public.create_orders_partitions('2032-01-01', '2032-01-01')"
    assert pair.on_service(made) == [(1,)]
    assert pair.on_service(made) == [(0,)]
    pair.on_monolith(PLACE.format("timestamp '2032-01-31 23:59:59.999999'"))
    catch_up(pair)
    assert pair.on_service("SELECT count(*) FROM public.orders_2032_01") == [(1,)]
    require_in_default(pair, 0)
    require_same(pair)
    pair.validate()


def test_an_order_without_a_time_is_named_and_not_lost(pair: Pair) -> None:
    bring_up(pair)
    pair.on_monolith(PLACE.format("NULL"))
    ((key,),) = pair.on_monolith("SELECT id FROM public.orders WHERE created_at IS NULL")
    refused = pair.run("sync", "--until-caught-up")
    assert_refused(refused, 3, [f"id = {key}", "created_at"])
    execute(pair.monolith, "UPDATE public.orders SET created_at = now() WHERE created_at IS NULL")
    require_same(pair)
