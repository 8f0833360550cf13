"""Row digests, computed by real servers: any two different rows differ, and nothing else does."""

# ruff: noqa: S608  the statements are the product's own, on tables of these tests

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from psycopg import RawCursor

from ordermigrate import digest
from ordermigrate.digest import PARTS, Algorithm, View
from ordermigrate.model import Side, TableMap, TableName
from tests.fix_postgres import TestServers
from tests.integration import ground

Row = tuple[Any, ...]
TYPES = ("text", "text", "numeric", "float8", "timestamptz", "text[]", "jsonb", "bytea", "date")
NAMES = tuple("abcdefghi")
CREATE = "CREATE TABLE public.t (id {key} PRIMARY KEY, {columns})"
# Settings of which each would change how a value looks as text.
PLAIN = (
    "SET TimeZone = 'UTC'; SET DateStyle = 'ISO, YMD'; SET extra_float_digits = 3;"
    "SET bytea_output = 'hex'; SET IntervalStyle = 'postgres'"
)
ODD = (
    "SET TimeZone = 'Asia/Kathmandu'; SET DateStyle = 'German, DMY'; SET extra_float_digits = -10;"
    "SET bytea_output = 'escape'; SET IntervalStyle = 'sql_standard'"
)

# Few letters, and those that quoting, joining and trimming trip over: near misses are likely.
LETTERS = st.sampled_from(
    ["", "a", "A", " ", ",", '"', "\\", "(", ")", "{", "}", "NULL", "é", "\uff45"]
)
TEXT = st.none() | st.lists(LETTERS, max_size=3).map("".join)
NUMERIC = st.none() | st.sampled_from(["0", "0.0", "-0", "1", "1.0", "1.00", "10", "1e-8", "NaN"])
FLOAT = st.none() | st.sampled_from(
    ["0", "-0", "1", "1.0000000000000002", "NaN", "Infinity", "-Infinity", "5e-324"]
)
TIME = st.none() | st.sampled_from(
    [
        "2024-03-04 00:00:00+00",
        "2024-04-03 00:00:00+00",
        "2024-03-04 00:00:00.000001+00",
        "2024-03-04 05:45:00+05:45",
        "infinity",
        "0044-03-15 12:00:00+00 BC",
    ]
)
ARRAY = st.none() | st.lists(TEXT, max_size=3)
JSON = st.none() | st.sampled_from(
    [None, {}, [], "", 0, {"a": None}, {"a": "null"}, [1], [[1]], "1"]
).map(json.dumps)
JSON_EXACT = st.sampled_from(['{"a": 1.0}', '{"a": 1}', '{"a": 1.00}'])
BYTES = st.none() | st.sampled_from([b"", b"\0", b"\0\0", b"\\x", b"a", b"\xff"])
DATE = st.none() | st.sampled_from(["2024-03-04", "2024-04-03", "-infinity"])
ROWS = st.tuples(TEXT, TEXT, NUMERIC, FLOAT, TIME, ARRAY, JSON | JSON_EXACT, BYTES, DATE)


@dataclass
class Scale:
    """A database with a table t, and the connection that weighs its rows."""

    connection: psycopg.Connection[Any]

    def run(self, statement: str, *values: object) -> list[Any]:
        cursor = self.connection.execute(statement.encode(), values or None)
        return cursor.fetchall() if cursor.description else []

    def fill(self, rows: Sequence[Row]) -> None:
        """Make these the rows of t, with 1, 2, 3... as their keys."""
        self.run("DELETE FROM public.t")
        values = ", ".join(f"${n}::{name}" for n, name in enumerate(TYPES, 2))
        columns = ", ".join(NAMES)
        for number, row in enumerate(rows, 1):
            self.run(f"INSERT INTO public.t (id, {columns}) VALUES ($1, {values})", number, *row)

    def texts(self) -> list[Row]:
        """Return every row's columns as text, by key: that tells any two values apart."""
        self.connection.execute(PLAIN)
        columns = ", ".join(f"{name}::text" for name in NAMES)
        return self.run(f"SELECT {columns} FROM public.t ORDER BY id")

    def weigh(self, view: View) -> list[tuple[int, int]]:
        """Return every row's digest, by key."""
        rows = self.run(digest.rows_query(view), list(range(PARTS)))
        return [(high, low) for _, (_,), high, low in sorted(rows, key=lambda row: int(row[1][0]))]


def view_of(algorithm: Algorithm, columns: Sequence[str] = NAMES, key: str = "integer") -> View:
    """Return a view of t's columns without the key: here the contents alone are weighed."""
    return View(
        table=TableName("public", "t"),
        alias="t",
        where="true",
        columns=tuple((name, f'"{name}"') for name in columns),
        key=(("id", '"id"', key),),
        algorithm=algorithm,
        is_same_byte_order=True,
    )


def columns_of(order: Sequence[str], collation: str = "") -> str:
    types = dict(zip(NAMES, TYPES, strict=True))
    return ", ".join(
        f"{name} {types[name]}{collation if types[name] == 'text' else ''}" for name in order
    )


@pytest.fixture(scope="module")
def scales(postgres_servers: TestServers) -> Iterator[tuple[Scale, Scale]]:
    """One table on two servers: other physical order, collation, encoding, session settings."""
    made = []
    for side, order, collation, options in (
        ("monolith", NAMES, "", ""),
        ("service", NAMES[::-1], ' COLLATE "POSIX"', "ENCODING 'EUC_JP' LOCALE 'C'"),
    ):
        server = postgres_servers.monolith if side == "monolith" else postgres_servers.service
        name = server.create_database(f"digest_{side}", options=options)
        connection = psycopg.connect(
            server.dsn(name), autocommit=True, cursor_factory=RawCursor, client_encoding="UTF8"
        )
        made.append((server, name, connection))
        columns = columns_of(order, collation)
        connection.execute(CREATE.format(key="integer", columns=columns).encode())
    yield Scale(made[0][2]), Scale(made[1][2])
    for server, name, connection in made:
        connection.close()
        server.drop_database(name)


LAW = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
algorithms = pytest.mark.parametrize("algorithm", Algorithm)
NULLS: Row = (None,) * len(TYPES)


@algorithms
@given(rows=st.lists(ROWS, min_size=2, max_size=6))
@example(rows=[("a", "", *NULLS[2:]), ("", "a", *NULLS[2:]), ("a", None, *NULLS[2:]), NULLS])
@example(rows=[(*NULLS[:2], scale, *NULLS[3:]) for scale in ("1", "1.0", "1.00", "NaN")])
@example(rows=[(*NULLS[:3], number, *NULLS[4:]) for number in ("0", "-0", "NaN", "Infinity")])
@example(
    rows=[(*NULLS[:5], array, *NULLS[6:]) for array in ([], [None], [""], ["a,b"], ["a", "b"])]
)
@LAW
def test_two_rows_have_the_same_digest_exactly_when_they_hold_the_same(
    scales: tuple[Scale, Scale], algorithm: Algorithm, rows: list[Row]
) -> None:
    scale, _ = scales
    scale.fill(rows)
    digests, texts = scale.weigh(view_of(algorithm)), scale.texts()
    assert len(digests) == len(texts) == len(rows)
    for one in range(len(rows)):
        for other in range(one):
            same = texts[one] == texts[other]
            assert (digests[one] == digests[other]) == same, (texts[one], texts[other])


@algorithms
@given(rows=st.lists(ROWS, min_size=1, max_size=6))
@settings(LAW, max_examples=80)
def test_a_digest_does_not_depend_on_what_does_not_belong_to_the_row(
    scales: tuple[Scale, Scale], algorithm: Algorithm, rows: list[Row]
) -> None:
    here, there = scales
    here.fill(rows)
    there.fill(rows)
    here.connection.execute(PLAIN)
    there.connection.execute(ODD)
    assert here.weigh(view_of(algorithm)) == there.weigh(view_of(algorithm))
    for scale in scales:
        scale.connection.execute(PLAIN)


@algorithms
@given(rows=st.lists(ROWS, min_size=1, max_size=4), times=st.integers(2, 4))
@settings(LAW, max_examples=50)
def test_the_sums_of_parts_are_those_of_their_rows_and_equal_rows_never_cancel(
    scales: tuple[Scale, Scale], algorithm: Algorithm, rows: list[Row], times: int
) -> None:
    scale, _ = scales
    view = view_of(algorithm)
    scale.fill(rows * times)
    # A key of two values: many rows share a part.
    crowded = replace(view, key=(("id", '("id" % 2)', "integer"),))
    parts = scale.run(digest.parts_query(crowded))
    assert len(parts) <= 2
    single = scale.weigh(view)
    assert sum(count for _, count, _, _ in parts) == len(rows) * times
    for half, column in ((0, 2), (1, 3)):
        total = sum(int(part[column]) for part in parts)
        assert total == sum(row[half] for row in single)
        assert total == times * sum(row[half] for row in single[: len(rows)])
    assert all(0 <= part < PARTS for part, *_ in parts)


def test_sums_are_exact_beyond_sixty_four_bits(scales: tuple[Scale, Scale]) -> None:
    scale, _ = scales
    scale.fill([("x", *NULLS[1:])])
    scale.run("INSERT INTO public.t (id, a) SELECT g, 'x' FROM generate_series(2, 2000) AS g")
    ((high, low),) = set(scale.weigh(view_of(Algorithm.MD5)))
    parts = scale.run(digest.parts_query(view_of(Algorithm.MD5)))
    assert sum(int(part[2]) for part in parts) == 2000 * high
    assert sum(int(part[3]) for part in parts) == 2000 * low
    assert max(abs(2000 * high), abs(2000 * low)) > 2**63


# ------------------------------------------------------------------------------------ real maps

KEYS: list[tuple[str, str, str]] = [
    ("integer", "integer", "g"),
    ("smallint", "integer", "g"),
    ("integer", "bigint", "g"),
    ("bigint", "numeric(19,0)", "g * 1000000000::bigint"),
    ("uuid", "uuid", "md5(g::text)::uuid"),
    ("uuid", "text", "md5(g::text)::uuid"),
    ("text", "text", "'é' || g"),
    ("character varying(20)", "text", "'k ' || g"),
    ("numeric(9,2)", "numeric(9,2)", "g / 4.0"),
    ("timestamptz", "timestamptz", "'2024-01-01Z'::timestamptz + g * interval '1 us'"),
    ("date", "date", "'2024-01-01'::date + g"),
    ("bytea", "bytea", "convert_to('k' || g, 'UTF8')"),
]


@dataclass(frozen=True)
class Pair:
    monolith: str
    service: str

    def run(self, on_monolith: str, on_service: str | None = None) -> None:
        for dsn, script in ((self.monolith, on_monolith), (self.service, on_service)):
            with psycopg.connect(dsn, autocommit=True) as connection:
                connection.execute((script or on_monolith).encode())

    def map(self, **keys: object) -> TableMap:
        async def read() -> TableMap:
            async with (
                ground.opened(self.monolith) as monolith,
                ground.opened(self.service, Side.SERVICE) as service,
            ):
                (found,) = await ground.read_maps(monolith, service, {"name": "public.t", **keys})
                return found

        return asyncio.run(read())


@pytest.fixture
def pair(monolith_dsn: str, service_dsn: str) -> Pair:
    return Pair(monolith_dsn, service_dsn)


def ask(dsn: str, statement: str, *values: object) -> list[Any]:
    with psycopg.connect(
        dsn, autocommit=True, cursor_factory=RawCursor, client_encoding="UTF8"
    ) as connection:
        return connection.execute(statement.encode(), values or None).fetchall()


def parts_of(dsn: str, view: View) -> dict[str, int]:
    """Return the part of every key."""
    key = view.key[0][1]
    return dict(ask(dsn, f"SELECT ({key})::text, {view.part} FROM {view.origin}"))


@pytest.mark.matrix
@pytest.mark.parametrize("is_same_byte_order", [True, False])
def test_every_key_falls_into_the_same_part_on_both_sides(
    pair: Pair, *, is_same_byte_order: bool
) -> None:
    for old, new, value in KEYS:
        create = "DROP TABLE IF EXISTS public.t; CREATE TABLE public.t (id {} PRIMARY KEY);"
        insert = f"INSERT INTO public.t SELECT {value} FROM generate_series(1, 300) AS g"
        pair.run(create.format(old) + insert, create.format(new) + insert)
        table = pair.map()
        views = [
            make(table, Algorithm.MD5, is_same_byte_order=is_same_byte_order)
            for make in (digest.source_view, digest.target_view)
        ]
        source, target = parts_of(pair.monolith, views[0]), parts_of(pair.service, views[1])
        assert source == target, (old, new)
        assert len(source) == 300
        # They are spread: 300 keys in 1024 parts meet now and then, not more.
        assert len(set(source.values())) > 200, (old, new)
        sums = [
            sorted(ask(dsn, digest.parts_query(view)))
            for dsn, view in zip((pair.monolith, pair.service), views, strict=True)
        ]
        assert sums[0] == sums[1], (old, new)


def test_a_composite_key_falls_into_the_same_part_whatever_its_physical_order(pair: Pair) -> None:
    insert = "INSERT INTO public.t (a, b) SELECT 'x' || g, g FROM generate_series(1, 300) AS g"
    pair.run(
        f"CREATE TABLE public.t (a text, b integer, PRIMARY KEY (a, b)); {insert}",
        f"CREATE TABLE public.t (b bigint, a text, PRIMARY KEY (b, a)); {insert}",
    )
    table = pair.map()
    source = digest.source_view(table, Algorithm.MD5, is_same_byte_order=True)
    target = digest.target_view(table, Algorithm.MD5, is_same_byte_order=True)
    assert parts_of(pair.monolith, source) == parts_of(pair.service, target)


WIDE = """
CREATE TYPE public.mood AS ENUM ({labels});
CREATE DOMAIN public.cents AS {domain};
CREATE TABLE public.t (
    id integer PRIMARY KEY, mood public.mood, cents public.cents, shown {shown},
    moods public.mood[], span tstzrange, at interval, bits bit(3), c character(4), j json,
    words tsvector, mac macaddr, net inet, place point
);
INSERT INTO public.t VALUES (
    1, 'sad', 5, 'sad', '{{sad,glad}}', '[2024-01-01Z,)', '1 mon 30 days', '101', 'ab',
    '{{"a":  1.0}}', 'a fat cat', '08:00:2b:01:02:03', '::1/128', '(1,-0)'
)
"""


@pytest.mark.matrix
@algorithms
def test_types_whose_binary_form_names_objects_of_one_database_compare_by_their_text(
    pair: Pair, algorithm: Algorithm
) -> None:
    # The enum's labels have other OIDs there; a column is an enum here and text there.
    service = "CREATE TYPE public.another AS ENUM ('x');" + WIDE
    pair.run(
        WIDE.format(labels="'sad', 'glad'", domain="integer", shown="public.mood"),
        service.format(labels="'glad', 'sad'", domain="integer", shown="character varying"),
    )
    table = pair.map()
    source = digest.source_view(table, algorithm, is_same_byte_order=True)
    target = digest.target_view(table, algorithm, is_same_byte_order=True)
    assert ask(pair.monolith, digest.parts_query(source)) == ask(
        pair.service, digest.parts_query(target)
    )


def test_a_frozen_column_is_left_out_and_a_where_holds_on_the_source_alone(pair: Pair) -> None:
    create = "CREATE TABLE public.t (id integer PRIMARY KEY, email text);"
    pair.run(
        create + "INSERT INTO public.t VALUES (1, 'a'), (2, 'b')",
        create + "INSERT INTO public.t VALUES (1, 'another')",
    )
    table = pair.map(
        where="id < 2 -- only one", columns={"email": {"sql": "email", "frozen": True}}
    )
    source = digest.source_view(table, Algorithm.MD5, is_same_byte_order=True)
    target = digest.target_view(table, Algorithm.MD5, is_same_byte_order=True)
    assert [name for name, _ in source.columns] == ["id"]
    assert ask(pair.monolith, digest.parts_query(source)) == ask(
        pair.service, digest.parts_query(target)
    )


@pytest.mark.matrix
def test_the_columns_that_differ_are_shown_by_key(pair: Pair) -> None:
    create = 'CREATE TABLE public.t ("k 1" text, k2 integer, v numeric, PRIMARY KEY ("k 1", k2));'
    pair.run(
        create + "INSERT INTO public.t VALUES ('a,\"b', 1, 1.0), ('c', 2, NULL), ('d', 3, 3)",
        create + "INSERT INTO public.t VALUES ('a,\"b', 1, 1.00), ('c', 2, 0), ('d', 3, 3)",
    )
    table = pair.map()
    shown = []
    for dsn, make in ((pair.monolith, digest.source_view), (pair.service, digest.target_view)):
        view = make(table, Algorithm.MD5, is_same_byte_order=True)
        rows = ask(dsn, digest.columns_query(view), ['a,"b', "c"], ["1", "2"])
        shown.append({tuple(key): (texts, images) for key, texts, images in rows})
    assert shown[0].keys() == shown[1].keys() == {('a,"b', "1"), ("c", "2")}
    assert shown[0]['a,"b', "1"][0] == ['a,"b', "1", "1.0"]
    assert shown[1]['a,"b', "1"][0] == ['a,"b', "1", "1.00"]
    for key in shown[0]:
        mine, theirs = shown[0][key][1], shown[1][key][1]
        assert [a == b for a, b in zip(mine, theirs, strict=True)] == [True, True, False]


def test_md5_is_used_for_md5_alone(pair: Pair) -> None:
    # A server in FIPS mode refuses it, and the parts and the shown columns have to work there too.
    pair.run("CREATE TABLE public.t (id text PRIMARY KEY)")
    view = digest.source_view(pair.map(), Algorithm.SHA256, is_same_byte_order=False)
    for other in (view, replace(view, algorithm=Algorithm.RECORD_HASH)):
        for query in (digest.parts_query, digest.rows_query, digest.columns_query):
            assert "md5" not in query(other)
