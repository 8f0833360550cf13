"""What the monolith refuses on the way back is kept, told, and tried again; all else goes home."""

from __future__ import annotations

import pytest

from tests.acceptance.fix_running import bring_up, catch_up, show_status, succeed
from tests.fix_pairs import MakePair, Pair, assert_refused
from tests.fix_postgres import execute

SERVICE = "CREATE TABLE public.thing (id integer PRIMARY KEY, word text, owner_id integer)"
MONOLITH = (
    "CREATE TABLE public.person (id integer PRIMARY KEY);"
    "INSERT INTO public.person SELECT generate_series(1, 5);"
    "CREATE TABLE public.thing (id integer PRIMARY KEY, word text, "
    "owner_id integer REFERENCES public.person);"
    "INSERT INTO public.thing SELECT n, 'word ' || n, 1 + n % 5 FROM generate_series(1, 50) n;"
    "CREATE TABLE public.note (thing_id integer REFERENCES public.thing)"
)


def quarantine(pair: Pair) -> None:
    """Make the service the owner, and have it write rows that the monolith does not take."""
    bring_up(pair)
    succeed(pair, "cutover")
    pair.on_monolith("INSERT INTO public.note VALUES (7)")
    pair.on_service("INSERT INTO public.thing VALUES (100, 'orphan', 99), (101, 'fine', 3)")
    pair.on_service("DELETE FROM public.thing WHERE id IN (7, 8)")
    catch_up(pair)


@pytest.fixture
def pair(make_pair: MakePair) -> Pair:
    """A service that owns the tables and has rows that the monolith does not take."""
    return make_pair(MONOLITH, SERVICE, brought_by=quarantine)


def listed(pair: Pair) -> list[tuple[str, str]]:
    return sorted((each["key"]["id"], each["kind"]) for each in show_status(pair)["quarantine"])


def test_the_rest_goes_through_and_both_are_told_everywhere(pair: Pair) -> None:
    assert listed(pair) == [("100", "write"), ("7", "delete")]
    there = execute(pair.monolith, "SELECT id FROM public.thing WHERE id IN (7, 8, 100, 101)")
    assert sorted(there) == [(7,), (101,)]
    validated = succeed(pair, "validate", "--checksums", "--json").json
    assert any("in quarantine" in note for note in validated["notes"])


def test_a_rollback_is_done_with_exit_code_9_and_the_next_cutover_waits(pair: Pair) -> None:
    back = pair.run("rollback", "--json")
    assert (back.exit_code, back.json["outcome"], back.json["owner"]) == (9, "done", "monolith")
    assert back.json["quarantined_rows"] == 2
    catch_up(pair)
    succeed(pair, "validate", "--checksums")
    assert_refused(pair.run("cutover"), 3, ["quarantine: ", "--retry-quarantine"])
    again = pair.run("rollback", "--retry-quarantine", "--json")
    assert (again.exit_code, again.json["outcome"]) == (9, "quarantined")
    pair.on_monolith("INSERT INTO public.person VALUES (99); DELETE FROM public.note")
    done = succeed(pair, "rollback", "--retry-quarantine", "--json").json
    assert (done["outcome"], done["quarantined_rows"]) == ("resolved", 0)
    catch_up(pair)
    assert pair.compare()
    there = execute(pair.monolith, "SELECT id FROM public.thing WHERE id IN (7, 8, 100, 101)")
    assert sorted(there) == [(100,), (101,)]
    succeed(pair, "validate", "--checksums")
    assert succeed(pair, "cutover", "--json").json["owner"] == "service"


def test_rows_are_tried_again_while_the_service_owns_them(pair: Pair) -> None:
    pair.on_monolith("INSERT INTO public.person VALUES (99)")
    left = pair.run("rollback", "--retry-quarantine", "--json")
    assert (left.exit_code, left.json["quarantined_rows"]) == (9, 1)
    assert listed(pair) == [("7", "delete")]
    assert_refused(pair.run("rollback", "--discard-quarantine"), 3, ["The service owns the tables"])


def test_an_owner_may_discard_what_it_has_refused(pair: Pair) -> None:
    assert pair.run("rollback").exit_code == 9
    succeed(pair, "rollback", "--discard-quarantine")
    assert listed(pair) == []
    catch_up(pair)
    assert pair.compare()
    there = execute(pair.service, "SELECT id FROM public.thing WHERE id IN (7, 100)")
    assert there == [(7,)]


def test_nobody_writes_over_a_row_that_the_owner_has_by_now(pair: Pair) -> None:
    assert pair.run("rollback").exit_code == 9
    pair.on_monolith("INSERT INTO public.thing VALUES (100, 'another', 1)")
    pair.on_monolith("INSERT INTO public.person VALUES (99)")
    assert pair.run("rollback", "--retry-quarantine").exit_code == 9
    assert listed(pair) == [("7", "delete")]
    assert execute(pair.monolith, "SELECT word FROM public.thing WHERE id = 100") == [("another",)]


def test_a_refused_change_of_a_row_is_made_when_its_cause_is_gone(pair: Pair) -> None:
    pair.on_service("UPDATE public.thing SET owner_id = 98, word = 'changed' WHERE id = 9")
    catch_up(pair)
    assert ("9", "write") in listed(pair)
    assert pair.run("rollback").exit_code == 9
    pair.on_monolith("INSERT INTO public.person VALUES (98)")
    assert pair.run("rollback", "--retry-quarantine").exit_code == 9
    rows = execute(pair.monolith, "SELECT word, owner_id FROM public.thing WHERE id = 9")
    assert rows == [("changed", 98)]


@pytest.mark.parametrize("is_synced", [False, True], ids=["not synced", "synced"])
def test_what_the_owner_has_written_since_is_not_undone_by_a_retry(
    pair: Pair, *, is_synced: bool
) -> None:
    assert pair.run("rollback").exit_code == 9
    pair.on_monolith("INSERT INTO public.person VALUES (99); DELETE FROM public.note")
    pair.on_monolith("UPDATE public.thing SET word = 'newer' WHERE id = 7")
    pair.on_monolith("INSERT INTO public.thing VALUES (100, 'anew', 1)")
    pair.on_monolith("DELETE FROM public.thing WHERE id = 100")
    if is_synced:
        catch_up(pair)
        assert listed(pair) == []
    assert pair.run("rollback", "--retry-quarantine").exit_code == 0
    assert listed(pair) == []
    catch_up(pair)
    rows = execute(pair.monolith, "SELECT id, word FROM public.thing WHERE id IN (7, 100)")
    assert rows == [(7, "newer")]
    assert pair.compare()


def test_a_cancel_does_not_drop_what_only_the_quarantine_has(pair: Pair) -> None:
    assert pair.run("rollback").exit_code == 9
    assert_refused(pair.run("cancel"), 3, ["in quarantine", "--retry-quarantine"])
    succeed(pair, "rollback", "--discard-quarantine")
    succeed(pair, "cancel")


def test_reads_do_not_go_to_a_service_whose_rows_the_owner_has_refused(pair: Pair) -> None:
    assert pair.run("rollback").exit_code == 9
    catch_up(pair)
    succeed(pair, "validate", "--checksums")
    assert_refused(pair.run("traffic", "5"), 3, ["in quarantine"])
