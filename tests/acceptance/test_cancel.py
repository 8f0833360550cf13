"""Cancel: whatever has been done so far, both sides are afterwards as they were before."""

# ruff: noqa: S608  the statements are the test's own, on tables of its own

from __future__ import annotations

import asyncio
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from ordermigrate import ledger
from ordermigrate.control import Session
from tests.acceptance.fix_running import (
    ROWS,
    TABLE,
    WRITE,
    bring_up,
    ends,
    require_end,
    require_stopped,
    show_status,
    succeed,
    syncing,
)
from tests.fix_cut_over import cut_over, roll_back
from tests.fix_orders import CliResult, RunningCli, StartCli
from tests.fix_pairs import MakePair, Pair, assert_refused, picture
from tests.fix_postgres import execute

# What a service may have of its own: all of it is off, or gone, while rows are brought to it.
SERVICE = (
    f"{TABLE}; CREATE TABLE public.part (id integer PRIMARY KEY, thing integer);"
    "ALTER TABLE public.part ADD CONSTRAINT belongs FOREIGN KEY (thing) REFERENCES public.thing;"
    "CREATE INDEX by_word ON public.thing (lower(word)); COMMENT ON INDEX by_word IS 'kept';"
    "ALTER TABLE public.thing ADD CONSTRAINT word_once UNIQUE (word, id);"
    "ALTER TABLE public.thing ADD CONSTRAINT is_positive CHECK (id > 0);"
    "CREATE FUNCTION public.noted() RETURNS trigger LANGUAGE plpgsql AS "
    "$f$ BEGIN RETURN NEW; END $f$;"
    "CREATE TRIGGER noted BEFORE INSERT ON public.thing FOR EACH ROW "
    "EXECUTE FUNCTION public.noted();"
    "CREATE TRIGGER always BEFORE UPDATE ON public.part FOR EACH ROW "
    "EXECUTE FUNCTION public.noted();"
    "ALTER TABLE public.part ENABLE ALWAYS TRIGGER always;"
    "CREATE TRIGGER never BEFORE UPDATE ON public.part FOR EACH ROW "
    "EXECUTE FUNCTION public.noted();"
    "ALTER TABLE public.part DISABLE TRIGGER never"
)
MONOLITH = (
    f"{ROWS}; CREATE TABLE public.part (id integer PRIMARY KEY, thing integer);"
    "INSERT INTO public.part SELECT n, n FROM generate_series(1, 30) n"
)
TABLES: list[dict[str, object]] = [{"name": "public.thing"}, {"name": "public.part"}]
_TRACES = """
SELECT 'relation ' || relname FROM pg_class WHERE relname LIKE '%ordermigrate%'
UNION ALL SELECT 'function ' || proname FROM pg_proc WHERE proname LIKE '%ordermigrate%'
    OR prosrc LIKE '%ordermigrate%' AND pronamespace <> 'pg_catalog'::regnamespace
UNION ALL SELECT 'trigger ' || tgname FROM pg_trigger WHERE tgname LIKE '%ordermigrate%'
UNION ALL SELECT 'schema ' || nspname FROM pg_namespace WHERE nspname LIKE '%ordermigrate%'
UNION ALL SELECT 'type ' || typname FROM pg_type WHERE typname LIKE '%ordermigrate%'
UNION ALL SELECT 'constraint ' || conname FROM pg_constraint WHERE conname LIKE '%ordermigrate%'
"""


class Ground:
    """A pair that can be brought to any phase, and what it looked like before."""

    def __init__(self, pair: Pair, start_cli: StartCli) -> None:
        self.pair = pair
        self.start_cli = start_cli
        self.monolith = picture(pair.monolith)
        self.service = outline(pair.service)

    def start(
        self, *args: str, at: tuple[str, int, Callable[[RunningCli], object]] | None = None
    ) -> RunningCli:
        """Start a command in a process of its own."""
        self.pair.write_toml(tables=self.pair.tables, limits=self.pair.limits)
        return self.start_cli(*args, at=at, **ends(self.pair))

    def go_to(self, phase: str) -> None:
        """Bring the migration to a phase."""
        if phase == "copying":
            killed = self.start("copy", at=("chunk_copied", 1, RunningCli.kill))
            assert killed.finish().exit_code == -9
        if phase in {"prepared", "copied"}:
            succeed(self.pair, "prepare" if phase == "prepared" else "copy")
        if phase == "syncing":
            bring_up(self.pair)
        assert show_status(self.pair)["phase"] == phase

    def require_gone(self, *, is_written: bool = False) -> None:
        """Nothing of ours is left anywhere, and all that was there before is."""
        for dsn in (self.pair.monolith, self.pair.service):
            assert execute(dsn, _TRACES) == []
        assert outline(self.pair.service) == self.service
        if is_written:
            assert outline(self.pair.monolith) == sorted(
                line for line in map(drop_file, self.monolith) if not line.startswith("rows ")
            )
        else:
            assert picture(self.pair.monolith) == self.monolith

    def require_new_start(self) -> None:
        """A new migration comes to a proved end."""
        self.pair.on_service("TRUNCATE public.thing, public.part")
        succeed(self.pair, "prepare")
        succeed(self.pair, "copy")
        require_end(self.pair)


def drop_file(line: str) -> str:
    return re.sub(r" file \d+", "", line)


def outline(dsn: str) -> list[str]:
    """Return what a database looks like, but for its rows and in which files they are.

    A foreign key that half a copy breaks comes back as NOT VALID.
    """
    return sorted(
        drop_file(line).replace(" NOT VALID", "")
        for line in picture(dsn)
        if not line.startswith("rows ")
    )


@pytest.fixture
def ground(make_pair: MakePair, start_cli: StartCli) -> Ground:
    """Two tables with triggers, keys and checks on the service."""
    return Ground(make_pair(MONOLITH, SERVICE, tables=TABLES), start_cli)


@contextmanager
def writing(pair: Pair, patience_ms: int = 3000) -> Iterator[list[float]]:
    """Write to the monolith all the while; no write may fail. Gives the seconds of each."""
    is_over, seconds, errors = threading.Event(), list[float](), list[Exception]()

    def write() -> None:
        try:
            options = f"-c lock_timeout={patience_ms}"
            with psycopg.connect(
                make_conninfo(pair.monolith, options=options), autocommit=True
            ) as session:
                while not is_over.wait(0.005):
                    began = time.monotonic()
                    session.execute("UPDATE public.thing SET number = number + 1 WHERE id = 1")
                    session.execute("INSERT INTO public.thing VALUES (1000, 'brief', 1)")
                    session.execute("DELETE FROM public.thing WHERE id = 1000")
                    seconds.append(time.monotonic() - began)
        except Exception as error:  # noqa: BLE001  told to the test
            errors.append(error)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        yield seconds
    finally:
        is_over.set()
        writer.join()
    assert errors == []
    assert len(seconds) > 5


def cancel(pair: Pair, *args: str) -> CliResult:
    return succeed(pair, "cancel", *args)


# --------------------------------------------------------------------------------- every phase


@pytest.mark.parametrize("phase", ["prepared", "copying", "copied", "syncing"])
def test_a_cancelled_migration_leaves_no_trace_on_either_side(ground: Ground, phase: str) -> None:
    pair = ground.pair
    ground.go_to(phase)
    before = pair.pictures()
    planned = cancel(pair, "--dry-run", "--json").json
    assert planned["outcome"] == "planned"
    assert "drop schema ordermigrate on the monolith" in planned["steps_taken"]
    assert "would:" in cancel(pair, "--dry-run").stdout
    assert pair.pictures() == before
    with_rows = pair.on_service("SELECT count(*) FROM public.thing")
    done = cancel(pair, "--json").json
    assert (done["outcome"], done["phase"]) == ("cancelled", "new")
    ground.require_gone()
    assert pair.on_service("SELECT count(*) FROM public.thing") == with_rows
    assert show_status(pair)["phase"] == "new"
    before = pair.pictures()
    assert "nothing to cancel" in cancel(pair).stdout
    assert pair.pictures() == before
    ground.require_new_start()


def test_a_cancel_after_a_rollback_leaves_no_trace_on_either_side(ground: Ground) -> None:
    pair = ground.pair
    pair.on_monolith(
        "CREATE FUNCTION public.kept() RETURNS trigger LANGUAGE plpgsql AS "
        "$f$ BEGIN RETURN NEW; END $f$;"
        "CREATE TRIGGER kept BEFORE INSERT ON public.part FOR EACH ROW "
        "EXECUTE FUNCTION public.kept()"
    )
    ground.monolith = picture(pair.monolith)
    ground.go_to("syncing")
    roll_back(cut_over(pair))
    # What a rollback that was cut off has not brought back yet.
    pair.on_monolith(
        "ALTER TABLE public.part DISABLE TRIGGER kept;"
        "INSERT INTO ordermigrate.recorded_object (table_name, kind, object_name, definition, "
        "state) VALUES ('public.part', 'trigger', 'kept', "
        """'{"table": {"schema": "public", "name": "part"}, "enabled": "O"}', 'off')"""
        "ON CONFLICT (table_name, kind, object_name) DO UPDATE SET state = 'off'"
    )
    for dsn in (pair.monolith, pair.service):
        kinds = execute(
            dsn, "SELECT count(DISTINCT left(tgname, 18)) FROM pg_trigger WHERE tgname ~ '^order'"
        )
        assert kinds == [(2,)]
    cancel(pair)
    ground.require_gone()
    ground.require_new_start()


@pytest.mark.parametrize("phase", ["prepared", "copying", "syncing"])
def test_cancel_can_drop_the_services_tables(ground: Ground, phase: str) -> None:
    pair = ground.pair
    pair.on_service("CREATE VIEW public.kept AS SELECT 1 AS one")
    ground.go_to(phase)
    before = pair.pictures()
    planned = cancel(pair, "--drop-service-tables", "--dry-run")
    assert "drop public.thing on the service" in planned.stdout
    assert pair.pictures() == before
    done = cancel(pair, "--drop-service-tables")
    assert "drop public.thing on the service" in done.stdout
    for dsn in (pair.monolith, pair.service):
        assert execute(dsn, _TRACES) == []
    assert picture(pair.monolith) == ground.monolith
    assert pair.on_service("SELECT to_regclass('public.thing'), to_regclass('public.part')") == [
        (None, None)
    ]
    assert pair.on_service("SELECT one FROM public.kept") == [(1,)]
    assert "nothing to cancel" in cancel(pair, "--drop-service-tables").stdout
    pair.on_service(SERVICE.replace("CREATE FUNCTION", "CREATE OR REPLACE FUNCTION"))
    ground.require_new_start()


def test_tables_that_something_else_hangs_on_are_not_dropped_in_silence(ground: Ground) -> None:
    pair = ground.pair
    ground.go_to("copied")
    pair.on_service("CREATE VIEW public.v AS SELECT id FROM public.thing")
    done = pair.run("cancel", "--drop-service-tables")
    assert_refused(done, 3, ["view public.v depends on table public.thing"])
    assert show_status(pair)["phase"] == "copied"
    pair.on_service("DROP VIEW public.v")
    cancel(pair, "--drop-service-tables")
    for dsn in (pair.monolith, pair.service):
        assert execute(dsn, _TRACES) == []


def test_what_was_never_begun_needs_no_cancelling(ground: Ground) -> None:
    before = ground.pair.pictures()
    assert "nothing to cancel" in cancel(ground.pair).stdout
    assert cancel(ground.pair, "--dry-run", "--json").json["steps_taken"] == []
    assert ground.pair.pictures() == before


# ----------------------------------------------------------------------------------- cut off


@contextmanager
def reading(dsn: str) -> Iterator[None]:
    """Hold a reader's lock on the table, which whoever drops a trigger has to wait for."""
    with psycopg.connect(dsn) as reader:
        reader.execute("SELECT count(*) FROM public.thing")
        yield


def wait_for(dsn: str, query: str) -> None:
    deadline = time.monotonic() + 30
    while execute(dsn, query) != [(True,)]:
        assert time.monotonic() < deadline, query
        time.sleep(0.02)


def require_half(ground: Ground) -> None:
    """Every other command sees the half of it, and says how to finish it."""
    for command in ("status", "sync", "validate", "prepare", "copy"):
        ground.pair.refuse(command, exit_code=3, says=["cut off half-way", "ordermigrate cancel"])


@pytest.mark.parametrize("phase", ["prepared", "copying", "syncing"])
def test_a_cancel_that_is_killed_on_the_monolith_is_finished(ground: Ground, phase: str) -> None:
    pair = ground.pair
    ground.go_to(phase)
    with writing(pair), reading(pair.monolith):
        killed = ground.start("cancel")
        wait_for(pair.service, "SELECT intent IS NOT NULL FROM ordermigrate.side")
        time.sleep(0.2)
        killed.kill()
        killed.finish()
    require_half(ground)
    with writing(pair):
        cancel(pair)
    ground.require_gone(is_written=True)
    ground.require_new_start()


@pytest.mark.parametrize("phase", ["prepared", "copied", "syncing"])
def test_a_cancel_that_is_killed_on_the_service_is_finished(ground: Ground, phase: str) -> None:
    pair = ground.pair
    ground.go_to(phase)
    with reading(pair.service):
        killed = ground.start("cancel")
        wait_for(pair.monolith, "SELECT to_regnamespace('ordermigrate') IS NULL")
        time.sleep(0.2)
        killed.kill()
        killed.finish()
    assert picture(pair.monolith) == ground.monolith
    require_half(ground)
    cancel(pair)
    ground.require_gone()
    ground.require_new_start()


@pytest.mark.parametrize("event", ["index_started", "index_built"])
@pytest.mark.parametrize("nth", [1, 3])
def test_a_cancel_that_is_killed_while_it_brings_indexes_back_is_finished(
    ground: Ground, event: str, nth: int
) -> None:
    ground.go_to("copying")
    killed = ground.start("cancel", at=(event, nth, RunningCli.kill)).finish()
    assert killed.exit_code == -9
    require_half(ground)
    cancel(ground.pair)
    ground.require_gone()


@pytest.mark.slow
def test_a_cancel_that_is_killed_at_any_moment_is_finished(ground: Ground) -> None:
    pair = ground.pair
    ground.go_to("prepared")
    took = time.monotonic()
    assert ground.start("cancel").finish().exit_code == 0
    took = time.monotonic() - took
    for part in (0.4, 0.6, 0.7, 0.8, 0.9, 1.0):
        succeed(pair, "prepare")
        with writing(pair):
            killed = ground.start("cancel")
            time.sleep(took * part)
            killed.kill()
            killed.finish()
            cancel(pair)
        ground.require_gone(is_written=True)


# -------------------------------------------------------------------------------- beside others


@pytest.mark.parametrize("phase", ["prepared", "copied", "syncing"])
def test_nobody_who_writes_to_the_monolith_notices_a_cancel(ground: Ground, phase: str) -> None:
    ground.go_to(phase)
    with writing(ground.pair, patience_ms=1500):
        time.sleep(0.2)
        cancel(ground.pair)
        time.sleep(0.2)
    ground.require_gone(is_written=True)


def test_a_reader_that_stays_is_named_and_cancel_can_be_run_again(make_pair: MakePair) -> None:
    pair = make_pair(ROWS, TABLE, limits={"lock_timeout_seconds": 1})
    before = picture(pair.monolith)
    succeed(pair, "prepare")
    with writing(pair), reading(pair.monolith):
        done = pair.run("cancel")
        assert_refused(done, 5, ["backend", "SELECT count(*) FROM public.thing"])
    assert_refused(pair.run("status"), 3, ["ordermigrate cancel"])
    cancel(pair)
    assert outline(pair.monolith) == sorted(
        drop_file(line) for line in before if not line.startswith("rows ")
    )


def test_a_running_sync_ends_when_the_migration_is_cancelled(ground: Ground) -> None:
    pair = ground.pair
    ground.go_to("syncing")
    with writing(pair), syncing(pair, ground.start_cli) as running:
        standby = ground.start("sync")
        standby.wait_for_event("sync_waits")
        running.wait_for_event("round_applied", 3)
        cancel(pair)
        done = running.finish(timeout_seconds=30)
        assert_refused(done, 3, ["ancel"])
        require_stopped(standby, ["There is no migration between these two databases"])
    ground.require_gone(is_written=True)
    ground.require_new_start()


def test_a_cancel_beside_a_copy_is_refused_as_busy(ground: Ground) -> None:
    pair = ground.pair
    with psycopg.connect(pair.monolith) as blocker:
        copying = ground.start("copy")
        copying.wait_for_event("prepared")
        blocker.execute("LOCK TABLE public.thing IN ACCESS EXCLUSIVE MODE")
        done = pair.run("cancel")
        if copying.process.poll() is None:
            assert_refused(done, 6, ["Another ordermigrate command is at work"])
    copying.finish()
    cancel(pair)
    ground.require_gone()


def test_a_cancel_after_the_monoliths_schema_was_dropped_by_hand_removes_the_rest(
    ground: Ground,
) -> None:
    pair = ground.pair
    ground.go_to("syncing")
    pair.on_monolith("DROP SCHEMA ordermigrate CASCADE")
    pair.refuse("sync", exit_code=3, says=["ordermigrate cancel` removes the rest"])
    cancel(pair)
    ground.require_gone()
    ground.require_new_start()


@pytest.mark.parametrize("side", ["monolith", "service"])
def test_a_cancel_of_tables_that_are_gone_removes_the_rest(ground: Ground, side: str) -> None:
    pair = ground.pair
    ground.go_to("syncing")
    drop = "DROP TABLE public.thing CASCADE"
    pair.on_monolith(drop) if side == "monolith" else pair.on_service(drop)
    cancel(pair)
    for dsn in (pair.monolith, pair.service):
        assert execute(dsn, _TRACES) == []
    assert pair.on_service("SELECT tgenabled FROM pg_trigger WHERE tgname = 'always'") == [("A",)]


def test_a_detached_partition_is_freed_as_well(make_pair: MakePair) -> None:
    parted = (
        "CREATE TABLE public.thing (id integer PRIMARY KEY, word text) PARTITION BY RANGE (id);"
        "CREATE TABLE public.low PARTITION OF public.thing FOR VALUES FROM (0) TO (100);"
        "CREATE TABLE public.high PARTITION OF public.thing FOR VALUES FROM (100) TO (200)"
    )
    pair = bring_up(make_pair(f"{parted}; INSERT INTO public.thing VALUES (5, 'x')", parted))
    for run in (pair.on_monolith, pair.on_service):
        run("ALTER TABLE public.thing DETACH PARTITION public.high")
    cancel(pair)
    for dsn in (pair.monolith, pair.service):
        assert execute(dsn, _TRACES) == []
    pair.on_monolith(f"{WRITE}; INSERT INTO public.high VALUES (101, 'y')")
    pair.on_service("INSERT INTO public.high VALUES (101, 'y'); DELETE FROM public.thing")


@pytest.mark.parametrize("options", [(), ("--drop-service-tables",)])
def test_a_cancel_that_waits_for_a_cutover_to_end_is_refused(
    ground: Ground, options: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = ground.pair
    ground.go_to("syncing")
    take = ledger.take_operator_lock
    is_first = [True]

    async def take_later(service: Session) -> None:
        if is_first.pop() if is_first else False:
            done = await asyncio.to_thread(ground.start("cutover").finish)
            assert done.exit_code == 0, done.stderr
        await take(service)

    monkeypatch.setattr(ledger, "take_operator_lock", take_later)
    refused = pair.run("cancel", *options)
    assert_refused(refused, 3, ["The service owns the tables"])
    monkeypatch.undo()
    assert show_status(pair)["owner"] == "service"
    pair.on_service("UPDATE public.thing SET word = 'kept' WHERE id = 1")
