"""How rows go from source to target: nothing is rounded, cut off or shifted without being told."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from fractions import Fraction

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ordermigrate import mapping
from ordermigrate.config import TableConfig
from ordermigrate.errors import Refused, UsageError
from ordermigrate.model import Column, ForeignKey, Index, Table, TableMap, TableName

NAME = TableName("public", "orders")
USER_TYPES = {"public.mood", "public.amount"}


def column(
    name: str,
    type_name: str = "integer",
    *,
    base_type: str | None = None,
    is_enum: bool = False,
    generated: str = "",
) -> Column:
    base = base_type or re.sub(r"\([0-9,-]+\)", "", type_name)
    # As the catalog spells the type without a length: `character` would mean one character.
    base = re.sub(r"^character\b(?! varying)", "bpchar", base)
    base = re.sub(r"^bit\b(?! varying)", '"bit"', base)
    is_builtin = not type_name.startswith("public.")
    return Column(
        name=name,
        position=1,
        type_name=type_name,
        base_type=base,
        is_builtin=is_builtin,
        is_enum=is_enum,
        is_binary_safe=is_builtin or is_enum,
        is_not_null=False,
        identity="",
        generated=generated,
        collation=None,
    )


def index(name: str, columns: Sequence[str], *, is_primary: bool = True) -> Index:
    return Index(
        name=name,
        table=NAME,
        definition="",
        is_unique=True,
        is_primary=is_primary,
        is_valid=True,
        is_partial=False,
        columns=tuple(columns),
        method="btree",
        tablespace="",
        comment=None,
        is_replica_identity=False,
        is_clustered=False,
        constraint=name,
        constraint_kind="p" if is_primary else "u",
        constraint_definition=None,
        constraint_comment=None,
        is_deferrable=False,
        needed_by=(),
    )


def table(
    *columns: Column,
    name: TableName = NAME,
    key: Sequence[str] = ("id",),
    foreign_keys: Sequence[ForeignKey] = (),
) -> Table:
    return Table(
        oid=1,
        name=name,
        kind="r",
        owner="app",
        has_row_security=False,
        rows_estimate=0,
        columns=columns,
        indexes=(index("pk", key),) if key else (),
        checks=(),
        foreign_keys=tuple(foreign_keys),
        incoming_keys=(),
        triggers=(),
        sequences=(),
        leaves=(),
    )


ID = column("id", "uuid")


def configured(**keys: object) -> TableConfig:
    return TableConfig.model_validate({"name": "public.orders", **keys})


def build(source: Table, target: Table, **keys: object) -> TableMap:
    config = configured(**keys)
    (built,) = mapping.build_maps([config], {source.name: source}, {config.target: target})
    return built


def pair_types(old: Column, new: Column) -> TableMap:
    return build(table(ID, old), table(ID, new))


ALLOWED = [
    ("smallint", "integer"),
    ("smallint", "bigint"),
    ("integer", "bigint"),
    ("smallint", "numeric"),
    ("integer", "numeric"),
    ("bigint", "numeric"),
    ("smallint", "numeric(5,0)"),
    ("integer", "numeric(12,2)"),
    ("bigint", "numeric(19,0)"),
    ("numeric(18,8)", "numeric"),
    ("numeric(18,8)", "numeric(20,8)"),
    ("numeric(18,8)", "numeric(20,10)"),
    ("numeric(5,-2)", "numeric(7,0)"),
    ("character varying(10)", "character varying(11)"),
    ("character varying(10)", "character varying"),
    ("character varying(10)", "text"),
    ("character varying", "text"),
    ("text", "character varying"),
    ("character varying(3)[]", "character varying(5)[]"),
    ("uuid", "text"),
    ("uuid", "character varying(36)"),
    ("timestamp(3) without time zone", "timestamp without time zone"),
    ("timestamp(3) without time zone", "timestamp(6) without time zone"),
    ("time(0) with time zone", "time with time zone"),
    ("bit varying(3)", "bit varying(9)"),
]
REFUSED = [
    ("integer", "smallint"),
    ("bigint", "integer"),
    ("integer", "numeric(11,2)"),
    ("bigint", "numeric(18,0)"),
    ("numeric", "bigint"),
    ("numeric", "numeric(18,8)"),
    ("numeric(18,8)", "numeric(18,7)"),
    ("numeric(18,8)", "numeric(18,9)"),
    ("numeric(18,8)", "numeric(17,8)"),
    ("numeric(7,0)", "numeric(5,-2)"),
    ("numeric(5,-2)", "numeric(6,0)"),
    ("numeric(18,8)", "double precision"),
    ("real", "double precision"),
    ("double precision", "real"),
    ("double precision", "numeric"),
    ("integer", "double precision"),
    ("character varying(10)", "character varying(9)"),
    ("character varying", "character varying(99)"),
    ("text", "character varying(99)"),
    ("character(3)", "character(4)"),
    ("character(3)", "text"),
    ("character(3)", "character varying(3)"),
    ("text", "character(9)"),
    ("bit(3)", "bit(4)"),
    ("uuid", "character varying(35)"),
    ("text", "uuid"),
    ("text", "integer"),
    ("integer", "text"),
    ("boolean", "integer"),
    ("timestamp without time zone", "timestamp with time zone"),
    ("timestamp with time zone", "timestamp without time zone"),
    ("timestamp without time zone", "timestamp(3) without time zone"),
    ("timestamp without time zone", "date"),
    ("date", "timestamp without time zone"),
    ("json", "jsonb"),
    ("jsonb", "json"),
    ("interval(3)", "interval"),  # it would be right, but fields look the same
    ("interval", "interval(3)"),
    ("interval", "interval year to month"),
    ("interval day to second", "interval year to month"),
    ("numeric[]", "numeric(18,8)[]"),
    ("integer[]", "bigint[]"),
    ("character(3)[]", "character(5)[]"),
    ("bit(3)[]", "bit(5)[]"),
]


@pytest.mark.parametrize("type_name", sorted({name for pair in ALLOWED for name in pair}))
def test_the_same_type_goes_as_it_is_in_binary(type_name: str) -> None:
    (_, pair) = pair_types(column("a", type_name), column("a", type_name)).pairs
    assert (pair.expression, pair.source_compare, pair.target_compare) == ('"a"', '"a"', '"a"')
    assert pair.is_binary_safe


@pytest.mark.parametrize(("old", "new"), ALLOWED)
def test_a_type_that_holds_every_value_is_taken_and_the_source_makes_it(old: str, new: str) -> None:
    (_, pair) = pair_types(column("a", old), column("a", new)).pairs
    # Both sides' digests are of values of one type.
    assert pair.expression == pair.source_compare == f'"a"::{new}'
    assert pair.target_compare == '"a"'
    assert pair.is_binary_safe


@pytest.mark.parametrize(("old", "new"), REFUSED)
def test_a_type_that_may_change_a_value_is_refused_with_both_names(old: str, new: str) -> None:
    with pytest.raises(Refused) as refused:
        pair_types(column("a", old), column("a", new))
    (finding,) = refused.value.findings
    assert f"is {old} in" in finding
    assert f"but {new} in" in finding


PRECISIONS = st.integers(1, 38).flatmap(
    lambda precision: st.tuples(st.just(precision), st.integers(-3, precision))
)


@given(PRECISIONS, PRECISIONS)
@example((5, -2), (7, 0))
@example((18, 8), (18, 8))
def test_a_numeric_is_taken_exactly_when_it_holds_the_greatest_and_the_finest_value(
    old: tuple[int, int], new: tuple[int, int]
) -> None:
    def values(precision: int, scale: int) -> tuple[Fraction, Fraction]:
        step = Fraction(10) ** -scale
        return (10**precision - 1) * step, step

    def holds(precision: int, scale: int, value: Fraction) -> bool:
        greatest, step = values(precision, scale)
        return abs(value) <= greatest and value % step == 0

    fits = all(holds(*new, value) for value in values(*old))
    source, target = (column("a", "numeric({},{})".format(*it)) for it in (old, new))
    if fits:
        assert len(pair_types(source, target).pairs) == 2
    else:
        with pytest.raises(Refused):
            pair_types(source, target)


@given(st.integers(1, 300), st.integers(1, 300))
def test_a_varchar_is_taken_exactly_when_it_is_no_shorter(old: int, new: int) -> None:
    source = column("a", f"character varying({old})")
    target = column("a", f"character varying({new})")
    if new >= old:
        assert len(pair_types(source, target).pairs) == 2
    else:
        with pytest.raises(Refused):
            pair_types(source, target)


@pytest.mark.parametrize("type_name", ["text", "character varying"])
def test_an_enum_and_text_go_over_as_text_and_are_compared_as_one_type(type_name: str) -> None:
    mood = column("a", "public.mood", is_enum=True)
    for old, new in ((mood, column("a", type_name)), (column("a", type_name), mood)):
        built = pair_types(old, new)
        assert not built.is_binary
        assert built.pairs[1].source_compare == built.pairs[1].target_compare == '"a"::text'


def test_an_enum_that_does_not_fit_the_text_is_refused() -> None:
    with pytest.raises(Refused):
        pair_types(column("a", "public.mood", is_enum=True), column("a", "character varying(3)"))


def test_a_users_type_is_compared_as_text_and_an_enum_still_travels_in_binary() -> None:
    mood = column("a", "public.mood", is_enum=True)
    assert pair_types(mood, mood).is_binary
    assert pair_types(mood, mood).pairs[1].source_compare == '("a")::text'
    shape = column("a", "public.shape")
    assert not pair_types(shape, shape).is_binary


def test_a_type_of_the_same_name_over_another_type_is_refused() -> None:
    # Both are four bytes long: in binary one would be taken for the other.
    with pytest.raises(Refused):
        pair_types(
            column("a", "public.amount", base_type="integer"),
            column("a", "public.amount", base_type="date"),
        )


def test_missing_and_extra_columns_are_all_told_at_once() -> None:
    source = table(ID, column("only_here"), column("Odd name"))
    target = table(ID, column("only_there"))
    with pytest.raises(Refused) as refused:
        build(source, target)
    assert len(refused.value.findings) == 3
    said = str(refused.value)
    for part in ("only_here", '"Odd name"', "only_there"):
        assert part in said


def test_a_column_that_an_expression_uses_has_its_place() -> None:
    source = table(ID, column("order_side", "text"))
    target = table(ID, column("side", "text"))
    built = build(source, target, columns={"side": "upper(order_side)"})
    assert built.pairs[1].expression == "(upper(order_side)\n)::text"
    with pytest.raises(Refused, match="order_side"):
        build(source, target, columns={"side": "upper(reorder_side)"})


def test_a_mapped_column_that_the_target_lacks_is_refused() -> None:
    with pytest.raises(Refused, match=r"maps sid, but public\.orders has no such column"):
        build(table(ID), table(ID), columns={"sid": "id"})


def test_a_frozen_column_is_copied_noted_and_not_compared() -> None:
    built = build(
        table(ID),
        table(ID, column("email", "text")),
        columns={"email": {"sql": "(SELECT 'x')", "frozen": True}},
    )
    assert built.pairs[1].is_frozen
    assert built.notes == ("email is frozen: copied once, not compared",)


def test_a_generated_column_of_the_target_is_compared_with_the_sources_and_not_written() -> None:
    target = table(ID, column("total", "numeric", generated="s"))
    built = build(table(ID, column("total", "numeric")), target)
    assert [(pair.name, pair.is_generated) for pair in built.pairs] == [
        ("id", False),
        ("total", True),
    ]


def test_a_generated_column_without_its_like_is_noted() -> None:
    target = table(ID, column("total", "numeric", generated="s"))
    built = build(table(ID), target)
    assert [pair.name for pair in built.pairs] == ["id"]
    assert built.notes == ("total is generated on the service: not copied, not compared",)


@pytest.mark.parametrize("type_name", ["character varying(3)", "numeric(6,2)", "timestamp(0)"])
def test_a_computed_value_is_not_forced_into_the_targets_length(type_name: str) -> None:
    # Only a value that this leaves as it is gets the target's form; any other goes over whole.
    target = table(ID, column("w", type_name))
    built = build(table(ID), target, columns={"w": "f(id)"})
    base = target.columns[1].base_type
    pair = built.pairs[1]
    assert pair.expression == pair.source_compare
    assert f"ELSE (f(id)\n)::{base} END" in pair.expression


def test_a_comment_at_the_end_of_an_expression_swallows_nothing() -> None:
    built = build(table(ID), table(ID, column("w", "text")), columns={"w": "'x' -- why"})
    assert built.pairs[1].expression == "('x' -- why\n)::text"


def test_a_role_may_be_named_as_either_side_has_it() -> None:
    source, target = table(ID, column("user_id")), table(ID, column("customer"))
    for name in ("user_id", "customer"):
        built = build(source, target, columns={"customer": "user_id"}, user=name)
        assert built.user == "customer"


@pytest.mark.parametrize("role", ["status", "user", "created", "updated"])
def test_a_role_that_names_no_column_is_a_mistake_of_the_configuration(role: str) -> None:
    with pytest.raises(UsageError, match=f"{role} = 'nope'"):
        build(table(ID), table(ID), **{role: "nope"})


def test_a_table_without_a_primary_key_is_refused() -> None:
    with pytest.raises(Refused, match="no primary key"):
        build(table(ID, key=()), table(ID))


def test_the_key_is_in_the_sources_order_under_the_targets_names() -> None:
    source = table(column("a"), column("b"), column("c"), key=("c", "a"))
    target = table(column("a"), column("b"), column("C c"))
    built = build(source, target, columns={"C c": "c"})
    assert built.key == ("C c", "a")


@pytest.mark.parametrize(
    ("type_name", "expression"),
    [("uuid", "id"), ("uuid", ' "id" '), ("character varying(36)", "id"), ("text", "id")],
)
def test_a_renamed_key_is_found_behind_its_cast(type_name: str, expression: str) -> None:
    target = table(column("order_id", type_name))
    assert build(table(ID), target, columns={"order_id": expression}).key == ("order_id",)


def test_a_key_that_has_become_something_else_is_refused() -> None:
    target = table(column("order_id", "text"))
    with pytest.raises(Refused, match="primary key column id"):
        build(table(ID), target, columns={"order_id": "upper(id::text)"})


def test_a_column_of_the_keys_name_that_holds_something_else_is_not_the_key() -> None:
    source = table(ID, column("legacy_id", "uuid"))
    target = table(column("id", "uuid"), column("new_id", "uuid"))
    columns = {"id": "legacy_id", "new_id": "id"}
    assert build(source, target, columns=columns).key == ("new_id",)


def test_a_frozen_key_is_refused_for_nothing_would_compare_it() -> None:
    with pytest.raises(Refused, match="primary key column id"):
        build(table(ID), table(ID), columns={"id": {"sql": "id", "frozen": True}})


def test_names_with_quotes_spaces_and_percent_signs_stay_one_identifier() -> None:
    odd = column('100% "odd" {name}', "text")
    built = build(table(ID, odd), table(ID, odd))
    assert built.pairs[1].expression == '"100% ""odd"" {name}"'


def reference(child: str, parent: str) -> ForeignKey:
    return ForeignKey(
        f"{child}_{parent}",
        TableName("public", child),
        ("p",),
        TableName("public", parent),
        ("id",),
        "",
        is_validated=True,
    )


def ordered(edges: Mapping[str, Sequence[str]]) -> list[str]:
    tables = {
        TableName("public", name): table(
            ID,
            name=TableName("public", name),
            foreign_keys=[reference(name, parent) for parent in parents],
        )
        for name, parents in edges.items()
    }
    family = [TableConfig.model_validate({"name": str(name)}) for name in tables]
    return [config.name.name for config in mapping.in_key_order(family, tables)]


def test_parents_come_before_children_and_strangers_keep_their_order() -> None:
    edges = {"fills": ["orders", "lines"], "lines": ["orders"], "orders": ["users"], "notes": []}
    assert ordered(edges) == ["orders", "notes", "lines", "fills"]


def test_a_table_may_reference_itself_or_others_in_a_circle() -> None:
    assert ordered({"orders": ["orders"]}) == ["orders"]
    circle = {"a": ["b"], "b": ["a"], "c": ["a"]}
    assert ordered(circle) == ["a", "b", "c"]


LETTERS = "abcdef"


@given(st.dictionaries(st.sampled_from(LETTERS), st.lists(st.sampled_from(LETTERS)), min_size=1))
def test_any_family_is_ordered_whole_and_without_circles_parents_come_first(
    edges: dict[str, list[str]],
) -> None:
    # Edges that point back in the alphabet only make no circle.
    straight = {name: [p for p in parents if p < name] for name, parents in edges.items()}
    order = ordered(straight)
    assert sorted(order) == sorted(straight)
    for name, parents in straight.items():
        for parent in set(parents) & straight.keys():
            assert order.index(parent) < order.index(name)
    assert sorted(ordered(edges)) == sorted(edges)
