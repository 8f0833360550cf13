"""Cleanup: the monolith's tables go when it is safe, and no trace of the migration is left."""

# ruff: noqa: S608  the statements are the test's own, on tables of its own

from __future__ import annotations

import io
import json
import os
import shutil
import stat
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest

from ordermigrate import backup, programs
from tests.acceptance.fix_running import bring_up, ends, succeed
from tests.acceptance.test_json_documents import check
from tests.faults.fix_copying import await_true
from tests.fix_cleanup import CONFIRMED, MONOLITH, SERVICE, TABLES, Shop, unreachable
from tests.fix_cut_over import cut_over, prove
from tests.fix_orders import RunningCli, identical
from tests.fix_pairs import PASSWORD, MakePair, MakeRole, Pair, assert_refused, role_dsn
from tests.fix_postgres import MakeDatabase, Side

DAY_LATER = (
    "UPDATE ordermigrate.side SET intent = jsonb_set(intent, '{cleanup,renamed_at}', "
    "to_jsonb((now() - interval '25 hours')::text))"
)
PROBE = "SELECT count(*) FROM public.part"


# ------------------------------------------------------------------------------------- the way


def test_a_cleaned_up_migration_leaves_no_trace_on_either_side(shop: Shop) -> None:
    before = shop.pair.pictures()
    planned = shop.clean("--dry-run", "--json").json
    assert planned["outcome"] == "planned"
    assert any(step.startswith("drop public") for step in planned["steps_taken"])
    assert "drop schema ordermigrate on the service" in planned["steps_taken"]
    assert shop.pair.pictures() == before
    done = shop.clean("--json").json
    assert (done["outcome"], done["owner"], done["phase"]) == ("cleaned", "service", "new")
    assert done["backup"] == str(shop.file)
    shop.require_clean()
    shop.require_done()
    shop.pair.on_service('INSERT INTO public."Thing One" (id) VALUES (900); DELETE FROM part')


def test_what_only_has_our_name_stays_and_is_told(shop: Shop) -> None:
    shop.pair.on_service("CREATE TABLE public.seen_ordermigrate (id integer)")
    done = shop.clean()
    assert "relation public.seen_ordermigrate on the service" in done.stdout
    shop.pair.on_service("DROP TABLE public.seen_ordermigrate")
    shop.require_clean()


def test_tables_are_renamed_first_and_dropped_when_the_wait_is_over(shop: Shop) -> None:
    pair = shop.but(cleanup_wait_hours=24)
    done = shop.clean("--json", cleanup_wait_hours=24).json
    assert (done["outcome"], done["phase"]) == ("renamed", "cut_over")
    for table in ('public."Thing One"', "public.part", "public.low"):
        with pytest.raises(psycopg.errors.UndefinedTable):
            pair.on_monolith(f"SELECT count(*) FROM {table}")
    shop.require_half()
    before = pair.pictures()
    # Too early, nobody is asked for anything, and nothing is done.
    again = succeed(pair, "cleanup", "--json").json
    assert (again["outcome"], again["drop_after"]) == ("renamed", done["drop_after"])
    assert "wait until" in succeed(pair, "cleanup", "--dry-run").stdout
    assert pair.pictures() == before
    pair.on_monolith(DAY_LATER)
    assert_refused(pair.run("cleanup"), 2, ["--confirm"])
    assert shop.clean("--json", cleanup_wait_hours=24).json["outcome"] == "cleaned"
    shop.require_clean()
    shop.require_done()


def test_a_rename_can_be_undone(shop: Shop) -> None:
    pair = shop.but(cleanup_wait_hours=24)
    before = pair.pictures()
    assert "nothing to do" in succeed(pair, "cleanup", "--undo").stdout
    assert pair.pictures() == before
    shop.clean(cleanup_wait_hours=24)
    renamed = pair.pictures()
    assert "name back" in succeed(pair, "cleanup", "--undo", "--dry-run").stdout
    assert pair.pictures() == renamed
    assert succeed(pair, "cleanup", "--undo", "--json").json["outcome"] == "undone"
    assert pair.pictures() == before
    shop.clean()
    shop.require_clean()


def test_a_name_that_was_taken_meanwhile_is_told_before_anything_is_undone(shop: Shop) -> None:
    pair = shop.but(cleanup_wait_hours=24)
    before = pair.pictures()
    shop.clean(cleanup_wait_hours=24)
    pair.on_monolith("CREATE VIEW public.part AS SELECT 1 AS id")
    pair.refuse("cleanup", "--undo", exit_code=3, says=["public.part", "by now"])
    pair.on_monolith("DROP VIEW public.part")
    succeed(pair, "cleanup", "--undo")
    assert pair.pictures() == before


def test_every_document_of_a_cleanup_is_as_its_schema_says(shop: Shop) -> None:
    pair = shop.but(cleanup_wait_hours=24)
    for outcome, *args in (
        ("planned", *CONFIRMED, "--dry-run"),
        ("renamed", *CONFIRMED),
        ("planned", "--dry-run"),
        ("undone", "--undo"),
        ("nothing_to_do", "--undo"),
    ):
        document = succeed(pair, "cleanup", *args, "--json").json
        check("cleanup", document)
        assert document["outcome"] == outcome
    for outcome in ("cleaned", "nothing_to_do"):
        document = shop.clean("--json").json
        check("cleanup", document)
        assert document["outcome"] == outcome


# ------------------------------------------------------------------------------------ the gates


def test_every_reason_against_a_cleanup_is_told_at_once(shop: Shop) -> None:
    pair = shop.pair
    pair.on_service("UPDATE ordermigrate.run SET phase_since = now() - interval '12 days'")
    prove(pair, ago="2 hours")
    pair.on_monolith(
        "CREATE TABLE public.bills (id integer PRIMARY KEY, thing integer "
        'CONSTRAINT of_thing REFERENCES public."Thing One");'
        'CREATE VIEW public.words AS SELECT word FROM public."Thing One";'
        "CREATE FUNCTION public.first_part() RETURNS bigint LANGUAGE sql "
        "BEGIN ATOMIC SELECT count(*) FROM public.part; END"
    )
    done = shop.refuse(
        "12.0 of 30 days",
        "120 minutes old",
        'foreign key of_thing of public.bills points at public."Thing One"',
        "view public.words depends on",
        "function public.first_part() depends on",
    )
    assert done.stderr.count("of_thing") == 1
    findings = succeed_not(pair, "cleanup", "--json")["findings"]
    assert len(findings) == 5
    shop.refuse("12.0 of 12.5 days", cleanup_after_days=12.5)
    done = shop.refuse("of_thing", cleanup_after_days=12)
    assert "12.0 of" not in done.stderr


def succeed_not(pair: Pair, *args: str) -> dict[str, list[str]]:
    """Return the document of a refusal."""
    done = pair.run(*args)
    assert done.exit_code == 3
    found: dict[str, list[str]] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize(
    ("verdict", "algorithm", "says"),
    [
        ("different", "md5", "found differences"),
        ("equal", None, "has only counted"),
    ],
)
def test_a_validation_that_proves_nothing_does_not_open_the_gate(
    shop: Shop, verdict: str, algorithm: str | None, says: str
) -> None:
    prove(shop.pair, verdict=verdict, algorithm=algorithm)
    shop.refuse(says, "ordermigrate validate --checksums")


def test_a_validation_from_before_the_cutover_does_not_open_the_gate(
    make_pair: MakePair,
) -> None:
    pair = make_pair(MONOLITH, SERVICE, tables=TABLES)
    cut_over(bring_up(pair), is_proved=False)
    pair.refuse("cleanup", *CONFIRMED, exit_code=3, says=["minutes old; validation_age_minutes"])
    pair.on_service("DELETE FROM ordermigrate.validation")
    pair.refuse("cleanup", *CONFIRMED, exit_code=3, says=["there was no validation"])
    prove(pair)
    pair.on_service("INSERT INTO ordermigrate.voiding (reason) VALUES ('of a failover')")
    pair.refuse("cleanup", *CONFIRMED, exit_code=3, says=["void: of a failover"])


def test_a_migration_whose_owner_is_the_monolith_is_not_cleaned_up(make_pair: MakePair) -> None:
    pair = bring_up(make_pair(MONOLITH, SERVICE, tables=TABLES))
    says = ["the service does not own the tables", "the monolith is hot", "phase syncing"]
    pair.refuse("cleanup", *CONFIRMED, exit_code=3, says=says)
    pair.refuse("cleanup", "--dry-run", exit_code=3, says=says)


def test_a_table_that_was_not_moved_is_never_dropped(shop: Shop) -> None:
    strange = shop.pair.but(tables=[*TABLES, {"name": "public.users"}])
    says = ["public.users on the monolith is not the table that was moved"]
    strange.refuse("cleanup", *CONFIRMED, exit_code=3, says=says)
    fewer = shop.pair.but(tables=TABLES[:1])
    fewer.refuse("cleanup", *CONFIRMED, exit_code=3, says=["public.part was moved, too"])


def test_a_fence_with_a_gap_and_a_trigger_that_is_off_stop_a_cleanup(shop: Shop) -> None:
    shop.pair.on_monolith("ALTER TABLE public.low DISABLE TRIGGER ordermigrate_fence")
    shop.pair.on_service(
        "UPDATE ordermigrate.recorded_object SET state = 'off' WHERE object_name = 'noted'"
    )
    shop.refuse("fence is not whole", "public.low", "trigger noted", "still off on the service")


def test_a_sync_that_is_at_work_stops_a_cleanup(shop: Shop) -> None:
    with psycopg.connect(shop.pair.service) as syncing:
        syncing.execute("SELECT pg_advisory_lock(hashtextextended('ordermigrate sync', 0))")
        shop.refuse("`ordermigrate sync` is at work on the monolith's tables: end it")
    shop.clean()
    shop.require_clean()


# ----------------------------------------------------------------------------------- the question


@pytest.mark.parametrize("given", [(), ("--confirm", "public.part"), ("--confirm", "x")])
def test_without_the_tables_name_nothing_is_done(shop: Shop, given: Sequence[str]) -> None:
    done = shop.pair.refuse(
        "cleanup", *given, exit_code=2, says=['--confirm public."Thing One"', "nothing was done"]
    )
    assert done.stdout == ""
    assert not list(shop.folder.glob("ordermigrate-backup*"))


@pytest.mark.parametrize(("answer", "exit_code"), [('public."Thing One"', 0), ("yes", 2)])
def test_on_a_terminal_the_tables_name_is_asked_for(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, answer: str, exit_code: int
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr("sys.stdin", Terminal(f"{answer}\n"))
    done = shop.pair.run("cleanup")
    assert done.exit_code == exit_code, done.stderr
    assert "drop public" in done.stderr
    if exit_code == 0:
        shop.require_clean()
    monkeypatch.setattr("sys.stdin", Terminal(""))
    if exit_code == 0:
        assert "nothing to do" in succeed(shop.pair, "cleanup").stdout


# ------------------------------------------------------------------------------------- the backup


def test_the_backup_holds_every_row_and_can_be_restored(
    shop: Shop, make_database: MakeDatabase, tmp_path: Path
) -> None:
    empty = make_database("service", script="CREATE TABLE public.users (id integer PRIMARY KEY)")
    copy = make_database("monolith", script=MONOLITH)
    shop.clean("--backup", str(tmp_path / "kept" / "here"))
    (file,) = tmp_path.glob("kept/here/*.dump")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert sorted(each.suffix for each in file.parent.iterdir()) == [".dump", ".list"]
    with psycopg.connect(empty) as connection:
        connection.execute("INSERT INTO public.users SELECT n FROM generate_series(1, 50) n")
    subprocess.run(
        [
            *("pg_restore", "--exit-on-error", "--no-owner", f"--dbname={empty}"),
            *(f"--use-list={file.with_suffix('.list')}", str(file)),
        ],
        check=True,
    )
    for table in ('public."Thing One"', "public.part", "public.low", "public.high"):
        assert identical(copy, empty, table)


def test_a_password_is_in_nobodys_process_list(
    make_role: MakeRole, make_pair: MakePair, tmp_path: Path
) -> None:
    role = make_role("owner", "SUPERUSER")
    pair = make_pair(MONOLITH, SERVICE, tables=TABLES, limits={"cleanup_wait_hours": 0})
    cut_over(bring_up(pair))
    pair = pair.but(monolith_dsn=role_dsn(pair.monolith, role))
    programs = wrap_programs(tmp_path, 'echo "$0 $@" >> "$(dirname "$0")/called"')
    done = pair.run("cleanup", *CONFIRMED, env=programs)
    assert done.exit_code == 0, done.stderr
    called = (tmp_path / "programs" / "called").read_text()
    assert f"user={role}" in called
    assert PASSWORD not in called + done.stdout + done.stderr


def wrap_programs(tmp_path: Path, first: str) -> dict[str, str]:
    """Put programs on the PATH that do something first; return the environment."""
    folder = tmp_path / "programs"
    folder.mkdir()
    for name in ("pg_dump", "pg_restore"):
        real = shutil.which(name)
        assert real
        script = folder / name
        script.write_text(f'#!/bin/sh\n{first}\nexec {real} "$@"\n')
        script.chmod(0o755)
    return {"PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"}


def test_without_programs_for_a_backup_nothing_is_dropped(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(programs, "_PLACES", ())
    before = shop.pair.pictures()
    done = shop.pair.run("cleanup", *CONFIRMED, env={"PATH": str(tmp_path)})
    assert_refused(done, 3, ["pg_dump", "install PostgreSQL's client programs"])
    old = wrap_programs(tmp_path, 'echo "$0 (PostgreSQL) 9.6.24"; exit 0')
    done = shop.pair.run("cleanup", *CONFIRMED, env=old)
    assert_refused(done, 3, ["or later, which the monolith's backup needs"])
    assert shop.pair.pictures() == before


@pytest.mark.parametrize(
    "trouble",
    [
        'case "$*" in *--version*|*--list*) ;; *) echo "disk full" >&2; exit 1;; esac',
        # The file is shorter than it was written: its list stands at the beginning.
        'case "$*" in *--list*) for f; do :; done; truncate -s -200 "$f";; esac',
    ],
)
def test_a_backup_that_is_not_complete_stops_a_cleanup_before_any_rename(
    shop: Shop, tmp_path: Path, trouble: str
) -> None:
    tables = shop.pair.on_monolith("SELECT relname FROM pg_class WHERE relkind IN ('r', 'p')")
    done = shop.pair.run("cleanup", *CONFIRMED, env=wrap_programs(tmp_path, trouble))
    assert_refused(done, 5, ["has failed", "A complete backup"])
    assert (
        shop.pair.on_monolith("SELECT relname FROM pg_class WHERE relkind IN ('r', 'p')") == tables
    )
    assert not list(shop.folder.glob("ordermigrate-backup/*.dump"))
    shop.finish()


def test_an_interrupted_backup_leaves_no_program_at_work(shop: Shop, tmp_path: Path) -> None:
    programs = wrap_programs(
        tmp_path,
        'case "$*" in *--version*) ;; *) echo $$ > "$0.new"; mv "$0.new" "$0.pid"; '
        "exec sleep 600;; esac",
    )
    pair = shop.pair
    pair.write_toml(tables=pair.tables, limits=pair.limits)
    running = shop.start_cli("cleanup", *CONFIRMED, env=programs, **ends(pair))
    noted = tmp_path / "programs" / "pg_dump.pid"
    await_true(noted.exists)
    running.interrupt()
    assert running.finish(timeout_seconds=30).exit_code == 130
    with pytest.raises(ProcessLookupError):
        os.kill(int(noted.read_text()), 0)
    shop.require_half()
    shop.finish()


def test_what_a_killed_backup_has_left_at_work_is_ended(shop: Shop) -> None:
    left = psycopg.connect(shop.pair.monolith, application_name=backup.APPLICATION_NAME)
    left.execute(PROBE)
    shop.clean()  # which could not have the tables beside that session
    left.close()
    shop.require_clean()


def test_a_backup_that_has_changed_or_is_gone_stops_the_drop(shop: Shop) -> None:
    shop.clean(cleanup_wait_hours=24)
    whole = shop.file.read_bytes()
    shop.file.write_bytes(whole[:-1] + b"x")
    shop.refuse("is not there as it was made", "--undo")
    elsewhere = shop.folder / "elsewhere"
    elsewhere.mkdir()
    name = shop.file.name
    shop.file.unlink()
    shop.refuse("is not there as it was made")
    (elsewhere / name).write_bytes(whole)
    shop.clean("--backup", str(elsewhere))
    shop.require_clean()


def test_rows_that_came_after_the_backup_have_it_made_again(shop: Shop) -> None:
    shop.kill_at("backed_up")
    first = shop.file.read_bytes()
    # As a round of a sync would that had begun before.
    shop.pair.on_monolith(
        "ALTER TABLE public.part DISABLE TRIGGER USER; INSERT INTO public.part VALUES (77, 7);"
        "ALTER TABLE public.part ENABLE ALWAYS TRIGGER ordermigrate_fence;"
        "ALTER TABLE public.part ENABLE ALWAYS TRIGGER ordermigrate_fence_row;"
        "UPDATE ordermigrate.side SET round = round + 1"
    )
    shop.finish()
    assert shop.file.read_bytes() != first


# -------------------------------------------------------------------------------- beside others


@contextmanager
def living(dsn: str, statement: str) -> Iterator[list[float]]:
    """Run a statement all the while, with little patience; it may never fail."""
    is_over, seconds, errors = threading.Event(), list[float](), list[Exception]()

    def work() -> None:
        try:
            with psycopg.connect(dsn, autocommit=True, options="-c lock_timeout=1500") as session:
                while not is_over.wait(0.005):
                    began = time.monotonic()
                    session.execute(statement.encode())
                    seconds.append(time.monotonic() - began)
        except Exception as error:  # noqa: BLE001  told to the test
            errors.append(error)

    worker = threading.Thread(target=work)
    worker.start()
    try:
        yield seconds
    finally:
        is_over.set()
        worker.join()
    assert errors == []
    assert len(seconds) > 5


def test_nobody_who_uses_the_service_or_a_neighbour_notices_a_cleanup(shop: Shop) -> None:
    number = "UPDATE public.users SET id = id WHERE id = 3"
    word = "UPDATE public.\"Thing One\" SET word = word || '!' WHERE id = 3"
    with living(shop.pair.monolith, number), living(shop.pair.service, word):
        shop.clean()
    shop.pair.on_service("SELECT 1")
    shop.require_done()


def test_a_reader_of_the_neighbour_holds_the_drop_up_and_nobody_else(shop: Shop) -> None:
    with psycopg.connect(shop.pair.monolith) as reader:
        reader.execute("SELECT count(*) FROM public.users")
        with living(shop.pair.monolith, "SELECT count(*) FROM public.users"):
            done = shop.pair.run("cleanup", *CONFIRMED)
            assert_refused(done, 5, ["lock on the monolith could not be had"])
    shop.finish()


def test_a_reader_of_the_monoliths_table_is_named_and_cleanup_can_be_run_again(
    shop: Shop,
) -> None:
    with psycopg.connect(shop.pair.monolith) as reader:
        reader.execute(PROBE)
        done = shop.but(lock_timeout_seconds=1).run("cleanup", *CONFIRMED)
        assert_refused(done, 5, ["backend", PROBE])
    shop.finish()


def test_a_second_cleanup_at_the_same_time_is_told_that_another_is_at_work(shop: Shop) -> None:
    with psycopg.connect(shop.pair.service) as another:
        another.execute("SELECT pg_advisory_lock(hashtextextended('ordermigrate operator', 0))")
        assert_refused(shop.pair.run("cleanup", *CONFIRMED), 6, ["at work"])
    shop.finish()


# ------------------------------------------------------------------------------ one side is away


def away(shop: Shop, side: Side) -> Pair:
    """Return the pair with one side that nobody can reach."""
    pair = shop.but(retry_deadline_seconds=0)
    if side == "monolith":
        return pair.but(monolith_dsn=unreachable(pair.monolith))
    return pair.but(service_dsn=unreachable(pair.service))


@pytest.mark.parametrize("side", ["monolith", "service"])
@pytest.mark.parametrize("event", ["", "backed_up", "tables_renamed", "drop_decided"])
def test_with_a_side_away_nothing_is_done_before_the_tables_are_dropped(
    shop: Shop, side: Side, event: str
) -> None:
    if event:
        shop.kill_at(event)
    away(shop, side).refuse("cleanup", *CONFIRMED, exit_code=5, says=[f"The {side}"])
    shop.finish()


def test_while_the_service_is_away_the_names_are_given_back(shop: Shop) -> None:
    """Its rows may be all that is left."""
    pair = shop.but(cleanup_wait_hours=24)
    before = pair.pictures()
    alone = pair.but(service_dsn=unreachable(pair.service))
    alone.refuse("cleanup", "--undo", exit_code=5, says=["service"])  # none has begun
    shop.clean(cleanup_wait_hours=24)
    renamed = pair.pictures()
    assert "name back" in succeed(alone, "cleanup", "--undo", "--dry-run").stdout
    assert pair.pictures() == renamed
    assert succeed(alone, "cleanup", "--undo", "--json").json["outcome"] == "undone"
    assert pair.pictures() == (before[0], renamed[1])
    # What the service has noted of it goes when it is back.
    assert succeed(pair, "cleanup", "--undo", "--json").json["outcome"] == "undone"
    assert pair.pictures() == before


def test_an_undo_of_dropped_tables_needs_the_service(shop: Shop) -> None:
    shop.kill_at("tables_dropped")
    alone = shop.pair.but(service_dsn=unreachable(shop.pair.service))
    alone.refuse("cleanup", "--undo", exit_code=5, says=["service"])
    shop.finish()


@pytest.mark.parametrize(
    ("side", "event"),
    [
        ("service", "tables_dropped"),
        ("service", "drop_noted"),
        ("monolith", "drop_noted"),
        ("monolith", "trace_removed"),
    ],
)
def test_each_side_is_cleared_by_itself_once_the_tables_are_dropped(
    shop: Shop, side: Side, event: str
) -> None:
    shop.kill_at(event)
    other = "service" if side == "monolith" else "monolith"
    done = away(shop, side).run("cleanup")
    assert_refused(done, 5, [f"The {other} is clean; the {side} is not to be reached"])
    dsn = shop.pair.monolith if other == "monolith" else shop.pair.service
    with psycopg.connect(dsn) as connection:
        assert connection.execute("SELECT to_regnamespace('ordermigrate')").fetchone() == (None,)
    done = away(shop, side).run("cleanup")
    assert done.exit_code == 5
    shop.finish()


def test_a_wrong_monolith_is_not_taken_for_a_cleared_one(
    shop: Shop, make_database: MakeDatabase
) -> None:
    shop.kill_at("drop_noted")
    stranger = make_database("monolith", script=MONOLITH)
    wrong = shop.pair.but(monolith_dsn=stranger)
    wrong.refuse("cleanup", exit_code=3, says=["is not the one it was begun with"])
    with psycopg.connect(stranger) as connection:
        assert connection.execute(PROBE).fetchone() == (30,)
    shop.finish()


def test_a_monolith_whose_schema_was_dropped_by_hand_is_told(shop: Shop) -> None:
    shop.pair.on_monolith("DROP SCHEMA ordermigrate CASCADE")
    shop.refuse("but the monolith's database does not")
    assert shop.pair.on_monolith(PROBE) == [(30,)]


def test_an_undo_beside_dropped_tables_is_refused(shop: Shop) -> None:
    shop.kill_at("tables_dropped")
    says = ["dropped already", "ordermigrate-backup"]
    shop.pair.refuse("cleanup", "--undo", exit_code=3, says=says)
    shop.finish()


def test_a_cleanup_is_interrupted_and_goes_on_later(shop: Shop) -> None:
    ended = shop.start(at=("backed_up", 1, RunningCli.interrupt)).finish()
    assert ended.exit_code in {0, 130}, ended.stderr
    shop.finish()
