"""Apply: rounds bring rows of any shape to what they are on the monolith, or say why they cannot.

Each shape goes through the commands: copy, then writes, then sync, after each of them. What is
compared in the end is what COPY writes on both sides, by the tests' own judge.
"""

# ruff: noqa: S608  the statements are the test's own, on tables of its own

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass

import pytest

from ordermigrate import following, rounds, sync
from ordermigrate.following import Footing
from ordermigrate.rounds import PartCollides
from tests.fix_orders import identical
from tests.fix_pairs import THING, MakePair, Pair, assert_refused
from tests.integration.ground import Heard, make_config


@dataclass(frozen=True)
class Shape:
    """A table, the writes it is to go through, and how the service's differs if it does."""

    monolith: str
    writes: Sequence[str]
    service: str | None = None
    tables: Sequence[Mapping[str, object]] = (THING,)
    columns: Mapping[str, str] | None = None  # the service's columns by the monolith's expressions
    where: str = "true"
    also: str = ""  # on the service alone, after both have the script


def made(make_pair: MakePair, shape: Shape) -> Pair:
    pair = make_pair(shape.monolith, shape.service, tables=shape.tables)
    for table in shape.tables:
        pair.on_service(f"TRUNCATE {table.get('to', table['name'])} CASCADE")
    if shape.also:
        pair.on_service(shape.also)
    pair.copy()
    return pair


def follow(pair: Pair) -> None:
    done = pair.run("sync", "--until-caught-up", "--json")
    assert done.exit_code == 0, done.stderr
    assert done.json["outcome"] == "caught_up"


def assert_equal(pair: Pair, shape: Shape) -> None:
    for table in shape.tables:
        name = str(table["name"])
        source = name if shape.where == "true" else f"{name} WHERE {shape.where}"
        found = identical(
            pair.monolith,
            pair.service,
            source,
            shape.columns,
            service_table=str(table.get("to", name)),
        )
        assert found


def go_through(make_pair: MakePair, shape: Shape) -> Pair:
    """Copy, and let every write follow in a round of its own; then all of them in one more."""
    pair = made(make_pair, shape)
    assert_equal(pair, shape)
    for write in shape.writes:
        pair.on_monolith(write)
        follow(pair)
        assert_equal(pair, shape)
    return pair


# ------------------------------------------------------------------------------ kinds of columns


VALUES = {
    "json": ("json", ["'{\"a\":1}'", "'{\"a\": 1}'", "'null'", "NULL"]),
    "jsonb": ("jsonb", ["'{\"a\":1.0}'", "'{\"a\":1.00}'", "'null'", "NULL"]),
    "point": ("point", ["'(1,1)'", "'(1,1.00000000001)'", "'(NaN,0)'", "NULL"]),
    "numeric": ("numeric", ["1.0", "1.00", "'NaN'", "NULL"]),
    "fixed_numeric": ("numeric(20,4)", ["1.0", "-1", "0", "1"]),
    "float8": ("double precision", ["0", "'-0'", "'NaN'", "'-Infinity'"]),
    "float4": ("real", ["0.1", "'-0'", "1e-40", "NULL"]),
    "large": ("text", ["repeat('x', 3000000)", "repeat('y', 3000000)", "''", "NULL"]),
    "incompressible": (
        "bytea",
        [
            "(SELECT string_agg(sha512(g::text::bytea), '') FROM generate_series(1, 9000) AS g)",
            "(SELECT string_agg(sha512(g::text::bytea), '') FROM generate_series(2, 9001) AS g)",
            "''",
            "NULL",
        ],
    ),
    "texts": ("text[]", ["'{a,NULL,\"NULL\",\"\"}'", "'[0:1]={a,b}'", "'{}'", "'{{a},{b}}'"]),
    "mood": ("public.mood", ["'good'", "'so so'", "'bad'", "NULL"]),
    "moods": ("public.mood[]", ["'{good}'", "'{}'", "'{bad,NULL}'", "NULL"]),
    "cents": ("public.cents", ["1", "2", "0", "7"]),
    "pair": ("public.two", ["ROW(1, 'a')", "ROW(NULL, NULL)", "ROW(1, '')", "NULL"]),
    "at": ("timestamptz", ["'2024-01-01'", "'infinity'", "'0044-03-15 BC'", "NULL"]),
    "span": ("interval", ["'24:00'", "'1 day'", "'-1 mons +30 days'", "NULL"]),
    "times": ("tstzrange", ["'[2024-01-01,)'", "'empty'", "'(,)'", "NULL"]),
    "fixed": ("character(5)", ["'a'", "'a b'", "''", "NULL"]),
    "bits": ("bit varying", ["B'1'", "B'01'", "B''", "NULL"]),
    "document": ("xml", ["'<a/>'", "'<a></a>'", "'<b/>'", "NULL"]),
    "words": ("tsvector", ["'a b'", "'a:1 b:2'", "''", "NULL"]),
    "network": ("inet", ["'10.0.0.1'", "'10.0.0.1/8'", "'::1'", "NULL"]),
    "odd text": ("text", [r"E'\t\n\r\\.'", r"E'\\N'", "'ü€😀'", "' '"]),
}  # fmt: skip
TYPES = """
CREATE TYPE public.mood AS ENUM ('good', 'so so', 'bad');
CREATE DOMAIN public.cents AS bigint NOT NULL CHECK (VALUE >= 0);
CREATE TYPE public.two AS (one integer, "Two" text);
"""


def test_every_change_of_an_image_arrives(make_pair: MakePair) -> None:
    columns = ", ".join(f'"{name}" {kind}' for name, (kind, _) in VALUES.items())
    rows = [", ".join(values[each] for _, values in VALUES.values()) for each in range(4)]
    shape = Shape(
        f"{TYPES} CREATE TABLE public.thing (id integer PRIMARY KEY, {columns});"
        f"INSERT INTO public.thing VALUES (1, {rows[0]}), (2, {rows[1]})",
        (
            *(
                f'UPDATE public.thing SET "{name}" = {values[1]} WHERE id = 1; '
                f'UPDATE public.thing SET "{name}" = {values[0]} WHERE id = 2'
                for name, (_, values) in VALUES.items()
                if name in {"json", "jsonb", "point", "numeric", "float8", "span", "texts"}
            ),
            f"INSERT INTO public.thing VALUES (3, {rows[2]}), (4, {rows[3]})",
            "; ".join(
                f'UPDATE public.thing SET "{name}" = {value} WHERE id = {row}'
                for name, (_, values) in VALUES.items()
                for row, value in ((1, values[2]), (2, values[3]), (3, values[0]), (4, values[1]))
            ),
            "DELETE FROM public.thing WHERE id IN (1, 3)",
        ),
    )
    go_through(make_pair, shape).validate()


# ------------------------------------------------------------------------------- shapes of tables


PLAIN = "CREATE TABLE public.thing (id integer PRIMARY KEY, word text, slot integer);"
ROWS = "INSERT INTO public.thing SELECT g, 'w' || g, g FROM generate_series(1, 6) AS g;"
SLOTS = """
CREATE TABLE public.thing (id integer PRIMARY KEY, a integer, b integer, note text);
INSERT INTO public.thing SELECT g, g, 1, 'n' || g FROM generate_series(1, 6) AS g;
"""
# Between rows that all stay: swapped, passed round, given up and taken, freed by a deletion.
SWAP = """
UPDATE public.thing SET a = NULL WHERE id = 1; UPDATE public.thing SET a = 1 WHERE id = 2;
UPDATE public.thing SET a = 2 WHERE id = 1
"""
TURN = """
UPDATE public.thing SET a = NULL WHERE id = 4; UPDATE public.thing SET a = 4 WHERE id = 5;
UPDATE public.thing SET a = 5 WHERE id = 6; UPDATE public.thing SET a = 6 WHERE id = 4
"""
BACK = """
DELETE FROM public.thing;
INSERT INTO public.thing SELECT g, 7 - g, 1, 'back' FROM generate_series(1, 6) AS g
"""
SHIFT = """
UPDATE public.thing SET a = 100 WHERE id = 1; UPDATE public.thing SET a = 6 WHERE id = 2;
UPDATE public.thing SET a = 5 WHERE id = 3; UPDATE public.thing SET a = NULL WHERE id = 4
"""
REPLACE = """
DELETE FROM public.thing WHERE id = 5; INSERT INTO public.thing VALUES (20, 2, 1, 'new');
DELETE FROM public.thing WHERE id = 20; INSERT INTO public.thing VALUES (21, 2, 1, 'newer');
UPDATE public.thing SET a = 3 WHERE id = 21; INSERT INTO public.thing VALUES (22, 2, 1, 'newest')
"""
MOVES = (SWAP, TURN, BACK, SHIFT, REPLACE)


def _slots(more: str, writes: Sequence[str] = MOVES) -> Shape:
    return Shape(SLOTS + more, writes)


SHAPES: Mapping[str, Shape] = {
    "other order of columns, dropped ones": Shape(
        "CREATE TABLE public.thing (gone text, word text, n numeric, id bigint PRIMARY"
        " KEY, old text);"
        "ALTER TABLE public.thing DROP COLUMN gone, DROP COLUMN old;"
        "INSERT INTO public.thing SELECT 'w' || g, g, g FROM generate_series(1, 5) AS g",
        (
            (
                "UPDATE public.thing SET word = 'x' WHERE id < 3; DELETE FROM public.thing WHERE"
                " id = 4"
            ),
            "INSERT INTO public.thing VALUES ('y', 1.50, 10), (NULL, NULL, 11)",
            "UPDATE public.thing SET id = id + 1000",
        ),
        "CREATE TABLE public.thing (id bigint, x int, n numeric, word text, PRIMARY KEY (id));"
        "ALTER TABLE public.thing DROP COLUMN x",
    ),
    "keys that are equal and look different": Shape(
        "CREATE TABLE public.thing (a numeric, b interval, w text, PRIMARY KEY (a, b));"
        "INSERT INTO public.thing VALUES (1.0, '1 day', 'x'), (2, '1 mon', 'y')",
        (
            "UPDATE public.thing SET a = 1.00 WHERE a = 1",
            "UPDATE public.thing SET b = '24:00' WHERE a = 1; UPDATE public.thing SET w = NULL",
            "DELETE FROM public.thing WHERE a = 1; INSERT INTO public.thing VALUES (1.000, '24 h')",
            "UPDATE public.thing SET a = a + 1.00",
        ),
    ),
    "generated columns": Shape(
        "CREATE TABLE public.thing (id integer PRIMARY KEY, n integer,"
        " twice integer GENERATED ALWAYS AS (n * 2) STORED,"
        " word text GENERATED ALWAYS AS ('w' || n % 10) STORED);"
        "INSERT INTO public.thing SELECT g, g FROM generate_series(1, 5) AS g",
        (
            "UPDATE public.thing SET n = n + 10",
            "UPDATE public.thing SET n = NULL WHERE id = 1; INSERT INTO public.thing VALUES (9, 9)",
        ),
    ),
    "generated on the service only": Shape(
        PLAIN + ROWS,
        ("UPDATE public.thing SET word = 'x'", "INSERT INTO public.thing VALUES (9, 'y', 9)"),
        "CREATE TABLE public.thing (id integer PRIMARY KEY, word text, slot integer,"
        " loud text GENERATED ALWAYS AS (upper(word)) STORED)",
    ),
    "computed into a plain column": Shape(
        "CREATE TABLE public.thing (id integer PRIMARY KEY, n integer,"
        " twice integer GENERATED ALWAYS AS (n * 2) STORED);"
        "INSERT INTO public.thing SELECT g, g FROM generate_series(1, 5) AS g",
        ("UPDATE public.thing SET n = n + 10 WHERE id < 3", "UPDATE public.thing SET n = NULL"),
        "CREATE TABLE public.thing (id integer PRIMARY KEY, n integer, twice integer)",
    ),
    "unique generated column": Shape(
        "CREATE TABLE public.thing (id integer PRIMARY KEY, a integer, b integer, note text,"
        " twice integer GENERATED ALWAYS AS (a * 2) STORED UNIQUE);"
        "INSERT INTO public.thing SELECT g, g, 1, 'n' || g FROM generate_series(1, 6) AS g;",
        MOVES,
    ),
    "identity key": Shape(
        "CREATE TABLE public.thing (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, w text);"
        "INSERT INTO public.thing (w) SELECT 'w' || g FROM generate_series(1, 5) AS g",
        (
            (
                "UPDATE public.thing SET w = 'x' WHERE id = 2; INSERT INTO public.thing (w)"
                " VALUES ('y')"
            ),
            "UPDATE public.thing SET id = DEFAULT WHERE id = 1",
            (
                "DELETE FROM public.thing WHERE id = 3;"
                "INSERT INTO public.thing OVERRIDING SYSTEM VALUE VALUES (3, 'again'), (1000,"
                " 'far')"
            ),
        ),
    ),
    "identity column that is no key": Shape(
        "CREATE TABLE public.thing (id integer PRIMARY KEY, w text,"
        " seq bigint GENERATED ALWAYS AS IDENTITY UNIQUE);"
        "INSERT INTO public.thing (id, w) SELECT g, 'w' || g FROM generate_series(1, 5) AS g",
        (
            "UPDATE public.thing SET seq = DEFAULT WHERE id = 1",
            (
                "UPDATE public.thing SET seq = DEFAULT, w = 'x' WHERE id < 3;"
                "UPDATE public.thing SET w = 'y' WHERE id = 5"
            ),
            # What one row has given up, another one has.
            (
                "DELETE FROM public.thing WHERE id = 4;"
                "INSERT INTO public.thing OVERRIDING SYSTEM VALUE VALUES (8, 'w', 4)"
            ),
        ),
    ),
    "nothing but a key": Shape(
        "CREATE TABLE public.thing (a integer, b uuid, PRIMARY KEY (b, a));"
        "INSERT INTO public.thing SELECT g, md5(g::text)::uuid FROM generate_series(1, 5) AS g",
        ("UPDATE public.thing SET a = a + 3", "DELETE FROM public.thing WHERE a = 5"),
    ),
    "nothing but an identity key": Shape(
        "CREATE TABLE public.thing (id integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY);"
        "INSERT INTO public.thing DEFAULT VALUES; INSERT INTO public.thing DEFAULT VALUES",
        (
            (
                "UPDATE public.thing SET id = DEFAULT WHERE id = 1; INSERT INTO public.thing"
                " DEFAULT VALUES"
            ),
        ),
    ),
    "partitioned service with a wider key": Shape(
        "CREATE TABLE public.thing (id integer PRIMARY KEY, at date NOT NULL, w text,"
        " slot integer);"
        "INSERT INTO public.thing SELECT g, date '2024-01-15' + g * 20, 'w', g"
        " FROM generate_series(1, 9) AS g",
        (
            (
                "UPDATE public.thing SET at = at + 31 WHERE id IN (2, 5); UPDATE public.thing"
                " SET w = 'x'"
            ),
            "UPDATE public.thing SET id = 10 - id + 100, at = at - 60",
            (
                "DELETE FROM public.thing WHERE id > 105;"
                "INSERT INTO public.thing VALUES (106, '2024-12-31', 'again', 1)"
            ),
        ),
        "CREATE TABLE public.thing (id integer, at date, w text, slot integer, PRIMARY"
        " KEY (id, at))"
        " PARTITION BY RANGE (at);"
        "CREATE TABLE public.p1 PARTITION OF public.thing FOR VALUES FROM ('2024-01-01')"
        " TO ('2024-04-01');"
        "CREATE TABLE public.p2 PARTITION OF public.thing FOR VALUES FROM ('2024-04-01')"
        " TO ('2024-07-01')"
        " PARTITION BY RANGE (at);"
        "CREATE TABLE public.p2_all PARTITION OF public.p2 DEFAULT;"
        "CREATE TABLE public.p3 PARTITION OF public.thing DEFAULT",
    ),
    "renamed, widened, computed": Shape(
        'CREATE TABLE public.thing ("No" integer PRIMARY KEY, code varchar(8), at'
        " timestamp, small smallint);"
        "INSERT INTO public.thing SELECT g, 'c' || g, '2024-01-01', g FROM"
        " generate_series(1, 5) AS g",
        (
            "UPDATE public.thing SET code = 'new', small = -1 WHERE \"No\" = 1",
            (
                'UPDATE public.thing SET "No" = 50 WHERE "No" = 5; DELETE FROM public.thing'
                " WHERE small = 2"
            ),
            "INSERT INTO public.thing VALUES (70, NULL, NULL, NULL), (71, 'é', '-infinity', 3)",
        ),
        "CREATE SCHEMA svc; CREATE TABLE svc.item (number bigint PRIMARY KEY, code text NOT NULL,"
        " at timestamptz, small numeric(6,0))",
        tables=[
            {
                "name": "public.thing",
                "to": "svc.item",
                "columns": {
                    "number": '"No"',
                    "code": "coalesce(code, '-')",
                    "at": "at AT TIME ZONE 'Asia/Tokyo'",
                },
            }
        ],
        columns={
            "number": '"No"',
            "code": "coalesce(code, '-')",
            "at": "at AT TIME ZONE 'Asia/Tokyo'",
            "small": "small",
        },
    ),
    "rows that move into the filter and out of it": Shape(
        PLAIN + ROWS,
        (
            "UPDATE public.thing SET slot = slot + 3 WHERE id IN (1, 2, 3)",
            (
                "UPDATE public.thing SET slot = 9 WHERE id = 6; UPDATE public.thing SET slot = 1"
                " WHERE id < 3"
            ),
            (
                "UPDATE public.thing SET slot = NULL WHERE id = 4; DELETE FROM public.thing"
                " WHERE id = 1"
            ),
            "TRUNCATE public.thing; INSERT INTO public.thing VALUES (1, 'in', 1), (2, 'out', 9)",
        ),
        tables=[{"name": "public.thing", "where": "thing.slot < 4"}],
        where="slot < 4",
    ),
    "unique": _slots("ALTER TABLE public.thing ADD UNIQUE (a)"),
    "unique and deferrable": _slots("ALTER TABLE public.thing ADD UNIQUE (a) DEFERRABLE"),
    "unique and deferred": _slots(
        "ALTER TABLE public.thing ADD UNIQUE (a) DEFERRABLE INITIALLY DEFERRED"
    ),
    "composite unique": _slots(
        "ALTER TABLE public.thing ADD UNIQUE (a, b)",
        (
            *MOVES,
            # A pair of which each half alone is free.
            "UPDATE public.thing SET b = id; UPDATE public.thing SET a = 1",
            "UPDATE public.thing SET b = -b; UPDATE public.thing SET b = 7 + b",
        ),
    ),
    "two unique indexes that overlap": _slots(
        "CREATE UNIQUE INDEX ON public.thing (b, a) INCLUDE (note);"
        "CREATE UNIQUE INDEX ON public.thing (a)"
    ),
    "unique in part": _slots(
        "CREATE UNIQUE INDEX ON public.thing (a) WHERE note <> 'free'",
        (
            *MOVES[:2],
            (
                "UPDATE public.thing SET note = 'free' WHERE id = 1; UPDATE public.thing SET"
                " note = 'taken'"
                ", a = (SELECT t.a FROM public.thing AS t WHERE t.id = 1) WHERE id = 2"
            ),
            BACK,
        ),
    ),
    "unique over an expression": _slots("CREATE UNIQUE INDEX ON public.thing ((a + b))"),
    "unique over a cast": _slots("CREATE UNIQUE INDEX ON public.thing ((a::text))"),
    "unique by hash of an exclusion": _slots(
        "ALTER TABLE public.thing ADD EXCLUDE USING hash (a WITH =)"
    ),
    "exclusion of overlaps": Shape(
        "CREATE TABLE public.thing (id integer PRIMARY KEY, span int4range,"
        " EXCLUDE USING gist (span WITH &&));"
        "INSERT INTO public.thing SELECT g, int4range(g * 10, g * 10 + 8)"
        " FROM generate_series(1, 5) AS g",
        (
            (
                "UPDATE public.thing SET span = NULL; UPDATE public.thing SET span ="
                " int4range(60 - id * 10, 68 - id * 10)"
            ),
            (
                "UPDATE public.thing SET span = int4range(52, 55) WHERE id = 1;"
                "INSERT INTO public.thing VALUES (9, int4range(55, 58))"
            ),
        ),
    ),
    "parents among themselves": Shape(
        "CREATE TABLE public.thing (id integer PRIMARY KEY,"
        " parent integer REFERENCES public.thing ON UPDATE CASCADE ON DELETE SET NULL, w text);"
        "INSERT INTO public.thing SELECT g, nullif(g - 1, 0) FROM generate_series(1, 5) AS g",
        (
            "UPDATE public.thing SET id = id + 100 WHERE id IN (1, 3)",
            (
                "DELETE FROM public.thing WHERE id = 2;"
                "INSERT INTO public.thing VALUES (6, 7), (7, 8), (8, 6)"
            ),
            "DELETE FROM public.thing WHERE id IN (6, 103)",
        ),
    ),
}


@pytest.mark.parametrize("name", SHAPES)
def test_rounds_bring_over_every_write(make_pair: MakePair, name: str) -> None:
    go_through(make_pair, SHAPES[name])


@pytest.mark.matrix
@pytest.mark.parametrize("name", ["unique", "composite unique", "parents among themselves"])
def test_one_round_brings_over_what_took_many_writes(make_pair: MakePair, name: str) -> None:
    shape = SHAPES[name]
    pair = made(make_pair, shape)
    for write in shape.writes:
        pair.on_monolith(write)
    follow(pair)
    assert_equal(pair, shape)


def test_keys_of_a_domain_over_an_enum_are_followed(make_pair: MakePair) -> None:
    go_through(
        make_pair,
        Shape(
            "CREATE TYPE public.hue AS ENUM ('red', 'blue', 'green');"
            "CREATE DOMAIN public.shade AS public.hue;"
            "CREATE TABLE public.thing (id public.shade PRIMARY KEY, v public.shade UNIQUE);"
            "INSERT INTO public.thing VALUES ('red', 'red'), ('blue', NULL)",
            (
                "UPDATE public.thing SET v = 'green' WHERE id::public.hue = 'blue'",
                "UPDATE public.thing SET id = 'green' WHERE id::public.hue = 'red'",
                "DELETE FROM public.thing WHERE id::public.hue = 'blue'",
            ),
        ),
    )


@pytest.mark.matrix
def test_values_that_are_unique_with_nulls_alike_swap(make_pair: MakePair) -> None:
    shape = _slots(
        "ALTER TABLE public.thing ADD UNIQUE NULLS NOT DISTINCT (a, b)",
        (
            "UPDATE public.thing SET b = NULL",
            *(
                "; ".join(f"UPDATE public.thing SET a = {a} WHERE id = {id_}" for a, id_ in steps)
                for steps in (
                    [(-1, 1), (1, 2), (2, 1)],
                    [(-1, 2), (1, 1), (2, 2)],
                    [(99, 1), (1, 2), (2, 3), (3, 1)],
                    [(99, 1), (3, 3), (2, 2), (1, 1)],
                )
            ),
        ),
    )
    pair = make_pair("CREATE TABLE public.thing (id integer)")
    asked = "SHOW server_version_num"
    if min(int(run(asked)[0][0]) for run in (pair.on_monolith, pair.on_service)) < 150000:
        pytest.skip("NULLS NOT DISTINCT came with PostgreSQL 15")
    go_through(make_pair, shape)


def test_values_that_an_index_alone_takes_for_equal_swap(make_pair: MakePair) -> None:
    probe = make_pair("CREATE TABLE public.thing (id integer)")
    if not probe.on_service("SELECT 1 FROM pg_collation WHERE collname = 'und-x-icu'"):
        pytest.skip("this PostgreSQL was built without ICU")
    shape = Shape(
        "CREATE COLLATION public.loose (provider = icu, locale = 'und-u-ks-level1',"
        " deterministic = false);"
        "CREATE TABLE public.thing (id text COLLATE public.loose PRIMARY KEY, word text);"
        "CREATE UNIQUE INDEX ON public.thing (word COLLATE public.loose);"
        "INSERT INTO public.thing VALUES ('k', 'a'), ('l', 'b'), ('m', 'c')",
        (
            (
                "UPDATE public.thing SET word = '-' WHERE id = 'k';"
                "UPDATE public.thing SET word = 'A' WHERE id = 'l';"
                "UPDATE public.thing SET word = 'B' WHERE id = 'k'"
            ),
            (
                "UPDATE public.thing SET word = '-' WHERE id = 'l';"
                "UPDATE public.thing SET word = 'a' WHERE id = 'k';"
                "UPDATE public.thing SET word = 'b' WHERE id = 'l'"
            ),
            "UPDATE public.thing SET id = upper(id)",
            "DELETE FROM public.thing WHERE id = 'k'; INSERT INTO public.thing VALUES ('k', 'ä!')",
        ),
    )
    go_through(make_pair, shape)


# A type that a module brings, as citext is made: its `=` is not the one that a bare `=` would find.
FOLDED = """
CREATE SCHEMA types; CREATE TYPE types.folded;
CREATE FUNCTION types.folded_in(cstring) RETURNS types.folded
    LANGUAGE internal IMMUTABLE STRICT AS 'textin';
CREATE FUNCTION types.folded_out(types.folded) RETURNS cstring
    LANGUAGE internal IMMUTABLE STRICT AS 'textout';
CREATE FUNCTION types.folded_send(types.folded) RETURNS bytea
    LANGUAGE internal STABLE STRICT AS 'textsend';
CREATE TYPE types.folded (
    INPUT = types.folded_in, OUTPUT = types.folded_out, SEND = types.folded_send,
    LIKE = text, CATEGORY = 'S', COLLATABLE = true
);
CREATE CAST (types.folded AS text) WITHOUT FUNCTION AS IMPLICIT;
CREATE CAST (text AS types.folded) WITHOUT FUNCTION AS ASSIGNMENT;
"""
_COMPARE = """
CREATE FUNCTION types.folded_{name}(types.folded, types.folded) RETURNS {returns}
    LANGUAGE sql IMMUTABLE STRICT
    AS 'SELECT {what}';
"""
_ORDER = {
    name: f"lower($1::text) OPERATOR(pg_catalog.{operator}) lower($2::text)"
    for name, operator in (("lt", "<"), ("le", "<="), ("eq", "="), ("ge", ">="), ("gt", ">"))
}
FOLDED += "".join(
    _COMPARE.format(name=name, returns="boolean", what=what) for name, what in _ORDER.items()
)
FOLDED += _COMPARE.format(
    name="cmp", returns="integer", what="bttextcmp(lower($1::text), lower($2::text))"
)
FOLDED += "".join(
    f"CREATE OPERATOR types.{operator} (LEFTARG = types.folded, RIGHTARG = types.folded,"
    f" FUNCTION = types.folded_{name}, MERGES, COMMUTATOR = OPERATOR(types.{operator}));"
    if name == "eq"
    else f"CREATE OPERATOR types.{operator} (LEFTARG = types.folded, RIGHTARG = types.folded,"
    f" FUNCTION = types.folded_{name});"
    for name, operator in (("lt", "<"), ("le", "<="), ("eq", "="), ("ge", ">="), ("gt", ">"))
)
FOLDED += """
CREATE OPERATOR CLASS types.folded_ops DEFAULT FOR TYPE types.folded USING btree AS
    OPERATOR 1 types.<, OPERATOR 2 types.<=, OPERATOR 3 types.=, OPERATOR 4 types.>=,
    OPERATOR 5 types.>, FUNCTION 1 types.folded_cmp(types.folded, types.folded);
"""


def test_keys_of_a_type_with_an_equality_of_its_own_are_followed(make_pair: MakePair) -> None:
    go_through(
        make_pair,
        Shape(
            f"{FOLDED} CREATE TABLE public.thing (id types.folded PRIMARY KEY, v types.folded,"
            " UNIQUE (v));"
            "INSERT INTO public.thing VALUES ('a', 'one'), ('b', 'two'), ('c', NULL)",
            (
                "UPDATE public.thing SET v = 'ONE' WHERE id = 'a'::types.folded::text",
                # Both names of one key are in the log.
                (
                    "UPDATE public.thing SET v = 'five' WHERE id::text = 'a';"
                    "UPDATE public.thing SET id = 'A' WHERE id::text = 'a'"
                ),
                "UPDATE public.thing SET id = lower(id::text)::types.folded",
                (
                    "UPDATE public.thing SET v = 'x' WHERE id::text = 'a';"
                    "UPDATE public.thing SET v = 'FIVE' WHERE id::text = 'b';"
                    "UPDATE public.thing SET v = 'Two' WHERE id::text = 'a'"
                ),
                (
                    "DELETE FROM public.thing WHERE id::text = 'b';"
                    "INSERT INTO public.thing VALUES ('B', 'two!')"
                ),
            ),
        ),
    )


NOTES = (
    "CREATE TABLE public.note (thing_id integer CONSTRAINT note_of_a_thing"
    " REFERENCES public.thing ON DELETE CASCADE)"
)


@pytest.mark.parametrize(
    "unique", ["UNIQUE INDEX ON public.thing (a) WHERE a > 0", "UNIQUE INDEX ON public.thing (a)"]
)
def test_rows_of_other_tables_of_the_service_stay_when_a_row_changes(
    make_pair: MakePair, unique: str
) -> None:
    shape = Shape(
        "CREATE TABLE public.thing (id integer PRIMARY KEY, a integer, word text);"
        f"CREATE {unique}; INSERT INTO public.thing VALUES (1, 1, 'x'), (2, 2, 'y')",
        (),
        also=NOTES,
    )
    pair = made(make_pair, shape)
    pair.on_service("INSERT INTO public.note VALUES (1), (2)")
    pair.on_monolith("UPDATE public.thing SET word = 'z', a = a + 10")
    follow(pair)
    assert pair.on_service("SELECT count(*) FROM public.note") == [(2,)]
    # A swap would take rows off for a moment, and the notes with them.
    pair.on_monolith(
        "UPDATE public.thing SET a = 5 WHERE id = 1; UPDATE public.thing SET a = 11 WHERE id = 2;"
        "UPDATE public.thing SET a = 12 WHERE id = 1"
    )
    assert_refused(
        pair.run("sync", "--once"), 3, ["note_of_a_thing of public.note", "for a moment"]
    )
    assert pair.on_service("SELECT count(*) FROM public.note") == [(2,)]
    pair.on_service("ALTER TABLE public.note DROP CONSTRAINT note_of_a_thing")
    follow(pair)
    assert_equal(pair, shape)


@pytest.mark.parametrize("name", ["s", "t", "k", "other", "one", "now", "l", "given", "select"])
def test_a_table_may_be_named_as_we_name_things(make_pair: MakePair, name: str) -> None:
    columns = ("s", "t", "k", "k1", "one", "broken", "said", "more", "now", "mark", "digest")
    listed = ", ".join(f'"{column}" integer' for column in columns)
    table = f'public."{name}"'
    shape = Shape(
        f"CREATE TABLE {table} ({listed}, PRIMARY KEY (k, t), UNIQUE (s, one), CHECK (said < 100));"
        f"INSERT INTO {table} SELECT g, g, g, g, g, g, g, g, g, g, g FROM"
        f" generate_series(1, 5) AS g",
        (
            (
                f"UPDATE {table} SET s = 99 WHERE k = 1; UPDATE {table} SET s = 1, one = 1 WHERE"
                f" k = 2;"
                f"UPDATE {table} SET s = 2, one = 2 WHERE k = 1; DELETE FROM {table} WHERE k = 3"
            ),
            f"UPDATE {table} SET k = k + 10, mark = NULL",
            f"TRUNCATE {table}",
        ),
        tables=[{"name": table}],
    )
    pair = go_through(make_pair, shape)
    pair.on_monolith(
        f"ALTER TABLE {table} DROP CONSTRAINT {name}_said_check;"
        f"INSERT INTO {table} (k, t, said) VALUES (7, 8, 100)"
    )
    assert_refused(pair.run("sync", "--once"), 3, [f"{name}_said_check", "k = 7, t = 8", "100"])


FAMILY = """
CREATE TABLE public.thing (id integer PRIMARY KEY, w text);
CREATE TABLE public.line (
    thing_id integer REFERENCES public.thing ON UPDATE CASCADE ON DELETE CASCADE,
    no integer, note_id integer, PRIMARY KEY (thing_id, no)
);
CREATE TABLE public.note (id integer PRIMARY KEY, thing_id integer REFERENCES public.thing);
ALTER TABLE public.line ADD FOREIGN KEY (note_id) REFERENCES public.note DEFERRABLE;
INSERT INTO public.thing SELECT g, 'w' || g FROM generate_series(1, 4) AS g;
INSERT INTO public.line SELECT t, n FROM generate_series(1, 4) AS t, generate_series(1, 3) AS n;
"""


@pytest.mark.parametrize("names", [("thing", "line", "note"), ("note", "line", "thing")])
def test_parents_and_children_arrive_together(make_pair: MakePair, names: Sequence[str]) -> None:
    shape = Shape(
        FAMILY,
        (
            (
                "BEGIN; INSERT INTO public.thing VALUES (10, 'p'); INSERT INTO public.line"
                " VALUES (10, 1);"
                "INSERT INTO public.note VALUES (1, 10); UPDATE public.line SET note_id = 1; COMMIT"
            ),
            "UPDATE public.thing SET id = id + 20 WHERE id < 4",
            "DELETE FROM public.thing WHERE id IN (21, 4)",
            (
                "BEGIN; DELETE FROM public.line; DELETE FROM public.note; DELETE FROM public.thing;"
                "INSERT INTO public.thing VALUES (10, 'again'); INSERT INTO public.line VALUES"
                " (10, 1);"
                "COMMIT"
            ),
            "TRUNCATE public.thing CASCADE; INSERT INTO public.thing VALUES (1, 'anew')",
        ),
        tables=[{"name": f"public.{name}"} for name in names],
    )
    go_through(make_pair, shape)


def test_triggers_of_the_service_do_not_act_on_applied_rows(make_pair: MakePair) -> None:
    shape = Shape(
        PLAIN + ROWS,
        (
            (
                "UPDATE public.thing SET word = 'x' WHERE id < 4; DELETE FROM public.thing WHERE"
                " id = 6;"
                "INSERT INTO public.thing VALUES (9, 'new', 9)"
            ),
        ),
        also="CREATE TABLE public.said (what text);"
        "CREATE FUNCTION public.act() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        " INSERT INTO public.said VALUES (TG_NAME); NEW.word := 'spoilt'; RETURN NEW; END $$;"
        + "".join(
            f"CREATE TRIGGER {name} BEFORE INSERT OR UPDATE ON public.thing FOR EACH ROW"
            f" EXECUTE FUNCTION public.act(); ALTER TABLE public.thing ENABLE {how} TRIGGER {name};"
            for name, how in (("usual", ""), ("always", "ALWAYS"), ("replica", "REPLICA"))
        ),
    )
    pair = go_through(make_pair, shape)
    assert pair.on_service("SELECT * FROM public.said") == []


def test_a_rule_of_the_service_that_changes_rows_is_noticed(make_pair: MakePair) -> None:
    pair = made(make_pair, Shape(PLAIN + ROWS, ()))
    pair.on_service(
        "CREATE RULE quieter AS ON UPDATE TO public.thing WHERE NEW.id = 3 DO INSTEAD NOTHING"
    )
    pair.on_monolith("UPDATE public.thing SET word = 'x' WHERE id = 3")
    before = pair.on_service("SELECT * FROM public.thing ORDER BY id")
    assert_refused(pair.run("sync", "--once"), 3, ["not what was written", "id = 3"])
    assert pair.on_service("SELECT * FROM public.thing ORDER BY id") == before
    pair.on_service("DROP RULE quieter ON public.thing")
    follow(pair)
    assert pair.compare()


# -------------------------------------------------------------------------- what does not fit


@dataclass(frozen=True)
class Unfit:
    """What the service alone insists on, a write that breaks it, and how both are mended."""

    also: str
    write: str
    says: Sequence[str]
    mend: str


UNFIT: Mapping[str, Unfit] = {
    "check": Unfit(
        "ALTER TABLE public.thing ADD CONSTRAINT slots_are_small CHECK (slot < 100)",
        "UPDATE public.thing SET slot = 100 + slot WHERE id = 3",
        ["id = 3", "slots_are_small", "103"],
        "ALTER TABLE public.thing DROP CONSTRAINT slots_are_small",
    ),
    "not null": Unfit(
        "ALTER TABLE public.thing ALTER word SET NOT NULL",
        "UPDATE public.thing SET word = NULL WHERE id = 3",
        ["id = 3", "word", "not-null", "null"],
        "ALTER TABLE public.thing ALTER word DROP NOT NULL",
    ),
    "foreign key": Unfit(
        "CREATE TABLE public.slot (id integer PRIMARY KEY);"
        "INSERT INTO public.slot SELECT generate_series(1, 9);"
        "ALTER TABLE public.thing ADD CONSTRAINT slot_is_known FOREIGN KEY (slot)"
        " REFERENCES public.slot",
        "UPDATE public.thing SET slot = 77 WHERE id = 3",
        ["id = 3", "slot_is_known", "77"],
        "INSERT INTO public.slot VALUES (77)",
    ),
    "deferred foreign key": Unfit(
        "CREATE TABLE public.slot (id integer PRIMARY KEY);"
        "INSERT INTO public.slot SELECT generate_series(1, 9);"
        "ALTER TABLE public.thing ADD CONSTRAINT slot_is_known FOREIGN KEY (slot)"
        " REFERENCES public.slot DEFERRABLE INITIALLY DEFERRED",
        "INSERT INTO public.thing VALUES (33, 'new', 78)",
        ["id = 33", "slot_is_known", "78"],
        "INSERT INTO public.slot VALUES (78)",
    ),
    "unique index": Unfit(
        "CREATE UNIQUE INDEX words_are_rare ON public.thing (word)",
        "UPDATE public.thing SET word = 'w5' WHERE id = 3",
        ["id = 3", "words_are_rare", "w5"],
        "DROP INDEX public.words_are_rare",
    ),
    "unique expression": Unfit(
        "CREATE UNIQUE INDEX words_are_rare ON public.thing (lower(word))",
        "UPDATE public.thing SET word = 'W5' WHERE id = 3",
        ["id = 3", "words_are_rare", "w5"],
        "DROP INDEX public.words_are_rare",
    ),
    "length": Unfit(
        "ALTER TABLE public.thing ALTER word TYPE text, ADD CONSTRAINT words_are_short "
        "CHECK (length(word) < 20)",
        "INSERT INTO public.thing VALUES (34, repeat('long', 9), 1)",
        ["id = 34", "words_are_short", "longlong"],
        "ALTER TABLE public.thing DROP CONSTRAINT words_are_short",
    ),
}


@pytest.mark.parametrize("is_alone", [True, False])
@pytest.mark.parametrize("name", UNFIT)
def test_a_row_that_the_service_refuses_is_named_and_nothing_applied(
    make_pair: MakePair, name: str, *, is_alone: bool
) -> None:
    """Among others too, which swap a unique value and must not be blamed."""
    unfit = UNFIT[name]
    unique = "ALTER TABLE public.thing ADD COLUMN turn integer, ADD UNIQUE (turn);"
    pair = made(
        make_pair,
        Shape(PLAIN + ROWS + unique + "UPDATE public.thing SET turn = id", (), also=unfit.also),
    )
    pair.on_monolith("UPDATE public.thing SET slot = 9 WHERE id = 6")
    follow(pair)
    if not is_alone:
        pair.on_monolith(
            "UPDATE public.thing SET turn = NULL WHERE id = 1;"
            "UPDATE public.thing SET turn = 1 WHERE id = 2;"
            "UPDATE public.thing SET turn = 2 WHERE id = 1;"
            "DELETE FROM public.thing WHERE id = 4; INSERT INTO public.thing VALUES (2004,"
            " 'x', 1, 4)"
        )
    pair.on_monolith(unfit.write)
    before = pair.pictures()
    assert_refused(pair.run("sync", "--until-caught-up"), 3, ["public.thing", *unfit.says])
    after = pair.pictures()
    for was, now in zip(before, after, strict=True):
        assert [line for line in was if "ordermigrate." not in line] == [
            line for line in now if "ordermigrate." not in line
        ]
        logs = [
            [line for line in lines if "rows ordermigrate.change_log" in line]
            for lines in (was, now)
        ]
        assert logs[0] == logs[1]
    pair.on_service(unfit.mend)
    follow(pair)
    assert pair.compare()


def test_a_row_that_something_on_the_service_still_needs_is_not_deleted(
    make_pair: MakePair,
) -> None:
    pair = made(
        make_pair,
        Shape(
            PLAIN + ROWS,
            (),
            also="CREATE TABLE public.bill (no integer PRIMARY KEY, thing_id integer"
            " CONSTRAINT bill_of_a_thing REFERENCES public.thing)",
        ),
    )
    pair.on_service("INSERT INTO public.bill VALUES (1, 3)")
    pair.on_monolith("DELETE FROM public.thing WHERE id = 3; UPDATE public.thing SET word = 'x'")
    assert_refused(pair.run("sync", "--once"), 3, ["bill_of_a_thing", "bill", "(id)=(3)"])
    assert pair.on_service("SELECT count(*) FROM public.thing WHERE word = 'x'") == [(0,)]
    pair.on_service("DELETE FROM public.bill")
    follow(pair)
    assert pair.compare()


# --------------------------------------------------------------------------------- in parts


def in_line(pair: Pair, work: Callable[[Footing], Awaitable[None]]) -> None:
    """Do something with a line between both sides, opened as sync opens it."""

    async def stand_and_work() -> None:
        config = make_config(pair.monolith, pair.service, *pair.tables)
        async with following.stand(config, "test", Heard()) as footing:
            await work(footing)

    asyncio.run(stand_and_work())


WIDE = """
CREATE TABLE public.thing (id integer PRIMARY KEY, word text, slot integer);
INSERT INTO public.thing SELECT g, 'w' || g, g FROM generate_series(1, 4000) AS g;
"""


def test_a_backlog_taken_in_parts_converges(make_pair: MakePair) -> None:
    pair = made(make_pair, Shape(WIDE, ()))
    pair.on_monolith("DELETE FROM public.thing WHERE id % 7 = 0")
    pair.on_monolith("UPDATE public.thing SET word = word || '!' WHERE id % 3 = 0")
    pair.on_monolith("UPDATE public.thing SET id = id + 100000 WHERE id % 5 = 0")
    pair.on_monolith(
        "INSERT INTO public.thing SELECT g, 'new' FROM generate_series(5001, 6000) AS g"
    )

    async def work(footing: Footing) -> None:
        taken: list[int] = []
        done = await rounds.run_round(footing.line, max_changes=500)
        while done.remaining:
            assert not done.is_complete
            taken.append(done.changes)
            if len(taken) == 2:  # what is written meanwhile comes with a later part
                pair.on_monolith("UPDATE public.thing SET word = 'late' WHERE id IN (1, 5500)")
            done = await rounds.run_round(footing.line, max_changes=500)
        assert done.is_complete
        assert len(taken) > 3
        assert max(taken) < 2000

    in_line(pair, work)
    assert pair.compare()
    pair.validate()


def test_marks_are_taken_before_any_part_of_the_keys(make_pair: MakePair) -> None:
    """Else the truncation would take off again what a part had brought."""
    pair = made(make_pair, Shape(WIDE, ()))
    pair.on_monolith("UPDATE public.thing SET word = 'before'")
    pair.on_monolith("TRUNCATE public.thing")
    pair.on_monolith(
        "INSERT INTO public.thing SELECT g, 'after' FROM generate_series(1, 3000) AS g"
    )

    async def work(footing: Footing) -> None:
        first = await rounds.run_round(footing.line, max_changes=100)
        assert first.remaining > 0
        assert pair.on_monolith("SELECT count(mark) FROM ordermigrate.change_log_1") == [(0,)]
        while (await rounds.run_round(footing.line, max_changes=1500)).remaining:
            pass

    in_line(pair, work)
    assert pair.compare()


def make_collision(make_pair: MakePair) -> Pair:
    """Have two rows swap a unique value, with their keys far from each other in the log."""
    pair = made(make_pair, Shape(WIDE + "ALTER TABLE public.thing ADD UNIQUE (slot)", ()))
    pair.on_monolith("UPDATE public.thing SET slot = -1 WHERE id = 1")
    pair.on_monolith("UPDATE public.thing SET slot = 1 WHERE id = 2")
    pair.on_monolith("UPDATE public.thing SET slot = 2 WHERE id = 1")
    pair.on_monolith("TRUNCATE ordermigrate.change_log_1")
    for keys in ("2", "generate_series(100, 4000)", "1"):
        pair.on_monolith(f"INSERT INTO ordermigrate.change_log_1 (k1) SELECT {keys}")
    return pair


def test_a_swap_split_over_two_parts_collides_and_the_whole_round_works(
    make_pair: MakePair,
) -> None:
    pair = make_collision(make_pair)
    before = pair.on_service("SELECT * FROM public.thing ORDER BY id")

    async def take_part(footing: Footing) -> None:
        with pytest.raises(PartCollides):
            await rounds.run_round(footing.line, max_changes=100)

    async def take_all(footing: Footing) -> None:
        assert (await rounds.run_round(footing.line)).is_complete

    in_line(pair, take_part)
    assert pair.on_service("SELECT * FROM public.thing ORDER BY id") == before
    in_line(pair, take_all)
    assert pair.compare()


def test_a_validation_takes_all_at_once_after_a_part_has_collided(
    make_pair: MakePair, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = make_collision(make_pair)
    monkeypatch.setattr(sync, "MAX_CHANGES", 100)
    pair.validate()
    assert pair.compare()
