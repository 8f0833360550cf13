"""Rows and keys that a configuration did not think of: named, followed, or refused."""

# ruff: noqa: S608  the statements are the test's own, on tables of its own

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest

from tests.acceptance.fix_running import bring_up, catch_up, refuse_sync, show_status, succeed
from tests.fix_pairs import THING, MakePair, Pair, assert_refused

SHARE: Sequence[Mapping[str, object]] = [{**THING, "columns": {"share": "public.share(number)"}}]
DIVIDE = (
    "CREATE OR REPLACE FUNCTION public.share(integer) RETURNS integer LANGUAGE plpgsql IMMUTABLE "
    "AS $f$ BEGIN IF $1 = {} THEN RAISE EXCEPTION 'no share of %', $1; END IF; "
    "RETURN 100 / $1; END $f$"
)
NUMBERS = (
    DIVIDE.format(0) + "; CREATE TABLE public.thing (id integer PRIMARY KEY, number integer);"
    "INSERT INTO public.thing SELECT n, n FROM generate_series(1, 30) n"
)
SHARES = "CREATE TABLE public.thing (id integer PRIMARY KEY, share integer)"
NAMED = ["no value of column share for the row of public.thing with id = 7", "Correct the row"]


def test_a_row_that_an_expression_fails_on_is_named_by_copy_sync_and_validate(
    make_pair: MakePair,
) -> None:
    pair = make_pair(NUMBERS, SHARES, tables=SHARE)
    pair.on_monolith("UPDATE public.thing SET number = 0 WHERE id = 7")
    assert_refused(pair.run("copy"), 3, [*NAMED, "no share of 0"])
    pair.on_monolith("UPDATE public.thing SET number = 7 WHERE id = 7")
    succeed(pair, "copy", "--restart")
    catch_up(pair)
    pair.on_monolith("UPDATE public.thing SET number = 0 WHERE id = 7")
    refuse_sync(pair, *NAMED)
    assert show_status(pair)["backlog"] > 0
    pair.on_monolith("UPDATE public.thing SET number = 8 WHERE id = 7")
    catch_up(pair)
    pair.validate()
    # Nothing that was written tells of it.
    pair.on_monolith(DIVIDE.format(8) + "; UPDATE public.thing SET number = 9 WHERE id = 8")
    assert_refused(pair.run("validate", "--checksums"), 3, [*NAMED, "no share of 8"])


def test_more_than_one_value_for_a_row_is_named(make_pair: MakePair) -> None:
    # Two users with one number.
    pair = make_pair(
        "CREATE TABLE public.part (id integer PRIMARY KEY, thing integer, word text);"
        "INSERT INTO public.part VALUES (1, 1, 'a'), (2, 7, 'b'), (3, 7, 'c');"
        "CREATE TABLE public.thing (id integer PRIMARY KEY);"
        "INSERT INTO public.thing SELECT n FROM generate_series(1, 9) n",
        "CREATE TABLE public.thing (id integer PRIMARY KEY, share text)",
        tables=[
            {
                **THING,
                "columns": {
                    "share": {
                        "sql": "(SELECT p.word FROM public.part p WHERE p.thing = thing.id)",
                        "frozen": True,
                    }
                },
            }
        ],
    )
    assert_refused(pair.run("copy"), 3, [*NAMED, "more than one row"])


def test_a_filter_that_fails_on_a_row_is_told_with_it(make_pair: MakePair) -> None:
    pair = make_pair(NUMBERS, tables=[{**THING, "where": "100 / number > 0"}])
    pair.on_service("DELETE FROM public.thing")
    pair.on_monolith("UPDATE public.thing SET number = 0 WHERE id = 7")
    assert_refused(pair.run("copy"), 3, ["no value of where for the row", "id = 7", "by zero"])


def test_rows_that_wander_into_a_filter_and_out_again_are_followed(make_pair: MakePair) -> None:
    pair = make_pair(NUMBERS, tables=[{**THING, "where": "number % 2 = 0"}])
    pair.on_service("DELETE FROM public.thing")
    bring_up(pair)
    proper = "SELECT id, number FROM public.thing WHERE number % 2 = 0 ORDER BY id"
    for statement in (
        "UPDATE public.thing SET number = number + 1",
        "UPDATE public.thing SET number = number + 1 WHERE id < 10",
        "UPDATE public.thing SET number = number + 2 WHERE id % 3 = 0",
        "UPDATE public.thing SET id = id + 100 WHERE id > 20",
        "DELETE FROM public.thing WHERE id % 4 = 0",
        "UPDATE public.thing SET number = 2 * number + 1",
    ):
        pair.on_monolith(statement)
        catch_up(pair)
        assert pair.on_service("TABLE public.thing ORDER BY id") == pair.on_monolith(proper)
        pair.validate()


RING = (
    "CREATE TABLE public.thing (id integer PRIMARY KEY, part_id integer, word text);"
    "CREATE TABLE public.part (id integer PRIMARY KEY, thing_id integer NOT NULL"
    " REFERENCES public.thing ON DELETE CASCADE, next_id integer REFERENCES public.part);"
    "ALTER TABLE public.thing ADD CONSTRAINT of_part FOREIGN KEY (part_id)"
    " REFERENCES public.part DEFERRABLE INITIALLY DEFERRED;"
)
FILLED = (
    RING + "BEGIN; INSERT INTO public.thing SELECT n, n, 'word' FROM generate_series(1, 20) n;"
    "INSERT INTO public.part SELECT n, n, 1 + n % 20 FROM generate_series(1, 20) n; COMMIT"
)
TURN = (
    "BEGIN; INSERT INTO public.thing VALUES ({0}, {0}, 'new'); INSERT INTO public.part VALUES "
    "({0}, {0}, {0}); UPDATE public.thing SET part_id = {0} WHERE id = 3; COMMIT;"
    "UPDATE public.part SET next_id = NULL;"
    "UPDATE public.thing SET part_id = NULL WHERE part_id = 5;"
    "DELETE FROM public.thing WHERE id = 5"
)


def test_tables_that_refer_to_each_other_in_a_circle_move_and_come_back(
    make_pair: MakePair,
) -> None:
    tables: list[Mapping[str, object]] = [{"name": "public.part"}, THING]
    pair = make_pair(FILLED, RING, tables=tables)
    before = keys_of(pair, pair.service)
    bring_up(pair)
    pair.on_monolith(TURN.format(100))
    require_equal(pair)
    succeed(pair, "cutover")
    assert keys_of(pair, pair.service) == before
    pair.on_service(TURN.format(200).replace("= 5", "= 6"))
    require_equal(pair)
    succeed(pair, "rollback")
    assert keys_of(pair, pair.monolith) == before
    pair.on_monolith(TURN.format(300).replace("= 5", "= 7"))
    require_equal(pair)


def keys_of(pair: Pair, dsn: str) -> list[tuple[object, ...]]:
    run = pair.on_service if dsn == pair.service else pair.on_monolith
    return run(
        "SELECT conname, convalidated, pg_get_constraintdef(oid) FROM pg_constraint "
        "WHERE contype = 'f' AND connamespace = 'public'::regnamespace ORDER BY 1"
    )


def require_equal(pair: Pair) -> None:
    catch_up(pair)
    assert all(pair.compare(table) for table in pair.tables)
    pair.validate()


@pytest.mark.parametrize("action", ["ON DELETE CASCADE", "ON UPDATE SET NULL"])
def test_a_table_outside_the_family_that_a_key_changes_shuts_the_gate_of_a_cutover(
    make_pair: MakePair, action: str
) -> None:
    plain = "CREATE TABLE public.thing (id integer PRIMARY KEY, word text)"
    bill = f"CREATE TABLE public.bill (thing_id integer REFERENCES public.thing {action})"
    pair = make_pair(f"{plain}; {bill}", plain)
    says = ["public.bill", "bill_thing_id_fkey", action]
    for planned in ("--dry-run", "--json"):
        said = succeed(pair, "prepare", "--json", planned).stdout
        assert all(part in said for part in says)
    bring_up(pair)
    assert_refused(pair.run("cutover"), 3, ["cascades: ", *says])
    pair.on_monolith("ALTER TABLE public.bill DROP CONSTRAINT bill_thing_id_fkey")
    pair.validate()
    succeed(pair, "cutover")


def test_a_cascade_that_arrives_is_captured_until_the_cutover_which_says_what_comes(
    make_pair: MakePair,
) -> None:
    plain = "CREATE TABLE public.thing (id integer PRIMARY KEY, boss integer)"
    pair = make_pair(
        "CREATE TABLE public.boss (id integer PRIMARY KEY);"
        f"INSERT INTO public.boss VALUES (1), (2); {plain};"
        "ALTER TABLE public.thing ADD CONSTRAINT of_boss FOREIGN KEY (boss) "
        "REFERENCES public.boss ON DELETE CASCADE; INSERT INTO public.thing VALUES (1, 1), (2, 2)",
        plain,
    )
    bring_up(pair)
    pair.on_monolith("DELETE FROM public.boss WHERE id = 1")
    catch_up(pair)
    assert pair.on_service("SELECT id FROM public.thing") == [(2,)]
    planned = succeed(pair, "cutover", "--dry-run", "--json").json
    assert any("public.boss" in note and "of_boss" in note for note in planned["notes"])
