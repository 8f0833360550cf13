"""The judge of the acceptance tests sees what it has to see, and nothing else."""

from __future__ import annotations

import pytest

from tests.fix_orders import ORDERS, Hub, MakeHub, add_orders, identical
from tests.fix_postgres import execute


def copy_orders(hub: Hub) -> None:
    """Give the service the rows of the monolith: the generator makes the same ones anywhere."""
    with_users = (
        "CREATE TABLE public.users (id integer, email text, full_name text, created_at timestamp)"
    )
    execute(hub.service, with_users)
    add_orders(hub.service, orders=ORDERS)


def test_the_same_rows_in_another_order_are_identical(hub: Hub) -> None:
    copy_orders(hub)
    execute(hub.service, "CLUSTER public.orders USING idx_orders_symbol_status")
    compared = identical(hub.monolith, hub.service)
    assert compared
    assert compared.monolith_rows == compared.service_rows == ORDERS


FIRST = "WHERE id = (SELECT id FROM public.orders WHERE price IS NOT NULL ORDER BY id LIMIT 1)"


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE public.orders SET price = price + 0.00000001",
        "UPDATE public.orders SET symbol = symbol || ' '",
        "UPDATE public.orders SET failure_reason = CASE WHEN failure_reason IS NULL THEN '' END",
        "UPDATE public.orders SET created_at = created_at + interval '1 microsecond'",
        "DELETE FROM public.orders",
    ],
)
def test_one_row_that_differs_is_seen_and_shown(hub: Hub, change: str) -> None:
    copy_orders(hub)
    execute(hub.service, "ALTER TABLE public.orders DISABLE TRIGGER USER")
    execute(hub.service, f"{change} {FIRST}")
    compared = identical(hub.monolith, hub.service)
    assert not compared
    assert "only on the monolith" in repr(compared)


def test_a_table_of_other_columns_compares_through_expressions(make_hub: MakeHub) -> None:
    hub = make_hub(users=3, orders=10)
    execute(hub.service, "DROP TABLE public.orders")
    execute(hub.service, 'CREATE TABLE public."Orders" (id uuid, side text)')
    mapping = {"id": "id", "side": "upper(order_side)"}
    compared = identical(
        hub.monolith, hub.service, columns=mapping, service_table='public."Orders"'
    )
    assert not compared
    assert compared.service_rows == 0
