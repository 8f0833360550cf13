"""Every statement of the program is one that a real server takes, on the side that runs it."""

from __future__ import annotations

from pathlib import Path

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict

from ordermigrate import change_logs, quarantine, queries
from ordermigrate.control import Session
from ordermigrate.model import Side
from tests.fix_orders import Hub
from tests.fix_postgres import MakeDatabase, execute
from tests.integration import ground

MODULES = sorted(path.stem for path in (Path(queries.__file__).parent / "sql").glob("*.sql"))
BLOCKS = [(module, name) for module in MODULES for name in queries.load_blocks(module)]
# Control statements that only run inside a session; no server prepares them, so they are run.
UTILITY = (
    "CREATE",
    "ALTER",
    "DROP",
    "LOCK",
    "TRUNCATE",
    "COMMENT",
    "ANALYZE",
    "REINDEX",
    "GRANT",
    "REVOKE",
    "DO ",
    "SAVEPOINT",
    "RELEASE",
    "ROLLBACK",
)
SERVICE_ONLY = {"ledger", "indexes"}
LEDGER_READERS = {("readiness", "read_round_seconds")}

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
    "trigger": sql.Identifier("mine"),
    # Change logs and capture.
    "log": sql.Identifier("ordermigrate", "change_log_1"),
    "log_key": sql.SQL('"k1"'),
    "number": sql.Literal(1),
    "part": change_logs.before_block(3),
    "leaf": ORDERS,
    "casts": sql.SQL('given."k1"::uuid'),
    "arrays": sql.SQL("$1::text[]"),
    "old_key": sql.SQL('OLD."id"'),
    "new_key": sql.SQL('NEW."id"'),
    "same_key": sql.SQL('OLD."id" OPERATOR(pg_catalog.=) NEW."id"'),
    "table_oid": sql.Literal("1259"),
    "mark": sql.Literal(change_logs.TRUNCATED),
    "function": sql.Identifier("ordermigrate", "capture_1_row"),
    "old": sql.SQL('OLD."id", OLD."status"'),
    "new": sql.SQL('NEW."id", NEW."status"'),
    "resolved_key": sql.SQL('resolved."k1"'),
    "entries": sql.SQL("SELECT l.k1 AS id FROM ordermigrate.change_log_1 AS l"),
    "keys": sql.SQL("SELECT o.id FROM public.orders AS o WHERE o.id = changed.id"),
    # Traffic.
    "role": sql.SQL("CURRENT_USER"),
    # The schema.
    "expression": sql.SQL("upper(orders.status)"),
    # The fence.
    "hash": sql.Literal("\\x" + "ab" * 32),
    "owner": sql.Literal("monolith"),
    # Apply; what matches what is different from block to block.
    "stage": sql.Identifier("pg_temp", "keys"),
    "key_stage": sql.Identifier("pg_temp", "keys"),
    "row_stage": sql.Identifier("pg_temp", "rows"),
    "columns": sql.SQL('"id", "status"'),
    "staged": sql.SQL('s."id", s."status"'),
    "values": sql.SQL('one."id", one."status"'),
    "match": sql.SQL('t."id" = s."id"'),
    "stage_match": sql.SQL('s."id" = k."id"'),
    "other_match": sql.SQL('other."id" = s."id"'),
    "same_value": sql.SQL('t."status" = other."status"'),
    "differs": sql.SQL('ROW(t."status")::record OPERATOR(pg_catalog.*<>) ROW(s."status")::record'),
    "assignments": sql.SQL('"status" = s."status"'),
    "key_texts": sql.SQL('s."id"::text'),
    "digest": sql.SQL("md5('x')"),
    "table_name": sql.Literal("public.orders"),
    "is_since": sql.SQL('t."created_at" >= $1::timestamptz'),
    "row_key": sql.SQL("'id = ' || one.\"id\"::text"),
    # Refusals.
    "all_keys": sql.Identifier("pg_temp", "keys"),
    "staged_key": sql.SQL('s."id"'),
    "key_match": sql.SQL('t."id" = k."id"'),
    "refused_match": sql.SQL("s.\"id\" = (c.row_key ->> 'id')::uuid"),
    "refused_key": sql.SQL("(c.row_key ->> 'id')::uuid"),
    "names": sql.SQL("'id'"),
    "texts": sql.SQL('s."id"::text'),
    "name": sql.Literal("public.orders"),
    "again": sql.SQL("a.row_key = c.row_key"),
    "or_is_stranger": sql.SQL("OR false"),
    "one_key": sql.SQL("jsonb_object(ARRAY['id'], ARRAY[one.\"id\"::text])"),
    "staged_json": sql.SQL("jsonb_object(ARRAY['id'], ARRAY[s.\"id\"::text])"),
    "one_match": sql.SQL('t."id" = one."id"'),
    "one_values": sql.SQL('one."id", one."status"'),
    "target_key": sql.SQL('t."id"'),
    "is_to_go": sql.SQL("true"),
    "delete_gone": sql.SQL("DELETE FROM public.orders"),
    "delete_strangers": sql.SQL("DELETE FROM public.orders"),
    "make_way": sql.SQL("NULL"),
    "passes": sql.Literal(2),
    "delete_misfit": sql.SQL("NULL"),
    "update_one": sql.SQL('UPDATE public.orders AS t SET "status" = one."status"'),
    "undo": sql.SQL("RAISE EXCEPTION USING ERRCODE = 'OM002'"),
}
STAGES = (
    "CREATE TEMPORARY TABLE keys AS TABLE public.orders WITH NO DATA;"
    "CREATE TEMPORARY TABLE rows AS TABLE public.orders WITH NO DATA;"
    "ALTER TABLE rows ADD ordermigrate_digest text;"
) + "; ".join((queries.get("apply", "create_refused"), queries.get("refusals", "create_set_aside")))
MATCH_BY_KEYS: dict[str, sql.Composable] = {"match": sql.SQL('t."id" = k."id"')}
# What a statement needs of its surroundings, and the words that it is filled with.
SETTING: dict[str, tuple[str, dict[str, sql.Composable]]] = {
    "find_hypertables": (
        (
            "CREATE SCHEMA _timescaledb_catalog; "
            "CREATE TABLE _timescaledb_catalog.hypertable (schema_name name, table_name name)"
        ),
        {},
    ),
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
    "end_try": ("SAVEPOINT ordermigrate_try", {}),
    "undo_try": ("SAVEPOINT ordermigrate_try", {}),
    "insert_row": (
        "",
        {
            "columns": sql.SQL('"id", "status"'),
            "values": sql.SQL("(g.given ->> 'id')::uuid, g.given ->> 'status'"),
        },
    ),
    "has_row": (
        "",
        {
            "match": sql.SQL("t.\"id\" = (g.key ->> 'id')::uuid"),
            "is_same": sql.SQL("t.\"status\" IS NOT DISTINCT FROM (g.given ->> 'status')"),
        },
    ),
    "update_row": (
        "",
        {
            "match": sql.SQL("t.\"id\" = (g.key ->> 'id')::uuid"),
            "assignments": sql.SQL("\"status\" = g.given ->> 'status'"),
        },
    ),
    "delete_row": ("", {"match": sql.SQL("t.\"id\" = (g.key ->> 'id')::uuid")}),
    "count_logged": ("", {"same_key": sql.SQL("l.k1 = gen_random_uuid()")}),
    "forget_logged": ("", {"same_key": sql.SQL("(q.row_key ->> 'id')::uuid = l.k1")}),
    "create_part": (
        "CREATE TABLE public.parted (id integer) PARTITION BY RANGE (id)",
        {
            "table": sql.Identifier("public", "parted"),
            "part": sql.Identifier("public", "part"),
            "lower": sql.Literal(1),
            "upper": sql.Literal(2),
        },
    ),
    "give_part": ("", {"part": ORDERS, "owner": sql.SQL("CURRENT_USER")}),
    "find_homeless": (
        STAGES,
        {"column": sql.Identifier("created_at"), "taken": sql.SQL("created_at < now()")},
    ),
    "read_range": ("", {"column": sql.Identifier("created_at")}),
    "validate_constraint": (
        "ALTER TABLE public.orders ADD CONSTRAINT positive CHECK (true) NOT VALID",
        {"name": sql.Identifier("positive")},
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
    **{
        f"{what}_trigger{when}": ("", {"name": sql.Identifier("mine")})
        for what, when in (
            ("disable", ""),
            ("enable", ""),
            ("enable", "_always"),
            ("enable", "_on_replica"),
        )
    },
    "create_log": (
        "",
        {
            "log": sql.Identifier("ordermigrate", "change_log_2"),
            "columns": sql.SQL('"k1" pg_catalog.uuid, "k2" pg_catalog.text'),
        },
    ),
    "rename_table": ("", {"name": sql.Identifier("orders_ordermigrate_1")}),
    **{f"watch_{kind}": ("", {"trigger": sql.Identifier(kind)}) for kind in ("row", "update")},
    "watch_truncate": (
        "",
        {
            "trigger": sql.Identifier("gone"),
            "function": sql.Identifier("ordermigrate", "capture_1_row"),
        },
    ),
    "create_view": ("", {"query": sql.SQL("SELECT true AS c1")}),
    "evaluate": ("", {"origin": ORDERS, "expression": sql.SQL('upper("status")')}),
    "find_failing_row": (
        "",
        {
            "origin": ORDERS,
            "condition": sql.SQL("true"),
            "row_key": sql.SQL('"orders"."id"::text'),
            "names": sql.Literal("status"),
            "statements": sql.Literal("SELECT $1, $2"),
        },
    ),
    "create_row_trigger": ("", {"trigger": sql.Identifier("another")}),
    "create_truncate_trigger": ("", {"trigger": sql.Identifier("another")}),
    "create_key_stage": ("", {"key": sql.SQL('t."id"')}),
    "create_row_stage": ("", {"columns": sql.SQL('t."id", t."status"')}),
    **{
        block: (STAGES, {})
        for block in (
            "analyze_stages",
            "delete_strangers",
            "delete_movers",
            "delete_changed",
            "update_changed",
            "insert_missing",
            "find_unequal",
            "read_refused",
        )
    },
    **{
        block: (STAGES, {})
        for block in (
            "keep_staged",
            "lock_staged",
            "delete_gone",
            "count_new",
            "take_rows",
            "take_keys",
            "keep_refused",
            "close_search",
            "settle_quarantine",
            "clear_set_aside",
        )
    },
    **{
        block: (
            STAGES,
            # A record that a PREPARE knows of.
            {
                "one_match": sql.SQL('t."id" = $1::uuid'),
                "assignments": sql.SQL('"status" = $2::text'),
                "differs": sql.SQL("true"),
            },
        )
        for block in ("delete_misfit", "update_one")
    },
    "write_singly": (
        f"{STAGES}; INSERT INTO rows (id, status) VALUES (gen_random_uuid(), 'NEW')",  # noqa: S608
        {},
    ),
    "delete_keys": (STAGES, MATCH_BY_KEYS),
    "keep_gone": (STAGES, {"match": sql.SQL('s."id" = k."id"')}),
    # With a row to be looked at; an empty stage would not have its statements planned.
    "find_refused": (
        f"{STAGES}; INSERT INTO rows (id, status) VALUES (gen_random_uuid(), 'NEW')",  # noqa: S608
        {"match": sql.SQL('t."id" = one."id"')},
    ),
}
# CREATE DATABASE and DROP DATABASE take no transaction around them.
ALONE = {("story", "create_database"), ("story", "drop_database")}


@pytest.fixture
async def both(hub: Hub) -> Hub:
    """Both databases with our schema in them, an index, a trigger and a log to work on."""
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
        for session in (monolith, service):
            await install_functions(session)
            await quarantine.install(session)
    return hub


async def install_functions(session: Session) -> None:
    """Create what our triggers run and write to."""
    (orders,) = await ground.read_tables(session, "public.orders")
    async with session.transaction():
        await change_logs.create(session, orders)
        for module, name in (
            ("capture", "create_log_row"),
            ("fence", "create_counter"),
            ("fence", "create_refuse_write"),
            ("traffic", "create_traffic"),
            ("traffic", "create_traffic_in_force"),
            ("traffic", "create_reads_from_service"),
        ):
            await session.run(fill(module, name).decode())


def fill(module: str, name: str) -> bytes:
    """Return a block as a statement of the program's, on the family's table."""
    parts = PARTS | SETTING.get(name, ("", {}))[1]
    used = {key: part for key, part in parts.items() if f"{{{key}}}" in queries.get(module, name)}
    return queries.compose(module, name, **used).encode()


@pytest.mark.matrix
def test_every_block_is_taken_by_the_server_that_runs_it(both: Hub) -> None:
    refused: list[str] = []
    for module, name in BLOCKS:
        if (module, name) in ALONE:
            continue
        statement = fill(module, name)
        before, _ = SETTING.get(name, ("", {}))
        is_utility = statement.lstrip().upper().startswith(tuple(map(str.encode, UTILITY)))
        # The demo's own statements run on its monolith; scans and the rest on either side, as
        # does what belongs to the one side now and would to the other after a cutover.
        is_ledgers = module in SERVICE_ONLY or (module, name) in LEDGER_READERS
        dsns = [both.service] if is_ledgers else [both.monolith]
        if not is_ledgers and module != "story":
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
