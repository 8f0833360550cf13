"""Writers go on during the copy: it completes, and sync brings what it could not have seen.

Each kind of write meets a copy in each of its states; then the shop family, on which applications
do everything that they do, through faults at every event. On the service nobody but the program
writes: the fence refuses it, and what came past the fence is found.
"""

# ruff: noqa: S608  statements are put together from constants

from __future__ import annotations

from collections.abc import Callable, Iterator

import psycopg
import pytest

from tests.faults.fix_copying import (
    EVENTS,
    Copying,
    MakeCopying,
    break_at_every_event,
    names,
    transaction,
)
from tests.fix_family import KINDS, SHOP_TABLES, TRUNCATE, make_shop
from tests.fix_faults import FaultProxy
from tests.fix_orders import CliResult, Hub, RunCli, RunningCli, StartCli, WriteToml
from tests.fix_postgres import SIDES, MakeDatabase, Side
from tests.fix_traffic import live_traffic

ONE = "WHERE ctid = (SELECT min(ctid) FROM public.orders)"
UPDATE = "UPDATE public.orders SET quantity = quantity + 1 " + ONE
DELETE = "DELETE FROM public.orders " + ONE
NEW_ORDER = (
    "INSERT INTO public.orders (id, user_id, symbol, order_type, order_side, quantity) "
    "VALUES (gen_random_uuid(), 1, 'NEW', 'MARKET', 'BUY', 1)"
)
THIRD = "user_id % 3 = 0"
WRITES = {
    "update": UPDATE,
    "delete": DELETE,
    "insert and delete": f"{NEW_ORDER}; {DELETE}",
    "many updates": f"UPDATE public.orders SET quantity = quantity + 1 WHERE {THIRD}",
    "many deletes": f"DELETE FROM public.orders WHERE {THIRD}",
    "other keys": f"UPDATE public.orders SET id = gen_random_uuid() WHERE {THIRD}",
    "the same keys again": (
        f"CREATE TABLE public.kept AS SELECT * FROM public.orders WHERE {THIRD};"
        f"DELETE FROM public.orders WHERE {THIRD};"
        "INSERT INTO public.orders SELECT * FROM public.kept"
    ),
    "rows that move": (
        f"DELETE FROM public.orders WHERE {THIRD}; VACUUM public.orders;"
        "UPDATE public.orders SET quantity = quantity + 1 WHERE user_id % 3 = 1"
    ),
    "truncate": "TRUNCATE public.orders",
    "truncate and insert": f"TRUNCATE public.orders; {NEW_ORDER}",
}


@pytest.fixture
def copying(make_copying: MakeCopying) -> Copying:
    return make_copying(behind=["service"])


def run_each(copying: Copying, statements: str) -> None:
    """Run statements one by one, each in its own transaction."""
    for statement in statements.split(";"):
        copying.on_monolith(statement)


def copy_with_mid_copy(copying: Copying, act: Callable[[], object]) -> CliResult:
    """Do something while a chunk is on its way on each worker, then let the copy go on."""
    copying.stall_service_in_mid_copy()
    running = copying.start()
    copying.await_stall()
    act()
    copying.proxies["service"].heal()
    return running.finish()


def assert_copied(copying: Copying, result: CliResult) -> None:
    """Assert that a copy is complete beside the writes, and right once sync has brought them."""
    assert result.exit_code == 0, (result.exit_code, result.stderr)
    assert copying.on_service("SELECT phase FROM ordermigrate.run") == [("copied",)]
    copying.assert_caught_up()


@pytest.mark.parametrize("write", WRITES)
def test_a_write_in_mid_copy_is_brought_by_sync(copying: Copying, write: str) -> None:
    result = copy_with_mid_copy(copying, lambda: run_each(copying, WRITES[write]))
    assert_copied(copying, result)


@pytest.mark.parametrize("write", WRITES)
def test_a_write_between_a_killed_copy_and_its_resume_is_brought_by_sync(
    make_copying: MakeCopying, write: str
) -> None:
    copying = make_copying()
    copying.run(at=("chunk_copied", 2, RunningCli.kill))
    run_each(copying, WRITES[write])
    assert_copied(copying, copying.run())


def test_writes_between_many_attempts_are_brought_by_sync(make_copying: MakeCopying) -> None:
    copying = make_copying(limits={"workers": 1})
    for retries in range(4):
        copying.run(at=("chunk_copied", 1, RunningCli.kill))
        copying.on_monolith(
            f"UPDATE public.orders SET retry_count = {retries} WHERE user_id % 5 = {retries};"
            f"UPDATE public.orders SET id = gen_random_uuid() WHERE user_id % 50 = {retries}"
        )
    assert_copied(copying, copying.run())


@pytest.mark.parametrize(
    "statements",
    [
        [UPDATE],
        ["SAVEPOINT s", UPDATE, "RELEASE s"],
        ["SAVEPOINT s", NEW_ORDER, "ROLLBACK TO s", UPDATE],
    ],
    ids=lambda statements: ", ".join(each.split()[0] for each in statements),
)
def test_a_transaction_open_at_the_snapshot_that_commits_later_is_brought_by_sync(
    copying: Copying, statements: list[str]
) -> None:
    copying.call("prepare")
    with transaction(copying.hub.monolith) as writer:
        for statement in statements:
            writer.execute(statement.encode())
        result = copy_with_mid_copy(copying, writer.commit)
    assert_copied(copying, result)


def test_a_savepoint_opened_before_the_snapshot_and_written_in_after_it_is_brought_by_sync(
    copying: Copying,
) -> None:
    copying.call("prepare")
    with transaction(copying.hub.monolith) as writer:
        writer.execute("SAVEPOINT s")
        writer.execute("UPDATE public.users SET full_name = 'x' WHERE id = 1")

        def write() -> None:
            writer.execute(UPDATE.encode())
            writer.commit()

        result = copy_with_mid_copy(copying, write)
    assert_copied(copying, result)


def test_what_is_rolled_back_in_mid_copy_is_not_there(copying: Copying) -> None:
    copying.call("prepare")
    with transaction(copying.hub.monolith) as writer:
        writer.execute(f"{NEW_ORDER}; {DELETE}; TRUNCATE public.users CASCADE".encode())
        writer.rollback()
        writer.execute(DELETE.encode())
        done = copy_with_mid_copy(copying, writer.rollback)
    assert done.exit_code == 0, done.stderr
    copying.assert_complete()


def test_a_copy_begun_again_beside_a_writer_is_right(make_copying: MakeCopying) -> None:
    copying = make_copying(is_written_to=True)
    copying.run(at=("chunk_copied", 2, RunningCli.kill))
    done = copying.run("--restart")
    assert done.exit_code == 0, done.stderr
    copying.call("sync", "--once")
    copying.finish("--restart")


# --------------------------------------------------------------------------------- on the service


@pytest.mark.parametrize("write", [NEW_ORDER, DELETE, "TRUNCATE public.orders"])
def test_the_fence_refuses_writes_to_the_service_in_mid_copy(copying: Copying, write: str) -> None:
    refused: list[str | None] = []

    def attempt() -> None:
        with pytest.raises(psycopg.Error) as caught:
            # The copy's own locks would let a TRUNCATE wait; the fence would say the same.
            copying.on_service(f"SET lock_timeout = '1s'; {write}")
        refused.append(caught.value.sqlstate)

    done = copy_with_mid_copy(copying, attempt)
    assert refused == [("55P03" if write.startswith("TRUNCATE") else "OM001")]
    assert done.exit_code == 0, done.stderr
    copying.assert_complete()


@pytest.mark.parametrize("moment", ["in mid-copy", "between attempts"])
def test_a_row_that_came_past_the_fence_is_refused(copying: Copying, moment: str) -> None:
    if moment == "in mid-copy":
        result = copying.run(at=("chunk_copied", 1, lambda _: copying.behind_fence(NEW_ORDER)))
    else:
        copying.run(at=("chunk_copied", 1, RunningCli.kill))
        copying.behind_fence(NEW_ORDER)
        result = copying.run()
    assert_not_as_left(result)
    # Rows which are not ours are never removed, until someone else does.
    refused = copying.run("--restart")
    assert refused.exit_code == 3, refused.stderr
    copying.behind_fence("TRUNCATE public.orders")
    copying.finish("--restart")


def test_a_row_that_was_deleted_past_the_fence_is_refused(copying: Copying) -> None:
    result = copying.run(at=("chunk_copied", 1, lambda _: copying.behind_fence(DELETE)))
    assert_not_as_left(result)
    copying.finish("--restart")  # nothing is there that anyone else could miss


def assert_not_as_left(result: CliResult) -> None:
    assert result.exit_code == 3, (result.exit_code, result.stderr)
    assert "public.orders on the service is not as the copy left it" in result.stderr
    assert "Traceback" not in result.stderr


def test_rows_in_an_empty_service_are_refused_before_anything(copying: Copying) -> None:
    copying.run(at=("indexes_dropped", 1, RunningCli.kill))
    copying.behind_fence(NEW_ORDER)
    refused = copying.run()
    assert refused.exit_code == 3, refused.stderr
    assert "is not empty" in refused.stderr
    copying.behind_fence("TRUNCATE public.orders")
    copying.finish()


# --------------------------------------------------------------------------------------- the shop

EVENTS_PREPARED = EVENTS[1:]


@pytest.fixture
def shop(
    make_database: MakeDatabase,
    make_proxy: Callable[[str], FaultProxy],
    ordermigrate_toml: WriteToml,
    start_cli: StartCli,
    run_cli: RunCli,
) -> Iterator[Copying]:
    """Three tables with foreign keys between them, on which two writers do all that they can."""
    made = make_shop(make_database, orders=300)
    hub = Hub(made.monolith, made.service)
    proxies: dict[Side, FaultProxy] = {
        "monolith": make_proxy(hub.monolith),
        "service": make_proxy(hub.service),
    }
    copying = Copying(
        hub, proxies, ordermigrate_toml, start_cli, run_cli, {"workers": 1}, SHOP_TABLES
    )
    # Foreign keys inside the family are off until the service is the owner.
    copying.call("prepare")
    copying.definitions_before = copying.definitions()
    kinds = (*KINDS, TRUNCATE)
    # The copy makes way for each TRUNCATE: many a second would not let it come to anything.
    with live_traffic(
        hub.monolith, writers=2, kinds=kinds, pause_seconds=0.02, notes_pause_seconds=4.0
    ) as traffic:
        copying.traffic = traffic
        yield copying


def test_a_shop_in_full_swing_is_copied(shop: Copying) -> None:
    shop.finish()


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_shop_copied_through_a_kill_at_every_event_is_right(shop: Copying) -> None:
    break_at_every_event(shop, RunningCli.kill, EVENTS_PREPARED)


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("side", SIDES)
def test_a_shop_copied_through_a_cut_at_every_event_is_right(shop: Copying, side: Side) -> None:
    break_at_every_event(shop, lambda _: shop.proxies[side].cut(), EVENTS_PREPARED)


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("side", SIDES)
def test_a_shop_copied_while_backends_are_ended_at_every_event_is_right(
    shop: Copying, side: Side
) -> None:
    break_at_every_event(shop, lambda _: shop.end_backends(side, "ordermigrate%"), EVENTS_PREPARED)


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_shop_copied_while_its_files_change_is_right(shop: Copying) -> None:
    tables = ["orders", "order_lines", "order_notes"]

    def rewrite(_: RunningCli) -> None:
        with psycopg.connect(shop.hub.monolith, autocommit=True) as connection:
            connection.execute("SET lock_timeout = '8s'")
            for table in tables:
                connection.execute(f"VACUUM FULL public.{table}".encode())

    for event in ("snapshot_taken", "chunk_copied", "rows_copied"):
        result = shop.run(at=(event, 1, rewrite))
        if result.exit_code == 0 and "leaf_rewritten" in names(result):
            break
    shop.finish()
