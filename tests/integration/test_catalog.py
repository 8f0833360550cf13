"""What a database says of its tables, and that no change between two looks goes unsaid."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

import pytest

from ordermigrate import catalog, fingerprints
from ordermigrate.control import Session
from ordermigrate.errors import OrdermigrateError, Refused, UsageError
from ordermigrate.model import Check, ForeignKey, Index, Table, TableName, Trigger
from tests.fix_postgres import MakeDatabase, execute
from tests.integration.ground import opened, read_tables

BLOCK = 8192
EVERYTHING = """
CREATE SCHEMA "Odd one";
CREATE TYPE "Odd one".mood AS ENUM ('good', 'bad');
CREATE DOMAIN public.cents AS bigint CHECK (VALUE >= 0);
CREATE DOMAIN public.more_cents AS public.cents;
CREATE TYPE public.pair AS (a integer, b text);
CREATE TABLE public.users (id integer PRIMARY KEY);
CREATE SEQUENCE public.numbers INCREMENT 5;
CREATE TABLE public.t (
    gone integer,
    id uuid,
    n numeric(18,8) NOT NULL,
    c character(3),
    v character varying(10) COLLATE "C",
    tags text[],
    cents public.more_cents NOT NULL,
    mood "Odd one".mood,
    pair public.pair,
    cls regclass,
    classes regclass[],
    j jsonb,
    at timestamp(3) with time zone DEFAULT now(),
    i interval year to month,
    serial_no bigserial,
    ident integer GENERATED ALWAYS AS IDENTITY (INCREMENT 7),
    drawn bigint DEFAULT nextval('public.numbers'),
    doubled numeric GENERATED ALWAYS AS (n * 2) STORED,
    user_id integer REFERENCES public.users,
    parent uuid,
    PRIMARY KEY (id),
    CONSTRAINT "only ""one"" number" UNIQUE (n, user_id) DEFERRABLE,
    CONSTRAINT n_is_positive CHECK (n > 0)
);
ALTER TABLE public.t DROP COLUMN gone;
ALTER TABLE public.t ADD CONSTRAINT to_itself FOREIGN KEY (parent) REFERENCES public.t;
ALTER TABLE public.t ADD CONSTRAINT v_is_short CHECK (length(v) < 9) NOT VALID;
CREATE INDEX by_part ON public.t (user_id) WHERE user_id > 5;
CREATE INDEX by_expression ON public.t (lower(v), user_id DESC);
CREATE INDEX by_hash ON public.t USING hash (user_id);
COMMENT ON INDEX public.by_part IS 'why';
ALTER TABLE public.t REPLICA IDENTITY USING INDEX t_pkey;
CREATE TABLE public.lines (
    id integer PRIMARY KEY, t_id uuid, u integer REFERENCES public.users,
    CONSTRAINT line_of_t FOREIGN KEY (t_id) REFERENCES public.t (id) ON DELETE CASCADE
);
CREATE VIEW public.grouped AS SELECT id, n FROM public.t GROUP BY id;
CREATE FUNCTION public.nothing() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
CREATE TRIGGER mine AFTER INSERT ON public.t FOR EACH ROW EXECUTE FUNCTION public.nothing();
CREATE TRIGGER off AFTER DELETE ON public.t EXECUTE FUNCTION public.nothing();
ALTER TABLE public.t DISABLE TRIGGER off;
"""


@pytest.fixture
async def session(monolith_dsn: str) -> AsyncIterator[Session]:
    async with opened(monolith_dsn) as found:
        yield found


@pytest.fixture
async def everything(session: Session, monolith_dsn: str) -> tuple[Table, Table]:
    execute(monolith_dsn, EVERYTHING)
    first, second = await read_tables(session, "public.t", "public.lines")
    return first, second


async def test_columns_are_told_with_what_decides_how_they_travel(
    everything: tuple[Table, Table],
) -> None:
    table, _ = everything
    told = {
        column.name: (column.type_name, column.base_type, column.is_builtin, column.is_binary_safe)
        for column in table.columns
    }
    assert "gone" not in told
    assert told["n"] == ("numeric(18,8)", "numeric", True, True)
    assert told["c"] == ("character(3)", "bpchar", True, True)
    assert told["v"] == ("character varying(10)", "character varying", True, True)
    assert told["tags"] == ("text[]", "text[]", True, True)
    assert told["cents"] == ("public.more_cents", "bigint", False, True)
    assert told["mood"] == ('"Odd one".mood', '"Odd one".mood', False, True)
    assert told["pair"] == ("public.pair", "public.pair", False, False)
    assert told["cls"] == ("regclass", "regclass", True, False)
    assert told["classes"] == ("regclass[]", "regclass[]", True, False)
    assert told["at"][:2] == ("timestamp(3) with time zone", "timestamp with time zone")
    assert told["i"][:2] == ("interval year to month", "interval")


async def test_columns_are_in_their_physical_order_with_their_peculiarities(
    everything: tuple[Table, Table],
) -> None:
    table, _ = everything
    assert [column.name for column in table.columns][:3] == ["id", "n", "c"]
    assert table.columns[0].position == 2
    by_name = {column.name: column for column in table.columns}
    assert by_name["mood"].is_enum
    assert not by_name["v"].is_enum
    assert [by_name[name].is_not_null for name in ("id", "n", "cents", "v")] == [
        True,
        True,
        True,
        False,
    ]
    assert by_name["ident"].identity == "a"
    assert by_name["doubled"].generated == "s"
    assert by_name["v"].collation == '"C"'
    assert by_name["n"].collation is None


async def test_keys_indexes_and_what_depends_on_them_are_told(
    everything: tuple[Table, Table],
) -> None:
    table, _ = everything
    assert table.primary_key == ("id",)
    indexes = {index.name: index for index in table.indexes}
    assert sorted(indexes) == ["by_expression", "by_hash", "by_part", 'only "one" number', "t_pkey"]
    key = indexes["t_pkey"]
    assert (key.is_primary, key.is_unique, key.constraint, key.constraint_kind) == (
        True,
        True,
        "t_pkey",
        "p",
    )
    assert key.is_replica_identity
    # The foreign keys of both tables and the view that groups by it; never its own constraint.
    assert len(key.needed_by) == 3
    assert not any("t_pkey" in each for each in key.needed_by)
    unique = indexes['only "one" number']
    assert (unique.columns, unique.is_deferrable, unique.constraint_kind) == (
        ("n", "user_id"),
        True,
        "u",
    )
    assert unique.needed_by == ()
    assert indexes["by_part"].is_partial
    assert indexes["by_part"].comment == "why"
    assert indexes["by_hash"].method == "hash"
    assert indexes["by_expression"].columns == ("user_id",)
    assert "lower" in indexes["by_expression"].definition


async def test_checks_say_whether_old_rows_may_break_them(everything: tuple[Table, Table]) -> None:
    table, _ = everything
    assert {check.name: check.is_validated for check in table.checks} == {
        "n_is_positive": True,
        "v_is_short": False,
    }


async def test_foreign_keys_are_sorted_by_how_they_stand_to_the_family(
    everything: tuple[Table, Table],
) -> None:
    table, lines = everything

    def scopes(each: Table, *family: str) -> dict[str, list[str]]:
        names = frozenset(TableName("public", name) for name in family)
        found = each.foreign_keys_by_scope(names)
        return {scope: sorted(key.name for key in keys) for scope, keys in found.items()}

    assert scopes(table, "t", "lines") == {
        "within": ["to_itself"],
        "out": ["t_user_id_fkey"],
        "into": [],
    }
    assert scopes(lines, "t", "lines") == {
        "within": ["line_of_t"],
        "out": ["lines_u_fkey"],
        "into": [],
    }
    assert scopes(table, "t") == {
        "within": ["to_itself"],
        "out": ["t_user_id_fkey"],
        "into": ["line_of_t"],
    }
    key = next(each for each in table.incoming_keys if each.name == "line_of_t")
    assert (key.table, key.columns) == (TableName("public", "lines"), ("t_id",))
    assert (key.references, key.referenced_columns) == (TableName("public", "t"), ("id",))
    assert "ON DELETE CASCADE" in key.definition


async def test_only_users_triggers_are_told_with_their_state(
    everything: tuple[Table, Table],
) -> None:
    table, lines = everything
    assert [(trigger.name, trigger.enabled) for trigger in table.triggers] == [
        ("mine", "O"),
        ("off", "D"),
    ]
    assert lines.triggers == ()


async def test_sequences_are_those_that_columns_own_or_draw_from(
    everything: tuple[Table, Table], session: Session, monolith_dsn: str
) -> None:
    table, _ = everything
    assert {(each.column, each.name.name, each.increment) for each in table.sequences} == {
        ("serial_no", "t_serial_no_seq", 1),
        ("ident", "t_ident_seq", 7),
        ("drawn", "numbers", 5),
    }
    assert {each.last_value for each in table.sequences} == {None}
    execute(monolith_dsn, "SELECT nextval('public.numbers'), nextval('public.numbers')")
    (table,) = await read_tables(session)
    assert {each.last_value for each in table.sequences} == {None, 6}


async def test_a_plain_table_is_its_own_leaf_with_its_blocks(
    session: Session, monolith_dsn: str
) -> None:
    execute(
        monolith_dsn,
        "CREATE TABLE public.t (id integer PRIMARY KEY, v text);"
        "INSERT INTO public.t SELECT g, repeat('x', 1000) FROM generate_series(1, 100) AS g",
    )
    (table,) = await read_tables(session)
    (leaf,) = table.leaves
    ((oid, size),) = execute(
        monolith_dsn, "SELECT 'public.t'::regclass::oid::bigint, pg_relation_size('public.t')"
    )
    assert (leaf.oid, leaf.name, leaf.blocks) == (oid, table.name, size // BLOCK)
    assert (leaf.access_method, leaf.bound) == ("heap", None)
    filenode = leaf.filenode
    execute(monolith_dsn, "VACUUM FULL public.t")
    (table,) = await read_tables(session)
    assert table.leaves[0].filenode != filenode


PARTITIONED = """
CREATE TABLE public.t (id integer, k integer, PRIMARY KEY (id, k)) PARTITION BY RANGE (id);
CREATE TABLE public.t_low PARTITION OF public.t FOR VALUES FROM (0) TO (10);
CREATE TABLE public.t_high PARTITION OF public.t FOR VALUES FROM (10) TO (20)
    PARTITION BY LIST (k);
CREATE TABLE public."t high 1" PARTITION OF public.t_high FOR VALUES IN (1);
CREATE TABLE public.t_rest PARTITION OF public.t DEFAULT;
CREATE INDEX by_k ON public.t (k);
CREATE INDEX low_only ON public.t_low (k);
"""


async def test_leaves_of_nested_partitions_are_found_and_roots_are_none(
    session: Session, monolith_dsn: str
) -> None:
    execute(monolith_dsn, PARTITIONED)
    (table,) = await read_tables(session)
    assert table.kind == "p"
    assert {leaf.name.name: leaf.bound for leaf in table.leaves} == {
        "t_low": "FOR VALUES FROM (0) TO (10)",
        "t high 1": "FOR VALUES IN (1)",
        "t_rest": "DEFAULT",
    }
    # The root's indexes can be made again from their definitions, for all leaves at once.
    assert {index.name for index in table.indexes} == {"t_pkey", "by_k"}
    assert not any(" ONLY " in index.definition for index in table.indexes)


async def test_a_partitioned_table_may_have_no_leaves(session: Session, monolith_dsn: str) -> None:
    execute(monolith_dsn, "CREATE TABLE public.t (id integer PRIMARY KEY) PARTITION BY RANGE (id)")
    (table,) = await read_tables(session)
    assert table.leaves == ()


async def test_children_by_inheritance_are_leaves_and_so_is_their_parent(
    session: Session, monolith_dsn: str
) -> None:
    execute(
        monolith_dsn,
        "CREATE TABLE public.t (id integer PRIMARY KEY);"
        "CREATE TABLE public.child (extra text) INHERITS (public.t);"
        "CREATE TABLE public.other (); ALTER TABLE public.other ADD COLUMN id integer NOT NULL;"
        "CREATE TABLE public.grandchild () INHERITS (public.child, public.other)",
    )
    (table,) = await read_tables(session)
    assert sorted(leaf.name.name for leaf in table.leaves) == ["child", "grandchild", "t"]


async def test_a_foreign_table_among_the_leaves_is_refused(
    session: Session, monolith_dsn: str
) -> None:
    execute(
        monolith_dsn,
        "CREATE FOREIGN DATA WRAPPER nowhere; CREATE SERVER s FOREIGN DATA WRAPPER nowhere;"
        "CREATE TABLE public.t (id integer) PARTITION BY RANGE (id);"
        "CREATE FOREIGN TABLE public.far PARTITION OF public.t FOR VALUES FROM (0) TO (9) SERVER s",
    )
    with pytest.raises(Refused, match=r"public\.far, a part of public\.t, is a foreign table"):
        await read_tables(session)


# ---------------------------------------------------------------------------------- fingerprint

BASE = "CREATE TABLE public.t (id integer PRIMARY KEY, a integer, v character varying(9));"
LOW = "CREATE TABLE public.t_low PARTITION OF public.t FOR VALUES FROM (0) TO (10)"
ATTACH = "ALTER TABLE public.t ATTACH PARTITION public.t_low FOR VALUES FROM (0) TO"
ENUM = BASE + "CREATE TYPE public.mood AS ENUM ('good', 'bad'); {};"
INSIDE = [
    ("", "public.mood"),
    ("", "public.mood[]"),
    ("CREATE DOMAIN public.d AS public.mood", "public.d"),
    ("CREATE DOMAIN public.d AS public.mood; CREATE DOMAIN public.e AS public.d[]", "public.e"),
    ("CREATE TYPE public.c AS (a integer, b public.mood)", "public.c[]"),
    ("CREATE TYPE public.r AS RANGE (SUBTYPE = public.mood)", "public.r"),
]
CHANGES: list[tuple[str, str, str]] = [
    (BASE, "ALTER TABLE public.t ADD COLUMN b integer", "column b of public.t was added"),
    (BASE, "ALTER TABLE public.t DROP COLUMN a", "column a of public.t was dropped"),
    (BASE, "ALTER TABLE public.t RENAME COLUMN a TO b", "column a of public.t was dropped"),
    (BASE, "ALTER TABLE public.t RENAME COLUMN a TO b", "column b of public.t was added"),
    (BASE, "ALTER TABLE public.t ALTER a TYPE bigint", "column a of public.t changed from"),
    (BASE, "ALTER TABLE public.t ALTER v TYPE varchar(10)", "column v of public.t changed from"),
    (BASE, 'ALTER TABLE public.t ALTER v TYPE varchar(9) COLLATE "C"', "column v of public.t"),
    *(
        (
            f"{ENUM.format(inside)} ALTER TABLE public.t ADD m {kind}",
            "ALTER TYPE public.mood RENAME VALUE 'good' TO 'fine'",
            "label good of column m of public.t was renamed to fine",
        )
        for inside, kind in INSIDE
    ),
    (
        f"{ENUM.format('')} ALTER TABLE public.t ADD m public.mood",
        (
            "ALTER TYPE public.mood RENAME VALUE 'good' TO 'x';"
            "ALTER TYPE public.mood RENAME VALUE 'bad' TO 'good';"
            "ALTER TYPE public.mood RENAME VALUE 'x' TO 'bad'"
        ),
        "label bad of column m of public.t was renamed to good",
    ),
    (
        f"{ENUM.format('')} ALTER TABLE public.t ADD m public.mood",
        (
            "ALTER TYPE public.mood RENAME TO old; CREATE TYPE public.mood AS ENUM ('good');"
            "ALTER TABLE public.t ALTER m TYPE public.mood USING 'good'"
        ),
        "label bad of column m of public.t was removed",
    ),
    (BASE, "ALTER TABLE public.t ALTER a SET NOT NULL", "column a of public.t changed from"),
    (
        BASE,
        "ALTER TABLE public.t DROP COLUMN a; ALTER TABLE public.t ADD COLUMN a integer",
        "column a of public.t changed from",
    ),
    (
        BASE,
        "ALTER TABLE public.t ALTER id ADD GENERATED ALWAYS AS IDENTITY",
        "column id of public.t changed from",
    ),
    (
        BASE,
        "ALTER TABLE public.t DROP CONSTRAINT t_pkey",
        "unique index t_pkey of public.t was dropped",
    ),
    (BASE, "CREATE UNIQUE INDEX one_a ON public.t (a)", "unique index one_a of public.t was added"),
    (
        BASE,
        "ALTER TABLE public.t DROP CONSTRAINT t_pkey, ADD CONSTRAINT t_pkey PRIMARY KEY (id, a)",
        "unique index t_pkey of public.t changed from",
    ),
    (
        BASE,
        f"DROP TABLE public.t; {BASE}",
        "public.t was dropped and created again",
    ),
    (
        BASE,
        "ALTER TABLE public.t ENABLE ROW LEVEL SECURITY",
        "row level security of public.t was switched",
    ),
    (
        BASE,
        "CREATE TABLE public.child () INHERITS (public.t)",
        "part public.child of public.t was added",
    ),
    (
        PARTITIONED,
        "ALTER TABLE public.t DETACH PARTITION public.t_low",
        "part public.t_low of public.t was dropped",
    ),
    (
        PARTITIONED,
        "CREATE TABLE public.t_mid PARTITION OF public.t FOR VALUES FROM (20) TO (30)",
        "part public.t_mid of public.t was added",
    ),
    (
        PARTITIONED,
        'CREATE TABLE public."t high 2" PARTITION OF public.t_high FOR VALUES IN (2)',
        'part public."t high 2" of public.t was added',
    ),
    (
        PARTITIONED,
        f"DROP TABLE public.t_low; {LOW}",
        "part public.t_low of public.t changed from",
    ),
    (
        PARTITIONED,
        f"ALTER TABLE public.t DETACH PARTITION public.t_low; {ATTACH} (9)",
        "part public.t_low of public.t changed from",
    ),
]


@pytest.mark.parametrize(("before", "change", "said"), CHANGES)
async def test_a_change_of_structure_is_told(
    session: Session, monolith_dsn: str, before: str, change: str, said: str
) -> None:
    execute(monolith_dsn, before)
    first = fingerprints.fingerprint(await read_tables(session))
    execute(monolith_dsn, change)
    drift = fingerprints.explain_drift(first, fingerprints.fingerprint(await read_tables(session)))
    assert any(said in each for each in drift), drift


@pytest.mark.parametrize(("inside", "kind"), INSIDE)
async def test_a_label_that_was_renamed_changes_the_version(
    session: Session, monolith_dsn: str, inside: str, kind: str
) -> None:
    execute(monolith_dsn, f"{ENUM.format(inside)} ALTER TABLE public.t ADD m {kind}")
    (table,) = await read_tables(session)

    async def read_version() -> str:
        return str((await session.fetch_one("catalog", "read_version", [table.oid])).version)

    before = await read_version()
    execute(monolith_dsn, "CREATE TYPE public.other AS ENUM ('x')")
    assert await read_version() == before
    execute(monolith_dsn, "ALTER TYPE public.mood RENAME VALUE 'good' TO 'fine'")
    assert await read_version() != before


async def test_a_label_more_and_the_same_labels_of_another_type_are_no_drift(
    session: Session, monolith_dsn: str
) -> None:
    execute(monolith_dsn, f"{ENUM.format('')} ALTER TABLE public.t ADD m public.mood")
    first = fingerprints.fingerprint(await read_tables(session))
    execute(
        monolith_dsn,
        "ALTER TYPE public.mood RENAME TO old;"
        "CREATE TYPE public.mood AS ENUM ('bad', 'fair', 'good');"
        "ALTER TABLE public.t ALTER m TYPE public.mood USING m::text::public.mood",
    )
    execute(monolith_dsn, "ALTER TYPE public.mood ADD VALUE 'fine' BEFORE 'bad'")
    again = fingerprints.fingerprint(await read_tables(session))
    assert fingerprints.explain_drift(first, again) == []
    del first["public.t"]["labels"]  # as noted by an older version
    assert fingerprints.explain_drift(first, again) == []
    assert fingerprints.explain_drift(again, first) == []


@pytest.mark.parametrize(
    "change",
    [
        "INSERT INTO public.t VALUES (1, 1, 'x')",
        "VACUUM FULL public.t",
        "ANALYZE public.t",
        "CREATE INDEX plain ON public.t (a)",
        "ALTER TABLE public.t ALTER a SET DEFAULT 5",
        "ALTER TABLE public.t ALTER v SET STATISTICS 5",
        "ALTER TABLE public.t ADD CONSTRAINT c CHECK (a > 0)",
        "COMMENT ON TABLE public.t IS 'x'",
        "TRUNCATE public.t",
    ],
)
async def test_what_leaves_the_structure_alone_is_no_drift(
    session: Session, monolith_dsn: str, change: str
) -> None:
    execute(monolith_dsn, BASE)
    first = fingerprints.fingerprint(await read_tables(session))
    execute(monolith_dsn, change)
    assert (
        fingerprints.explain_drift(first, fingerprints.fingerprint(await read_tables(session)))
        == []
    )


def test_a_table_that_comes_or_goes_is_told() -> None:
    assert fingerprints.explain_drift({"a": {}}, {"b": {}}) == ["a has gone", "b has appeared"]


# ----------------------------------------------------------------------------------- presence


@pytest.mark.parametrize(
    ("script", "name", "said"),
    [
        ("", "public.t", "There is no table public.t on the monolith"),
        ('CREATE TABLE public."T" ()', "public.t", 'there is public."T"'),
        ("CREATE SCHEMA s; CREATE TABLE s.t ()", "public.t", "there is s.t"),
        ("CREATE VIEW public.t AS SELECT 1", "public.t", "is a view"),
        ("CREATE MATERIALIZED VIEW public.t AS SELECT 1", "public.t", "is a materialized view"),
        ("CREATE SEQUENCE public.t", "public.t", "is a sequence"),
        ("CREATE TYPE public.t AS (a integer)", "public.t", "is a composite type"),
    ],
)
async def test_what_is_no_table_is_named_for_what_it_is(
    session: Session, monolith_dsn: str, script: str, name: str, said: str
) -> None:
    if script:
        execute(monolith_dsn, script)
    with pytest.raises(UsageError) as refused:
        await catalog.require_tables(session, [TableName.parse(name)])
    assert said in str(refused.value)


async def test_a_table_of_any_name_is_found(session: Session, monolith_dsn: str) -> None:
    name = TableName('S"1', "100% {x} 'y' $1")
    execute(monolith_dsn, f'CREATE SCHEMA "S""1"; CREATE TABLE {name} (id integer PRIMARY KEY)')
    await catalog.require_tables(session, [name])
    (table,) = await read_tables(session, str(name))
    assert table.name == name


# ------------------------------------------------------------------------------------ recorded


async def test_definitions_can_be_kept_as_json(everything: tuple[Table, Table]) -> None:
    table, _ = everything
    listed: list[Index | ForeignKey | Trigger | Check] = [*table.indexes, *table.foreign_keys]
    listed += [*table.triggers, *table.checks]
    for each in listed:
        assert json.loads(json.dumps(catalog.recorded(each)))["name"] == each.name


async def test_a_table_that_has_gone_between_two_looks_is_refused(
    session: Session, make_database: MakeDatabase
) -> None:
    with pytest.raises(OrdermigrateError, match=r"public\.t") as refused:
        await catalog.read_tables(session, [TableName("public", "t")])
    assert refused.value.exit_code == 3
