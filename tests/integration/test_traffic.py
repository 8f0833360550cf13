"""The live writers know what they were promised, and say so when a database does not keep it."""

from __future__ import annotations

import threading
from collections.abc import Callable

import psycopg
import pytest
from psycopg import sql

from tests import fix_traffic
from tests.fix_family import KINDS, LINES, NOTES, ORDERS, TRUNCATE, Shop, make_shop
from tests.fix_faults import FaultProxy
from tests.fix_orders import Hub, identical
from tests.fix_postgres import MakeDatabase, StartServer, execute
from tests.fix_traffic import Traffic, hub_traffic, live_traffic

QUICK = tuple(kind for kind in KINDS if kind != "long")
MakeProxy = Callable[[str], FaultProxy]


def copy_shop(shop: Shop) -> None:
    """Bring the monolith's rows to the service in the plainest way."""
    with psycopg.connect(shop.monolith) as source, psycopg.connect(shop.service) as target:
        target.execute("SET session_replication_role = replica")
        for shape in (ORDERS, LINES, NOTES):
            columns = sql.SQL(", ").join(map(sql.Identifier, shape.columns))
            table = sql.SQL(shape.name)
            out = sql.SQL("COPY {} ({}) TO STDOUT").format(table, columns)
            into = sql.SQL("COPY {} ({}) FROM STDIN").format(table, columns)
            with source.cursor().copy(out) as read, target.cursor().copy(into) as write:
                for block in read:
                    write.write(block)


def write_and_copy(shop: Shop, seed: int = 3) -> Traffic:
    """Let two writers write for a while, and bring what they wrote to the service."""
    with live_traffic(shop.monolith, writers=2, kinds=(*QUICK, TRUNCATE), seed=seed) as traffic:
        traffic.wait_for_commits(60)
    if not execute(shop.monolith, "SELECT id FROM public.order_notes"):
        return write_and_copy(shop, seed + 1)  # a TRUNCATE came last: no note could be lost
    copy_shop(shop)
    return traffic


def wait_for(traffic: Traffic, name: str, more: int = 1) -> None:
    """Wait until something besides commits has happened so many more times."""
    wanted = traffic.counts[name] + more
    traffic.wait_until(lambda it: it.counts[name] >= wanted)


def lose_replies(proxy: FaultProxy) -> None:
    """Let the next COMMIT be done and its reply be lost."""
    so_far = proxy.swallowed_bytes
    proxy.when_seen(b"COMMIT", proxy.swallow_replies)
    proxy.wait_until(lambda it: it.swallowed_bytes > so_far)


@pytest.fixture
def shop(make_database: MakeDatabase) -> Shop:
    """A monolith with a hundred orders, half of them of users whom two writers do not own."""
    return make_shop(make_database, orders=100)


@pytest.mark.parametrize("is_deferrable", [False, True])
def test_every_kind_of_transaction_leaves_what_was_expected(
    make_database: MakeDatabase, *, is_deferrable: bool
) -> None:
    shop = make_shop(make_database, orders=200, is_deferrable=is_deferrable)
    committed = {*KINDS, TRUNCATE} - {"rollback"}
    with live_traffic(shop.monolith, kinds=(*KINDS, TRUNCATE), seed=7) as traffic:
        traffic.wait_until(lambda it: all(it.done[kind] >= 3 for kind in committed))
        traffic.wait_until(lambda it: it.counts["rolled back"] >= 3)
    traffic.require_all_on(shop.monolith)
    traffic.require_all_on(shop.monolith, only_ours=True)
    assert traffic.commits == traffic.done.total()


def test_what_was_copied_faithfully_is_all_there(shop: Shop) -> None:
    traffic = write_and_copy(shop)
    traffic.require_all_on(shop.monolith)
    traffic.require_all_on(shop.service)
    for shape in (ORDERS, LINES, NOTES):
        assert identical(shop.monolith, shop.service, shape.name)


OWNED = "WHERE id = (SELECT id FROM public.orders WHERE user_id < 2000 ORDER BY id LIMIT 1)"
NOBODYS = "WHERE id = (SELECT id FROM public.orders WHERE user_id >= 2000 ORDER BY id LIMIT 1)"
LINE = "WHERE ctid = (SELECT ctid FROM public.order_lines ORDER BY order_id, line_no LIMIT 1)"
ANY = ""
ADD_ORDER = (
    "INSERT INTO public.orders (id, user_id, created_at, updated_at) "
    "VALUES (gen_random_uuid(), {}, now(), now())"
)
DAMAGE = [
    ("DELETE FROM public.orders", OWNED, "lost: public.orders"),
    ("DELETE FROM public.orders", NOBODYS, "lost: public.orders"),
    ("UPDATE public.orders SET note = 'else'", NOBODYS, "changed: public.orders"),
    ("UPDATE public.orders SET id = gen_random_uuid()", OWNED, "lost: (?s:.*)invented: "),
    (
        "UPDATE public.orders SET parent_id = CASE WHEN parent_id IS NULL THEN id END",
        OWNED,
        ": parent_id is",
    ),
    ("UPDATE public.orders SET user_id = user_id / 2 * 2 + 1 - user_id % 2", OWNED, ": user_id is"),
    ("UPDATE public.orders SET user_id = user_id + 5000", OWNED, "lost: public.orders"),
    ("UPDATE public.orders SET status = status || ' '", OWNED, ": status is"),
    ("UPDATE public.orders SET quantity = quantity + 0.00000001", OWNED, ": quantity is"),
    (
        "UPDATE public.orders SET price = CASE WHEN price IS NULL THEN 0.0 END",
        OWNED,
        ": price is",
    ),
    ("UPDATE public.orders SET note = CASE WHEN note IS NULL THEN '' END", OWNED, ": note is"),
    (
        "UPDATE public.orders SET payload = CASE WHEN payload IS NULL THEN 'null'::jsonb END",
        OWNED,
        ": payload is",
    ),
    ("UPDATE public.orders SET big = coalesce(big, '') || 'x'", OWNED, ": big is"),
    ("UPDATE public.orders SET slot = -1", OWNED, ": slot is"),
    (
        "UPDATE public.orders SET created_at = created_at + interval '1 microsecond'",
        OWNED,
        ": created_at is",
    ),
    (
        "UPDATE public.orders SET updated_at = updated_at - interval '1 microsecond'",
        OWNED,
        ": updated_at is",
    ),
    (
        ADD_ORDER.format(5),
        ANY,
        "invented: public.orders",
    ),
    (
        ADD_ORDER.format(3005),
        ANY,
        "invented: public.orders",
    ),
    ("DELETE FROM public.order_lines", LINE, "lost: public.order_lines"),
    ("UPDATE public.order_lines SET amount = amount + 1", LINE, "changed: public.order_lines"),
    ("UPDATE public.order_lines SET seq = DEFAULT", LINE, "changed: public.order_lines"),
    (
        "INSERT INTO public.order_lines VALUES (gen_random_uuid(), 1, 'of no order', 1)",
        ANY,
        "invented: public.order_lines",
    ),
    ("INSERT INTO public.order_notes VALUES (-1)", ANY, "invented: public.order_notes"),
    ("UPDATE public.order_notes SET \"order\" = 'else'", ANY, "changed: public.order_notes"),
    ("TRUNCATE public.order_notes", ANY, "lost: public.order_notes"),
]


@pytest.mark.parametrize(("damage", "where", "said"), DAMAGE)
def test_a_row_that_was_lost_changed_or_invented_is_named(
    shop: Shop, damage: str, where: str, said: str
) -> None:
    traffic = write_and_copy(shop)
    traffic.require_all_on(shop.service)
    execute(shop.service, f"SET session_replication_role = replica; {damage} {where}")
    with pytest.raises(AssertionError, match=said):
        traffic.require_all_on(shop.service)
    traffic.require_all_on(shop.monolith)


def test_rows_that_nobody_owns_may_be_left_out(shop: Shop) -> None:
    traffic = write_and_copy(shop)
    execute(shop.service, "DELETE FROM public.orders WHERE user_id >= 2000")
    with pytest.raises(AssertionError, match="and 140 more"):  # 50 orders and 100 lines
        traffic.require_all_on(shop.service)
    traffic.require_all_on(shop.service, only_ours=True)


def test_a_second_traffic_goes_on_with_the_rows_of_the_first(shop: Shop) -> None:
    write_and_copy(shop)
    with live_traffic(shop.service, kinds=QUICK) as traffic:
        traffic.wait_for_commits(100)
    traffic.require_all_on(shop.service)


# ------------------------------------------------------------------------------------------ faults


def test_writers_come_back_after_cuts(shop: Shop, make_proxy: MakeProxy) -> None:
    proxy = make_proxy(shop.monolith)
    with live_traffic(proxy.dsn(shop.monolith), kinds=KINDS) as traffic:
        for _ in range(10):
            traffic.wait_for_commits(traffic.commits + 10)
            proxy.when_seen(b"COMMIT", proxy.cut)
        traffic.wait_for_commits(traffic.commits + 20)
    assert traffic.counts["lost"] > 4
    traffic.require_all_on(shop.monolith)


def test_a_commit_whose_reply_is_lost_is_looked_up(shop: Shop, make_proxy: MakeProxy) -> None:
    proxy = make_proxy(shop.monolith)
    with live_traffic(proxy.dsn(shop.monolith), writers=1, kinds=["insert"]) as traffic:
        for _ in range(3):
            traffic.wait_for_commits(traffic.commits + 5)
            lose_replies(proxy)
            proxy.cut()
            proxy.heal()
    traffic.require_all_on(shop.monolith)
    assert traffic.counts["settled"] == 3
    ((rows,),) = execute(shop.monolith, "SELECT count(*) FROM public.orders")
    assert rows == 100 + traffic.commits + 3


def test_a_commit_in_doubt_at_the_end_may_have_either_state(
    shop: Shop, make_proxy: MakeProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fix_traffic, "_SETTLE_SECONDS", 0.2)
    proxy = make_proxy(shop.monolith)
    with live_traffic(proxy.dsn(shop.monolith), writers=1, kinds=["insert"]) as traffic:
        traffic.wait_for_commits(1)
        lose_replies(proxy)
        proxy.refuse()
        proxy.cut()
    assert traffic.counts["settled"] == 0
    traffic.require_all_on(shop.monolith)
    (newest,) = execute(
        shop.monolith,
        "DELETE FROM public.orders WHERE created_at = (SELECT max(created_at) FROM public.orders) "
        "RETURNING id",
    )
    assert newest
    traffic.require_all_on(shop.monolith)
    execute(shop.monolith, f"DELETE FROM public.orders {OWNED}")  # noqa: S608  our own condition
    with pytest.raises(AssertionError, match="lost: "):
        traffic.require_all_on(shop.monolith)


def test_a_row_that_is_gone_after_a_cut_is_seen_at_once(shop: Shop, make_proxy: MakeProxy) -> None:
    proxy = make_proxy(shop.monolith)
    said = r"shop writer 0: not as acknowledged\nlost: "
    with (  # noqa: PT012  the wait raises it, and so would the block's end
        pytest.raises(AssertionError, match=said),
        live_traffic(proxy.dsn(shop.monolith), kinds=["insert"]) as traffic,
    ):
        traffic.wait_for_commits(10)
        proxy.refuse()
        proxy.cut()
        wait_for(traffic, "lost", 8)
        execute(shop.monolith, "DELETE FROM public.orders WHERE user_id < 1000")
        proxy.heal()
        traffic.wait_for_commits(10**9)


def test_writers_survive_a_killed_server(start_server: StartServer) -> None:
    server = start_server()

    def make(side: str, *, script: str = "", **_: object) -> str:
        dsn = server.dsn("postgres")
        if side == "monolith":
            execute(dsn, script)
        return dsn

    shop = make_shop(make, orders=50)
    with live_traffic(shop.monolith, kinds=(*KINDS, TRUNCATE)) as traffic:
        for _ in range(2):
            traffic.wait_for_commits(traffic.commits + 30)
            server.kill()
            wait_for(traffic, "lost", 8)
            server.start()
        traffic.wait_for_commits(traffic.commits + 30, timeout_seconds=60)
    traffic.require_all_on(shop.monolith)


@pytest.mark.parametrize(("sqlstate", "counted"), [("OM001", "refused"), ("40001", "aborted")])
def test_what_the_server_refuses_is_counted_and_not_expected(
    shop: Shop, sqlstate: str, counted: str
) -> None:
    refusing = (
        "CREATE FUNCTION public.refuse() RETURNS trigger LANGUAGE plpgsql AS "
        f"$$BEGIN RAISE 'not now' USING ERRCODE = '{sqlstate}'; END$$; "
        "CREATE TRIGGER refuses BEFORE INSERT OR UPDATE OR DELETE ON public.orders "
        "EXECUTE FUNCTION public.refuse()"
    )
    with live_traffic(shop.monolith, kinds=QUICK) as traffic:
        traffic.wait_for_commits(20)
        execute(shop.monolith, refusing)
        traffic.wait_until(lambda it: it.counts[counted] >= 20)
        execute(shop.monolith, "DROP TRIGGER refuses ON public.orders")
        traffic.wait_for_commits(traffic.commits + 20)
    traffic.require_all_on(shop.monolith)


DROPPING = """
CREATE FUNCTION public.drop() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
CREATE TRIGGER drops BEFORE INSERT ON public.orders FOR EACH ROW EXECUTE FUNCTION public.drop()
"""


@pytest.mark.parametrize(
    ("break_it", "error", "said"),
    [
        ("ALTER TABLE public.orders DROP COLUMN note", psycopg.errors.UndefinedColumn, "note"),
        (DROPPING, AssertionError, "0 rows and not 1: INSERT"),
    ],
)
def test_what_no_writer_may_meet_ends_the_traffic(
    shop: Shop, break_it: str, error: type[Exception], said: str
) -> None:
    with (  # noqa: PT012  the wait raises it, and so would the block's end
        pytest.raises(error, match=said),
        live_traffic(shop.monolith, kinds=["insert"]) as traffic,
    ):
        traffic.wait_for_commits(10)
        execute(shop.monolith, break_it)
        traffic.wait_for_commits(10**9)
    with pytest.raises(error, match=said):
        traffic.stop()


def test_writers_leave_no_thread_and_no_session(shop: Shop) -> None:
    with live_traffic(shop.monolith, writers=3, kinds=["long"]) as traffic:
        traffic.wait_for_commits(3)
        traffic.stop()
        traffic.stop()
        traffic.require_all_on(shop.monolith)
    assert not [one for one in threading.enumerate() if "writer" in one.name]


def test_unknown_kinds_are_refused(shop: Shop) -> None:
    with pytest.raises(ValueError, match="insret"), live_traffic(shop.monolith, kinds=["insret"]):
        pass


# --------------------------------------------------------------------------------------- the hub


def test_a_hub_is_written_at_a_steady_rate(hub: Hub) -> None:
    with hub_traffic(hub.monolith, 100) as traffic:
        traffic.wait_for_commits(60)
    traffic.require_all_on(hub.monolith)
    live = "FROM public.orders WHERE symbol = 'LIVE'"
    assert execute(hub.monolith, f"SELECT count(*) > 10 {live}") == [(True,)]
    execute(hub.monolith, "DELETE FROM public.orders WHERE symbol = 'LIVE' AND status = 'EXECUTED'")
    with pytest.raises(AssertionError, match=r"^not what was acknowledged:\nlost: "):
        traffic.require_all_on(hub.monolith)


def test_a_hub_is_written_through_cuts(hub: Hub, make_proxy: MakeProxy) -> None:
    proxy = make_proxy(hub.monolith)
    with hub_traffic(proxy.dsn(hub.monolith), 200) as traffic:
        for _ in range(3):
            traffic.wait_for_commits(traffic.commits + 5)
            lose_replies(proxy)
            proxy.cut()
            proxy.heal()
        traffic.wait_for_commits(traffic.commits + 5)
    traffic.require_all_on(hub.monolith)
    assert traffic.counts["settled"] == 3
