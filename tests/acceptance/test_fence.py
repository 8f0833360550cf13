"""On the service nobody but the program writes: refused by name, counted, shown, and mended."""

# ruff: noqa: S608  the statements are the test's own, on tables of its own

from __future__ import annotations

import time
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from tests.acceptance.fix_running import (
    PARTITIONED,
    ROWS,
    TABLE,
    WRITE,
    bring_up,
    catch_up,
    end_sync,
    ends,
    find_void,
    refuse_sync,
    require_end,
    show_status,
    succeed,
    syncing,
)
from tests.fix_orders import StartCli
from tests.fix_pairs import MakePair, MakeRole, Pair, role_dsn

FENCED = "OM001"
SAYS = "fenced: the monolith owns it"
PLAIN = "CREATE TABLE public.thing (id integer PRIMARY KEY, word text)"
FENCE = "TRIGGER ordermigrate_fence"
# A table of the service's own whose deletions and updates reach the family's.
BOSS = "CREATE TABLE public.boss (id integer PRIMARY KEY); INSERT INTO public.boss VALUES (7), (8);"
FAMILY = "CREATE TABLE public.thing (id integer PRIMARY KEY, boss integer, word text)"


@pytest.fixture
def pair(make_pair: MakePair) -> Pair:
    """A table of 50 rows, followed and proved."""
    return make_pair(ROWS, TABLE, brought_by=bring_up)


@pytest.fixture
def parted(make_pair: MakePair) -> Pair:
    """Partitioned on the service."""
    return make_pair(
        f"{PLAIN}; INSERT INTO public.thing SELECT n, 'w' FROM generate_series(1, 150) n",
        PARTITIONED.partition("INSERT")[0],
        brought_by=bring_up,
    )


def refuse_write(dsn: str, *statements: str) -> psycopg.Error:
    """The last statement is refused by the fence."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        for statement in statements[:-1]:
            connection.execute(statement.encode())
        with pytest.raises(psycopg.Error) as refused:
            connection.execute(statements[-1].encode())
    assert refused.value.sqlstate == FENCED
    assert SAYS in str(refused.value)
    assert "Write to the monolith's database" in str(refused.value)
    return refused.value


def refuse_copy(dsn: str, statement: str, line: str) -> None:
    """COPY is refused by the fence."""
    with (
        psycopg.connect(dsn) as connection,
        connection.cursor() as cursor,
        pytest.raises(psycopg.Error) as refused,
        cursor.copy(statement.encode()) as copy,
    ):
        copy.write(line)
    assert refused.value.sqlstate == FENCED


STATEMENTS = [
    "INSERT INTO public.thing VALUES (900, 'x')",
    "INSERT INTO public.thing VALUES (1, 'x') ON CONFLICT (id) DO UPDATE SET word = 'x'",
    "INSERT INTO public.thing VALUES (1, 'x') ON CONFLICT DO NOTHING",
    "UPDATE public.thing SET word = 'x' WHERE id = 1",
    "UPDATE public.thing SET word = 'x' WHERE false",
    "DELETE FROM public.thing WHERE id = 1",
    "TRUNCATE public.thing",
    "TRUNCATE public.thing CASCADE",
    "MERGE INTO public.thing t USING (VALUES (1)) s (id) ON t.id = s.id WHEN MATCHED THEN DELETE",
    "WITH gone AS (DELETE FROM public.thing RETURNING 1) SELECT count(*) FROM gone",
    "DO $$ BEGIN DELETE FROM public.thing; END $$",
]


def test_every_write_on_the_service_is_refused_counted_and_shown(
    make_pair: MakePair, make_role: MakeRole
) -> None:
    owner, app = make_role("owner"), make_role("app")
    pair = bring_up(make_pair(ROWS, TABLE))
    pair.on_service(f"GRANT ALL ON public.thing TO {app}")
    # The owner of the table has no right on the schema of the fence, and needs none.
    pair.on_service(f"ALTER TABLE public.thing OWNER TO {owner}")
    before = pair.on_service("SELECT * FROM public.thing ORDER BY id")
    assert show_status(pair)["refused_writes"] == 0
    for statement in STATEMENTS:
        refuse_write(pair.service, statement)
        refuse_write(role_dsn(pair.service, owner), statement)
        if "TRUNCATE" not in statement or "CASCADE" not in statement:
            refuse_write(role_dsn(pair.service, app), statement)
    count = 3 * len(STATEMENTS) - 1
    found = show_status(pair)
    assert found["refused_writes"] == count
    assert found["fences"] == {"monolith": "off", "service": "on"}
    assert f"{count} statements refused" in succeed(pair, "status").stdout
    assert pair.on_service("SELECT * FROM public.thing ORDER BY id") == before
    assert find_void(pair) is None
    pair.on_service("ALTER TABLE public.thing OWNER TO CURRENT_USER")
    require_end(pair)


def test_no_way_around_the_fence_is_left(pair: Pair) -> None:
    before = pair.on_service("SELECT * FROM public.thing ORDER BY id")
    write = "UPDATE public.thing SET word = 'x' WHERE id = 1"
    refuse_write(pair.service, "SET session_replication_role = replica", write)
    refuse_write(pair.service, "SET ordermigrate.pass = 'on'", write)
    refuse_write(pair.service, "SET ordermigrate.pass = ''", write)
    refuse_write(pair.service, f"PREPARE p AS {write}", "EXECUTE p")
    refuse_write(
        pair.service, "CREATE VIEW public.v AS SELECT * FROM public.thing", "DELETE FROM public.v"
    )
    refuse_write(
        pair.service,
        "CREATE RULE r AS ON INSERT TO public.v DO INSTEAD "
        "INSERT INTO public.thing VALUES (NEW.id, NEW.word, NEW.number)",
        "INSERT INTO public.v VALUES (901, 'x', 1)",
    )
    refuse_copy(pair.service, "COPY public.thing (id) FROM STDIN", "777\n")
    digest = pair.on_service(
        "SELECT substring(pg_get_triggerdef(oid) FROM '\\\\x[0-9a-f]+') FROM pg_trigger "
        "WHERE tgname = 'ordermigrate_fence'"
    )[0][0]
    refuse_write(pair.service, f"SET ordermigrate.pass = '{digest}'", write)
    assert pair.on_service("SELECT * FROM public.thing ORDER BY id") == before
    assert show_status(pair)["refused_writes"] == 8
    require_end(pair)


def test_a_statement_that_was_prepared_before_the_fence_is_refused(make_pair: MakePair) -> None:
    pair = make_pair(ROWS, TABLE)
    with (
        psycopg.connect(pair.service, autocommit=True) as connection,
        psycopg.connect(pair.service) as older,
    ):
        connection.execute("PREPARE p AS INSERT INTO public.thing VALUES ($1, 'early')")
        older.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        older.execute("SELECT count(*) FROM pg_class")
        succeed(pair, "prepare")
        for session, statement in (
            (connection, "EXECUTE p (900)"),
            (older, "INSERT INTO public.thing VALUES (901, 'early')"),
        ):
            with pytest.raises(psycopg.Error) as refused:
                session.execute(statement.encode())
            assert refused.value.sqlstate == FENCED
    bring_up(pair)


def test_a_write_straight_into_a_partition_is_refused(parted: Pair) -> None:
    for statement in STATEMENTS:
        refuse_write(parted.service, statement)
        refuse_write(parted.service, statement.replace("public.thing", "public.low"))
    refuse_copy(parted.service, "COPY public.low FROM STDIN", "77\tx\n")
    # A partition of which no round knows yet: a row that is written there is refused as well.
    parted.on_service(
        "CREATE TABLE public.more PARTITION OF public.thing FOR VALUES FROM (200) TO (300)"
    )
    refuse_write(parted.service, "INSERT INTO public.more VALUES (201, 'x')")
    catch_up(parted)
    refuse_write(parted.service, "TRUNCATE public.more")
    require_end(parted)


@pytest.mark.parametrize("action", ["CASCADE", "SET NULL", "SET DEFAULT"])
def test_a_cascade_from_another_table_of_the_service_is_refused_where_it_meets_rows(
    make_pair: MakePair, action: str
) -> None:
    refers = f"REFERENCES public.boss ON DELETE {action} ON UPDATE CASCADE"
    pair = make_pair(
        f"{FAMILY}; INSERT INTO public.thing SELECT n, 7, 'w' FROM generate_series(1, 5) n",
        BOSS + FAMILY.replace("boss integer", f"boss integer {refers}"),
    )
    bring_up(pair)
    refuse_write(pair.service, "DELETE FROM public.boss WHERE id = 7")
    refuse_write(pair.service, "UPDATE public.boss SET id = 9 WHERE id = 7")
    # Who has no row in the family can be deleted.
    pair.on_service("DELETE FROM public.boss WHERE id = 8")
    assert pair.on_service("SELECT id FROM public.boss") == [(7,)]
    assert show_status(pair)["refused_writes"] == 2
    refuse_write(pair.service, "TRUNCATE public.boss CASCADE")
    require_end(pair)


@pytest.mark.parametrize("is_running", [True, False])
@pytest.mark.parametrize(
    ("gap", "says"),
    [
        (f"ALTER TABLE public.thing DISABLE {FENCE}", "ordermigrate_fence on public.thing"),
        (f"ALTER TABLE public.thing ENABLE {FENCE}_row", "ordermigrate_fence_row on public.thing"),
        ("ALTER TABLE public.thing DISABLE TRIGGER ALL", "ordermigrate_fence"),
        (f"DROP {FENCE} ON public.thing", "ordermigrate_fence on public.thing was dropped"),
    ],
)
def test_a_fence_that_somebody_takes_down_is_mended_and_the_proof_void(
    pair: Pair, start_cli: StartCli, gap: str, says: str, *, is_running: bool
) -> None:
    if is_running:
        with syncing(pair, start_cli) as running:
            pair.on_service(gap)
            running.wait_for_event("validation_voided")
            refuse_write(pair.service, "DELETE FROM public.thing WHERE id = 3")
            pair.on_monolith(WRITE)
            running.wait_for_event("round_applied")
            end_sync(running)
    else:
        pair.on_service(gap)
        assert show_status(pair)["fences"]["service"] in {"partial", "off"} or "_row" in gap
        with psycopg.connect(pair.service) as connection:
            connection.execute("SET session_replication_role = replica")
            if "ALL" in gap:
                connection.execute("UPDATE public.thing SET word = 'alien' WHERE id = 3")
        done = catch_up(pair)
        assert "the fence on the service was mended" in done.stderr
        refuse_write(pair.service, "DELETE FROM public.thing WHERE id = 3")
    assert "the fence on the service was down: trigger " in (find_void(pair) or "")
    assert says in (find_void(pair) or "")
    assert show_status(pair)["fences"]["service"] == "on"
    succeed(pair, "validate", "--checksums", "--repair")
    require_end(pair)


def test_a_fence_that_was_down_for_a_moment_is_noticed(pair: Pair) -> None:
    pair.on_service(
        "BEGIN; ALTER TABLE public.thing DISABLE TRIGGER USER;"
        "UPDATE public.thing SET word = 'alien' WHERE id = 3;"
        f"ALTER TABLE public.thing ENABLE ALWAYS {FENCE};"
        f"ALTER TABLE public.thing ENABLE ALWAYS {FENCE}_row; COMMIT"
    )
    catch_up(pair)
    assert "was switched off and on again" in (find_void(pair) or "")
    done = pair.run("validate", "--checksums")
    assert done.exit_code == 4, done.stderr
    assert "alien" in done.stdout
    succeed(pair, "validate", "--checksums", "--repair")
    require_end(pair)


NEW_TRIGGER = (
    "CREATE TRIGGER new BEFORE UPDATE ON public.thing FOR EACH ROW EXECUTE FUNCTION public.shout()"
)
TRIGGER = (
    "CREATE FUNCTION public.shout() RETURNS trigger LANGUAGE plpgsql AS "
    "$f$ BEGIN NEW.word := upper(NEW.word); RETURN NEW; END $f$;"
    "CREATE TRIGGER shout BEFORE INSERT OR UPDATE ON public.thing FOR EACH ROW "
    "EXECUTE FUNCTION public.shout()"
)


def test_a_trigger_that_is_switched_on_at_the_service_is_refused_and_prepare_switches_it_off(
    make_pair: MakePair,
) -> None:
    pair = bring_up(make_pair(ROWS, f"{TABLE}; {TRIGGER}"))
    assert "trigger shout on public.thing" in show_status(pair)["objects_off"]
    pair.on_monolith(WRITE)
    pair.on_service("ALTER TABLE public.thing ENABLE TRIGGER shout")
    refuse_sync(pair, "trigger shout on public.thing", "ordermigrate prepare")
    assert show_status(pair)["backlog"] == 10
    assert "trigger shout on public.thing is off" in succeed(pair, "prepare").stderr
    require_end(pair)
    # One that is new, too; and both are back when the migration is cancelled.
    pair.on_service(NEW_TRIGGER)
    refuse_sync(pair, "trigger new on public.thing")
    succeed(pair, "prepare")
    require_end(pair)
    succeed(pair, "cancel")
    assert pair.on_service(
        "SELECT tgname, tgenabled FROM pg_trigger WHERE tgname IN ('new', 'shout') ORDER BY 1"
    ) == [("new", "O"), ("shout", "O")]


def test_a_foreign_key_inside_the_family_that_is_put_up_is_refused_and_prepare_takes_it_off(
    make_pair: MakePair,
) -> None:
    part = "CREATE TABLE public.part (id integer PRIMARY KEY, thing integer)"
    pair = make_pair(
        f"{ROWS}; {part}; INSERT INTO public.part SELECT n, n FROM generate_series(1, 9) n",
        f"{TABLE}; {part}",
        tables=[{"name": "public.thing"}, {"name": "public.part"}],
    )
    bring_up(pair)
    pair.on_monolith("DELETE FROM public.part WHERE id = 9; DELETE FROM public.thing WHERE id = 9")
    pair.on_service(
        "ALTER TABLE public.part ADD CONSTRAINT belongs FOREIGN KEY (thing) REFERENCES public.thing"
    )
    refuse_sync(pair, "foreign key belongs on public.part", "ordermigrate prepare")
    assert show_status(pair)["backlog"] == 2
    succeed(pair, "prepare")
    require_end(pair)
    succeed(pair, "cancel")
    assert pair.on_service("SELECT convalidated FROM pg_constraint WHERE conname = 'belongs'") == [
        (True,)
    ]


def test_the_count_of_refused_writes_survives_what_is_rolled_back(pair: Pair) -> None:
    options = "-c default_transaction_isolation=serializable"
    for _ in range(3):
        refuse_write(make_conninfo(pair.service, options=options), "DELETE FROM public.thing")
    assert show_status(pair)["refused_writes"] == 3
    pair.on_service("DROP SEQUENCE ordermigrate.refused_writes")
    found = show_status(pair)
    assert found["refused_writes"] is None
    succeed(pair, "status")


def test_a_cascade_after_the_last_count_of_a_copy_is_refused(
    make_pair: MakePair, start_cli: StartCli, tmp_path: Path
) -> None:
    """What has been counted stays: the fence per row is up before, not after."""
    refers = "REFERENCES public.boss ON DELETE CASCADE"
    pair = make_pair(
        f"{FAMILY}; INSERT INTO public.thing SELECT n, 7, 'w' FROM generate_series(1, 5) n",
        BOSS + FAMILY.replace("boss integer", f"boss integer {refers}"),
    )
    brake = tmp_path / "hold on"
    brake.touch()
    pair.write_toml(tables=pair.tables, limits=pair.limits)
    running = start_cli("copy", "--throttle", f"file={brake}", **ends(pair))
    running.wait_for_event("throttled")
    with psycopg.connect(pair.service) as one, psycopg.connect(pair.monolith) as other:
        # The primary key does not come back before this is over, and so does nothing after it.
        one.execute("LOCK TABLE public.thing IN ROW EXCLUSIVE MODE")
        brake.unlink()
        running.wait_for_event("rows_copied")
        # The copy is counted before the monolith's tables are looked at for the last time.
        other.execute("LOCK TABLE public.thing IN ACCESS EXCLUSIVE MODE")
        one.rollback()
        waiting = (
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() "
            "AND application_name = 'ordermigrate copy: end' AND wait_event_type = 'Lock'"
        )
        deadline = time.monotonic() + 20
        while pair.on_monolith(waiting) != [(1,)]:
            assert time.monotonic() < deadline, running.events
            time.sleep(0.02)
        refuse_write(pair.service, "DELETE FROM public.boss WHERE id = 7")
    done = running.finish()
    assert done.exit_code == 0, done.stderr
    assert pair.on_service("SELECT count(*) FROM public.thing") == [(5,)]
    require_end(pair)
