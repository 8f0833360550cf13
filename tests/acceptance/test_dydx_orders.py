"""The dydx_orders family goes all the way: its history is moved as rows, written by one side."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from tests.acceptance.fix_running import catch_up, succeed
from tests.faults.fix_copying import await_true
from tests.fix_dydx import (
    ARCHIVE,
    FENCED,
    HISTORY,
    MONOLITH,
    ORDERS,
    Desk,
    add_orders,
    read_roles,
    require_single_changes,
    trading,
)
from tests.fix_pairs import MakeRole, Pair, RunHere, role_dsn
from tests.fix_postgres import MakeDatabase, execute

ROWS = 1_500
TENANTS = ("north", "south")
COUNTS = "SELECT count(*) FROM public.orders"
RECORDED = "SELECT old_status::text, new_status::text FROM public.order_status_history WHERE {}"


class Move:
    """The family between two databases, moved by the tables' owner, who is no superuser."""

    def __init__(self, pair: Pair, app: str) -> None:
        self.pair = pair
        self.app = app
        ends = [role_dsn(dsn, app) for dsn in (pair.monolith, pair.service)]
        self.desks = [Desk(tenant, ends) for tenant in TENANTS]

    def await_orders(self, place: int) -> None:
        """Wait until every desk has placed some more, on this side."""
        placed = [desk.placed for desk in self.desks]
        await_true(
            lambda: all(
                desk.placed > before + 5 and desk.place == place
                for desk, before in zip(self.desks, placed, strict=True)
            )
        )

    def require_same(self) -> None:
        """Nobody writes: both sides hold the same, and just what was acknowledged."""
        catch_up(self.pair)
        for table in (ORDERS, HISTORY):
            assert self.pair.compare(table)
        for dsn in (self.pair.monolith, self.pair.service):
            self.require_history(dsn)

    def require_history(self, dsn: str) -> None:
        """The history of one side is as the desks know it, and no change is in it twice."""
        require_single_changes(dsn)
        for desk in self.desks:
            desk.require_account(dsn)


@pytest.fixture
def move(
    make_role: MakeRole, make_database: MakeDatabase, run_here: RunHere, tmp_path: Path
) -> Move:
    """A monolith with orders, an empty service, and the configuration that `init` has written."""
    owner, app = make_role("owner"), make_role("app")
    monolith, service = make_database("monolith", script=MONOLITH), make_database("service")
    add_orders(monolith, orders=ROWS)
    execute(monolith, read_roles(app))
    for dsn in (monolith, service):
        name = conninfo_to_dict(dsn)["dbname"]
        execute(
            dsn,
            f"GRANT CREATE ON DATABASE {name} TO {owner}; GRANT CREATE ON SCHEMA public TO {owner}",
        )
    for table in ("orders", "order_status_history"):
        execute(monolith, f"ALTER TABLE public.{table} OWNER TO {owner}")

    assert run_here("init", "--family", "dydx_orders").exit_code == 0
    path = tmp_path / "ordermigrate.toml"
    text = path.read_text("utf-8")
    assert "cleanup_wait_hours = 24" in text
    path.write_text(text.replace("cleanup_wait_hours = 24", "cleanup_wait_hours = 0"), "utf-8")

    def keep(
        monolith: str | None = None,
        service: str | None = None,
        *,
        tables: Sequence[Mapping[str, object]] = (),
        limits: Mapping[str, object] | None = None,
    ) -> Path:
        return path

    return Move(Pair(monolith, service, run_here, keep).as_role(owner), app)


def test_the_family_goes_all_the_way_and_its_history_is_never_doubled(move: Move) -> None:
    pair, desks = move.pair, move.desks
    succeed(pair, "prepare")
    pair.on_service(read_roles(move.app))
    with trading(desks):
        move.await_orders(0)
        succeed(pair, "copy")
        pair.on_monolith(ARCHIVE)
        catch_up(pair)
        pair.validate()
        refuse(pair.service, ARCHIVE)
    assert pair.on_monolith("SELECT count(*) > 100 FROM public.orders_archive") == [(True,)]
    move.require_same()
    require_tenants_alone(move)

    for command, place, run in (
        ("cutover", 1, pair.on_service),
        ("rollback", 0, pair.on_monolith),
        ("cutover", 1, pair.on_service),
    ):
        with trading(desks):
            succeed(pair, command)
            move.await_orders(place)
            require_recorded_once(run)
        move.require_same()

    pair.validate()
    # The service has owned them for long.
    pair.on_service("UPDATE ordermigrate.run SET phase_since = now() - interval '60 days'")
    with trading(desks):
        succeed(pair, "cleanup", "--confirm", "public.orders")
        move.await_orders(1)
    move.require_history(pair.service)
    for name in ("orders", "order_status_history"):
        assert pair.on_monolith(f"SELECT to_regclass('public.{name}')") == [(None,)]
    assert pair.on_service("SELECT to_regnamespace('ordermigrate')") == [(None,)]
    require_recorded_once(pair.on_service)


def require_recorded_once(run: Callable[[str], list[tuple[object, ...]]]) -> None:
    """On the side that owns the tables the trigger writes down a change, and stamps the order."""
    ((found,),) = run(
        "UPDATE public.orders SET status = 'CANCELLED', cancelled_at = now() WHERE id = (SELECT id "
        "FROM public.orders WHERE status = 'OPEN' AND client_id LIKE 'desk-%' ORDER BY id LIMIT 1) "
        "RETURNING id"
    )
    last = RECORDED.format(f"order_id = '{found}' AND new_status = 'CANCELLED'")
    assert run(last) == [("OPEN", "CANCELLED")]
    stamped = f"SELECT updated_at = cancelled_at FROM public.orders WHERE id = '{found}'"  # noqa: S608
    assert run(stamped) == [(True,)]


def refuse(dsn: str, script: str) -> None:
    """The fence refuses a script, and nothing of it stays."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        with pytest.raises(psycopg.Error) as refused:
            connection.execute(script.encode(), prepare=False)
        assert refused.value.sqlstate == FENCED
    assert execute(dsn, "SELECT to_regclass('public.orders_archive')") == [(None,)]


def require_tenants_alone(move: Move) -> None:
    """A tenant sees its own rows alone, on either side; whoever moves the tables sees all."""
    for whole, theirs in (
        (move.pair.monolith, move.pair.monolith_dsn),
        (move.pair.service, move.pair.service_dsn),
    ):
        assert theirs is not None
        for desk in move.desks:
            own = role_dsn(whole, move.app)
            seen = f"SELECT set_config('app.tenant_id', '{desk.tenant}', false); {COUNTS}"
            assert execute(own, seen) == [(len(desk.account),)]
        assert execute(theirs, COUNTS) == execute(whole, COUNTS)
        assert execute(whole, "SELECT relrowsecurity FROM pg_class WHERE relname = 'orders'") == [
            (True,)
        ]
