"""Names of tables, as people write them and as catalogs have them."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ordermigrate.model import Side, TableName, quote_name

# Whatever PostgreSQL takes for a name: anything but NUL; surrogates are no text.
NAMES = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1)


@given(NAMES, NAMES)
@example("public", 'a"b')
@example("a.b", "c d")
@example("Ä", "ß")
@example('"', '""')
@example("public", "order\n")
@example("public", "orders\n")
def test_any_name_survives_being_written_and_read(schema: str, name: str) -> None:
    table = TableName(schema, name)
    assert TableName.parse(str(table)) == table


@given(NAMES)
def test_a_quoted_name_is_read_exactly_as_it_stands(name: str) -> None:
    quoted = '"' + name.replace('"', '""') + '"'
    assert TableName.parse(f"public.{quoted}") == TableName("public", name)
    assert TableName.parse(f"{quoted}.orders") == TableName(name, "orders")


@given(NAMES)
def test_a_name_in_a_statement_is_one_identifier(name: str) -> None:
    written = TableName(name, name).sql.as_string(None)
    part = '"' + name.replace('"', '""') + '"'
    assert written == f"{part}.{part}"


@pytest.mark.parametrize(
    ("text", "schema", "name"),
    [
        ("public.orders", "public", "orders"),
        ("Public.ORDERS", "public", "orders"),
        ('Public."ORDERS"', "public", "ORDERS"),
        ('"a.b"."c.d"', "a.b", "c.d"),
        ('public."say ""hi"""', "public", 'say "hi"'),
        ("public.заказы", "public", "заказы"),
        # PostgreSQL folds the letters of ASCII and leaves all others as they are.
        ("public.ÉTÉ", "public", "ÉtÉ"),
    ],
)
def test_a_name_is_read_as_sql_reads_it(text: str, schema: str, name: str) -> None:
    assert TableName.parse(text) == TableName(schema, name)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "orders",
        "a.b.c",
        "public.",
        ".orders",
        "public..orders",
        "public. orders",
        "public.order lines",
        'public."orders',
        'public.""',
        'public."a"b',
        "public.orders ",
        "public.orders\n",
        "public.orders;",
    ],
)
def test_what_is_not_two_names_is_refused_with_an_example(text: str) -> None:
    if text.endswith(";"):
        # A semicolon is a letter like any other to the catalog; the statement quotes it.
        assert TableName.parse(text).sql.as_string(None) == '"public"."orders;"'
        return
    with pytest.raises(ValueError, match=r'is not the name of a table.*public\."Order Lines"'):
        TableName.parse(text)


@pytest.mark.parametrize(
    ("name", "written"),
    [("orders", "orders"), ("Orders", '"Orders"'), ("a b", '"a b"'), ('"', '""""'), ("", '""')],
)
def test_quotes_stand_only_where_they_are_needed(name: str, written: str) -> None:
    assert quote_name(name) == written


def test_each_side_has_the_other() -> None:
    assert [side.other for side in Side] == [Side.SERVICE, Side.MONOLITH]
