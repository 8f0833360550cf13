"""Capture: whatever writes a row, and however, its key is in the log once the write is committed.

Each test looks into the logs themselves; what rounds make of them is for test_apply.py.
"""

# ruff: noqa: S608  the statements are the test's own, on tables of its own

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import psycopg
import pytest

from tests.fix_pairs import THING, MakePair, MakeRole, Pair, assert_refused, picture, role_dsn

THINGS = """
CREATE TABLE public.owner (id integer PRIMARY KEY);
CREATE TABLE public.thing (
    id integer PRIMARY KEY,
    word text,
    amount numeric,
    owner_id integer REFERENCES public.owner ON UPDATE CASCADE ON DELETE CASCADE,
    heir_id integer REFERENCES public.owner ON UPDATE SET DEFAULT ON DELETE SET NULL
);
INSERT INTO public.owner SELECT generate_series(1, 5);
INSERT INTO public.thing SELECT g, 'word ' || g, g, g, 6 - g FROM generate_series(1, 5) AS g;
CREATE VIEW public.short AS SELECT id, word FROM public.thing WHERE id < 100;
CREATE TABLE public.door (id integer, word text);
CREATE RULE way_in AS ON INSERT TO public.door DO INSTEAD
    INSERT INTO public.thing (id, word) VALUES (NEW.id, NEW.word);
CREATE RULE way_out AS ON DELETE TO public.door DO INSTEAD DELETE FROM public.thing WHERE id > 3;
CREATE FUNCTION public.shift() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.word = 'not at all' THEN RETURN NULL; END IF;
    IF NEW.word = 'elsewhere' THEN NEW.id := NEW.id + 1000; END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER aaa BEFORE INSERT OR UPDATE ON public.thing
FOR EACH ROW EXECUTE FUNCTION public.shift();
CREATE FUNCTION public.follow() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.word = 'and another' THEN INSERT INTO public.thing (id) VALUES (NEW.id + 1); END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER zzz AFTER INSERT ON public.thing
FOR EACH ROW EXECUTE FUNCTION public.follow();
"""
WAYS: Mapping[str, tuple[str, set[int]]] = {
    "insert": ("INSERT INTO public.thing (id) VALUES (10), (11)", {10, 11}),
    "insert select": (
        """
        INSERT INTO public.thing (id) SELECT id + 20 FROM public.owner
        """,
        {*range(21, 26)},
    ),
    "upsert": (
        """
        INSERT INTO public.thing (id) VALUES (2), (10) ON CONFLICT (id) DO UPDATE SET
        word = 'new'
        """,
        {2, 10},
    ),
    "insert or nothing": (
        """
        INSERT INTO public.thing (id) VALUES (2), (10) ON CONFLICT DO NOTHING
        """,
        {10},
    ),
    "update": ("UPDATE public.thing SET word = 'new' WHERE id IN (2, 3)", {2, 3}),
    "update of nothing": ("UPDATE public.thing SET word = 'new' WHERE false", set()),
    "change of keys": ("UPDATE public.thing SET id = id + 40 WHERE id < 3", {1, 2, 41, 42}),
    "keys that move up": (
        """
        UPDATE public.thing SET id = -id; UPDATE public.thing SET id = 1 - id
        """,
        {*range(-5, 0), *range(1, 7)},
    ),
    "delete": ("DELETE FROM public.thing WHERE id < 3", {1, 2}),
    "delete using": (
        """
        DELETE FROM public.thing USING public.owner WHERE owner.id = owner_id
        """,
        {*range(1, 6)},
    ),
    "delete and insert again": (
        """
        DELETE FROM public.thing WHERE id = 1; INSERT INTO public.thing (id) VALUES (1)
        """,
        {1},
    ),
    "writing query": (
        """
        WITH gone AS (DELETE FROM public.thing WHERE id = 1 RETURNING *), new AS (INSERT
        INTO public.thing (id) SELECT id + 60 FROM gone RETURNING id) UPDATE
        public.thing SET word = 'new' WHERE id = 5
        """,
        {1, 5, 61},
    ),
    "cascade of a deletion": ("DELETE FROM public.owner WHERE id = 2", {2, 4}),
    "cascade of a new key": ("UPDATE public.owner SET id = 9 WHERE id = 1", {1, 5}),
    "rule": ("INSERT INTO public.door VALUES (70, 'rule')", {70}),
    "rule that deletes": (
        """
        INSERT INTO public.door VALUES (70, 'x'); DELETE FROM public.door
        """,
        {4, 5, 70},
    ),
    "view": (
        """
        UPDATE public.short SET word = 'seen' WHERE id = 3; DELETE FROM public.short
        WHERE id = 4; INSERT INTO public.short VALUES (90, 'new')
        """,
        {3, 4, 90},
    ),
    "trigger that gives another key": ("INSERT INTO public.thing VALUES (7, 'elsewhere')", {1007}),
    "trigger that changes a key": (
        """
        UPDATE public.thing SET word = 'elsewhere' WHERE id = 1
        """,
        {1, 1001},
    ),
    "trigger that refuses": ("UPDATE public.thing SET word = 'not at all'", set()),
    "trigger that writes more": ("INSERT INTO public.thing VALUES (10, 'and another')", {10, 11}),
    "without triggers": (
        """
        SET session_replication_role = replica; UPDATE public.thing SET word = 'quiet'
        WHERE id = 2; DELETE FROM public.thing WHERE id = 3; INSERT INTO public.thing
        (id) VALUES (10)
        """,
        {2, 3, 10},
    ),
    "cursor": (
        """
        DECLARE c CURSOR FOR SELECT FROM public.thing WHERE id = 4 FOR UPDATE;
        FETCH c; UPDATE public.thing SET word = 'new' WHERE CURRENT OF c
        """,
        {4},
    ),
    "prepared statement": (
        """
        PREPARE p AS UPDATE public.thing SET amount = amount + 1 WHERE id = $1; EXECUTE
        p (1); EXECUTE p (5)
        """,
        {1, 5},
    ),
    "block": ("DO 'BEGIN UPDATE public.thing SET word = $$x$$ WHERE id = 1; END'", {1}),
    "lock": ("SELECT FROM public.thing FOR UPDATE", set()),
}
MERGE = """
MERGE INTO public.thing AS t
USING (VALUES (1, 'update'), (2, 'delete'), (10, 'insert'), (3, 'leave')) AS wanted (id, act)
ON t.id = wanted.id
WHEN MATCHED AND act = 'update' THEN UPDATE SET id = 51
WHEN MATCHED AND act = 'delete' THEN DELETE
WHEN NOT MATCHED THEN INSERT (id) VALUES (wanted.id)
"""


def entries(pair: Pair, log: int = 1, *, parts: int = 1) -> set[str]:
    """Return the keys in a log, their parts joined by |, and the marks in brackets."""
    key = ", ".join(f"l.k{part}" for part in range(1, parts + 1))
    rows = pair.on_monolith(
        f"SELECT coalesce('<' || l.mark || '>', concat_ws('|', {key})) "
        f"FROM ordermigrate.change_log_{log} AS l"
    )
    return {text for (text,) in rows}


def forget(pair: Pair, log: int = 1) -> None:
    pair.on_monolith(f"DELETE FROM ordermigrate.change_log_{log}")


def made(
    make_pair: MakePair,
    monolith: str,
    service: str | None = None,
    tables: Sequence[Mapping[str, object]] = (THING,),
) -> Pair:
    """Make a pair by one script, or two, in which the service's tables are empty."""
    pair = make_pair(monolith, service, tables=tables)
    for table in tables:
        pair.on_service(f"TRUNCATE {table.get('to', table['name'])} CASCADE")
    return pair


def prepared(pair: Pair) -> Pair:
    done = pair.run("prepare")
    assert done.exit_code == 0, done.stderr
    return pair


def numbers(found: set[str]) -> set[int]:
    return {int(each) for each in found}


@pytest.fixture
def pair(make_pair: MakePair) -> Pair:
    return prepared(made(make_pair, THINGS))


# --------------------------------------------------------------------------- the ways of writing


@pytest.mark.matrix
def test_every_way_of_writing_a_row_is_captured(pair: Pair) -> None:
    seen, expected = {}, {}
    for way, (statement, keys) in WAYS.items():
        with psycopg.connect(pair.monolith, autocommit=True) as connection:
            connection.execute("BEGIN")
            connection.execute(statement.encode(), prepare=False)
            rows = connection.execute("SELECT k1 FROM ordermigrate.change_log_1").fetchall()
            connection.execute("ROLLBACK")
        seen[way], expected[way] = {key for (key,) in rows}, keys
    assert seen == expected
    assert entries(pair) == set()


@pytest.mark.matrix
def test_a_merge_is_captured(pair: Pair) -> None:
    if int(pair.on_monolith("SHOW server_version_num")[0][0]) < 150000:
        pytest.skip("MERGE came with PostgreSQL 15")
    pair.on_monolith(MERGE)
    assert numbers(entries(pair)) == {1, 51, 2, 10}


def test_a_copy_in_is_captured(pair: Pair) -> None:
    with (
        psycopg.connect(pair.monolith) as connection,
        connection.cursor() as cursor,
        cursor.copy("COPY public.thing (id, word) FROM STDIN") as copy,
    ):
        for number in range(100, 1100):
            copy.write_row((number, "copied"))
    assert numbers(entries(pair)) == set(range(100, 1100))


KINDS = {
    "a": ("integer", "1", "2"),
    "b": ("text", "'a'", "NULL"),
    "c": ("json", "'[1]'", "'[1 ]'"),
    "d": ("numeric", "1.0", "1.00"),
    "e": ("double precision", "0", "'-0'"),
    "f": ("point", "'(1,1)'", "'(1,1.0000000001)'"),
    "g": ("bytea", "repeat('x', 100000)::bytea", "repeat('y', 100000)::bytea"),
    "h": ("integer[]", "'{1}'", "'[2:2]={1}'"),
    "i": ("timestamptz", "'2024-01-01'", "'infinity'"),
    "j": ("boolean", "true", "false"),
    "k": ("public.short_text", "'a'", "'A'"),
}


def test_an_update_of_any_column_is_captured(make_pair: MakePair) -> None:
    columns = ", ".join(f"{name} {kind}" for name, (kind, _, _) in KINDS.items())
    values = ", ".join(value for _, value, _ in KINDS.values())
    pair = prepared(
        made(
            make_pair,
            "CREATE DOMAIN public.short_text AS text CHECK (length(VALUE) < 9);"
            f"CREATE TABLE public.thing (id integer PRIMARY KEY, {columns});"
            f"INSERT INTO public.thing VALUES (1, {values})",
        )
    )
    for name, (_, _, other) in KINDS.items():
        pair.on_monolith(f"UPDATE public.thing SET {name} = {other}")
        assert entries(pair) == {"1"}, name
        forget(pair)


@pytest.mark.parametrize(
    ("kind", "old", "new"),
    [
        ("integer", "1", "2"),
        ("numeric", "1.0", "1.00"),
        ("double precision", "0", "-0"),
        ("interval", "24:00:00", "1 day"),
        ("text", "a", "A"),
    ],
)
def test_a_changed_key_is_logged_before_and_after(
    make_pair: MakePair, kind: str, old: str, new: str
) -> None:
    pair = prepared(
        made(
            make_pair,
            f"CREATE TABLE public.thing (id {kind} PRIMARY KEY, word text);"
            f"INSERT INTO public.thing VALUES ('{old}')",
        )
    )
    pair.on_monolith(f"UPDATE public.thing SET id = '{new}'")
    assert entries(pair) == {old, new}
    forget(pair)
    pair.on_monolith("UPDATE public.thing SET id = id, word = 'same key'")
    assert pair.on_monolith("SELECT k1::text FROM ordermigrate.change_log_1") == [(new,)]


def test_each_part_of_a_composite_key_counts(make_pair: MakePair) -> None:
    pair = prepared(
        made(
            make_pair,
            "CREATE TABLE public.thing (w text, b integer, a text, PRIMARY KEY (a, b));"
            "INSERT INTO public.thing VALUES ('w', 1, 'a'), ('w', 2, 'a'), ('w', 1, 'b')",
        )
    )
    pair.on_monolith("UPDATE public.thing SET b = 7 WHERE (a, b) = ('a', 2)")
    assert entries(pair, parts=2) == {"a|2", "a|7"}
    forget(pair)
    pair.on_monolith("DELETE FROM public.thing WHERE a = 'b'")
    assert entries(pair, parts=2) == {"b|1"}


ODD = [
    "found",
    "new",
    "old",
    "tg_op",
    "k1",
    "k2",
    "mark",
    "changed_at",
    "tg_argv",
    "record",
    "table",
    "ordermigrate",
    "log",
    "l",
    "select",
    "id",
]


def test_columns_may_be_named_as_the_trigger_names_things(make_pair: MakePair) -> None:
    columns = ", ".join(f'"{name}" integer NOT NULL' for name in ODD)
    pair = prepared(
        made(
            make_pair,
            f'CREATE TABLE public.thing ({columns}, PRIMARY KEY (mark, k1, "new", "old", tg_op))',
        )
    )
    names = ", ".join(f'"{name}"' for name in ODD)
    places = ", ".join(str(number) for number in range(len(ODD)))
    key = "|".join(str(ODD.index(name)) for name in ("mark", "k1", "new", "old", "tg_op"))
    pair.on_monolith(f"INSERT INTO public.thing ({names}) VALUES ({places})")
    assert entries(pair, parts=5) == {key}
    pair.on_monolith('UPDATE public.thing SET "new" = 99, found = 98')
    changed = f"{ODD.index('mark')}|{ODD.index('k1')}|99|{ODD.index('old')}|{ODD.index('tg_op')}"
    assert entries(pair, parts=5) == {key, changed}
    pair.on_monolith("TRUNCATE public.thing")
    assert entries(pair, parts=5) == {key, changed, "<truncated>"}


ODD_TABLE = '"Ünser ""Haus"""."Ding; -- %s {x}"'


def test_a_name_does_not_end_the_function_that_it_is_in(make_pair: MakePair) -> None:
    script = 'CREATE TABLE public.thing ("$capture$" integer PRIMARY KEY, "$capture_$" text)'
    pair = make_pair(script)
    pair.copy()
    pair.on_monolith("INSERT INTO public.thing VALUES (1, 'a')")
    pair.sync()
    assert pair.compare()


def test_quoted_names_are_captured(make_pair: MakePair) -> None:
    pair = prepared(
        made(
            make_pair,
            f'CREATE SCHEMA "Ünser ""Haus"""; CREATE TABLE {ODD_TABLE} '
            '("Schlüssel ""eins""" text, "%s" integer, word text, '
            'PRIMARY KEY ("Schlüssel ""eins""", "%s"))',
            tables=[{"name": ODD_TABLE}],
        )
    )
    pair.on_monolith(f"INSERT INTO {ODD_TABLE} VALUES ('a', 1)")
    pair.on_monolith(f'UPDATE {ODD_TABLE} SET "%s" = 2')
    assert entries(pair, parts=2) == {"a|1", "a|2"}


# ------------------------------------------------------------------------- who writes, and how


# In one schema all that a trigger's body could mean by a bare name; each tells who has run it.
TRAPS = """
CREATE TABLE evil.caught (who text);
GRANT ALL ON evil.caught TO PUBLIC;
CREATE FUNCTION evil.trap() RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO evil.caught VALUES (current_user);
    RETURN true;
END $$;
CREATE FUNCTION evil.both(pg_catalog.text, pg_catalog.text) RETURNS boolean
LANGUAGE sql AS 'SELECT evil.trap()';
CREATE FUNCTION evil.both(anycompatible, anycompatible) RETURNS boolean
LANGUAGE sql AS 'SELECT evil.trap()';
CREATE OPERATOR evil.= (FUNCTION = evil.both, LEFTARG = text, RIGHTARG = text);
CREATE OPERATOR evil.<> (FUNCTION = evil.both, LEFTARG = text, RIGHTARG = text);
CREATE OPERATOR evil.*= (FUNCTION = evil.both, LEFTARG = anycompatible, RIGHTARG = anycompatible);
CREATE OPERATOR evil.*<> (FUNCTION = evil.both, LEFTARG = anycompatible, RIGHTARG = anycompatible);
CREATE FUNCTION evil.clock_timestamp() RETURNS timestamptz LANGUAGE sql
AS 'SELECT pg_catalog.clock_timestamp() FROM evil.trap()';
CREATE FUNCTION evil.now() RETURNS timestamptz LANGUAGE sql
AS 'SELECT pg_catalog.now() FROM evil.trap()';
CREATE TABLE evil.change_log_1 (k1 integer CHECK (evil.trap()), mark text CHECK (evil.trap()));
CREATE TYPE evil.shape AS (one integer);
"""
TRAP_TYPES = """
CREATE DOMAIN {schema}.record AS evil.shape CHECK (evil.trap());
CREATE DOMAIN {schema}.text AS pg_catalog.text CHECK (evil.trap());
CREATE DOMAIN {schema}.int4 AS pg_catalog.int4 CHECK (evil.trap());
"""


@pytest.mark.parametrize("home", ["evil", "pg_temp"])
def test_a_writer_cannot_have_its_code_run_as_the_owner(
    make_role: MakeRole, make_pair: MakePair, home: str
) -> None:
    writer = make_role("writer")
    pair = prepared(
        made(make_pair, "CREATE TABLE public.thing (id integer PRIMARY KEY, amount integer)")
    )
    pair.on_monolith(
        f"GRANT ALL ON public.thing TO {writer};CREATE SCHEMA evil AUTHORIZATION {writer}"
    )
    with psycopg.connect(role_dsn(pair.monolith, writer), autocommit=True) as connection:
        connection.execute(TRAPS.encode(), prepare=False)
        connection.execute(TRAP_TYPES.format(schema=home).encode(), prepare=False)
        for path in (f"{home}, pg_catalog", f"{home}, evil, public", "pg_temp, evil, pg_catalog"):
            connection.execute(f"SET search_path = {path}".encode())
            connection.execute("INSERT INTO public.thing VALUES (10)")
            connection.execute("UPDATE public.thing SET id = 11 WHERE id OPERATOR(pg_catalog.=) 10")
            connection.execute(
                "UPDATE public.thing SET amount = 2 WHERE id OPERATOR(pg_catalog.=) 11"
            )
            connection.execute("DELETE FROM public.thing WHERE id OPERATOR(pg_catalog.=) 11")
            connection.execute("TRUNCATE public.thing")
            assert entries(pair) == {"10", "11", "<truncated>"}, path
            assert pair.on_monolith("SELECT * FROM evil.caught") == [], path
            forget(pair)


def test_a_writer_needs_no_right_on_the_log_and_has_none(
    make_role: MakeRole, make_pair: MakePair
) -> None:
    writer = make_role("writer")
    pair = prepared(made(make_pair, THINGS))
    pair.on_monolith(f"GRANT ALL ON public.thing, public.owner TO {writer}")
    with psycopg.connect(role_dsn(pair.monolith, writer), autocommit=True) as connection:
        connection.execute("INSERT INTO public.thing (id) VALUES (10)")
        connection.execute("UPDATE public.thing SET id = 11 WHERE id = 10")
        connection.execute("DELETE FROM public.thing WHERE id = 11")
        connection.execute("TRUNCATE public.thing")
        for statement in (
            "SELECT FROM ordermigrate.change_log_1",
            "DELETE FROM ordermigrate.change_log_1",
            "INSERT INTO ordermigrate.change_log_1 (k1) VALUES (1)",
            "SELECT ordermigrate.capture_1_row()",
            "SELECT pass FROM ordermigrate.side",
            "ALTER TABLE public.thing DISABLE TRIGGER ordermigrate_capture_row",
        ):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute(statement.encode())
    assert entries(pair) == {"10", "11", "<truncated>"}


def test_the_tables_owner_who_is_no_superuser_is_enough(
    make_role: MakeRole, make_pair: MakePair
) -> None:
    owner = make_role("owner")
    pair = made(make_pair, THINGS)
    for dsn in (pair.monolith, pair.service):
        name = psycopg.conninfo.conninfo_to_dict(dsn)["dbname"]
        both = f'GRANT CREATE ON DATABASE "{name}" TO {owner};' + "".join(
            f"ALTER TABLE public.{table} OWNER TO {owner};" for table in ("thing", "owner")
        )
        pair.but(monolith=dsn).on_monolith(both)
    prepared(pair.as_role(owner))
    pair.on_monolith("UPDATE public.thing SET word = 'x' WHERE id = 2")
    assert entries(pair) == {"2"}


# ---------------------------------------------------------------------------------- transactions


def test_what_is_rolled_back_leaves_nothing(pair: Pair) -> None:
    with psycopg.connect(pair.monolith) as connection:
        connection.execute("UPDATE public.thing SET word = 'x' WHERE id = 1")
        connection.execute("SAVEPOINT one")
        connection.execute("UPDATE public.thing SET word = 'x' WHERE id = 2")
        connection.execute("SAVEPOINT two")
        connection.execute("TRUNCATE public.thing")
        connection.execute("ROLLBACK TO SAVEPOINT one")
        connection.execute("UPDATE public.thing SET word = 'x' WHERE id = 3")
        connection.execute("SAVEPOINT three")
        connection.execute("UPDATE public.thing SET word = 'x' WHERE id = 4")
        connection.execute("RELEASE SAVEPOINT three")
    assert entries(pair) == {"1", "3", "4"}
    forget(pair)
    pair.on_monolith("BEGIN; DELETE FROM public.thing; ROLLBACK")
    with pytest.raises(psycopg.errors.UniqueViolation):
        pair.on_monolith("INSERT INTO public.thing (id) VALUES (50), (1)")
    assert entries(pair) == set()


def test_a_prepared_transaction_is_captured_when_it_commits(pair: Pair) -> None:
    if pair.on_monolith("SHOW max_prepared_transactions") == [("0",)]:
        pytest.skip("this server has no prepared transactions")
    pair.on_monolith(
        "BEGIN; UPDATE public.thing SET id = 71 WHERE id = 1; PREPARE TRANSACTION 'one';"
    )
    pair.on_monolith("BEGIN; DELETE FROM public.thing WHERE id = 2; PREPARE TRANSACTION 'two'")
    assert entries(pair) == set()
    pair.on_monolith("COMMIT PREPARED 'one'")
    pair.on_monolith("ROLLBACK PREPARED 'two'")
    assert entries(pair) == {"1", "71"}


def test_a_write_and_its_entry_become_visible_together(pair: Pair) -> None:
    with psycopg.connect(pair.monolith) as writer:
        writer.execute("UPDATE public.thing SET word = 'late' WHERE id = 1")
        pair.on_monolith("UPDATE public.thing SET word = 'early' WHERE id = 2")
        assert entries(pair) == {"2"}
        writer.commit()
    assert entries(pair) == {"1", "2"}


# -------------------------------------------------------------------------------------- TRUNCATE


def test_a_truncate_leaves_a_mark(pair: Pair) -> None:
    pair.on_monolith("TRUNCATE public.owner CASCADE")
    assert entries(pair) == {"<truncated>"}
    forget(pair)
    pair.on_monolith("SET session_replication_role = replica; TRUNCATE public.thing")
    assert entries(pair) == {"<truncated>"}


def test_a_truncate_works_whatever_the_type_of_the_key(make_pair: MakePair) -> None:
    """A log's entry without a key has to be possible where the key's own type forbids NULL."""
    pair = prepared(
        made(
            make_pair,
            "CREATE DOMAIN public.number AS integer NOT NULL CHECK (VALUE > 0);"
            "CREATE DOMAIN public.name AS varchar(5) NOT NULL;"
            "CREATE TABLE public.thing (id public.number, name public.name, w text,"
            " PRIMARY KEY (id, name)); INSERT INTO public.thing VALUES (1, 'a')",
        )
    )
    pair.copy()
    pair.on_monolith("UPDATE public.thing SET name = 'b'; TRUNCATE public.thing")
    pair.on_monolith("INSERT INTO public.thing VALUES (2, 'c')")
    assert entries(pair, parts=2) == {"1|a", "1|b", "2|c", "<truncated>"}
    assert pair.run("sync", "--until-caught-up").exit_code == 0
    assert pair.compare()
    pair.validate()


PARTS = """
CREATE TABLE public.thing (id integer, at date, word text, PRIMARY KEY (id, at))
PARTITION BY RANGE (at);
CREATE TABLE public.old PARTITION OF public.thing FOR VALUES FROM ('2020-01-01') TO ('2021-01-01');
CREATE TABLE public.recent (word text, gone integer, at date NOT NULL, id integer NOT NULL);
ALTER TABLE public.recent DROP COLUMN gone;
ALTER TABLE public.thing ATTACH PARTITION public.recent
    FOR VALUES FROM ('2021-01-01') TO ('2022-01-01');
CREATE TABLE public.rest PARTITION OF public.thing DEFAULT PARTITION BY LIST (id);
CREATE TABLE public.rest_all PARTITION OF public.rest DEFAULT;
INSERT INTO public.thing SELECT g, date '2020-06-01' + g * 100, 'w' FROM generate_series(1, 9) AS g;
"""
LATER = """
CREATE TABLE public.later (id integer NOT NULL, at date NOT NULL, word text);
INSERT INTO public.later VALUES (100, '2030-01-01', 'a'), (101, '2030-01-02', 'b');
ALTER TABLE public.thing ATTACH PARTITION public.later
    FOR VALUES FROM ('2030-01-01') TO ('2031-01-01');
"""
FLAT = "CREATE TABLE public.thing (id integer, at date, word text, PRIMARY KEY (id, at))"


@pytest.mark.matrix
def test_a_truncate_of_a_partitioned_table_or_of_a_part_leaves_a_mark(make_pair: MakePair) -> None:
    pair = prepared(made(make_pair, PARTS))
    for statement, marks in (
        ("TRUNCATE public.old", {"<compare>"}),
        ("TRUNCATE public.rest", {"<compare>"}),
        ("TRUNCATE public.thing", {"<truncated>", "<compare>"}),
    ):
        pair.on_monolith(statement)
        assert entries(pair, parts=2) == marks, statement
        forget(pair)


@pytest.mark.matrix
def test_writes_into_partitions_and_between_them_are_captured(make_pair: MakePair) -> None:
    pair = prepared(made(make_pair, PARTS))
    for statement, expected in (
        ("INSERT INTO public.recent VALUES ('x', '2021-02-01', 50)", {"50|2021-02-01"}),
        ("UPDATE public.recent SET word = 'y' WHERE id = 50", {"50|2021-02-01"}),
        (
            "UPDATE public.thing SET at = '2020-02-01' WHERE id = 50",
            {"50|2021-02-01", "50|2020-02-01"},
        ),
        ("DELETE FROM public.old WHERE id = 50", {"50|2020-02-01"}),
        ("INSERT INTO public.rest_all VALUES (51, '2025-01-01', 'z')", {"51|2025-01-01"}),
        (
            """SET session_replication_role = replica;
            UPDATE public.rest_all SET id = 52 WHERE id = 51""",
            {"51|2025-01-01", "52|2025-01-01"},
        ),
    ):
        pair.on_monolith(statement)
        assert entries(pair, parts=2) == expected, statement
        forget(pair)


def test_a_partition_attached_later_is_captured_always(make_pair: MakePair) -> None:
    pair = prepared(made(make_pair, PARTS, FLAT))
    pair.copy()
    pair.on_monolith(LATER)
    rows = pair.on_monolith(
        "SELECT tgname, tgenabled FROM pg_trigger WHERE tgrelid = 'public.later'::regclass "
        "ORDER BY 1"
    )
    # The fence comes with it, too, and stands by.
    assert rows == [("ordermigrate_capture_row", "A"), ("ordermigrate_fence_row", "D")]
    pair.on_monolith(
        "SET session_replication_role = replica;"
        "UPDATE public.later SET word = 'c' WHERE id = 100; DELETE FROM public.later WHERE id = 101"
    )
    assert entries(pair, parts=2) == {"100|2030-01-01", "101|2030-01-02"}
    _follow(pair)
    # From then on a TRUNCATE of it alone leaves its mark, too.
    pair.on_monolith("INSERT INTO public.later VALUES (102, '2030-01-03', 'd')")
    pair.on_monolith("TRUNCATE public.later")
    assert entries(pair, parts=2) == {"102|2030-01-03", "<compare>"}
    _follow(pair)


def test_a_partition_that_was_attached_with_rows_and_emptied_before_a_look(
    make_pair: MakePair,
) -> None:
    pair = prepared(made(make_pair, PARTS, FLAT))
    pair.copy()
    pair.on_monolith(LATER)
    _follow(pair)
    pair.on_monolith("ALTER TABLE public.thing DETACH PARTITION public.later")
    _follow(pair)
    pair.on_monolith(
        "ALTER TABLE public.thing ATTACH PARTITION public.later "
        "FOR VALUES FROM ('2030-01-01') TO ('2031-01-01')"
    )
    pair.on_monolith("TRUNCATE public.later")
    pair.on_monolith("INSERT INTO public.later VALUES (103, '2030-01-04', 'e')")
    _follow(pair)


def test_a_partition_that_comes_back_is_covered_beside_its_readers(make_pair: MakePair) -> None:
    """It has our trigger already; who reads it and then writes must not meet an exclusive lock."""
    pair = prepared(made(make_pair, PARTS, FLAT))
    pair.copy()
    pair.on_monolith("ALTER TABLE public.thing DETACH PARTITION public.old")
    _follow(pair)
    pair.on_monolith(
        "UPDATE public.old SET word = 'aside';"
        "ALTER TABLE public.thing ATTACH PARTITION public.old "
        "FOR VALUES FROM ('2020-01-01') TO ('2021-01-01')"
    )
    with psycopg.connect(pair.monolith) as reader:
        reader.execute("SELECT FROM public.old")
        _follow(pair)
        reader.execute("UPDATE public.old SET word = 'and then'")
    pair.on_monolith("TRUNCATE public.old")
    assert "<compare>" in entries(pair, parts=2)
    _follow(pair)


@pytest.mark.matrix
def test_a_detached_partition_takes_its_rows_along(make_pair: MakePair) -> None:
    pair = prepared(made(make_pair, PARTS, FLAT))
    pair.copy()
    pair.on_monolith("UPDATE public.old SET word = 'last'")
    pair.on_monolith("ALTER TABLE public.thing DETACH PARTITION public.old")
    pair.on_monolith("UPDATE public.old SET word = 'not of the family'")
    _follow(pair)
    pair.on_monolith("DROP TABLE public.old")
    _follow(pair)


def _follow(pair: Pair) -> None:
    done = pair.run("sync", "--until-caught-up")
    assert done.exit_code == 0, done.stderr
    assert pair.compare()


HEIRS = """
CREATE TABLE public.thing (id integer PRIMARY KEY, word text);
CREATE TABLE public.child (extra integer, PRIMARY KEY (id)) INHERITS (public.thing);
CREATE TABLE public.grandchild (PRIMARY KEY (id)) INHERITS (public.child);
INSERT INTO public.thing VALUES (1, 'a'); INSERT INTO public.child VALUES (2, 'b');
INSERT INTO public.grandchild VALUES (3, 'c');
"""
HEIR = "CREATE TABLE public.thing (id integer PRIMARY KEY, word text)"


def test_inheritance_children_are_captured(make_pair: MakePair) -> None:
    pair = prepared(made(make_pair, HEIRS, HEIR))
    pair.on_monolith("UPDATE public.thing SET word = 'x'")
    assert entries(pair) == {"1", "2", "3"}
    forget(pair)
    pair.on_monolith("UPDATE public.grandchild SET id = 4; DELETE FROM ONLY public.child")
    assert entries(pair) == {"2", "3", "4"}
    forget(pair)
    for statement in ("TRUNCATE ONLY public.thing", "TRUNCATE public.grandchild"):
        pair.on_monolith(statement)
        assert entries(pair) == {"<compare>"}, statement
        forget(pair)


# --------------------------------------------------------------------------- install and removal


def test_installing_again_changes_nothing(pair: Pair) -> None:
    before = pair.pictures()
    done = pair.run("prepare", "--json")
    assert done.exit_code == 0
    assert "capture" not in done.stdout, done.stdout
    assert pair.pictures() == before


DAMAGE = {
    "dropped": "DROP TRIGGER ordermigrate_capture_row ON public.thing",
    "dropped for truncate": "DROP TRIGGER ordermigrate_capture_truncate ON public.thing",
    "off": "ALTER TABLE public.thing DISABLE TRIGGER ordermigrate_capture_row",
    "all off": "ALTER TABLE public.thing DISABLE TRIGGER ALL",
    "not always": "ALTER TABLE public.thing ENABLE TRIGGER ordermigrate_capture_truncate",
    "only as replica": "ALTER TABLE public.thing ENABLE REPLICA TRIGGER ordermigrate_capture_row",
    "another body": (
        "CREATE OR REPLACE FUNCTION ordermigrate.capture_1_row() RETURNS trigger "
        "LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'"
    ),
    "function gone": "DROP FUNCTION ordermigrate.capture_1_row() CASCADE",
}


@pytest.mark.parametrize("how", DAMAGE)
def test_a_damaged_capture_is_mended(make_pair: MakePair, how: str) -> None:
    pair = prepared(made(make_pair, PARTS if how == "all off" else THINGS))
    before = _fired(pair)
    pair.on_monolith(DAMAGE[how])
    prepared(pair)
    assert _fired(pair) == before
    parts = 2 if how == "all off" else 1
    pair.on_monolith(
        "SET session_replication_role = replica; DELETE FROM public.thing WHERE id = 1;"
        "SET session_replication_role = origin; DELETE FROM public.thing WHERE id = 2;"
        "TRUNCATE public.thing"
    )
    assert {each.partition("|")[0] for each in entries(pair, parts=parts)} >= {
        "1",
        "2",
        "<truncated>",
    }


def _fired(pair: Pair) -> list[tuple[Any, ...]]:
    return pair.on_monolith(
        "SELECT tgrelid::regclass::text, tgname, tgenabled, tgtype FROM pg_trigger "
        "WHERE NOT tgisinternal AND tgname LIKE 'ordermigrate%' ORDER BY 1, 2"
    )


def test_a_clone_that_is_off_on_one_partition_is_mended(make_pair: MakePair) -> None:
    pair = prepared(made(make_pair, PARTS))
    before = _fired(pair)
    pair.on_monolith("ALTER TABLE public.recent DISABLE TRIGGER ordermigrate_capture_row")
    prepared(pair)
    assert _fired(pair) == before
    pair.on_monolith("UPDATE public.recent SET word = 'x' WHERE id = 3")
    assert len(entries(pair, parts=2)) == 1


def test_sync_refuses_to_go_on_over_a_gap(pair: Pair) -> None:
    pair.copy()
    pair.on_monolith("ALTER TABLE public.thing DISABLE TRIGGER ordermigrate_capture_row")
    assert_refused(
        pair.run("sync", "--once"), 3, ["ordermigrate_capture_row", "public.thing", "prepare"]
    )


def test_a_publication_for_all_tables_is_in_nobodys_way(make_pair: MakePair) -> None:
    """It has our tables in it, too, and rows of one without an identity could not be removed."""
    pair = made(make_pair, PARTS, FLAT)
    pair.on_both("CREATE PUBLICATION everything FOR ALL TABLES")
    prepared(pair)
    pair.copy()
    pair.on_monolith("UPDATE public.thing SET word = 'x' WHERE id < 4; DELETE FROM public.recent")
    _follow(pair)
    pair.validate()
    pair.behind_fence("UPDATE public.thing SET word = 'y'")
    done = pair.run("validate", "--checksums", "--repair")
    assert done.exit_code == 0, done.stderr
    pair.on_monolith("TRUNCATE public.thing")
    _follow(pair)
    assert pair.run("copy", "--restart").exit_code == 0
    pair.validate()
    done = pair.run("cancel")
    assert done.exit_code == 0, done.stderr
    assert not [line for line in picture(pair.monolith) if "ordermigrate" in line]


SHAPES = {
    "plain": THINGS,
    "partitioned": PARTS,
    "inherited": HEIRS,
    "referenced": THINGS
    + "CREATE TABLE public.note (thing_id integer REFERENCES public.thing ON DELETE CASCADE);",
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("is_copied", [False, True])
def test_after_cancel_the_monolith_is_what_it_was(
    make_pair: MakePair, shape: str, *, is_copied: bool
) -> None:
    pair = made(make_pair, SHAPES[shape], FLAT if shape == "partitioned" else None)
    if shape == "inherited":
        pair = made(make_pair, HEIRS, HEIR)
    before = pair.pictures()
    prepared(pair)
    if is_copied:
        pair.copy()
    assert picture(pair.monolith) != before[0]
    done = pair.run("cancel", "--json")
    assert done.exit_code == 0, done.stderr
    assert picture(pair.monolith) == before[0]
    if not is_copied:
        assert picture(pair.service) == before[1]
    again = pair.run("cancel", "--json")
    assert again.exit_code == 0
    assert picture(pair.monolith) == before[0]


def test_after_cancel_writers_go_on_in_open_sessions(pair: Pair) -> None:
    """A session that has the triggers' plans in its cache must not stumble over their absence."""
    with psycopg.connect(pair.monolith, autocommit=True) as writer:
        writer.execute("UPDATE public.thing SET word = 'before' WHERE id = 1")
        assert pair.run("cancel").exit_code == 0
        writer.execute("UPDATE public.thing SET word = 'after' WHERE id = 1")
        prepared(pair)
        writer.execute("UPDATE public.thing SET word = 'anew' WHERE id = 2")
    assert entries(pair) == {"2"}
