"""Cutover and rollback: one command changes the owner, another one changes it back."""

from __future__ import annotations

import psycopg
import pytest

from tests.acceptance.fix_running import (
    ROWS,
    TABLE,
    bring_up,
    catch_up,
    end_sync,
    show_status,
    succeed,
    syncing,
)
from tests.faults.fix_copying import await_true
from tests.fix_orders import StartCli
from tests.fix_pairs import MakePair, Pair, assert_refused
from tests.fix_postgres import execute

FENCED = "OM001"


@pytest.fixture
def pair(make_pair: MakePair) -> Pair:
    """A pair that is followed, and proved equal."""
    return make_pair(ROWS, TABLE, brought_by=bring_up)


def owner_of(pair: Pair) -> str:
    return str(show_status(pair)["owner"])


def require_owner(pair: Pair, owner: str) -> None:
    """Exactly one side takes writes, and it is this one."""
    assert owner_of(pair) == owner
    for side, dsn in (("monolith", pair.monolith), ("service", pair.service)):
        statement = "UPDATE public.thing SET number = number + 1 WHERE id = 7"
        if side == owner:
            execute(dsn, statement)
        else:
            with pytest.raises(psycopg.Error, match="fenced") as refused:
                execute(dsn, statement)
            assert refused.value.sqlstate == FENCED
            assert f"the {owner} owns it" in str(refused.value)


@pytest.mark.matrix
def test_ownership_goes_to_the_service_and_back(pair: Pair) -> None:
    require_owner(pair, "monolith")
    catch_up(pair)
    done = succeed(pair, "cutover", "--json").json
    assert (done["outcome"], done["owner"], done["phase"]) == ("done", "service", "cut_over")
    assert 0 < done["pause_seconds"] < 5
    require_owner(pair, "service")
    pair.on_service("INSERT INTO public.thing VALUES (1000, 'new', 1)")
    pair.on_service("DELETE FROM public.thing WHERE id = 3")
    catch_up(pair)
    assert pair.compare()
    pair.validate()
    back = succeed(pair, "rollback", "--json").json
    assert (back["outcome"], back["owner"], back["phase"]) == ("done", "monolith", "syncing")
    require_owner(pair, "monolith")
    catch_up(pair)
    assert pair.compare()
    again = succeed(pair, "cutover", "--json").json
    assert (again["outcome"], again["owner"]) == ("done", "service")
    require_owner(pair, "service")
    assert succeed(pair, "cutover", "--json").json["outcome"] == "already_done"


def test_a_running_sync_follows_the_owner_by_itself(pair: Pair, start_cli: StartCli) -> None:
    with syncing(pair, start_cli) as running:
        succeed(pair, "cutover")
        pair.on_service("INSERT INTO public.thing VALUES (1000, 'new', 1)")
        await_true(lambda: pair.on_monolith("SELECT 1 FROM public.thing WHERE id = 1000") != [])
        succeed(pair, "rollback")
        pair.on_monolith("INSERT INTO public.thing VALUES (1001, 'newer', 1)")
        await_true(lambda: pair.on_service("SELECT 1 FROM public.thing WHERE id = 1001") != [])
        end_sync(running)
    assert pair.compare()


def test_a_dry_run_tells_steps_gates_and_times_and_changes_nothing(pair: Pair) -> None:
    before = pair.pictures()
    planned = succeed(pair, "cutover", "--dry-run", "--json").json
    assert (planned["outcome"], planned["owner"], planned["pause_seconds"]) == (
        "planned",
        "monolith",
        None,
    )
    assert {gate["name"] for gate in planned["gates"]} >= {"validation", "lag", "way back"}
    assert all(gate["is_open"] for gate in planned["gates"])
    assert all(timing["seconds"] >= 0 for timing in planned["timings"])
    assert len(planned["steps_taken"]) > 5
    assert pair.pictures() == before


def test_all_shut_gates_are_told_at_once(pair: Pair) -> None:
    pair.on_monolith("UPDATE public.thing SET word = 'other' WHERE id = 1")
    pair.on_service("CREATE INDEX broken ON public.thing (number)")
    pair.on_service("UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'broken'::regclass")
    pair.behind_fence("UPDATE public.thing SET word = 'wrong' WHERE id = 2")
    assert pair.run("validate", "--checksums").exit_code == 4
    refused = pair.run("cutover", "--json")
    assert refused.exit_code == 3
    shut = refused.json["findings"]
    assert [each.partition(":")[0] for each in shut] == ["validation", "indexes"]
    assert "broken" in shut[1]
    require_owner(pair, "monolith")


@pytest.mark.parametrize("kind", ["absent", "without checksums", "void"])
def test_a_cutover_without_a_fresh_proof_is_refused(make_pair: MakePair, kind: str) -> None:
    pair = make_pair(ROWS, TABLE)
    succeed(pair, "copy")
    catch_up(pair)
    if kind == "without checksums":
        succeed(pair, "validate")
    if kind == "void":
        pair.validate()
        pair.on_monolith("VACUUM FULL public.thing")
        catch_up(pair)
    refused = pair.run("cutover")
    assert_refused(refused, 3, ["validation: ", "ordermigrate validate --checksums"])
    assert owner_of(pair) == "monolith"


@pytest.mark.matrix
def test_sequences_go_on_past_the_old_owners(make_pair: MakePair) -> None:
    table = "CREATE TABLE public.thing (id {} PRIMARY KEY, word text, number integer)"
    pair = make_pair(
        table.format("bigserial") + "; INSERT INTO public.thing (word) SELECT 'w' "
        "FROM generate_series(1, 50)",
        table.format("bigint GENERATED BY DEFAULT AS IDENTITY"),
    )
    bring_up(pair)
    drawn = pair.on_monolith("SELECT nextval('public.thing_id_seq')")[0][0]
    succeed(pair, "cutover")
    new = pair.on_service("INSERT INTO public.thing (word) VALUES ('x') RETURNING id")[0][0]
    assert new > drawn
    catch_up(pair)
    succeed(pair, "rollback")
    newer = pair.on_monolith("INSERT INTO public.thing (word) VALUES ('y') RETURNING id")[0][0]
    assert newer > new
    catch_up(pair)
    assert pair.compare()


def test_triggers_and_foreign_keys_are_on_at_the_owner_alone(make_pair: MakePair) -> None:
    schema = (
        "CREATE TABLE public.thing (id integer PRIMARY KEY, word text);"
        "CREATE TABLE public.part (id integer PRIMARY KEY, thing integer);"
        "ALTER TABLE public.part ADD CONSTRAINT belongs FOREIGN KEY (thing) "
        "REFERENCES public.thing DEFERRABLE INITIALLY DEFERRED;"
        "CREATE FUNCTION public.noted() RETURNS trigger LANGUAGE plpgsql AS "
        "$f$ BEGIN NEW.word = upper(NEW.word); RETURN NEW; END $f$;"
        "CREATE TRIGGER noted BEFORE INSERT ON public.thing FOR EACH ROW "
        "EXECUTE FUNCTION public.noted();"
        "CREATE TRIGGER always BEFORE UPDATE ON public.part FOR EACH ROW "
        "EXECUTE FUNCTION suppress_redundant_updates_trigger();"
        "ALTER TABLE public.part ENABLE ALWAYS TRIGGER always;"
        "CREATE TRIGGER never BEFORE UPDATE ON public.part FOR EACH ROW "
        "EXECUTE FUNCTION suppress_redundant_updates_trigger();"
        "ALTER TABLE public.part DISABLE TRIGGER never;"
    )
    rows = "INSERT INTO public.thing VALUES (1, 'a'); INSERT INTO public.part VALUES (1, 1)"
    pair = make_pair(
        schema + rows, schema, tables=[{"name": "public.part"}, {"name": "public.thing"}]
    )
    before = states(pair.monolith), states(pair.service)
    assert before[0] == before[1]
    bring_up(pair)
    assert states(pair.monolith) == before[0]
    assert states(pair.service) != before[1]
    succeed(pair, "cutover")
    assert states(pair.service) == before[1]
    assert states(pair.monolith) != before[0]
    pair.on_service("INSERT INTO public.thing VALUES (2, 'b')")
    assert pair.on_service("SELECT word FROM public.thing WHERE id = 2") == [("B",)]
    with pytest.raises(psycopg.errors.ForeignKeyViolation):
        pair.on_service("INSERT INTO public.part VALUES (2, 99)")
    catch_up(pair)
    assert pair.on_monolith("SELECT word FROM public.thing WHERE id = 2") == [("B",)]
    succeed(pair, "rollback")
    assert states(pair.monolith) == before[0]
    assert states(pair.service) != before[1]


def states(dsn: str) -> list[tuple[object, ...]]:
    """Return triggers and foreign keys as they are: on or off, deferrable, valid."""
    return execute(
        dsn,
        "SELECT tgname::text, tgenabled::text FROM pg_trigger WHERE NOT tgisinternal "
        "AND tgname NOT LIKE 'ordermigrate%' "
        "UNION ALL SELECT conname, pg_get_constraintdef(oid) FROM pg_constraint "
        "WHERE contype = 'f' AND conrelid = 'public.part'::regclass ORDER BY 1",
    )
