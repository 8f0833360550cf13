"""Tables of unusual shape: names, few rows, partitions, keys; all arrive and come back whole."""

# ruff: noqa: S608  the statements are the test's own, on tables of its own

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

import pytest

from tests.fix_orders import identical
from tests.fix_pairs import THING, MakePair, MakeTablespace, Pair, assert_refused, definitions

TABLE = "CREATE TABLE public.thing (id integer PRIMARY KEY, word text)"
ROWS = f"{TABLE}; INSERT INTO public.thing SELECT n, 'word ' || n FROM generate_series(1, 50) n"


# ------------------------------------------------------------------------------------------- names


def quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


NAMES = [
    "Order Lines",
    'a "quoted" name',
    "it's",
    "semi;colon",
    "'; DROP TABLE public.witness; --",
    '"; DROP TABLE public.witness; --',
    "{table}",
    "%s %(name)s $1",
    "back\\slash",
    "line\nbreak",
    "ordem-não-ação",
    "注文📦",
    "select",
    "ctid_",
    " leading and trailing ",
    "x" * 63,
    "[bold]not markup[/bold]",
    "public.orders",
]


def named(name: str) -> str:
    """Return a script in which schema, table, columns, index and constraints have such names."""
    q, text = quoted(name), name.replace("'", "''")
    two, key, index = (quoted(f"{name[:40]} {what}") for what in ("two", "key", "index"))
    return (
        f"CREATE SCHEMA {q}; CREATE TABLE {q}.{q} ({q} integer, {two} text, at timestamp,"
        f"CONSTRAINT {key} PRIMARY KEY ({q}), CONSTRAINT {two} CHECK ({two} <> 'no'));"
        f"CREATE INDEX {index} ON {q}.{q} ({two}) WHERE {two} <> 'x';"
        f"COMMENT ON CONSTRAINT {key} ON {q}.{q} IS '{text}';"
        f"CREATE TRIGGER {q} BEFORE UPDATE ON {q}.{q} FOR EACH ROW "
        "EXECUTE FUNCTION suppress_redundant_updates_trigger();"
    )


def test_names_of_any_kind_are_names_and_nothing_else(make_pair: MakePair) -> None:
    """A family of as many tables as there are names, quoted and not, harmless and not."""
    script = "CREATE TABLE public.witness (id integer);" + "".join(map(named, NAMES))
    rows = "".join(
        "INSERT INTO {q}.{q} SELECT n, '{text}', '2025-01-01' FROM generate_series(1, 9) n;".format(
            q=quoted(name), text=name.replace("'", "''")
        )
        for name in NAMES
    )
    tables: list[Mapping[str, object]] = [
        {
            "name": f"{quoted(name)}.{quoted(name)}",
            "status": f"{name[:40]} two",
            "user": name,
            "created": "at",
        }
        for name in NAMES
    ]
    pair = make_pair(script + rows, script, tables=tables)
    before = definitions(pair.service)
    pair.move()
    assert definitions(pair.service) == before
    pair.on_both("SELECT id FROM public.witness")  # which fails if it is gone
    pair.behind_fence(
        "".join(
            f"UPDATE {quoted(name)}.{quoted(name)} SET {quoted(f'{name[:40]} two')} = 'changed' "
            f"WHERE {quoted(name)} = 5;"
            for name in NAMES
        )
    )
    done = pair.run("validate", "--checksums", "--json")
    assert done.exit_code == 4
    found = {each["name"]: each["differences"] for each in done.json["tables"]}
    assert len(found) == len(NAMES)
    for name, differences in zip(NAMES, found.values(), strict=True):
        change = {f"{name[:40]} two": {"source": name, "target": "changed"}}
        assert differences == [{"key": {name: "5"}, "kind": "changed", "columns": change}]
    shown = pair.run("validate", "--checksums").stdout + pair.run("status").stdout
    assert "[bold]not markup[/bold]" in shown
    for args in (("copy", "--dry-run"), ("prepare", "--dry-run"), ("copy",)):
        assert pair.run(*args).exit_code == 0


# -------------------------------------------------------------------------------------- few rows


@pytest.mark.parametrize(
    ("rows", "says"),
    [(0, "0 rows compared"), (1, "1 rows"), (2, "2 rows")],
)
def test_few_rows_are_counted_as_they_are(make_pair: MakePair, rows: int, says: str) -> None:
    pair = make_pair(
        f"{TABLE}; INSERT INTO public.thing SELECT n, 'x' FROM generate_series(1, {rows}) n", TABLE
    )
    pair.move()
    checks = {each["name"]: each for each in pair.validate().json["tables"][0]["checks"]}
    assert says in checks["row count"]["summary"]
    document = pair.run("status", "--json").json
    assert document["phase"] == "copied"
    assert document["copied_rows"] == document["total_rows_estimate"] == rows


def test_a_table_that_was_never_analysed_is_copied_whole(make_pair: MakePair) -> None:
    pair = make_pair(
        ROWS.replace("50", "30000") + "; ALTER TABLE public.thing SET (autovacuum_enabled = off)",
        TABLE,
        limits={"chunk_mib": 1, "workers": 3},
    )
    assert pair.on_monolith("SELECT reltuples FROM pg_class WHERE relname = 'thing'") == [(-1.0,)]
    pair.move()
    assert pair.on_service("SELECT reltuples FROM pg_class WHERE relname = 'thing'") == [(30000.0,)]


def test_wide_rows_and_dropped_columns_do_not_matter(make_pair: MakePair) -> None:
    pair = make_pair(
        "CREATE TABLE public.thing (gone text, id integer PRIMARY KEY, word text, late text);"
        "ALTER TABLE public.thing DROP COLUMN gone;"
        "INSERT INTO public.thing SELECT n, repeat(md5(n::text), 20000), NULL "
        "FROM generate_series(1, 12) n",
        "CREATE TABLE public.thing (late text, word text, x integer, id integer PRIMARY KEY);"
        "ALTER TABLE public.thing DROP COLUMN x",
        limits={"chunk_mib": 1},
    )
    pair.move()


# -------------------------------------------------------------------------------------------- keys


def test_a_key_of_several_columns_in_another_order_is_compared_by_its_columns(
    make_pair: MakePair,
) -> None:
    table = (
        "CREATE TABLE public.thing (b text, a integer, c timestamptz, word text, "
        "PRIMARY KEY (a, c, b))"
    )
    pair = make_pair(
        f"{table}; INSERT INTO public.thing SELECT 'k' || n % 3, n / 3, "
        "'2025-01-01'::timestamptz + n * interval '1 us', 'w' FROM generate_series(1, 40) n",
        table,
    )
    pair.move()
    pair.behind_fence("UPDATE public.thing SET word = NULL WHERE a = 2 AND b = 'k1'")
    done = pair.run("validate", "--checksums", "--json")
    assert done.exit_code == 4
    (difference,) = done.json["tables"][0]["differences"]
    assert list(difference["key"]) == ["a", "c", "b"]
    assert difference["key"]["b"] == "k1"
    assert difference["columns"] == {"word": {"source": "w", "target": None}}


def test_a_family_moves_with_the_keys_between_its_tables(make_pair: MakePair) -> None:
    """Parents and children, a table that points at itself, in the wrong order in the file."""
    family = (
        "CREATE TABLE public.item (id integer PRIMARY KEY, orders_id integer NOT NULL "
        "CONSTRAINT item_of_order REFERENCES public.orders (id) ON DELETE CASCADE);"
    )
    orders = (
        "CREATE TABLE public.orders (id integer PRIMARY KEY, parent integer "
        "CONSTRAINT replaces REFERENCES public.orders (id));"
    )
    rows = (
        "INSERT INTO public.orders SELECT n, nullif(n - 1, 0) FROM generate_series(1, 30) n;"
        "INSERT INTO public.item SELECT n, 1 + n % 30 FROM generate_series(1, 90) n"
    )
    tables = [{"name": "public.item"}, {"name": "public.orders"}]
    pair = make_pair(orders + family + rows, orders + family, tables=tables)
    pair.move()
    off = " ".join(pair.run("status", "--json").json["objects_off"])
    assert "item_of_order" in off
    assert "replaces" in off


def test_a_key_from_outside_the_family_stays_and_does_not_stand_in_the_way(
    make_pair: MakePair,
) -> None:
    outside = (
        "; CREATE TABLE public.outside (id integer REFERENCES public.thing);"
        "CREATE VIEW public.seen AS SELECT id, word, count(*) OVER () FROM public.thing"
    )
    pair = make_pair(ROWS + outside, TABLE + outside)
    before = definitions(pair.service)
    pair.move()
    assert definitions(pair.service) == before


def test_a_view_that_depends_on_the_primary_key_does_not_stand_in_the_way(
    make_pair: MakePair,
) -> None:
    view = "; CREATE VIEW public.seen AS SELECT id, word, count(*) FROM public.thing GROUP BY id"
    pair = make_pair(ROWS, TABLE + view)
    before = definitions(pair.service)
    pair.move()
    assert definitions(pair.service) == before
    assert pair.on_service("SELECT count(*) FROM public.seen") == [(50,)]


# -------------------------------------------------------------------------------------- partitions

PARTED = (
    "CREATE TABLE public.thing (id integer NOT NULL, word text, PRIMARY KEY (id)) "
    "PARTITION BY RANGE (id);"
)


def parts(*bounds: int) -> str:
    """Return the parts between these bounds, each divided once more, and one for all the rest."""
    made = "".join(
        f"CREATE TABLE public.part_{low} PARTITION OF public.thing FOR VALUES FROM ({low}) "
        f"TO ({high}) PARTITION BY HASH (id);"
        + "".join(
            f"CREATE TABLE public.part_{low}_{n} PARTITION OF public.part_{low} "
            f"FOR VALUES WITH (MODULUS 2, REMAINDER {n});"
            for n in (0, 1)
        )
        for low, high in pairwise(bounds)
    )
    return made + "CREATE TABLE public.rest PARTITION OF public.thing DEFAULT;"


FILL = "INSERT INTO public.thing SELECT n, 'word ' || n FROM generate_series(1, 50) n;"
INDEXES = (
    "CREATE INDEX by_word ON public.thing (word);"
    "CREATE UNIQUE INDEX by_both ON public.thing (id, word)"
)


@pytest.mark.matrix
@pytest.mark.parametrize(
    ("monolith", "service"),
    [
        pytest.param(PARTED + parts(0, 20, 40), f"{TABLE};", id="partitioned to plain"),
        pytest.param(f"{TABLE};", PARTED + parts(0, 30), id="plain to partitioned"),
        pytest.param(PARTED + parts(0, 20, 40), PARTED + parts(5, 9, 33), id="other bounds"),
        pytest.param(
            "CREATE TABLE public.thing (id integer, word text, PRIMARY KEY (id)) "
            "PARTITION BY HASH (id); CREATE TABLE public.only PARTITION OF public.thing "
            "FOR VALUES WITH (MODULUS 1, REMAINDER 0);",
            PARTED + parts(0, 30),
            id="by hash to by range",
        ),
    ],
)
def test_partitions_need_not_be_the_same_on_both_sides(
    make_pair: MakePair, monolith: str, service: str
) -> None:
    pair = make_pair(monolith + FILL, service + INDEXES)
    before = definitions(pair.service)
    pair.move()
    assert definitions(pair.service) == before
    pair.behind_fence("UPDATE public.thing SET word = 'x' WHERE id IN (7, 45)")
    done = pair.run("validate", "--checksums", "--json")
    assert {each["key"]["id"] for each in done.json["tables"][0]["differences"]} == {"7", "45"}


def test_a_partitioned_table_without_partitions_is_an_empty_one(make_pair: MakePair) -> None:
    make_pair(PARTED, TABLE).move()


def test_a_row_that_no_partition_of_the_service_takes_is_told(make_pair: MakePair) -> None:
    pair = make_pair(
        ROWS, (PARTED + parts(0, 30)).replace("DEFAULT;", "FOR VALUES FROM (30) TO (40)")
    )
    done = pair.run("copy")
    assert_refused(done, 3, ["no partition of relation", "(id) = (40)"])


def test_inheritance_children_bring_their_rows_along(make_pair: MakePair) -> None:
    """A query of the parent sees them, so the copy and the comparison do too."""
    pair = make_pair(
        ROWS + "; CREATE TABLE public.child (more text, PRIMARY KEY (id)) INHERITS (public.thing);"
        "INSERT INTO public.child SELECT n, 'child', 'x' FROM generate_series(100, 120) n",
        TABLE,
    )
    pair.move()
    assert pair.on_service("SELECT count(*) FROM public.thing") == [(71,)]


# -------------------------------------------------------------------- what was taken off comes back


@pytest.mark.matrix
def test_indexes_and_constraints_come_back_exactly(make_pair: MakePair) -> None:
    """Names, definitions, validity, comments, replica identity, cluster mark, storage settings."""
    table = (
        'CREATE TABLE public.thing (id integer, code text COLLATE "C", low integer NOT NULL,'
        "high integer, word text, at timestamptz, spot int4range, price numeric(18,8),"
        "CONSTRAINT the_key PRIMARY KEY (id) INCLUDE (code) WITH (fillfactor = 80),"
        "CONSTRAINT code_once UNIQUE (code),"
        "CONSTRAINT code_once_deferred UNIQUE (low, high) DEFERRABLE INITIALLY DEFERRED,"
        "CONSTRAINT no_overlap EXCLUDE USING gist (spot WITH &&) WHERE (id > 0),"
        "CONSTRAINT high_is_above_low CHECK (high > low),"
        "CONSTRAINT old_rows_may_break_this CHECK (price > 0) NO INHERIT);"
        "CREATE UNIQUE INDEX low_and_id ON public.thing (low, id);"
        "CREATE INDEX by_expression ON public.thing (lower(word), (id % 7) DESC NULLS LAST);"
        "CREATE INDEX by_part ON public.thing USING brin (at) WITH (pages_per_range = 4)"
        " WHERE word IS NOT NULL;"
        "CREATE INDEX by_hash ON public.thing USING hash (word);"
        "CREATE INDEX by_range ON public.thing USING gist (spot);"
        "CREATE INDEX by_words ON public.thing USING gin (to_tsvector('simple', word))"
        " WITH (fastupdate = off);"
        'CREATE INDEX by_pattern ON public.thing (word text_pattern_ops, code COLLATE "POSIX");'
        "COMMENT ON INDEX public.by_hash IS 'it''s for lookups';"
        "COMMENT ON CONSTRAINT code_once ON public.thing IS 'codes are \"unique\"';"
        "COMMENT ON CONSTRAINT no_overlap ON public.thing IS 'spots';"
        "COMMENT ON INDEX public.the_key IS 'of the index behind the key';"
        "ALTER TABLE public.thing REPLICA IDENTITY USING INDEX low_and_id;"
        "CLUSTER public.thing USING code_once"
    )
    pair = make_pair(
        "CREATE TABLE public.thing (id integer PRIMARY KEY, code text, low integer, high integer,"
        "word text, at timestamptz, spot int4range, price numeric(18,8));"
        "INSERT INTO public.thing SELECT n, 'c' || n, n, n + 1, 'word ' || n, now(),"
        "int4range(n, n + 1), 1 FROM generate_series(1, 60) n;"
        "UPDATE public.thing SET price = -1 WHERE id = 7;"
        "ALTER TABLE public.thing ADD CONSTRAINT old_rows_may_break_this "
        "CHECK (price > 0) NOT VALID",
        table,
    )
    before = definitions(pair.service)
    pair.move()
    after = definitions(pair.service)
    lenient = [line for line in after if "old_rows_may_break_this" in line]
    assert len(lenient) == 1
    assert "NOT VALID" in lenient[0]
    assert [line for line in after if line not in lenient] == [
        line for line in before if "old_rows_may_break_this" not in line
    ]
    assert pair.run("status", "--json").json["objects_off"] == []


def test_indexes_come_back_into_their_tablespaces(
    make_pair: MakePair, make_tablespace: MakeTablespace
) -> None:
    space = make_tablespace()
    pair = make_pair(
        ROWS,
        f"CREATE TABLE public.thing (id integer PRIMARY KEY USING INDEX TABLESPACE {space},"
        "word text);"
        f"CREATE INDEX by_word ON public.thing (word) TABLESPACE {space};"
        "CREATE INDEX by_id ON public.thing (id)",
    )
    before = definitions(pair.service)
    assert sum(space in line for line in before) >= 2
    pair.move()
    assert definitions(pair.service) == before


def test_unique_values_that_the_monolith_does_not_have_are_told_by_the_constraint(
    make_pair: MakePair,
) -> None:
    pair = make_pair(
        f"{TABLE}; INSERT INTO public.thing VALUES (1, 'same'), (2, 'same')",
        TABLE.replace("word text", "word text CONSTRAINT words_once UNIQUE"),
    )
    done = pair.run("copy")
    assert_refused(done, 3, ["words_once", "(word)=(same)"])
    document = pair.run("status", "--json").json
    assert document["phase"] == "copying"
    assert any("words_once" in each for each in document["objects_off"])
    pair.on_monolith("UPDATE public.thing SET word = 'other' WHERE id = 2")
    assert pair.run("copy", "--restart").exit_code == 0
    pair.validate()
    assert pair.compare(THING)


def test_triggers_do_not_fire_on_copied_rows_and_are_said_to_be_off(make_pair: MakePair) -> None:
    trigger = (
        "; CREATE FUNCTION public.spoil() RETURNS trigger LANGUAGE plpgsql AS "
        "'BEGIN NEW.word = ''spoilt''; RETURN NEW; END';"
        "CREATE TRIGGER spoiler BEFORE INSERT ON public.thing FOR EACH ROW "
        "EXECUTE FUNCTION public.spoil();"
        "CREATE TRIGGER always BEFORE INSERT ON public.thing FOR EACH ROW "
        "EXECUTE FUNCTION public.spoil(); ALTER TABLE public.thing ENABLE ALWAYS TRIGGER always"
    )
    pair = make_pair(ROWS, TABLE + trigger)
    pair.move()
    off = " ".join(pair.run("status", "--json").json["objects_off"])
    assert "spoiler" in off
    assert "always" in off


@pytest.mark.parametrize("prepared", [True, False])
def test_a_pair_of_another_table_name_keeps_both_names(make_pair: MakePair, prepared: bool) -> None:  # noqa: FBT001
    pair: Pair = make_pair(
        ROWS,
        f"CREATE SCHEMA shop; {TABLE.replace('public.thing', 'shop.item')}",
        tables=[{"name": "public.thing", "to": "shop.item"}],
    )
    if prepared:
        assert pair.run("prepare").exit_code == 0
    pair.copy()
    pair.validate()
    assert identical(pair.monolith, pair.service, "public.thing", service_table="shop.item")
