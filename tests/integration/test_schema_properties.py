"""Whatever the tables are like: what was copied and followed is identical, and validation agrees.

hypothesis draws the tables of both sides, their rows, and what is written after the copy. The
judge is a comparison that uses none of our own code; at last one row of the service is changed
behind the fence, and validation has to say what the judge says.
"""

# ruff: noqa: S608  the statements are the test's own

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import psycopg
import pytest
from hypothesis import HealthCheck, given, note, settings

from ordermigrate import migration
from ordermigrate.config import Config
from ordermigrate.digest import Algorithm
from tests.fix_orders import Hub, execute_behind_fence, identical
from tests.fix_postgres import SIDES, Side, TestServers, execute
from tests.integration.column_types import BUILT_IN, LEFT_OUT, XML, Kind, list_kinds, make_own
from tests.integration.drawn_tables import Column, Draw, Drawn, Family, identify
from tests.integration.ground import Heard, make_config

# How many families are drawn: ORDERMIGRATE_TEST_PROFILE chooses.
PROFILES = {"normal": 12, "matrix": 2, "thorough": 400}
PROFILE = settings(
    max_examples=PROFILES[os.environ.get("ORDERMIGRATE_TEST_PROFILE", "normal")],
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
# What any application's write may run into.
_IN_VAIN = (psycopg.errors.IntegrityError, psycopg.errors.DataError)


class Ground:
    """Databases to clone that have the types already, and what can be drawn on both servers."""

    def __init__(self, servers: TestServers) -> None:
        self.servers = servers
        self.templates: dict[Side, str] = {}
        for side in SIDES:
            self.templates[side] = servers.of(side).create_database(f"types_{side}")
            servers.of(side).run(make_own(is_reversed=side == "service"), self.templates[side])
        versions = [int(servers.of(side).run("SHOW server_version_num")[0][0]) for side in SIDES]
        has_xml = all(map(self._has_xml, SIDES))
        self.draw = Draw(list_kinds(has_xml=has_xml), min(versions) // 10000)

    def _has_xml(self, side: Side) -> bool:
        try:
            self.servers.of(side).run("SELECT '<a/>'::xml")
        except psycopg.errors.FeatureNotSupported:
            return False
        return True

    @contextmanager
    def databases(self) -> Iterator[Hub]:
        """Make a database on each side, to be dropped at the end."""
        with ExitStack() as stack:
            dsns = []
            for side in SIDES:
                server = self.servers.of(side)
                name = server.create_database(side, template=self.templates[side])
                stack.callback(server.drop_database, name)
                dsns.append(server.dsn(name))
            yield Hub(*dsns)


@pytest.fixture(scope="module")
def ground(postgres_servers: TestServers) -> Ground:
    return Ground(postgres_servers)


def create(hub: Hub, family: Family) -> None:
    """Make the tables on both sides, and fill the monolith's."""
    for number, dsn in enumerate((hub.monolith, hub.service)):
        ddl = [table.create(number, family.seed) for table in family.tables]
        ddl += [table.refer() for table in family.tables if table.references]
        execute(dsn, "; ".join(ddl))
    rows = [table.insert(row) for table in family.tables for row in table.rows]
    if rows:
        execute(hub.monolith, "; ".join(rows))


def write(dsn: str, family: Family) -> None:
    """Write what is drawn, each in a transaction of its own."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        for statement in family.changes:
            with contextlib.suppress(*_IN_VAIN), connection.transaction():
                connection.execute(statement.encode(), prepare=False)


def is_identical(hub: Hub, tables: tuple[Drawn, ...]) -> bool:
    return all(identical(hub.monolith, hub.service, table.sql) for table in tables)


async def follow(config: Config) -> None:
    await migration.sync(config, Heard(), asyncio.Event(), until_caught_up=True)


async def is_valid(config: Config) -> bool:
    done = await migration.validate(config, Heard(), algorithm=Algorithm.MD5, max_differences=5)
    return done.verdict.is_equal


def move(hub: Hub, family: Family) -> None:
    """Copy, write, follow and validate; the judge has its say after each."""
    create(hub, family)
    config = make_config(hub.monolith, hub.service, *(table.sql for table in family.tables))
    with asyncio.Runner() as runner:
        runner.run(migration.copy(config, Heard()))
        for table in family.tables:
            assert identical(hub.monolith, hub.service, table.sql)
        write(hub.monolith, family)
        runner.run(follow(config))
        for table in family.tables:
            assert identical(hub.monolith, hub.service, table.sql)
        assert runner.run(is_valid(config))
        if family.planted:
            with contextlib.suppress(*_IN_VAIN):
                execute_behind_fence(hub.service, family.planted)
            same = is_identical(hub, family.tables)
            assert runner.run(is_valid(config)) == same


@pytest.mark.slow
@pytest.mark.matrix
@pytest.mark.timeout(3600)
def test_tables_of_any_shape_arrive_follow_and_validate(ground: Ground) -> None:
    @PROFILE
    @given(family=ground.draw.families())
    def arrives(family: Family) -> None:
        with ground.databases() as hub:
            for number in (0, 1):
                for table in family.tables:
                    note(table.create(number, family.seed))
                    note(table.refer())
            move(hub, family)

    arrives()


def make_table(name: str, key: list[Column], others: list[Column]) -> Drawn:
    """Return a table in whose rows each value of each type is found."""
    columns = (*key, *others)
    many = max(len(column.kind.values) for column in columns)
    rows = tuple(
        {column.name: column.kind.values[n % len(column.kind.values)] for column in columns}
        for n in range(many)
    )
    return Drawn(name, columns, tuple(column.name for column in key), (), ((), ()), rows)


@pytest.mark.matrix
def test_columns_and_keys_of_every_type_arrive_follow_and_validate(ground: Ground) -> None:
    number = Column("id", Kind("integer", tuple(map(str, range(10)))))
    kinds = ground.draw.kinds
    keys = [kind for kind in kinds if kind.is_key]
    tables = [
        make_table("columns", [number], [Column(f"c{n}", kind) for n, kind in enumerate(kinds)]),
        *(
            make_table(f"key {each}", [Column(f"k{n}", kind) for n, kind in enumerate(some)], [])
            for each, some in enumerate([keys[n : n + 16] for n in range(0, len(keys), 16)])
        ),
    ]
    changes = [
        f"UPDATE {table.sql} SET {identify(column.name)} = {column.kind.values[-1]} "
        f"WHERE {table.find(table.rows[n % 2])}"
        for table in tables
        for n, column in enumerate(table.columns)
        if column is not number
    ]
    with ground.databases() as hub:
        move(hub, Family(tuple(tables), tuple(changes), "", 1))


def test_every_type_of_postgresql_is_drawn_or_known_to_be_nobodys_column(ground: Ground) -> None:
    listed = ground.servers.service.run(
        "SELECT typname::text FROM pg_catalog.pg_type WHERE typtype IN ('b', 'r', 'm') "
        "AND typcategory <> 'A' AND typnamespace = 'pg_catalog'::regnamespace"
    )
    names = ", ".join(f"'{name.replace(chr(39), '')}'::regtype" for name in (*BUILT_IN, XML))
    drawn = ground.servers.service.run(
        f"SELECT typname::text FROM pg_catalog.pg_type WHERE oid IN ({names})"
    )
    assert {name for (name,) in listed} - {name for (name,) in drawn} == LEFT_OUT & {
        name for (name,) in listed
    }
