"""What may happen to either side's tables while they are followed: told, nothing applied or lost.

Each test ends where an operator wants to be: what was written has arrived, and is proved.
"""

# ruff: noqa: S608  the statements are the test's own, on tables of its own

from __future__ import annotations

import time

import psycopg
import pytest

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
    require_stopped,
    show_status,
    succeed,
    syncing,
)
from tests.fix_orders import StartCli
from tests.fix_pairs import MakePair, MakeRole, Pair, assert_refused
from tests.fix_postgres import SIDES, MakeDatabase, Side, StartServer, execute

CAPTURE = "TRIGGER ordermigrate_capture_row"


@pytest.fixture
def pair(make_pair: MakePair) -> Pair:
    """A table of 50 rows, followed and proved."""
    return make_pair(ROWS, TABLE, brought_by=bring_up)


@pytest.fixture
def parted(make_pair: MakePair) -> Pair:
    """A partitioned table on the monolith, a plain one on the service, followed and proved."""
    service = "CREATE TABLE public.thing (id integer PRIMARY KEY, word text)"
    return make_pair(PARTITIONED, service, brought_by=bring_up)


def on(pair: Pair, side: Side, statement: str) -> None:
    (pair.on_monolith if side == "monolith" else pair.on_service)(statement)


# ------------------------------------------------------------------------------ columns and keys


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize(
    ("change", "undo", "says"),
    [
        ("ADD extra integer DEFAULT 7", "DROP extra", "has a column extra that public.thing on"),
        ("ALTER word TYPE varchar(5) USING left(word, 5)", "ALTER word TYPE text", "column word"),
        ("RENAME word TO term", "RENAME term TO word", "has a column term that public.thing on"),
        ("RENAME id TO number_id", "RENAME number_id TO id", "column number_id that public.thing"),
    ],
    ids=["added", "retyped", "renamed", "key renamed"],
)
def test_a_changed_column_on_one_side_stops_sync_and_can_be_undone(
    pair: Pair, side: Side, change: str, undo: str, says: str
) -> None:
    pair.on_monolith(WRITE)
    on(pair, side, f"ALTER TABLE public.thing {change}")
    if side == "monolith" and "varchar" in change:
        # It fits the service's text: but rows may have changed with it.
        says = "The monolith's tables have changed: column word of public.thing changed from text"
    refuse_sync(pair, says)
    assert show_status(pair)["backlog"] == 10
    on(pair, side, f"ALTER TABLE public.thing {undo}")
    catch_up(pair)
    if "varchar" in change:
        assert "another file" in (find_void(pair) or "")
        assert pair.run("validate", "--checksums").exit_code == 4
        succeed(pair, "validate", "--checksums", "--repair")
    require_end(pair)


@pytest.mark.parametrize("side", SIDES)
def test_a_dropped_column_on_one_side_stops_sync(pair: Pair, side: Side) -> None:
    pair.on_monolith(WRITE)
    on(pair, side, "ALTER TABLE public.thing DROP COLUMN number")
    refuse_sync(pair, "has a column number that public.thing on the")
    assert show_status(pair)["backlog"] == 10
    other: Side = "service" if side == "monolith" else "monolith"
    on(pair, other, "ALTER TABLE public.thing DROP COLUMN number")
    refuse_sync(pair, "column number of public.thing was dropped", "ordermigrate sync --adopt")
    catch_up(pair, "--adopt")
    assert "column number of public.thing was dropped" in (find_void(pair) or "")
    succeed(pair, "validate", "--checksums", "--repair")
    require_end(pair)


@pytest.mark.parametrize(
    "change",
    [
        "ADD extra integer DEFAULT 7",
        "ALTER number TYPE bigint USING number + 1",
        "RENAME word TO term",
    ],
)
def test_a_change_made_on_both_sides_is_adopted_and_then_proved(pair: Pair, change: str) -> None:
    pair.on_monolith(WRITE)
    for side in SIDES:
        on(pair, side, f"ALTER TABLE public.thing {change}")
    refuse_sync(pair, "The monolith's tables have changed: column ", "ordermigrate sync --adopt")
    catch_up(pair, "--adopt")
    assert "column " in (find_void(pair) or "")
    succeed(pair, "validate", "--checksums", "--repair")
    pair.on_monolith("DELETE FROM public.thing WHERE id = 1")
    catch_up(pair)
    assert pair.compare()
    pair.validate()
    catch_up(pair)  # what was adopted once is known


@pytest.mark.parametrize("side", SIDES)
def test_an_alter_table_that_changes_rows_in_silence_voids_what_was_proved(
    pair: Pair, side: Side
) -> None:
    """The same type before and after: the catalog says the same, and every row is another."""
    pair.on_monolith(WRITE)
    on(pair, side, "ALTER TABLE public.thing ALTER number TYPE integer USING number + 1")
    done = catch_up(pair)
    assert "what was proved before is void: public.thing has another file" in done.stderr
    assert "public.thing has another file" in (find_void(pair) or "")
    done = pair.run("validate", "--checksums")
    assert done.exit_code == 4, done.stderr
    succeed(pair, "validate", "--checksums", "--repair")
    require_end(pair)


@pytest.mark.parametrize("side", SIDES)
def test_a_column_that_was_dropped_and_added_again_is_not_the_same(pair: Pair, side: Side) -> None:
    on(
        pair,
        side,
        "ALTER TABLE public.thing DROP number; ALTER TABLE public.thing ADD number integer",
    )
    if side == "monolith":
        refuse_sync(pair, "column number", "dropped and added again", "--adopt")
        catch_up(pair, "--adopt")
    else:
        catch_up(pair)
    assert "column number of public.thing changed" in (find_void(pair) or "")
    assert pair.run("validate", "--checksums").exit_code == 4
    succeed(pair, "validate", "--checksums", "--repair")
    require_end(pair)


MOOD = (
    "CREATE TYPE public.mood AS ENUM ('good', 'bad');"
    "CREATE TABLE public.thing (id integer PRIMARY KEY, word text, mood public.mood);"
)
MOODS = f"{MOOD} INSERT INTO public.thing SELECT n, 'w', 'good' FROM generate_series(1, 50) n"
RENAME = "ALTER TYPE public.mood RENAME VALUE 'good' TO 'fine'"


@pytest.mark.parametrize("is_running", [True, False])
def test_a_renamed_label_of_an_enum_stops_sync_and_can_be_renamed_on_the_service_too(
    make_pair: MakePair, start_cli: StartCli, *, is_running: bool
) -> None:
    """Every row that has it means something else now, and no row was written."""
    pair = bring_up(make_pair(MOODS, MOOD))
    says = "label good of column mood of public.thing was renamed to fine"
    if is_running:
        with syncing(pair, start_cli) as running:
            pair.on_monolith(RENAME)
            require_stopped(running, [f"The monolith's tables have changed: {says}", "--adopt"])
    else:
        pair.on_monolith(RENAME)
    pair.on_monolith(WRITE)
    refuse_sync(pair, f"The monolith's tables have changed: {says}", "--adopt")
    assert show_status(pair)["backlog"] == 10
    pair.on_service(RENAME)
    catch_up(pair, "--adopt")
    assert find_void(pair) == says
    succeed(pair, "validate", "--checksums", "--repair")
    require_end(pair)


def test_a_label_renamed_on_the_service_alone_voids_what_was_proved(make_pair: MakePair) -> None:
    pair = bring_up(make_pair(MOODS, MOOD))
    pair.on_service(RENAME)
    catch_up(pair)
    assert find_void(pair) == "label good of column mood of public.thing was renamed to fine"
    assert pair.run("validate", "--checksums").exit_code == 4
    pair.on_service("ALTER TYPE public.mood RENAME VALUE 'fine' TO 'good'")
    require_end(pair)


def test_a_label_that_the_service_lacks_is_named_and_can_be_added(
    make_pair: MakePair, start_cli: StartCli
) -> None:
    pair = bring_up(make_pair(MOODS, MOOD))
    add = "ALTER TYPE public.mood ADD VALUE 'fair'"
    with syncing(pair, start_cli) as running:
        pair.on_monolith(add)
        pair.on_monolith(WRITE)
        running.wait_for_event("round_applied")
        end_sync(running)
    assert find_void(pair) is None
    pair.on_monolith("UPDATE public.thing SET mood = 'fair' WHERE id = 7")
    refuse_sync(pair, 'invalid input value for enum public.mood: "fair"', "column mood")
    assert show_status(pair)["backlog"] == 1
    pair.on_service(add)
    require_end(pair)


def test_a_change_of_the_schema_ends_a_running_sync_and_nothing_is_lost(
    pair: Pair, start_cli: StartCli
) -> None:
    with syncing(pair, start_cli) as running:
        pair.on_monolith(
            f"ALTER TABLE public.thing RENAME word TO term; {WRITE.replace('word', 'term')}"
        )
        require_stopped(running, ["has a column term that public.thing on the service"])
    assert show_status(pair)["backlog"] == 10
    pair.on_monolith("ALTER TABLE public.thing RENAME term TO word")
    require_end(pair)


def test_an_index_or_a_comment_leaves_a_running_sync_alone(pair: Pair, start_cli: StartCli) -> None:
    with syncing(pair, start_cli) as running:
        for side in SIDES:
            on(
                pair,
                side,
                "CREATE INDEX ON public.thing (word); COMMENT ON TABLE public.thing IS 'x'",
            )
            on(
                pair,
                side,
                "ALTER TABLE public.thing ALTER word SET DEFAULT 'x'; ANALYZE public.thing",
            )
        pair.on_monolith(WRITE)
        running.wait_for_event("round_applied")
        end_sync(running)
    assert find_void(pair) is None
    require_end(pair)


def test_a_lost_primary_key_on_the_monolith_stops_sync(pair: Pair) -> None:
    pair.on_monolith(f"ALTER TABLE public.thing DROP CONSTRAINT thing_pkey; {WRITE}")
    refuse_sync(pair, "public.thing on the monolith has no primary key")
    assert show_status(pair)["backlog"] == 10
    pair.on_monolith("ALTER TABLE public.thing ADD PRIMARY KEY (id)")
    require_end(pair)


def test_a_service_table_without_an_index_on_its_key_is_followed_all_the_same(pair: Pair) -> None:
    pair.on_service("ALTER TABLE public.thing DROP CONSTRAINT thing_pkey")
    pair.on_monolith(WRITE)
    catch_up(pair)
    assert "unique index thing_pkey of public.thing was dropped" in (find_void(pair) or "")
    pair.on_monolith("DELETE FROM public.thing WHERE id < 5")
    require_end(pair)


def test_a_renamed_key_column_stops_the_monoliths_writes_until_it_is_renamed_back(
    pair: Pair,
) -> None:
    """The capture knows the key by its name; a write that it could not note must not pass."""
    pair.on_monolith("ALTER TABLE public.thing RENAME id TO number_id")
    with pytest.raises(psycopg.errors.UndefinedColumn):
        pair.on_monolith("UPDATE public.thing SET word = 'x' WHERE number_id = 5")
    refuse_sync(pair, "primary key column number_id of public.thing")
    pair.on_monolith("ALTER TABLE public.thing RENAME number_id TO id")
    require_end(pair)


def test_a_key_that_becomes_wider_is_written_on_and_adopted(pair: Pair) -> None:
    """By sessions too that have the triggers' plans for the old type."""
    update = "UPDATE public.thing SET word = 'x', id = id + {} WHERE id = {}"
    with psycopg.connect(pair.monolith, autocommit=True) as writer:
        for number in range(1, 10):  # until its plans are kept
            writer.execute(update.format(0, number).encode())
            writer.execute(update.format(100, number).encode())
            writer.execute(b"INSERT INTO public.thing (id) VALUES (%s)" % str(number).encode())
            writer.execute(f"DELETE FROM public.thing WHERE id = {number + 100}".encode())
        pair.on_monolith("ALTER TABLE public.thing ALTER id TYPE bigint")
        writer.execute(update.format(0, 11).encode())
        writer.execute(update.format(3_000_000_000, 12).encode())
        writer.execute(b"INSERT INTO public.thing (id) VALUES (4000000000)")
        writer.execute(b"DELETE FROM public.thing WHERE id = 13")
    pair.on_monolith(update.format(3_000_000_000, 14))
    pair.on_service("ALTER TABLE public.thing ALTER id TYPE bigint")
    refuse_sync(pair, "The monolith's tables have changed: column id", "ordermigrate sync --adopt")
    catch_up(pair, "--adopt")
    assert pair.on_service("SELECT id FROM public.thing WHERE id > 2000000000 ORDER BY id") == [
        (3_000_000_012,),
        (3_000_000_014,),
        (4_000_000_000,),
    ]
    succeed(pair, "validate", "--checksums", "--repair")
    require_end(pair)


@pytest.mark.parametrize(
    ("kind", "other", "back"),
    [("uuid", "text", "id::uuid"), ("integer", "numeric", "id::integer")],
)
def test_a_key_of_another_kind_stops_the_monoliths_writes_until_it_is_changed_back(
    make_pair: MakePair, kind: str, other: str, back: str
) -> None:
    """A write whose key the log could not hold as it is must not pass."""
    table = f"CREATE TABLE public.thing (id {kind} PRIMARY KEY, word text)"
    value = "5" if kind == "integer" else "00000000-0000-0000-0000-000000000005"
    pair = bring_up(
        make_pair(
            f"{table}; INSERT INTO public.thing VALUES ('{value}')",
            table,
        )
    )
    pair.on_monolith(f"ALTER TABLE public.thing ALTER id TYPE {other}")
    for statement in (
        "UPDATE public.thing SET word = 'x'",
        "INSERT INTO public.thing VALUES ('1.5')",
        "DELETE FROM public.thing",
    ):
        with pytest.raises((psycopg.errors.UndefinedFunction, psycopg.errors.DatatypeMismatch)):
            pair.on_monolith(statement)
    refuse_sync(pair, "column id")
    pair.on_monolith(f"ALTER TABLE public.thing ALTER id TYPE {kind} USING {back}")
    pair.on_monolith("UPDATE public.thing SET word = 'last'")
    catch_up(pair)
    pair.validate()


# ------------------------------------------------------------------------------- tables that move


@pytest.mark.parametrize("side", SIDES)
def test_a_renamed_table_stops_sync_and_its_new_name_is_told(pair: Pair, side: Side) -> None:
    on(pair, side, "ALTER TABLE public.thing RENAME TO things")
    pair.on_monolith(WRITE.replace("thing", "things") if side == "monolith" else WRITE)
    refuse_sync(
        pair, f"public.thing is not on the {side} any more: it was renamed to public.things"
    )
    assert show_status(pair)["backlog"] == 10
    on(pair, side, "ALTER TABLE public.things RENAME TO thing")
    require_end(pair)


@pytest.mark.parametrize("side", SIDES)
def test_a_dropped_table_stops_sync_and_the_copy_begins_anew(pair: Pair, side: Side) -> None:
    on(pair, side, "DROP TABLE public.thing")
    for command in ("sync", "validate", "prepare", "copy"):
        pair.refuse(
            command,
            exit_code=3,
            says=[f"public.thing is not on the {side} any more: it was dropped"],
        )
    assert show_status(pair)["phase"] == "syncing"
    on(pair, side, ROWS if side == "monolith" else TABLE)
    succeed(pair, "copy", "--restart")
    require_end(pair)


def test_a_table_made_anew_on_the_monolith_stops_sync(pair: Pair) -> None:
    pair.on_monolith(f"DROP TABLE public.thing; {ROWS}; DELETE FROM public.thing WHERE id < 10")
    refuse_sync(pair, "trigger ordermigrate_capture_row on public.thing is missing", "prepare")
    succeed(pair, "prepare")
    refuse_sync(pair, "public.thing was dropped and created again", "--adopt")
    catch_up(pair, "--adopt")
    assert find_void(pair) is not None
    succeed(pair, "validate", "--checksums", "--repair")
    pair.on_monolith(WRITE)
    require_end(pair)


def test_a_table_made_anew_on_the_service_voids_what_was_proved(pair: Pair) -> None:
    pair.on_service(f"DROP TABLE public.thing; {TABLE}")
    pair.on_monolith(WRITE)
    done = catch_up(pair)
    assert "the fence on the service was mended" in done.stderr
    assert find_void(pair) == "public.thing was dropped and created again"
    assert pair.run("validate", "--checksums").exit_code == 4
    succeed(pair, "validate", "--checksums", "--repair")
    require_end(pair)


@pytest.mark.parametrize(
    ("side", "rewrite"),
    [
        ("monolith", "VACUUM FULL public.thing"),
        ("service", "CLUSTER public.thing USING thing_pkey"),
    ],
)
def test_a_rewrite_costs_the_proof_and_nothing_else(
    pair: Pair, side: Side, rewrite: str, start_cli: StartCli
) -> None:
    """What rewrites a table may change its rows: from outside the two look the same."""
    with syncing(pair, start_cli) as running:
        on(pair, side, rewrite)
        running.wait_for_event("validation_voided")
        pair.on_monolith(WRITE)
        running.wait_for_event("round_applied")
        end_sync(running)
    assert "public.thing has another file" in (find_void(pair) or "")
    require_end(pair)


def test_a_truncate_of_the_monoliths_table_is_followed(pair: Pair, start_cli: StartCli) -> None:
    with syncing(pair, start_cli) as running:
        pair.on_monolith("TRUNCATE public.thing; INSERT INTO public.thing VALUES (5, 'new', 1)")
        running.wait_for_event("round_applied")
        end_sync(running)
    assert pair.on_service("SELECT * FROM public.thing") == [(5, "new", 1)]
    require_end(pair)
    pair.on_monolith(
        "BEGIN; TRUNCATE public.thing; INSERT INTO public.thing VALUES (5, 'b', 2); COMMIT"
    )
    require_end(pair)


# ---------------------------------------------------------------------------------------- capture


@pytest.mark.parametrize(
    "gap",
    [
        f"ALTER TABLE public.thing DISABLE {CAPTURE}",
        f"ALTER TABLE public.thing ENABLE {CAPTURE}",
        "ALTER TABLE public.thing DISABLE TRIGGER ALL",
        f"DROP {CAPTURE} ON public.thing",
        "DROP TRIGGER ordermigrate_capture_truncate ON public.thing",
        "DROP FUNCTION ordermigrate.capture_1_row() CASCADE",
    ],
)
def test_a_gap_in_the_capture_stops_sync_and_what_went_by_is_found(pair: Pair, gap: str) -> None:
    pair.on_monolith(WRITE)
    pair.on_monolith(gap)
    refuse_sync(pair, "Capture on the monolith has gaps: trigger ordermigrate_capture", "prepare")
    found = show_status(pair)
    assert found["backlog"] == 10
    assert "trigger ordermigrate_capture" in found["capture_gaps"][0]
    assert "trigger ordermigrate_capture" in succeed(pair, "status").stdout
    with psycopg.connect(pair.monolith) as connection:
        connection.execute("SET session_replication_role = replica")
        connection.execute("DELETE FROM public.thing WHERE id = 2")
        connection.execute("UPDATE public.thing SET word = 'unseen' WHERE id = 3")
        connection.execute("INSERT INTO public.thing VALUES (99, 'unseen', 0)")
    assert "capture writes to public.thing" in succeed(pair, "prepare").stderr
    assert "capture on the monolith had gaps" in (find_void(pair) or "")
    catch_up(pair)
    assert find_void(pair) is not None
    succeed(pair, "validate", "--checksums", "--repair")
    assert pair.compare()
    assert find_void(pair) is None
    require_end(pair)


def test_a_lost_change_log_is_mended_and_what_was_in_it_found(pair: Pair) -> None:
    pair.on_monolith(WRITE)
    pair.on_monolith("DROP TABLE ordermigrate.change_log_1")
    with pytest.raises(psycopg.errors.UndefinedTable):  # what cannot be noted must not pass
        pair.on_monolith(WRITE)
    refuse_sync(pair, "Capture on the monolith has gaps: the change log of public.thing is missing")
    assert show_status(pair)["capture_gaps"] == ["the change log of public.thing is missing"]
    succeed(pair, "prepare")
    assert "the change log of public.thing is missing" in (find_void(pair) or "")
    catch_up(pair)
    assert pair.run("validate", "--checksums").exit_code == 4
    succeed(pair, "validate", "--checksums", "--repair")
    require_end(pair)


def test_a_gap_in_the_capture_ends_a_running_sync(pair: Pair, start_cli: StartCli) -> None:
    with syncing(pair, start_cli) as running:
        pair.on_monolith(f"ALTER TABLE public.thing DISABLE {CAPTURE}")
        require_stopped(running, ["trigger ordermigrate_capture_row on public.thing does not fire"])
    succeed(pair, "prepare")
    require_end(pair)


@pytest.mark.parametrize("is_running", [True, False])
def test_a_capture_that_was_off_for_a_moment_is_noticed(
    pair: Pair, start_cli: StartCli, *, is_running: bool
) -> None:
    """Off and on again between two rounds: everything is as it was, but for what went by."""
    off_and_on = (
        f"BEGIN; ALTER TABLE public.thing DISABLE {CAPTURE};"
        "UPDATE public.thing SET word = 'unseen' WHERE id = 3;"
        f"ALTER TABLE public.thing ENABLE ALWAYS {CAPTURE}; COMMIT"
    )
    if is_running:
        with syncing(pair, start_cli) as running:
            pair.on_monolith(off_and_on)
            running.wait_for_event("validation_voided")
            end_sync(running)
    else:
        pair.on_monolith(off_and_on)
        catch_up(pair)
    assert "was switched off and on again" in (find_void(pair) or "")
    assert pair.run("validate", "--checksums").exit_code == 4
    succeed(pair, "validate", "--checksums", "--repair")
    require_end(pair)


# ------------------------------------------------------------------------------------- partitions


@pytest.mark.parametrize("is_running", [True, False])
def test_a_partition_that_is_attached_detached_or_truncated_is_followed(
    parted: Pair, start_cli: StartCli, *, is_running: bool
) -> None:
    changes = [
        (
            "CREATE TABLE public.new (id integer PRIMARY KEY, word text);"
            "INSERT INTO public.new SELECT n, 'new ' || n FROM generate_series(200, 220) n;"
            "ALTER TABLE public.thing ATTACH PARTITION public.new FOR VALUES FROM (200) TO (300);"
            "UPDATE public.thing SET word = 'seen' WHERE id = 210"
        ),
        "TRUNCATE public.new; INSERT INTO public.new VALUES (222, 'straight')",
        (
            "CREATE TABLE public.late PARTITION OF public.thing FOR VALUES FROM (300) TO (400);"
            "INSERT INTO public.late VALUES (301, 'late')"
        ),
        "ALTER TABLE public.thing DETACH PARTITION public.high",
        "DROP TABLE public.new",
    ]
    if is_running:
        with syncing(parted, start_cli) as running:
            for change in changes:
                parted.on_monolith(change)
                wait_until_equal(parted)
            end_sync(running)
    else:
        for change in changes:
            parted.on_monolith(change)
            catch_up(parted)
            assert parted.compare(), change
    # The first reason stays: the TRUNCATE gave the partition another file.
    assert "public.new has another file" in (find_void(parted) or "")
    require_end(parted)


SLOW_LOG = """
CREATE FUNCTION public.wait() RETURNS trigger LANGUAGE plpgsql
AS 'BEGIN PERFORM pg_advisory_xact_lock(77); RETURN NULL; END';
CREATE TRIGGER slow BEFORE INSERT ON ordermigrate.change_log_1 EXECUTE FUNCTION public.wait();
"""


def test_an_alter_table_does_not_wait_until_an_attached_partition_is_read(
    parted: Pair, start_cli: StartCli
) -> None:
    parted.on_monolith(
        "CREATE TABLE public.more (id integer NOT NULL, word text);"
        "INSERT INTO public.more SELECT n, 'more' FROM generate_series(200, 299) n;"
        "ALTER TABLE public.thing ATTACH PARTITION public.more FOR VALUES FROM (200) TO (300);"
        + SLOW_LOG
    )
    parted.write_toml(tables=parted.tables, limits=parted.limits)
    with psycopg.connect(parted.monolith) as gate, psycopg.connect(parted.monolith) as other:
        gate.execute("SELECT pg_advisory_xact_lock(77)")
        running = start_cli("sync", "--until-caught-up", **ends(parted))
        wait_until_waiting(parted)
        other.execute("SET lock_timeout = '10s'")
        other.execute("LOCK TABLE public.more")  # as every ALTER TABLE does
        other.commit()
        gate.rollback()
    done = running.finish()
    assert done.exit_code == 0, done.stderr
    assert "Gave way to backend" in done.stderr
    assert parted.compare()
    require_end(parted)


def wait_until_waiting(pair: Pair) -> None:
    """Wait until the program stands at the gate of the log."""
    waiting = "SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND objid = 77 AND NOT granted"
    end = time.monotonic() + 30
    while not pair.on_monolith(waiting):
        assert time.monotonic() < end
        time.sleep(0.05)


def detach_partly(pair: Pair) -> None:
    """Begin to detach a partition of the monolith, and be cut off while a reader is waited for."""
    with psycopg.connect(pair.monolith) as reader:
        reader.execute("SELECT count(*) FROM public.thing")
        with psycopg.connect(pair.monolith, autocommit=True) as administrator:
            administrator.execute("SET statement_timeout = '500ms'")
            detach = b"ALTER TABLE public.thing DETACH PARTITION public.high CONCURRENTLY"
            with pytest.raises(psycopg.errors.QueryCanceled):
                administrator.execute(detach)
    pending = "SELECT count(*) FROM pg_catalog.pg_inherits WHERE inhdetachpending"
    assert pair.on_monolith(pending) == [(1,)]


@pytest.mark.parametrize("is_running", [True, False])
def test_a_partition_whose_detachment_is_pending_is_gone(
    parted: Pair, start_cli: StartCli, *, is_running: bool
) -> None:
    """No SELECT from the table returns its rows any more, whether it is ever finished or not."""
    if is_running:
        with syncing(parted, start_cli) as running:
            detach_partly(parted)
            wait_until_equal(parted)
            end_sync(running)
    else:
        detach_partly(parted)
        catch_up(parted)
    assert parted.on_service("SELECT count(*) FROM public.thing") == [(99,)]
    assert find_void(parted) == "public.high was detached from public.thing"
    # It is captured still, and what is written there is not the table's.
    parted.on_monolith(f"{WRITE.replace('thing', 'high')}; INSERT INTO public.low VALUES (0, 'x')")
    assert show_status(parted)["backlog"] == 21
    catch_up(parted)
    parted.validate()
    assert parted.on_service("SELECT count(*) FROM public.thing") == [(100,)]
    parted.on_monolith("ALTER TABLE public.thing DETACH PARTITION public.high FINALIZE")
    catch_up(parted)
    assert find_void(parted) is None
    require_end(parted)


def wait_until_equal(pair: Pair) -> None:
    deadline = time.monotonic() + 20
    while not (found := pair.compare()):
        assert time.monotonic() < deadline, found
        time.sleep(0.1)


def test_partitions_of_the_service_are_watched(make_pair: MakePair) -> None:
    plain = "CREATE TABLE public.thing (id integer PRIMARY KEY, word text)"
    pair = bring_up(
        make_pair(
            f"{plain}; INSERT INTO public.thing SELECT n, 'w' FROM generate_series(1, 150) n",
            PARTITIONED.partition("INSERT")[0],
        )
    )
    pair.on_service(
        "CREATE TABLE public.more PARTITION OF public.thing FOR VALUES FROM (200) TO (300)"
    )
    pair.on_monolith("INSERT INTO public.thing VALUES (210, 'x')")
    assert "the fence on the service was mended" in catch_up(pair).stderr
    assert find_void(pair) is None  # it was empty
    pair.on_service("ALTER TABLE public.thing DETACH PARTITION public.high")
    catch_up(pair)
    assert find_void(pair) == "public.high is not a part of public.thing any more"
    pair.on_service(
        "ALTER TABLE public.thing ATTACH PARTITION public.high FOR VALUES FROM (100) TO (200)"
    )
    pair.validate()
    pair.on_service(
        "CREATE TABLE public.alien (id integer PRIMARY KEY, word text);"
        "INSERT INTO public.alien VALUES (333, 'whose?');"
        "ALTER TABLE public.thing ATTACH PARTITION public.alien FOR VALUES FROM (300) TO (400)"
    )
    catch_up(pair)
    assert find_void(pair) == "public.alien was attached to public.thing with rows in it"
    assert pair.run("validate", "--checksums").exit_code == 4
    succeed(pair, "validate", "--checksums", "--repair")
    require_end(pair)


def test_a_child_that_begins_to_inherit_stops_sync(pair: Pair) -> None:
    pair.on_monolith(f"CREATE TABLE public.child () INHERITS (public.thing); {WRITE}")
    refuse_sync(pair, "public.child now inherits from public.thing", "NO INHERIT")
    pair.on_monolith("ALTER TABLE public.child NO INHERIT public.thing")
    require_end(pair)


# ------------------------------------------------------------------------- rows that do not fit


@pytest.mark.parametrize(
    ("constraint", "write", "says", "drop"),
    [
        (
            "ADD CONSTRAINT word_is_short CHECK (length(word) < 10)",
            "UPDATE public.thing SET word = 'far too long' WHERE id = 7",
            ["with id = 7", "word_is_short", "far too long"],
            "DROP CONSTRAINT word_is_short",
        ),
        (
            "ADD CONSTRAINT word_once UNIQUE (word)",
            "UPDATE public.thing SET word = 'word 8' WHERE id = 7",
            ["with id = 7", "word_once", "(word)=(word 8)"],
            "DROP CONSTRAINT word_once",
        ),
        (
            "ALTER number SET NOT NULL",
            "UPDATE public.thing SET number = NULL WHERE id = 7",
            ["with id = 7", 'null value in column "number"'],
            "ALTER number DROP NOT NULL",
        ),
    ],
)
def test_a_row_that_the_services_constraints_refuse_is_named(
    pair: Pair, constraint: str, write: str, says: list[str], drop: str
) -> None:
    pair.on_service(f"ALTER TABLE public.thing {constraint}")
    catch_up(pair)
    pair.on_monolith(f"{WRITE}; {write}")
    refuse_sync(pair, "The service refuses the row of public.thing", *says, "stays in the log")
    assert show_status(pair)["backlog"] == 11
    pair.on_service(f"ALTER TABLE public.thing {drop}")
    require_end(pair)


def test_a_value_that_the_services_column_cannot_hold_is_named(make_pair: MakePair) -> None:
    pair = make_pair(
        ROWS,
        TABLE.replace("number integer", "number smallint"),
        tables=[{"name": "public.thing", "columns": {"number": "thing.number::smallint"}}],
    )
    bring_up(pair)
    pair.on_monolith("UPDATE public.thing SET number = 99999 WHERE id = 7")
    done = pair.run("sync", "--until-caught-up")
    assert_refused(done, 3, ["smallint out of range"])
    assert show_status(pair)["backlog"] == 1
    pair.on_monolith("UPDATE public.thing SET number = 9 WHERE id = 7")
    require_end(pair)


# --------------------------------------------------------------------------------- the wrong place


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("distance", [-3, 40])
def test_a_side_that_has_gone_back_in_time_is_refused(
    pair: Pair, side: Side, distance: int
) -> None:
    """Restored from a backup: what it has forgotten, the other side has not."""
    for number in range(4):
        pair.on_monolith(f"UPDATE public.thing SET number = {number} WHERE id = 1")
        catch_up(pair)
    on(pair, side, f"UPDATE ordermigrate.side SET round = round + {distance}")
    pair.on_monolith(WRITE)
    refuse_sync(pair, "one of the two databases has gone back in time")
    assert_refused(pair.run("validate"), 3, ["has gone back in time"])
    succeed(pair, "copy", "--restart")
    require_end(pair)


@pytest.mark.parametrize(
    ("side", "statement"),
    [
        ("monolith", "UPDATE ordermigrate.side SET round = round - 2"),
        ("service", "UPDATE ordermigrate.side SET round = round - 1"),
        ("service", "UPDATE ordermigrate.round SET source_position = 'FFFF/0'"),
    ],
    ids=["monolith", "service", "position"],
)
def test_a_side_that_has_gone_back_is_refused_while_nothing_waits(
    pair: Pair, side: Side, statement: str
) -> None:
    for number in range(2):
        pair.on_monolith(f"UPDATE public.thing SET number = {number} WHERE id = 1")
        catch_up(pair)
    on(pair, side, statement)
    assert show_status(pair)["backlog"] == 0
    refuse_sync(pair, "has gone back in time", "--adopt")


def test_a_quiet_sync_refuses_a_side_that_goes_back(pair: Pair, start_cli: StartCli) -> None:
    with syncing(pair, start_cli) as running:
        running.wait_for_event("quiet")
        pair.on_service("UPDATE ordermigrate.side SET round = round + 2")
        require_stopped(running, ["has gone back in time"])


@pytest.mark.parametrize("side", SIDES)
def test_a_failover_while_nothing_waits_costs_the_proof_at_once(
    pair: Pair, side: Side, start_cli: StartCli
) -> None:
    with syncing(pair, start_cli) as running:
        running.wait_for_event("quiet")
        on(pair, side, "UPDATE ordermigrate.side SET timeline = timeline + 1")
        running.wait_for_event("validation_voided")
        # Known from now on: no round after the one that took it in.
        known = [each["event"] for each in running.events]
        running.wait_for_event("quiet", known.count("quiet") + 2)
        assert "round_begun" not in [each["event"] for each in running.events[len(known) :]]
        end_sync(running)
    assert "timeline" in (find_void(pair) or "")
    require_end(pair)


@pytest.mark.parametrize("what", ["its round", "its position"])
def test_sync_goes_on_from_a_side_that_has_gone_back_in_time_when_told_to(
    pair: Pair, what: str
) -> None:
    """Rows that no log tells of differ then; the repair finds and mends them all."""
    pair.on_monolith("UPDATE public.thing SET number = 5 WHERE id = 1")
    catch_up(pair)
    if what == "its round":
        pair.on_monolith("UPDATE ordermigrate.side SET round = round - 1")
        pair.on_service("UPDATE ordermigrate.side SET round = round + 1")
    else:
        pair.on_service("UPDATE ordermigrate.round SET source_position = 'FFFF/0'")
    # As if restored: a write that has gone, and one that is in no log.
    unlogged = "SET LOCAL session_replication_role = replica"
    triggers = "ALTER TABLE public.thing {} TRIGGER USER"
    pair.on_monolith(
        f"BEGIN; {unlogged}; {triggers.format('DISABLE')};"
        "UPDATE public.thing SET number = 1 WHERE id = 1; DELETE FROM public.thing WHERE id = 3;"
        "COMMIT"
    )
    for trigger in ("row", "truncate"):
        pair.on_monolith(
            f"ALTER TABLE public.thing ENABLE ALWAYS TRIGGER ordermigrate_capture_{trigger}"
        )
    pair.on_monolith(WRITE)
    assert_refused(pair.run("sync"), 3, ["has gone back in time", "--adopt"])
    succeed(pair, "sync", "--adopt", "--until-caught-up")
    assert find_void(pair)
    succeed(pair, "validate", "--checksums", "--repair")
    require_end(pair)


def test_a_clone_of_the_service_with_another_run_is_refused(
    pair: Pair, make_database: MakeDatabase
) -> None:
    pair.on_service("UPDATE ordermigrate.side SET run = gen_random_uuid()")
    for command in ("sync", "validate", "prepare", "copy", "cancel", "status"):
        pair.refuse(command, exit_code=3, says=["The monolith belongs to migration", "clone"])
    (run,) = pair.on_monolith("SELECT run FROM ordermigrate.side")[0]
    pair.on_service(f"UPDATE ordermigrate.side SET run = '{run}'")
    require_end(pair)


def test_swapped_dsns_are_refused_by_every_command(pair: Pair) -> None:
    swapped = pair.but(monolith=pair.service, service=pair.monolith)
    for command in ("sync", "validate", "prepare", "copy", "cancel", "status"):
        swapped.refuse(command, exit_code=2, says=["the two DSNs are swapped"])
    require_end(pair)


def test_sync_before_the_copy_is_refused(make_pair: MakePair) -> None:
    pair = make_pair(ROWS, TABLE)
    pair.refuse("sync", exit_code=3, says=["There is no migration", "ordermigrate prepare"])
    succeed(pair, "prepare")
    for command in (("sync",), ("validate", "--repair")):
        pair.refuse(*command, exit_code=3, says=["copy is", "complete", "ordermigrate copy"])
    succeed(pair, "copy")
    require_end(pair)


def test_repair_before_the_copy_is_refused(make_pair: MakePair) -> None:
    pair = make_pair(ROWS, TABLE)
    pair.refuse("validate", "--repair", exit_code=3, says=["whose copy is complete"])


def test_a_column_that_depends_on_another_table_from_now_on_is_brought_to_that(
    make_pair: MakePair,
) -> None:
    word = {
        "sql": "(SELECT o.name FROM public.other AS o WHERE o.id = thing.id)",
        "depends": {"table": "public.other", "columns": ["name"], "keys": "SELECT changed.id"},
    }
    other = "CREATE TABLE public.other (id integer PRIMARY KEY, name text);"
    pair = bring_up(make_pair(other + ROWS, TABLE))
    pair.on_monolith("INSERT INTO public.other VALUES (1, 'one')")
    changed = pair.but(tables=[{"name": "public.thing", "columns": {"word": word}}])
    refuse_sync(changed, "not watched on the monolith", "ordermigrate prepare")
    succeed(changed, "prepare")
    catch_up(changed)
    assert changed.on_service("SELECT id FROM public.thing WHERE word IS NOT NULL") == [(1,)]
    changed.validate()


def test_a_role_that_owns_nothing_on_the_monolith_is_refused(
    make_pair: MakePair, make_role: MakeRole
) -> None:
    role = make_role()
    pair = make_pair(ROWS, TABLE)
    pair.on_monolith(f"GRANT ALL ON public.thing TO {role}")
    name = pair.on_monolith("SELECT current_database()")[0][0]
    pair.on_monolith(f'GRANT CREATE ON DATABASE "{name}" TO {role}')
    reader = pair.as_role(role, service=False)
    reader.refuse(
        "prepare",
        exit_code=3,
        says=["public.thing on the monolith belongs to another role", "connect as its owner"],
    )
    pair.on_monolith(
        f"ALTER TABLE public.thing OWNER TO {role}; GRANT CREATE ON SCHEMA public TO {role}"
    )
    bring_up(reader)
    require_end(reader)


def test_a_subscription_on_the_monoliths_table_is_refused(
    start_server: StartServer, make_pair: MakePair
) -> None:
    publisher = start_server(settings={"wal_level": "logical"})
    publisher_dsn = publisher.dsn("postgres")
    execute(publisher_dsn, f"{ROWS}; CREATE PUBLICATION p FOR TABLE public.thing")
    pair = make_pair(TABLE, TABLE)
    pair.on_monolith(
        f"CREATE SUBSCRIPTION s CONNECTION '{publisher_dsn}' PUBLICATION p WITH (copy_data = false)"
    )
    try:
        pair.refuse(
            "prepare", exit_code=3, says=["Subscriptions write to the monolith", "s writes to"]
        )
    finally:
        pair.on_monolith("DROP SUBSCRIPTION s")
    bring_up(pair)


# ------------------------------------------------------------------------------- clocks, two syncs


def test_a_clock_that_is_wrong_breaks_nothing(pair: Pair) -> None:
    """The times in the log are for people: nothing is ordered by them."""
    for when in ("now() + interval '3 days'", "'1970-01-01'", "'0001-01-01'"):
        pair.on_monolith(f"{WRITE}; UPDATE ordermigrate.change_log_1 SET changed_at = {when}")
        found = show_status(pair)
        assert found["lag_seconds"] >= 0, when
        assert found["backlog"] == 10
        succeed(pair, "status")
        catch_up(pair)
        assert pair.compare()
    require_end(pair)


def test_a_second_sync_stands_by_and_takes_over(pair: Pair, start_cli: StartCli) -> None:
    with syncing(pair, start_cli) as first:
        second = start_cli("sync", **ends(pair))
        second.wait_for_event("sync_waits")
        pair.on_monolith(WRITE)
        first.wait_for_event("round_applied")
        assert not [event for event in second.events if event["event"] == "round_applied"]
        first.kill()
        first.finish()
        second.wait_for_event("following")
        pair.on_monolith("DELETE FROM public.thing WHERE id = 10")
        second.wait_for_event("round_applied")
        end_sync(second)
    require_end(pair)
