"""Whether anybody wrote: asked of the rows themselves, and of those who hold locks."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, field
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from ordermigrate import catalog, db, writes
from ordermigrate.control import Session
from ordermigrate.model import Side, TableMap
from ordermigrate.writes import Noted, Stillness
from tests.fix_postgres import TestServers, execute
from tests.integration import ground

TABLES = """
CREATE TABLE public.t (id integer PRIMARY KEY, v text) WITH (fillfactor = 50);
CREATE TABLE public.elsewhere (n integer);
INSERT INTO public.t SELECT g, 'old' FROM generate_series(1, 20) AS g
"""
SAME = "SELECT xmin::text, ctid::text, id FROM public.t ORDER BY id"


@dataclass
class Look:
    """What a copy would have noted at its snapshot, which stays open for the judge."""

    noted: Noted
    copied: dict[str, int]
    rows: list[Any]


@dataclass
class Stage:
    """A monolith, two writers, and what looks at them."""

    runner: asyncio.Runner
    dsn: str
    keeper: Session
    scanner: Session
    watcher: Session
    tables: list[TableMap]
    writers: list[psycopg.Connection[Any]] = field(default_factory=list)

    def play(self, acts: Sequence[tuple[int, str]]) -> None:
        """Let the writers do things; what one may not do, because the other holds it, fails."""
        for writer, statement in acts:
            try:
                self.writers[writer].execute(statement.encode())
            except psycopg.Error:
                self.writers[writer].rollback()

    def look(self) -> Look:
        """Take a snapshot as the first attempt of a copy does."""

        async def note() -> Look:
            async with catalog.locked_snapshot(
                self.keeper, [each.source.name for each in self.tables]
            ):
                ((snapshot,),) = await self.keeper.run("SELECT pg_current_snapshot()::text")
                window = await writes.note_window(self.keeper, self.tables, snapshot)
                rows = [tuple(row) for row in await self.keeper.run(SAME)]
            return Look(Noted(snapshot, window), {"public.t": len(rows)}, rows)

        return self.runner.run(note())

    def check(self, look: Look, *, is_complete: bool = True) -> Stillness:
        (found,) = self.runner.run(
            writes.check_stillness(
                self.scanner,
                self.watcher,
                self.tables,
                look.noted,
                look.copied if is_complete else None,
            )
        )
        return found

    def is_same(self, look: Look) -> bool:
        """Judge without the product: every row version is the one that the snapshot saw."""
        return [tuple(row) for row in self.runner.run(self.keeper.run(SAME))] == look.rows

    def reset(self) -> None:
        for writer in self.writers:
            writer.rollback()
        self.play([(0, "DELETE FROM public.t")])
        self.play([(0, "INSERT INTO public.t SELECT g, 'old' FROM generate_series(1, 20) AS g")])


@pytest.fixture(scope="module")
def stage(postgres_servers: TestServers) -> Iterator[Stage]:
    server = postgres_servers.monolith
    name = server.create_database("writes")
    dsn = server.dsn(name)
    server.run(TABLES, name)
    config = ground.make_config(dsn, dsn)
    with asyncio.Runner() as runner, ExitStack() as stack:
        opened = []
        for what in ("keeper", "scanner", "watcher"):
            session = runner.run(db.connect(config, Side.MONOLITH, what))
            stack.callback(lambda session: runner.run(session.close()), session)
            opened.append(session)
        # The same table stands for both sides; only the source's is looked at.
        maps = runner.run(ground.read_maps(opened[0], opened[0]))
        found = Stage(runner, dsn, opened[0], opened[1], opened[2], maps)
        for _ in range(2):
            writer = psycopg.connect(dsn, autocommit=True)
            writer.execute("SET lock_timeout = '1ms'")
            found.writers.append(stack.enter_context(closing(writer)))
        yield found
    server.drop_database(name)


@pytest.fixture(autouse=True)
def clean(request: pytest.FixtureRequest) -> None:
    if "stage" in request.fixturenames:
        request.getfixturevalue("stage").reset()


ELSEWHERE = "INSERT INTO public.elsewhere VALUES (1)"
STORIES: list[tuple[str, list[tuple[int, str]], list[tuple[int, str]], bool]] = [
    ("nothing", [], [], True),
    ("an insert", [], [(0, "INSERT INTO public.t VALUES (99, 'x')")], False),
    ("an update", [], [(0, "UPDATE public.t SET v = 'x' WHERE id = 7")], False),
    ("an update to the same value", [], [(0, "UPDATE public.t SET v = v WHERE id = 7")], False),
    ("a delete", [], [(0, "DELETE FROM public.t WHERE id = 7")], False),
    (
        "an insert and a delete of another row",
        [],
        [(0, "INSERT INTO public.t VALUES (99, 'x')"), (0, "DELETE FROM public.t WHERE id = 7")],
        False,
    ),
    (
        "a row deleted and put back as it was",
        [],
        [
            (0, "DELETE FROM public.t WHERE id = 7"),
            (0, "INSERT INTO public.t VALUES (7, 'old')"),
        ],
        False,
    ),
    ("a truncate", [], [(0, "TRUNCATE public.t")], False),
    (
        "an insert that was taken back by a delete",
        [],
        [(0, "INSERT INTO public.t VALUES (99, 'x')"), (0, "DELETE FROM public.t WHERE id = 99")],
        True,
    ),
    (
        "a write that was rolled back",
        [],
        [(0, "BEGIN"), (0, "UPDATE public.t SET v = 'x'"), (0, "ROLLBACK")],
        True,
    ),
    (
        "a savepoint that was rolled back",
        [],
        [
            (0, "BEGIN"),
            (0, "SAVEPOINT s"),
            (0, "UPDATE public.t SET v = 'x'"),
            (0, "ROLLBACK TO s"),
            (0, ELSEWHERE),
            (0, "COMMIT"),
        ],
        True,
    ),
    (
        "a write that is not committed",
        [],
        [(0, "BEGIN"), (0, "UPDATE public.t SET v = 'x'")],
        True,
    ),
    (
        "a transaction open at the snapshot that has written before it",
        [(0, "BEGIN"), (0, "UPDATE public.t SET v = 'x' WHERE id = 7")],
        [(0, "COMMIT")],
        False,
    ),
    (
        "one that was rolled back after it",
        [(0, "BEGIN"), (0, "UPDATE public.t SET v = 'x' WHERE id = 7")],
        [(0, "ROLLBACK")],
        True,
    ),
    (
        "one that had written under a savepoint, which no snapshot's text tells",
        [
            (0, "BEGIN"),
            (0, ELSEWHERE),
            (0, "SAVEPOINT s"),
            (0, "UPDATE public.t SET v = 'x' WHERE id = 7"),
            (0, "RELEASE s"),
            (1, ELSEWHERE),
        ],
        [(0, "COMMIT")],
        False,
    ),
    (
        "the same with an insert and a delete, which leave the count as it was",
        [
            (0, "BEGIN"),
            (0, ELSEWHERE),
            (0, "SAVEPOINT s"),
            (0, "INSERT INTO public.t VALUES (99, 'x')"),
            (0, "DELETE FROM public.t WHERE id = 7"),
            (1, ELSEWHERE),
        ],
        [(0, "COMMIT")],
        False,
    ),
    (
        "others who write elsewhere",
        [(0, "BEGIN"), (0, ELSEWHERE), (1, "UPDATE public.t SET v = 'x' WHERE id = 7")],
        [(0, "COMMIT"), (1, ELSEWHERE)],
        True,
    ),
    ("row locks", [], [(0, "SELECT FROM public.t FOR UPDATE")], True),
    ("row locks that are held", [], [(0, "BEGIN"), (0, "SELECT FROM public.t FOR SHARE")], True),
    ("a vacuum", [], [(0, "VACUUM (FREEZE, ANALYZE) public.t")], True),
    ("a rewrite", [], [(0, "VACUUM FULL public.t")], True),
    (
        "a rewrite while others are open",
        [(1, "BEGIN"), (1, ELSEWHERE), (0, "UPDATE public.t SET v = 'x' WHERE id = 7")],
        [(0, "VACUUM FULL public.t")],
        True,
    ),
    ("an index", [], [(0, "CREATE INDEX i ON public.t (v)"), (0, "DROP INDEX public.i")], True),
]


@pytest.mark.parametrize(
    ("before", "after", "is_still"), [story[1:] for story in STORIES], ids=[s[0] for s in STORIES]
)
def test_the_rows_tell_of_every_write_and_of_nothing_else(
    stage: Stage, before: list[tuple[int, str]], after: list[tuple[int, str]], *, is_still: bool
) -> None:
    stage.play(before)
    look = stage.look()
    stage.play(after)
    found = stage.check(look)
    assert found.is_still == is_still, found.describe()
    assert ("none written" in found.describe()) == is_still


ACTS = st.lists(
    st.tuples(
        st.sampled_from([0, 1]),
        st.sampled_from(
            [
                "BEGIN",
                "COMMIT",
                "COMMIT",
                "ROLLBACK",
                "SAVEPOINT s",
                "SAVEPOINT s",
                "RELEASE s",
                "ROLLBACK TO s",
                ELSEWHERE,
                ELSEWHERE,
                "UPDATE public.t SET v = v || '.' WHERE id = 1",
                "UPDATE public.t SET v = v || '.' WHERE id = 2",
                "UPDATE public.t SET id = -id WHERE id IN (3, -3)",
                "INSERT INTO public.t VALUES (21, 'new') ON CONFLICT DO NOTHING",
                "INSERT INTO public.t VALUES (22, '') ON CONFLICT (id) DO UPDATE SET v = 'x'",
                "DELETE FROM public.t WHERE id = 2",
                "DELETE FROM public.t WHERE id = 21",
                "SELECT FROM public.t FOR UPDATE",
            ]
        ),
    ),
    max_size=12,
)
SAVEPOINT = [(0, act) for act in ("BEGIN", ELSEWHERE, "SAVEPOINT s")]


@given(before=ACTS, after=ACTS)
@example(
    before=[*SAVEPOINT, (0, "UPDATE public.t SET v = v || '.' WHERE id = 1"), (1, ELSEWHERE)],
    after=[(0, "COMMIT")],
)
@settings(
    max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_whatever_two_writers_do_the_verdict_is_that_of_the_row_versions(
    stage: Stage, before: list[tuple[int, str]], after: list[tuple[int, str]]
) -> None:
    stage.reset()
    stage.play(before)
    look = stage.look()
    stage.play(after)
    assert stage.check(look).is_still == stage.is_same(look)


def test_while_a_copy_is_not_complete_new_rows_are_told_and_missing_ones_cannot_be(
    stage: Stage,
) -> None:
    look = stage.look()
    stage.play([(0, "DELETE FROM public.t WHERE id = 7")])
    found = stage.check(look, is_complete=False)
    assert (found.rows_newer, found.rows_now) == (0, 19)
    stage.play([(0, "UPDATE public.t SET v = 'x' WHERE id = 8")])
    assert stage.check(look, is_complete=False).rows_newer == 1


# ------------------------------------------------------------------------------- watching others


@pytest.mark.parametrize(
    ("statement", "said"),
    [
        ("UPDATE public.t SET v = 'x' WHERE id = 1", "holds RowExclusiveLock on public.t"),
        ("LOCK TABLE public.t IN SHARE ROW EXCLUSIVE MODE", "ShareRowExclusiveLock"),
    ],
)
def test_who_holds_a_writers_lock_is_told(stage: Stage, statement: str, said: str) -> None:
    stage.play([(0, "BEGIN"), (0, statement)])
    (sign,) = stage.runner.run(writes.watch(stage.scanner, stage.tables, 0))
    assert said in sign
    assert str(stage.writers[0].info.backend_pid) in sign


@pytest.mark.parametrize(
    "statement", ["SELECT FROM public.t", "LOCK TABLE public.t IN ACCESS SHARE MODE", ELSEWHERE]
)
def test_who_only_reads_or_writes_elsewhere_is_no_sign(stage: Stage, statement: str) -> None:
    stage.play([(0, "BEGIN"), (0, statement)])
    assert stage.runner.run(writes.watch(stage.scanner, stage.tables, 0)) == []


def test_a_prepared_transaction_that_has_written_is_a_sign(stage: Stage) -> None:
    ((allowed,),) = execute(stage.dsn, "SHOW max_prepared_transactions")
    if allowed == "0":
        pytest.skip("this server allows no prepared transactions")
    stage.play(
        [
            (0, "BEGIN"),
            (0, "UPDATE public.t SET v = 'x' WHERE id = 1"),
            (0, "PREPARE TRANSACTION 'ordermigrate test'"),
        ]
    )
    try:
        (sign,) = stage.runner.run(writes.watch(stage.scanner, stage.tables, 0))
        assert "prepared transaction" in sign
    finally:
        with suppress(psycopg.Error):
            execute(stage.dsn, "ROLLBACK PREPARED 'ordermigrate test'")


def test_counters_that_move_while_one_watches_are_a_sign(stage: Stage) -> None:
    async def write_and_watch() -> list[str]:
        watching = asyncio.ensure_future(writes.watch(stage.scanner, stage.tables, 15))
        async with await psycopg.AsyncConnection.connect(stage.dsn, autocommit=True) as writer:
            while not watching.done():
                await writer.execute("UPDATE public.t SET v = 'x' WHERE id = 1")
                await asyncio.sleep(0.05)
        return await watching

    signs = stage.runner.run(write_and_watch())
    assert signs
    assert "updated" in signs[0] or "RowExclusiveLock" in signs[0]


def test_counters_survive_the_ledger(stage: Stage) -> None:
    counters = stage.runner.run(writes.read_counters(stage.scanner, stage.tables))
    assert writes.from_json(writes.to_json(counters)) == counters
    (found,) = counters.values()
    assert (found.smallest_key, found.greatest_key) == ("(1)", "(20)")


def test_what_has_moved_is_said_in_sentences() -> None:
    old = {"t": writes.Counters(1, 2, 3, "(1)", "(9)")}
    new = {"t": writes.Counters(2, 2, 1, "(1)", "(10)")}
    assert writes.explain_counters(old, old) == writes.explain_key_ranges(old, old) == []
    assert writes.explain_counters(old, new) == [
        "t: write counters moved by +1 inserted, -2 deleted"
    ]
    assert writes.explain_key_ranges(old, new) == ["t: its greatest key went from (9) to (10)"]
