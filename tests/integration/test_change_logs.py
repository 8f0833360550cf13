"""The change logs: keys in, keys out, and every entry is taken exactly once."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest
from psycopg import sql

from ordermigrate import change_logs
from ordermigrate.change_logs import COMPARE, TRUNCATED, ChangeLog
from ordermigrate.control import Session
from ordermigrate.errors import Refused
from ordermigrate.model import Side, Table, TableName
from tests.fix_postgres import execute
from tests.integration import ground
from tests.integration.ground import opened, read_tables

TABLES = """
CREATE DOMAIN public.code AS varchar(9) CHECK (VALUE <> '');
CREATE TABLE public.t (
    "k2" timestamptz, "Odd ""one" public.code, k1 integer, v text, PRIMARY KEY ("Odd ""one", k2)
);
CREATE TABLE public.plain (id bigint PRIMARY KEY);
"""
MOMENT = "2025-01-02 03:04:05.678901+00"


@dataclass
class Logged:
    """The monolith's database with two tables and their logs."""

    dsn: str
    session: Session
    table: Table
    log: ChangeLog
    plain: ChangeLog
    plain_table: Table

    async def measure(self) -> list[tuple[int, int]]:
        found = await change_logs.measure(self.session, [self.log, self.plain])
        return [(each.changes, each.marks) for each in found]


@pytest.fixture
async def logged(monolith_dsn: str, service_dsn: str) -> AsyncIterator[Logged]:
    execute(monolith_dsn, TABLES)
    async with opened(monolith_dsn) as session, opened(service_dsn, Side.SERVICE) as other:
        await ground.install(session, other)
        table, plain = await read_tables(session, "public.t", "public.plain")
        async with session.transaction():
            first = await change_logs.create(session, table)
            second = await change_logs.create(session, plain)
        yield Logged(monolith_dsn, session, table, first, second, plain)


async def test_a_database_without_capture_has_no_logs(monolith_dsn: str) -> None:
    async with opened(monolith_dsn) as session:
        assert await change_logs.read_all(session) == []
        assert await change_logs.measure(session, []) == []


async def test_a_table_keeps_its_log_however_often_it_is_created(logged: Logged) -> None:
    assert logged.log == ChangeLog(logged.log.number, "public.t", ('Odd "one', "k2"))
    assert logged.log.columns == ("k1", "k2")
    await change_logs.add_mark(logged.session, logged.log, COMPARE)
    async with logged.session.transaction():
        again = await change_logs.create(logged.session, logged.table)
    assert again == logged.log
    assert await change_logs.read_all(logged.session) == [logged.log, logged.plain]
    assert await logged.measure() == [(1, 1), (0, 0)]


async def test_a_log_takes_every_value_that_its_tables_key_may_ever_have(logged: Logged) -> None:
    """Of a domain or a length the log knows nothing: writers must not be refused because of it."""
    types = execute(
        logged.dsn,
        sql.SQL(
            "SELECT attname, format_type(atttypid, atttypmod) FROM pg_attribute "
            "WHERE attrelid = {}::regclass AND attname IN ('k1', 'k2') ORDER BY attnum"
        ).format(sql.Literal(logged.log.name.as_string(None))),
    )
    assert types == [("k1", "character varying"), ("k2", "timestamp with time zone")]


async def test_keys_given_as_texts_are_found_again_once_each(logged: Logged) -> None:
    keys = [["it's", MOMENT], ["ü,{}", MOMENT], ["it's", MOMENT]]
    await change_logs.add_keys(logged.session, logged.log, logged.table, keys)
    assert await logged.measure() == [(3, 0), (0, 0)]
    entries = logged.log.entries(logged.table, change_logs.ALL).as_string(None)
    rows = await logged.session.run(
        f'SELECT "Odd ""one" AS code, k2::text AS moment FROM ({entries}) AS e ORDER BY 1'  # noqa: S608
    )
    assert [(row.code, row.moment) for row in rows] == [
        ("it's", MOMENT.removesuffix(":00")),
        ("ü,{}", MOMENT.removesuffix(":00")),
    ]


async def test_a_text_that_is_no_value_of_the_keys_type_is_refused(logged: Logged) -> None:
    with pytest.raises(Refused):
        await change_logs.add_keys(
            logged.session, logged.log, logged.table, [["x", "yesterday evening"]]
        )
    assert await logged.measure() == [(0, 0), (0, 0)]


async def test_marks_are_taken_all_and_leave_the_keys(logged: Logged) -> None:
    session, log = logged.session, logged.log
    await change_logs.add_keys(session, log, logged.table, [["a", MOMENT]])
    for mark in (TRUNCATED, COMPARE, COMPARE):
        await change_logs.add_mark(session, log, mark)
    assert await logged.measure() == [(4, 3), (0, 0)]
    taken = await session.run(log.compose("take_marks"))
    assert sorted(row.mark for row in taken) == [COMPARE, COMPARE, TRUNCATED]
    assert await logged.measure() == [(1, 0), (0, 0)]


async def test_taking_all_changes_leaves_marks_and_what_the_snapshot_has_not_seen(
    logged: Logged,
) -> None:
    session, log = logged.session, logged.plain
    execute(logged.dsn, "INSERT INTO public.plain SELECT generate_series(1, 10)")
    await change_logs.add_rows_of_leaf(session, log, TableName("public", "plain"))
    await change_logs.add_mark(session, log, COMPARE)
    await session.run("BEGIN ISOLATION LEVEL REPEATABLE READ")
    assert await logged.measure() == [(0, 0), (11, 1)]
    execute(logged.dsn, f"INSERT INTO ordermigrate.change_log_{log.number} (k1) VALUES (99)")  # noqa: S608
    await session.run(log.compose("take_changes", part=change_logs.ALL))
    await session.run("COMMIT")
    left = execute(logged.dsn, f"SELECT k1, mark FROM ordermigrate.change_log_{log.number}")  # noqa: S608
    assert sorted(left, key=str) == [(99, None), (None, COMPARE)]


async def test_parts_of_a_log_are_disjoint_and_come_to_the_whole(logged: Logged) -> None:
    session, log = logged.session, logged.plain
    execute(logged.dsn, "INSERT INTO public.plain SELECT generate_series(1, 5000)")
    await change_logs.add_rows_of_leaf(session, log, TableName("public", "plain"))
    seen: set[int] = set()
    parts = 0
    while (await logged.measure())[1] != (0, 0):
        await session.run("BEGIN ISOLATION LEVEL REPEATABLE READ")
        (found,) = await session.run(log.compose("find_part"), 700)
        part = change_logs.before_block(found.end_block)
        keys = {
            row.id
            for row in await session.run(log.entries(logged.plain_table, part).as_string(None))
        }
        await session.run(log.compose("take_changes", part=part))
        await session.run("COMMIT")
        assert seen.isdisjoint(keys)
        assert keys
        seen |= keys
        parts += 1
        assert parts < 20
    assert seen == set(range(1, 5001))
    assert parts > 3


async def test_the_age_of_a_log_is_that_of_its_oldest_entry(logged: Logged) -> None:
    log = logged.plain
    statement = sql.SQL(
        "INSERT INTO {} (k1, changed_at) VALUES (1, now()), (2, now() - interval '1 hour')"
    ).format(log.name)
    execute(logged.dsn, statement)
    first, second = await change_logs.measure(logged.session, [logged.log, log])
    assert not first.age_seconds
    assert second.age_seconds == pytest.approx(3600, abs=60)
    # A clock that was put back is no reason for a negative lag.
    execute(logged.dsn, sql.SQL("UPDATE {} SET changed_at = '2999-01-01'").format(log.name))
    (_, second) = await change_logs.measure(logged.session, [logged.log, log])
    assert second.age_seconds == 0
