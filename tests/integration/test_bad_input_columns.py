"""Columns: what does not fit is refused before anything is changed, what fits arrives as it was."""

# ruff: noqa: S608  the statements are the test's own, on tables of its own

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest

from tests.fix_orders import identical
from tests.fix_pairs import THING, MakePair, Pair, assert_refused


def thing(columns: str, values: Sequence[str] = (), before: str = "") -> str:
    """Return a script that makes public.thing and its rows, numbered from one."""
    rows = "".join(
        f"INSERT INTO public.thing OVERRIDING SYSTEM VALUE VALUES ({number}, {value});"
        for number, value in enumerate(values, 1)
    )
    return f"{before}; CREATE TABLE public.thing (id integer PRIMARY KEY, {columns}); {rows}"


# ------------------------------------------------------------------------------------ does not fit


def test_a_column_that_the_service_lacks_is_named(make_pair: MakePair) -> None:
    pair = make_pair(thing("word text, colour text", ["'a', 'b'"]), thing("word text"))
    for command in ("prepare", "copy", "validate"):
        pair.refuse(
            command,
            exit_code=3,
            says=["public.thing on the monolith has a column colour", "has no place for"],
        )


def test_a_column_that_the_monolith_lacks_is_named(make_pair: MakePair) -> None:
    pair = make_pair(thing("word text", ["'a'"]), thing('word text, "Colour" text'))
    pair.refuse(
        "copy",
        exit_code=3,
        says=[
            'public.thing on the service has a column "Colour" that public.thing on the monolith',
            "does not have",
            "[tables.columns]",
        ],
    )


def test_everything_that_does_not_fit_is_told_at_once(make_pair: MakePair) -> None:
    pair = make_pair(
        "CREATE TABLE public.thing (one integer, two text, three timestamp)",
        "CREATE TABLE public.thing (two integer, three timestamptz, four text)",
    )
    done = pair.run("copy", "--json")
    assert done.exit_code == 3
    assert len(done.json["findings"]) == 5
    for said in ("no primary key", "column one", "column two", "column three", "column four"):
        assert any(said in finding for finding in done.json["findings"]), said


COULD_CHANGE_A_VALUE = [
    ("numeric(18,8)", "numeric(18,4)"),
    ("numeric(18,8)", "numeric(17,8)"),
    ("numeric(18,8)", "numeric(18,9)"),
    ("numeric", "numeric(38,10)"),
    ("integer", "numeric(9,0)"),
    ("varchar(50)", "varchar(49)"),
    ("text", "varchar(1000)"),
    ("varchar(10)", "char(10)"),
    ("timestamp", "timestamptz"),
    ("timestamptz", "timestamp"),
    ("timestamp(6)", "timestamp(3)"),
    ("timestamp", "timestamp(3)"),
    ("timestamp", "date"),
    ("interval", "interval(0)"),
    ("text", "integer"),
    ("bigint", "integer"),
    ("real", "double precision"),
    ("double precision", "numeric"),
    ("boolean", "integer"),
    ("json", "jsonb"),
    ("text", "uuid"),
    ("uuid", "varchar(35)"),
    ("bit(8)", "bit(4)"),
    ("integer[]", "bigint[]"),
    ("text", "bytea"),
]


def test_types_that_could_change_a_value_are_refused_and_all_are_named(make_pair: MakePair) -> None:
    def columns(place: int) -> str:
        return thing(
            ", ".join(f"c{n} {pair[place]}" for n, pair in enumerate(COULD_CHANGE_A_VALUE))
        )

    pair = make_pair(columns(0), columns(1))
    done = pair.refuse(
        "copy",
        "--json",
        exit_code=3,
        says=["do not fit together", "hold all its values", "[tables.columns]"],
    )
    said = done.json["findings"]
    assert len(said) == len(COULD_CHANGE_A_VALUE)
    for number, finding in enumerate(said):
        assert finding.startswith(f"column c{number} is "), COULD_CHANGE_A_VALUE[number]
        assert " on the monolith but " in finding


# -------------------------------------------------------------------------------------------- fits

HOLDS_EVERY_VALUE = [
    ("smallint", "integer", ["-32768", "NULL"]),
    ("integer", "bigint", ["2147483647", "0"]),
    ("bigint", "numeric", ["9223372036854775807", "-1"]),
    ("integer", "numeric(12,2)", ["2147483647", "-5"]),
    ("varchar(20)", "text", ["'é'", "''", "NULL", "'x '"]),
    ("varchar(20)", "varchar(21)", ["'twenty characters.. '"]),
    ("numeric(18,8)", "numeric(20,10)", ["1.00000001", "-9999999999.99999999", "NULL"]),
    ("numeric(18,8)", "numeric", ["1.5", "0"]),
    ("uuid", "text", ["'00000000-0000-0000-0000-00000000000a'"]),
    ("uuid", "varchar(36)", ["'00000000-0000-0000-0000-00000000000a'"]),
    ("timestamp(3)", "timestamp", ["'2025-01-02 03:04:05.678'"]),
]


def test_types_that_hold_every_value_are_allowed_and_validate(make_pair: MakePair) -> None:
    source = ", ".join(f"c{n} {kind}" for n, (kind, _, _) in enumerate(HOLDS_EVERY_VALUE))
    target = ", ".join(f"c{n} {kind}" for n, (_, kind, _) in enumerate(HOLDS_EVERY_VALUE))
    rows = "".join(
        f"INSERT INTO public.thing (id, c{n}) VALUES ({100 * n + m}, {value});"
        for n, (_, _, values) in enumerate(HOLDS_EVERY_VALUE)
        for m, value in enumerate(values)
    )
    pair = make_pair(f"{thing(source)}; {rows}", thing(target))
    pair.copy()
    pair.validate()
    casts = {f"c{n}": f"c{n}::{kind}" for n, (_, kind, _) in enumerate(HOLDS_EVERY_VALUE)}
    assert identical(pair.monolith, pair.service, "public.thing", {"id": "id"} | casts)
    for number, _ in enumerate(HOLDS_EVERY_VALUE):
        pair.behind_fence(f"UPDATE public.thing SET c{number} = NULL WHERE id = {100 * number}")
    for algorithm in ("md5", "sha256", "record-hash"):
        done = pair.run("validate", "--algorithm", algorithm, "--json")
        assert done.exit_code == 4
        found = done.json["tables"][0]["differences"]
        assert {each["key"]["id"]: list(each["columns"]) for each in found} == {
            str(100 * number): [f"c{number}"] for number, _ in enumerate(HOLDS_EVERY_VALUE)
        }
        assert {value["target"] for each in found for value in each["columns"].values()} == {None}


EVERYTHING: Mapping[str, Sequence[str]] = {
    "smallint": ["-32768", "NULL"],
    "real": ["1.1", "'NaN'", "'-Infinity'", "'-0'"],
    "double precision": ["0.1", "'NaN'", "1e-307", "'-0'"],
    "numeric": ["1.0", "1.00", "'NaN'", "1e-30", "'Infinity'"],
    "money": ["12.34", "-0.01"],
    "char(5)": ["'a'", "''"],
    '"char"': ["'a'", "''"],
    "name": ["'a name'"],
    "bytea": [r"'\x00ff5c6e'", "''", "NULL"],
    "timestamptz": ["'2025-03-30 01:30:00+01'", "'infinity'", "'0044-03-15 12:00 BC'"],
    "timestamp": ["'2025-04-03 00:00:00.000001'", "'-infinity'"],
    "date": ["'2025-04-03'", "'infinity'"],
    "time": ["'24:00'", "'00:00:00.000001'"],
    "timetz": ["'12:00+05:30'"],
    "interval": ["'1 year -3 days 04:05:06.000007'", "'-1 mon'"],
    "boolean": ["true", "NULL"],
    "inet": ["'10.0.0.1/8'", "'::1'"],
    "macaddr": ["'08:00:2b:01:02:03'"],
    "point": ["'(0.1,-0)'"],
    "polygon": ["'((0,0),(1,1),(1,0))'"],
    "bit(3)": ["B'101'"],
    "bit varying": ["B''", "B'1'"],
    "tsvector": ["'fat:1A cat:2'"],
    "xml": ["'<a b=\"1\">é</a>'"],
    "json": ['\'{"b": 1,  "a": 1.00}\'', "'null'"],
    "jsonb": ['\'{"b": 1.00, "a": [null, "é"]}\''],
    "integer[]": ["'{1,NULL,3}'", "'{}'", "'[0:1]={7,8}'"],
    "text[]": ["ARRAY['a,b', '', NULL, '\"']", "'{{a,b},{c,d}}'"],
    "numeric[]": ["'{1.0,1.00}'"],
    "int4range": ["'[1,5)'", "'empty'"],
    "tstzrange": ["'[2025-01-01,)'"],
    "nummultirange": ["'{[1.0,2.00],[5,6]}'"],
    "pg_lsn": ["'16/B374D848'"],
    "xid8": ["'123456789012'"],
    "regclass": ["'pg_class'", "'public.elsewhere'"],
    "regtype": ["'integer'", "'public.colour'"],
    "regrole": ["'pg_monitor'"],
    "public.colour": ["'red'", "'dark \"blue\"'", "NULL"],
    "public.colour[]": ["ARRAY['red', 'red']::public.colour[]", "'{}'"],
    "public.amount": ["0.00000001", "NULL"],
    "public.shade": ["'red'"],
    "public.pair": ["ROW(1, 'a,\"b\"')", "ROW(NULL, '')"],
    "public.pair[]": ["ARRAY[ROW(1, 'a')::public.pair]"],
    "public.span": ["'[1.0,2.00)'"],
}
TYPES = (
    "{before} CREATE TYPE public.colour AS ENUM ('red', 'dark \"blue\"', 'green');"
    "CREATE DOMAIN public.amount AS numeric(18,8) CHECK (VALUE > 0);"
    "CREATE DOMAIN public.shade AS public.colour;"
    "CREATE TYPE public.pair AS (a integer, b text);"
    "CREATE TYPE public.span AS RANGE (subtype = numeric);"
    "CREATE TABLE public.elsewhere (a integer)"
)


@pytest.fixture
def full(make_pair: MakePair) -> Pair:
    """A table with a column of every type, in rows of their own; user types have other OIDs."""
    columns = ", ".join(f"c{n} {kind}" for n, kind in enumerate(EVERYTHING))
    rows = "".join(
        f"INSERT INTO public.thing (id, c{n}) VALUES ({100 * n + m}, {value});"
        for n, values in enumerate(EVERYTHING.values())
        for m, value in enumerate(values)
    )
    other = (
        "CREATE TYPE public.first AS ENUM ('x', 'y', 'z'); CREATE TABLE public.second (a integer);"
        "CREATE TYPE public.third AS ENUM ('green', 'red');"
    )
    return make_pair(
        thing(columns, before=TYPES.format(before="")) + rows,
        thing(columns, before=TYPES.format(before=other)),
    )


def test_values_of_every_type_arrive_as_they_were(full: Pair) -> None:
    full.move()
    for algorithm in ("sha256", "record-hash"):
        full.validate("--algorithm", algorithm)
    before, after = (
        run("SELECT 'public.colour'::regtype::oid") for run in (full.on_monolith, full.on_service)
    )
    assert before != after


def test_a_change_in_a_column_of_any_type_is_seen(full: Pair) -> None:
    full.move()
    changed = {}
    for number, (kind, values) in enumerate(EVERYTHING.items()):
        full.behind_fence(f"UPDATE public.thing SET c{number} = NULL WHERE id = {100 * number}")
        changed[str(100 * number)] = (f"c{number}", kind, values[0])
    done = full.run("validate", "--checksums", "--json", "--max-differences", "1000")
    assert done.exit_code == 4
    found = done.json["tables"][0]["differences"]
    assert {each["key"]["id"] for each in found} == changed.keys()
    for each in found:
        name, kind, _ = changed[each["key"]["id"]]
        assert each["kind"] == "changed"
        assert each["columns"].keys() == {name}, kind
        assert each["columns"][name]["source"] is not None
        assert each["columns"][name]["target"] is None


@pytest.mark.matrix
def test_generated_columns_are_left_to_the_service_and_compared_all_the_same(
    make_pair: MakePair,
) -> None:
    columns = "a integer, twice integer GENERATED ALWAYS AS (a * 2) STORED"
    rows = "INSERT INTO public.thing VALUES (1, 10), (2, NULL)"
    pair = make_pair(f"{thing(columns)}; {rows}", thing(columns))
    pair.move()
    other = make_pair(f"{thing(columns)}; {rows}", thing(columns.replace("a * 2", "a * 3")))
    other.copy()
    done = other.run("validate", "--checksums", "--json")
    assert done.exit_code == 4
    (difference,) = done.json["tables"][0]["differences"]
    assert difference["columns"] == {"twice": {"source": "20", "target": "30"}}


def test_identity_columns_keep_their_values_and_serial_ones_too(make_pair: MakePair) -> None:
    table = (
        "CREATE TABLE public.thing (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,"
        "other integer GENERATED BY DEFAULT AS IDENTITY, third serial, word text)"
    )
    rows = (
        "INSERT INTO public.thing OVERRIDING SYSTEM VALUE VALUES (10, 7, 8, 'a'), (5, -1, 9, 'b')"
    )
    pair = make_pair(f"{table}; {rows}", table)
    pair.move()
    assert pair.on_service("SELECT id, other, third FROM public.thing ORDER BY id") == [
        (5, -1, 9),
        (10, 7, 8),
    ]


def test_text_becomes_an_enum_and_an_enum_becomes_text(make_pair: MakePair) -> None:
    make = "CREATE TYPE public.colour AS ENUM ('red', 'blue')"
    pair = make_pair(
        thing("a text, b public.colour", ["'red', 'blue'", "'blue', NULL"], before=make),
        thing("a public.colour, b text", before=make),
    )
    pair.copy()
    pair.validate()
    assert pair.compare()


def test_a_label_that_the_services_enum_lacks_is_told_before_anything_is_copied(
    make_pair: MakePair,
) -> None:
    pair = make_pair(
        thing(
            "a public.colour",
            ["'red'", "'blue'"],
            before="CREATE TYPE public.colour AS ENUM ('red', 'blue')",
        ),
        thing("a public.colour", before="CREATE TYPE public.colour AS ENUM ('red')"),
    )
    for command in ("prepare", "copy"):
        says = ["public.colour, the type of a of public.thing", "lacks the label 'blue'"]
        pair.refuse(command, exit_code=3, says=says)
    pair.on_service("ALTER TYPE public.colour ADD VALUE 'blue'")
    pair.move()


def test_a_text_that_the_services_enum_lacks_is_told_with_its_place(make_pair: MakePair) -> None:
    pair = make_pair(
        thing("a text", ["'red'", "'blue'"]),
        thing("a public.colour", before="CREATE TYPE public.colour AS ENUM ('red')"),
    )
    done = pair.run("copy")
    assert_refused(done, 3, ["The service cannot take or give a value", "blue"])
    assert pair.on_service("SELECT count(*) FROM public.thing") == [(0,)]


def test_a_row_that_the_services_check_refuses_is_told_and_can_be_mended(
    make_pair: MakePair,
) -> None:
    pair = make_pair(
        thing("a integer", ["1", "-1"]),
        thing("a integer CONSTRAINT amounts_are_positive CHECK (a > 0)"),
    )
    done = pair.run("copy")
    assert_refused(done, 3, ["amounts_are_positive", "Failing row contains (2, -1)"])
    assert pair.on_service("SELECT count(*) FROM public.thing") == [(0,)]
    pair.on_service("ALTER TABLE public.thing DROP CONSTRAINT amounts_are_positive")
    pair.move()


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("tsquery", "''"),
        ("tsquery[]", "ARRAY['', 'a & b']::tsquery[]"),
        ("aclitem[]", "'{=r/pg_monitor}'"),
    ],
)
def test_a_type_that_is_not_read_as_it_is_sent_goes_over_as_text(
    make_pair: MakePair, kind: str, value: str
) -> None:
    make_pair(thing(f"a {kind}", [value, "NULL"]), thing(f"a {kind}")).move()


@pytest.mark.matrix
def test_an_interval_without_end_is_refused_where_it_would_become_a_long_one(
    make_pair: MakePair,
) -> None:
    pair = make_pair(thing("a interval, b interval[]"))
    ours, theirs = (
        int(run("SHOW server_version_num")[0][0]) // 10000
        for run in (pair.on_monolith, pair.on_service)
    )
    if ours < 17 or theirs >= 17:  # it is known since PostgreSQL 17
        pytest.skip("needs a monolith that knows infinite intervals and a service that does not")
    pair.on_monolith("INSERT INTO public.thing VALUES (1, 'infinity', '{1 day}')")
    assert_refused(pair.run("copy"), 3, ['invalid input syntax for type interval: "infinity"'])
    pair.on_monolith("UPDATE public.thing SET a = '1 day'")
    pair.move()


def test_a_null_that_the_service_refuses_is_told(make_pair: MakePair) -> None:
    pair = make_pair(thing("a integer", ["NULL"]), thing("a integer NOT NULL"))
    done = pair.run("copy")
    assert_refused(done, 3, ['null value in column "a"'])


# ----------------------------------------------------------------------------------------- mapping


def mapped(columns: Mapping[str, object], **more: object) -> list[Mapping[str, object]]:
    return [{**THING, "columns": columns, **more}]


def test_columns_are_made_by_the_expressions_of_the_configuration(make_pair: MakePair) -> None:
    pair = make_pair(
        thing("order_side text, amount text", ["'buy', '12'", "'sell', '7'"]),
        thing("side text, amount integer"),
        tables=mapped({"side": "upper(order_side)", "amount": "amount::integer"}),
    )
    pair.copy()
    pair.validate()
    expressions = {"id": "id", "side": "upper(order_side)", "amount": "amount"}
    assert identical(pair.monolith, pair.service, "public.thing", expressions)
    pair.behind_fence("UPDATE public.thing SET side = 'Buy' WHERE id = 1")
    done = pair.run("validate", "--checksums", "--json")
    assert done.exit_code == 4
    (difference,) = done.json["tables"][0]["differences"]
    assert difference["columns"] == {"side": {"source": "BUY", "target": "Buy"}}


def test_a_timestamp_gets_its_time_zone_from_an_expression(make_pair: MakePair) -> None:
    pair = make_pair(
        thing("at timestamp", ["'2025-07-01 12:00'"]),
        thing("at timestamptz"),
        tables=mapped({"at": "at AT TIME ZONE 'America/Sao_Paulo'"}),
    )
    pair.copy()
    pair.validate()
    assert pair.on_service(
        "SELECT at AT TIME ZONE 'UTC' = '2025-07-01 15:00' FROM public.thing"
    ) == [(True,)]


@pytest.mark.parametrize(
    ("columns", "exit_code", "says"),
    [
        ({"colour": "word"}, 3, ["maps colour, but public.thing has no such column"]),
        ({"word": "wrod"}, 2, ["word", "wrod"]),
        ({"word": "upper(word"}, 2, ["word"]),
        ({"word": "word); DROP TABLE public.thing; --"}, 2, ["word"]),
        ({"word": "(SELECT 1/0)::text"}, 2, ["division by zero"]),
    ],
)
def test_a_wrong_expression_is_refused_before_anything_is_changed(
    make_pair: MakePair, columns: Mapping[str, object], exit_code: int, says: list[str]
) -> None:
    pair = make_pair(thing("word text", ["'a'"]), thing("word text"), tables=mapped(columns))
    pair.refuse("copy", exit_code=exit_code, says=says)


def test_an_expression_that_fails_on_a_row_is_told_in_one_message(make_pair: MakePair) -> None:
    pair = make_pair(
        thing("share integer", ["4", "0"]),
        thing("share integer"),
        tables=mapped({"share": "100 / share"}),
    )
    done = pair.run("copy")
    assert_refused(done, 3, ["no value of column share for the row", "id = 2", "division by zero"])
    assert pair.on_service("SELECT count(*) FROM public.thing") == [(0,)]
    pair.on_monolith("UPDATE public.thing SET share = 5 WHERE share = 0")
    assert pair.run("copy", "--restart").exit_code == 0
    pair.validate()


def test_a_where_takes_some_rows_and_validates_those(make_pair: MakePair) -> None:
    pair = make_pair(
        thing("word text", [f"'word {n}'" for n in range(30)]),
        thing("word text"),
        tables=[{**THING, "where": "id % 3 = 0 AND word <> 'word 5'"}],
    )
    pair.copy()
    pair.validate()
    assert pair.on_service("SELECT count(*), min(id) FROM public.thing") == [(9, 3)]


@pytest.mark.parametrize("where", ["idd = 3", "id =", "true; DROP TABLE public.thing", "id + 1"])
def test_a_wrong_where_is_refused_before_anything_is_changed(
    make_pair: MakePair, where: str
) -> None:
    pair = make_pair(
        thing("word text", ["'a'"]), thing("word text"), tables=[{**THING, "where": where}]
    )
    pair.refuse("copy", exit_code=2, says=["where of public.thing", "Correct them"])


def test_a_frozen_column_is_copied_once_left_out_and_spoken_of(make_pair: MakePair) -> None:
    pair = make_pair(
        thing(
            "user_id integer",
            ["1", "2"],
            before="CREATE TABLE public.users (id integer PRIMARY KEY, email text);"
            "INSERT INTO public.users VALUES (1, 'a@x'), (2, 'b@x')",
        ),
        thing("user_id integer, email text"),
        tables=mapped(
            {
                "email": {
                    "sql": "(SELECT u.email FROM public.users u WHERE u.id = thing.user_id)",
                    "frozen": True,
                }
            }
        ),
    )
    pair.copy()
    assert pair.on_service("SELECT email FROM public.thing ORDER BY id") == [("a@x",), ("b@x",)]
    pair.on_monolith("UPDATE public.users SET email = 'new@x' WHERE id = 1")
    done = pair.validate()
    assert "email is frozen: copied once, not compared" in done.json["tables"][0]["notes"]


def test_roles_of_columns_that_are_not_there_are_refused(make_pair: MakePair) -> None:
    for key in ("status", "user", "created", "updated"):
        pair = make_pair(thing("word text"), thing("word text"), tables=[{**THING, key: "wrod"}])
        pair.refuse("copy", exit_code=2, says=[f"{key} = 'wrod'", "names no column", "id, word"])
