"""The ledger: what it counts once is done once, whoever else is at it at the same time."""

# ruff: noqa: S608  the statements are the product's own, on tables of these tests

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass

import psycopg
import pytest

from ordermigrate import catalog, ledger, queries
from ordermigrate.control import Session
from ordermigrate.errors import Busy, Refused
from ordermigrate.ledger import Totals
from ordermigrate.model import Side, Table, TableName
from ordermigrate.phases import Phase
from tests.fix_postgres import execute
from tests.integration import ground
from tests.integration.ground import RUN, opened, read_tables

NAME = "public.t"
TARGET = TableName("public", "t")
CREATE = "CREATE TABLE public.t (id integer PRIMARY KEY, v text)"
FIRST, SECOND = 1001, 1002  # oids of two leaves of the source


@dataclass
class Book:
    """The service's database with a ledger, and a table to be filled."""

    dsn: str
    session: Session
    table: Table

    async def plan(self, leaf: int = FIRST, chunks: int = 1) -> list[ledger.Chunk]:
        ranges: list[tuple[int, int | None]] = [(n, n + 1) for n in range(chunks - 1)]
        ranges.append((chunks - 1, None))
        await ledger.plan_chunks(self.session, RUN, NAME, (f"leaf {leaf}", leaf, 77), ranges)
        return [chunk for chunk in await ledger.read_chunks(self.session) if chunk.leaf_oid == leaf]

    async def open_attempt(self) -> int:
        await self.session.run(
            "INSERT INTO ordermigrate.attempt (attempt, run, snapshot, fingerprint) "
            "VALUES (1, $1::uuid, '1:1:', '{}') ON CONFLICT DO NOTHING",
            RUN,
        )
        return 1


@pytest.fixture
async def book(monolith_dsn: str, service_dsn: str) -> AsyncIterator[Book]:
    execute(service_dsn, CREATE)
    async with opened(monolith_dsn) as monolith, opened(service_dsn, Side.SERVICE) as service:
        await ground.install(monolith, service)
        (table,) = await read_tables(service)
        yield Book(service_dsn, service, table)


class Worker:
    """A connection that copies chunks as a stream's does, in steps that a test can stop between."""

    def __init__(self, connection: psycopg.AsyncConnection[tuple[object, ...]]) -> None:
        self.connection = connection

    async def run(self, statement: str, *values: object) -> list[tuple[object, ...]]:
        cursor = psycopg.AsyncRawCursor(self.connection)
        await cursor.execute(statement.encode(), values or None)
        return await cursor.fetchall() if cursor.description else []

    async def claim(self, chunk: ledger.Chunk) -> bool:
        await self.run("BEGIN")
        return bool(await self.run(queries.get("ledger", "claim_chunk"), chunk.chunk_id))

    async def record(self, chunk: ledger.Chunk, first: int, rows: int) -> None:
        await self.run(
            "INSERT INTO public.t SELECT g, 'x' FROM generate_series($1::int, $2::int) AS g",
            first,
            first + rows - 1,
        )
        record = queries.get("ledger", "record_chunk")
        assert await self.run(record, chunk.chunk_id, 1, rows, rows * 10)


@pytest.fixture
async def workers(book: Book) -> AsyncIterator[tuple[Worker, Worker]]:
    connections = [
        await psycopg.AsyncConnection.connect(book.dsn, autocommit=True) for _ in range(2)
    ]
    await book.open_attempt()
    yield Worker(connections[0]), Worker(connections[1])
    for connection in connections:
        await connection.close()


async def copy_chunk(worker: Worker, chunk: ledger.Chunk, first: int, rows: int) -> None:
    assert await worker.claim(chunk)
    await worker.record(chunk, first, rows)
    await worker.run("COMMIT")


def rows_of(book: Book) -> int:
    return int(execute(book.dsn, "SELECT count(*) FROM public.t")[0][0])


async def wait_until_blocked(book: Book) -> None:
    """Wait until some session in the database waits for a lock."""
    statement = (
        "SELECT count(*) AS n FROM pg_stat_activity "
        "WHERE datname = current_database() AND wait_event_type = 'Lock'"
    )
    async with opened(book.dsn, Side.SERVICE) as watcher, asyncio.timeout(20):
        while not (await watcher.run(statement))[0].n:  # noqa: ASYNC110  no event tells of it
            await asyncio.sleep(0.01)


# ------------------------------------------------------------------------------------- exactly once


async def test_a_chunk_that_two_claim_is_copied_by_one_and_found_by_the_other(
    book: Book, workers: tuple[Worker, Worker]
) -> None:
    one, other = workers
    (chunk,) = await book.plan()
    assert await one.claim(chunk)
    await one.record(chunk, 1, 5)
    second = asyncio.ensure_future(other.claim(chunk))
    await wait_until_blocked(book)
    await one.run("COMMIT")
    assert await second is False
    await other.run("ROLLBACK")
    assert (await ledger.read_totals(book.session))[NAME] == Totals(1, 1, 5, 50)
    assert rows_of(book) == 5


async def test_a_chunk_whose_first_worker_fails_is_free_for_the_second(
    book: Book, workers: tuple[Worker, Worker]
) -> None:
    one, other = workers
    (chunk,) = await book.plan()
    assert await one.claim(chunk)
    await one.record(chunk, 1, 5)
    second = asyncio.ensure_future(other.claim(chunk))
    await wait_until_blocked(book)
    await one.run("ROLLBACK")
    assert await second is True
    await other.record(chunk, 1, 5)
    await other.run("COMMIT")
    assert rows_of(book) == 5


async def test_a_chunk_that_is_done_can_be_neither_claimed_nor_recorded_again(
    book: Book, workers: tuple[Worker, Worker]
) -> None:
    one, _ = workers
    (chunk,) = await book.plan()
    await copy_chunk(one, chunk, 1, 5)
    assert not await one.claim(chunk)
    record = queries.get("ledger", "record_chunk")
    assert await one.run(record, chunk.chunk_id, 1, 9, 9) == []
    await one.run("ROLLBACK")


async def test_planning_again_changes_nothing(book: Book, workers: tuple[Worker, Worker]) -> None:
    one, _ = workers
    chunks = await book.plan(chunks=3)
    await copy_chunk(one, chunks[1], 1, 5)
    before = await ledger.read_chunks(book.session)
    await book.plan(chunks=3)
    assert await ledger.read_chunks(book.session) == before
    assert [chunk.is_copied for chunk in before] == [False, True, False]
    assert [(chunk.first_block, chunk.end_block) for chunk in before] == [(0, 1), (1, 2), (2, None)]


async def test_totals_are_told_by_table_and_know_when_all_is_copied(
    book: Book, workers: tuple[Worker, Worker]
) -> None:
    one, _ = workers
    assert await ledger.read_totals(book.session) == {}
    chunks = await book.plan(chunks=2)
    assert (await ledger.read_totals(book.session))[NAME] == Totals(2, 0, 0, 0)
    for number, chunk in enumerate(chunks):
        assert not (await ledger.read_totals(book.session))[NAME].is_complete
        await copy_chunk(one, chunk, 1 + 5 * number, 5)
    assert (await ledger.read_totals(book.session))[NAME].is_complete


# ------------------------------------------------------------------------------------- whose rows


async def unknown(book: Book) -> tuple[int, int]:
    return await ledger.count_unknown_rows(book.session, NAME, TARGET)


@pytest.fixture
async def copied(book: Book, workers: tuple[Worker, Worker]) -> Book:
    """Two leaves: rows 1 to 10 come from the first, in two chunks, 11 to 15 from the second."""
    one, _ = workers
    first, second = await book.plan(FIRST, 2), await book.plan(SECOND)
    await copy_chunk(one, first[0], 1, 5)
    await copy_chunk(one, first[1], 6, 5)
    await copy_chunk(one, second[0], 11, 5)
    return book


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ("SELECT 1", (0, 0)),
        ("VACUUM (FREEZE) public.t", (0, 0)),
        ("VACUUM FULL public.t", (0, 0)),
        ("SELECT count(*) FROM (SELECT FROM public.t FOR UPDATE) AS locked", (0, 0)),
        ("BEGIN; UPDATE public.t SET v = 'y'; ROLLBACK", (0, 0)),
        ("INSERT INTO public.t VALUES (99, 'foreign')", (1, 0)),
        ("DELETE FROM public.t WHERE id = 3", (0, 1)),
        ("UPDATE public.t SET v = 'y' WHERE id = 3", (1, 1)),
        ("UPDATE public.t SET v = v WHERE id < 3", (2, 2)),
        ("DELETE FROM public.t WHERE id < 3; INSERT INTO public.t VALUES (1, 'x')", (1, 2)),
        ("TRUNCATE public.t", (0, 15)),
    ],
)
async def test_rows_that_are_not_ours_and_rows_that_are_gone_are_told_apart(
    copied: Book, change: str, found: tuple[int, int]
) -> None:
    execute(copied.dsn, change)
    assert await unknown(copied) == found


async def test_a_table_that_nothing_was_copied_to_has_only_strangers(book: Book) -> None:
    assert await unknown(book) == (0, 0)
    assert await ledger.is_empty(book.session, TARGET)
    execute(book.dsn, "INSERT INTO public.t VALUES (1, 'x')")
    assert await unknown(book) == (1, 0)
    assert not await ledger.is_empty(book.session, TARGET)


@pytest.mark.parametrize(("leaf", "left"), [(FIRST, range(11, 16)), (SECOND, range(1, 11))])
async def test_forgetting_a_leaf_removes_exactly_its_rows_and_its_chunks(
    copied: Book, leaf: int, left: range
) -> None:
    removed = await ledger.forget_leaf(copied.session, NAME, copied.table, leaf)
    assert removed == 15 - len(left)
    assert [id_ for (id_,) in execute(copied.dsn, "SELECT id FROM public.t ORDER BY 1")] == list(
        left
    )
    assert {chunk.leaf_oid for chunk in await ledger.read_chunks(copied.session)} == {
        FIRST + SECOND - leaf
    }
    assert await unknown(copied) == (0, 0)


@pytest.mark.parametrize("has_child", [False, True])
async def test_forgetting_the_only_leaf_empties_the_table_also_under_foreign_keys(
    copied: Book, *, has_child: bool
) -> None:
    if has_child:
        execute(copied.dsn, "CREATE TABLE public.child (t_id integer REFERENCES public.t)")
        (copied.table,) = await read_tables(copied.session)
    for leaf in (FIRST, SECOND):
        await ledger.forget_leaf(copied.session, NAME, copied.table, leaf)
    assert rows_of(copied) == 0
    assert await ledger.read_chunks(copied.session) == []


async def test_what_a_dead_clients_backend_commits_late_is_forgotten_with_its_leaf(
    book: Book, workers: tuple[Worker, Worker]
) -> None:
    # Its commit may be waiting for a standby while the next attempt finds the leaf rewritten.
    one, other = workers
    first, second = await book.plan(FIRST, 2), await book.plan(SECOND)
    await copy_chunk(one, first[0], 1, 5)
    await copy_chunk(one, second[0], 11, 5)
    assert await other.claim(first[1])
    await other.record(first[1], 6, 5)
    forgotten = asyncio.ensure_future(ledger.forget_leaf(book.session, NAME, book.table, FIRST))
    await wait_until_blocked(book)
    await other.run("COMMIT")
    await forgotten
    assert await unknown(book) == (0, 0)
    assert rows_of(book) == 5


async def test_what_is_committed_late_for_another_leaf_is_kept(
    book: Book, workers: tuple[Worker, Worker]
) -> None:
    one, other = workers
    (first,), (second,) = await book.plan(FIRST), await book.plan(SECOND)
    await copy_chunk(one, first, 1, 5)
    assert await other.claim(second)
    await other.record(second, 11, 5)
    forgotten = asyncio.ensure_future(ledger.forget_leaf(book.session, NAME, book.table, FIRST))
    await wait_until_blocked(book)
    await other.run("COMMIT")
    await forgotten
    assert await unknown(book) == (0, 0)
    assert rows_of(book) == 5


async def test_a_copy_is_forgotten_whole_or_not_at_all(copied: Book) -> None:
    with pytest.raises(ZeroDivisionError):
        await ground.fail_inside(copied.session, ledger.forget_copy(copied.session, [copied.table]))
    assert await unknown(copied) == (0, 0)
    assert rows_of(copied) == 15
    async with copied.session.transaction():
        await ledger.forget_copy(copied.session, [copied.table])
    assert rows_of(copied) == 0
    assert await ledger.read_totals(copied.session) == {}
    assert await ledger.read_first_attempt(copied.session) is None


# ------------------------------------------------------------------------------ runs and phases


async def read_run(book: Book) -> ledger.Run:
    run = await ledger.read_run(book.session)
    assert run is not None
    return run


async def test_there_is_no_run_before_there_is_a_ledger(service_dsn: str) -> None:
    async with opened(service_dsn, Side.SERVICE) as service:
        assert await ledger.read_run(service) is None


async def test_a_run_that_is_there_stays(book: Book) -> None:
    before = await read_run(book)
    assert (before.run, before.phase) == (RUN, Phase.PREPARED)
    other = "99999999-2222-3333-4444-555555555555"
    async with book.session.transaction():
        await ledger.install(book.session, other, "1", book.session.identity)
    assert await read_run(book) == before


async def test_a_phase_moves_once_and_its_history_is_kept(book: Book) -> None:
    run = await read_run(book)
    moved = await ledger.change_phase(book.session, run, Phase.COPYING, "copy")
    assert moved.phase is Phase.COPYING
    assert await ledger.change_phase(book.session, moved, Phase.COPYING, "copy") == moved
    with pytest.raises(Busy):
        await ledger.change_phase(book.session, run, Phase.COPYING, "copy")
    with pytest.raises(Refused):
        await ledger.change_phase(book.session, run, Phase.COPIED, "copy")
    history = "SELECT old_phase, new_phase, command FROM ordermigrate.phase_change"
    assert execute(book.dsn, history) == [("prepared", "copying", "copy")]


async def test_one_operator_at_a_time(book: Book) -> None:
    await ledger.take_operator_lock(book.session)
    async with opened(book.dsn, Side.SERVICE) as second:
        with pytest.raises(Busy):
            await ledger.take_operator_lock(second)
        await book.session.close()
        async with asyncio.timeout(20):
            while True:
                try:
                    await ledger.take_operator_lock(second)
                    break
                except Busy:
                    await asyncio.sleep(0.01)


async def test_an_attempt_that_a_kill_left_open_is_closed_by_the_next(book: Book) -> None:
    await book.open_attempt()
    await book.session.run(
        "INSERT INTO ordermigrate.attempt (attempt, run, snapshot, fingerprint) "
        "VALUES (2, $1::uuid, '5:5:', '{}')",
        RUN,
    )
    await ledger.end_attempt(book.session, 2, "complete")
    found = execute(book.dsn, "SELECT attempt, outcome FROM ordermigrate.attempt ORDER BY 1")
    assert found == [(1, "cut off"), (2, "complete")]
    first = await ledger.read_first_attempt(book.session)
    assert first is not None
    assert (first.snapshot, first.attempts) == ("1:1:", 2)


# --------------------------------------------------------------------------------- what was off


async def test_definitions_come_back_as_they_were_recorded_the_heaviest_first(book: Book) -> None:
    (table,) = await read_tables(book.session)
    (index,) = table.indexes
    kept = catalog.recorded(index)
    odd = '"odd ""name"" 100% {x}"'
    await ledger.record_object(book.session, odd, "index", "light", {"text": "it's\n$1"}, 1.0)
    await ledger.record_object(book.session, NAME, "index", index.name, kept, 9.0)
    await ledger.record_object(book.session, NAME, "check", "other", {})
    found = await ledger.read_objects(book.session, "index")
    assert [(each.table_name, each.name) for each in found] == [(NAME, index.name), (odd, "light")]
    definition = found[0].definition
    assert definition["definition"] == index.definition
    assert definition["columns"] == list(index.columns)
    assert found[1].definition == {"text": "it's\n$1"}
    assert len(await ledger.read_objects(book.session, "index", "check")) == 3


async def test_what_is_back_is_no_longer_off_until_it_is_off_again(book: Book) -> None:
    async def off() -> list[str]:
        return [each.name for each in await ledger.read_objects(book.session, "index")]

    await ledger.record_object(book.session, NAME, "index", "i", {"n": 1})
    (recorded,) = await ledger.read_objects(book.session, "index")
    await ledger.mark_restored(book.session, recorded)
    await ledger.mark_restored(book.session, recorded)
    assert await off() == []
    await ledger.record_object(book.session, NAME, "index", "i", {"n": 2})
    assert await off() == ["i"]
    assert (await ledger.read_objects(book.session, "index"))[0].definition == {"n": 2}


# ----------------------------------------------------------------------------------- validations


async def test_a_validation_is_kept_with_its_differences_and_void_once_the_phase_moves(
    book: Book,
) -> None:
    assert await ledger.read_last_validation(book.session) is None
    difference = {
        "key": {"id": "1"},
        "kind": "changed",
        "columns": {"v": {"source": "it's", "target": None}},
    }
    tables = [{"name": NAME, "rows": 5, "differences": [difference]}]
    standing = await ledger.read_standing(book.session)
    number = await ledger.record_validation(
        book.session, RUN, standing, "different", "md5", tables, seconds=1.5
    )
    last = await ledger.read_last_validation(book.session)
    assert last is not None
    assert (last.verdict, last.algorithm, last.seconds) == ("different", "md5", 1.5)
    assert last.tables == [{"name": NAME, "rows": 5}]
    assert not last.is_void
    assert last.age_seconds >= 0
    kept = execute(
        book.dsn,
        "SELECT validation_id, table_name, row_key, kind, column_values "
        "FROM ordermigrate.validation_difference",
    )
    assert kept == [(number, NAME, {"id": "1"}, "changed", difference["columns"])]
    await ledger.change_phase(book.session, await read_run(book), Phase.COPYING, "copy")
    last = await ledger.read_last_validation(book.session)
    assert last is not None
    assert last.is_void


async def test_a_validation_is_void_for_the_first_reason_given_and_only_it(book: Book) -> None:
    async def validate() -> ledger.LastValidation:
        standing = await ledger.read_standing(book.session)
        await ledger.record_validation(book.session, RUN, standing, "equal", "md5", [], seconds=1.0)
        last = await ledger.read_last_validation(book.session)
        assert last is not None
        return last

    await validate()
    for reason in ("a part was detached", "the fence was down"):
        await ledger.void_validations(book.session, reason)
    last = await ledger.read_last_validation(book.session)
    assert last is not None
    assert (last.is_void, last.void_because) == (True, "a part was detached")
    assert not (await validate()).is_void


@pytest.mark.parametrize("reason", ["the fence was down", "the phase has changed since"])
async def test_a_validation_is_void_for_what_happened_while_it_was_at_work(
    book: Book, reason: str
) -> None:
    standing = await ledger.read_standing(book.session)
    if "phase" in reason:
        await ledger.change_phase(book.session, await read_run(book), Phase.COPYING, "copy")
    else:
        await ledger.void_validations(book.session, reason)
    await ledger.record_validation(book.session, RUN, standing, "equal", "md5", [], seconds=1.0)
    last = await ledger.read_last_validation(book.session)
    assert last is not None
    assert last.void_because == reason


# ------------------------------------------------------------------------- rounds, structures


async def test_rows_that_were_taken_off_again_are_not_missed(
    book: Book, workers: tuple[Worker, Worker]
) -> None:
    (chunk,) = await book.plan()
    await copy_chunk(workers[0], chunk, 1, 5)
    async with book.session.transaction():
        await book.session.run("DELETE FROM public.t WHERE id < 3")
        await book.session.fetch_all("ledger", "add_subtraction", NAME, 1)
        await book.session.fetch_all("ledger", "add_subtraction", NAME, 1)
    assert await ledger.count_unknown_rows(book.session, NAME, TARGET) == (0, 0)
    execute(book.dsn, "DELETE FROM public.t WHERE id = 3")
    assert await ledger.count_unknown_rows(book.session, NAME, TARGET) == (0, 1)


async def test_a_sides_structure_is_the_last_one_noted(book: Book) -> None:
    assert await ledger.read_structure(book.session, Side.MONOLITH) is None
    for text in ("a", "it's"):
        await ledger.note_structure(book.session, Side.MONOLITH, {"tables": {text: 1}})
    assert await ledger.read_structure(book.session, Side.MONOLITH) == {"tables": {"it's": 1}}
    assert await ledger.read_structure(book.session, Side.SERVICE) is None


async def test_the_last_round_is_told_and_old_ones_are_forgotten(book: Book) -> None:
    assert await ledger.read_last_round(book.session) is None
    for number in range(1, 6):
        await book.session.fetch_all(
            "ledger", "record_round", number, 3, 2, 1, number == 5, 0.25, "0/15D6B80", "monolith"
        )
    last = await ledger.read_last_round(book.session)
    assert last is not None
    assert (last.round, last.logged_changes, last.source_position) == (5, 3, "0/15D6B80")
    assert last.source is Side.MONOLITH
    assert last.rounds_per_second == pytest.approx(5 / 60)
    await book.session.fetch_all("ledger", "forget_old_rounds", 4)
    assert execute(book.dsn, "SELECT round FROM ordermigrate.round ORDER BY 1") == [(4,), (5,)]


async def test_the_ledger_keeps_no_password(book: Book) -> None:
    password = psycopg.conninfo.conninfo_to_dict(book.dsn).get("password")
    assert password
    tables = execute(book.dsn, "SELECT tablename FROM pg_tables WHERE schemaname = 'ordermigrate'")
    for (name,) in tables:
        rows = execute(book.dsn, f'SELECT t::text FROM ordermigrate."{name}" AS t')
        assert not any(str(password) in row for (row,) in rows)
