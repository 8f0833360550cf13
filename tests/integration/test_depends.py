"""Columns that depend on another table: its changes are followed, whatever happens in between."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest

from tests.acceptance.fix_running import (
    bring_up,
    catch_up,
    find_void,
    refuse_sync,
    show_status,
    succeed,
)
from tests.fix_orders import RunningCli, StartCli
from tests.fix_pairs import MakePair, Pair, assert_refused, picture

# The user of some things is not there, and no key says that he should be.
MONOLITH = (
    "CREATE TABLE public.person (id integer PRIMARY KEY, mail text, name text, seen integer);"
    "INSERT INTO public.person SELECT n, 'm' || n, 'n' || n, 0 FROM generate_series(1, 5) n;"
    "CREATE TABLE public.thing (id integer PRIMARY KEY, person_id integer);"
    "INSERT INTO public.thing SELECT n, 1 + n % 6 FROM generate_series(1, 24) n"
)
SERVICE = "CREATE TABLE public.thing (id integer PRIMARY KEY, person_id integer, mail text)"
DEPENDS: Mapping[str, object] = {
    "table": "public.person",
    "columns": ["mail"],
    "keys": "SELECT t.id FROM public.thing t WHERE t.person_id = changed.id -- all of them",
}
MAIL: Mapping[str, object] = {
    "sql": "(SELECT p.mail FROM public.person p WHERE p.id = thing.person_id)",
    "depends": DEPENDS,
}
PROPER = (
    "SELECT t.id, t.person_id, p.mail FROM public.thing t "
    "LEFT JOIN public.person p ON p.id = t.person_id ORDER BY t.id"
)
THERE = "SELECT id, person_id, mail FROM public.thing ORDER BY id"
WATCHES = (
    "SELECT tgname, tgenabled FROM pg_trigger WHERE tgname LIKE 'ordermigrate_parent%' ORDER BY 1"
)


def family(mail: Mapping[str, object] = MAIL, **more: object) -> list[Mapping[str, object]]:
    return [{"name": "public.thing", "columns": {"mail": mail}, **more}]


def make(make_pair: MakePair, monolith: str = MONOLITH) -> Pair:
    return make_pair(monolith, SERVICE, tables=family())


@pytest.fixture
def pair(make_pair: MakePair) -> Pair:
    """A pair that is followed, and proved equal."""
    return bring_up(make(make_pair))


def require_followed(pair: Pair) -> None:
    catch_up(pair)
    assert pair.on_service(THERE) == pair.on_monolith(PROPER)
    pair.validate()
    assert show_status(pair)["backlog"] == 0


def states(pair: Pair) -> set[str]:
    found = {state for _, state in pair.on_monolith(WATCHES)}
    return {state.decode() if isinstance(state, bytes) else state for state in found}


def test_a_change_in_a_table_that_a_column_depends_on_is_followed(pair: Pair) -> None:
    for statement in (
        "UPDATE public.person SET mail = 'new' WHERE id = 1",
        "INSERT INTO public.person VALUES (6, 'sixth', '', 0)",
        "DELETE FROM public.person WHERE id = 2",
        "UPDATE public.person SET id = 2 WHERE id = 3",
        "UPDATE public.person SET mail = NULL WHERE id = 4",
        # Rows of both in one transaction.
        (
            "UPDATE public.person SET mail = 'both' WHERE id = 5;"
            "UPDATE public.thing SET person_id = 5 WHERE id = 1;"
            "DELETE FROM public.thing WHERE id = 4"
        ),
        "SET session_replication_role = replica; UPDATE public.person SET mail = mail || '!'",
        # What is written is not what the statement says.
        (
            "CREATE FUNCTION public.rewrite() RETURNS trigger LANGUAGE plpgsql AS "
            "$f$ BEGIN NEW.mail := 'rewritten'; RETURN NEW; END $f$;"
            "CREATE TRIGGER rewrite BEFORE UPDATE ON public.person FOR EACH ROW "
            "EXECUTE FUNCTION public.rewrite();"
            "UPDATE public.person SET seen = 1 WHERE id = 1; DROP TRIGGER rewrite ON public.person"
        ),
        "TRUNCATE public.person; INSERT INTO public.person VALUES (1, 'again', '', 0)",
    ):
        pair.on_monolith(statement)
        assert show_status(pair)["backlog"] > 0, statement
        catch_up(pair)
        assert pair.on_service(THERE) == pair.on_monolith(PROPER), statement
    require_followed(pair)


def test_what_no_column_reads_is_not_logged(pair: Pair) -> None:
    pair.on_monolith("UPDATE public.person SET seen = seen + 1, name = 'x', mail = mail, id = id")
    assert show_status(pair)["backlog"] == 0


def test_changes_of_a_parent_beside_the_copy_arrive(make_pair: MakePair) -> None:
    pair = make(make_pair)
    succeed(pair, "prepare")
    pair.on_monolith("UPDATE public.person SET mail = 'before' WHERE id = 1")
    pair.copy()
    pair.on_monolith("UPDATE public.person SET mail = 'after' WHERE id = 2")
    require_followed(pair)


@pytest.mark.parametrize("event", ["changes_staged", "round_half_committed"])
def test_a_killed_round_loses_no_change_of_a_parent(
    pair: Pair, start_cli: StartCli, event: str
) -> None:
    pair.on_monolith("UPDATE public.person SET mail = 'new'; TRUNCATE public.person")
    pair.on_monolith("INSERT INTO public.person VALUES (3, 'third', '', 0)")
    pair.write_toml(tables=pair.tables, limits=pair.limits)
    killed = start_cli(
        "sync",
        "--once",
        at=(event, 1, RunningCli.kill),
        monolith=pair.monolith,
        service=pair.service,
    ).finish()
    assert killed.exit_code == -9, killed.stderr
    require_followed(pair)


def test_a_parent_that_is_not_watched_stops_sync_and_all_that_depends_on_it_is_looked_at(
    pair: Pair,
) -> None:
    (change, _), (cut, _), (update, _) = pair.on_monolith(WATCHES)
    for name, statement, says in (
        (update, f"ALTER TABLE public.person DISABLE TRIGGER {update}", "does not fire always"),
        (change, f"ALTER TABLE public.person ENABLE TRIGGER {change}", "does not fire always"),
        (cut, f"DROP TRIGGER {cut} ON public.person", "is missing"),
    ):
        pair.on_monolith(statement)
        pair.on_monolith("UPDATE public.person SET mail = mail || '?'")
        refuse_sync(pair, name, says, "ordermigrate prepare")
        assert name in "; ".join(show_status(pair)["capture_gaps"])
        succeed(pair, "prepare")
        require_followed(pair)


def test_a_watch_that_was_off_for_a_moment_is_noticed(pair: Pair) -> None:
    name = pair.on_monolith(WATCHES)[0][0]
    pair.on_monolith(f"ALTER TABLE public.person DISABLE TRIGGER {name}")
    pair.on_monolith(f"ALTER TABLE public.person ENABLE ALWAYS TRIGGER {name}")
    catch_up(pair)
    assert name in str(find_void(pair))


def test_a_lost_log_of_a_parent_is_made_good(pair: Pair) -> None:
    pair.on_monolith("UPDATE public.person SET mail = 'lost' WHERE id = 1")
    ((number,),) = pair.on_monolith(
        "SELECT number FROM ordermigrate.capture WHERE table_name LIKE 'public.person %'"
    )
    pair.on_monolith(f"DROP TABLE ordermigrate.change_log_{number}")
    refuse_sync(pair, "change log of public.person", "is missing")
    succeed(pair, "prepare")
    require_followed(pair)


def test_a_parents_column_of_another_kind_stops_sync(pair: Pair) -> None:
    pair.on_monolith("ALTER TABLE public.person RENAME COLUMN mail TO post")
    done = pair.run("sync", "--once")
    assert done.exit_code in {2, 3}
    assert "mail" in done.stderr
    pair.on_monolith("ALTER TABLE public.person RENAME COLUMN post TO mail")
    pair.on_monolith("ALTER TABLE public.person ADD more text; ALTER TABLE public.person DROP name")
    require_followed(pair)


def test_a_column_that_depends_is_the_services_own_until_a_rollback(pair: Pair) -> None:
    assert states(pair) == {"A"}
    succeed(pair, "cutover")
    assert states(pair) == {"D"}
    pair.on_monolith("UPDATE public.person SET mail = 'unseen' WHERE id = 1")
    pair.on_service("UPDATE public.thing SET mail = 'own' WHERE id = 2")
    pair.on_service("INSERT INTO public.thing VALUES (100, 3, 'own')")
    catch_up(pair)
    assert pair.on_service("SELECT id FROM public.thing WHERE mail = 'own' ORDER BY 1") == [
        (2,),
        (100,),
    ]
    pair.validate()
    assert show_status(pair)["backlog"] == 0
    succeed(pair, "rollback")
    assert states(pair) == {"A"}
    require_followed(pair)
    pair.on_monolith("UPDATE public.person SET mail = 'seen' WHERE id = 1")
    require_followed(pair)
    succeed(pair, "cutover")
    assert states(pair) == {"D"}


def test_a_cancel_leaves_a_parent_as_it_was(make_pair: MakePair) -> None:
    pair = make(make_pair)
    before = picture(pair.monolith)
    succeed(pair, "prepare")
    pair.on_monolith("UPDATE public.person SET seen = 0")
    succeed(pair, "cancel")
    assert [line for line in picture(pair.monolith) if "ordermigrate" in line] == []
    assert [line for line in picture(pair.monolith) if "file" not in line] == [
        line for line in before if "file" not in line
    ]


def test_a_parent_that_no_column_names_any_more_is_let_go(pair: Pair) -> None:
    frozen = pair.but(tables=family({"sql": MAIL["sql"], "frozen": True}))
    refuse_sync(frozen, "is not wanted any more", "ordermigrate prepare")
    pair.on_monolith("UPDATE public.person SET mail = 'unseen' WHERE id = 1")
    succeed(frozen, "prepare")
    assert states(pair) == {"D"}
    catch_up(frozen)
    assert show_status(frozen)["backlog"] == 0
    # And taken up again.
    refuse_sync(pair, "does not fire always", "ordermigrate prepare")
    succeed(pair, "prepare")
    require_followed(pair)


def test_a_table_of_the_family_can_be_one_that_another_depends_on(make_pair: MakePair) -> None:
    pair = bring_up(
        make_pair(
            MONOLITH,
            SERVICE + "; CREATE TABLE public.person "
            "(id integer PRIMARY KEY, mail text, name text, seen integer)",
            tables=[*family(), {"name": "public.person"}],
        )
    )
    pair.on_monolith("UPDATE public.person SET mail = 'new' WHERE id < 3")
    require_followed(pair)
    succeed(pair, "cutover")
    pair.on_service("UPDATE public.person SET mail = 'newer' WHERE id = 1")
    catch_up(pair)
    succeed(pair, "rollback")
    require_followed(pair)


FAR_READS: Sequence[tuple[Mapping[str, object], str]] = [
    ({**MAIL, "depends": {**DEPENDS, "columns": ["name"]}}, "reads public.person.mail"),
    ({"sql": MAIL["sql"]}, "reads public.person, which `depends` does not name"),
    ({**MAIL, "depends": {**DEPENDS, "keys": "SELECT t.id, 1 FROM public.thing t"}}, "columns"),
    (
        {
            **MAIL,
            "depends": {
                **DEPENDS,
                "keys": "SELECT t.id FROM public.thing t JOIN public.person p "
                "ON p.id = t.person_id WHERE p.id = changed.id",
            },
        },
        "keys of public.thing reads public.person",
    ),
]


def test_a_column_that_reads_what_it_does_not_name_is_refused(make_pair: MakePair) -> None:
    pair = make(make_pair)
    before = pair.pictures()
    for mail, says in FAR_READS:
        done = pair.but(tables=family(mail)).run("prepare")
        assert_refused(done, 2, ["columns.mail", says])
    nobody = {**MAIL, "depends": {**DEPENDS, "table": "public.nobody"}}
    done = pair.but(tables=family(nobody)).run("prepare")
    assert_refused(done, 2, ["no table public.nobody on the monolith"])
    assert pair.pictures() == before


def test_a_table_that_cannot_be_watched_is_refused(make_pair: MakePair) -> None:
    pair = make(make_pair)
    post = {**MAIL, "depends": {**DEPENDS, "columns": ["post"]}}
    for change, mail, says in (
        ("SELECT", post, "no column post"),
        ("ALTER TABLE public.person SET UNLOGGED", MAIL, "UNLOGGED"),
        ("CREATE TABLE public.heir () INHERITS (public.person)", MAIL, "has parts"),
        ("ALTER TABLE public.person DROP CONSTRAINT person_pkey", MAIL, "no primary key"),
    ):
        pair.on_monolith(change)
        done = pair.but(tables=family(mail)).run("prepare")
        assert_refused(done, 3, ["public.person, which column mail", says])


def test_a_filter_whose_answer_can_change_by_itself_is_refused(make_pair: MakePair) -> None:
    pair = make(make_pair)
    pair.on_monolith(
        "CREATE FUNCTION public.is_wanted(integer) RETURNS boolean LANGUAGE sql STABLE "
        "AS 'SELECT true'"
    )
    before = pair.pictures()
    for where, says in (
        ("person_id IN (SELECT p.id FROM public.person p)", "reads public.person"),
        ("random() < 2", "uses random()"),
        ("clock_timestamp() > '2000-01-01'", "uses clock_timestamp()"),
        ("now() > '2000-01-01'", "uses now()"),
        ("CURRENT_DATE > '2000-01-01'", "CURRENT_DATE"),
        ("public.is_wanted(id)", "uses public.is_wanted(integer)"),
    ):
        done = pair.but(tables=family(where=where)).run("prepare")
        assert_refused(done, 2, ["where of public.thing", says])
    assert pair.pictures() == before
