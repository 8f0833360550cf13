"""The way back is looked at before a cutover: what could not go home is told while it is early."""

from __future__ import annotations

from tests.acceptance.fix_running import bring_up, catch_up, show_status, succeed
from tests.fix_pairs import MakePair, assert_refused

MONOLITH = (
    "CREATE TABLE public.thing (id integer PRIMARY KEY, first text, last text, amount integer, "
    "kind varchar(10), note text DEFAULT 'by default');"
    "INSERT INTO public.thing SELECT n, 'a', 'b', n, 'k', 'mine' FROM generate_series(1, 20) n"
)
SERVICE = "CREATE TABLE public.thing (key integer PRIMARY KEY, name text, amount bigint, kind text)"
TABLES = [
    {
        "name": "public.thing",
        "columns": {"key": "id", "name": "first || ' ' || last || left(note, 0)"},
    }
]


def test_columns_that_cannot_go_back_keep_their_values_or_get_defaults(
    make_pair: MakePair,
) -> None:
    pair = bring_up(make_pair(MONOLITH, SERVICE, tables=TABLES))
    planned = succeed(pair, "cutover", "--dry-run", "--json").json
    notes = " ".join(planned["notes"])
    assert "amount of public.thing is integer on the monolith and bigint" in notes
    assert "kind of public.thing is character varying(10) on the monolith and text" in notes
    succeed(pair, "cutover")
    pair.on_service("UPDATE public.thing SET name = 'other', amount = 7 WHERE key = 1")
    pair.on_service("INSERT INTO public.thing VALUES (100, 'new', 8, 'k')")
    pair.on_service("DELETE FROM public.thing WHERE key = 2")
    catch_up(pair)
    rows = pair.on_monolith(
        "SELECT id, first, amount, note FROM public.thing WHERE id IN (1, 2, 100) ORDER BY id"
    )
    assert rows == [(1, "a", 7, "mine"), (100, None, 8, "by default")]
    succeed(pair, "validate", "--checksums")
    assert succeed(pair, "rollback", "--json").json["owner"] == "monolith"


def test_a_value_that_the_monolith_has_no_room_for_is_told_and_nothing_is_cut_off(
    make_pair: MakePair,
) -> None:
    pair = bring_up(make_pair(MONOLITH, SERVICE, tables=TABLES))
    succeed(pair, "cutover")
    pair.on_service("UPDATE public.thing SET kind = 'longer than ten' WHERE key = 1")
    refused = pair.run("sync", "--until-caught-up")
    assert refused.exit_code == 3
    assert "Traceback" not in refused.stderr
    assert pair.on_monolith("SELECT kind FROM public.thing WHERE id = 1") == [("k",)]
    assert show_status(pair)["backlog"] == 1
    pair.on_service("UPDATE public.thing SET kind = 'ten' WHERE key = 1")
    catch_up(pair)
    assert pair.on_monolith("SELECT kind FROM public.thing WHERE id = 1") == [("ten",)]


def test_a_column_that_no_row_of_the_service_could_fill_shuts_a_gate(make_pair: MakePair) -> None:
    monolith = MONOLITH.replace("first text", "first text NOT NULL")
    pair = bring_up(make_pair(monolith, SERVICE, tables=TABLES))
    refused = pair.run("cutover")
    assert_refused(refused, 3, ["way back: ", "column first", "has no default"])
    assert show_status(pair)["owner"] == "monolith"


def test_a_part_of_a_table_cannot_change_its_owner(make_pair: MakePair) -> None:
    tables = [{**TABLES[0], "where": "id < 10"}]
    pair = bring_up(make_pair(MONOLITH, SERVICE, tables=tables))
    assert_refused(pair.run("cutover"), 3, ["way back: ", "only a part of public.thing"])
