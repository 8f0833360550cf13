"""Every statement of the program is one that a real server takes, on the side that runs it."""

from __future__ import annotations

from pathlib import Path

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict

from ordermigrate import queries
from ordermigrate.model import Side
from tests.fix_orders import Hub
from tests.fix_postgres import MakeDatabase, execute
from tests.integration import ground

MODULES = sorted(path.stem for path in (Path(queries.__file__).parent / "sql").glob("*.sql"))
BLOCKS = [(module, name) for module in MODULES for name in queries.load_blocks(module)]
# Control statements that only run inside a session; no server prepares them, so they are run.
UTILITY = ("CREATE", "ALTER", "DROP", "LOCK", "TRUNCATE", "COMMENT", "ANALYZE", "REINDEX")
SERVICE_ONLY = {"ledger", "indexes"}

ORDERS = sql.Identifier("public", "orders")
ORIGIN = sql.SQL("public.orders AS orders WHERE (true)")
PARTS: dict[str, sql.Composable] = {
    "table": ORDERS,
    "tables": ORDERS,
    "alias": sql.Identifier("orders"),
    "key": sql.SQL('"id"'),
    "ascending": sql.SQL('"id"'),
    "descending": sql.SQL('"id" DESC'),
    "where": sql.SQL("true"),
    "origin": ORIGIN,
    "status": sql.SQL('"status"'),
    "user": sql.SQL('"user_id"'),
    "created": sql.SQL('"created_at"'),
    "shown": sql.SQL('("id")::text, ("status")::text'),
    "key_image": sql.SQL('record_send(ROW("id"))'),
    "column": sql.Identifier("user_id"),
    "type": sql.SQL("integer"),
}
# What a statement needs of its surroundings, and the words that it is filled with.
SETTING: dict[str, tuple[str, dict[str, sql.Composable]]] = {
    "drop_constraint": ("", {"name": sql.Identifier("orders_pkey")}),
    "drop_index": ("", {"index": sql.Identifier("public", "spare")}),
    "attach_primary_key": (
        "ALTER TABLE public.orders DROP CONSTRAINT orders_pkey",
        {"name": sql.Identifier("orders_pkey"), "index": sql.Identifier("spare")},
    ),
    "attach_unique": (
        "",
        {"name": sql.Identifier("only_one"), "index": sql.Identifier("spare")},
    ),
    "add_constraint": (
        "",
        {"name": sql.Identifier("positive"), "definition": sql.SQL("CHECK (true)")},
    ),
    "set_replica_identity": ("", {"index": sql.Identifier("spare")}),
    "set_clustered": ("", {"index": sql.Identifier("spare")}),
    "comment_on_index": (
        "",
        {"index": sql.Identifier("public", "spare"), "comment": sql.Literal("it's")},
    ),
    "comment_on_constraint": (
        "",
        {"name": sql.Identifier("orders_pkey"), "comment": sql.Literal("it's")},
    ),
    "disable_trigger": ("", {"name": sql.Identifier("mine")}),
}
# CREATE DATABASE and DROP DATABASE take no transaction around them.
ALONE = {("story", "create_database"), ("story", "drop_database")}


@pytest.fixture
async def both(hub: Hub) -> Hub:
    """Both databases with our schema in them, an index and a trigger to work on."""
    spare = (
        "CREATE UNIQUE INDEX spare ON public.orders (id);"
        "CREATE FUNCTION public.nothing() RETURNS trigger LANGUAGE plpgsql AS "
        "'BEGIN RETURN NULL; END';"
        "CREATE TRIGGER mine AFTER INSERT ON public.orders EXECUTE FUNCTION public.nothing()"
    )
    execute(hub.monolith, spare)
    execute(hub.service, spare)
    async with (
        ground.opened(hub.monolith) as monolith,
        ground.opened(hub.service, Side.SERVICE) as service,
    ):
        await ground.install(monolith, service)
    return hub


def fill(module: str, name: str) -> bytes:
    """Return a block as a statement of the program's, on the family's table."""
    parts = PARTS | SETTING.get(name, ("", {}))[1]
    used = {key: part for key, part in parts.items() if f"{{{key}}}" in queries.get(module, name)}
    return queries.compose(module, name, **used).encode()


def test_every_block_is_taken_by_the_server_that_runs_it(both: Hub) -> None:
    refused: list[str] = []
    for module, name in BLOCKS:
        if (module, name) in ALONE:
            continue
        statement = fill(module, name)
        before, _ = SETTING.get(name, ("", {}))
        is_utility = statement.lstrip().upper().startswith(tuple(map(str.encode, UTILITY)))
        # The demo's own statements run on its monolith; scans and the rest on either side.
        dsns = [both.service] if module in SERVICE_ONLY else [both.monolith]
        if module not in SERVICE_ONLY | {"story"}:
            dsns.append(both.service)
        for dsn in dsns:
            # ROLLBACK at the end: nothing is changed for the next one.
            with psycopg.connect(dsn) as connection:
                connection.execute("SET search_path = ''")
                try:
                    if before:
                        connection.execute(before.encode())
                    connection.execute(statement if is_utility else b"PREPARE p AS " + statement)
                except psycopg.Error as error:
                    refused.append(f"{module}.{name}: {error}")
                connection.rollback()
    assert not refused


def test_a_database_of_the_demos_is_made_and_dropped(make_database: MakeDatabase) -> None:
    dsn = make_database("monolith")
    name = sql.Identifier(f"{conninfo_to_dict(dsn)['dbname']}_demo")
    for block in ("create_database", "drop_database"):
        execute(dsn, queries.compose("story", block, database=name))
