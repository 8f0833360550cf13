"""The scripts of the dydx_orders family do what they say, each on real tables."""

from __future__ import annotations

import re
from typing import Any

import psycopg
import pytest

from tests.fix_dydx import ARCHIVE, FAMILY, MONOLITH, SERVICE, add_orders, read_roles
from tests.fix_orders import identical
from tests.fix_pairs import MakeRole, role_dsn
from tests.fix_postgres import MakeDatabase, execute

TABLES = ("public.orders", "public.order_status_history")
ALL_TYPES = (
    "MARKET",
    "LIMIT",
    "STOP_MARKET",
    "STOP_LIMIT",
    "TAKE_PROFIT_MARKET",
    "TAKE_PROFIT_LIMIT",
)
COUNTS = (
    "SELECT (SELECT count(*) FROM public.orders), (SELECT count(*) FROM public.orders_archive), "
    "(SELECT count(*) FROM public.order_status_history), "
    "(SELECT count(*) FROM public.order_status_history_archive)"
)


@pytest.fixture
def monolith(make_role: MakeRole, make_database: MakeDatabase) -> str:
    """A monolith with 300 orders."""
    dsn = make_database("monolith", script=MONOLITH)
    add_orders(dsn, orders=300)
    return dsn


def place(dsn: str, order_type: str, price: str, *, created: str = "now()") -> None:
    execute(
        dsn,
        "INSERT INTO public.orders (client_id, market, side, type, size, price, remaining_size, "  # noqa: S608  ours
        f"created_at) VALUES (gen_random_uuid()::text, 'ETH-USD', 'SELL', '{order_type}', 1, "
        f"{price}, 1, {created})",
    )


def test_both_sides_have_the_same_tables() -> None:
    """Only what the first lines say differs."""
    one, other = (text.partition("\n\n") for text in (MONOLITH, SERVICE))
    assert one[0] != other[0]
    assert one[2] == other[2]


def test_every_order_type_can_be_placed_and_a_limit_has_a_price(
    make_database: MakeDatabase,
) -> None:
    dsn = make_database("monolith", script=MONOLITH)
    for order_type in ALL_TYPES:
        has_limit, is_market = "LIMIT" in order_type, order_type == "MARKET"
        for price, is_refused in (("NULL", has_limit), ("1.5", is_market), ("-1", True)):
            if is_refused:
                with pytest.raises(psycopg.errors.CheckViolation):
                    place(dsn, order_type, price)
            else:
                place(dsn, order_type, price)


# ----------------------------------------------------------------------------- rows and reading


def read_patterns() -> dict[str, tuple[str, str]]:
    """Return the statements of access.sql and the index that each is to be answered by."""
    text = (FAMILY / "access.sql").read_text("utf-8")
    blocks = re.split(r"^-- name: (\w+)\n-- index: (\w+)\n", text, flags=re.MULTILINE)[1:]
    return {
        name: (index, body.rstrip().removesuffix(";"))
        for name, index, body in zip(blocks[::3], blocks[1::3], blocks[2::3], strict=True)
    }


def test_the_access_patterns_find_the_same_on_both_sides_and_by_their_index(
    make_database: MakeDatabase,
) -> None:
    monolith = make_database("monolith", script=MONOLITH)
    service = make_database("service", script=SERVICE)
    add_orders(monolith, orders=2_000)
    add_orders(service, orders=700, total=2_000)  # in two steps the same rows
    add_orders(service, orders=1_300, first=701, total=2_000)
    for dsn in (monolith, service):
        execute(dsn, "ANALYZE public.orders, public.order_status_history")
    for table in TABLES:
        assert identical(monolith, service, table)
    assert_no_two_changes(monolith)

    longest = "SELECT order_id FROM public.order_status_history GROUP BY 1 HAVING count(*) = 3"
    (order,) = execute(monolith, f"{longest} ORDER BY 1 LIMIT 1")[0]
    values: dict[str, list[Any]] = {
        "get_active_orders": ["BTC-USD"],
        "list_orders": [None, None, 20, 40],
        "get_order_with_history": [order],
        "count_orders_by_status": ["2025-10-20"],
    }
    patterns = read_patterns()
    assert patterns.keys() == values.keys()
    for name, (index, statement) in patterns.items():
        found = [ask(dsn, statement, values[name], index) for dsn in (monolith, service)]
        # Only a page is asked for in an order that leaves nothing open.
        if name == "list_orders":
            assert found[0] == found[1]
        assert set_of(found[0]) == set_of(found[1])
        assert found[0] != []
    assert len(ask(monolith, patterns["list_orders"][1], ["BTC-USD", "FILLED", 5, 0])) == 5
    ((*_, history),) = ask(monolith, patterns["get_order_with_history"][1], [order])
    assert [each["new_status"] for each in history][:2] == ["OPEN", "PARTIALLY_FILLED"]


def assert_no_two_changes(dsn: str) -> None:
    """Each order's last change is the order's status: the rows are as the trigger would write."""
    assert execute(
        dsn,
        "SELECT count(*) FROM public.orders AS o LEFT JOIN LATERAL (SELECT * FROM "
        "public.order_status_history AS h WHERE h.order_id = o.id ORDER BY h.created_at DESC "
        "LIMIT 1) AS last ON true WHERE coalesce(last.new_status, 'PENDING') <> o.status "
        "OR last.filled_size <> o.filled_size OR last.created_at <> o.updated_at",
    ) == [(0,)]


def set_of(rows: list[tuple[Any, ...]]) -> set[str]:
    return set(map(str, rows))


def ask(dsn: str, statement: str, values: list[Any], index: str = "") -> list[tuple[Any, ...]]:
    """Run a pattern with its index and without any; both have to find the same."""
    with psycopg.connect(dsn, cursor_factory=psycopg.RawCursor) as connection:
        ((plan,),) = connection.execute(f"EXPLAIN (FORMAT JSON) {statement}", values)
        assert index in str(plan), plan
        found = connection.execute(statement.encode(), values).fetchall()
        for way in ("indexscan", "indexonlyscan", "bitmapscan"):
            connection.execute(f"SET LOCAL enable_{way} = off".encode())
        plain = connection.execute(statement.encode(), values).fetchall()
        assert set_of(plain) == set_of(found)
        return found


# -------------------------------------------------------------------------------------- archive


def test_an_archived_order_takes_its_history_along(monolith: str) -> None:
    place(monolith, "MARKET", "NULL")
    execute(
        monolith,
        "UPDATE public.orders SET status = 'REJECTED' WHERE market = 'ETH-USD' "
        "AND created_at > now() - interval '1 day'",
    )
    place(monolith, "LIMIT", "3", created="now() - interval '91 days'")
    before = execute(
        monolith,
        "SELECT (SELECT count(*) FROM public.orders WHERE created_at < now() - interval '90 days' "
        "AND status NOT IN ('PENDING', 'OPEN', 'PARTIALLY_FILLED')), count(*), "
        "(SELECT count(*) FROM public.orders) FROM public.order_status_history",
    )[0]
    finished, changes, orders = before
    for _ in range(2):  # the second time finds nothing to do
        execute(monolith, ARCHIVE)
        left, archived, changes_left, changes_archived = execute(monolith, COUNTS)[0]
        assert (archived, left) == (finished, orders - finished)
        assert changes_left + changes_archived == changes
        assert 0 < changes_left < changes_archived
    assert execute(
        monolith,
        "SELECT count(*) FROM public.order_status_history_archive AS h WHERE NOT EXISTS "
        "(SELECT FROM public.orders_archive AS o WHERE o.id = h.order_id)",
    ) == [(0,)]


# ---------------------------------------------------------------------------------------- roles


def as_tenant(dsn: str, tenant: str, statement: str) -> list[tuple[Any, ...]]:
    """Run a statement as the application, for a tenant."""
    return execute(dsn, f"SELECT set_config('app.tenant_id', '{tenant}', false); {statement}")


def test_the_application_reads_and_writes_its_tenants_rows_alone(
    make_role: MakeRole, monolith: str
) -> None:
    app = make_role("app")
    for _ in range(2):
        execute(monolith, read_roles(app))
    theirs = role_dsn(monolith, app)
    counts = (
        "SELECT count(*), (SELECT count(*) FROM public.order_status_history) FROM public.orders"
    )
    alpha = execute(
        monolith,
        "SELECT count(*), (SELECT count(*) FROM public.order_status_history AS h JOIN "
        "public.orders AS o ON o.id = h.order_id WHERE o.metadata ->> 'tenant_id' = 'alpha') "
        "FROM public.orders WHERE metadata ->> 'tenant_id' = 'alpha'",
    )
    assert alpha[0][0] > 10
    assert as_tenant(theirs, "alpha", counts) == alpha
    assert execute(theirs, counts) == [(0, 0)]  # nobody's session

    new = (
        "INSERT INTO public.orders (client_id, market, side, type, size, remaining_size, metadata) "
        "VALUES ('{0}', 'X', 'BUY', 'MARKET', 1, 1, '{{\"tenant_id\": \"{0}\"}}')"
    )
    as_tenant(theirs, "alpha", new.format("alpha"))
    with pytest.raises(psycopg.errors.InsufficientPrivilege, match="row-level security"):
        as_tenant(theirs, "alpha", new.format("beta"))
    mine = "client_id = 'alpha'"
    as_tenant(theirs, "alpha", f"UPDATE public.orders SET status = 'OPEN' WHERE {mine}")  # noqa: S608
    alpha = as_tenant(theirs, "alpha", counts)
    as_tenant(theirs, "beta", "DELETE FROM public.orders WHERE client_id = 'alpha'")
    assert as_tenant(theirs, "alpha", counts) == alpha  # the other tenant's DELETE found nothing
    with pytest.raises(psycopg.errors.InsufficientPrivilege, match="permission denied"):
        as_tenant(theirs, "alpha", "UPDATE public.order_status_history SET reason = ''")
    ((orders, changes),) = alpha
    as_tenant(theirs, "alpha", f"DELETE FROM public.orders WHERE {mine}")  # noqa: S608
    assert as_tenant(theirs, "alpha", counts) == [(orders - 1, changes - 1)]


def test_the_application_role_is_made_where_it_is_missing(
    make_role: MakeRole, monolith: str
) -> None:
    role = make_role("absent")
    execute(monolith, f"DROP ROLE {role}")
    execute(monolith, read_roles(role))
    assert execute(
        monolith,
        f"SELECT rolcanlogin, rolsuper FROM pg_roles WHERE rolname = '{role}'",  # noqa: S608
    ) == [(True, False)]
